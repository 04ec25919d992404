"""Requests and answers of quick mode as only a peer can make them: what it must not say.

If one of these fails, a peer talks us into an SA that policy does not allow, or into an error of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.link import (
    LEFT,
    Host,
    Link,
    agree,
)
from support.phases import connected, ends, hosts, lives, main_mode, rule_of, sealed, sets

from ikd.ikev1 import quick_mode
from ikd.ikev1.keys import message_hash
from ikd.ikev1.message import Message, status
from ikd.isakmp import identities, quick
from ikd.isakmp.numbers import Encapsulation, Exchange, N
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    Nonce,
    Proposal,
    SecurityAssociation,
    Transform,
)
from ikd.isakmp.proposals import Life, offer_quick, responder_lifetime
from ikd.wire.isakmp import Payload, encode_chain
from sadb.selector import TrafficSelector


def request(one: Host, *payloads: Payload, number: int = 0x5EED, digest: bytes | None = None) -> bytes:
    """The first message of a quick mode of this host."""
    session = main_mode(one).session
    assert session.keys is not None
    _, rest = encode_chain(payloads)
    made = message_hash(session.row, session.keys.a, number, rest)
    hashed = Hash(data=made if digest is None else digest)
    return sealed(one, Message(Exchange.QUICK, (hashed, *payloads), number, encrypted=True))


def offer(one: Host, spi: bytes = b"\1\2\3\4", **life: int) -> SecurityAssociation:
    """What this host would offer for `net`."""
    suites = quick.suites_of(rule_of(one))
    return offer_quick(suites, spi, Encapsulation.TUNNEL, Life(**life))


def nets(one: Host) -> tuple[Identification, Identification]:
    """Its identities for `net`."""
    selector = rule_of(one).selector
    return identities.encode(selector.local[0]), identities.encode(selector.remote[0])


NONCE = Nonce(data=bytes(16))


def refusal(link: Link, *payloads: Payload) -> str:
    """What the right host makes of a quick mode of the left one."""
    link.inject(link.right, request(link.left, *payloads))
    agree_right(link)
    return link.right.failures[-1].notify if link.right.failures else ""


def agree_right(link: Link) -> None:
    """The right host has what it had."""
    assert len(link.right.ikes) == 1
    assert len(link.right.pairs) == 1
    assert link.right.database.counts().larval == 0
    assert not [one for one in link.right.events if type(one).__name__ == "Broken"]


@pytest.mark.parametrize("spi", [bytes(4), b"\0\0\0\xff", b"", bytes(8), b"\0" * 255])
def test_spis_that_cannot_be(spi: bytes) -> None:
    """RFC 2407 section 4.4.1, RFC 4303 section 2.1: below 256, or of another length."""
    link = connected()
    assert refusal(link, offer(link.left, spi), NONCE, *nets(link.left))


def test_without_identities_it_is_about_the_hosts() -> None:
    """RFC 2409 section 5.5; the rule for two networks does not cover them."""
    link = connected()
    assert refusal(link, offer(link.left), NONCE) == "INVALID_ID_INFORMATION"
    other = ends("", "")
    other.up("host", childless=True)
    other.run(1)
    suites = quick.suites_of(other.left.endpoint.policy.rule("host"))  # type: ignore[arg-type]
    made = offer_quick(suites, b"\1\2\3\4", Encapsulation.TRANSPORT, Life())
    other.inject(other.right, request(other.left, made, NONCE))
    assert len(other.right.pairs) == 1
    assert other.right.pairs[0].selector.remote[0] == TrafficSelector.of(LEFT)


@pytest.mark.parametrize(
    "identity",
    [
        Identification(type=2, data=b"left.example"),
        Identification(type=9, data=b"0"),
        Identification(type=11, data=b"key"),
        Identification(type=1, data=b"\1\2\3"),
        Identification(type=4, data=bytes.fromhex("0a010000ff00ff00")),
        Identification(type=7, data=bytes.fromhex("0a0100090a010001")),
        Identification(type=200, data=bytes(8)),
        Identification(type=5, data=bytes(16)),
        Identification(type=4, protocol=17, port=65535, data=bytes.fromhex("0a010000ffffff00")),
    ],
    ids=lambda one: f"{one.type}-{one.data.hex()}-{one.port}",
)
def test_identities_that_are_no_traffic_of_ours(identity: Identification) -> None:
    """Names, masks with holes, ranges that run backwards, another family, a protocol our rule has as a part:
    only that gets an SA."""
    link = connected()
    link.inject(link.right, request(link.left, offer(link.left), NONCE, identity, nets(link.left)[1]))
    if identity.port:
        assert link.right.failures or len(link.right.pairs) == 2
    else:
        agree_right(link)
        assert link.right.failures[0].notify in {"INVALID_ID_INFORMATION", "PAYLOAD_MALFORMED"}


@pytest.mark.parametrize(
    "payloads",
    [
        lambda one: (offer(one), NONCE, nets(one)[0]),
        lambda one: (offer(one), NONCE, *nets(one), nets(one)[0]),
        lambda one: (offer(one), offer(one), NONCE, *nets(one)),
        lambda one: (offer(one), *nets(one)),
        lambda one: (NONCE, *nets(one)),
        lambda one: (offer(one), NONCE, NONCE, *nets(one)),
    ],
    ids=["one identity", "three", "two SAs", "no nonce", "no SA", "two nonces"],
)
def test_wrong_sets_of_payloads(payloads: Any) -> None:
    """Nothing begins."""
    link = connected()
    link.inject(link.right, request(link.left, *payloads(link.left)))
    agree_right(link)
    assert link.right.drops == ["malformed"]


@pytest.mark.parametrize("public", [b"\0", bytes(64), bytes(65), b"\4" + bytes(64), b"\xff" * 64])
def test_public_values_that_are_none(public: bytes) -> None:
    """Points that are not on the curve give no keys."""
    link = connected(crypto=sets(pfs="true"))
    assert refusal(link, offer(link.left), NONCE, KeyExchange(public=public), *nets(link.left))


def test_a_key_exchange_nobody_asked_for() -> None:
    """The proposal has no group."""
    link = connected()
    assert refusal(link, offer(link.left), NONCE, KeyExchange(public=bytes(64)), *nets(link.left)) in {
        "NO_PROPOSAL_CHOSEN",
        "",
    }


def test_a_proposal_in_two_parts() -> None:
    """AH and ESP together, or compression, which are one proposal with one number (RFC 2408 section 4.2)."""
    link = connected()
    made = offer(link.left)
    (esp,) = made.proposals
    for protocol, transform in ((2, 5), (4, 2)):
        second = replace(
            esp,
            protocol=protocol,
            spi=b"\1\2",
            transforms=(Transform(number=1, id=transform, attributes=()),),
        )
        assert (
            refusal(link, replace(made, proposals=(esp, second)), NONCE, *nets(link.left))
            == "NO_PROPOSAL_CHOSEN"
        )


def test_the_same_once_more_and_again_later() -> None:
    """A repetition is answered with the same octets; a minute later a message ID that was used is nothing:
    whoever recorded it would make us switch to an SA nobody else has."""
    link = connected()
    data = request(link.left, offer(link.left), NONCE, *nets(link.left))
    link.fate = lambda flight: setattr(flight, "lost", flight.header.exchange == Exchange.QUICK)
    link.inject(link.right, data)
    answer = link.flights[-1].data
    link.inject(link.right, data)
    assert link.flights[-1].data == answer
    assert len(list(link.right.database.pairs())) == 2
    link.run(200)
    count = len(link.flights)
    link.inject(link.right, data)
    assert len(link.flights) == count
    assert "replayed" in link.right.drops
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("at", [0, 1, 5, 31])
def test_a_wrong_hash(at: int) -> None:
    """HASH(1) is what makes it the peer's: without it nothing begins and nothing is answered."""
    link = connected()
    good = request(link.left, offer(link.left), NONCE, *nets(link.left))
    count = len(link.flights)
    session = main_mode(link.left).session
    assert session.keys is not None
    _, rest = encode_chain((offer(link.left), NONCE, *nets(link.left)))
    digest = bytearray(message_hash(session.row, session.keys.a, 0x5EED, rest))
    digest[at] ^= 1
    link.inject(
        link.right,
        request(link.left, offer(link.left), NONCE, *nets(link.left), digest=bytes(digest)),
    )
    assert link.right.drops == ["unverified"]
    assert len(link.flights) == count
    link.inject(link.right, good)  # the true one is not lost by that
    assert len(link.flights) == count + 1


