"""sadb.prefix against a list that is searched from end to end."""

from __future__ import annotations

from ipaddress import ip_address, summarize_address_range

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sas import selectors

from sadb.prefix import MOST_PREFIXES, PrefixIndex, prefixes
from sadb.selector import TrafficSelector

V4 = st.one_of(
    st.integers(0x0A000000, 0x0A0000FF),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 2**32 - 1, 2**31 - 1, 2**31]),
).map(lambda n: ip_address(n.to_bytes(4, "big")))
V6 = st.one_of(
    st.integers(0x20010DB8 << 96, (0x20010DB8 << 96) + 255), st.sampled_from([0, 2**128 - 1, 1 << 127])
).map(lambda n: ip_address(n.to_bytes(16, "big")))


@st.composite
def a_range(draw: st.DrawFn) -> TrafficSelector:
    addresses = draw(st.sampled_from([V4, V6]))
    low, high = sorted((draw(addresses), draw(addresses)), key=int)
    return TrafficSelector(low, high)


@given(a_range())
def test_prefixes_are_those_of_the_standard_library(one: TrafficSelector) -> None:
    """A prefix too many finds items for strangers' addresses, one too few loses them."""
    width = one.low.max_prefixlen
    expected = [
        (net.prefixlen, int(net.network_address) >> (width - net.prefixlen))
        for net in summarize_address_range(one.low, one.high)
    ]
    assert list(prefixes(one)) == expected


def test_whole_families_are_one_prefix() -> None:
    """ "Any" has length zero, the corner of every shift."""
    assert list(prefixes(selectors("0.0.0.0/0")[0])) == [(0, 0)]
    assert list(prefixes(selectors("::/0")[0])) == [(0, 0)]
    empty = TrafficSelector(ip_address("10.0.0.2"), ip_address("10.0.0.1"))
    assert list(prefixes(empty)) == []


ITEMS = st.lists(st.tuples(st.lists(a_range(), max_size=3), st.booleans()), max_size=12)


@given(ITEMS, st.lists(st.one_of(V4, V6), max_size=5))
def test_index_finds_what_a_scan_finds(items: list[tuple[list[TrafficSelector], bool]], asked: list) -> None:
    """A packet whose pair or flow is not found is dropped, or leaves in the clear."""
    index: PrefixIndex[int] = PrefixIndex()
    for number, (ranges, _) in enumerate(items):
        index.add(ranges, number)
    for number, (ranges, goes) in enumerate(items):
        if goes:
            index.discard(ranges, number)
            index.discard(ranges, number)
    staying = {number: ranges for number, (ranges, goes) in enumerate(items) if not goes}
    ends = [end for ranges, _ in items for one in ranges for end in (one.low, one.high)]
    for address in [*asked, *ends]:
        buckets = list(index.buckets(address))
        found = {number for bucket in buckets for number in bucket}
        covering = {n for n, ranges in staying.items() if any(one.has_address(address) for one in ranges)}
        assert covering <= found
        simple = {n for n, ranges in staying.items() if all(few(one) for one in ranges)}
        assert found & simple == covering & simple
        assert all(bucket == sorted(bucket) for bucket in buckets), "the oldest stands first"
    assert bool(index) == any(staying.values())


def few(one: TrafficSelector) -> bool:
    return len(list(prefixes(one))) <= MOST_PREFIXES


def test_index_is_empty_after_everything_went() -> None:
    """What stays behind of removed items is memory a peer can fill."""
    index: PrefixIndex[str] = PrefixIndex()
    ranges = selectors("10.0.0.0/8", "10.0.0.0/8", "10.0.0.1-10.0.0.77", "2001:db8::/32")
    index.add(ranges, "a")
    index.add(ranges, "b")
    index.discard(selectors("10.0.0.0/9"), "a")
    for item in ("a", "b", "c"):
        index.discard(ranges, item)
    assert not index
    assert index._four == index._six == {}


@pytest.mark.parametrize("text", ["0.0.0.1-255.255.255.254", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"])
def test_ranges_of_many_prefixes_take_one_entry(text: str) -> None:
    """Such a range has up to 254 prefixes, and a payload 255 ranges: a peer must not choose our memory."""
    (one,) = selectors(text)
    assert not few(one)
    index: PrefixIndex[str] = PrefixIndex()
    index.add([one], "a")
    assert [len(table) for tables in (index._four, index._six) for table in tables.values()] == [1]
    assert list(index.buckets(one.low)) == list(index.buckets(one.high)) == [["a"]]
    index.discard([one], "a")
    assert not index
