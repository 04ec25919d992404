"""sadb.database: the life of pairs from reservation to death, by time, by notice and by removal."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.sas import LOCAL, PEER, counting, pair, selectors

from sadb.backend import Unavailable
from sadb.database import JITTER, LARVAL_SECONDS, Counts, Database
from sadb.memory import MemoryBackend
from sadb.sa import Expire, Lifetime, SaPair, State
from sadb.selector import TCP, Fields, Selector, TrafficSelector

HOUR = Lifetime(soft_seconds=3000.0, hard_seconds=3600.0)
PACKET = Fields(LOCAL, PEER, TCP, 50000, 5432)


class World:
    """A database with a backend that remembers; `random` gives SPIs 0x1000, 0x1001, … and no jitter."""

    def __init__(self, limit: int = 100) -> None:
        self.backend = MemoryBackend()
        self.database = Database(self.backend, counting(), limit)

    def up(self, now: float = 0.0, replaces: SaPair | None = None, **more: Any) -> SaPair:
        """A pair reserved and installed."""
        one = pair(self.database.allocate_spi(now), **more)
        self.database.install(one, now, replaces)
        return one


@pytest.fixture
def world() -> World:
    return World()


def states(one: SaPair) -> set[State]:
    return {one.inbound.state, one.outbound.state}


# Reservation ---------------------------------------------------------------------------------------------


def test_spis_are_those_the_random_source_yields_but_for_reserved_and_used_ones() -> None:
    """0 to 255 are not for use (RFC 4303 section 2.1); an SPI given twice would mix up two peers' packets."""
    numbers = iter([0, 1, 255, 256, 256, 256, 0xFFFFFFFF, 256, 0x12345678])
    database = Database(MemoryBackend(), lambda size: next(numbers).to_bytes(size, "big"))
    assert [database.allocate_spi(0.0) for _ in range(3)] == [256, 0xFFFFFFFF, 0x12345678]


def test_spi_of_a_pair_is_not_given_out_again() -> None:
    """A new SA under the SPI of a living one would take its packets away."""
    numbers = iter([0x1000, 0, 0x1000, 0x2000])
    database = Database(MemoryBackend(), lambda size: next(numbers).to_bytes(size, "big"))
    database.install(pair(database.allocate_spi(0.0)), 0.0)
    assert database.allocate_spi(0.0) == 0x2000


def test_random_source_that_only_repeats_is_the_operators_concern() -> None:
    """It must not loop for ever."""
    database = Database(MemoryBackend(), lambda size: b"\0" * (size - 1) + b"\7")
    with pytest.raises(Unavailable, match="no unused SPI"):
        database.allocate_spi(0.0)
    assert database.counts().refused == 1


def test_limit_counts_reservations_and_pairs_together() -> None:
    """Strangers may reserve SPIs by negotiating: the bound on memory must hold for both."""
    world = World(limit=3)
    world.up()
    spi = world.database.allocate_spi(0.0)
    world.database.allocate_spi(0.0)
    with pytest.raises(Unavailable, match="limit of 3"):
        world.database.allocate_spi(0.0)
    world.database.release(spi)
    world.database.release(spi)
    world.database.allocate_spi(0.0)
    assert world.database.counts() == Counts(larval=2, mature=1, dying=0, limit=3, refused=1, unremoved=0)


def test_reservation_ends_by_itself(world: World) -> None:
    """A negotiation that stops half way must not hold its SPI."""
    spi = world.database.allocate_spi(0.0)
    world.database.allocate_spi(10.0)
    assert world.database.deadline() == LARVAL_SECONDS
    assert world.database.tick(LARVAL_SECONDS) == []
    assert world.database.counts().larval == 1
    with pytest.raises(Unavailable, match="not reserved"):
        world.database.install(pair(spi), LARVAL_SECONDS)
    assert world.backend.pairs == ()
    assert world.database.deadline() == LARVAL_SECONDS + 10.0


def test_spi_that_nobody_reserved_is_not_installed(world: World) -> None:
    """It could be one that was just given to another negotiation."""
    with pytest.raises(Unavailable, match="not reserved"):
        world.database.install(pair(0x5000), 0.0)


# Installation --------------------------------------------------------------------------------------------


