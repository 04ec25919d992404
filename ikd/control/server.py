"""Shell. The control socket: who may connect, reading lines, answering, streaming events.

What a request does is in `control.requests`. Every connection is bounded: line length, connections at a time,
requests whose answer has not been taken, and events waiting for a slow reader, which loses the oldest and is
told how many.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import grp
import os
import shutil
import socket
import stat
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from ikd import __version__
from ikd.control.protocol import LARGEST_LINE, PROTOCOL, Caller, ControlError, Json, decode, encode

MOST_CONNECTIONS: Final = 64
MOST_UNDER_WAY: Final = 16
MOST_WAITING: Final = 1000
FAREWELL: Final = 0.5  # seconds for connections to end when the server does
_CREDENTIALS: Final = struct.Struct("=iII")  # SO_PEERCRED: process, user, group

Dispatch = Callable[[str, dict[str, Json], Caller], Awaitable[Json]]


class Occupied(Exception):
    """Another daemon has this control socket."""


class SocketFile:
    """The socket in the file system, held by a lock beside it: one daemon a path."""

    def __init__(self, path: Path, mode: int, group: str | None) -> None:
        self.path = path
        self.mode = mode
        self.group = group
        self.notice = ""  # what an administrator should know about it
        self._lock: int | None = None
        self._given = False

    def bind(self, given: socket.socket | None = None) -> socket.socket:
        """A listening socket; raises `Occupied` or `OSError`. A socket left by a dead daemon is replaced. One
        that is `given` must listen at the same path, and its file is somebody else's, also at the end."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lock = os.open(
            self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise Occupied(
                f"another ikd is running with the control socket {self.path}: stop it, or set daemon.control "
                "(and daemon.state) in ikd.toml"
            ) from None
        if given is not None:
            return self._take(given)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)  # nobody connects before mode and group are right
        try:
            self._clear()
            sock.bind(str(self.path))
            if self.group is not None:
                shutil.chown(self.path, group=self.group)
            self.path.chmod(self.mode)
        except (OSError, LookupError) as error:
            sock.close()
            self.release()
            raise OSError(f"cannot make the control socket {self.path}: {error}") from None
        finally:
            os.umask(before)
        sock.listen(MOST_CONNECTIONS)
        return sock

    def _take(self, sock: socket.socket) -> socket.socket:
        self._given = True
        if (place := sock.getsockname()) != str(self.path):
            self.release()
            raise OSError(
                errno.EINVAL,
                f"systemd listens at {place!r}, but daemon.control is {self.path}: change ListenStream= of "
                "ikd-control.socket (systemctl edit ikd-control.socket), or ikd.toml",
            )
        status = self.path.stat()
        try:
            group = self.group is not None and grp.getgrnam(self.group).gr_gid != status.st_gid
        except KeyError:
            group = True
        if group or stat.S_IMODE(status.st_mode) != self.mode:
            self.notice = (
                f"{self.path} comes from systemd: SocketMode= and SocketGroup= of ikd-control.socket apply, "
                "daemon.control_mode and control_group do not"
            )
        sock.setblocking(False)
        return sock

    def _clear(self) -> None:
        """Remove a stale socket, and nothing that is not a socket."""
        if self.path.is_socket():
            self.path.unlink()

    def release(self) -> None:
        """Remove the socket and give the path free."""
        if self._lock is None:
            return
        if not self._given:
            with suppress(OSError):
                self._clear()
        os.close(
            self._lock
        )  # the lock file stays: removing it would let two daemons lock two files of one name
        self._lock = None


