"""IPv4 and IPv6 headers (RFC 791, RFC 8200): reading, building, checksums, ECN. One packet at a time, pure.

Nothing here knows an SA. A packet that cannot be what it claims raises `Dropped`.
"""

from __future__ import annotations

from struct import Struct

from sadb.address import Address
from sadb.selector import TCP, UDP

IPV4, IPV6, ESP, AH, NO_NEXT_HEADER = 4, 41, 50, 51, 59
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS = 0, 43, 44, 60
TTL = 64
LARGEST = 0xFFFF  # octets of an IPv4 packet, and of an IPv6 payload without jumbograms
SMALLEST_MTU = {4: 576, 6: 1280}  # below these a claimed path MTU is not believed
DONT_FRAGMENT = 0x4000

_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS))
_OUTER4 = Struct(">BBHHHBBH")
_OUTER6 = Struct(">IHBB")


class Dropped(Exception):
    """A packet comes to nothing; `reason` is the counter that says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# Reading -------------------------------------------------------------------------------------------------


def whole(packet: bytes) -> bytes:
    """The packet without what follows its own length; raises `Dropped` when it is no packet or cut off."""
    size = len(packet)
    if size >= 20 and packet[0] >> 4 == 4:
        length = packet[2] << 8 | packet[3]
        if not 20 <= (packet[0] & 15) * 4 <= length <= size:
            raise Dropped("malformed")
    elif size >= 40 and packet[0] >> 4 == 6:
        length = 40 + (packet[4] << 8 | packet[5])
        if length > size:
            raise Dropped("malformed")
    else:
        raise Dropped("malformed")
    return packet if length == size else packet[:length]


def flow_key(packet: bytes) -> bytes | None:
    """What classification of a plain TCP or UDP packet depends on, as octets; None for all others."""
    if len(packet) < 24:
        return None
    if packet[0] == 0x45:
        if packet[9] in (TCP, UDP) and not (packet[6] & 0x3F or packet[7]):
            return packet[9:10] + packet[12:24]
    elif packet[0] >> 4 == 6 and packet[6] in (TCP, UDP) and len(packet) >= 44:
        return packet[6:7] + packet[8:44]
    return None


def traffic_class(packet: bytes) -> int:
    """The TOS octet or traffic class."""
    return packet[1] if packet[0] >> 4 == 4 else (packet[0] & 15) << 4 | packet[1] >> 4


def may_fragment(packet: bytes) -> bool:
    """Whether others than the sender may fragment it: IPv4 with DF clear."""
    return packet[0] >> 4 == 4 and not packet[6] & 0x40


def insertion(packet: bytes) -> tuple[int, int, int]:
    """Where ESP or AH goes in transport mode (RFC 4303 section 3.1.1): the offset, the offset of the octet
    that names what stands there, and that protocol. In IPv6 it is behind hop-by-hop and routing headers."""
    if packet[0] >> 4 == 4:
        return (packet[0] & 15) * 4, 9, packet[9]
    found = at, field = 40, 6
    kind = packet[6]
    while kind in _EXTENSIONS:
        end = _extension_end(packet, at)
        if kind != DESTINATION_OPTIONS:  # destination options before a routing header are for every hop of it
            found = end, at
        field, kind, at = at, packet[at], end
    at, field = found
    return at, field, packet[field]


def last_field(header: bytes) -> int:
    """The offset of the octet that names what follows a header with all its options or extension headers."""
    if header[0] >> 4 == 4:
        return 9
    at, field = 40, 6
    while at < len(header):
        if header[field] not in _EXTENSIONS:
            raise Dropped("malformed")
        field, at = at, _extension_end(header, at)
    return field


def extensions(header: bytes) -> list[tuple[int, int, int]]:
    """The extension headers of an IPv6 header: kind, offset and end of each."""
    found, at, field = [], 40, 6
    while at < len(header):
        end = _extension_end(header, at)
        found.append((header[field], at, end))
        field, at = at, end
    return found


def _extension_end(packet: bytes, at: int) -> int:
    end = at + 8 * (packet[at + 1] + 1) if at + 8 <= len(packet) else len(packet) + 1
    if end > len(packet):
        raise Dropped("malformed")
    return end


# Writing -------------------------------------------------------------------------------------------------


def ones_complement(data: bytes | bytearray) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071): as 2^16 is 1 modulo 2^16 - 1, a remainder."""
    return int.from_bytes(data, "big") % 0xFFFF


def checksum(data: bytes | bytearray) -> int:
    """The internet checksum of data of even length that is not all zero."""
    return 0xFFFF - (ones_complement(data) or 0xFFFF)


