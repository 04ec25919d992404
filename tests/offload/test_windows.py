"""Packet mode inbound: host and adapter judge replays together, and whatever becomes of either no packet
comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import engines
from support.adapter import PacketAdapterEngine
from support.engines import (
    GCM,
    GCM_ESN,
    another,
    arrived,
    between,
    entropy,
    hosts,
)
from support.packet_mode import AH_GMAC, IN, End, deliver, ends

from offload.accounts import LedgerAccounts
from offload.channel import add as channel_add
from offload.channel import pair_of
from offload.ledger import Ledger
from offload.nic.packet_mode import LOST, Judge
from offload.nic.requests import Deleted
from offload.outer import Arrived, CryptoStatus, Mark
from offload.software import SoftwareEngine
from sadb.algorithms import QuickSuite
from sadb.replay import ReplayWindow
from sadb.sa import Expire, Mode, State


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    """These engines are their own, unless a test says otherwise."""
    before = engines.chosen
    yield
    engines.chosen = before


# The window ----------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 300), max_size=60),
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_two_windows_judge_as_one(arriving: list[int], lent: int, taken: int, back: int) -> None:
    """The host lends its window, the adapter takes it some packets later and gives it back after some more:
    what passes is what one window lets pass, but for late packets that the two of them may still know."""
    one, host = ReplayWindow(), ReplayWindow()
    judge = Judge(ReplayWindow())
    take = back_at = None
    passed, wanted = list[int](), list[int]()
    for at, number in enumerate([*arriving, 301]):
        if at == lent:
            take = host.highest
        if take is not None and at >= lent + taken and back_at is None:
            judge.take(take)
            back_at = at + back
        if back_at is not None and at == back_at:
            highest, bitmap = judge.home()
            assert highest is not None
            host.join(highest, bitmap)
            judge = Judge(ReplayWindow())
        if one.check(number):
            one.accept(number)
            wanted.append(number)
        full, refused, ours = judge.look(number)
        assert full == number
        if ours and not refused:
            judge.accept(number)
            passed.append(number)
        elif not ours:
            judge.marked(number)
            if host.check(number):
                host.accept(number)
                passed.append(number)
    assert len(passed) == len(set(passed))
    assert set(wanted) <= set(passed)


@given(
    st.integers(0, 400), st.sets(st.integers(1, 400), max_size=80), st.sets(st.integers(1, 400), max_size=80)
)
def test_windows_that_are_joined_have_seen_what_either_has(
    size: int, left: set[int], right: set[int]
) -> None:
    windows = ReplayWindow(64 + size), ReplayWindow(64 + size)
    for window, numbers in zip(windows, (left, right), strict=True):
        for number in sorted(numbers):
            window.accept(number)
    windows[0].join(windows[1].highest, windows[1].bitmap())
    assert windows[0].highest == max(left | right, default=0)
    for number in range(1, 401):
        seen = number in left | right
        late = windows[0].highest - number >= windows[0].size
        assert windows[0].check(number) == (not seen and not late)


# Windows -------------------------------------------------------------------------------------------------


def carry(one: End, other: End, count: int) -> list[Arrived]:
    """So many packets from one to the other; what was on the wire."""
    one.sends(count)
    one.work()
    wire = list(one.wire)
    deliver(one, other)
    return wire


@pytest.mark.parametrize("suite", [GCM, GCM_ESN, AH_GMAC], ids=["gcm", "esn", "ah"])
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_nothing_comes_twice_wherever_the_window_is(suite: QuickSuite, mode: Mode) -> None:
    """Each packet is shown again in every later phase: before the adapter has the SA, while it marks, while
    it judges, and when the window is at home again."""
    one, other = ends(suite, mode=mode)
    seen: list[Arrived] = []

    def again() -> None:
        other.station.arrivals.extend(seen)
        other.work()
        assert max(other.station.delivered.values()) == 1
        assert len(other.station.delivered) == len(seen)

    seen += carry(one, other, 5)
    again()
    other.placed(IN)
    seen += carry(one, other, 5)  # the first is marked, then the window is lent
    again()
    assert other.driver.lent(other.pair)
    seen += carry(one, other, 5)
    again()
    assert other.station.engine.counters["replayed"] == 5 + 10 + 15
    other.driver.displace(other.pair, [IN], other.station.now)
    other.work()
    assert not other.driver.lent(other.pair)
    again()
    assert other.station.engine.counters["replayed"] == 5 + 10 + 15 + 15
    seen += carry(one, other, 5)
    again()
    assert other.driver.counters["windows returned"] == 1
    assert not other.station.engine.counters["late"]
    other.station.check_octets(other.pair)


def test_packets_out_of_order_pass_on_both_sides_of_the_hand_over() -> None:
    """What is older than the hand-over is the host's to judge, however late it comes within the window."""
    one, other = ends()
    one.sends(60)
    one.work()
    wire = list(one.wire)
    held, rest = wire[:40:2], [each for each in wire if each not in wire[:40:2]]
    other.placed(IN)
    for part in (rest[:20], rest[20:], held[:10]):
        other.station.arrivals.extend(part)
        other.work()
    assert other.driver.lent(other.pair)
    other.driver.displace(other.pair, [IN], other.station.now)
    other.work()
    other.station.arrivals.extend(held[10:])
    other.work()
    assert len(other.station.delivered) == 60
    assert not other.station.engine.counters["late"]
    one.wire.clear()
    deliver(one, other)
    other.station.arrivals.extend(wire)
    other.work()
    assert sum(other.station.delivered.values()) == 60


