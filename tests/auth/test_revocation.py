"""ikd.auth.revocation: which lists count, whom they refuse, and until when a verdict holds."""

from __future__ import annotations

import datetime as dt
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from support.certificates import DAY, NOW, authority, below, build, constraints, host, key, moment

from ikd import pki
from ikd.auth import Declined
from ikd.auth.revocation import CrlCheck, Revocation
from ikd.pki import Pair

ROOT = authority()
SUB = below(ROOT, "Sub")
LEAF = host(SUB)
CHAIN = [LEAF.certificate, SUB.certificate, ROOT.certificate]
GOOD = [pki.make_crl(ca, [], NOW) for ca in (ROOT, SUB)]
FOREVER = dt.datetime.max.replace(tzinfo=dt.UTC)


def check(crls: list[x509.CertificateRevocationList], mode: CrlCheck, now: float = NOW) -> dt.datetime:
    """The verdict on the chain."""
    return Revocation(crls, mode).check(CHAIN, moment(now))


def refusal(crls: list[x509.CertificateRevocationList], mode: CrlCheck, now: float = NOW) -> str:
    """Why the chain is refused."""
    with pytest.raises(Declined) as caught:
        check(crls, mode, now)
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("mode", [CrlCheck.ATTEMPT, CrlCheck.REQUIRE])
def test_revoked_leaf_and_intermediate_are_refused(mode: CrlCheck) -> None:
    """A stolen key would open the door for as long as its certificate lasts."""
    leaf = pki.make_crl(SUB, [LEAF.certificate], NOW)
    middle = pki.make_crl(ROOT, [SUB.certificate], NOW)
    assert refusal([GOOD[0], leaf], mode) == "certificate CN=peer.example was revoked 2027-01-15"
    assert refusal([middle, GOOD[1]], mode) == "certificate CN=Sub was revoked 2027-01-15"


def test_none_looks_at_nothing() -> None:
    """crl_check = "none" must be what it says."""
    assert check([pki.make_crl(SUB, [LEAF.certificate], NOW)], CrlCheck.NONE) == FOREVER


def test_missing_list() -> None:
    """ "attempt" would refuse everybody without lists, or "require" accept them."""
    assert check([], CrlCheck.ATTEMPT) == FOREVER
    assert check(GOOD, CrlCheck.REQUIRE) == moment(NOW + 30 * DAY)
    assert "no current revocation list of CN=Root" in refusal([GOOD[1]], CrlCheck.REQUIRE)
    assert "no current revocation list of CN=Sub" in refusal([GOOD[0]], CrlCheck.REQUIRE)


def test_stale_list() -> None:
    """An old list says nothing about today, but what it revokes stays revoked."""
    later = NOW + 31 * DAY
    assert check(GOOD, CrlCheck.ATTEMPT, later) == FOREVER
    assert "no current revocation list" in refusal(GOOD, CrlCheck.REQUIRE, later)
    old = pki.make_crl(SUB, [LEAF.certificate], NOW)
    assert "was revoked" in refusal([old, pki.make_crl(SUB, [], later)], CrlCheck.ATTEMPT, later)


def test_list_of_the_future_does_not_count_yet() -> None:
    """A list from a host with a wrong clock would hide that there is none, and the verdict not be redone."""
    future = [pki.make_crl(ca, [], NOW + 10 * DAY) for ca in (ROOT, SUB)]
    assert "no current revocation list" in refusal(future, CrlCheck.REQUIRE)
    assert check(future, CrlCheck.ATTEMPT) == moment(NOW + 10 * DAY - 3600)


def test_list_of_a_forger_does_not_count() -> None:
    """Whoever can place a file could revoke or un-revoke."""
    forger = Pair(authority("Sub", number=666).certificate, key(number=666))
    assert check([pki.make_crl(forger, [LEAF.certificate], NOW)], CrlCheck.ATTEMPT) == FOREVER
    forged = [GOOD[0], pki.make_crl(forger, [], NOW)]
    assert "no current revocation list of CN=Sub" in refusal(forged, CrlCheck.REQUIRE)


def test_authority_without_crl_sign_signs_no_lists() -> None:
    """keyUsage of the issuer would mean nothing."""
    names = (
        "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only "
        "decipher_only"
    )
    bits = dict.fromkeys(names.split(" "), False)
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, **bits)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key(number=4).public_key())
    extensions = [constraints(ca=True), (usage, True), (identifier, False)]
    quiet = Pair(build(ROOT, "Quiet", public=key(number=4), extensions=extensions), key(number=4))
    leaf = host(quiet)
    found = Revocation([pki.make_crl(quiet, [leaf.certificate], NOW)], CrlCheck.ATTEMPT)
    found.check([leaf.certificate, quiet.certificate, ROOT.certificate], moment(NOW))


@pytest.mark.parametrize(
    "extension",
    [
        x509.DeltaCRLIndicator(1),
        x509.IssuingDistributionPoint(None, None, False, True, None, False, False),
    ],
)
def test_partial_list_does_not_count(extension: x509.ExtensionType) -> None:
    """A list of some certificates only would pass for a list of all."""
    builder = x509.CertificateRevocationListBuilder(
        SUB.certificate.subject, moment(NOW - 1), moment(NOW + DAY)
    ).add_extension(extension, True)
    partial = builder.sign(SUB.key, hashes.SHA256())  # type: ignore[arg-type]
    assert "no current revocation list of CN=Sub" in refusal([GOOD[0], partial], CrlCheck.REQUIRE)


@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p384", "ed25519", "ed448"])
def test_lists_of_every_key_type(kind: str) -> None:
    """An authority with such a key could revoke nothing."""
    root = authority("CA", kind)
    leaf = host(root)
    for revoked in ([], [leaf.certificate]):
        found = Revocation([pki.make_crl(root, revoked, NOW)], CrlCheck.REQUIRE)
        if not revoked:
            assert found.check([leaf.certificate, root.certificate], moment(NOW)) < FOREVER
            continue
        with pytest.raises(Declined, match="was revoked"):
            found.check([leaf.certificate, root.certificate], moment(NOW))


def test_long_list_is_searched_once() -> None:
    """A revoked peer that comes again and again would cost a walk through a long list each time."""
    builder = x509.CertificateRevocationListBuilder(
        SUB.certificate.subject, moment(NOW - 1), moment(NOW + DAY)
    )
    entry = x509.RevokedCertificateBuilder(1, moment(NOW - 1)).build()
    entries = [x509.RevokedCertificateBuilder(n, moment(NOW - 1)).build() for n in range(2, 2000)]
    for one in (entry, *entries):
        builder = builder.add_revoked_certificate(one)
    found = Revocation([GOOD[0], builder.sign(SUB.key, hashes.SHA256())], CrlCheck.REQUIRE)  # type: ignore[arg-type]
    found.check(CHAIN, moment(NOW))
    start = time.process_time()
    for _ in range(200):
        found.check(CHAIN, moment(NOW))
    assert time.process_time() - start < 0.2
