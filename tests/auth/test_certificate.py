"""ikd.auth.certificate and ikd.auth.facts: what a certificate proves and what a rule may ask of it."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import (
    CERTIFICATE,
    DAY,
    KINDS,
    NOW,
    authority,
    below,
    build,
    der,
    dns,
    host,
    identity,
    key,
    mutations,
    own,
    transcript,
)

from ikd.auth import Authenticated, Declined, Identity, Token, signature
from ikd.auth.certificate import CertificateProver, CertificateVerifier, unfit
from ikd.auth.chain import Trust
from ikd.auth.facts import Facts, identity_of, key_hash, names, proves
from ikd.auth.health import APPLICATION_POLICIES, NOT_COMPLIANT, SYSTEM_HEALTH, UNHEALTHY
from ikd.auth.identity import IdKind, name_key
from ikd.auth.signature import OLD_SCHEMES, SCHEMES, Scheme
from ikd.pki import Pair
from policy.rules import AuthMethod

ROOT = authority()
SUB = below(ROOT, "Sub")
LEAF = host(SUB)
IKE = ("1.3.6.1.5.5.7.3.17",)
MANY = build(
    ROOT,
    "CN=DB  server,O=Example",
    extensions=[
        (
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("db.example"),
                    x509.DNSName("*.apps.example"),
                    x509.RFC822Name("Alice@Corp.example"),
                    x509.IPAddress(ip_address("10.0.0.9")),
                    x509.IPAddress(ip_address("2001:db8::9")),
                    x509.UniformResourceIdentifier("spiffe://corp.example/db"),
                ]
            ),
            False,
        )
    ],
)


# Health --------------------------------------------------------------------------------------------------


def listed(*oids: str) -> x509.UnrecognizedExtension:
    """Microsoft's list of application policies."""
    information = [x509.PolicyInformation(x509.ObjectIdentifier(oid), None) for oid in oids]
    return x509.UnrecognizedExtension(
        APPLICATION_POLICIES, x509.CertificatePolicies(information).public_bytes()
    )


def policies(*oids: str) -> x509.CertificatePolicies:
    """The extension certificatePolicies."""
    return x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier(o), None) for o in oids])


CLIENT = "1.3.6.1.5.5.7.3.2"


@pytest.mark.parametrize(
    ("usage", "more", "reason"),
    [
        ((SYSTEM_HEALTH,), None, None),
        ((SYSTEM_HEALTH, CLIENT), listed(CLIENT, SYSTEM_HEALTH), None),
        ((SYSTEM_HEALTH,), policies("1.3.6.1.4.1.311.47.1.10"), None),
        ((), None, f"lacks the extended key usage {SYSTEM_HEALTH}"),
        ((CLIENT,), None, "lacks"),
        (("2.5.29.37.0",), None, "lacks"),  # any usage is not that one
        ((CLIENT,), listed(SYSTEM_HEALTH), "lacks"),
        ((SYSTEM_HEALTH, UNHEALTHY), None, "not healthy"),
        ((SYSTEM_HEALTH,), listed(SYSTEM_HEALTH, UNHEALTHY), "not healthy"),
        ((SYSTEM_HEALTH,), listed(CLIENT), "application policies without"),
        ((SYSTEM_HEALTH,), policies(NOT_COMPLIANT.dotted_string), "not compliant"),
    ],
)
def test_what_makes_a_health_certificate(
    usage: tuple[str, ...], more: x509.ExtensionType | None, reason: str | None
) -> None:
    """A host that its own certificate calls unhealthy would be let in, or a healthy one kept out."""
    extensions = [(x509.ExtendedKeyUsage(map(x509.ObjectIdentifier, usage)), False)] if usage else []
    made = build(ROOT, extensions=[*extensions, *([(more, False)] if more else [])])
    facts = Facts.of([made])
    assert (facts.ailment is None) is (reason is None)
    said = unfit(replace(CERTIFICATE, health=True), facts)
    assert said is None if reason is None else reason in str(said)
    assert "health" in str(said) or reason in (None, "not compliant")


# Names ---------------------------------------------------------------------------------------------------


