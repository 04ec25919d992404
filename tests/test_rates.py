"""Rates between two readings: right over rekeys, over counters that begin anew, and for each reader by
itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ikd.rates import NOTHING, Meter
from ikd.traffic import Traffic
from sadb.sa import SaPair, Usage


def pair(spi: int, owner: int = 1) -> SaPair:
    """A pair; only what traffic is counted by."""
    one: Any = SimpleNamespace(
        rule="net",
        owner=owner,
        inbound=SimpleNamespace(spi=spi),
        outbound=SimpleNamespace(destination="192.0.2.2"),
    )
    return one  # type: ignore[no-any-return]


class Carried:
    """What each pair has carried in all, inward and outward; a packet is 100 octets."""

    def __init__(self) -> None:
        self.octets: dict[int, tuple[int, int]] = {}
        self.traffic = Traffic(self._usage, 10)

    def _usage(self, one: SaPair) -> tuple[Usage, Usage]:
        into, out = self.octets[one.inbound.spi]
        return Usage(into, into // 100), Usage(out, out // 100)

    def meter(self) -> Meter:
        found = Meter()
        self.traffic.listen(found.hear)
        return found

    def now(self, one: SaPair, into: int, out: int) -> None:
        """This many so far, and somebody looks."""
        self.octets[one.inbound.spi] = (into, out)
        self.traffic.look(one)


def test_what_was_carried_before_the_first_reading_is_no_rate() -> None:
    """An SA with a gigabyte behind it would begin with a peak nobody saw."""
    carried = Carried()
    meter, old = carried.meter(), pair(1)
    carried.now(old, 10**9, 10**9)
    assert meter.read(100.0, {}) is None
    carried.now(old, 10**9 + 3000, 10**9 + 200)
    rates = meter.read(102.0, {})
    assert rates is not None
    assert rates.seconds == 2.0
    assert rates.pairs == rates.owners == {1: (1500, 15, 100, 1)}
    assert rates.total == (1500, 15, 100, 1)


def test_a_peer_s_rate_goes_on_over_a_rekey() -> None:
    """Every hour a peer that carries as ever would seem to stop: its old SA took its last octets with it, and
    the new one is unknown to whoever compares two counts."""
    carried = Carried()
    meter, old, new = carried.meter(), pair(1), pair(2)
    carried.now(old, 0, 0)
    meter.read(0.0, {})
    carried.octets[1] = (4000, 0)
    carried.octets[2] = (6000, 0)
    carried.traffic.end(old)
    carried.traffic.look(new)
    rates = meter.read(1.0, {})
    assert rates is not None
    assert rates.owners[1][0] == rates.total[0] == 10_000
    assert rates.pairs[2][0] == 6000


def test_readers_do_not_disturb_each_other() -> None:
    """Two administrators, or Prometheus beside one, would halve each other's rates."""
    carried = Carried()
    often, rarely, one = carried.meter(), carried.meter(), pair(1)
    carried.now(one, 0, 0)
    often.read(0.0, {})
    rarely.read(0.0, {})
    for second in range(1, 11):
        carried.now(one, 1000 * second, 0)
        found = often.read(float(second), {})
        assert found is not None
        assert found.total[0] == 1000
    last = rarely.read(10.0, {})
    assert last is not None
    assert last.total[0] == 1000


def test_silence_is_nothing_and_counters_begin_anew() -> None:
    """What carries nothing must not stay at its last rate; a counter of a worker that was replaced falls, and
    a negative rate is none."""
    carried = Carried()
    meter, one = carried.meter(), pair(1)
    carried.now(one, 500, 500)
    drops = ("packets", "replay")
    meter.read(0.0, {drops: 50})
    carried.now(one, 500, 500)
    rates = meter.read(1.0, {drops: 10, ("packets", "late"): 4})
    assert rates is not None
    assert (rates.pairs, rates.total) == ({}, NOTHING)
    assert rates.counters == {drops: 10, ("packets", "late"): 4}
    assert meter.read(1.0, {}) is None, "no time has passed"
