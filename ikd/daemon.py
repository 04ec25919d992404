"""Shell. The daemon: everything put together, from files and sockets to the core, and taken apart again.

It owns the order of starting and stopping, signals, reload, and what systemd hears. What happens in between
is in `ikd.driver`. Whoever may ask it things is given to it (`Control`): it knows no requests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, suppress
from typing import Any, Final, Protocol, TextIO

from ikd import __version__, events, loading, network, systemd
from ikd.auth.credentials import Credentials
from ikd.driver import Driver
from ikd.endpoint import Endpoint
from ikd.keylog import KeyLog
from ikd.loading import Configuration, ConfigurationError
from ikd.logs import Log
from ikd.metrics import Metrics
from ikd.nic_plane import AdapterOptions, make_plane
from ikd.offload_file import save as save_ports
from ikd.outputs import Output
from ikd.plane import Plane
from ikd.publisher import Publisher
from ikd.readings import readings
from ikd.scraping import Scraping
from ikd.sieving import Sieving
from ikd.state_file import Parts, StateFile
from ikd.traffic import Traffic
from ikd.transport import Transport
from policy.engine import Changes, diff
from sadb.address import Address
from sadb.backend import Unavailable
from sadb.database import Database
from sadb.sa import SaPair

FAREWELL: Final = 2.0  # seconds for the peers to answer when the daemon stops, or is to be restarted
RESTART: Final = signal.SIGUSR1  # what systemd sends for a restart (RestartKillSignal=)
RESOLVE_EVERY: Final = 60.0
CERTIFICATES_EVERY: Final = 86400.0
SUSPENDED: Final = 1.0  # seconds by which two clocks differ that were not read at once
KEEP_EVERY: Final = 60.0  # seconds between two writings of what the next run goes on from
NETWORK_SETTLES: Final = 0.1  # seconds in which an address is followed by its routes
LAG_EVERY: Final = 0.5  # seconds between two looks at how late the loop is


class CannotStart(Exception):
    """The daemon cannot start; the text is for the administrator."""


class Control(Protocol):
    """Where administrators ask a daemon and steer it."""

    def claim(self, given: socket.socket | None) -> AbstractContextManager[socket.socket]:
        """Hold the control socket, which systemd may have given, so that there is one daemon at a place;
        raises `CannotStart` and `OSError`."""
        ...

    def serve(self, sock: socket.socket) -> AbstractAsyncContextManager[None]:
        """Answer on it."""
        ...


class Daemon:
    """One daemon on one configuration directory, made on a running loop; `control` makes where it is asked.
    `run` returns when it was stopped."""

    def __init__(
        self,
        configuration: Configuration,
        control: Callable[[Daemon], Control],
        stream: TextIO | None = None,
    ) -> None:
        settings = self.settings = configuration.settings
        self.configuration = configuration
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.publisher = Publisher(self.broken)
        self.log = Log(settings.log.level, settings.log.format, stream or sys.stderr, self.loop.call_later)
        self.metrics = Metrics(lambda: readings(self))
        for source in (self.log.writer, self.metrics.listener):
            self.publisher.add_source(source)
        self.keylog = KeyLog(lambda text: self.warn("exported keys", text))
        self.transport = Transport(
            settings.daemon.listen,
            (settings.ike.port, settings.ike.nat_port),
            self,
            interfaces=settings.daemon.interfaces,
            batch=settings.dataplane.batch,
        )
        self.sieving = Sieving(
            self.transport,
            self.publisher.publish,
            self.loop.call_later,
            lambda: self.settings.ike.first_messages,
        )
        self.publisher.add_source(self.sieving.listener)
        self.control_path = settings.directory / settings.daemon.control
        adapter = AdapterOptions(
            configuration.ports,
            self.control_path.parent / "ports",
            self._wished,
            lambda ports: save_ports(settings.directory, settings.directory / settings.daemon.state, ports),
        )
        self.plane: Plane = make_plane(
            settings.dataplane, self.transport, self._guarded, self.publisher.publish, adapter
        )
        self.database = Database(self.plane.backend, os.urandom, settings.dataplane.pairs)
        self.traffic = Traffic(self.plane.backend.usage, settings.metrics.peers)
        self.database.removing = self.traffic.end
        credentials = Credentials(configuration.material, time.time)
        self.endpoint = Endpoint(settings.ike, configuration.policy, credentials, os.urandom)
        self.state_file = StateFile(
            settings.directory / settings.daemon.state, lambda text: self.warn("state", text)
        )
        self._parts = Parts(self.metrics, self.traffic, self.endpoint, self.loop.time, time.time)
        self.plane.digest = lambda rule: self.endpoint.policy.digest(rule)
        self.driver: Driver = Driver(
            self.endpoint,
            self.database,
            self.plane,
            self.transport,
            self.keylog,
            self.publisher.publish,
            self.broken,
        )
        # what arrives goes straight to the driver (`transport.Receiver`)
        self.ike, self.esp = self.driver.ike, self.driver.esp
        self.trouble, self.recovered = self.driver.trouble, self.driver.recovered
        self.control = control(self)
        self._stopping = asyncio.Event()
        self._restarting = False
        self._reason = ""
        self._reloading = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling = False

    def _wished(self, rule: str) -> bool:
        """Whether a rule lets an adapter carry its SAs."""
        found = self.endpoint.policy.rule(rule)
        return found is None or found.offload

    def _guarded(self, where: str, call: Callable[[], object]) -> None:
        self.driver.guarded(where, call)

    # Life ------------------------------------------------------------------------------------------------

    async def run(self, *, signals: bool = True, ready: Callable[[], None] | None = None) -> None:
        """Serve until stopped; raises `CannotStart`. Nothing of ours is left afterwards."""
        async with AsyncExitStack() as stack:
            stack.callback(self.log.close)
            if signals:  # also to what comes while it starts: workers that are there would wait for an heir
                self._listen_to_signals(stack)
            try:
                async with self._reloading:
                    await self._start(stack)
            except (OSError, Unavailable) as error:
                if self.plane.inherited:  # the next start may be better
                    self.plane.leave()
                raise CannotStart(told(error)) from error
            self._started()
            if ready is not None:
                ready()
            await self._stopping.wait()
            systemd.notify("STOPPING=1", f"STATUS=stopping: {self._reason}")
            self.publisher.publish(events.Stopping(reason=self._reason))
            if self._restarting:
                await self._finish()
            else:
                await self._finish(lambda: self.endpoint.shutdown(self.loop.time()))
            await self._write_state()
            if self._restarting:
                self.plane.leave()

    def stop(self, reason: str) -> None:
        """Begin an orderly stop."""
        self._reason = self._reason or reason
        self._stopping.set()

    def leave(self, reason: str) -> None:
        """Stop for another daemon that will come at once, so that packets go on where they can and peers hear
        nothing."""
        if not self._stopping.is_set():
            self._restarting = self.plane.outlives
        self.stop(reason)

    async def _start(self, stack: AsyncExitStack) -> None:
        """In this order, so that a second daemon is refused before it touches anything."""
        given = systemd.sockets(systemd.passed())
        sock = stack.enter_context(self.control.claim(given.control))
        for undo in (self.keylog.close, self.driver.close, self._cancel):
            stack.callback(undo)
        if (state := self.state_file.read()) is not None:
            self._parts.go_on(state)
        places = await asyncio.to_thread(network.places)
        stack.callback(self.transport.close)
        stack.callback(self.plane.close)
        self.transport.open(self.loop, self.plane.claim(self.control_path, given.udp))
        self.plane.open(self.loop)
        self.plane.route(self.endpoint.policy.flows())
        if self.plane.inherited:  # at once: a peer that is told of an initial contact would drop these pairs
            self._take_over()
        if places:
            self.driver.network_changed(places)
        await stack.enter_async_context(self.control.serve(sock))
        if self.settings.metrics.listen is not None:
            scraping = Scraping(self.metrics.text, self.broken)
            await stack.enter_async_context(scraping.serve(self.settings.metrics.listen))

    def _started(self) -> None:
        self.plane.inherited = ()
        for warning in self.configuration.notes:
            self.warn("configuration", warning)
        for notice in self.plane.notices:
            self.warn("data plane", notice)
        place = self.settings.metrics.listen
        if place is not None and not place.address.is_loopback:
            self.warn("metrics", f"whoever reaches {place} may read them: metrics.listen is not loopback")
        rules = len(self.endpoint.policy.in_force)
        self.publisher.publish(events.Started(version=__version__, plane=self.plane.name, rules=rules))
        systemd.notify("READY=1", self._status())
        self._keep(self._follow_network())
        self._keep(self._resolve_again())
        self._keep(self._measure_lag())
        self._keep(self._watch_certificates())
        self._keep(self._keep_state())
        if (interval := systemd.watchdog()) is not None:
            self._keep(self._ping(interval))

    def _status(self) -> str:
        """What `systemctl status` shows."""
        return f"STATUS={events.count(len(self.endpoint.policy.in_force), 'rule')}, {self.plane.name}"

    def _take_over(self) -> None:
        """Go on with the pairs of the former run."""
        pairs, ended = self.driver.adopt(self.plane.inherited)
        for pair in self.database.pairs():
            self.traffic.adopt(pair)
        self.publisher.publish(events.TakenOver(pairs=pairs, ended=ended))

    async def _finish(self, last: Callable[[], Iterable[Output]] = tuple) -> None:
        """Begin nothing more but what is `last`, such as to delete everything at the peers, and give what is
        under way a moment."""
        gone = asyncio.Event()

        def settled() -> None:
            if self.endpoint.idle:
                gone.set()

        self.driver.negotiating = False
        self.driver.settled = settled
        self.driver.act("the farewell", last)
        with suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), FAREWELL)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _listen_to_signals(self, stack: AsyncExitStack) -> None:
        handlers: dict[signal.Signals, Callable[[], object]] = {
            signal.SIGTERM: lambda: self.stop("SIGTERM"),
            signal.SIGINT: lambda: self.stop("SIGINT"),
            RESTART: lambda: self.leave("restart"),
            signal.SIGHUP: lambda: self._keep(self._reload_quietly()),
        }
        for number, handler in handlers.items():
            self.loop.add_signal_handler(number, handler)
            stack.callback(self.loop.remove_signal_handler, number)

    async def _ping(self, interval: float) -> None:
        """Tell systemd that the loop turns."""
        while True:
            systemd.notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    async def _measure_lag(self) -> None:
        """How late the loop is with what is due, and whether the host was suspended: the loop's clock goes on
        then, the other one does not."""
        while True:
            due, awake = self.loop.time() + LAG_EVERY, time.monotonic()
            await asyncio.sleep(LAG_EVERY)
            late = self.loop.time() - due
            slept = late + LAG_EVERY - (time.monotonic() - awake)
            self.metrics.lag.observe(max(0.0, late - slept))
            if slept > SUSPENDED:
                self.publisher.publish(events.Resumed(seconds=round(slept)))

    async def _watch_certificates(self) -> None:
        """Tell of certificates that end, long before they do."""
        while True:
            self._tell_ends()
            await asyncio.sleep(CERTIFICATES_EVERY)

    def _tell_ends(self) -> None:
        now = time.time()
        for one in self.configuration.material.watched:
            if warning := one.warning(now):
                seconds = round(one.ends - now)
                self.publisher.publish(
                    events.CertificateExpires(
                        use=one.use, subject=one.title, seconds=seconds, warning=warning
                    )
                )

    def certificates(self) -> dict[tuple[str, str], float]:
        """Seconds until our own certificates end, and the first of those we trust; by use and subject."""
        now, watched = time.time(), self.configuration.material.watched
        first = sorted((one for one in watched if one.use == "trust"), key=lambda one: one.ends)[:1]
        own = [one for one in watched if one.use != "trust"]
        return {(one.use, one.title): one.ends - now for one in (*own, *first)}

    async def _keep_state(self) -> None:
        """Write it now and then."""
        while True:
            await asyncio.sleep(KEEP_EVERY)
            await self._write_state()

    async def _write_state(self) -> None:
        """From a thread, for a disk may be slow; what is written last is the latest."""
        async with self._writing:
            self.state_file.note(await asyncio.to_thread(self.state_file.write, self._parts.gathered()))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else; what it raises is told."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.broken("a task", error)

    # Reload ----------------------------------------------------------------------------------------------

    async def reload(self, *, dry_run: bool) -> tuple[Changes, Configuration, tuple[SaPair, ...]]:
        """Read everything anew and, unless `dry_run`, put it into force whole; raises `ConfigurationError`,
        and then nothing has changed. Also gives the pairs that this ends."""
        async with self._reloading:
            try:
                loaded = await asyncio.to_thread(loading.load, self.settings.directory)
                policy = await loading.resolved(loaded.policy, self.endpoint.policy)
                new = loaded.following(self.settings, policy)
                changes = diff(self.endpoint.policy, policy)
                ended = frozenset(changes.changed + changes.removed)
                touched = tuple(pair for pair in self.database.pairs() if pair.rule in ended)
                if not dry_run:
                    self._apply(new, changes)
            except ConfigurationError as error:
                if not dry_run:
                    self.publisher.publish(events.ReloadRefused(complaints=error.complaints))
                raise
            return changes, new, touched

    def _apply(self, new: Configuration, changes: Changes) -> None:
        """Put a configuration into force; the data plane first, because only it can refuse."""
        try:
            self.plane.route(new.policy.flows())
        except (OSError, Unavailable) as error:
            raise ConfigurationError((f"the data plane refuses the policy: {told(error)}",)) from error
        if new.settings.log.level != self.settings.log.level:  # else `ikctl log` stays in force
            self.log.levels = new.settings.log.level
            self.publisher.rewire()
        self.configuration, self.settings = new, new.settings
        credentials = Credentials(new.material, time.time, self.endpoint.env.credentials.challenges)
        self.driver.act(
            "the reload",
            lambda: self.endpoint.reload(
                new.policy, credentials, new.settings.ike, changes, self.loop.time()
            ),
        )
        self.publisher.publish(
            events.Reloaded(
                rules=len(new.policy.in_force),
                added=changes.added,
                changed=changes.changed,
                removed=changes.removed,
            )
        )
        for warning in new.notes:
            self.warn("configuration", warning)
        systemd.notify(self._status())
        self._tell_ends()

    async def _reload_quietly(self) -> None:
        """SIGHUP: who sent it cannot be answered; the log has it."""
        systemd.reloading()
        with suppress(ConfigurationError):
            await self.reload(dry_run=False)
        systemd.notify("READY=1")

    async def _resolve_again(self) -> None:
        """Look the policy's names up now and then, and follow those that have moved."""
        while True:
            await asyncio.sleep(RESOLVE_EVERY)
            async with self._reloading:
                before = self.endpoint.policy
                found = await loading.resolved(before, before)
                if changes := diff(before, found):
                    try:
                        self._apply(self.configuration.following(self.settings, found), changes)
                    except ConfigurationError as error:
                        self.warn("names", str(error))

    # Network ---------------------------------------------------------------------------------------------

    async def _follow_network(self) -> None:
        """Tell core and data plane of addresses and routes that come and go, of several at once."""
        known: frozenset[Address] = frozenset()
        try:
            watching = network.Watch(self.loop)
        except OSError as error:
            self.warn("network", f"changes of addresses and routes are not heard of: {error}")
            return
        with watching as watch:
            while True:
                try:
                    found = await asyncio.to_thread(network.places)
                    if found:  # else it may not be asked for
                        self._network_is(known, found)
                        known = frozenset(found)
                except Exception as error:  # the next change is to be heard of, too
                    self.broken("a change of the network", error)
                await watch.changed()
                await asyncio.sleep(NETWORK_SETTLES)
                watch.clear()

    def _network_is(self, before: frozenset[Address], places: Mapping[Address, int]) -> None:
        addresses = frozenset(places)
        if before and before != addresses:
            gained, lost = (
                tuple(map(str, sorted(one, key=str))) for one in (addresses - before, before - addresses)
            )
            self.publisher.publish(events.AddressesChanged(gained=gained, lost=lost))
        if before:
            try:
                self.plane.network_changed()
            except Unavailable as error:
                self.warn("data plane", str(error))
        self.driver.network_changed(places)

    # Telling ---------------------------------------------------------------------------------------------

    def warn(self, about: str, warning: str) -> None:
        """Something an administrator should know."""
        self.publisher.publish(events.Warned(about=about, warning=warning))

    def broken(self, where: str, error: BaseException) -> None:
        """A bug of ours: tell it and go on. One in telling it goes to standard error alone."""
        text = "".join(traceback.format_exception(error))
        if self._telling:
            print(text, file=sys.stderr)
            return
        self._telling = True
        try:
            what = f"{type(error).__name__}: {error}"
            self.publisher.publish(events.Broken(where=where, error=what, traceback=text))
        finally:
            self._telling = False


def told(error: BaseException) -> str:
    """An error that keeps the daemon from starting, with what to do about the usual ones."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {text}; the user whom ikd runs as must be able to write there"
    if isinstance(error, PermissionError):
        return (
            f"{text}; run it as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_NET_BIND_SERVICE; under "
            "systemd with ikd.socket, which opens the ports (systemctl status ikd.socket)"
        )
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"{text}; is another IKE daemon running on this host?"
    return text
