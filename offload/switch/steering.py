"""What carries each SA: joins placement (`offload.switch.placement`) with what planes report. Pure.

A `Member` is one SA pair of this host or of a virtual machine, with the function that moves it. Placement
decides; its decisions are carried out through that function, and what comes of them is told with `came`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from offload.nic.capabilities import Direction
from offload.nic.eligibility import Circumstances, Reason, ineligible
from offload.switch.claims import BOTH, Claim
from offload.switch.placement import Decision, Outcome, Weighted
from offload.switch.ports import Port, Ports
from sadb.sa import SecurityAssociation

# Moves directions of one pair into the adapter (True) or out of it.
Move = Callable[[frozenset[Direction], bool], None]


@dataclass(slots=True, eq=False)
class Member:
    """One pair. `name` and `rule` are for people; `hard` has the directions that are in the adapter as last
    told, `leaving` those of them that are to leave it; members in `waiting` get its slots then. `failed` has
    why a direction is in software although it was to be in the adapter."""

    claim: Claim
    inbound: SecurityAssociation
    outbound: SecurityAssociation
    name: str
    rule: str
    wished: bool
    move: Move
    hard: set[Direction] = field(default_factory=set)
    leaving: set[Direction] = field(default_factory=set)
    waiting: list[tuple[Member, frozenset[Direction]]] = field(default_factory=list)
    failed: dict[Direction, Reason] = field(default_factory=dict)
    since: float = 0.0
    moves: int = 0
    octets: int = 0
    octets_offloaded: int = 0
    facts: tuple[object, ...] = ()  # what its claim was last barred for, or not

    @property
    def port(self) -> Port:
        """The port it belongs to."""
        return self.claim.port

    def sa(self, direction: Direction) -> SecurityAssociation:
        """The SA of one direction."""
        return self.inbound if direction is Direction.INBOUND else self.outbound


class Steering:
    """All members of all ports; `decided(member, decision)` hears of every decision."""

    def __init__(self, ports: Ports, decided: Callable[[Member, Decision, Member | None], None]) -> None:
        self.ports = ports
        self.placement = Weighted(ports)
        self.up = False  # whether there is an adapter whose link is up
        self.counters: Counter[str] = Counter()  # decisions, by `Outcome`
        self._decided = decided
        self._members: dict[int, Member] = {}
        self._next = 0

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def join(
        self,
        port: Port,
        inbound: SecurityAssociation,
        outbound: SecurityAssociation,
        move: Move,
        now: float,
        *,
        name: str = "",
        rule: str = "",
        wished: bool = True,
        replaces: Member | None = None,
    ) -> Member:
        """A pair that may be placed; with `replaces`, the one that it follows by rekey."""
        self._next += 1
        predecessor = replaces.claim if replaces is not None else None
        claim = Claim(self._next, port, inbound.destination, BOTH, predecessor=predecessor)
        member = Member(claim, inbound, outbound, name, rule, wished, move, since=now)
        self._members[claim.sa] = member
        self._bar(member)
        self._carry_out(self.placement.admit(claim, now), now)
        return member

    def leave(self, member: Member, now: float) -> None:
        """The pair is gone."""
        if self._members.pop(member.claim.sa, None) is not None:
            self._carry_out(self.placement.release(member.claim, now), now)
            self._left(member)

    def came(self, member: Member, direction: Direction, what: str, now: float) -> None:
        """A plane tells what became of one direction, see `offload.nic.lanes.Report`."""
        if member.claim.sa not in self._members:
            return
        if what == "placed":
            if direction in member.claim.placed:  # else it has to leave again, or a guest makes it up
                member.hard.add(direction)
                member.failed.pop(direction, None)
                member.since = now
                member.moves += 1
            return
        if direction in member.hard:
            member.hard.discard(direction)
            member.since = now
        member.leaving.discard(direction)
        if not member.leaving:
            self._left(member)
        if what == "software" or direction not in member.claim.placed:
            return
        reason = _REASONS.get(what, Reason.REFUSED)
        member.failed[direction] = reason
        self._carry_out(self.placement.release(member.claim, now, reason), now)

    def carried(self, member: Member, octets: int, offloaded: int, now: float) -> None:
        """What a pair carried since the last call, both directions, and how much of it in the adapter."""
        offloaded = min(octets, offloaded)
        member.octets += octets
        member.octets_offloaded += offloaded
        if offloaded:
            member.claim.carried(offloaded, now, offloaded=True)
        if octets - offloaded:
            member.claim.carried(octets - offloaded, now, offloaded=False)

    def rebalance(self, now: float) -> None:
        """Follow what has changed; every second, and at once after a change of ports or link."""
        for member in self._members.values():
            self._bar(member)
        self._carry_out(self.placement.rebalance(now), now)

    def link(self, up: bool, now: float) -> None:
        """The adapter came or went, or its link did: what it had is not there any more."""
        self.up = up
        if not up:
            for member in self._members.values():
                if member.claim.placed:
                    member.hard.clear()
                    member.leaving.clear()
                    member.waiting.clear()
                    self._carry_out(self.placement.release(member.claim, now, Reason.LINK), now)
        self.rebalance(now)

    def why(self, member: Member, direction: Direction, now: float) -> Reason | None:
        """Why a direction is in software; None when it is in the adapter, or on its way there."""
        if direction in member.hard:
            return None
        return (
            member.failed.get(direction)
            if direction in member.claim.placed
            else self._kept(member, direction, now)
        )

    def busiest(self, count: int, now: float) -> list[Member]:
        """Members with something in software, those with the most traffic first."""
        return [self._members[claim.sa] for claim in self.placement.busiest_waiting(count, now)]

    def of(self, port: Port) -> Iterable[Member]:
        """Members of one port."""
        return [one for one in self._members.values() if one.port is port]

    # Inside ----------------------------------------------------------------------------------------------

    def _kept(self, member: Member, direction: Direction, now: float) -> Reason | None:
        reason = self.placement.why(member.claim, direction, now)
        return reason or member.failed.get(direction)

    def _bar(self, member: Member) -> None:
        """What is so now: addresses and states of SAs, links and rules change. Of most members nothing does,
        and there may be very many."""
        port, ports = member.port, self.ports
        facts = (
            *(self.up, ports.enabled, member.wished, port.limit > 0, port.trusted),
            *_facts(member.inbound),
            *_facts(member.outbound),
        )
        if facts == member.facts:
            return
        member.facts = facts
        if member.inbound.destination != member.claim.address:
            self.placement.table.move(member.claim, member.inbound.destination)
        at = Circumstances(
            self.ports.capabilities,
            wished=member.wished,
            enabled=self.ports.enabled and member.port.limit > 0,
            trusted=member.port.trusted,
            up=self.up,
        )
        barred = member.claim.barred
        for direction in Direction:
            reason = ineligible(member.sa(direction), at)
            if reason is None:
                barred.pop(direction, None)
            else:
                barred[direction] = reason

    def _left(self, member: Member) -> None:
        """Its slots are empty: who was to have them gets them, if that is still so."""
        waiting, member.waiting = member.waiting, []
        for other, directions in waiting:
            if other.claim.sa in self._members and directions <= other.claim.placed:
                other.move(directions, True)

    def _carry_out(self, decisions: Iterable[Decision], now: float) -> None:
        """Decisions are in the order in which slots become free."""
        evicted: Member | None = None
        for decision in decisions:
            member = self._members.get(decision.sa)
            if member is None:
                continue
            directions = frozenset(decision.directions)
            other = self._members.get(decision.other) if decision.other is not None else None
            if decision.outcome is Outcome.PLACED:
                for direction in directions:
                    member.failed.pop(direction, None)
                if evicted is not None and evicted.leaving:
                    evicted.waiting.append((member, directions))
                else:
                    member.move(directions, True)
            elif decision.outcome is Outcome.EVICTED:
                member.leaving |= directions & member.hard
                member.move(directions, False)
                evicted = member
            self.counters[decision.outcome.value] += 1
            self._decided(member, decision, other)


def _facts(sa: SecurityAssociation) -> tuple[object, ...]:
    """What decides whether an adapter can have an SA."""
    return sa.suite, sa.mode, sa.destination, sa.encapsulation, sa.state


_REASONS = {one.value: one for one in Reason} | {"lost": Reason.REFUSED, "esn": Reason.REFUSED}
