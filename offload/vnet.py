"""Frames of a TUN device opened with IFF_VNET_HDR: many segments of one flow in one read or write. Pure.

A frame is a `struct virtio_net_hdr` of ten octets in the host's byte order (Linux `include/uapi/linux/
virtio_net.h`; VIRTIO 1.2 section 5.1.6) and an IP packet. If the header names a kind of segmentation, the
packet stands for many: `packets` cuts it up as `tcp_gso_segment` and `__udp_gso_segment` do, and `frames`
puts segments together as the kernel's GRO does. Where the header says that the transport checksum is missing,
its field holds the sum over the pseudo header; `packets` completes it.

Nearly all the time goes into checksums. Two things keep it short. A sum of words is a remainder, and Python's
long division is slower than folding first (see `_remainder`). And a header is one large number: that of the
next segment is this one's plus a constant, both to make it and to recognise it, until a field would overflow.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from struct import Struct
from typing import Final

from offload.ip import DONT_FRAGMENT, LARGEST, Dropped, checksum, flow_key, last_field, ones_complement
from sadb.selector import TCP, UDP

SEGMENTS: Final = 64  # of one UDP frame, Linux UDP_MAX_SEGMENTS
FLOWS: Final = 8  # frames that `frames` fills at the same time

_HEADER: Final = Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
HEADER: Final = _HEADER.size  # octets before the packet
_PLAIN: Final = bytes(_HEADER.size)
_NEEDS_CSUM: Final = 1
_NONE, _TCPV4, _TCPV6, _UDP_L4, _ECN = 0, 1, 4, 5, 0x80

# The kind of segmentation and the IP version, to the protocol that must then be found.
_KINDS: Final = {
    (_TCPV4, 4): TCP,
    (_TCPV4 | _ECN, 4): TCP,
    (_TCPV6, 6): TCP,
    (_TCPV6 | _ECN, 6): TCP,
    (_UDP_L4, 4): UDP,
    (_UDP_L4, 6): UDP,
}

_FIN, _PSH, _ACK, _CWR = 0x01, 0x08, 0x10, 0x80

_from_bytes = int.from_bytes

# Half an Ethernet frame, and half and a quarter of that, in bits: multiples of 16.
_FOLD1, _FOLD2, _FOLD3 = 5888, 2944, 1472
_LOW1, _LOW2, _LOW3 = (1 << _FOLD1) - 1, (1 << _FOLD2) - 1, (1 << _FOLD3) - 1


def _remainder(value: int) -> int:
    """`value` % 0xFFFF. 2^16 is 1 modulo 0xFFFF, so the upper part can be added to the lower one: for the
    octets of a packet that is half as long as dividing them all."""
    value = (value >> _FOLD1) + (value & _LOW1)
    value = (value >> _FOLD2) + (value & _LOW2)
    value = (value >> _FOLD3) + (value & _LOW3)
    return value % 0xFFFF


# Reading -------------------------------------------------------------------------------------------------


def packets(frame: bytes, most: int = LARGEST) -> list[bytes]:
    """The IP packets that a frame read from the device stands for, in order, their checksums complete.

    Octets behind the IP packet stay where they are if it is not segmented. Raises `Dropped` ("malformed")
    for what the kernel would not have made, and for more than `most` packets; anything behind the transport
    header is taken as it is.
    """
    if len(frame) <= _HEADER.size:
        raise Dropped("malformed")
    flags, kind, _, mss, start, offset = _HEADER.unpack_from(frame)
    packet = frame[_HEADER.size :]
    if kind == _NONE:
        return [_completed(packet, start, offset) if flags & _NEEDS_CSUM else packet]
    size, four = len(packet), packet[0] >> 4 == 4
    protocol = _KINDS.get((kind, packet[0] >> 4))
    tcp = protocol == TCP
    at = (packet[0] & 15) * 4 if four else start if flags & _NEEDS_CSUM else 40
    least = at + (20 if tcp else 8)
    if protocol is None or not mss or at < (20 if four else 40) or least > size:
        raise Dropped("malformed")
    length = packet[2] << 8 | packet[3] if four else 40 + (packet[4] << 8 | packet[5])
    head = at + (packet[at + 12] >> 4) * 4 if tcp else least
    place = at + (16 if tcp else 6)
    if length != size or not least <= head <= size or packet[last_field(packet[:at])] != protocol:
        raise Dropped("malformed")
    if size - head > most * mss:
        raise Dropped("malformed")
    if not tcp and packet[at + 4] << 8 | packet[at + 5] != size - at:
        raise Dropped("malformed")
    if flags & _NEEDS_CSUM:
        if start != at or start + offset != place:
            raise Dropped("malformed")
        # Not made from the addresses: behind a routing header the destination is another one (RFC 8200 8.1).
        partial = (packet[place] << 8 | packet[place + 1]) - (size - at)
    else:  # the sum was right for the whole and is for no segment
        partial = ones_complement(packet[12:20] if four else packet[8:40]) + protocol
    return _segments(packet, at, head, mss, partial, tcp=tcp)


def outline(frame: bytes) -> tuple[int, int, int]:
    """Octets of all headers, octets behind them in a segment, and segments, of a frame as the kernel or
    `frames` makes it; one segment for a plain packet. Nothing is checked: `packets` does that."""
    flags, kind, head, mss, start, _ = _HEADER.unpack_from(frame)
    size = len(frame) - _HEADER.size
    if kind == _NONE or not mss or not flags & _NEEDS_CSUM:
        return 0, size, 1
    at = _HEADER.size + start
    head = start + ((frame[at + 12] >> 4) * 4 if kind != _UDP_L4 and len(frame) > at + 12 else 8)
    return head, mss, max(1, -((head - size) // mss))


def _completed(packet: bytes, start: int, offset: int) -> bytes:
    """The packet with its checksum at `offset` behind `start`, where so far the pseudo header's sum is."""
    place, size = start + offset, len(packet)
    if place + 2 > size:
        raise Dropped("malformed")
    total = _remainder(_from_bytes(packet[start:]))
    if (size - start) & 1:
        total = (total << 8) % 0xFFFF
    # Where UDP has its checksum, zero would say that there is none (RFC 768).
    check = 0xFFFF - (total or (0 if offset == 6 else 0xFFFF))
    return b"".join((packet[:place], check.to_bytes(2, "big"), packet[place + 2 :]))


