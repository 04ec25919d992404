"""Which routes and routing rules lead packets of secure flows into the TUN device.

Two routing tables of our own. `steered` has a default route into the device, for packets that the packet
filter marked. `led` has the remote networks of tunnels, each with the source address an application gets that
did not choose one: without a route of its own such a network might have none, and a connection would fail
before the filter saw a packet. It is asked for local packets only, and what a permit flow excepts is thrown
back to the host's other tables. The rules, by preference (four numbers from `priority` on are ours):

    0  mark says steered          -> table `steered`
    0  mark says opened, way back -> table `steered`, for the reverse path filter
    1  mark says ours             -> go on at 3
    2  local, unbound or inside   -> table `led`
    3  nothing, a place to go on at

In IPv4 rule 2 names the sources (none chosen yet, or inside a tunnel's local networks): the reverse path
filter of other devices asks it, too, and must not take a tunnel to "any" for the way back to everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final

from offload.host.filter import OWN_BITS, STEERED_BITS, WHOLE_MARK, Marks
from sadb.address import Address, Network
from sadb.sa import Action, Flow, Mode
from sadb.selector import ANY_PORT, TrafficSelector

TABLES: Final = 0x1CE00000
PRIORITY: Final = 7000
PLACES: Final = 4
SOURCES: Final = 64  # rules for inside networks; with more the rule stands for every source

UNCHOSEN: Final = IPv4Network("0.0.0.0/32")  # the source of a packet before it has one
ANYWHERE: Final[dict[int, Network]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@dataclass(frozen=True, slots=True)
class Numbers:
    """The tables and preferences that belong to one device."""

    steered: int
    led: int
    priority: int

    @classmethod
    def of(cls, number: int, table: int | None = None, priority: int | None = None) -> Numbers:
        """Derived from the device's number, unless the administrator gives the first table or preference."""
        first = TABLES + 2 * number if table is None else table
        return cls(first, first + 1, PRIORITY + PLACES * number if priority is None else priority)


@dataclass(frozen=True, slots=True)
class Route:
    """A way into the device, or for `throw` back to the other tables."""

    table: int
    network: Network
    source: Address | None = None
    throw: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule: to a table, or to the rule at `target`, or (neither) a place to go on at."""

    version: int
    priority: int
    table: int | None = None
    target: int | None = None
    mark: int | None = None
    mask: int = 0
    source: Network | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What must be there, by what the kernel tells them apart by."""

    routes: dict[tuple[int, Network], Route] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


def plan(
    flows: Iterable[Flow],
    numbers: Numbers,
    marks: Marks,
    addresses: Sequence[Address],
    source_for: Callable[[Address], Address | None],
) -> Plan:
    """Routes and rules for a set of flows. `addresses` are this host's; `source_for` says from which one the
    host itself would send to an address, if it would."""
    ordered = sorted(flows, key=lambda flow: flow.order)
    secured = [flow for flow in ordered if flow.action is Action.SECURE]
    versions = sorted({one.version for flow in secured for one in flow.selector.remote})
    led = _led(ordered, numbers, addresses, source_for)
    steered = [Route(numbers.steered, ANYWHERE[version]) for version in versions]
    tunnels = [flow for flow in secured if flow.mode is Mode.TUNNEL]
    return Plan(
        {(route.table, route.network): route for route in (*steered, *led.values())},
        tuple(
            rule
            for version in versions
            for rule in _rules(version, numbers, marks, tunnels, any(n.version == version for n in led))
        ),
    )


def _led(
    flows: Sequence[Flow],
    numbers: Numbers,
    addresses: Sequence[Address],
    source_for: Callable[[Address], Address | None],
) -> dict[Network, Route]:
    """The remote networks of tunnels, and what is thrown back: what a flow before them permits, and the other
    ends of the tunnels themselves, which the reverse path filter looks for on their links."""
    led: dict[Network, Route] = {}
    back: dict[Network, Route] = {}
    ends: set[Network] = set()
    for flow in flows:
        if flow.action is Action.SECURE and flow.mode is Mode.TUNNEL:
            if flow.tunnel_remote:
                ends.update(TrafficSelector.of(flow.tunnel_remote).networks())
            for network in _networks(flow.selector.remote):
                if network not in led:
                    source = _inside(flow.selector.local, network.version, addresses)
                    led[network] = Route(numbers.led, network, source or source_for(network[0]))
        elif flow.action is Action.PERMIT:
            plain = [one for one in flow.selector.remote if not one.protocol and one.ports == ANY_PORT]
            back.update(
                (network, Route(numbers.led, network, throw=True))
                for network in _networks(plain)
                if not _covered(network, led)
            )
    thrown = {
        network: route for network, route in back.items() if network not in led and _covered(network, led)
    }
    excepted = {end: Route(numbers.led, end, throw=True) for end in ends if _covered(end, led)}
    return led | thrown | excepted


def _rules(
    version: int, numbers: Numbers, marks: Marks, tunnels: Iterable[Flow], led: bool
) -> Iterator[Rule]:
    """The rules of one family; those around table `led` only when it holds something."""
    first = numbers.priority
    yield Rule(version, first, numbers.steered, mark=marks.wish, mask=STEERED_BITS)
    yield Rule(version, first, numbers.steered, mark=marks.opened, mask=WHOLE_MARK, local=True)
    if not led:
        return
    yield Rule(version, first + 3)
    yield Rule(version, first + 1, target=first + 3, mark=marks.own, mask=OWN_BITS)
    for source in _sources(version, tunnels):
        yield Rule(version, first + 2, numbers.led, source=source, local=True)


def _sources(version: int, tunnels: Iterable[Flow]) -> Sequence[Network | None]:
    """For which sources local packets are led; None stands for all."""
    if (
        version == 6
    ):  # a source not yet chosen matches no rule with a source there, and nothing filters by path
        return (None,)
    local = [one for flow in tunnels for one in flow.selector.local]
    inside = list(collapse_addresses(n for n in _networks(local) if isinstance(n, IPv4Network)))
    if len(inside) > SOURCES or ANYWHERE[4] in inside:
        return (None,)
    return (UNCHOSEN, *inside)


def _networks(selectors: Iterable[TrafficSelector]) -> dict[Network, None]:
    """The prefixes of selectors, each once."""
    return {network: None for one in selectors for network in one.networks()}


def _covered(network: Network, led: Collection[Network]) -> bool:
    """Whether a network lies in one of these."""
    return network in led or any(network.supernet(new_prefix=n) in led for n in range(network.prefixlen))


def _inside(local: Sequence[TrafficSelector], version: int, addresses: Iterable[Address]) -> Address | None:
    """The first of our addresses that lies in a tunnel's local networks."""
    return next(
        (one for one in addresses if one.version == version and any(s.has_address(one) for s in local)), None
    )