def test_names_of_a_certificate() -> None:
    """The policy would not find a name that the certificate proves, or find one it does not."""
    assert names(MANY) == (
        "db.example",
        "Alice@Corp.example",
        "10.0.0.9",
        "2001:db8::9",
        "CN=DB  server,O=Example",
    )
    assert str(identity_of(MANY)) == "db.example"
    assert str(identity_of(build(ROOT, "CN=only subject"))) == "CN=only subject"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("db.example", True),
        ("DB.Example", True),
        ("apps.example", False),
        ("www.apps.example", False),  # wildcards are for browsers
        ("id-fqdn:2a2e617070732e6578616d706c65", False),  # the very name *.apps.example
        ("id-fqdn:31302e302e302e39", False),  # an address as a name
        ("Alice@corp.EXAMPLE", True),
        ("alice@corp.example", False),  # RFC 5280 section 7.5
        ("10.0.0.9", True),
        ("10.0.0.8", False),
        ("2001:db8::9", True),
        ("CN=DB server, O=EXAMPLE", True),
        ("CN=DB server", False),
        ("O=Example,CN=DB server", False),
        ("keyid:db.example", False),
        ("id-null:", False),
        ("id-gn:" + b"db.example".hex(), False),
        ("id-dn:3000", False),  # the empty name
        ("id-dn:", False),
        ("id-ipv4:0a000009", True),
        ("id-ipv4:0a0000", False),
        ("id-fqdn:", False),
    ],
)
def test_identity_must_stand_in_the_certificate(text: str, wanted: bool) -> None:
    """A peer could claim to be somebody else, or could not claim what it is."""
    assert proves(MANY, identity(text)) is wanted
    assert Facts.of([MANY]).prove(identity(text)) is wanted


def test_certificate_without_subject_proves_no_empty_name() -> None:
    """Everybody's empty name would be the same."""
    builder = x509.CertificateBuilder(
        ROOT.certificate.subject,
        x509.Name([]),
        key().public_key(),
        7,
        ROOT.certificate.not_valid_before_utc,
        ROOT.certificate.not_valid_after_utc,
    ).add_extension(*dns("db.example"))
    bare = builder.sign(ROOT.key, hashes.SHA256())  # type: ignore[arg-type]
    assert names(bare) == ("db.example",)
    assert not proves(bare, Identity(IdKind.DER_ASN1_DN, bytes.fromhex("3000")))


def test_name_of_another_type_does_not_pass_for_one() -> None:
    """A DNS name of "CN=admin" or "10.0.0.9" would be read as that by the policy."""
    odd = build(ROOT, extensions=[dns("CN=admin", "10.0.0.9", "a@b")])
    assert all(name.startswith("id-fqdn:") for name in names(odd)[:-1])
    assert identity_of(odd).kind == IdKind.FQDN


@given(st.integers(0, 255), st.binary(max_size=60))
def test_any_identity_is_answered(kind: int, data: bytes) -> None:
    """An identity of a stranger would raise."""
    assert not Facts.of([MANY]).prove(Identity(kind, data)) or kind in (1, 2, 3, 5, 9)


# What a rule demands -------------------------------------------------------------------------------------


def chain(leaf: x509.Certificate, *above: Pair) -> Facts:
    """Facts of a leaf and the authorities above it."""
    return Facts.of([leaf, *(pair.certificate for pair in above)])


WHOLE = chain(LEAF.certificate, SUB, ROOT)


def with_usages(*oids: str) -> x509.Certificate:
    """A certificate for these uses."""
    usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in oids])
    return build(ROOT, extensions=[(usage, False)])


