"""Items found by the address prefixes they stand under: a dictionary per prefix length.

An address is looked up once per length in use, which for real policies is a handful of dictionary probes.
Ranges are split into their prefixes; one of very many, which only a peer that wants to fill memory names,
stands under the prefix around it. So an item may be found that does not cover the address: callers compare
selectors anyway, with ports and protocols, of which nothing is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from sadb.address import Address
from sadb.selector import TrafficSelector

T = TypeVar("T")

MOST_PREFIXES = 8  # under which one selector stands


def prefixes(selector: TrafficSelector) -> Iterator[tuple[int, int]]:
    """The prefixes of a range, as (length, leading bits); none when the range is empty."""
    width = selector.low.max_prefixlen
    low, high = int(selector.low), int(selector.high)
    while low <= high:
        aligned = (low & -low).bit_length() - 1 if low else width
        size = min(aligned, (high - low + 1).bit_length() - 1)
        yield width - size, low >> size
        low += 1 << size


class PrefixIndex(Generic[T]):
    """Which items may cover an address. Items are compared as their own `==` is defined."""

    __slots__ = ("_four", "_six")

    def __init__(self) -> None:
        # prefix length -> leading bits -> items, oldest first
        self._four: dict[int, dict[int, list[T]]] = {}
        self._six: dict[int, dict[int, list[T]]] = {}

    def add(self, selectors: Iterable[TrafficSelector], item: T) -> None:
        """Put an item under every prefix of the selectors, behind those already there."""
        for version, length, bits in _keys(selectors):
            tables = self._four if version == 4 else self._six
            tables.setdefault(length, {}).setdefault(bits, []).append(item)

    def discard(self, selectors: Iterable[TrafficSelector], item: T) -> None:
        """Take an item out again; unknown ones are ignored."""
        for version, length, bits in _keys(selectors):
            tables = self._four if version == 4 else self._six
            table = tables.get(length, {})
            bucket = table.get(bits, [])
            try:
                bucket.remove(item)
            except ValueError:
                continue
            if not bucket:
                del table[bits]
                if not table:
                    del tables[length]

    def buckets(self, address: Address) -> Iterator[list[T]]:
        """The lists of items under prefixes that hold the address, oldest first; not to be changed."""
        number = int(address)
        width = address.max_prefixlen
        for length, table in (self._four if width == 32 else self._six).items():
            found = table.get(number >> (width - length))
            if found:
                yield found

    def __bool__(self) -> bool:
        return bool(self._four or self._six)


def _keys(selectors: Iterable[TrafficSelector]) -> dict[tuple[int, int, int], None]:
    """Version, length and bits of every prefix, each once: selectors of one rule often share addresses."""
    return {(one.version, length, bits): None for one in selectors for length, bits in _few(one)}


def _few(selector: TrafficSelector) -> list[tuple[int, int]]:
    found = list(islice(prefixes(selector), MOST_PREFIXES + 1))
    if len(found) > MOST_PREFIXES:
        low = int(selector.low)
        open_bits = (low ^ int(selector.high)).bit_length()
        return [(selector.low.max_prefixlen - open_bits, low >> open_bits)]
    return found
