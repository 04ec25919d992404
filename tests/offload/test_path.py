"""Packets too large for their path: fragments, ICMP errors, and what the network says about MTUs."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import (
    AH_SHA256,
    CBC,
    GCM,
    HOSTS,
    arrived,
    between,
    covering,
    datagram,
    echo,
    hosts,
)

from offload import ip
from offload.fragments import Reassembler, is_fragment, split
from offload.icmp import too_big
from offload.ip import Dropped
from offload.meter import Bucket
from sadb.algorithms import QuickSuite
from sadb.sa import Mode
from sadb.selector import ICMPV6, UDP

PEER = ip_address("198.51.100.1")


def joined(pieces: list[bytes]) -> bytes | None:
    """What a host makes of fragments."""
    joins = Reassembler({"fragments": 0})
    found = None
    for piece in pieces:
        found = joins.add(piece, 0.0) if is_fragment(piece) else piece
    return found


@given(
    version=st.sampled_from([4, 6]),
    size=st.integers(0, 6000),
    mtu=st.integers(100, 1500),
    order=st.randoms(use_true_random=False),
)
def test_fragments_fit_and_come_together_in_any_order(
    version: int, size: int, mtu: int, order: object
) -> None:
    """One lost octet at a seam would corrupt every large datagram."""
    packet = between(version, bytes(n % 251 for n in range(size)))
    pieces = split(packet, mtu, 77)
    assert all(len(piece) <= mtu for piece in pieces)
    assert all(ip.whole(piece) == piece for piece in pieces)
    order.shuffle(pieces)  # type: ignore[attr-defined]
    assert joined(pieces) == packet


def test_fragments_of_fragments_come_together_too() -> None:
    """A datagram may be cut on the way to the gateway already."""
    packet = between(4, bytes(3000))
    pieces = [small for large in split(packet, 1400, 1) for small in split(large, 600, 1)]
    assert len(pieces) > len(split(packet, 1400, 1))
    assert joined(pieces) == packet


def test_options_go_into_every_fragment_only_if_they_say_so() -> None:
    """RFC 791 section 3.1: record route stays in the first, security goes along."""
    plain = between(4, bytes(400))
    options = bytes((7, 3, 4)) + bytes((130, 4, 1, 2)) + b"\0"
    packet = ip.addressed(b"\x47" + plain[1:20] + options, 9, UDP, len(plain) - 20) + plain[20:]
    pieces = split(packet, 200, 1)
    assert pieces[0][20:28] == options
    assert all(piece[20:24] == bytes((130, 4, 1, 2)) and piece[0] == 0x46 for piece in pieces[1:])
    assert joined(pieces) == packet


def test_overlapping_fragments_spoil_their_datagram() -> None:
    """RFC 5722: overlaps serve to smuggle ports past whoever looks at the first fragment."""
    first, second = split(between(4, bytes(400)), 300, 1)
    evil = second[:6] + (int.from_bytes(second[6:8], "big") - 1).to_bytes(2, "big") + second[8:]
    joins = Reassembler({"fragments": 0})
    joins.add(first, 0.0)
    with pytest.raises(Dropped):
        joins.add(evil, 0.0)
    assert joins.add(second, 0.0) is None


def test_reassembly_is_bounded_in_octets_and_time() -> None:
    """Fragments that never become whole are the oldest way to fill a host's memory."""
    counters = {"fragments": 0}
    joins = Reassembler(counters, octets=20_000)
    for n in range(100):
        first = split(between(4, bytes(3000), ident=n + 1), 1400, 1)[0]
        joins.add(first, 0.0)
    assert counters["fragments"] >= 100 - 20_000 // 1400
    joins.expire(30.0)
    assert counters["fragments"] == 100
    assert joins.deadline() is None


@given(
    st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=24)), max_size=8), st.sampled_from([4, 6])
)
def test_any_fragments_are_taken_or_dropped(parts: list[tuple[int, bytes]], version: int) -> None:
    """Offsets and lengths are whatever a program with a raw socket writes."""
    joins = Reassembler({"fragments": 0})
    base = between(version)
    for word, data in parts:
        if version == 4:
            head = base[:6] + word.to_bytes(2, "big") + base[8:20]
            packet = ip.addressed(head, 9, UDP, len(data)) + data
        else:
            fragment = bytes((UDP, 0)) + (word << 3 & 0xFFFF | word & 1).to_bytes(2, "big") + b"same"
            packet = ip.addressed(base[:40], 6, ip.FRAGMENT, 8 + len(data)) + fragment + data
        if is_fragment(packet):
            with suppress(Dropped):
                found = joins.add(packet, 0.0)
                assert found is None or ip.whole(found) == found


