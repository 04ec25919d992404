"""Kerberos in IKEv1 that proves nothing: changed, missing, wrapped by somebody else, or without credentials.

If one of these fails, a peer is believed whose tokens belong to another exchange."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from support.link import (
    BOTH,
    agree,
)
from support.realm import SETS, Change, Realm, Side, changing, material, nothing, pair, useless

from ikd.auth import Declined
from ikd.auth.identity import IdKind
from ikd.auth.keytab import Keytab
from ikd.events import AuthenticationFailed, PeerAuthenticated
from ikd.ikev1 import proofs
from ikd.isakmp.numbers import MainAttribute
from ikd.isakmp.payloads import GssToken, Identification, SecurityAssociation
from ikd.wire.isakmp import Payload


def with_token(data: bytes) -> Change:
    return lambda payloads: [GssToken(token=data) if isinstance(one, GssToken) else one for one in payloads]


@pytest.mark.parametrize(("message", "victim"), [(3, "right"), (4, "left")])
def test_changed_token_breaks_the_hash(message: int, victim: str) -> None:
    """These sides do not notice: the hash that covers the tokens must."""
    link = pair()
    link.fate = changing(message, with_token(b"another token"))
    link.up()
    link.run(20)
    useless(link)
    assert "has not seen the same exchange" in link.named(victim).failures[0].reason
    assert not link.named(victim).of(PeerAuthenticated)


@pytest.mark.parametrize("message", [3, 4])
def test_message_without_a_token(message: int) -> None:
    """It is no message of this method, and waits for a better one."""
    link = pair()
    link.fate = changing(message, lambda found: [one for one in found if not isinstance(one, GssToken)])
    link.up()
    link.run(60)
    agree(link, ikes=1, pairs=1)  # the next one is whole


@pytest.mark.parametrize(("message", "victim"), [(1, "right"), (2, "left")])
def test_name_is_bound_by_the_hash(message: int, victim: str) -> None:
    """Who changes a name on the way is found out, whichever name it is."""

    def renamed(payloads: list[Payload]) -> list[Payload]:
        (sa,) = [one for one in payloads if isinstance(one, SecurityAssociation)]
        (proposal,) = sa.proposals
        (transform,) = proposal.transforms
        name = proofs.encode_name("host/other.example")
        attributes = tuple((k, name if k == MainAttribute.GSS_NAME else v) for k, v in transform.attributes)
        changed = replace(proposal, transforms=(replace(transform, attributes=attributes),))
        return [replace(one, proposals=(changed,)) if one is sa else one for one in payloads]

    link = pair()
    link.fate = changing(message, renamed)
    link.up()
    link.run(20)
    useless(link)
    assert link.named(victim).of(AuthenticationFailed)
    assert not link.named(victim).of(PeerAuthenticated)


@pytest.mark.parametrize("liar", BOTH)
def test_hash_that_somebody_else_wrapped(monkeypatch: pytest.MonkeyPatch, liar: str) -> None:
    """A hash without the context proves nothing, nor does a wrap of something else."""
    link = pair()
    wrap = Side.wrap
    monkeypatch.setattr(
        Side, "wrap", lambda self, data: data if self.ours.startswith(f"host/{liar}") else wrap(self, data)
    )
    link.up()
    link.run(120)
    assert not link.left.pairs
    assert not link.right.pairs
    victim = link.right if liar == "left" else link.left
    assert victim.of(AuthenticationFailed)[0].reason == "the peer's wrapped message was altered"
    assert not victim.of(PeerAuthenticated)


@pytest.mark.parametrize("token", [b"", b"error: keytab"])
def test_acceptor_refuses(token: bytes) -> None:
    """The acceptor's host says why; with a token for the peer its host learns it, too, and at once."""
    link = pair(Realm(refuses=Declined("our keytab is out of date", "write the keytab anew", token)))
    link.up()
    link.run(1 if token else 60)
    nothing(link)
    (ours,) = link.right.failures
    assert (ours.reason, ours.remedy, ours.rule) == (
        "our keytab is out of date",
        "write the keytab anew",
        "net",
    )
    (theirs,) = link.left.failures
    if token:
        assert theirs.reason == "the peer says that its keytab is out of date"
        assert theirs.remedy == "write it anew"
    else:
        assert theirs.notify == "AUTHENTICATION_FAILED"


def test_host_without_a_keytab() -> None:
    """Nothing is sent that could not be answered for."""
    link = pair(left=material("left", keytab=False))
    link.up()
    link.run(5)
    nothing(link)
    assert not link.flights
    assert link.left.failures[0].reason == "this host has no Kerberos credential"
    assert "identity.keytab" in link.left.failures[0].remedy


def test_keytab_without_a_machine() -> None:
    """Other methods go on; with none it is said what the keytab lacks."""
    empty = replace(material("left", key=True), keytab=Keytab("/nowhere/left.keytab", ()))
    sets = SETS + '[auth.both]\nfirst = ["kerberos", "psk"]\n'
    right = material("right", key=True)
    link = pair(sets=sets, auth="both", left=empty, right=right, left_rule="", right_rule="")
    link.up()
    link.run(5)
    agree(link, ikes=1, pairs=1)
    link = pair(left=empty)
    link.up()
    link.run(5)
    nothing(link)
    assert "has no key of a machine" in link.left.failures[0].reason


def test_without_vendor_ids() -> None:
    """Kerberos is not offered where nothing may say that it is meant."""
    link = pair()
    link.left.endpoint.env.settings = replace(link.left.endpoint.env.settings, vendor_ids="none")
    link.up()
    link.run(5)
    nothing(link)
    assert not link.flights
    assert "with vendor IDs, Kerberos" in link.left.failures[0].remedy


def test_peer_without_kerberos() -> None:
    """Both logs name the method."""
    link = pair(right=material("right", keytab=False, key=True), sets=SETS)
    link.up()
    link.run(60)
    nothing(link)
    assert link.right.failures


def test_names_and_hash_cover_what_racoon_covers() -> None:
    """Name before tokens, and the name in Latin-1 however it was sent."""
    assert proofs.covered("host/a@R", [b"one", b"two"]) == b"host/a@Ronetwo"
    assert proofs.covered("", [b"one"]) == b"one"
    assert proofs.decode_name("host/a@R".encode("utf-16-le")) == "host/a@R"
    assert proofs.decode_name(b"host/a@R") == "host/a@R"
    assert proofs.decode_name(b"\x00\xd8") != ""  # half a character is no exception


def test_nobody_claims_a_principal_in_an_identity_payload() -> None:
    """The kind that stands for a proven principal is none of the wire's."""
    assert IdKind.PRINCIPAL > 255
    with pytest.raises(struct.error):
        Identification(type=int(IdKind.PRINCIPAL), data=b"host/a").encode()
