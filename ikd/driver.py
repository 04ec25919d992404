"""Shell. Drives the protocol core: what comes in leads to a call of it, and what it wants done is done.

Outputs are carried out in their order until nothing is left; questions are answered at once, except for those
that may wait for a KDC, which are answered from a thread. What the data plane notices in the middle of a call
waits until that call is over. There is one timer for all deadlines. An exception in any of this is a bug of
ours: it is told, and everything else goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ikd import events
from ikd.auth import Authenticate
from ikd.auth.runner import Runner
from ikd.endpoint import Endpoint
from ikd.events import EVENTS, Event
from ikd.exchange import Question
from ikd.keylog import KeyLog
from ikd.outputs import (
    AllocateSpi,
    Ask,
    Give,
    Inherit,
    Install,
    Keys,
    Move,
    Output,
    Release,
    Remove,
    Renew,
    Transmit,
    Ways,
)
from ikd.paths import NoPath, path_for
from ikd.plane import Plane
from ikd.transport import Transport
from policy.rules import Rule
from sadb.address import Address, Path, SocketAddress
from sadb.backend import Notice, Unavailable
from sadb.database import Database
from sadb.sa import Acquire, Expire, SaPair, UnknownSpi

MOST_NOTICES: Final = 4096
SHORTEST_SLEEP: Final = 0.001  # a deadline that does not go away must not take the whole processor

Handler = Callable[[Any], list[Output] | None]


class Driver:
    """Core, database and data plane as one. `settled` runs whenever a piece of work is over."""

    def __init__(
        self,
        endpoint: Endpoint,
        database: Database,
        plane: Plane,
        transport: Transport,
        keylog: KeyLog,
        publish: Callable[[Event], None],
        broken: Callable[[str, Exception], None],
    ) -> None:
        self.endpoint = endpoint
        self.database = database
        self.plane = plane
        self.transport = transport
        self.keylogs = [keylog]  # and those of captures
        self.publish = publish
        self.broken = broken
        self.negotiating = True
        self.settled: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._notices: deque[Notice] = deque()
        self._settling = False  # it will be settled before the loop sleeps
        self._timer: asyncio.TimerHandle | None = None
        self._waking: float | None = None
        self._handlers = self._table()
        self._questions: dict[type[Question[Any]], Callable[[Any], object]] = {
            AllocateSpi: lambda question: database.allocate_spi(self._clock(), question.wanted),
            Install: self._install,
            Authenticate: lambda question: question.side.step(question.token),
            Ways: lambda question: self._ways(question.peers),
        }
        self.runner = Runner(self._loop)
        plane.backend.notify = self.notice

    def close(self) -> None:
        """No more deadlines, and no answers."""
        self.negotiating = False
        self.runner.close()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def queues(self) -> dict[str, tuple[int, int]]:
        """What waits, with how many entries of how many at most."""
        return {
            "notices": (len(self._notices), MOST_NOTICES),
            "authentications": (self.runner.busy, self.runner.most),
        }

    # What the core wants done ----------------------------------------------------------------------------

    def _table(self) -> dict[type[Any], Handler]:
        """Who carries out which output."""
        table: dict[type[Any], Handler] = dict.fromkeys(EVENTS.values(), self.publish)
        return table | {
            Transmit: self._transmit,
            Ask: self._answer,
            Release: lambda output: self.database.release(output.spi),
            Remove: lambda output: self.database.remove(output.pair),
            Inherit: lambda output: self.database.inherit(output.former, output.owner),
            Give: lambda output: self.database.give(output.pair, output.owner),
            Move: self._move,
            Renew: self._renew,
            Keys: self._export,
        }

    def perform(self, outputs: Iterable[Output]) -> None:
        """Carry out outputs in their order; those that follow from an answer come right behind it."""
        queue = deque(outputs)
        handlers = self._handlers
        while queue:
            output = queue.popleft()
            try:
                more = handlers[type(output)](output)
            except Unavailable as error:
                self.publish(events.Warned(about="data plane", warning=str(error)))
            except Exception as error:
                self.broken(type(output).__name__, error)
            else:
                if more:
                    queue.extendleft(reversed(more))

    def _transmit(self, output: Transmit) -> None:
        self.transport.send(output.data, output.path)

    def _answer(self, output: Ask) -> list[Output]:
        """Answer a question, at once if possible; what goes wrong is an answer, too."""
        value: object
        try:
            if isinstance(output.question, Authenticate) and getattr(output.question.side, "blocking", False):
                self._answer_later(output.ticket, output.question)
                return []
            value = self._questions[type(output.question)](output.question)
        except Exception as error:
            value = error
        return self.endpoint.answer(output.ticket, value, self._clock())

    def _answer_later(self, ticket: int, question: Authenticate) -> None:
        """From a thread; raises `Declined` when too many wait already."""

        def done(value: object) -> None:
            self.act("an answer", lambda: self.endpoint.answer(ticket, value, self._clock()))

        self.runner.run(lambda: question.side.step(question.token), done)

    def _install(self, question: Install) -> None:
        self.database.install(question.pair, self._clock(), question.replaces)
        for one in self.keylogs:
            one.child(question.pair)

    def _move(self, output: Move) -> None:
        """The addresses and ports of a pair are those of the IKE SA now."""
        local, peer = output.path.local, output.path.peer
        ports = (local.port, peer.port) if output.encapsulated else None
        self.plane.backend.moved(output.pair, local.address, peer.address, ports)

    def _renew(self, output: Renew) -> list[Output]:
        """Negotiate for a rule anew, if it is for us to begin: a rule without a remote end only answers."""
        rule, peer = self.endpoint.policy.rule(output.rule), output.peer
        only_answers = rule is not None and rule.tunnel is not None and rule.tunnel.remote is None
        local = self._way(peer)
        if rule is None or not rule.enabled or only_answers or local is None or not self.negotiating:
            return []
        port = self.transport.port
        path = Path(SocketAddress(local, port), SocketAddress(peer, port))
        return self.endpoint.initiate(rule, path, self._clock())

    def _way(self, peer: Address) -> Address | None:
        """From which of our addresses to speak to a peer, None without a route or a socket for it."""
        local = self.transport.source_for(peer)
        return local if local is not None and self.transport.listens_on(local) else None

    def _ways(self, peers: Iterable[Address]) -> dict[Address, Address]:
        return {peer: local for peer in peers if (local := self._way(peer)) is not None}

    def _export(self, output: Keys) -> None:
        for one in self.keylogs:
            one.ike(output)

    # What comes in ---------------------------------------------------------------------------------------

    def act(self, where: str, call: Callable[[], Iterable[Output]]) -> None:
        """One call of the core with all that follows from it."""
        self.guarded(where, lambda: self.perform(call()))

    def guarded(self, where: str, call: Callable[[], object]) -> None:
        """One piece of work with all that follows from it."""
        try:
            call()
            self._settle()
        except Exception as error:
            self.broken(where, error)

    def ike(self, data: bytes, path: Path) -> None:
        """A datagram came (`transport.Receiver`); they come in batches, which are settled once."""
        try:
            self.perform(self.endpoint.receive(data, path, self._clock()))
        except Exception as error:
            self.broken("receiving", error)
        self._settle_soon()

    def esp(self, datagrams: Sequence[tuple[bytes, Path]]) -> None:
        """ESP in UDP came (`transport.Receiver`)."""
        self.guarded("ESP in UDP", lambda: self.plane.arrived(datagrams))

    def trouble(self, what: str, path: Path | None) -> None:
        """A datagram could not be sent or received (`transport.Receiver`)."""
        self.publish(events.TransportTrouble(what=what, path=path))

    def recovered(self, path: Path) -> None:
        """Datagrams can be sent again (`transport.Receiver`)."""
        self.publish(events.TransportRecovered(path=path))

    def network_changed(self, places: Mapping[Address, int]) -> None:
        """This host has other addresses, on these interfaces, or other routes."""
        transport = self.transport
        transport.network_changed(places)
        others = self.endpoint.own_addresses() - places.keys()  # no interface has to have them
        addresses = frozenset(places) | {one for one in others if transport.is_local(one)}
        ways = {peer: self._way(peer) for peer in self.endpoint.destinations()}
        now = self._clock()
        self.act("a change of the network", lambda: self.endpoint.network_changed(addresses, ways, now))

    def notice(self, notice: Notice) -> None:
        """The data plane noticed something; it may be in the middle of a batch, so later."""
        if len(self._notices) >= MOST_NOTICES and not isinstance(notice, Expire):
            return  # it notices again; of a pair that has to be replaced it tells once
        self._notices.append(notice)
        self._settle_soon()

    def initiate(self, rule: Rule, acquire: Acquire | None = None, *, childless: bool = False) -> None:
        """Begin to negotiate for a rule; raises `NoPath`."""
        path = path_for(rule, acquire, self.transport.port, self.transport.source_for)
        now = self._clock()
        self.perform(self.endpoint.initiate(rule, path, now, acquire, childless=childless))

    def adopt(self, inherited: Iterable[tuple[SaPair, str]]) -> tuple[int, int]:
        """Go on with pairs that the data plane has from a former run, each with the digest of its rule, if
        the rule means the same now; how many, and how many not."""
        policy, kept, refused = self.endpoint.policy, [], 0
        for pair, digest in inherited:
            pair.owner = 0
            try:
                if not digest or digest != policy.digest(pair.rule):
                    raise Unavailable("its rule has changed")
                self.database.adopt(pair)
            except Unavailable:
                refused += 1
                self.plane.backend.remove(pair)
            else:
                kept.append(pair)
        self.perform(self.endpoint.take_over(kept, self._clock()))
        self._settle_soon()
        return len(kept), refused

    def _settle_soon(self) -> None:
        if not self._settling:
            self._settling = True
            self._loop.call_soon(self.guarded, "what followed", lambda: None)

    def _settle(self) -> None:
        """After every piece of work: what was noticed, packets that were set free, the next deadline."""
        self._settling = False
        while self._notices:
            notice = self._notices.popleft()
            match notice:
                case Acquire():
                    self._acquired(notice)
                case Expire():
                    self._expired(self.database.noticed(notice))
                case UnknownSpi():
                    spi = f"{notice.spi:08x}"
                    self.publish(events.SpiUnknown(spi=spi, source=str(notice.source)))
                    self.perform(self.endpoint.unknown_spi(notice, self._clock()))
        self.plane.flush()
        self._set_timer()
        self.settled()

    def _acquired(self, acquire: Acquire) -> None:
        """The data plane holds a packet: negotiate."""
        rule = self.endpoint.policy.rule(acquire.rule)
        if rule is None or not rule.enabled or not self.negotiating:
            return
        source, destination = str(acquire.source), str(acquire.destination)
        self.publish(events.PacketAcquired(rule=rule.name, source=source, destination=destination))
        try:
            self.initiate(rule, acquire)
        except NoPath as error:
            self.publish(error.event(rule))

    def _expired(self, expire: Expire | None) -> None:
        """An SA met a limit, and the database agrees that this is news."""
        if expire is not None:
            self.perform(self.endpoint.expired(expire, self._clock()))

    # Time ------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """One timer for everybody's deadline. One that fires too early costs less than moving it with every
        message, so it only ever moves forward."""
        deadlines = (self.endpoint.deadline(), self.database.deadline(), self.plane.deadline())
        soonest = min((one for one in deadlines if one is not None), default=None)
        if soonest is None or (self._waking is not None and self._waking <= soonest):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._waking = max(soonest, self._clock() + SHORTEST_SLEEP)
        self._timer = self._loop.call_at(self._waking, self._tick)

    def _tick(self) -> None:
        self._timer = self._waking = None
        now = self._clock()
        for work in (self._deadlines, self._lifetimes, self.plane.tick):
            try:
                work(now)
            except Exception as error:
                self.broken("a deadline", error)
        self.guarded("a deadline", lambda: None)

    def _deadlines(self, now: float) -> None:
        self.perform(self.endpoint.tick(now))

    def _lifetimes(self, now: float) -> None:
        for expire in self.database.tick(now):
            self.perform(self.endpoint.expired(expire, now))
