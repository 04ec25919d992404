"""Kerberos in IKEv1 main mode, with sides that need no KDC: rounds, what the hash binds, who is believed, and
what a slow KDC must not do (draft-ietf-ipsec-isakmp-gss-auth-07).

If one of these fails, hosts of a realm do not come together, or a peer gets an SA that Kerberos did not
prove. The same with a real KDC is in test_ikev1_kdc."""

from __future__ import annotations

from typing import Any

import pytest
from support.link import (
    BOTH,
    POSIX,
    Flight,
    Host,
    Link,
    agree,
    losing,
    story,
    tunnel_rules,
)
from support.realm import REALM, RULE, SETS, Realm, Stubbed, nothing, pair, useless

from ikd.events import MessageSent, PeerAuthenticated
from ikd.isakmp import proposals
from ikd.isakmp.numbers import MainAttribute
from ikd.isakmp.payloads import PAYLOADS, SecurityAssociation
from ikd.wire.isakmp import HEADER_SIZE, chain


def realm_of(link: Link) -> Realm:
    credentials = link.left.endpoint.env.credentials
    assert isinstance(credentials, Stubbed)
    return credentials.realm


def messages(one: Host) -> list[tuple[str, ...]]:
    """The payloads of the main-mode messages a host sent, vendor IDs and NAT-D left out."""
    return [
        tuple(name for name in event.payloads if name not in ("VID", "NAT-D"))
        for event in one.of(MessageSent)
        if event.exchange == "IDENTITY_PROTECTION" or "MAIN" in event.exchange.upper()
    ]


@pytest.mark.parametrize("first", BOTH)
def test_two_tokens(first: str) -> None:
    """The ordinary case: six messages, tokens in the third and fourth, the peer is a principal and its
    identity payload, another name altogether, plays no part."""
    link = pair()
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    initiator = link.named(first)
    assert messages(initiator) == [("SA",), ("KE", "NONCE", "GSS"), ("ID", "HASH", "N(INITIAL_CONTACT)")]
    assert messages(link.other(initiator)) == [("SA",), ("KE", "NONCE", "GSS"), ("ID", "HASH")]
    for one, other in zip((link.left, link.right), BOTH[::-1], strict=True):
        (proven,) = one.of(PeerAuthenticated)
        assert proven.method == "kerberos"
        assert proven.identity == f"principal:host/{other}.example@{REALM}"
        (session,) = [found.session for found in one.ikes]
        assert str(session.claimed) == f"{other}.ids.example"


@pytest.mark.parametrize(
    ("initiator", "responder", "pairs"), [(1, 0, 0), (1, 1, 0), (2, 1, 1), (2, 2, 1), (3, 3, 2), (4, 3, 3)]
)
def test_more_tokens(initiator: int, responder: int, pairs: int) -> None:
    """Mechanisms with more rounds take additional pairs of messages, and the last two keep their meaning."""
    link = pair(Realm(initiator, responder))
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert messages(link.left)[2:-1] == pairs * [("GSS",)]
    assert messages(link.right)[2:-1] == pairs * [("GSS",)]


@pytest.mark.parametrize("lost", range(10))
def test_any_message_may_be_lost(lost: int) -> None:
    """Also one of an additional pair; a token is given to its side once, however often it comes."""
    link = pair(Realm(3, 3))
    link.fate = losing(lost)
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)


def test_every_message_comes_twice() -> None:
    """A side that is given a token again would call it a replay."""

    def twice(flight: Flight) -> None:
        flight.copies = 1

    link = pair(Realm(2, 2))
    link.fate = twice
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("slow", BOTH)
def test_slow_kdc(slow: str) -> None:
    """While a host waits for its KDC, what is repeated is ignored: neither given to Kerberos twice nor
    answered by repeating the message before, which would have both repeat themselves at the speed of the
    link."""
    link = pair()
    link.named(slow).slow = 9.0
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert len(link.flights) < 40, story(link)


def test_kdc_slower_than_the_peer_is_patient() -> None:
    """An answer that comes when the exchange is over starts nothing."""
    link = pair()
    link.right.slow = 300.0
    link.up()
    link.run(400)
    nothing(link)
    assert "does not answer" in link.left.failures[0].reason


