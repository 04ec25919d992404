"""Two endpoints and the path between them, in virtual time: no sockets, no sleeping.

    link = Link(left, right)
    link.up("net")                 # left begins
    link.run(10)                   # let 10 virtual seconds pass

Every datagram passes `Link.fate`, where a test may lose, repeat, delay or change it. After `watch` the link
looks after every step whether each side sends on a pair that the other one receives on; what it sees is in
`gaps`.
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

from ikd.association import Association
from ikd.auth import Authenticate
from ikd.auth.credentials import Credentials, Material
from ikd.auth.identity import Identity
from ikd.auth.psk import PskEntry
from ikd.endpoint import Endpoint
from ikd.events import Broken, ChildClosed, ChildEstablished, DatagramDropped, Event, NegotiationFailed
from ikd.ikev2.numbers import exchange_name
from ikd.outputs import (
    AllocateSpi,
    Ask,
    Give,
    Inherit,
    Install,
    Keys,
    Move,
    Output,
    Release,
    Remove,
    Renew,
    Transmit,
    Ways,
)
from ikd.settings import IkeSettings
from ikd.wire.isakmp import Header
from policy.engine import Policy, diff
from policy.parse import compose
from sadb.address import Address, Path, SocketAddress
from sadb.database import Database
from sadb.memory import MemoryBackend
from sadb.sa import SaPair
from sadb.secret import Secret
from sadb.selector import Fields

LEFT, RIGHT = ip_address("192.0.2.1"), ip_address("192.0.2.2")
NAT = ip_address("203.0.113.9")
SHIFT = 10000  # what the NAT adds to ports
SECRET = b"a secret that both ends know"
POSIX = 1_790_000_000.0  # calendar time of virtual second 0
BOTH = ("left", "right")

TUNNEL = """
[[rule]]
name     = "{name}"
local    = "{local}"
remote   = "{remote}"
tunnel   = {{ local = "{own}", remote = "{peer}" }}
security = "require"
auth     = "{auth}"
{extra}
"""
ANY = """
[auth.any]
first = ["certificate", "psk"]
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
    keepalives: list[float] = field(default_factory=list)  # when it sent one
    slow: float = 0.0  # seconds until a question is answered

    def of(self, kind: type[Event]) -> list[Any]:
        """Its events of a class."""
        return [one for one in self.events if isinstance(one, kind)]

    @property
    def failures(self) -> list[NegotiationFailed]:
        """Negotiations that came to nothing."""
        return self.of(NegotiationFailed)

    @property
    def drops(self) -> list[str]:
        """Why datagrams were dropped."""
        return [one.reason for one in self.of(DatagramDropped)]

    @property
    def ikes(self) -> list[Association]:
        """Its IKE SAs."""
        return list(self.endpoint.associations.values())

    @property
    def pairs(self) -> list[SaPair]:
        """The pairs in the SADB that are in use, not those that only receive what is late."""
        return [one for one in self.database.pairs() if not self._lingers(one)]

    def _lingers(self, pair: SaPair) -> bool:
        return any(pair is one for a in self.ikes for _, one in a.session.children.lingering)


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


def tunnel_rules(
    name: str,
    *,
    nets: int = 1,
    own: Address | None = None,
    peer: Address | str | None = None,
    auth: str = "any",
    extra: str = "",
    family: int = 4,
) -> str:
    """The policy of `left` or `right`: tunnel rules `net`, `net1`, ... for the networks behind both."""
    mine, theirs = ("1", "2") if name == "left" else ("2", "1")
    net = "10.{}.{}.0/24" if family == 4 else "fd00:{}:{}::/64"
    return "".join(
        TUNNEL.format(
            name=f"net{n or ''}",
            local=net.format(mine, n),
            remote=net.format(theirs, n),
            own=own or (LEFT if name == "left" else RIGHT),
            peer=peer or (RIGHT if name == "left" else LEFT),
            auth=auth,
            extra=extra,
        )
        for n in range(nets)
    ) + (ANY if auth == "any" else "")


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
    nets: int = 1,
    ends: tuple[Address, Address] = (LEFT, RIGHT),
    family: int = 4,
    nat: str = "",
    sets: str = "",
    seed: int = 0,
) -> tuple[Host, Host]:
    """Two hosts with tunnel rules for the networks behind them; the rules may get further lines. `nat` names
    the host that the other one sees behind a NAT, `ends` their outer addresses, `sets` further tables."""
    made = []
    for name, own, peer, more, material, own_settings in (
        ("left", *ends, left_rule, left, left_settings),
        ("right", *ends[::-1], right_rule, right, right_settings),
    ):
        other = "right" if name == "left" else "left"
        seen = NAT if nat == other else peer
        rules = tunnel_rules(name, nets=nets, own=own, peer=seen, auth=auth, extra=more, family=family)
        rules += sets
        material = material or psk(f"{name}.example", f"{other}.example")
        made.append(host(name, own, rules, material, own_settings or settings, seed))
    return made[0], made[1]


