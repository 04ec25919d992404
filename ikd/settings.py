"""Typed settings of the daemon: `ikd.toml` into frozen dataclasses.

Each field has its default, its limits and a sentence about it beside it; loading, the error messages and
`docs/settings.md` come from there. Loading is strict and whole: every complaint is reported at once, each
with its file, key path and remedy, and a file with complaints gives no settings. Rules and keys are not here
but in `policy.load` and `ikd.auth.files`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sadb.address import IKE_PORT, NATT_PORT, Address, SocketAddress

FILE: Final = "ikd.toml"
LEVELS: Final = ("debug", "info", "warning", "error")
GROUPS: Final = ("daemon", "ike", "child", "auth", "policy", "dataplane", "network", "control")


class SettingsError(Exception):
    """The file cannot be used; `complaints` has one line for each thing that is wrong."""

    def __init__(self, complaints: tuple[str, ...]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


@dataclass(frozen=True, slots=True)
class Levels:
    """Least severe level that is written, and where groups of events differ from it."""

    default: str = "info"
    groups: tuple[tuple[str, str], ...] = ()

    def of(self, group: str) -> str:
        """The level of a group."""
        return dict(self.groups).get(group, self.default)

    def changed(self, level: str, group: str) -> Levels:
        """With another level for one group, or for all when `group` is empty."""
        if not group:
            return Levels(level)
        return Levels(self.default, tuple(sorted((dict(self.groups) | {group: level}).items())))

    def __str__(self) -> str:
        if not self.groups:
            return f'"{self.default}"'
        parts = [("default", self.default), *self.groups]
        return "{ " + ", ".join(f'{group} = "{level}"' for group, level in parts) + " }"


class _Wrong(Exception):
    """One value is wrong; the text says what it should be."""


Reader = Callable[[Any], Any]


def _number(low: float, high: float, unit: str, *, whole: bool = False) -> tuple[Reader, str]:
    """A number in a range; `whole` refuses fractions."""
    what = f"{'a whole number' if whole else 'a number'} of {unit} from {_grouped(low)} to {_grouped(high)}"

    def read(value: Any) -> Any:
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise _Wrong(f"{what}, not {value!r}")
        return value if whole else float(value)

    return read, what


def _grouped(number: float) -> str:
    """A limit as people read it."""
    return f"{number:g}" if number < 10_000 else f"{number:_.0f}"


def _text(what: str, *, empty: bool = False) -> tuple[Reader, str]:
    """Any text that is not empty, unless that is a value too."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not (value.strip() or empty):
            raise _Wrong(f"{what}, not {value!r}")
        return value

    return read, what


def _texts(what: str) -> tuple[Reader, str]:
    """A list of texts."""
    single, _ = _text(what)

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise _Wrong(f"a list such as [{value!r}]")
        return tuple(single(item) for item in value)

    return read, f"a list, each {what}"


def _flag() -> tuple[Reader, str]:
    """true or false."""

    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise _Wrong(f"true or false, not {value!r}")
        return value

    return read, "true or false"


def _one_of(*names: str) -> tuple[Reader, str]:
    """One of a few words."""
    what = "one of " + ", ".join(f'"{name}"' for name in names)

    def read(value: Any) -> str:
        if value not in names:
            raise _Wrong(f"{what}, not {value!r}{_nearest(value, names)}")
        return str(value)

    return read, what


def _addresses() -> tuple[Reader, str]:
    """A list of IP addresses."""
    what = "a list of addresses"

    def read(value: Any) -> tuple[Address, ...]:
        if not isinstance(value, list) or not value:
            raise _Wrong(f'{what} such as ["0.0.0.0", "::"], not {value!r}')
        try:
            return tuple(ip_address(item) for item in map(_must_be_text, value))
        except ValueError as error:
            raise _Wrong(f"{what}, but {error}") from None

    return read, what


def _must_be_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address")
    return value


def _place() -> tuple[Reader, str]:
    """An address and a port of this host; without an address it is the loopback one."""
    what = 'an address and a port such as "127.0.0.1:9550" or "[::1]:9550"'

    def read(value: Any) -> SocketAddress:
        host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        try:
            if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError
            bare = host.removeprefix("[").removesuffix("]")
            if (":" in bare) != (host != bare):
                raise ValueError
            return SocketAddress(ip_address(bare or "127.0.0.1"), int(port))
        except ValueError:
            raise _Wrong(f"{what}, not {value!r}") from None

    return read, what