# The engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("udp", [False, True], ids=["raw", "udp"])
@pytest.mark.parametrize("suite", [GCM, CBC], ids=str)
@pytest.mark.parametrize("outer", [4, 6])
def test_packets_up_to_the_limit_leave_in_one_piece(suite: QuickSuite, outer: int, udp: bool) -> None:
    """The limit told by ICMP must be the one that holds: one octet more and discovery never ends."""
    a, b = hosts(suite, outer=outer, udp=udp)
    sent = between(4, bytes(1600), flags=ip.DONT_FRAGMENT)
    (error,) = a.engine.outbound([sent], 1.0).local
    limit = int.from_bytes(error[26:28], "big")
    assert 1380 < limit < 1460
    fitting = between(4, bytes(limit - 28), flags=ip.DONT_FRAGMENT)
    (one,) = a.engine.outbound([fitting], 1.0).wire
    assert len(one.data) + ((20 if outer == 4 else 40) + 8 if udp else 0) <= 1500
    assert b.engine.inbound(arrived([one]), 1.0).local == [fitting]
    beyond = between(4, bytes(limit - 27), flags=ip.DONT_FRAGMENT)
    assert not a.engine.outbound([beyond], 1.0).wire
    assert a.engine.counters["too-big"] == 2


def test_icmp_error_of_ipv4_is_one_the_sender_believes() -> None:
    """Hosts check the quoted header and the checksum, and take the MTU from octets 6 and 7 (RFC 1191)."""
    a, _ = hosts()
    sent = between(4, bytes(1600), flags=ip.DONT_FRAGMENT)
    (error,) = a.engine.outbound([sent], 1.0).local
    assert error[9] == 1
    assert (ip_address(error[12:16]), ip_address(error[16:20])) == tuple(map(ip_address, HOSTS[4][::-1]))
    assert error[20:22] == b"\3\4"
    assert ip.ones_complement(error[20:] + b"\0" * (len(error) % 2)) in (0, 0xFFFF)
    assert sent.startswith(error[28:])
    assert len(error) == 576


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_icmp_error_of_ipv6_is_one_the_sender_believes(mode: Mode) -> None:
    """RFC 4443 section 3.2, with the pseudo-header in the checksum."""
    a, _ = hosts(GCM, mode, outer=6)
    sent = between(6, bytes(1600))
    (error,) = a.engine.outbound([sent], 1.0).local
    assert error[6] == ICMPV6
    assert error[40:42] == b"\2\0"
    body = error[40:]
    total = ip.ones_complement(error[8:40]) + ICMPV6 + len(body)
    assert (total + ip.ones_complement(body + b"\0" * (len(body) % 2))) % 0xFFFF == 0
    assert 1280 <= int.from_bytes(error[44:48], "big") < 1500
    assert len(error) == 1280


def test_no_errors_about_errors_and_to_nobody() -> None:
    """RFC 1122 section 3.2.2: else two hosts could keep each other busy."""
    assert too_big(echo(*HOSTS[4], 1600), 1400)
    unreachable = bytearray(echo(*HOSTS[4], 1600))
    unreachable[20] = 3
    assert too_big(bytes(unreachable), 1400) is None
    assert too_big(datagram("0.0.0.0", "10.2.0.1", bytes(1600)), 1400) is None
    assert too_big(datagram("10.1.0.1", "224.0.0.5", bytes(1600)), 1400) is None
    assert too_big(split(between(4, bytes(3000)), 1600, 1)[1], 1400) is None
    assert too_big(datagram("ff02::1", "2001:db8::1", bytes(1600)), 1400) is None


def test_icmp_errors_are_limited_in_rate() -> None:
    """A sender that ignores them would cost as much as one that is served."""
    a, _ = hosts()
    sent = [between(4, bytes(1600), flags=ip.DONT_FRAGMENT)] * 200
    assert len(a.engine.outbound(sent, 1.0).local) == 50
    assert a.engine.counters["too-big"] == 200
    assert len(a.engine.outbound(sent, 1.5).local) == 25


