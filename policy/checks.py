"""What the keys of one rule may not say together: a table of checks, which docs/policy.md prints.

A check runs when none of the keys it looks at was complained about already; it answers with the key at fault
and a sentence that says what to do. What sets may not say is in `policy.sets`, what a keying module cannot do
in `policy.modules`. V1 and so on are names for the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import NamedTuple

from policy.rules import Tunnel
from policy.section import Section
from policy.values import Span
from sadb.sa import Action, Level, Mode
from sadb.selector import ANY_PORT, TCP, UDP


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule whose keys have been read one by one."""

    section: Section
    action: Action
    inbound: Level
    outbound: Level
    local: tuple[Span, ...]
    remote: tuple[Span, ...]
    protocol: int
    local_ports: tuple[tuple[int, int], ...]
    remote_ports: tuple[tuple[int, int], ...]
    tunnel: Tunnel | None

    @property
    def secures(self) -> bool:
        """Whether it asks for protection at all."""
        return self.action is Action.SECURE and (self.inbound, self.outbound) != (Level.NONE, Level.NONE)

    @property
    def mode(self) -> Mode:
        """Tunnel if it names one."""
        return Mode.TUNNEL if self.tunnel or "tunnel" in self.section else Mode.TRANSPORT


Finding = tuple[str | None, str] | None


class Check(NamedTuple):
    """One validation: its number, the keys it looks at, the test, and what it asks for in words."""

    number: str
    keys: tuple[str, ...]
    find: Callable[[Draft], Finding]
    text: str


PORT_KEYS = ("local_port", "remote_port")
LEVEL_KEYS = ("action", "security", "inbound", "outbound")
COMBINATIONS = (
    (Level.REQUIRE, Level.REQUIRE), (Level.REQUIRE, Level.REQUEST), (Level.REQUEST, Level.REQUEST),
    (Level.REQUEST, Level.NONE), (Level.NONE, Level.NONE),
)  # fmt: skip
_GROUPS = {n.version: (int(n[0]), int(n[-1])) for n in map(ip_network, ("224.0.0.0/4", "ff00::/8"))}
SECURING_KEYS = (
    "tunnel",
    "encrypt",
    "auth",
    "crypto",
    "keying",
    "aggressive",
    "peer",
    "allow",
    "deny",
    "offload",
)


def _levels_given(draft: Draft) -> Finding:
    given = [key for key in ("security", "inbound", "outbound") if key in draft.section]
    if draft.action is not Action.SECURE:
        text = f'a level belongs to action "secure"; this rule has action "{draft.action.value}"'
        return (given[0], text) if given else None
    if "security" in given and len(given) > 1:
        return "security", "it stands for inbound and outbound; write either it or both of them"
    if len(given) == 1 and given != ["security"]:
        other = "outbound" if given == ["inbound"] else "inbound"
        return given[0], f"it needs {other} beside it; or write security for both"
    return None


def _combination(draft: Draft) -> Finding:
    if (draft.inbound, draft.outbound) in COMBINATIONS:
        return None
    known = "; ".join(f"{i.value} in, {o.value} out" for i, o in COMBINATIONS)
    key = "inbound" if "inbound" in draft.section else "security"
    pair = f"{draft.inbound.value} in with {draft.outbound.value} out"
    return key, f"{pair} does not go together; possible are {known}"


def _exempting(draft: Draft) -> Finding:
    if draft.secures:
        return None
    given = [key for key in SECURING_KEYS if key in draft.section]
    what = f'action "{draft.action.value}"' if draft.action is not Action.SECURE else 'security "none"'
    return (given[0], f"a rule with {what} protects nothing, so it has no {given[0]}") if given else None


def _ports_need_protocol(draft: Draft) -> Finding:
    given = [key for key in PORT_KEYS if key in draft.section]
    if given and draft.protocol not in (TCP, UDP):
        return given[0], 'ports need protocol = "tcp" or protocol = "udp" beside them'
    return None


def _port_ranges(draft: Draft) -> Finding:
    for key, ports in (("local_port", draft.local_ports), ("remote_port", draft.remote_ports)):
        if draft.secures and any(low != high and (low, high) != ANY_PORT for low, high in ports):
            return key, "a rule that secures takes single ports, not a range; list them, or leave the key out"
    return None


