"""Traffic selectors in TS payloads (RFC 7296 sections 2.9, 2.23.1 and 3.13).

If one of these fails, a Child SA covers more or less than both sides agreed on.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import one as rule_of

from ikd.ikev2 import selectors
from ikd.ikev2.payloads import SelectorRange, TrafficSelectorsI
from ikd.wire.codec import Malformed, decode
from sadb.address import Path, SocketAddress
from sadb.sa import Acquire
from sadb.selector import ANY_PORT, OPAQUE, TCP, UDP, Selector, TrafficSelector

ADDRESSES = st.integers(0, 255).map(lambda n: ip_address(f"10.0.0.{n}"))
PORTS = st.one_of(st.just(ANY_PORT), st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted).map(tuple))

BETWEEN = Path(SocketAddress(ip_address("192.0.2.1"), 500), SocketAddress(ip_address("192.0.2.2"), 500))


@st.composite
def traffic(draw: st.DrawFn) -> TrafficSelector:
    """A selector in a small world, where overlaps are common."""
    low, high = sorted((draw(ADDRESSES), draw(ADDRESSES)))
    protocol = draw(st.sampled_from([0, TCP, UDP]))
    return TrafficSelector(low, high, protocol, draw(PORTS) if protocol else ANY_PORT)


def net(text: str, protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> TrafficSelector:
    """A selector of a prefix."""
    return TrafficSelector.of(ip_network(text), protocol, ports)


@settings(deadline=None, max_examples=100)
@given(st.lists(traffic(), min_size=1, max_size=5))
def test_round_trip(found: list[TrafficSelector]) -> None:
    """Encoded and decoded they are the same, in the same order."""
    payload = TrafficSelectorsI(ranges=selectors.encode(found))
    assert selectors.decode(decode(TrafficSelectorsI, payload.encode()).ranges) == tuple(found)


def test_both_families_and_opaque_ports() -> None:
    """IPv6 ranges and the ports of packets whose ports cannot be seen."""
    found = (net("2001:db8::/32", UDP, (53, 53)), net("10.0.0.0/8", TCP, OPAQUE))
    assert selectors.decode(selectors.encode(found)) == found


def test_unknown_types_are_left_out() -> None:
    """Section 3.13.1: others than 7 and 8 are passed over; when nothing else is there, it is malformed."""
    strange = SelectorRange(type=9, protocol=0, body=bytes(12))
    known = SelectorRange.of(net("10.0.0.0/8"))
    assert selectors.decode((strange, known)) == (net("10.0.0.0/8"),)
    with pytest.raises(Malformed):
        selectors.decode((strange,))
    with pytest.raises(Malformed):
        selectors.decode(())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(11),
        bytes(13),
        bytes((0, 5, 0, 4)) + bytes(8),
        bytes(4) + bytes((10, 0, 0, 2)) + bytes((10, 0, 0, 1)),
    ],
    ids=["empty", "short", "long", "ports", "addresses"],
)
def test_ranges_that_cannot_be(body: bytes) -> None:
    """Wrong lengths, and ranges that end before they begin."""
    with pytest.raises(Malformed):
        selectors.decode((SelectorRange(type=7, protocol=0, body=body),))


@settings(deadline=None, max_examples=200)
@given(st.lists(traffic(), min_size=1, max_size=4), st.lists(traffic(), min_size=1, max_size=4))
def test_narrowing_is_the_intersection(
    offered: list[TrafficSelector], allowed: list[TrafficSelector]
) -> None:
    """A packet is covered afterwards exactly when it was covered by both lists before."""
    found = selectors.narrowed(offered, allowed)
    for host in range(0, 256, 5):
        for protocol, port in ((TCP, 0), (TCP, 5), (UDP, 3)):
            packet = ip_address(f"10.0.0.{host}"), protocol, port
            both = all(any(one.matches(*packet) for one in many) for many in (offered, allowed))
            assert any(one.matches(*packet) for one in found) is both


def test_narrowing_says_nothing_twice() -> None:
    """What another one covers is left out; order is the peer's."""
    found = selectors.narrowed(
        (net("10.0.0.1/32"), net("10.0.0.0/24"), net("10.0.0.0/24")), (net("10.0.0.0/16"), net("10.0.0.0/8"))
    )
    assert found == (net("10.0.0.0/24"),)


def test_the_packet_stands_in_front() -> None:
    """Section 2.9: first what started the negotiation, within the rule, then the rule."""
    tunnel = 'tunnel = { local = "192.0.2.1", remote = "192.0.2.2" }'
    rule = rule_of(f'remote = "10.2.0.0/16"\nlocal = "10.1.0.0/16"\n{tunnel}')
    acquire = Acquire("r1", ip_address("10.1.0.5"), ip_address("10.2.0.6"), TCP, 40000, 443)
    wanted = selectors.wanted(rule, BETWEEN, acquire)
    assert wanted.local == (net("10.1.0.5/32", TCP, (40000, 40000)), net("10.1.0.0/16"))
    assert wanted.remote == (net("10.2.0.6/32", TCP, (443, 443)), net("10.2.0.0/16"))
    assert selectors.wanted(rule, BETWEEN, None) == rule.selector
    outside = Acquire("r1", ip_address("10.9.0.5"), ip_address("10.2.0.6"), TCP, 1, 2)
    assert selectors.wanted(rule, BETWEEN, outside).local == rule.selector.local


def test_transport_mode_is_about_the_two_hosts() -> None:
    """An SA between two hosts that covers everybody's addresses would carry other hosts' packets away."""
    rule = rule_of('protocol = "udp"\nlocal_port = 1701')
    wanted = selectors.wanted(rule, BETWEEN, None)
    assert wanted.local == (net("192.0.2.1/32", UDP, (1701, 1701)),)
    assert wanted.remote == (net("192.0.2.2/32", UDP),)


def test_a_rule_that_has_changed() -> None:
    """A pair is replaced within what its rule means today, and as the rule when nothing is left."""
    rule = rule_of('remote = "10.2.0.0/16"\nlocal = "10.1.0.0/16"')
    wide = Selector((net("10.0.0.0/8"),), (net("10.2.3.0/24"),))
    assert selectors.narrowed_to_rule(rule, wide) == Selector((net("10.1.0.0/16"),), (net("10.2.3.0/24"),))
    gone = Selector((net("10.7.0.0/16"),), (net("10.2.3.0/24"),))
    assert selectors.narrowed_to_rule(rule, gone) == rule.selector


def test_moved_addresses() -> None:
    """Section 2.23.1: only single addresses of the same family take the address that is seen."""
    seen = ip_address("203.0.113.9")
    found = selectors.moved(
        (net("192.0.2.1/32", TCP, (80, 80)), net("10.0.0.0/8"), net("2001:db8::1/128")), seen
    )
    assert found == (net("203.0.113.9/32", TCP, (80, 80)), net("10.0.0.0/8"), net("2001:db8::1/128"))
