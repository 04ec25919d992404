"""What the exchanges of one IKE SA share: its channel, keys, proven peer and Child SAs (RFC 7296 sections 2.4
to 2.8).

`ikd.ikev2.association` drives its exchanges, `ikd.endpoint` holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ikd import keying
from ikd.auth import Transcript
from ikd.ikev2.channel import Channel
from ikd.ikev2.keys import IkeKeys, expand
from ikd.ikev2.message import Refused
from ikd.ikev2.mobility import Mobility
from ikd.ikev2.proposals import PROTOCOLS
from ikd.keying import Environment
from ikd.outputs import Keys, Output
from sadb.address import Path
from sadb.algorithms import MainSuite
from sadb.crypto import prf
from sadb.sa import SaPair


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
class Children(keying.Children):
    """The Child SAs and what is being done to them."""

    rekeys: dict[int, ChildRekey] = field(default_factory=dict)  # by inbound SPI of the pair that is replaced
    requests: int = 0  # CREATE_CHILD_SA of ours that are not answered, whatever became of the pair meanwhile
    early: set[int] = field(default_factory=set)  # SPIs the peer deleted before its answer told us of them
    closing: dict[int, str] = field(default_factory=dict)  # to be deleted on the successor, and why

    def forget(self, spi: int) -> None:
        """Nothing is being done to this pair any more."""
        keying.Children.forget(self, spi)
        self.rekeys.pop(spi, None)
        self.closing.pop(spi, None)

    @property
    def asking(self) -> bool:
        """Whether a request of ours for a Child SA is on its way."""
        return bool(self.creating or self.requests) or any(one.ours for one in self.rekeys.values())

    def forget_early(self) -> None:
        """Nothing is on its way any more that an early deletion could be meant for."""
        if not self.asking:
            self.early.clear()


class Hooks:
    """What a session asks of those who hold it; set by association and endpoint."""

    __slots__ = (
        "adopt",
        "authenticated",
        "choose",
        "close",
        "discard",
        "emit",
        "first_contact",
        "follow",
        "heard_addresses",
        "inherit",
        "linger",
        "new_spi",
        "original",
        "refused",
        "trust",
    )

    emit: Callable[[Output], None]
    new_spi: Callable[[], bytes]
    first_contact: Callable[[], bool]  # whether we have no other IKE SA with this peer now
    authenticated: Callable[[], None]  # the peer is proven
    adopt: Callable[[Session], None]  # a successor of this IKE SA exists
    inherit: Callable[[Session], None]  # ... and takes over the Child SAs
    discard: Callable[[Session, str], None]  # a successor that lost a collision: delete it at the peer
    linger: Callable[[], None]  # this IKE SA, which is not up, ends in a moment
    original: Callable[[bytes, bytes], Session | None]  # another IKE SA that is up, by its SPIs
    close: Callable[[str, bool], None]  # this IKE SA is over; whether the peer wanted it
    choose: Callable[[], None]  # all ways to the peer are known: take the best
    trust: Callable[[], None]  # the peer is where the IKE SA goes: the Child SAs may go there, too
    follow: Callable[[Path], None]  # the peer has decided on a path
    heard_addresses: Callable[[Path], None]  # ... or has other addresses, by a request that came this way
    refused: Callable[[Path, Refused], None]  # the peer does not want to be spoken to on a path


class Session(keying.MainMode):
    """One IKE SA."""

    __slots__ = (
        "authorities",
        "channel",
        "childless",
        "hooks",
        "ike_rekey",
        "init_request",
        "init_response",
        "keys",
        "mobility",
        "nonce_i",
        "nonce_r",
        "original",
        "peer_hashes",
        "peer_window",
        "pending",
        "traversal",
        "update_id",
        "windows_status",
    )

    def __init__(self, number: int, env: Environment, channel: Channel, path: Path, now: float) -> None:
        keying.MainMode.__init__(self, number, env, path, now)
        self.channel = channel
        self.hooks = Hooks()
        self.keys: IkeKeys | None = None
        self.pending: Callable[[], None] | None = None  # makes the keys when they are needed first
        self.nonce_i = self.nonce_r = b""
        self.init_request = self.init_response = b""
        self.peer_hashes: frozenset[int] = frozenset()
        self.authorities: tuple[bytes, ...] = ()
        self.peer_window = 1
        self.childless = False  # the peer takes an IKE SA without a Child SA
        self.traversal = False  # the peer looks for NATs
        self.mobility: Mobility | None = None  # both sides can move
        self.update_id = 0  # message ID of the peer's last request about addresses
        self.children: Children = Children()
        self.ike_rekey: IkeRekey | None = None
        self.original: Session | None = None  # which this one proves again, to be thrown away then
        self.windows_status = 0  # in the peer's last answer

    @property
    def initiator(self) -> bool:
        """Whether we sent the first message of this IKE SA."""
        return self.channel.initiator

    @property
    def outer(self) -> tuple[Path, bool]:
        """The path of its Child SAs, and whether they go in UDP."""
        if self.mobility is None:
            return self.path, self.nat
        trusted = self.mobility.trusted
        return trusted.path, trusted.nat_local or trusted.nat_peer

    @property
    def proven_at(self) -> tuple[Path, ...]:
        """Where it began, and where the peer has answered since: not where it only says it is."""
        return (self.home, self.outer[0]) if self.mobility else super().proven_at

    def emit(self, output: Output) -> None:
        """Hand an output or event to the world."""
        self.hooks.emit(output)

    def named(self, protocol: int, spi: bytes) -> SaPair | None:
        """The pair the peer means: its inbound SPI is the one we send with."""
        pair = self.by_outbound(int.from_bytes(spi, "big")) if len(spi) == 4 else None
        return pair if pair and PROTOCOLS[pair.outbound.suite.protocol] == protocol else None

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

    def arm(self, suite: MainSuite, skeyseed: bytes) -> None:
        """Derive all keys and take them into use."""
        channel = self.channel
        keys = expand(suite, skeyseed, self.nonce_i, self.nonce_r, channel.spi_i, channel.spi_r)
        self.suite, self.keys = suite, keys
        channel.arm(suite, keys)
        if (exported := self.exported()) is not None:
            self.emit(exported)

    def exported(self) -> Keys | None:
        """Its keys, for whoever asked to have them exported; None while there are none."""
        channel, keys = self.channel, self.keys
        if keys is None or self.suite is None:
            return None
        ends = channel.spi_i, channel.spi_r
        return Keys(*ends, self.suite, (keys.ei, keys.er), (keys.ai, keys.ar), self.path.peer.address)

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
    "vendors",
    "home",
    "stranded",
    "mobility",
)
