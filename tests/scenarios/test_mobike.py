"""MOBIKE, RFC 4555: either host moves, NATs come and go, and SAs stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import authip, phases
from support.link import ANY, LEFT, RIGHT, Flight, agree, policy, story, tunnel_hosts
from support.roaming import LEFT2, LEFT3, OUTSIDE, RIGHT2, Roaming, ends, meet, open_ended, roaming

from ikd.events import ChildClosed, HostMoved, PeerMoved, WayFound, WayLost
from ikd.settings import IkeSettings
from policy.engine import Policy, diff
from sadb.address import parse
from sadb.sa import Mode

BOTH = pytest.mark.parametrize("side", ["left", "right"])
OTHER = {"left": (LEFT, LEFT2), "right": (RIGHT, RIGHT2)}


def spis(link: Roaming) -> list[tuple[int, int]]:
    """The SPIs of both sides' pairs."""
    return [(one.inbound.spi, one.outbound.spi) for host in (link.left, link.right) for one in host.pairs]


def quiet(link: Roaming) -> None:
    """One IKE SA and one pair, the same as before the move, that packets find their way on."""
    agree(link, ikes=1, pairs=1)
    assert meet(link), story(link)
    (ours,), (theirs,) = link.left.ikes, link.right.ikes
    if not link.nats:
        assert (ours.path.local, ours.path.peer) == (theirs.path.peer, theirs.path.local), story(link)
    assert ours.session.mobility.trusted.path == ours.path
    assert theirs.session.mobility.trusted.path == theirs.path


@BOTH
def test_a_host_gets_another_address(side: str) -> None:
    """The one in use is gone in the same moment: nothing is negotiated, and nothing is lost but what was on
    its way."""
    link = roaming()
    before, keys = spis(link), len(link.left.keys)
    old, new = OTHER[side]
    link.change(link.named(side), old, new)
    link.run(3)
    quiet(link)
    assert (spis(link), len(link.left.keys)) == (before, keys)
    mover, other = link.named(side), link.other(link.named(side))
    assert ends(mover.pairs[0])[0] == new
    assert ends(other.pairs[0])[1] == new
    assert [one.new.local.address for one in mover.of(HostMoved)] == [new]
    assert [one.new.peer.address for one in other.of(PeerMoved)] == [new]


@BOTH
def test_an_address_comes_later_than_the_other_goes(side: str) -> None:
    """Without any address nothing can be sent; the SAs wait, however long it takes, and go on when there is
    one."""
    link = roaming(settings=IkeSettings(liveness=0))
    before = spis(link)
    old, new = OTHER[side]
    link.lose(link.named(side), old)
    link.run(500)
    link.gain(link.named(side), new)
    link.run(5)
    quiet(link)
    assert spis(link) == before


def test_a_better_route_is_followed() -> None:
    """A second link that routes prefer: the side that began decides, and goes back when that one is gone."""
    link = roaming()
    link.gain(link.left, LEFT2)
    link.run(3)
    quiet(link)
    assert ends(link.left.pairs[0])[0] == LEFT2
    link.lose(link.left, LEFT2)
    link.run(3)
    quiet(link)
    assert ends(link.right.pairs[0])[1] == LEFT


def test_the_end_that_a_rule_names_is_preferred() -> None:
    """Another address serves only while that one is not there."""
    link = roaming(named=True)
    link.gain(link.left, LEFT2)
    link.run(3)
    assert ends(link.left.pairs[0])[0] == LEFT
    link.lose(link.left, LEFT)
    link.run(3)
    quiet(link)
    assert ends(link.left.pairs[0])[0] == LEFT2
    link.gain(link.left, LEFT, preferred=False)
    link.run(3)
    quiet(link)
    assert ends(link.left.pairs[0])[0] == LEFT


def test_the_side_that_answers_stays_where_it_was_asked() -> None:
    """It does not decide: another address of its own is only told, for the other side to try."""
    link = roaming()
    link.gain(link.right, RIGHT2)
    link.run(3)
    quiet(link)
    assert ends(link.right.pairs[0])[0] == RIGHT
    assert link.left.ikes[0].session.mobility.addresses == (RIGHT2,)
    link.lose(link.right, RIGHT2)
    link.run(3)
    assert link.left.ikes[0].session.mobility.addresses == ()


