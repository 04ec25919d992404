"""What is on the way between two hosts that speak AuthIP: loss and disorder, a NAT in front of either, IPv6,
packets of a limited size, and a responder under load (MS-AIPS sections 2.1, 3.1.6 and 3.1.7.6).

If one of these fails, an honest peer does not come through, or a flood of first messages costs memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from support.authip import CERTIFICATE, MAKERS, RULE, connected, hosts, main_mode, notice, reading, with_users
from support.link import (
    BOTH,
    LEFT,
    NAT,
    RIGHT,
    SHIFT,
    Flight,
    Host,
    Link,
    agree,
    host,
    losing,
    story,
    tunnel_rules,
)
from support.phases import both, certified, ends, large, sets

from ikd.authip.message import status
from ikd.authip.numbers import RELIABLE, Exchange, Status, Subject
from ikd.events import CookieDemanded, MessageReceived
from ikd.isakmp.numbers import Traversal
from ikd.riders.fragment1 import FRAGMENT
from ikd.riders.vendor import Known
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Header
from sadb.sa import Mode

NATTED = pytest.mark.parametrize("nat", BOTH)
ORDERS = pytest.mark.parametrize("first", BOTH)
KINDS = pytest.mark.parametrize("kind", MAKERS)
Fate = Callable[[Flight], None]
FATES: dict[str, Callable[[int], Fate]] = {
    "lost": losing,
    "lost, and what follows it": lambda n: losing(n, n + 1),
    "twice": lambda n: lambda flight: setattr(flight, "copies", int(flight.number == n)),
    "late, and everything twice": lambda n: lambda flight: _disorder(flight, n),
}


def _disorder(flight: Flight, number: int) -> None:
    flight.copies, flight.delay = 1, 2.5 if flight.number == number else 0.01


# Loss and disorder ------------------------------------------------------------------------------------------


@pytest.mark.long
@KINDS
@ORDERS
@pytest.mark.parametrize("fate", FATES)
def test_any_message_may_fare_badly(fate: str, first: str, kind: str) -> None:
    """Whatever becomes of one message, at any place, there is one main-mode SA with one pair on it in the
    end: a transcript that counts a repetition twice, or misses one, shows here."""
    whole = Link(*MAKERS[kind]())
    whole.up("net", first)
    whole.run(2)
    for number in range(len(whole.flights)):
        link = Link(*MAKERS[kind]())
        link.fate = FATES[fate](number)
        link.up("net", first)
        link.run(40)  # a first message that comes late begins something that comes to nothing
        agree(link, ikes=1, pairs=1)


@KINDS
@ORDERS
@pytest.mark.parametrize("seed", range(3))
def test_a_bad_link(seed: int, first: str, kind: str) -> None:
    """A fifth of everything is lost or doubled, and nothing comes in order."""
    luck = random.Random(seed)

    def fate(flight: Flight) -> None:
        flight.lost, flight.copies = luck.random() < 0.2, int(luck.random() < 0.2)
        flight.delay = luck.uniform(0.005, 0.8)

    link = Link(*MAKERS[kind]())
    link.fate = fate
    link.up("net", first)
    link.run(60)
    link.fate = lambda flight: None
    link.run(60)
    agree(link)
    assert link.left.pairs, story(link)


@KINDS
def test_slow_answers_of_the_world(kind: str) -> None:
    """SADB and authentication take longer than the peer waits: its repetitions do no harm."""
    made = MAKERS[kind]()
    for one in made:
        one.slow = 1.4
    link = Link(*made)
    link.up("net")
    link.run(29)
    agree(link, ikes=1, pairs=1)


# NAT --------------------------------------------------------------------------------------------------------


@KINDS
@NATTED
def test_nat_on_either_side(nat: str, kind: str) -> None:
    """Both notice it and go to UDP 4500 with message 3; ESP is in UDP with the ports that pass the NAT."""
    link = Link(*MAKERS[kind](nat=nat), nat=nat)
    link.up("net", nat)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    inside = link.named(nat)
    outside = link.other(inside)
    for one, other in ((inside, False), (outside, True)):
        session = main_mode(one).session
        assert session.traversal is Traversal.RFC_3947
        assert (session.nat_local, session.nat_peer) == (not other, other)
    (ours,), (theirs,) = inside.pairs, outside.pairs
    assert ours.outbound.encapsulation == (4500, 4500)
    assert theirs.outbound.encapsulation == (4500, SHIFT + 4500)
    assert theirs.outbound.destination == NAT
    assert [one.path.peer.port for one in link.flights[:4]] == [500, SHIFT + 500, 4500, SHIFT + 4500]
    assert {one.path.local.port for one in link.flights[2:]} == {4500}


@NATTED
def test_loss_behind_a_nat(nat: str) -> None:
    """Also the message with which the port changes may be lost, or its answer."""
    for number in range(8):
        link = Link(*hosts(nat=nat), nat=nat)
        link.fate = losing(number)
        link.up("net", nat)
        link.run(20)
        agree(link, ikes=1, pairs=1)
        assert link.other(link.named(nat)).pairs[0].outbound.encapsulation == (4500, SHIFT + 4500)


@ORDERS
def test_no_nat_traversal_in_ipv6(first: str) -> None:
    """There it is neither announced nor looked for (section 3.2.4)."""
    ends = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    link = Link(*hosts(ends=ends, family=6))
    link.up("net", first)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    assert not any(Known.RFC_3947.value in one.data for one in link.flights[:2])
    assert main_mode(link.left).session.traversal is Traversal.NONE


@NATTED
def test_transport_mode_through_a_nat(nat: str) -> None:
    """RFC 3947 section 5: each side has selectors with the addresses it sees itself, in UDP-encapsulated
    transport mode."""
    link = ends(nat=nat, keying="authip", material=certified)
    inside = link.named(nat)
    outside = link.other(inside)
    link.up("host", inside)
    link.run(5)
    (ours,), (theirs,) = inside.pairs, outside.pairs
    assert ours.mode is theirs.mode is Mode.TRANSPORT
    assert (ours.selector.local[0].low, ours.selector.remote[0].low) == (inside.address, outside.address)
    assert (theirs.selector.local[0].low, theirs.selector.remote[0].low) == (outside.address, NAT)
    assert bytes(ours.inbound.encryption_key) == bytes(theirs.outbound.encryption_key)


def test_recordings_keep_nobody_alive() -> None:
    """A peer that is gone stays gone, whoever repeats what it has said, or what we have said ourselves."""
    link = connected()
    for one in (link.left, link.right):
        link.rekey_child(one)
        link.run(40)
    recorded = [one.data for one in link.flights]
    link.fate = lambda flight: setattr(flight, "lost", True)
    for _ in range(40):
        link.run(5)
        for data in [*recorded, *(one.data for one in link.flights[-2:])]:
            link.inject(link.left, data)
    assert not link.left.pairs, story(link)


# Fragments --------------------------------------------------------------------------------------------------


def is_fragment(flight: Flight) -> bool:
    """Whether it is a part of a message."""
    return flight.header.next_payload == FRAGMENT


def narrow(limit: int) -> Fate:
    """The path loses what is larger, as one does that loses IP fragments."""

    def fate(flight: Flight) -> None:
        flight.lost = len(flight.data) + 28 > limit

    return fate


LARGE = both(large("left"), large("right"))


@ORDERS
@pytest.mark.parametrize("nat", ["", *BOTH])
@pytest.mark.parametrize("limit", [576, 1280])
def test_large_messages_are_cut(limit: int, nat: str, first: str) -> None:
    """When whole messages do not come through they go in parts, both ways, with a NAT as without: a part is
    no message of its own in the transcript."""
    if nat and first != nat:
        return  # nobody gets in
    link = Link(*hosts(nat=nat, **LARGE), nat=nat)
    link.fate = narrow(limit + 4 if nat else limit)
    link.up("net", first)
    link.run(30)
    agree(link, ikes=1, pairs=1)
    parts = [one for one in link.flights if is_fragment(one)]
    assert {one.sender.name for one in parts} == {"left", "right"}
    assert max(len(one.data) for one in parts) + 28 + 4 <= 576 + 4


def test_a_path_that_takes_everything() -> None:
    """Then nothing is cut."""
    link = Link(*hosts(**LARGE))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert not any(map(is_fragment, link.flights))


@ORDERS
def test_parts_lost_doubled_and_in_any_order(first: str) -> None:
    """They come backwards, each twice, and some not at all at first."""
    link = Link(*hosts(**LARGE))
    seen = 0

    def fate(flight: Flight) -> None:
        nonlocal seen
        flight.lost = len(flight.data) > 1200
        if is_fragment(flight):
            seen += 1
            flight.lost = seen in (2, 15)
            flight.copies, flight.delay = 1, 0.4 - 0.01 * (flight.number % 16)

    link.fate = fate
    link.up("net", first)
    link.run(40)
    agree(link, ikes=1, pairs=1)


def test_a_side_that_does_not_take_parts() -> None:
    """Then none are sent."""
    link = Link(*hosts(right_settings=IkeSettings(fragmentation=False), **LARGE))
    link.fate = narrow(1280)
    link.up("net")
    link.run(60)
    agree(link, ikes=0, pairs=0)
    assert not any(map(is_fragment, link.flights))


def test_a_large_certificate_is_not_sent_to_others() -> None:
    """Whoever has our cookie may go on from a forged address: what he asks for comes to his own, until there
    are keys that he has."""
    victim = ip_address("203.0.113.77")
    link = Link(*hosts(**LARGE))

    def fate(flight: Flight) -> None:
        if flight.number >= 2 and flight.sender is link.left:
            flight.lost = True
            link.inject(link.right, flight.data, source=victim)

    link.fate = fate
    link.up("net")
    link.run(60)
    assert sum(len(one.data) for one in link.flights if one.sender is link.right) > 5000
    there = [one for one in link.flights if one.path.peer.address == victim]
    assert all(one.header.flags & 1 and len(one.data) < 500 for one in there)


def part(one: Host, identity: int, number: int, flags: int, data: bytes) -> bytes:
    """A fragment for this host's main-mode SA."""
    channel = main_mode(one).session.channel
    body = bytes(2) + (8 + len(data)).to_bytes(2, "big") + identity.to_bytes(2, "big")
    body += bytes((number, flags)) + data
    return (
        Header(
            channel.cookie_i, channel.cookie_r, FRAGMENT, 0x10, Exchange.MAIN, 0, 0, HEADER_SIZE + len(body)
        ).encode()
        + body
    )


