"""ikd.auth.chain: from a peer's certificate to an anchor, every reason to refuse, and the memory of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import (
    DAY,
    KINDS,
    NOW,
    authority,
    below,
    build,
    constraints,
    der,
    dns,
    host,
    key,
    moment,
    mutations,
    with_sha1,
)

from ikd import pki
from ikd.auth import Declined
from ikd.auth.chain import MAX_CERTIFICATES, MAX_DEPTH, MAX_OCTETS, Trust, _Anchors, _Walk, parse
from ikd.auth.revocation import CrlCheck
from ikd.pki import Pair

ROOT = authority()
SUB = below(ROOT, "Sub")
LEAF = host(SUB)
EKU_IKE = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.17")]), False


def usage(**bits: bool) -> tuple[x509.ExtensionType, bool]:
    """keyUsage with these bits, for `build`."""
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names.split()}), True


def trust(*anchors: Pair | x509.Certificate, **more: object) -> Trust:
    """Trust in these anchors."""
    return Trust([a.certificate if isinstance(a, Pair) else a for a in anchors], **more)  # type: ignore[arg-type]


def refusal(found: Trust, presented: Sequence[bytes], now: float = NOW) -> str:
    """Why a chain is refused."""
    with pytest.raises(Declined) as caught:
        found.verify(presented, now)
    return str(caught.value)


@pytest.mark.parametrize("ca_kind", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_under_every_authority(ca_kind: str, kind: str) -> None:
    """A combination of keys that works with no peer."""
    root = authority("CA", ca_kind)
    middle = below(root, "Middle", kind)
    leaf = host(middle, kind=kind)
    chain = trust(root).verify(der(leaf, middle), NOW)
    assert chain.certificates == (leaf.certificate, middle.certificate, root.certificate)
    assert chain.facts.names == ("peer.example", "CN=peer.example")
    assert chain.facts.key_type == kind.replace("-2048", "")


def test_pss_signed_chain() -> None:
    """Certificates signed with RSASSA-PSS, as some corporate CAs issue them."""
    root = authority("RSA root", "rsa-2048")
    leaf = build(root, pss=True, extensions=[dns("peer.example")])
    assert trust(root).verify(der(leaf), NOW).leaf == leaf


def test_missing_intermediate_comes_from_the_peer() -> None:
    """A chain in any order, with certificates that do not belong to it, is what real peers send."""
    stranger = authority("Stranger", number=7)
    found = trust(ROOT)
    assert "issuer CN=Sub of certificate CN=peer.example is not trusted" in refusal(found, der(LEAF))
    for extra in (der(SUB), der(stranger, SUB, ROOT), der(ROOT, SUB, SUB, LEAF)):
        assert len(found.verify((*der(LEAF), *extra), NOW).certificates) == 3


def test_intermediate_as_anchor() -> None:
    """An administrator may trust a part of a large PKI only."""
    chain = trust(SUB).verify(der(LEAF, SUB), NOW)
    assert chain.certificates == (LEAF.certificate, SUB.certificate)


def test_pinned_certificate() -> None:
    """A certificate in the trust store is trusted as it is, and makes nobody else trusted."""
    found = trust(LEAF)
    assert found.verify(der(LEAF), NOW).certificates == (LEAF.certificate,)
    assert "not trusted" in refusal(found, der(host(SUB, "other.example", number=1), SUB))
    child = build(LEAF, public=key(number=3), extensions=[dns("child.example")])
    assert "is not a CA" in refusal(found, der(child))


@pytest.mark.parametrize(
    ("extensions", "times", "reason"),
    [
        ([dns("peer.example")], (NOW - 2 * DAY, NOW - DAY), "expired 2027-01-14"),
        ([dns("peer.example")], (NOW + DAY, NOW + 2 * DAY), "not valid before 2027-01-16 08:00"),
        ([constraints(ca=True), dns("peer.example")], None, "presented the CA certificate"),
        ([usage(key_encipherment=True), dns("peer.example")], None, "allows no signatures"),
        ([usage(key_agreement=True, key_cert_sign=True)], None, "allows no signatures"),
        (
            [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"), True)],
            None,
            "is not acceptable",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519", "rsa-2048"])
def test_unacceptable_leaf(
    kind: str,
    extensions: list[tuple[x509.ExtensionType, bool]],
    times: tuple[float, float] | None,
    reason: str,
) -> None:
    """A certificate that the RFCs refuse would prove somebody, by the library's path or by ours."""
    root = authority("CA", kind)
    start, end = times or (NOW - DAY, NOW + DAY)
    leaf = build(root, public=key(kind), extensions=extensions, start=start, end=end)
    said = refusal(trust(root), der(leaf))
    assert reason in said or (reason == "is not acceptable" and "1.2.3.4, not evaluated" in said)


