"""sadb.selector: what selectors match, narrowing, and packets that lie."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sas import selectors

from sadb.address import Address
from sadb.selector import (
    ANY_PORT,
    ICMP,
    ICMPV6,
    MOST_SELECTORS,
    OPAQUE,
    TCP,
    UDP,
    Fields,
    Selector,
    TrafficSelector,
    fields_of,
    narrow,
)

# a small world, so that random selectors and packets meet
V4 = st.integers(0, 15).map(lambda n: ip_address(0x0A000000 + n))
V6 = st.integers(0, 15).map(lambda n: ip_address((0x20010DB8 << 96) + n))
PORT = st.sampled_from([0, 1, 7, 80, 443, 65534, 65535])
PROTOCOL = st.sampled_from([TCP, UDP, ICMP, 50])


@st.composite
def a_selector(draw: st.DrawFn) -> TrafficSelector:
    addresses = draw(st.sampled_from([V4, V6]))
    low, high = sorted((draw(addresses), draw(addresses)), key=int)
    ports = draw(st.one_of(st.just(ANY_PORT), st.just(OPAQUE), st.tuples(PORT, PORT).map(sorted).map(tuple)))
    return TrafficSelector(low, high, draw(st.one_of(st.just(0), PROTOCOL)), ports)


@st.composite
def an_end(draw: st.DrawFn) -> tuple[Address, int, int | None]:
    return draw(st.one_of(V4, V6)), draw(PROTOCOL), draw(st.one_of(st.none(), PORT, st.integers(0, 65535)))


LISTS = st.lists(a_selector(), max_size=5)


# One selector --------------------------------------------------------------------------------------------


@given(a_selector(), a_selector(), an_end())
def test_intersection_matches_what_both_match(
    one: TrafficSelector, other: TrafficSelector, end: tuple[Address, int, int | None]
) -> None:
    """More would be an SA wider than policy, less a packet that finds no SA."""
    both = one.intersect(other)
    assert (both is not None and both.matches(*end)) == (one.matches(*end) and other.matches(*end))
    assert both == other.intersect(one)


@given(a_selector(), a_selector(), an_end())
def test_what_covers_matches_everything(
    one: TrafficSelector, other: TrafficSelector, end: tuple[Address, int, int | None]
) -> None:
    """`covers` drops selectors as repeats: dropping one that matched more would lose traffic."""
    if one.covers(other) and other.matches(*end):
        assert one.matches(*end)
    assert one.covers(one)
    both = one.intersect(other)
    if both is not None:
        assert one.covers(both)
        assert other.covers(both)
    assert one.covers(other) == (both == other)


@given(a_selector())
def test_prefixes_make_up_the_range(one: TrafficSelector) -> None:
    """A missing prefix leaves traffic unprotected, an extra one routes strangers' traffic into the tunnel."""
    networks = list(one.networks())
    assert sum(network.num_addresses for network in networks) == int(one.high) - int(one.low) + 1
    for address in map(int, (one.low, one.high)):
        assert any(int(n.network_address) <= address <= int(n.broadcast_address) for n in networks)


def test_prefix_and_address_become_ranges() -> None:
    """A prefix that lost its first or last address would leave one host out."""
    net = TrafficSelector.of(ip_network("10.1.0.0/30"))
    assert (net.low, net.high) == (ip_address("10.1.0.0"), ip_address("10.1.0.3"))
    assert not net.single
    host = TrafficSelector.of(ip_address("2001:db8::1"), TCP, (22, 22))
    assert host.single
    assert host.version == 6


