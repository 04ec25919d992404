"""The host beside an adapter: how an SA gets there and comes back, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import pytest
from support.engines import GCM_ESN, Host, another, between, echo, entropy, hosts
from support.require import require

from offload import ip
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.descriptors import Completion, Task
from offload.nic.driver import HELD, LAGGING, PATIENCE, Driver
from offload.nic.hybrid import HybridEngine
from offload.nic.lanes import Report, Stage
from offload.nic.requests import Added, AddSa, Deleted, DeleteSa, Link, Refused
from offload.outer import CryptoStatus, Mark
from sadb.sa import Mode, SaPair
from sadb.selector import UDP

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
HANDLE = 1 << 16 | 5


make: Callable[..., HybridEngine] = HybridEngine


@pytest.fixture(autouse=True, params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """These engines are their own, the second one with the native loop."""
    global make
    before = make
    if request.param == "native":
        require(bool(find_spec("offload._native")), "the native loop")
        from support.native_adapter import NativeHybridEngine

        make = NativeHybridEngine
    yield
    make = before


class Bench:
    """An engine with a driver, and an adapter that is played by the test."""

    def __init__(self, profile: str = "ideal", **how: object) -> None:
        host: Host = hosts(mode=Mode.TRANSPORT, **how)[0]  # type: ignore[arg-type]
        self.driver = Driver(PROFILES[profile])
        self.engine = make(entropy(), driver=self.driver)
        self.engine.route((host.flow,))
        self.engine.install(host.pair)
        self.pair: SaPair = host.pair

    def placed(self, *directions: Direction) -> Bench:
        self.driver.place(self.pair, directions, 1.0)
        for number, request in enumerate(self.asked()):
            assert isinstance(request, AddSa)
            self.driver.answered(Added(request.ident, HANDLE + number), 1.0)
        self.driver.reports.clear()
        return self

    def asked(self) -> list[object]:
        found: list[object] = list(self.driver.requests)
        self.driver.requests.clear()
        return found

    def numbers(self) -> list[int]:
        """Sequence numbers in the ring; 0 for a fence."""
        ring = self.driver.ring
        return [int.from_bytes(one.data[24:28], "big") if one.task is not Task.FENCE else 0 for one in ring]

    def sends(self, *payloads: bytes, now: float = 1.0) -> list[bytes]:
        return [one.data for one in self.engine.outbound([between(4, one) for one in payloads], now).wire]

    def completes(self, *idents: int, now: float = 1.0) -> list[int]:
        """Numbers that leave in software when these descriptors are done with."""
        self.driver.completed([Completion(ident, True) for ident in idents], now)
        return [number_of(one.data) for one in self.engine.released(now).wire]

    @property
    def idents(self) -> list[int]:
        return [one.ident for one in self.driver.ring]


def number_of(packet: bytes) -> int:
    return int.from_bytes(packet[24:28], "big")


def test_packets_go_in_software_until_the_adapter_says_yes_and_after_it_says_no() -> None:
    one = Bench()
    one.driver.place(one.pair, [OUT], 1.0)
    (request,) = one.asked()
    assert isinstance(request, AddSa)
    assert len(one.sends(b"1")) == 1
    one.driver.answered(Refused(request.ident, "slots_full"), 1.0)
    assert one.driver.reports == [Report(one.pair, OUT, "slots_full")]
    assert one.driver.stage(one.pair, OUT) is Stage.SOFT
    assert len(one.sends(b"2")) == 1
    assert not one.driver.ring


def test_packets_of_an_sa_that_drains_wait_without_a_number() -> None:
    """Else software would overtake the ring, and the peer's window drop what is late."""
    one = Bench().placed(OUT)
    one.sends(b"1", b"2")
    one.driver.displace(one.pair, [OUT], 1.0)
    assert not one.sends(b"3", b"4")
    assert one.numbers() == [1, 2, 0]
    assert one.completes(*one.idents[:2]) == []
    assert not one.asked()
    assert one.completes(one.idents[2], now=1.03) == [3, 4]
    assert one.asked() == [DeleteSa(HANDLE)]
    assert one.driver.reports == [Report(one.pair, OUT, "software")]
    assert one.driver.counters["longest drain, ms"] == 30
    one.placed(OUT)
    one.driver.displace(one.pair, [OUT], 1.0)
    one.completes(one.idents[-1], now=1.02)
    assert one.driver.counters["longest drain, ms"] == 30
    assert one.asked() == [DeleteSa(HANDLE)]
    one.placed(OUT)
    one.driver.displace(one.pair, [OUT], 2.0)
    one.driver.tick(2.0 + PATIENCE)
    assert one.driver.counters["longest drain, ms"] == 1000 * PATIENCE