def addressed(header: bytes, field: int, protocol: int, payload: int) -> bytes:
    """The header naming another protocol at offset `field`, for `payload` octets behind it."""
    head = bytearray(header)
    head[field] = protocol
    if head[0] >> 4 == 4:
        if len(head) + payload > LARGEST:
            raise Dropped("too-big")
        head[2:4] = (len(head) + payload).to_bytes(2, "big")
        head[10:12] = b"\0\0"
        head[10:12] = checksum(head).to_bytes(2, "big")
    else:
        if len(head) - 40 + payload > LARGEST:
            raise Dropped("too-big")
        head[4:6] = (len(head) - 40 + payload).to_bytes(2, "big")
    return bytes(head)


class Outer:
    """Headers from one address to another for one protocol: all that stays the same is prepared once."""

    __slots__ = ("_addresses", "_protocol", "_sum", "size", "version")

    def __init__(self, source: Address, destination: Address, protocol: int) -> None:
        self.version = source.version
        self.size = 20 if self.version == 4 else 40
        self._protocol = protocol
        self._addresses = source.packed + destination.packed
        self._sum = 0x4500 + (TTL << 8 | protocol) + ones_complement(self._addresses)

    def header(self, traffic: int, payload: int, ident: int = 0, fragment: int = 0) -> bytes:
        """The header for `payload` octets; `ident` and the flags in `fragment` are for IPv4."""
        if self.version == 6:
            if payload > LARGEST:
                raise Dropped("too-big")
            return _OUTER6.pack(6 << 28 | traffic << 20, payload, self._protocol, TTL) + self._addresses
        length = payload + 20
        if length > LARGEST:
            raise Dropped("too-big")
        check = 0xFFFF - ((self._sum + traffic + length + ident + fragment) % 0xFFFF or 0xFFFF)
        return (
            _OUTER4.pack(0x45, traffic, length, ident, fragment, TTL, self._protocol, check) + self._addresses
        )


def with_transport_checksum(packet: bytes, at: int, protocol: int) -> bytes:
    """The packet with its TCP or UDP checksum at offset `at` made anew: behind a NAT the addresses it was
    computed over are not those it came with (RFC 3948 section 3.1.2)."""
    offset = {TCP: 16, UDP: 6}.get(protocol)
    if offset is None or at + offset + 2 > len(packet):
        return packet
    place = at + offset
    if protocol == UDP and packet[0] >> 4 == 4 and packet[place : place + 2] == b"\0\0":
        return packet  # the sender computed none
    addresses = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
    segment = packet[at:place] + b"\0\0" + packet[place + 2 :]
    total = ones_complement(addresses) + protocol + len(segment)
    total += ones_complement(segment + b"\0" if len(segment) % 2 else segment)
    value = 0xFFFF - (total % 0xFFFF or 0xFFFF)
    if protocol == UDP and value == 0:
        value = 0xFFFF
    return packet[:place] + value.to_bytes(2, "big") + packet[place + 2 :]


def with_port(packet: bytes, port: bytes, *, source: bool) -> bytes:
    """A plain TCP or UDP packet (see `flow_key`) with another port, its checksum mended (RFC 1624)."""
    four = packet[0] >> 4 == 4
    start = 20 if four else 40
    tcp = packet[9 if four else 6] == TCP
    at, place = start + (0 if source else 2), start + (16 if tcp else 6)
    head = bytearray(packet)
    before = head[place : place + 2]
    if len(before) == 2 and (tcp or any(before)):
        total = 0x1FFFE - int.from_bytes(before, "big") - int.from_bytes(head[at : at + 2], "big")
        value = 0xFFFF - ((total + int.from_bytes(port, "big")) % 0xFFFF or 0xFFFF)
        head[place : place + 2] = (value or (0 if tcp else 0xFFFF)).to_bytes(2, "big")
    head[at : at + 2] = port
    return bytes(head)


# ECN (RFC 6040) ------------------------------------------------------------------------------------------

NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3

# Section 4.2, figure 4: the inner field, then the outer one, to the field delivered; None drops the packet.
_DECAPSULATED: tuple[tuple[int | None, ...], ...] = (
    # outer: Not-ECT, ECT(1), ECT(0), CE
    (NOT_ECT, NOT_ECT, NOT_ECT, None),  # inner Not-ECT
    (ECT1, ECT1, ECT1, CE),  # inner ECT(1)
    (ECT0, ECT1, ECT0, CE),  # inner ECT(0)
    (CE, CE, CE, CE),  # inner CE
)


def decapsulated(packet: bytes, outer: int) -> bytes:
    """The inner packet with the congestion experienced outside, given the outer traffic class; a packet whose
    sender knows no ECN is dropped instead (RFC 6040 section 4.2)."""
    before = traffic_class(packet)
    after = _DECAPSULATED[before & 3][outer & 3]
    if after is None:
        raise Dropped("congestion")
    if after == before & 3:
        return packet
    head = bytearray(packet)
    if head[0] >> 4 == 4:
        head[1] = before & 0xFC | after
        head[10:12] = b"\0\0"
        head[10:12] = checksum(head[: (head[0] & 15) * 4]).to_bytes(2, "big")
    else:
        head[1] = head[1] & 0xCF | after << 4
    return bytes(head)
