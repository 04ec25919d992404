"""The software engine: two of them back to back, and everything a packet can come to."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import (
    AH_SHA256,
    AH_SUITES,
    CBC,
    ENGINES,
    ESP_SUITES,
    GATEWAYS,
    GCM,
    GCM_ESN,
    HOSTS,
    arrived,
    association,
    between,
    covering,
    datagram,
    hosts,
    name,
    off_the_wire,
)

from offload import ip
from offload.software import SoftwareEngine
from sadb.address import Path, SocketAddress
from sadb.algorithms import QuickSuite
from sadb.backend import Unavailable
from sadb.sa import Acquire, Action, Expire, Flow, Level, Lifetime, Mode, SaPair, State
from sadb.selector import UDP, Selector

FIRST, SECOND = ip_address("192.0.2.1"), ip_address("198.51.100.1")


def packets_of(mode: Mode, outer: int) -> list[bytes]:
    """Packets the SA between two hosts covers: in tunnel mode of both versions."""
    versions = (4, 6) if mode is Mode.TUNNEL else (outer,)
    return [between(version, bytes(size)) for version in versions for size in (0, 1, 2, 3, 17, 500)]


def test_the_engine_asked_for_is_the_one_tested(engine: str) -> None:
    """Every other test here would say of one engine what it saw of the other."""
    assert type(hosts()[0].engine) is ENGINES[engine]


# Round trips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("suite", ESP_SUITES + AH_SUITES, ids=name)
def test_what_one_protects_the_other_opens(suite: QuickSuite, mode: Mode, outer: int) -> None:
    """Every suite, mode and IP version, both ways: packets come out as they went in."""
    a, b = hosts(suite, mode, outer=outer)
    sent = packets_of(mode, outer)
    wire = a.engine.outbound(sent, 1.0).wire
    assert len(wire) == len(sent)
    assert all(one.data[0] >> 4 == outer for one in wire)
    assert b.engine.inbound(arrived(wire), 1.1).local == sent
    back = [between(outer, b"answer", back=True)]
    assert a.engine.inbound(arrived(b.engine.outbound(back, 1.2).wire), 1.3).local == back
    assert not any(a.engine.counters.values())
    assert not any(b.engine.counters.values())


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("outer", [4, 6])
def test_udp_encapsulation_goes_by_the_path(mode: Mode, outer: int) -> None:
    """RFC 3948: the datagram's payload begins with the SPI, and the ports are those of the SA."""
    a, b = hosts(GCM, mode, outer=outer, udp=True)
    sent = [between(outer)]
    (one,) = a.engine.outbound(sent, 1.0).wire
    assert one.path is not None
    assert (one.path.local.port, one.path.peer.port) == (4500, 4500)
    assert one.path.peer.address == b.pair.inbound.destination
    assert one.data[:4] == (2002).to_bytes(4, "big")
    (found,) = b.engine.inbound(arrived([one]), 1.0).local
    # no header came with it: TTL and identification are new, all else is as it was
    assert found[-15:] == sent[0][-15:]
    assert ip.flow_key(found) == ip.flow_key(sent[0])


@given(
    payload=st.binary(max_size=1200),
    suite=st.sampled_from(ESP_SUITES + AH_SUITES),
    mode=st.sampled_from(list(Mode)),
    outer=st.sampled_from([4, 6]),
    traffic=st.integers(0, 255),
    flags=st.sampled_from([0, ip.DONT_FRAGMENT]),
)
def test_payload_and_header_survive(
    payload: bytes, suite: QuickSuite, mode: Mode, outer: int, traffic: int, flags: int
) -> None:
    """Any payload, class and DF bit: a property over all suites."""
    a, b = hosts(suite, mode, outer=outer)
    sent = between(outer, payload, traffic=traffic, flags=flags)
    wire = a.engine.outbound([sent], 1.0).wire
    assert b.engine.inbound(arrived(wire), 1.0).local == [sent]
    assert ip.traffic_class(wire[0].data) == traffic
    if outer == 4:
        assert wire[0].data[6] & 0x40 == flags >> 8
        assert ip.ones_complement(wire[0].data[: (wire[0].data[0] & 15) * 4]) == 0


def test_transport_mode_keeps_ipv4_options() -> None:
    """RFC 4303 section 3.1.1: ESP stands behind the options."""
    a, b = hosts(GCM, Mode.TRANSPORT)
    plain = between(4)
    sent = ip.addressed(b"\x46" + plain[1:20] + b"\x94\x04\0\0", 9, UDP, len(plain) - 20) + plain[20:]
    (one,) = a.engine.outbound([sent], 1.0).wire
    assert one.data[20:24] == b"\x94\x04\0\0"
    assert one.data[24:28] == (2002).to_bytes(4, "big")
    assert b.engine.inbound(arrived([one]), 1.0).local == [sent]


