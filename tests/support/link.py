"""Two endpoints and the path between them, in virtual time: no sockets, no sleeping.

    link = Link(left, right)
    link.up("net")                 # left begins
    link.run(10)                   # until nothing is due for 10 virtual seconds at most

Every datagram passes `Link.fate`, where a test may lose, repeat, delay or change it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

from ikd.auth import Authenticate
from ikd.auth.credentials import Credentials, Material
from ikd.auth.identity import Identity
from ikd.auth.psk import PskEntry
from ikd.endpoint import Endpoint
from ikd.events import Event, NegotiationFailed
from ikd.ikev2.numbers import exchange_name
from ikd.outputs import AllocateSpi, Ask, Inherit, Install, Keys, Move, Output, Release, Remove, Transmit
from ikd.settings import IkeSettings
from ikd.wire.isakmp import Header
from policy.engine import Policy
from policy.parse import compose
from sadb.address import Address, Path, SocketAddress
from sadb.database import Database
from sadb.memory import MemoryBackend
from sadb.sa import SaPair
from sadb.secret import Secret

LEFT, RIGHT = ip_address("192.0.2.1"), ip_address("192.0.2.2")
SECRET = b"a secret that both ends know"
POSIX = 1_790_000_000.0  # calendar time of virtual second 0

TUNNEL = """
[[rule]]
name     = "net"
local    = "{local}"
remote   = "{remote}"
tunnel   = {{ local = "{own}", remote = "{peer}" }}
security = "require"
auth     = "{auth}"
{extra}
"""
HOST = """
[[rule]]
name     = "host"
remote   = "{peer}"
security = "require"
{extra}
"""


def policy(text: str) -> Policy:
    """A policy from the text of policy.toml."""
    return compose([("policy.toml", text)])


def psk(identity: str, peer: str, secret: bytes = SECRET) -> Material:
    """Credentials of a host with one pre-shared key."""
    return Material(Identity.parse(identity), (PskEntry(Secret(secret), (peer,)),))


@dataclass
class Flight:
    """One datagram on its way. Change `data`, or set `lost`; `delay` is in seconds, `copies` more of it."""

    sender: Host
    data: bytes
    path: Path  # as the sender sees it
    number: int
    lost: bool = False
    delay: float = 0.01
    copies: int = 0

    @property
    def header(self) -> Header:
        """Its ISAKMP header."""
        return Header.decode(self.data)

    def __str__(self) -> str:
        header = self.header
        kind = "response" if header.flags & 0x20 else "request"
        return f"{self.sender.name}: {exchange_name(header.exchange)} {kind} {header.message_id}"


@dataclass(eq=False)
class Host:
    """One end: endpoint, SADB, and what it said."""

    name: str
    address: Address
    endpoint: Endpoint
    database: Database
    backend: MemoryBackend
    events: list[Event] = field(default_factory=list)
    keys: list[Keys] = field(default_factory=list)
    asked: Callable[[Any], Any] | None = None  # answers a question instead of the SADB, when set

    def of(self, kind: type[Event]) -> list[Any]:
        """Its events of a class."""
        return [one for one in self.events if isinstance(one, kind)]

    @property
    def failures(self) -> list[NegotiationFailed]:
        """Negotiations that came to nothing."""
        return self.of(NegotiationFailed)

    @property
    def pairs(self) -> list[SaPair]:
        """The pairs in the SADB that are in use, not those that only receive what is late."""
        return [one for one in self.database.pairs() if not self._lingers(one)]

    def _lingers(self, pair: SaPair) -> bool:
        return any(
            pair is one
            for a in self.endpoint.associations.values()
            for _, one in a.session.children.lingering
        )


def host(
    name: str,
    address: Address,
    rules: str,
    material: Material,
    settings: IkeSettings | None = None,
    seed: int = 0,
) -> Host:
    """A host with its own reproducible randomness."""
    source = random.Random(f"{name} {seed}")
    backend = MemoryBackend()
    database = Database(backend, source.randbytes)
    endpoint = Endpoint(
        settings or IkeSettings(), policy(rules), Credentials(material, lambda: POSIX), source.randbytes
    )
    return Host(name, address, endpoint, database, backend)


def tunnel_hosts(
    *,
    left_rule: str = "",
    right_rule: str = "",
    left: Material | None = None,
    right: Material | None = None,
    settings: IkeSettings | None = None,
    left_settings: IkeSettings | None = None,
    right_settings: IkeSettings | None = None,
    auth: str = "any",
) -> tuple[Host, Host]:
    """Two hosts with a tunnel rule `net` for the networks behind them; the rules may get further lines."""
    extra = '\n[auth.any]\nfirst = ["certificate", "psk"]\n' if auth == "any" else ""
    made = []
    for name, own, peer, local, remote, more, material, own_settings in (
        ("left", LEFT, RIGHT, "10.1.0.0/24", "10.2.0.0/24", left_rule, left, left_settings),
        ("right", RIGHT, LEFT, "10.2.0.0/24", "10.1.0.0/24", right_rule, right, right_settings),
    ):
        other = "right" if name == "left" else "left"
        rules = TUNNEL.format(own=own, peer=peer, local=local, remote=remote, auth=auth, extra=more) + extra
        material = material or psk(f"{name}.example", f"{other}.example")
        made.append(host(name, own, rules, material, own_settings or settings))
    return made[0], made[1]


class Link:
    """The path between two hosts, and the clock."""

    def __init__(self, left: Host, right: Host, *, nat: Address | None = None) -> None:
        self.left, self.right = left, right
        self.now = 100.0
        self.flights: list[Flight] = []
        self.fate: Callable[[Flight], None] = lambda flight: None
        self.nat = nat  # in front of the left host
        self._queue: list[tuple[float, int, Flight]] = []
        self._serial = itertools.count()

    # Commands --------------------------------------------------------------------------------------------

    def path(self, sender: Host) -> Path:
        """From a host to the other."""
        other = self.other(sender)
        address = self.nat if self.nat and other is self.left else other.address
        return Path(SocketAddress(sender.address, 500), SocketAddress(address, 500))

    def other(self, one: Host) -> Host:
        """The other end."""
        return self.right if one is self.left else self.left

    def up(self, rule: str, sender: Host | None = None, **how: Any) -> None:
        """Negotiate for a rule, the left host by default."""
        sender = sender or self.left
        found = sender.endpoint.policy.rule(rule)
        assert found is not None
        self.perform(sender, sender.endpoint.initiate(found, self.path(sender), self.now, **how))

    def rekey_child(self, sender: Host) -> None:
        """Replace the newest pair of a host."""
        self.perform(sender, sender.endpoint.rekey_child(sender.pairs[-1], self.now))

    def rekey(self, sender: Host) -> None:
        """Replace the IKE SA of a host."""
        self.perform(sender, sender.endpoint.rekey(self.association(sender), self.now))

    def association(self, one: Host) -> Any:
        """The newest association of a host."""
        return list(one.endpoint.associations.values())[-1]

    # Time ------------------------------------------------------------------------------------------------

    def run(self, seconds: float = 5.0) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while True:
            due = [(when, "flight") for when, _, _ in self._queue[:1]]
            for one in (self.left, self.right):
                for when in (one.endpoint.deadline(), one.database.deadline()):
                    if when is not None:
                        due.append((max(when, self.now), one.name))
            if not due or min(due)[0] > end:
                self.now = end
                return
            self.now, what = min(due)
            if what == "flight":
                self._arrive(heapq.heappop(self._queue)[2])
            else:
                self._tick(self.left if what == "left" else self.right)

    def _tick(self, one: Host) -> None:
        for expire in one.database.tick(self.now):
            self.perform(one, one.endpoint.expired(expire, self.now))
        self.perform(one, one.endpoint.tick(self.now))

    def _arrive(self, flight: Flight) -> None:
        receiver = self.other(flight.sender)
        source = flight.path.local
        if self.nat and flight.sender is self.left:
            source = SocketAddress(self.nat, 10000 + source.port)
        local = SocketAddress(receiver.address, flight.path.peer.port)
        if self.nat and receiver is self.left:
            local = SocketAddress(self.left.address, flight.path.peer.port - 10000)
        self.perform(receiver, receiver.endpoint.receive(flight.data, Path(local, source), self.now))

    # Outputs ---------------------------------------------------------------------------------------------

    def perform(self, one: Host, outputs: Iterable[Output]) -> None:
        """Do what a host's core wants done."""
        pending = list(outputs)
        while pending:
            output = pending.pop(0)
            match output:
                case Transmit():
                    self._send(one, output)
                case Ask():
                    pending[:0] = one.endpoint.answer(
                        output.ticket, self._answer(one, output.question), self.now
                    )
                case Release():
                    one.database.release(output.spi)
                case Remove():
                    one.database.remove(output.pair)
                case Inherit():
                    one.database.inherit(output.former, output.owner)
                case Move():
                    path = output.path
                    ports = (path.local.port, path.peer.port)
                    one.backend.moved(output.pair, path.local.address, path.peer.address, ports)
                case Keys():
                    one.keys.append(output)
                case Event():
                    one.events.append(output)

    def _answer(self, one: Host, question: Any) -> Any:
        try:
            if one.asked and (answer := one.asked(question)) is not None:
                return answer
            match question:
                case AllocateSpi():
                    return one.database.allocate_spi(self.now)
                case Install():
                    return one.database.install(question.pair, self.now, question.replaces)
                case Authenticate():
                    return question.side.step(question.token)
        except Exception as error:
            return error
        raise AssertionError(question)

    def _send(self, one: Host, output: Transmit) -> None:
        if output.data == b"\xff":
            return
        flight = Flight(one, output.data, output.path, len(self.flights))
        self.flights.append(flight)
        self.fate(flight)
        for n in range(1 + flight.copies):
            if not flight.lost:
                when = self.now + flight.delay * (n + 1)
                heapq.heappush(self._queue, (when, next(self._serial), replace(flight)))

    def inject(self, receiver: Host, data: bytes, port: int = 500) -> None:
        """A datagram from the other host's address that it never sent."""
        sender = self.other(receiver)
        path = Path(SocketAddress(receiver.address, 500), SocketAddress(sender.address, port))
        self.perform(receiver, receiver.endpoint.receive(data, path, self.now))


def mirrored(left: Host, right: Host) -> bool:
    """Whether both hold the same pairs, seen from either side, with the same keys."""

    def facts(one: SaPair, *, turned: bool) -> tuple[Any, ...]:
        inbound, outbound = (one.outbound, one.inbound) if turned else (one.inbound, one.outbound)
        sides = (one.selector.local, one.selector.remote)
        return (
            inbound.spi,
            outbound.spi,
            str(inbound.suite),
            inbound.suite.esn,
            one.mode,
            sides[::-1] if turned else sides,
            bytes(inbound.encryption_key),
            bytes(outbound.encryption_key),
            bytes(inbound.integrity_key),
            bytes(outbound.integrity_key),
        )

    ours = sorted(facts(one, turned=False) for one in left.pairs)
    theirs = sorted(facts(one, turned=True) for one in right.pairs)
    return bool(ours) and str(ours) == str(theirs)


VECTORS = File(__file__).resolve().parents[1] / "vectors"