def test_pair_is_found_by_spi_owner_and_traffic(world: World) -> None:
    """One that is missing from an index is dead to those who ask there."""
    one = world.up(5.0, owner=7)
    assert world.database.by_spi(one.inbound.spi) is one
    assert world.database.by_spi(one.outbound.spi) is None, "the peer's SPI is no SPI of ours"
    assert world.database.by_owner(7) == (one,)
    assert world.database.outbound("db", PACKET) is one
    assert world.database.outbound("hr", PACKET) is None
    assert list(world.database.pairs()) == [one]
    assert world.backend.pairs == (one,)
    assert (one.created, states(one), len(world.database)) == (5.0, {State.MATURE}, 1)


def test_installing_again_changes_nothing(world: World) -> None:
    """Every method may be repeated: a second copy in an index would outlive the pair."""
    one = world.up(lifetime=HOUR)
    world.database.install(one, 100.0)
    assert one.created == 0.0
    assert world.database.by_owner(1) == (one,)
    world.database.remove(one)
    assert world.database.by_owner(1) == ()
    assert world.database.outbound("db", PACKET) is None


def test_backend_that_refuses_leaves_the_reservation(world: World) -> None:
    """The negotiation may try again, and nothing of the pair may be found meanwhile."""
    spi = world.database.allocate_spi(0.0)
    one = pair(spi, lifetime=HOUR)
    world.backend.refuse = "no device"
    with pytest.raises(Unavailable, match="no device"):
        world.database.install(one, 1.0)
    assert world.database.by_spi(spi) is world.database.outbound("db", PACKET) is None
    assert (one.inbound.lifetime, one.created, states(one)) == (HOUR, 0.0, {State.LARVAL})
    assert world.database.counts().larval == 1
    world.backend.refuse = None
    world.database.install(one, 2.0)
    assert (one.created, states(one)) == (2.0, {State.MATURE})


def test_jitter_makes_soft_limits_smaller_and_nothing_else() -> None:
    """Two ends that replace at the same moment collide every hour; a later soft limit might miss the hard."""
    life = Lifetime(3000.0, 3600.0, 1_000_000, 2_000_000, 1000, 2000)
    for octets in (b"\0\0", b"\x80\0", b"\xff\xff"):
        spi, jitter = (0x1000).to_bytes(4, "big"), octets
        database = Database(MemoryBackend(), lambda size, a=spi, b=jitter: a if size == 4 else b)
        one = pair(database.allocate_spi(0.0), lifetime=life)
        database.install(one, 0.0)
        share = 1 - JITTER * int.from_bytes(octets, "big") / 0x10000
        for sa in (one.inbound, one.outbound):
            assert sa.lifetime == replace(
                life,
                soft_seconds=3000.0 * share,
                soft_octets=int(1_000_000 * share),
                soft_packets=int(1000 * share),
            )
        assert 0.9 < share <= 1.0


def test_lifetimes_of_two_directions_stay_apart(world: World) -> None:
    """Each direction has its own limits when they were given apart."""
    one = pair(world.database.allocate_spi(0.0), lifetime=HOUR)
    one.outbound.lifetime = Lifetime(hard_seconds=10.0)
    world.database.install(one, 0.0)
    assert (one.inbound.lifetime, one.outbound.lifetime) == (HOUR, Lifetime(hard_seconds=10.0))
    assert [(e.hard, e.reason) for e in world.database.tick(10.0)] == [(True, "time")]


# Dying and death -----------------------------------------------------------------------------------------


def test_life_by_time(world: World) -> None:
    """Soft: replace it. Hard: it is gone. A limit that passes unseen keeps a key in use too long."""
    one = world.up(100.0, lifetime=HOUR, owner=9)
    spi, database = one.inbound.spi, world.database
    assert database.deadline() == 3100.0
    assert database.tick(3099.9) == []
    assert database.tick(3100.0) == [Expire(spi, True, False, "time", 9)]
    assert states(one) == {State.DYING}
    assert database.outbound("db", PACKET) is one, "it is good until its hard limit"
    assert database.tick(3100.0) == []
    assert database.deadline() == 3700.0
    assert database.tick(3700.0) == [Expire(spi, True, True, "time", 9)]
    assert states(one) == {State.DEAD}
    assert database.by_spi(spi) is database.deadline() is database.outbound("db", PACKET) is None
    assert world.backend.pairs == ()


def test_late_tick_reports_each_end_once(world: World) -> None:
    """A daemon that was suspended wakes behind both limits: the pair is dead, replacing it is no use."""
    one = world.up(lifetime=HOUR)
    other = world.up(10.0, lifetime=HOUR)
    expired = world.database.tick(1e9)
    assert [(e.spi, e.hard) for e in expired] == [(one.inbound.spi, True), (other.inbound.spi, True)]
    assert world.database.tick(1e9) == []


