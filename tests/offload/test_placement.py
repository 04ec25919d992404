"""Placement: promises that hold whatever comes, and what each rule does in a small table.

A `Switch` carries decisions out as an adapter would and complains when one cannot be: every prefix of the
decisions has to be possible, not only their sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.nic.capabilities import PROFILES, Capabilities, Direction
from offload.nic.eligibility import Reason
from offload.switch.claims import BOTH, Claim, Rate
from offload.switch.placement import MOVES, RESIDENT, Ceiling, Decision, FirstCome, Outcome, Weighted
from offload.switch.ports import HOST, PortError, Ports

# No engine takes part.
pytestmark = pytest.mark.parametrize("engine", ["python"], indirect=True)

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
ADDRESSES = [ip_address(0xC0000200 + n) for n in range(6)]
SHARED = replace(PROFILES["82576"], rx_slots=16, tx_slots=16, rx_addresses=16)
SPLIT = replace(PROFILES["82599"], rx_slots=8, tx_slots=6, rx_addresses=3)


class Switch:
    """A policy with its ports, and what is in the adapter according to its decisions."""

    def __init__(self, policy: type[FirstCome] = Weighted, capabilities: Capabilities = SHARED) -> None:
        self.ports = Ports(capabilities)
        self.policy = policy(self.ports)
        self.capabilities = capabilities
        self.claims: dict[int, Claim] = {}
        self.held: dict[int, set[Direction]] = {}
        self.since: dict[int, float] = {}
        self.moves: list[float] = []
        self.now = 0.0
        self.last = 0

    # what happens

    def arrive(self, port: str = HOST, *, address: int = 0, rate: int = 0, **words: Any) -> Claim:
        """A new pair, with traffic of `rate` octets a second."""
        claim = Claim(self._number(), self.ports[port], ADDRESSES[address], **words)
        claim.rate = Rate(float(rate), self.now)
        return self._admit(claim)

    def rekey(self, old: Claim) -> Claim:
        """A successor, which is as long in the adapter as the pair that it replaces."""
        since = self.since.get(old.sa) if old.placed else None
        claim = self._admit(Claim(self._number(), old.port, old.address, old.wanted, predecessor=old))
        if since is not None and claim.placed:
            self.since[claim.sa] = since
        return claim

    def leave(self, claim: Claim) -> None:
        self._apply(self.policy.release(claim, self.now))
        del self.claims[claim.sa]
        self.held.pop(claim.sa, None)

    def refuse(self, claim: Claim, because: Reason = Reason.REFUSED) -> list[Decision]:
        return self._apply(self.policy.release(claim, self.now, because))

    def later(self, seconds: float = 0.0) -> list[Decision]:
        """Time passes, and the policy looks at what is there."""
        self.now += seconds
        return self._apply(self.policy.rebalance(self.now))

    def steady(self, seconds: int, rates: dict[Claim, int]) -> list[Decision]:
        """Seconds in which pairs have steady traffic, octets in each."""
        found = []
        for _ in range(seconds):
            for claim, rate in rates.items():
                claim.carried(rate, self.now, offloaded=bool(claim.placed))
            found += self.later(1.0)
        return found

    def _number(self) -> int:
        self.last += 1
        return self.last

    def _admit(self, claim: Claim) -> Claim:
        self.claims[claim.sa] = claim
        self._apply(self.policy.admit(claim, self.now))
        return claim

    # what the adapter sees

    def _apply(self, decisions: Iterable[Decision]) -> list[Decision]:
        decisions = list(decisions)
        for one in decisions:
            assert one.directions
            held = self.held.setdefault(one.sa, set())
            if one.outcome is Outcome.PLACED:
                assert not held.intersection(one.directions), "placed twice"
                self.since[one.sa] = self.since.get(one.sa, self.now) if held else self.now
                held.update(one.directions)
            elif one.outcome is Outcome.EVICTED:
                assert set(one.directions) == held, "pairs leave together"
                assert one.reason is not None
                held.clear()
                self._evicted(one)
            else:
                assert one.reason is not None
            self._fits()
        return decisions

    def _fits(self) -> None:
        for pool, slots in enumerate(self.capabilities.pools):
            assert self.count(pool) <= slots
        inbound = {self.claims[sa].address for sa, held in self.held.items() if IN in held}
        assert len(inbound) <= self.capabilities.rx_addresses

    def _evicted(self, one: Decision) -> None:
        """A displacement among contestants keeps the rules of calm, and reserves of others."""
        victim = self.claims[one.sa]
        other = self.claims[one.other] if one.other is not None else None
        if other is None or other.predecessor is victim:
            return
        assert one.other_score is not None
        outbid = one.other_score >= 2 * one.score and one.other_score > 0
        assert outbid or (other.port.exclusive and not victim.port.exclusive)
        assert self.now - self.since[one.sa] >= RESIDENT
        if other.port is not victim.port:
            for pool in range(len(self.capabilities.pools)):
                if any(self.capabilities.pool(direction) == pool for direction in one.directions):
                    share = victim.port.share(pool, len(self.capabilities.pools))
                    assert self.count(pool, victim.port.name) >= share, "a reserve was broken"
        self.moves.append(self.now)
        assert sum(self.now - at < 1.0 for at in self.moves) <= MOVES

    def count(self, pool: int | None = None, port: str | None = None) -> int:
        return sum(
            (pool is None or self.capabilities.pool(direction) == pool)
            and (port is None or self.claims[sa].port.name == port)
            for sa, held in self.held.items()
            for direction in held
        )

    def check(self) -> None:
        """What has to hold between any two events."""
        table = self.policy.table
        assert {sa: held for sa, held in self.held.items() if held} == {
            one.sa: one.placed for one in self.claims.values() if one.placed
        }
        assert {one.sa for one in self.policy.placed} == {sa for sa, held in self.held.items() if held}
        assert table.used == self.count() == sum(port.used for port in self.ports)
        for port in self.ports:
            assert port.used == self.count(port=port.name)
            if isinstance(self.policy, Ceiling):
                assert port.used <= self.ports.limit(port)
        if isinstance(self.policy, Weighted):
            self._check_reserves()

    def _check_reserves(self) -> None:
        """A reserve is of use if its slots are free the moment they are wanted."""
        pools = self.capabilities.pools
        for pool, slots in enumerate(pools):
            missing = (port.share(pool, len(pools)) - self.count(pool, port.name) for port in self.ports)
            assert slots - self.count(pool) >= sum(max(one, 0) for one in missing)


# Whatever comes ---------------------------------------------------------------------------------------------

PORT = st.sampled_from([HOST, "vm1", "vm2", "vm3"])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.integers(0, 20),
        "reserve": st.integers(0, 8),
        "weight": st.integers(0, 100),
        "trusted": st.booleans(),
        "exclusive": st.booleans(),
    },
)
WHICH = st.integers(0, 40)
EVENT = st.one_of(
    st.tuples(st.just("arrive"), PORT, st.integers(0, 5), st.sampled_from([0, 500, 5_000, 1_000_000])),
    st.tuples(st.just("arrive"), PORT, st.integers(0, 5), st.sampled_from([0, 500, 5_000, 1_000_000])),
    st.tuples(st.just("carry"), WHICH, st.sampled_from([100, 10_000, 1_000_000])),
    st.tuples(st.just("rekey"), WHICH),
    st.tuples(st.just("leave"), WHICH),
    st.tuples(st.just("refuse"), WHICH),
    st.tuples(st.just("bar"), WHICH, st.sampled_from([Reason.LINK, Reason.AGEING]), st.booleans()),
    st.tuples(st.just("change"), PORT, SETTINGS),
    st.tuples(st.just("switch"), st.booleans()),
    st.tuples(st.just("later"), st.sampled_from([0.05, 1.0, 3.0, 11.0])),
)


def happen(switch: Switch, event: tuple[Any, ...]) -> None:
    kind, *words = event
    one = None
    if switch.claims and isinstance(words[0], int):
        one = list(switch.claims.values())[words[0] % len(switch.claims)]
    if kind == "arrive":
        switch.arrive(words[0], address=words[1], rate=words[2])
    elif kind == "later":
        switch.later(words[0])
    elif kind == "switch":
        switch.ports.enabled = words[0]
        switch.later()
    elif kind == "change":
        try:
            switch.ports.change(words[0], **words[1])
        except PortError:
            return
        switch.later()
    elif one is None:
        return
    elif kind == "carry":
        one.carried(words[1], switch.now, offloaded=bool(one.placed))
    elif kind == "bar":
        one.barred = dict.fromkeys(BOTH, words[1]) if words[2] else {}
        switch.later()
    else:
        {"rekey": switch.rekey, "leave": switch.leave, "refuse": switch.refuse}[kind](one)


@pytest.mark.parametrize("policy", [FirstCome, Ceiling, Weighted])
@pytest.mark.parametrize("capabilities", [SHARED, SPLIT], ids=["one pool", "two pools"])
@settings(max_examples=15)
@given(events=st.lists(EVENT, min_size=40, max_size=160))
def test_promises_hold_whatever_comes(
    policy: type[FirstCome], capabilities: Capabilities, events: list[tuple[Any, ...]]
) -> None:
    """A limit that is passed or a reserve that is not there is another tenant's loss; an entry too many is an
    SA that the adapter refuses, or overwrites."""
    switch = Switch(policy, capabilities)
    switch.ports.attach("vm1", limit=6, reserve=4)
    switch.ports.attach("vm2", limit=5, weight=50)
    switch.ports.attach("vm3", exclusive=True)
    for event in events:
        happen(switch, event)
        switch.check()
    for claim in list(switch.claims.values()):
        switch.leave(claim)
    switch.check()
    assert switch.policy.table.used == switch.policy.table.addresses == 0
    assert not switch.policy.busiest_waiting(1, switch.now)


# Free slots -------------------------------------------------------------------------------------------------


def full(switch: Switch, port: str = HOST, **words: Any) -> list[Claim]:
    """As many pairs as get slots."""
    claims = [switch.arrive(port, **words) for _ in range(16)]
    return [one for one in claims if one.placed]


def why(switch: Switch, claim: Claim, direction: Direction = IN) -> str | None:
    reason = switch.policy.why(claim, direction, switch.now)
    return reason.value if reason else None


@pytest.mark.parametrize(("policy", "placed"), [(FirstCome, 8), (Ceiling, 8), (Weighted, 7)])
def test_free_slots_are_given_at_once_but_for_those_of_successors(
    policy: type[FirstCome], placed: int
) -> None:
    """16 slots are 8 pairs; without two that are kept, a rekey in a full table would fall to software."""
    switch = Switch(policy)
    claims = full(switch)
    assert [one.placed for one in claims] == [BOTH] * placed
    successor = switch.rekey(claims[0])
    assert successor.placed == (BOTH if policy is Weighted else set())
    assert claims[0].placed == BOTH


def test_one_direction_alone_is_placed() -> None:
    """As a virtual function of an 82599 has it; an odd limit is used up, too."""
    switch = Switch()
    barred = switch.arrive(barred={OUT: Reason.TRUST})
    asked = switch.arrive(wanted=frozenset({OUT}))
    switch.ports.attach("vm1", limit=1)
    limited = switch.arrive("vm1")
    assert (barred.placed, asked.placed, limited.placed) == ({IN}, {OUT}, {IN})
    assert (why(switch, barred, OUT), why(switch, limited, OUT)) == ("trust", "port_limit")
    assert {port.name: dict(port.refused) for port in switch.ports} == {
        HOST: {Reason.TRUST: 1},
        "vm1": {Reason.PORT_LIMIT: 1},
    }


def test_addresses_run_out_before_slots() -> None:
    """The 82599 has 128 of them for 1024 SAs; the outbound direction does not need one, and one in use is
    free for all and until the last has left."""
    switch = Switch(capabilities=SPLIT)
    first = [switch.arrive(address=n, rate=5000) for n in range(3)]
    late = switch.arrive(address=3, rate=5000)
    assert (late.placed, why(switch, late)) == ({OUT}, "addresses_full")
    second = switch.arrive(address=0)
    assert IN in second.placed
    switch.leave(first[0])
    switch.later()
    assert late.placed == {OUT}
    switch.leave(second)
    switch.later()
    assert late.placed == BOTH


def test_a_refusal_is_tried_again_later_and_later() -> None:
    """An adapter that says no must not be asked again for every packet, nor never again."""
    switch = Switch()
    claim = switch.arrive(rate=5000)
    waits = []
    for _ in range(9):
        (evicted,) = switch.refuse(claim)
        assert (evicted.reason, why(switch, claim)) == (Reason.REFUSED, "refused")
        start = switch.now
        while not claim.placed:
            switch.later(0.5)
        waits.append(switch.now - start)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert claim.port.refused[Reason.REFUSED] == 2 * 9


def test_after_an_outage_slots_are_filled_at_a_limited_rate() -> None:
    """A link that comes back must not make hundreds of adds at once; those with most traffic come first."""
    switch = Switch(capabilities=PROFILES["82599"])
    switch.ports.change(HOST, limit=2048)
    claims = [switch.arrive(rate=n) for n in range(300)]
    for claim in claims:
        claim.barred = dict.fromkeys(BOTH, Reason.LINK)
    assert len(switch.later()) == 300
    for claim in claims:
        claim.barred = {}
    assert len(switch.later()) == 100
    assert [one.placed for one in claims] == [set()] * 200 + [BOTH] * 100
    assert len(switch.later(0.9)) == 0
    assert len(switch.later(0.1)) == 100


# Limits and reserves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Ceiling, Weighted])
def test_a_lowered_limit_evicts_what_it_must(policy: type[FirstCome]) -> None:
    """Live effect of `set-port`, and nothing more than asked for: by traffic, or those that came last."""
    switch = Switch(policy)
    switch.ports.attach("vm1")
    claims = full(switch, "vm1")[:6]
    for n, claim in enumerate(claims):
        claim.rate = Rate(1e6 / (n + 1), switch.now)
    switch.ports.change("vm1", limit=6)
    evicted = switch.later()
    assert all(one.reason is Reason.PORT_LIMIT for one in evicted)
    assert [one.placed for one in claims] == [BOTH] * 3 + [set()] * 3
    assert why(switch, claims[3]) == "port_limit"
    switch.ports.change("vm1", limit=0)
    switch.later()
    assert (switch.count(), why(switch, claims[0])) == (0, "off")


def test_a_detached_port_and_a_switch_that_is_off_have_nothing() -> None:
    """A guest that migrates away leaves its slots to others."""
    switch = Switch()
    switch.ports.attach("vm1")
    moved, stays = switch.arrive("vm1"), switch.arrive()
    switch.ports.detach("vm1")
    switch.later()
    assert (moved.placed, stays.placed) == (set(), BOTH)
    switch.ports.enabled = False
    switch.later()
    assert stays.placed == set()
    switch.ports.enabled = True
    switch.later()
    assert (moved.placed, stays.placed) == (set(), BOTH)


def test_a_reserve_is_not_given_to_others_and_is_enforced_when_raised() -> None:
    """A port that was promised six slots gets them, however late it comes, and however busy the others."""
    switch = Switch()
    switch.ports.attach("vm1", reserve=6)
    others = full(switch, rate=1_000_000)
    assert len(others) == 4  # 16 less 6 and 2
    assert [switch.arrive("vm1").placed for _ in range(3)] == [BOTH] * 3
    switch.ports.change("vm1", reserve=10)
    evicted = switch.later()
    assert [one.reason for one in evicted if one.outcome is Outcome.EVICTED] == [Reason.SLOTS_FULL]
    assert [switch.arrive("vm1").placed for _ in range(2)] == [BOTH] * 2


# A full table -----------------------------------------------------------------------------------------------


def test_the_busy_displace_the_idle_and_the_decision_tells() -> None:
    """An operator asks why a guest lost its slot; the answer is the other's number and both scores."""
    switch = Switch()
    placed = full(switch)
    busy = switch.arrive()
    assert why(switch, busy) == "cold"
    busy.carried(1_000_000, switch.now, offloaded=False)
    assert why(switch, busy) == "slots_full"
    assert switch.later(9.9) == []  # nobody has been there for long enough
    busy.carried(1_000_000, switch.now, offloaded=False)
    evicted, first, second = switch.later(0.2)
    assert (evicted.sa, evicted.reason, evicted.other) == (placed[0].sa, Reason.SLOTS_FULL, busy.sa)
    assert (first.sa, first.other, first.directions) == (busy.sa, placed[0].sa, (IN,))
    assert (second.sa, second.directions) == (busy.sa, (OUT,))
    assert evicted.score == first.other_score == 0
    assert evicted.other_score == first.score == pytest.approx(busy.score(switch.now))


