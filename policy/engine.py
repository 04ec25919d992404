"""Which rule decides a packet, and why: the total order of `policy.ranking` over a whole policy.

`Policy` is immutable; a reload makes another one and `diff` tells what changed. What is exempt whatever the
rules say stands before them as rules of its own. This module reads no files and resolves no
names; `policy.load` and the daemon do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from ipaddress import ip_network

from policy.explanation import Explanation, narrower
from policy.ranking import by_address, difference, exempts, rank, service_blocks
from policy.rules import Rule
from sadb.address import IKE_PORT, NATT_PORT, Address
from sadb.sa import Action, Flow
from sadb.selector import ANY_PORT, ICMPV6, UDP, Fields, Selector, TrafficSelector

EXEMPT = "exempt:"  # how the names of built-in rules begin


def _exempt(
    name: str,
    local: tuple[str, ...],
    remote: tuple[str, ...],
    protocol: int = 0,
    local_ports: tuple[int, int] = ANY_PORT,
) -> Rule:
    here = tuple(TrafficSelector.of(ip_network(text), protocol, local_ports) for text in local)
    there = tuple(TrafficSelector.of(ip_network(text), protocol) for text in remote)
    return Rule(f"{EXEMPT} {name}", Selector(here, there), Action.PERMIT, source="built-in")


_ANY = ("0.0.0.0/0", "::/0")
_LOOPBACK = ("127.0.0.0/8", "::1/128")
_GROUPS = ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8")
_ESP, _AH = 50, 51

# What no rule decides. Keying traffic is told by the port at this end only: behind a NAT the other end may
# have any.
EXEMPTIONS = (
    _exempt("keying", _ANY, _ANY, UDP, (IKE_PORT, IKE_PORT)),
    _exempt("keying through NAT", _ANY, _ANY, UDP, (NATT_PORT, NATT_PORT)),
    _exempt("ESP", _ANY, _ANY, _ESP),
    _exempt("AH", _ANY, _ANY, _AH),
    _exempt("loopback", _LOOPBACK, _LOOPBACK),
    _exempt("multicast", _ANY, _GROUPS),
    _exempt("multicast to here", _GROUPS, _ANY),
    # ICMP type and code stand in the ports as type * 256 + code
    _exempt("neighbour discovery", _ANY, _ANY, ICMPV6, (135 << 8, 137 << 8 | 0xFF)),
    _exempt("DHCP client", ("0.0.0.0/0",), ("0.0.0.0/0",), UDP, (68, 68)),
    _exempt("DHCP server", ("0.0.0.0/0",), ("0.0.0.0/0",), UDP, (67, 67)),
    _exempt("DHCPv6", ("::/0",), ("::/0",), UDP, (546, 547)),
)

MOST_PEERS = 4096  # whose rules are remembered; strangers can fill it, so it is emptied when full


class Policy:
    """Rules in the order they are asked, with what loading had to say about them."""

    def __init__(self, rules: Iterable[Rule] = (), warnings: Iterable[str] = ()) -> None:
        self.rules = rank(rules)
        self.warnings = tuple(warnings)
        self._by_peer: dict[tuple[Address, Address, str], tuple[Rule, ...]] = {}
        self._digests: dict[str, str] = {}

    def rule(self, name: str) -> Rule | None:
        """A rule by name, also one that is not enabled, also an exemption."""
        return self._names.get(name)

    def classify(self, fields: Fields, *, outbound: bool = True) -> Rule | None:
        """The rule that decides a packet leaving (or arriving) here, None when nothing is said about it."""
        return next(self._matching(fields, outbound), None)

    def _matching(self, fields: Fields, outbound: bool) -> Iterator[Rule]:
        """Every rule that fits, in order."""
        for rule in (*EXEMPTIONS, *self.in_force):
            fits = rule.selector.matches_outbound if outbound else rule.selector.matches_inbound
            if fits(fields):
                yield rule

    def for_peer(self, local: Address, peer: Address, keying: str = "ikev2") -> tuple[Rule, ...]:
        """Enabled rules that secure traffic between these outer addresses with this keying module, most
        specific addresses first."""
        key = (local, peer, keying)
        known = self._by_peer.get(key)
        if known is None:
            found = [
                r for r in self.in_force if r.secures and keying in r.keying and r.covers_peer(local, peer)
            ]
            known = tuple(sorted(found, key=by_address))  # stable: the order of rules decides the rest
            if len(self._by_peer) >= MOST_PEERS:
                self._by_peer.clear()
            self._by_peer[key] = known
        return known

    @cached_property
    def in_force(self) -> tuple[Rule, ...]:
        """The enabled rules, in order."""
        return tuple(rule for rule in self.rules if rule.enabled)

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """Names of tunnel end points, to be resolved and handed to `resolved`."""
        names = (rule.tunnel.remote_host for rule in self.in_force if rule.tunnel)
        return tuple(dict.fromkeys(name for name in names if name))

    @cached_property
    def _names(self) -> Mapping[str, Rule]:
        return {rule.name: rule for rule in (*EXEMPTIONS, *self.rules)}

    def flows(self) -> tuple[Flow, ...]:
        """The policy as the data plane takes it: exemptions and enabled rules, `order` as ranked."""
        return self._flows

    @cached_property
    def _flows(self) -> tuple[Flow, ...]:
        return tuple(_flow(rule, order) for order, rule in enumerate((*EXEMPTIONS, *self.in_force)))

    def resolved(self, hosts: Mapping[str, tuple[Address, ...]]) -> Policy:
        """The same policy with the addresses of tunnel end points that were given as names: the first address
        of the family of the tunnel's own end. A name that has none leaves its rule without a peer."""
        return Policy((_resolved(rule, hosts) for rule in self.rules), self.warnings)

    def digest(self, name: str) -> str:
        """What a rule in force means, in a few octets that are the same in every process and other ones when
        `diff` would call the rule changed; empty when there is no such rule."""
        rule = self.rule(name)
        if rule is None or not rule.enabled:
            return ""
        if name not in self._digests:
            self._digests[name] = sha256(repr(_meaning(rule)).encode()).hexdigest()[:32]
        return self._digests[name]

    def explain(
        self,
        source: Address,
        destination: Address,
        protocol: int | None = None,
        port: int | None = None,
        here: Collection[Address] = (),
    ) -> Explanation:
        """Which rule decides packets from `source` to `destination` (to `port`), and what the next one
        lacked. `here` are this host's addresses if known; without them the end for which a better rule speaks
        is taken to be this host."""
        fields = Fields(source, destination, protocol or 0, None, port)
        every = (*EXEMPTIONS, *self.in_force)
        ways = (source in here,) if source in here or destination in here else (True, False)
        deciding = {way: rule for way in ways if (rule := self.classify(fields, outbound=way))}
        outbound = min(deciding, key=lambda way: every.index(deciding[way]), default=ways[0])
        matching = self._matching(fields, outbound)
        rule, beaten = next(matching, None), next(matching, None)
        partly = narrower(every[: every.index(rule)] if rule else every, fields, outbound)
        if rule is None or beaten is None or rule in EXEMPTIONS:
            return Explanation(fields, outbound, rule, partly=partly)
        reason = difference(rule, beaten, service_blocks(self.in_force))
        return Explanation(fields, outbound, rule, beaten, *reason, partly)


