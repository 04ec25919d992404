"""MOBIKE, RFC 4555: either host moves, NATs come and go, and SAs stay what they are."""

from __future__ import annotations

import pytest
from support.link import LEFT, RIGHT, Flight, agree, story
from support.roaming import LEFT2, LEFT3, OUTSIDE, RIGHT2, Roaming, ends, meet, roaming

from ikd.events import HostMoved, PeerMoved
from ikd.ikev2.numbers import Exchange
from ikd.settings import IkeSettings

BOTH = pytest.mark.parametrize("side", ["left", "right"])
INFORMATIONAL = Exchange.INFORMATIONAL
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
    assert not link.right.endpoint._by_address
    assert not link.left.endpoint._by_address


def is_request(flight: Flight) -> bool:
    """Whether it is an INFORMATIONAL request."""
    return flight.header.exchange == INFORMATIONAL and not flight.header.flags & 0x20