def test_twice_the_score_is_needed() -> None:
    """Two pairs of nearly equal traffic would take turns, and each turn costs a drain."""
    switch = Switch()
    switch.ports.attach("vm1", weight=50)
    rates = dict.fromkeys(full(switch), 10_000)
    challenger = switch.arrive("vm1")
    assert not switch.steady(60, rates | {challenger: 38_000})  # half weight
    assert switch.steady(60, rates | {challenger: 42_000})
    assert challenger.placed == BOTH


def test_no_more_than_ten_moves_a_second() -> None:
    """Fifty pairs that wake up together get their slots over five seconds."""
    switch = Switch(capabilities=PROFILES["82576"])
    while len(switch.policy.placed) < 120:
        switch.arrive()
    busy = [switch.arrive() for _ in range(50)]
    switch.later(20)
    moved = []
    for _ in range(20):
        for claim in busy:
            claim.carried(250_000, switch.now, offloaded=bool(claim.placed))
        moved.append(sum(one.outcome is Outcome.EVICTED for one in switch.later(0.25)))
    assert moved == [10, 0, 0, 0] * 5


def test_a_port_at_its_limit_makes_room_itself() -> None:
    """Its busy pairs must neither wait for ever nor take slots of others."""
    switch = Switch()
    switch.ports.attach("vm1", limit=4)
    mine = [switch.arrive("vm1") for _ in range(3)]
    others = full(switch)
    switch.steady(15, {mine[2]: 1_000_000})
    assert [len(one.placed) for one in mine] == [0, 2, 2]
    assert all(one.placed for one in others)
    assert why(switch, mine[0]) == "cold"