@BOTH
@pytest.mark.parametrize("lost", range(6))
def test_messages_of_a_move_are_lost(side: str, lost: int) -> None:
    """Any of them."""
    link = roaming()
    before = spis(link)
    first = len(link.flights)
    link.fate = lambda flight: setattr(flight, "lost", flight.number == first + lost)
    link.change(link.named(side), *OTHER[side])
    link.run(30)
    quiet(link)
    assert spis(link) == before


def test_both_move_at_once() -> None:
    """Neither can be reached where the other one looks for it: both have told their second address before."""
    link = roaming()
    link.gain(link.right, RIGHT2, preferred=False)
    link.run(3)
    before = spis(link)
    link.addresses[link.left] = [LEFT3]
    link.addresses[link.right] = [RIGHT2]
    link.tell(link.left)
    link.tell(link.right)
    link.run(40)
    quiet(link)
    assert spis(link) == before


@BOTH
def test_again_before_the_first_move_is_told(side: str) -> None:
    """The request on its way names nothing that is true any more; another one follows."""
    link = roaming()
    before = spis(link)
    old, new = OTHER[side]
    link.change(link.named(side), old, new)
    link.run(0.005)
    link.change(link.named(side), new, LEFT3)
    link.run(10)
    quiet(link)
    assert spis(link) == before
    assert ends(link.named(side).pairs[0])[0] == LEFT3


@BOTH
def test_the_first_path_stops_working(side: str) -> None:
    """Nobody has lost an address, but nothing passes between two of them: the side that began tries the
    others."""
    link = roaming()
    link.gain(link.right, RIGHT2, preferred=False)
    link.run(3)
    before = spis(link)
    link.cut.add(frozenset((LEFT, RIGHT)))
    link.run(90)
    quiet(link)
    assert spis(link) == before
    assert ends(link.left.pairs[0])[:2] == (LEFT, RIGHT2)
    assert link.right.ikes[0].path.local.address == RIGHT2
    if side == "right":
        link.rekey_child(link.right)
        link.run(3)
        quiet(link)


# NAT --------------------------------------------------------------------------------------------------------


def test_a_nat_appears_and_goes() -> None:
    """On the new path there is one: ESP has to go in UDP, and needs not any more when the host is back."""
    link = roaming()
    link.nats[LEFT2] = (OUTSIDE, 20000)
    link.change(link.left, LEFT, LEFT2)
    link.run(5)
    quiet(link)
    assert ends(link.right.pairs[0]) == (RIGHT, OUTSIDE, (4500, 24500))
    assert ends(link.left.pairs[0]) == (LEFT2, RIGHT, (4500, 4500))
    assert link.left.ikes[0].session.nat_local
    link.change(link.left, LEFT2, LEFT)
    link.run(5)
    quiet(link)
    assert ends(link.right.pairs[0]) == (RIGHT, LEFT, None)
    assert ends(link.left.pairs[0]) == (LEFT, RIGHT, None)


def test_a_nat_forgets_its_mapping() -> None:
    """Section 3.8: who is behind it asks how it is seen, and tells when that has changed."""
    link = roaming()
    link.nats[LEFT2] = (OUTSIDE, 20000)
    link.change(link.left, LEFT, LEFT2)
    link.run(40)
    link.nats[LEFT2] = (OUTSIDE, 21000)
    link.run(60)
    quiet(link)
    assert ends(link.right.pairs[0]) == (RIGHT, OUTSIDE, (4500, 25500))


# Beside other exchanges -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("what", ["rekey", "rekey_child"])
@pytest.mark.parametrize("who", ["left", "right"])
@pytest.mark.parametrize("after", [0.0, 0.005, 0.015, 0.025, 0.035])
def test_during_a_rekey(side: str, what: str, who: str, after: float) -> None:
    """Requests under way go on by the new path, and what they make is there, too. When the answer to a Delete
    is lost with the address, the deleted IKE SA takes its time to give up."""
    link = roaming()
    getattr(link, what)(link.named(who))
    link.run(after)
    link.change(link.named(side), *OTHER[side])
    link.run(60)
    quiet(link)


