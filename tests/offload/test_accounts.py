"""Counters, numbers, windows and limits of SAs that several workers share."""

from __future__ import annotations

import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import CBC, GATEWAYS, GCM, GCM_ESN, ONE_ENGINE, association, between, covering
from support.require import require
from support.windows import HALF, Remembering

from offload.accounts import LedgerAccounts, NativeAccounts
from offload.ip import flow_key
from offload.ledger import Ledger
from offload.meter import Meter
from sadb.algorithms import QuickSuite
from sadb.replay import ReplayWindow
from sadb.sa import Lifetime, Mode, SaPair
from sadb.selector import Selector

pytestmark = ONE_ENGINE

SLOT = 2
ROOT = Path(__file__).resolve().parents[2]
ENDS = GATEWAYS[4]


def pair(suite: QuickSuite = GCM, size: int = 64, lifetime: Lifetime | None = None) -> SaPair:
    """A pair as a worker gets it: its own copy."""
    selector = Selector(covering("10.1.0.0/16"), covering("10.2.0.0/16"))
    inbound = association(suite, 1001, Mode.TUNNEL, ENDS[::-1], selector, True)
    outbound = association(suite, 2002, Mode.TUNNEL, ENDS, selector, False)
    inbound.replay = ReplayWindow(size, esn=suite.esn)
    if lifetime is not None:
        inbound.lifetime = outbound.lifetime = lifetime
    return SaPair(inbound, outbound, selector, Mode.TUNNEL, "rule", owner=7)


@dataclass
class Worker:
    """What one worker has of a pair."""

    accounts: NativeAccounts
    table: Any
    pair: SaPair


def workers(
    count: int, suite: QuickSuite = GCM, size: int = 64, lifetime: Lifetime | None = None
) -> tuple[Ledger, list[Worker]]:
    """Workers that have one pair, in one account."""
    try:
        from offload._native import Table
    except ImportError:
        require(False, "the native loop")
        raise
    ledger, made = Ledger(SLOT + 1), []
    ledger.begin(SLOT, pair())
    for number in range(count):
        table = Table(ledger.memory, bytes([number]) * 16)
        accounts = NativeAccounts(table, lambda sa: (-1, -1, True))
        one = pair(suite, size, lifetime)
        accounts.slots[one] = SLOT
        accounts.install(one)
        made.append(Worker(accounts, table, one))
    return ledger, made


# Numbers -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=60))
def test_numbers_of_two_meters_are_never_the_same(turns: list[int]) -> None:
    """A number twice under one key is a nonce twice: AES-GCM gives its key away. The native loop takes them,
    too, for whole trains."""
    ledger, made = workers(2)
    meters = [one.accounts.meter(one.pair, False) for one in made]
    packet = between(4)
    key = flow_key(packet)
    assert key is not None
    made[0].accounts.route(key, made[0].pair, 1500)
    found = []
    for turn in turns:
        if turn < 2:
            found.append(meters[turn].number())
        else:
            ((_, _, _, _, sealed),) = made[0].table.seal(bytes(10) + packet)
            found.append(int.from_bytes(sealed[24:28], "big"))
    assert found == list(range(1, len(turns) + 1))
    assert ledger.number(SLOT, False) == len(turns)


TAKER = """
import sys
from array import array
from offload._native import Table
from offload.ledger import Ledger
table = Table(Ledger(fileno=int(sys.argv[1])).memory, bytes(16))
print(flush=True)
sys.stdin.readline()
found = array("Q", [table.number(2, False) for _ in range(int(sys.argv[2]))])
table.accept(2, 4096, found[-1])  # or it is too late, for the other one was far ahead
sys.stdout.buffer.write(found.tobytes())
"""


def test_numbers_of_two_processes_are_never_the_same() -> None:
    """What holds between turns of one process must hold between two that run at once."""
    ledger, _ = workers(0)
    each = 30_000
    command = [sys.executable, "-c", TAKER, str(ledger.fileno), str(each)]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen(command, pass_fds=[ledger.fileno], cwd=ROOT, stdin=pipe, stdout=pipe) for _ in "12"
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
    taken = [array("Q", child.communicate(timeout=60)[0]) for child in children]
    assert all(list(one) == sorted(one) for one in taken)
    assert sorted(taken[0] + taken[1]) == list(range(1, 2 * each + 1))
    assert ledger.number(SLOT, False) == 2 * each
    assert ledger.number(SLOT, True) == 2 * each, "the highest number received is the highest of both"


@pytest.mark.parametrize(("suite", "last"), [(GCM, HALF - 1), (GCM_ESN, HALF * HALF - 2)])
def test_numbers_that_are_used_up_are_used_up_for_all(suite: QuickSuite, last: int) -> None:
    """The last one must not be given out again by who comes too late."""
    ledger, made = workers(2, suite)
    ledger.publish(SLOT, False, 0, 0, 0.0, last - 3)
    one, two = (each.accounts.meter(each.pair, False) for each in made)
    assert [one.number(), two.number(), one.number()] == [last - 2, last - 1, last]
    if suite is GCM:
        assert (one.number(), two.number()) == (None, None)
        assert (True, "sequence") in one.crossed
        assert (True, "sequence") in two.crossed
        assert ledger.number(SLOT, False) == last


# Windows -------------------------------------------------------------------------------------------------

sizes = st.one_of(st.sampled_from([64, 65, 127, 128, 129, 1000, 4095, 4096]), st.integers(64, 4096))
steps = st.one_of(
    st.integers(-70, 70), st.integers(-4200, 4200), st.sampled_from([0, 0, 1, 1, 1, -HALF, HALF - 1])
)


