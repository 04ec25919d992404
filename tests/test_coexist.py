"""Which keying module speaks to a peer (ikd.coexist): the order of the rule, what is remembered, and when the
next one is tried.

If one of these fails, a peer that speaks only one protocol is never reached, or one that has refused us is
asked for a weaker one."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from support.link import (
    BOTH,
    Flight,
    Host,
    Link,
    agree,
    host,
    policy,
    psk,
    story,
    tunnel_hosts,
    tunnel_rules,
)

from ikd.coexist import MOST_VERDICTS, PATIENCE, Verdicts
from ikd.events import KeyingFellBack, NegotiationFailed, NegotiationStarted
from ikd.settings import IkeSettings
from policy.rules import Rule
from sadb.sa import Acquire

ORDERS = pytest.mark.parametrize("first", BOTH)
SETS = """
[crypto.both]
main = ["x25519 aes256gcm sha384", "p256 aes128 sha256"]
quick = ["aes128gcm", "aes128 sha256"]
"""
TWO = 'keying = ["ikev2", "ikev1"]\ncrypto = "both"\n'
OLD_FIRST = 'keying = ["ikev1", "ikev2"]\ncrypto = "both"\n'
ONE = {"ikev1": 'keying = ["ikev1"]\ncrypto = "both"\n', "ikev2": 'keying = ["ikev2"]\ncrypto = "both"\n'}
PEER = ip_address("192.0.2.2")


def hosts(left_rule: str, right_rule: str, **how: Any) -> tuple[Host, Host]:
    """Two hosts whose rules have these lines."""
    return tunnel_hosts(left_rule=left_rule, right_rule=right_rule, sets=SETS, **how)


def spoken(link: Link) -> list[str]:
    """The modules the left host has tried, in order."""
    return [event.keying for event in link.left.of(NegotiationStarted) if event.initiator]


def rule(lines: str) -> Rule:
    """A rule with these lines."""
    found = policy(tunnel_rules("left", extra=lines) + SETS).rule("net")
    assert found is not None
    return found


# What is remembered -----------------------------------------------------------------------------------------


def test_the_order_of_the_rule() -> None:
    """Without a verdict; modules that are not there are left out."""
    verdicts = Verdicts()
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER, 0.0) == ("ikev2", "ikev1")
    assert verdicts.order(rule(TWO), ("ikev1",), PEER, 0.0) == ("ikev1",)
    assert verdicts.order(rule(OLD_FIRST), ("ikev1", "ikev2"), PEER, 0.0) == ("ikev1", "ikev2")
    assert verdicts.order(rule(ONE["ikev2"]), ("ikev1", "ikev2"), PEER, 0.0) == ("ikev2",)


def test_a_verdict_goes_first_for_its_time() -> None:
    """For this peer only, only among what the rule allows, and until it is too old or everything has
    changed."""
    verdicts = Verdicts()
    verdicts.spoke(PEER, "ikev1", 100.0, 50.0)
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER, 149.0) == ("ikev1", "ikev2")
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER, 151.0) == ("ikev2", "ikev1")
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER + 1, 120.0) == ("ikev2", "ikev1")
    assert verdicts.order(rule(ONE["ikev2"]), ("ikev1", "ikev2"), PEER, 120.0) == ("ikev2",)
    verdicts.forget()
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER, 120.0) == ("ikev2", "ikev1")


def test_verdicts_are_bounded() -> None:
    """Peers come and go; the newest are known."""
    verdicts = Verdicts()
    for n in range(MOST_VERDICTS + 100):
        verdicts.spoke(PEER + n, "ikev1", 0.0, 1000.0)
    assert len(verdicts._found) == MOST_VERDICTS
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER, 1.0)[0] == "ikev2"
    assert verdicts.order(rule(TWO), ("ikev1", "ikev2"), PEER + MOST_VERDICTS, 1.0)[0] == "ikev1"


# Falling back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows", ["ikev1", "ikev2"])
@pytest.mark.parametrize("order", [TWO, OLD_FIRST], ids=["new first", "old first"])
def test_a_peer_that_speaks_one_of_them(order: str, knows: str) -> None:
    """It is reached, at once or after a short patience; the log says why, and `ikctl why` has no failure."""
    link = Link(*hosts(order, ONE[knows]))
    link.up("net")
    link.run(PATIENCE + 10)
    agree(link, ikes=1, pairs=1)
    assert link.left.ikes[0].main.keying == knows
    wanted = ["ikev2", "ikev1"] if order == TWO else ["ikev1", "ikev2"]
    assert spoken(link) == wanted[: wanted.index(knows) + 1]
    fell = link.left.of(KeyingFellBack)
    assert len(fell) == wanted.index(knows)
    if fell:
        assert (fell[0].module, fell[0].instead) == (wanted[0], wanted[1])
        assert wanted[0] in fell[0].text
    assert not link.left.failures


@pytest.mark.parametrize("knows", ["ikev1", "ikev2"])
def test_a_peer_that_says_nothing_to_the_other(knows: str) -> None:
    """As one that has never heard of it: silence for the time of our patience, and then the next."""
    link = Link(*hosts(TWO if knows == "ikev1" else OLD_FIRST, ONE[knows]))
    foreign = 2 if knows == "ikev1" else 1

    def fate(flight: Flight) -> None:
        flight.lost = flight.header.major == foreign

    link.fate = fate
    link.up("net")
    link.run(PATIENCE - 0.5)
    assert not link.left.pairs
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.left.ikes[0].main.keying == knows
    assert not link.left.failures


def test_the_verdict_saves_the_wait() -> None:
    """The next time the peer's protocol goes first, for as long as the settings say."""
    settings = IkeSettings(verdict_seconds=600)
    link = Link(*hosts(TWO, ONE["ikev1"], settings=settings))
    link.up("net")
    link.run(10)
    assert spoken(link) == ["ikev2", "ikev1"]
    link.close(link.left)
    link.run(300)
    link.up("net")
    link.run(3)
    agree(link, ikes=1, pairs=1)
    assert spoken(link) == ["ikev2", "ikev1", "ikev1"]
    link.close(link.left)
    link.run(700)
    link.up("net")
    link.run(10)
    assert spoken(link) == ["ikev2", "ikev1", "ikev1", "ikev2", "ikev1"]