@BOTH
@pytest.mark.parametrize("who", ["left", "right"])
@pytest.mark.parametrize("lost", range(4))
def test_a_rekey_during_the_move(side: str, who: str, lost: int) -> None:
    """What an IKE SA could not tell any more, the next one tells."""
    link = roaming()
    first = len(link.flights)
    link.fate = lambda flight: setattr(flight, "lost", flight.number == first + lost)
    link.change(link.named(side), *OTHER[side])
    link.run(0.001)
    link.rekey(link.named(who))
    link.run(80)
    quiet(link)


@BOTH
def test_to_the_other_family(side: str) -> None:
    """From IPv4 to IPv6, and back."""
    link = roaming()
    six = {"left": parse("2001:db8::1"), "right": parse("2001:db8::2")}
    for one in (link.left, link.right):
        link.gain(one, six[one.name], preferred=False)
        link.run(2)
    before = spis(link)
    old = OTHER[side][0]
    link.lose(link.named(side), old)
    link.run(10)
    quiet(link)
    assert ends(link.left.pairs[0])[:2] == (six["left"], six["right"])
    link.gain(link.named(side), old)
    link.lose(link.right, six["right"])
    link.run(10)
    quiet(link)
    assert ends(link.left.pairs[0])[:2] == (LEFT, RIGHT)
    assert spis(link) == before


@BOTH
def test_who_rekeyed_does_not_decide(side: str) -> None:
    """Section 2.1: the side that began the first IKE SA decides, also after the other one has replaced it."""
    link = roaming()
    link.rekey(link.right)
    link.run(3)
    assert not link.left.ikes[0].initiator
    before = spis(link)
    link.change(link.named(side), *OTHER[side])
    link.run(5)
    quiet(link)
    assert spis(link) == before


def test_every_window_of_one() -> None:
    """A peer that takes one request at a time hears of the move when it has answered the one before."""
    link = roaming(settings=IkeSettings(window=1))
    link.rekey_child(link.left)
    link.change(link.left, LEFT, LEFT2)
    link.run(10)
    quiet(link)


# Rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_rules_know_a_peer_that_has_moved(named: bool) -> None:
    """Both rules name the ends of the tunnel; packets go on finding the IKE SA by them, for another rule as
    well, and whoever answers finds the rule."""
    link = roaming(nets=2, named=named)
    link.change(link.left, LEFT, LEFT2)
    link.run(3)
    link.rekey_child(link.left)
    link.rekey_child(link.right)
    link.run(3)
    link.up("net1", "left")
    link.run(3)
    agree(link, ikes=1, pairs=2)
    assert all(ends(one)[:2] == (RIGHT, LEFT2) for one in link.right.pairs)
    link.close(link.left)
    link.run(3)
    assert not link.right.endpoint._register._by_address
    assert not link.left.endpoint._register._by_address


@pytest.mark.parametrize("there", [True, False])
def test_name_servers_hear_of_the_move(there: bool) -> None:
    """A rule that names its peer gets another address for it: that of an SA which has gone there already, or
    one where it is not."""
    link = roaming()
    (rule,) = link.right.endpoint.policy.rules
    named = Policy((replace(rule, tunnel=replace(rule.tunnel, remote_host="left.example")),))
    link.right.endpoint.env.policy = named
    before = spis(link)
    link.change(link.left, LEFT, LEFT2)
    link.run(3)
    found = named.resolved({"left.example": (LEFT2 if there else LEFT3,)})
    env = link.right.endpoint.env
    changes = diff(named, found)
    assert changes
    outputs = link.right.endpoint.reload(found, env.credentials, env.settings, changes, link.now)
    link.perform(link.right, outputs)
    link.run(3)
    assert spis(link) == (before if there else [])
    if there:
        link.rekey_child(link.left)
        link.run(3)
        quiet(link)


