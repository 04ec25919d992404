"""Which SA pairs have slots of the adapter: three policies with one interface, so that they can be compared.

`FirstCome` gives slots in the order of arrival and takes none back, as Linux does for virtual functions.
`Ceiling` adds a limit for each port: Hyper-V. `Weighted` is ours:

    score       octets per second of both directions, smoothed, times the weight of the port
    free slots  are given at once, but for those owed to a reserve, and 1/16 of the table for successors by
                rekey: predecessor and successor both have slots until the predecessor is deleted
    full table  the pair with the lowest score makes room, of ports above their fair share first, never of a
                port that would fall below its reserve; a port at its limit makes room itself
    calm        for that a score is twice the other's, the other has been there for 10 s, and there are no
                more than 10 such moves a second

Directions are placed one by one and leave together. What is decided is returned in the order in which it is
to be done: the slots of who is named in `Decision.other` are to be empty before they are programmed again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from heapq import nlargest
from typing import Final, NamedTuple, Protocol

from offload.nic.capabilities import Direction
from offload.nic.eligibility import Reason
from offload.switch.claims import Claim, SaId, Table
from offload.switch.ports import Port, Ports

WORTH: Final = 1024.0  # octets per second below which a pair does not contend for a slot
FACTOR: Final = 2.0  # how much higher a score must be than that of the pair it displaces
RESIDENT: Final = 10.0  # seconds that a pair keeps a slot at least
MOVES: Final = 10  # displacements a second
REFILLS: Final = 100  # placements a second of pairs that waited, as after the link was down
KEPT: Final = 16  # one slot in so many is for successors
KEPT_LEAST: Final = 2
BACK_OFF: Final = (1.0, 64.0)  # seconds to wait after a refusal, doubled each time up to the second
TRIES: Final = 4  # pairs of a port that are tried in one round without success


class Outcome(Enum):
    """What becomes of a pair, or of some of its directions."""

    PLACED = "placed"  # to be programmed into the adapter
    EVICTED = "evicted"  # to leave it, and go on in software
    KEPT_OUT = "kept_out"  # stays in software


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. `other`: whose slot it takes, or who takes its slot; `reason`: why it is in software
    now. Scores are those of the time of the decision."""

    outcome: Outcome
    sa: SaId
    port: str
    directions: tuple[Direction, ...]
    score: float
    reason: Reason | None = None
    other: SaId | None = None
    other_score: float | None = None


class Placement(Protocol):
    """What a policy does. Decisions are final: the owner carries them out, or says what came of it."""

    def admit(self, claim: Claim, now: float) -> list[Decision]:
        """A pair was installed; it gets what is free for it. Admitting it again changes nothing."""
        ...

    def release(self, claim: Claim, now: float, because: Reason | None = None) -> list[Decision]:
        """A pair was deleted, or, with `because`, is no longer in the adapter and goes on waiting for it:
        `REFUSED` after a failed add or a request of the adapter to be relieved, `LINK` after a reset."""
        ...

    def rebalance(self, now: float) -> list[Decision]:
        """Follow changed limits, reserves, `barred` directions and traffic; call it every second, and after
        such a change. Slots that became free are given to waiting pairs here."""
        ...


class _Budget:
    """So many things in any second."""

    def __init__(self, most: int) -> None:
        self._times: deque[float] = deque(maxlen=most)

    def left(self, now: float) -> bool:
        """Whether one more may be done."""
        return len(self._times) < (self._times.maxlen or 0) or now - self._times[0] >= 1.0

    def spend(self, now: float) -> None:
        """One was done."""
        self._times.append(now)


class Ask(NamedTuple):
    """Whether a claim may have a slot of a direction now. `without`: as if that one had left; `spare`: one of
    those too that are kept for successors."""

    claim: Claim
    direction: Direction
    now: float
    without: Claim | None = None
    spare: bool = False


