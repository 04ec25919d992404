"""What the exchanges of one IKE SA share: its channel, keys, proven peer and Child SAs (RFC 7296 sections 2.4
to 2.8).

A `Session` is facts and small operations on them; `ikd.association` drives its exchanges, `ikd.endpoint`
holds all of them. Outputs and events leave through `emit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ikd.auth import Authenticated, Identity, Transcript
from ikd.auth.credentials import Credentials
from ikd.events import ChildClosed, ChildEstablished
from ikd.ikev2.channel import Channel
from ikd.ikev2.keys import IkeKeys, expand
from ikd.outputs import Keys, Output, Remove
from ikd.settings import IkeSettings
from policy.engine import Policy
from policy.rules import AuthMethod, Rule
from sadb.address import Path
from sadb.algorithms import MainSuite
from sadb.crypto import prf
from sadb.sa import SaPair

LINGER = 2.0  # seconds for which a replaced pair still receives what was on its way


@dataclass(slots=True)
class Environment:
    """What all IKE SAs of this host share; a reload changes the fields."""

    settings: IkeSettings
    policy: Policy
    credentials: Credentials
    random: Callable[[int], bytes]


@dataclass(slots=True)
class ChildRekey:
    """A Child SA that is being replaced, maybe by both sides at once (section 2.8.1)."""

    ours: bool = False  # a request of ours is on its way
    theirs: tuple[bytes, SaPair] | None = None  # the lower nonce of the peer's exchange, and what it made


@dataclass(slots=True)
class IkeRekey:
    """The same for the IKE SA (section 2.8.2)."""

    ours: bool = False
    theirs: tuple[bytes, Session] | None = None


@dataclass(slots=True)
class Children:
    """The Child SAs of an IKE SA and what is being done to them; an IKE SA and its successor share them."""

    pairs: dict[int, SaPair]  # by inbound SPI
    rekeys: dict[int, ChildRekey]  # by inbound SPI of the pair that is replaced
    deleting: set[int]  # inbound SPIs in a Delete of ours that is not answered yet
    creating: list[str]  # rules for which a request of ours is on its way
    lingering: list[tuple[float, SaPair]]  # replaced pairs and when they go
    due: dict[int, SaPair]  # pairs that are to be replaced as soon as nothing stands against it
    early: set[int]  # the peer's SPIs that it deleted before its answer told us of them

    @classmethod
    def none(cls) -> Children:
        """Without any."""
        return cls({}, {}, set(), [], [], {}, set())

    @property
    def asking(self) -> bool:
        """Whether a request of ours for a Child SA is on its way."""
        return bool(self.creating) or any(one.ours for one in self.rekeys.values())

    def forget_early(self) -> None:
        """Nothing is on its way any more that an early deletion could be meant for."""
        if not self.asking:
            self.early.clear()


class Hooks:
    """What a session asks of those who hold it; set by association and endpoint."""

    __slots__ = ("adopt", "authenticated", "close", "discard", "emit", "first_contact", "inherit", "new_spi")

    emit: Callable[[Output], None]
    new_spi: Callable[[], bytes]
    first_contact: Callable[[], bool]  # whether we have no other IKE SA with this peer now
    authenticated: Callable[[], None]  # the peer is proven
    adopt: Callable[[Session], None]  # a successor of this IKE SA exists
    inherit: Callable[[Session], None]  # ... and takes over the Child SAs
    discard: Callable[[Session, str], None]  # a successor that lost a collision: delete it at the peer
    close: Callable[[str, bool], None]  # this IKE SA is over; whether the peer wanted it


class Session:
    """One IKE SA. `number` is its name in events and the owner of its pairs."""

    __slots__ = (
        "authorities",
        "channel",
        "childless",
        "children",
        "claimed",
        "env",
        "hooks",
        "ike_rekey",
        "init_request",
        "init_response",
        "initial_contact",
        "keys",
        "local_identity",
        "nat_local",
        "nat_peer",
        "nonce_i",
        "nonce_r",
        "now",
        "number",
        "path",
        "peer",
        "peer_hashes",
        "peer_window",
        "pending",
        "rule",
        "suite",
    )

    def __init__(self, number: int, env: Environment, channel: Channel, path: Path, now: float) -> None:
        self.number = number
        self.env = env
        self.channel = channel
        self.path = path
        self.now = now
        self.hooks = Hooks()
        self.rule: Rule | None = None
        self.suite: MainSuite | None = None
        self.keys: IkeKeys | None = None
        self.pending: Callable[[], None] | None = None  # makes the keys when they are needed first
        self.nonce_i = self.nonce_r = b""
        self.init_request = self.init_response = b""
        self.local_identity: Identity | None = None
        self.claimed: Identity | None = None  # what the peer says it is, proven or not
        self.peer: Authenticated | None = None
        self.peer_hashes: frozenset[int] = frozenset()
        self.authorities: tuple[bytes, ...] = ()
        self.nat_local = self.nat_peer = False
        self.peer_window = 1
        self.childless = False  # the peer takes an IKE SA without a Child SA
        self.initial_contact = False  # the peer says that it has no other with us
        self.children = Children.none()
        self.ike_rekey: IkeRekey | None = None

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def initiator(self) -> bool:
        """Whether we sent the first message of this IKE SA."""
        return self.channel.initiator

    @property
    def nat(self) -> bool:
        """Whether addresses or ports change on the way."""
        return self.nat_local or self.nat_peer

    @property
    def peer_name(self) -> str:
        """The peer for people: what it proved, what it claims, or its address."""
        who = self.peer.identity if self.peer else self.claimed
        return str(who) if who else str(self.path.peer.address)

    @property
    def rule_name(self) -> str:
        """The rule this IKE SA was made for, empty while it is not known."""
        return self.rule.name if self.rule else ""

    def emit(self, output: Output) -> None:
        """Hand an output or event to the world."""
        self.hooks.emit(output)

    def rules(self) -> tuple[Rule, ...]:
        """The rules this IKE SA can serve by addresses and main-mode suite, most specific first."""
        found = self.env.policy.for_peer(self.path.local.address, self.path.peer.address)
        return tuple(rule for rule in found if rule.crypto and self.suite in rule.crypto.main)

    def serves(self, rule: Rule) -> bool:
        """Whether the proof this peer gave is one the rule asks for."""
        return methods(rule) == methods(self.rule)

    def transcript(self, identity: bytes, *, of_initiator: bool) -> Transcript:
        """What one side signs, section 2.15; `identity` is the body of its ID payload."""
        assert self.keys is not None
        assert self.suite is not None
        row = self.suite.prf
        if of_initiator:
            octets = self.init_request + self.nonce_r + prf(row, bytes(self.keys.pi), identity)
        else:
            octets = self.init_response + self.nonce_i + prf(row, bytes(self.keys.pr), identity)
        return Transcript(octets, row)

    # Changes ---------------------------------------------------------------------------------------------

    def arm(self, suite: MainSuite, skeyseed: bytes) -> None:
        """Derive all keys and take them into use."""
        channel = self.channel
        keys = expand(suite, skeyseed, self.nonce_i, self.nonce_r, channel.spi_i, channel.spi_r)
        self.suite, self.keys = suite, keys
        channel.arm(suite, keys)
        self.emit(Keys(channel.spi_i, channel.spi_r, suite, (keys.ei, keys.er), (keys.ai, keys.ar)))

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
        children.deleting.discard(pair.inbound.spi)
        children.rekeys.pop(pair.inbound.spi, None)
        children.due.pop(pair.inbound.spi, None)
        if linger:
            pair.standby = True
            children.lingering.append((self.now + LINGER, pair))
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

    def successor(self, *, initiator: bool, spi_i: bytes, spi_r: bytes, now: float) -> Session:
        """An IKE SA that inherits all that was proven (section 2.8); it has no keys and number yet."""
        settings = self.env.settings
        channel = Channel(
            initiator,
            spi_i,
            spi_r,
            self.env.random,
            window=settings.window,
            message_limit=settings.message_size,
        )
        channel.fragments = self.channel.fragments
        made = Session(0, self.env, channel, self.path, now)
        for name in _PROVEN:
            setattr(made, name, getattr(self, name))
        return made


_PROVEN = (
    "rule",
    "local_identity",
    "claimed",
    "peer",
    "peer_hashes",
    "peer_window",
    "nat_local",
    "nat_peer",
    "childless",
)


def methods(rule: Rule | None) -> tuple[AuthMethod, ...]:
    """The first authentication of a rule."""
    return rule.auth.first if rule and rule.auth else ()
