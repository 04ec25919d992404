"""Anti-replay window with extended sequence numbers (RFC 4303 sections 3.4.3 and Appendix A).

`check` before authentication, `accept` after it: nothing changes on the word of an unauthenticated packet.
"""

from __future__ import annotations

SMALLEST, LARGEST = 64, 4096


class ReplayWindow:
    """A window of `size` numbers below the highest one authenticated, as the bits of one integer. `lent`: an
    adapter judges what is newer, so how far numbers have come is not known here."""

    __slots__ = ("_seen", "esn", "highest", "late", "lent", "replayed", "size")

    def __init__(self, size: int = SMALLEST, *, esn: bool = False) -> None:
        if not SMALLEST <= size <= LARGEST:
            raise ValueError(f"a replay window has {SMALLEST} to {LARGEST} packets, not {size}")
        self.size = size
        self.esn = esn
        self.lent = False
        self.highest = 0
        self.replayed = 0
        self.late = 0
        self._seen = 0  # bit n: highest - n was authenticated

    def full(self, low: int) -> int:
        """The 64-bit number that the 32 bits on the wire stand for (RFC 4303 Appendix A2.2)."""
        if not self.esn:
            return low
        high, base = self.highest >> 32, self.highest & 0xFFFFFFFF
        if base >= self.size - 1:
            return (high if low >= base - self.size + 1 else high + 1) << 32 | low
        # the window reaches back into the previous 2^32 numbers
        return (high - 1 if low >= (base - self.size + 1) & 0xFFFFFFFF and high else high) << 32 | low

    def check(self, number: int) -> bool:
        """Whether the number is new and inside the window; counts what it refuses. 0 is never sent, and what
        lies beyond 32 bits (64 with ESN, where `full` can come to it) is a wrap."""
        if self.highest < number <= self.last:
            return True
        back = self.highest - number
        if number == 0 or not 0 <= back < self.size:
            self.late += 1
            return False
        if self._seen >> back & 1:
            self.replayed += 1
            return False
        return True

    @property
    def last(self) -> int:
        """The last number there is."""
        return 0xFFFFFFFFFFFFFFFF if self.esn else 0xFFFFFFFF

    @property
    def reached(self) -> int:
        """The number above which certainly nothing has come."""
        return self.last if self.lent else self.highest

    def close(self, highest: int) -> None:
        """Take everything up to a number for received."""
        self.highest = highest
        self._seen = (1 << self.size) - 1

    def bitmap(self) -> bytes:
        """What has come: the lowest bit of the last octet is `highest`, the next one the number before it."""
        return self._seen.to_bytes((self.size + 7) // 8, "big")

    def join(self, highest: int, bitmap: bytes) -> None:
        """Take for received, besides, what another window of this size has received. Nothing is forgotten."""
        seen, other = self._seen, int.from_bytes(bitmap, "big")
        ahead = highest - self.highest
        if ahead > 0:  # a shift by more than the size would take as many bits
            seen, self.highest = seen << ahead if ahead < self.size else 0, highest
        else:
            other = other << -ahead if -ahead < self.size else 0
        self._seen = (seen | other) & ((1 << self.size) - 1)

    def look(self, low: int) -> tuple[int, str]:
        """The number that 32 bits on the wire stand for, and why its packet is to be dropped, "replayed" or
        "late"; empty when it is not."""
        number, replayed = self.full(low), self.replayed
        if self.check(number):
            return number, ""
        return number, "replayed" if self.replayed > replayed else "late"

    def accept(self, number: int) -> bool:
        """Note a number whose packet has been authenticated; False when it was noted before."""
        if number > self.highest:
            jump = number - self.highest
            # a peer may skip 2^31 numbers; shifting by them would take that many bits
            self._seen = (self._seen << jump | 1) & ((1 << self.size) - 1) if jump < self.size else 1
            self.highest = number
        elif self.highest - number < self.size:  # the window may have moved on since the check
            bit = 1 << (self.highest - number)
            if self._seen & bit:
                return False
            self._seen |= bit
        return True