@pytest.mark.parametrize("suite", [GCM, AH_SHA256], ids=name)
def test_transport_mode_in_ipv6_goes_behind_hop_by_hop_options(suite: QuickSuite) -> None:
    """Routers must read hop-by-hop options; the final destination's options travel inside."""
    a, b = hosts(suite, Mode.TRANSPORT, outer=6)
    plain = between(6)
    extra = bytes((60, 0, 5, 2, 0, 0, 1, 0)) + bytes((UDP, 0, 1, 4, 0, 0, 0, 0))
    sent = ip.addressed(plain[:40], 6, 0, len(extra) + len(plain) - 40) + extra + plain[40:]
    (one,) = a.engine.outbound([sent], 1.0).wire
    assert one.data[6] == 0
    assert one.data[40] == (ip.ESP if suite is GCM else ip.AH)
    # a socket that does show the headers
    came = replace(off_the_wire(one.data), header=one.data[:48])
    assert b.engine.inbound([came], 1.0).local == [sent]


def test_several_flows_in_one_batch_keep_their_order() -> None:
    """Reordering inside a flow costs TCP its speed."""
    a, b = hosts()
    sent = [datagram("10.1.0.1", "10.2.0.1", bytes([n]), ports=(1 + n % 3, 9)) for n in range(60)]
    assert b.engine.inbound(arrived(a.engine.outbound(sent, 1.0).wire), 1.0).local == sent


@pytest.mark.parametrize("suite", [GCM, AH_SHA256], ids=name)
def test_transport_mode_never_leaves_an_identification_of_zero(suite: QuickSuite) -> None:
    """The kernel would fill it in behind our back, and AH would not verify."""
    a, b = hosts(suite, Mode.TRANSPORT)
    a.pair.outbound.dont_fragment = True
    (one,) = a.engine.outbound([between(4, ident=0)], 1.0).wire
    assert one.data[4:6] != b"\0\0"
    assert one.data[6:8] == b"\x40\0"
    (found,) = b.engine.inbound(arrived([one]), 1.0).local
    assert found[20:] == between(4)[20:]


def test_no_table_grows_with_the_flows_of_users() -> None:
    """A port scan through the tunnel must not leave an entry for each port."""
    a, b = hosts()
    for start in range(1, 12000, 1000):
        sent = [between(4, b"", ports=(port, 53)) for port in range(start, start + 1000)]
        assert len(b.engine.inbound(arrived(a.engine.outbound(sent, 1.0).wire), 1.0).local) == 1000
    assert len(a.engine._routes) <= 8192
    assert len(b.engine._receivers[2002]._admitted) <= 1024


# Classification and waiting ----------------------------------------------------------------------------


def test_blocked_permitted_and_uncovered_packets_are_dropped_and_counted() -> None:
    """What is not to be secured must not leave secured, and cannot leave here otherwise."""
    a, _ = hosts()
    near = covering("10.1.0.0/16")
    a.engine.route(
        (
            Flow("no", Selector(near, covering("10.3.0.0/16")), Action.BLOCK, order=1),
            Flow("yes", Selector(near, covering("10.4.0.0/16")), Action.PERMIT, order=2),
        )
    )
    sent = [datagram("10.1.0.1", f"10.{net}.0.1") for net in (3, 4, 4, 5)]
    assert not a.engine.outbound(sent, 1.0)
    found = {reason: count for reason, count in a.engine.counters.items() if count}
    assert found == {"blocked": 1, "permitted": 2, "no-flow": 1}
    assert not a.notices


def test_packets_wait_for_their_pair_and_are_delivered_in_order() -> None:
    """The first packets of a connection would be lost to the negotiation they set off."""
    a, b = hosts(install=False)
    sent = [between(4, bytes([n])) for n in range(5)]
    for n, packet in enumerate(sent):
        assert not a.engine.outbound([packet], 1.0 + n / 10)
    assert a.engine.held == 5
    assert a.notices == [Acquire("rule", ip_address(HOSTS[4][0]), ip_address(HOSTS[4][1]), UDP, 1024, 53)]
    assert not a.engine.released(2.0)
    a.engine.install(a.pair)
    b.engine.install(b.pair)
    wire = a.engine.released(2.0).wire
    assert b.engine.inbound(arrived(wire), 2.0).local == sent
    assert a.engine.held == 0
    assert not a.engine.released(2.0)


