"""Shell. The adapter's process, seen from the daemon that manages it: begins it, attaches ports, notices when
it is gone and begins another one, to which every port is attached anew."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from offload.channel import ALIVE_SECONDS
from offload.nic.management import (
    LONGEST,
    Attach,
    Command,
    Detach,
    Fault,
    Gone,
    Order,
    Quota,
    Reset,
    SetLink,
    Status,
    encode,
    news_of,
)
from offload.nic.rings import Plug, wire

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0  # seconds before an adapter that died soon is begun again
LONG_LIFE: Final = 30.0
SILENT_SECONDS: Final = 10 * ALIVE_SECONDS
STOP_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 1.0  # before a port that fell off is attached again


@dataclass(frozen=True, slots=True)
class Plugged:
    """What a port's owner needs: a plug, and a descriptor for requests. Whoever takes it closes it.
    `packet_mode`: SAs are to be placed in it; `resend_lost`: what it loses is to leave again."""

    plug: Plug
    control: int
    profile: str
    packet_mode: bool
    resend_lost: bool

    def filenos(self) -> tuple[int, ...]:
        """All descriptors."""
        return *self.plug.filenos(), self.control

    def close(self) -> None:
        """When another process has them."""
        for one in self.filenos():
            os.close(one)


@dataclass(slots=True)
class _Attached:
    """A port, and what it takes to attach it again."""

    raw: Sequence[int]
    natt: Sequence[int]
    deliver: Callable[[Plugged], None]


class AdapterProcess:
    """`on_status(status)` hears from it; `on_gone(reason)` that it is gone, before another one is begun.
    Ports that fell off, for something broke on their side, are attached anew, too."""

    def __init__(self, profile: str, *, packet_mode: bool, resend_lost: bool) -> None:
        self.profile, self.packet_mode, self.resend_lost = profile, packet_mode, resend_lost
        self.on_status: Callable[[Status], None] = lambda status: None
        self.on_gone: Callable[[str], None] = lambda reason: None
        self._ports: dict[str, _Attached] = {}
        self._quotas: dict[str, Quota] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._manager: socket.socket | None = None
        self._began = 0.0
        self._heard = 0.0  # monotonic: in a suspended host nobody says anything
        self._pause = FIRST_PAUSE
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return self._process.pid if self._process is not None else None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin it; raises `OSError`."""
        self._loop = loop
        self._start()
        self._watch_silence()

    def close(self) -> None:
        """End it; safe to repeat."""
        for timer in self._timers:
            timer.cancel()
        self._end(STOP_SECONDS)
        self._loop = None

    # Ports -----------------------------------------------------------------------------------------------

    def attach(
        self,
        port: str,
        raw: Sequence[int],
        natt: Sequence[int],
        deliver: Callable[[Plugged], None],
    ) -> None:
        """Attach a port with its sockets, whose descriptors stay the caller's and open; `deliver` gets what
        its owner needs, now and whenever there is a new adapter."""
        self._ports[port] = _Attached(raw, natt, deliver)
        self._attach(port)

    def detach(self, port: str) -> None:
        """Forget a port."""
        if self._ports.pop(port, None) is not None:
            self._send(Detach(port))

    def allow(self, quota: Quota) -> None:
        """What a port may have from now on, whether it is attached or not."""
        if self._quotas.get(quota.port) != quota:
            self._quotas[quota.port] = quota
            self._send(quota)

    def command(self, command: SetLink | Reset | Fault) -> None:
        """Have it do something."""
        self._send(command)

    def _attach(self, name: str) -> None:
        if self._manager is None:
            return
        port = self._ports[name]
        with ExitStack() as stack:
            host, adapter = wire()
            stack.callback(adapter.close)
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            message = Attach(name, host.slots, host.room, len(port.raw), len(port.natt))
            self._send(message, [*adapter.filenos(), theirs.fileno(), *port.raw, *port.natt])
        port.deliver(Plugged(host, ours.detach(), self.profile, self.packet_mode, self.resend_lost))

    # The process -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        assert self._loop is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = Order(self.profile, theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "offload.nic.process", msgspec.json.encode(order).decode()],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._manager = ours
        self._began, self._heard = self._loop.time(), time.monotonic()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._died)
        self._loop.add_reader(ours, self._hear)
        for quota in self._quotas.values():
            self._send(quota)
        for name in self._ports:
            self._attach(name)

    def _send(self, command: Command, filenos: Sequence[int] = ()) -> None:
        """A command is small and the adapter quick; one that does not listen is ended."""
        if self._manager is None or self._process is None:
            return
        try:
            socket.send_fds(self._manager, [encode(command)], list(filenos), socket.MSG_DONTWAIT)
        except OSError:
            self._process.kill()

    def _hear(self) -> None:
        assert self._loop is not None
        assert self._manager is not None
        data = b""
        with suppress(OSError):
            data = self._manager.recv(LONGEST, socket.MSG_DONTWAIT)
        try:
            news = news_of(data) if data else None
        except msgspec.DecodeError:
            news = None
        if news is None:  # it is gone, or somebody else's by now
            self._loop.remove_reader(self._manager)
            if self._process is not None:
                self._process.kill()
            return
        self._heard = time.monotonic()
        if isinstance(news, Status):
            self.on_status(news)
        elif isinstance(news, Gone) and (port := self._ports.get(news.port)) is not None:
            self._later(AGAIN_SECONDS, lambda: self._attach_again(news.port, port))

    def _attach_again(self, name: str, was: _Attached) -> None:
        """A port that fell off, unless its owner has brought others sockets since, or is gone."""
        if self._ports.get(name) is was:
            self._attach(name)

    def _died(self) -> None:
        assert self._loop is not None
        assert self._process is not None
        status = self._process.wait()
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        now = self._loop.time()
        self._pause = FIRST_PAUSE if now - self._began > LONG_LIFE else self._pause
        self._end(0.0)
        self.on_gone(reason)
        self._later(self._pause, self._start)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _end(self, patience: float) -> None:
        if self._process is None or self._loop is None or self._manager is None:
            return
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._manager)
        self._manager.close()
        try:
            self._process.wait(patience or None) if patience else self._process.kill()
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        os.close(self._pidfd)
        self._process = self._manager = None

    def _watch_silence(self) -> None:
        if self._loop is None:
            return
        if self._process is not None and time.monotonic() - self._heard > SILENT_SECONDS:
            self._process.kill()
        self._later(ALIVE_SECONDS, self._watch_silence)

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        assert self._loop is not None
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(seconds, work))