def test_pair_without_limits_has_no_deadline(world: World) -> None:
    """A timer for never would be a timer for now."""
    world.up()
    assert world.database.deadline() is None
    assert world.database.tick(1e12) == []


def test_replaced_pair_dies_quietly(world: World) -> None:
    """It receives until it is removed, and its soft limit must not start another replacement."""
    former = world.up(lifetime=HOUR)
    assert world.database.tick(2000.0) == []
    successor = world.up(2000.0, replaces=former, lifetime=HOUR)
    assert (states(former), states(successor)) == ({State.DYING}, {State.MATURE})
    assert world.database.outbound("db", PACKET) is successor
    assert world.database.by_spi(former.inbound.spi) is former
    assert [(e.spi, e.hard) for e in world.database.tick(3600.0)] == [(former.inbound.spi, True)]
    assert states(successor) == {State.MATURE}


def test_replacing_what_is_gone_is_no_error(world: World) -> None:
    """The peer may delete the old pair before we install the new one."""
    former = world.up()
    world.database.remove(former)
    world.up(replaces=former)
    assert world.database.counts() == replace(world.database.counts(), mature=1, dying=0)
    assert states(former) == {State.DEAD}


def test_traffic_falls_back_to_a_dying_pair(world: World) -> None:
    """When the new pair goes first, traffic must not stop while the old one still lives."""
    former = world.up()
    successor = world.up(replaces=former)
    world.database.remove(successor)
    assert world.database.outbound("db", PACKET) is former
    world.database.remove(former)
    assert world.database.outbound("db", PACKET) is None
    world.database.remove(former)


@pytest.mark.parametrize("reason", ["octets", "packets", "sequence"])
def test_notices_of_the_backend(world: World, reason: str) -> None:
    """The backend counts and may say so again and again: one soft and one hard expiry come of it."""
    one = world.up(owner=4, lifetime=HOUR)
    spi = one.inbound.spi
    soft = Expire(spi, True, False, reason)
    assert world.database.noticed(soft) == replace(soft, owner=4)
    assert world.database.noticed(soft) is None
    assert world.database.tick(3000.0) == [], "the soft limit by time is no news any more"
    hard = Expire(one.outbound.spi, False, True, reason, 4)
    assert world.database.noticed(hard) == hard
    assert world.database.noticed(hard) is None
    assert world.database.by_spi(spi) is None
    assert world.backend.pairs == ()


def test_notice_about_an_outbound_spi_concerns_the_named_owner_only(world: World) -> None:
    """Outbound SPIs are the peers' choice: two peers may have chosen the same, one of them on purpose."""
    one = world.up(owner=4, outbound_spi=0x777)
    other = world.up(owner=5, outbound_spi=0x777)
    found = world.database.noticed(Expire(0x777, False, False, "octets", 5))
    assert found is not None
    assert (states(one), states(other)) == ({State.MATURE}, {State.DYING})
    assert world.database.noticed(Expire(0x777, False, True, "octets", 6)) is None, "owner 6 has gone"
    assert world.database.by_owner(4) == (one,)
    assert world.database.noticed(Expire(0x777, False, True, "octets")) is not None, "0 stands for any"
    assert len(world.database) == 1


def test_unknown_notices_are_no_news(world: World) -> None:
    """A backend may report a pair that was removed a moment ago."""
    world.up()
    assert world.database.noticed(Expire(0x9999, True, True, "octets")) is None
    assert world.database.noticed(Expire(0x9999, False, True, "octets")) is None
    assert len(world.database) == 1


class Stubborn(MemoryBackend):
    """A backend that cannot take pairs out."""

    def remove(self, pair: SaPair) -> None:
        raise Unavailable("stuck")


def test_backend_that_cannot_remove_does_not_keep_the_dead_alive() -> None:
    """Past its hard limit a pair is gone here whatever the backend says; the operator sees a count."""
    database = Database(Stubborn(), counting())
    one = pair(database.allocate_spi(0.0), lifetime=HOUR)
    other = pair(database.allocate_spi(0.0))
    database.install(one, 0.0)
    database.install(other, 0.0)
    assert [e.hard for e in database.tick(3600.0)] == [True]
    assert database.counts().unremoved == 1
    with pytest.raises(Unavailable, match="stuck"):
        database.remove(other)
    assert len(database) == 0