def _mode() -> tuple[Reader, str]:
    """Permission bits as chmod takes them."""
    what = 'permission bits such as "0660"'

    def read(value: Any) -> int:
        try:
            bits = int(value, 8) if isinstance(value, str) else -1
        except ValueError:
            bits = -1
        if not 0 <= bits <= 0o777:
            raise _Wrong(f"{what}, not {value!r}")
        return bits

    return read, what


def _levels() -> tuple[Reader, str]:
    """One level, or a table of levels by group of events."""
    what = f'one of {", ".join(LEVELS)}, or a table by group such as {{ ike = "debug" }}'
    level, _ = _one_of(*LEVELS)

    def read(value: Any) -> Levels:
        if isinstance(value, str):
            return Levels(level(value))
        if not isinstance(value, dict):
            raise _Wrong(f"{what}, not {value!r}")
        for group in value:
            if group not in (*GROUPS, "default"):
                raise _Wrong(f"a table of groups, not {group!r}{_nearest(group, (*GROUPS, 'default'))}")
        levels = {group: level(value[group]) for group in value}
        return Levels(levels.pop("default", "info"), tuple(sorted(levels.items())))

    return read, what


def _option(default: Any, kind: tuple[Reader, str], doc: str, table: str = "", key: str = "") -> Any:
    """A field with its default, how it is read and what it means. `table` and `key` say where it stands in
    the file when that is not the dataclass's own table and the field's name."""
    metadata = {"read": kind[0], "kind": kind[1], "doc": doc, "table": table, "key": key}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """Where the daemon listens, and where it is spoken to."""

    listen: tuple[Address, ...] = _option(
        (ip_address("0.0.0.0"), ip_address("::")),
        _addresses(),
        "Local addresses to speak IKE on; the two wildcards stand for every address of this host.",
    )
    interfaces: tuple[str, ...] = _option(
        (),
        _texts("the name of an interface"),
        "Take IKE and ESP in UDP only where they arrive on these, which need not be there yet; empty means "
        "all.",
    )
    control: str = _option(
        "/run/ikd/control.sock", _text("a path"), "The control socket. One daemon owns it at a time."
    )
    control_mode: int = _option(
        0o660,
        _mode(),
        "Permission bits of the control socket: who may open it may steer the daemon. One from systemd "
        "(`ikd-control.socket`) has its own.",
    )
    control_group: str | None = _option(
        None,
        _text("the name of a group"),
        "Group of the control socket; not set keeps the daemon's own. One from systemd has its own.",
    )
    state: str = _option("/var/lib/ikd", _text("a path"), "Directory for what outlives a run.")