def test_ports_above_their_fair_share_lose_first_and_nobody_below_its_reserve() -> None:
    """The quieter pairs of a port that has little are not the first to go."""
    switch = Switch()
    for name, reserve in (("vm1", 0), ("vm2", 2), ("vm3", 0), ("vm4", 0)):
        switch.ports.attach(name, reserve=reserve)
    promised, poor = switch.arrive("vm2"), switch.arrive("vm4")
    rates = dict.fromkeys(full(switch, "vm1"), 10_000)
    switch.steady(20, rates)
    challenger = switch.arrive("vm3")
    decisions = switch.steady(1, rates | {challenger: 1_000_000})
    assert {one.port for one in decisions if one.outcome is Outcome.EVICTED} == {"vm1"}
    crowd = [switch.arrive("vm3") for _ in range(8)]
    switch.steady(60, rates | dict.fromkeys([challenger, *crowd], 1_000_000))
    assert switch.count(port="vm1") == 0
    assert (promised.placed, poor.placed) == (BOTH, set())  # both idle, one within its reserve


def test_slots_kept_for_successors_are_not_won_in_a_displacement() -> None:
    """While some of them are in use, a pair may have what its victim leaves and no more, but all of that."""
    switch = Switch()
    rates = dict.fromkeys([switch.arrive() for _ in range(4)], 1_000_000)
    pair, one_way = switch.arrive(), switch.arrive(wanted=frozenset({OUT}))
    other = switch.arrive()
    rekeyed = switch.arrive(wanted=frozenset({IN}))
    rates[rekeyed] = 1_000_000
    switch.steady(12, rates)
    rates[switch.rekey(rekeyed)] = 1_000_000  # one of the two kept slots
    assert switch.policy.table.free(0) == 1
    evicted = []
    for _ in range(3):
        rates[switch.arrive()] = 1_500_000
        decisions = switch.steady(1, rates)
        evicted.append([one.sa for one in decisions if one.outcome is Outcome.EVICTED])
    assert evicted == [[pair.sa], [one_way.sa, other.sa], []]
    assert switch.policy.table.free(0) == 2


