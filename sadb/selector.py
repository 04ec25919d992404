"""Traffic selectors (RFC 7296 sections 2.9 and 3.13): what a packet looks like, what an SA covers, narrowing.

`Fields` is a packet's five-tuple, `TrafficSelector` one range of addresses, ports and protocol, `Selector` a
pair of lists seen from here: local and remote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from typing import NamedTuple

from sadb.address import Address, Network

ANY_PORT = (0, 0xFFFF)
MOST_SELECTORS = 255  # in one payload: their number has one octet (RFC 7296 section 3.13)
OPAQUE = (0xFFFF, 0)  # matches only packets whose ports are not visible (RFC 7296 section 3.13.1)

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
PORTED = frozenset((ICMP, TCP, UDP, ICMPV6, SCTP))


class Fields(NamedTuple):
    """What classification sees of a packet. ICMP type and code stand in both ports as type * 256 + code."""

    source: Address
    destination: Address
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None

    def reversed(self) -> Fields:
        """The fields of a packet the other way."""
        return Fields(self.destination, self.source, self.protocol, self.destination_port, self.source_port)


@dataclass(frozen=True, slots=True)
class TrafficSelector:
    """A range of addresses with protocol (0: any) and a range of ports; both ends included."""

    low: Address
    high: Address
    protocol: int = 0
    ports: tuple[int, int] = ANY_PORT

    @classmethod
    def of(
        cls, what: Network | Address, protocol: int = 0, ports: tuple[int, int] = ANY_PORT
    ) -> TrafficSelector:
        """The selector of a prefix or a single address."""
        if isinstance(what, IPv4Network | IPv6Network):
            return cls(what[0], what[-1], protocol, ports)
        return cls(what, what, protocol, ports)

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.low.version

    @property
    def single(self) -> bool:
        """Whether it covers one address."""
        return self.low == self.high

    def has_address(self, address: Address) -> bool:
        """Whether the address lies in the range."""
        return address.version == self.low.version and int(self.low) <= int(address) <= int(self.high)

    def matches(self, address: Address, protocol: int, port: int | None) -> bool:
        """Whether one end of a packet is covered; `port` is None when it cannot be seen (later fragments)."""
        if not self.has_address(address):
            return False
        if self.protocol and protocol != self.protocol:
            return False
        if self.ports == ANY_PORT:
            return True
        if self.ports == OPAQUE:
            return port is None
        return port is not None and self.ports[0] <= port <= self.ports[1]

    def intersect(self, other: TrafficSelector) -> TrafficSelector | None:
        """What both cover, or None."""
        if self.version != other.version:
            return None
        if self.protocol and other.protocol and self.protocol != other.protocol:
            return None
        # by numbers, because addresses are slow to compare
        low = self.low if int(self.low) >= int(other.low) else other.low
        high = self.high if int(self.high) <= int(other.high) else other.high
        if int(low) > int(high):
            return None
        if OPAQUE in (self.ports, other.ports):
            wide = {self.ports, other.ports} <= {OPAQUE, ANY_PORT}
            ports = OPAQUE if wide else None
        else:
            first, last = max(self.ports[0], other.ports[0]), min(self.ports[1], other.ports[1])
            ports = (first, last) if first <= last else None
        if ports is None:
            return None
        return TrafficSelector(low, high, self.protocol or other.protocol, ports)

    def covers(self, other: TrafficSelector) -> bool:
        """Whether everything `other` matches is matched here too."""
        if self.protocol and self.protocol != other.protocol:
            return False
        if self.ports not in (ANY_PORT, other.ports):
            inside = self.ports[0] <= other.ports[0] <= other.ports[1] <= self.ports[1]
            if OPAQUE in (self.ports, other.ports) or not inside:
                return False
        return self.has_address(other.low) and self.has_address(other.high)

    def networks(self) -> Iterator[Network]:
        """The prefixes that make up the range, for routing tables and tries."""
        yield from summarize_address_range(self.low, self.high)

    def __str__(self) -> str:
        low, size = int(self.low), int(self.high) - int(self.low) + 1
        if size == 1:
            where = str(self.low)
        elif size & (size - 1) or low & (size - 1):
            where = f"{self.low}-{self.high}"
        else:  # a power of two at a multiple of itself is a prefix
            where = f"{self.low}/{self.low.max_prefixlen + 1 - size.bit_length()}"
        if not self.protocol and self.ports == ANY_PORT:
            return where
        names = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6", SCTP: "sctp", 0: "any"}
        what = names.get(self.protocol, str(self.protocol))
        if self.ports == OPAQUE:
            return f"{where}[{what}/opaque]"
        if self.ports == ANY_PORT:
            return f"{where}[{what}]"
        first, last = self.ports
        return f"{where}[{what}/{first if first == last else f'{first}-{last}'}]"


def narrow(
    offered: Iterable[TrafficSelector], allowed: Sequence[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """What of `offered` policy allows, in the order offered and without repeats (RFC 7296 section 2.9). It
    ends where a payload's count of selectors does, whatever a peer's long offer and a long policy come to."""
    found: list[TrafficSelector] = []
    for one in offered:
        for other in allowed:
            both = one.intersect(other)
            if both and not any(known.covers(both) for known in found):
                found.append(both)
                if len(found) == MOST_SELECTORS:
                    return tuple(found)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Selector:
    """What an SA pair or a rule covers, seen from here."""

    local: tuple[TrafficSelector, ...]
    remote: tuple[TrafficSelector, ...]

    def matches_outbound(self, fields: Fields) -> bool:
        """Whether a packet leaving here is covered."""
        return any(s.matches(fields.source, fields.protocol, fields.source_port) for s in self.local) and any(
            s.matches(fields.destination, fields.protocol, fields.destination_port) for s in self.remote
        )

    def matches_inbound(self, fields: Fields) -> bool:
        """Whether a packet arriving here is covered."""
        return self.matches_outbound(fields.reversed())

    def __str__(self) -> str:
        return f"{','.join(map(str, self.local))} === {','.join(map(str, self.remote))}"


# Reading packets -----------------------------------------------------------------------------------------

# IPv6 extension headers that are walked to find the upper-layer protocol (RFC 8200, RFC 6275). AH is not one
# of them: here it carries an SA.
_EXTENSIONS = frozenset((0, 43, 60, 135))


def fields_of(packet: bytes | memoryview) -> Fields | None:
    """The fields of an IPv4 or IPv6 packet, or None when it is not one. Never raises; ports of a fragment
    that is not the first are None."""
    size = len(packet)
    source: Address
    destination: Address
    if size >= 20 and packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        if start < 20 or size < start:
            return None
        source, destination = IPv4Address(bytes(packet[12:16])), IPv4Address(bytes(packet[16:20]))
        first = not (packet[6] & 0x1F or packet[7])
        return _with_ports(packet, source, destination, packet[9], start if first else size)
    if size >= 40 and packet[0] >> 4 == 6:
        source, destination = IPv6Address(bytes(packet[8:24])), IPv6Address(bytes(packet[24:40]))
        kind, start, first = packet[6], 40, True
        while (kind in _EXTENSIONS or kind == 44) and start + 8 <= size:
            if kind == 44:
                first = first and not (packet[start + 2] << 8 | packet[start + 3]) >> 3
                kind, start = packet[start], start + 8
                if not first:
                    break
            else:
                kind, start = packet[start], start + 8 * (packet[start + 1] + 1)
        return _with_ports(packet, source, destination, kind, start if first else size)
    return None


def _with_ports(
    packet: bytes | memoryview, source: Address, destination: Address, kind: int, at: int
) -> Fields:
    if kind not in PORTED or at + 4 > len(packet):
        return Fields(source, destination, kind)
    if kind in (ICMP, ICMPV6):
        both = packet[at] << 8 | packet[at + 1]
        return Fields(source, destination, kind, both, both)
    return Fields(
        source, destination, kind, packet[at] << 8 | packet[at + 1], packet[at + 2] << 8 | packet[at + 3]
    )