def test_content_commitment_alone_may_sign() -> None:
    """RFC 4945 section 5.1.3.2: either bit will do."""
    leaf = build(ROOT, extensions=[usage(content_commitment=True), dns("peer.example")])
    assert trust(ROOT).verify(der(leaf), NOW).leaf == leaf


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([], "is not a CA"),
        ([constraints(ca=False)], "is not a CA"),
        ([constraints(ca=True), usage(digital_signature=True)], "does not allow signing certificates"),
    ],
)
def test_issuer_that_may_not_issue(
    kind: str, extensions: list[tuple[x509.ExtensionType, bool]], reason: str
) -> None:
    """The owner of any host certificate could make certificates for everybody."""
    root = authority("CA", kind)
    middle = Pair(build(root, "Middle", public=key(kind, 5), extensions=extensions), key(kind, 5))
    leaf = build(middle, public=key(kind), extensions=[dns("victim.example")])
    assert reason in refusal(trust(root), der(leaf, middle))


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed448"])
def test_path_length(kind: str) -> None:
    """An authority that may have no authorities below it would have some."""
    root = pki.make_ca("Short", NOW - DAY, key=key(kind, 100), path_length=0)
    assert trust(root).verify(der(host(root, kind=kind)), NOW)
    middle = below(root, "Middle", kind)
    said = refusal(trust(root), der(host(middle, kind=kind), middle))
    assert said == "the chain below CN=Short is too long"


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_depth_is_bounded(kind: str) -> None:
    """A peer's chain could be as long as it likes."""
    root = pair = authority("CA", kind)
    middles = []
    for n in range(MAX_DEPTH + 1):
        pair = below(pair, f"M{n}", kind, 200 + n)
        middles.append(pair)
    good = host(middles[MAX_DEPTH - 1], kind=kind)
    chain = trust(root).verify(der(good, *reversed(middles[:MAX_DEPTH])), NOW)
    assert len(chain.certificates) == MAX_DEPTH + 2
    bad = host(middles[MAX_DEPTH], kind=kind)
    assert "too long" in refusal(trust(root), der(bad, *reversed(middles)))


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_name_constraints(kind: str) -> None:
    """An authority for one domain could issue for another; where we cannot judge, we refuse."""
    root = authority("CA", kind)
    limits = x509.NameConstraints([x509.DNSName("corp.example")], None)
    middle = Pair(
        build(root, "Middle", public=key(kind, 5), extensions=[constraints(ca=True), (limits, True)]),
        key(kind, 5),
    )
    inside = build(middle, public=key(kind), extensions=[dns("db.corp.example")])
    outside = build(middle, public=key(kind), extensions=[dns("db.evil.example")])
    if kind == "ed25519":
        assert "2.5.29.30, not evaluated here" in refusal(trust(root), der(inside, middle))
        assert "2.5.29.30, not evaluated here" in refusal(trust(root), der(outside, middle))
    else:
        assert trust(root).verify(der(inside, middle), NOW).leaf == inside
        assert "is not acceptable" in refusal(trust(root), der(outside, middle))


def test_weak_hash_and_key() -> None:
    """SHA-1 collisions and short keys would make authorities of strangers."""
    root = authority("RSA root", "rsa-2048")
    sha1 = with_sha1(build(root, extensions=[dns("peer.example")]), root.key)
    assert "signed with sha1, which is too weak" in refusal(trust(root), der(sha1))
    weak = Pair(
        build(ROOT, "Weak CA", public=key("rsa-1024"), extensions=[constraints(ca=True)]), key("rsa-1024")
    )
    said = refusal(trust(ROOT), der(build(weak, extensions=[dns("peer.example")]), weak))
    assert "RSA key of 1024 bits, wanted are at least 2048" in said


def test_anchor_with_weak_signature_of_its_own() -> None:
    """Nobody relies on an anchor's self-signature, and old roots have SHA-1 there."""
    modern = authority("Old root", "rsa-2048")
    root = Pair(with_sha1(modern.certificate, modern.key), modern.key)
    assert isinstance(root.certificate.signature_hash_algorithm, hashes.SHA1)
    leaf = host(root)
    assert trust(root).verify(der(leaf), NOW).certificates == (leaf.certificate, root.certificate)
    middle = below(root, "Middle", "ed25519")  # judged by our own walk
    assert trust(root).verify(der(host(middle), middle), NOW).certificates[-1] == root.certificate


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ed25519"])
def test_authority_of_the_same_name_with_another_key(kind: str) -> None:
    """A stranger would make an authority with our authority's name."""
    forger = authority("CA", kind, 666)
    leaf = host(forger, kind=kind)
    said = refusal(trust(authority("CA", kind)), der(leaf))
    assert "names CN=CA as its issuer, whose key did not sign it" in said
    said = refusal(trust(authority("CA", kind)), der(leaf, forger))
    assert "did not sign it" in said or "not trusted" in said