def test_a_victim_of_the_other_table_is_of_no_use() -> None:
    """Evicting an outbound SA makes no room for an inbound one."""
    switch = Switch(capabilities=SPLIT)
    rates = dict.fromkeys([switch.arrive() for _ in range(3)], 1_000_000)
    rates |= dict.fromkeys([switch.arrive(wanted=frozenset({IN})) for _ in range(3)], 1_000_000)
    idle = switch.arrive(wanted=frozenset({OUT}))
    switch.steady(12, rates)
    challenger = switch.arrive(wanted=frozenset({IN}))
    switch.steady(1, rates | {challenger: 1_500_000})
    assert (idle.placed, challenger.placed) == ({OUT}, set())


@pytest.mark.parametrize(("sharing", "placed"), [(0, True), (1, False)])
def test_an_address_is_won_only_with_its_last_sa(sharing: int, placed: bool) -> None:
    """Evicting one of two SAs of an address would cost it its slot and help nobody."""
    switch = Switch(capabilities=SPLIT)
    inbound = frozenset({IN})
    switch.arrive(address=0, wanted=inbound)
    for _ in range(sharing):
        switch.arrive(address=0, wanted=inbound)
    rates = {switch.arrive(address=n, wanted=inbound): 1_000_000 for n in (1, 2)}
    switch.steady(12, rates)
    challenger = switch.arrive(address=3, wanted=inbound)
    decisions = switch.steady(1, rates | {challenger: 1_500_000})
    assert (bool(challenger.placed), bool(decisions)) == (placed, placed)


