"""AuthIP beside IKEv1 and IKEv2: which protocol two hosts end up with, and that they lose no time over it
(MS-AIPS sections 1.7 and 3.3.5.2).

If one of these fails, a host that speaks both cannot be reached by one that speaks either, or waits for what
the other end will never say."""

from __future__ import annotations

import json
from itertools import combinations, permutations

import pytest
from support.authip import CERTIFICATE
from support.link import Flight, Host, Link, agree, tunnel_hosts, tunnel_rules
from support.phases import certified, sets

from ikd.authip.numbers import Exchange
from ikd.events import KeyingFellBack, NegotiationStarted
from ikd.riders.vendor import Known
from ikd.settings import IkeSettings

MODULES = ("ikev2", "authip", "ikev1")
SUBSETS = [chosen for n in (1, 2, 3) for some in combinations(MODULES, n) for chosen in permutations(some)]
MARK = Known.AUTHIP.value


def rule(keying: tuple[str, ...]) -> str:
    """The end of a rule with these modules."""
    return f'keying = {json.dumps(keying)}\ncrypto = "old"\n'


def hosts(
    left: tuple[str, ...], right: tuple[str, ...], settings: IkeSettings | None = None
) -> tuple[Host, Host]:
    """Two hosts with certificates, and these modules."""
    return tunnel_hosts(
        left_rule=rule(left),
        right_rule=rule(right),
        sets=sets() + CERTIFICATE,
        auth="machine",
        left=certified("left"),
        right=certified("right"),
        settings=settings,
    )


def expected(left: tuple[str, ...], right: tuple[str, ...]) -> str:
    """What the initiator's order leads to: AuthIP is preferred to IKEv1 beside it."""
    order = list(left)
    for n in range(len(order) - 1):
        if order[n : n + 2] == ["ikev1", "authip"]:
            order[n : n + 2] = ["authip", "ikev1"]
            break
    return next((one for one in order if one in right), "")


def started(one: Host) -> list[str]:
    """The modules in which a host has begun to negotiate."""
    return [event.keying for event in one.of(NegotiationStarted) if event.initiator]


@pytest.mark.long
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("left", SUBSETS, ids="-".join)
def test_every_subset_of_modules(left: tuple[str, ...], side: str) -> None:
    """Whatever two rules name, the hosts meet in what they have in common, and in nothing else."""
    for right in SUBSETS:
        link = Link(*hosts(left, right))
        link.up("net", side)
        link.run(12)
        wanted = expected(*((left, right) if side == "left" else (right, left)))
        agree(link)
        assert [one.main.keying for one in link.left.ikes] == ([wanted] if wanted else []), right
        assert bool(link.left.pairs) is bool(wanted)
        if not wanted:
            assert link.named(side).failures, "nobody is told why"


@pytest.mark.parametrize("right", [("ikev1",), ("authip",), ("authip", "ikev1")], ids="-".join)
def test_both_are_begun_at_once(right: tuple[str, ...]) -> None:
    """A peer that speaks one of the two costs no more than if the other did not exist."""
    alone = Link(*hosts(right[:1], right[:1]))
    both = Link(*hosts(("authip", "ikev1"), right))
    took = []
    for link in (alone, both):
        link.up("net")
        begun = link.now
        while not link.left.pairs:
            assert link.step()
        took.append(link.now - begun)
    assert took[1] <= took[0] + 0.021, "more than a round trip"


def test_only_the_message_of_ikev1_is_marked() -> None:
    """The vendor ID MS-MamieExists in AuthIP, or none in IKEv1, and the responder answers both."""
    link = Link(*hosts(("authip", "ikev1"), ("authip", "ikev1")))
    link.up("net")
    link.run(2)
    first = {flight.header.exchange: flight.data for flight in link.flights[:2]}
    assert MARK in first[2]
    assert MARK not in first[Exchange.MAIN]
    assert link.right.drops == ["coexistence"]
    agree(link, ikes=1, pairs=1)
    assert all(
        flight.header.exchange >= Exchange.MAIN for flight in link.flights if flight.sender is link.right
    )


