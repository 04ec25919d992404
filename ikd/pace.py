"""How often somebody may do something: so many times a second, and ten seconds' worth at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

BURST_SECONDS: Final = 10.0
MOST_KNOWN: Final = 4096  # who has done nothing for longest is forgotten first


class Pace:
    """What each has left. `rate` is in times a second and may change from call to call; 0 is no limit."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # how often, as of when

    def ready(self, who: Hashable, rate: float, now: float) -> bool:
        """Whether they may do it once more; nothing is counted."""
        return not rate or who not in self._left or self._now(who, rate, now) >= 1

    def take(self, who: Hashable, rate: float, now: float) -> bool:
        """Count that they do it; False when it is too often, which costs them nothing."""
        if not rate:
            return True
        left = self._now(who, rate, now)
        may = left >= 1
        self._left[who] = (left - 1 if may else left, now)
        self._left.move_to_end(who)
        while len(self._left) > MOST_KNOWN:
            self._left.popitem(last=False)
        return may

    def _now(self, who: Hashable, rate: float, now: float) -> float:
        full = max(1.0, rate * BURST_SECONDS)
        left, since = self._left.get(who, (full, now))
        return min(full, left + max(0.0, now - since) * rate)
