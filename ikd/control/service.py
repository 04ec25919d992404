"""Shell. The control socket of one daemon, put together: its file, the server, and what requests steer.

This is the `ikd.daemon.Control` that `ikd` is started with; the daemon itself knows no requests.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from ikd.control import requests
from ikd.control.host import DaemonHost
from ikd.control.protocol import Caller, Json
from ikd.control.server import Occupied, Server, SocketFile
from ikd.daemon import CannotStart

if TYPE_CHECKING:
    from ikd.daemon import Daemon


class ControlService:
    """Whom administrators ask."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.host = DaemonHost(daemon)
        options = daemon.settings.daemon
        self._file = SocketFile(daemon.control_path, options.control_mode, options.control_group)

    @contextmanager
    def claim(self, given: socket.socket | None) -> Iterator[socket.socket]:
        """Hold the socket; raises `CannotStart` when another daemon has it, and `OSError`."""
        try:
            sock = self._file.bind(given)
        except Occupied as error:
            raise CannotStart(str(error)) from error
        try:
            yield sock
        finally:
            sock.close()
            self._file.release()

    @asynccontextmanager
    async def serve(self, sock: socket.socket) -> AsyncIterator[None]:
        """Answer requests on it."""
        server = Server(self._file, self._dispatch, lambda error: self.daemon.broken("a request", error))
        async with server.serve(sock):
            if self._file.notice:
                self.daemon.warn("control socket", self._file.notice)
            yield

    async def _dispatch(self, do: str, given: dict[str, Json], caller: Caller) -> Json:
        return await requests.dispatch(self.host, do, given, caller)
