"""ikd.isakmp.identities: traffic as quick mode names it (RFC 2407 section 4.6.2), there and back.

A mistake here gives an SA for other traffic than both sides agreed on."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.link import LEFT, RIGHT, policy
from support.phases import RULE, sets

from ikd.isakmp import identities
from ikd.isakmp.message import Refused
from ikd.isakmp.numbers import IdType, N
from ikd.isakmp.payloads import Identification
from ikd.wire.codec import Malformed
from policy.rules import Rule
from sadb.sa import Acquire
from sadb.selector import ANY_PORT, TrafficSelector

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
PORTS = st.one_of(st.just(ANY_PORT), st.integers(1, 65535).map(lambda port: (port, port)))


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("192.0.2.1", IdType.IPV4_ADDR, "c0000201"),
        ("192.0.2.0/24", IdType.IPV4_ADDR_SUBNET, "c0000200 ffffff00"),
        ("0.0.0.0/0", IdType.IPV4_ADDR_SUBNET, "00000000 00000000"),
        ("192.0.2.1-192.0.2.5", IdType.IPV4_ADDR_RANGE, "c0000201 c0000205"),
        ("2001:db8::1", IdType.IPV6_ADDR, "20010db8000000000000000000000001"),
        ("2001:db8::/32", IdType.IPV6_ADDR_SUBNET, "20010db8" + "0" * 24 + "ffffffff" + "0" * 24),
    ],
)
def test_how_each_kind_is_written(text: str, kind: IdType, data: str) -> None:
    """The shortest form that says it, in the octets of the RFC."""
    low, _, high = text.partition("-")
    if high:
        selector = TrafficSelector(ip_address(low), ip_address(high), 17, (500, 500))
    else:
        where = ip_network(low) if "/" in low else ip_address(low)
        selector = TrafficSelector.of(where, 17, (500, 500))
    made = identities.encode(selector)
    assert (made.type, made.protocol, made.port) == (kind, 17, 500)
    assert made.data == bytes.fromhex(data)
    assert identities.decode(made) == selector


@given(one=ADDRESSES, other=ADDRESSES, protocol=st.integers(0, 255), ports=PORTS)
def test_there_and_back(one: object, other: object, protocol: int, ports: tuple[int, int]) -> None:
    """Every selector that can be said comes back as it was."""
    low, high = sorted((one, other), key=int) if one.version == other.version else (one, one)  # type: ignore[arg-type,attr-defined,call-overload]
    selector = TrafficSelector(low, high, protocol, ports)
    assert identities.decode(identities.encode(selector)) == selector


@given(kind=st.integers(0, 255), data=st.binary(max_size=40), protocol=st.integers(0, 255))
def test_any_octets(kind: int, data: bytes, protocol: int) -> None:
    """They are a selector, or refused in one of two ways."""
    try:
        found = identities.decode(Identification(type=kind, protocol=protocol, data=data))
    except (Malformed, Refused):
        return
    assert int(found.low) <= int(found.high)
    assert found.protocol == protocol


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (IdType.IPV4_ADDR, "c00002"),
        (IdType.IPV4_ADDR, "c000020100"),
        (IdType.IPV4_ADDR_SUBNET, "c0000200 ff00ff00"),
        (IdType.IPV4_ADDR_SUBNET, "c0000200 00ffffff"),
        (IdType.IPV4_ADDR_RANGE, "c0000205 c0000201"),
        (IdType.IPV6_ADDR_SUBNET, "c0000200 ffffff00"),
        (IdType.IPV6_ADDR, ""),
    ],
)
def test_what_is_no_address(kind: IdType, data: str) -> None:
    """Lengths that do not fit, masks with holes, ranges that run backwards."""
    with pytest.raises(Malformed):
        identities.decode(Identification(type=kind, data=bytes.fromhex(data)))


def test_host_bits_of_a_prefix_do_not_matter() -> None:
    """Some write their own address with the mask."""
    made = Identification(type=IdType.IPV4_ADDR_SUBNET, data=bytes.fromhex("c0000217 ffffff00"))
    assert identities.decode(made) == TrafficSelector.of(ip_network("192.0.2.0/24"))


@pytest.mark.parametrize("kind", [IdType.FQDN, IdType.USER_FQDN, IdType.DER_ASN1_DN, IdType.KEY_ID, 0, 250])
def test_names_are_no_traffic(kind: int) -> None:
    """The peer is told so."""
    with pytest.raises(Refused) as caught:
        identities.decode(Identification(type=kind, data=b"a.example"))
    assert caught.value.notify == N.INVALID_ID_INFORMATION


def rule(lines: str) -> Rule:
    """A rule in transport mode."""
    text = (
        f'[[rule]]\nname = "r"\nlocal = "{LEFT}"\nremote = "{RIGHT}"\nsecurity = "require"\nauth = "any"\n'
        f'{RULE}{lines}\n[auth.any]\nfirst = ["psk"]\n' + sets()
    )
    found = policy(text).rule("r")
    assert found is not None
    return found


def packet(protocol: int = 6, source: int = 40000, destination: int = 80) -> Acquire:
    """A packet that needs an SA."""
    return Acquire("r", LEFT, RIGHT, protocol, source, destination)


def test_what_is_asked_for() -> None:
    """What the rule says as a whole, and of several parts the one that the packet is in."""
    local, remote = identities.wanted(rule("").selector, packet())
    assert (local, remote) == (TrafficSelector.of(LEFT), TrafficSelector.of(RIGHT))
    several = rule('protocol = "tcp"\nremote_port = [22, 80]')
    assert identities.wanted(several.selector, packet())[1].ports == (80, 80)
    assert identities.wanted(several.selector, packet(destination=22))[1].ports == (22, 22)
    assert identities.wanted(several.selector, None)[1].ports == (22, 22)
    assert identities.wanted(several.selector, packet(destination=23))[1].ports == (22, 22)


def test_what_a_rule_covers() -> None:
    """All that the peer asks for, or nothing: quick mode cannot narrow."""
    tcp = rule('protocol = "tcp"\nremote_port = [22, 80]')
    here, there = TrafficSelector.of(LEFT, 6), TrafficSelector.of(RIGHT, 6, (80, 80))
    found = identities.fitting(tcp.selector, here, there)
    assert found is not None
    assert (found.local, found.remote) == ((here,), (there,))
    for wrong in (
        TrafficSelector.of(RIGHT, 6),
        TrafficSelector.of(RIGHT, 17, (80, 80)),
        TrafficSelector.of(RIGHT, 6, (81, 81)),
        TrafficSelector.of(RIGHT + 1, 6, (80, 80)),
        TrafficSelector.of(ip_network(f"{RIGHT}/31", strict=False), 6, (80, 80)),
    ):
        assert identities.fitting(tcp.selector, here, wrong) is None
