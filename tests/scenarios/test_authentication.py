"""IKE_AUTH (RFC 7296 sections 2.15, 2.16, 2.21.2; RFC 7427): every mix of methods, and every way in which a
proof can be wrong, in both directions.

If one of these fails, two hosts that trust each other do not come together, or, far worse, an IKE SA or a
pair is there for a peer that has proven nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from ipaddress import ip_address
from typing import Any

import pytest
from support import certificates
from support.certificates import KINDS
from support.link import (
    BOTH,
    POSIX,
    SECRET,
    Host,
    Link,
    agree,
    connected,
    host,
    psk,
    story,
    tunnel_hosts,
    tunnel_rules,
)

from ikd import pki
from ikd.auth.certificate import CertificateProver, HostCertificate
from ikd.auth.credentials import Credentials, Material
from ikd.auth.identity import Identity
from ikd.auth.psk import PskEntry
from ikd.events import AuthenticationFailed, IkeClosed, IkeEstablished, PeerAuthenticated
from ikd.ikev2 import child
from ikd.ikev2.channel import Channel
from ikd.ikev2.message import Message
from ikd.ikev2.numbers import Exchange
from ikd.ikev2.payloads import Delete, IdentificationI, Nonce
from ikd.pki import Pair
from ikd.settings import IkeSettings
from policy.rules import Rule
from sadb.address import Address
from sadb.secret import Secret


@cache
def authority(name: str = "CN=Lab CA") -> Pair:
    """An authority that is valid at the laboratory's time."""
    return pki.make_ca(name, POSIX - 3600, key=certificates.key("ecdsa-p256", len(name)))


@cache
def certified(
    name: str, kind: str = "ecdsa-p256", ca: str = "CN=Lab CA", start: float = POSIX - 3600
) -> Material:
    """Credentials of a host with a certificate for NAME.example."""
    full = f"{name}.example"
    pair = pki.issue(authority(ca), f"CN={full}", [full], now=start, key=certificates.key(kind))
    own = HostCertificate((pair.certificate,), pair.key)
    return Material(Identity.parse(full), hosts=(own,), anchors=(authority(ca).certificate,))


def with_key(material: Material, peer: str) -> Material:
    """The same with a pre-shared key for a peer."""
    return replace(material, keys=(PskEntry(Secret(SECRET), (peer,)),))


# What must work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_certificates_of_every_kind(kind: str, first: str) -> None:
    """Each kind of key signs and is verified, in both roles."""
    link = Link(*tunnel_hosts(left=certified("left", kind), right=certified("right", "ecdsa-p256")))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.right.of(PeerAuthenticated)[0].identity == "left.example"
    assert link.left.of(PeerAuthenticated)[0].identity == "right.example"
    assert "CN=left.example" in link.right.of(PeerAuthenticated)[0].description


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("turned", [False, True])
def test_a_different_method_on_each_side(first: str, turned: bool) -> None:
    """One side has a certificate, the other only a key that both have (section 2.15)."""
    names = BOTH[::-1] if turned else BOTH
    one, other = names
    material = {
        one: with_key(certified(one), f"{other}.example"),
        other: Material(
            Identity.parse(f"{other}.example"),
            psk(other, f"{one}.example").keys,
            anchors=(authority().certificate,),
        ),
    }
    link = Link(*tunnel_hosts(**material))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    seen = {side.name: side.of(PeerAuthenticated)[0].method for side in (link.left, link.right)}
    assert seen == {one: "psk", other: "certificate"}


def test_rsa_pss() -> None:
    """RSASSA-PSS instead of PKCS#1, as the signer is set to (RFC 7427 section 4.3)."""
    left = replace(certified("left", "rsa-2048"), rsa_pss=True)
    link = Link(*tunnel_hosts(left=left, right=certified("right")))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)


# What must not ----------------------------------------------------------------------------------------------


def nothing(link: Link) -> None:
    """No IKE SA, no pair, no reservation, and nobody was ever taken for proven by both sides."""
    agree(link, ikes=0, pairs=0)
    assert not link.left.backend.pairs
    assert not link.right.backend.pairs


def refusal(one: Host) -> str:
    """Why a host refused its peer."""
    assert one.of(AuthenticationFailed)
    return str(one.of(AuthenticationFailed)[0].reason)


@pytest.mark.parametrize("first", BOTH)
def test_a_wrong_key(first: str) -> None:
    """The responder notices first and says no more than AUTHENTICATION_FAILED; both logs say what to do."""
    left = psk("left.example", "right.example", b"one secret that is long enough")
    right = psk("right.example", "left.example", b"another secret, long enough too")
    link = Link(*tunnel_hosts(left=left, right=right))
    link.up("net", first)
    link.run(60)
    nothing(link)
    initiator = link.named(first)
    responder = link.other(initiator)
    assert "key" in refusal(responder)
    audit = [
        [(e.identity, e.method, e.rule, e.cause) for e in one.of(AuthenticationFailed)]
        for one in (responder, initiator)
    ]
    name = f"{first}.example"
    assert audit[0] == [(name, "psk", "net", "wrong-key")]
    assert [one[1:] for one in audit[1]] == [("certificate or psk", "net", "refused-by-peer")]
    assert responder.failures[0].rule == "net"
    assert initiator.failures[0].notify == "AUTHENTICATION_FAILED"
    assert initiator.failures[0].reason == "the peer refused our authentication"
    assert "pre-shared key" in initiator.failures[0].remedy
    assert not responder.of(PeerAuthenticated)


