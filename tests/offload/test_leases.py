"""Packet mode outbound: the adapter numbers packets out of a lease, and whatever becomes of it no number is
used twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import engines
from support.engines import (
    GCM,
    GCM_ESN,
    HOSTS,
    arrived,
    between,
    datagram,
    datagrams,
    echo,
    hosts,
    segments,
)
from support.packet_mode import AH_GMAC, IN, OUT, deliver, ends

from offload import vnet
from offload.nic.descriptors import Completion
from offload.nic.driver import HELD, PATIENCE
from offload.nic.lanes import Stage
from offload.nic.packet_mode import LEASE, Lease, Numbers
from sadb.algorithms import QuickSuite
from sadb.sa import Expire, Lifetime, Mode


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    """These engines are their own, unless a test says otherwise."""
    before = engines.chosen
    yield
    engines.chosen = before


# The adapter's numbers -----------------------------------------------------------------------------------

GRANTS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(-2, 60), st.integers(-2, 20)),
        st.tuples(st.just("take"), st.integers(1, 12), st.just(0)),
        st.tuples(st.just("stop"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(GRANTS)
def test_an_adapter_uses_no_number_twice_whatever_it_is_granted(turns: list[tuple[str, int, int]]) -> None:
    """Not even for a host that leases the same ones again, and none that it was not given."""
    numbers, given_, used = Numbers(last=50), set[int](), list[int]()
    for what, first, count in turns:
        if what == "grant" and numbers.grant(first, count):
            given_ |= set(range(first, first + count))
        elif what == "take" and (found := numbers.take(first)):
            used += range(found, found + first)
        elif what == "stop":
            stopped = numbers.stop()
            assert all(one < stopped for one in used)
            assert not numbers.take(1)
    assert len(used) == len(set(used))
    assert set(used) <= given_ & set(range(1, 51))


# Leases --------------------------------------------------------------------------------------------------


def test_the_adapter_numbers_from_a_lease_that_is_renewed_at_half() -> None:
    one, _ = ends(start=100)
    one.placed(OUT)
    assert one.pair.outbound.sequence == 100
    one.sends(1)
    assert one.pair.outbound.sequence == 100 + LEASE
    one.sends(LEASE // 2 - 1)
    assert one.driver.counters["leases"] == 1
    assert one.driver.leases[one.pair] == (101 + LEASE // 2, 101 + LEASE)
    one.sends(1)
    assert one.driver.counters["leases"] == 2
    one.work()
    assert one.numbers() == list(range(101, 102 + LEASE // 2))
    assert one.pair.outbound.usage.packets == LEASE // 2 + 1
    one.station.check_octets(one.pair)


def test_a_hand_over_in_order_leaves_no_gap() -> None:
    """The fence says where the adapter stopped, and packets that waited go on from there."""
    one, other = ends()
    one.placed(OUT)
    sent = one.sends(10)
    one.driver.displace(one.pair, [OUT], one.station.now)
    sent += one.sends(3)
    one.work()
    assert one.numbers() == list(range(1, 14))
    assert one.driver.stage(one.pair, OUT) is Stage.SOFT
    one.placed(OUT)
    sent += one.sends(2)
    one.work()
    assert one.numbers() == list(range(1, 16))
    deliver(one, other)
    assert sorted(other.station.delivered) == sorted(sent)
    assert one.driver.counters["leases returned"] == 1


def test_a_dead_adapter_costs_the_rest_of_its_lease_and_no_more() -> None:
    """It may have used any number of that before it died; the host goes on behind it."""
    one, other = ends()
    one.placed(OUT)
    sent = one.sends(5)
    one.work()
    one.station.ring.clear()
    lost = one.sends(3)
    one.station.crash()
    sent += one.sends(1)
    assert one.numbers() == [1, 2, 3, 4, 5, *range(LEASE + 1, LEASE + 5)]
    deliver(one, other)
    assert sorted(other.station.delivered) == sorted([*sent, *lost])


@pytest.mark.parametrize("number", [0, 5, 12, 1 << 40])
def test_a_fence_that_cannot_be_true_is_not_believed(number: int) -> None:
    """Below what was sent numbers would come twice; ten packets cannot have used eleven."""
    one, _ = ends()
    one.placed(OUT)
    one.sends(10)
    one.station.do_ring(100)
    one.station.do_completions(100)
    one.driver.displace(one.pair, [OUT], one.station.now)
    (fence,) = one.driver.ring
    one.driver.completed([Completion(fence.ident, True, number)], 1.0)
    assert one.pair.outbound.sequence == LEASE
    assert one.driver.counters["leases lost"] == 1
    assert Lease(1, 100, handed=10, sent=10).credible(11)


def test_an_adapter_that_does_not_answer_costs_its_lease() -> None:
    """What waits for the fence leaves after 100 ms, or when too much waits, behind the lease."""
    for too_many in (False, True):
        one, other = ends()
        one.placed(OUT)
        one.adapter.faults.stuck = True
        sent = one.sends(2)
        one.driver.displace(one.pair, [OUT], one.station.now)
        sent += one.sends(HELD + 1 if too_many else 2)
        one.work()
        if not too_many:
            one.station.tick(PATIENCE)
        assert one.numbers() == list(range(LEASE + 1, LEASE + 1 + len(sent)))
        deliver(one, other)
        assert sorted(other.station.delivered) == sorted(sent)


@pytest.mark.parametrize("by", ["packets", "octets"])
def test_no_lease_leads_past_a_hard_limit(by: str) -> None:
    """Not a packet more than the SA bears, and the pair is replaced in time."""
    packet = len(between(4, b"0"))
    if by == "packets":
        life = Lifetime(soft_packets=50, hard_packets=70)
    else:
        life = Lifetime(soft_octets=50 * packet, hard_octets=71 * packet)
    one, _ = ends(lifetime=life)
    one.placed(OUT)
    one.sends(10)
    one.driver.displace(one.pair, [OUT], one.station.now)
    one.work()
    one.placed(OUT)
    one.station.send([between(4, b"0")] * 100)
    one.work()
    leased = [one.pair.outbound.sequence] if by == "packets" else []
    assert leased in ([], [70])
    assert len(one.wire) == 70 + (by == "octets")
    assert [(each.hard, each.reason) for each in one.notices if isinstance(each, Expire)] == [
        (False, by),
        (True, by),
    ]
    assert one.station.engine.counters["used-up"] == 1  # the next ones wait for another pair


@pytest.mark.parametrize("suite", [GCM, GCM_ESN], ids=["32", "64"])
def test_the_end_of_all_numbers_is_the_end_of_the_lease(suite: QuickSuite) -> None:
    """A wrap would be the same numbers again. With extended numbers it is that of 64 bits."""
    one, _ = ends(suite)
    last = one.pair.outbound.last_sequence
    one.pair.outbound.sequence = last - 5
    one.placed(OUT)
    one.sends(8)
    one.work()
    assert one.numbers() == [number & 0xFFFFFFFF for number in range(last - 4, last + 1)]
    assert one.pair.outbound.sequence == last
    expired = [each for each in one.notices if isinstance(each, Expire) and each.hard]
    assert [each.reason for each in expired] == ["sequence"]


@pytest.mark.parametrize("suite", [GCM_ESN, replace(AH_GMAC, esn=True)], ids=["esp", "ah"])
def test_a_lease_goes_across_the_roll_over(suite: QuickSuite) -> None:
    """Numbers have 64 bits: unlike in crypto mode the SA need not leave the adapter, nor it be told."""
    one, other = ends(suite, start=(1 << 32) - 10, mode=Mode.TRANSPORT)
    one.placed()
    other.placed()
    sent = []
    for _ in range(6):
        sent += one.sends(5)
        one.work()
        deliver(one, other)
    assert sorted(other.station.delivered) == sorted(sent)
    assert one.driver.counters["drains"] == other.driver.counters["updates"] == 0
    assert other.driver.counters["windows lent"] == 1


def test_a_large_packet_goes_across_the_roll_over() -> None:
    """Segments that the adapter puts together have one upper half: the host would take the others for old."""
    one, other = ends(GCM_ESN, start=(1 << 32) - 10, mode=Mode.TRANSPORT)
    other.placed()
    sent = segments(4, [500] * 30)
    one.station.send_frames(vnet.frames(sent))
    deliver(one, other)
    assert sorted(other.station.delivered) == sorted(sent)
    assert other.driver.lent(other.pair)


def test_what_is_to_be_cut_up_is_the_adapters_too() -> None:
    """Before ESP where fragments are covered, behind it else; the host numbers nothing."""
    for options in ({}, {"mode": Mode.TRANSPORT}, {"udp": True}):
        one, other = ends(**options)
        one.placed(OUT)
        large = echo("10.1.0.5", "10.2.0.7", 4000)
        one.station.send([large, between(4), large])
        one.work()
        assert one.driver.counters["drains"] == 0
        assert one.driver.carried(one.pair)[3] == one.pair.outbound.usage.packets
        assert not one.station.engine.soft
        deliver(one, other)
        assert other.pair.inbound.usage.packets == one.pair.outbound.usage.packets


@pytest.mark.parametrize("udp", [False, True], ids=["bare", "encapsulated"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_what_the_adapter_makes_is_what_software_would_have_made(mode: Mode, version: int, udp: bool) -> None:
    """Octet for octet with the same numbers: single packets, large ones, and such as have to be cut up."""
    inner = version if mode is Mode.TRANSPORT else 4
    source, destination = HOSTS[inner]
    sent = [datagram(source, destination, bytes(size), ident=size + 1) for size in (0, 3, 700)]
    (frame,) = vnet.frames(segments(inner, [1200] * 20 + [7]))
    sent += [datagram(source, destination, bytes(3000))] if inner == 4 else []
    made, opened = [], []
    for chosen in ("packet", "python"):
        engines.chosen = chosen
        a, b = hosts(GCM_ESN, mode, outer=version, udp=udp)
        wire = (
            a.engine.outbound([segments(inner, [1])[0], *sent], 1.0).wire + a.engine.frames([frame], 1.0).wire
        )
        made.append([one.data for one in datagrams(arrived(wire))])
        opened.append(b.engine.inbound(arrived(wire), 1.0).local)
        assert len(made[-1]) == a.pair.outbound.usage.packets == b.pair.inbound.usage.packets
    assert made[0] == made[1]
    assert opened[0] == opened[1]


def test_an_sa_whose_peer_moved_is_placed_anew() -> None:
    """The adapter writes outer headers with addresses that it was told; no number is lost or used again."""
    one, _ = ends()
    one.placed()
    one.sends(3)
    one.work()
    one.wire.clear()
    peer = hosts()[0].pair.inbound.source + 1
    one.station.engine.moved(one.pair, one.pair.outbound.source, peer, None)
    one.driver.moved(one.pair, one.station.now)
    one.sends(2)
    one.work()
    one.sends(1)
    one.work()
    assert one.numbers() == [4, 5, 6]
    assert {each.destination for each in one.wire} == {peer}
    assert one.driver.stage(one.pair, OUT) is one.driver.stage(one.pair, IN) is Stage.HARD