def _flow(rule: Rule, order: int) -> Flow:
    """One rule for the data plane; what lets packets pass is a permit there, however it was written."""
    tunnel = rule.tunnel
    return Flow(
        rule=rule.name,
        selector=rule.selector,
        action=Action.PERMIT if exempts(rule) else rule.action,
        order=order,
        mode=rule.mode,
        inbound=rule.inbound,
        outbound=rule.outbound,
        tunnel_local=tunnel.local if tunnel else None,
        tunnel_remote=tunnel.remote if tunnel else None,
        encrypt=rule.encrypt,
    )


def _resolved(rule: Rule, hosts: Mapping[str, tuple[Address, ...]]) -> Rule:
    tunnel = rule.tunnel
    if tunnel is None or tunnel.remote_host is None:
        return rule
    addresses = hosts.get(tunnel.remote_host, ())
    fitting = (a for a in addresses if tunnel.local is None or a.version == tunnel.local.version)
    return replace(rule, tunnel=replace(tunnel, remote=next(fitting, None)))


# Reload -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of rules in force that came, went, or mean something else now."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def diff(old: Policy, new: Policy) -> Changes:
    """What a reload changes. A rule that is switched off counts as removed; labels, comments and the place in
    the file do not count."""

    before, after = ({rule.name: _meaning(rule) for rule in policy.in_force} for policy in (old, new))
    return Changes(
        added=tuple(name for name in after if name not in before),
        changed=tuple(name for name in after if name in before and after[name] != before[name]),
        removed=tuple(name for name in before if name not in after),
    )


def _meaning(rule: Rule) -> Rule:
    """A rule without what nothing depends on."""
    return replace(rule, source="", description="", group=None, status="")
