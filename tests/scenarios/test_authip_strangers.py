"""What strangers, and whoever sees or changes messages, can do at any moment of AuthIP (MS-AIPS section 5).

If one of these fails, a datagram stops the daemon, fills its tables, or changes an SA that is not its
sender's."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from support.authip import (
    CERTIFICATE,
    MAKERS,
    RULE,
    connected,
    datagram,
    hosts,
    main_mode,
    rewritten,
    with_users,
)
from support.authip_hostile import KINDS, SIDES, unharmed
from support.hostile import weight
from support.link import RIGHT, Flight, Link, agree, host, story, tunnel_rules
from support.phases import certified, sets

from ikd.authip.message import notify, plain, status
from ikd.authip.numbers import RELIABLE, Exchange, N, Subject
from ikd.authip.payloads import Auth, AuthEntry
from ikd.events import IkeClosed
from ikd.isakmp.payloads import Hash, Nonce, SecurityAssociation, VendorId
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Body


@KINDS
def test_every_message_at_every_later_moment(kind: str) -> None:
    """To either side, while the negotiation goes on, and when it is long over."""
    link = Link(*MAKERS[kind]())
    link.up("net")
    while len(link.flights) < 30 and link.now < 101:
        if not link.step():
            break
        for flight in list(link.flights)[:20]:
            link.inject(link.other(flight.sender), flight.data)
            if flight.number or link.right.ikes:
                link.inject(flight.sender, flight.data)
        unharmed(link)
    link.run(40)
    agree(link, ikes=1, pairs=1)
    pairs = link.left.pairs
    link.run(100)
    for flight in list(link.flights):
        for one in (link.left, link.right):
            link.inject(one, flight.data)
    link.run(50)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == pairs


@KINDS
@SIDES
def test_our_own_messages_come_back(side: str, kind: str) -> None:
    """Both directions have the same keys: what one side has sent is nothing when it is sent back, neither an
    answer nor a notify, soon and late."""
    link = Link(*MAKERS[kind]())
    one = link.named(side)

    def fate(flight: Flight) -> None:
        if flight.sender is one:
            link.inject(one, flight.data, flight.path.local.port)

    link.fate = fate
    link.up("net")
    link.run(20)
    link.rekey_child(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    pairs = link.left.pairs
    for flight in list(link.flights):
        if flight.data[8:16] != bytes(8):  # a first message is anybody's
            link.inject(flight.sender, flight.data)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == pairs


@pytest.mark.long
@KINDS
@pytest.mark.parametrize("step", range(4))
def test_bits_of_every_message(step: int, kind: str) -> None:
    """One that is changed on the way is as good as lost, or ends the negotiation; then the next one comes
    through. Nothing is up on one side only."""
    whole = Link(*MAKERS[kind]())
    whole.up("net")
    whole.run(2)
    for number, original in enumerate(whole.flights):
        size = len(original.data)
        at = (16, HEADER_SIZE + 3, size // 2, size - 1, size * 2 // 3)[step]

        def fate(flight: Flight, number: int = number, at: int = at) -> None:
            if flight.number == number:
                data = bytearray(flight.data)
                data[at % len(data)] ^= 1 << (number + step) % 8
                flight.data = bytes(data)

        link = Link(*MAKERS[kind]())
        link.fate = fate
        link.up("net")
        link.run(70)
        unharmed(link)
        agree(link)
        if not link.left.pairs:
            assert link.left.failures, story(link)
            link.up("net")
            link.run(20)
        agree(link, ikes=1, pairs=1)


def clear_messages(link: Link) -> list[bytes]:
    """What a stranger can make who has seen the cookies."""
    one = link.left if link.left.ikes else link.right
    cookies = b"".join(main_mode(one).spis)
    found = []
    payloads: tuple[tuple[Any, ...], ...] = (
        (status(13801, Subject.MAIN),),
        (status(13801, Subject.QUICK, RELIABLE),),
        (notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE),),
        (notify(N.QM_SYNCHRONIZE, Subject.QUICK),),
        (Auth(entries=(AuthEntry(method=4),)),),
        (Hash(data=bytes(32)),),
        (Nonce(data=bytes(32)), VendorId(data=bytes(16))),
    )
    for exchange in (*Exchange, 2, 5, 247):
        for number in (0, 1, 77):
            for some in payloads:
                data = main_mode(one).session.channel.seal(plain(exchange, number, *some))[0]
                found.append(cookies + data[16:])
    return found


@KINDS
def test_clear_messages_in_a_wrong_state(kind: str) -> None:
    """The specification has them tear the SA down; whoever knows the cookies could then end everything. Here
    a hint is heeded only when nothing better comes."""
    link = Link(*MAKERS[kind]())
    link.up("net")
    while link.now < 101 and link.step():
        if not (link.left.ikes and link.right.ikes):
            continue
        for data in clear_messages(link)[::3]:
            for one in (link.left, link.right):
                link.inject(one, data)
    for data in clear_messages(link):
        for one in (link.left, link.right):
            link.inject(one, data)
    link.run(40)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        assert not one.of(IkeClosed)
        assert not one.failures


@pytest.mark.parametrize("stage", [1, 3, 5])
def test_a_forged_status_counts_when_nothing_better_comes(stage: int) -> None:
    """Without an answer it is a reason; with one it is nothing."""
    for silent in (False, True):
        link = Link(*hosts())
        link.up("net")
        for _ in range(stage):
            link.step()
        (one,) = link.left.ikes
        head = b"".join(main_mode(link.left).spis)
        data = datagram(link.left, plain(Exchange.NOTIFY, 5, status(13801, Subject.MAIN)))
        link.inject(link.left, head + data[16:])
        assert one in link.left.ikes
        if silent:
            link.fate = lambda flight: setattr(flight, "lost", True)
            link._queue.clear()
        link.run(100)
        agree(link, ikes=int(not silent), pairs=int(not silent))
        if silent:
            assert "13801" in link.left.failures[0].reason


def test_messages_of_another_sa() -> None:
    """With the cookies of this one: their check values do not fit, and nothing changes."""
    link, other = connected(), connected(seed=3)
    other.rekey_child(other.left)
    other.close(other.left)
    other.run(5)
    cookies = b"".join(main_mode(link.left).spis)
    for flight in other.flights:
        for one in (link.left, link.right):
            link.inject(one, cookies + flight.data[16:])
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert "unverified" in link.right.drops


def test_a_thousand_strangers() -> None:
    """Tables stay as small as the settings say, and whoever was there stays."""
    rules = tunnel_rules("right", peer="any", auth="machine", extra=RULE) + CERTIFICATE + sets()
    limits = IkeSettings(half_open=20, half_open_per_address=10, associations=30)
    link = Link(hosts()[0], host("right", RIGHT, rules, certified("right"), limits))
    link.up("net")
    link.run(2)
    first, luck = link.flights[0].data, random.Random(5)
    link.fate = lambda flight: setattr(flight, "lost", True)
    for n in range(1000):
        data = bytearray(luck.randbytes(8) + first[8:])
        if n % 3 == 0:
            data[luck.randrange(28, len(data))] ^= 1 << luck.randrange(8)
        link.inject(link.right, bytes(data), port=1024 + n, source=RIGHT + 1 + n % 50)
    assert link.right.endpoint.half_open <= 20
    assert len(link.right.ikes) <= 30
    link.fate = lambda flight: None
    link.run(150)
    agree(link, ikes=1, pairs=1)
    assert not link.right.of(IkeClosed)


def test_a_later_minor_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is to be accepted (section 2.2.1), transcripts included."""
    monkeypatch.setattr("ikd.authip.channel.VERSION", 0x15)
    link = Link(*with_users())
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert {one.data[17] for one in link.flights} == {0x15}


def test_a_large_offer_is_not_kept() -> None:
    """What has come is kept, for the proofs cover it, but not what was read out of it, which is much more."""
    link = Link(*hosts())

    def change(every: list[Body]) -> list[Body]:
        offer = next(one for one in every if isinstance(one, SecurityAssociation))
        (proposal,) = offer.proposals
        (good,) = proposal.transforms
        many = tuple(replace(good, attributes=((0x7FFF, b""),) * 250) for _ in range(58))
        large = replace(offer, proposals=(replace(proposal, transforms=(*many, good)),))
        return [large if one is offer else one for one in every]

    link.up("net")
    data = rewritten(link.flights[0].data, change)
    before = weight(link.right)
    link.inject(link.right, data)
    assert link.right.endpoint.half_open == 1
    assert weight(link.right) - before < 3 * len(data)
