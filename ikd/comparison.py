"""What each side had when nothing was agreed, side by side, for `ikctl why`; the protocols name what they
offer and were offered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from ikd.events import Comparison, Row

K = TypeVar("K")

MOST_NAMES = 32  # of the peer in one row; nobody reads more, and a stranger may offer thousands


def compare(
    words: Mapping[K, str],
    ours: Iterable[tuple[K, str]],
    theirs: Iterable[tuple[K, str]],
    *,
    sent: bool,
) -> Comparison:
    """Both sides by kind of algorithm, each as (kind, name); `words` says what a kind is called, in order.
    `sent` tells whether ours went out as an offer."""
    rows = tuple(_rows(words, _collected(ours), _collected(theirs)))
    return Comparison("we offered" if sent else "we accept", "the peer offered", rows)


def _collected(names: Iterable[tuple[K, str]]) -> dict[K, tuple[str, ...]]:
    """The names of each kind, once each, in order."""
    found: dict[K, dict[str, None]] = {}
    for kind, name in names:
        found.setdefault(kind, {})[name] = None
    return {kind: tuple(several) for kind, several in found.items()}


def _rows(
    words: Mapping[K, str], ours: Mapping[K, tuple[str, ...]], theirs: Mapping[K, tuple[str, ...]]
) -> Iterator[Row]:
    for kind, word in words.items():
        mine, other = ours.get(kind, ()), theirs.get(kind, ())
        if not mine and not other:
            continue
        apart = mine and other and not set(mine) & set(other)
        if len(other) > MOST_NAMES:
            other = (*other[:MOST_NAMES], f"and {len(other) - MOST_NAMES} more")
        yield Row(word, mine, other, "nothing in common" if apart else "")
