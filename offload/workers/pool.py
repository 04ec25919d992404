"""Shell. The workers, seen from the daemon: a `Backend` that is other processes.

A new pair is received on at once, and sent on from `flush`: when whatever else the same piece of work wants
has been done. Else a held packet might overtake the message that makes the peer install the pair.

Orders go through a socket pair each and are never waited for; what went through SAs is read from the ledger,
which all share. The daemon opens everything and keeps it open, so that a worker that dies takes nothing with
it: packets wait in their queues, the packet filter stays, and nothing leaves in the clear.

All workers are equal, and any of them may send on any SA. When one dies the others are ended, too: how far it
had counted, nobody can say, so no number of its SAs is used again. New workers receive on these SAs what is
newer than all that had come, hold what is to be sent, and the owner is told to replace every pair.

With a `Bequest` they outlive the daemon for a while (`offload.workers.line`), and what
`offload.workers.inheritance` has found of them serves on: they are no children of this process then, and
known by their pidfds alone."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from offload import channel
from offload.channel import (
    ALIVE_SECONDS,
    Acquired,
    Broken,
    Came,
    Carried,
    Expired,
    Garbled,
    Removed,
    Report,
    Unknown,
)
from offload.host.tun import Tun
from offload.ledger import Ledger
from offload.software import check
from offload.workers.inheritance import Estate, ended, place_of
from offload.workers.processes import Bequest, Kind, Process, spawn
from offload.workers.shares import Share
from sadb.address import Address
from sadb.backend import Notice, Unavailable
from sadb.sa import Expire, Flow, SaPair, State, Usage

RESTARTED: Final = "restart"  # why pairs are to be replaced after a worker died
SILENT_SECONDS: Final = 10 * ALIVE_SECONDS  # a worker that says nothing for this long is ended
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0  # seconds before workers that died soon are made again
NO_DEVICE: Final = "its TUN device was deleted"
LONG_LIFE: Final = 30.0  # seconds after which a death is no sequel of the one before
STOP_SECONDS: Final = 2.0
_BATCH: Final = 1 << 18


class Watcher(Protocol):
    """Who is told what happens to workers, and has what they need."""

    def device(self) -> Tun:
        """The TUN device for new workers, made anew when it was deleted; raises `Unavailable` or
        `OSError`."""
        ...

    def restarted(self, reason: str, pairs: int) -> None:
        """New workers serve, and all pairs are being replaced."""
        ...

    def broken(self, where: str, traceback: str) -> None:
        """A bug in a worker."""
        ...


class Steering(Protocol):
    """Who decides which pairs an adapter has."""

    def began(self) -> None:
        """There is a new worker, which has no adapter yet."""
        ...

    def installed(self, pair: SaPair) -> None:
        """Workers have a new pair."""
        ...

    def removed(self, pair: SaPair) -> None:
        """A pair is gone."""
        ...

    def came(self, pair: SaPair, inbound: bool, what: str) -> None:
        """See `offload.channel.Came`."""
        ...

    def carried(
        self,
        rows: Sequence[tuple[SaPair, int, int]],
        counters: Mapping[str, int],
        leases: Mapping[SaPair, tuple[int, int]],
    ) -> None:
        """Octets in and out of each pair that adapters had to do with, the driver's counters, and the next
        numbers of adapters with the ends of their leases."""
        ...


@dataclass(slots=True)
class _Held:
    """A pair with its slot, and the digest of its rule. `given` says that workers have had it, `told` that
    they may send on it."""

    pair: SaPair
    slot: int
    digest: str
    given: bool = False
    told: bool = False


def _restored(held: channel.Held) -> SaPair | None:
    """A pair that a worker has; None when it cannot be used or was never used. One that is not sent on any
    more is only to be replaced."""
    try:
        pair, state = channel.pair_of(held.pair), State(held.state)
        check(pair)
    except (LookupError, ValueError, Unavailable):
        return None
    pair.standby = held.standby
    pair.inbound.state = pair.outbound.state = State.DYING if state is State.DEAD else state
    return None if state is State.LARVAL else pair


class Workers:
    """All workers. Made with what they share; `open` starts them."""

    def __init__(self, slots: int, kind: Kind) -> None:
        self.notify: Callable[[Notice], None] = lambda notice: None
        self.watcher: Watcher | None = None
        self.steering: Steering | None = None
        self.link_mtu: Callable[[Address], int | None] = lambda destination: None
        self.digest: Callable[[str], str] = lambda rule: ""
        self._kind = kind
        self._tun: Tun | None = None
        self._ledger = Ledger(slots)
        self._next, self._free = 0, deque[int]()
        self._held: dict[SaPair, _Held] = {}
        self._by_slot: dict[int, SaPair] = {}
        self._changed: dict[SaPair, _Held] = {}  # to be used otherwise from `flush` on
        self._leaving: dict[int, set[Process]] = {}  # slots that workers have to let go of
        self._flows: tuple[Flow, ...] = ()
        self._shares: Sequence[Share] = ()
        self._bequest: Bequest | None = None
        self._processes: list[Process] = []
        self._past: Counter[str] = Counter()  # drops of workers that are gone
        self._pause = FIRST_PAUSE
        self._again: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # Life ------------------------------------------------------------------------------------------------

    def open(
        self,
        loop: asyncio.AbstractEventLoop,
        tun: Tun,
        shares: Sequence[Share],
        bequest: Bequest | None = None,
        estate: Estate | None = None,
    ) -> list[tuple[SaPair, str]]:
        """Start a worker for each share, which has as many queues; raises `OSError`. Those of an `estate` go
        on instead: the pairs that they have are returned, each with the digest of its rule, and those that
        the caller does not want are to be removed."""
        self._loop, self._tun, self._shares, self._bequest = loop, tun, shares, bequest
        found = []
        if estate is None:
            self._start()
        else:
            found = self._adopt(estate)
        self._watch_silence()
        return found

    def close(self) -> None:
        """End all workers; safe to repeat."""
        if self._loop is None:
            return
        if self._again is not None:
            self._again.cancel()
        self._end(STOP_SECONDS)
        if self._bequest is not None:
            for number in range(len(self._shares)):
                place_of(self._bequest.control, number).unlink(missing_ok=True)
        self._loop = None
        for held in self._held.values():
            self._leave(held)
        self._ledger.close()

    def leave(self) -> None:
        """Leave workers to the daemon that comes next; as if this one had died, but for what is on its way to
        them."""
        assert self._loop is not None
        for one in self._processes:
            self._forget(one)
            with suppress(OSError):
                one.channel.settimeout(STOP_SECONDS)
                one.channel.sendall(one.waiting)
            one.release()
        self._processes = []
        self._bequest = None
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes."""
        return tuple(one.pid for one in self._processes)

    # Backend ---------------------------------------------------------------------------------------------

    def install(self, pair: SaPair) -> None:
        """Give a pair to all workers; `Unavailable` when it cannot be used or there are too many."""
        if pair in self._held:
            return
        check(pair)
        pair.outbound.mtu = self.link_mtu(pair.outbound.destination)
        held = _Held(pair, self._slot(), self.digest(pair.rule))
        self._ledger.begin(held.slot, pair)
        self._enter(held)
        self._give(held)
        if self.steering is not None:
            self.steering.installed(pair)

    def update(self, pair: SaPair) -> None:
        """Its state, standby or owner is another one; workers hear of it from `flush`."""
        held = self._held.get(pair)
        if held is not None:
            self._changed[pair] = held

    def flush(self) -> None:
        """Let workers use pairs as they are now."""
        changed, self._changed = self._changed, {}
        for held in changed.values():
            if held.told or not held.pair.grace or self._loop is None:
                self._update(held)
            else:
                self._loop.call_later(held.pair.grace, self._update, held)
            held.told = True

    def _update(self, held: _Held) -> None:
        pair = held.pair
        if pair in self._held:
            state = pair.outbound.state.value
            self._send(channel.Update(held.slot, state, pair.standby, pair.owner))

    def remove(self, pair: SaPair) -> None:
        """Take a pair from all workers; its slot is free when they have let go of it."""
        held = self._held.pop(pair, None)
        self._changed.pop(pair, None)
        if held is None:
            return
        del self._by_slot[held.slot]
        if self.steering is not None:
            self.steering.removed(pair)
        self._leave(held)
        if self._processes and held.given:
            self._let_go(held.slot, self._processes)
        else:
            self._free.append(held.slot)

    def route(self, flows: tuple[Flow, ...]) -> None:
        """Replace all flows."""
        self._flows = flows
        self._send(channel.flows(flows))

    def moved(
        self, pair: SaPair, local: Address, peer: Address, encapsulation: tuple[int, int] | None
    ) -> None:
        """Send to the peer's new address from now on."""
        pair.move(local, peer, encapsulation)
        pair.outbound.mtu = self.link_mtu(peer)
        held = self._held.get(pair)
        if held is not None:
            self._send(channel.Move(held.slot, local.packed, peer.packed, encapsulation, pair.outbound.mtu))

    def usage(self, pair: SaPair) -> tuple[Usage, Usage]:
        """What went in and out so far."""
        held = self._held.get(pair)
        return self._usage(held) if held is not None else (pair.inbound.usage, pair.outbound.usage)

    # Adapter ---------------------------------------------------------------------------------------------

    def place(self, pair: SaPair, inbound: bool, outbound: bool, hard: bool) -> None:
        """Move directions of a pair into the adapter or out of it; the steering hears what came of it."""
        held = self._held.get(pair)
        if held is not None and held.given:
            self._send(channel.Place(held.slot, inbound, outbound, hard))

    def plug(self, message: bytes, filenos: Sequence[int]) -> None:
        """Give the worker an adapter (`offload.workers.nic_worker.Plugged`)."""
        for one in self._processes:
            if one.plugs is not None:
                with suppress(OSError):  # it is dead; its pidfd says so
                    socket.send_fds(one.plugs, [message], list(filenos), socket.MSG_DONTWAIT)

    # Observation -----------------------------------------------------------------------------------------

    @property
    def counters(self) -> Mapping[str, int]:
        """Packets that came to nothing, by reason, as last reported."""
        total = Counter(self._past)
        for one in self._processes:
            total.update(one.report.dropped)
        return total

    @property
    def held(self) -> int:
        """Packets that wait for a pair."""
        return sum(one.report.held for one in self._processes)

    @property
    def accounts(self) -> int:
        """Pairs that workers have, or have not let go of yet."""
        return self._next - len(self._free)

    # Inside ----------------------------------------------------------------------------------------------

    def _slot(self) -> int:
        if self._free:
            return self._free.popleft()
        if self._next >= len(self._ledger):
            raise Unavailable(f"the data plane holds its limit of {len(self._ledger)} pairs")
        self._next += 1
        return self._next - 1

    def _usage(self, held: _Held) -> tuple[Usage, Usage]:
        return self._ledger.usage(held.slot, True), self._ledger.usage(held.slot, False)

    def _give(self, held: _Held) -> None:
        if self._processes:
            held.given = True
            self._send(channel.add(held.slot, held.pair, digest=held.digest))
            self._changed[held.pair] = held

    def _send(self, message: channel.Order, to: Sequence[Process] | None = None) -> None:
        data = channel.encoded(message)
        for one in self._processes if to is None else to:
            one.waiting += data
            self._flush(one)

    def _flush(self, one: Process) -> None:
        assert self._loop is not None
        try:
            while one.waiting:
                channel.forget(one.waiting, one.channel.send(one.waiting))
        except BlockingIOError:
            self._loop.add_writer(one.channel, self._flush, one)
            return
        except OSError:  # it is dead; its pidfd says so
            one.waiting.clear()
        self._loop.remove_writer(one.channel)

    # Processes -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """New workers, with all that there is."""
        assert self._loop is not None
        self._again = None
        assert self._tun is not None
        now, ledger = self._loop.time(), self._ledger.fileno
        for number in range(len(self._shares)):  # one by one: should the next fail, these are to be ended
            made = spawn(self._kind, number, self._shares, self._tun, ledger, self._bequest, now)
            self._processes.append(made)
        self._send(channel.flows(self._flows))
        for held in self._held.values():
            if held.given:
                highest = self._ledger.number(held.slot, True)
                self._send(channel.add(held.slot, held.pair, highest, self._usage(held), held.digest))
            else:
                self._give(held)
        self._listen()
        if self.steering is not None:
            self.steering.began()

    def _listen(self) -> None:
        assert self._loop is not None
        for one in self._processes:
            self._loop.add_reader(one.channel, self._hear, one)
            self._loop.add_reader(one.pidfd, self._died, one)

    def _adopt(self, estate: Estate) -> list[tuple[SaPair, str]]:
        """Go on with the workers of a former daemon. A pair that they do not agree on is removed: the order
        about it had not come to all of them."""
        assert self._loop is not None
        now = self._loop.time()
        ledgers = [one.ledger for one in estate.orphans]
        ledger = Ledger(fileno=ledgers.pop(0))
        self._ledger.close()
        self._ledger = ledger
        for fileno in ledgers:
            os.close(fileno)
        self._processes = [
            Process(one.pid, one.pidfd, one.channel, now, decoder=one.decoder) for one in estate.orphans
        ]
        assert self._bequest is not None
        self._send(channel.Taken(self._bequest.seconds))
        found = []
        for slot, held, agreed in estate.pairs():
            self._next = max(self._next, slot + 1)
            pair = _restored(held) if agreed else None
            if pair is not None:
                self._enter(_Held(pair, slot, held.pair.digest, given=True, told=True))
                self._changed[pair] = self._held[pair]
                found.append((pair, held.pair.digest))
            else:
                both = zip(self._processes, estate.orphans, strict=True)
                self._let_go(slot, [process for process, orphan in both if slot in orphan.pairs])
        used = {*self._by_slot, *self._leaving}
        self._free.extend(slot for slot in range(self._next) if slot not in used)
        self._listen()
        for process, orphan in zip(self._processes, estate.orphans, strict=True):
            self._take(process, orphan.said)
        return found

    def _enter(self, held: _Held) -> None:
        """The pair counts what workers count from now on."""
        pair, account = held.pair, self._ledger.account
        self._held[pair] = held
        self._by_slot[held.slot] = pair
        pair.watch = self.update
        pair.inbound.usage, pair.outbound.usage = account(held.slot, True), account(held.slot, False)

    def _leave(self, held: _Held) -> None:
        """The pair keeps what it has come to."""
        pair = held.pair
        pair.watch = None
        pair.inbound.usage, pair.outbound.usage = self._usage(held)

    def _let_go(self, slot: int, processes: Sequence[Process]) -> None:
        """Have workers forget a slot, which is free when they have."""
        self._leaving[slot] = set(processes)
        self._send(channel.Remove(slot), processes)

    def _hear(self, one: Process) -> None:
        """What a worker says. One that speaks nonsense is ended: it may be somebody else's by now."""
        assert self._loop is not None
        try:
            data = one.channel.recv(_BATCH)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(one.channel)
            one.kill()
            return
        one.heard = time.monotonic()
        self._take(one, one.decoder.feed(data))

    def _take(self, one: Process, messages: Iterable[object]) -> None:
        assert self._loop is not None
        try:
            for message in messages:
                self._answer(one, message)
        except (Garbled, ValueError):
            self._loop.remove_reader(one.channel)
            one.kill()

    def _answer(self, one: Process, message: object) -> None:
        match message:
            case Report():
                one.report = message
            case Removed(slot):
                leaving = self._leaving.get(slot, set())
                leaving.discard(one)
                if slot in self._leaving and not leaving:
                    del self._leaving[slot]
                    self._free.append(slot)
            case Acquired() | Expired() | Unknown():
                self.notify(channel.notice_of(message))
            case Came(slot, inbound, what):
                pair = self._by_slot.get(slot)
                if self.steering is not None and pair is not None:
                    self.steering.came(pair, inbound, what)
            case Carried(rows, counters, leases):
                found = [
                    (pair, row[1], row[3]) for row in rows if (pair := self._by_slot.get(row[0])) is not None
                ]
                if self.steering is not None:
                    granted = {
                        pair: (first, end)
                        for slot, first, end in leases
                        if (pair := self._by_slot.get(slot)) is not None
                    }
                    self.steering.carried(found, counters, granted)
            case Broken(where, text):
                if self.watcher is not None:
                    self.watcher.broken(where, text)

    def _died(self, one: Process) -> None:
        """A worker is gone: end the others, make new ones, and have every pair replaced."""
        assert self._loop is not None
        assert self._tun is not None
        reason = one.status() if self._tun.there else NO_DEVICE
        now = self._loop.time()
        self._pause = FIRST_PAUSE if now - one.began > LONG_LIFE else self._pause
        self._end(0.0)
        # nobody holds anything any more
        self._free.extend(self._leaving)
        self._leaving.clear()
        for held in self._held.values():
            self._ledger.unlock(held.slot)
        self._again = self._loop.call_later(self._pause, self._restart, reason)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _restart(self, reason: str) -> None:
        assert self._loop is not None
        lost = [held.pair for held in self._held.values() if held.given]
        try:
            if self.watcher is not None:
                self._tun = self.watcher.device()
            self._start()
        except (OSError, Unavailable):
            self._end(0.0)
            self._again = self._loop.call_later(self._pause, self._restart, reason)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return
        if self.watcher is not None:
            self.watcher.restarted(reason, len(lost))
        for pair in lost:
            self.notify(Expire(pair.inbound.spi, True, False, RESTARTED, pair.owner))

    def _end(self, patience: float) -> None:
        """Tell workers to end; those that do not within `patience` seconds are killed."""
        deadline = time.monotonic() + patience
        if patience:
            self._send(channel.End())
        for one in self._processes:
            self._forget(one)
            if not patience:
                one.kill()
        for one in self._processes:
            with suppress(OSError):  # it is dead, or hangs
                one.channel.settimeout(max(0.01, deadline - time.monotonic()))
                one.channel.sendall(one.waiting)
            if not ended(one.pidfd, deadline - time.monotonic()):
                one.kill()
                ended(one.pidfd, STOP_SECONDS)
            if one.child is not None:
                one.child.wait()
            one.release()
        self._processes = []

    def _forget(self, one: Process) -> None:
        """Hear no more of a worker, and talk to it no more."""
        assert self._loop is not None
        self._loop.remove_reader(one.pidfd)
        self._loop.remove_reader(one.channel)
        self._loop.remove_writer(one.channel)
        self._past.update(one.report.dropped)

    def _watch_silence(self) -> None:
        """End workers that hang; `_died` follows."""
        if self._loop is None:
            return
        for one in self._processes:
            if time.monotonic() - one.heard > SILENT_SECONDS:
                one.kill()
        self._loop.call_later(ALIVE_SECONDS, self._watch_silence)