def test_ports_that_cannot_be_seen_match_only_any_or_opaque() -> None:
    """A later fragment must not pass a port rule, nor be lost by a rule without ports."""
    host = ip_address("10.0.0.1")
    for ports, matched in ((ANY_PORT, True), (OPAQUE, True), ((80, 80), False), ((0, 65534), False)):
        assert TrafficSelector.of(host, UDP, ports).matches(host, UDP, None) is matched
    assert not TrafficSelector.of(host, UDP, OPAQUE).matches(host, UDP, 80)


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (TrafficSelector.of(ip_address("10.0.0.1")), "10.0.0.1"),
        (TrafficSelector.of(ip_network("10.0.0.0/8")), "10.0.0.0/8"),
        (selectors("10.0.0.1-10.0.0.3")[0], "10.0.0.1-10.0.0.3"),
        (TrafficSelector.of(ip_address("10.0.0.1"), TCP), "10.0.0.1[tcp]"),
        (TrafficSelector.of(ip_address("10.0.0.1"), TCP, (443, 443)), "10.0.0.1[tcp/443]"),
        (TrafficSelector.of(ip_network("2001:db8::/64"), UDP, (1, 9)), "2001:db8::/64[udp/1-9]"),
        (TrafficSelector.of(ip_address("10.0.0.1"), 0, OPAQUE), "10.0.0.1[any/opaque]"),
        (TrafficSelector.of(ip_address("10.0.0.1"), 89), "10.0.0.1[89]"),
    ],
)
def test_text_is_that_of_the_policy_file(selector: TrafficSelector, text: str) -> None:
    """`ikctl sa` must tell apart what differs."""
    assert str(selector) == text


# Narrowing -----------------------------------------------------------------------------------------------


@given(LISTS, LISTS, an_end())
def test_narrowing_matches_what_is_offered_and_allowed(
    offered: list[TrafficSelector], allowed: list[TrafficSelector], end: tuple[Address, int, int | None]
) -> None:
    """Wider than policy is a hole, wider than the offer breaks the peer (RFC 7296 section 2.9)."""
    found = narrow(offered, allowed)
    matched = any(one.matches(*end) for one in offered) and any(one.matches(*end) for one in allowed)
    assert any(one.matches(*end) for one in found) == matched
    assert len(set(found)) == len(found)


@given(LISTS, LISTS)
def test_narrowing_again_changes_nothing(
    offered: list[TrafficSelector], allowed: list[TrafficSelector]
) -> None:
    """The initiator narrows the answer by its own policy: what was agreed must survive (idempotence)."""
    once = narrow(offered, allowed)
    again = narrow(once, allowed)
    assert all(any(one.covers(other) for one in again) for other in once)
    assert all(any(one.covers(other) for one in once) for other in again)


@given(LISTS)
def test_narrowing_by_anything_keeps_the_offer(offered: list[TrafficSelector]) -> None:
    """Against "any" the first selector, the one of the packet that asked, must stay in front."""
    found = narrow(offered, selectors("0.0.0.0/0", "::/0"))
    assert not offered or found[0] == offered[0]
    assert set(found) <= set(offered)


def test_order_is_that_of_the_offer() -> None:
    """The first selectors of an offer describe the packet that triggered it (RFC 7296 section 2.9)."""
    packet = TrafficSelector.of(ip_address("10.0.0.5"), TCP, (80, 80))
    found = narrow([packet, *selectors("10.0.0.0/24")], selectors("10.0.0.0/28", "10.0.1.0/24"))
    assert found == (packet, *selectors("10.0.0.0/28"))


def test_what_is_narrowed_fits_into_a_payload() -> None:
    """255 selectors offered against a policy of many would not even be writable, and take minutes."""
    offered = [TrafficSelector.of(ip_network("10.0.0.0/8"), UDP, (n, n)) for n in range(255)]
    allowed = [TrafficSelector.of(ip_address(0x0A000000 + n)) for n in range(64)]
    assert len(narrow(offered, allowed)) == MOST_SELECTORS


# Both ends -----------------------------------------------------------------------------------------------


def test_selector_sees_packets_from_this_end() -> None:
    """Mixing up the directions would check an inbound packet's source against the local addresses."""
    selector = Selector(
        (TrafficSelector.of(ip_address("10.0.0.1"), TCP),),
        (TrafficSelector.of(ip_address("10.0.0.2"), TCP, (443, 443)),),
    )
    out = Fields(ip_address("10.0.0.1"), ip_address("10.0.0.2"), TCP, 50000, 443)
    assert selector.matches_outbound(out)
    assert not selector.matches_inbound(out)
    assert selector.matches_inbound(out.reversed())
    assert not selector.matches_outbound(out._replace(destination_port=80))
    assert out.reversed().reversed() == out
    assert str(selector) == "10.0.0.1[tcp] === 10.0.0.2[tcp/443]"