def test_exclusive_ports_take_from_others_once_they_have_traffic() -> None:
    """The last resort: the important guest is served, whatever it costs others; they do not take turns."""
    switch = Switch()
    switch.ports.attach("vm1", exclusive=True)
    rates = dict.fromkeys(full(switch), 1_000_000)
    idle, quiet = switch.arrive("vm1"), switch.arrive("vm1")
    switch.steady(60, rates | {quiet: 5_000})
    assert (idle.placed, quiet.placed) == (set(), BOTH)
    moves = len(switch.moves)
    switch.steady(60, rates | {quiet: 5_000})
    assert len(switch.moves) == moves == 1
    switch.steady(60, rates)  # now it is idle, and keeps nobody out
    assert quiet.placed == set()


# Rekey ------------------------------------------------------------------------------------------------------


def test_a_successor_inherits_the_score_and_the_slot() -> None:
    """A busy connection would fall to software at each rekey, for as long as its traffic takes to be seen."""
    switch = Switch()
    claims = full(switch)
    switch.steady(5, {claims[0]: 1_000_000})
    first, second = switch.rekey(claims[0]), switch.rekey(claims[1])
    assert (first.placed, claims[0].placed) == (BOTH, BOTH)  # both have slots
    assert first.score(switch.now) == claims[0].score(switch.now) > 0
    assert (second.placed, claims[1].placed) == (BOTH, set())  # the kept slots are in use: it takes over
    assert why(switch, claims[1]) == "ageing"
    switch.leave(claims[0])
    assert switch.rekey(claims[2]).placed == claims[2].placed == BOTH