@dataclass(frozen=True, slots=True)
class DataplaneSettings:
    """What transforms packets."""

    backend: str = _option(
        "software",
        _one_of("software", "nic", "memory"),
        "`software` encrypts in processes of its own behind a TUN device and needs root; `nic` is that with "
        "a simulated network adapter beside it, see `offload.toml`; `memory` is the same engine in this "
        "process with packets in memory, for trials without root.",
    )
    switch: str = _option(
        "",
        _text("a path", empty=True),
        'In a virtual machine, with `backend = "nic"`: the socket of its port on the host\'s switch; slots '
        "are asked for there.",
    )
    faults: bool = _option(
        False,
        _flag(),
        "Whether `ikctl offload fault` may have the simulated adapter fail: for trials and tests.",
    )
    engine: str = _option(
        "auto",
        _one_of("auto", "native", "python"),
        "What carries packets, also beside an adapter: `native` is compiled code and several times faster, "
        "`python` serves where that is not built; `auto` takes the better one that is there.",
    )
    workers: int = _option(
        1,
        _number(1, 64, "processes", whole=True),
        "Processes that carry packets, with the native engine; each takes its share of SPIs and of local "
        "flows. Beside an adapter there is one.",
    )
    device: str = _option("ikd0", _text("an interface name"), "Name of the TUN device.")
    mtu: int = _option(
        1400,
        _number(1280, 65535, "octets", whole=True),
        "MTU of the TUN device: inner packets that still fit a 1500 octet link once protected.",
    )
    stay_closed: bool = _option(
        True,
        _flag(),
        "Whether the packet filter stays when the daemon dies unexpectedly, so that what must be protected "
        "does not leave in the clear. An orderly stop always removes it.",
    )
    orphan_seconds: float = _option(
        30.0,
        _number(0, 3600, "seconds"),
        "How long packets go on after the daemon was told to restart or died, for the next one to take "
        "their SAs over and replace them; 0 ends them with the daemon. Keys stay in memory for as long. "
        "With an adapter nothing waits.",
    )
    queue_packets: int = _option(
        32,
        _number(0, 4096, "packets", whole=True),
        "Packets held for one flow while its keys are negotiated; more are dropped, oldest first.",
    )
    queue_flows: int = _option(
        1024, _number(1, 65536, "flows", whole=True), "Flows that may hold packets at the same time."
    )
    batch: int = _option(
        64, _number(1, 1024, "packets", whole=True), "Packets taken at once before anything else has a turn."
    )
    pairs: int = _option(
        200_000, _number(1, 4_000_000, "SA pairs", whole=True), "Most SA pairs the database holds."
    )


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """Who this host is, and whom it believes. Paths are relative to the configuration directory."""

    id: str | None = _option(
        None,
        _text("an identity"),
        "Identity to claim: an address, a name, user@host, a distinguished name or keyid:TEXT. Not set: the "
        "certificate's subject alternative name or subject, else the local address.",
    )
    certificate: str | None = _option(
        None, _text("a path"), "Our certificate in PEM, followed by the chain to the authority."
    )
    key: str | None = _option(None, _text("a path"), "Private key of that certificate in PEM, mode 0600.")
    health_certificate: str | None = _option(
        None,
        _text("a path"),
        "A second certificate of this host, which vouches for its health (extended key usage "
        "1.3.6.1.4.1.311.47.1.1), for rules that demand one; with its chain, like `certificate`.",
    )
    health_key: str | None = _option(
        None, _text("a path"), "Private key of the health certificate in PEM, mode 0600."
    )
    user_certificate: str | None = _option(
        None,
        _text("a path"),
        "Certificate of the user of this host, for rules that demand one besides the machine's; with its "
        "chain, like `certificate`.",
    )
    user_key: str | None = _option(
        None, _text("a path"), "Private key of the user's certificate in PEM, mode 0600."
    )
    trust: tuple[str, ...] = _option(
        (), _texts("a path"), "Certificates of the authorities whose certificates we accept."
    )
    crls: tuple[str, ...] = _option((), _texts("a path"), "Certificate revocation lists, PEM or DER.")
    crl_check: str = _option(
        "attempt",
        _one_of("none", "attempt", "require"),
        "`attempt` refuses what a list revokes, `require` also refuses when no current list covers it.",
    )
    keytab: str | None = _option(
        None,
        _text("a path"),
        "Kerberos keytab with the key of host/NAME or of the Active Directory account NAME$, mode 0600.",
    )
    user_tickets: str | None = _option(
        None,
        _text("a ticket cache"),
        "Kerberos tickets of the user of this host, such as `FILE:/run/user/1000/krb5cc`, for rules whose "
        "second authentication is `user-kerberos`. Somebody else renews them.",
    )
    groups: str | None = _option(
        None,
        _text("a path"),
        "File of groups, `groups.toml`: for each name its `sid`, its `members` or both. Rules name them as "
        "`group:NAME`.",
    )