class FirstCome:
    """Slots in the order of arrival; nothing is displaced, and ports are not told apart."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.capabilities = ports.capabilities
        self.table = Table(self.capabilities)
        self._known: dict[SaId, Claim] = {}
        self._placed: dict[SaId, Claim] = {}
        self._waiting: dict[Port, dict[SaId, Claim]] = {}  # by port; also pairs that lack one direction
        self._arrivals = 0
        self._refills = _Budget(REFILLS)
        # What may stand in the way, in the order of `Reason`.
        self._obstacles: tuple[tuple[Reason, Callable[[Ask], bool]], ...] = (
            (Reason.COLD, self._cold),
            (Reason.PORT_LIMIT, lambda ask: self._at_limit(ask.claim.port, ask.without)),
            (Reason.ADDRESSES_FULL, self._addresses_full),
            (Reason.SLOTS_FULL, self._slots_full),
            (Reason.REFUSED, lambda ask: ask.now < ask.claim.retry),
        )

    # The interface ------------------------------------------------------------------------------------------

    def admit(self, claim: Claim, now: float) -> list[Decision]:
        """See `Placement`."""
        if claim.sa in self._known:
            return []
        self._known[claim.sa] = claim
        claim.arrival = self._arrivals = self._arrivals + 1
        if (old := claim.predecessor) is not None and old.superseded is not None:
            claim.predecessor = None  # it has a successor: another one has nothing to inherit
        elif old is not None:
            claim.rate, old.superseded = replace(old.rate), now
        decisions = self._first(claim, now)
        self._note(claim)
        kept_out: dict[Reason, list[Direction]] = {}
        for direction in claim.missing:
            if reason := self.why(claim, direction, now):
                kept_out.setdefault(reason, []).append(direction)
                claim.port.refused[reason] += 1
        for reason, directions in kept_out.items():
            decisions.append(_decision(Outcome.KEPT_OUT, claim, directions, now, reason))
        return decisions

    def release(self, claim: Claim, now: float, because: Reason | None = None) -> list[Decision]:
        """See `Placement`."""
        if self._known.get(claim.sa) is not claim:
            return []
        if because is None:
            del self._known[claim.sa]
            self.table.leave(claim)
            self._note(claim)
            if claim.predecessor is not None:  # a rekey that failed: the former pair is the one again
                claim.predecessor.superseded = None
            return []
        if because is Reason.REFUSED:
            least, most = BACK_OFF
            claim.backoff = min(max(2 * claim.backoff, least), most)
            claim.retry = now + claim.backoff
        claim.port.refused[because] += len(claim.placed)
        return [self._evict(claim, now, because)] if claim.placed else []

    def rebalance(self, now: float) -> list[Decision]:
        """See `Placement`."""
        return [*self._enforce(now), *self._fill(now)]

    # What is asked ------------------------------------------------------------------------------------------

    def why(self, claim: Claim, direction: Direction, now: float) -> Reason | None:
        """Why a direction is not in the adapter; None when it is, or would be placed if it came now."""
        if direction in claim.placed:
            return None
        if not self.ports.limit(claim.port):
            return Reason.OFF
        if direction in claim.barred:
            return claim.barred[direction]
        if claim.superseded is not None:
            return Reason.AGEING
        replaces = claim.predecessor is not None and bool(claim.predecessor.placed)
        return self._obstacle(Ask(claim, direction, now, spare=replaces))

    @property
    def placed(self) -> tuple[Claim, ...]:
        """Pairs with one slot at least, in the order in which they came to it."""
        return tuple(self._placed.values())

    def busiest_waiting(self, count: int, now: float) -> list[Claim]:
        """Pairs that have less than they want, those with the highest score first."""
        return nlargest(count, self._all_waiting(), key=lambda claim: claim.score(now))

    # What the policies differ in ----------------------------------------------------------------------------

    def _rank(self, claim: Claim, now: float) -> float:
        """Who comes first where some must wait, and last where some must go: the greater."""
        return -claim.arrival

    def _cold(self, ask: Ask) -> bool:
        """Whether too little traffic is the reason."""
        return False

    def _at_limit(self, port: Port, without: Claim | None = None) -> bool:
        """Whether a port may have no more slots."""
        return False

    def _room(self, port: Port, pool: int, without: Claim | None = None, *, spare: bool = False) -> bool:
        """Whether a pool has a slot for a port."""
        return self.table.free(pool, without) > 0

    def _first(self, claim: Claim, now: float) -> list[Decision]:
        """What a pair gets when it comes."""
        return self._place(claim, now)

    def _enforce(self, now: float) -> list[Decision]:
        """Evict what may no longer be in the adapter. What is about to be replaced stays to the end."""
        decisions = []
        for claim in self.placed:
            reasons = [claim.barred[one] for one in claim.placed if one in claim.barred]
            if not self.ports.limit(claim.port):
                reasons = [Reason.OFF]
            if reason := next((one for one in reasons if one is not Reason.AGEING), None):
                decisions.append(self._evict(claim, now, reason))
        return decisions

    # How it is done -----------------------------------------------------------------------------------------

    def _obstacle(self, ask: Ask) -> Reason | None:
        return next((reason for reason, holds in self._obstacles if holds(ask)), None)

    def _addresses_full(self, ask: Ask) -> bool:
        if ask.direction is Direction.OUTBOUND or self.table.knows(ask.claim.address, ask.without):
            return False
        return not self.table.address_free(ask.without)

    def _slots_full(self, ask: Ask) -> bool:
        pool = self.capabilities.pool(ask.direction)
        return not self._room(ask.claim.port, pool, ask.without, spare=ask.spare)

    def _open(self, port: Port) -> bool:
        """Whether there may be a slot for a port, of one direction at least."""
        pools = range(len(self.capabilities.pools))
        return (
            bool(self.ports.limit(port))
            and not self._at_limit(port)
            and any(self._room(port, n) for n in pools)
        )

    def _fill(self, now: float) -> list[Decision]:
        """Give free slots to pairs that wait."""
        ports = [port for port in self._waiting if self._open(port)]
        waiting = [one for port in ports for one in self._waiting[port].values() if now >= one.retry]
        decisions: list[Decision] = []
        full: set[Port] = set()
        for claim in sorted(waiting, key=lambda one: self._rank(one, now), reverse=True):
            if claim.port in full:
                continue
            if not self._refills.left(now):
                break
            if not self._open(claim.port):
                full.add(claim.port)
            elif found := self._place(claim, now):
                self._refills.spend(now)
                decisions += found
        return decisions

    def _place(self, claim: Claim, now: float) -> list[Decision]:
        """Place the directions for which there is room."""
        directions = []
        for direction in tuple(claim.missing):
            if self.why(claim, direction, now) is None:
                self._enter(claim, direction, now)
                directions.append(direction)
        return [_decision(Outcome.PLACED, claim, directions, now)] if directions else []

    def _enter(self, claim: Claim, direction: Direction, now: float) -> None:
        if not claim.placed:
            claim.since = now
        self.table.enter(claim, direction)
        self._note(claim)

    def _evict(self, claim: Claim, now: float, reason: Reason, other: Claim | None = None) -> Decision:
        """Take all that a pair has; it goes on waiting."""
        decision = _decision(Outcome.EVICTED, claim, claim.placed, now, reason, other)
        self.table.leave(claim)
        self._note(claim)
        return decision

    def _note(self, claim: Claim) -> None:
        """Keep a pair among those placed and those waiting, as it now is."""
        waiting = self._waiting.setdefault(claim.port, {})
        known = claim.sa in self._known
        for member, claims in ((claim.placed, self._placed), (known and any(claim.missing), waiting)):
            if member:
                claims[claim.sa] = claim
            else:
                claims.pop(claim.sa, None)
        if not waiting:
            del self._waiting[claim.port]

    def _all_waiting(self) -> Iterable[Claim]:
        return (claim for claims in self._waiting.values() for claim in claims.values())


class Ceiling(FirstCome):
    """As Hyper-V: slots in the order of arrival, for each port as many as its limit. Where a limit is lowered
    those leave that came last."""

    def _at_limit(self, port: Port, without: Claim | None = None) -> bool:
        gone = len(without.placed) if without is not None and without.port is port else 0
        return port.used - gone >= self.ports.limit(port)

    def _enforce(self, now: float) -> list[Decision]:
        decisions = super()._enforce(now)
        for port in self.ports:
            while port.used > self.ports.limit(port):
                mine = (claim for claim in self._placed.values() if claim.port is port)
                least = min(mine, key=lambda claim: self._rank(claim, now))
                decisions.append(self._evict(least, now, Reason.PORT_LIMIT))
        return decisions


class Weighted(Ceiling):
    """By score, with reserves and calm: see the head of this module."""

    def __init__(self, ports: Ports) -> None:
        super().__init__(ports)
        self._moves = _Budget(MOVES)

    def rebalance(self, now: float) -> list[Decision]:
        """See `Placement`."""
        return [*super().rebalance(now), *self._contend(now)]

    def _rank(self, claim: Claim, now: float) -> float:
        return claim.score(now)

    def _cold(self, ask: Ask) -> bool:
        full = self._slots_full(ask) or self._addresses_full(ask)
        return full and ask.claim.rate.at(ask.now) < WORTH

    def _kept(self, pool: int) -> int:
        """Slots of a pool for successors; of a tiny one no more than half."""
        slots = self.capabilities.pools[pool]
        return min(max(slots // KEPT, KEPT_LEAST), slots // 2)

    def _room(self, port: Port, pool: int, without: Claim | None = None, *, spare: bool = False) -> bool:
        """Afterwards all must still be free that is owed to reserves; what a port takes of its own reserve is
        no longer owed, and may be of the slots that are kept."""
        left = self.table.free(pool, without) - 1
        owed = self.table.owed(pool, self.ports, without)
        if self._reserve_left(port, pool, without) > 0:
            return left >= owed - 1
        return left >= owed + (0 if spare else self._kept(pool))

    def _reserve_left(self, port: Port, pool: int, without: Claim | None = None) -> int:
        """Slots that a port has less than its reserve; negative for one that has more."""
        share = port.share(pool, len(self.capabilities.pools))
        return share - self.table.of_port(port, pool, without)

    # Rekey --------------------------------------------------------------------------------------------------

    def _first(self, claim: Claim, now: float) -> list[Decision]:
        """A successor gets slots beside its predecessor, where there are none those of its predecessor; a
        third generation never has slots beside the first."""
        old = claim.predecessor
        if old is None:
            return super()._first(claim, now)
        decisions = []
        if old.predecessor is not None and old.predecessor.placed:
            decisions.append(self._evict(old.predecessor, now, Reason.AGEING))
        old.predecessor = None
        since = old.since if old.placed else now
        decisions += self._place(claim, now)
        asks = [Ask(claim, one, now, old, spare=True) for one in claim.missing if one in old.placed]
        taken = [
            one.direction for one in asks if one.direction not in claim.barred and not self._obstacle(one)
        ]
        if taken and self.ports.limit(claim.port):
            decisions.append(self._evict(old, now, Reason.AGEING, claim))
            for direction in taken:
                self._enter(claim, direction, now)
            decisions.append(_decision(Outcome.PLACED, claim, taken, now, other=old))
        claim.since = since
        return decisions

    # Reserves -----------------------------------------------------------------------------------------------

    def _enforce(self, now: float) -> list[Decision]:
        """Also make room for reserves that were raised, and for successors where predecessors stay on."""
        decisions = super()._enforce(now)
        for pool in range(len(self.capabilities.pools)):
            while (owed := self.table.owed(pool, self.ports)) > self.table.free(pool):
                above = (one for one in self._holding(pool) if self._reserve_left(one.port, pool) < 0)
                least = min(above, key=lambda one: self._rank(one, now))
                decisions.append(self._evict(least, now, Reason.SLOTS_FULL))
            for claim in self._holding(pool):
                lingers = claim.superseded is not None and now - claim.superseded >= RESIDENT
                if lingers and self.table.free(pool) < owed + self._kept(pool):
                    decisions.append(self._evict(claim, now, Reason.AGEING))
        return decisions

    def _holding(self, pool: int) -> list[Claim]:
        return [claim for claim in self._placed.values() if self.table.held(claim, pool)]

    # A full table -------------------------------------------------------------------------------------------

    def _contend(self, now: float) -> list[Decision]:
        """Let the pairs with the highest scores displace others, as long as that succeeds and is allowed."""
        above = self._above_fair_share()
        yielding = [one for one in self._placed.values() if now - one.since >= RESIDENT]
        if not yielding or not self._moves.left(now):
            return []
        yielding.sort(key=lambda one: (one.port not in above, one.score(now)))
        least = FACTOR * min(one.score(now) for one in yielding)
        queues = {}
        for port, claims in self._waiting.items():
            if not self.ports.limit(port):
                continue
            enough = 0.0 if port.exclusive else least
            ready = [one for one in claims.values() if one.score(now) >= enough and _contends(one, now)]
            if ready:
                queues[port] = nlargest(MOVES + TRIES, ready, key=lambda one: one.score(now))[::-1]
        failed: Counter[Port] = Counter()
        decisions: list[Decision] = []
        while queues and self._moves.left(now):
            port = max(queues, key=lambda one: (one.exclusive, queues[one][-1].score(now)))
            found = self._displace(queues[port].pop(), yielding, now)
            decisions += found
            failed[port] += not found
            if not queues[port] or failed[port] == TRIES:
                del queues[port]
        return decisions

    def _displace(self, claim: Claim, yielding: list[Claim], now: float) -> list[Decision]:
        """Give a pair slots of others. Of what one leaves both directions may be served."""
        decisions: list[Decision] = []
        won: Counter[int] = Counter()
        for direction in tuple(claim.missing):
            pool = self.capabilities.pool(direction)
            victim = None
            if direction in claim.barred:
                continue
            if self._obstacle(Ask(claim, direction, now, spare=won[pool] > 0)) is not None:
                victim = self._victim(claim, direction, yielding, now) if self._moves.left(now) else None
                if victim is None:
                    continue
                for freed in victim.placed:
                    won[self.capabilities.pool(freed)] += 1
                reason = Reason.PORT_LIMIT if self._at_limit(claim.port) else Reason.SLOTS_FULL
                decisions.append(self._evict(victim, now, reason, claim))
                self._moves.spend(now)
                yielding.remove(victim)
            won[pool] = max(won[pool] - 1, 0)
            self._enter(claim, direction, now)
            decisions.append(_decision(Outcome.PLACED, claim, (direction,), now, other=victim))
        return decisions

    def _victim(
        self, claim: Claim, direction: Direction, yielding: Iterable[Claim], now: float
    ) -> Claim | None:
        """The first that yields and whose leaving makes room."""
        pool = self.capabilities.pool(direction)
        for victim in yielding:
            if victim is not claim and _outbids(claim, victim, now) and self._may_lose(victim, claim.port):
                frees = self.table.held(victim, pool) > 0
                if self._obstacle(Ask(claim, direction, now, victim, spare=frees)) is None:
                    return victim
        return None

    def _may_lose(self, victim: Claim, to: Port) -> bool:
        """Whether the victim's port keeps its reserve without it."""
        return victim.port is to or all(
            self._reserve_left(victim.port, self.capabilities.pool(one), victim) <= 0 for one in victim.placed
        )

    def _above_fair_share(self) -> set[Port]:
        """Ports that have more than their weight among the ports with demand gives them."""
        demand = {claim.port for claim in self._placed.values()} | set(self._waiting)
        weights = sum(port.weight for port in demand)
        return {port for port in demand if port.used * weights > port.weight * self.capabilities.slots}


def _contends(claim: Claim, now: float) -> bool:
    """Whether a pair that waits may displace another one at all."""
    if claim.superseded is not None or now < claim.retry or claim.rate.at(now) < WORTH:
        return False
    return any(one not in claim.barred for one in claim.missing)


def _outbids(claim: Claim, victim: Claim, now: float) -> bool:
    """Whether a pair may have the place of another one. An exclusive port takes from others whatever their
    scores, and they take from it only what is idle: else the two would take turns."""
    mine, other = claim.port, victim.port
    if mine.exclusive and not other.exclusive:
        return True
    if other.exclusive and not mine.exclusive and victim.rate.at(now) >= WORTH / FACTOR:
        return False
    score = claim.score(now)
    return score > 0 and score >= FACTOR * victim.score(now)


def _decision(
    outcome: Outcome,
    claim: Claim,
    directions: Iterable[Direction],
    now: float,
    reason: Reason | None = None,
    other: Claim | None = None,
) -> Decision:
    """A decision with the scores of its moment, directions in their own order."""
    return Decision(
        outcome,
        claim.sa,
        claim.port.name,
        tuple(one for one in Direction if one in set(directions)),
        claim.score(now),
        reason,
        None if other is None else other.sa,
        None if other is None else other.score(now),
    )
