"""The text of the packet filter: first match, and what each kind of flow becomes. That the kernel understands
it the same way is for tests/interop/test_dataplane_host.py to prove."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from offload.host.filter import Marks, ruleset, table_name
from sadb.sa import Action, Flow, Level
from sadb.selector import ANY_PORT, OPAQUE, Selector, TrafficSelector

MARKS = Marks.of("ikd0", 0x1CE0)
ANY = ip_network("0.0.0.0/0")


def end(text: str, protocol: int = 0, ports: tuple[int, int] = ANY_PORT) -> TrafficSelector:
    if "-" in text:
        low, high = map(ip_address, text.split("-"))
        return TrafficSelector(low, high, protocol, ports)
    return TrafficSelector.of(ip_network(text), protocol, ports)


def flow(
    local: list[TrafficSelector],
    remote: list[TrafficSelector],
    action: Action = Action.SECURE,
    order: int = 0,
    inbound: Level = Level.REQUIRE,
    outbound: Level = Level.REQUIRE,
) -> Flow:
    selector = Selector(tuple(local), tuple(remote))
    return Flow("one", selector, action, order, inbound=inbound, outbound=outbound)


def chain(name: str, *flows: Flow, mtu: int = 1400) -> list[str]:
    """The lines of a chain that come from the flows."""
    text = ruleset(flows, "ikd0", mtu, MARKS)
    lines = text.split(f"chain {name} {{\n")[1].split("\n}")[0].splitlines()
    fixed = ruleset((), "ikd0", mtu, MARKS).split(f"chain {name} {{\n")[1].split("\n}")[0].splitlines()
    return [line for line in lines if line and line not in fixed]


def test_secure_flow_in_each_chain() -> None:
    """Steered where routing decides, dropped where it would pass unprotected, ends swapped for arrivals."""
    one = flow([end("10.1.0.0/16")], [end("10.2.0.9/32")])
    assert chain("steering", one) == ["ip saddr 10.1.0.0/16 ip daddr 10.2.0.9 goto must"]
    assert chain("leaving", one) == ["ip saddr 10.1.0.0/16 ip daddr 10.2.0.9 goto unprotected_out"]
    assert chain("arriving", one) == ["ip daddr 10.1.0.0/16 ip saddr 10.2.0.9 goto unprotected_in"]


def test_levels_decide_what_is_dropped() -> None:
    """What may go in the clear is still led into the device, but not dropped elsewhere."""
    one = flow([end("0.0.0.0/0")], [end("10.2.0.9/32")], inbound=Level.REQUEST, outbound=Level.REQUEST)
    assert chain("steering", one) == ["ip daddr 10.2.0.9 goto wish"]
    assert chain("leaving", one) == chain("arriving", one) == []


def test_decrypted_packets_are_only_blocked() -> None:
    """They have been protected; every rule they are compared with is time for each packet."""
    wide, narrow = flow([end("0.0.0.0/0")], [end("10.2.0.0/16")], order=2), [end("10.2.0.9/32")]
    block = flow([end("0.0.0.0/0")], narrow, Action.BLOCK, 1)
    assert chain("decrypted", wide) == []
    assert chain("decrypted", wide, block) == ["ip saddr 10.2.0.9 goto refused"]


def test_order_is_that_of_the_flows() -> None:
    """An exception behind the rule it excepts from would never match."""
    wide = flow([end("0.0.0.0/0")], [end("10.2.0.0/16")], order=9)
    exception = flow([end("0.0.0.0/0")], [end("10.2.0.9/32")], Action.PERMIT, order=3)
    assert [line.split()[-1] for line in chain("arriving", wide, exception)] == ["accept", "unprotected_in"]
    assert [line.split()[-1] for line in chain("steering", wide, exception)] == ["clear", "must"]


def test_what_only_lets_pass_at_the_end_is_left_out() -> None:
    """A host without a rule that drops must not pay for each exemption on each packet."""
    permits = [flow([end("0.0.0.0/0")], [end(f"10.0.0.{n}/32")], Action.PERMIT, n) for n in range(9)]
    assert chain("arriving", *permits) == chain("steering", *permits) == chain("leaving", *permits) == []


def test_ports_and_fragments() -> None:
    """A port is asked on the right side; later fragments, which show none, cannot slip past a drop."""
    one = flow([end("0.0.0.0/0", 6, (1433, 1434))], [end("0.0.0.0/0", 6)], Action.BLOCK)
    assert chain("arriving", one) == [
        "meta nfproto ipv4 meta l4proto 6 th dport 1433-1434 goto refused",
        "meta nfproto ipv4 meta l4proto 6 ip frag-off & 0x1fff != 0 goto fragments_in",
    ]
    assert chain("steering", one) == ["meta nfproto ipv4 meta l4proto 6 th sport 1433-1434 goto refused"]
    six = flow([end("::/0", 17)], [end("2001:db8::1/128", 17, (53, 53))])
    assert chain("leaving", six) == [
        "ip6 daddr 2001:db8::1 meta l4proto 17 th dport 53 goto unprotected_out",
        "ip6 daddr 2001:db8::1 meta l4proto 17 frag frag-off != 0 goto fragments_out",
    ]


def test_icmp_type_and_code() -> None:
    """They are one number, the same on both sides: sides that contradict each other match nothing."""
    ping, any_ = end("0.0.0.0/0", 1, (8 << 8, 8 << 8 | 255)), end("0.0.0.0/0", 1)
    assert "@th,0,16 2048-2303 goto refused" in chain("steering", flow([any_], [ping], Action.BLOCK))[0]
    assert chain("steering", flow([end("0.0.0.0/0", 1, (0, 255))], [ping], Action.BLOCK)) == []


def test_any_protocol_with_ports() -> None:
    """Ports without a protocol mean every protocol that has ports, and no other."""
    lines = chain("steering", flow([end("::/0")], [end("::/0", 0, (7, 7))]))
    assert [line.split("l4proto ")[1].split()[0] for line in lines] == ["6", "17", "58", "132"]


def test_sides_of_different_families_or_protocols_match_nothing() -> None:
    """A packet has one of each."""
    assert chain("arriving", flow([end("::/0")], [end("10.0.0.1/32")])) == []
    assert chain("arriving", flow([end("0.0.0.0/0", 6)], [end("0.0.0.0/0", 17)])) == []


def test_many_addresses_and_ports_become_sets() -> None:
    """Overlaps are refused by nftables inside a set, and a rule for each address would be slow."""
    remote = [end("10.0.0.0/24"), end("10.0.0.128-10.0.1.3"), end("10.9.0.1/32")]
    assert chain("steering", flow([end("0.0.0.0/0")], remote)) == [
        "ip daddr { 10.0.0.0-10.0.1.3, 10.9.0.1 } goto must"
    ]
    ports = [end("10.0.0.1/32", 6, (n, n)) for n in (80, 443, 81)]
    assert chain("steering", flow([end("0.0.0.0/0", 6)], ports)) == [
        "ip daddr 10.0.0.1 meta l4proto 6 th dport { 80-81, 443 } goto must"
    ]


def test_ports_that_cannot_be_seen() -> None:
    """OPAQUE (RFC 7296 section 3.13.1) is not the port range 65535 to 0."""
    lines = chain("steering", flow([end("0.0.0.0/0", 17)], [end("0.0.0.0/0", 17, OPAQUE)]))
    assert lines == ["meta nfproto ipv4 meta l4proto 17 ip frag-off & 0x1fff != 0 goto must"]


def test_authentication_header_in_ipv6() -> None:
    """nftables looks through AH in IPv6 to the protocol behind it, so the header chain must be asked."""
    one = flow([end("::/0", 51)], [end("2001:db8::1/128", 51)])
    assert chain("leaving", one) == ["ip6 daddr 2001:db8::1 ip6 nexthdr 51 goto unprotected_out"]


def test_interfaces_that_are_not_listened_on() -> None:
    """Nothing may be dropped where the administrator named none; what is named need not be there yet."""
    assert "udp dport 4500 iifname" not in ruleset((), "ikd0", 1400, MARKS)
    text = ruleset((), "ikd0", 1400, MARKS, interfaces=("ppp0", "e0"))
    assert 'udp dport 4500 iifname != { "e0", "ppp0" } counter name interface drop' in text


def test_crash_decides_the_owner_flag() -> None:
    """With it the kernel removes the table with its maker; without, it stays."""
    assert "flags owner" in ruleset((), "ikd0", 1400, MARKS, stay_closed=False)
    assert "flags owner" not in ruleset((), "ikd0", 1400, MARKS, stay_closed=True)


def test_segment_size_follows_the_device() -> None:
    """TCP of flows that are steered after their connection was routed elsewhere must fit, too."""
    text = ruleset((), "ikd0", 1280, MARKS)
    assert "maxseg size set 1240" in text
    assert "maxseg size set 1220" in text
    assert text.count("jump clamp") == 2


def test_marks_are_all_different_and_tell_devices_apart() -> None:
    """A mark with two meanings would send packets in a circle."""
    other = Marks.of("ikd1", 0x1CE0)
    values = [m for one in (MARKS, other) for m in (one.wish, one.must, one.clear, one.opened)]
    assert len({*values, MARKS.own}) == 9
    assert {value & 0xFFFF for value in values} == {0x1CE0}
    assert table_name("ikd0") != table_name("ikd1")
    for wrong in (0, 0x10000):
        with pytest.raises(ValueError, match="16 bits"):
            Marks.of("ikd0", wrong)
