"""ikd.auth.credentials: which method, key and certificate serve a rule, and the reasons when none does."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.certificates import (
    CERTIFICATE,
    DAY,
    KINDS,
    NOW,
    PSK,
    authority,
    below,
    host,
    identity,
    key,
    own,
    rule,
    transcript,
)

from ikd import pki
from ikd.auth import Authenticated, Declined, Identity, Token, signature
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Credentials, Material
from ikd.auth.facts import key_hash
from ikd.auth.identity import IdKind
from ikd.auth.psk import PskEntry
from ikd.auth.revocation import CrlCheck
from policy.rules import AuthMethod, Rule, Tunnel
from sadb.sa import Mode
from sadb.secret import Secret

ROOT = authority()
SUB = below(ROOT, "Sub")
A, B = host(SUB, "a.example"), host(ROOT, "b.example", number=1)
KEY = Secret(b"shared by both")


class Clock:
    """Time that the test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def side(
    *hosts: HostCertificate, keys: tuple[PskEntry, ...] = (), clock: Clock | None = None, **more: object
) -> Credentials:
    """Credentials of one host, which trusts the root."""
    material = Material(hosts=hosts, keys=keys, anchors=(ROOT.certificate,), **more)  # type: ignore[arg-type]
    return Credentials(material, clock or Clock())


ALICE = side(own(A, SUB), keys=(PskEntry(KEY, ("b.example",)),))
BOB = side(own(B), keys=(PskEntry(KEY, ("a.example",)),))


def authenticate(
    prover: Credentials, verifier: Credentials, used: Rule, wanted: Rule, me: str, peer: str
) -> Authenticated:
    """One direction: what the prover sends for its rule, checked by the other's rule."""
    proof = prover.prover(used, identity(me), identity(peer), transcript(), signature.ANNOUNCED).step(None)
    found = verifier.verifier(wanted, identity(me), transcript(), local=identity(peer)).step(proof.token)
    assert found.peer is not None
    return found.peer


def test_a_different_method_on_each_side() -> None:
    """RFC 7296 section 2.15: one side with a certificate, the other with a key."""
    peer = authenticate(ALICE, BOB, rule(CERTIFICATE), rule(CERTIFICATE, PSK), "a.example", "b.example")
    assert (peer.method, str(peer.identity)) == ("certificate", "a.example")
    peer = authenticate(BOB, ALICE, rule(PSK), rule(CERTIFICATE, PSK), "b.example", "a.example")
    assert (peer.method, str(peer.identity)) == ("psk", "b.example")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pss", [False, True])
def test_certificates_of_every_kind(kind: str, pss: bool) -> None:
    """Choosing the scheme by key and announcement fails for some key."""
    root = authority("CA", kind)
    material = Material(hosts=(own(host(root, "a.example", kind)),), rsa_pss=pss)
    other = Credentials(Material(anchors=(root.certificate,)), Clock())
    peer = authenticate(
        Credentials(material, Clock()), other, rule(CERTIFICATE), rule(CERTIFICATE), "a.example", "b.example"
    )
    assert ("pss" in peer.description) is (pss and kind == "rsa-2048")


@pytest.mark.parametrize(
    ("used", "wanted", "reason"),
    [
        (PSK, CERTIFICATE, 'with a pre-shared key, rule "office" wants a certificate'),
        (CERTIFICATE, PSK, 'with a certificate, rule "office" wants a pre-shared key'),
        (PSK, AuthMethod("kerberos"), "with a pre-shared key, rule .* wants kerberos"),
    ],
)
def test_method_the_rule_does_not_allow(used: AuthMethod, wanted: AuthMethod, reason: str) -> None:
    """A peer could pick the weakest method there is, whatever the rule says."""
    with pytest.raises(Declined, match=reason) as caught:
        authenticate(ALICE, BOB, rule(used), rule(wanted), "a.example", "b.example")
    assert "rules agree" in caught.value.remedy


@pytest.mark.parametrize("method", [0, 3, 12, 13, 15, 201, 255])
def test_unknown_methods_are_declined(method: int) -> None:
    """NULL authentication (13, RFC 7619) above all."""
    with pytest.raises(Declined, match=f"authentication method {method}"):
        BOB.verifier(rule(CERTIFICATE, PSK), identity("a.example"), transcript()).step(Token(b"x", method))


def test_nobody_stays_anonymous() -> None:
    """ID_NULL with a key for any peer would be anybody."""
    anybody = side(keys=(PskEntry(KEY),))
    nobody = Identity(IdKind.NULL, b"")
    proof = ALICE.prover(rule(PSK), identity("a.example"), identity("b.example"), transcript()).step(None)
    with pytest.raises(Declined, match="anonymous"):
        anybody.verifier(rule(PSK), nobody, transcript()).step(proof.token)
    with pytest.raises(Declined, match="no proof"):
        anybody.verifier(rule(PSK), identity("a.example"), transcript()).step(None)


