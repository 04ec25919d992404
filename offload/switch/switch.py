"""Shell. The virtual switch of this host: its own pairs and those of virtual machines, and the adapter that
all share.

Each port but the host's has a socket of its own in the file system; whoever connects to it is that port, and
nobody else is as long as the connection stands. A guest brings the sockets of its network and gets rings of
the adapter; about its pairs it says facts, and this side decides. When the connection ends, the port is
detached. Sockets are made for root alone: give one to a container by mounting it there."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from offload.meter import Bucket
from offload.nic.capabilities import Direction
from offload.nic.management import Quota, Status
from offload.switch import port_protocol
from offload.switch.adapters import AdapterProcess, Plugged
from offload.switch.outbox import Outbox
from offload.switch.placement import Decision
from offload.switch.port_protocol import Claim, Denied, Join, Leave, Moved, Told, Used, Welcome
from offload.switch.ports import HOST, Ports
from offload.switch.steering import Member, Steering
from sadb.sa import SaPair

MOST_PAIRS: Final = 20_000  # of one guest that are considered at all
MESSAGES: Final = (1000.0, 3.0 * MOST_PAIRS)  # that a guest may say in a second, and at once: it may be new
REST_SECONDS: Final = 0.1  # for which nobody listens to it otherwise
JOINS: Final = (1.0, 5.0)  # how often a port may bring sockets, in a second and at once: others wait for that
PATIENCE: Final = 10.0  # seconds that a guest may have more in the adapter than it is to have
Move = Callable[[frozenset[Direction], bool], None]


@dataclass(slots=True, eq=False)
class _Guest:
    """Who is behind a port."""

    port: str
    socket: socket.socket
    outbox: Outbox = field(init=False)
    members: dict[int, Member] = field(default_factory=dict)
    filenos: list[int] = field(default_factory=list)


class Switch:
    """Decides for all ports: `offload.switch.pair_steering.Arbiter` for the host's own. `decided` hears of
    every decision, `gone` when the adapter ends, `warn` of guests that do not play fair."""

    def __init__(
        self,
        ports: Ports,
        directory: Path,
        decided: Callable[[Member, Decision, Member | None], None],
        gone: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.ports = ports
        self.adapter = AdapterProcess(
            ports.capabilities.name, packet_mode=ports.packet_mode, resend_lost=ports.resend_lost
        )
        self.adapter.on_status, self.adapter.on_gone = self._status, self._gone
        self.steering = Steering(ports, decided)
        self.status: Status | None = None
        self._directory = directory
        self._tell_gone, self._warn = gone, warn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listening: dict[str, socket.socket] = {}
        self._guests: dict[str, _Guest] = {}
        self._quotas: set[str] = set()  # ports that the adapter knows of
        self._joins: dict[str, Bucket] = {}  # by port
        self._paces: dict[str, Bucket] = {}
        self._above: dict[str, float] = {}  # ports that have more than they are to have, and since when

    # Life ------------------------------------------------------------------------------------------------

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the adapter and listen for guests; raises `OSError`."""
        self._loop = loop
        self.adapter.open(loop)
        self.follow()

    def close(self) -> None:
        """End it all; safe to repeat."""
        for name in list(self._listening):
            self._stop_listening(name)
        for guest in list(self._guests.values()):
            self._leave(guest)
        self.adapter.close()

    def follow(self) -> None:
        """Ports have changed: listen for those there are, and place anew."""
        assert self._loop is not None
        names = {port.name for port in self.ports if port.name != HOST}
        for name in self._listening.keys() - names:
            self._stop_listening(name)
            if guest := self._guests.get(name):
                self._leave(guest)
        for name in names - self._listening.keys():
            self._listen(name)
        for name in self._quotas - names - {HOST}:
            self.adapter.allow(Quota(name, 0))
        pools = len(self.ports.capabilities.pools)
        for port in self.ports:
            kept = tuple(port.share(pool, pools) for pool in range(pools))
            self.adapter.allow(Quota(port.name, self.ports.limit(port), port.trusted, kept))
        self._quotas = names | {HOST}
        self.steering.rebalance(self._loop.time())

    def path(self, port: str) -> Path:
        """The socket of a port."""
        return self._directory / f"{port}.sock"

    def attached(self, port: str) -> bool:
        """Whether somebody is behind a port."""
        return port == HOST or port in self._guests

    # The host's own pairs --------------------------------------------------------------------------------

    def attach(self, raw: Sequence[int], natt: Sequence[int], deliver: Callable[[Plugged], None]) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        self._attach(HOST, raw, natt, deliver)

    def join(self, pair: SaPair, wished: bool, replaces: object | None, move: Move) -> object:
        """See `offload.switch.pair_steering.Arbiter`."""
        return self.steering.join(
            self.ports[HOST],
            pair.inbound,
            pair.outbound,
            move,
            self._now(),
            name=str(pair.peer),
            rule=pair.rule,
            wished=wished,
            replaces=replaces if isinstance(replaces, Member) else None,
        )

    def leave(self, token: object) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        if isinstance(token, Member):
            self.steering.leave(token, self._now())

    def came(self, token: object, direction: Direction, what: str) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        if isinstance(token, Member):
            self.steering.came(token, direction, what, self._now())

    def used(self, rows: Sequence[tuple[object, int, int]]) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        now = self._now()
        for token, octets, offloaded in rows:
            if isinstance(token, Member):
                self.steering.carried(token, octets, offloaded, now)
        self.steering.rebalance(now)

    def changed(self, token: object, wished: bool) -> None:
        """See `offload.switch.pair_steering.Arbiter`."""
        if isinstance(token, Member):
            token.wished = wished

    # The adapter -----------------------------------------------------------------------------------------

    def _attach(
        self, port: str, raw: Sequence[int], natt: Sequence[int], deliver: Callable[[Plugged], None]
    ) -> None:
        def delivered(plugged: Plugged) -> None:
            deliver(plugged)
            if not self.steering.up:
                self.steering.link(True, self._now())

        self.adapter.attach(port, raw, natt, delivered)

    def _status(self, status: Status) -> None:
        self.status = status
        if status.up != self.steering.up:
            self.steering.link(status.up, self._now())
        self._show_out(status)

    def _show_out(self, status: Status) -> None:
        """Guests that do not give back what they are to: their ports are detached, and their slots empty."""
        now = self._now()
        above = [name for name in self._guests if status.used.get(name, 0) > self.ports[name].used]
        self._above = {name: self._above.get(name, now) for name in above}
        for name, since in list(self._above.items()):
            if now - since >= PATIENCE:
                del self._above[name]
                self._warn(
                    f"port {name}: whoever is behind it keeps slots that are not its own; it is detached"
                )
                self._leave(self._guests[name])

    def _gone(self, reason: str) -> None:
        self.status = None
        self.steering.link(False, self._now())
        self._tell_gone(reason)

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0

    # Guests ----------------------------------------------------------------------------------------------

    def _listen(self, name: str) -> None:
        assert self._loop is not None
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path(name)
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(4)
        self._listening[name] = sock
        self._loop.add_reader(sock, self._accept, name)

    def _stop_listening(self, name: str) -> None:
        assert self._loop is not None
        sock = self._listening.pop(name)
        self._loop.remove_reader(sock)
        sock.close()
        self.path(name).unlink(missing_ok=True)

    def _accept(self, name: str) -> None:
        assert self._loop is not None
        try:
            sock, _ = self._listening[name].accept()
        except OSError:
            return
        sock.setblocking(False)
        if name in self._guests:
            with sock, suppress(OSError):
                sock.send(port_protocol.encode(Denied("another daemon is behind this port")))
            return
        guest = self._guests[name] = _Guest(name, sock)
        guest.outbox = Outbox(self._loop, sock, lambda: self._leave(guest))
        self._listen_to(guest)
        self._send(guest, Welcome(name))

    def _hear(self, guest: _Guest) -> None:
        """What a guest says; one that speaks nonsense is shown out."""
        try:
            data, filenos, _, _ = socket.recv_fds(
                guest.socket, port_protocol.LONGEST, port_protocol.SOCKETS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, filenos = b"", []
        try:
            if not data:
                raise ValueError("gone")
            message = port_protocol.from_guest(data)
            if not isinstance(message, Join):
                _close(filenos)
            self._act(guest, message, filenos)
            if not self._paces.setdefault(guest.port, Bucket(*MESSAGES)).take(self._now()):
                self._rest(guest)
        except (ValueError, KeyError, OSError, msgspec.DecodeError):
            if filenos is not guest.filenos:
                _close(filenos)
            self._leave(guest)

    def _rest(self, guest: _Guest) -> None:
        """Do not listen to one that talks too much, for a while: what it says waits, and is not lost."""
        assert self._loop is not None
        self._loop.remove_reader(guest.socket)
        self._loop.call_later(REST_SECONDS, self._listen_to, guest)

    def _listen_to(self, guest: _Guest) -> None:
        if self._loop is not None and self._guests.get(guest.port) is guest:
            self._loop.add_reader(guest.socket, self._hear, guest)

    def _act(self, guest: _Guest, message: port_protocol.FromGuest, filenos: list[int]) -> None:
        now = self._now()
        match message:
            case Join(raw, natt):
                if raw < 0 or natt < 0 or raw + natt != len(filenos):
                    raise ValueError("descriptors are missing")
                if not self._joins.setdefault(guest.port, Bucket(*JOINS)).take(now):
                    raise ValueError("it joins too often")
                _close(guest.filenos)
                guest.filenos = filenos
                self._attach(
                    guest.port, filenos[:raw], filenos[raw:], lambda plugged: self._plug(guest, plugged)
                )
            case Claim():
                self._claim(guest, message, now)
            case Leave(ident):
                member = guest.members.pop(ident, None)
                if member is not None:
                    self.steering.leave(member, now)
            case Told(ident, inbound, what):
                member = guest.members.get(ident)
                if member is not None:
                    direction = Direction.INBOUND if inbound else Direction.OUTBOUND
                    self.steering.came(member, direction, what, now)
            case Used(rows):
                if len(rows) > port_protocol.ROWS:
                    raise ValueError("more than a guest says at once")
                for ident, octets, offloaded in rows:
                    member = guest.members.get(ident)
                    if member is not None and octets >= 0 and offloaded >= 0:
                        self.steering.carried(member, octets, offloaded, now)

    def _claim(self, guest: _Guest, claim: Claim, now: float) -> None:
        inbound = port_protocol.association(claim.inbound, True)
        outbound = port_protocol.association(claim.outbound, False)
        known = guest.members.get(claim.ident)
        if known is not None:
            known.inbound, known.outbound, known.wished = inbound, outbound, claim.wished
            return
        if len(guest.members) >= MOST_PAIRS:
            return

        def move(directions: frozenset[Direction], hard: bool) -> None:
            ends = Direction.INBOUND in directions, Direction.OUTBOUND in directions
            self._send(guest, Moved(claim.ident, *ends, hard))

        guest.members[claim.ident] = self.steering.join(
            self.ports[guest.port],
            inbound,
            outbound,
            move,
            now,
            name=port_protocol.plain(claim.name),
            rule=port_protocol.plain(claim.rule),
            wished=claim.wished,
            replaces=guest.members.get(claim.replaces) if claim.replaces is not None else None,
        )

    def _plug(self, guest: _Guest, plugged: Plugged) -> None:
        self._send(
            guest,
            port_protocol.Plugged(
                plugged.profile,
                plugged.plug.slots,
                plugged.plug.room,
                plugged.packet_mode,
                plugged.resend_lost,
            ),
            plugged.filenos(),
        )
        plugged.close()

    def _send(self, guest: _Guest, message: port_protocol.FromHost, filenos: Sequence[int] = ()) -> None:
        """A guest that does not listen is shown out, later: this may be in the middle of a decision."""
        guest.outbox.put(port_protocol.encode(message), filenos, most=2 * len(guest.members))

    def _leave(self, guest: _Guest) -> None:
        if self._guests.get(guest.port) is not guest:
            return
        assert self._loop is not None
        del self._guests[guest.port]
        guest.outbox.close()
        self._loop.remove_reader(guest.socket)
        guest.socket.close()
        self.adapter.detach(guest.port)
        _close(guest.filenos)
        for member in guest.members.values():
            self.steering.leave(member, self._now())


def _close(filenos: list[int]) -> None:
    for one in filenos:
        os.close(one)
    filenos.clear()
