"""The software engine, inbound: what it checks before a packet is believed, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import (
    AH_SHA256,
    AH_SUITES,
    CBC,
    ESP_SUITES,
    GCM,
    GCM_ESN,
    HOSTS,
    arrived,
    between,
    covering,
    datagram,
    echo,
    hosts,
    name,
)

from offload import ip
from offload.outer import Arrived
from sadb.address import Path, SocketAddress
from sadb.algorithms import QuickSuite
from sadb.sa import Action, Level, Mode, UnknownSpi
from sadb.selector import UDP, Selector

FIRST, SECOND = ip_address("192.0.2.1"), ip_address("198.51.100.1")


@pytest.mark.parametrize("suite", [GCM, GCM_ESN, CBC, AH_SHA256], ids=name)
def test_replayed_packets_are_dropped_and_reordered_ones_are_not(suite: QuickSuite) -> None:
    """A recorded packet sent again would be delivered again."""
    a, b = hosts(suite)
    wire = [a.engine.outbound([between(4, bytes([n]))], 1.0).wire[0] for n in range(70)]
    came = arrived(wire)
    assert len(b.engine.inbound(came[63:0:-1], 1.0).local) == 63
    assert not b.engine.inbound(came[1:64], 1.0)
    assert b.engine.counters["replayed"] == 63
    assert len(b.engine.inbound(came[64:], 1.0).local) == 6
    assert not b.engine.inbound(came[:1], 1.0)
    # an old extended number cannot be told from one of the next 2^32, which does not verify (RFC 4303 A2.1)
    assert b.engine.counters["unverified" if suite.esn else "late"] == 1


def test_the_window_moves_only_by_what_is_authentic() -> None:
    """A forged packet with a high number would lock the real ones out."""
    a, b = hosts()
    came = arrived(a.engine.outbound([between(4)], 1.0).wire)
    forged = replace(came[0], data=came[0].data[:4] + b"\xf0\0\0\0" + came[0].data[8:])
    assert not b.engine.inbound([forged], 1.0)
    assert b.engine.counters["unverified"] == 1
    assert len(b.engine.inbound(came, 1.0).local) == 1


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("suite", [GCM, AH_SHA256], ids=name)
def test_packets_outside_the_selectors_are_dropped(suite: QuickSuite, mode: Mode) -> None:
    """A peer could inject packets from any address or to any port through an SA negotiated for one."""
    ends = HOSTS[4]
    a, b = hosts(suite, mode)
    narrow = Selector(covering(f"{ends[1]}/32", protocol=UDP, ports=(53, 53)), covering(f"{ends[0]}/32"))
    b.engine.remove(b.pair)
    b.pair.selector = narrow
    b.engine.install(b.pair)
    # the sender does not keep to it
    sent = [between(4), between(4, ports=(1024, 54)), echo(*ends, 8), between(4)]
    found = b.engine.inbound(arrived(a.engine.outbound(sent, 1.0).wire), 1.0).local
    assert found == [sent[0], sent[3]]
    assert b.engine.counters["selector-mismatch"] == 2


@pytest.mark.parametrize(
    ("words", "passes"),
    [
        ({}, False),
        ({"action": Action.BLOCK}, False),
        ({"action": Action.PERMIT}, True),
        ({"inbound": Level.REQUEST}, True),
        ({"inbound": Level.NONE}, True),
        ({"order": 2}, True),
    ],
    ids=["require", "block", "permit", "request", "none", "behind"],
)
def test_what_another_rule_decides_does_not_come_by_this_one(words: dict[str, Any], passes: bool) -> None:
    """A peer that a wide rule admits would reach what a narrower rule keeps for others. Where that one lets
    packets in without protection, protected ones are no worse. It is so from when the flows change, for
    conversations that were under way, too."""
    a, b = hosts()
    ends = HOSTS[4]
    narrow = Selector(covering(f"{ends[1]}/32", protocol=UDP, ports=(53, 53)), covering(f"{ends[0]}/32"))
    flow = replace(b.flow, **{"rule": "names", "selector": narrow, "order": 0} | words)
    sent = [between(4, ports=(1024, 53)), between(4, ports=(1024, 54))]

    def found(now: float) -> list[bytes]:
        came = b.engine.inbound(arrived(a.engine.outbound(sent, now).wire), now).local
        return [bytes(one) for one in came]

    assert found(1.0) == sent
    b.engine.route((flow, replace(b.flow, order=1)))
    assert found(2.0) == (sent if passes else sent[1:])
    assert b.engine.counters["other-rule"] == (0 if passes else 1)
    b.engine.route((b.flow,))
    assert found(3.0) == sent


def test_a_tunnel_does_not_let_a_foreign_source_in() -> None:
    """The classic: a peer that is trusted for one network sends in another's name."""
    a, b = hosts()
    a.engine.remove(a.pair)
    a.pair.selector = Selector(covering("0.0.0.0/0"), covering("0.0.0.0/0"))
    a.engine.install(a.pair)
    a.engine.route((replace(a.flow, selector=a.pair.selector),))
    sent = [datagram("10.77.0.1", HOSTS[4][1]), datagram(HOSTS[4][0], "10.77.0.1")]
    assert not b.engine.inbound(arrived(a.engine.outbound(sent, 1.0).wire), 1.0)
    assert b.engine.counters["selector-mismatch"] == 2


