"""Fast failover (MS-IKEE sections 3.5 and 3.6).

If one of these fails, SAs of a peer that has lost them live on, or SAs in use are torn down.
"""

from __future__ import annotations

import pytest

from ikd.riders.failover import CLUSTER_IDLE, begins_anew, idle_seconds
from ikd.riders.vendor import Known

CONTACT, CLUSTER = {Known.INITIAL_CONTACT}, {Known.NLBS_PRESENT}


@pytest.mark.parametrize(
    ("vendors", "initiator", "had_another", "anew"),
    [
        (CONTACT, False, False, True),
        (CONTACT, False, True, True),
        (CONTACT, True, True, True),
        (CONTACT, True, False, False),  # both began at once: neither may tear down the other's
        (set(), False, True, False),
        (CLUSTER, False, True, False),
    ],
)
def test_who_begins_anew(vendors: set[Known], initiator: bool, had_another: bool, anew: bool) -> None:
    """A peer in either role may have lost its memory."""
    assert begins_anew(vendors, initiator=initiator, had_another=had_another) is anew


@pytest.mark.parametrize(
    ("vendors", "of_rule", "usual", "limit"),
    [
        (set(), None, None, None),
        (set(), None, 300.0, 300.0),
        (set(), 1800.0, 300.0, 1800.0),  # what a rule says, stands
        (CLUSTER, None, None, CLUSTER_IDLE),
        (CLUSTER, 1800.0, 300.0, CLUSTER_IDLE),
        (CLUSTER, 20.0, None, 20.0),
    ],
)
def test_idle(vendors: set[Known], of_rule: float | None, usual: float | None, limit: float | None) -> None:
    """A minute at most with a member of a cluster; else the rule, else what is usual."""
    assert idle_seconds(vendors, of_rule, usual) == limit
