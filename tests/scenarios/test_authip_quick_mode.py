"""Quick modes of AuthIP, and NOTIFY_ACQUIRE, by a peer that knows no measure.

If one of these fails, a peer has us work or grow without end, or gets an SA that policy does not allow."""

from __future__ import annotations

from typing import Any

import pytest
from support.authip import (
    connected,
    main_mode,
    notice,
    reading,
)
from support.authip_hostile import quick_request
from support.link import LEFT, RIGHT, Host, Link, agree

from ikd.authip.message import notify
from ikd.authip.numbers import RELIABLE, Exchange, N, Subject
from ikd.authip.session import Session
from ikd.events import Broken, DatagramDropped
from ikd.isakmp import identities
from ikd.isakmp.conversations import MOST_TALKS
from ikd.isakmp.payloads import Identification
from ikd.settings import IkeSettings
from sadb.selector import TrafficSelector


def test_a_peer_that_asks_for_quick_modes_without_end() -> None:
    """NOTIFY_ACQUIRE has us begin them: it gets no more SAs than if it had begun them itself."""
    link = connected(left_settings=IkeSettings(children=5))
    selector = link.left.pairs[0].selector
    local, remote = selector.local[0].low, selector.remote[0].low
    for n in range(20):
        asked = [identities.encode(TrafficSelector.of(one + n)) for one in (remote, local)]
        acquire = notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE)
        link.inject(link.left, notice(link.right, acquire, *asked, sequence=100 + n))
        link.run(0.1)
    assert len(link.left.pairs) == 5
    assert link.left.of(DatagramDropped)[-1].detail.endswith("5 is the most it may have")
    link.run(5)
    agree(link, ikes=1, pairs=5)


def test_a_peer_that_has_as_many_as_it_may_asks_for_a_replacement() -> None:
    """The responder cannot begin it itself: refused, the pair would end with its life."""
    link = connected(left_settings=IkeSettings(children=1))
    old = link.left.pairs[0].inbound.spi
    link.rekey_child(link.right)
    link.run(2)
    assert not link.left.of(DatagramDropped)
    assert old not in [one.inbound.spi for one in link.left.pairs]
    link.run(30)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("mode", [62000, 62001])
