"""sadb.pairs against a list of pairs that is searched from end to end."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.sas import pair, selectors

from sadb.pairs import PairIndex
from sadb.sa import Mode, SaPair, State
from sadb.selector import TCP, UDP, Fields, Selector, TrafficSelector

HERE = ip_address("10.0.0.1")
REMOTE = st.integers(0, 3).map(lambda n: ip_address(0x0A000100 + n))


@st.composite
def a_pair(draw: st.DrawFn) -> SaPair:
    low, high = sorted((draw(REMOTE), draw(REMOTE)), key=int)
    remote = [TrafficSelector(low, high, draw(st.sampled_from([0, TCP])))]
    if draw(st.booleans()):
        remote.append(TrafficSelector.of(draw(REMOTE)))
    one = pair(
        draw(st.integers(256, 2**32 - 1)),
        rule=draw(st.sampled_from(["db", "hr"])),
        selector=Selector(selectors("10.0.0.0/24"), tuple(remote)),
        mode=draw(st.sampled_from(Mode)),
    )
    one.outbound.destination = draw(REMOTE)
    one.created = float(draw(st.integers(0, 3)))
    one.standby = draw(st.sampled_from([False, False, True]))
    one.inbound.state = one.outbound.state = draw(
        st.sampled_from([State.MATURE, State.DYING, State.DYING, *State])
    )
    return one


def by_scan(pairs: list[SaPair], rule: str, fields: Fields) -> SaPair | None:
    """The last of the best."""
    usable = [
        one
        for one in pairs
        if one.rule == rule
        and one.outbound.state in (State.MATURE, State.DYING)
        and one.selector.matches_outbound(fields)
        and (one.mode is Mode.TUNNEL or one.outbound.destination == fields.destination)
    ]
    if not usable:
        return None

    def rank(one: SaPair) -> tuple[bool, bool, float]:
        return not one.standby, one.outbound.state is State.MATURE, one.created

    best = max(map(rank, usable))
    return [one for one in usable if rank(one) == best][-1]


@given(
    st.lists(a_pair(), max_size=10),
    st.data(),
    REMOTE,
    st.sampled_from(["db", "hr", "?"]),
    st.sampled_from([TCP, UDP]),
)
def test_newest_is_what_a_scan_finds(
    pairs: list[SaPair], data: st.DataObject, remote: Any, rule: str, protocol: int
) -> None:
    """Sending on a pair the peer has dropped, or on that of another rule, loses packets or leaks them."""
    index = PairIndex()
    for one in pairs:
        index.add(one)
    going = data.draw(st.lists(st.sampled_from(pairs), unique_by=id)) if pairs else []
    for one in going:
        index.discard(one)
        index.discard(one)
    staying = [one for one in pairs if one not in going]
    fields = Fields(HERE, remote, protocol, 1, 2)
    found, expected = index.newest(rule, fields), by_scan(staying, rule, fields)
    if found is not None and expected is not None and found is not expected:
        # of one time and state the one entered later counts, as far as both stand under one prefix
        assert (found.created, found.standby, found.outbound.state) == (
            expected.created,
            expected.standby,
            expected.outbound.state,
        )
        assert found.selector.remote != expected.selector.remote
    else:
        assert found is expected


def test_of_equal_pairs_the_later_one_is_used() -> None:
    """After a rekey within one tick of the clock the new pair must be taken."""
    index = PairIndex()
    first, second = pair(0x100), pair(0x200)
    index.add(first)
    index.add(second)
    fields = Fields(first.outbound.source, first.outbound.destination, TCP, 1, 2)
    assert index.newest("db", fields) is second
    index.discard(second)
    assert index.newest("db", fields) is first


def test_pair_on_standby_comes_after_dying_ones() -> None:
    """The peer that rekeys may not have it yet: packets sent on it too early are lost (RFC 7296 2.8)."""
    index = PairIndex()
    former, successor = pair(0x100), pair(0x200)
    former.inbound.state = former.outbound.state = State.DYING
    successor.standby, successor.created = True, 5.0
    for one in (former, successor):
        index.add(one)
    fields = Fields(former.outbound.source, former.outbound.destination, TCP, 1, 2)
    assert index.newest("db", fields) is former
    former.outbound.state = State.DEAD
    assert index.newest("db", fields) is successor


def test_nothing_stays_of_pairs_that_went() -> None:
    """Rule names come and go with every reload of the policy."""
    index = PairIndex()
    one = pair(0x100)
    index.add(one)
    index.discard(one)
    index.discard(pair(0x100, rule="never seen"))
    assert index._rules == {}