@pytest.mark.parametrize(
    ("method", "facts", "reason"),
    [
        (CERTIFICATE, WHOLE, None),
        (CERTIFICATE, chain(with_usages(SYSTEM_HEALTH), ROOT), None),  # not excluded where none is wanted
        (CERTIFICATE, chain(build(ROOT), ROOT), None),  # no usages: for any
        (CERTIFICATE, chain(with_usages("1.3.6.1.5.5.7.3.1"), ROOT), None),  # TLS server
        (CERTIFICATE, chain(with_usages("2.5.29.37.0"), ROOT), None),  # any
        (CERTIFICATE, chain(with_usages("1.3.6.1.5.5.7.3.3"), ROOT), r"for other uses \(1.3.6.1.5.5.7.3.3\)"),
        (replace(CERTIFICATE, eku=IKE), WHOLE, None),
        (replace(CERTIFICATE, eku=IKE), chain(build(ROOT), ROOT), "lacks the extended key usage"),
        (replace(CERTIFICATE, eku=IKE), chain(with_usages("2.5.29.37.0"), ROOT), "lacks"),
        (replace(CERTIFICATE, health=True), WHOLE, f"lacks .* {SYSTEM_HEALTH}"),
        (replace(CERTIFICATE, health=True), chain(with_usages(SYSTEM_HEALTH), ROOT), None),
        (replace(CERTIFICATE, signing="ecdsa-p256"), WHOLE, None),
        (
            replace(CERTIFICATE, signing="ed25519"),
            WHOLE,
            "key of ecdsa-p256, wanted is ed25519",
        ),
        (
            CERTIFICATE,
            chain(build(ROOT, public=key("p192-like")), ROOT),
            "type or curve",
        ),
        (CERTIFICATE, chain(build(ROOT, public=key("rsa-1024")), ROOT), "RSA key of 1024 bits"),
        (replace(CERTIFICATE, minimum_rsa_bits=1024), chain(build(ROOT, public=key("rsa-1024")), ROOT), None),
        (
            replace(CERTIFICATE, minimum_rsa_bits=3072),
            chain(LEAF.certificate, authority("RSA root", "rsa-2048")),
            "certificate CN=RSA root has an RSA key of 2048 bits, wanted are at least 3072",
        ),
        (replace(CERTIFICATE, ca="CN=sub"), WHOLE, None),
        (replace(CERTIFICATE, ca="CN=Root"), WHOLE, None),
        (replace(CERTIFICATE, ca="CN=Root"), chain(LEAF.certificate, SUB), None),
        (
            replace(CERTIFICATE, ca="CN=peer.example"),
            WHOLE,
            "does not come from",
        ),
        (
            replace(CERTIFICATE, ca="CN=Other"),
            WHOLE,
            "does not come from CN=Other",
        ),
        (replace(CERTIFICATE, ca="Root"), WHOLE, 'cannot come from "Root"'),
    ],
)
def test_demands_of_a_rule(method: AuthMethod, facts: Facts, reason: str | None) -> None:
    """A rule's condition that nobody checks, or that refuses what it allows."""
    found = unfit(method, facts)
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, found or "")


# Both sides ----------------------------------------------------------------------------------------------


def verifier(
    *methods: AuthMethod,
    claims: str = "peer.example",
    trust: Trust | None = None,
    announced: frozenset[int] = signature.ANNOUNCED,
    now: float = NOW,
) -> CertificateVerifier:
    """The side that checks the peer."""
    found = trust or Trust([ROOT.certificate])
    return CertificateVerifier(
        methods or (CERTIFICATE,), identity(claims), transcript(), found, lambda: now, announced
    )


def prove(pair: Pair, *above: Pair, scheme: Scheme | None = None) -> Token:
    """The peer's token."""
    chosen = scheme or signature.choose(pair.key, signature.ANNOUNCED)
    token = CertificateProver(own(pair, *above), chosen, transcript()).step(None).token
    assert token is not None
    return token


def accepted(side: CertificateVerifier, token: Token) -> Authenticated:
    """The proven peer."""
    peer = side.step(token).peer
    assert peer is not None
    return peer


SIGNING = [
    (kind, scheme)
    for kind in KINDS
    for scheme in (*SCHEMES, *OLD_SCHEMES)
    if scheme.family == kind.partition("-")[0]
    and (not scheme.curve or signature.CURVES[scheme.curve][0] == kind)
]


@pytest.mark.parametrize(("kind", "scheme"), SIGNING, ids=lambda p: getattr(p, "name", p))
def test_every_key_and_scheme_from_prover_to_verifier(kind: str, scheme: Scheme) -> None:
    """A way to sign that works with no peer."""
    root = authority("CA", kind)
    token = prove(host(root, kind=kind), scheme=scheme)
    announced = signature.ANNOUNCED if scheme.hash != signature.SHA1 else frozenset[int]()
    side = verifier(trust=Trust([root.certificate]), announced=announced)
    peer = accepted(side, token)
    assert peer.description == f"host cert CN=peer.example ({scheme.name})"
    assert peer.names == ("peer.example", "CN=peer.example")
    assert peer.expires == NOW + 364 * DAY
    with pytest.raises(Declined, match="does not fit its certificate"):
        side.step(replace(token, data=token.data[:-1] + bytes((token.data[-1] ^ 1,))))


def test_sender_leaves_out_roots() -> None:
    """The peer has its anchors; ours would only make messages longer."""
    assert own(LEAF, SUB, ROOT).sent == der(LEAF, SUB)
    alone = Pair(build(Pair(LEAF.certificate, LEAF.key), "peer.example"), LEAF.key)
    assert own(alone).sent == der(alone)