def test_authenticated_firewall_is_refused(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode in which only the first packet is protected: NO_PROPOSAL_CHOSEN, and `ikctl why` names it."""
    link = connected()
    monkeypatch.setattr(type(main_mode(link.left).session), "encapsulation", lambda self, tunnel: (
        mode if self.initiator else ENCAPSULATION(self, tunnel)
    ))  # fmt: skip
    link.rekey_child(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    (failure,) = link.right.failures
    assert "authenticated firewall" in str(failure.comparison) + failure.reason
    assert "AH" not in failure.notify
    (told,) = link.left.failures
    assert "NO_PROPOSAL_CHOSEN" in told.notify


ENCAPSULATION: Any = Session.encapsulation


def acquire(one: Host, number: int, local: Any, remote: Any, **how: Any) -> bytes:
    """N(NOTIFY_ACQUIRE) of this host for some traffic."""
    ids = [identities.encode(TrafficSelector.of(end)) for end in (local, remote) if end is not None]
    data = (1).to_bytes(4, "big") + bytes(4)
    return notice(
        one,
        notify(N.ACQUIRE, Subject.QUICK, data, RELIABLE),
        *ids,
        number=1000 + number,
        sequence=number,
        **how,
    )


def answers(link: Link, since: int, exchange: int) -> int:
    """How many datagrams of an exchange type the left host has sent."""
    return sum(one.sender is link.left and one.header.exchange == exchange for one in link.flights[since:])


def test_a_thousand_requests() -> None:
    """One quick mode at a time comes of them, and no table grows."""
    link = connected()
    since = len(link.flights)
    net = link.right.endpoint.policy.rules[0].selector
    for number in range(1000):
        data = notice(
            link.right,
            notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE),
            identities.encode(net.local[0]),
            identities.encode(net.remote[0]),
            number=1000 + number,
            sequence=10 + number,
        )
        link.inject(link.left, data)
    assert answers(link, since, Exchange.QUICK) == 1
    assert answers(link, since, Exchange.NOTIFY) == 1000, "each is acknowledged"
    link.run(60)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize(
    ("local", "remote", "acknowledged"),
    [(RIGHT + 7, LEFT, True), (None, None, False), (RIGHT, None, False)],
    ids=["no rule", "no identities", "one identity"],
)
def test_requests_for_nothing(local: Any, remote: Any, acknowledged: bool) -> None:
    """For traffic that no rule covers nothing is begun; without both identities the packet is discarded."""
    link = connected()
    since = len(link.flights)
    link.inject(link.left, acquire(link.right, 3, local, remote))
    assert answers(link, since, Exchange.QUICK) == 0
    assert answers(link, since, Exchange.NOTIFY) == int(acknowledged)
    agree(link, ikes=1, pairs=1)


def test_a_responder_begins_a_quick_mode() -> None:
    """Roles are fixed for the life of a main-mode SA: it has to ask."""
    link = connected()
    count = len(link.flights)
    link.inject(link.left, quick_request(link.right, 1))
    link.run(10)
    assert len(link.flights) == count
    assert link.left.drops == ["unexpected"]
    agree(link, ikes=1, pairs=1)


def test_a_flood_of_quick_modes() -> None:
    """Exchanges are limited, and a peer that does not go on with them is taken to have made fast ones."""
    link = connected(settings=IkeSettings(liveness=0))
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    for number in range(200):
        link.inject(link.right, quick_request(link.left, number))
    right = main_mode(link.right)
    assert len(right.talks.talks) <= MOST_TALKS
    assert len(right.children) <= MOST_TALKS + 1
    assert "exchange-limit" in link.right.drops
    link.run(60)
    assert not [one for one in right.talks.open if one.waiting]
    link.inject(link.right, quick_request(link.left, 500))
    assert 0x5000 + 500 in right.talks.talks, "it is not locked out"
    assert not link.right.of(Broken)


def test_a_peer_has_only_so_many_quick_mode_sas() -> None:
    """What comes beyond is refused, a pair and its replacement counting once, and refusals that nobody
    acknowledges do not pile up."""
    link = connected(right_settings=IkeSettings(children=5, liveness=0))
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    for number in range(1000):
        link.inject(link.right, quick_request(link.left, number))
    right = main_mode(link.right)
    assert len(right.children) == 10
    assert len(right.notices) <= 64
    assert len(right.talks.talks) <= MOST_TALKS
    sent = len(link.flights)
    link.run(60)
    assert len(link.flights) - sent <= 64 * 5


@pytest.mark.parametrize("fast", [False, True], ids=["normal", "fast"])
def test_exchanges_of_a_long_life_come_to_an_end(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred replacements leave nothing behind, also of a peer that never synchronises."""
    if fast:
        reading(monkeypatch, fast_quick=True)
    link = connected(settings=IkeSettings(liveness=0))
    for _ in range(100):
        link.rekey_child(link.left)
        link.run(6)
    link.run(100)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        assert not main_mode(one).talks.open
        assert len(main_mode(one).session.quick_ids) == 1
        assert not one.pairs[0].standby
        assert not [drop for drop in one.of(DatagramDropped) if drop.reason == "exchange-limit"]


def test_traffic_that_has_no_address_is_not_acquired() -> None:
    """An identity that is no address, out of an authentic NOTIFY_ACQUIRE, is refused like traffic that no
    rule covers: it is not a bug of ours."""
    link = connected()
    named = Identification(type=2, data=b"host.example")
    asked = notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE)
    link.inject(link.left, notice(link.right, asked, named, named))
    link.run(5)
    assert not link.left.of(Broken)
    assert "refused" in link.left.drops
    agree(link, ikes=1, pairs=1)