@dataclass(frozen=True, slots=True)
class IkeSettings:
    """How the keying protocol behaves; all that the protocol core knows of the file."""

    port: int = _option(
        IKE_PORT,
        _number(1, 65535, "a UDP port", whole=True),
        "UDP port for IKE. Only trials without root change it; peers expect 500.",
        table="daemon",
    )
    nat_port: int = _option(
        NATT_PORT,
        _number(1, 65535, "a UDP port", whole=True),
        "UDP port for IKE and ESP through NAT. Peers expect 4500.",
        table="daemon",
    )
    retransmit_first: float = _option(
        1.0, _number(0.05, 60, "seconds"), "Wait before a request is sent for the second time."
    )
    retransmit_factor: float = _option(
        1.8, _number(1, 5, "times the wait before"), "How the wait grows with every repetition."
    )
    retransmit_cap: float = _option(20.0, _number(0.05, 600, "seconds"), "Longest wait between repetitions.")
    retransmit_tries: int = _option(
        6,
        _number(1, 20, "transmissions", whole=True),
        "How often a request is sent in all before the peer counts as gone.",
    )
    half_open_timeout: float = _option(
        30.0, _number(1, 600, "seconds"), "How long a peer may take from its first message to being proven."
    )
    liveness: float = _option(
        30.0,
        _number(0, 86400, "seconds"),
        "Silence after which the peer is asked whether it is alive (RFC 7296 section 2.4); 0 never asks.",
    )
    nat_keepalive: float = _option(
        20.0,
        _number(0, 3600, "seconds"),
        "Interval of the one-octet datagrams that keep a NAT mapping open (RFC 3948); 0 sends none.",
    )
    mobike: bool = _option(
        True,
        _flag(),
        "Whether IKE SAs and their tunnels follow either host to another address (MOBIKE, RFC 4555) when the "
        "peer can do that, too; without it a lost address means a new negotiation.",
    )
    routability_check: bool = _option(
        True,
        _flag(),
        "Whether a peer that says it has moved must answer at its new address before ESP goes there, so that "
        "nobody can direct traffic to a third host (RFC 4555 section 3.7).",
    )
    fragmentation: bool = _option(
        True, _flag(), "Whether large messages are sent as IKE fragments (RFC 7383) when the peer can."
    )
    fragment_size: int = _option(
        1280,
        _number(576, 9000, "octets", whole=True),
        "Largest IP packet a fragment makes, headers included.",
    )
    verdict_seconds: float = _option(
        3600.0,
        _number(0, 604_800, "seconds"),
        "How long it is remembered which keying module a peer speaks, when a rule names several: so long the "
        "others are not tried first. 0 asks anew each time.",
    )
    vendor_ids: str = _option(
        "standard",
        _one_of("none", "standard", "windows"),
        "Vendor IDs we send. IKEv1 has NAT traversal, fragmentation and dead peer detection only with them; "
        "`windows` makes peers take this host for Windows and adds what they may then expect.",
    )
    authip_profile: str = _option(
        "windows-2012",
        _one_of("windows-2008", "windows-2012"),
        "What AuthIP does where Microsoft's specification leaves it open: see docs/interop-windows.md.",
        table="authip",
        key="profile",
    )
    authip_dh: str = _option(
        "always",
        _one_of("always", "when-needed"),
        "Whether main mode of AuthIP always has a Diffie-Hellman exchange, or only for methods that need it. "
        "Without one there is no forward secrecy: whoever learns the key of a Kerberos service or of a "
        "certificate later can read everything that was recorded.",
        table="authip",
        key="diffie_hellman",
    )
    authip_explicit: bool = _option(
        True,
        _flag(),
        "Whether a peer may prove its user with explicitly supplied credentials (not those of a session).",
        table="authip",
        key="explicit_credentials",
    )
    window: int = _option(
        8, _number(1, 64, "requests", whole=True), "Requests the peer may have open (SET_WINDOW_SIZE)."
    )
    childless: str = _option(
        "allow",
        _one_of("allow", "never"),
        "Whether an IKE SA without a first Child SA is accepted and announced (RFC 6023).",
    )
    replay_window: int = _option(
        256,
        _number(64, 4096, "packets", whole=True),
        "How far back a late packet may come and still be accepted.",
        table="dataplane",
    )
    half_open: int = _option(
        1000,
        _number(1, 1_000_000, "negotiations", whole=True),
        "Unproven peers at a time; further first messages are dropped and counted.",
        table="limits",
    )
    half_open_per_address: int = _option(
        20,
        _number(1, 1_000_000, "negotiations", whole=True),
        "Unproven negotiations at a time from one address; from half of them on it must return cookies.",
        table="limits",
    )
    cookie_threshold: int = _option(
        200,
        _number(0, 1_000_000, "negotiations", whole=True),
        "Unproven peers from which on a first message must return a cookie (RFC 7296 section 2.6); 0 always.",
        table="limits",
    )
    first_messages: float = _option(
        1000.0,
        _number(0, 1_000_000, "messages a second"),
        "First messages that are worth an answer while cookies are asked for; of more a part is chosen by "
        "chance, and the others are thrown away unread. 0 is no limit.",
        table="limits",
    )
    ikev1_cookies: bool = _option(
        True,
        _flag(),
        "Whether from cookie_threshold on a first message of IKEv1 must return a cookie, too. Windows does; "
        "other systems mostly do not know it and have to wait until the flood is over.",
        table="limits",
    )
    cookie_lifetime: float = _option(
        60.0,
        _number(5, 3600, "seconds"),
        "Age at which the secret behind cookies is replaced.",
        table="limits",
    )
    associations: int = _option(
        100_000,
        _number(1, 1_000_000, "IKE SAs", whole=True),
        "Most IKE SAs at a time; further first messages are dropped and counted.",
        table="limits",
    )
    children: int = _option(
        1000,
        _number(1, 1_000_000, "Child SAs", whole=True),
        "Most Child SAs a peer may make under one IKE SA.",
        table="limits",
    )
    peer_associations: int = _option(
        256,
        _number(2, 1_000_000, "IKE SAs", whole=True),
        "Most IKE SAs one proven peer may have; the oldest goes when there is one more.",
        table="limits",
    )
    peer_children: int = _option(
        10_000,
        _number(1, 1_000_000, "Child SAs", whole=True),
        "Most Child SAs one proven peer may make under all its IKE SAs; further ones are refused.",
        table="limits",
    )
    peer_rate: float = _option(
        100.0,
        _number(0, 100_000, "negotiations a second"),
        "How often one proven peer may begin to negotiate an SA, with ten seconds' worth at once; 0 is no "
        "limit. Beyond, IKEv2 is told to try later, and first messages and quick modes are dropped.",
        table="limits",
    )
    message_size: int = _option(
        65_535,
        _number(4096, 1_048_576, "octets", whole=True),
        "Largest IKE message that is put together from fragments.",
        table="limits",
    )


