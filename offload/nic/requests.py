"""What the host asks of an adapter beside packets, and what it answers: values, and octets for a socket.

Add, update and delete are those of IPsec task offload v2 (IPSEC_OFFLOAD_V2_ADD_SA_EX and its neighbours): the
adapter gets addresses, SPI, transform and key, and no sequence number, window or lifetime, which the host
keeps. `ident` comes back with the answer; answers come when they like. `offload.channel` frames the octets.

In packet mode the adapter keeps these, see `offload.nic.packet_mode`: numbers come over the ring, the replay
window goes there by `TakeWindow` and comes home by `Deleted`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from sadb.address import Address
from sadb.algorithms import ENCRYPTION_BY_NAME, Kind, QuickSuite, SecurityProtocol
from sadb.replay import SMALLEST, ReplayWindow
from sadb.sa import Mode, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import Selector

NO_SELECTOR = Selector((), ())
HALF = 0xFFFFFFFF  # the highest SPI, and the highest half of a sequence number
Handle: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]  # it has to fit a descriptor; 0 is none


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What goes between host and adapter."""


class Packets(msgspec.Struct, frozen=True, array_like=True):
    """What an adapter has to know besides to make whole packets (outbound), or to judge which are new
    (inbound): UDP ports, source first; DSCP and DF of outer headers, None for those of the packet; the size
    of the replay window and its highest number so far."""

    ports: tuple[int, int] | None
    dscp: int | None
    dont_fragment: bool | None
    window: int
    highest: int


class AddSa(_Message, frozen=True, array_like=True, tag=True):
    """Put one direction of a pair into the table. An all-zero address is a wildcard; `high` is the upper half
    of the sequence number, or None without extended ones; `packets` asks for packet mode."""

    ident: int
    inbound: bool
    spi: int
    source: bytes
    destination: bytes
    protocol: str
    encryption: str
    key: bytes
    tunnel: bool
    udp: bool
    high: int | None
    packets: Packets | None = None

    def __repr__(self) -> str:
        return f"<add {self.protocol} {self.spi:08x} {'inbound' if self.inbound else 'outbound'}>"


class UpdateSa(_Message, frozen=True, array_like=True, tag=True):
    """Extended sequence numbers have another upper half now."""

    handle: int
    high: int


class TakeWindow(_Message, frozen=True, array_like=True, tag=True):
    """Packet mode: judge from now on what is newer than `highest`, and than what was handed up so far."""

    handle: int
    highest: int


class DeleteSa(_Message, frozen=True, array_like=True, tag=True):
    """Forget an SA; always succeeds."""

    handle: int


class Added(_Message, frozen=True, array_like=True, tag=True):
    """The SA has a slot."""

    ident: int
    handle: Handle


class Refused(_Message, frozen=True, array_like=True, tag=True):
    """It has none, for one of the reasons of `offload.nic.eligibility`."""

    ident: int
    reason: str


class Deleted(_Message, frozen=True, array_like=True, tag=True):
    """No packet is marked with this handle any more, and none is sent with it. With the replay window, if the
    adapter had one: what came of the numbers that it judged (`sadb.replay.ReplayWindow.bitmap`)."""

    handle: int
    highest: int | None = None
    bitmap: bytes = b""


class Link(_Message, frozen=True, array_like=True, tag=True):
    """The link went down, and the table is empty with it, or came up again."""

    up: bool


class TooBig(_Message, frozen=True, array_like=True, tag=True):
    """The network says that packets to an address are to be smaller, see `offload.host.raw.TooBig`."""

    destination: bytes
    mtu: int
    spi: int | None


Request = AddSa | UpdateSa | TakeWindow | DeleteSa
Answer = Added | Refused | Deleted | Link | TooBig


def add(ident: int, sa: SecurityAssociation, high: int | None, *, packets: bool = False) -> AddSa:
    """The request for an SA whose transform is one of `Kind.AEAD` or `Kind.GMAC`, perhaps in packet mode."""
    row = sa.suite.encryption
    assert row is not None
    return AddSa(
        ident,
        sa.inbound,
        sa.spi,
        sa.source.packed,
        sa.destination.packed,
        sa.suite.protocol.value,
        row.name,
        bytes(sa.encryption_key),
        sa.mode is Mode.TUNNEL,
        sa.encapsulation is not None,
        high,
        _packets(sa) if packets else None,
    )


def _packets(sa: SecurityAssociation) -> Packets:
    window = sa.replay or ReplayWindow()
    return Packets(sa.encapsulation, sa.dscp, sa.dont_fragment, window.size, window.highest)


def association(message: AddSa, source: Address, destination: Address) -> SecurityAssociation:
    """The SA of a request, as far as an adapter knows it; `ValueError` for what is none."""
    row, protocol = ENCRYPTION_BY_NAME.get(message.encryption), SecurityProtocol(message.protocol)
    if row is None or len(message.key) != row.key + row.salt:
        raise ValueError("no transform with this key")
    if protocol is SecurityProtocol.AH and row.kind is not Kind.GMAC:
        raise ValueError("AH does not encrypt")
    if not 0 <= message.spi <= HALF or not 0 <= (message.high or 0) <= HALF:
        raise ValueError("no number of 32 bits")
    if source.version != destination.version:
        raise ValueError("one address is IPv4, the other IPv6")
    more = message.packets or Packets(None, None, None, SMALLEST, 0)
    ports = more.ports or (0, 0)
    if not all(0 <= one <= 0xFFFF for one in ports) or not 0 <= (more.dscp or 0) <= 63:
        raise ValueError("no port, or no DSCP")
    window = ReplayWindow(more.window, esn=message.high is not None)
    if not 0 <= more.highest <= window.last:
        raise ValueError("no sequence number")
    window.highest = more.highest
    return SecurityAssociation(
        spi=message.spi,
        suite=QuickSuite(protocol, row, None, esn=message.high is not None),
        mode=Mode.TUNNEL if message.tunnel else Mode.TRANSPORT,
        source=source,
        destination=destination,
        selector=NO_SELECTOR,
        encryption_key=Secret(message.key),
        integrity_key=Secret(b""),
        inbound=message.inbound,
        encapsulation=ports if message.udp else None,
        replay=window if message.inbound else None,
        dscp=more.dscp,
        dont_fragment=more.dont_fragment,
    )
