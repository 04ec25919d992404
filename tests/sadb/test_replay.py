"""sadb.replay against a set that remembers everything (RFC 4303 sections 3.4.3 and A2)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.windows import HALF, LAST, Remembering

from sadb.replay import LARGEST, SMALLEST, ReplayWindow


def started(size: int, esn: bool, highest: int) -> tuple[ReplayWindow, Remembering]:
    """A window and its model, both at a number."""
    window, model = ReplayWindow(size, esn=esn), Remembering(size, esn=esn)
    if highest:
        window.accept(highest)
        model.accepted.add(highest)
    return window, model


SIZES = st.sampled_from([SMALLEST, 65, 100, 1024, LARGEST])
NEAR = st.integers(-2 * LARGEST, 2 * LARGEST)
# where arithmetic on halves goes wrong: the beginning, every 2^31 and 2^32, the end
CORNERS = st.sampled_from([0, HALF >> 1, HALF, HALF + (HALF >> 1), 5 * HALF, LAST - HALF, LAST])


@st.composite
def near_corners(draw: st.DrawFn) -> int:
    return min(max(draw(CORNERS) + draw(NEAR), 0), LAST)


@given(SIZES, near_corners(), st.lists(st.one_of(NEAR, st.integers(-HALF, HALF)), max_size=40))
@example(64, 0, [0, HALF - 1])
@example(64, HALF - 1, [1, 0, -1, -63, -64])
@example(64, HALF + 10, [-11, -53, -54, HALF - 54, HALF - 53])
@example(64, LAST, [0, 1, -1, -63, -64, 64])
def test_extended_numbers_are_those_of_the_model(size: int, highest: int, steps: list[int]) -> None:
    """A wrong guess at the high half makes an authentic packet fail, or a replayed one look new."""
    window, model = started(size, True, highest)
    for step in steps:
        low = (model.highest + step) % HALF
        number = window.full(low)
        assert number == model.full(low)
        assert window.check(number) == model.check(number)
        if model.check(number):
            window.accept(number)
            model.accepted.add(number)
        assert window.highest == model.highest


@given(SIZES, st.integers(0, HALF - 1), st.lists(st.one_of(NEAR, st.integers(0, HALF)), max_size=40))
@example(64, HALF - 1, [0, 1, -1, -63, -64])
def test_short_numbers_are_those_of_the_model(size: int, highest: int, steps: list[int]) -> None:
    """Without ESN there is no wrap: after 2^32 - 1 nothing is new (RFC 4303 section 3.3.3)."""
    window, model = started(size, False, highest)
    for step in steps:
        low = (model.highest + step) % HALF
        assert window.full(low) == low
        assert window.check(low) == model.check(low)
        if model.check(low):
            window.accept(low)
            model.accepted.add(low)


@given(SIZES, st.booleans(), near_corners(), st.lists(NEAR, min_size=1, max_size=30))
def test_no_number_passes_twice(size: int, esn: bool, highest: int, steps: list[int]) -> None:
    """The whole purpose: what was accepted is refused for ever, in any order of arrival."""
    window, _ = started(size, esn, highest % HALF if not esn else highest)
    for step in steps:
        number = window.highest + step
        if number > 0 and window.check(number):
            window.accept(number)
            assert not window.check(number)


@pytest.mark.parametrize("esn", [False, True])
def test_first_packet_is_number_one(esn: bool) -> None:
    """0 is never sent (RFC 4303 section 3.3.3): a peer that sends it counts wrongly."""
    window = ReplayWindow(esn=esn)
    assert not window.check(0)
    assert window.check(1)
    window.accept(1)
    assert not window.check(0)
    assert window.check(2)


def test_low_half_zero_is_a_number_like_others() -> None:
    """With ESN 2^32 follows 2^32 - 1: refusing it would lose a packet, guessing 0 all that follow."""
    window, _ = started(64, True, HALF - 1)
    assert window.full(0) == HALF
    assert window.check(HALF)
    window.accept(HALF)
    assert window.full(HALF - 2) == HALF - 2
    assert window.check(HALF - 2)
    assert window.full(1) == HALF + 1


def test_before_the_first_packet_high_half_is_zero() -> None:
    """There is nothing before 2^32: a large number on a new SA is large, not negative."""
    window = ReplayWindow(esn=True)
    for low in (1, 63, 64, HALF - 64, HALF - 63, HALF - 1):
        assert window.full(low) == low
        assert window.check(low)


def test_end_of_extended_numbers_does_not_wrap() -> None:
    """After 2^64 - 1 the SA is finished: a number beyond has no octets to be authenticated with."""
    window, _ = started(64, True, LAST)
    assert window.full(0) == LAST + 1
    assert not window.check(window.full(0))
    assert window.late == 1


def test_check_alone_changes_nothing_but_counters() -> None:
    """A stranger can send any number: before authentication none may move the window."""
    window, _ = started(64, False, 100)
    for number in (101, 5000, HALF - 1, 40, 100):
        window.check(number)
    assert window.highest == 100
    assert window.check(99)
    assert (window.late, window.replayed) == (0, 1)
    assert not window.check(36)
    assert window.late == 1


def test_long_jump_takes_no_memory() -> None:
    """A peer may skip 2^32 numbers: shifting the bits by as many would take half a gigabyte."""
    window, _ = started(64, True, 5)
    window.accept(HALF + 5)
    assert window.highest == HALF + 5
    assert window.check(HALF + 4)
    assert not window.check(HALF + 5)
    assert window._seen < 1 << 64


def test_what_was_checked_twice_passes_once() -> None:
    """A packet and its copy may both be checked before the first of them is accepted."""
    window, _ = started(64, False, 10)
    assert window.check(5)
    assert window.check(5)
    assert window.accept(5)
    assert not window.accept(5)


def test_number_that_fell_out_meanwhile_is_not_noted() -> None:
    """Packets of one batch may be checked before the first is accepted; the bits must stay bounded."""
    window, _ = started(64, False, 10)
    assert window.check(5)
    window.accept(1000)
    window.accept(5)
    assert window._seen == 1
    assert not window.check(5)


@pytest.mark.parametrize("size", [0, 32, SMALLEST - 1, LARGEST + 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    """Too small drops reordered packets, too large takes memory for each SA."""
    with pytest.raises(ValueError, match="64 to 4096"):
        ReplayWindow(size)
