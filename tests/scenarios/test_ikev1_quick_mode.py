"""Quick mode (RFC 2409 section 5.5, RFC 2407 section 4): what SAs come out of it, for which traffic, for how
long, and what becomes of one that fails.

If one of these fails, packets are dropped or go in the clear, or both ends think differently of an SA."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from support.link import (
    Link,
    agree,
    losing,
)
from support.phases import ORDERS, connected, hosts, main_mode, sets

from ikd.events import ChildEstablished
from ikd.ikev1.association import Ikev1Association
from ikd.isakmp.numbers import Exchange
from ikd.outputs import AllocateSpi, Install
from ikd.settings import IkeSettings
from sadb.backend import Unavailable

QUICK = (
    "3des sha1",
    "aes128 sha1",
    "aes192 sha256",
    "aes256 sha384",
    "aes256 sha512",
    "aes128gcm",
    "aes192gcm",
    "aes256gcm",
    "null sha256",
    "aes128gmac",
    "aes256gmac",
    "ah sha1",
    "ah sha256",
    "ah sha512",
)


@ORDERS
@pytest.mark.parametrize("suite", QUICK)
def test_every_suite(suite: str, first: str) -> None:
    """Both ends have the same keys for each suite, AH included, in both roles."""
    link = Link(*hosts(crypto=sets(quick=f'["{suite}"]')))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.pairs[0].inbound.suite) == suite


@ORDERS
@pytest.mark.parametrize("group", ["modp1024", "modp2048", "p256", "p384", "p521"])
def test_forward_secrecy(group: str, first: str) -> None:
    """Both sides take part in another key exchange; without it the keys are others."""
    crypto = sets(quick='["aes128 sha256"]', pfs="true", main=f'["{group} aes128 sha256"]')
    link = Link(*hosts(crypto=crypto))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    group_used = link.left.pairs[0].inbound.suite.group
    assert group_used is not None
    assert group_used.name == group


@ORDERS
def test_forward_secrecy_on_one_side(first: str) -> None:
    """Whoever asks for it gets it; whoever does not ask a side that insists is refused."""
    one = hosts(crypto=sets(pfs="true"))[0]
    other = hosts(crypto=sets())[1]
    link = Link(one, other)
    link.up("net", first)
    link.run(5)
    if first == "left":
        agree(link, ikes=1, pairs=1)
        assert one.pairs[0].inbound.suite.group
    else:
        agree(link, ikes=1, pairs=0)
        assert other.failures[0].notify == "NO_PROPOSAL_CHOSEN"
        assert one.failures[0].comparison is not None
        assert any(row.what == "DH" and row.note for row in one.failures[0].comparison.rows)


@ORDERS
@pytest.mark.parametrize("lost", [(), *((n,) for n in range(3)), *combinations(range(4), 2)], ids=str)
def test_losses(lost: tuple[int, ...], first: str) -> None:
    """Every message and every pair of them; the responder does not send before it knows that the initiator
    can receive."""
    link = Link(*hosts())
    link.up("net", first, childless=True)
    link.run(1)
    link.fate = losing(*lost)
    link.up("net", first)
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert not link.left.pairs[0].standby
    assert not link.right.pairs[0].standby


@ORDERS
def test_the_initiator_never_says_its_last_word(first: str) -> None:
    """The responder gives up, and the initiator, which believes it has an SA, is told."""
    link = Link(*hosts())
    link.up("net", first, childless=True)
    link.run(1)
    one = link.named(first)
    sent = 0

    def fate(flight: Any) -> None:
        nonlocal sent
        if flight.sender is one and flight.header.exchange == Exchange.QUICK:
            sent += 1
            flight.lost = sent > 1

    link.fate = fate
    link.up("net", first)
    link.run(100)
    agree(link, ikes=1, pairs=0)
    assert link.other(one).failures[0].child


@ORDERS
def test_many_at_once(first: str) -> None:
    """Each has its own chain of IVs, in whatever order their messages come."""
    link = Link(*hosts(nets=20))
    link.fate = lambda flight: setattr(flight, "delay", 0.01 + 0.007 * (flight.number * 7 % 5))
    for n in range(20):
        link.up(f"net{n or ''}", first)
    link.run(20)
    agree(link, ikes=1, pairs=20)
    assert {pair.rule for pair in link.left.pairs} == {f"net{n or ''}" for n in range(20)}


@ORDERS
def test_one_of_several_is_refused(first: str) -> None:
    """The refusal names its proposal, so the others are not taken for it."""
    left, right = hosts(nets=4)[0], hosts(nets=1)[1]
    if first == "right":
        left, right = hosts(nets=1)[0], hosts(nets=4)[1]
    link = Link(left, right)
    one = link.named(first)
    link.up("net", one, childless=True)
    link.run(1)
    for rule in ("net1", "net", "net2"):
        link.up(rule, one)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert [failure.rule for failure in one.failures] == ["net1", "net2"]


def test_a_refusal_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several it may mean any: those that are answered go on, and the one that is not is the one."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net", childless=True)
    link.run(1)
    tell = Ikev1Association._inform

    def vague(self: Ikev1Association, *payloads: Any) -> bytes:
        return tell(self, *(replace(one, spi=b"", protocol=1) for one in payloads))

    monkeypatch.setattr(Ikev1Association, "_inform", vague)
    link.up("net1")
    link.up("net")
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert [failure.rule for failure in left.failures] == ["net1"]


def test_failed_ones_do_not_use_up_an_isakmp_sa() -> None:
    """A peer whose rules do not fit tries again and again; what fits works all the same."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net")
    link.run(1)
    for _ in range(100):
        link.up("net1")
        link.run(0.1)
    link.rekey_child(left)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert len(main_mode(right).talks.talks) <= 64
    link.run(70)
    assert len(main_mode(right).talks.talks) <= 1
    assert len(main_mode(left).talks.talks) <= 1


