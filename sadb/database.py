"""The security association database: pairs by SPI, by owner and by traffic, and their lives (RFC 4301 4.4.2).

An SPI is reserved (larval), becomes a pair (mature), is to be replaced (dying: a soft limit, or a successor)
and goes (dead: a hard limit, or removal), as in RFC 2367 section 2.3. Deadlines by time are kept here;
octets, packets and sequence numbers are counted by the backend, which reports them. The database asks the
backend to install and remove; it negotiates nothing and reads no clock.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from sadb.backend import Backend, Unavailable
from sadb.pairs import PairIndex
from sadb.sa import Expire, Lifetime, SaPair, State
from sadb.selector import Fields

LIMIT = 100_000
LARVAL_SECONDS = 60.0  # how long a reserved SPI waits for its pair
JITTER = 0.1  # the most by which a soft limit comes early
RESERVED_SPI = 255  # RFC 4303 section 2.1: 0 to 255 are not for use
_ATTEMPTS = 64


@dataclass(frozen=True, slots=True)
class Counts:
    """How full the database is. `refused` counts SPIs not given out, `unremoved` pairs that expired while the
    backend was unable to take them out."""

    larval: int
    mature: int
    dying: int
    limit: int
    refused: int
    unremoved: int


class Database:
    """All SA pairs of this host.

    `random(n)` gives n unpredictable octets; `limit` bounds pairs and reservations together. Every method may
    be repeated without harm. The states inside SAs, `SaPair.created` and `SaPair.owner` are changed here
    only.
    """

    __slots__ = (
        "_backend",
        "_dying",
        "_heap",
        "_index",
        "_larval",
        "_limit",
        "_owners",
        "_pairs",
        "_random",
        "_refused",
        "_serial",
        "_unremoved",
        "removing",
    )

    def __init__(self, backend: Backend, random: Callable[[int], bytes], limit: int = LIMIT) -> None:
        self._backend = backend
        self._random = random
        self._limit = limit
        self._larval: OrderedDict[int, float] = OrderedDict()  # SPI -> end of the reservation, soonest first
        self._pairs: dict[int, SaPair] = {}  # by inbound SPI
        self._owners: dict[int, list[SaPair]] = {}
        self._index = PairIndex()
        self._heap: list[tuple[float, int, SaPair]] = []  # one entry per pair; those of the dead are skipped
        self._serial = 0  # keeps the heap from comparing pairs
        self._dying = 0
        self._refused = 0
        self._unremoved = 0
        self.removing: Callable[[SaPair], object] = lambda pair: None  # hears of a pair just before it goes

    # Life ------------------------------------------------------------------------------------------------

    def allocate_spi(self, now: float, wanted: int | None = None) -> int:
        """Reserve an inbound SPI for `LARVAL_SECONDS`, a certain one if it is `wanted`; raises `Unavailable`
        when the database is full or that one is in use."""
        self._reap(now)
        if len(self._pairs) + len(self._larval) >= self._limit:
            self._refused += 1
            raise Unavailable(f"the SADB holds its limit of {self._limit} pairs")
        for _ in range(1 if wanted else _ATTEMPTS):
            spi = wanted or int.from_bytes(self._random(4), "big")
            if spi > RESERVED_SPI and spi not in self._pairs and spi not in self._larval:
                self._larval[spi] = now + LARVAL_SECONDS
                return spi
        self._refused += 1
        raise Unavailable("SPI in use" if wanted else "the random source yields no unused SPI")

    def release(self, spi: int) -> None:
        """Give a reserved SPI back: its negotiation failed."""
        self._larval.pop(spi, None)

    def install(self, pair: SaPair, now: float, replaces: SaPair | None = None) -> None:
        """Make a reserved SPI a pair, and let the pair it replaces die.

        The replaced pair goes on receiving until it is removed or reaches its hard limit, but packets are
        sent on the new one and its soft limits are not reported any more. Soft limits become up to a tenth
        smaller, at random, so that the two ends do not start replacing at once. Raises `Unavailable` when the
        SPI is not reserved (any more) or the backend cannot install it; then nothing has changed.
        """
        spi = pair.inbound.spi
        if self._pairs.get(spi) is pair:
            return
        self._reap(now)
        if spi not in self._larval:
            raise Unavailable(f"SPI {spi:08x} is not reserved: its reservation may have run out")
        before = pair.inbound.lifetime, pair.outbound.lifetime, pair.created
        self._start(pair, now)
        try:
            self._backend.install(pair)
        except Unavailable:
            pair.inbound.lifetime, pair.outbound.lifetime, pair.created = before
            pair.inbound.state = pair.outbound.state = State.LARVAL
            self._backend.remove(pair)  # one direction may have gone in
            raise
        del self._larval[spi]
        self._enter(pair)
        if replaces is not None and self._pairs.get(replaces.inbound.spi) is replaces:
            self._die(replaces)

    def adopt(self, pair: SaPair) -> None:
        """Take a pair that the backend has from a former run, with its age, limits and state; raises
        `Unavailable` when the database is full or the SPI in use."""
        spi = pair.inbound.spi
        if len(self._pairs) + len(self._larval) >= self._limit:
            raise Unavailable(f"the SADB holds its limit of {self._limit} pairs")
        if spi in self._pairs or spi in self._larval:
            raise Unavailable("SPI in use")
        self._enter(pair)
        self._dying += pair.inbound.state is State.DYING

    def give(self, pair: SaPair, owner: int) -> None:
        """Hand one pair to a main-mode SA."""
        if self._alive(pair) and pair.owner != owner:
            self._disown(pair)
            pair.owner = owner
            self._owners.setdefault(owner, []).append(pair)
            pair.changed()

    def remove(self, pair: SaPair) -> None:
        """Take a pair out, here and in the backend; unknown pairs are ignored. `Unavailable` may come from
        the backend; here the pair is gone nevertheless."""
        if self._forget(pair):
            self._backend.remove(pair)

    def inherit(self, former: int, owner: int) -> None:
        """Hand all pairs of one main-mode SA to its successor (RFC 7296 section 2.8)."""
        if former == owner:
            return
        for pair in self._owners.pop(former, ()):
            pair.owner = owner
            self._owners.setdefault(owner, []).append(pair)
            pair.changed()

    # Lookup ----------------------------------------------------------------------------------------------

    def by_spi(self, spi: int) -> SaPair | None:
        """The pair that receives on this SPI."""
        return self._pairs.get(spi)

    def by_owner(self, owner: int) -> tuple[SaPair, ...]:
        """The pairs of one main-mode SA, oldest first."""
        return tuple(self._owners.get(owner, ()))

    def outbound(self, rule: str, fields: Fields) -> SaPair | None:
        """The pair to send a packet on, see `PairIndex.newest`."""
        return self._index.newest(rule, fields)

    def pairs(self) -> Iterator[SaPair]:
        """All pairs, oldest first; the database must not be changed meanwhile."""
        return iter(self._pairs.values())

    def __len__(self) -> int:
        return len(self._pairs)

    def counts(self) -> Counts:
        """How many of each state."""
        return Counts(
            larval=len(self._larval),
            mature=len(self._pairs) - self._dying,
            dying=self._dying,
            limit=self._limit,
            refused=self._refused,
            unremoved=self._unremoved,
        )

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        while self._heap and not self._alive(self._heap[0][2]):
            heapq.heappop(self._heap)
        found = [self._heap[0][0]] if self._heap else []
        if self._larval:
            found.append(next(iter(self._larval.values())))
        return min(found, default=None)

    def tick(self, now: float) -> list[Expire]:
        """Pass every deadline up to `now`: what expired by time, in the order in which it did. Pairs past
        their hard limit have been removed, here and in the backend."""
        self._reap(now)
        expired = []
        while self._heap and self._heap[0][0] <= now:
            pair = heapq.heappop(self._heap)[2]
            if not self._alive(pair):
                continue
            if self._end(pair, hard=True) <= now:
                self._bury(pair)
                expired.append(Expire(pair.inbound.spi, True, True, "time", pair.owner))
                continue
            if pair.inbound.state is State.MATURE:
                self._die(pair)
                expired.append(Expire(pair.inbound.spi, True, False, "time", pair.owner))
            self._schedule(pair)
        return expired

    def noticed(self, expire: Expire) -> Expire | None:
        """Take the backend's word that an SA crossed a limit by octets, packets or sequence number.

        Returns the notice with its owner filled in when it is news, None when the pair is unknown or the same
        was reported before: a pair has one soft and one hard expiry, whichever limit is met first. After a
        hard one the pair has been removed. An outbound SPI is the peer's choice and not unique here, so an
        outbound notice should name the owner.
        """
        pair = self._find(expire)
        if pair is None:
            return None
        if expire.hard:
            self._bury(pair)
        elif pair.inbound.state is State.MATURE:
            self._die(pair)
        else:
            return None
        return replace(expire, owner=pair.owner)

    # Inside ----------------------------------------------------------------------------------------------

    def _start(self, pair: SaPair, now: float) -> None:
        share = 1.0 - JITTER * int.from_bytes(self._random(2), "big") / 0x10000
        shared = pair.inbound.lifetime == pair.outbound.lifetime
        pair.created = now
        pair.inbound.lifetime = _early(pair.inbound.lifetime, share)
        pair.outbound.lifetime = (
            pair.inbound.lifetime if shared else _early(pair.outbound.lifetime, share)
        )  # one object where it can be: there are many pairs
        pair.inbound.state = pair.outbound.state = State.MATURE

    def _enter(self, pair: SaPair) -> None:
        self._pairs[pair.inbound.spi] = pair
        self._owners.setdefault(pair.owner, []).append(pair)
        self._index.add(pair)
        self._schedule(pair)

    def _disown(self, pair: SaPair) -> None:
        owned = self._owners[pair.owner]
        owned.remove(pair)
        if not owned:
            del self._owners[pair.owner]

    def _alive(self, pair: SaPair) -> bool:
        return self._pairs.get(pair.inbound.spi) is pair

    def _end(self, pair: SaPair, *, hard: bool) -> float:
        """When the first of the two directions reaches its limit by time; infinity when neither does."""
        both = (pair.inbound.lifetime, pair.outbound.lifetime)
        limits = [one.hard_seconds if hard else one.soft_seconds for one in both]
        return pair.created + min((limit for limit in limits if limit is not None), default=float("inf"))

    def _schedule(self, pair: SaPair) -> None:
        when = self._end(pair, hard=True)
        if pair.inbound.state is State.MATURE:
            when = min(when, self._end(pair, hard=False))
        if when == float("inf"):
            return
        if len(self._heap) > 2 * len(self._pairs) + 64:  # pairs that died early leave their entries behind
            self._heap = [entry for entry in self._heap if self._alive(entry[2])]
            heapq.heapify(self._heap)
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, pair))

    def _reap(self, now: float) -> None:
        """End the reservations that have waited too long."""
        while self._larval and next(iter(self._larval.values())) <= now:
            self._larval.popitem(last=False)

    def _die(self, pair: SaPair) -> None:
        if pair.inbound.state is State.MATURE:
            pair.inbound.state = pair.outbound.state = State.DYING
            self._dying += 1
            pair.changed()

    def _forget(self, pair: SaPair) -> bool:
        if not self._alive(pair):
            return False
        self.removing(pair)
        del self._pairs[pair.inbound.spi]
        self._disown(pair)
        self._index.discard(pair)
        self._dying -= pair.inbound.state is State.DYING
        pair.inbound.state = pair.outbound.state = State.DEAD
        return True

    def _bury(self, pair: SaPair) -> None:
        """Remove a pair whose time has come, whatever the backend says."""
        try:
            self.remove(pair)
        except Unavailable:
            self._unremoved += 1

    def _find(self, expire: Expire) -> SaPair | None:
        if expire.inbound:
            return self._pairs.get(expire.spi)
        candidates: Iterable[SaPair] = self._pairs.values()
        if expire.owner:  # 0: the backend does not know
            candidates = self._owners.get(expire.owner, ())
        return next((pair for pair in candidates if pair.outbound.spi == expire.spi), None)


def _early(lifetime: Lifetime, share: float) -> Lifetime:
    """The same limits with the soft ones reduced to a share of themselves."""
    seconds, octets, packets = lifetime.soft_seconds, lifetime.soft_octets, lifetime.soft_packets
    if seconds is None and octets is None and packets is None:
        return lifetime
    return Lifetime(
        soft_seconds=None if seconds is None else seconds * share,
        hard_seconds=lifetime.hard_seconds,
        soft_octets=None if octets is None else int(octets * share),
        hard_octets=lifetime.hard_octets,
        soft_packets=None if packets is None else int(packets * share),
        hard_packets=lifetime.hard_packets,
    )