def test_ikev1_alone_is_not_marked_and_is_answered() -> None:
    """A responder with AuthIP that ignored all of IKEv1 could not be reached by an old host."""
    link = Link(*hosts(("ikev1",), ("authip", "ikev1")))
    link.up("net")
    link.run(2)
    assert MARK not in link.flights[0].data
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("late", ["authip", "ikev1"])
def test_the_first_valid_answer_decides(late: str) -> None:
    """A peer that answers both, as no specification has it, ends with one SA and not with two."""
    link = Link(*hosts(("authip", "ikev1"), ("authip", "ikev1")))

    def fate(flight: Flight) -> None:
        main = flight.header.exchange in (2, Exchange.MAIN)
        if flight.sender is link.left and flight.header.exchange == 2:
            flight.data = flight.data.replace(MARK, bytes(16))
        if flight.sender is link.right and main:
            is_late = (flight.header.exchange == 2) is (late == "ikev1")
            flight.delay = 0.3 if is_late and flight.header.spi_r else 0.01

    link.fate = fate
    link.up("net")
    link.run(60)
    assert [one.main.keying for one in link.left.ikes] == [{"authip": "ikev1", "ikev1": "authip"}[late]]
    assert len(link.left.pairs) == 1


def test_what_a_peer_speaks_is_remembered_and_forgotten() -> None:
    """Within the time of the verdict only that protocol is begun; behind it both are, so that a peer which
    has learned AuthIP meanwhile is found out."""
    settings = IkeSettings(verdict_seconds=100)
    link = Link(*hosts(("authip", "ikev1"), ("ikev1",), settings))
    for waits, begun in ((1, ["authip", "ikev1"]), (120, ["ikev1"]), (1, ["authip", "ikev1"])):
        link.left.events.clear()
        link.up("net")
        link.run(2)
        assert started(link.left) == begun
        link.close(link.left)
        link.run(waits)
    link.reload(
        link.right, tunnel_rules("right", auth="machine", extra=rule(("authip",))) + sets() + CERTIFICATE
    )
    link.run(120)
    link.up("net")
    link.run(3)
    assert [one.main.keying for one in link.left.ikes] == ["authip"]


def test_a_peer_that_has_lost_authip_is_found_in_ikev1() -> None:
    """A verdict is no more than an order: a peer that was set up anew is not lost until it expires."""
    link = Link(*hosts(("authip", "ikev1"), ("authip",)))
    link.up("net")
    link.run(2)
    link.close(link.left)
    link.run(20)
    link.reload(
        link.right, tunnel_rules("right", auth="machine", extra=rule(("ikev1",))) + sets() + CERTIFICATE
    )
    link.up("net")
    link.run(10)
    assert [one.main.keying for one in link.left.ikes] == ["ikev1"]
    assert [(one.module, one.instead) for one in link.left.of(KeyingFellBack)] == [("authip", "ikev1")]


def test_ikev1_begins_anew_where_authip_is_refused() -> None:
    """AuthIP can propose one group only. Where the peer does not have it, it goes on ignoring the marked
    message of IKEv1, which could agree on another: that has to come once more without the mark."""
    link = Link(*hosts(("authip", "ikev1"), ("authip", "ikev1")))
    two = sets(main='["modp2048 aes128 sha256", "p256 aes128 sha256"]')
    rules = tunnel_rules("left", auth="machine", extra=rule(("authip", "ikev1")))
    link.reload(link.left, rules + two + CERTIFICATE)
    link.up("net")
    link.run(5)
    assert started(link.left) == ["authip", "ikev1", "ikev1"]
    assert [one.main.keying for one in link.left.ikes] == ["ikev1"]
    agree(link, ikes=1, pairs=1)
