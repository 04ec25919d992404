"""How fast things go: what was carried between two readings, by SA pair, by main-mode SA and in all, and how
fast counters rise that are kept elsewhere.

A meter hears what `ikd.traffic` adds to its totals, the last octets of a pair that goes among it, so that a
rekey between two readings loses nothing. Each reader has a meter of its own: one that looks rarely does not
disturb one that looks often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sadb.sa import SaPair

Counts = Sequence[float]  # octets in, packets in, octets out, packets out
Counter = tuple[str, str]  # of what, for which reason
NOTHING: Counts = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over the last `seconds`. What is not in a table carried nothing."""

    seconds: float
    pairs: Mapping[int, Counts] = field(default_factory=dict)  # by inbound SPI
    owners: Mapping[int, Counts] = field(default_factory=dict)  # by number of the main-mode SA
    total: Counts = NOTHING
    counters: Mapping[Counter, float] = field(default_factory=dict)


class Meter:
    """What has been carried since the last reading."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._pairs: dict[int, list[int]] = {}
        self._owners: dict[int, list[int]] = {}
        self._total = [0, 0, 0, 0]
        self._counters: Mapping[Counter, int] = {}

    def hear(self, pair: SaPair, added: Sequence[int]) -> None:
        """A pair carried more."""
        if not any(added):
            return
        for sums in (
            self._pairs.setdefault(pair.inbound.spi, [0, 0, 0, 0]),
            self._owners.setdefault(pair.owner, [0, 0, 0, 0]),
            self._total,
        ):
            for at, number in enumerate(added):
                sums[at] += number

    def read(self, now: float, counters: Mapping[Counter, int]) -> Rates | None:
        """The rates since the reading before, None for the first one, and begin anew. A counter that fell
        was begun anew by another process."""
        began, self._began = self._began, now
        pairs, self._pairs = self._pairs, {}
        owners, self._owners = self._owners, {}
        total, self._total = self._total, [0, 0, 0, 0]
        before, self._counters = self._counters, dict(counters)
        seconds = 0.0 if began is None else now - began
        if seconds <= 0:
            return None
        return Rates(
            seconds,
            {spi: _over(sums, seconds) for spi, sums in pairs.items()},
            {number: _over(sums, seconds) for number, sums in owners.items()},
            _over(total, seconds),
            {
                name: (count - old if count >= (old := before.get(name, 0)) else count) / seconds
                for name, count in counters.items()
            },
        )


def _over(sums: Sequence[int], seconds: float) -> Counts:
    return tuple(number / seconds for number in sums)