@pytest.mark.parametrize("suite", [GCM, CBC, AH_SHA256], ids=str)
@pytest.mark.parametrize("outer", [4, 6])
def test_without_df_a_tunnel_cuts_before_it_encrypts(suite: QuickSuite, outer: int) -> None:
    """Then the receiver opens each piece as it comes instead of collecting fragments of ESP."""
    a, b = hosts(suite, outer=outer)
    sent = between(4, bytes(range(256)) * 12)
    wire = a.engine.outbound([sent], 1.0).wire
    assert len(wire) == 3
    assert all(len(one.data) <= 1500 and not is_fragment(one.data) for one in wire)
    assert joined(b.engine.inbound(arrived(wire), 1.0).local) == sent


def test_an_sa_for_one_port_is_cut_after_encryption() -> None:
    """Later fragments show no ports: the receiver would have to drop them (RFC 4301 section 7)."""
    ends = HOSTS[4]
    local, remote = (
        covering(f"{ends[0]}/32", protocol=UDP),
        covering(f"{ends[1]}/32", protocol=UDP, ports=(53, 53)),
    )
    a, b = hosts(local=local, remote=remote)
    sent = between(4, bytes(3000))
    wire = a.engine.outbound([sent], 1.0).wire
    assert all(is_fragment(one.data) and len(one.data) <= 1500 for one in wire)
    assert b.engine.inbound(arrived(wire), 1.0).local == [sent]


@pytest.mark.parametrize("suite", [GCM, CBC, AH_SHA256], ids=str)
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("wait", [False, True], ids=["at once", "held"])
def test_transport_mode_puts_the_hosts_fragments_together_first(
    suite: QuickSuite, outer: int, wait: bool
) -> None:
    """RFC 4303 section 3.3.4: ESP in transport mode is applied to whole datagrams, and cut up afterwards."""
    a, b = hosts(suite, Mode.TRANSPORT, outer=outer, install=not wait)
    sent = between(outer, bytes(range(256)) * 12)
    batch = a.engine.outbound(split(sent, 1400, 5), 1.0)
    if wait:
        assert not batch
        a.engine.install(a.pair)
        b.engine.install(b.pair)
        batch = a.engine.released(1.0)
    assert not batch.local
    assert all(is_fragment(one.data) and len(one.data) <= 1500 for one in batch.wire)
    assert b.engine.inbound(arrived(batch.wire), 1.0).local == [sent]


def test_ipv6_fragments_in_a_tunnel_leave_as_fragments() -> None:
    """The sender cut them up; telling it to send smaller packets would be answered with the same again."""
    a, b = hosts()
    sent = between(6, bytes(3000))
    batch = a.engine.outbound(split(sent, 1500, 5), 1.0)
    assert not batch.local
    assert joined(b.engine.inbound(arrived(batch.wire), 1.0).local) == sent


def test_what_would_exceed_an_ip_packet_is_dropped() -> None:
    """65 515 octets of payload and an ESP header do not fit, whatever is done about it."""
    a, _ = hosts(GCM, Mode.TRANSPORT)
    assert not a.engine.outbound([between(4, bytes(65500))], 1.0)
    b, _ = hosts(GCM, Mode.TRANSPORT, udp=True)
    assert not b.engine.outbound([between(4, bytes(65500))], 1.0)
    assert a.engine.counters["too-big"] == b.engine.counters["too-big"] == 1


def test_a_learned_mtu_holds_for_ten_minutes_and_only_downwards() -> None:
    """Paths change; a limit kept for ever slows every later connection down."""
    a, _ = hosts()
    sent = between(4, bytes(1300), flags=ip.DONT_FRAGMENT)
    assert a.engine.outbound([sent], 0.0).wire
    a.engine.path_mtu(PEER, 1300, 0.0)
    a.engine.path_mtu(PEER, 1400, 1.0)
    (error,) = a.engine.outbound([sent], 1.0).local
    assert int.from_bytes(error[26:28], "big") < 1300
    assert a.engine.deadline() == 600.0
    a.engine.tick(600.0)
    assert a.engine.outbound([sent], 600.0).wire
    assert a.engine.deadline() is None


