"""The requests of the control socket: one function each, whose docstring is its help text.

A function's parameters are the request's, with their types and defaults; `dispatch` checks them, so a request
cannot be called wrongly and needs no parsing of its own. What the answers contain is made in `control.views`;
`Host` is all that a request may do to the daemon. `docs/control.md` is generated from here and `ikd.events`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol, get_type_hints

from ikd import __version__
from ikd.control.protocol import PROTOCOL, Caller, ControlError, Json
from ikd.settings import GROUPS, LEVELS

# what administrators of other products type -> our request
HINTS: Mapping[str, str] = {
    "list-sas": "sa",
    "list-conns": "policy",
    "list-pols": "policy",
    "statusall": "status",
    "show": "status",
    "initiate": "up",
    "terminate": "down",
    "load-all": "reload",
    "load-conns": "reload",
    "update": "reload",
    "rereadall": "reload",
    "events": "watch",
    "stats": "metrics",
}


KINDS = ("main", "quick", "extended")  # what `sa` can be limited to
SORTS = ("rate", "age", "name")  # of `top`: the busiest first, the youngest first, by name
MOST_ROWS = 500  # of `top`, so that an answer is one line


class Host(Protocol):
    """What requests may ask of the daemon. Results are plain JSON values made by `control.views`."""

    def status(self) -> Json: ...
    def associations(self) -> list[Json]: ...
    def children(self) -> list[Json]: ...
    def policy(self) -> Json: ...
    def explain(self, source: str, destination: str, service: str) -> Json: ...
    def why(self, name: str) -> Json: ...
    async def top(self, caller: Caller, sort: str, limit: int) -> Json: ...
    def metrics(self) -> str: ...
    def recent(self) -> list[Json]: ...
    def capture(self, name: str, file: str, caller: Caller) -> Json: ...
    def set_level(self, level: str, group: str) -> Json: ...
    def export_keys(self, file: str) -> Json: ...
    def watch(self, names: frozenset[str], caller: Caller) -> Json: ...
    def event_names(self) -> tuple[str, ...]: ...
    def may_export(self, user: int) -> bool: ...
    async def up(self, name: str, caller: Caller, timeout: float, childless: bool) -> Json: ...
    async def down(self, name: str) -> Json: ...
    async def rekey(self, name: str) -> Json: ...
    async def reload(self, dry_run: bool) -> Json: ...
    def offload(self) -> Json: ...
    def set_port(self, name: str, wanted: dict[str, Any]) -> Json: ...
    def remove_port(self, name: str) -> Json: ...
    def enable_offload(self, enabled: bool) -> Json: ...
    def offload_fault(self, name: str, value: str) -> Json: ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a request."""

    name: str
    kind: type
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Request:
    """One row of the table."""

    name: str
    function: Callable[..., Json | Awaitable[Json]]
    parameters: tuple[Parameter, ...]
    wants_caller: bool

    @property
    def help(self) -> str:
        """Its docstring, one paragraph."""
        return " ".join((self.function.__doc__ or "").split())


REQUESTS: dict[str, Request] = {}

_TYPES: Mapping[type, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    float: (int, float),
    list: (list,),
}
WORDS = {str: "text", bool: "true or false", float: "a number", list: "a list of texts"}

_F = Callable[..., Any]


def request(function: _F) -> _F:
    """Enter a function into the table, under its name with hyphens."""
    hints = get_type_hints(function)
    parameters = [
        Parameter(
            name, list if hints[name] is not str and hints[name] == list[str] else hints[name], one.default
        )
        for name, one in inspect.signature(function).parameters.items()
        if name not in ("host", "caller")
    ]
    name = function.__name__.removesuffix("_").replace("_", "-")
    REQUESTS[name] = Request(name, function, tuple(parameters), "caller" in hints)
    return function


async def dispatch(host: Host, do: str, given: Mapping[str, Json], caller: Caller) -> Json:
    """Run a request; raises `ControlError` when there is none of that name or its parameters are wrong."""
    found = REQUESTS.get(do)
    if found is None:
        near = HINTS.get(do) or next(iter(get_close_matches(do, REQUESTS, n=1)), "")
        remedy = f"did you mean {near}?" if near else f"known are {', '.join(sorted(REQUESTS))}"
        raise ControlError("no-such-request", f"there is no request {do!r}", remedy)
    arguments = _checked(found, given)
    if found.wants_caller:
        arguments["caller"] = caller
    result = found.function(host, **arguments)
    return await result if inspect.isawaitable(result) else result