@pytest.mark.parametrize("first", BOTH)
def test_no_key_for_this_peer(first: str) -> None:
    """The responder does not know the identity."""
    left = psk("left.example", "right.example")
    right = psk("right.example", "somebody.else")
    link = Link(*tunnel_hosts(left=left, right=right))
    link.up("net", first)
    link.run(60)
    nothing(link)
    assert "left.example" in link.right.failures[0].reason
    assert "[[psk]]" in link.right.failures[0].remedy
    if first == "left":
        assert link.left.failures[0].notify == "AUTHENTICATION_FAILED"
    else:  # left believed to be done
        assert link.left.of(IkeClosed)[0].by_peer


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("who", BOTH)
def test_the_rule_expects_somebody_else(first: str, who: str) -> None:
    """`peer` of one side's rule: the reason names whom it expects and who came; the other side is told
    nothing but the notify."""
    expect = {f"{who}_rule": 'peer = "db.example"'}
    link = Link(*tunnel_hosts(**expect))
    link.up("net", first)
    link.run(60)
    nothing(link)
    strict = link.named(who)
    came = f"{link.other(strict).name}.example"
    assert "db.example" in refusal(strict)
    assert came in refusal(strict)
    assert 'rule "net"' in strict.failures[0].remedy
    lenient = link.other(strict)
    assert "db.example" not in str(lenient.failures)
    if first == who:  # the initiator refuses the responder, which believed to be done
        assert lenient.of(IkeClosed)[0].by_peer
    else:
        assert lenient.failures[0].notify == "AUTHENTICATION_FAILED"


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize(
    ("material", "word"),
    [
        (certified("left", ca="CN=Other CA"), "trust"),
        (certified("left", start=POSIX - 3 * 365 * 86400), "valid"),
    ],
    ids=["unknown authority", "expired"],
)
def test_a_certificate_that_is_not_good(first: str, material: Material, word: str) -> None:
    """Unknown authority, or the wrong time: refused by whoever sees it."""
    link = Link(*tunnel_hosts(left=material, right=certified("right")))
    link.up("net", first)
    link.run(60)
    nothing(link)
    reasons = " ".join(one.reason for side in (link.left, link.right) for one in side.failures)
    assert word in reasons, story(link)


class Liar(Credentials):
    """Signs with its certificate for the identity of somebody else."""

    __slots__ = ()

    def local_identity(self, rule: Rule, address: Address | None = None) -> Identity:
        return Identity.parse("boss.example")

    def _certificate(self, method: Any, identity: Identity, *rest: Any) -> CertificateProver:
        return super()._certificate(method, Identity.parse("left.example"), *rest)


@pytest.mark.parametrize("first", BOTH)
def test_an_identity_that_the_certificate_does_not_name(first: str) -> None:
    """Who holds a good certificate may not claim to be somebody else with it."""
    left = certified("left")
    link = Link(*tunnel_hosts(left=left, right=certified("right")))
    link.left.endpoint.env.credentials = Liar(left, lambda: POSIX)
    link.up("net", first)
    link.run(60)
    nothing(link)
    assert "boss.example" in refusal(link.right)


@pytest.mark.parametrize("first", BOTH)
def test_the_rule_expects_a_principal(first: str) -> None:
    """Only Kerberos or NTLM can prove it: with a pre-shared key the peer is refused, and nothing breaks."""
    link = Link(*tunnel_hosts(right_rule="peer = 'CORP\\left$'\n"))
    link.up("net", first)
    link.run(60)
    nothing(link)
    assert "expects peer" in refusal(link.right)


@pytest.mark.parametrize("first", BOTH)
def test_methods_that_do_not_meet(first: str) -> None:
    """One side's rule asks for a certificate, the other has only a key."""
    sets = '[auth.cert]\nfirst = ["certificate"]\n[auth.any]\nfirst = ["certificate", "psk"]\n'
    left = host("left", ip_address("192.0.2.1"), tunnel_rules("left", auth="cert") + sets,
                with_key(certified("left"), "right.example"))  # fmt: skip
    right = host("right", ip_address("192.0.2.2"), tunnel_rules("right"),
                 Material(Identity.parse("right.example"), psk("right", "left.example").keys,
                          anchors=(authority().certificate,)))  # fmt: skip
    link = Link(left, right)
    link.up("net", first)
    link.run(60)
    nothing(link)
    assert "wants a certificate" in refusal(left), story(link)


@pytest.mark.parametrize("lost", [3, 4, 5])
def test_the_refusal_of_the_responder_may_be_lost(lost: int) -> None:
    """The responder must not go on with an IKE SA whose peer has refused it: it is told again."""
    link = Link(*tunnel_hosts(left_rule='peer = "db.example"'))
    link.fate = lambda flight: setattr(flight, "lost", flight.number == lost)
    link.up("net", "left")
    link.run(120)
    nothing(link)