class Link:
    """The path between two hosts, and the clock; the host named `nat` is behind one."""

    def __init__(self, left: Host, right: Host, *, nat: str = "") -> None:
        self.left, self.right = left, right
        self.now = 100.0
        self.flights: list[Flight] = []
        self.fate: Callable[[Flight], None] = lambda flight: None
        self.inside = self.named(nat) if nat else None
        self.shift = SHIFT  # a NAT that forgets its mappings takes another
        self.gaps: list[str] = []
        self._watched: dict[Host, tuple[str, Fields]] = {}
        self._queue: list[tuple[float, int, Flight]] = []
        self._open: list[tuple[float, int, tuple[Host, Ask]]] = []  # questions and when they are answered
        self._serial = itertools.count()

    # Commands --------------------------------------------------------------------------------------------

    def named(self, name: str) -> Host:
        """A host by its name."""
        return self.left if name == self.left.name else self.right

    def path(self, sender: Host, port: int = 500) -> Path:
        """From a host to the other."""
        other = self.other(sender)
        address = NAT if other is self.inside else other.address
        return Path(SocketAddress(sender.address, port), SocketAddress(address, port))

    def other(self, one: Host) -> Host:
        """The other end."""
        return self.right if one is self.left else self.left

    def up(self, rule: str = "net", sender: Host | str = "left", **how: Any) -> None:
        """Negotiate for a rule, the left host by default."""
        sender = self.named(sender) if isinstance(sender, str) else sender
        found = sender.endpoint.policy.rule(rule)
        assert found is not None
        self.perform(sender, sender.endpoint.initiate(found, self.path(sender), self.now, **how))

    def rekey_child(self, sender: Host) -> None:
        """Replace the newest pair of a host, if it has one."""
        for pair in sender.pairs[-1:]:
            self.perform(sender, sender.endpoint.rekey_child(pair, self.now))

    def close_child(self, sender: Host) -> None:
        """Delete the newest pair of a host, if it has one."""
        for pair in sender.pairs[-1:]:
            self.perform(sender, sender.endpoint.close_child(pair, self.now, "a test"))

    def rekey(self, sender: Host) -> None:
        """Replace the newest IKE SA of a host, if it has one."""
        for one in sender.ikes[-1:]:
            self.perform(sender, sender.endpoint.rekey(one, self.now))

    def close(self, sender: Host) -> None:
        """Delete the newest IKE SA of a host, if it has one."""
        for one in sender.ikes[-1:]:
            self.perform(sender, sender.endpoint.close(one, self.now, "a test"))

    def reload(self, sender: Host, rules: str) -> None:
        """Give a host another policy."""
        endpoint, made = sender.endpoint, policy(rules)
        env = endpoint.env
        changes = diff(endpoint.policy, made)
        outputs = endpoint.reload(made, env.credentials, env.settings, changes, self.now)
        self.perform(sender, outputs)

    # Time ------------------------------------------------------------------------------------------------

    def run(self, seconds: float = 5.0) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while (due := self._next()) is not None and due[0] <= end:
            self.now, what = due
            if what == "flight":
                self._arrive(heapq.heappop(self._queue)[2])
            elif what == "answer":
                one, asked = heapq.heappop(self._open)[2]
                self.perform(one, self._answered(one, asked))
            else:
                self._tick(self.named(what))
        self.now = end

    def step(self) -> bool:
        """Let the next thing happen; False when nothing is due any more."""
        due = self._next()
        if due is not None:
            self.run(max(0.0, due[0] - self.now))
        return due is not None

    def _next(self) -> tuple[float, str] | None:
        due = [(when, "flight") for when, _, _ in self._queue[:1]]
        due += [(when, "answer") for when, _, _ in self._open[:1]]
        for one in (self.left, self.right):
            for when in (one.endpoint.deadline(), one.database.deadline()):
                if when is not None:
                    due.append((max(when, self.now), one.name))
        return min(due, default=None)

    def _tick(self, one: Host) -> None:
        for expire in one.database.tick(self.now):
            self.perform(one, one.endpoint.expired(expire, self.now))
        self.perform(one, one.endpoint.tick(self.now))

    def _arrive(self, flight: Flight) -> None:
        receiver = self.other(flight.sender)
        source, target = flight.path.local, SocketAddress(receiver.address, flight.path.peer.port)
        if flight.sender is self.inside:
            source = SocketAddress(NAT, self.shift + source.port)
        elif receiver is self.inside:
            target = SocketAddress(receiver.address, flight.path.peer.port - self.shift)
            if target.port not in (500, 4500):
                return  # to a mapping the NAT does not have
        self.perform(receiver, receiver.endpoint.receive(flight.data, Path(target, source), self.now))

    # Watching --------------------------------------------------------------------------------------------

    def watch(self, rule: str = "net") -> None:
        """From now on note every moment in which traffic of a rule would be lost."""
        for one in (self.left, self.right):
            found = one.endpoint.policy.rule(rule)
            assert found is not None
            ends = found.selector.local[0].low + 1, found.selector.remote[0].low + 1
            self._watched[one] = rule, Fields(*ends, 17, 4000, 4000)
        self._look()

    def _look(self) -> None:
        for one, (rule, packet) in self._watched.items():
            pair = one.database.outbound(rule, packet)
            if pair is None:
                self.gaps.append(f"{self.now:.3f}: {one.name} has no pair")
            elif self.other(one).database.by_spi(pair.outbound.spi) is None:
                self.gaps.append(f"{self.now:.3f}: {one.name} sends on a pair the other side has not got")

    # Outputs ---------------------------------------------------------------------------------------------

    def perform(self, one: Host, outputs: Iterable[Output]) -> None:
        """Do what a host's core wants done."""
        pending = list(outputs)
        while pending:
            output = pending.pop(0)
            match output:
                case Transmit():
                    self._send(one, output)
                case Ask() if one.slow:
                    later = (self.now + one.slow, next(self._serial), (one, output))
                    heapq.heappush(self._open, later)
                case Ask():
                    pending[:0] = self._answered(one, output)
                case Release():
                    one.database.release(output.spi)
                case Remove():
                    one.database.remove(output.pair)
                case Inherit():
                    one.database.inherit(output.former, output.owner)
                case Give():
                    one.database.give(output.pair, output.owner)
                case Renew():
                    pending[:0] = self._renewed(one, output)
                case Move():
                    path = output.path
                    ports = (path.local.port, path.peer.port) if output.encapsulated else None
                    one.backend.moved(output.pair, path.local.address, path.peer.address, ports)
                case Keys():
                    one.keys.append(output)
                case Event():
                    one.events.append(output)
        self._look()

    def _answered(self, one: Host, asked: Ask) -> list[Output]:
        return one.endpoint.answer(asked.ticket, self._answer(one, asked.question), self.now)

    def _answer(self, one: Host, question: Any) -> Any:
        try:
            if one.asked and (answer := one.asked(question)) is not None:
                return answer
            match question:
                case AllocateSpi():
                    return one.database.allocate_spi(self.now, question.wanted)
                case Install():
                    return one.database.install(question.pair, self.now, question.replaces)
                case Authenticate():
                    return question.side.step(question.token)
                case Ways():
                    return self.ways(one, question.peers)
        except Exception as error:
            return error
        raise AssertionError(question)

    def ways(self, one: Host, peers: Iterable[Address]) -> dict[Address, Address]:
        """From which of its addresses a host sends to each of these."""
        return dict.fromkeys(peers, one.address)

    def _renewed(self, one: Host, output: Renew) -> list[Output]:
        rule = one.endpoint.policy.rule(output.rule)
        way = self.ways(one, (output.peer,)).get(output.peer)
        if rule is None or way is None:
            return []
        path = Path(SocketAddress(way, 500), SocketAddress(output.peer, 500))
        return one.endpoint.initiate(rule, path, self.now)

    def _send(self, one: Host, output: Transmit) -> None:
        if output.data == b"\xff":
            one.keepalives.append(self.now)
            return
        flight = Flight(one, output.data, output.path, len(self.flights))
        self.flights.append(flight)
        self.fate(flight)
        for n in range(1 + flight.copies):
            if not flight.lost:
                when = self.now + flight.delay * (n + 1)
                heapq.heappush(self._queue, (when, next(self._serial), replace(flight)))

    def inject(self, receiver: Host, data: bytes, port: int = 500, source: Address | None = None) -> None:
        """A datagram from the other host's address (or another) that it never sent."""
        path = self.path(receiver, port)
        if source is not None:
            path = Path(path.local, SocketAddress(source, port))
        self.perform(receiver, receiver.endpoint.receive(data, path, self.now))


