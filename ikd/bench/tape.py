"""What the adapter of `ikctl bench offload` receives: a tape of TCP segments, plain and protected. Pure.

An application sends buffers of one size over one connection. Each buffer becomes segments as on an Ethernet
with protection, equally long in all series, and its last one has PSH, so that nothing is put together across
buffers. A tape is sealed once, with the numbers 1, 2, 3 …; whenever it is played, it is for a new pair with
the same keys, whose replay window has seen none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from struct import Struct
from typing import Final

from offload import ip
from offload.accounts import Accounts
from offload.outer import Arrived
from offload.sender import Sender
from sadb.algorithms import ENCRYPTION_BY_NAME, QuickSuite, SecurityProtocol
from sadb.replay import ReplayWindow
from sadb.sa import Mode, SaPair, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import TCP, Selector, TrafficSelector

HOST: Final = IPv4Address("198.51.100.1")
PEER: Final = IPv4Address("198.51.100.2")
SPI: Final = 0x1000
SUITE: Final = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128gcm"], esn=False)
KEY: Final = 20  # octets with the salt
WINDOW: Final = 256  # packets, as a daemon has it

MSS: Final = 1426  # what ESP and 1500 octets leave
HEADERS: Final = 40  # IPv4 and TCP without options
FRAMING: Final = 38  # octets that Ethernet adds: preamble, header, check sequence, gap
BATCH: Final = 64  # packets for one ring of the doorbell, at least; whole buffers

_TCP: Final = Struct("!HHIIBBHHH")
_ACK, _PSH = 0x10, 0x08
_PORTS: Final = 5001, 40000
_TEXTS: Final = 251  # different contents of segments


@dataclass(frozen=True, slots=True)
class Batch:
    """Successive buffers: `octets` of the application, the same packets plain and protected, and what they
    take on the wire in either form."""

    octets: int
    plain: list[bytes]
    sealed: list[Arrived]
    plain_wire: int
    sealed_wire: int


def pair(key: bytes, *, host: bool) -> SaPair:
    """The pair of either end, transport mode, new; `key` has those of both directions."""
    own, peer = (HOST, PEER) if host else (PEER, HOST)
    selector = Selector((TrafficSelector(own, own),), (TrafficSelector(peer, peer),))

    def one(*, inbound: bool) -> SecurityAssociation:
        to_host = inbound == host
        return SecurityAssociation(
            SPI if to_host else SPI + 1,
            SUITE,
            Mode.TRANSPORT,
            peer if inbound else own,
            own if inbound else peer,
            selector,
            Secret(key[:KEY] if to_host else key[KEY:]),
            Secret(b""),
            inbound,
            replay=ReplayWindow(WINDOW) if inbound else None,
        )

    return SaPair(one(inbound=True), one(inbound=False), selector, Mode.TRANSPORT, "bench", owner=1)


def segments(size: int) -> list[int]:
    """Octets in each segment of a buffer."""
    return [min(MSS, size - at) for at in range(0, size, MSS)]


def tape(size: int, packets: int, key: bytes, random: Callable[[int], bytes]) -> list[Batch]:
    """Buffers of `size` octets, until there are so many packets; in batches of whole buffers."""
    lengths = segments(size)
    buffers = -(-BATCH // len(lengths))
    count = -(-packets // (buffers * len(lengths)))
    source = _packets(lengths, random(MSS + _TEXTS))
    seal = _sealer(key)
    return [_batch([next(source) for _ in range(buffers * len(lengths))], seal) for _ in range(count)]


def _packets(lengths: list[int], text: bytes) -> Iterator[bytes]:
    outer = ip.Outer(PEER, HOST, TCP)
    sequence = number = 0
    while True:
        for place, length in enumerate(lengths, 1):
            number += 1
            flags = _ACK | (_PSH if place == len(lengths) else 0)
            head = _TCP.pack(*_PORTS, sequence, 1, 5 << 4, flags, 0xFFFF, 0, 0)
            start = number % _TEXTS
            header = outer.header(0, len(head) + length, number & 0xFFFF or 1, ip.DONT_FRAGMENT)
            yield ip.with_transport_checksum(header + head + text[start : start + length], 20, TCP)
            sequence = sequence + length & 0xFFFFFFFF


def _sealer(key: bytes) -> Callable[[bytes], Arrived]:
    """The peer: a packet in, what arrives from it out."""
    end = pair(key, host=False)
    sender = Sender(end, bytes, lambda: 1, Accounts().meter(end, False))
    sa = end.outbound

    def seal(packet: bytes) -> Arrived:
        sa.sequence += 1
        data = sender.protect(packet, sa.sequence).data
        return Arrived(ip.ESP, PEER, HOST, data[20:], 0, data[:20])

    return seal


def _batch(plain: list[bytes], seal: Callable[[bytes], Arrived]) -> Batch:
    sealed = [seal(one) for one in plain]
    octets = sum(map(len, plain))
    framing = FRAMING * len(plain)
    return Batch(
        octets - HEADERS * len(plain),
        plain,
        sealed,
        octets + framing,
        sum(len(one.header) + len(one.data) for one in sealed) + framing,
    )
