"""What all keying modules share: the environment, and a main-mode SA (IKE SA) with its peer and its
quick-mode SAs (Child SAs).

A `MainMode` is facts and small operations on them. Each protocol's session derives from it and adds its
channel and keys; each protocol's association drives it. Outputs and events leave through `emit`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ikd.auth import UNPROVEN, Authenticated, Declined, Identity
from ikd.auth.credentials import Credentials
from ikd.events import (
    REFUSED_BY_PEER,
    AuthenticationFailed,
    ChildClosed,
    ChildEstablished,
    PeerAuthenticated,
)
from ikd.outputs import Keys, Output, Remove
from ikd.riders.announced import PROFILES, Announced
from ikd.riders.vendor import Known
from ikd.settings import IkeSettings
from policy.engine import Policy
from policy.peers import Verdict, admits
from policy.rules import AuthMethod, Rule
from sadb.address import Address, Path
from sadb.algorithms import MainSuite, QuickSuite
from sadb.replay import ReplayWindow
from sadb.sa import Lifetime, Mode, SaPair
from sadb.sa import SecurityAssociation as Half
from sadb.secret import Secret
from sadb.selector import Selector

RETIRE = 10.0  # seconds a peer of IKEv1 has for deleting what it has replaced; some never do
GRACE = 0.02  # seconds a responder of IKEv1 has for the last message of quick mode before packets follow it
LINGER = 2.0  # seconds for which a replaced pair still receives what was on its way
SOFT = 0.85  # the part of a limit at which keys are replaced; the SADB makes it a little smaller, at random


@dataclass(frozen=True, slots=True)
class Network:
    """What this host's network looked like when it last changed: its addresses, and from which of them it
    would send to each address of a peer; None: there is no route."""

    addresses: frozenset[Address]
    ways: Mapping[Address, Address | None]


@dataclass(slots=True)
class Environment:
    """What all main-mode SAs of this host share; reloads and changes of the network change the fields."""

    settings: IkeSettings
    policy: Policy
    credentials: Credentials
    random: Callable[[int], bytes]
    network: Network | None = None  # None while nothing is known of it


@dataclass(slots=True)
class Children:
    """The Child SAs of a main-mode SA and what is being done to them; a main-mode SA and its successor share
    them."""

    pairs: dict[int, SaPair] = field(default_factory=dict)  # by inbound SPI
    deleting: set[int] = field(
        default_factory=set
    )  # inbound SPIs in a Delete of ours that is not answered yet
    creating: list[str] = field(default_factory=list)  # rules for which a request of ours is on its way
    lingering: list[tuple[float, SaPair]] = field(default_factory=list)  # replaced pairs and when they go
    due: dict[int, SaPair] = field(
        default_factory=dict
    )  # to be replaced as soon as nothing stands against it

    retiring: list[tuple[float, SaPair]] = field(
        default_factory=list
    )  # pairs that a peer has replaced: when we delete those it has not deleted

    def joined(self, others: Children) -> Children:
        """These and those of a main-mode SA that goes, in one table."""
        if not (self.pairs or self.creating or self.lingering):
            return others
        if others is not self:
            self.pairs |= others.pairs
            self.deleting |= others.deleting
            self.creating += others.creating
            self.lingering += others.lingering
            self.due |= others.due
            self.retiring += others.retiring
        return self

    def forget(self, spi: int) -> None:
        """Nothing is being done to this pair any more."""
        self.deleting.discard(spi)
        self.due.pop(spi, None)


class MainMode(ABC):
    """One main-mode SA. `number` is its name in events and the owner of its pairs."""

    __slots__ = (
        "children",
        "claimed",
        "elsewhere",
        "env",
        "home",
        "initial_contact",
        "local_identity",
        "nat_local",
        "nat_peer",
        "now",
        "number",
        "path",
        "peer",
        "rule",
        "stranded",
        "suite",
        "tried",
        "user",
        "vendors",
    )

    keying: ClassVar[str] = "ikev2"  # the module's name as rules write it

    def __init__(self, number: int, env: Environment, path: Path, now: float) -> None:
        self.number = number
        self.env = env
        self.path = path
        self.now = now
        self.rule: Rule | None = None
        self.suite: MainSuite | None = None
        self.local_identity: Identity | None = None
        self.claimed: Identity | None = None  # what the peer says it is, proven or not
        self.tried = ""  # the method by which the peer proves itself, as rules name it; empty while unknown
        self.peer: Authenticated | None = None
        self.user: Authenticated | None = None  # of the second authentication: a user, or the peer's health
        self.nat_local = self.nat_peer = False
        self.home = path  # where it began, which rules know it by: only who is there could go on
        self.stranded = False  # there is no way to the peer now: its silence means nothing
        self.initial_contact = False  # the peer says that it has no other with us
        self.vendors: Mapping[Known, bytes] = {}  # what the peer says it knows, and what follows
        self.children = Children()
        self.elsewhere: Callable[[], int] = lambda: 0  # Child SAs the peer has under other main-mode SAs

    @property
    @abstractmethod
    def initiator(self) -> bool:
        """Whether we began it."""

    @abstractmethod
    def emit(self, output: Output) -> None:
        """Hand an output or event to the world."""

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def nat(self) -> bool:
        """Whether addresses or ports change on the way."""
        return self.nat_local or self.nat_peer

    @property
    def outer(self) -> tuple[Path, bool]:
        """The path of its Child SAs, and whether they go in UDP."""
        return self.path, self.nat

    @property
    def announced(self) -> Announced:
        """What we say with vendor IDs."""
        return PROFILES[self.env.settings.vendor_ids]

    @property
    def proven_identity(self) -> Identity | None:
        """By what the peer is the same as another one: its machine, or its user when that proved nothing; two
        who have proven nothing at all have nothing in common."""
        for one in (self.peer, self.user):
            if one is not None and not one.anonymous:
                return one.identity
        return None

    @property
    def peer_name(self) -> str:
        """The peer for people: what it proved, what it claims, or its address."""
        who = self.claimed
        if self.peer:
            who = None if self.peer.anonymous else self.peer.identity
        return str(who) if who else str(self.path.peer.address)

    @property
    def user_names(self) -> tuple[str, ...]:
        """What the second authentication has proven the peer to be, and whose member, as rules list users."""
        return self.user.claims if self.user else ()

    @property
    def rule_name(self) -> str:
        """The rule this IKE SA was made for, empty while it is not known."""
        return self.rule.name if self.rule else ""

    @property
    def peer_addresses(self) -> tuple[Address, ...]:
        """By which addresses the peer is found: where it is now, and where it began."""
        return tuple(dict.fromkeys((self.path.peer.address, self.home.peer.address)))

    @property
    def proven_at(self) -> tuple[Path, ...]:
        """Between which ends the peer is known to be. Where its last message claims to come from is none:
        anybody can write any address there, and a rule may be for that address alone."""
        return (self.home,)

    @property
    def ends(self) -> Path:
        """Between which hosts SAs in transport mode are made on it: where both are known to be now."""
        return self.proven_at[-1]

    def rules(self) -> tuple[Rule, ...]:
        """The rules this IKE SA can serve by addresses and main-mode suite, most specific first. One that
        has moved serves those it was made for, too: the peer is who it was."""
        ends = dict.fromkeys((one.local.address, one.peer.address) for one in self.proven_at)
        policy = self.env.policy
        found = {rule.name: rule for pair in ends for rule in policy.for_peer(*pair, self.keying)}
        return tuple(rule for rule in found.values() if rule.crypto and self.suite in rule.crypto.main)

    def lies_on(self, path: Path, mode: Mode) -> bool:
        """Whether an SA between the ends of a path may be made on this one. A tunnel goes where its IKE SA
        goes, from wherever that began; in transport mode packets have the addresses
        of both hosts. The peer has to be known to be there."""
        ends, local, peer = self.ends, path.local.address, path.peer.address
        if mode is Mode.TRANSPORT:
            return (ends.local.address, ends.peer.address) == (local, peer)
        known = any(one.peer.address == peer for one in self.proven_at)
        return known and local in (self.path.local.address, self.home.local.address)

    # Network ---------------------------------------------------------------------------------------------

    @property
    def own_end(self) -> Address | None:
        """The local address that the rule names for its tunnel, None where it leaves that open."""
        tunnel = self.rule.tunnel if self.rule and self.rule.mode is Mode.TUNNEL else None
        return tunnel.local if tunnel else None

    @property
    def lost(self) -> bool:
        """Whether this host has the SA's local address no more."""
        network = self.env.network
        return network is not None and self.path.local.address not in network.addresses

    @property
    def way(self) -> Address | None:
        """From which of our addresses the host would send to the peer, None without a route."""
        network = self.env.network
        return network.ways.get(self.path.peer.address, self.path.local.address) if network else None

    def idle_seconds(self, rule: Rule | None) -> float | None:
        """After how long without traffic a pair of a rule goes; None is never."""
        return rule.crypto.lifetime.idle_seconds if rule and rule.crypto else None

    def admits(self, rule: Rule) -> Verdict:
        """Whether the proven peer may use a rule."""
        return admits(rule, self.peer.claims if self.peer else (), self.user_names)

    def serves(self, rule: Rule) -> bool:
        """Whether the proof this peer gave is one the rule asks for."""
        return methods(rule) == methods(self.rule) and second(rule) == second(self.rule)

    def tell_authenticated(self, rule: Rule) -> None:
        """The event that the peer has proven itself."""
        assert self.peer is not None
        self.emit(
            PeerAuthenticated(
                ike=self.number,
                rule=rule.name,
                identity=str(self.peer.identity),
                method=self.peer.method,
                description=self.peer.description,
                address=str(self.path.peer.address),
            )
        )

    def unproven(self, error: Exception, rule: str, *, by_peer: bool) -> AuthenticationFailed:
        """The event that the peer has not proven itself or, `by_peer`, does not believe us."""
        named = error.claimed if isinstance(error, Declined) else ""
        return AuthenticationFailed(
            ike=self.number,
            rule=rule,
            identity=str(self.claimed or named),
            address=str(self.path.peer.address),
            reason=str(error),
            method=self.tried or method_names(self.env.policy.rule(rule) or self.rule),
            cause=REFUSED_BY_PEER if by_peer else getattr(error, "cause", UNPROVEN),
        )

    def exported(self) -> Keys | None:
        """Its keys in a form that can be exported; None where Wireshark could not use them."""
        return None

    # Child SAs -------------------------------------------------------------------------------------------

    def full(self, *, replacing: bool = False) -> str:
        """Why the peer may not make another Child SA, empty when it may. A pair and its replacement are both
        there until the peer deletes the former, if it does."""
        limits, here = self.env.settings, len(self.children.pairs)
        for most, there in ((limits.children, here), (limits.peer_children, here + self.elsewhere())):
            if there >= (2 * most if replacing else most):
                return f"this peer has {there} Child SAs, and {most} is the most it may have"
        return ""

    def add(self, pair: SaPair, replaces: SaPair | None = None) -> None:
        """A pair has been installed."""
        self.children.pairs[pair.inbound.spi] = pair
        self.emit(
            ChildEstablished(
                ike=self.number,
                rule=pair.rule,
                peer=self.peer_name,
                spi_in=f"{pair.inbound.spi:08x}",
                spi_out=f"{pair.outbound.spi:08x}",
                mode=pair.mode.value,
                suite=str(pair.inbound.suite),
                local=tuple(map(str, pair.selector.local)),
                remote=tuple(map(str, pair.selector.remote)),
                encapsulated=pair.outbound.encapsulation is not None,
                replaces=f"{replaces.inbound.spi:08x}" if replaces else "",
            )
        )

    def drop(self, pair: SaPair, reason: str, *, linger: bool = False) -> None:
        """A pair is over; with `linger` it goes on receiving for a moment."""
        children = self.children
        if children.pairs.pop(pair.inbound.spi, None) is None:
            return
        children.forget(pair.inbound.spi)
        if linger:
            pair.standby = True
            children.lingering.append((self.now + LINGER, pair))
            if len(children.lingering) > self.env.settings.children:  # a peer may replace without a pause
                self.emit(Remove(children.lingering.pop(0)[1]))
        else:
            self.emit(Remove(pair))
        self.emit(
            ChildClosed(
                ike=self.number,
                rule=pair.rule,
                peer=self.peer_name,
                spi_in=f"{pair.inbound.spi:08x}",
                spi_out=f"{pair.outbound.spi:08x}",
                reason=reason,
                octets_in=pair.inbound.usage.octets,
                octets_out=pair.outbound.usage.octets,
            )
        )

    def by_outbound(self, spi: int) -> SaPair | None:
        """The pair that sends with this SPI, which is how the peer names it."""
        return next((pair for pair in self.children.pairs.values() if pair.outbound.spi == spi), None)

    def pair(
        self,
        rule: Rule,
        suite: QuickSuite,
        spis: tuple[int, int],
        keys: tuple[tuple[Secret, Secret], tuple[Secret, Secret]],
        selector: Selector,
        mode: Mode,
    ) -> SaPair:
        """What a negotiation yields; `spis` are ours and the peer's, `keys` those of the packets we receive
        and of those we send, each (encryption, integrity)."""
        path, encapsulated = self.outer
        local, peer = path.local, path.peer
        life = lifetime(rule)
        window = ReplayWindow(self.env.settings.replay_window, esn=suite.esn)

        def half(spi: int, own: tuple[Secret, Secret], *, inbound: bool) -> Half:
            source, destination = (peer, local) if inbound else (local, peer)
            return Half(
                spi=spi,
                suite=suite,
                mode=mode,
                source=source.address,
                destination=destination.address,
                selector=selector,
                encryption_key=own[0],
                integrity_key=own[1],
                inbound=inbound,
                encapsulation=(source.port, destination.port) if encapsulated else None,
                lifetime=life,
                replay=window if inbound else None,
            )

        return SaPair(
            inbound=half(spis[0], keys[0], inbound=True),
            outbound=half(spis[1], keys[1], inbound=False),
            selector=selector,
            mode=mode,
            rule=rule.name,
            owner=self.number,
        )


def lifetime(rule: Rule) -> Lifetime:
    """The limits of a rule's Child SAs."""
    life = rule.crypto.lifetime if rule.crypto else None
    if life is None:
        return Lifetime()
    seconds, octets, packets = life.quick_seconds, life.quick_octets, life.quick_packets
    return Lifetime(
        soft_seconds=None if seconds is None else seconds * SOFT,
        hard_seconds=seconds,
        soft_octets=None if octets is None else int(octets * SOFT),
        hard_octets=octets,
        soft_packets=None if packets is None else int(packets * SOFT),
        hard_packets=packets,
    )


def methods(rule: Rule | None) -> tuple[AuthMethod, ...]:
    """The first authentication of a rule."""
    return rule.auth.first if rule and rule.auth else ()


def method_names(rule: Rule | None) -> str:
    """The first authentication of a rule, for people."""
    return " or ".join(dict.fromkeys(one.method for one in methods(rule)))


def second(rule: Rule | None) -> tuple[AuthMethod, ...]:
    """The second authentication of a rule."""
    return rule.auth.second if rule and rule.auth else ()
