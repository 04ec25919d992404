"""A peer that has the keys and answers, or asks, what it must not: values outside their groups, suites nobody
offered, wider selectors, SPIs that cannot be (RFC 7296 sections 2.7, 2.9, 2.12, 3.3.1; RFC 6989).

If one of these fails, a peer talks us into an SA that policy does not allow, or into an error of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from support.link import Flight, Link, agree, connected, host, psk, story, tunnel_hosts, tunnel_rules

from ikd.events import Broken
from ikd.ikev2.channel import clear
from ikd.ikev2.message import Message
from ikd.ikev2.numbers import Exchange
from ikd.ikev2.payloads import (
    PAYLOADS,
    Authentication,
    KeyExchange,
    SecurityAssociation,
    SelectorRange,
    TrafficSelectorsI,
    TrafficSelectorsR,
    Transform,
)
from ikd.wire.isakmp import HEADER_SIZE, Body, Unknown, chain
from sadb.address import Address
from sadb.selector import TrafficSelector

Change = Callable[[Body], Body | None]
PFS = '[crypto.pfs]\nquick = ["aes128gcm modp2048"]\nmain = ["modp2048 aes128gcm sha256"]\n'
RULE = 'crypto = "pfs"'


def lying(link: Link, liar: str, exchange: int, response: bool, change: Change) -> None:
    """From now on one host's messages of an exchange have each payload changed; None leaves it out."""
    host, peer = link.named(liar), link.other(link.named(liar))
    link.fate = lambda flight: _lie(flight) if flight.sender is host else None

    def _lie(flight: Flight) -> None:
        header = flight.header
        if header.exchange != exchange or bool(header.flags & 0x20) is not response:
            return
        if exchange == Exchange.IKE_SA_INIT:
            found = chain(header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)[0]
            made = [one for payload in found if (one := change(payload)) is not None]
            flight.data = clear(replace(header, next_payload=0, length=0), made)
            return
        own = header.spi_i if host.ikes[-1].session.channel.initiator else header.spi_r
        for reader, writer in zip(peer.ikes, host.ikes, strict=False):
            channel = writer.session.channel
            if own in (channel.spi_i, channel.spi_r):
                message = reader.session.channel.open(header, flight.data)
                assert message is not None
                kept = tuple(one for payload in message.payloads if (one := change(payload)) is not None)
                told = Message(message.exchange, kept, message.response, message.message_id)
                (flight.data,) = channel.seal(told, flight.path)


def every(kind: type[Body], change: Callable[..., Body | None]) -> Change:
    """Change payloads of one class only."""
    return lambda payload: change(payload) if isinstance(payload, kind) else payload


def public(data: Callable[[bytes], bytes]) -> Change:
    """Another public value."""
    return every(KeyExchange, lambda one: replace(one, public=data(one.public)))


def proposal(**changes: object) -> Change:
    """A proposal that is changed."""
    return every(
        SecurityAssociation,
        lambda one: SecurityAssociation(proposals=tuple(replace(p, **changes) for p in one.proposals)),
    )


def transforms(*found: tuple[int, int, int]) -> Change:
    """Other transforms, as type, ID and key length."""
    return proposal(
        transforms=tuple(
            Transform(type=t, id=n, attributes=((14, bits),) if bits else ()) for t, n, bits in found
        )
    )


def selectors(text: str, kind: type[TrafficSelectorsI] | type[TrafficSelectorsR]) -> Change:
    """Other traffic."""
    made = (SelectorRange.of(TrafficSelector.of(ip_network(text))),)
    return every(kind, lambda one: kind(ranges=made))


BAD_PUBLIC: dict[str, Change] = {
    "zero": public(lambda data: bytes(len(data))),
    "one": public(lambda data: bytes(len(data) - 1) + b"\1"),
    "all ones": public(lambda data: b"\xff" * len(data)),
    "short": public(lambda data: data[:-1]),
    "long": public(lambda data: data + b"\0"),
}


def unharmed(link: Link, *, whole: bool = True) -> None:
    """Nothing broke, nothing is left over, and no SA came of the lie."""
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert one.database.counts().larval == 0
    if whole:
        agree(link)


# Public values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", BAD_PUBLIC)
@pytest.mark.parametrize("liar", ["initiator", "responder"])
@pytest.mark.parametrize("group", ["x25519", "p256", "modp2048"])
def test_public_values_of_ike_sa_init(lie: str, liar: str, group: str) -> None:
    """RFC 6989: a value outside its group ends the negotiation; nobody computes with it."""
    sets = f'[crypto.one]\nmain = ["{group} aes128gcm sha256"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "one"', right_rule='crypto = "one"', sets=sets))
    who = "left" if liar == "initiator" else "right"
    lying(link, who, Exchange.IKE_SA_INIT, who == "right", BAD_PUBLIC[lie])
    link.up("net")
    link.run(120)
    unharmed(link)
    assert not link.left.pairs
    assert not link.right.pairs


