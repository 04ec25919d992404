"""Accounts in shared memory: what one process writes the others read, where the native loop has it, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ONE_ENGINE
from support.require import require
from support.sas import pair

from offload.ledger import ACCOUNT, INBOUND, LOCK, NUMBER, WORDS, Ledger
from sadb.sa import Usage

pytestmark = ONE_ENGINE

SLOTS = 4
MOST = (1 << 64) - 1
ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import os, sys
from offload.ledger import Ledger
mine = Ledger(fileno=int(sys.argv[1]))
assert mine.usage(1, True).octets == 700, mine.usage(1, True)
mine.publish(2, False, 1500, 3, 12.5, 3)
os._exit(len(mine))  # without a farewell, as one that was killed
"""


def test_a_worker_writes_what_the_daemon_reads_and_what_it_wrote_outlives_it() -> None:
    """Numbers of a worker that died would be sent again under the same key by the next one."""
    ledger = Ledger(SLOTS)
    ledger.publish(1, True, 700, 2, 3.0, 9)
    fileno = str(ledger.fileno)
    worker = subprocess.run(
        [sys.executable, "-c", WORKER, fileno], pass_fds=[ledger.fileno], cwd=ROOT, timeout=60, check=False
    )
    assert worker.returncode == SLOTS
    assert ledger.usage(2, False) == Usage(1500, 3, 12.5)
    assert ledger.number(2, False) == 3
    assert ledger.usage(2, True) == Usage()
    ledger.close()


def test_who_is_left_keeps_the_memory() -> None:
    """A daemon that ends, or gives back what it has, must not fault a worker that still writes."""
    ledger = Ledger(SLOTS)
    other = Ledger(fileno=os.dup(ledger.fileno))
    ledger.publish(0, False, 1, 2, 3.0, 4)
    ledger.close()
    assert other.usage(0, False) == Usage(1, 2, 3.0)
    other.close()


figures = st.integers(0, MOST)
steps = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.sampled_from([None, False, True]),
        figures,
        figures,
        st.integers(0, 10**9),
    ),
    max_size=20,
)


@given(steps)
def test_accounts_are_apart_and_every_mapping_shows_the_same(
    moves: list[tuple[int, bool | None, int, int, int]],
) -> None:
    """One SA's octets in another's account are a limit met too early, or never."""
    ledger = Ledger(SLOTS)
    other = Ledger(fileno=os.dup(ledger.fileno))
    told = {(slot, inbound): (0, 0, 0.0, 0) for slot in range(SLOTS) for inbound in (False, True)}
    for count, (slot, inbound, octets, packets, seconds) in enumerate(moves):
        where = (ledger, other)[count % 2]
        if inbound is None:
            new = pair(1)
            new.outbound.sequence = octets
            where.begin(slot, new)
            told[slot, False], told[slot, True] = (0, 0, 0.0, octets), (0, 0, 0.0, 0)
        else:
            told[slot, inbound] = octets, packets, float(seconds), packets
            where.publish(slot, inbound, *told[slot, inbound])
    for (slot, inbound), (octets, packets, last, number) in told.items():
        for where in (ledger, other):
            assert where.usage(slot, inbound) == Usage(octets, packets, last or None)
            assert where.number(slot, inbound) == number
    other.close()
    ledger.close()


def test_locks_of_the_dead_are_opened() -> None:
    """A worker that was killed while it held one would stop all others at the next packet of that SA."""
    ledger = Ledger(SLOTS)
    for at in (0, INBOUND):
        ledger.words[2 * WORDS + at + LOCK] = 1
    ledger.words[3 * WORDS + LOCK] = 1
    ledger.unlock(2)
    held = [at for at, word in enumerate(ledger.words) if word]
    assert held == [3 * WORDS + LOCK]
    ledger.close()


# The native loop -----------------------------------------------------------------------------------------


@pytest.fixture
def native() -> tuple[Ledger, object]:
    """A ledger and a table over it."""
    try:
        from offload import _native
    except ImportError:
        require(False, "the native loop")
        raise
    assert _native.ACCOUNT == ACCOUNT
    ledger = Ledger(SLOTS)
    return ledger, _native.Table(ledger.memory, bytes(16))


def test_the_native_loop_has_each_figure_where_the_daemon_reads_it(native: tuple[Ledger, object]) -> None:
    """Octets taken for packets, or in for out: limits and replacements of SAs would go by nothing."""
    ledger, table = native
    for slot in range(SLOTS):
        assert table.count(slot, False, 1000 + slot, 10 + slot) == (1000 + slot, 10 + slot)
        assert table.count(slot, True, 2000 + slot, 20 + slot) == (2000 + slot, 20 + slot)
        assert [table.number(slot, False) for _ in range(slot + 1)] == list(range(1, slot + 2))
        assert table.accept(slot, 64, 100 + slot)
    for slot in range(SLOTS):
        for inbound, begin, number in ((False, 10, slot + 1), (True, 20, 100 + slot)):
            usage = ledger.usage(slot, inbound)
            assert (usage.octets, usage.packets) == (100 * begin + slot, begin + slot)
            assert usage.last is not None
            assert ledger.number(slot, inbound) == number
            assert table.read(slot, inbound) == (usage.octets, usage.packets, number)
    assert not any(ledger.words[slot * WORDS + at + LOCK] for slot in range(SLOTS) for at in (0, INBOUND))


def test_the_native_loop_counts_on_from_what_the_daemon_wrote(native: tuple[Ledger, object]) -> None:
    """A number sent once, under the same key, is a nonce used twice."""
    ledger, table = native
    ledger.publish(1, False, 5, 6, 7.0, 0xFFFFFFFD)
    assert table.count(1, False, 10, 1) == (15, 7)
    assert [table.number(1, False) for _ in range(3)] == [0xFFFFFFFE, 0xFFFFFFFF, None]
    assert table.number(1, True) == 1 << 32


@pytest.mark.parametrize("size", [64, 65, 100, 1024, 4096])
def test_a_new_pair_begins_with_an_empty_window(native: tuple[Ledger, object], size: int) -> None:
    """What the pair before it received in this account would be dropped as replayed; a window that reaches
    into the next account would drop packets of that one."""
    ledger, table = native
    for slot in (0, 1, 2):
        for number in range(1, size + 1):
            assert table.accept(slot, size, number)
    ledger.begin(1, pair(1))
    assert ledger.words[WORDS + NUMBER] == 0
    assert ledger.memory[ACCOUNT : 2 * ACCOUNT] == bytes(ACCOUNT)
    assert table.accept(1, size, 1)
    for slot in (0, 2):
        assert not any(table.accept(slot, size, number) for number in range(1, size + 1))