def test_packets_of_other_rules_stay_when_a_pair_comes() -> None:
    """A pair for one peer must not set off those waiting for another."""
    a, _ = hosts(install=False)
    other = Flow("other", Selector(covering("10.1.0.0/16"), covering("10.9.0.0/16")), Action.SECURE, order=-1)
    a.engine.route((other, a.flow))
    a.engine.outbound([between(4), datagram("10.1.0.1", "10.9.0.1")], 1.0)
    a.engine.install(a.pair)
    assert len(a.engine.released(1.0).wire) == 1
    assert a.engine.held == 1
    assert [notice.rule for notice in a.notices if isinstance(notice, Acquire)] == ["rule", "other"]


def test_an_sa_is_asked_for_once_and_again_after_the_hold_down() -> None:
    """Once per packet would flood key management; once for ever would never recover from a lost answer."""
    a, _ = hosts(install=False)
    for when in (0.0, 0.1, 4.9, 5.0, 5.1, 10.1):
        a.engine.outbound([between(4)], when)
    assert len(a.notices) == 3


def test_the_queue_is_bounded_per_flow_and_in_flows() -> None:
    """Local traffic to many addresses while a peer is down must not fill the memory."""
    a, _ = hosts(install=False, queue_packets=2, queue_flows=3)
    for n in range(5):
        a.engine.outbound([datagram("10.1.0.1", f"10.2.0.{n}", bytes([i])) for i in range(4)], 1.0)
    assert a.engine.held == 6
    assert a.engine.counters["queue-full"] == 5 * 4 - 6
    a.engine.install(a.pair)
    assert [one.data[-1:] for one in a.engine.released(1.0).wire]
    assert a.engine.held == 0


def test_held_octets_are_bounded_too() -> None:
    """1024 flows of 32 packets of 64 KiB would be two gigabytes."""
    a, _ = hosts(install=False)
    for n in range(12):
        big = [datagram("10.1.0.1", f"10.2.0.{n}", bytes(65000)) for _ in range(32)]
        a.engine.outbound(big, 1.0)
    assert a.engine.held * 65000 <= 16 << 20
    assert a.engine.counters["queue-full"] == 12 * 32 - a.engine.held


def test_what_waits_too_long_is_dropped() -> None:
    """A packet delivered a minute late is worse than a lost one."""
    a, _ = hosts(install=False)
    a.engine.outbound([between(4)], 1.0)
    when = a.engine.deadline()
    assert when == 11.0
    a.engine.tick(10.9)
    assert a.engine.held == 1
    a.engine.tick(when)
    assert a.engine.held == 0
    assert a.engine.counters["expired"] == 1
    assert a.engine.deadline() is None


def test_deadline_always_lies_ahead_after_a_tick() -> None:
    """A deadline in the past would make the daemon's timer spin."""
    a, _ = hosts(install=False)
    for when in (0.0, 5.0, 9.0, 10.0, 14.0):
        a.engine.outbound([between(4)], when)
    times = [0.0]
    while (due := a.engine.deadline()) is not None and len(times) < 20:
        times.append(due)
        a.engine.tick(due)
    assert all(later > earlier for earlier, later in pairwise(times))
    assert a.engine.held == 0


def test_a_flow_that_asks_nothing_of_this_direction_acquires_nothing() -> None:
    """`outbound = "none"` must not start negotiations."""
    a, _ = hosts(install=False)
    a.engine.route((replace(a.flow, outbound=Level.NONE),))
    a.engine.outbound([between(4)], 1.0)
    assert not a.notices
    assert a.engine.counters["permitted"] == 1


def test_held_packets_are_looked_at_again_when_the_policy_changes() -> None:
    """A packet held under a rule that is gone must not leave under it."""
    a, _ = hosts(install=False)
    a.engine.outbound([between(4)], 1.0)
    a.engine.route((replace(a.flow, action=Action.BLOCK),))
    assert not a.engine.released(1.0)
    assert a.engine.held == 0
    assert a.engine.counters["blocked"] == 1