def test_thousands_of_transforms() -> None:
    """They are looked through once, and the one that fits is found."""
    link = connected()
    made = offer(link.left)
    (esp,) = made.proposals
    (good,) = esp.transforms
    wrong = [replace(good, number=n % 256, id=n % 11 + 30) for n in range(250)]
    proposals = [replace(esp, number=n, transforms=tuple(wrong)) for n in range(1, 7)]
    proposals.append(replace(esp, number=200))
    assert refusal_or_pairs(link, replace(made, proposals=tuple(proposals))) == 2


def refusal_or_pairs(link: Link, made: SecurityAssociation) -> int:
    """How many pairs the right host has after a quick mode of the left one."""
    link.inject(link.right, request(link.left, made, NONCE, *nets(link.left)))
    return len(list(link.right.database.pairs()))


@pytest.mark.parametrize(
    "attributes",
    [
        ((1, 1), (2, b"")),
        ((1, 1), (2, bytes(300))),
        ((2, b"\0\0\x0e\x10"),),
        ((1, 3), (2, 5)),
        ((4, 1), (4, 2)),
        ((4, b"\0\1"),),
        ((5, 5), (5, b"\0\0\0\5")),
        ((6, 128), (6, 256)),
        ((7, 1),),
        ((32767, b"x" * 1000),),
    ],
    ids=str,
)
def test_attributes_of_all_kinds(attributes: Any) -> None:
    """Empty, too long, in the other form, contradicting, unknown: never more than a refusal."""
    link = connected()
    made = offer(link.left)
    (esp,) = made.proposals
    (good,) = esp.transforms
    mixed = replace(good, attributes=(*good.attributes, *attributes))
    only = replace(good, attributes=attributes)
    for transforms in ((mixed,), (only,), (only, mixed, good)):
        link.inject(
            link.right,
            request(
                link.left,
                replace(made, proposals=(replace(esp, transforms=transforms),)),
                NONCE,
                *nets(link.left),
                number=0x1000 + len(link.flights),
            ),
        )
    assert not [one for one in link.right.events if type(one).__name__ == "Broken"]
    link.run(200)
    agree(link, ikes=1, pairs=1)