@pytest.mark.parametrize("lie", BAD_PUBLIC)
@pytest.mark.parametrize("liar", ["initiator", "responder"])
@pytest.mark.parametrize("begin", [Link.rekey, Link.rekey_child], ids=["IKE SA", "Child SA"])
def test_public_values_of_create_child_sa(lie: str, liar: str, begin: Callable[..., None]) -> None:
    """The same in an IKE SA that is up, for both kinds of replacement."""
    link = connected(left_rule=RULE, right_rule=RULE, sets=PFS)
    who = "left" if liar == "initiator" else "right"
    lying(link, who, Exchange.CREATE_CHILD_SA, who == "right", BAD_PUBLIC[lie])
    old = link.left.pairs[0]
    begin(link, link.left)
    link.run(3)
    if begin is Link.rekey_child:
        assert not [one for one in link.left.pairs if one is not old]
    link.run(200)
    unharmed(link)
    assert [one for host in (link.left, link.right) for one in host.failures], story(link)


# Suites and SPIs --------------------------------------------------------------------------------------------

IKE_SUITES: dict[str, Change] = {
    "another cipher": transforms((1, 20, 192), (2, 5, 0), (4, 31, 0)),
    "another group": transforms((1, 20, 256), (2, 6, 0), (4, 19, 0)),
    "no group": transforms((1, 20, 256), (2, 6, 0)),
    "nothing": transforms(),
    "no proposal": every(SecurityAssociation, lambda one: SecurityAssociation(proposals=())),
    "two proposals": every(
        SecurityAssociation, lambda one: SecurityAssociation(proposals=(one.proposals[0], one.proposals[0]))
    ),
    "of ESP": proposal(protocol=3),
}


@pytest.mark.parametrize("lie", IKE_SUITES)
def test_a_suite_nobody_offered(lie: str) -> None:
    """In IKE_SA_INIT it is as good as no answer; the negotiation ends with a reason, and no keys are made."""
    link = Link(*tunnel_hosts())
    lying(link, "right", Exchange.IKE_SA_INIT, True, IKE_SUITES[lie])
    link.up("net")
    link.run(120)
    unharmed(link)
    assert not link.left.ikes
    assert not link.left.keys
    assert link.left.failures


@pytest.mark.parametrize("lie", IKE_SUITES)
def test_a_suite_nobody_offered_for_the_next_ike_sa(lie: str) -> None:
    """The IKE SA that is there goes on, or ends when the answer makes no sense at all."""
    link = connected()
    lying(link, "right", Exchange.CREATE_CHILD_SA, True, IKE_SUITES[lie])
    link.rekey(link.left)
    link.run(3)
    assert link.left.failures
    link.fate = lambda flight: None
    link.run(200)
    unharmed(link)


UNKNOWN = SelectorRange(type=9, protocol=0, body=b"")
QUICK_LIES: dict[str, Change] = {
    "another cipher": transforms((1, 20, 192), (5, 0, 0)),
    "unasked group": transforms((1, 20, 128), (4, 31, 0), (5, 0, 0)),
    "no cipher": transforms((5, 0, 0)),
    "NULL": transforms((1, 11, 0), (3, 12, 0), (5, 0, 0)),
    "AH": proposal(protocol=2),
    "SPI 0": proposal(spi=bytes(4)),
    "SPI 255": proposal(spi=b"\0\0\0\xff"),
    "SPI of 8 octets": proposal(spi=b"12345678"),
    "no SPI": proposal(spi=b""),
    "other traffic": selectors("10.77.0.0/16", TrafficSelectorsR),
    "other traffic of ours": selectors("10.77.0.0/16", TrafficSelectorsI),
    "IPv6 instead": selectors("fd00::/16", TrafficSelectorsR),
    "no selectors": every(TrafficSelectorsI, lambda one: None),
    "unknown selectors": every(
        TrafficSelectorsI,
        lambda one: TrafficSelectorsI(ranges=(SelectorRange(type=9, protocol=0, body=b""),)),
    ),
}


@pytest.mark.parametrize("lie", QUICK_LIES)
@pytest.mark.parametrize("when", ["IKE_AUTH", "create", "rekey"])
def test_answers_about_a_child(lie: str, when: str) -> None:
    """Nothing that was not asked for is installed; the reason is told, and the peer does not keep it
    either."""
    link = connected(nets=2) if when != "IKE_AUTH" else Link(*tunnel_hosts(nets=2))
    exchange = Exchange.IKE_AUTH if when == "IKE_AUTH" else Exchange.CREATE_CHILD_SA
    lying(link, "right", exchange, True, QUICK_LIES[lie])
    old = list(link.left.pairs)
    if when == "rekey":
        link.rekey_child(link.left)
    else:
        link.up("net" if when == "IKE_AUTH" else "net1")
    link.run(3)
    if (when, lie) == (
        "IKE_AUTH",
        "unasked group",
    ):  # IKE_AUTH has none: not looked at
        assert link.left.pairs[0].inbound.suite.group is None
        return
    assert [one for one in link.left.pairs if one not in old] == [], story(link)
    assert link.left.failures
    link.fate = lambda flight: None
    link.run(10)
    unharmed(link, whole=False)
    for one in link.left.pairs:
        assert link.right.database.by_spi(one.outbound.spi) is not None, story(link)
    ours = {one.inbound.spi for one in link.left.database.pairs()}
    assert {one.outbound.spi for one in link.right.database.pairs()} <= ours, story(link)