def test_transport_mode_is_replaced() -> None:
    """Its addresses are part of what was negotiated, so that it cannot move: another one takes its place on
    the same IKE SA, which moves as the tunnel does."""
    beside = '[[rule]]\nname = "host"\nremote = {remote}\nsecurity = "require"\nauth = "any"\n'
    link = roaming()
    for one, remote in ((link.left, [str(RIGHT)]), (link.right, [str(LEFT), str(LEFT2)])):
        rule = policy(ANY + beside.format(remote=remote).replace("'", '"')).rules[0]
        one.endpoint.env.policy = Policy((*one.endpoint.policy.rules, rule))
    link.up("host")
    link.run(3)
    agree(link, ikes=1, pairs=2)
    tunnel = link.left.pairs[0]
    link.change(link.left, LEFT, LEFT2)
    link.run(3)
    agree(link, ikes=1, pairs=2)
    moved, made = link.left.pairs
    assert moved is tunnel
    assert made.mode is Mode.TRANSPORT
    assert made.selector.local[0].low == LEFT2
    assert [one.reason for one in link.left.of(ChildClosed)] == ["it cannot move"]


# Who cannot move --------------------------------------------------------------------------------------------

STAYS = {
    "ikev2": (tunnel_hosts, {"settings": IkeSettings(mobike=False, liveness=0)}),
    "ikev1": (phases.hosts, {"settings": IkeSettings(liveness=0)}),
    "authip": (authip.hosts, {"settings": IkeSettings(liveness=0)}),
}
KEYING = pytest.mark.parametrize("keying", STAYS)


def staying(keying: str, **how: Any) -> Roaming:
    """Two hosts that cannot move."""
    made, settings = STAYS[keying]
    return roaming(made, **settings, **how)


@KEYING
def test_without_mobike_it_is_negotiated_anew(keying: str) -> None:
    """At once, and not when the peer's silence has been noticed."""
    link = staying(keying)
    for rule in link.right.endpoint.policy.rules:  # it takes the other from anywhere, but answers only
        anywhere = replace(rule, tunnel=replace(rule.tunnel, remote=None))
        link.right.endpoint.env.policy = Policy((anywhere,))
    before = {one.inbound.spi for one in link.left.pairs}
    link.change(link.left, LEFT, LEFT2)
    link.run(2)
    assert [ends(one)[:2] for one in link.left.pairs] == [(LEFT2, RIGHT)], story(link)
    assert not before & {one.inbound.spi for one in link.left.pairs}
    assert mirrored_newest(link)
    assert not link.left.failures


def mirrored_newest(link: Roaming) -> bool:
    """Whether the newest pairs of both are one."""
    ours, theirs = link.left.pairs[-1], link.right.pairs[-1]
    return (ours.inbound.spi, ours.outbound.spi) == (theirs.outbound.spi, theirs.inbound.spi)


@KEYING
@pytest.mark.parametrize("what", ["route", "address"])
def test_without_a_way_it_waits(keying: str, what: str) -> None:
    """No default route, or not the address that the rule names: the SA stays as it is for as long as that
    lasts, which is told once, and then goes on. What is due meanwhile is repeated until it gets through, and
    not given up after 41 seconds."""
    link = staying(keying, named=True)
    before = spis(link)
    if what == "route":
        link.route(link.left, there=False)
    else:
        link.lose(link.left, LEFT)
    link.rekey_child(link.left)
    link.run(55)
    assert spis(link) == before, story(link)
    assert link.refused
    if what == "route":
        link.route(link.left, there=True)
    else:
        link.gain(link.left, LEFT)
    link.run(10)
    agree(link, pairs=1)
    assert {one.inbound.spi for one in link.left.pairs}.isdisjoint({one for one, _ in before})
    assert [len(link.left.of(kind)) for kind in (WayLost, WayFound)] == [1, 1]
    assert not link.left.failures


