"""The host's side of an adapter with an SA table: how an SA moves between it and software, both ways. Pure.

One outbound SA:

    SOFT --place--> ADDING --Added--> HARD --displace--> DRAINING --fence done--> SOFT
                    ADDING --Refused--> SOFT
                    HARD --packets for software--> DRAINING --fence done--> HARD
                    HARD --other upper half--> DRAINING --fence done--> ADDING
                    HARD, DRAINING --adapter dead, no completion in time, failed send--> SOFT, packets again

In packet mode, see `offload.nic.packet_mode`, HARD --packets for software--> DRAINING --fence done--> ADDING,
for the fence brings the numbers home.

A sequence number is taken before an adapter sees the packet and never again, whatever becomes of it: packets
whose completion is missing leave in software under new numbers, at most once, oldest first. While an SA
drains its packets wait, before they are numbered, so that none of software overtakes one of the ring. Inbound
nothing drains: marked and raw packets may come at any time, and a mark is believed when its handle is the
SA's. In packet mode the replay window is lent to the adapter; one that dies with it costs the SA.

Answers are to be given to the driver before packets that were marked behind them: whoever takes packets from
the ring looks for answers between that and handing them to the engine.

What is to be done leaves in `requests` (to the adapter), `ring` (transmit descriptors) and `reports` (to
whoever places SAs); nothing here waits or looks at a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

from offload.accounts import Accounts
from offload.nic.capabilities import Capabilities, Direction
from offload.nic.descriptors import Completion, Task, Transmit
from offload.nic.eligibility import Reason
from offload.nic.lanes import Again, Flight, Inbound, Lane, Report, Stage
from offload.nic.packet_mode import Lease
from offload.nic.requests import (
    Added,
    AddSa,
    Answer,
    Deleted,
    DeleteSa,
    Link,
    Refused,
    Request,
    TakeWindow,
    TooBig,
    UpdateSa,
    add,
)
from offload.outer import CryptoStatus, Mark, Outgoing
from sadb.sa import SaPair, SecurityAssociation

PATIENCE = 0.1  # seconds without any completion after which what is in flight is lost
LONGEST = 1.0  # seconds after which it is lost although others are completed
PASSED = 64  # later descriptors completed, after which this one will not be: they are in order, nearly
HELD = 256  # packets of one SA that wait for the adapter to drain
LAGGING = 64  # packets refused by the adapter and verified here, after which it does not follow our updates

_NOTHING = (0, 0, 0, 0)
_REASONS = frozenset(one.value for one in Reason)


class Driver:
    """All SAs of one port. `packet_mode`: SAs are placed in it from now on; the adapter has to be able to.
    `resend_lost` False: what is lost stays lost."""

    def __init__(self, capabilities: Capabilities, *, packet_mode: bool = False) -> None:
        self.capabilities = capabilities
        self.packet_mode = packet_mode
        self.resend_lost = True
        self.requests: list[Request] = []
        self.ring: list[Transmit] = []
        self.reports: list[Report] = []
        self.counters: Counter[str] = Counter()
        self.lanes: dict[SaPair, Lane] = {}  # of pairs that are not wholly in software outbound
        # set by the engine: takes packets again, hears that a pair may have moved, and knows the last number
        # sent or the highest one received
        self.again: Callable[[Again], None] = lambda again: None
        self.changed: Callable[[SaPair], None] = lambda pair: None
        self.number: Callable[[SaPair, bool], int] = Accounts().number
        # in packet mode: the adapter is to have a pair's window, or that went with the adapter
        self.lending: Callable[[SaPair], None] = lambda pair: None
        self.lost: Callable[[SaPair], None] = lambda pair: None
        self._inbound: dict[SaPair, Inbound] = {}
        self._handles: dict[int, Inbound] = {}
        self._former: dict[int, Inbound] = {}  # deleted, but marks may still be in the ring
        self._ended: tuple[set[int], set[int]] = set(), set()  # of these the deletion is answered
        self._pending: dict[int, Lane | Inbound] = {}
        self._draining: dict[Lane, None] = {}  # first begun first; also of pairs that are deleted
        self._carried: dict[SaPair, list[int]] = {}
        self._flights: dict[int, Flight] = {}  # by ident, oldest first
        self._ident = 0
        self._completed = 0  # highest ident
        self._heard = 0.0  # when the last completion came

    # Placing ---------------------------------------------------------------------------------------------

    def place(self, pair: SaPair, directions: Iterable[Direction], now: float) -> None:
        """Put an SA pair, or one direction of it, into the adapter; packets go on in software meanwhile."""
        for direction in directions:
            if direction is Direction.INBOUND and pair not in self._inbound:
                high = self.number(pair, True) >> 32
                packets = self.packet_mode and pair.inbound.replay is not None
                row = self._inbound[pair] = Inbound(pair, packets, high=high)
                self._add(row, pair.inbound, high)
            elif direction is Direction.OUTBOUND and pair not in self.lanes:
                high = self.number(pair, False) + 1 >> 32
                lane = self.lanes[pair] = Lane(pair, Stage.ADDING, self.packet_mode, high=high)
                self._add(lane, pair.outbound, high)

    def displace(self, pair: SaPair, directions: Iterable[Direction], now: float) -> None:
        """Take it out again."""
        for direction in directions:
            if direction is Direction.INBOUND:
                self._remove_inbound(pair)
            elif (lane := self.lanes.get(pair)) is not None:
                self._drain(lane, now)

    def moved(self, pair: SaPair, now: float) -> None:
        """The pair's addresses or ports are others: what the adapter has of it is placed anew, or refused."""
        if pair in self._inbound:
            self._remove_inbound(pair)
            self.place(pair, (Direction.INBOUND,), now)
        lane = self.lanes.get(pair)
        if lane is not None:
            adding = lane.stage is Stage.ADDING
            self._drain(lane, now, Stage.ADDING)
            if adding:
                self.place(pair, (Direction.OUTBOUND,), now)

    def forget(self, pair: SaPair) -> None:
        """The pair is deleted. What is in flight still leaves; what waits looks for another pair."""
        self._remove_inbound(pair, report=False)
        self._carried.pop(pair, None)
        lane = self.lanes.pop(pair, None)
        if lane is None:
            return
        if lane.flights:
            self._drain(lane, self._flights[max(lane.flights)].since)
        elif lane.handle:
            self.requests.append(DeleteSa(lane.handle))
        if lane.held:
            self.again(Again(pair, (), tuple(lane.held)))
            lane.held.clear()

    def stage(self, pair: SaPair, direction: Direction) -> Stage:
        """Where a direction of a pair is."""
        if direction is Direction.OUTBOUND:
            lane = self.lanes.get(pair)
            return lane.stage if lane is not None else Stage.SOFT
        inbound = self._inbound.get(pair)
        if inbound is None:
            return Stage.SOFT
        return Stage.HARD if inbound.handle else Stage.ADDING

    def carried(self, pair: SaPair) -> tuple[int, int, int, int]:
        """Octets and packets in, octets and packets out that the adapter had to do with so far. All others of
        the SA were software's."""
        came, packets_in, went, packets_out = self._carried.get(pair, _NOTHING)
        return came, packets_in, went, packets_out

    @property
    def leases(self) -> dict[SaPair, tuple[int, int]]:
        """Packet mode: the next number that the adapter uses for a pair, and the first that it may not."""
        found = ((lane.pair, lane.lease) for lane in self.lanes.values())
        return {pair: (one.end - one.left, one.end) for pair, one in found if one is not None}

    @property
    def pairs(self) -> set[SaPair]:
        """Those with a direction in the adapter, or on the way there, or that it carried something of."""
        return self.lanes.keys() | self._inbound.keys() | self._carried.keys()

    def _carries(self, pair: SaPair, at: int, octets: int, packets: int) -> None:
        row = self._carried.setdefault(pair, list(_NOTHING))
        row[at] += octets
        row[at + 1] += packets

    def _add(self, place: Lane | Inbound, sa: SecurityAssociation, high: int) -> None:
        self._ident += 1
        self._pending[self._ident] = place
        self.requests.append(add(self._ident, sa, high if sa.suite.esn else None, packets=place.packets))
        self.counters["adds"] += 1

    # What the adapter says -------------------------------------------------------------------------------

    def answered(self, answer: Answer, now: float) -> None:
        """An answer to a request, or news of the link."""
        match answer:
            case Added(ident, handle):
                self._added(ident, handle)
            case Refused(ident, reason):
                self._refused(ident, reason, now)
            case Deleted(handle, highest, bitmap):
                row = self._former.get(handle)
                if row is not None:
                    self._ended[1].add(handle)
                    if row.lent:
                        self._come_home(row, highest, bitmap)
            case Link(up):
                if not up:
                    self.dead(now, "link")
            case TooBig():
                pass  # the shell's

    def _added(self, ident: int, handle: int) -> None:
        place = self._pending.pop(ident, None)
        if place is None or not self._current(place):  # not wanted any more
            if isinstance(place, Inbound):
                self._former[handle] = place
            self.requests.append(DeleteSa(handle))
            return
        place.handle = handle
        if isinstance(place, Lane):
            place.stage = Stage.HARD
        else:
            self._handles[handle] = place
        self.reports.append(Report(place.pair, _direction(place), "placed"))
        self.changed(place.pair)

    def _current(self, place: Lane | Inbound) -> bool:
        """Whether it was not given up, or placed anew, since it was asked for."""
        return (self.lanes if isinstance(place, Lane) else self._inbound).get(place.pair) is place

    def _refused(self, ident: int, reason: str, now: float) -> None:
        place = self._pending.pop(ident, None)
        reason = reason if reason in _REASONS else Reason.REFUSED.value
        self.counters[f"refused: {reason}"] += 1
        if place is None or not self._current(place):
            return
        del (self.lanes if isinstance(place, Lane) else self._inbound)[place.pair]
        self.reports.append(Report(place.pair, _direction(place), reason))

    def completed(self, completions: Sequence[Completion], now: float) -> None:
        """Descriptors are done with. One that failed means that the SA is not there."""
        failed: list[Lane] = []
        for one in completions:
            self._heard, self._completed = now, max(self._completed, one.ident)
            flight = self._flights.get(one.ident)
            if flight is None:
                continue
            lane = flight.lane
            if not one.sent:
                failed.append(lane)
                continue
            del self._flights[one.ident]
            lane.flights.discard(one.ident)
            if lane.lease is not None:
                lane.lease.sent += flight.count
            if one.ident == lane.fence and lane.stage is Stage.DRAINING:
                self._regain(lane, one.number)
                self._drained(lane, now)
        for lane in failed:
            self._lost(lane, "lost")

    def dead(self, now: float, why: str = "lost") -> None:
        """The adapter is gone, was reset, or its link is down: it has no SA any more. What it marked before
        is true."""
        self.counters["resets"] += 1
        unsent = [one.ident for one in self.requests if isinstance(one, AddSa)]
        for ident in unsent if why == "link" else list(self._pending):  # who is gone answers no more
            del self._pending[ident]
        self.ring.clear()
        for pair in list(self._inbound):
            self._remove_inbound(pair, why)
        self._ended[1].update(self._former)
        for row in self._former.values():
            if row.lent:
                self._come_home(row, None, b"")
        for lane in [*self.lanes.values(), *self._draining]:
            self._lost(lane, why)
        self.requests.clear()  # there is nothing to delete

    # Packets that leave ----------------------------------------------------------------------------------

    def send(self, lane: Lane, framed: Outgoing, at: int, packet: bytes, now: float) -> None:
        """Hand a framed packet with zeros for its check value to the adapter; ESP or AH begins `at`."""
        self._fly(lane, packet, now, False)
        self.ring.append(
            Transmit(
                self._ident,
                lane.handle,
                Task.SECURE,
                framed.data,
                at,
                framed.path,
                framed.traffic_class,
                dont_fragment=framed.dont_fragment,
            )
        )
        self._carries(lane.pair, 2, len(packet), 1)

    def send_large(self, lane: Lane, large: Transmit, octets: int, packets: int, now: float) -> None:
        """Hand a large packet to the adapter; ident and handle are put in here."""
        self._fly(lane, large.data, now, True)
        self.ring.append(replace(large, ident=self._ident, handle=lane.handle))
        self._carries(lane.pair, 2, octets, packets)

    def send_packets(
        self,
        lane: Lane,
        frame: bytes,
        again: bytes,
        octets: int,
        count: int,
        now: float,
        *,
        mtu: int = 0,
        behind: bool = False,
    ) -> None:
        """Packet mode: hand over what `count` packets are to be made of, after `leased`. Should it be lost,
        `again` is to leave: the frame, or the packet in it, or the one it is a piece of, `behind` another
        piece. `mtu`: it has to be cut up for that."""
        assert lane.lease is not None
        lane.lease.handed += count
        self._fly(lane, again, now, again is frame, count, behind=behind)
        self.ring.append(Transmit(self._ident, lane.handle, Task.PACKETS, frame, segment=mtu))
        self._carries(lane.pair, 2, octets, count)

    def leased(self, lane: Lane, count: int) -> bool:
        """Packet mode: whether the adapter has numbers for so many packets more."""
        sa = lane.pair.outbound
        lease = lane.lease = lane.lease or Lease(sa.sequence + 1, sa.sequence + 1)
        if more := lease.renewed(sa, count):
            self.ring.append(Transmit(0, lane.handle, Task.LEASE, number=more.start, segment=len(more)))
            self.counters["leases"] += 1
        return lease.left >= count

    def prepare(self, lane: Lane, now: float, *, soft: bool) -> None:
        """A packet of an SA in the adapter is about to leave, in software if `soft`: see that it may."""
        if lane.packets:
            if soft and lane.lease is not None:
                self.counters["pauses"] += 1
                self._drain(lane, now, Stage.ADDING)
        elif lane.high != self.number(lane.pair, False) + 1 >> 32:
            self.refresh(lane, now)
        elif soft and lane.flights:
            self.pause(lane, now)

    def hold(self, lane: Lane, packet: bytes, now: float) -> None:
        """A packet of an SA that drains: it waits, and when too many do, the adapter is given up."""
        lane.held.append(packet)
        if len(lane.held) > HELD:
            self._lost(lane, "lost")

    def pause(self, lane: Lane, now: float) -> None:
        """Something of the SA is to leave in software, and the adapter goes on when that is done."""
        self.counters["pauses"] += 1
        self._drain(lane, now, Stage.HARD)

    def refresh(self, lane: Lane, now: float) -> None:
        """Extended sequence numbers have another upper half than the adapter knows: its ring may hold numbers
        of the former one, so the SA leaves it and is placed anew."""
        self.counters["esn renewals"] += 1
        self._drain(lane, now, Stage.ADDING)

    def _fly(
        self, lane: Lane, packet: bytes, now: float, frame: bool, count: int = 1, *, behind: bool = False
    ) -> None:
        if not self._flights:
            self._heard = now  # silence counts from here
        group = self._flights[self._ident].group if behind else self._ident + 1
        self._ident += 1
        self._flights[self._ident] = Flight(lane, packet, now, frame, count, group)
        lane.flights.add(self._ident)

    def _drain(self, lane: Lane, now: float, then: Stage = Stage.SOFT) -> None:
        if lane.stage is Stage.ADDING:  # the answer finds nobody
            self._leave(lane, "software")
        elif lane.stage is Stage.HARD:
            lane.stage, lane.then, lane.until = Stage.DRAINING, then, now + PATIENCE
            self._draining[lane] = None
            self._fly(lane, b"", now, False, 0)
            lane.fence = self._ident
            self.ring.append(Transmit(self._ident, lane.handle, Task.FENCE))
            self.counters["drains"] += 1
        elif then is Stage.SOFT or lane.then is Stage.HARD:
            lane.then = then

    def _drained(self, lane: Lane, now: float) -> None:
        """All descriptors before the fence are done with: those without a completion were lost."""
        self._took(now - lane.until + PATIENCE)
        placed = lane.pair in self.lanes
        if lane.flights:
            self._lost(lane, "lost" if placed else "software")
        elif lane.then is Stage.HARD:
            lane.stage = Stage.HARD
            del self._draining[lane]
            self._leave_again(lane, ())
        else:
            self._leave(lane, "software")
            if lane.then is Stage.ADDING and placed:
                self.place(lane.pair, (Direction.OUTBOUND,), now)

    def _took(self, seconds: float) -> None:
        """So long an SA drained, in the counters by the milliseconds of the longest one."""
        self.counters["longest drain, ms"] = max(self.counters["longest drain, ms"], round(1000 * seconds))

    def _regain(self, lane: Lane, number: int) -> None:
        """Go on with the first number that the adapter has not used; behind its lease if that cannot be."""
        lease = lane.lease
        if lease is not None and lease.credible(number):
            lane.pair.outbound.sequence = number - 1
            lane.lease = None
            self.counters["leases returned"] += 1

    def _lost(self, lane: Lane, why: str) -> None:
        """Forget the handle; what is not completed leaves again."""
        if lane.handle:
            self.counters["lost"] += 1
        self._leave(lane, why)

    def _leave(self, lane: Lane, why: str) -> None:
        """The SA is in software from now on. What the adapter has not had yet it does not get."""
        self._draining.pop(lane, None)
        if self.lanes.get(lane.pair) is lane:
            del self.lanes[lane.pair]
            self.reports.append(Report(lane.pair, Direction.OUTBOUND, why))
        if lane.handle:
            self.requests.append(DeleteSa(lane.handle))
            lane.handle = 0
        if lane.lease is not None:
            self.counters["leases lost"] += 1
            lane.lease = None
        lost: dict[int, Flight] = {}
        for ident in sorted(lane.flights):
            flight = self._flights.pop(ident)
            lost.setdefault(flight.group, flight)
        if lost:
            self.ring = [one for one in self.ring if one.ident not in lane.flights]
        lane.flights.clear()
        self._leave_again(lane, tuple(one for one in lost.values() if one.packet) if self.resend_lost else ())
        self.changed(lane.pair)

    def _leave_again(self, lane: Lane, lost: tuple[Flight, ...]) -> None:
        """Under new numbers what was lost, then what waits."""
        self.counters["reframed"] += len(lost)
        if lost or lane.held:
            self.again(Again(lane.pair, lost, tuple(lane.held)))
            lane.held.clear()

    # Packets that come -----------------------------------------------------------------------------------

    def believes(self, pair: SaPair, mark: Mark) -> bool:
        """Whether a mark is of the SA that the packet claims to be of."""
        row = self._handles.get(mark.handle) or self._former.get(mark.handle)
        if row is None or row.pair is not pair or mark.judged > row.judged:
            self.counters["stale handles"] += 1
            return False
        self.counters[f"status: {mark.status.name.lower()}"] += len(mark.numbers) or 1
        if mark.evict and mark.handle in self._handles:
            self.counters["evict requests"] += 1
            for direction in Direction:
                self.reports.append(Report(pair, direction, "refused"))
        return True

    def opened(self, pair: SaPair, mark: Mark, octets: int, packets: int) -> None:
        """A marked packet was authentic and new."""
        row = self._inbound.get(pair)
        if mark.status is CryptoStatus.SUCCESS:
            self._carries(pair, 0, octets, packets)
        if row is None:
            return
        if mark.status is CryptoStatus.SUCCESS:
            row.lagging = 0
        else:  # software verified what the adapter could not
            row.lagging += 1
            self.counters["verified in software"] += 1
            if row.lagging == LAGGING:
                self._remove_inbound(pair, "refused")
                return
        if row.packets:
            if row.handle == mark.handle and not row.judged:
                self._lend(row)
            return
        high = self.number(pair, True) >> 32
        if high != row.high and row.handle:
            row.high = high
            self.requests.append(UpdateSa(row.handle, high))
            self.counters["updates"] += 1
            self.changed(pair)

    def mark(self, pair: SaPair) -> tuple[int, int]:
        """The handle that marks of a pair must have, 0 for none, and the upper half that the adapter was
        told."""
        row = self._inbound.get(pair)
        return (row.handle, row.high) if row is not None else (0, 0)

    def credit(self, pair: SaPair, octets: int, packets: int) -> None:
        """Packets with such marks were authentic, new, and taken by somebody else."""
        self.counters[f"status: {CryptoStatus.SUCCESS.name.lower()}"] += packets
        self._carries(pair, 0, octets, packets)
        row = self._inbound.get(pair)
        if row is not None:
            row.lagging = 0

    def lent(self, pair: SaPair) -> bool:
        """Packet mode: whether the adapter has the replay window of a pair, or had when it last said so."""
        window = pair.inbound.replay
        return window is not None and window.lent

    def _lend(self, row: Inbound) -> None:
        """All packets that came unmarked have been judged, for a marked one has come: what is newer than all
        that has come is the adapter's to judge."""
        window = row.pair.inbound.replay
        assert window is not None
        row.judged = row.lent = window.lent = True
        self.lending(row.pair)
        self.requests.append(TakeWindow(row.handle, window.highest))
        self.counters["windows lent"] += 1

    def _come_home(self, row: Inbound, highest: int | None, bitmap: bytes) -> None:
        """The adapter judges no more. Without its window nobody knows what has come: then nothing may."""
        window = row.pair.inbound.replay
        assert window is not None
        row.lent = window.lent = False
        if highest is not None and 0 <= highest <= window.last:
            window.join(highest, bitmap)
            self.counters["windows returned"] += 1
        else:
            window.close(window.last)
            self.counters["windows lost"] += 1
            self.lost(row.pair)

    def settled(self) -> None:
        """The receive ring was found empty, and all that it held has been looked at. The second time after
        the answer to a deletion no mark of that handle is left."""
        for handle in self._ended[0]:
            self._former.pop(handle, None)
        self._ended = self._ended[1], set()

    def _remove_inbound(self, pair: SaPair, why: str = "software", *, report: bool = True) -> None:
        row = self._inbound.pop(pair, None)
        if row is None:
            return
        if row.handle:
            if self._handles.get(row.handle) is row:  # else the adapter has given it to another one, too
                del self._handles[row.handle]
            self._former[row.handle] = row
            self.requests.append(DeleteSa(row.handle))
        if report:
            self.reports.append(Report(pair, Direction.INBOUND, why))
        self.changed(pair)

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        whens = [lane.until for lane in islice(self._draining, 1)]
        whens += [self._overdue(*oldest) for oldest in islice(self._flights.items(), 1)]
        return min(whens, default=None)

    def tick(self, now: float) -> None:
        """Give up SAs whose packets the adapter does not complete."""
        while self._draining and now >= (lane := next(iter(self._draining))).until:
            self._took(now - lane.until + PATIENCE)
            self._lost(lane, "lost")
        while self._flights:
            ident, oldest = next(iter(self._flights.items()))
            if now < self._overdue(ident, oldest):
                return
            self._lost(oldest.lane, "lost")

    def _overdue(self, ident: int, flight: Flight) -> float:
        """When a descriptor counts as lost. An adapter that is slow but busy gets more time."""
        if self._completed >= ident + PASSED:
            return flight.since + PATIENCE
        return min(max(flight.since, self._heard) + PATIENCE, flight.since + LONGEST)


def _direction(place: Lane | Inbound) -> Direction:
    return Direction.OUTBOUND if isinstance(place, Lane) else Direction.INBOUND