def test_wrong_next_headers_and_dummies() -> None:
    """Tunnel mode carries IP packets only; protocol 59 is padding traffic and goes without a word."""
    a, b = hosts()
    a.engine.outbound([between(4)], 1.0)
    seal = a.engine._senders[a.pair]._esp
    assert seal is not None
    texts = [(10, between(4), 17), (11, between(6), 4), (12, b"", 4), (13, b"whatever", 59), (14, b"\x45", 4)]
    for number, payload, kind in texts:
        came = Arrived(ip.ESP, FIRST, SECOND, seal.seal(number, payload, kind))
        assert not b.engine.inbound([came], 1.0)
    assert b.engine.counters["malformed"] == 4
    assert b.engine.counters["dummy"] == 1


def test_traffic_flow_confidentiality_padding_is_removed() -> None:
    """RFC 4303 section 2.7: what stands behind the inner packet's length is not part of it."""
    a, b = hosts()
    a.engine.outbound([between(4)], 1.0)
    seal = a.engine._senders[a.pair]._esp
    assert seal is not None
    came = Arrived(ip.ESP, FIRST, SECOND, seal.seal(2, between(4) + bytes(100), 4))
    assert b.engine.inbound([came], 1.0).local == [between(4)]


def test_congestion_marked_outside_arrives_inside() -> None:
    """RFC 6040, through both engines."""
    a, b = hosts()
    wire = a.engine.outbound([between(4, traffic=2), between(4, traffic=0)], 1.0).wire
    assert [ip.traffic_class(one.data) for one in wire] == [2, 0]
    found = b.engine.inbound(arrived(wire, traffic_class=3), 1.0).local
    assert [ip.traffic_class(one) for one in found] == [3]
    assert b.engine.counters["congestion"] == 1


def test_dscp_of_the_sa_hides_the_packets() -> None:
    """A configured DSCP replaces the inner one outside and only there; ECN is still the packet's."""
    a, b = hosts(install=False)
    a.pair.outbound.dscp = 46
    a.engine.install(a.pair)
    b.engine.install(b.pair)
    for one in a.engine.outbound([between(4, traffic=0x29)] * 2, 1.0).wire:
        assert ip.traffic_class(one.data) == 46 << 2 | 1
        assert ip.traffic_class(b.engine.inbound(arrived([one]), 1.0).local[0]) == 0x29


@pytest.mark.parametrize(("wish", "flags"), [(None, None), (True, 0x40), (False, 0)])
def test_df_outside_is_the_packets_or_the_sas(wish: bool | None, flags: int | None) -> None:
    """Clearing DF where path MTU discovery needs it hides the limit from the sender."""
    a, _ = hosts(install=False)
    a.pair.outbound.dont_fragment = wish
    a.engine.install(a.pair)
    sent = [between(4), between(4, flags=ip.DONT_FRAGMENT), between(6)] * 2
    found = [one.data[6] & 0x40 for one in a.engine.outbound(sent, 1.0).wire]
    assert found == ([0, 0x40, 0x40] if flags is None else [flags] * 3) * 2


@pytest.mark.parametrize(("wish", "whole"), [(None, None), (True, True), (False, False)])
@pytest.mark.parametrize("outer", [4, 6])
def test_df_of_udp_is_the_packets_or_the_sas(wish: bool | None, whole: bool | None, outer: int) -> None:
    """Datagrams without DF are fragmented on the way, and nobody ever learns of the narrow link."""
    a, _ = hosts(udp=True, outer=outer)
    a.pair.outbound.dont_fragment = wish
    a.engine.moved(a.pair, a.pair.outbound.source, a.pair.outbound.destination, (4500, 4500))
    for _ in range(2):  # looked up, then remembered
        sent = [between(4), between(4, flags=ip.DONT_FRAGMENT), between(6)]
        found = [one.dont_fragment for one in a.engine.outbound(sent, 1.0).wire]
        assert found == ([False, True, True] if whole is None else [whole] * 3)