def test_cross_certified_authority() -> None:
    """Two certificates of one authority: the one that leads to our anchor is found, whichever is first."""
    new, old = authority("New root", number=300), authority("Old root", number=301)
    by_new, by_old = below(new, "Middle", number=302), below(old, "Middle", number=302)
    leaf = host(by_new)
    for presented in (der(leaf, by_new, by_old), der(leaf, by_old, by_new)):
        for root in (new, old):
            assert trust(root).verify(presented, NOW).certificates[-1] == root.certificate


# Hostile certificates ------------------------------------------------------------------------------------


def test_nothing_and_too_many() -> None:
    """No certificate, or more than anybody needs."""
    assert refusal(trust(ROOT), ()) == "the peer sent no certificate"
    many = der(LEAF) * (MAX_CERTIFICATES + 1)
    assert refusal(trust(ROOT), many) == f"the peer sent {len(many)} certificates; the limit is 16"
    assert "trusts no certificate authority" in refusal(trust(), der(LEAF))


def test_huge_certificate_is_not_parsed() -> None:
    """Octets without end would be parsed before anybody asks who they are from."""
    assert "the limit is 16384" in refusal(trust(ROOT), (bytes(MAX_OCTETS + 1),))


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (rsa.RSAPublicNumbers(65537, 2**16383 + 1), "RSA key of 16384 bits; the limit is 8192"),
        (rsa.RSAPublicNumbers(2**8190 + 1, 2**8191 + 1), "absurd exponent"),
        (rsa.RSAPublicNumbers(2**64 + 1, 2**2047 + 1), "absurd exponent"),
    ],
)
def test_absurd_rsa_key_is_refused_before_it_is_used(numbers: rsa.RSAPublicNumbers, reason: str) -> None:
    """One verification with such a key costs as much as thousands of others."""
    absurd = build(ROOT, "Absurd", public_key=numbers.public_key(), extensions=[constraints(ca=True)])
    leaf = build(Pair(absurd, key("rsa-2048")), extensions=[dns("peer.example")])
    start = time.process_time()
    assert reason in refusal(trust(ROOT), der(leaf, absurd))
    assert reason in refusal(trust(ROOT), der(absurd))
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p521", "ed25519"])
def test_maze_of_paths_costs_little(kind: str) -> None:
    """Certificates that issue one another in circles would be tried in every order."""
    names = [Pair(below(ROOT, "Maze", kind, n).certificate, key(kind, n)) for n in range(3)]
    ring = [below(names[(n + 1) % 3], "Maze", kind, n) for n in range(3) for _ in range(5)]
    leaf = host(ring[0], kind=kind, number=50)
    start = time.process_time()
    assert refusal(trust(ROOT), der(leaf, *ring))
    assert time.process_time() - start < 0.25
    # and it does not hide a path that is there
    door = below(ROOT, "Maze", kind, 0)
    assert trust(ROOT).verify(der(leaf, *ring[:14], door), NOW).certificates[-1] == ROOT.certificate


def test_signature_checks_are_counted() -> None:
    """Certificates without key identifiers would each be tried as the issuer of each."""
    pairs = [Pair(authority("Same", number=n).certificate, key(number=n)) for n in range(15)]
    plain = [
        build(after, "Same", public=pair.key, extensions=[constraints(ca=True)])
        for pair, after in pairwise([*pairs, pairs[0]])
    ]
    leaf = build(pairs[0], public=key(number=50), extensions=[dns("peer.example")])
    walk = _Walk(_Anchors([ROOT.certificate]), list(reversed(plain)), moment(NOW))
    with pytest.raises(Declined):
        walk.path(leaf)
    assert walk.budget < 0
    assert refusal(trust(ROOT), der(leaf, *plain))


@pytest.mark.filterwarnings("ignore")
def test_changed_certificates_are_declined() -> None:
    """A parser's complaint would end the association with a traceback, or a changed certificate pass."""
    found = trust(ROOT)
    data, middle = der(LEAF, SUB)
    for changed in mutations(data, 3):
        with pytest.raises(Declined):
            found.verify((changed, middle), NOW)
    for changed in mutations(middle, 5):
        with pytest.raises(Declined):
            found.verify((data, changed), NOW)


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_octets_are_declined(presented: list[bytes]) -> None:
    """The same for octets that are no certificate at all."""
    with pytest.raises(Declined):
        trust(ROOT).verify(presented, NOW)