def _segments(packet: bytes, at: int, head: int, mss: int, partial: int, *, tcp: bool) -> list[bytes]:
    """Segments with up to `mss` octets behind the `head` octets of headers, of which the transport header
    begins `at`; `partial` is the pseudo header's sum without its length, which may be negative."""
    found: list[bytes] = []
    append = found.append
    size, four = len(packet), packet[0] >> 4 == 4
    place = at + (16 if tcp else 6)
    shift = 8 * (head - place - 2)
    zero = 0xFFFF if tcp else 0  # a checksum of zero is written as it is in TCP, as all ones in UDP
    advance = mss if tcp else 0
    step = advance << 8 * (head - at - 8)
    if four:  # one more in the identification is one less in the header checksum
        step += (1 << 8 * (head - 6)) - (1 << 8 * (head - 12))
    ident = packet[4] << 8 | packet[5]
    number = _from_bytes(packet[at + 4 : at + 8])
    flags = packet[at + 13] if tcp else 0
    header = bytearray(packet[:head])
    header[place : place + 2] = b"\0\0"
    last = max(0, (size - head - 1) // mss)
    index = 0
    while index <= last:
        # Those of equal length and flags whose fields do not overflow: mostly all but the last.
        count = last - index or 1
        payload = mss if index < last else size - head - index * mss
        if tcp:
            sequence = number + index * mss & 0xFFFFFFFF
            header[at + 4 : at + 8] = sequence.to_bytes(4, "big")
            header[at + 13] = flags & (0xFF if index == last else ~(_FIN | _PSH)) & (~_CWR if index else 0xFF)
            count = min(count, (0xFFFFFFFF - sequence) // mss + 1)
            if index == 0 and flags & _CWR:
                count = 1
        else:
            header[at + 4 : at + 6] = (8 + payload).to_bytes(2, "big")
        if four:
            identification = ident + index & 0xFFFF
            header[2:4] = (head + payload).to_bytes(2, "big")
            header[4:6] = identification.to_bytes(2, "big")
            header[10:12] = b"\0\0"
            check = checksum(header[:at])
            header[10:12] = check.to_bytes(2, "big")
            count = min(count, 0xFFFF - identification + 1, check + 1)
        else:
            header[4:6] = (head + payload - 40).to_bytes(2, "big")
        template = _from_bytes(header)
        total = partial + head - at + payload + ones_complement(header[at:])
        swap = 8 * (payload & 1)
        begin = head + index * mss
        for where in range(begin, begin + count * mss, mss):
            piece = packet[where : where + mss]
            check = 0xFFFF - (((_remainder(_from_bytes(piece)) << swap) + total) % 0xFFFF or zero)
            append((template + (check << shift)).to_bytes(head, "big") + piece)
            template += step
            total += advance
        index += count
    return found


# Writing -------------------------------------------------------------------------------------------------


def frames(packets: Iterable[bytes], *, uso: bool = False) -> list[bytes]:
    """Frames for the device that stand for the packets; with `uso`, UDP datagrams are put together too.

    Frames are in the order of their first packets, and none holds a packet that came after another one of
    its flow that it does not hold. What cannot be part of a frame is one of its own, unchanged: among them
    every packet with a wrong checksum, because the host is to see that it is wrong. Where IPv4 may not be
    fragmented, equal identifications become successive ones if the frame is ever segmented (RFC 6864 section
    4.1: they mean nothing).
    """
    found: list[bytes] = []
    runs: list[_Run] = []
    filling: dict[bytes, _Run] = {}
    run: _Run | None = None  # that of the packet before: mostly this one follows it
    for packet in packets:
        if run is not None and run.follows(packet):
            continue
        key = flow_key(packet)
        if key is not None:
            other = filling.get(key)
            if other is not None:
                run = other
                if run.follows(packet):
                    continue
                taken = run.takes(packet)
                if run.ended or not taken:
                    del filling[key]
                    run = None
                if taken:
                    continue
            started = _start(packet, len(found), tcp=key[0] == TCP) if uso or key[0] == TCP else None
            if started is not None:
                if len(filling) == FLOWS:
                    del filling[next(iter(filling))]
                filling[key] = run = started
                runs.append(started)
        elif filling:  # a fragment or with IP options: it may be of any flow between these addresses
            addresses = packet[12:20] if packet[:1] < b"\x60" else packet[8:40]
            for key in [key for key in filling if key.startswith(addresses, 1)]:
                del filling[key]
            run = None
        found.append(_PLAIN + packet)
    for one in runs:
        if len(one.packets) > 1:
            found[one.index] = one.frame()
    return found


@cache
def _masks(at: int, head: int) -> tuple[int, int, int]:
    """For headers of `head` octets with the transport header `at`, all as one number: what segments that
    follow each other can be told by, which is all but the transport checksum; what is equal in all segments
    of a frame; and a one in the sequence number, 0 for UDP."""

    def octets(offset: int, count: int) -> int:
        return ((1 << 8 * count) - 1) << 8 * (head - offset - count)

    tcp = head > at + 8
    told = octets(0, head) ^ octets(at + (16 if tcp else 6), 2)
    equal = told ^ (octets(2, 4) | octets(10, 2) if at == 20 else octets(4, 2))
    if not tcp:
        return told, equal ^ octets(at + 4, 2), 0
    one = 1 << 8 * (head - at - 8)
    return told, equal ^ octets(at + 4, 4) ^ ((_FIN | _PSH) << 8 * (head - at - 14)), one


class _Run:
    """A frame being filled: segments of one flow. All of them are sound if there are more than one."""

    __slots__ = (
        "_at",
        "_expected",
        "_head",
        "_need",
        "_size",
        "_step",
        "_stride",
        "_sure",
        "_told",
        "ended",
        "index",
        "packets",
    )

    def __init__(self, packet: bytes, index: int, at: int, head: int) -> None:
        self.packets = [packet]
        self.index = index  # of the frame among all
        self.ended = False  # the last packet let none come behind it
        self._at, self._head, self._size = at, head, len(packet)
        self._stride = 1 if at == 20 else 0  # from one IPv4 identification to the next
        self._sure = 0  # so many more packets can be told by their headers alone

    def follows(self, packet: bytes) -> bool:
        """Whether the packet is the very next segment, as long as the first and with its flags, and this
        could be foreseen; it then has been added."""
        if (
            self._sure > 0
            and len(packet) == self._size
            and _from_bytes(packet[: self._head]) & self._told == self._expected
            and _remainder(_from_bytes(packet)) == self._need
        ):
            self.packets.append(packet)
            self._expected += self._step
            self._sure -= 1
            return True
        return False

    def takes(self, packet: bytes) -> bool:
        """Whether the packet, which has the same flow key, goes on with this frame in any way; it then has
        been added."""
        at, head, held, size = self._at, self._head, self.packets, len(packet)
        first, count, mss = held[0], len(held), self._size - head
        if not head < size <= self._size or count * mss + size > LARGEST:
            return False
        told, equal, one = _masks(at, head)
        top = _from_bytes(packet[:head])
        if (top ^ _from_bytes(first[:head])) & equal:
            return False
        if one:
            before = _from_bytes(first[at + 4 : at + 8])
            sequence = before + count * mss & 0xFFFFFFFF
            if _from_bytes(packet[at + 4 : at + 8]) != sequence:
                return False
        elif count == SEGMENTS:
            return False
        if at == 20:
            behind = _from_bytes(packet[4:6]) - _from_bytes(first[4:6]) & 0xFFFF
            if count == 1 and behind == 0 and packet[6] & DONT_FRAGMENT >> 8:
                self._stride = 0
            elif behind != count * self._stride & 0xFFFF:
                return False
        if (count == 1 and not _sound(first, at)) or not _sound(packet, at):
            return False
        held.append(packet)
        if size < self._size or (one and packet[at + 13] != _ACK):
            self.ended = True
            return True

        # What comes next differs from this by a constant, until a field overflows: that would change the one
        # before it, and what then looks right would be another flow's.
        sure, step = (LARGEST - size) // mss - count, one * mss
        if one:
            sure = min(sure, (0xFFFFFFFF - sequence) // mss)
        else:
            sure = min(sure, SEGMENTS - 1 - count)
        if self._stride:
            low = 8 * (head - 12)
            step += (1 << low + 48) - (1 << low)
            sure = min(sure, 0xFFFF - (top >> low + 48 & 0xFFFF), top >> low & 0xFFFF)
        self._sure, self._step, self._told = sure, step, told
        self._expected = (top & told) + step
        # Sound segments of equal length all have the same sum, as their differences are in sums that a
        # checksum makes constant.
        self._need = _remainder(_from_bytes(packet))
        return True

    def frame(self) -> bytes:
        """The frame of all its packets, which are at least two. The transport checksum is left to be
        completed: it holds the sum over the pseudo header."""
        held, at, head = self.packets, self._at, self._head
        size = sum(map(len, held)) - (len(held) - 1) * head
        header = bytearray(held[0][:head])
        if at == 20:
            header[2:4] = size.to_bytes(2, "big")
            header[10:12] = b"\0\0"
            header[10:12] = checksum(header[:20]).to_bytes(2, "big")
        else:
            header[4:6] = (size - 40).to_bytes(2, "big")
        if head > at + 8:
            header[at + 13] = held[-1][at + 13]
            kind, offset = _TCPV4 if at == 20 else _TCPV6, 16
        else:
            header[at + 4 : at + 6] = (size - at).to_bytes(2, "big")
            kind, offset = _UDP_L4, 6
        place = at + offset
        header[place : place + 2] = (_pseudo(held[0], at, size) % 0xFFFF or 0xFFFF).to_bytes(2, "big")
        start = _HEADER.pack(_NEEDS_CSUM, kind, head, self._size - head, at, offset)
        return b"".join([start, header, *[one[head:] for one in held]])


def _start(packet: bytes, index: int, *, tcp: bool) -> _Run | None:
    """A frame that begins with a packet that has a flow key, None when nothing can follow this one."""
    at, size = 20 if packet[0] == 0x45 else 40, len(packet)
    head = at + 8
    if tcp:
        if size <= at + 20 or packet[at + 13] != _ACK:
            return None
        head = at + (packet[at + 12] >> 2)
        if packet[at + 12] & 15 or head < at + 20:
            return None
    return _Run(packet, index, at, head) if head < size else None


def _sound(packet: bytes, at: int) -> bool:
    """Whether lengths and checksums are those of the octets, for a packet whose transport header, at `at`, is
    all there. UDP without a checksum is not sound: a frame would give it one."""
    size = len(packet)
    if at == 20:
        if packet[2] << 8 | packet[3] != size or _from_bytes(packet[:20]) % 0xFFFF:
            return False
    elif packet[4] << 8 | packet[5] != size - 40:
        return False
    if packet[9 if at == 20 else 6] == UDP and (
        packet[at + 4] << 8 | packet[at + 5] != size - at or not (packet[at + 6] or packet[at + 7])
    ):
        return False
    total = _remainder(_from_bytes(packet[at:])) << 8 * (size & 1)
    return (total + _pseudo(packet, at, size)) % 0xFFFF == 0


def _pseudo(packet: bytes, at: int, size: int) -> int:
    """The sum over the pseudo header, for a packet of `size` octets."""
    if at == 20:
        return ones_complement(packet[12:20]) + packet[9] + size - at
    return ones_complement(packet[8:40]) + packet[6] + size - at