def _checked(found: Request, given: Mapping[str, Json]) -> dict[str, Any]:
    known = {one.name: one for one in found.parameters}
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1) or list(known) or ["no parameters"]
            raise ControlError(
                "usage", f"{found.name} has no parameter {name!r}", f"it takes {', '.join(near)}"
            )
    for name, one in known.items():
        if name not in given:
            if one.required:
                raise ControlError("usage", f"{found.name} needs {name!r}", found.help)
            continue
        value = given[name]
        right = isinstance(value, _TYPES[one.kind]) and (one.kind is bool or not isinstance(value, bool))
        if not right or (one.kind is list and not all(isinstance(item, str) for item in value)):
            raise ControlError("usage", f"{found.name}: {name} must be {WORDS[one.kind]}, not {value!r}")
    return dict(given)


# The requests ---------------------------------------------------------------------------------------------


@request
def version(host: Host) -> Json:
    """The daemon's version and the protocol of this socket."""
    return {"ikd": __version__, "protocol": PROTOCOL}


@request
def help_(host: Host) -> Json:
    """Every request with its parameters, and the names of all events."""
    return {
        "requests": [
            {
                "do": one.name,
                "help": one.help,
                "with": {
                    p.name: {"type": WORDS[p.kind]} | ({} if p.required else {"default": p.default})
                    for p in one.parameters
                },
            }
            for one in REQUESTS.values()
        ],
        "events": list(host.event_names()),
    }


@request
def status(host: Host) -> Json:
    """One entry for each peer, totals, and in `wrong` a sentence for each thing that needs attention."""
    return host.status()


@request
def sa(host: Host, kind: str = "", match: str = "") -> Json:
    """Security associations: main mode (IKE SAs) in `main`, quick mode (Child SAs) in `quick`. `kind` limits
    to `main` or `quick`, or with `extended`, under that name, to main-mode SAs with a second authentication;
    `match` to a rule's name, a peer's address or identity, a user, or an SPI in hexadecimal."""
    if kind not in ("", *KINDS):
        known = ", ".join(KINDS[:-1])
        raise ControlError(
            "usage", f"kind is {known} or {KINDS[-1]}, not {kind!r}", "leave it out for main and quick"
        )
    answer: dict[str, Json] = {}
    if kind in ("", "main"):
        answer["main"] = [one for one in host.associations() if _matches(one, match)]
    if kind in ("", "quick"):
        answer["quick"] = [one for one in host.children() if _matches(one, match)]
    if kind == "extended":
        found = [one for one in host.associations() if _matches(one, match)]
        answer["extended"] = [one for one in found if one["user_method"]]
    return answer


def _matches(entry: Mapping[str, Json], match: str) -> bool:
    """Whether one of the texts people name an SA by is, or begins like, `match`."""
    wanted = match.lower().removeprefix("0x")
    if not wanted:
        return True
    exact = [entry.get(key) for key in ("rule", "peer", "peer_address", "authenticated_as", "user", "id")]
    spis = [entry.get(key) for key in ("spi_i", "spi_r", "spi_in", "spi_out")]
    if any(str(value).lower() == wanted for value in (*exact, *entry.get("rules", ())) if value):
        return True
    return len(wanted) >= 4 and any(str(value).lower().startswith(wanted) for value in spis if value)


@request
def policy(host: Host, rule: str = "") -> Json:
    """The policy that is in force, with every default filled in, in the order in which rules are matched.
    `rule` limits it to one."""
    answer = host.policy()
    if not rule:
        return answer
    chosen = [one for one in answer["rules"] if one["name"] == rule]
    if not chosen:
        near = get_close_matches(rule, [one["name"] for one in answer["rules"]], n=1)
        raise ControlError(
            "no-such-rule",
            f"there is no rule {rule!r}",
            f'did you mean "{near[0]}"?' if near else "ikctl policy show lists them",
        )
    return answer | {"rules": chosen}


@request
def explain(host: Host, source: str, destination: str, service: str = "") -> Json:
    """Which rule applies to a packet and why this one: `source` and `destination` are addresses, `service` is
    a protocol with a port as in `tcp/443`."""
    return host.explain(source, destination, service)


@request
async def up(host: Host, name: str, caller: Caller, timeout: float = 60.0, childless: bool = False) -> Json:
    """Negotiate for a rule now, sending events of progress; answers when its Child SA is there or has failed.
    `timeout` in seconds. `childless` makes an IKE SA only (RFC 6023); the first packet then brings the Child
    SA."""
    return await host.up(name, caller, timeout, childless)


@request
async def down(host: Host, name: str) -> Json:
    """Delete SAs here and at the peer: all of a rule or a peer, or the one with an SPI."""
    return await host.down(name)


@request
async def rekey(host: Host, name: str) -> Json:
    """Replace the keys of a rule's, a peer's or an SPI's SAs now."""
    return await host.rekey(name)


@request
async def reload(host: Host, dry_run: bool = False) -> Json:
    """Read policy, secrets and certificates again and apply them whole or, if anything is wrong, not at all.
    SAs of rules that did not change stay. `dry_run` only says what would change."""
    return await host.reload(dry_run)


@request
def why(host: Host, name: str = "") -> Json:
    """The last failure of a rule or a peer (all of them without a name): stage, reason, what each side
    offered or expected, and a remedy."""
    return host.why(name)


