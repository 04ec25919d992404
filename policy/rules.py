"""Connection-security rules, authentication sets and crypto sets, as loaded (docs/policy.md).

Everything here is frozen and complete: defaults are filled in, names are resolved, algorithms are rows.
`policy.load` makes these from TOML, `policy.engine` ranks and matches them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sadb.address import Address
from sadb.algorithms import MainSuite, QuickSuite
from sadb.sa import Action, Level, Mode
from sadb.selector import Selector, TrafficSelector


@dataclass(frozen=True, slots=True)
class AuthMethod:
    """One entry of an authentication set; the fields after `method` narrow a certificate."""

    method: str  # psk, certificate, kerberos, ntlm, anonymous; user-* in second sets
    ca: str | None = None  # distinguished name that must be in the chain
    health: bool = False
    eku: tuple[str, ...] = ()  # dotted OIDs, all required
    signing: str | None = None  # rsa, ecdsa-p256, ecdsa-p384, ecdsa-p521, ed25519, ed448; None: any
    minimum_rsa_bits: int = 2048
    mutual: bool = True  # in AuthIP: False leaves the initiator unproven


@dataclass(frozen=True, slots=True)
class AuthSet:
    """Ordered authentication methods: first (machine) and second (user or health)."""

    name: str
    first: tuple[AuthMethod, ...]
    second: tuple[AuthMethod, ...] = ()

    @property
    def optional(self) -> bool:
        """Whether a peer without the second authentication will do: it may stay anonymous there."""
        return bool(self.second) and self.second[-1].method == "anonymous"

    @property
    def proves_users(self) -> bool:
        """Whether the second authentication is of a user, not of the machine's health."""
        return any(method.method.startswith("user-") for method in self.second)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds, octets and packets after which keys are replaced; None means no limit."""

    main_seconds: float = 8 * 3600.0
    quick_seconds: float | None = 3600.0
    quick_octets: int | None = 100 * 10**9
    quick_packets: int | None = None
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CryptoSet:
    """Ordered main-mode and quick-mode proposals with their lifetimes."""

    name: str
    main: tuple[MainSuite, ...]
    quick: tuple[QuickSuite, ...]
    lifetime: Lifetimes = field(default_factory=Lifetimes)

    @property
    def deprecated(self) -> tuple[str, ...]:
        """The algorithms it offers that are there for old peers only."""
        used = [
            one for suite in self.main for one in (suite.group, suite.encryption, suite.integrity, suite.prf)
        ]
        used += [one for suite in self.quick for one in (suite.encryption, suite.integrity, suite.group)]
        return tuple(dict.fromkeys(one.name for one in used if one and one.deprecated))


@dataclass(frozen=True, slots=True)
class AccessList:
    """Principals that may or may not use a rule; patterns as written in the file."""

    machines: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Outer end points of a tunnel; None means any address, `remote_host` is a name still to be resolved."""

    local: Address | None = None
    remote: Address | None = None
    remote_host: str | None = None

    @property
    def unresolved(self) -> bool:
        """Whether the other end is a name without an address so far."""
        return self.remote is None and self.remote_host is not None


@dataclass(frozen=True, slots=True)
class Rule:
    """One connection-security rule. `selector` is seen from here and holds ports and protocol too."""

    name: str
    selector: Selector
    action: Action = Action.SECURE
    mode: Mode = Mode.TRANSPORT
    inbound: Level = Level.REQUIRE
    outbound: Level = Level.REQUIRE
    tunnel: Tunnel | None = None
    encrypt: bool = False
    auth: AuthSet | None = None
    crypto: CryptoSet | None = None
    keying: tuple[str, ...] = ("ikev2",)
    aggressive: bool = False  # IKEv1 begins in aggressive mode, and is answered in it
    peer: str | None = None  # identity the other side must prove; None: see policy.peers
    allow: AccessList | None = None
    deny: AccessList | None = None
    interface: str | None = None
    group: str | None = None
    description: str = ""
    enabled: bool = True
    offload: bool = True
    source: str = ""  # file and position, for messages
    status: str = ""  # why a rule that was asked for is not in force (then `enabled` is false)

    @property
    def secures(self) -> bool:
        """Whether it asks for protection at all (not permit, block or none/none)."""
        return self.action is Action.SECURE and (self.inbound, self.outbound) != (Level.NONE, Level.NONE)

    def between(self, local: Address, peer: Address) -> Selector:
        """What of its traffic an SA between these hosts may carry: in transport mode only their own."""
        if self.mode is Mode.TUNNEL:
            return self.selector
        return Selector(_at(self.selector.local, local), _at(self.selector.remote, peer))

    def covers_peer(self, local: Address, peer: Address) -> bool:
        """Whether main mode between these outer addresses can serve this rule."""
        if self.mode is Mode.TUNNEL and self.tunnel:
            if self.tunnel.unresolved:  # a name that has no address yet is nobody's, not everybody's
                return False
            mine, theirs = self.tunnel.local, self.tunnel.remote
            return (mine is None or mine == local) and (theirs is None or theirs == peer)
        return any(s.has_address(peer) for s in self.selector.remote) and any(
            s.has_address(local) for s in self.selector.local
        )


def _at(selectors: tuple[TrafficSelector, ...], address: Address) -> tuple[TrafficSelector, ...]:
    """What of some selectors is about one address."""
    found = (replace(one, low=address, high=address) for one in selectors if one.has_address(address))
    return tuple(dict.fromkeys(found))
