"""Shell. A worker's line to its daemon, and what becomes of it when the daemon is gone.

With a will, a worker that loses its channel is an orphan: it goes on carrying packets, and listens for a new
daemon for a limited time. Who connects, as root or as the user who started it, is handed everything:
descriptors first, then the pairs (`offload.channel.Handover`), while packets go on. The connection is the new
channel, and with `Taken` the worker is an orphan no more. `offload.workers.inheritance` is the other end.

Keys stay in this process; nothing is written down. A worker that hangs has nobody to end it then, so an alarm
does, which whoever works puts off."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from offload import channel
from sadb import clock

HANGS_SECONDS: Final = 15 * channel.ALIVE_SECONDS  # the daemon, if there is one, ends who hangs before that
CLAIM_SECONDS: Final = 10.0  # least time for a new daemon to take what it has been given
FEW: Final = 100  # descriptors in one message; the kernel takes 253
ENOUGH: Final = 1 << 16  # octets that wait before more pairs are written
_CREDENTIALS: Final = struct.Struct("=iII")  # SO_PEERCRED: process, user, group


class Will(msgspec.Struct, frozen=True):
    """What a worker needs to outlive its daemon: a bound socket to listen on and its file, the user who may
    connect besides root, and for how many seconds it waits. The rest is for the new daemon, see
    `offload.channel.Handover`; `kept` are descriptors that this one only keeps."""

    listener: int
    place: str
    user: int
    seconds: float
    number: int
    count: int
    circumstances: dict[str, str]
    kept: tuple[int, ...]


# What a new daemon gets: a message, descriptors with it, and what follows.
Legacy = tuple[channel.Handover, Sequence[int], Iterator[channel.Held]]


class Line:
    """See the module. `hear` is called when something may be read, `legacy` for what a new daemon gets."""

    def __init__(
        self,
        fileno: int,
        will: Will | None,
        poll: select.epoll,
        work: dict[int, Callable[[], None]],
        hear: Callable[[], None],
        legacy: Callable[[Will], Legacy],
    ) -> None:
        self._poll, self._work = poll, work
        self._hear, self._legacy = hear, legacy
        self._will = will
        self._seconds = will.seconds if will is not None else 0.0
        self._until: float | None = None  # when an orphan has waited long enough
        self._waiting = bytearray()
        self._pairs: Iterator[channel.Held] = iter(())
        self._listener: socket.socket | None = None
        if will is not None:
            self._listener = socket.socket(fileno=will.listener)
            self._listener.listen(1)  # now, so that who connects learns our process, and whom we were
            self._listener.setblocking(False)
        self._channel: socket.socket | None = None
        self._take(socket.socket(fileno=fileno))

    def fileno(self) -> int:
        """The channel's descriptor, -1 while there is none."""
        return self._channel.fileno() if self._channel is not None else -1

    # What the daemon says --------------------------------------------------------------------------------

    def read(self) -> Iterator[object] | None:
        """What the daemon has said since the last time; None when that is nothing. Never waits. Without a
        daemon, and nothing to wait for, this ends the process."""
        if self._channel is None:
            return None
        try:
            data = self._channel.recv(1 << 18)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._lost()
            return None
        return self._decoder.feed(data)

    def taken(self, seconds: float) -> None:
        """A new daemon has everything."""
        self._until, self._seconds = None, seconds

    def end(self) -> None:
        """End the process, and the file by which it would have been found."""
        if self._will is not None:
            with suppress(OSError):  # without rights it stays, for the next daemon to remove
                os.unlink(self._will.place)
        raise SystemExit(0)

    # What it hears ---------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Octets that the daemon has not taken yet."""
        return len(self._waiting)

    def say(self, message: channel.Answer) -> None:
        """Tell the daemon; what it does not take now waits. An orphan keeps to itself."""
        if self._channel is not None:
            self._waiting += channel.encoded(message)
            self.flush()

    def flush(self) -> None:
        """Give the daemon what waits for it."""
        if self._channel is None:
            return
        with suppress(OSError):  # it is busy, or gone, which `read` finds
            while self._more():
                channel.forget(self._waiting, self._channel.send(self._waiting))
        mask = select.EPOLLIN | (select.EPOLLOUT if self._waiting else 0)
        self._poll.modify(self._channel.fileno(), mask)

    def _more(self) -> bool:
        """Whether anything waits, after more of the pairs that a new daemon gets."""
        while len(self._waiting) < ENOUGH and (held := next(self._pairs, None)) is not None:
            self._waiting += channel.encoded(held)
        return bool(self._waiting)

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._until

    def tick(self, now: float) -> None:
        """An orphan that has waited long enough ends."""
        if self._until is not None and self._until <= now:
            self.end()

    def alive(self) -> None:
        """This process does not hang."""
        if self._will is not None:
            signal.setitimer(signal.ITIMER_REAL, HANGS_SECONDS)  # SIGALRM ends it

    # Daemons that come and go ----------------------------------------------------------------------------

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._channel = sock
        self._decoder = channel.Decoder(channel.Order, channel.LONGEST_ORDER)
        self._watch(sock, self._hear)

    def _lost(self) -> None:
        """The daemon is gone, or the one that came instead."""
        assert self._channel is not None
        self._unwatch(self._channel)
        self._channel.close()
        self._channel = None
        self._waiting.clear()
        self._pairs = iter(())
        if self._listener is None or not self._seconds:
            self.end()
        else:
            self._until = self._until or clock.now() + self._seconds
            self._watch(self._listener, self._came)

    def _came(self) -> None:
        """Somebody connected."""
        assert self._listener is not None
        assert self._will is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] not in (0, self._will.user):
            sock.close()
            return
        self._until = max(self._until or 0.0, clock.now() + CLAIM_SECONDS)
        self._unwatch(self._listener)
        self._take(sock)
        handover, filenos, self._pairs = self._legacy(self._will)
        frame = channel.encoded(handover)
        with suppress(OSError):
            for at in range(0, len(filenos), FEW):
                socket.send_fds(sock, [frame[:1]], filenos[at : at + FEW])
                frame = frame[1:]
        self._waiting += frame
        self.flush()

    def _watch(self, sock: socket.socket, work: Callable[[], None]) -> None:
        self._work[sock.fileno()] = work
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _unwatch(self, sock: socket.socket) -> None:
        del self._work[sock.fileno()]
        self._poll.unregister(sock.fileno())
