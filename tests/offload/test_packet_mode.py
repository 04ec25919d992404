"""Packet mode: the adapter numbers packets and judges replays, and whatever becomes of it no number is used
twice and no packet comes twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import engines
from support.adapter import PORT, PacketAdapterEngine, address
from support.adapter_link import Station
from support.engines import (
    AH_SUITES,
    GCM,
    GCM_ESN,
    HOSTS,
    Host,
    another,
    arrived,
    between,
    datagram,
    datagrams,
    echo,
    entropy,
    hosts,
    segments,
)
from support.tap import WireTap

from offload import vnet
from offload.accounts import LedgerAccounts
from offload.channel import add as channel_add
from offload.channel import pair_of
from offload.ledger import Ledger
from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.descriptors import Completion, Task, Transmit
from offload.nic.driver import HELD, PATIENCE
from offload.nic.lanes import Report, Stage
from offload.nic.packet_mode import LEASE, LOST, Judge, Lease, Numbers
from offload.nic.requests import AddSa, Deleted, Packets, Refused, TakeWindow, add
from offload.outer import Arrived, CryptoStatus, Mark
from offload.software import SoftwareEngine
from sadb.algorithms import QuickSuite
from sadb.replay import ReplayWindow
from sadb.sa import Expire, Lifetime, Mode, SaPair, State

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
AH_GMAC = next(one for one in AH_SUITES if one.encryption and one.encryption.name == "aes128gmac")


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    """These engines are their own, unless a test says otherwise."""
    before = engines.chosen
    yield
    engines.chosen = before


class End:
    """One host with an adapter in packet mode; `wire` has what left, and was not delivered yet."""

    def __init__(self, host: Host, seed: int, tap: WireTap) -> None:
        self.station = Station(seed, "ideal", tap, packet_mode=True)
        self.driver, self.adapter = self.station.driver, self.station.adapter
        self.pair: SaPair = host.pair
        self.notices: list[object] = []
        self.station.engine.notify = self.notices.append
        self.station.route(host.flow)
        self.station.install(host.pair)
        self.wire: list[Arrived] = []
        self.station.wire = self.wire.extend
        self.sent = 0

    def placed(self, *directions: Direction) -> End:
        self.driver.place(self.pair, directions or Direction, self.station.now)
        self.work()
        return self

    def sends(self, count: int) -> list[bytes]:
        packets = [between(4, b"%d" % number) for number in range(self.sent, self.sent + count)]
        self.sent += count
        self.station.send(packets)
        return packets

    def work(self) -> None:
        """Whatever is on its way gets there, several times: answers make requests."""
        self.station.out(self.station.engine.released(self.station.now))
        while self.station.settle():
            pass

    def numbers(self) -> list[int]:
        """Of packets on the wire."""
        return [int.from_bytes(one.data[4:8], "big") for one in self.wire]


def ends(suite: QuickSuite = GCM, *, start: int = 0, **options: object) -> tuple[End, End]:
    """Two hosts with a tap between them; what leaves has to be carried over by `deliver`."""
    tap = WireTap()
    made = hosts(suite, **options)  # type: ignore[arg-type]
    for host in made:
        tap.knows(host.pair.outbound)
        if start:
            assert host.pair.inbound.replay is not None
            host.pair.outbound.sequence = start
            host.pair.inbound.replay.close(start)
    return End(made[0], 1, tap), End(made[1], 2, tap)


def deliver(one: End, other: End) -> None:
    other.station.arrivals.extend(one.wire)
    one.wire.clear()
    other.work()


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


# Requests ------------------------------------------------------------------------------------------------


def test_an_adapter_without_packet_mode_is_not_talked_into_it() -> None:
    one = Adapter(PROFILES["82599"], Random(1).randbytes, address)
    sa = hosts(mode=Mode.TRANSPORT)[0].pair.outbound
    assert one.request(PORT, add(1, sa, None, packets=True)) == Refused(1, "refused")


@pytest.mark.parametrize(
    "packets",
    [
        Packets((0, 1 << 16), None, None, 64, 0),
        Packets((-1, 0), None, None, 64, 0),
        Packets(None, 64, None, 64, 0),
        Packets(None, None, None, 63, 0),
        Packets(None, None, None, 1 << 40, 0),
        Packets(None, None, None, 64, -1),
        Packets(None, None, None, 64, 1 << 32),
    ],
)
def test_what_cannot_be_is_refused(packets: Packets) -> None:
    """A guest asks for anything."""
    (one, _), sa = ends(), hosts()[0].pair.inbound
    request = replace_struct(add(1, sa, None), packets)
    assert one.adapter.request("guest", request) == Refused(1, "transform")


def replace_struct(request: AddSa, packets: Packets) -> AddSa:
    return msgspec.structs.replace(request, packets=packets)


def test_numbers_of_an_sa_are_the_adapters_or_the_hosts() -> None:
    """A descriptor of the other mode would use a number that the other side uses, too."""
    one, _ = ends()
    one.placed(OUT)
    (entry,) = one.adapter.table.entries()
    packet = between(4)
    for task in (Task.SECURE, Task.LARGE):
        wire, (done,) = one.adapter.transmit(PORT, [Transmit(1, entry.handle, task, packet)])
        assert (wire, done.sent) == ([], False)
    crypto = one.adapter.request(PORT, add(2, another(one.pair, 4000).outbound, None))
    assert not isinstance(crypto, Refused | Deleted | None)
    for task in (Task.PACKETS, Task.LEASE):
        given_ = Transmit(2, crypto.handle, task, bytes(10) + packet, segment=5, number=1)
        wire, (done,) = one.adapter.transmit(PORT, [given_])
        assert (wire, done.sent) == ([], False)


def test_only_its_own_sas_are_leased_numbers_or_taken_windows_of() -> None:
    """Another guest's lease would be numbers for a key that is not its own."""
    one, _ = ends()
    one.placed()
    out, back = sorted(one.adapter.table.entries(), key=lambda entry: entry.sa.inbound)
    _, (done,) = one.adapter.transmit("guest", [Transmit(1, out.handle, Task.LEASE, segment=5, number=1)])
    assert not done.sent
    _, (done,) = one.adapter.transmit("guest", [Transmit(1, out.handle, Task.FENCE)])
    assert done == Completion(1, True, 0)
    one.adapter.request("guest", TakeWindow(back.handle, 5))
    one.adapter.request("guest", TakeWindow(1 << 60, 5))
    assert back.judge is not None
    assert back.judge.home() == (None, b"")


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


