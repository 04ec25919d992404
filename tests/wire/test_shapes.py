"""Shapes of messages, for any protocol.

If one of these fails, what a table says about a message is not what its handler gets.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Unknown
from ikd.wire.shapes import Shape

SHAPE = Shape(frozenset((1, 2)), frozenset((3,)), frozenset((4,)))


def made(*kinds: int) -> tuple[Unknown, ...]:
    """Payloads of these types."""
    return tuple(Unknown(kind, False, b"") for kind in kinds)


@given(st.lists(st.integers(1, 6), max_size=8))
def test_counts(kinds: list[int]) -> None:
    """Exactly one of each required, at most one optional, any number of others; the rest is left out."""
    good = kinds.count(1) == kinds.count(2) == 1 and kinds.count(3) <= 1
    if good:
        kept = [kind for kind in kinds if kind <= 4]
        assert [one.kind for one in SHAPE.check(made(*kinds))] == kept
    else:
        with pytest.raises(Malformed):
            SHAPE.check(made(*kinds))


def test_not_whole() -> None:
    """When an error stands for the rest, nothing is missing; twice is still too often."""
    assert SHAPE.check(made(4), whole=False) == made(4)
    with pytest.raises(Malformed, match="payload 1 occurs twice"):
        SHAPE.check(made(1, 1), whole=False)


def test_the_complaint_names_the_payload() -> None:
    """So that a log line tells which."""
    with pytest.raises(Malformed, match="payload 2 is missing"):
        SHAPE.check(made(1, 3))


def test_nothing_at_all() -> None:
    """A shape without anything lets nothing through and asks for nothing."""
    assert Shape().check(made(1, 2, 3)) == ()