# Before the proof -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [Exchange.CREATE_CHILD_SA, Exchange.INFORMATIONAL, 60])
def test_requests_of_a_peer_that_has_proven_nothing(exchange: int) -> None:
    """Whoever answers IKE_SA_INIT has keys, and nothing else: a request before its AUTH is not served,
    neither a Child SA is made nor an IKE SA deleted."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "delay", 5.0 if flight.number == 3 else 0.01)
    link.up("net")
    link.run(0.5)
    liar = link.right.ikes[0].session.channel  # has the keys
    body = _create(link.right) if exchange == Exchange.CREATE_CHILD_SA else (Delete(protocol=1, spis=()),)
    (data,) = liar.seal(Message(exchange, body, False, 0), link.path(link.right))
    before = len(link.flights)
    link.inject(link.left, data)
    assert len(link.flights) == before
    assert not link.left.backend.pairs
    assert link.left.drops == ["unexpected"]
    link.run(60)
    agree(link, ikes=1, pairs=1)


def _create(one: Host) -> tuple[object, ...]:
    """The payloads of a request for a Child SA."""
    rule = one.endpoint.policy.rule("net")
    assert rule is not None
    offer = child.offer(rule, child.quick_suites(rule), 0x12345678, rule.selector, transport=False)
    return (offer[0], Nonce(data=bytes(32)), *offer[1:])


@pytest.mark.parametrize("exchange", [Exchange.CREATE_CHILD_SA, Exchange.INFORMATIONAL])
def test_another_exchange_instead_of_ike_auth(exchange: int) -> None:
    """A responder waits for IKE_AUTH and nothing else, however well the request is protected."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "lost", flight.number == 2)
    link.up("net")
    link.run(0.5)
    initiator: Channel = link.left.ikes[0].session.channel
    (data,) = initiator.seal(Message(exchange, (), False, 1), link.path(link.left))
    link.inject(link.right, data, 500)
    assert not link.right.pairs
    assert not link.right.of(PeerAuthenticated)
    link.run(200)
    agree(link)
    assert len(link.right.of(IkeEstablished)) == len(link.right.ikes)


def test_eap_is_declined() -> None:
    """IKE_AUTH without AUTH asks for EAP, which we do not do: AUTHENTICATION_FAILED with a remedy."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "lost", flight.number == 2)
    link.up("net")
    link.run(0.5)
    channel = link.left.ikes[0].session.channel
    message = Message(Exchange.IKE_AUTH, (IdentificationI(type=2, data=b"left.example"),), False, 1)
    link.inject(link.right, channel.seal(message, link.path(link.left))[0])
    assert not link.right.ikes
    assert "EAP" in link.right.failures[0].reason


# INITIAL_CONTACT --------------------------------------------------------------------------------------------


def test_initial_contact_replaces_what_a_peer_had_before() -> None:
    """Section 2.4: a peer that has lost its state begins anew, and its former SAs go without a timeout."""
    link = connected()
    old = link.right.pairs[0]
    fresh = tunnel_hosts(seed=1)[0]
    again = Link(fresh, link.right)
    again.now = link.now
    again.up("net")
    again.run(2)
    agree(again, ikes=1, pairs=1)
    assert old not in link.right.pairs
    assert link.right.of(IkeClosed)[0].reason == "the peer has begun anew"


def test_initial_contact_of_another_identity_takes_nothing_away() -> None:
    """Else any peer that may connect could end the SAs of all others."""
    link = connected()
    stranger = host("left", ip_address("192.0.2.1"), tunnel_rules("left"),
                    psk("other.example", "right.example"), seed=7)  # fmt: skip
    right = link.right.endpoint.env.credentials
    link.right.endpoint.env.credentials = type(right)(
        Material(Identity.parse("right.example"),
                 (*right.material.keys, PskEntry(right.material.keys[0].secret, ("other.example",)))),
        lambda: POSIX,
    )  # fmt: skip
    other = Link(stranger, link.right)
    other.now = link.now
    other.up("net")
    other.run(2)
    assert len(link.right.ikes) == 2
    assert {one.peer.identity for one in link.right.ikes if one.peer} == {
        Identity.parse("left.example"),
        Identity.parse("other.example"),
    }
    assert [pair for one in link.right.ikes for pair in one.children.values()] == link.right.pairs
    assert not link.right.of(IkeClosed)


def test_a_second_negotiation_does_not_say_initial_contact() -> None:
    """We have an IKE SA with the peer: to ask it to forget what it has would cut our own traffic."""
    link = connected(settings=IkeSettings(), nets=2)
    rule = link.left.endpoint.policy.rule("net1")
    assert rule is not None
    ike = link.left.ikes[0]
    link.rekey(link.left)
    link.run(0.005)
    assert not ike.usable  # so another IKE SA is begun
    link.up("net1")
    link.run(60)
    agree(link)
    assert {one.rule for one in link.left.pairs} == {"net", "net1"}
