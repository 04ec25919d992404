"""Shell. The adapter as a worker sees it: rings, a socket for requests, and the driver between them and the
engine.

What the adapter says is heard before packets it marked are looked at: it said so before it marked the first.
When it is gone, everything goes on in software at once, through the same sockets."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from offload.channel import Decoder, Garbled, forget, framed
from offload.nic import requests
from offload.nic.descriptors import Transmit
from offload.nic.driver import Driver
from offload.nic.rings import HostPort, Plug
from offload.nic.slots import Broken
from offload.outer import Arrived

TURNS = 64
LONGEST = 1 << 16  # octets of an answer
MOST_WAITING = 4 << 20  # octets of requests that the adapter does not take: some 30 000
READS = 16  # of 64 KiB: more than the socket holds
BACKLOG = 64  # descriptors that found no place; then nothing more is read from the host


class NicLink:
    """One attached adapter. `open_packets(arrived)` is the engine's way in; `too_big` hears of path MTUs."""

    def __init__(
        self,
        plug: Plug,
        control: int,
        driver: Driver,
        open_packets: Callable[[Sequence[Arrived]], None],
        too_big: Callable[[requests.TooBig], None],
        *,
        native: bool = False,
    ) -> None:
        """With `native` packets received are the native loop's, and Python's what that hands up."""
        self.rings = HostPort(plug, native=native)
        self.control = socket.socket(fileno=control)
        self.control.setblocking(False)
        self._driver, self._open_packets, self._too_big = driver, open_packets, too_big
        self._decoder = Decoder(requests.Answer, LONGEST)
        self._waiting = bytearray()
        self._backlog: deque[Transmit] = deque()

    @property
    def full(self) -> bool:
        """Whether the adapter has enough to do: packets of the host are to wait where they are."""
        return len(self._backlog) > BACKLOG

    def push(self) -> None:
        """Give the adapter what the driver has for it. Raises `Broken` when it is gone."""
        driver = self._driver
        if driver.requests:
            for one in driver.requests:
                self._waiting += framed(one)
            driver.requests.clear()
        if self._waiting:
            self._flush()
            if len(self._waiting) > MOST_WAITING:
                raise Broken("requests are not taken")
        if driver.ring:
            self._backlog += driver.ring
            driver.ring.clear()
        if self._backlog:
            transmit = self.rings.transmit
            while self._backlog and transmit.put(self._backlog[0]):
                self._backlog.popleft()
        self.rings.publish()

    def pull(self, now: float) -> bool:
        """Take what the adapter has; whether there may be more. Raises `Broken` when it is gone."""
        self.hear(now)
        completions = self.rings.completed.take(TURNS)
        received = self.rings.received
        arrived = received.take(0 if self.rings.native else TURNS)
        if completions or arrived:
            self.hear(now)
        self._driver.completed(completions, now)
        if arrived:
            self._open_packets(arrived)
        if not received.stirred():
            self._driver.settled()
        return len(arrived) == TURNS or len(completions) == TURNS

    def open(self, octets: bytes, now: float) -> None:
        """Open what the native loop took and handed up. Raises `Broken` when it cannot be, or the adapter is
        gone."""
        assert self.rings.native is not None
        self.hear(now)
        self._open_packets([self.rings.native.value(octets)])

    def hear(self, now: float) -> None:
        """Answers so far: no more than a socket holds, or one that never ends would end our work. Raises
        `Broken` when the adapter is gone."""
        for _ in range(READS):
            try:
                data = self.control.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise Broken("the adapter is gone")
            try:
                for message in self._decoder.feed(data):
                    if isinstance(message, requests.TooBig):
                        self._too_big(message)
                    else:
                        self._driver.answered(message, now)  # type: ignore[arg-type]
            except (Garbled, ValueError) as error:  # the latter: an address that is none
                raise Broken(str(error)) from None

    def close(self) -> None:
        """Let it go."""
        self.rings.close()
        self.control.close()

    def _flush(self) -> None:
        with suppress(BlockingIOError):
            try:
                while self._waiting:
                    forget(self._waiting, self.control.send(self._waiting))
            except (BrokenPipeError, ConnectionError):
                raise Broken("the adapter is gone") from None
