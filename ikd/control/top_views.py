"""Shell. What `ikctl top` is told, as JSON: the busiest peers and SAs with their rates, and what goes wrong.

It is asked every second, so it costs little: counters are read in slices with the loop's other work in
between, and only the rows that are shown are described."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest, nsmallest
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ikd import __version__
from ikd.control import offload_views, views
from ikd.control.failures import Failure, Failures
from ikd.control.protocol import Json, stamp
from ikd.rates import NOTHING, Counts, Meter, Rates
from sadb.sa import SaPair

if TYPE_CHECKING:
    from ikd.association import Association
    from ikd.daemon import Daemon

SLICE: Final = 250  # pairs whose counters are read at a time: about a millisecond
FAILURES: Final = 10
IN_SOFTWARE: Final = 5

IDLE: Final = 60.0  # seconds for which is counted for who does not ask

T = TypeVar("T")


class Reader:
    """Somebody who asks now and then. For one that has stopped asking nothing is counted any more: what
    passes by, and what is rekeyed, would be remembered until it hangs up."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._meter: Meter | None = None
        self._unlisten: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None

    def meter(self) -> Meter:
        """What has been counted since it last asked, if that is not long ago."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._daemon.loop.call_later(IDLE, self.end)
        if self._meter is None:
            self._meter = Meter()
            self._unlisten = self._daemon.traffic.listen(self._meter.hear)
        return self._meter

    def end(self) -> None:
        """Count no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._meter is not None:
            self._meter = None
            self._unlisten()


async def top(daemon: Daemon, failures: Failures, meter: Meter, sort: str, limit: int) -> Json:
    """The whole view. Rates are those of the meter since it was read last."""
    await _look(daemon)
    now = daemon.loop.time()
    packets = {("packets", reason): number for reason, number in daemon.plane.dropped().items()}
    datagrams = {("datagrams", reason): number for reason, number in daemon.metrics.dropped.items()}
    drops = packets | datagrams
    rates = meter.read(now, drops)
    associations = daemon.endpoint.associations
    return {
        "version": __version__,
        "time": stamp(time.time()),
        "up": round(now - daemon.began, 3),
        "seconds": None if rates is None else round(rates.seconds, 6),
        "engine": daemon.plane.name,
        "sort": sort,
        "main": len(associations),
        "quick": len(daemon.database),
        "half_open": daemon.endpoint.half_open,
        "held": daemon.plane.held,
        "per_second": _per_second(rates, rates.total if rates else NOTHING),
        "peers": [_peer(daemon, one, rates, now) for one in _peers(daemon, rates, sort, limit)],
        "sas": [_child(daemon, one, rates, now) for one in _children(daemon, rates, sort, limit)],
        "offload": offload_views.brief(daemon, IN_SOFTWARE),
        "failures": [_failure(one, now) for one in failures.latest(FAILURES)],
        "drops": sorted(_drops(drops, rates), key=lambda one: (-(one["per_second"] or 0), -one["total"])),
    }


async def _look(daemon: Daemon) -> None:
    """Have the meters hear what every pair carried."""
    pairs = list(daemon.database.pairs())
    for start in range(0, len(pairs), SLICE):
        for pair in pairs[start : start + SLICE]:
            if daemon.database.by_spi(pair.inbound.spi) is pair:  # else it went meanwhile
                daemon.traffic.look(pair)
        await asyncio.sleep(0)


def _sorted(
    things: Iterable[T], sort: str, limit: int, rate: Callable[[T], float], name: Callable[[T], Any]
) -> list[T]:
    """The first ones of an order; of equal ones the youngest, which come last, first."""
    if sort == "name":
        return nsmallest(limit, things, key=name)
    if sort == "age":
        rate = _nothing
    numbered = nlargest(limit, enumerate(things), key=lambda one: (rate(one[1]), one[0]))
    return [thing for _, thing in numbered]


def _nothing(_: object) -> float:
    return 0.0


def _octets(counts: Counts) -> float:
    return counts[0] + counts[2]


def _peers(daemon: Daemon, rates: Rates | None, sort: str, limit: int) -> list[Association]:
    owners = rates.owners if rates else {}
    return _sorted(
        daemon.endpoint.associations.values(),
        sort,
        limit,
        lambda one: _octets(owners.get(one.number, NOTHING)),
        lambda one: views.peer_name(one, one.path.peer.address),
    )


def _children(daemon: Daemon, rates: Rates | None, sort: str, limit: int) -> list[SaPair]:
    pairs = rates.pairs if rates else {}
    return _sorted(
        daemon.database.pairs(),
        sort,
        limit,
        lambda one: _octets(pairs.get(one.inbound.spi, NOTHING)),
        lambda one: (one.rule, str(one.peer)),
    )


def _peer(daemon: Daemon, one: Association, rates: Rates | None, now: float) -> Json:
    pairs = daemon.database.by_owner(one.number)
    usage = {pair.inbound.spi: daemon.plane.backend.usage(pair) for pair in pairs}
    told: dict[str, Json] = views.peer(one, pairs, usage, daemon.plane.carrier, now)
    return told | {"per_second": _per_second(rates, rates.owners.get(one.number) if rates else None)}


def _child(daemon: Daemon, pair: SaPair, rates: Rates | None, now: float) -> Json:
    owner = daemon.endpoint.associations.get(pair.owner)
    told: dict[str, Json] = views.child(pair, owner, daemon.plane.backend.usage(pair), now)
    carrier = daemon.plane.carrier((pair,))
    rate = _per_second(rates, rates.pairs.get(pair.inbound.spi) if rates else None)
    return told | {"plane": carrier, "per_second": rate}


def _per_second(rates: Rates | None, counts: Counts | None) -> Json:
    if rates is None:
        return None
    names = ("octets_in", "packets_in", "octets_out", "packets_out")
    return {name: round(number, 1) for name, number in zip(names, counts or NOTHING, strict=True)}


def _failure(one: Failure, now: float) -> Json:
    """What `ikctl why` says of it, without the two columns."""
    told: dict[str, Json] = views.failure(one, now)
    return {key: value for key, value in told.items() if key not in ("rows", "ours_title", "theirs_title")}


def _drops(drops: dict[tuple[str, str], int], rates: Rates | None) -> Iterator[dict[str, Json]]:
    for (what, reason), number in drops.items():
        if number:
            rate = None if rates is None else round(rates.counters[what, reason], 1)
            yield {"what": what, "reason": reason, "total": number, "per_second": rate}