def test_name_of_a_stranger_is_fit_for_a_terminal() -> None:
    """Escape sequences or 16 kilobytes of name would go to the log and the administrator's terminal."""
    name = x509.Name(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, "\x1b[2Jroot\n")]
        + [x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "x" * 60)] * 20
    )
    nasty = Pair(authority("Nasty", number=9).certificate, key(number=9))
    builder = x509.CertificateBuilder(
        name,
        name,
        key().public_key(),
        5,
        nasty.certificate.not_valid_before_utc,
        nasty.certificate.not_valid_after_utc,
    )
    said = refusal(trust(ROOT), der(builder.sign(nasty.key, hashes.SHA256())))
    assert said.isprintable()
    assert len(said) < 1000


# The memory ----------------------------------------------------------------------------------------------


def test_known_chain_is_remembered_as_it_was_sent() -> None:
    """Either every establishment pays for the chain again, or a chain passes that no fresh look would let."""
    found = trust(ROOT)
    chain = found.verify(der(LEAF, SUB), NOW)
    assert found.verify(der(LEAF, SUB), NOW + 60) is chain
    assert "not trusted" in refusal(found, der(LEAF))
    assert "cannot be read" in refusal(found, (*der(LEAF, SUB), b"garbage"))
    assert found.verify(der(LEAF, SUB), NOW) is not chain


def test_chain_expires_after_it_was_remembered() -> None:
    """A peer that was accepted once would be accepted for ever."""
    for which in ("leaf", "middle", "anchor"):
        ends = {name: NOW + (DAY if name == which else 30 * DAY) for name in ("leaf", "middle", "anchor")}
        root = pki.make_ca("R", NOW - DAY, key=key(number=1), days=(ends["anchor"] - NOW) / DAY + 1)
        middle = pki.make_ca(
            "M", NOW - DAY, key=key(number=2), issuer=root, days=(ends["middle"] - NOW) / DAY + 1
        )
        leaf = build(middle, extensions=[dns("peer.example")], end=ends["leaf"])
        found = trust(root)
        chain = found.verify(der(leaf, middle), NOW)
        assert chain.facts.expires == chain.until == NOW + DAY
        assert found.verify(der(leaf, middle), NOW + DAY - 1) is chain
        assert found.verify(der(leaf, middle), NOW + DAY)  # the last second belongs to it
        assert "expired" in refusal(found, der(leaf, middle), NOW + DAY + 1)


def test_clock_that_goes_back_is_noticed() -> None:
    """A chain remembered with a wrong clock would be accepted before it is valid."""
    found = trust(ROOT)
    found.verify(der(LEAF, SUB), NOW)
    assert "not valid before" in refusal(found, der(LEAF, SUB), NOW - 3 * DAY)


def test_revocation_list_that_runs_out_is_noticed() -> None:
    """With crl_check = "require", a remembered chain would outlive the list it was checked against."""
    crls = [pki.make_crl(ca, [], NOW, days=1) for ca in (ROOT, SUB)]
    found = trust(ROOT, crls=crls, crl_check=CrlCheck.REQUIRE)
    chain = found.verify(der(LEAF, SUB), NOW)
    assert chain.until == NOW + DAY
    assert "no current revocation list" in refusal(found, der(LEAF, SUB), NOW + DAY)


def test_reload_forgets() -> None:
    """After a reload with other anchors or lists, the old verdict would still stand."""
    assert trust(ROOT).verify(der(LEAF, SUB), NOW)
    assert "not trusted" in refusal(trust(authority("Other")), der(LEAF, SUB))
    crl = pki.make_crl(SUB, [LEAF.certificate], NOW)
    assert "was revoked" in refusal(trust(ROOT, crls=[crl]), der(LEAF, SUB))


def test_memory_is_bounded_and_one_member_has_one_place() -> None:
    """One certificate with varying companions would push all others out, or memory would grow."""
    found = trust(ROOT)
    chain = found.verify(der(LEAF, SUB), NOW)
    other = host(SUB, "other.example", number=1)
    extras = [authority(f"Extra {n}", number=n) for n in range(12)]
    for n in range(600):
        chosen = [extra for bit, extra in enumerate(extras) if n >> bit & 1]
        found.verify(der(other, SUB, *chosen), NOW)
    assert found.verify(der(LEAF, SUB), NOW) is chain
    assert len(found._chains) == 2


def test_parsed_certificates_are_shared() -> None:
    """Each establishment would parse the same octets again."""
    assert parse(der(LEAF)[0]) is parse(bytes(bytearray(der(LEAF)[0])))