@ORDERS
def test_parts_that_never_become_whole(first: str) -> None:
    """They are few, and gone after a while; inside may be another fragment, or a message of others."""
    link = Link(*hosts(**LARGE))
    link.fate = narrow(1280)
    link.up("net", first)
    link.run(2.5)
    for one in (link.left, link.right):
        for identity in range(60):
            for number in range(1, 70, 3):
                link.inject(one, part(one, identity, number, 0, bytes(1400)))
        for inner in (part(one, 7, 1, 1, b"y"), link.flights[0].data, b""):
            link.inject(one, part(one, 8, 1, 1, inner))
        kept = main_mode(one)._fragments._found.values()
        assert len(kept) <= 4
        assert sum(len(piece) for found in kept for piece in found[2].values()) <= 4 * 65535
    link.run(40)
    agree(link, ikes=1, pairs=1)


# A responder under load -------------------------------------------------------------------------------------

CROWDED = IkeSettings(cookie_threshold=0)


def crowded(**how: Any) -> Link:
    """Two hosts of which the right one has too much to do."""
    return Link(*hosts(right_settings=CROWDED, **how))


@KINDS
@pytest.mark.parametrize("exchange", [246, 243, 5])
@pytest.mark.parametrize("type_", [0x9C55, 0x9C44])
def test_a_cookie_is_asked_for_and_returned(
    monkeypatch: pytest.MonkeyPatch, type_: int, exchange: int, kind: str
) -> None:
    """Whatever header and number the demand has, the first message goes once more with the cookie, is the one
    in the transcript, and the cookie stays the responder's."""
    reading(monkeypatch, cookie_exchange=exchange)
    link = Link(*MAKERS[kind](right_settings=CROWDED))

    def fate(flight: Flight) -> None:
        if flight.number == 1:
            flight.data = flight.data[:-10] + type_.to_bytes(2, "big") + flight.data[-8:]

    link.fate = fate
    link.up()
    link.run(2)
    agree(link, ikes=1, pairs=1)
    assert len(link.right.of(CookieDemanded)) == 1
    first, demand, again = link.flights[:3]
    assert demand.header.exchange == exchange
    assert demand.header.message_id not in (0, 1)
    cookie = demand.data[-8:]
    assert again.data[:16] == first.data[:8] + cookie
    assert link.right.ikes[0].spi_r == link.left.ikes[0].spi_r == cookie
    assert len(demand.data) == 28 + 12 + 8 < len(first.data)


