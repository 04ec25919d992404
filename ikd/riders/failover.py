"""Fast failover: what a peer's first message says about a loss of memory or a change of its host (MS-IKEE
sections 3.5 and 3.6).

Vid-Initial-Contact means what INITIAL-CONTACT means, but stands in a message that nothing protects: it counts
once its sender is proven. NLBS_PRESENT comes from a member of a cluster, which may fall to another one at any
time: SAs without traffic do not outlive a minute.
"""

from __future__ import annotations

from collections.abc import Container

from ikd.riders.vendor import Known

CLUSTER_IDLE = 60.0


def begins_anew(vendors: Container[Known], *, initiator: bool, had_another: bool) -> bool:
    """Whether a proven peer has told us to forget what it had before. To an initiator that had no other SA
    with the peer when it began it says nothing: what came up meanwhile the peer knows of."""
    return Known.INITIAL_CONTACT in vendors and (not initiator or had_another)


def idle_seconds(vendors: Container[Known], of_rule: float | None, usual: float | None) -> float | None:
    """After how long without traffic a quick-mode SA goes; None is never. `usual` is for rules that do not
    say."""
    limit = usual if of_rule is None else of_rule
    if Known.NLBS_PRESENT not in vendors:
        return limit
    return CLUSTER_IDLE if limit is None else min(limit, CLUSTER_IDLE)