def test_the_newest_pair_is_used_for_sending_and_both_for_receiving() -> None:
    """After a rekey the old pair must still open what is under way, and send nothing new."""
    a, b = hosts()
    old = a.engine.outbound([between(4, b"old")], 1.0).wire
    spis = {"a": (3003, 4004), "b": (4004, 3003)}
    for host, (spi_in, spi_out) in zip((a, b), spis.values(), strict=True):
        sa = host.pair.outbound
        ends = (str(sa.source), str(sa.destination))
        pair = SaPair(
            association(GCM, spi_in, Mode.TUNNEL, ends[::-1], host.pair.selector, True),
            association(GCM, spi_out, Mode.TUNNEL, ends, host.pair.selector, False),
            host.pair.selector,
            Mode.TUNNEL,
            "rule",
            owner=7,
            created=2.0,
        )
        host.engine.install(pair)
    new = a.engine.outbound([between(4, b"new")], 2.0).wire
    assert new[0].data[20:24] == (4004).to_bytes(4, "big")
    assert len(b.engine.inbound(arrived(new + old), 2.0).local) == 2


def test_removed_pairs_neither_send_nor_receive() -> None:
    """A deleted SA must not go on carrying traffic."""
    a, b = hosts()
    wire = a.engine.outbound([between(4)], 1.0).wire
    for host in (a, b):
        host.engine.remove(host.pair)
        host.engine.remove(host.pair)
    assert not a.engine.outbound([between(4)], 1.0)
    assert a.engine.held == 1
    assert not b.engine.inbound(arrived(wire), 1.0)
    assert b.engine.counters["unknown-spi"] == 1


def test_moved_pairs_send_to_the_new_address_with_the_next_number() -> None:
    """A NAT that forgets its mapping cuts the peer off; a number used twice would break AES-GCM."""
    a, b = hosts(udp=True)
    a.engine.outbound([between(4)], 1.0)
    a.engine.moved(a.pair, FIRST, ip_address("203.0.113.9"), (4500, 61000))
    (one,) = a.engine.outbound([between(4)], 1.0).wire
    assert one.path == Path(SocketAddress(FIRST, 4500), SocketAddress(ip_address("203.0.113.9"), 61000))
    assert one.data[4:8] == b"\0\0\0\2"
    assert a.pair.inbound.encapsulation == (61000, 4500)
    assert len(b.engine.inbound(arrived([one]), 1.0).local) == 1


# Limits --------------------------------------------------------------------------------------------------


def test_usage_counts_inner_octets_both_ways() -> None:
    """Accounting and limits go by what users send."""
    a, b = hosts()
    sent = [between(4), between(4, bytes(100))]
    b.engine.inbound(arrived(a.engine.outbound(sent, 1.0).wire), 2.0)
    octets = sum(map(len, sent))
    out, into = a.engine.usage(a.pair)[1], b.engine.usage(b.pair)[0]
    assert (out.octets, out.packets, out.last) == (octets, 2, 1.0)
    assert (into.octets, into.packets, into.last) == (octets, 2, 2.0)


@pytest.mark.parametrize(
    ("lifetime", "reason"),
    [
        (Lifetime(soft_packets=3, hard_packets=5), "packets"),
        (Lifetime(soft_octets=110, hard_octets=180), "octets"),
    ],
)
def test_limits_are_told_once_each_and_the_hard_one_holds(lifetime: Lifetime, reason: str) -> None:
    """A soft limit unheard leaves no successor; a hard one that leaks breaks the cipher's bound."""
    a, b = hosts(lifetime=lifetime)
    sent = [between(4) for _ in range(8)]  # of 35 octets
    wire = [one for packet in sent for one in a.engine.outbound([packet], 1.0).wire]
    assert len(wire) == 5
    assert a.notices[:2] == [Expire(2002, False, False, reason, 7), Expire(2002, False, True, reason, 7)]
    assert [type(notice) for notice in a.notices[2:]] == [Acquire]
    assert a.engine.counters["used-up"] == 1
    assert a.engine.held == 2
    b.engine.inbound(arrived(wire), 1.0)
    assert b.notices == [Expire(2002, True, False, reason, 8)]


def test_the_receivers_hard_limit_holds_too() -> None:
    """The sender may forget its limit."""
    a, b = hosts()
    b.engine.remove(b.pair)
    b.pair.inbound.lifetime = Lifetime(hard_packets=2)
    b.engine.install(b.pair)
    wire = a.engine.outbound([between(4)] * 5, 1.0).wire
    assert len(b.engine.inbound(arrived(wire), 1.0).local) == 2
    assert b.notices == [Expire(2002, True, True, "packets", 8)]
    assert b.engine.counters["used-up"] == 3