def test_transport_mode_behind_a_nat_mends_the_checksum() -> None:
    """RFC 3948 section 3.1.2: the checksum covers addresses the NAT changed, where it cannot be corrected."""
    a, b = hosts(GCM, Mode.TRANSPORT, udp=True)
    public = ip_address("203.0.113.80")
    b.engine.remove(b.pair)
    b.pair.selector = Selector(b.pair.selector.local, covering(f"{public}/32"))
    b.engine.install(b.pair)
    sent = between(4)
    (one,) = arrived(a.engine.outbound([sent], 1.0).wire)
    assert one.path is not None
    moved = replace(one, source=public, path=Path(one.path.local, SocketAddress(public, 61000)))
    (found,) = b.engine.inbound([moved], 1.0).local
    assert found[20:] == datagram(str(public), HOSTS[4][1])[20:]


def test_unknown_spis_are_told_a_few_times_a_second() -> None:
    """A peer that kept SAs we lost should be told; a flood must not become one of notices."""
    a, _ = hosts()
    strays = [Arrived(ip.ESP, SECOND, FIRST, n.to_bytes(4, "big") + bytes(40)) for n in range(5000, 5100)]
    a.engine.inbound(strays, 1.0)
    assert a.engine.counters["unknown-spi"] == 100
    assert a.notices == [UnknownSpi(5000 + n, SECOND) for n in range(5)]
    a.engine.inbound(strays, 1.5)
    assert len(a.notices) == 7
    path = Path(SocketAddress(FIRST, 4500), SocketAddress(SECOND, 4501))
    a.engine.inbound([replace(strays[0], path=path)], 9.0)
    assert a.notices[-1] == UnknownSpi(5000, path.peer)


def test_a_live_spi_with_nothing_but_header_iv_and_check_value_is_dropped() -> None:
    """The shortest packet that finds an SA has no text to take a pad length from."""
    for suite in ESP_SUITES:
        a, b = hosts(suite)
        a.engine.outbound([between(4)], 1.0)
        (one,) = arrived(a.engine.outbound([between(4)], 1.0).wire)
        assert suite.encryption is not None
        for size in (8, 12, 8 + suite.encryption.iv, 8 + suite.encryption.iv + suite.icv):
            assert not b.engine.inbound([replace(one, data=one.data[:size])], 1.0)
        assert b.engine.counters["malformed"] == 4
        assert len(b.engine.inbound([one], 1.0).local) == 1


@given(
    data=st.binary(max_size=120),
    header=st.binary(max_size=60),
    suite=st.sampled_from(ESP_SUITES + AH_SUITES),
    mode=st.sampled_from(list(Mode)),
    protocol=st.sampled_from([ip.ESP, ip.AH]),
    outer=st.sampled_from([4, 6]),
    place=st.integers(0, 120),
)
@settings(max_examples=300)
def test_any_octets_off_the_wire_are_dropped(
    data: bytes, header: bytes, suite: QuickSuite, mode: Mode, protocol: int, outer: int, place: int
) -> None:
    """Whatever a stranger sends, for a live SPI too or spliced into a real packet: never an exception."""
    a, b = hosts(suite, mode, outer=outer)
    (real,) = arrived(a.engine.outbound([between(outer)], 1.0).wire)
    spi = (2002).to_bytes(4, "big")
    spliced = real.data[:place] + data
    tries = [
        replace(real, protocol=protocol, data=data),
        replace(real, protocol=protocol, data=data, header=header),
        replace(real, data=spi + data),
        replace(real, data=data[:4].ljust(4, b"\0") + spi + data),
        replace(real, data=spliced),
        replace(real, header=header),
        replace(real, traffic_class=3, data=spliced + real.data),
    ]
    found = b.engine.inbound(tries, 1.0).local
    assert len(found) <= 1
    assert sum(b.engine.counters.values()) == len(tries) - len(found)


@given(st.lists(st.binary(max_size=120), max_size=6), st.sampled_from(list(Mode)), st.sampled_from([4, 6]))
@settings(max_examples=200)
def test_any_octets_out_of_the_tun_device_are_dropped_or_sent(
    packets: list[bytes], mode: Mode, outer: int
) -> None:
    """Programs with raw sockets write what they like; the engine must go on."""
    a, _ = hosts(GCM, mode, outer=outer)
    everything = Selector(covering("0.0.0.0/0", "::/0"), covering("0.0.0.0/0", "::/0"))
    a.engine.remove(a.pair)
    a.pair.selector = everything
    a.engine.install(a.pair)
    a.engine.route((replace(a.flow, selector=everything),))
    real = between(outer)
    tries = [
        *packets,
        *(real[:9] + packet for packet in packets),
        *(real[:40] + packet for packet in packets),
    ]
    batch = a.engine.outbound(tries, 1.0)
    assert len(batch.wire) <= len(tries)
