"""Cutting a message and putting it together (RFC 7383).

If one of these fails, large messages do not arrive, or fragments fill memory.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.riders.fragment import Reassembly, cut


@given(st.binary(max_size=300), st.integers(1, 100), st.randoms(use_true_random=False))
def test_any_order_yields_the_message(data: bytes, size: int, luck: random.Random) -> None:
    """Pieces of at most the size, at least one, together again whatever the order and with repetitions."""
    pieces = cut(data, size)
    assert pieces
    assert all(len(one) <= size for one in pieces)
    found = Reassembly(len(pieces), 1000)
    order = [*enumerate(pieces, 1)] * 2
    luck.shuffle(order)
    seen: set[int] = set()
    for number, piece in order:
        assert found.add(number, 39 if number == 1 else 0, piece, b"datagram %d" % number)
        seen.add(number)
        assert (found.whole() is not None) is (len(seen) == len(pieces))
    assert found.whole() == data
    assert found.first == 39
    assert found.datagram == b"datagram 1"


@pytest.mark.parametrize("limit", [0, 5, 10])
def test_the_limit(limit: int) -> None:
    """A message does not grow beyond it, and repetitions do not count."""
    found = Reassembly(10, limit)
    for number in range(1, 11):
        assert found.add(number, 0, b"x", b"") is (number <= limit)
    if limit:
        assert found.add(1, 0, b"x" * 100, b"")


def test_the_first_octets_stay() -> None:
    """A later fragment with the same number changes nothing: only authentic ones come here, the first
    counts."""
    found = Reassembly(2, 100)
    found.add(1, 39, b"first", b"a")
    found.add(1, 40, b"other", b"b")
    found.add(2, 0, b"!", b"c")
    assert found.whole() == b"first!"
    assert (found.first, found.datagram) == (39, b"a")