def test_with_mobike_it_waits_too() -> None:
    """The same for one that could move, if there were anywhere to go."""
    link = roaming(right_settings=IkeSettings(liveness=0))
    before = spis(link)
    link.route(link.left, there=False)
    link.run(400)
    assert link.refused
    link.route(link.left, there=True)
    link.run(3)
    quiet(link)
    assert spis(link) == before
    assert [len(link.left.of(kind)) for kind in (WayLost, WayFound)] == [1, 1]


def test_a_detour_leads_nowhere() -> None:
    """The way to the peer is gone, and at its other address it does not answer: that proves nothing, and the
    SA is there when the way is."""
    link = roaming(right_settings=IkeSettings(liveness=0))
    link.gain(link.right, RIGHT2, preferred=False)
    link.run(3)
    before = spis(link)
    link.cut.add(frozenset((LEFT, RIGHT2)))
    link.unrouted.add(RIGHT)
    link.tell(link.left)
    link.run(200)
    assert link.left.ikes[0].path.peer.address == RIGHT2
    link.unrouted.clear()
    link.tell(link.left)
    link.run(3)
    quiet(link)
    assert spis(link) == before
    assert ends(link.left.pairs[0])[:2] == (LEFT, RIGHT)


def test_a_peer_that_only_calls_is_waited_for() -> None:
    """Section 3.11: whoever cannot call it gives it five minutes to find a way, and no more."""
    link = roaming()
    (rule,) = link.right.endpoint.policy.rules
    link.right.ikes[0].main.rule = replace(rule, tunnel=replace(rule.tunnel, remote=None))
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(300)
    assert link.right.ikes
    link.run(120)
    assert not link.right.ikes


def test_a_peer_without_mobike_stays_on_port_500_with_us() -> None:
    """Its answer decides; ours to its offer, too."""
    for left, right in ((True, False), (False, True)):
        made = tunnel_hosts(left_settings=IkeSettings(mobike=left), right_settings=IkeSettings(mobike=right))
        link = roaming(lambda made=made: made)
        assert link.left.ikes[0].session.mobility is None
        assert link.right.ikes[0].session.mobility is None
        assert link.left.ikes[0].path.local.port == (4500 if left else 500)


def test_a_negotiation_that_is_not_over_begins_anew() -> None:
    """Its answers would go to an address that is gone."""
    link = Roaming(*tunnel_hosts())
    for one in (link.left, link.right):
        open_ended(one)
    for rule in link.right.endpoint.policy.rules:
        link.right.endpoint.env.policy = Policy((replace(rule, tunnel=replace(rule.tunnel, remote=None)),))
    link.up("net")
    link.run(0.015)
    link.change(link.left, LEFT, LEFT2)
    link.run(3)
    assert [ends(one)[:2] for one in link.left.pairs] == [(LEFT2, RIGHT)], story(link)


# All at once ------------------------------------------------------------------------------------------------

SIDES = st.sampled_from(["left", "right"])
NEW = [parse("198.51.100.128") + n for n in range(100)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), SIDES),
        st.tuples(st.just("gain"), SIDES),
        st.tuples(st.just("rekey"), SIDES),
        st.tuples(st.just("rekey_child"), SIDES),
        st.tuples(st.just("run"), st.sampled_from([0.005, 0.01, 0.02, 0.05, 1.0, 5.0])),
        st.tuples(st.just("lose"), st.integers(1, 3)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_whatever_happens_both_sides_agree(steps: list[tuple[str, Any]]) -> None:
    """In any order and with losses: in the end both have the same SAs, and packets find their way on them. An
    IKE SA may be lost when both hosts have left where the other looks for them, but then for both."""
    link = roaming()
    new = iter(NEW)
    losing = 0

    def fate(flight: Flight) -> None:
        nonlocal losing
        flight.lost = losing > 0
        losing -= flight.lost

    link.fate = fate
    for what, how in steps:
        if what == "run":
            link.run(how)
        elif what == "lose":
            losing = how
        elif what == "change":
            one = link.named(how)
            link.change(one, link.addresses[one][0], next(new))
        elif what == "gain":
            link.gain(link.named(how), next(new))
        else:
            getattr(link, what)(link.named(how))
    losing = 0
    link.run(300)
    agree(link)
    if link.left.pairs:
        assert meet(link), story(link)
