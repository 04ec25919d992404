"""Traffic of rules and peers, counted over all Child SAs they have had: a rekey does not set it back.

The data plane counts per SA. Whenever metrics are read, and when a pair goes, what was added to its counts
since the last look is added to the totals of its rule and of its peer, so these never fall. Packets that a
worker takes in while it is being told to forget a pair are missed. Names are given a time series each, in the
order in which they are first seen, up to a limit; all others share "other", and nobody moves from one to the
other. Who wants rates (`ikd.rates`) listens to what is added. The next run of the daemon goes on from these
totals, with half as many names at most: those that were used last, so that new ones find room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from ikd.metrics import OTHER, Reading
from sadb.sa import SaPair, Usage

MOST_RULES: Final = 1024
DIRECTIONS: Final = ("in", "out")

Counts = list[int]  # octets and packets in, octets and packets out
Listener = Callable[[SaPair, Sequence[int]], None]


class Traffic:
    """`usage` asks the data plane; `most_peers` is how many peers have time series of their own."""

    def __init__(self, usage: Callable[[SaPair], tuple[Usage, Usage]], most_peers: int) -> None:
        self._usage = usage
        self._rules = _Totals(MOST_RULES)
        self._peers = _Totals(most_peers)
        self._seen: dict[int, Counts] = {}  # by inbound SPI, of pairs that are there
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear of everything that is added; returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def look(self, pair: SaPair) -> Counts:
        """Add what a pair has carried since the last look; returns what it has carried in all."""
        inbound, outbound = self._usage(pair)
        now = [inbound.octets, inbound.packets, outbound.octets, outbound.packets]
        before = self._seen.get(pair.inbound.spi) or [0] * len(now)
        self._seen[pair.inbound.spi] = now
        # one that counts less than before has been begun anew by another process
        added = [new - old if new >= old else new for new, old in zip(now, before, strict=True)]
        self._rules.add(pair.rule, added)
        self._peers.add(str(pair.outbound.destination), added)
        for listener in self._listeners:
            listener(pair, added)
        return now

    def adopt(self, pair: SaPair) -> None:
        """A pair of a former run, which has counted what it had carried."""
        inbound, outbound = self._usage(pair)
        self._seen[pair.inbound.spi] = [inbound.octets, inbound.packets, outbound.octets, outbound.packets]

    def end(self, pair: SaPair) -> None:
        """The pair goes: look for the last time."""
        self.look(pair)
        del self._seen[pair.inbound.spi]

    def counted(self) -> dict[str, dict[str, Counts]]:
        """Totals of rules and peers by name, those that were used last at the end."""
        return {"rule": dict(self._rules.items()), "peer": dict(self._peers.items())}

    def go_on(self, counted: Mapping[str, Mapping[str, Counts]]) -> None:
        """Go on from what an earlier run has counted. Once, at the start."""
        for what, totals in (("rule", self._rules), ("peer", self._peers)):
            totals.go_on(counted.get(what, {}))

    def readings(self, pairs: Iterable[SaPair]) -> Iterator[Reading]:
        """Totals, after a look at every pair there is, and the sums over these."""
        there = [self.look(pair) for pair in pairs]
        for at, direction in enumerate(DIRECTIONS):
            label = (("direction", direction),)
            octets, packets = (sum(each[at * 2 + one] for each in there) for one in range(2))
            yield Reading("sa_octets", "Octets through the Child SAs there are now.", octets, label)
            yield Reading("sa_packets", "Packets through the Child SAs there are now.", packets, label)
        for what, totals in (("rule", self._rules), ("peer", self._peers)):
            for name, counts in totals.items():
                for at, direction in enumerate(DIRECTIONS):
                    labels = ((what, name), ("direction", direction))
                    text = f"through all Child SAs a {what} has had."
                    for one, unit in enumerate(("octets", "packets")):
                        yield Reading(
                            f"{what}_{unit}",
                            f"{unit.capitalize()} {text}",
                            counts[at * 2 + one],
                            labels,
                            counter=True,
                            whole=True,
                        )


class _Totals:
    """Counts by name, of at most so many names."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, Counts] = {}

    def add(self, name: str, added: Counts) -> None:
        """Count."""
        if name not in self._counts and len(self._counts) >= self._most:
            name = OTHER
        counts = self._counts.setdefault(name, [0] * len(added))
        if any(added):
            self._counts[name] = self._counts.pop(name)  # it was used last
        for at, number in enumerate(added):
            counts[at] += number

    def go_on(self, counted: Mapping[str, Counts]) -> None:
        """Go on from there, with room for new names."""
        others = {name: counts for name, counts in counted.items() if name != OTHER}
        for name in list(others)[-(self._most // 2) :] if self._most > 1 else ():
            self.add(name, others[name])
        if OTHER in counted:
            self._counts[OTHER] = list(counted[OTHER])

    def items(self) -> Iterable[tuple[str, Counts]]:
        """Names with their counts."""
        return self._counts.items()
