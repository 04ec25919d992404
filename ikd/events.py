"""What happened, as frozen dataclasses: the protocol publishes, and log, metrics and subscribers listen.

Each class has the group and level it is logged under. Values are plain (texts, numbers, addresses), never key
material. On the control socket an event's name is its class name with hyphens (`child-established`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from sadb.address import Path


def count(number: int, thing: str) -> str:
    """`1 peer`, `2 peers`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened. `group` is one of `ikd.settings.GROUPS`, `level` one of LEVELS; `audit` when it
    tells that somebody was or was not believed."""

    group: ClassVar[str] = "daemon"
    level: ClassVar[str] = "info"
    audit: ClassVar[bool] = False

    @property
    def text(self) -> str:
        """One sentence for people, without the time."""
        return ""


# Daemon --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The daemon serves."""

    version: str
    plane: str
    rules: int

    @property
    def text(self) -> str:
        return f"ikd {self.version} started, {count(self.rules, 'rule')}, {self.plane}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Event):
    """An orderly stop has begun."""

    reason: str

    @property
    def text(self) -> str:
        return f"stopping: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """The host was suspended and is back. Lifetimes have gone on: what is over is replaced, and peers that
    were silent for longer than `ike.liveness` are asked whether they live."""

    seconds: int

    @property
    def text(self) -> str:
        return f"the host was suspended for {self.seconds} seconds; lifetimes have gone on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken(Event):
    """Something failed that must not; a bug of ours. The traceback goes to the log."""

    level: ClassVar[str] = "error"
    where: str
    error: str
    traceback: str = ""

    @property
    def text(self) -> str:
        return f"internal error in {self.where}: {self.error}\n{self.traceback}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRestarted(Event):
    """A process that carries packets ended unexpectedly and others serve; all its SAs are being replaced."""

    level: ClassVar[str] = "error"
    reason: str
    pairs: int

    @property
    def text(self) -> str:
        again = f"the data plane ended ({self.reason}) and was started again"
        return f"{again}; replacing {count(self.pairs, 'SA pair')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver(Event):
    """Processes that carry packets have outlived the daemon before this one and serve on. `pairs` of theirs
    are kept until each has been replaced; `ended` are gone, because their rules have changed."""

    pairs: int
    ended: int

    @property
    def text(self) -> str:
        gone = f"; {self.ended} more have ended: their rules have changed" if self.ended else ""
        return f"the data plane has gone on; replacing {count(self.pairs, 'SA pair')} of the former run{gone}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterGone(Event):
    """The adapter ended unexpectedly; its SAs are in software until there is another one."""

    level: ClassVar[str] = "error"
    reason: str

    @property
    def text(self) -> str:
        return f"the adapter ended ({self.reason}); its SAs go on in software until it is back"


_OUTCOMES: Final = {
    "placed": "goes into the adapter",
    "evicted": "leaves the adapter",
    "kept_out": "stays in software",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SaPlaced(Event):
    """It was decided whether an adapter is to carry an SA pair: `outcome` is placed, evicted or kept_out.
    `spi` is the inbound one. Scores are octets per second times the port's weight."""

    level: ClassVar[str] = "debug"
    outcome: str
    spi: str
    peer: str
    rule: str
    port: str
    directions: tuple[str, ...]
    reason: str
    score: int
    instead_of: str
    other_score: int | None

    @property
    def text(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        other = f", instead of {self.instead_of} ({self.other_score})" if self.instead_of else ""
        return (
            f"{self.rule}: SA {self.spi} of {self.peer} ({' and '.join(self.directions)}, port {self.port}, "
            f"score {self.score}) {_OUTCOMES.get(self.outcome, self.outcome)}{why}{other}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something an administrator should know and may have to mend."""

    level: ClassVar[str] = "warning"
    about: str
    warning: str

    @property
    def text(self) -> str:
        return f"{self.about}: {self.warning}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded(Event):
    """Another policy is in force."""

    group: ClassVar[str] = "policy"
    rules: int
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        parts = (("added", self.added), ("changed", self.changed), ("removed", self.removed))
        what = "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names)
        return f"policy of {count(self.rules, 'rule')} in force ({what or 'no rule differs'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadRefused(Event):
    """The files have mistakes; what was in force stays."""

    group: ClassVar[str] = "policy"
    level: ClassVar[str] = "error"
    complaints: tuple[str, ...]

    @property
    def text(self) -> str:
        return "reload refused, the running policy stays: " + "; ".join(self.complaints)


# Network and data plane ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramDropped(Event):
    """An IKE datagram was dropped. `reason` is one of a few words, for counting; `detail` is for people. Of
    those for SAs that are gone (unknown-spi) the log has one a minute for each address."""

    group: ClassVar[str] = "network"
    level: ClassVar[str] = "warning"
    reason: str
    detail: str = ""
    path: Path | None = None

    @property
    def text(self) -> str:
        where = f" from {self.path.peer}" if self.path else ""
        return f"dropped a datagram{where}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportTrouble(Event):
    """A datagram could not be sent or received. Of one path the same is told once, until a datagram gets out
    again."""

    group: ClassVar[str] = "network"
    level: ClassVar[str] = "warning"
    what: str
    path: Path | None = None

    @property
    def text(self) -> str:
        return f"{self.what}" + (f" ({self.path})" if self.path else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRecovered(Event):
    """Datagrams can be sent again where that failed."""

    group: ClassVar[str] = "network"
    path: Path

    @property
    def text(self) -> str:
        return f"datagrams can be sent again ({self.path})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesChanged(Event):
    """This host has got addresses, or lost some."""

    group: ClassVar[str] = "network"
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        parts = (("gained", self.gained), ("lost", self.lost))
        return "this host has " + ", ".join(f"{what} {', '.join(found)}" for what, found in parts if found)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayLost(Event):
    """This host has no way to a peer: a route is missing, or the address that its rule names. Its SAs
    stay."""

    group: ClassVar[str] = "network"
    level: ClassVar[str] = "warning"
    ike: int
    peer: str
    address: str

    @property
    def text(self) -> str:
        return f"there is no way to {self.peer} at {self.address}: its SAs wait until there is one"


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFound(Event):
    """There is a way to a peer again."""

    group: ClassVar[str] = "network"
    ike: int
    peer: str
    address: str

    @property
    def text(self) -> str:
        return f"there is a way to {self.peer} at {self.address} again"


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketAcquired(Event):
    """The data plane holds a packet that needs a Child SA."""

    group: ClassVar[str] = "dataplane"
    rule: str
    source: str
    destination: str

    @property
    def text(self) -> str:
        return f"{self.rule}: a packet from {self.source} to {self.destination} needs a Child SA"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpiUnknown(Event):
    """ESP or AH came for an SPI nobody has."""

    group: ClassVar[str] = "dataplane"
    level: ClassVar[str] = "debug"
    spi: str
    source: str

    @property
    def text(self) -> str:
        return f"a packet from {self.source} for SPI {self.spi}, which nobody has"


# IKE SAs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSent(Event):
    """An IKE message left. `tries` is above 1 for a repetition."""

    group: ClassVar[str] = "ike"
    level: ClassVar[str] = "debug"
    ike: int
    exchange: str
    message_id: int
    response: bool | None  # None in IKEv1, which does not tell
    payloads: tuple[str, ...]
    path: Path
    tries: int = 1

    @property
    def text(self) -> str:
        again = f", try {self.tries}" if self.tries > 1 else ""
        message = _message(self.exchange, self.message_id, self.response, self.payloads)
        return f"send {message} to {self.path.peer}{again}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived(Event):
    """An IKE message came and, if it has to be, was authenticated."""

    group: ClassVar[str] = "ike"
    level: ClassVar[str] = "debug"
    ike: int
    exchange: str
    message_id: int
    response: bool | None  # None in IKEv1, which does not tell
    payloads: tuple[str, ...]
    path: Path
    repeated: bool = False

    @property
    def text(self) -> str:
        again = ", a repetition" if self.repeated else ""
        message = _message(self.exchange, self.message_id, self.response, self.payloads)
        return f"recv {message} from {self.path.peer}{again}"


def _message(exchange: str, message_id: int, response: bool | None, payloads: tuple[str, ...]) -> str:
    """IKEv2 numbers messages, IKEv1 gives each exchange of phase 2 a random number."""
    if response is None:
        place = f" {message_id:08x}" if message_id else ""
    else:
        place = f" {'response' if response else 'request'} {message_id}"
    return f"{exchange}{place} [{' '.join(payloads)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieDemanded(Event):
    """Under load a first message was answered with a cookie, and nothing was kept (RFC 7296 section 2.6)."""

    group: ClassVar[str] = "ike"
    level: ClassVar[str] = "debug"
    path: Path

    @property
    def text(self) -> str:
        return f"asked {self.path.peer} for a cookie"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloodBegan(Event):
    """More first messages come than `limits.first_messages` a second; most are thrown away unread."""

    group: ClassVar[str] = "network"
    level: ClassVar[str] = "warning"
    rate: int

    @property
    def text(self) -> str:
        return f"a flood: {self.rate} first messages a second; most are thrown away unread from now on"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloodOver(Event):
    """All first messages are read again."""

    group: ClassVar[str] = "network"
    level: ClassVar[str] = "warning"

    @property
    def text(self) -> str:
        return "the flood is over: all first messages are read again"


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiationStarted(Event):
    """The first message of a negotiation came or goes."""

    group: ClassVar[str] = "ike"
    ike: int
    rule: str
    initiator: bool
    path: Path
    keying: str = "ikev2"

    @property
    def text(self) -> str:
        return (
            f"{'negotiating with' if self.initiator else 'a negotiation begun by'} {self.path.peer.address}"
            + (f" for {self.rule}" if self.rule else "")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAnnounced(Event):
    """What a peer says with vendor IDs that are known here; nothing proves it yet."""

    group: ClassVar[str] = "ike"
    level: ClassVar[str] = "debug"
    ike: int
    vendor_ids: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"the peer announces {', '.join(self.vendor_ids)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyingFellBack(Event):
    """A peer does not take up one keying protocol, and the next one of the rule is tried."""

    group: ClassVar[str] = "ike"
    rule: str
    peer: str
    module: str
    instead: str

    @property
    def text(self) -> str:
        return f"{self.rule}: {self.peer} does not take up {self.module}, trying {self.instead}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeEstablished(Event):
    """An IKE SA is up and the peer proven. `replaces` is the number of the IKE SA it was rekeyed from, 0 for
    a new one."""

    group: ClassVar[str] = "ike"
    ike: int
    keying: str
    peer: str
    authenticated_as: str
    local: str
    suite: str
    initiator: bool
    spi_i: str
    spi_r: str
    path: Path
    nat: bool
    replaces: int = 0

    @property
    def text(self) -> str:
        what = "IKE SA rekeyed with" if self.replaces else "IKE SA established with"
        nat = ", through a NAT" if self.nat else ""
        return f"{what} {self.peer} at {self.path.peer.address} ({self.authenticated_as}), {self.suite}{nat}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeClosed(Event):
    """An IKE SA is gone. `reason` in words; `by_peer` when the peer asked for it."""

    group: ClassVar[str] = "ike"
    ike: int
    peer: str
    reason: str
    by_peer: bool = False

    @property
    def text(self) -> str:
        return f"IKE SA with {self.peer} closed: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMoved(Event):
    """The peer is at another address or port: a NAT has given it another (RFC 7296 section 2.23), or it says
    so (MOBIKE, RFC 4555)."""

    group: ClassVar[str] = "ike"
    ike: int
    old: Path
    new: Path

    @property
    def text(self) -> str:
        return f"peer moved from {self.old.peer} to {self.new.peer}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLimited(Event):
    """A proven peer has met a limit of its own; `limit` is the key in [limits]."""

    group: ClassVar[str] = "ike"
    level: ClassVar[str] = "warning"
    ike: int
    peer: str
    address: str
    limit: str
    reason: str

    @property
    def text(self) -> str:
        return f"{self.peer} at {self.address} {self.reason} (limits.{self.limit})"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMoved(Event):
    """An IKE SA leaves this host from another of its addresses (MOBIKE, RFC 4555)."""

    group: ClassVar[str] = "ike"
    ike: int
    peer: str
    old: Path
    new: Path

    @property
    def text(self) -> str:
        return f"the IKE SA with {self.peer} moved from {self.old.local} to {self.new.local}"


# Authentication ------------------------------------------------------------------------------------------

REFUSED_BY_PEER: Final = "refused-by-peer"  # the cause when it is we who are not believed


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthenticated(Event):
    """The peer proved who it is."""

    group: ClassVar[str] = "auth"
    audit: ClassVar[bool] = True
    ike: int
    rule: str
    identity: str
    method: str
    description: str
    address: str

    @property
    def text(self) -> str:
        return f"{self.address} is {self.identity} ({self.description}), rule {self.rule}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserAuthenticated(Event):
    """The second authentication proved who uses the peer, or with `health` in what condition it is."""

    group: ClassVar[str] = "auth"
    audit: ClassVar[bool] = True
    ike: int
    rule: str
    identity: str
    method: str
    description: str
    address: str
    groups: tuple[str, ...] = ()
    health: bool = False

    @property
    def text(self) -> str:
        how = "proved its health by" if self.health else "is used by"
        names = ", ".join(name.removeprefix("group:") for name in self.groups)
        member = f", member of {names}" if names else ""
        return f"{self.address} {how} {self.description}{member}, rule {self.rule}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reauthenticated(Event):
    """An IKE SA that lives was proven again, by the peer or by us (MS-IKEE section 3.10). `method` is what we
    have proven ourselves by, or the peer with `by_peer`."""

    group: ClassVar[str] = "auth"
    audit: ClassVar[bool] = True
    ike: int
    rule: str
    peer: str
    address: str
    by_peer: bool
    method: str

    @property
    def text(self) -> str:
        who = "has proven itself to us again" if self.by_peer else "has believed us again"
        return f"{self.peer} {who}, rule {self.rule}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationFailed(Event):
    """The peer did not prove what it claims, may not have what it proved for, or does not believe us. For
    this host's administrator only; the peer hears AUTHENTICATION_FAILED. `identity` is what the peer claims,
    `method` what was tried or else what the rule asks for, `cause` the reason in one of a few words."""

    group: ClassVar[str] = "auth"
    audit: ClassVar[bool] = True
    level: ClassVar[str] = "warning"
    ike: int
    rule: str
    identity: str
    address: str
    reason: str
    method: str = ""
    cause: str = "unproven"

    @property
    def text(self) -> str:
        claimed = f" as {self.identity}" if self.identity else ""
        what = "refuses us" if self.cause == REFUSED_BY_PEER else "is refused"
        return f"{self.address}{claimed} {what}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateExpires(Event):
    """A certificate of the configuration has expired or will within 14 days; told at the start, at a reload
    and once a day. `use` is host, health, user or trust, `seconds` what is left, less than 0 afterwards."""

    level: ClassVar[str] = "warning"
    use: str
    subject: str
    seconds: int
    warning: str

    @property
    def text(self) -> str:
        how = "trust its successor" if self.use == "trust" else "ikctl cert renew"
        return f"{self.warning}; remedy: {how}, then ikctl reload"


# Failures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison; `note` says what is wrong with it, empty when it agrees."""

    what: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What each side had, side by side."""

    ours_title: str
    theirs_title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NegotiationFailed(Event):
    """A negotiation came to nothing; what `ikctl why` tells. `stage` is the exchange; `notify` the notify
    that was sent or received, if any; `rule` is empty when none was found yet; `child` when the IKE SA
    stays."""

    group: ClassVar[str] = "ike"
    level: ClassVar[str] = "warning"
    ike: int
    rule: str
    peer: str  # address
    initiator: bool
    stage: str
    notify: str
    reason: str
    remedy: str = ""
    child: bool = False
    comparison: Comparison | None = None
    keying: str = "ikev2"

    @property
    def text(self) -> str:
        stage = ", ".join(one for one in (self.stage, self.notify) if one)
        return f"{self.rule or self.peer}: {self.reason} ({stage})" + (
            f"; {self.remedy}" if self.remedy else ""
        )


# Child SAs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEstablished(Event):
    """A Child SA passes traffic. `replaces` is the inbound SPI of the pair it was rekeyed from."""

    group: ClassVar[str] = "child"
    ike: int
    rule: str
    peer: str
    spi_in: str
    spi_out: str
    mode: str
    suite: str
    local: tuple[str, ...]
    remote: tuple[str, ...]
    encapsulated: bool
    replaces: str = ""

    @property
    def text(self) -> str:
        what = f"rekeyed from {self.replaces}" if self.replaces else "established"
        return (
            f"{self.rule}: Child SA {self.spi_in}/{self.spi_out} {what}, {self.mode}, {self.suite}, "
            f"{', '.join(self.local)} === {', '.join(self.remote)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildClosed(Event):
    """A Child SA is gone."""

    group: ClassVar[str] = "child"
    ike: int
    rule: str
    peer: str
    spi_in: str
    spi_out: str
    reason: str
    octets_in: int = 0
    octets_out: int = 0

    @property
    def text(self) -> str:
        return f"{self.rule}: Child SA {self.spi_in}/{self.spi_out} closed: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExpired(Event):
    """A Child SA met a limit: soft, it is replaced; hard, it is gone."""

    group: ClassVar[str] = "child"
    rule: str
    spi_in: str
    hard: bool
    reason: str

    @property
    def text(self) -> str:
        what = "is used up" if self.hard else "is due to be replaced"
        return f"{self.rule}: Child SA {self.spi_in} {what} ({self.reason})"


EVENTS: dict[str, type[Event]] = {cls.__name__: cls for cls in Event.__subclasses__()}
