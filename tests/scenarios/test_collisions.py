"""Both sides change the same SAs at once (RFC 7296 sections 2.8.1, 2.8.2 and 2.25), with every order of
arrival and with messages lost on the way.

If one of these fails, the two sides end with different SAs, keep one for ever that the other has not got, or
send traffic for a while into an SA that the other side does not receive on.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
from support.link import Flight, Host, Link, agree, connected, losing, mirrored, story

from ikd.settings import IkeSettings

Command = Callable[[Link, Host], None]
COMMANDS: dict[str, Command] = {
    "rekey child": Link.rekey_child,
    "rekey IKE": Link.rekey,
    "delete child": Link.close_child,
    "delete IKE": Link.close,
    "create child": lambda link, host: link.up("net1", host),
}
REPLACING = ("rekey child", "rekey IKE", "create child")
AFTER = (0.0, 0.01, 0.02, 0.03)  # seconds by which the right host is later
LOSSES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,))


def collide(left: str, right: str, after: float, lost: tuple[int, ...], delay: float) -> Link:
    """Let both sides begin, and long enough time pass for repetitions, and for liveness to find what is left
    over."""
    link = connected(nets=2)
    if left in REPLACING and right in REPLACING:
        link.watch()
    lose = losing(*lost)

    def fate(flight: Flight) -> None:
        lose(flight)
        flight.delay = delay if flight.sender is link.right else 0.01

    link.fate = fate
    COMMANDS[left](link, link.left)
    link.run(after)
    COMMANDS[right](link, link.right)
    link.run(150)
    return link


@pytest.mark.long
@pytest.mark.parametrize("right", COMMANDS)
@pytest.mark.parametrize("left", COMMANDS)
def test_both_sides_agree_after_any_collision(left: str, right: str) -> None:
    """Else an SA is left over at one end, or an end waits for ever. What only replaces or adds keeps one IKE
    SA and the pair, and at no moment is traffic lost."""
    for n, (after, lost) in enumerate(product(AFTER, LOSSES)):
        link = collide(left, right, after, lost, (0.01, 0.03)[n % 2])
        agree(link)
        assert not link.gaps, (link.gaps, story(link))
        if left in REPLACING and right in REPLACING:
            more = (left == "create child") + (right == "create child")
            assert len(link.left.ikes) == 1, story(link)
            assert 1 + bool(more) <= len(link.left.pairs) <= 1 + more, story(link)


@pytest.mark.long
@pytest.mark.parametrize("second", COMMANDS)
@pytest.mark.parametrize("first", COMMANDS)
def test_both_sides_agree_after_two_commands_on_one_side(first: str, second: str) -> None:
    """A side's own exchanges may overlap too, and their answers be lost: what travels in an IKE SA that is
    being replaced must not go down with it at one end only."""
    for n, (after, lost) in enumerate(product((0.0, 0.005, 0.015, 0.02), ((), (0,), (1,), (2,), (1, 2)))):
        link = connected(nets=2)
        link.fate = losing(*lost)
        COMMANDS[first](link, link.left)
        link.run(after)
        COMMANDS[second](link, link.left)
        if n % 2:
            link.rekey(link.right)
        link.run(150)
        agree(link)
        if first in REPLACING and second in REPLACING:
            assert 1 <= len(link.left.ikes) <= 2, story(link)  # a new Child SA does not wait for a successor
            assert link.left.pairs, story(link)


@pytest.mark.parametrize("order", [1, -1])
def test_child_rekeyed_by_both(order: int) -> None:
    """Section 2.8.1: both make a pair, and the one with the lowest of the four nonces goes."""
    link = connected()
    left, right = (link.left, link.right)[::order]
    old = left.pairs[0]
    # left: CREATE_CHILD_SA {N(REKEY_SA), SA, Ni, TSi, TSr}  -->  <--  the same from right
    link.rekey_child(left)
    link.rekey_child(right)
    link.run(0.015)
    # both have answered: three pairs each, and none is used before the other side is known to have it
    assert len(left.pairs) == len(right.pairs) == 2
    link.run(0.01)
    assert len(left.pairs) == 3
    # <--  INFORMATIONAL {D(old)} of the winner,  INFORMATIONAL {D(its own)} of the loser  -->
    link.run(3)  # the old pair goes on receiving for two seconds
    agree(link, ikes=1, pairs=1)
    assert old not in left.pairs


@pytest.mark.parametrize("order", [1, -1])
def test_ike_sa_rekeyed_by_both(order: int) -> None:
    """Section 2.8.2: one of the two new IKE SAs goes, deleted by whoever made it, and the pair moves to the
    other."""
    link = connected()
    left, right = (link.left, link.right)[::order]
    pair, former = left.pairs[0], left.ikes[0]
    # left: CREATE_CHILD_SA {SA, Ni, KEi}  -->  <--  the same from right
    link.rekey(left)
    link.rekey(right)
    link.run(1)
    agree(link, ikes=1, pairs=1)
    assert left.pairs == [pair]
    assert pair.owner == left.ikes[0].number != former.number


def test_a_new_ike_sa_is_not_used_before_the_collision_is_decided() -> None:
    """It may be the one that goes, and would take a Child SA made on it along, unseen in the SADB."""
    link = connected(nets=2)
    link.fate = lambda flight: setattr(flight, "delay", 0.01 if flight.sender is link.left else 0.2)
    link.rekey(link.left)
    link.rekey(link.right)
    link.run(0.1)  # right has answered left's request, its own is on its way
    assert len(link.right.ikes) == 2
    link.up("net1", link.right)
    link.run(150)
    agree(link)
    assert mirrored(link.left, link.right)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("command", [Link.rekey_child, Link.close_child])
@pytest.mark.parametrize("begin", [Link.rekey_child, COMMANDS["create child"]], ids=["rekeyed", "created"])
def test_the_peer_changes_a_child_whose_answer_is_lost(begin: Command, command: Command, order: int) -> None:
    """Only the responder knows the new pair then: its initiator must neither say that it does not exist,
    after which the two differ for good, nor install it after the other side has deleted it."""
    link = connected(nets=2)
    left, right = (link.left, link.right)[::order]
    link.fate = losing(1)
    # HDR, SK {SA, Ni, TSi, TSr}  -->  lost: HDR, SK {SA, Nr, TSi, TSr}
    begin(link, left)
    link.run(0.1)
    # <--  HDR, SK {N(REKEY_SA), ...} or HDR, SK {D}, for the pair that the initiator has not heard of
    command(link, right)
    link.run(60)
    agree(link, ikes=1)


@pytest.mark.parametrize("lost", range(4))
def test_the_loser_of_a_collision_does_not_stay(lost: int) -> None:
    """An IKE SA whose maker never heard the answer is deleted by nobody: it must end by itself, without the
    help of liveness."""
    for after in (0.0, 0.005):
        link = connected(settings=IkeSettings(liveness=0))
        link.fate = losing(lost)
        link.rekey(link.left)
        link.run(after)
        link.rekey(link.right)
        link.run(150)
        agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("what", [Link.rekey_child, Link.rekey], ids=["child", "IKE"])
def test_replacing_the_same_thing_again_and_again(what: Command) -> None:
    """Every pair and IKE SA that was replaced must be gone, not only the first."""
    link = connected()
    link.watch()
    for n in range(8):
        hosts = (link.left, link.right)[:: 1 if n % 2 else -1]
        for host in hosts[: 1 + n % 3 // 2]:
            what(link, host)
        link.run(5)
        agree(link, ikes=1, pairs=1)
    assert not link.gaps
