"""What is led into the device by its destination, and what the host's other tables go on deciding."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from offload.host.filter import Marks
from offload.host.routes import UNCHOSEN, Numbers, Plan, plan
from sadb.address import Address
from sadb.sa import Action, Flow, Mode
from sadb.selector import Selector, TrafficSelector

MARKS = Marks.of("ikd0", 0x1CE0)
NUMBERS = Numbers(100, 101, 7000)
OWN = ip_address("192.0.2.1")
INSIDE = ip_address("10.1.0.1")


def made(*flows: Flow, addresses: tuple[Address, ...] = (OWN, INSIDE)) -> Plan:
    return plan(flows, NUMBERS, MARKS, addresses, lambda to: OWN if to.version == 4 else None)


def flow(local: str, remote: str, action: Action = Action.SECURE, order: int = 0, end: str = "") -> Flow:
    here, there = (TrafficSelector.of(ip_network(text)) for text in (local, remote))
    mode = Mode.TUNNEL if end else Mode.TRANSPORT
    peer = ip_address(end) if end else None
    return Flow("one", Selector((here,), (there,)), action, order, mode, tunnel_remote=peer)


def led(found: Plan) -> dict[str, str]:
    """Networks of table `led` with their source, or "throw"."""
    return {
        str(network): "throw" if route.throw else str(route.source)
        for (table, network), route in found.routes.items()
        if table == NUMBERS.led
    }


def test_nothing_secured_needs_nothing() -> None:
    """A host with plain filter rules keeps its routing untouched."""
    assert made(flow("0.0.0.0/0", "10.0.0.0/8", Action.BLOCK)) == Plan()


def test_transport_is_led_by_marks_alone() -> None:
    """The peer has its route, and the source an application gets is the host's affair."""
    found = made(flow("0.0.0.0/0", "192.0.2.9/32"))
    assert led(found) == {}
    assert {rule.table for rule in found.rules} == {NUMBERS.steered}
    assert {rule.mark for rule in found.rules} == {MARKS.wish, MARKS.opened}


def test_tunnel_has_a_route_with_an_inside_source() -> None:
    """Without the route a connection fails before any rule is asked; with another source none would fit."""
    assert led(made(flow("10.1.0.0/16", "10.2.0.0/16", end="192.0.2.9"))) == {"10.2.0.0/16": str(INSIDE)}


def test_gateway_without_an_inside_address_sends_as_before() -> None:
    """Its own packets are not the tunnel's, so their source must be the one they had without us."""
    found = made(flow("10.1.0.0/16", "10.2.0.0/16", end="192.0.2.9"), addresses=(OWN,))
    assert led(found) == {"10.2.0.0/16": str(OWN)}


def test_exceptions_and_the_peer_are_thrown_back() -> None:
    """What a flow before the tunnel permits is routed as without us; what comes behind it is not excepted,
    and what lies elsewhere needs no entry. The peer itself is never inside its own tunnel."""
    found = made(
        flow("0.0.0.0/0", "10.2.0.9/32", Action.PERMIT, 0),
        flow("0.0.0.0/0", "172.16.0.0/12", Action.PERMIT, 1),
        flow("10.1.0.0/16", "10.2.0.0/16", order=2, end="10.2.0.1"),
        flow("0.0.0.0/0", "10.2.7.0/24", Action.PERMIT, 3),
    )
    assert led(found) == {"10.2.0.0/16": str(INSIDE), "10.2.0.9/32": "throw", "10.2.0.1/32": "throw"}


def test_sources_that_are_led() -> None:
    """A tunnel to everywhere must not be the way back for packets to our other addresses, which the reverse
    path filter of the link looks for."""
    found = made(flow("10.1.0.0/16", "0.0.0.0/0", end="192.0.2.9"))
    sources = {rule.source for rule in found.rules if rule.table == NUMBERS.led}
    assert sources == {UNCHOSEN, ip_network("10.1.0.0/16")}
    assert all(rule.local for rule in found.rules if rule.table == NUMBERS.led)


def test_own_packets_go_past_the_led_routes() -> None:
    """Else what leaves encrypted to a peer inside a tunnel's network would come back to be encrypted."""
    found = made(flow("10.1.0.0/16", "0.0.0.0/0", end="192.0.2.9"))
    places = {rule.priority: rule for rule in found.rules}
    past = places[7001]
    assert (past.mark, past.mask, past.target) == (MARKS.own, 0xFFFF, 7003)
    assert places[7003].table is None
    assert places[7003].target is None


def test_range_becomes_prefixes_and_many_sources_one_rule() -> None:
    """Routing knows prefixes only, and rules are asked one by one for every packet."""
    there = TrafficSelector(ip_address("10.2.0.1"), ip_address("10.2.0.6"))
    here = tuple(TrafficSelector.of(ip_address(f"10.{n}.0.1")) for n in range(65))
    found = made(Flow("one", Selector(here, (there,)), Action.SECURE, mode=Mode.TUNNEL))
    assert set(led(found)) == {"10.2.0.1/32", "10.2.0.2/31", "10.2.0.4/31", "10.2.0.6/32"}
    assert [rule.source for rule in found.rules if rule.table == NUMBERS.led] == [None]


def test_families_are_separate() -> None:
    """IPv6 outside or inside makes no rule for a family nobody secures."""
    found = made(flow("fd00:1::/64", "fd00:2::/64", end="192.0.2.9"))
    assert {rule.version for rule in found.rules} == {6}
    assert {network.version for _, network in found.routes} == {6}


def test_numbers_of_devices_differ_and_can_be_given() -> None:
    """Two data planes in one namespace must not remove each other's rules."""
    first, second = (Numbers.of(Marks.of(name, 0x1CE0).number) for name in ("ikd0", "ikd1"))
    assert not {first.steered, first.led} & {second.steered, second.led}
    assert abs(first.priority - second.priority) >= 4
    assert max(first.priority, second.priority) < 32766
    assert Numbers.of(5, table=300, priority=50) == Numbers(300, 301, 50)