def test_a_successor_is_no_newcomer() -> None:
    """Who rekeys every few seconds would never have to make room."""
    switch = Switch()
    claims = full(switch)
    rates = dict.fromkeys(claims[1:], 1_000_000)
    switch.steady(12, rates)
    successor = switch.rekey(claims[0])
    switch.leave(claims[0])
    challenger = switch.arrive()
    switch.steady(1, rates | {challenger: 1_000_000})
    assert (successor.placed, challenger.placed) == (set(), BOTH)


def test_at_the_limit_a_successor_takes_the_slots_of_its_predecessor() -> None:
    """A limit holds at every moment; the connection keeps its slots all the same."""
    switch = Switch()
    switch.ports.attach("vm1", limit=2)
    old = switch.arrive("vm1")
    new = switch.rekey(old)
    assert (old.placed, new.placed) == (set(), BOTH)
    switch.leave(new)  # the rekey failed: the old pair is the one again
    switch.later()
    assert old.placed == BOTH


def test_a_pair_has_one_successor() -> None:
    """Guests say what replaces what: one that names a busy pair again and again would get all the slots that
    are kept for rekeys of everybody, and the pair's score for each."""
    switch = Switch()
    busy = switch.arrive(rate=100_000)
    for _ in range(20):
        switch.arrive(rate=50_000)
    first = switch.rekey(busy)
    assert first.placed
    free = switch.policy.table.free(0)
    second = switch.rekey(busy)
    assert not second.placed
    assert switch.policy.table.free(0) == free
    assert second.score(switch.now) == 0
    switch.leave(first)  # it came to nothing
    assert switch.rekey(busy).placed