class Connection:
    """One client. Implements `Caller`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dispatch: Dispatch
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.dispatch = dispatch
        sock = writer.get_extra_info("socket")
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self._user: int = _CREDENTIALS.unpack(data)[1]
        self._answers: deque[bytes] = deque()
        self._events: deque[bytes] = deque()
        self._lost = 0
        self._wake = asyncio.Event()
        self._closing: list[Callable[[], None]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MOST_UNDER_WAY)  # for requests until their answer is taken
        self._ending = False

    @property
    def user(self) -> int:
        """User id at the other end."""
        return self._user

    def send_event(self, line: Json) -> None:
        """Queue an event line; a full queue loses its oldest."""
        if len(self._events) >= MOST_WAITING:
            self._events.popleft()
            self._lost += 1
        with suppress(ControlError):
            self._events.append(encode(line))
        self._wake.set()

    def on_close(self, action: Callable[[], None]) -> None:
        """Run when the connection ends."""
        self._closing.append(action)

    def hang_up(self) -> None:
        """End it from this side: what is under way is cancelled, what is answered goes out."""
        for task in self._under_way:
            task.cancel()
        self.reader.feed_eof()
        self._read_no_more()

    async def run(self) -> None:
        """Serve until the client hangs up."""
        await self._room.acquire()
        self._answer({"ikd": __version__, "protocol": PROTOCOL})
        writing = asyncio.create_task(self._write())
        writing.add_done_callback(lambda _: self._read_no_more())  # who has gone takes no answers any more
        try:
            await self._read()
        except (ConnectionError, asyncio.LimitOverrunError, ValueError):
            error = ControlError(
                "usage", f"a line is longer than {LARGEST_LINE} octets", "send shorter lines"
            )
            self._answer({"id": None, "ok": False, "error": error.plain()})
        finally:
            for action in self._closing:
                action()
            for task in (*self._under_way, writing):
                task.cancel()
            await asyncio.gather(*self._under_way, writing, return_exceptions=True)
            self.writer.writelines(self._answers)
            self.writer.close()
            with suppress(ConnectionError):
                await self.writer.wait_closed()

    async def _read(self) -> None:
        while line := await self.reader.readline():
            await self._room.acquire()
            if self._ending:
                return
            task = asyncio.create_task(self._request(line))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if self._under_way:  # the client has shut its sending side and still wants the answers
            await asyncio.wait(self._under_way)

    def _read_no_more(self) -> None:
        self._ending = True
        self._room.release()  # for who waits there

    async def _request(self, line: bytes) -> None:
        number: Json = None
        try:
            request = decode(line)
            number = request.get("id")
            do, parameters = request.get("do"), request.get("with", {})
            if not isinstance(do, str) or not isinstance(parameters, dict):
                raise ControlError(
                    "usage", '"do" must be text and "with" an object', 'for example {"do": "status"}'
                )
            self._answer({"id": number, "ok": True, "result": await self.dispatch(do, parameters, self)})
        except ControlError as error:
            self._answer({"id": number, "ok": False, "error": error.plain()})

    def _answer(self, line: Json) -> None:
        self._answers.append(encode(line))
        self._wake.set()

    async def _write(self) -> None:
        """Answers before events; waits for the client, never for more memory."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._answers or self._events:
                if self._lost and not self._answers:
                    lost, self._lost = self._lost, 0
                    self.writer.write(encode({"event": "lost", "count": lost}))
                answers = bool(self._answers)
                self.writer.write((self._answers or self._events).popleft())
                await self.writer.drain()
                if answers:
                    self._room.release()


class Server:
    """The listening side. `broken` is told of exceptions that are our own bugs."""

    def __init__(self, file: SocketFile, dispatch: Dispatch, broken: Callable[[BaseException], None]) -> None:
        self.file = file
        self._dispatch = dispatch
        self._broken = broken
        self._connections: set[Connection] = set()

    @asynccontextmanager
    async def serve(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve on a bound socket until the context ends; the socket file goes with it."""
        # start_unix_server would remove the file at the end, from Python 3.13 on
        server = await asyncio.start_server(self._accept, sock=sock, limit=LARGEST_LINE)
        try:
            yield
        finally:
            server.close()
            self.file.release()
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Let everybody who is connected go."""
        for one in tuple(self._connections):
            one.hang_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                while self._connections:
                    await asyncio.sleep(0.01)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            writer.close()
            return
        connection = Connection(reader, writer, self._guarded)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _guarded(self, do: str, parameters: dict[str, Any], caller: Caller) -> Json:
        """A request that breaks is our bug: the client hears so and the daemon goes on."""
        try:
            return await self._dispatch(do, parameters, caller)
        except (ControlError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._broken(error)
            raise ControlError(
                "internal", f"{do} failed: {type(error).__name__}", "the daemon's log has the traceback"
            ) from error