def test_a_reload_forgets() -> None:
    """The other host may have been set up anew as well."""
    link = Link(*hosts(TWO, ONE["ikev1"]))
    link.up("net")
    link.run(10)
    link.close(link.left)
    link.run(1)
    link.reload(link.left, tunnel_rules("left", extra=TWO) + SETS)
    link.up("net")
    link.run(10)
    assert spoken(link)[2:] == ["ikev2", "ikev1"]


def test_a_peer_that_has_answered_is_not_asked_for_less() -> None:
    """A wrong key in IKEv2 is an answer: to try IKEv1 then would let anyone in the middle choose it."""
    left = psk("left.example", "right.example", b"one secret that is long enough")
    link = Link(*hosts(TWO, TWO, left=left))
    link.up("net")
    link.run(120)
    assert spoken(link) == ["ikev2"]
    assert not link.left.of(KeyingFellBack)
    assert link.left.failures
    agree(link, ikes=0, pairs=0)


def test_nobody_is_there() -> None:
    """Every module is tried, and the last one's failure is told, once."""
    link = Link(*hosts(TWO, TWO))
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net")
    link.run(200)
    assert spoken(link) == ["ikev2", "ikev1"]
    assert len(link.left.failures) == 1
    agree(link, ikes=0, pairs=0)


def test_a_slow_peer_that_speaks_both() -> None:
    """It answers after our patience: there is one main-mode SA in the end, whichever."""
    link = Link(*hosts(TWO, TWO))
    link.fate = lambda flight: setattr(flight, "delay", 2.5)
    link.up("net")
    link.run(120)
    link.fate = lambda flight: None
    link.run(60)
    assert len(link.left.ikes) == 1, story(link)
    assert link.left.pairs
    agree(link)


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_losses_do_not_make_us_fall_back(lost: int) -> None:
    """A peer that has answered has time."""
    link = Link(*hosts(TWO, TWO))
    link.fate = lambda flight: setattr(flight, "lost", flight.number == lost)
    link.up("net")
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert link.left.ikes[0].main.keying == "ikev2"


@ORDERS
def test_both_sides_answer_in_either(first: str) -> None:
    """A host with both answers whoever begins in one, and holds main-mode SAs of both side by side."""
    other = "right" if first == "left" else "left"
    for module in ("ikev1", "ikev2"):
        made = hosts(TWO, TWO)
        alone = hosts(ONE[module], ONE[module])[BOTH.index(first)]
        pair = (alone, made[1]) if first == "left" else (made[0], alone)
        link = Link(*pair)
        link.up("net", first)
        link.run(5)
        agree(link, ikes=1, pairs=1)
        assert link.named(other).ikes[0].main.keying == module


def test_two_peers_in_two_protocols() -> None:
    """What one peer speaks says nothing of another."""
    rules = tunnel_rules("right", peer="any", extra=TWO) + SETS
    right = host("right", PEER, rules, psk("right.example", "*.example"))
    links = []
    for n, module in enumerate(("ikev1", "ikev2")):
        own = PEER + 10 + n
        text = tunnel_rules("left", own=own, extra=ONE[module]) + SETS
        left = host("left", own, text, psk(f"host{n}.example", "right.example"), seed=n)
        link = Link(left, right)
        link.now += n * 10
        link.up("net")
        link.run(5)
        links.append(link)
    assert [one.main.keying for one in right.ikes] == ["ikev1", "ikev2"]
    assert len(right.pairs) == 2


def test_packets_do_not_begin_it_twice() -> None:
    """While one protocol is being given up and the next begun, and shortly after both failed."""
    link = Link(*hosts(TWO, TWO))
    link.fate = lambda flight: setattr(flight, "lost", True)
    acquire = Acquire("net", ip_address("10.1.0.1"), ip_address("10.2.0.1"), 17, 1, 2)
    for _ in range(30):
        link.up("net", acquire=acquire)
        link.run(1)
    assert spoken(link) == ["ikev2", "ikev1"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_whoever_ends_it_does_not_want_another(when: str) -> None:
    """Closed by hand or by a reload in the middle: nothing is begun instead."""
    link = Link(*hosts(TWO, TWO))
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net")
    link.run(2 if when == "before" else 6)
    count = len(spoken(link))
    link.close(link.left)
    link.run(60)
    assert len(spoken(link)) == count
    assert not link.left.ikes
    for failure in link.left.of(NegotiationFailed):
        assert failure.reason