# Packets -------------------------------------------------------------------------------------------------

A4, B4 = ip_address("192.0.2.1"), ip_address("198.51.100.2")
A6, B6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")


def v4(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), 1, fragment, 64, protocol, 0)
    return head + A4.packed + B4.packed + options + payload


def v6(kind: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), kind, 64) + A6.packed + B6.packed + payload


PORTS = struct.pack("!HH", 1234, 80)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (v4(TCP, PORTS + bytes(16)), Fields(A4, B4, TCP, 1234, 80)),
        (v4(UDP, PORTS + bytes(4), options=bytes(8)), Fields(A4, B4, UDP, 1234, 80)),
        (v4(ICMP, b"\x08\x00" + bytes(6)), Fields(A4, B4, ICMP, 0x0800, 0x0800)),
        (v4(UDP, PORTS, fragment=0x2000), Fields(A4, B4, UDP, 1234, 80)),  # the first fragment
        (v4(UDP, PORTS, fragment=0x0001), Fields(A4, B4, UDP)),
        (v4(UDP, PORTS, fragment=0x1F00), Fields(A4, B4, UDP)),
        (v4(TCP, b"\x04\xd2\x00"), Fields(A4, B4, TCP)),  # cut within the ports
        (v4(50, PORTS), Fields(A4, B4, 50)),
        (v6(UDP, PORTS), Fields(A6, B6, UDP, 1234, 80)),
        (v6(ICMPV6, b"\x80\x00" + bytes(6)), Fields(A6, B6, ICMPV6, 0x8000, 0x8000)),
        (
            v6(0, bytes((60, 0)) + bytes(6) + bytes((TCP, 1)) + bytes(14) + PORTS),
            Fields(A6, B6, TCP, 1234, 80),
        ),
        (v6(44, bytes((UDP, 0, 0, 1)) + bytes(4) + PORTS), Fields(A6, B6, UDP, 1234, 80)),  # first of several
        (v6(44, bytes((UDP, 0, 0, 7)) + bytes(4) + PORTS), Fields(A6, B6, UDP, 1234, 80)),  # reserved bits
        (v6(44, bytes((UDP, 0, 0, 8)) + bytes(4) + PORTS), Fields(A6, B6, UDP)),
        (v6(0, bytes((TCP, 255)) + bytes(6) + PORTS), Fields(A6, B6, TCP)),  # a header longer than the packet
        (v6(0, bytes((TCP,))), Fields(A6, B6, 0)),
        (v6(51, PORTS), Fields(A6, B6, 51)),
    ],
)
def test_fields_of_packets(packet: bytes, expected: Fields) -> None:
    """Ports read at the wrong place would let a packet through under another rule."""
    assert fields_of(packet) == expected
    assert fields_of(memoryview(packet)) == expected


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        v4(TCP, b"")[:19],
        b"\x44" + v4(TCP, PORTS)[1:],
        b"\x4f" + v4(TCP, PORTS)[1:],
        v6(TCP, b"")[:39],
        b"\x75" * 60,
        bytes(60),
    ],
)
def test_what_is_no_packet_has_no_fields(packet: bytes) -> None:
    """Half a header read as a whole one would classify by octets that are not there."""
    assert fields_of(packet) is None


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x46", b"\x4f", b"\x60"]))
def test_any_octets_have_fields_or_not(octets: bytes, front: bytes) -> None:
    """It reads what strangers send, before anything else does: it never raises."""
    fields = fields_of(front + octets)
    assert fields == fields_of(memoryview(front + octets))
    if fields is not None:
        assert (fields.source_port is None) == (fields.destination_port is None)
        assert fields.source.version == fields.destination.version


@given(
    st.lists(st.sampled_from([0, 43, 60, 135, 44]), max_size=6), st.binary(max_size=80), st.integers(0, 255)
)
def test_extension_headers_come_to_an_end(kinds: list[int], rest: bytes, last: int) -> None:
    """A chain of headers with lengths that lie must neither loop nor read past the packet."""
    payload = b""
    for kind in reversed(kinds):
        payload = bytes((last, 0)) + bytes(6) + payload
        last = kind
    fields = fields_of(v6(last, payload + rest))
    assert fields is not None
