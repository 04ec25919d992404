"""One main-mode SA as all keying modules have it: what people and the endpoint see of it, and its Child SAs'
clocks.

Each protocol has an association of its own (`ikd.ikev2.association`), with its own idea of messages and
repetitions; what they share is here. The endpoint knows no more of them than this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from ikd.auth import Authenticated, Identity
from ikd.events import DatagramDropped, IkeClosed, IkeEstablished, PeerLimited, WayFound, WayLost
from ikd.exchange import Question
from ikd.keying import MainMode
from ikd.life import Input, Life, State, idle_limits
from ikd.outputs import Inherit, Output, Remove, Renew
from ikd.wire.isakmp import Header
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.algorithms import MainSuite
from sadb.sa import Acquire, SaPair


class Owner(Protocol):
    """What an association needs of the endpoint that holds it."""

    def emit(self, output: Output) -> None: ...
    def ask(self, association: Association, talk: Any, question: Question[Any]) -> None: ...
    def new_spi(self) -> bytes: ...
    def by_spi(self, spi: bytes) -> Association | None: ...
    def first_contact(self, association: Association) -> bool: ...
    def may_complain(self, now: float) -> bool: ...
    def established(self, association: Association) -> None: ...
    def may_negotiate(self, association: Association, now: float) -> bool: ...
    def elsewhere(self, association: Association) -> int: ...
    def adopt(self, association: Association) -> None: ...
    def renew(self, association: Association, now: float) -> Association: ...
    def kin(self, association: Association) -> list[Association]: ...
    def rivals(self, association: Association) -> list[Association]: ...
    def withdraw(self, association: Association, now: float) -> None: ...
    def sibling(self, association: Association) -> Association | None: ...
    def association_of(self, session: MainMode) -> Association | None: ...
    def moved(self, association: Association, old: Address) -> None: ...
    def disown(self, association: Association) -> None: ...
    def forget(self, association: Association) -> None: ...


class Association(ABC):
    """One main-mode SA. `number` names it in events and owns its pairs."""

    __slots__ = ("armed_at", "created", "first_key", "inherited", "known_as", "life", "main", "owner")

    def __init__(self, main: MainMode, owner: Owner, now: float) -> None:
        self.main = main
        self.owner = owner
        self.created = now
        self.life = Life(now, main.env.settings.half_open_timeout)
        self.armed_at: float | None = None  # when the endpoint's timer will look here
        self.first_key: Any = None  # by which the endpoint counts it as half open
        self.known_as: Identity | None = None  # by which the endpoint finds it among others of its peer
        self.inherited = False  # a successor has the Child SAs
        main.elsewhere = lambda: owner.elsewhere(self)

    # Facts for people ------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Its name in events; the owner of its pairs."""
        return self.main.number

    @property
    def initiator(self) -> bool:
        """Whether we began it."""
        return self.main.initiator

    @property
    def path(self) -> Path:
        """Its addresses and ports now."""
        return self.main.path

    @property
    def rule(self) -> str:
        """The rule it was made for, empty while unknown."""
        return self.main.rule_name

    @property
    def peer(self) -> Authenticated | None:
        """The proven peer."""
        return self.main.peer

    @property
    def local_identity(self) -> Identity | None:
        """What we claim to be."""
        return self.main.local_identity

    @property
    def suite(self) -> MainSuite | None:
        """The suite agreed on."""
        return self.main.suite

    @property
    def spi_i(self) -> bytes:
        """The initiator's SPI."""
        return self.spis[0]

    @property
    def spi_r(self) -> bytes:
        """The responder's SPI, zero while unknown."""
        return self.spis[1]

    @property
    def nat(self) -> bool:
        """Whether there is a NAT on the way."""
        return self.main.nat

    @property
    def mobile(self) -> bool:
        """Whether it can follow either host to another address."""
        return False

    @property
    def also_at(self) -> tuple[Address, ...]:
        """Where the peer can be reached, too, by its own word."""
        return ()

    @property
    def children(self) -> Mapping[int, SaPair]:
        """Its Child SAs by inbound SPI."""
        return {} if self.inherited else self.main.children.pairs

    @property
    def state(self) -> State:
        """Where it stands in its life."""
        return self.life.state

    @property
    def rekey_at(self) -> float | None:
        """When it will be replaced."""
        return self.life.rekey_at

    @property
    @abstractmethod
    def spis(self) -> tuple[bytes, bytes]:
        """SPIs (cookies) of initiator and responder; the latter zero while unknown."""

    @property
    def own_spi(self) -> bytes:
        """The SPI we chose, by which datagrams find here."""
        return self.spis[0 if self.initiator else 1]

    @property
    @abstractmethod
    def waiting(self) -> str:
        """What it waits for, for people; empty when nothing."""

    @property
    @abstractmethod
    def answered(self) -> bool:
        """Whether the other end has answered in this protocol in a way that means something."""

    @property
    @abstractmethod
    def usable(self) -> bool:
        """Whether new Child SAs may be made on it."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""

    # What it can be told ---------------------------------------------------------------------------------

    @abstractmethod
    def initiate(
        self, rule: Rule, acquire: Acquire | None, now: float, *, childless: bool, twin: bool = False
    ) -> None:
        """Begin the initial exchanges. `twin`: the same is begun in another protocol, too, and the first
        answer decides."""

    @abstractmethod
    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram for this main-mode SA, whoever it came from."""

    @abstractmethod
    def answer(self, talk: Any, value: object, now: float) -> None:
        """The answer to a question of one of its exchanges; an exception fails it."""

    @abstractmethod
    def create_child(self, rule: Rule, acquire: Acquire | None, now: float) -> None:
        """Make a further Child SA, as soon as the main-mode SA is up."""

    @abstractmethod
    def awaits(self, rule: str) -> bool:
        """Whether a Child SA for a rule is being made already."""

    @abstractmethod
    def rekey_child(self, pair: SaPair, now: float) -> None:
        """Replace a Child SA, now or as soon as nothing stands against it."""

    @abstractmethod
    def close_child(self, pair: SaPair, reason: str, now: float) -> None:
        """Delete a Child SA here and at the peer."""

    @abstractmethod
    def relieve(self, pair: SaPair, now: float) -> None:
        """A pair from before this main-mode SA, now its own, has been replaced: delete it, here when what is
        on its way has come."""

    @abstractmethod
    def probe(self, now: float) -> None:
        """Ask whether the peer still has this main-mode SA."""

    @abstractmethod
    def rekey(self, now: float) -> None:
        """Replace the main-mode SA."""

    def reauthenticate(self, now: float) -> None:  # noqa: B027 - not all protocols have it
        """Prove ourselves again while the main-mode SA stays; where there is no way to, nothing happens."""

    @abstractmethod
    def delete(self, reason: str, now: float) -> None:
        """Delete it here and at the peer; one that is not up is simply forgotten."""

    @abstractmethod
    def abandon(self, reason: str, now: float) -> None:
        """End it here without telling the peer, which is gone or knows."""

    @abstractmethod
    def unknown_spi(self, spi: int, now: float) -> None:
        """The peer sends packets for a Child SA nobody has here: tell it."""

    @abstractmethod
    def hurry(self, now: float) -> None:
        """Repeat at once what is not answered: there is a way to the peer again."""

    @abstractmethod
    def deadline(self) -> float | None:
        """When `tick` has something to do."""

    @abstractmethod
    def tick(self, now: float) -> None:
        """Do what is due."""

    # The network -----------------------------------------------------------------------------------------

    def network_changed(self, now: float) -> None:
        """This host's addresses or routes are others now. A main-mode SA that cannot move and has lost its
        address is forgotten and negotiated anew, as soon as there is a way to the peer; the peer throws its
        own away when it sees that."""
        main = self.main
        main.now = now
        stays_away = main.lost and main.own_end == main.path.local.address  # no other address will do
        if not self.find_way(None if stays_away else main.way, now) or not main.lost:
            return
        if self.state is State.CONNECTING and not self.initiator:
            return
        rules = dict.fromkeys(pair.rule for pair in self.children.values()) or {self.rule: None}
        peer = main.path.peer.address
        self.abandon(f"this host has lost the address {main.path.local.address}", now)
        for rule in rules:
            self.owner.emit(Renew(rule, peer))

    def find_way(self, way: Address | None, now: float) -> bool:
        """Whether there is a way to the peer, from this address of ours. As long as there is none an SA that
        is up waits, and nobody counts how often it has asked in vain."""
        main, was = self.main, self.main.stranded
        main.stranded = way is None and self.life.up
        if main.stranded != was:
            event = WayLost if main.stranded else WayFound
            address = str(main.path.peer.address)
            self.owner.emit(event(ike=self.number, peer=main.peer_name, address=address))
        if was and not main.stranded:
            self.hurry(now)
        return way is not None

    # What all do alike -----------------------------------------------------------------------------------

    def begin_life(self) -> None:
        """The keys are proven: their time runs."""
        main = self.main
        seconds = main.rule.crypto.lifetime.main_seconds if main.rule and main.rule.crypto else None
        credential = main.env.credentials.remaining(main.peer) if main.peer else None
        self.life.begin(main.now, seconds, credential, main.env.random)

    def established(self, replaces: int = 0) -> IkeEstablished:
        """The event that it is up; `replaces` is the number of the one it was rekeyed from."""
        main = self.main
        spi_i, spi_r = self.spis
        return IkeEstablished(
            ike=main.number,
            keying=main.keying,
            peer=main.peer_name,
            authenticated_as=main.peer.description if main.peer else "",
            local=str(main.local_identity or ""),
            suite=str(main.suite),
            initiator=main.initiator,
            spi_i=spi_i.hex(),
            spi_r=spi_r.hex(),
            path=main.path,
            nat=main.nat,
            replaces=replaces,
        )

    def hand_over(self, heir: Association) -> None:
        """Its Child SAs belong to its successor from now on."""
        self.inherited = True
        self.life.move(Input.REKEY)
        self.main.children = heir.main.children = heir.main.children.joined(self.main.children)
        self.owner.emit(Inherit(self.number, heir.number))
        self.life.replaced(self.main.now)

    def child_deadlines(self) -> list[float]:
        """When a replaced pair goes, or one meets its idle limit."""
        if not self.life.up or self.inherited:
            return []
        children = self.main.children
        return [due for due, _ in (*children.lingering, *children.retiring, *idle_limits(self.main))]

    def tick_children(self, now: float) -> None:
        """Pairs that go by themselves."""
        if self.inherited:
            return
        lingering = self.main.children.lingering
        for due, pair in [one for one in lingering if one[0] <= now]:
            lingering.remove((due, pair))
            self.owner.emit(Remove(pair))
        retiring = self.main.children.retiring
        for due, pair in [one for one in retiring if one[0] <= now]:
            retiring.remove((due, pair))
            if pair.inbound.spi in self.main.children.pairs:
                self.close_child(pair, "replaced", now)
        for due, pair in idle_limits(self.main):
            if due <= now:
                self.close_child(pair, "idle", now)

    def heard_of_traffic(self) -> float:
        """When the peer last gave a sign of life, by a message or by a packet."""
        used = [pair.inbound.usage.last or 0.0 for pair in self.children.values()]
        self.life.heard = max([self.life.heard, *used])
        return self.life.heard

    def bury(self, reason: str, by_peer: bool) -> None:
        """Forget everything; what a successor has inherited stays."""
        main = self.main
        up = self.state is not State.CONNECTING
        self.life.move(Input.GONE)
        if not self.inherited:
            for pair in list(main.children.pairs.values()):
                main.drop(pair, reason)
            for _, pair in main.children.lingering:
                self.owner.emit(Remove(pair))
            main.children.lingering.clear()
        if up:
            self.owner.emit(IkeClosed(ike=self.number, peer=main.peer_name, reason=reason, by_peer=by_peer))
        self.owner.forget(self)

    def may_negotiate(self, now: float) -> bool:
        """Whether the peer, whose authentic request this is, does not ask for SAs too often; told if so."""
        if self.owner.may_negotiate(self, now):
            return True
        rate = self.main.env.settings.peer_rate
        self.limited("peer_rate", f"negotiates more often than {rate:g} times a second")
        return False

    def limited(self, limit: str, reason: str) -> None:
        """The event that the peer has met a limit of its own."""
        self.owner.emit(
            PeerLimited(
                ike=self.number,
                peer=self.main.peer_name,
                address=str(self.path.peer.address),
                limit=limit,
                reason=reason,
            )
        )

    def dropped(self, reason: str, detail: str, path: Path) -> None:
        """Count a datagram that came to nothing."""
        self.owner.emit(DatagramDropped(reason=reason, detail=detail, path=path))