def test_what_is_missing_when_the_fence_is_done_leaves_again() -> None:
    """A descriptor without completion before a completed fence is lost; it was waited for without end."""
    one = Bench().placed(OUT)
    one.sends(b"1", b"2", b"3")
    one.driver.displace(one.pair, [OUT], 1.0)
    first, _, third, fence = one.idents
    assert one.completes(first, third, fence) == [4]
    one.driver.tick(9.0)
    assert one.driver.deadline() is None


def test_a_failed_send_leaves_again_in_software_under_a_new_number() -> None:
    one = Bench().placed(OUT)
    one.sends(b"1", b"2")
    first, second = one.idents
    one.driver.ring.clear()
    one.driver.completed([Completion(first, True), Completion(second, False)], 1.0)
    (again,) = one.engine.released(1.0).wire
    assert number_of(again.data) == 3
    assert one.asked() == [DeleteSa(HANDLE)]
    assert one.driver.stage(one.pair, OUT) is Stage.SOFT


def test_what_is_lost_stays_lost_where_nothing_may_come_twice() -> None:
    one = Bench()
    one.driver.resend_lost = False
    one.placed(OUT)
    one.sends(b"1")
    one.driver.tick(1.0 + PATIENCE)
    assert not one.engine.released(1.2).wire
    assert one.driver.counters["lost"] == 1


def test_silence_ends_after_a_while_and_a_drain_never_waits_for_another_sa() -> None:
    """100 ms without any completion; a drain has 100 ms, whatever is older."""
    one = Bench().placed(OUT)
    other = another(one.pair, 4000)
    other.outbound.spi, other.inbound.spi = 4001, 4002
    one.sends(b"old")
    one.engine.install(other)
    one.driver.place(other, [OUT], 1.0)
    (request,) = one.asked()
    assert isinstance(request, AddSa)
    one.driver.answered(Added(request.ident, 77 << 16), 1.0)
    one.sends(b"new", now=1.01)
    one.driver.displace(other, [OUT], 1.02)
    one.driver.completed([Completion(0, True)], 1.03)  # somebody is busy
    one.driver.tick(1.02 + PATIENCE - 0.001)
    assert one.driver.stage(other, OUT) is Stage.DRAINING
    assert one.driver.deadline() is not None
    one.driver.tick(1.02 + PATIENCE)
    assert one.driver.stage(other, OUT) is Stage.SOFT
    assert one.driver.counters["lost"] >= 1


def test_too_many_that_wait_end_the_drain() -> None:
    one = Bench().placed(OUT)
    one.sends(b"1")
    one.driver.displace(one.pair, [OUT], 1.0)
    wire = [packet for _ in range(HELD + 1) for packet in one.sends(b"x")]
    assert [number_of(packet) for packet in wire] == list(range(2, HELD + 4))
    assert one.driver.counters["lost"] == 1


def test_a_deleted_pair_is_in_the_adapter_until_its_packets_have_left() -> None:
    """A deletion that overtakes the ring would lose them: the successor is used already."""
    one = Bench().placed(OUT)
    one.sends(b"1")
    one.engine.install(another(one.pair, 4000))
    one.driver.displace(one.pair, [OUT], 1.0)
    one.engine.remove(one.pair)
    assert not one.asked()
    sent, fence = one.idents
    assert one.completes(sent) == []
    assert one.completes(fence) == []
    assert one.asked() == [DeleteSa(HANDLE)]
    assert one.driver.reports == []


def test_packets_of_a_deleted_pair_that_were_lost_leave_on_its_successor() -> None:
    one = Bench().placed(OUT)
    one.sends(b"1")
    one.engine.install(another(one.pair, 4000))
    one.engine.remove(one.pair)
    one.driver.tick(1.0 + PATIENCE)
    (again,) = one.engine.released(1.2).wire
    assert again.data[20:24] == (4000).to_bytes(4, "big")


def test_what_software_has_to_send_waits_for_the_ring_and_the_adapter_goes_on() -> None:
    """IPv4 options, and what is to be cut up: behind the ring, before what comes later."""
    one = Bench("82576").placed(OUT)
    plain = between(4)
    options = ip.addressed(b"\x46" + plain[1:20] + b"\x94\x04\0\0", 9, UDP, len(plain) - 20) + plain[20:]
    assert [number_of(packet.data[4:]) for packet in one.engine.outbound([options], 1.0).wire] == [1]
    one.sends(b"1")
    large = echo("10.1.0.5", "10.2.0.7", 3000)
    for packet in (options, large):
        assert not one.engine.outbound([packet], 1.0).wire
        assert not one.sends(b"later")
        idents, one.driver.ring = one.idents, []
        one.driver.completed([Completion(ident, True) for ident in idents], 1.0)
        assert one.engine.released(1.0).wire
        assert one.driver.stage(one.pair, OUT) is Stage.HARD
        assert len(one.driver.ring) == 1
    assert one.numbers() == [6]
    assert not one.asked()


