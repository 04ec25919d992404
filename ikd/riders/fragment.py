"""IKE fragmentation, RFC 7383: how a plaintext is cut, and how authenticated fragments become one again."""

from __future__ import annotations

MOST_FRAGMENTS = 128


def cut(data: bytes, size: int) -> list[bytes]:
    """Pieces of at most `size` octets; at least one."""
    return [data[at : at + size] for at in range(0, len(data), size)] or [b""]


class Reassembly:
    """The fragments of one message. Only authenticated ones are put in (section 2.6)."""

    __slots__ = ("_limit", "_parts", "_size", "datagram", "first", "total")

    def __init__(self, total: int, limit: int) -> None:
        self.total = total
        self.first = 0  # next payload of the first fragment
        self.datagram = b""  # the first fragment as it came, by which a repetition is known
        self._limit = limit
        self._parts: dict[int, bytes] = {}
        self._size = 0

    def add(self, number: int, next_payload: int, data: bytes, datagram: bytes) -> bool:
        """Put a fragment in; False when the message grows beyond the limit. Repetitions are ignored."""
        if number in self._parts:
            return True
        if self._size + len(data) > self._limit:
            return False
        if number == 1:
            self.first, self.datagram = next_payload, datagram
        self._parts[number] = data
        self._size += len(data)
        return True

    def whole(self) -> bytes | None:
        """The plaintext once all fragments are there."""
        if len(self._parts) < self.total:
            return None
        return b"".join(self._parts[number] for number in range(1, self.total + 1))
