"""The host's side of an adapter with an SA table: how an SA moves between it and software, both ways. Pure.

One outbound SA:

    SOFT --place--> ADDING --Added--> HARD --displace--> DRAINING --fence done--> SOFT
                    ADDING --Refused--> SOFT
                    HARD, DRAINING --adapter dead, no completion in time, failed send--> SOFT, packets again

A sequence number is taken before an adapter sees the packet and never again, whatever becomes of it: packets
whose completion is missing leave in software under new numbers, at most once, oldest first. While an SA
drains its packets wait, before they are numbered, so that none of software overtakes one of the ring. Inbound
nothing drains: marked and raw packets may come at any time, and a mark is believed when its handle is the
SA's.

What is to be done leaves in `requests` (to the adapter), `ring` (transmit descriptors) and `reports` (to
whoever places SAs); nothing here waits or looks at a clock."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from offload.capabilities import Capabilities, Direction
from offload.descriptors import Completion, CryptoStatus, Mark, Task, Transmit
from offload.outer import Outgoing
from offload.requests import Added, Answer, Deleted, DeleteSa, Link, Refused, Request, TooBig, UpdateSa, add
from sadb.sa import SaPair

PATIENCE = 0.1  # seconds without any completion after which what is in flight is lost
LONGEST = 1.0  # seconds after which it is lost although others are completed
PASSED = 64  # later descriptors completed, after which this one will not be: they are in order, nearly
HELD = 256  # packets of one SA that wait for the adapter to drain
LAGGING = 64  # packets refused by the adapter and verified here, after which it does not follow our updates


class Stage(Enum):
    """Where packets of an outbound SA go."""

    SOFT = "software"
    ADDING = "adding"
    HARD = "adapter"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened to one direction of a pair: it is in the adapter ("placed"), or not: "software" as
    asked, "lost", or for a reason of `offload.eligibility` ("refused" also when the adapter wants to be
    relieved)."""

    pair: SaPair
    direction: Direction
    what: str


@dataclass(slots=True, eq=False)
class Flight:
    """A descriptor that is not completed. `frame`: its packets are those of a frame of `offload.vnet`."""

    lane: Lane
    packet: bytes
    since: float
    frame: bool


@dataclass(slots=True, eq=False)
class Lane:
    """One outbound SA."""

    pair: SaPair
    stage: Stage = Stage.SOFT
    handle: int = 0
    high: int = 0  # of extended sequence numbers, as the adapter has it
    fence: int = 0
    until: float = 0.0
    moves: int = 0
    octets: int = 0
    packets: int = 0
    held: deque[bytes] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Inbound:
    """One inbound SA in the adapter, or on the way there (`handle` 0)."""

    pair: SaPair
    handle: int = 0
    high: int = 0
    lagging: int = 0
    octets: int = 0
    packets: int = 0
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Again:
    """Packets of a pair that have to leave in software: those of `lost` had left before, perhaps."""

    pair: SaPair
    lost: tuple[Flight, ...]
    held: tuple[bytes, ...]