def test_nothing_is_kept_before_the_cookie_is_back() -> None:
    """The very point of it."""
    link = crowded()
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    link.up()
    link.run(3)
    assert link.right.of(CookieDemanded)
    assert not link.right.ikes
    assert link.right.endpoint.half_open == 0


@pytest.mark.parametrize("fate", FATES)
def test_cookies_on_a_bad_link(fate: str) -> None:
    """Whichever of the first messages fares badly, the negotiation comes through: which first message the
    responder has answered tells its cookie."""
    for number in range(5):
        link = crowded()
        link.fate = FATES[fate](number)
        link.up()
        link.run(40)
        agree(link, ikes=1, pairs=1)


def test_a_made_up_cookie_opens_nothing() -> None:
    """Another's cookie, or one for another address, does not get past the threshold."""
    link = crowded()
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up()
    first = link.flights[0].data
    link.inject(link.right, first[:8] + b"12345678" + first[16:])
    assert not link.right.ikes
    assert link.right.drops == ["unknown-spi"]
    link.inject(link.right, first)
    returned = first[:8] + link.flights[-1].data[-8:] + first[16:]
    link.inject(link.right, returned, source=ip_address("192.0.2.77"))
    assert not link.right.ikes
    link.inject(link.right, returned)
    link.inject(link.right, returned)
    assert link.right.endpoint.half_open == len(link.right.ikes) == 1


