"""What a virtual machine's daemon and the host's say to each other over a port's socket: values and octets.

The socket keeps messages apart and carries descriptors. Which port it is is the socket's business, not the
guest's; no key goes over it, since the guest speaks with the adapter through a socket of its own. What a
guest says of its traffic is believed: one that boasts can win slots from other ports, up to its own limit and
never out of their reserves.
"""

from __future__ import annotations

import msgspec

from offload.channel import Suite, address, suite, suite_of
from offload.nic.requests import NO_SELECTOR
from sadb.sa import Mode, SecurityAssociation, State
from sadb.secret import Secret

LONGEST = 1 << 16  # octets of a message
SOCKETS = 32  # most descriptors that come with one
ROWS = 1000  # most pairs in one `Used`


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What goes over a port's socket."""


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """Of one SA, what decides whether an adapter can have it."""

    spi: int
    source: bytes
    destination: bytes
    suite: Suite
    tunnel: bool
    udp: bool
    state: str


class Join(_Message, frozen=True, array_like=True, tag=True):
    """The guest's sockets, raw ones first, for the adapter to use."""

    raw: int
    natt: int


class Claim(_Message, frozen=True, array_like=True, tag=True):
    """A pair that may be placed, or facts of one that have changed."""

    ident: int
    inbound: Facts
    outbound: Facts
    name: str
    rule: str
    wished: bool
    replaces: int | None


class Leave(_Message, frozen=True, array_like=True, tag=True):
    """The pair is gone."""

    ident: int


class Told(_Message, frozen=True, array_like=True, tag=True):
    """What became of one direction, see `offload.nic.lanes.Report`."""

    ident: int
    inbound: bool
    what: str


class Used(_Message, frozen=True, array_like=True, tag=True):
    """Octets of pairs since the last time, and those of them that the adapter carried."""

    rows: list[tuple[int, int, int]]


class Welcome(_Message, frozen=True, array_like=True, tag=True):
    """The port's name."""

    port: str


class Denied(_Message, frozen=True, array_like=True, tag=True):
    """Somebody else is behind this port already."""

    reason: str


class Plugged(_Message, frozen=True, array_like=True, tag=True):
    """An adapter, with descriptors, see `offload.workers.nic_worker.Plugged`."""

    profile: str
    slots: int
    room: int
    packet_mode: bool = False
    resend_lost: bool = True


class Moved(_Message, frozen=True, array_like=True, tag=True):
    """Put directions of a pair into the adapter, or take them out."""

    ident: int
    inbound: bool
    outbound: bool
    hard: bool


FromGuest = Join | Claim | Leave | Told | Used
FromHost = Welcome | Denied | Plugged | Moved

encode = msgspec.msgpack.Encoder().encode
from_guest = msgspec.msgpack.Decoder(FromGuest).decode
from_host = msgspec.msgpack.Decoder(FromHost).decode


def plain(text: str) -> str:
    """A name that a guest gave, as it may stand in a log: short, and nothing but what can be seen."""
    return "".join(one for one in text[:64] if one.isprintable())


def facts(sa: SecurityAssociation) -> Facts:
    """The facts of an SA."""
    return Facts(
        sa.spi,
        sa.source.packed,
        sa.destination.packed,
        suite(sa.suite),
        sa.mode is Mode.TUNNEL,
        sa.encapsulation is not None,
        sa.state.value,
    )


def association(of: Facts, inbound: bool) -> SecurityAssociation:
    """An SA as far as facts go, without keys; raises `ValueError` or `KeyError` when it cannot be."""
    return SecurityAssociation(
        spi=of.spi,
        suite=suite_of(of.suite),
        mode=Mode.TUNNEL if of.tunnel else Mode.TRANSPORT,
        source=address(of.source),
        destination=address(of.destination),
        selector=NO_SELECTOR,
        encryption_key=Secret(b""),
        integrity_key=Secret(b""),
        inbound=inbound,
        encapsulation=(0, 0) if of.udp else None,
        state=State(of.state),
    )