@pytest.mark.parametrize("wide", ["0.0.0.0/0", "10.0.0.0/8"])
def test_wider_selectors_are_cut_to_what_was_asked(wide: str) -> None:
    """Section 2.9 lets a responder narrow, not widen."""
    link = Link(*tunnel_hosts())
    lying(link, "right", Exchange.IKE_AUTH, True, selectors(wide, TrafficSelectorsR))
    link.up("net")
    link.run(3)
    assert [str(one) for pair in link.left.pairs for one in pair.selector.remote] == ["10.2.0.0/24"]


@pytest.mark.parametrize("lie", [one for one in QUICK_LIES if one not in ("unasked group", "another cipher")])
def test_requests_for_a_child(lie: str) -> None:
    """As responder: what policy does not have is refused or malformed, and nothing is installed."""
    link = connected(nets=2)
    lying(link, "left", Exchange.CREATE_CHILD_SA, False, QUICK_LIES[lie])
    old = list(link.right.pairs)
    link.up("net1")
    link.run(3)
    assert [one for one in link.right.pairs if one not in old] == [], story(link)
    link.fate = lambda flight: None
    link.run(200)
    unharmed(link)


@pytest.mark.parametrize("spi", [bytes(8), b"", b"1234", b"1" * 16])
@pytest.mark.parametrize("liar", ["initiator", "responder"])
def test_spis_of_the_next_ike_sa(spi: bytes, liar: str) -> None:
    """Eight octets and not zero (section 3.3.1)."""
    link = connected()
    who = "left" if liar == "initiator" else "right"
    lying(link, who, Exchange.CREATE_CHILD_SA, who == "right", proposal(spi=spi))
    link.rekey(link.left)
    link.run(3)
    link.fate = lambda flight: None
    link.run(200)
    unharmed(link)


# The rest of IKE_AUTH ---------------------------------------------------------------------------------------


def test_an_answer_without_auth() -> None:
    """A responder that proves nothing gets nothing."""
    link = Link(*tunnel_hosts())
    lying(link, "right", Exchange.IKE_AUTH, True, every(Authentication, lambda one: None))
    link.up("net")
    link.run(100)
    unharmed(link)
    assert not link.left.ikes
    assert link.left.failures


@pytest.mark.parametrize("exchange", [Exchange.IKE_SA_INIT, Exchange.IKE_AUTH, Exchange.CREATE_CHILD_SA])
def test_an_unknown_critical_payload_in_an_answer(exchange: int) -> None:
    """It is malformed then: nobody can be told (section 2.5)."""
    link = connected(nets=2) if exchange == Exchange.CREATE_CHILD_SA else Link(*tunnel_hosts())
    extra: Change = every(SecurityAssociation, lambda one: Unknown(99, True, b""))
    lying(link, "right", exchange, True, extra)
    link.up("net1" if exchange == Exchange.CREATE_CHILD_SA else "net")
    link.run(3)
    link.fate = lambda flight: None
    link.run(200)
    unharmed(link)


def test_encryption_that_policy_guarantees() -> None:
    """A rule with `encrypt` takes no suite that only authenticates, though its crypto set has one."""
    sets = '[crypto.mixed]\nquick = ["null sha256", "aes128gcm"]\n'
    rules = {"left_rule": 'crypto = "mixed"', "right_rule": 'crypto = "mixed"\nencrypt = true'}
    link = Link(*tunnel_hosts(**rules, sets=sets))
    link.up("net")
    link.run(3)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.pairs[0].inbound.suite).startswith("aes128gcm")


def test_another_rule_admits_the_peer() -> None:
    """Two rules for the same address, told apart by whom they expect: the peer gets the one that names it."""
    first = tunnel_rules("right", extra='peer = "other.example"')
    second = tunnel_rules("right", extra='peer = "left.*"').replace('"net"', '"mine"')
    left, _ = tunnel_hosts()
    address: Address = tunnel_hosts()[1].address
    right = host(
        "right", address, first + second.split("[auth.any]")[0], psk("right.example", "left.example")
    )
    link = Link(left, right)
    link.up("net")
    link.run(3)
    assert [one.rule for one in right.pairs] == ["mine"], story(link)
