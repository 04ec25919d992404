"""Security associations and the flows that select them (RFC 4301 section 4.4).

An `SaPair` is what one quick mode (Child SA) yields: an inbound and an outbound `SecurityAssociation` with
the selectors and the rule they serve. `Flow` is a compiled piece of policy: a selector with an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from sadb.address import Address, SocketAddress
from sadb.algorithms import QuickSuite
from sadb.replay import ReplayWindow
from sadb.secret import Secret
from sadb.selector import Selector


class Mode(Enum):
    """How the packet sits in the SA."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"


class Action(Enum):
    """What a flow asks for."""

    PERMIT = "permit"
    BLOCK = "block"
    SECURE = "secure"


class Level(Enum):
    """How strictly a flow asks, per direction of initiation (Windows: none, request, require)."""

    NONE = "none"
    REQUEST = "request"
    REQUIRE = "require"


class State(Enum):
    """Life of an SA in the database (RFC 2367 section 2.3)."""

    LARVAL = "larval"
    MATURE = "mature"
    DYING = "dying"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When an SA must be replaced (soft) and die (hard); None means never. Seconds, octets, packets."""

    soft_seconds: float | None = None
    hard_seconds: float | None = None
    soft_octets: int | None = None
    hard_octets: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None


@dataclass(slots=True)
class Usage:
    """What has gone through an SA; `last` is the time of the latest packet on the owner's clock."""

    octets: int = 0
    packets: int = 0
    last: float | None = None


@dataclass(slots=True, eq=False)
class SecurityAssociation:
    """One direction. `source`/`destination` are the outer addresses; `encapsulation` the UDP ports (source,
    destination) of RFC 3948, or None for raw ESP. `sequence` is the last number sent; 64 bits with ESN."""

    spi: int
    suite: QuickSuite
    mode: Mode
    source: Address
    destination: Address
    selector: Selector  # from this host's point of view in both directions
    encryption_key: Secret
    integrity_key: Secret
    inbound: bool
    encapsulation: tuple[int, int] | None = None
    lifetime: Lifetime = field(default_factory=Lifetime)
    usage: Usage = field(default_factory=Usage)
    sequence: int = 0
    replay: ReplayWindow | None = None  # inbound only
    state: State = State.MATURE
    dscp: int | None = None  # outer DSCP; None copies the inner one
    dont_fragment: bool | None = None  # outer DF; None copies the inner one
    mtu: int | None = None  # of the link towards the destination, where that is known

    @property
    def last_sequence(self) -> int:
        """The last number there is."""
        return 0xFFFFFFFFFFFFFFFF if self.suite.esn else 0xFFFFFFFF

    def next_sequence(self) -> int | None:
        """The number for the next packet, or None when numbers are used up: then the SA is finished."""
        if self.sequence >= self.last_sequence:
            return None
        self.sequence += 1
        return self.sequence


@dataclass(slots=True, eq=False)
class SaPair:
    """What one negotiation yields; `owner` tells the main-mode SA that made it, `rule` the policy rule. One
    on `standby` receives, but is sent on only when nothing else is left: a peer that rekeys may not have the
    new pair yet, and drops the old one first. `watch` is told when its use changes, and set by a backend that
    has a copy of it. `grace`: seconds that the peer may need to make use of our last message, to which there
    is no answer."""

    inbound: SecurityAssociation
    outbound: SecurityAssociation
    selector: Selector
    mode: Mode
    rule: str
    owner: int
    created: float = 0.0
    watch: Callable[[SaPair], None] | None = None
    grace: float = 0.0
    _standby: bool = False

    @property
    def standby(self) -> bool:
        """Whether it is sent on only when nothing else is left."""
        return self._standby

    @standby.setter
    def standby(self, standby: bool) -> None:
        if standby != self._standby:
            self._standby = standby
            self.changed()

    def changed(self) -> None:
        """Tell who watches that the pair is to be used otherwise than before."""
        if self.watch is not None:
            self.watch(self)

    @property
    def peer(self) -> Address:
        """The outer address of the other end."""
        return self.outbound.destination

    def move(self, local: Address, peer: Address, encapsulation: tuple[int, int] | None) -> None:
        """Its outer addresses are others; `encapsulation` is that of the outbound direction."""
        out, back = self.outbound, self.inbound
        out.source, out.destination = back.destination, back.source = local, peer
        out.encapsulation = encapsulation
        back.encapsulation = encapsulation[::-1] if encapsulation else None


@dataclass(frozen=True, slots=True)
class Flow:
    """A compiled rule: packets it covers, what happens to them, and how flows rank (`order`: lower wins)."""

    rule: str
    selector: Selector
    action: Action
    order: int = 0
    mode: Mode = Mode.TRANSPORT
    inbound: Level = Level.REQUIRE
    outbound: Level = Level.REQUIRE
    tunnel_local: Address | None = None
    tunnel_remote: Address | None = None
    encrypt: bool = False


@dataclass(frozen=True, slots=True)
class Acquire:
    """The data plane needs an SA for this packet."""

    rule: str
    source: Address
    destination: Address
    protocol: int = 0
    source_port: int | None = None
    destination_port: int | None = None


@dataclass(frozen=True, slots=True)
class Expire:
    """An SA crossed a limit: soft (replace it) or hard (it is gone). `reason`: time, octets, packets or
    sequence."""

    spi: int
    inbound: bool
    hard: bool
    reason: str
    owner: int = 0  # the pair's; 0 when it is not known


@dataclass(frozen=True, slots=True)
class UnknownSpi:
    """An ESP or AH packet came for an SPI nobody has (a peer that kept SAs we lost)."""

    spi: int
    source: SocketAddress | Address