def connected(**how: Any) -> Link:
    """Two hosts with the tunnel `net` up, and everything quiet."""
    nat = how.get("nat", "")
    link = Link(*tunnel_hosts(**how), nat=nat)
    link.up("net", nat or "left")
    link.run(1)
    assert mirrored(link.left, link.right)
    return link


def losing(*numbers: int) -> Callable[[Flight], None]:
    """A fate that loses the datagrams with these numbers, counted from the moment of its first use."""
    seen = itertools.count()

    def fate(flight: Flight) -> None:
        flight.lost = next(seen) in numbers

    return fate


def mirrored(left: Host, right: Host) -> bool:
    """Whether both hold the same pairs, seen from either side, with the same keys."""
    ours = sorted(_facts(one, turned=False) for one in left.pairs)
    theirs = sorted(_facts(one, turned=True) for one in right.pairs)
    return bool(ours) and str(ours) == str(theirs)


def _facts(one: SaPair, *, turned: bool) -> tuple[Any, ...]:
    inbound, outbound = (one.outbound, one.inbound) if turned else (one.inbound, one.outbound)
    sides = (one.selector.local, one.selector.remote)
    return (
        inbound.spi,
        outbound.spi,
        str(inbound.suite),
        inbound.suite.esn,
        str(one.mode),
        str(sides[::-1] if turned else sides),
        bytes(inbound.encryption_key),
        bytes(outbound.encryption_key),
        bytes(inbound.integrity_key),
        bytes(outbound.integrity_key),
    )