@given(
    size=sizes,
    esn=st.booleans(),
    start=st.sampled_from([0, 1, 5000, HALF - 100, HALF, HALF + 3000]),
    moves=st.lists(st.tuples(st.integers(0, 1), steps), max_size=60),
)
def test_a_window_is_one_for_all_workers(
    size: int, esn: bool, start: int, moves: list[tuple[int, int]]
) -> None:
    """A packet that one worker has had could be had again from another."""
    suite = GCM_ESN if esn else GCM
    ledger, made = workers(2, suite, size)
    windows = [one.accounts.window(one.pair) for one in made]
    model, number = Remembering(size, esn=esn), start
    for who, step in moves:
        number = min(max(number + step, 0), HALF * HALF - HALF if esn else HALF - 1)
        want = model.verdict(number)
        found, refused = windows[who].look(number % HALF)
        if not refused and found != number:
            refused = "unverified"
        if not refused:
            assert windows[who].accept(found)
            assert not windows[1 - who].accept(found), "both were looked at before one was noted"
        assert refused == want
        assert ledger.number(SLOT, True) == model.highest


# Limits --------------------------------------------------------------------------------------------------

lengths = st.integers(20, 1500)


@given(
    turns=st.lists(st.tuples(st.integers(0, 1), lengths), max_size=40),
    soft=st.tuples(st.integers(1, 20), st.integers(100, 20_000)),
    hard=st.tuples(st.integers(0, 20), st.integers(0, 20_000)),
    inbound=st.booleans(),
)
def test_two_meters_at_one_limit_let_exactly_what_fits_pass(
    turns: list[tuple[int, int]], soft: tuple[int, int], hard: tuple[int, int], inbound: bool
) -> None:
    """Each by itself would let twice as much pass; what was refused must not be counted, or less than fits
    would."""
    lifetime = Lifetime(
        soft_packets=soft[0],
        hard_packets=soft[0] + hard[0],
        soft_octets=soft[1],
        hard_octets=soft[1] + hard[1],
    )
    ledger, made = workers(2, lifetime=lifetime)
    meters = [one.accounts.meter(one.pair, inbound) for one in made]
    octets = packets = 0
    told: set[int] = set()
    for who, size in turns:
        fits = octets + size <= soft[1] + hard[1] and packets + 1 <= soft[0] + hard[0]
        assert meters[who].take(size, 1.0) is fits
        if fits:
            octets, packets = octets + size, packets + 1
            if octets >= soft[1] or packets >= soft[0]:
                told.add(who)
        usage = ledger.usage(SLOT, inbound)
        assert (usage.octets, usage.packets) == (octets, packets)
    for who, meter in enumerate(meters):
        assert sum(not hard for hard, _ in meter.crossed) == (who in told)
        assert sum(hard for hard, _ in meter.crossed) <= 1


def test_limits_are_the_loops_too() -> None:
    """It would carry on where Python has to be asked, and no limit would be met but by accident."""
    _, (one,) = workers(1, lifetime=Lifetime(soft_packets=3, hard_packets=4))
    packet = between(4)
    key = flow_key(packet)
    assert key is not None
    one.accounts.route(key, one.pair, 1500)
    assert one.table.seal(bytes(10) + packet) is None, "no meter has said what its limits are"
    meter = one.accounts.meter(one.pair, False)
    assert [one.table.seal(bytes(10) + packet) is None for _ in range(4)] == [False, False, True, True]
    assert meter.take(len(packet), 1.0)
    assert meter.crossed == [(False, "packets")]
    assert one.table.seal(bytes(10) + packet) is None, "the hard limit is next"
    assert meter.take(len(packet), 1.0)
    assert not meter.take(len(packet), 1.0)


# What the loop is told -----------------------------------------------------------------------------------


def test_what_the_loop_cannot_do_it_is_not_told_of() -> None:
    """A transform it does not know would be another one; and a pair that is gone must be gone there."""
    packet = between(4)
    key = flow_key(packet)
    assert key is not None
    for suite, passes in ((GCM, True), (CBC, False)):
        _, (one,) = workers(1, suite)
        one.accounts.meter(one.pair, False)
        one.accounts.route(key, one.pair, 1500)
        assert (one.table.seal(bytes(10) + packet) is not None) is passes
        one.accounts.forget(key)
        assert one.table.seal(bytes(10) + packet) is None
        one.accounts.route(key, one.pair, 1500)
        one.accounts.remove(one.pair)
        assert one.table.seal(bytes(10) + packet) is None
        one.accounts.remove(one.pair)


def test_a_worker_that_counts_for_itself_tells_the_ledger() -> None:
    """The daemon reads usage and the number to go on with there, whatever the engine."""
    ledger = Ledger(SLOT + 1)
    one = pair(lifetime=Lifetime(hard_packets=70))
    ledger.begin(SLOT, one)
    accounts = LedgerAccounts(ledger)
    accounts.slots[one] = SLOT
    meter, window = accounts.meter(one, False), accounts.window(one)
    assert type(meter) is Meter
    for count in range(1, 4):
        assert meter.take(100, float(count))
        assert meter.number() == count
    assert meter.take_train(640, 64, 9.0) == 4
    assert meter.take_train(640, 64, 9.0) == 0, "it does not fit, and nothing of it was counted"
    assert ledger.usage(SLOT, False) == one.outbound.usage
    assert ledger.usage(SLOT, False).packets == 67
    assert ledger.number(SLOT, False) == one.outbound.sequence == 67
    inbound = accounts.meter(one, True)
    assert window.accept(50)
    assert inbound.take(60, 10.0)
    assert ledger.usage(SLOT, True) == one.inbound.usage
    assert ledger.number(SLOT, True) == 50
    accounts.remove(one)
    assert one not in accounts.slots