def answered(change: Any, crypto: str = "") -> Link:
    """A quick mode whose answer is `change(payloads)`, with a hash that fits."""
    link = Link(*hosts(crypto=crypto))
    link.up("net", childless=True)
    link.run(1)
    original = quick_mode._sealed

    def sealed_otherwise(session: Any, number: int, payloads: Any, nonce_i: bytes = b"") -> Message:
        return original(session, number, change(list(payloads)) if nonce_i else payloads, nonce_i)

    quick_mode._sealed = sealed_otherwise
    try:
        link.up("net")
        link.run(2)
    finally:
        quick_mode._sealed = original
    return link


def other_proposal(payloads: list[Any]) -> list[Any]:
    """Another cipher than was offered."""
    (proposal,) = payloads[0].proposals
    (one,) = proposal.transforms
    made = replace(one, id=11)
    return [replace(payloads[0], proposals=(replace(proposal, transforms=(made,)),)), *payloads[1:]]


def two_proposals(payloads: list[Any]) -> list[Any]:
    """Nothing is chosen."""
    (proposal,) = payloads[0].proposals
    second = Proposal(number=2, protocol=3, spi=proposal.spi, transforms=proposal.transforms)
    return [replace(payloads[0], proposals=(proposal, second)), *payloads[1:]]


def other_identity(payloads: list[Any]) -> list[Any]:
    """More traffic than was asked for."""
    wide = Identification(type=4, data=bytes(8))
    return [wide if isinstance(one, Identification) else one for one in payloads]


def small_spi(payloads: list[Any]) -> list[Any]:
    """A reserved SPI."""
    (proposal,) = payloads[0].proposals
    return [replace(payloads[0], proposals=(replace(proposal, spi=bytes(4)),)), *payloads[1:]]


def bad_life(payloads: list[Any]) -> list[Any]:
    """A RESPONDER-LIFETIME of no attributes at all."""
    return [*payloads, status(N.RESPONDER_LIFETIME, b"\1", 3, b"\1\2\3\4")]


@pytest.mark.parametrize(
    "change", [other_proposal, two_proposals, other_identity, small_spi, bad_life], ids=lambda f: f.__name__
)
def test_answers_that_are_none(change: Any) -> None:
    """The initiator does not take what it did not ask for; nothing is left on either side, and the responder
    is told."""
    link = answered(change)
    link.run(100)
    agree(link, ikes=1, pairs=0)
    assert link.left.failures
    assert link.left.database.counts().larval == 0


def test_an_answer_with_a_short_life() -> None:
    """It counts, whatever was proposed."""
    data = responder_lifetime(Life(seconds=300, kilobytes=1024))
    link = answered(lambda payloads: [*payloads, status(N.RESPONDER_LIFETIME, data, 3, b"\1\2\3\4")])
    assert lives(link.left)[0] == pytest.approx(300)
    assert lives(link.left)[1] == 1024 * 1024


def test_an_answer_without_identities() -> None:
    """Some leave them out; then they are those that were asked for."""
    link = answered(lambda payloads: [one for one in payloads if not isinstance(one, Identification)])
    agree(link, ikes=1, pairs=1)
