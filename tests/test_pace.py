"""How often somebody may do something."""

from __future__ import annotations

from ikd.pace import BURST_SECONDS, MOST_KNOWN, Pace


def test_a_burst_then_the_rate() -> None:
    """A gateway that replaces all its SAs at once is no attack; one that goes on and on is."""
    pace = Pace()
    burst = int(2 * BURST_SECONDS)
    assert [pace.take("one", 2.0, 5.0) for _ in range(burst + 3)] == [True] * burst + [False] * 3
    assert not pace.ready("one", 2.0, 5.4)
    assert pace.ready("one", 2.0, 5.5)
    assert [pace.take("one", 2.0, 7.0) for _ in range(5)] == [True] * 4 + [False]
    assert pace.take("other", 2.0, 5.0)


def test_asking_costs_nothing_and_zero_is_without_limit() -> None:
    """Who only looks must not use up somebody's share: a forger would."""
    pace = Pace()
    assert all(pace.ready("one", 0.01, 1.0) for _ in range(50))
    assert pace.take("one", 0.01, 1.0)  # even the slowest may once
    assert not pace.take("one", 0.01, 2.0)
    assert all(pace.take("one", 0, 2.0) for _ in range(50))


def test_the_table_has_an_end() -> None:
    """Identities are cheap for whoever owns an authority."""
    pace = Pace()
    for n in range(MOST_KNOWN + 100):
        pace.take(n, 1.0, float(n))
    assert len(pace._left) == MOST_KNOWN
