"""A replay window that remembers everything (RFC 4303 sections 3.4.3 and A2)."""

from __future__ import annotations

HALF = 1 << 32
LAST = HALF * HALF - 1


class Remembering:
    """The slow and obvious window: every number ever accepted, and arithmetic without cases."""

    def __init__(self, size: int, *, esn: bool) -> None:
        self.size, self.esn = size, esn
        self.accepted: set[int] = set()

    @property
    def highest(self) -> int:
        return max(self.accepted, default=0)

    @property
    def lowest(self) -> int:
        """The left edge of the window."""
        return max(self.highest - self.size + 1, 0)

    def full(self, low: int) -> int:
        """The first number from the left edge on that ends in these 32 bits."""
        return self.lowest + (low - self.lowest) % HALF if self.esn else low

    def check(self, number: int) -> bool:
        limit = LAST if self.esn else HALF - 1
        return max(self.lowest, 1) <= number <= limit and number not in self.accepted

    def verdict(self, number: int, *, authentic: bool = True) -> str:
        """What becomes of a packet with this number, which is noted if it is new and authentic."""
        whole = self.full(number % HALF)
        if not self.check(whole):
            return "replayed" if whole in self.accepted and whole >= self.lowest else "late"
        if whole != number or not authentic:  # it may be taken for one of the next 2^32
            return "unverified"
        self.accepted.add(number)
        return ""
