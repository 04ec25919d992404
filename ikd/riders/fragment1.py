"""Microsoft's IKE fragmentation, payload 132: how a message of IKEv1 or AuthIP is cut, and how its fragments
become one again (MS-IKEE section 3.3).

Fragments are not authenticated: what they make is judged as a message. So they are few, small, and kept for a
short time. A message goes whole into its fragments, header included, as other implementations do it; on
receipt both readings of the specification are understood (I2 of docs/interop-windows.md).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from ikd.wire.codec import Malformed, Reader
from ikd.wire.isakmp import HEADER, HEADER_SIZE, Flags, Header
from sadb.address import NATT_PORT, Path

FRAGMENT = 132
LAST = 0x01
MOST_FRAGMENTS = 64
MOST_OCTETS = 65_535  # of all that is kept for one main-mode SA
MOST_MESSAGES = 4  # under way at a time
SECONDS = 70.0
SIZES = {4: 576, 6: 1280}  # of an IP packet, by version
_IDENTITY = 5
_PAYLOAD = struct.Struct("!BBHHBB")


def cut(data: bytes, path: Path, random: Callable[[int], bytes]) -> list[bytes]:
    """The datagrams of a message: itself when it is small enough for this path, else fragments."""
    version = path.peer.address.version
    room = SIZES[version] - (40 if version == 6 else 20) - 8
    room -= 4 if path.local.port == NATT_PORT else 0
    if len(data) <= room:
        return [data]
    room -= HEADER_SIZE + _PAYLOAD.size
    pieces = [data[at : at + room] for at in range(0, len(data), room)]
    if len(pieces) > MOST_FRAGMENTS:
        return [data]
    header = Header.decode(data)
    number = int.from_bytes(random(2), "big")
    return [
        HEADER.pack(
            header.spi_i,
            header.spi_r,
            FRAGMENT,
            header.version,
            header.exchange,
            0,
            header.message_id,
            HEADER_SIZE + _PAYLOAD.size + len(piece),
        )
        + _PAYLOAD.pack(0, 0, _PAYLOAD.size + len(piece), number, n, LAST if n == len(pieces) else 0)
        + piece
        for n, piece in enumerate(pieces, 1)
    ]


class Fragments:
    """The fragments of a peer's messages."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        # fragment ID -> when it began, number of the last one (0: not seen), pieces by number, first header
        self._found: OrderedDict[int, tuple[float, list[int], dict[int, bytes], Header]] = OrderedDict()

    def add(self, header: Header, data: bytes, now: float) -> bytes | None:
        """Put a datagram with a fragment in; the message when it is whole. Raises `Malformed`."""
        reader = Reader(data)
        reader.take(HEADER_SIZE)
        following, _, length = reader.uint(1), reader.uint(1), reader.uint(2)
        if following or length != len(data) - HEADER_SIZE:
            raise Malformed("a fragment is the only payload of its message")
        identity, number, flags = reader.uint(2), reader.uint(1), reader.uint(1)
        piece = reader.rest()
        self._expire(now)
        if identity not in self._found:
            self._found[identity] = (now, [0], {}, header)
        _, last, pieces, first = self._found[identity]
        end = number if flags & LAST else last[0]
        wrong = (flags & LAST and last[0] not in (0, number)) or (end and max((*pieces, number)) > end)
        if wrong or not 1 <= number <= MOST_FRAGMENTS or _octets(pieces) + len(piece) > MOST_OCTETS:
            del self._found[identity]
            raise Malformed(f"fragment {number} does not fit the others")
        last[0] = end
        pieces.setdefault(number, piece)
        while len(self._found) > MOST_MESSAGES or self._octets() > MOST_OCTETS:
            self._found.pop(next(one for one in self._found if one != identity))
        if not end or len(pieces) < end:
            return None
        del self._found[identity]
        return _whole(first, b"".join(pieces[n] for n in range(1, end + 1)))

    def _octets(self) -> int:
        return sum(_octets(pieces) for _, _, pieces, _ in self._found.values())

    def _expire(self, now: float) -> None:
        while self._found and next(iter(self._found.values()))[0] + SECONDS <= now:
            self._found.popitem(last=False)


def _octets(pieces: dict[int, bytes]) -> int:
    return sum(map(len, pieces.values()))


def _whole(first: Header, joined: bytes) -> bytes:
    """The message: what was joined when it begins with its own header. Else, as the specification's text has
    it, its payloads alone, of which the first is an identity and all are encrypted: only messages 5 and 6 are
    fragmented by those who do so (MS-IKEE section 3.3.6.1)."""
    if joined[:8] == first.spi_i and len(joined) >= HEADER_SIZE:
        length = int.from_bytes(joined[24:28], "big")
        if length == len(joined):
            return joined
    header = replace(
        first, next_payload=_IDENTITY, flags=int(Flags.ENCRYPTION), length=HEADER_SIZE + len(joined)
    )
    return header.encode() + joined
