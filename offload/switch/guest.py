"""Shell. The adapter of the host, as a virtual machine's daemon asks for it over its port's socket. While the
host does not answer, everything is in software."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from offload.nic.capabilities import PROFILES, Direction
from offload.nic.rings import Plug
from offload.switch import port_protocol
from offload.switch.adapters import Plugged
from offload.switch.outbox import Outbox
from offload.switch.port_protocol import Claim, Denied, Join, Leave, Moved, Told, Used, Welcome, facts
from sadb.sa import SaPair

AGAIN_SECONDS: Final = 1.0
Move = Callable[[frozenset[Direction], bool], None]


class _Pair:
    """One pair, as the host knows it."""

    def __init__(self, ident: int, pair: SaPair, wished: bool, replaces: int | None, move: Move) -> None:
        self.ident, self.pair, self.wished, self.replaces, self.move = ident, pair, wished, replaces, move
        self.hard: set[Direction] = set()
        self.told: Claim | None = None

    def claim(self) -> Claim:
        """What the host is told of it."""
        pair = self.pair
        return Claim(
            self.ident,
            facts(pair.inbound),
            facts(pair.outbound),
            str(pair.peer),
            pair.rule,
            self.wished,
            self.replaces,
        )


class Guest:
    """`offload.switch.pair_steering.Arbiter` that asks the host."""

    def __init__(self, path: Path, trouble: Callable[[str], None]) -> None:
        self.path = path
        self.port = ""
        self._trouble = trouble
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._outbox: Outbox | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pairs: dict[int, _Pair] = {}
        self._next = 0
        self._sockets: tuple[Sequence[int], Sequence[int]] = (), ()
        self._deliver: Callable[[Plugged], None] = Plugged.close
        self._said = ""

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to ask."""
        self._loop = loop
        self._connect()

    def close(self) -> None:
        """Stop asking; safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
        self._hang_up()
        self._loop = None

    # Arbiter ---------------------------------------------------------------------------------------------

    def attach(self, raw: Sequence[int], natt: Sequence[int], deliver: Callable[[Plugged], None]) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        self._sockets, self._deliver = (raw, natt), deliver
        if self.port:
            self._join()

    def join(self, pair: SaPair, wished: bool, replaces: object | None, move: Move) -> object:
        """See `offload.switch.pair_steering.Arbiter`."""
        self._next += 1
        former = replaces.ident if isinstance(replaces, _Pair) else None
        one = self._pairs[self._next] = _Pair(self._next, pair, wished, former, move)
        self._claim(one)
        return one

    def leave(self, token: object) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        if isinstance(token, _Pair) and self._pairs.pop(token.ident, None) is not None:
            self._send(Leave(token.ident))

    def came(self, token: object, direction: Direction, what: str) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        if isinstance(token, _Pair):
            (token.hard.add if what == "placed" else token.hard.discard)(direction)
            self._send(Told(token.ident, direction is Direction.INBOUND, what))

    def used(self, rows: Sequence[tuple[object, int, int]]) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        told = [(one.ident, octets, hard) for one, octets, hard in rows if isinstance(one, _Pair)]
        for at in range(0, len(told), port_protocol.ROWS):
            self._send(Used(told[at : at + port_protocol.ROWS]))

    def changed(self, token: object, wished: bool) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        if isinstance(token, _Pair):
            token.wished = wished
            if token.claim() != token.told:
                self._claim(token)

    def hard(self, token: object) -> set[Direction]:
        """Directions of a pair that are in the adapter."""
        return token.hard if isinstance(token, _Pair) else set()

    # The host --------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        assert self._loop is not None
        self._timer = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(self.path))
        except OSError as error:
            sock.close()
            self._later(f"the host's switch is not reachable at {self.path}: {error.strerror}")
            return
        self._socket = sock
        self._outbox = Outbox(self._loop, sock, lambda: self._deaf(sock))
        self._loop.add_reader(sock, self._hear)

    def _deaf(self, sock: socket.socket) -> None:
        if sock is self._socket:
            self._lost("the host's switch does not listen")

    def _later(self, why: str) -> None:
        assert self._loop is not None
        if why != self._said:
            self._said = why
            self._trouble(f"{why}; SAs stay in software")
        self._timer = self._loop.call_later(AGAIN_SECONDS, self._connect)

    def _hear(self) -> None:
        assert self._socket is not None
        try:
            data, filenos, _, _ = socket.recv_fds(
                self._socket, port_protocol.LONGEST, 8, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, filenos = b"", []
        try:
            message = port_protocol.from_host(data) if data else None
        except msgspec.DecodeError:
            message = None
        match message:
            case Welcome(port):
                self.port, self._said = port, ""
                self._join()
                for one in self._pairs.values():
                    self._claim(one)
            case Denied(reason):
                self._lost(f"the host's switch refuses: {reason}")
            case port_protocol.Plugged(profile, slots, room, packets, resend) if (
                profile in PROFILES and len(filenos) == 4
            ):
                memory, bell, other_bell, control = filenos
                plug = Plug(memory, bell, other_bell, slots, room)
                self._deliver(Plugged(plug, control, profile, packets, resend))
            case Moved(ident, inbound, outbound, hard):
                found = self._pairs.get(ident)
                ends = ((Direction.INBOUND, inbound), (Direction.OUTBOUND, outbound))
                if found is not None:
                    found.move(frozenset(one for one, asked in ends if asked), hard)
            case _:
                for fileno in filenos:
                    os.close(fileno)
                self._lost("the host's switch has gone")

    def _join(self) -> None:
        raw, natt = self._sockets
        if raw or natt:
            self._send(Join(len(raw), len(natt)), [*raw, *natt])

    def _claim(self, one: _Pair) -> None:
        one.told = one.claim()
        self._send(one.told)

    def _send(self, message: port_protocol.FromGuest, filenos: Sequence[int] = ()) -> None:
        """Not waited for; everything is said again when the connection is new."""
        if self._outbox is not None and self.port:
            self._outbox.put(port_protocol.encode(message), filenos, most=2 * len(self._pairs))

    def _lost(self, why: str) -> None:
        self._hang_up()
        self._later(why)

    def _hang_up(self) -> None:
        """What was in the adapter of a host that is gone, the worker finds out itself."""
        sock, self._socket, self.port = self._socket, None, ""
        if sock is not None:
            assert self._loop is not None
            assert self._outbox is not None
            self._outbox.close()
            self._loop.remove_reader(sock)
            sock.close()