@ORDERS
@pytest.mark.parametrize("question", [AllocateSpi, Install])
@pytest.mark.parametrize("failing", ["initiator", "responder"])
def test_an_sadb_that_refuses(failing: str, question: type[Any], first: str) -> None:
    """A full SADB or backend: both sides hear of it, nothing is left, and later it works."""
    link = Link(*hosts())
    link.up("net", first, childless=True)
    link.run(1)
    one = link.named(first) if failing == "initiator" else link.other(link.named(first))
    one.asked = lambda asked: Unavailable("full") if isinstance(asked, question) else None
    link.up("net", first)
    link.run(100)
    agree(link, ikes=1, pairs=0)
    assert one.failures
    assert link.named(first).failures
    one.asked = None
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)


@ORDERS
def test_slow_answers(first: str) -> None:
    """While a question is open repetitions are not taken for more."""
    link = Link(*hosts())
    for one in (link.left, link.right):
        one.slow = 1.7
    link.up("net", first)
    link.run(60)
    for one in (link.left, link.right):
        one.slow = 0.0
    link.run(30)
    agree(link, ikes=1)
    assert len(link.left.pairs) == 1


def test_as_many_as_the_settings_allow() -> None:
    """A peer gets no more quick-mode SAs than that."""
    link = Link(*hosts(nets=4, right_settings=IkeSettings(children=2)))
    for n in range(4):
        link.up(f"net{n or ''}")
        link.run(5)
    agree(link, ikes=1, pairs=2)
    assert "most" in link.right.failures[0].reason


@ORDERS
def test_guaranteed_encryption(first: str) -> None:
    """A rule that demands it neither offers nor accepts what does not encrypt."""
    crypto = sets(quick='["null sha256", "aes128 sha256"]')
    link = Link(hosts(crypto=crypto)[0], hosts(crypto=crypto, right_rule="encrypt = true\n")[1])
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.pairs[0].inbound.suite) == "aes128 sha256"


def test_events_tell_what_was_made() -> None:
    """Rule, SPIs and traffic as both ends see them."""
    link = connected()
    (ours,), (theirs,) = link.left.of(ChildEstablished), link.right.of(ChildEstablished)
    assert (ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in)
    assert (ours.local, ours.remote) == (theirs.remote, theirs.local)
    assert ours.mode == theirs.mode == "tunnel"
