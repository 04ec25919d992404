"""Packet mode: what is asked for, and what a crash costs. `test_leases` is about numbers, `test_windows`
about replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import msgspec
import pytest
from support import engines
from support.adapter import PORT, address
from support.adapter_link import Station
from support.engines import (
    GCM,
    GCM_ESN,
    another,
    between,
    hosts,
)
from support.packet_mode import OUT, End, deliver, ends

from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.descriptors import Completion, Task, Transmit
from offload.nic.driver import PATIENCE
from offload.nic.lanes import Report
from offload.nic.requests import AddSa, Deleted, Packets, Refused, TakeWindow, add
from sadb.algorithms import QuickSuite
from sadb.sa import Mode


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    """These engines are their own, unless a test says otherwise."""
    before = engines.chosen
    yield
    engines.chosen = before


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