def _multicast(draft: Draft) -> Finding:
    for key, spans in (("local", draft.local), ("remote", draft.remote)):
        for low, high in spans:
            first, last = _GROUPS[low.version]
            around = (
                int(low) < first and int(high) >= last
            )  # something as wide as "any" is not meant for groups
            if int(low) <= last and int(high) >= first and not around:
                return key, f"{low} to {high} has multicast addresses; multicast is always exempt"
    return None


def _families(draft: Draft) -> Finding:
    here, there = ({low.version for low, _ in spans} for spans in (draft.local, draft.remote))
    if here and there and not here & there:
        return "remote", f"local is IPv{min(here)} and remote is IPv{min(there)}; no packet is both"
    return None


def _tunnel_shape(draft: Draft) -> Finding:
    if draft.mode is not Mode.TUNNEL:
        return None
    for key in ("local", "remote"):
        if key not in draft.section:
            return key, 'missing: a tunnel says what it carries at both ends; write "any" if that is meant'
    for key in ("protocol", *PORT_KEYS):
        if key in draft.section and (key != "protocol" or draft.protocol):
            return key, "a tunnel carries every protocol; leave it out"
    if draft.secures and (draft.inbound, draft.outbound) != (Level.REQUIRE, Level.REQUIRE):
        key = "security" if "security" in draft.section else "inbound"
        return key, 'a tunnel protects both ways; write security = "require"'
    return None


def _tunnel_ends(draft: Draft) -> Finding:
    tunnel = draft.tunnel
    if tunnel is None:
        return None
    ends = [end for end in (tunnel.local, tunnel.remote) if end is not None]
    if len({end.version for end in ends}) > 1:
        return "tunnel", f"{tunnel.local} and {tunnel.remote} are of different families"
    for end in ends:
        if end.is_multicast or end.is_unspecified:
            return "tunnel", f"{end} cannot be the end of a tunnel"
    loops = [end for end in ends if end.is_loopback]
    # both ends on one machine is how a pair of daemons is tried out without a network
    if len(loops) == 1:
        return (
            "tunnel",
            f"{loops[0]} is this machine for every machine; write an address the other end can reach",
        )
    if len(ends) == 2 and ends[0] == ends[1]:
        return "tunnel", f"both ends are {ends[0]}"
    return None


def _lists_in_transport(draft: Draft) -> Finding:
    given = [key for key in ("allow", "deny") if key in draft.section]
    if not given or draft.mode is not Mode.TUNNEL:
        return None
    return given[0], f'{given[0]} is for transport mode; with a tunnel say who may with peer = "*.example"'


def _local_or_interface(draft: Draft) -> Finding:
    if "local" in draft.section and "interface" in draft.section:
        return "interface", "local and interface do not go together; keep local"
    return None


CHECKS = (
    Check("V1", (*LEVEL_KEYS, *SECURING_KEYS), _exempting,
          "A rule that protects nothing has no keys about protection."),
    Check("V2", LEVEL_KEYS, _levels_given,
          "`security`, or `inbound` and `outbound` together, and only with action `secure`."),
    Check("V2", LEVEL_KEYS, _combination,
          "Levels in and out: " + ", ".join(f"{i.value}/{o.value}" for i, o in COMBINATIONS) + "."),
    Check("V3", ("protocol", *PORT_KEYS), _ports_need_protocol,
          "Ports need protocol tcp or udp."),
    Check("V3", (*LEVEL_KEYS, *PORT_KEYS), _port_ranges,
          "A rule that secures takes single ports, no ranges."),
    Check("V4", ("local", "remote"), _multicast,
          "No multicast addresses; multicast is always exempt."),
    Check("V4", ("local", "remote"), _families,
          "Both ends have a family of addresses in common."),
    Check("V5", (*LEVEL_KEYS, "tunnel", "local", "remote", "protocol", *PORT_KEYS), _tunnel_shape,
          "A tunnel names `local` and `remote`, carries every protocol, and is require/require."),
    Check("V5", ("tunnel",), _tunnel_ends,
          "Tunnel ends are of one family, differ, are no multicast, and are not loopback (unless both are)."),
    Check("V7", ("tunnel", "allow", "deny"), _lists_in_transport,
          "`allow` and `deny` are for transport mode."),
    Check("V14", ("local", "interface"), _local_or_interface,
          "`local` and `interface` do not go together."),
)  # fmt: skip


def run(draft: Draft) -> None:
    """Put what the checks find into the section's notes; each key is complained about once."""
    for check in CHECKS:
        if draft.section.bad.isdisjoint(check.keys):
            finding = check.find(draft)
            if finding:
                draft.section.complain(*finding)
