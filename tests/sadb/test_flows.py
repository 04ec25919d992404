"""sadb.flows against a list of flows that is searched from end to end."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sas import selectors

from sadb import flows as flows_module
from sadb.flows import CACHED, FlowTable
from sadb.sa import Action, Flow
from sadb.selector import TCP, UDP, Fields, Selector, TrafficSelector

ADDRESS = st.one_of(
    st.integers(0, 7).map(lambda n: ip_address(0x0A000000 + n)),
    st.integers(0, 3).map(lambda n: ip_address((0x20010DB8 << 96) + n)),
)
PORT = st.one_of(st.none(), st.sampled_from([22, 80, 443]))


@st.composite
def a_side(draw: st.DrawFn) -> tuple[TrafficSelector, ...]:
    if draw(st.booleans()):
        return selectors("0.0.0.0/0", "::/0")
    low, high = sorted((draw(ADDRESS), draw(ADDRESS)), key=lambda a: (a.version, int(a)))
    if low.version != high.version:
        high = low
    ports = draw(st.sampled_from([(0, 65535), (80, 80), (0, 100)]))
    return (TrafficSelector(low, high, draw(st.sampled_from([0, TCP])), ports),)


FLOWS = st.lists(
    st.builds(
        lambda name, local, remote, order: Flow(name, Selector(local, remote), Action.SECURE, order),
        st.integers(0, 10**9).map(str),
        a_side(),
        a_side(),
        st.integers(0, 4),
    ),
    max_size=10,
)
FIELDS = st.builds(Fields, ADDRESS, ADDRESS, st.sampled_from([TCP, UDP]), PORT, PORT)


def by_scan(flows: list[Flow], fields: Fields, outbound: bool) -> Flow | None:
    for flow in sorted(flows, key=lambda one: one.order):
        selector = flow.selector
        if selector.matches_outbound(fields) if outbound else selector.matches_inbound(fields):
            return flow
    return None


@given(FLOWS, st.lists(FIELDS, max_size=6))
def test_lookup_is_what_a_scan_finds(flows: list[Flow], packets: list[Fields]) -> None:
    """The wrong flow lets clear text out that had to be protected."""
    table = FlowTable(flows)
    for _ in range(2):  # the second time out of the cache
        for fields in packets:
            for outbound in (True, False):
                assert table.lookup(fields, outbound) is by_scan(flows, fields, outbound)


@given(FLOWS, FLOWS, FIELDS)
def test_rebuilding_forgets_the_former_policy(former: list[Flow], flows: list[Flow], fields: Fields) -> None:
    """An answer remembered from before a reload would keep a blocked packet passing."""
    table = FlowTable(former)
    table.lookup(fields, True)
    table.build(flows)
    assert table.lookup(fields, True) is by_scan(flows, fields, True)
    assert sorted(one.order for one in flows) == [one.order for one in table.flows]


def test_addresses_of_both_families_are_told_apart() -> None:
    """::a00:1 and 10.0.0.1 are the same number; the cache must not answer for one with the other."""
    four, six = ip_address("10.0.0.1"), ip_address("::a00:1")
    assert int(four) == int(six)
    only = Flow("v4", Selector(selectors("10.0.0.1"), selectors("10.0.0.1")), Action.PERMIT)
    table = FlowTable([only])
    assert table.lookup(Fields(four, four, TCP, 1, 1), True) is only
    assert table.lookup(Fields(six, six, TCP, 1, 1), True) is None


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger varies addresses and ports at will."""
    monkeypatch.setattr(flows_module, "CACHED", 100)
    table = FlowTable()
    one = ip_address("10.0.0.1")
    for port in range(1000):
        table.lookup(Fields(one, one, TCP, port, port), True)
        assert len(table._cache) <= 100
    assert CACHED <= 65536


def test_many_flows_of_many_hosts_do_not_share_a_bucket() -> None:
    """A thousand rules "any client to this server" must not become a thousand comparisons per packet."""
    anyone = selectors("0.0.0.0/0")
    servers = [TrafficSelector.of(ip_address(0x0A000000 + n)) for n in range(1000)]
    flows = [Flow(str(n), Selector((one,), anyone), Action.SECURE, n) for n, one in enumerate(servers)]
    table = FlowTable(flows)
    buckets = [*table._by_local.buckets(servers[7].low), *table._by_remote.buckets(ip_address("192.0.2.1"))]
    assert sum(map(len, buckets)) == 1
    found = table.lookup(Fields(ip_address("192.0.2.1"), servers[7].low, TCP, 1, 2), outbound=False)
    assert found is flows[7]