@pytest.mark.parametrize("nat", BOTH)
def test_behind_a_nat(nat: str) -> None:
    """Port 4500 from the fifth message on, as with the other methods."""
    link = pair(nat=nat)
    link.up("net", nat)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs[0].outbound.encapsulation


def test_rekeying_proves_anew() -> None:
    """Every ISAKMP SA has a context of its own."""
    link = pair()
    link.up()
    link.run(5)
    link.rekey(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert len(link.right.of(PeerAuthenticated)) == 2
    assert len(link.left.of(PeerAuthenticated)) == 2


def test_end_of_the_ticket_ends_the_sa() -> None:
    """Who is no longer known to the KDC must prove itself again within the life of its ticket."""
    link = pair()
    link.up()
    link.run(5)
    for one in (link.left, link.right):
        assert one.ikes[0].session.peer is not None
        assert one.ikes[0].session.peer.expires == POSIX + 36_000


def name_in(flight: Flight) -> tuple[int, bytes]:
    """The GSS name in an SA payload."""
    header = flight.header
    payloads, _ = chain(header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
    (found,) = [one for one in payloads if isinstance(one, SecurityAssociation)]
    attributes = found.proposals[0].transforms[0].attributes
    (name,) = [(kind, value) for kind, value in attributes if kind in (16384, 32001)]
    assert isinstance(name[1], bytes)
    return name[0], name[1]


def test_names_on_the_wire() -> None:
    """Attribute 16384 in UTF-16LE, as Windows has it; each side says its own."""
    link = pair()
    link.up()
    link.run(5)
    for flight, name in zip(link.flights[:2], BOTH, strict=True):
        assert name_in(flight) == (16384, f"host/{name}.example@{REALM}".encode("utf-16-le"))


@pytest.mark.parametrize("codec", ["utf-16-le", "latin-1"])
@pytest.mark.parametrize("number", [MainAttribute.GSS_NAME, MainAttribute.GSS_NAME_OLD])
def test_other_forms_of_the_name(monkeypatch: pytest.MonkeyPatch, codec: str, number: int) -> None:
    """Older peers write Latin-1, and Windows 2000 another attribute; where the rule leaves the peer's name
    open it is the one that a ticket is asked for."""
    monkeypatch.setattr("ikd.ikev1.main_mode.encode_name", lambda name: name.encode(codec))
    attributes = proposals._main_attributes

    def renumbered(*how: Any) -> Any:
        return tuple((number if kind == 16384 else kind, value) for kind, value in attributes(*how))

    monkeypatch.setattr(proposals, "_main_attributes", renumbered)
    link = pair(left_rule="")
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert realm_of(link).asked == [f"host/right.example@{REALM}"]


def test_rule_decides_whom_a_ticket_is_asked_for() -> None:
    """A peer that could choose would choose a name it has the key of."""
    link = pair(left_rule='peer = "third.example"\n')
    link.up()
    link.run(60)
    assert realm_of(link).asked == ["host/third.example"]
    useless(link)
    assert "expects" in link.left.failures[0].reason


def test_peer_of_another_name() -> None:
    """A principal the responder's rule does not expect; the identity payload says what the rule wants."""
    link = pair(right_rule='peer = "left.ids.example"\n')
    link.up()
    link.run(60)
    nothing(link)
    assert f"host/left.example@{REALM}" in link.right.failures[0].reason
    assert "`peer`" in link.right.failures[0].remedy
    assert link.left.failures[0].notify == "AUTHENTICATION_FAILED"


def test_rule_is_found_by_principal() -> None:
    """Two rules for one address: that of the peer's principal counts."""
    rules = 'peer = "left.example"\n'
    link = pair(right_rule=rules)
    other = """
[[rule]]
name     = "aaa"
local    = "10.2.7.0/24"
remote   = "10.1.7.0/24"
tunnel   = { local = "192.0.2.2", remote = "192.0.2.1" }
security = "require"
auth     = "kerberos"
keying   = ["ikev1"]
crypto   = "old"
peer     = "somebody.example"
"""
    text = other + tunnel_rules("right", auth="kerberos", extra=RULE + rules) + SETS
    link.reload(link.right, text)
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.right.of(PeerAuthenticated)[0].rule == "net"
