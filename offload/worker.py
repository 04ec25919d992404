"""Shell. A worker of the data plane: a process of its own that carries packets and knows nothing of keys'
origins.

    python -m offload.worker ORDER      started by `offload.workers`, with descriptors it inherits

It reads its queue of the TUN device, its raw sockets and its UDP sockets, and does what the daemon says
through the channel: an order that was given before a packet came is carried out before the packet is looked
at. With the native loop only what that hands up reaches Python. It has no rights: everything it needs is open
when it begins, and it ends when the daemon does."""

from __future__ import annotations

import os
import select
import socket
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from offload import channel, rights, vnet
from offload.accounts import LedgerAccounts, NativeAccounts
from offload.hints import Hints
from offload.ledger import Ledger
from offload.meter import Bucket
from offload.natt import NattSockets
from offload.outer import Arrived
from offload.raw import ESP, RawSockets, TooBig
from offload.software import Batch, SoftwareEngine
from offload.tun import Queue
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
NO_DEVICE: Final = (
    72  # exit status of a worker whose TUN device was deleted: only the daemon can make another
)


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
        self.channel = socket.socket(fileno=order.channel)
        self.channel.setblocking(False)
        self.decoder = channel.Decoder(channel.Order, channel.LONGEST_ORDER)
        self.complaints = Bucket(1.0, 5.0)
        self.waiting = bytearray()
        self.ledger = Ledger(fileno=order.ledger)
        self.queue = Queue(order.queue)
        self.raw = RawSockets(socket.socket(fileno=one) for one in order.raw)
        self.natt = NattSockets(socket.socket(fileno=one) for one in order.natt)
        self.hints = Hints(socket.socket(fileno=one) for one in order.hints)
        self.segments_udp = order.segments_udp
        self.slots: dict[int, SaPair] = {}
        self.early = Early()
        self.reported: tuple[dict[str, int], int] = {}, 0
        self.report_at = self.alive_at = 0.0
        self.accounts = self._accounts(order.engine)
        self.engine = self._engine(order)
        self.engine.notify = self._notice
        self.poll = select.epoll()
        self.work: dict[int, Callable[[], None]] = {}

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
        """Until the daemon closes the channel."""
        self._watch(self.channel.fileno(), self._orders)
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
            for fileno, _ in sorted(ready, key=lambda one: one[0] != self.channel.fileno()):
                if fileno in self.work:  # else the native loop's, or what was done before has ended it
                    self._guarded(self.work[fileno])
            now = clock.now()
            self._guarded(partial(self._tick, now))
            self._report(now)

    def _deadlines(self) -> Sequence[float | None]:
        return self.engine.deadline(), self.early.deadline(), self.alive_at

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
        return vnet.frames(packets, uso=self.segments_udp)

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
        while True:
            try:
                data = self.channel.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise SystemExit(0)
            for message in self.decoder.feed(data):
                self._order(message)  # type: ignore[arg-type]
            self._emit(self.engine.released(clock.now()))

    def _order(self, message: channel.Order) -> None:
        engine = self.engine
        match message:
            case channel.Add():
                pair = channel.pair_of(message)
                self.slots[message.slot] = self._assigned(pair, message.slot)
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
                self._answer(channel.Removed(message.slot))
            case channel.Flows():
                engine.route(channel.flows_of(message))

    def _assigned(self, pair: SaPair, slot: int) -> SaPair:
        self.accounts.slots[pair] = slot
        return pair

    def _notice(self, notice: Notice) -> None:
        if len(self.waiting) < MOST_WAITING:  # else it notices again
            self._answer(channel.notice(notice))

    def _answer(self, message: channel.Answer) -> None:
        """Tell the daemon; what it does not take now waits."""
        self.waiting += channel.encoded(message)
        self._flush()

    def _flush(self) -> None:
        with suppress(OSError):  # it is busy, or gone, which `_orders` finds
            while self.waiting:
                del self.waiting[: self.channel.send(self.waiting)]
        mask = select.EPOLLIN | (select.EPOLLOUT if self.waiting else 0)
        self.poll.modify(self.channel.fileno(), mask)

    def _report(self, now: float) -> None:
        """Now and then, what came to nothing; and that we live."""
        if self.waiting:
            self._flush()
        if now < self.report_at:
            return
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


def main(arguments: Sequence[str]) -> None:
    """Carry packets as ordered."""
    rights.ignore_signals()
    order = msgspec.json.decode(arguments[0], type=Order)
    kind = Worker
    if order.plugs >= 0:
        from offload.nic_worker import NicWorker

        kind = NicWorker
    worker = kind(order)
    rights.give_up()
    worker.run()


if __name__ == "__main__":
    main(sys.argv[1:])