_EVERYTHING_FROM_INFO: Final = Levels()


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written about events."""

    level: Levels = _option(  # noqa: RUF009 - its value is frozen
        _EVERYTHING_FROM_INFO,
        _levels(),
        'Least severe level that is written; by group: `level = { default = "info", ike = "debug" }`.',
    )
    format: str = _option(
        "auto",
        _one_of("auto", "text", "journald", "json"),
        "`auto` is text on a terminal, journald under systemd, else JSON lines.",
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where Prometheus reads metrics over HTTP, besides `ikctl metrics`."""

    listen: SocketAddress | None = _option(  # noqa: RUF009 - its value is frozen
        None,
        _place(),
        "Where to answer `GET /metrics`; without an address, as in `:9550`, that is loopback. Whoever "
        "reaches it learns who speaks with this host and how much: there is no authentication. Not set: "
        "nowhere.",
    )
    peers: int = _option(
        256,
        _number(0, 10_000, "peers", whole=True),
        "Peers that have time series of their own, the first ones seen; all others are counted together.",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file. `directory` is where it stands; paths in it are relative to that."""

    directory: Path = Path("/etc/ikd")
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    dataplane: DataplaneSettings = field(default_factory=DataplaneSettings)
    identity: IdentitySettings = field(default_factory=IdentitySettings)
    ike: IkeSettings = field(default_factory=IkeSettings)
    log: LogSettings = field(default_factory=LogSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


@dataclass(frozen=True, slots=True)
class Option:
    """One key of the file: where it stands, where its value goes, and what the manual says."""

    table: str
    key: str
    section: str
    name: str
    default: Any
    read: Reader
    kind: str
    doc: str


SECTIONS: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "daemon": DaemonSettings,
        "dataplane": DataplaneSettings,
        "identity": IdentitySettings,
        "ike": IkeSettings,
        "log": LogSettings,
        "metrics": MetricsSettings,
    }
)


def options() -> Iterator[Option]:
    """Every key of the file, in the order of the dataclasses."""
    for section, kind in SECTIONS.items():
        for one in fields(kind):
            about = one.metadata
            default = None if one.default is MISSING else one.default
            yield Option(
                about["table"] or section,
                about["key"] or one.name,
                section,
                one.name,
                default,
                about["read"],
                about["kind"],
                about["doc"],
            )


OPTIONS: Final[Mapping[str, Mapping[str, Option]]] = MappingProxyType(
    {
        table: MappingProxyType({o.key: o for o in options() if o.table == table})
        for table in ("daemon", "dataplane", "identity", "ike", "authip", "limits", "log", "metrics")
    }
)


def _nearest(text: object, known: Any) -> str:
    """A question that names the nearest valid key, or nothing."""
    near = get_close_matches(str(text), list(known), n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else ""


def parse(text: str, directory: Path, name: str = FILE) -> Settings:
    """Settings from the file's text; raises `SettingsError` with every complaint."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError((f"{name}: {error}",)) from None
    complaints: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for table, content in document.items():
        if table not in OPTIONS:
            complaints.append(f"{name}: unknown table [{table}]{_elsewhere(table, OPTIONS)}")
        elif not isinstance(content, dict):
            complaints.append(f"{name}: {table}: a table is expected; write [{table}] and keys below it")
        else:
            _table(name, table, content, values, complaints)
    settings = Settings(directory) if complaints else _build(directory, values)
    complaints += [f"{name}: {complaint}" for complaint in _impossible(settings)]
    if complaints:
        raise SettingsError(tuple(complaints))
    return settings


def _elsewhere(key: str, known: Mapping[str, Any]) -> str:
    """The nearest valid key, or the table in which the key would be right."""
    homes = [table for table, keys in OPTIONS.items() if key in keys]
    if homes:
        return f"; it belongs into [{homes[0]}]"
    return _nearest(key, known) or f"; known are {', '.join(known)}"


def _table(
    name: str,
    table: str,
    content: Mapping[str, Any],
    values: dict[str, dict[str, Any]],
    complaints: list[str],
) -> None:
    """Read one table into `values`, by section and field."""
    for key, value in content.items():
        option = OPTIONS[table].get(key)
        if option is None:
            complaints.append(f"{name}: {table}.{key}: unknown key{_elsewhere(key, OPTIONS[table])}")
            continue
        try:
            values[option.section][option.name] = option.read(value)
        except _Wrong as wrong:
            complaints.append(f"{name}: {table}.{key}: must be {wrong}")


def _build(directory: Path, values: Mapping[str, Mapping[str, Any]]) -> Settings:
    return replace(Settings(directory), **{name: kind(**values[name]) for name, kind in SECTIONS.items()})


def _impossible(settings: Settings) -> Iterator[str]:
    """Combinations in which each value is right and the whole is not."""
    if settings.ike.port == settings.ike.nat_port:
        yield f"daemon.nat_port: {settings.ike.nat_port} is daemon.port already; the two must differ"
    if settings.ike.retransmit_cap < settings.ike.retransmit_first:
        yield "ike.retransmit_cap: shorter than ike.retransmit_first; raise it or remove it"
    if len(set(settings.daemon.listen)) != len(settings.daemon.listen):
        yield "daemon.listen: names an address twice; remove one"
    for prefix in ("", "health_", "user_"):
        keys = f"{prefix}certificate", f"{prefix}key"
        missing = [key for key in keys if not getattr(settings.identity, key)]
        if len(missing) == 1:
            (have,) = set(keys) - set(missing)
            yield (
                f"identity.{missing[0]}: missing, while identity.{have} is set; "
                "each is of use with the other only"
            )
    if settings.identity.crl_check == "require" and not settings.identity.crls:
        yield 'identity.crls: empty, while identity.crl_check = "require" refuses every certificate then'


def load(directory: Path) -> Settings:
    """Settings from `ikd.toml` in a configuration directory; raises `SettingsError`."""
    path = directory / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(
            (f"{path}: no such file; name the directory that has it with --config",)
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError((f"{path}: cannot be read: {error}",)) from None
    return parse(text, directory, str(path))


def shown(value: object) -> str:
    """A value as it stands in the file."""
    match value:
        case None:
            return "not set"
        case bool():
            return str(value).lower()
        case tuple():
            return "[" + ", ".join(f'"{item}"' for item in value) + "]"
        case Levels():
            return str(value)
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(value)
    return f'"{value}"'


def manual() -> str:
    """`docs/settings.md`, from the dataclasses."""
    lines = [
        "# Settings: ikd.toml",
        "",
        "Generated from `ikd/settings.py` by `python -m ikd.control.manual`; do not edit. Every key has a",
        "safe default and may be left out. An unknown key or an impossible value is refused, and the nearest",
        "valid one named.",
    ]
    about = {name: (kind.__doc__ or "").strip() for name, kind in SECTIONS.items()}
    about["authip"] = "How Microsoft's AuthIP behaves, for rules with `authip` in their `keying`."
    about["limits"] = "What strangers and peers may cost: every table they can fill has an end."
    for table, keys in OPTIONS.items():
        lines += [
            "",
            f"## [{table}]",
            "",
            about[table],
            "",
            "| key | default | value | meaning |",
            "|---|---|---|---|",
        ]
        for option in keys.values():
            default = f'"0{option.default:o}"' if option.name == "control_mode" else shown(option.default)
            lines.append(f"| `{option.key}` | `{default}` | {option.kind} | {option.doc} |")
    return "\n".join(lines) + "\n"
