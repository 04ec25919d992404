"""Shell. A worker of the data plane: a process of its own that carries packets and knows nothing of keys'
origins.

It reads its queue of the TUN device, its raw sockets and its UDP sockets, and does what the daemon says
through the channel: an order that was given before a packet came is carried out before the packet is looked
at. With the native loop only what that hands up reaches Python. It has no rights: everything it needs is open
when it begins. Without a will it ends when the daemon does, see `offload.workers.line`."""

from __future__ import annotations

import os
import select
import socket
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from offload import channel, vnet
from offload.accounts import LedgerAccounts, NativeAccounts
from offload.host.hints import Hints
from offload.host.natt import NattSockets
from offload.host.raw import ESP, RawSockets, TooBig
from offload.host.tun import Queue
from offload.ledger import Ledger
from offload.meter import Bucket
from offload.outer import Arrived
from offload.software import Batch, SoftwareEngine
from offload.workers.line import Legacy, Line, Will
from sadb import clock
from sadb.backend import Notice, Unavailable
from sadb.sa import SaPair, SecurityAssociation, State

if TYPE_CHECKING:
    from offload._native import Datagram, Packet, Table

TURNS: Final = 16  # reads of one source before others have a turn
REPORT_SECONDS: Final = 0.25  # least time between two reports of drops
MOST_WAITING: Final = 1 << 20  # octets of answers that the daemon does not take; then notices are left out
EARLY: Final = 64  # trains kept that are for no SA we have
EARLY_SECONDS: Final = 0.1
LONGEST_TRACEBACK: Final = 8192
NO_DEVICE: Final = 72  # exit status when the TUN device was deleted: only the daemon can make another


class Order(msgspec.Struct, frozen=True):
    """What a worker is to be, and its descriptors."""

    engine: str  # "native" or "python"
    channel: int
    ledger: int
    queue: int
    segments_udp: bool
    raw: tuple[int, ...]
    natt: tuple[int, ...]
    hints: tuple[int, ...]
    queue_packets: int
    queue_flows: int
    plugs: int = -1  # where an adapter is given to it, if it may have one
    will: Will | None = None


class _Kind(IntEnum):
    """Sources of the native loop: `enum source` of offload/native/native.h."""

    DEVICE = 1
    UDP = 2
    RAW = 3


class Early:
    """Packets for SPIs that nobody has yet. A peer may install a pair and send while our daemon still reads
    the message that makes it do the same; a stranger can fill this, so it is small and short."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Arrived]] = deque()

    def keep(self, arrived: Arrived, now: float) -> list[Arrived]:
        """Let it wait; what had to make room for it."""
        self._waiting.append((now + EARLY_SECONDS, arrived))
        return [self._waiting.popleft()[1]] if len(self._waiting) > EARLY else []

    def take(self, spi: int) -> list[Arrived]:
        """What waits for an SPI, oldest first."""
        found = [one for _, one in self._waiting if one.spi == spi]
        if found:
            self._waiting = deque((when, one) for when, one in self._waiting if one.spi != spi)
        return found

    def expire(self, now: float) -> list[Arrived]:
        """What has waited in vain."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            found.append(self._waiting.popleft()[1])
        return found

    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        return self._waiting[0][0] if self._waiting else None


