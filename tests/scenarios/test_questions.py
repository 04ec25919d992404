"""Questions to the world outside (SADB, authentication) that are answered late, with an error, or too late.

If one of these fails, a slow disk or key server lets messages overtake each other, or a peer holds a Child SA
that we do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.link import BOTH, Host, Link, agree, connected, losing, story, tunnel_hosts

from ikd.auth import Authenticate, Declined
from ikd.outputs import AllocateSpi, Install
from sadb.backend import Unavailable

ORDERS = pytest.mark.parametrize("first", BOTH)
Begin = Callable[[Link, Host], None]
BEGIN: dict[str, Begin] = {
    "create child": lambda link, one: link.up("net1", one),
    "rekey child": Link.rekey_child,
}


def unavailable(kind: type[object]) -> Callable[[Any], Any]:
    """Answers questions of a kind with an error."""
    return lambda question: Unavailable("out of order") if isinstance(question, kind) else None


@ORDERS
@pytest.mark.parametrize("where", BOTH)
@pytest.mark.parametrize("kind", [AllocateSpi, Install])
@pytest.mark.parametrize("begin", BEGIN)
def test_the_sadb_refuses(begin: str, kind: type[object], where: str, first: str) -> None:
    """In either role: what was is kept, the peer holds nothing more than we do, and later it works."""
    link = connected(nets=2)
    old = link.left.pairs[0]
    link.named(where).asked = unavailable(kind)
    BEGIN[begin](link, link.named(first))
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == [old]
    assert link.named(first).failures
    link.named(where).asked = None
    BEGIN[begin](link, link.named(first))
    link.run(30)
    agree(link, ikes=1, pairs=1 + (begin == "create child"))


@ORDERS
@pytest.mark.parametrize("where", BOTH)
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_the_sadb_refuses_while_messages_are_lost(where: str, lost: int, first: str) -> None:
    """The deletion of what the peer has made in vain may be lost too."""
    link = connected(nets=2)
    link.named(where).asked = unavailable(Install)
    link.fate = losing(lost)
    link.up("net1", first)
    link.run(30)
    agree(link, ikes=1, pairs=1)


@ORDERS
@pytest.mark.parametrize("slow", [("left",), ("right",), BOTH])
@pytest.mark.parametrize("seconds", [0.005, 0.3, 3.0])
def test_slow_answers(first: str, slow: tuple[str, ...], seconds: float) -> None:
    """While a question is open a repetition of its request is ignored, and everything ends well."""
    link = Link(*tunnel_hosts(nets=2))
    for name in slow:
        link.named(name).slow = seconds
    link.up("net", first)
    link.run(60)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        link.rekey_child(one)
        link.run(40)
        agree(link, ikes=1, pairs=1)
    link.up("net1", link.other(link.named(first)))
    link.run(40)
    agree(link, ikes=1, pairs=2)


@pytest.mark.long
@ORDERS
@pytest.mark.parametrize("begin", [*BEGIN.values(), Link.rekey], ids=[*BEGIN, "rekey IKE"])
@pytest.mark.parametrize("end", [Link.close, Link.close_child, Link.rekey, Link.rekey_child],
                         ids=["delete IKE", "delete child", "rekey IKE", "rekey child"])  # fmt: skip
def test_the_world_moves_on_while_a_question_is_open(begin: Begin, end: Begin, first: str) -> None:
    """The IKE SA or the old pair goes before the answer comes: nothing is installed for nobody."""
    for delay in (0.0, 0.12, 0.2, 0.23, 0.3, 0.33):
        for side in BOTH:
            link = connected(nets=2)
            link.left.slow = link.right.slow = 0.1
            begin(link, link.named(first))
            link.run(delay)
            end(link, link.named(side))
            link.run(200)
            agree(link)


@ORDERS
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.12, 0.25])
def test_stopped_during_authentication(first: str, delay: float) -> None:
    """Shutdown while AUTH is being checked: no SA comes up afterwards here, and in the end none there."""
    link = Link(*tunnel_hosts())
    link.left.slow = link.right.slow = 0.1
    link.up("net", first)
    link.run(delay + 0.011)
    host = link.named(first)
    link.perform(host, host.endpoint.shutdown(link.now))
    link.run(200)
    agree(link, ikes=0, pairs=0)


def test_authentication_that_takes_too_long() -> None:
    """A responder whose key server does not answer is given up by both, and a late answer changes nothing."""
    link = Link(*tunnel_hosts())
    link.right.slow = 100.0
    link.up("net")
    link.run(300)
    agree(link, ikes=0, pairs=0)
    assert link.left.failures


@pytest.mark.parametrize("error", [Declined("no"), Unavailable("no"), RuntimeError("a bug")])
@pytest.mark.parametrize("where", BOTH)
def test_authentication_fails_to_run(error: Exception, where: str) -> None:
    """Declined, not available, or broken: no IKE SA, and the peer is not left with one."""
    link = Link(*tunnel_hosts())
    link.named(where).asked = lambda question: error if isinstance(question, Authenticate) else None
    link.up("net")
    link.run(100)
    assert not link.left.ikes, story(link)
    assert not link.right.ikes, story(link)
    assert not link.left.pairs
    assert not link.right.pairs
    assert link.named(where).database.counts().larval == 0


def test_answers_to_nothing() -> None:
    """Tickets that were never given out, or were answered before, are ignored."""
    link = connected()
    for ticket in (0, 1, 2, 99, -1):
        assert link.left.endpoint.answer(ticket, RuntimeError("late"), link.now) == []
    agree(link, ikes=1, pairs=1)
