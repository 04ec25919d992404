"""The order in which rules are asked, as a table of criteria; docs/policy.md prints it.

The first criterion that tells two rules apart decides; each one can say so in words. A list of addresses or
ports counts as its widest entry. One thing stands before specificity: a `block` rule that names a service
(ports, or a protocol without ports), and rules that lie wholly inside such a rule (its exceptions). "No
telnet" then means no telnet, also to a host for which a more specific rule exists; any other `block` rule
ranks like the rest and closes what nothing else opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from policy.rules import Rule
from sadb.prefix import PrefixIndex
from sadb.sa import Action, Level, Mode
from sadb.selector import ANY_PORT, TCP, UDP, Selector, TrafficSelector

Measure = tuple[int, ...]

ALL_PORTS = ANY_PORT[1] - ANY_PORT[0]


@dataclass(frozen=True, slots=True)
class Criterion:
    """One comparison: the lower measure wins; `describe` puts a rule's measure in words."""

    name: str
    measure: Callable[[Rule], Measure]
    describe: Callable[[Rule], str]


def _width(selector: TrafficSelector) -> Measure:
    """Single address, prefix by length, range by size, any. Lengths of both families are put on one scale."""
    bits = selector.low.max_prefixlen
    count = int(selector.high) - int(selector.low) + 1
    if count == 1:
        return 0, 0
    if count == 1 << bits:
        return 3, 0
    if count & (count - 1) == 0 and int(selector.low) % count == 0:
        return 1, (count.bit_length() - 1) * (128 // bits)
    return 2, count << 128 - bits


def _widest(selectors: Sequence[TrafficSelector]) -> Measure:
    return max(map(_width, selectors), default=(0, 0))


def _kind(selectors: Sequence[TrafficSelector]) -> str:
    if not selectors:
        return "nothing"
    return ("a single host", "a prefix", "a range", "any")[_widest(selectors)[0]]


def extent(selectors: Sequence[TrafficSelector]) -> str:
    """The addresses of one side in words, without ports."""
    if _widest(selectors)[0] == 3:
        return "any"
    plain = dict.fromkeys(str(TrafficSelector(s.low, s.high)) for s in selectors)
    return ", ".join(plain) or "nothing"


def _ports(selectors: Sequence[TrafficSelector]) -> Measure:
    return (max((s.ports[1] - s.ports[0] for s in selectors), default=0),)


def _port_text(selectors: Sequence[TrafficSelector]) -> str:
    spans = sorted({s.ports for s in selectors})
    if ANY_PORT in spans:
        return "any"
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans) or "nothing"


def names_protocol(rule: Rule) -> bool:
    """Whether it is for one protocol only."""
    return bool(rule.selector.local) and all(s.protocol for s in rule.selector.local)


def names_service(rule: Rule) -> bool:
    """Whether it is for some ports, or for a protocol that has none."""
    sides = (rule.selector.local, rule.selector.remote)
    portless = all(s.protocol not in (TCP, UDP) for s in rule.selector.local)
    return names_protocol(rule) and (portless or any(_ports(side) < (ALL_PORTS,) for side in sides))


def exempts(rule: Rule) -> bool:
    """Whether it lets packets pass in the clear without asking for more."""
    return rule.action is Action.PERMIT or (rule.action is Action.SECURE and not rule.secures)


def effect(rule: Rule) -> str:
    """What a rule does, as a verb for people."""
    if rule.action is Action.BLOCK:
        return "blocks"
    return "permits" if exempts(rule) else "secures"


_EFFECTS = ("blocks", "permits", "secures")
_STRICTNESS = {
    (Level.REQUIRE, Level.REQUIRE): 0,
    (Level.REQUIRE, Level.REQUEST): 1,
    (Level.REQUEST, Level.REQUEST): 2,
    (Level.REQUEST, Level.NONE): 3,
}


def _levels(rule: Rule) -> str:
    return f"{rule.inbound.value} in, {rule.outbound.value} out"


