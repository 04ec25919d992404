"""TCP segments and UDP datagrams in plain terms, and the frames of a TUN device they stand in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from struct import pack

import pytest
from hypothesis import strategies as st

from offload.vnet import packets

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TCP, UDP = 6, 17
TIMES = b"\1\1\x08\x0a" + bytes(range(8))  # the timestamps option, as Linux sends it
ROUTING = (
    bytes((0, 2, 4, 1, 0, 0, 0, 0)) + ip_address("2001:db8:b::99").packed
)  # what follows stands in front


def sum16(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
        total = (total & 0xFFFF) + (total >> 16)
    return total


def internet(data: bytes) -> int:
    """The internet checksum."""
    return ~sum16(data) & 0xFFFF


@dataclass(frozen=True)
class Segment:
    """A TCP segment or UDP datagram in plain terms; `packet` is it with every checksum right."""

    payload: bytes = b"payload!"
    version: int = 4
    protocol: int = TCP
    source: str = ""
    target: str = ""
    ports: tuple[int, int] = (40000, 443)
    seq: int = 1000
    ack: int = 77
    flags: int = ACK
    reserved: int = 0
    window: int = 500
    options: bytes = b""
    tos: int = 0
    label: int = 0
    ident: int = 5
    fragment: int = 0x4000  # flags and offset of IPv4: here DF
    ttl: int = 64
    between: bytes = b""  # IPv4 options, or IPv6 extension headers
    kind: int = 0  # of the first extension header

    @property
    def four(self) -> bool:
        return self.version == 4

    @property
    def addresses(self) -> bytes:
        """Source and destination in the IP header."""
        nets = ("10.1.0.5", "10.2.0.7") if self.four else ("2001:db8:a::5", "2001:db8:b::7")
        return b"".join(
            ip_address(one or net).packed for one, net in zip((self.source, self.target), nets, strict=True)
        )

    def pseudo(self, length: int) -> bytes:
        """The pseudo header for so many octets behind the IP headers."""
        addresses = self.addresses
        if self.between[:4] == b"\6" + ROUTING[1:4]:  # RFC 8200 section 8.1: where the packet ends up
            addresses = addresses[:16] + self.between[8:24]
        return addresses + (
            pack(">BBH", 0, self.protocol, length) if self.four else pack(">IxxxB", length, self.protocol)
        )

    @property
    def at(self) -> int:
        """Where the transport header begins."""
        return (20 if self.four else 40) + len(self.between)

    @property
    def head(self) -> int:
        """Octets of all headers."""
        return self.at + (20 + len(self.options) if self.protocol == TCP else 8)

    @property
    def place(self) -> int:
        """Where the transport checksum is."""
        return self.at + (16 if self.protocol == TCP else 6)

    def transport(self, check: int) -> bytes:
        """The transport header and what is behind it."""
        if self.protocol == UDP:
            return pack(">HHHH", *self.ports, 8 + len(self.payload), check) + self.payload
        size = 20 + len(self.options)
        fixed = pack(
            ">HHIIBBHHH",
            *self.ports,
            self.seq & 0xFFFFFFFF,
            self.ack,
            size // 4 << 4 | self.reserved,
            self.flags,
            self.window,
            check,
            0,
        )
        return fixed + self.options + self.payload

    def outer(self, length: int) -> bytes:
        """The IP header, for so many octets behind it and its options."""
        if not self.four:
            word = 6 << 28 | self.tos << 20 | self.label
            kind = self.kind if self.between else self.protocol
            return (
                pack(">IHBB", word, length + len(self.between), kind, self.ttl)
                + self.addresses
                + self.between
            )
        size = 20 + len(self.between)
        start = pack(">BBH", 0x40 | size // 4, self.tos, size + length)
        middle = pack(">HHBB", self.ident & 0xFFFF, self.fragment, self.ttl, self.protocol)
        check = internet(start + middle + self.addresses + self.between)
        return start + middle + pack(">H", check) + self.addresses + self.between

    @property
    def packet(self) -> bytes:
        bare = self.transport(0)
        check = internet(self.pseudo(len(bare)) + bare)
        if self.protocol == UDP:
            check = check or 0xFFFF
        return self.outer(len(bare)) + self.transport(check)

    def frame(self, kind: int = 0, mss: int = 0, *, flags: int = 1) -> bytes:
        """The frame in which the kernel hands this over: its checksum is that of the pseudo header."""
        bare = self.transport(0)
        packet = self.outer(len(bare)) + self.transport(sum16(self.pseudo(len(bare))))
        return pack("=BBHHHH", flags, kind, self.head, mss, self.at, self.place - self.at) + packet

    def cut(self, mss: int) -> list[Segment]:
        """Its segments (Linux `Documentation/networking/segmentation-offloads.rst`)."""
        parts = [self.payload[at : at + mss] for at in range(0, len(self.payload), mss)] or [b""]
        return [
            replace(
                self,
                payload=part,
                seq=self.seq + n * mss,
                ident=self.ident + n,
                flags=self.flags & ~(CWR if n else 0) & ~(0 if n == len(parts) - 1 else FIN | PSH),
            )
            for n, part in enumerate(parts)
        ]

    def stream(self, count: int) -> list[Segment]:
        """This segment and what follows it, `count` in all and of equal length."""
        return [
            replace(self, seq=self.seq + n * len(self.payload), ident=self.ident + n) for n in range(count)
        ]


def made(segments: Iterable[Segment]) -> list[bytes]:
    """Their packets."""
    return [one.packet for one in segments]


def counts(found: Iterable[bytes]) -> list[int]:
    """How many packets each frame stands for."""
    return [len(packets(one)) for one in found]


def data(size: int) -> bytes:
    """Octets in which no two words next to each other are the same."""
    return bytes((n * 167 + (n >> 8) * 31) & 0xFF for n in range(size))


VERSIONS = pytest.mark.parametrize("version", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", [TCP, UDP])

near = st.integers(0, 3000)
sequences = st.one_of(st.integers(0, 0xFFFFFFFF), near.map(lambda n: 0xFFFFFFFF - n))
idents = st.one_of(st.integers(0, 0xFFFF), st.integers(0xFFF0, 0xFFFF))
options = st.sampled_from([b"", TIMES, bytes(range(40))])
payloads = st.builds(lambda size, start: data(size + start)[start:], st.integers(0, 700), st.integers(0, 900))


@st.composite
def segments(draw: st.DrawFn, protocol: int, *, plain: bool = False) -> Segment:
    """Any segment; a plain one has no IP options and no extension headers."""
    version = draw(st.sampled_from([4, 6]))
    between, kind = b"", 0
    if not plain:
        if version == 4:
            between = draw(st.sampled_from([b"", b"\x94\x04\0\0", bytes([1]) * 40]))
        else:
            # Routing, hop-by-hop, hop-by-hop then destination options, none.
            behind = bytes((protocol, 0, 1, 4, 0, 0, 0, 0))
            between, kind = draw(
                st.sampled_from(
                    [
                        (b"", 0),
                        (bytes((protocol,)) + ROUTING[1:], 43),
                        (behind, 0),
                        (bytes((60,)) + behind[1:] + behind, 0),
                    ]
                )
            )
    return Segment(
        draw(payloads),
        version,
        protocol,
        ports=draw(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))),
        seq=draw(sequences),
        ack=draw(st.integers(0, 0xFFFFFFFF)),
        flags=draw(st.integers(0, 0xFF)) if not plain else ACK,
        window=draw(st.integers(0, 0xFFFF)),
        options=draw(options) if protocol == TCP else b"",
        tos=draw(st.integers(0, 0xFF)),
        label=draw(st.integers(0, 0xFFFFF)),
        ident=draw(idents),
        fragment=draw(st.sampled_from([0, 0x4000])),
        ttl=draw(st.integers(1, 255)),
        between=between,
        kind=kind,
    )


GOOD = Segment(data(900))
SIX = replace(GOOD, version=6)
GOOD_UDP = replace(GOOD, protocol=UDP)
SHIFTED = replace(SIX, seq=0x50000000)  # eight octets earlier there would be a TCP header, too
OPTIONS6 = bytes((TCP, 0, 1, 4, 0, 0, 0, 0))


def checking(one: Segment, check: int) -> Segment:
    """The segment with the identification that gives its IPv4 header this checksum."""
    was = int.from_bytes(one.packet[10:12], "big") + one.ident
    return replace(one, ident=(was - check) % 0xFFFF)


def changed(frame: bytes, at: int, octets: bytes) -> bytes:
    """The frame with other octets at an offset."""
    return frame[:at] + octets + frame[at + len(octets) :]


def sound(packet: bytes) -> bool:
    """Whether every checksum of a packet without IP options is right."""
    four = packet[0] >> 4 == 4
    at, protocol = (20, packet[9]) if four else (40, packet[6])
    addresses = packet[12:20] if four else packet[8:40]
    pseudo = addresses + pack(">HI", protocol, len(packet) - at)
    return internet(pseudo + packet[at:]) == 0 and (not four or internet(packet[:20]) == 0)