@pytest.mark.parametrize("how", ["crash", "reset", "link"])
def test_a_window_that_is_lost_closes_the_sa_until_it_is_replaced(how: str) -> None:
    """Resuming at what was last known would let in again what came since; the owner is told at once, and the
    successor receives."""
    one, other = ends()
    other.placed(IN)
    seen = carry(one, other, 3) + carry(one, other, 3)
    if how == "link":
        other.station.link(False)
    else:
        getattr(other.station, how)()
    other.work()
    assert [each for each in other.notices if isinstance(each, Expire)] == [
        Expire(other.pair.inbound.spi, True, False, LOST, other.pair.owner)
    ]
    delivered = other.station.delivered.total()
    other.station.arrivals.extend(seen)
    carry(one, other, 3)
    assert other.station.delivered.total() == delivered
    assert other.station.engine.counters["late"] == 9
    assert other.pair.inbound.replay is not None
    assert other.pair.inbound.replay.reached == 0xFFFFFFFF  # what a new worker is told
    later = another(one.pair, 4000), another(other.pair, 4000)
    other.station.install(later[1])
    one.station._tap.knows(later[0].outbound)
    one.station.install(later[0])
    carry(one, other, 3)
    assert other.station.delivered.total() == delivered + 3


def test_an_adapter_that_dies_before_it_has_the_window_costs_nothing() -> None:
    """Until it judges, the host knows all."""
    one, other = ends()
    other.placed(IN)
    other.station.crash()
    carry(one, other, 3)
    assert other.station.delivered.total() == 3
    assert not [each for each in other.notices if isinstance(each, Expire)]


def test_a_deletion_without_the_window_closes_the_sa() -> None:
    one, other = ends()
    other.placed(IN)
    carry(one, other, 3)
    (handle,) = other.driver._handles
    other.driver.displace(other.pair, [IN], 1.0)
    other.driver.answered(Deleted(handle), 1.0)
    other.station.out(other.station.engine.released(1.0))
    carry(one, other, 3)
    assert other.station.delivered.total() == 3
    assert isinstance(other.notices[-1], Expire)


@pytest.mark.parametrize("suite", [GCM, GCM_ESN], ids=["32", "64"])
def test_a_worker_that_ends_leaves_no_window_open(suite: QuickSuite) -> None:
    """What the next worker is told: while the window is lent that anything may have come, so it receives
    nothing on the SA; and once it is at home again what has."""
    engines.chosen = "python"
    a, b = hosts(suite, install=False)
    a.engine.install(a.pair)
    ledger = Ledger(1)
    accounts = LedgerAccounts(ledger)
    accounts.slots[b.pair] = 0
    ledger.begin(0, b.pair)
    worker = PacketAdapterEngine(entropy(), accounts=accounts)
    worker.install(b.pair)
    wire = [arrived(a.engine.outbound([between(4)], 1.0).wire) for _ in range(5)]
    worker.inbound(wire[0], 1.0)
    assert ledger.number(0, True) == b.pair.outbound.last_sequence
    worker.inbound(wire[1], 1.0)
    following = pair_of(channel_add(0, b.pair, ledger.number(0, True)))
    following.inbound.state = State.MATURE
    after = SoftwareEngine(entropy())
    after.install(following)
    assert not after.inbound([one for each in wire for one in each], 1.0).local
    worker.driver.displace(b.pair, [IN], 1.0)
    assert worker.inbound(wire[2], 1.0).local
    assert ledger.number(0, True) == 3
    ledger.close()


def test_marks_of_a_judge_are_believed_once_there_is_one() -> None:
    """An adapter that claims to have judged while the host does would let replays in."""
    one, other = ends()
    other.placed(IN)
    (handle,) = other.driver._handles
    mark = Mark(handle, CryptoStatus.SUCCESS, (1,), judged=True)
    assert not other.driver.believes(other.pair, mark)
    carry(one, other, 2)
    assert other.driver.believes(other.pair, mark)


def test_what_the_adapter_has_not_looked_at_is_dropped_while_it_judges() -> None:
    one, other = ends()
    other.placed(IN)
    carry(one, other, 2)
    one.sends(2)
    one.work()
    other.station.out(other.station.engine.inbound(one.wire, 1.0))
    assert other.station.delivered.total() == 2
    assert other.station.engine.counters["late"] == 2


def test_each_bad_packet_is_counted_for_what_it_is() -> None:
    """By the adapter's word, as software would have counted it."""
    one, other = ends()
    other.placed(IN)
    seen = carry(one, other, 2)
    one.sends(100)
    one.work()
    spoilt = one.wire.pop()
    short = replace(spoilt, data=spoilt.data[:20])
    bad = replace(spoilt, data=spoilt.data[:-1] + bytes((spoilt.data[-1] ^ 1,)))
    old = one.wire.pop(0)
    deliver(one, other)
    other.station.arrivals.extend([short, bad, old, seen[-1], replace(spoilt, protocol=51)])
    other.work()
    counters = other.station.engine.counters
    assert counters["unverified"] == counters["malformed"] == 1
    assert counters["late"] == 2
    other.station.arrivals.append(other_of(other))
    other.work()
    assert other.station.delivered.total() == 2 + 98


def other_of(end: End) -> Arrived:
    """A packet for an SPI that nobody has."""
    return Arrived(50, end.pair.inbound.source, end.pair.inbound.destination, bytes(40))