def test_wrong_identity_names_both_and_says_what_to_do() -> None:
    """The administrator would not know which name is wrong, nor where."""
    with pytest.raises(Declined) as caught:
        verifier(claims="boss.example").step(prove(LEAF, SUB))
    assert str(caught.value) == (
        "the peer claims to be boss.example, but its certificate names peer.example, CN=peer.example"
    )
    assert "subjectAltName" in caught.value.remedy


def test_key_of_another_certificate_proves_nothing() -> None:
    """Certificates are public: whoever has seen one could show it."""
    thief = Pair(LEAF.certificate, key(number=13))
    with pytest.raises(Declined, match="does not fit its certificate") as caught:
        verifier().step(prove(thief, SUB))
    assert "private key" in caught.value.remedy


def test_rule_that_wants_another_certificate() -> None:
    """A certificate would do for one method of the rule, and none of its methods be satisfied."""
    ed, health = replace(CERTIFICATE, signing="ed25519"), replace(CERTIFICATE, health=True)
    with pytest.raises(Declined, match=r"wanted is ed25519; certificate .* lacks") as caught:
        verifier(ed, health).step(prove(LEAF, SUB))
    assert "authentication set" in caught.value.remedy
    assert accepted(verifier(ed, CERTIFICATE), prove(LEAF, SUB))


def test_sha1_only_from_a_peer_that_knows_nothing_better() -> None:
    """A peer that can do better could be made to use SHA-1."""
    root = authority("CA", "rsa-2048")
    token = prove(host(root, kind="rsa-2048"), scheme=OLD_SCHEMES[-1])
    trust = Trust([root.certificate])
    assert accepted(verifier(trust=trust, announced=frozenset()), token)
    with pytest.raises(Declined, match="SHA-1 although it announced better hashes"):
        verifier(trust=trust).step(token)


def test_no_token_and_no_certificate() -> None:
    """An empty answer must not be an answer."""
    with pytest.raises(Declined, match="no proof"):
        verifier().step(None)
    with pytest.raises(Declined, match="no certificate") as caught:
        verifier().step(replace(prove(LEAF, SUB), certificates=()))
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore")
def test_changed_tokens_are_declined() -> None:
    """A changed signature or certificate passes, or raises something nobody expects."""
    token = prove(LEAF, SUB)
    side = verifier()
    for data in mutations(token.data, 1):
        with pytest.raises(Declined):
            side.step(replace(token, data=data))
    for certificate in mutations(token.certificates[0], 7):
        with pytest.raises(Declined):
            side.step(replace(token, certificates=(certificate, *token.certificates[1:])))


@given(st.binary(max_size=120), st.integers(0, 255), st.lists(st.binary(max_size=80), max_size=3))
def test_any_token_is_declined(data: bytes, method: int, certificates: list[bytes]) -> None:
    """The same for octets of any kind, with and without a good certificate before them."""
    for presented in (tuple(certificates), (*der(LEAF, SUB), *certificates)):
        with pytest.raises(Declined):
            verifier().step(Token(data, method, presented))


def test_authorities_we_come_from() -> None:
    """A CERTREQ of the peer's root would not find our certificate."""
    above = own(LEAF, SUB).authorities([ROOT.certificate, authority("Other").certificate])
    assert above == {key_hash(SUB.certificate), key_hash(ROOT.certificate)}
    assert len(key_hash(ROOT.certificate)) == 20
    assert name_key(ROOT.certificate.subject) in Facts.of([LEAF.certificate, SUB.certificate]).above


def test_key_hash_is_sha1_of_the_public_key_info() -> None:
    """RFC 7296 section 3.7: the peer computes it over the SubjectPublicKeyInfo, so it must stand in the
    certificate as it is hashed."""
    data = der(ROOT)[0]
    spans = [
        hashlib.sha1(data[n : n + 91]).digest() for n in range(len(data)) if data[n : n + 2] == b"\x30\x59"
    ]
    assert key_hash(ROOT.certificate) in spans  # 91 octets: SPKI of a P-256 key


def test_known_peer_costs_little_beyond_its_signature() -> None:
    """The responder would spend more on bookkeeping than on cryptography."""
    token, side = prove(LEAF, SUB), verifier()
    public, octets = LEAF.certificate.public_key(), transcript().octets

    def cost(run: object) -> float:
        best = 1.0
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(10):
                run()  # type: ignore[operator]
            best = min(best, (time.perf_counter() - start) / 10)
        return best

    raw = cost(lambda: signature.verify(public, token.method, token.data, octets))  # type: ignore[arg-type]
    assert cost(lambda: side.step(token)) - raw < 150e-6