# Crashes at every point ----------------------------------------------------------------------------------

POINTS = 40
TURNS = (Station.do_requests, Station.do_answers, Station.do_ring, Station.do_completions)


@pytest.mark.parametrize("suite", [GCM, GCM_ESN], ids=["32", "64"])
@pytest.mark.parametrize("where", [0, 1], ids=["sender", "receiver"])
def test_a_crash_at_any_point_repeats_nothing(suite: QuickSuite, where: int) -> None:
    """Both hosts place, send, displace and place again in the smallest steps there are, and one adapter dies
    behind the nth of them. The tap looks at numbers; what comes out came in, once unless it was sent again,
    and all of it if the receiver's adapter lives."""
    steps = POINTS
    point = 0
    while point <= steps:
        both = ends(suite, start=(1 << 32) - 20 if suite.esn else 0)
        sent, steps = played(*both, lambda step: both[where].station.crash() if step == point else None)  # noqa: B023 - called at once
        got = both[1].station.delivered
        assert set(got) <= set(sent)
        if where == 1:
            assert max(got.values()) == 1
        else:
            assert set(got) == set(sent), point
        point += 1
    assert steps > POINTS


def played(one: End, other: End, behind: Callable[[int], None]) -> tuple[list[bytes], int]:
    """What was sent, and how many steps there were; `behind` is called after each."""
    sent: list[bytes] = []
    steps = 0
    for move in ("place", "send", "send", "displace", "send", "place", "send", "send"):
        if move == "send":
            sent += one.sends(4)
        for end in (one, other):
            if move == "place":
                end.driver.place(end.pair, list(Direction), end.station.now)
            elif move == "displace":
                end.driver.displace(end.pair, list(Direction), end.station.now)
            end.station.out(end.station.engine.released(end.station.now))
        for turn in (*TURNS, Station.do_arrivals, Station.do_received) * 2:
            for end in (one, other):
                turn(end.station, 3)
                steps += 1
                behind(steps)
            other.station.arrivals.extend(one.wire)
            one.wire.clear()
    for end in (one, other):
        end.station.tick(PATIENCE)
        end.work()
    deliver(one, other)
    return sent, steps


def test_reports_say_that_it_was_lost() -> None:
    one, _ = ends()
    one.placed(OUT)
    one.sends(1)
    one.driver.dead(1.0)
    assert Report(one.pair, OUT, "lost") in one.driver.reports
