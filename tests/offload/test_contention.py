"""Ten thousand SAs of eight ports contend for the 256 slots of an 82576, in virtual time."""

from __future__ import annotations

from random import Random

import pytest

from offload.switch.contention import Contest, Result, contest
from offload.switch.placement import MOVES, Ceiling, FirstCome, Weighted

# No engine takes part.
pytestmark = pytest.mark.parametrize("engine", ["python"], indirect=True)

CONTEST = Contest()


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """Of each policy, with the same pairs and traffic."""
    found = [contest(policy, CONTEST, Random(6).random) for policy in (FirstCome, Ceiling, Weighted)]
    assert len({one.octets for one in found}) == 1
    return {one.policy: one for one in found}


def test_slots_serve_far_more_than_first_come_first_served(results: dict[str, Result]) -> None:
    """A table that is filled by chance carries what chance gives; that is what placement is for."""
    first, weighted = results["FirstCome"], results["Weighted"]
    assert 0.01 < first.share < 0.1  # 128 of 5000 pairs, whatever their traffic
    assert weighted.octets_offloaded >= 1.2 * first.octets_offloaded
    assert weighted.share > 0.35  # of all; the busiest 120 pairs have 0.59


def test_limits_and_reserves_hold_at_every_second(results: dict[str, Result]) -> None:
    """And they bind: without any the first port takes all, with limits alone the last gets nothing."""
    weighted, ceiling, first = results["Weighted"], results["Ceiling"], results["FirstCome"]
    assert weighted.broken == ()
    assert max(weighted.most.values()) == CONTEST.limit
    assert ceiling.most["vm1"] == CONTEST.limit
    assert ceiling.most["vm8"] == 0
    assert first.most["vm1"] == 256
    assert first.broken


def test_the_table_comes_to_rest(results: dict[str, Result]) -> None:
    """Each move costs a drain: after the traffic has changed hands, one for each slot is plenty."""
    assert results["Weighted"].moves <= 2 * 128 < MOVES * CONTEST.seconds
    assert results["Ceiling"].moves == results["FirstCome"].moves == 0