@request
async def top(host: Host, caller: Caller, sort: str = "rate", limit: float = 20) -> Json:
    """What `ikctl top` shows: totals, peers, Child SAs (`quick`), the adapter, the last failures, and what
    was dropped. `per_second` is since this connection asked last, null the first time; a peer's goes on over
    rekeys. `sort` is rate, age or name, `limit` the most peers and Child SAs, up to 500."""
    if sort not in SORTS:
        raise ControlError("usage", f"sort is {', '.join(SORTS[:-1])} or {SORTS[-1]}, not {sort!r}")
    return await host.top(caller, sort, max(0, min(int(limit), MOST_ROWS)))


@request
def watch(host: Host, caller: Caller, events: list[str] = []) -> Json:  # noqa: B006 - never changed
    """Send events on this connection as they happen: those named, or all. A slow reader loses the oldest
    and gets a `lost` event with their number. Asked again, these take the place of the former ones."""
    known = host.event_names()
    for name in events:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ControlError(
                "usage",
                f"there is no event {name!r}",
                f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}",
            )
    return host.watch(frozenset(events), caller)


@request
def log(host: Host, level: str = "", group: str = "") -> Json:
    """Change what is logged until the next start: `level` for all groups or for one; without it, show the
    levels."""
    if level and level not in LEVELS:
        raise ControlError("usage", f"there is no level {level!r}", f"known are {', '.join(LEVELS)}")
    if group and group not in GROUPS:
        near = get_close_matches(group, GROUPS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(GROUPS)}"
        raise ControlError("usage", f"there is no group {group!r}", remedy)
    return host.set_level(level, group)


@request
def log_keys(host: Host, caller: Caller, file: str = "") -> Json:
    """Append the keys of every new SA to a file, for Wireshark; without a file, stop doing so. Whoever reads
    the file reads the traffic. Only root and the daemon's own user may ask for it."""
    if not host.may_export(caller.user):
        raise ControlError("not-permitted", "only root or the daemon's user may export keys", "use sudo")
    return host.export_keys(file)


@request
def offload(host: Host) -> Json:
    """The adapter and its SA table: what is in use, the ports that share it with limits and counters, the
    busiest SAs in it and in software, and for these the reason in each direction. In packet mode `lease` has
    the adapter's next number for an SA, and the end of what it may use."""
    return host.offload()


@request
def offload_set_port(
    host: Host,
    name: str,
    limit: float = -1,
    reserve: float = -1,
    weight: float = -1,
    trusted: list[str] = [],  # noqa: B006 - never changed
    exclusive: list[str] = [],  # noqa: B006 - never changed
) -> Json:
    """Change a port of the adapter, or make one, at once and in `offload.toml`. `limit`: most SAs offloaded,
    0 for none; `reserve`: slots nobody else may fill; `weight`: 0 to 100. `trusted` and `exclusive` are lists
    of one, `yes` or `no`. What is left out stays."""
    numbers = {"limit": limit, "reserve": reserve, "weight": weight}
    wanted: dict[str, Any] = {key: int(value) for key, value in numbers.items() if value != -1}
    for key, words in (("trusted", trusted), ("exclusive", exclusive)):
        if words:
            if words not in (["yes"], ["no"]):
                raise ControlError("usage", f"{key} is yes or no, not {' '.join(words)!r}", "")
            wanted[key] = words == ["yes"]
    return host.set_port(name, wanted)


@request
def offload_remove_port(host: Host, name: str) -> Json:
    """Take a port off the adapter's switch; SAs of who is behind it go on in software."""
    return host.remove_port(name)


@request
def offload_enable(host: Host, enabled: bool) -> Json:
    """Turn the offload on or off for all ports, at once and in `offload.toml`. IPsec itself goes on."""
    return host.enable_offload(enabled)


@request
def offload_fault(host: Host, name: str, value: str) -> Json:
    """Have the simulated adapter fail, for trials: see docs/offload.md for names and values. Only with
    `dataplane.faults = true`."""
    return host.offload_fault(name, value)


@request
def metrics(host: Host) -> Json:
    """Counters and gauges as Prometheus reads them, in `text`."""
    return {"text": host.metrics()}


@request
def recent(host: Host) -> Json:
    """The latest events of level info and above in `events`, the oldest first, as `watch` sends them: some
    dozens of each kind."""
    return {"events": host.recent()}


@request
def capture(host: Host, caller: Caller, name: str, file: str) -> Json:
    """Write the keys of one peer's SAs to a file, those that are there and those that are made until this
    connection ends. `name` is a rule, a peer or an SPI. Answers with the peer's address and the UDP ports to
    listen to. Only root and the daemon's own user may ask for it."""
    if not host.may_export(caller.user):
        raise ControlError("not-permitted", "only root or the daemon's user may export keys", "use sudo")
    return host.capture(name, file, caller)