_PROTOCOL = ("given", "any")

SPECIFICITY = (
    Criterion("remote address", lambda r: _widest(r.selector.remote), lambda r: _kind(r.selector.remote)),
    Criterion("local address", lambda r: _widest(r.selector.local), lambda r: _kind(r.selector.local)),
    Criterion("protocol", lambda r: (not names_protocol(r),), lambda r: _PROTOCOL[not names_protocol(r)]),
    Criterion("remote port", lambda r: _ports(r.selector.remote), lambda r: _port_text(r.selector.remote)),
    Criterion("local port", lambda r: _ports(r.selector.local), lambda r: _port_text(r.selector.local)),
    Criterion("interface", lambda r: (r.interface is None,), lambda r: r.interface or "every one"),
)

TIES = (
    Criterion("action", lambda r: (_EFFECTS.index(effect(r)),), effect),
    Criterion("mode", lambda r: (r.mode is not Mode.TUNNEL,), lambda r: r.mode.value),
    Criterion("level", lambda r: (_STRICTNESS.get((r.inbound, r.outbound), 4),), _levels),
)


def specificity(rule: Rule) -> tuple[Measure, ...]:
    """How specific a rule is; lower is more. Equal for rules that only `TIES` and the name tell apart."""
    return tuple(criterion.measure(rule) for criterion in SPECIFICITY)


def by_address(rule: Rule) -> tuple[Measure, ...]:
    """The same on addresses only, for main mode; with a tunnel those of its end points."""
    if rule.mode is Mode.TUNNEL and rule.tunnel:
        return tuple((3, 0) if end is None else (0, 0) for end in (rule.tunnel.remote, rule.tunnel.local))
    return _widest(rule.selector.remote), _widest(rule.selector.local)


def _local(rule: Rule) -> tuple[TrafficSelector, ...]:
    return rule.selector.local


def _remote(rule: Rule) -> tuple[TrafficSelector, ...]:
    return rule.selector.remote


def _index(rules: Iterable[Rule], side: Callable[[Rule], tuple[TrafficSelector, ...]]) -> PrefixIndex[Rule]:
    """Rules by the addresses of one side, so that thousands need not be compared with each other."""
    index: PrefixIndex[Rule] = PrefixIndex()
    for rule in rules:
        index.add(side(rule), rule)
    return index


def _around(index: PrefixIndex[Rule], selectors: Iterable[TrafficSelector]) -> Iterator[Rule]:
    """Rules that hold the first address of one of the ranges."""
    for selector in selectors:
        for bucket in index.buckets(selector.low):
            yield from bucket


def _inside(inner: Selector, outer: Selector) -> bool:
    return all(any(o.covers(i) for o in outer.local) for i in inner.local) and all(
        any(o.covers(i) for o in outer.remote) for i in inner.remote
    )


def service_blocks(rules: Iterable[Rule]) -> dict[str, str]:
    """The rules decided before all others, by name: `block` rules that name a service, and rules inside one,
    with the name of the block they belong to."""
    rules = [rule for rule in rules if rule.enabled and rule.selector.local and rule.selector.remote]
    blocks = [rule for rule in rules if rule.action is Action.BLOCK and names_service(rule)]
    first = {block.name: block.name for block in blocks}
    index = _index(blocks, _remote)
    for rule in filter(names_protocol, rules):
        if rule.name not in first:
            near = _around(index, rule.selector.remote)
            around = min(
                (block.name for block in near if _inside(rule.selector, block.selector)), default=None
            )
            if around is not None:
                first[rule.name] = around
    return first