def test_rule_without_methods() -> None:
    """A rule without an authentication set must authenticate nobody."""
    for empty in (rule(), Rule("office", rule().selector)):
        with pytest.raises(Declined, match="no authentication method") as caught:
            ALICE.prover(empty, identity("a.example"), None, transcript())
        assert caught.value.remedy
        with pytest.raises(Declined, match="wants nothing"):
            ALICE.verifier(empty, identity("a.example"), transcript()).step(Token(b"x", 2))


# Our certificate -----------------------------------------------------------------------------------------


def test_second_method_when_the_first_cannot() -> None:
    """A host without a certificate could not use the rule's pre-shared key."""
    keyed = side(keys=(PskEntry(KEY, ("b.example",)),))
    token = keyed.prover(rule(CERTIFICATE, PSK), identity("a.example"), identity("b.example"), transcript())
    proof = token.step(None).token
    assert proof is not None
    assert proof.method == 2


def test_reasons_of_all_methods_with_a_remedy() -> None:
    """The administrator would see the last reason only."""
    with pytest.raises(Declined) as caught:
        side().prover(
            rule(AuthMethod("kerberos"), CERTIFICATE, PSK), identity("a.example"), None, transcript()
        )
    assert str(caught.value) == (
        "IKEv2 cannot authenticate with kerberos; this host has no certificate; "
        "no pre-shared key for this peer"
    )
    assert "ikd.toml" in caught.value.remedy


def test_our_certificate_must_name_our_identity() -> None:
    """The peer would refuse us without our administrator knowing why."""
    with pytest.raises(Declined, match=r"our identity is c\.example, but our certificate names a") as caught:
        ALICE.prover(rule(CERTIFICATE), identity("c.example"), None, transcript(), signature.ANNOUNCED)
    assert "identity.id" in caught.value.remedy


def test_our_certificate_must_be_valid() -> None:
    """The clock moves on while the daemon runs."""
    clock = Clock()
    ours = side(own(A, SUB), clock=clock)
    assert ours.local_identity(rule(CERTIFICATE)) == identity("a.example")
    clock.now = NOW + 365 * DAY
    with pytest.raises(Declined, match=r"CN=a\.example is not valid now \(valid 2027-01-14 to"):
        ours.prover(rule(CERTIFICATE), identity("a.example"), None, transcript(), signature.ANNOUNCED)
    with pytest.raises(Declined, match="no identity to claim"):
        ours.local_identity(rule(CERTIFICATE))


def test_our_certificate_must_fit_the_rule() -> None:
    """We would offer what the rule forbids."""
    strict = AuthMethod("certificate", signing="ed25519")
    with pytest.raises(Declined, match=r"our certificate CN=a\.example has a key of ecdsa-p256"):
        ALICE.prover(rule(strict), identity("a.example"), None, transcript(), signature.ANNOUNCED)


def test_peer_s_authorities_choose_among_our_certificates() -> None:
    """The peer would get a certificate it does not trust although we have another."""
    other = authority("Other root", number=400)
    long = pki.issue(other, "a.example", ["a.example"], now=NOW - DAY, days=900, key=key(number=5))
    ours = Credentials(
        Material(hosts=(own(A, SUB), own(long)), anchors=(ROOT.certificate, other.certificate)), Clock()
    )

    def sent(*authorities: bytes) -> bytes:
        prover = ours.prover(
            rule(CERTIFICATE), identity("a.example"), None, transcript(), signature.ANNOUNCED, authorities
        )
        token = prover.step(None).token
        assert token is not None
        return token.certificates[0]

    short, longer = own(A).sent[0], own(long).sent[0]
    assert sent() == longer  # the longest-lived first
    assert sent(b"?" * 20) == longer  # a preference, not a condition
    assert sent(b"?" * 20, key_hash(ROOT.certificate)) == short
    assert sent(key_hash(SUB.certificate)) == short
    assert sent(key_hash(other.certificate), key_hash(ROOT.certificate)) == longer
    assert ours.certreq() == (key_hash(ROOT.certificate), key_hash(other.certificate))


def test_certificate_whose_key_the_peer_cannot_verify_gives_way() -> None:
    """A peer without EdDSA would get an Ed25519 signature although we have an RSA key."""
    ed = host(ROOT, "a.example", "ed25519")
    ours = side(own(ed), own(host(ROOT, "a.example", "rsa-2048")))
    sha2 = frozenset((signature.SHA2_256,))
    token = ours.prover(rule(CERTIFICATE), identity("a.example"), None, transcript(), sha2).step(None).token
    assert token is not None
    assert signature.read(token.method, token.data)[0].name == "rsa-sha256"
    with pytest.raises(Declined, match="fits no signature hash"):
        side(own(ed)).prover(rule(CERTIFICATE), identity("a.example"), None, transcript(), sha2)


# Identities ----------------------------------------------------------------------------------------------


def test_identity_we_claim() -> None:
    """Configured before certificate before key before address."""
    bound = (PskEntry(KEY, (), "hub.example"),)
    here = ip_address("10.0.0.1")
    tunnel = Rule("t", rule().selector, mode=Mode.TUNNEL, tunnel=Tunnel(local=here), auth=rule(PSK).auth)
    assert str(side(own(A), identity=identity("x.example")).local_identity(rule(CERTIFICATE))) == "x.example"
    assert str(ALICE.local_identity(rule(CERTIFICATE))) == "a.example"
    assert str(side(own(A), keys=bound).local_identity(rule(PSK))) == "hub.example"
    assert str(side().local_identity(rule(PSK), here)) == "10.0.0.1"
    assert str(side().local_identity(tunnel)) == "10.0.0.1"
    assert str(side().local_identity(rule(PSK), ip_address("2001:db8::1"))) == "2001:db8::1"