def test_sequence_numbers_run_out_and_never_wrap() -> None:
    """RFC 4303 section 3.3.3: number 0 again would be a nonce used twice."""
    a, b = hosts()
    a.pair.outbound.sequence = 0xFFFFFFFD
    wire = [one for _ in range(5) for one in a.engine.outbound([between(4)], 1.0).wire]
    assert [one.data[24:28].hex() for one in wire] == ["fffffffe", "ffffffff"]
    assert len(b.engine.inbound(arrived(wire), 1.0).local) == 2
    told = [notice for notice in a.notices if isinstance(notice, Expire)]
    assert told == [Expire(2002, False, False, "sequence", 7), Expire(2002, False, True, "sequence", 7)]
    assert a.engine.counters["sequence-exhausted"] == 1


def test_a_successor_is_asked_for_before_numbers_run_out() -> None:
    """Without warning the last number would be followed by an interruption."""
    a, _ = hosts()
    a.pair.outbound.sequence = 0xF0000000 - 2
    for _ in range(4):
        a.engine.outbound([between(4)], 1.0)
    assert a.notices == [Expire(2002, False, False, "sequence", 7)]


@pytest.mark.parametrize("suite", [GCM_ESN, replace(CBC, esn=True), replace(AH_SHA256, esn=True)], ids=name)
def test_extended_numbers_roll_over_to_the_next_four_thousand_million(suite: QuickSuite) -> None:
    """Only the low half is sent: sender and receiver must agree on the other as it changes."""
    a, b = hosts(suite)
    a.pair.outbound.sequence = 0xFFFFFFFB
    sent = [between(4, bytes([n])) for n in range(10)]
    came = arrived(a.engine.outbound(sent, 1.0).wire)
    late = came.pop(2)
    assert len(b.engine.inbound(came, 1.0).local) == 9
    assert b.engine.inbound([late], 1.0).local == [sent[2]]
    assert not b.engine.inbound(came, 1.0)
    assert a.pair.outbound.sequence == 0x100000005
    assert b.pair.inbound.replay is not None
    assert b.pair.inbound.replay.highest == 0x100000005
    assert not a.notices


def test_a_peer_that_skips_numbers_does_not_cost_memory() -> None:
    """A window shifted by 2^31 places as an integer would take 256 MiB for a moment."""
    a, b = hosts()
    b.engine.inbound(arrived(a.engine.outbound([between(4)], 1.0).wire), 1.0)
    a.pair.outbound.sequence = 0xEFFFFFFF
    assert len(b.engine.inbound(arrived(a.engine.outbound([between(4)], 1.0).wire), 1.0).local) == 1


# Contract ------------------------------------------------------------------------------------------------


def test_owners_may_call_back_from_a_notice() -> None:
    """The owner of an expired SA removes it at once, in the middle of a batch."""
    a, _ = hosts(lifetime=Lifetime(hard_packets=1))

    def owner(notice: object) -> None:
        if isinstance(notice, Expire):
            a.pair.outbound.state = State.DEAD
            a.engine.remove(a.pair)
        a.engine.route((a.flow,))

    a.engine.notify = owner
    assert len(a.engine.outbound([between(4)] * 4, 1.0).wire) == 1
    assert a.engine.held == 2


def test_installing_is_safe_to_repeat() -> None:
    """A repeated call must not put the pair into the index twice."""
    a, _ = hosts()
    a.engine.install(a.pair)
    a.engine.remove(a.pair)
    assert not a.engine.outbound([between(4)], 1.0)


def unusable() -> list[tuple[str, SaPair]]:
    """Pairs that cannot work, and why."""
    found = []
    for why in ("keys", "version", "nat", "taken", "window"):
        a, _ = hosts(AH_SHA256 if why == "nat" else GCM, install=why == "taken")
        pair = a.pair
        if why == "keys":
            pair.outbound.integrity_key = pair.outbound.encryption_key
        elif why == "version":
            pair.outbound.destination = ip_address(GATEWAYS[6][1])
        elif why == "nat":
            pair.outbound.encapsulation = (4500, 4500)
        elif why == "window":
            pair.inbound.suite = GCM_ESN
        found.append((why, pair))
    return found


@pytest.mark.parametrize(("why", "pair"), unusable(), ids=lambda one: one if isinstance(one, str) else "")
def test_pairs_that_cannot_work_are_refused_at_once(why: str, pair: SaPair) -> None:
    """Else they would fail at their first packet, where nobody listens."""
    a, _ = hosts(install=why == "taken")
    with pytest.raises(Unavailable):
        a.engine.install(pair)


def test_counters_have_all_reasons_from_the_start() -> None:
    """A metric that appears with the first drop cannot be graphed or alerted on."""
    engine = SoftwareEngine(bytes)
    assert set(engine.counters.values()) == {0}
    assert {"replayed", "unverified", "selector-mismatch", "unknown-spi"} <= set(engine.counters)
