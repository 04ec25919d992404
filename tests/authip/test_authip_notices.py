"""Which notifies of a peer were heard before (MS-AIPS section 3.1.7.5).

If one of these fails, whoever has recorded a notify can say it again: that an SA is to be deleted, or that
the peer lives at another address."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ikd.authip.notices import MOST_HEARD, Notices

NOBODY: Any = None  # who would send an answer


def test_a_recording_of_everything() -> None:
    """However many there were: the oldest does not become new because there is no room for it."""
    for count in (1, MOST_HEARD, MOST_HEARD + 1, 3 * MOST_HEARD):
        notices = Notices(NOBODY)
        assert not any(map(notices.again, range(count)))
        assert all(map(notices.again, range(count)))


@given(seed=st.integers(0, 99), jumps=st.lists(st.integers(0, 2 * MOST_HEARD), max_size=8))
def test_no_number_is_new_twice(seed: int, jumps: list[int]) -> None:
    """In any order, with gaps of any size; what is remembered stays small."""
    luck, notices = random.Random(seed), Notices(NOBODY)
    used: set[int] = set()
    start = 0
    for jump in jumps:
        start += jump
        some = [start + luck.randrange(600) for _ in range(400)]
        for number in some:
            new = not notices.again(number)
            assert not (new and number in used)
            used |= {number} if new else set()
    assert len(notices._heard) <= MOST_HEARD


def test_late_ones_are_new() -> None:
    """What overtook it on the way does not make it a recording."""
    notices = Notices(NOBODY)
    assert not notices.again(MOST_HEARD)
    assert not any(map(notices.again, range(MOST_HEARD - 1, 0, -1)))
    assert notices.again(0), "that is too late to tell"