def test_an_answer_for_what_is_not_wanted_any_more_gives_the_slot_back() -> None:
    """And until the adapter has forgotten it, its marks are true."""
    one = Bench()
    one.driver.place(one.pair, [IN, OUT], 1.0)
    adds = [request.ident for request in one.asked() if isinstance(request, AddSa)]
    one.driver.displace(one.pair, [IN, OUT], 1.0)
    one.driver.place(one.pair, [IN, OUT], 1.0)
    again = [request.ident for request in one.asked() if isinstance(request, AddSa)]
    for number, ident in enumerate(adds):
        one.driver.answered(Added(ident, HANDLE + number), 1.0)
    assert one.asked() == [DeleteSa(HANDLE), DeleteSa(HANDLE + 1)]
    assert one.driver.believes(one.pair, Mark(HANDLE, CryptoStatus.SUCCESS))
    one.driver.answered(Refused(again[0], "refused"), 1.0)
    one.driver.answered(Added(again[1], 99 << 16), 1.0)
    assert one.driver.stage(one.pair, IN) is Stage.SOFT
    assert one.driver.stage(one.pair, OUT) is Stage.HARD
    one.driver.answered(Deleted(HANDLE), 1.0)
    one.driver.settled()
    one.driver.settled()
    assert not one.driver.believes(one.pair, Mark(HANDLE, CryptoStatus.SUCCESS))


def test_marks_are_believed_of_their_own_sa_only() -> None:
    one = Bench().placed(IN)
    mark = Mark(HANDLE, CryptoStatus.SUCCESS)
    assert one.driver.believes(one.pair, mark)
    assert not one.driver.believes(another(one.pair, 4000), mark)
    assert not one.driver.believes(one.pair, replace(mark, handle=HANDLE + (1 << 16)))
    assert not one.driver.believes(one.pair, replace(mark, handle=0))
    assert one.driver.counters["stale handles"] == 3


def test_after_a_reset_everything_is_in_software_and_true_marks_stay_true() -> None:
    """A request on its way may still be granted by an adapter that lives; then it is taken back."""
    one = Bench().placed(IN, OUT)
    one.sends(b"1", b"2")
    late = another(one.pair, 4000)
    late.created = one.pair.created - 1  # nothing leaves on it
    one.engine.install(late)
    one.driver.place(late, [IN], 1.0)
    (request,) = one.asked()
    assert isinstance(request, AddSa)
    one.driver.answered(Link(False), 1.0)
    assert [number_of(packet.data) for packet in one.engine.released(1.0).wire] == [3, 4]
    assert {report.what for report in one.driver.reports} == {"link"}
    assert not one.driver.ring
    assert not one.asked()
    one.driver.answered(Added(request.ident, 88 << 16), 1.0)
    assert one.asked() == [DeleteSa(88 << 16)]
    assert one.driver.believes(late, Mark(88 << 16, CryptoStatus.SUCCESS))
    assert one.driver.believes(one.pair, Mark(HANDLE, CryptoStatus.SUCCESS))
    one.driver.settled()
    one.driver.settled()
    assert not one.driver.believes(one.pair, Mark(HANDLE, CryptoStatus.SUCCESS))


def test_an_adapter_that_does_not_follow_updates_loses_the_sa() -> None:
    one = Bench(suite=GCM_ESN).placed(IN)
    failed = Mark(HANDLE, CryptoStatus.TRANSPORT_ESP_FAILED)
    for _ in range(LAGGING):
        assert one.driver.stage(one.pair, IN) is Stage.HARD
        one.driver.opened(one.pair, failed, 100, 1)
    assert one.driver.stage(one.pair, IN) is Stage.SOFT
    assert one.driver.reports == [Report(one.pair, IN, "refused")]
    assert one.driver.counters["verified in software"] == LAGGING


def test_an_sa_with_another_upper_half_is_placed_anew_when_the_ring_is_empty() -> None:
    """The adapter would seal with the old half, and the peer could not open it."""
    one = Bench(suite=GCM_ESN)
    one.pair.outbound.sequence = (1 << 32) - 2
    one.placed(OUT)
    one.sends(b"1", b"2", b"3")
    assert one.numbers() == [0xFFFFFFFF, 0]
    assert len(one.completes(*one.idents)) == 2
    delete, add = one.asked()
    assert delete == DeleteSa(HANDLE)
    assert isinstance(add, AddSa)
    assert add.high == 1
    assert one.driver.reports == [Report(one.pair, OUT, "software")]


def test_one_handle_for_two() -> None:
    """An adapter that somebody has taken over: when it is gone everything must go on in software, also the
    reading of sockets behind that."""
    one = Bench()
    other = another(one.pair, 4444)
    one.engine.install(other)
    for pair in (one.pair, other):
        one.driver.place(pair, (IN,), 1.0)
    for request in one.asked():
        assert isinstance(request, AddSa)
        one.driver.answered(Added(request.ident, HANDLE), 1.0)
    one.driver.dead(2.0)
    assert {one.driver.stage(pair, IN) for pair in (one.pair, other)} == {Stage.SOFT}
