"""Shell. Messages for the other end of a port's socket, which keeps them apart and carries descriptors.

Nobody waits for the other end: what it does not take now is kept, up to a limit."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

MOST_WAITING: Final = 1000  # messages besides those that there may be for each pair


class Outbox:
    """`lost` is called, a little later, when the other end is gone or does not take what it is sent."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, lost: Callable[[], object]
    ) -> None:
        self._loop, self._socket, self._lost = loop, sock, lost
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._open = True

    def put(self, message: bytes, filenos: Sequence[int] = (), *, most: int = 0) -> None:
        """Send a message; with `most` further ones that may wait. The descriptors stay the caller's."""
        if not self._open:
            return
        self._waiting.append((message, [os.dup(one) for one in filenos]))
        if len(self._waiting) == 1:
            self._flush()
        elif len(self._waiting) > MOST_WAITING + most:
            self._give_up()

    def close(self) -> None:
        """Send no more; safe to repeat, and before the socket is closed."""
        self._open = False
        self._loop.remove_writer(self._socket)
        for _, filenos in self._waiting:
            _close(filenos)
        self._waiting.clear()

    def _flush(self) -> None:
        try:
            while self._waiting:
                socket.send_fds(self._socket, [self._waiting[0][0]], self._waiting[0][1])
                _close(self._waiting.popleft()[1])
            self._loop.remove_writer(self._socket)
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        self.close()
        self._loop.call_soon(self._lost)


def _close(filenos: Sequence[int]) -> None:
    for one in filenos:
        os.close(one)