def test_what_strangers_say_about_mtus_is_not_believed() -> None:
    """ICMP is not authenticated: nothing below IP's minimum, for other addresses, or about other SPIs."""
    a, _ = hosts()
    sent = between(4, bytes(500), flags=ip.DONT_FRAGMENT)
    a.engine.path_mtu(PEER, 600, 0.0)  # nothing was sent there yet
    a.engine.outbound([sent], 0.0)
    a.engine.path_mtu(ip_address("203.0.113.1"), 600, 0.0)
    a.engine.path_mtu(PEER, 600, 0.0, spi=77)
    assert a.engine.deadline() is None
    a.engine.path_mtu(PEER, 0, 0.0, spi=2002)
    (error,) = a.engine.outbound([sent], 0.0).local
    assert 480 < int.from_bytes(error[26:28], "big") < 576


def test_hints_about_udp_are_believed_for_our_ports_only() -> None:
    """A router may quote no more than the ports, so these have to be right; an SPI that is quoted has to be
    one of ours, and what is about raw ESP says nothing of UDP."""
    a, _ = hosts(udp=True)
    sent = between(4, bytes(1000), flags=ip.DONT_FRAGMENT)
    a.engine.outbound([sent], 0.0)
    a.engine.path_mtu(PEER, 700, 0.0, 2002)
    a.engine.path_mtu(PEER, 700, 0.0)
    a.engine.path_mtu(PEER, 700, 0.0, None, (4500, 4501))
    a.engine.path_mtu(PEER, 700, 0.0, 77, (4500, 4500))
    assert a.engine.deadline() is None
    a.engine.path_mtu(PEER, 1, 0.0, None, (4500, 4500))
    (error,) = a.engine.outbound([sent], 0.0).local
    assert 480 < int.from_bytes(error[26:28], "big") < 576
    b, _ = hosts(udp=True)
    b.engine.outbound([sent], 0.0)
    b.engine.path_mtu(PEER, 700, 0.0, 2002, (4500, 4500))
    assert b.engine.deadline() == 600.0


def test_udp_too_large_for_its_path_may_be_cut_by_ip() -> None:
    """An SA for one port cannot carry fragments, so the datagram itself has to be one that routers cut; what
    fits keeps its DF."""
    ends = HOSTS[4]
    local, remote = (
        covering(f"{ends[0]}/32", protocol=UDP),
        covering(f"{ends[1]}/32", protocol=UDP, ports=(53, 53)),
    )
    a, b = hosts(local=local, remote=remote, udp=True, install=False)
    a.pair.outbound.dont_fragment = True
    for host in (a, b):
        host.engine.install(host.pair)
    sent = [between(4, bytes(3000)), between(4)]
    wire = a.engine.outbound(sent, 1.0).wire
    assert [one.dont_fragment for one in wire] == [False, True]
    assert b.engine.inbound(arrived(wire), 1.0).local == sent


def test_ipv6_packets_of_1280_octets_always_pass() -> None:
    """RFC 8200 section 5: no IPv6 sender need go lower, so the outer packet is cut instead."""
    a, b = hosts()
    sent = between(6, bytes(1280 - 48))
    a.engine.outbound([between(4)], 0.0)
    a.engine.path_mtu(PEER, 1000, 0.0)
    wire = a.engine.outbound([sent], 0.0).wire
    assert len(wire) == 2
    assert b.engine.inbound(arrived(wire), 0.0).local == [sent]
    (error,) = a.engine.outbound([between(6, bytes(1281 - 48))], 0.0).local
    assert int.from_bytes(error[44:48], "big") == 1280


def test_the_link_may_be_larger() -> None:
    """Jumbo frames: the limit is a setting."""
    a, b = hosts(link_mtu=9000)
    sent = between(4, bytes(8000), flags=ip.DONT_FRAGMENT)
    wire = a.engine.outbound([sent], 1.0).wire
    assert b.engine.inbound(arrived(wire), 1.0).local == [sent]


def test_buckets_refill_with_time_and_not_beyond_their_burst() -> None:
    """The limiter of ICMP errors and notices."""
    bucket = Bucket(10.0, 3.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.1), bucket.take(0.1)] == [True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(50.0)


def test_df_of_an_sa_does_not_forbid_pieces_the_sender_allows() -> None:
    """With DF forced outside, packets without DF are cut small enough before."""
    a, b = hosts()
    a.pair.outbound.dont_fragment = True
    sent = between(4, bytes(3000))
    wire = a.engine.outbound([sent], 1.0).wire
    assert all(one.data[6] & 0x40 for one in wire)
    assert joined(b.engine.inbound(arrived(wire), 1.0).local) == sent