def agree(link: Link, *, ikes: int | None = None, pairs: int | None = None) -> None:
    """Both sides have the same IKE SAs and the same pairs (as many as given), nothing is under way, the SADB
    holds what the IKE SAs own, and nothing broke."""
    left, right = link.left, link.right
    spis = [sorted((one.spi_i, one.spi_r) for one in host.ikes) for host in (left, right)]
    assert spis[0] == spis[1], story(link)
    if ikes is not None:
        assert len(spis[0]) == ikes, story(link)
    assert not left.pairs or mirrored(left, right), story(link)
    assert len(left.pairs) == len(right.pairs), story(link)
    if pairs is not None:
        assert len(left.pairs) == pairs, story(link)
    for one in (left, right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert one.endpoint.idle, story(link)
        assert all(found.waiting == "" for found in one.ikes)
        owned = [pair for found in one.ikes for pair in found.children.values()]
        assert sorted(map(id, owned)) == sorted(map(id, one.database.pairs())), story(link)
        assert all(pair.owner == found.number for found in one.ikes for pair in found.children.values())
        assert set(one.backend.pairs) == set(one.database.pairs())
        assert one.database.counts().larval == 0, "an SPI was never given back"
        assert len(one.of(ChildEstablished)) - len(one.of(ChildClosed)) == len(owned), story(link)


def story(link: Link) -> str:
    """What went over the link and what each side said, for reading when a test fails."""
    lines = [f"{'lost ' if one.lost else ''}{one}" for one in link.flights]
    for one in (link.left, link.right):
        lines += [f"{one.name}: {event.text}" for event in one.events if event.level != "debug"]
    return "\n".join(("", *lines))


VECTORS = File(__file__).resolve().parents[1] / "vectors"
