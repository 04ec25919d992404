"""Fragmentation and reassembly of IPv4 and IPv6 (RFC 791 section 3.2, RFC 8200 section 4.5).

Only for packets on their way out. What arrives protected was put together by the host; what leaves is cut up
before ESP where its SA allows, or after it. Fragments that come out of the TUN device are put together first:
transport mode takes whole datagrams only (RFC 4303 section 3.3.4), and only those show their ports.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import MutableMapping

from offload.ip import (
    DESTINATION_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    LARGEST,
    ROUTING,
    Dropped,
    addressed,
    checksum,
    insertion,
)

SECONDS = 30.0  # how long a datagram waits for its missing parts
_MORE = 0x2000
_COPIED = 0x80  # the bit of an IPv4 option's type that says it is in every fragment
_EACH = 256  # octets counted for a fragment besides its data, so that tiny ones are not free


def split(packet: bytes, mtu: int, ident: int) -> list[bytes]:
    """The packet in fragments of at most `mtu` octets, whatever its DF bit says. `ident` is for IPv6, and for
    IPv4 packets that have none."""
    if len(packet) <= mtu:
        return [packet]
    if packet[0] >> 4 == 4 and packet[4:6] == b"\0\0":
        packet = packet[:4] + ident.to_bytes(2, "big") + packet[6:]
    return _split4(packet, mtu) if packet[0] >> 4 == 4 else _split6(packet, mtu, ident)


def _split4(packet: bytes, mtu: int) -> list[bytes]:
    size = (packet[0] & 15) * 4
    word = packet[6] << 8 | packet[7]
    base, last = word & 0x1FFF, 0 if word & _MORE else len(packet)
    found, at = [], size
    head = packet[:size]
    while at < len(packet):
        room = (mtu - len(head)) // 8 * 8
        if len(packet) - at <= mtu - len(head):
            room = len(packet) - at
        piece = packet[at : at + room]
        offset = base + (at - size) // 8
        if room < 8 <= len(packet) - at or offset > 0x1FFF:
            raise Dropped("too-big")
        more = 0 if at + room == last else _MORE
        found.append(_header4(head, offset | more, len(piece)) + piece)
        at += room
        if len(found) == 1 and not base:
            head = _without_uncopied(head)
    return found


def _header4(head: bytes, word: int, payload: int) -> bytes:
    new = bytearray(head)
    new[0] = 0x40 | len(head) // 4
    new[2:4] = (len(head) + payload).to_bytes(2, "big")
    new[6:8] = word.to_bytes(2, "big")
    new[10:12] = b"\0\0"
    new[10:12] = checksum(new).to_bytes(2, "big")
    return bytes(new)


def _without_uncopied(head: bytes) -> bytes:
    """The header with those options only that belong into every fragment."""
    kept, at = b"", 20
    while at < len(head) and head[at]:
        size = 1 if head[at] == 1 or at + 1 >= len(head) else max(2, head[at + 1])
        if head[at] & _COPIED:
            kept += head[at : at + size]
        at += size
    return head[:20] + kept + bytes(-len(kept) % 4)


def _split6(packet: bytes, mtu: int, ident: int) -> list[bytes]:
    at, field, kind = insertion(packet)
    head, rest = packet[:at], packet[at:]
    room = (mtu - at - 8) // 8 * 8
    if room < 8:
        raise Dropped("too-big")
    found = []
    for offset in range(0, len(rest), room):
        piece = rest[offset : offset + room]
        word = offset | (offset + room < len(rest))  # the offset counts in octets of 8, three bits up
        fragment = bytes((kind, 0)) + word.to_bytes(2, "big") + ident.to_bytes(4, "big")
        found.append(addressed(head, field, FRAGMENT, 8 + len(piece)) + fragment + piece)
    return found


def fragment_header(packet: bytes) -> int | None:
    """The offset of an IPv6 fragment header, or None."""
    at, kind = 40, packet[6]
    while kind in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS) and at + 8 <= len(packet):
        kind, at = packet[at], at + 8 * (packet[at + 1] + 1)
    return at if kind == FRAGMENT and at + 8 <= len(packet) else None


def is_fragment(packet: bytes) -> bool:
    """Whether the packet is a part of a datagram."""
    if packet[0] >> 4 == 4:
        return bool(packet[6] & 0x3F or packet[7])
    at = fragment_header(packet)
    return at is not None and bool(packet[at + 2] or packet[at + 3] & 0xF9)


class _Datagram:
    """The parts of one datagram so far: data by offset."""

    __slots__ = ("cost", "expires", "head", "length", "parts")

    def __init__(self, expires: float) -> None:
        self.parts: dict[int, bytes] = {}
        self.head: bytes | None = None
        self.length: int | None = None
        self.cost = 0
        self.expires = expires

    def whole(self) -> bytes | None:
        """The data if complete; raises `Dropped` where parts overlap (RFC 5722)."""
        at, found = 0, []
        for offset in sorted(self.parts):
            if offset < at or (self.length is not None and offset + len(self.parts[offset]) > self.length):
                raise Dropped("fragments")
            if offset > at:
                return None
            found.append(self.parts[offset])
            at += len(found[-1])
        return b"".join(found) if at == self.length and self.head is not None else None


class Reassembler:
    """Puts fragments together; at most `octets` wait, the oldest datagram goes first."""

    __slots__ = ("_counters", "_octets", "_used", "_waiting")

    def __init__(self, counters: MutableMapping[str, int], octets: int = 1 << 20) -> None:
        self._counters = counters
        self._octets = octets
        self._used = 0
        self._waiting: OrderedDict[bytes, _Datagram] = OrderedDict()

    def deadline(self) -> float | None:
        """When the oldest datagram is given up."""
        return next(iter(self._waiting.values())).expires if self._waiting else None

    def expire(self, now: float) -> None:
        """Give up what has waited too long."""
        while self._waiting and next(iter(self._waiting.values())).expires <= now:
            self._give_up()

    def add(self, packet: bytes, now: float) -> bytes | None:
        """The datagram this fragment completes, or None; raises `Dropped` when it fits nowhere."""
        key, offset, more, head, data = _part(packet)
        if (more and len(data) % 8) or not data or offset + len(data) > LARGEST:
            raise Dropped("fragments")
        datagram = self._waiting.get(key)
        if datagram is None:
            datagram = self._waiting[key] = _Datagram(now + SECONDS)
        try:
            if datagram.parts.get(offset, data) != data or (not more and datagram.length is not None):
                raise Dropped("fragments")
            if offset not in datagram.parts:
                datagram.cost += len(data) + _EACH
                self._used += len(data) + _EACH
            datagram.parts[offset] = data
            if offset == 0:
                datagram.head = head
            if not more:
                datagram.length = offset + len(data)
            found = datagram.whole() if datagram.length is not None else None
        except Dropped:
            self._forget(key)
            raise
        if found is None:
            while self._used > self._octets:
                self._give_up()
            return None
        first = datagram.head or head
        self._forget(key)
        return _joined(first, found)

    def _forget(self, key: bytes) -> None:
        self._used -= self._waiting.pop(key).cost

    def _give_up(self) -> None:
        _, datagram = self._waiting.popitem(last=False)
        self._used -= datagram.cost
        self._counters["fragments"] += len(datagram.parts)


def _part(packet: bytes) -> tuple[bytes, int, bool, bytes, bytes]:
    """Of a fragment: what it has in common with its siblings, offset, whether more follow, header, data."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        word = packet[6] << 8 | packet[7]
        key = packet[12:20] + packet[4:6] + packet[9:10]
        return key, (word & 0x1FFF) * 8, bool(word & _MORE), packet[:size], packet[size:]
    at = fragment_header(packet)
    assert at is not None
    word = packet[at + 2] << 8 | packet[at + 3]
    # the header is kept with its fragment header, whose first octet names what follows
    return (
        packet[8:40] + packet[at + 4 : at + 8],
        word & 0xFFF8,
        bool(word & 1),
        packet[: at + 8],
        packet[at + 8 :],
    )


def _joined(head: bytes, data: bytes) -> bytes:
    if head[0] >> 4 == 4:
        if len(head) + len(data) > LARGEST:
            raise Dropped("fragments")
        return _header4(head, 0, len(data)) + data
    at = len(head) - 8
    field, place = 6, 40
    while place < at:
        field, place = place, place + 8 * (head[place + 1] + 1)
    return addressed(head[:at], field, head[at], len(data)) + data