def rank(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules in the order they are asked; names break the last ties, so that the order is reproducible."""
    rules = tuple(rules)
    first = service_blocks(rules)

    def key(rule: Rule) -> tuple[object, ...]:
        return (
            rule.name not in first,
            specificity(rule),
            tuple(criterion.measure(rule) for criterion in TIES),
            rule.name,
        )

    return tuple(sorted(rules, key=key))


def difference(winner: Rule, other: Rule, first: Mapping[str, str]) -> tuple[str, str]:
    """Why `winner` is asked before `other`: the criterion's name, and a sentence about both."""
    if winner.name in first and other.name not in first:
        block = first[winner.name]
        if block == winner.name:
            return "blocked service", "a block rule that names a service comes before all others"
        return "blocked service", f'it is an exception to block rule "{block}", which comes before all others'
    for criterion in (*SPECIFICITY, *TIES):
        if criterion.measure(winner) != criterion.measure(other):
            here, there = criterion.describe(winner), criterion.describe(other)
            if here == there:  # two prefixes, or two ranges: which ones?
                side = _remote if criterion.name == "remote address" else _local
                here, there = extent(side(winner)), extent(side(other))
            return criterion.name, f"its {criterion.name} is {there}, this one {here}"
    return "name", "they differ only in name, and names are taken in order"


# Warnings ---------------------------------------------------------------------------------------------------


def overlap(one: Rule, other: Rule) -> bool:
    """Whether some packet fits both."""
    return any(a.intersect(b) for a in one.selector.local for b in other.selector.local) and any(
        a.intersect(b) for a in one.selector.remote for b in other.selector.remote
    )


def doubts(rules: Iterable[Rule]) -> tuple[str, ...]:
    """Warnings about pairs of enabled rules whose order the administrator may not have meant."""
    ranked = [rule for rule in rank(rules) if rule.enabled]
    return (*_ties(ranked), *_undercut(ranked))


def _ties(ranked: Sequence[Rule]) -> Iterator[str]:
    """Overlapping rules that are equally specific and do different things."""
    groups: dict[tuple[Measure, ...], dict[tuple[Measure, ...], list[Rule]]] = {}
    for rule in ranked:
        kind = tuple(criterion.measure(rule) for criterion in TIES)
        groups.setdefault(specificity(rule), {}).setdefault(kind, []).append(rule)
    for group in groups.values():
        for better, worse in combinations(sorted(group), 2):
            for winner, other in _meeting(group[better], group[worse]):
                name, why = difference(winner, other, {})
                yield (
                    f'{_where(other)}: rule "{other.name}" and rule "{winner.name}" are equally specific '
                    f'and overlap, but differ in {name}; "{winner.name}" wins: {why}. '
                    "Narrow one of them if that is not meant"
                )


def _undercut(ranked: Sequence[Rule]) -> Iterator[str]:
    """Exceptions to a block that let pass in the clear what a more specific rule would protect."""
    first = service_blocks(ranked)
    exceptions = [rule for rule in ranked if rule.name in first and exempts(rule)]
    protecting = [rule for rule in ranked if rule.name not in first and rule.secures]
    for rule, other in _meeting(exceptions, protecting):
        if specificity(other) < specificity(rule):
            yield (
                f'{_where(rule)}: rule "{rule.name}" is an exception to block rule "{first[rule.name]}" '
                f'and comes before rule "{other.name}": its packets pass in the clear also where '
                f'"{other.name}" would protect them. Let it secure them if that is not meant'
            )


def _meeting(ones: Sequence[Rule], others: Sequence[Rule]) -> Iterator[tuple[Rule, Rule]]:
    """Pairs of rules with packets in common: of two ranges that meet, one holds the other's first address."""
    if not ones or not others:
        return
    side = _remote if _widest(ones[0].selector.remote)[0] < 3 else _local
    here, there = _index(ones, side), _index(others, side)
    pairs = {(one.name, other.name): (one, other) for one in ones for other in _around(there, side(one))}
    pairs |= {(one.name, other.name): (one, other) for other in others for one in _around(here, side(other))}
    yield from (pair for pair in pairs.values() if overlap(*pair))


def _where(rule: Rule) -> str:
    return rule.source or rule.name