def test_predecessors_that_stay_give_their_slots_back() -> None:
    """A guest that rekeys and never deletes would take the kept slots for good."""
    switch = Switch()
    claims = full(switch)
    third = switch.rekey(second := switch.rekey(claims[0]))
    assert (claims[0].placed, second.placed, third.placed) == (set(), BOTH, BOTH)
    assert switch.later(RESIDENT - 1) == []
    (evicted,) = switch.later(1)
    assert (evicted.sa, evicted.reason) == (second.sa, Reason.AGEING)


def test_what_is_about_to_be_replaced_stays_and_is_not_placed() -> None:
    """Between soft expiry and successor there is traffic; a new slot for it would be for seconds."""
    switch = Switch()
    placed = switch.arrive()
    placed.barred = dict.fromkeys(BOTH, Reason.AGEING)
    late = switch.arrive(barred=dict.fromkeys(BOTH, Reason.AGEING))
    switch.later()
    assert (placed.placed, late.placed) == (BOTH, set())


# Rates and counters -----------------------------------------------------------------------------------------


def test_rate_is_that_of_steady_traffic_and_halves_in_five_seconds() -> None:
    """A score in octets per second is what operators compare with what they measure."""
    rate = Rate()
    for n in range(1000):
        rate.add(1000, n / 10)
    assert rate.at(99.9) == pytest.approx(10_000, rel=0.02)
    assert rate.at(104.9) == pytest.approx(rate.at(99.9) / 2)
    assert rate.at(0) == rate.value  # a clock that goes back makes nothing grow


def test_octets_are_counted_by_plane() -> None:
    """The port's offload byte count is what an operator is told of the gain."""
    switch = Switch()
    claim = switch.arrive()
    claim.carried(100, 0.0, offloaded=True)
    claim.carried(7, 0.0, offloaded=False)
    assert (claim.port.octets_offloaded, claim.port.octets_software) == (100, 7)


def test_the_busiest_in_software_are_found() -> None:
    """`ikctl offload` shows who would gain most."""
    switch = Switch()
    full(switch)
    waiting = [switch.arrive(rate=n) for n in (5000, 9000, 7000)]
    assert switch.policy.busiest_waiting(2, switch.now) == [waiting[1], waiting[2]]