def test_successor_inherits_all_pairs(world: World) -> None:
    """After an IKE SA was rekeyed, deleting the old one must not take the children along."""
    first, second = world.up(owner=1), world.up(owner=1)
    third = world.up(owner=2)
    world.database.inherit(1, 2)
    assert world.database.by_owner(1) == ()
    assert world.database.by_owner(2) == (third, first, second)
    assert {one.owner for one in (first, second, third)} == {2}
    world.database.inherit(2, 2)
    world.database.inherit(99, 3)
    assert len(world.database.by_owner(2)) == 3
    world.database.remove(first)
    assert world.database.by_owner(2) == (third, second)


def test_deadlines_of_the_removed_do_not_pile_up(world: World) -> None:
    """A peer that makes and deletes pairs all day must not fill memory with their deadlines."""
    world.up(lifetime=HOUR)
    for _ in range(2000):
        world.database.remove(world.up(lifetime=HOUR))
    assert len(world.database._heap) < 100


# Everything together -------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """Any order of calls leaves the indexes, the counts and the backend agreeing with a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.backend = MemoryBackend()
        self.database = Database(self.backend, counting(), limit=8)
        self.reserved: dict[int, float] = {}
        self.alive: list[SaPair] = []
        self.dead: list[SaPair] = []
        self.numbers = itertools.count(0x100)

    def forget(self, expired: list[Expire]) -> None:
        gone = {e.spi for e in expired if e.hard}
        for one in [one for one in self.alive if one.inbound.spi in gone]:
            self.alive.remove(one)
            self.dead.append(one)
        self.reserved = {spi: end for spi, end in self.reserved.items() if end > self.now}

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        before = {id(one) for one in self.alive}
        expired = self.database.tick(self.now)
        assert len({(e.spi, e.hard) for e in expired}) == len(expired)
        self.forget(expired)
        assert {id(one) for one in self.alive} <= before
        for one in self.alive:
            hard = one.inbound.lifetime.hard_seconds
            assert hard is None or one.created + hard > self.now

    @rule()
    def reserve(self) -> None:
        self.reserved = {spi: end for spi, end in self.reserved.items() if end > self.now}
        try:
            spi = self.database.allocate_spi(self.now)
        except Unavailable:
            assert len(self.alive) + len(self.reserved) == 8
        else:
            assert spi not in self.reserved
            self.reserved[spi] = self.now + LARVAL_SECONDS

    @precondition(lambda self: self.reserved)
    @rule(
        data=st.data(),
        owner=st.integers(1, 3),
        soft=st.sampled_from([None, 20.0, 50.0]),
        hard=st.sampled_from([None, 40.0, 90.0]),
    )
    def install(self, data: st.DataObject, owner: int, soft: float | None, hard: float | None) -> None:
        spi = data.draw(st.sampled_from(sorted(self.reserved)))
        replaces = data.draw(st.sampled_from([None, *self.alive, *self.dead[-1:]]))
        one = pair(spi, owner=owner, outbound_spi=next(self.numbers), lifetime=Lifetime(soft, hard))
        self.backend.refuse = data.draw(st.sampled_from([None, None, None, "no"]))
        if self.backend.refuse:
            with pytest.raises(Unavailable):
                self.database.install(one, self.now, replaces)
            self.backend.refuse = None
            return
        self.database.install(one, self.now, replaces)
        del self.reserved[spi]
        self.alive.append(one)

    @precondition(lambda self: self.alive or self.dead)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([*self.alive, *self.dead[-2:]]))
        self.database.remove(one)
        if one in self.alive:
            self.alive.remove(one)
            self.dead.append(one)

    @precondition(lambda self: self.alive or self.dead)
    @rule(data=st.data(), inbound=st.booleans(), hard=st.booleans())
    def notice(self, data: st.DataObject, inbound: bool, hard: bool) -> None:
        one = data.draw(st.sampled_from([*self.alive, *self.dead[-2:]]))
        mature = one.inbound.state is State.MATURE
        spi = (one.inbound if inbound else one.outbound).spi
        found = self.database.noticed(Expire(spi, inbound, hard, "octets", one.owner))
        assert (found is not None) == (one in self.alive and (hard or mature))
        if found is not None and hard:
            self.forget([replace(found, spi=one.inbound.spi)])

    @rule(former=st.integers(1, 3), owner=st.integers(1, 3))
    def inherit(self, former: int, owner: int) -> None:
        self.database.inherit(former, owner)

    @invariant()
    def everything_agrees(self) -> None:
        database = self.database
        assert list(database.pairs()) == self.alive
        assert set(self.backend.pairs) == set(self.alive)
        assert {one for owner in range(1, 4) for one in database.by_owner(owner)} == set(self.alive)
        for one in self.alive:
            assert database.by_spi(one.inbound.spi) is one
            assert one in database.by_owner(one.owner)
            assert states(one) in ({State.MATURE}, {State.DYING})
        assert all(states(one) == {State.DEAD} for one in self.dead)
        counts = database.counts()
        dying = sum(one.inbound.state is State.DYING for one in self.alive)
        assert (counts.mature, counts.dying) == (len(self.alive) - dying, dying)
        found = database.outbound("db", PACKET)
        assert (found in self.alive) if self.alive else found is None
        if counts.mature:
            assert found is not None
            assert found.inbound.state is State.MATURE
        deadline = database.deadline()
        limits = [
            one.created + one.inbound.lifetime.hard_seconds
            for one in self.alive
            if one.inbound.lifetime.hard_seconds is not None
        ]
        assert deadline is None or not limits or deadline <= min(limits)
        assert deadline is not None or not limits


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLives = Lives.TestCase