def demand(link: Link, number: int, cookie: bytes = b"forgery!") -> bytes:
    """A demand for a cookie that nobody has made."""
    body = bytes.fromhex("0000001400000001 01009c55") + cookie
    first = link.flights[0].header
    head = replace(first, next_payload=11, exchange=246, message_id=number, length=28 + len(body))
    return head.encode() + body


@KINDS
@pytest.mark.parametrize("count", [1, 2, 40])
def test_forged_demands_change_nothing(count: int, kind: str) -> None:
    """Whoever sees the first message can forge a demand: it costs a datagram each, a few at most, and the
    answer to the first message, which the responder has got without a cookie, is still good."""
    link = Link(*MAKERS[kind]())
    link.fate = lambda flight: setattr(flight, "delay", 0.2)
    link.up()
    for number in range(count):
        link.inject(link.left, demand(link, number + 2))
    forged = [one for one in link.flights if one.data[8:16] == b"forgery!"]
    assert 1 <= len(forged) <= 16
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert link.left.ikes[0].spi_r != b"forgery!"


def test_a_responder_that_asks_for_ever() -> None:
    """Each demand is answered, and not for ever; the reason is told."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up()
    for number in range(100):
        link.inject(link.left, demand(link, number + 2, number.to_bytes(8, "little") or bytes(8)))
    assert len(link.flights) <= 17
    link.run(60)
    assert not link.left.ikes
    assert "cookie" in link.left.failures[0].reason


def test_late_demand() -> None:
    """A cookie that comes when the responder has answered already is nothing."""
    link = Link(*hosts())
    link.up()
    link.run(0.03)
    link.inject(link.left, demand(link, 9))
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert not any(one.data[8:16] == b"forgery!" for one in link.flights)


def test_half_open_negotiations_are_limited() -> None:
    """By address and in all; from half of an address's share on it has to show that it receives there."""
    rules = tunnel_rules("right", peer="any", auth="machine", extra=RULE) + CERTIFICATE + sets()
    limits = IkeSettings(half_open=6, half_open_per_address=4)
    link = Link(hosts()[0], host("right", RIGHT, rules, certified("right"), limits))
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up()
    first = link.flights[0].data
    for number in range(1, 40):
        source = LEFT if number < 20 else LEFT + 100 + number % 10
        begun = number.to_bytes(8, "big")
        link.inject(link.right, begun + first[8:], source=source)
        answer = link.flights[-1].data
        if answer[18] == Exchange.NOTIFY:
            link.inject(link.right, begun + answer[-8:] + first[16:], source=source)
        assert link.right.endpoint.half_open <= (4 if number < 20 else 6)
    assert link.right.endpoint.half_open == len(link.right.ikes) == 6
    assert link.right.of(CookieDemanded)
    assert "half-open-limit" in link.right.drops
    link.run(31)
    assert link.right.endpoint.half_open == 0
    assert not link.right.ikes


@pytest.mark.parametrize("stage", range(1, 9))
def test_a_peer_that_does_not_go_on(stage: int) -> None:
    """It has its time, and is then told that this is over, as far as there are keys to tell it with."""
    link = Link(*with_users(right_settings=IkeSettings(half_open_timeout=20)))
    sent = 0

    def fate(flight: Flight) -> None:
        nonlocal sent
        sent += flight.sender is link.left
        flight.lost = flight.sender is link.left and sent > stage

    link.fate = fate
    link.up()
    link.run(5)
    assert link.right.endpoint.half_open == 1
    told = len(link.flights)
    link.run(16)
    assert not link.right.ikes
    assert not link.right.pairs
    assert link.right.endpoint.half_open == 0
    after = [one for one in link.flights[told:] if one.sender is link.right]
    assert len(after) == (0 if stage < 3 else 1 if stage < 4 else 2), story(link)
    assert all(one.header.exchange == Exchange.NOTIFY for one in after)
    link.run(60)
    agree(link, ikes=0, pairs=0)
    (failure, *_) = link.left.failures
    assert not after or "TIMED_OUT" in failure.notify + failure.reason or "time" in failure.reason


def test_what_tells_it_can_be_read() -> None:
    """N(NOTIFY_STATUS 13805), not reliable: whoever is gone acknowledges nothing."""
    link = connected()
    link.inject(link.left, notice(link.right, status(Status.TIMED_OUT, Subject.MAIN, RELIABLE)))
    (heard,) = [one for one in link.left.of(MessageReceived) if "13805" in str(one.payloads)]
    assert heard.exchange == "AuthIP NOTIFY"