class Worker:
    """One worker, from inherited descriptors to the end of the daemon."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.poll = select.epoll()
        self.work: dict[int, Callable[[], None]] = {}
        self.line = Line(order.channel, order.will, self.poll, self.work, self._orders, self._legacy)
        self.complaints = Bucket(1.0, 5.0)
        self.ledger = Ledger(fileno=order.ledger)
        self.queue = Queue(order.queue)
        self.raw = RawSockets(socket.socket(fileno=one) for one in order.raw)
        self.natt = NattSockets(socket.socket(fileno=one) for one in order.natt)
        self.hints = Hints(socket.socket(fileno=one) for one in order.hints)
        self.slots: dict[int, SaPair] = {}
        self.digests: dict[int, str] = {}  # of the rules of pairs, by slot
        self.early = Early()
        self.reported: tuple[dict[str, int], int] = {}, 0
        self.report_at = self.alive_at = 0.0
        self.accounts = self._accounts(order.engine)
        self.engine = self._engine(order)
        self.engine.notify = self._notice

    def _engine(self, order: Order) -> SoftwareEngine:
        return SoftwareEngine(
            os.urandom,
            queue_packets=order.queue_packets,
            queue_flows=order.queue_flows,
            accounts=self.accounts,
        )

    def _accounts(self, engine: str) -> LedgerAccounts | NativeAccounts:
        self.table: Table | None = None
        if engine == "python":
            self.drops: Callable[[], dict[str, int]] = dict
            return LedgerAccounts(self.ledger)
        from offload._native import REASONS, Table

        self.table = table = Table(self.ledger.memory, os.urandom(16))
        self.drops = lambda: dict(zip(REASONS, table.drops(), strict=True))
        return NativeAccounts(table, self._sockets)

    def _sockets(self, sa: SecurityAssociation) -> tuple[int, int, bool]:
        if sa.encapsulation is None:
            sender = self.raw.sender(sa.source.version)
            return sender, sender, True
        port = sa.encapsulation[0]
        whole, wildcard = self.natt.sender(sa.source, port, True)
        return whole, self.natt.sender(sa.source, port, False)[0], wildcard

    # Turns -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the daemon wants no more, or is gone."""
        self._source(self.queue.fileno(), _Kind.DEVICE, self._device)
        for fileno in self.hints.filenos():
            self._watch_hints(fileno)
        for fileno in self.raw.senders():
            self._watch_errors(fileno)
        self._watch_wire()
        self._report(clock.now())
        ready: list[tuple[int, int]] = []
        while True:
            now = clock.now()
            deadline = min(one for one in self._deadlines() if one is not None)
            if ready:
                deadline = min(deadline, self.report_at)
            wait = max(0.0, deadline - now)
            if self.table is not None:
                self._guarded(partial(self._carry, self.table, wait))
                wait = 0.0
            ready = self._sleep(wait)
            # the daemon first: what it said came before the packets that follow from it
            for fileno, _ in sorted(ready, key=lambda one: one[0] != self.line.fileno()):
                if fileno in self.work:  # else the native loop's, or what was done before has ended it
                    self._guarded(self.work[fileno])
            now = clock.now()
            self._guarded(partial(self._tick, now))
            self._report(now)

    def _deadlines(self) -> Sequence[float | None]:
        return self.engine.deadline(), self.early.deadline(), self.alive_at, self.line.deadline()

    def _sleep(self, seconds: float) -> list[tuple[int, int]]:
        """Until there is something to do: what is readable."""
        return self.poll.poll(seconds)

    def _watch_wire(self) -> None:
        """Read the sockets from now on."""
        for fileno in self.natt.filenos():
            self._source(fileno, _Kind.UDP, partial(self._socket_python, fileno, self.natt))
        for fileno, protocol in self.raw.receivers():
            kind = _Kind.RAW if protocol == ESP else None
            self._source(fileno, kind, partial(self._socket_python, fileno, self.raw))

    def _tick(self, now: float) -> None:
        self.line.tick(now)
        self.engine.tick(now)
        if overdue := self.early.expire(now):
            self._emit(self.engine.inbound(overdue, now))

    def _watch(self, fileno: int, work: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self.work[fileno] = work
        self.poll.register(fileno, events)

    def _source(self, fileno: int, kind: _Kind | None, work: Callable[[], None]) -> None:
        """Packets come from here; the native loop takes them if there is one and it knows the kind."""
        if self.table is None or kind is None:
            self._watch(fileno, work)
        else:
            self.table.add_source(fileno, kind)
            self.poll.register(fileno, select.EPOLLIN)

    def _watch_hints(self, fileno: int) -> None:
        self._watch(fileno, lambda: self._path_mtus(self.hints.read(fileno)))

    def _watch_errors(self, fileno: int) -> None:
        self._watch(fileno, lambda: self._raw_errors(fileno), 0)  # errors are reported always

    def _guarded(self, work: Callable[[], None]) -> None:
        """One turn; a bug of ours is told, and costs the packets of that turn."""
        try:
            work()
        except Exception as error:
            if self.complaints.take(clock.now()):  # a stranger may be able to repeat it
                text = "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]
                self._answer(channel.Broken(f"{type(error).__name__}: {error}"[:LONGEST_TRACEBACK], text))

    # Packets ---------------------------------------------------------------------------------------------

    def _device(self) -> None:
        frames = self.queue.read_batch(TURNS)
        if self.queue.gone:
            self._end()
        self._orders()
        self._emit(self.engine.frames(frames, clock.now()))

    def _socket_python(self, fileno: int, source: NattSockets | RawSockets) -> None:
        arrived = source.read_batch(fileno, TURNS)
        self._orders()
        self._open(arrived)
        self._path_mtus(self.raw.told())

    def _open(self, arrived: Sequence[Arrived]) -> None:
        """Open what is for an SA we have; what is for none may only have come before the order to add it."""
        now, ready = clock.now(), []
        for one in arrived:
            if self.engine.knows(one.spi):
                ready.append(one)
            else:
                ready += self.early.keep(one, now)
        self._emit(self.engine.inbound(ready, now))

    def _carry(self, table: Table, wait: float) -> None:
        """Let the native loop work, and do what it hands up."""
        for _ in range(TURNS):
            up = table.carry(self.poll.fileno(), wait, REPORT_SECONDS)
            if up is None:
                return
            self._orders()
            self._handed_up(*up)
            wait = 0.0

    def _handed_up(self, fileno: int, found: bytes | Packet | Datagram | None) -> None:
        if found is None:
            if fileno == self.queue.fileno():
                self._end()
            if fileno not in self.natt.filenos():
                self._raw_errors(fileno)
        elif isinstance(found, bytes):
            self._emit(self.engine.frames([found], clock.now()))
        elif len(found) == 2:
            self._emit(self.engine.admitted(*found, clock.now()))
        else:
            self._open([self._arrived(fileno, *found)])

    @staticmethod
    def _end() -> None:
        """Without the device there is nothing to do. At once, so that the channel does not close first: then
        the daemon would kill us, and hear of no reason."""
        os._exit(NO_DEVICE)

    def _arrived(
        self,
        fileno: int,
        data: bytes,
        source: bytes,
        port: int,
        local: bytes,
        traffic: int,
        header: bytes,
        udp: bool,
    ) -> Arrived:
        """A datagram that the loop handed up."""
        if udp:
            return self.natt.arrived(fileno, data, source, port, local, traffic)
        return Arrived(ESP, channel.address(source), channel.address(local), data, traffic, header)

    def _emit(self, batch: Batch) -> None:
        """Out of the engine, to the network and the host."""
        if batch.wire:
            self.natt.write_batch([one for one in batch.wire if one.path is not None])
            bare = [one for one in batch.wire if one.path is None]
            if bare:
                self.raw.write_batch(bare)
                self._path_mtus(self.raw.told())
        if batch.local:
            self.queue.write_batch(self._frames(batch.local))

    def _frames(self, packets: Sequence[bytes]) -> list[bytes]:
        return vnet.frames(packets, uso=self.order.segments_udp)

    def _raw_errors(self, fileno: int) -> None:
        self.raw.hear(fileno)
        self._path_mtus(self.raw.told())

    def _path_mtus(self, reports: Sequence[TooBig]) -> None:
        """What the network told about the size of packets."""
        now = clock.now()
        for one in reports:
            self.engine.path_mtu(one.destination, one.mtu, now, one.spi, one.ports)

    # The daemon ------------------------------------------------------------------------------------------

    def _orders(self) -> None:
        """Do what the daemon has said so far."""
        while (messages := self.line.read()) is not None:
            for message in messages:
                self._order(message)  # type: ignore[arg-type]
            self._emit(self.engine.released(clock.now()))

    def _order(self, message: channel.Order) -> None:
        engine = self.engine
        match message:
            case channel.Add():
                pair = channel.pair_of(message)
                self.slots[message.slot] = self._assigned(pair, message.slot)
                self.digests[message.slot] = message.digest
                with suppress(Unavailable):  # the daemon checked it
                    engine.install(pair)
                if waited := self.early.take(pair.inbound.spi):
                    self._emit(engine.inbound(waited, clock.now()))
            case channel.Update():
                pair = self.slots[message.slot]
                pair.owner, pair.standby = message.owner, message.standby
                if pair.outbound.state is not State.DEAD:
                    pair.inbound.state = pair.outbound.state = State(message.state)
                engine.update(pair)
            case channel.Move():
                pair = self.slots[message.slot]
                pair.outbound.mtu = message.mtu
                local, peer = channel.address(message.local), channel.address(message.peer)
                engine.moved(pair, local, peer, message.encapsulation)
            case channel.Remove():
                engine.remove(self.slots.pop(message.slot))
                del self.digests[message.slot]
                self._answer(channel.Removed(message.slot))
            case channel.Flows():
                engine.route(channel.flows_of(message))
            case channel.Taken(seconds):
                self.line.taken(seconds)
            case channel.End():
                self.line.end()

    def _assigned(self, pair: SaPair, slot: int) -> SaPair:
        self.accounts.slots[pair] = slot
        return pair

    def _legacy(self, will: Will) -> Legacy:
        """All there is, for a new daemon."""
        order = self.order
        sockets = len(order.raw), len(order.natt), len(order.hints)
        handover = channel.Handover(
            will.circumstances,
            will.number,
            will.count,
            order.segments_udp,
            sockets,
            len(will.kept),
            len(self.slots),
        )
        filenos = (order.ledger, order.queue, *order.raw, *order.natt, *order.hints, *will.kept)
        pairs = (
            channel.Held(
                channel.add(slot, pair, digest=self.digests[slot]), pair.outbound.state.value, pair.standby
            )
            for slot, pair in list(self.slots.items())
        )
        return handover, filenos, pairs

    def _notice(self, notice: Notice) -> None:
        if self.line.waiting < MOST_WAITING:  # else it notices again
            self._answer(channel.notice(notice))

    def _answer(self, message: channel.Answer) -> None:
        self.line.say(message)

    def _report(self, now: float) -> None:
        """Now and then, what came to nothing; and that we live."""
        if self.line.waiting:
            self.line.flush()
        if now < self.report_at:
            return
        self.line.alive()
        dropped = Counter(self.engine.counters)
        dropped.update(self.drops())
        dropped.update({f"raw: {reason}": number for reason, number in self.raw.counters.items()})
        dropped.update(self.natt.counters)
        dropped["device-refused"] += self.queue.refused
        found = dict(+dropped), self.engine.held
        if found != self.reported or now >= self.alive_at:
            self.reported, self.alive_at = found, now + channel.ALIVE_SECONDS
            self._answer(channel.Report(*found))
        self.report_at = now + REPORT_SECONDS