class Driver:
    """All SAs of one port. `resend` False: what is lost stays lost."""

    def __init__(self, capabilities: Capabilities, *, resend: bool = True) -> None:
        self.capabilities = capabilities
        self.requests: list[Request] = []
        self.ring: list[Transmit] = []
        self.reports: list[Report] = []
        self.counters: Counter[str] = Counter()
        self.lanes: dict[SaPair, Lane] = {}  # of pairs that are not wholly in software outbound
        self.again: Callable[[Again], None] = lambda again: None  # set by the engine
        self._resend = resend
        self._inbound: dict[SaPair, Inbound] = {}
        self._handles: dict[int, Inbound] = {}
        self._former: dict[int, Inbound] = {}  # deleted, but marks may still be in the ring
        self._ended: tuple[set[int], set[int]] = set(), set()  # of these the deletion is answered
        self._pending: dict[int, tuple[SaPair, bool]] = {}
        self._flights: dict[int, Flight] = {}  # by ident, oldest first
        self._ident = 0
        self._completed = 0  # highest ident
        self._heard = 0.0  # when the last completion came

    # Placing ---------------------------------------------------------------------------------------------

    def place(self, pair: SaPair, directions: Iterable[Direction], now: float) -> None:
        """Put an SA pair, or one direction of it, into the adapter; packets go on in software meanwhile."""
        for direction in directions:
            if direction is Direction.INBOUND and pair not in self._inbound:
                window = pair.inbound.replay
                high = window.highest >> 32 if window is not None else 0
                self._inbound[pair] = Inbound(pair, high=high)
                self._add(pair, True, high)
            elif direction is Direction.OUTBOUND and pair not in self.lanes:
                high = pair.outbound.sequence + 1 >> 32
                self.lanes[pair] = Lane(pair, Stage.ADDING, high=high)
                self._add(pair, False, high)

    def displace(self, pair: SaPair, directions: Iterable[Direction], now: float) -> None:
        """Take it out again."""
        for direction in directions:
            if direction is Direction.INBOUND:
                self._remove_inbound(pair)
            elif (lane := self.lanes.get(pair)) is not None:
                self._drain(lane, now)

    def forget(self, pair: SaPair) -> None:
        """The pair is deleted. What is in flight may still leave."""
        self._remove_inbound(pair, report=False)
        lane = self.lanes.pop(pair, None)
        if lane is not None and lane.handle:
            lane.held.clear()
            for ident in [ident for ident, one in self._flights.items() if one.lane is lane]:
                del self._flights[ident]
            self.requests.append(DeleteSa(lane.handle))

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
        """Octets and packets in, octets and packets out that the adapter had to do with, since it has the
        SA."""
        inbound, lane = self._inbound.get(pair), self.lanes.get(pair)
        came = (inbound.octets, inbound.packets) if inbound else (0, 0)
        return *came, *((lane.octets, lane.packets) if lane else (0, 0))

    @property
    def pairs(self) -> set[SaPair]:
        """Those with a direction in the adapter, or on the way there."""
        return self.lanes.keys() | self._inbound.keys()

    def _add(self, pair: SaPair, inbound: bool, high: int) -> None:
        self._ident += 1
        self._pending[self._ident] = pair, inbound
        sa = pair.inbound if inbound else pair.outbound
        self.requests.append(add(self._ident, sa, high if sa.suite.esn else None))
        self.counters["adds"] += 1

    # What the adapter says -------------------------------------------------------------------------------

    def answered(self, answer: Answer, now: float) -> None:
        """An answer to a request, or news of the link."""
        match answer:
            case Added(ident, handle):
                self._added(ident, handle)
            case Refused(ident, reason):
                self._refused(ident, reason, now)
            case Deleted(handle):
                self._ended[1].add(handle)
            case Link(up):
                if not up:
                    self.dead(now, "link")
            case TooBig():
                pass  # the shell's

    def _added(self, ident: int, handle: int) -> None:
        pair, inbound = self._pending.pop(ident, (None, False))
        lane = self.lanes.get(pair) if pair is not None and not inbound else None
        row = self._inbound.get(pair) if pair is not None and inbound else None
        if pair is not None and lane is not None and lane.stage is Stage.ADDING:
            lane.stage, lane.handle = Stage.HARD, handle
            lane.moves += 1
            self.reports.append(Report(pair, Direction.OUTBOUND, "placed"))
        elif pair is not None and row is not None and row.wanted and not row.handle:
            row.handle = handle
            self._handles[handle] = row
            self.reports.append(Report(pair, Direction.INBOUND, "placed"))
        else:  # not wanted any more
            self.requests.append(DeleteSa(handle))

    def _refused(self, ident: int, reason: str, now: float) -> None:
        pair, inbound = self._pending.pop(ident, (None, False))
        self.counters[f"refused: {reason}"] += 1
        if pair is None:
            return
        direction = Direction.INBOUND if inbound else Direction.OUTBOUND
        if inbound:
            self._inbound.pop(pair, None)
        else:
            self.lanes.pop(pair, None)
        self.reports.append(Report(pair, direction, reason))

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
            if one.ident == lane.fence and lane.stage is Stage.DRAINING:
                self._drained(lane, now)
        for lane in failed:
            self._lost(lane, now, "lost")

    def dead(self, now: float, why: str = "lost") -> None:
        """The adapter is gone, was reset, or its link is down: it has no SA any more."""
        self.counters["resets"] += 1
        self._pending.clear()
        for row in list(self._inbound.values()):
            self.reports.append(Report(row.pair, Direction.INBOUND, why))
        self._inbound.clear()
        self._handles.clear()
        self._former.clear()
        self.requests.clear()
        self.ring.clear()
        for lane in list(self.lanes.values()):
            lane.handle = 0  # nothing to delete
            self._lost(lane, now, why)

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
        lane.octets += len(packet)
        lane.packets += 1

    def send_large(self, lane: Lane, large: Transmit, octets: int, packets: int, now: float) -> None:
        """Hand a large packet to the adapter; ident and handle are put in here."""
        self._fly(lane, large.data, now, True)
        self.ring.append(replace(large, ident=self._ident, handle=lane.handle))
        lane.octets += octets
        lane.packets += packets

    def hold(self, lane: Lane, packet: bytes, now: float) -> None:
        """A packet of an SA that drains: it waits, and when too many do, the adapter is given up."""
        lane.held.append(packet)
        if len(lane.held) > HELD:
            self._lost(lane, now, "lost")

    def refresh(self, lane: Lane, now: float) -> None:
        """Extended sequence numbers have another upper half than the adapter knows: its ring may hold numbers
        of the former one, so the SA leaves it and is placed anew."""
        self.counters["esn renewals"] += 1
        self._drain(lane, now, "esn")

    def _fly(self, lane: Lane, packet: bytes, now: float, frame: bool) -> None:
        if not self._flights:
            self._heard = now  # silence counts from here
        self._ident += 1
        self._flights[self._ident] = Flight(lane, packet, now, frame)

    def _drain(self, lane: Lane, now: float, why: str = "software") -> None:
        if lane.stage is Stage.ADDING:  # the answer finds nobody
            del self.lanes[lane.pair]
            self.reports.append(Report(lane.pair, Direction.OUTBOUND, why))
        elif lane.stage is Stage.HARD:
            lane.stage, lane.until = Stage.DRAINING, now + PATIENCE
            self._fly(lane, b"", now, False)
            lane.fence = self._ident
            self.ring.append(Transmit(self._ident, lane.handle, Task.FENCE))
            self.counters["drains"] += 1

    def _drained(self, lane: Lane, now: float) -> None:
        del self.lanes[lane.pair]
        self.requests.append(DeleteSa(lane.handle))
        self.reports.append(Report(lane.pair, Direction.OUTBOUND, "software"))
        self.again(Again(lane.pair, (), tuple(lane.held)))

    def _lost(self, lane: Lane, now: float, why: str) -> None:
        """Forget the handle; what is not completed leaves again, under new numbers, then what waits."""
        if self.lanes.pop(lane.pair, None) is None:
            return
        idents = [ident for ident, one in self._flights.items() if one.lane is lane]
        flights = [self._flights.pop(ident) for ident in idents]
        # of the ring, what the adapter has not had yet
        if lane.handle:
            self.requests.append(DeleteSa(lane.handle))
            self.counters["lost"] += 1
        self.ring = [one for one in self.ring if one.ident not in idents]
        self.reports.append(Report(lane.pair, Direction.OUTBOUND, why))
        lost = tuple(one for one in flights if one.packet) if self._resend else ()
        self.counters["reframed"] += len(lost)
        self.again(Again(lane.pair, lost, tuple(lane.held)))

    # Packets that come -----------------------------------------------------------------------------------

    def believes(self, pair: SaPair, mark: Mark) -> bool:
        """Whether a mark is of the SA that the packet claims to be of."""
        row = self._handles.get(mark.handle) or self._former.get(mark.handle)
        if row is None or row.pair is not pair:
            self.counters["stale handles"] += 1
            return False
        self.counters[f"status: {mark.status.name.lower()}"] += len(mark.numbers) or 1
        if mark.evict and row.wanted and mark.handle in self._handles:
            self.counters["evict requests"] += 1
            for direction in Direction:
                self.reports.append(Report(pair, direction, "refused"))
        return True

    def opened(self, pair: SaPair, mark: Mark, octets: int, packets: int) -> None:
        """A marked packet was authentic and new."""
        row = self._inbound.get(pair)
        if row is None:
            return
        if mark.status is CryptoStatus.SUCCESS:
            row.octets += octets
            row.packets += packets
            row.lagging = 0
        else:  # software verified what the adapter could not
            row.lagging += 1
            self.counters["verified in software"] += 1
            if row.lagging == LAGGING:
                self._remove_inbound(pair, "refused")
                return
        window = pair.inbound.replay
        high = window.highest >> 32 if window is not None else 0
        if high != row.high and row.handle:
            row.high = high
            self.requests.append(UpdateSa(row.handle, high))
            self.counters["updates"] += 1

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
        row.wanted = False
        if row.handle:
            del self._handles[row.handle]
            self._former[row.handle] = row
            self.requests.append(DeleteSa(row.handle))
        if report:
            self.reports.append(Report(pair, Direction.INBOUND, why))

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        for ident, oldest in self._flights.items():
            return self._overdue(ident, oldest)
        return None

    def tick(self, now: float) -> None:
        """Give up SAs whose packets the adapter does not complete."""
        while self._flights:
            ident, oldest = next(iter(self._flights.items()))
            if now < self._overdue(ident, oldest):
                return
            self._lost(oldest.lane, now, "lost")

    def _overdue(self, ident: int, flight: Flight) -> float:
        """When a descriptor counts as lost. An adapter that is slow but busy gets more time."""
        if flight.lane.stage is Stage.DRAINING:
            return flight.lane.until
        if self._completed >= ident + PASSED:
            return flight.since + PATIENCE
        return min(max(flight.since, self._heard) + PATIENCE, flight.since + LONGEST)
