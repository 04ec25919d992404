"""Shell. A listener that Prometheus reads metrics from: `GET /metrics` in HTTP/1.1 and nothing else.

It runs on the daemon's loop, so nothing reads the state of things from another thread. Whoever connects can
cost little: few connections at a time, a short request, a few seconds, one answer, and the exposition is made
at most once a second however often it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST

from sadb.address import SocketAddress

MOST_CONNECTIONS: Final = 16
MOST_OCTETS: Final = 8192  # of a request
PATIENCE: Final = 5.0  # seconds from connecting to the end of the answer
FRESH: Final = 1.0  # seconds for which an exposition is given out again

_PLAIN: Final = "text/plain; charset=utf-8"


class Scraping:
    """`text` makes the exposition, `broken` hears that it could not, which is a bug of ours."""

    def __init__(self, text: Callable[[], str], broken: Callable[[str, BaseException], None]) -> None:
        self._text = text
        self._broken = broken
        self._clock = asyncio.get_running_loop().time
        self._made = b""
        self._made_at = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self, place: SocketAddress) -> AsyncIterator[SocketAddress]:
        """Serve at this place until the context ends, and say where that is (a port of 0 is any); raises
        `OSError`."""
        server = await asyncio.start_server(self._accept, str(place.address), place.port, limit=MOST_OCTETS)
        try:
            yield SocketAddress(place.address, server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer."""
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(self._answer(await _request(reader)))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError):
            pass  # who hangs up or is too slow gets nothing
        except Exception as error:
            self._broken("the listener for metrics", error)
        finally:
            writer.transport.abort()

    def _answer(self, request: bytes) -> bytes:
        """The answer to the first line of a request."""
        words = request.split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", b"this is HTTP/1.1\n")
        if words[0] not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n", extra="Allow: GET, HEAD\r\n")
        if words[1].split(b"?")[0] != b"/metrics":
            return _response("404 Not Found", b"metrics are at /metrics\n")
        return _response("200 OK", self._exposition(), CONTENT_TYPE_LATEST, head=words[0] == b"HEAD")

    def _exposition(self) -> bytes:
        if self._clock() - self._made_at >= FRESH:
            self._made = self._text().encode()
            self._made_at = self._clock()
        return self._made


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The first line of a request that is complete; empty for one that is too long."""
    with suppress(asyncio.LimitOverrunError):
        return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]
    return b""


def _response(status: str, body: bytes, kind: str = _PLAIN, *, head: bool = False, extra: str = "") -> bytes:
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"{lines}Connection: close\r\n\r\n".encode() + (b"" if head else body)