def test_configured_name_goes_out_in_the_certificate_s_octets() -> None:
    """Peers that compare octets (RFC 4945 section 3.1.5) would refuse another spelling of the subject."""
    ours = side(own(A, SUB), identity=identity("cn=A.EXAMPLE"))
    assert ours.local_identity(rule(CERTIFICATE)).data == A.certificate.subject.public_bytes()


# Keys ----------------------------------------------------------------------------------------------------


def test_key_for_the_claimed_identity_only() -> None:
    """Whoever has any key of ours could be any peer of ours."""
    ours = side(keys=(PskEntry(KEY, ("a.example",)), PskEntry(Secret(b"other"), ("c.example",))))
    proof = ALICE.prover(rule(PSK), identity("a.example"), identity("b.example"), transcript()).step(None)
    assert ours.verifier(rule(PSK), identity("a.example"), transcript(), local=identity("b.example")).step(
        proof.token
    )
    with pytest.raises(Declined, match=r"for c\.example is not the one the peer has") as caught:
        ours.verifier(rule(PSK), identity("c.example"), transcript(), local=identity("b.example")).step(
            proof.token
        )
    assert "secrets.toml" in caught.value.remedy
    with pytest.raises(Declined, match=r"no pre-shared key for d\.example") as caught:
        ours.verifier(rule(PSK), identity("d.example"), transcript(), local=identity("b.example")).step(
            proof.token
        )
    assert 'peers = ["d.example"]' in caught.value.remedy


def test_key_before_the_peer_has_spoken() -> None:
    """The initiator must find the key by what its rule says of the peer, or by the peer's address."""
    keys = (PskEntry(KEY, ("b.example",)), PskEntry(Secret(b"other"), ("10.0.0.0/8",)))
    ours = side(keys=keys)

    def auth(used: Rule, address: str | None = None) -> bytes:
        where = ip_address(address) if address else None
        token = ours.prover(used, identity("a.example"), None, transcript(), address=where).step(None).token
        assert token is not None
        return token.data

    by_name, by_address = auth(rule(PSK, peer="B.example")), auth(rule(PSK), "10.0.0.9")
    assert by_name != by_address
    assert auth(rule(PSK, peer="b.example"), "10.0.0.9") == by_name
    with pytest.raises(Declined, match=r"no pre-shared key for 192\.0\.2\.1"):
        auth(rule(PSK), "192.0.2.1")


# Reload, secrets -----------------------------------------------------------------------------------------


def test_new_material_decides_alone() -> None:
    """A peer known to the old credentials would still be accepted after a reload that revokes it."""
    proof = ALICE.prover(
        rule(CERTIFICATE), identity("a.example"), None, transcript(), signature.ANNOUNCED
    ).step(None)
    crl = pki.make_crl(SUB, [A.certificate], NOW)
    for now, reason in (
        (side(own(B)), None),
        (side(own(B), crls=(crl,)), "was revoked"),
        (side(own(B), crl_check=CrlCheck.REQUIRE), "no current revocation list"),
        (Credentials(Material(anchors=(authority("Other").certificate,)), Clock()), "is not trusted"),
    ):
        check = now.verifier(rule(CERTIFICATE), identity("a.example"), transcript())
        if reason is None:
            assert check.step(proof.token).peer
            continue
        with pytest.raises(Declined, match=reason):
            check.step(proof.token)


def test_certificate_that_expires_while_we_run() -> None:
    """A chain remembered on the first day would be good on the last."""
    clock = Clock()
    ours = side(own(B), clock=clock)
    proof = ALICE.prover(
        rule(CERTIFICATE), identity("a.example"), None, transcript(), signature.ANNOUNCED
    ).step(None)
    check = ours.verifier(rule(CERTIFICATE), identity("a.example"), transcript())
    assert check.step(proof.token).peer
    clock.now += 364 * DAY + 1
    with pytest.raises(Declined, match=r"certificate CN=a\.example expired 2028-01-14") as caught:
        check.step(proof.token)
    assert "renew" in caught.value.remedy


def test_no_secret_in_any_text() -> None:
    """Keys would stand in logs and tracebacks."""
    ours = side(own(A, SUB), keys=(PskEntry(Secret(b"very secret"), ("b.example",)),))
    prover = ours.prover(rule(PSK), identity("a.example"), identity("b.example"), transcript(b"octets"))
    verifier = ours.verifier(rule(PSK), identity("b.example"), transcript(b"octets"))
    texts = (repr(ours), repr(ours.material), repr(prover), repr(verifier), repr(own(A, SUB)))
    assert not any("very secret" in text or "PRIVATE" in text or "octets'" in text for text in texts)
    assert "PrivateKey" not in repr(own(A, SUB))