# Size ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_hundred_thousand_pairs_are_held_and_found() -> None:
    """The figure of the specification, with the default limit: all are found, one more is refused."""
    database = Database(MemoryBackend(), os.urandom)
    local = selectors(str(LOCAL))
    count = 100_000
    some = {}
    for number in range(count):
        peer = ip_address(0x0A000000 + number)
        selector = Selector(local, (TrafficSelector.of(peer),))
        one = pair(database.allocate_spi(0.0), owner=number + 1, selector=selector, lifetime=HOUR)
        database.install(one, 0.0)
        if number % 1000 == 0:
            some[peer] = one
    assert len(database) == count
    with pytest.raises(Unavailable, match="limit of 100000"):
        database.allocate_spi(0.0)
    for peer, one in some.items():
        assert database.outbound("db", PACKET._replace(destination=peer)) is one
        assert database.by_spi(one.inbound.spi) is one
        database.remove(one)
        assert database.outbound("db", PACKET._replace(destination=peer)) is None
    assert len(database) == count - len(some)
    assert len(database.tick(3600.0)) == count - len(some)
    assert len(database) == 0


# Pairs of a former run -----------------------------------------------------------------------------------


def adopted(world: World, state: State, now: float = 1000.0) -> tuple[Database, SaPair]:
    """A pair of a database that is gone, in another one with the same backend."""
    old = world.up(now, lifetime=HOUR)
    old.inbound.state = old.outbound.state = state
    old.owner = 0
    database = Database(world.backend, counting())
    database.adopt(old)
    return database, old


def test_adopted_pair_goes_on_as_it_was(world: World) -> None:
    """A restart must not make keys last longer than was agreed, nor install them once more."""
    database, old = adopted(world, State.MATURE)
    assert world.backend.pairs == (old,)
    assert database.outbound(old.rule, PACKET) is old
    assert old.created == 1000.0
    (soft,) = database.tick(4000.0)
    assert (soft.hard, database.counts().dying) == (False, 1)
    (hard,) = database.tick(4600.0)
    assert (hard.hard, len(database)) == (True, 0)
    assert world.backend.pairs == ()


def test_adopted_pair_may_be_dying_already(world: World) -> None:
    """It is counted once, and not reported a second time."""
    database, old = adopted(world, State.DYING)
    assert database.counts().dying == 1
    assert database.tick(4000.0) == []
    database.remove(old)
    assert database.counts().dying == 0


def test_adopted_pair_is_given_to_who_can_speak_of_it(world: World) -> None:
    """Its new owner must find it, and its backend hear of it."""
    database, old = adopted(world, State.MATURE)
    heard: list[SaPair] = []
    old.watch = heard.append
    database.give(old, 5)
    database.give(old, 5)
    assert (database.by_owner(0), database.by_owner(5)) == ((), (old,))
    assert heard == [old]
    database.remove(old)
    database.give(old, 6)
    assert database.by_owner(6) == ()


def test_spi_of_an_adopted_pair_is_in_use(world: World) -> None:
    """Two pairs under one SPI would take each other's packets."""
    database, old = adopted(world, State.MATURE)
    with pytest.raises(Unavailable):
        database.adopt(old)
    with pytest.raises(Unavailable):
        database.allocate_spi(1000.0, old.inbound.spi)
