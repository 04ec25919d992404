"""ikd.auth.signature: AlgorithmIdentifiers as the RFCs print them, every key with every scheme, refusals."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import KINDS, key

from ikd.auth import Declined
from ikd.auth.signature import (
    ANNOUNCED,
    DIGITAL_SIGNATURE,
    IDENTITY,
    METHODS,
    OLD_SCHEMES,
    RSA_SHA1,
    SCHEMES,
    SHA1,
    SHA2_256,
    SHA2_384,
    SHA2_512,
    Scheme,
    choose,
    key_type,
    read,
    sign,
    verify,
)

OCTETS = b"RealMessage | Nonce | prf(SK_p, ID)"
BY_NAME = {scheme.name: scheme for scheme in (*SCHEMES, *OLD_SCHEMES)}


def fits(kind: str, scheme: Scheme) -> bool:
    """Whether a key of this kind can be used with a scheme at all."""
    name = kind.replace("-2048", "")
    curve = {"secp256r1": "ecdsa-p256", "secp384r1": "ecdsa-p384", "secp521r1": "ecdsa-p521"}
    return name.partition("-")[0] == scheme.family and curve.get(scheme.curve, name) == name


PAIRS = [(kind, scheme) for kind in KINDS for scheme in BY_NAME.values() if fits(kind, scheme)]
UNFIT = [(kind, scheme) for kind in KINDS for scheme in BY_NAME.values() if not fits(kind, scheme)]


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        # RFC 7427 appendix A.1
        ("rsa-sha256", "30 0d 06 09 2a 86 48 86 f7 0d 01 01 0b 05 00"),
        ("rsa-sha384", "30 0d 06 09 2a 86 48 86 f7 0d 01 01 0c 05 00"),
        ("rsa-sha512", "30 0d 06 09 2a 86 48 86 f7 0d 01 01 0d 05 00"),
        # RFC 7427 appendix A.3
        ("ecdsa-sha256", "30 0a 06 08 2a 86 48 ce 3d 04 03 02"),
        ("ecdsa-sha384", "30 0a 06 08 2a 86 48 ce 3d 04 03 03"),
        ("ecdsa-sha512", "30 0a 06 08 2a 86 48 ce 3d 04 03 04"),
        # RFC 7427 appendix A.4.3, SHA-256 with a salt of 32 octets
        (
            "rsa-pss-sha256",
            "30 41 06 09 2a 86 48 86 f7 0d 01 01 0a 30 34 a0 0f 30 0d 06 09 60 86 48 01 65 03 04 02 01 05 00"
            "a1 1c 30 1a 06 09 2a 86 48 86 f7 0d 01 01 08 30 0d 06 09 60 86 48 01 65 03 04 02 01 05 00"
            "a2 03 02 01 20",
        ),
        # RFC 8420 appendix A
        ("ed25519", "30 05 06 03 2b 65 70"),
        ("ed448", "30 05 06 03 2b 65 71"),
    ],
)
def test_identifier_is_the_one_of_the_rfc(name: str, identifier: str) -> None:
    """Other implementations compare these octets; one that differs is an unknown algorithm to them."""
    octets = bytes.fromhex(identifier)
    assert BY_NAME[name].identifiers[0] == octets
    assert read(DIGITAL_SIGNATURE, bytes((len(octets),)) + octets + b"sig") == (BY_NAME[name], b"sig")


@pytest.mark.parametrize(("kind", "scheme"), PAIRS, ids=lambda p: getattr(p, "name", p))
def test_signature_verifies_and_nothing_else_does(kind: str, scheme: Scheme) -> None:
    """A key type and scheme that work together on no host, or a signature accepted for other octets."""
    public = key(kind).public_key()
    data = sign(key(kind), scheme, OCTETS)
    assert verify(public, scheme.method, data, OCTETS) == scheme
    changed = bytes((*data[:-1], data[-1] ^ 1))
    for wrong_data, wrong_octets in ((data, OCTETS + b"!"), (changed, OCTETS), (data[:-1], OCTETS)):
        with pytest.raises(Declined, match="does not fit its certificate"):
            verify(public, scheme.method, wrong_data, wrong_octets)
    with pytest.raises(Declined):
        verify(key(kind, 1).public_key(), scheme.method, data, OCTETS)


@pytest.mark.parametrize(("kind", "scheme"), UNFIT, ids=lambda p: getattr(p, "name", p))
def test_scheme_of_another_key_is_declined(kind: str, scheme: Scheme) -> None:
    """A scheme and a key that do not belong together would reach the library, or be guessed at."""
    prefix = bytes((len(scheme.identifiers[0]),)) + scheme.identifiers[0] if scheme.identifiers else b""
    with pytest.raises(Declined):
        verify(key(kind).public_key(), scheme.method, prefix + bytes(64), OCTETS)


def test_signature_of_the_library_itself_is_accepted() -> None:
    """Sign and verify could agree on something that no other implementation understands."""
    rsa_key, ec_key = key("rsa-2048"), key("ecdsa-p256")
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    assert isinstance(ec_key, ec.EllipticCurvePrivateKey)
    pss = rsa_key.sign(OCTETS, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    cases = (
        (rsa_key, "rsa-sha256", rsa_key.sign(OCTETS, padding.PKCS1v15(), hashes.SHA256())),
        (rsa_key, "rsa-pss-sha256", pss),
        (ec_key, "ecdsa-sha256", ec_key.sign(OCTETS, ec.ECDSA(hashes.SHA256()))),
    )
    for one, name, signature in cases:
        for identifier in BY_NAME[name].identifiers:
            data = bytes((len(identifier),)) + identifier + signature
            assert verify(one.public_key(), DIGITAL_SIGNATURE, data, OCTETS).name == name
    for salt in (20, padding.PSS.MAX_LENGTH):  # the identifier says 32
        other = rsa_key.sign(OCTETS, padding.PSS(padding.MGF1(hashes.SHA256()), salt), hashes.SHA256())
        identifier = BY_NAME["rsa-pss-sha256"].identifiers[0]
        with pytest.raises(Declined):
            verify(
                rsa_key.public_key(),
                DIGITAL_SIGNATURE,
                bytes((len(identifier),)) + identifier + other,
                OCTETS,
            )


def test_eddsa_known_answer() -> None:
    """RFC 8032 section 7.1 test 3 and section 7.4 (1 octet): plain EdDSA, without context or prehash."""
    seed25519 = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    signature25519 = (
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    one = ed25519.Ed25519PrivateKey.from_private_bytes(seed25519)
    assert sign(one, BY_NAME["ed25519"], bytes.fromhex("af82")).hex() == "07300506032b6570" + signature25519
    seed448 = bytes.fromhex(
        "c4eab05d357007c632f3dbb48489924d552b08fe0c353a0d4a1f00acda2c463afbea67c5e8d2877c5e3bc397a659949ef8021e954e0a12274e"
    )
    signature448 = (
        "26b8f91727bd62897af15e41eb43c377efb9c610d48f2335cb0bd0087810f435"
        "2541b143c4b981b7e18f62de8ccdf633fc1bf037ab7cd779805e0dbcc0aae1cb"
        "cee1afb2e027df36bc04dcecbf154336c19f0af7e0a6472905e799f1953d2a0ff3348ab21aa4adafd1d234441cf807c03a00"
    )
    other = ed448.Ed448PrivateKey.from_private_bytes(seed448)
    assert sign(other, BY_NAME["ed448"], b"\x03").hex() == "07300506032b6571" + signature448


def test_old_ecdsa_is_r_and_s_of_fixed_length() -> None:
    """RFC 4754 section 7: DER, or numbers without their leading zeros, are not understood by peers."""
    for name, kind, length in (
        ("ecdsa-p256-sha256", "ecdsa-p256", 64),
        ("ecdsa-p384-sha384", "ecdsa-p384", 96),
        ("ecdsa-p521-sha512", "ecdsa-p521", 132),
    ):
        assert {len(sign(key(kind), BY_NAME[name], bytes((n,)))) for n in range(40)} == {length}


def test_old_ecdsa_binds_curve_and_length() -> None:
    """RFC 4754 has one curve for each method; another, or numbers cut short, would be our invention."""
    one = key("ecdsa-p384")
    assert isinstance(one, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(one.sign(OCTETS, ec.ECDSA(hashes.SHA256())))
    data = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    with pytest.raises(Declined):
        verify(one.public_key(), 9, data, OCTETS)
    scheme = BY_NAME["ecdsa-p384-sha384"]
    good = sign(one, scheme, OCTETS)
    while good[48]:  # until s begins with a zero
        good = sign(one, scheme, OCTETS)
    assert verify(one.public_key(), 10, good, OCTETS) == scheme
    with pytest.raises(Declined):
        verify(one.public_key(), 10, good[:48] + good[49:], OCTETS)


@pytest.mark.parametrize(
    ("kind", "announced", "name"),
    [
        ("rsa-2048", ANNOUNCED, "rsa-sha256"),
        ("rsa-2048", {SHA2_512}, "rsa-sha512"),
        ("rsa-2048", {SHA1, SHA2_384, 99}, "rsa-sha384"),
        ("rsa-2048", (), "rsa-sha1"),  # the only way with a peer that does not know RFC 7427
        ("ecdsa-p256", ANNOUNCED, "ecdsa-sha256"),
        ("ecdsa-p384", ANNOUNCED, "ecdsa-sha384"),
        ("ecdsa-p521", ANNOUNCED, "ecdsa-sha512"),
        ("ecdsa-p384", {SHA2_256, SHA2_512}, "ecdsa-sha512"),
        ("ecdsa-p384", {SHA2_256}, "ecdsa-sha256"),
        ("ecdsa-p384", (), "ecdsa-p384-sha384"),
        ("ecdsa-p256", {SHA1}, "ecdsa-p256-sha256"),
        ("ed25519", ANNOUNCED, "ed25519"),
        ("ed448", {IDENTITY}, "ed448"),
    ],
)
def test_choice_follows_announced_hashes(kind: str, announced: set[int], name: str) -> None:
    """The peer would get a signature with a hash it has not announced (RFC 7427 section 4)."""
    assert choose(key(kind), frozenset(announced)).name == name


def test_pss_only_when_wanted() -> None:
    """A setting that changes nothing, or other key types that suffer from it."""
    assert choose(key("rsa-2048"), ANNOUNCED, pss=True).name == "rsa-pss-sha256"
    assert choose(key("rsa-2048"), frozenset({SHA2_512}), pss=True).name == "rsa-pss-sha512"
    assert choose(key("ecdsa-p256"), ANNOUNCED, pss=True).name == "ecdsa-sha256"


@pytest.mark.parametrize(
    ("kind", "announced"),
    [("rsa-2048", {SHA1}), ("rsa-2048", {IDENTITY}), ("ed25519", {SHA2_256}), ("ed25519", ()), ("ed448", ())],
)
def test_no_common_hash_is_declined_with_remedy(kind: str, announced: set[int]) -> None:
    """We would sign with SHA-1 because a peer asks for it, or fail without a reason."""
    with pytest.raises(Declined, match="fits no signature hash") as caught:
        choose(key(kind), frozenset(announced))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("identifier", "what"),
    [
        ("300d06092a864886f70d0101050500", "RSA with SHA-1"),  # RFC 7427 appendix A.1.1
        ("300906072a8648ce3d0401", "ECDSA with SHA-1"),  # appendix A.3.1
        ("300d06092a864886f70d01010a3000", "RSASSA-PSS with SHA-1"),  # appendix A.4.1, all default
        ("300906072a8648ce380403", "DSA with SHA-1"),  # appendix A.2.1
        ("300d06092a864886f70d0101040500", "unknown algorithm"),  # RSA with MD5
        ("300b06092a864886f70d01010b", "unknown algorithm"),  # RSA with SHA-256, parameters left out
        ("", "unknown algorithm"),
    ],
)
def test_weak_and_unknown_algorithms_are_named(identifier: str, what: str) -> None:
    """SHA-1 accepted, or refused with octets instead of words."""
    octets = bytes.fromhex(identifier)
    with pytest.raises(Declined, match=what) as caught:
        read(DIGITAL_SIGNATURE, bytes((len(octets),)) + octets + bytes(64))
    assert "SHA-2" in caught.value.remedy


@pytest.mark.parametrize("data", [b"", b"\x05", b"\x0f\x30\x0d", b"\xff" + bytes(100)])
def test_short_data_is_declined(data: bytes) -> None:
    """A length octet that points past the end."""
    with pytest.raises(Declined, match="shorter than its AlgorithmIdentifier"):
        read(DIGITAL_SIGNATURE, data)


def test_key_of_another_curve_has_no_type() -> None:
    """A curve outside the table would be signed with or accepted."""
    assert key_type(key("p192-like")) is None
    with pytest.raises(Declined):
        choose(key("p192-like"), ANNOUNCED)


def test_sha1_is_only_in_the_oldest_method() -> None:
    """RFC 8247 section 3.2: SHA-1 signatures must not be used with the digital signature method."""
    assert [s.name for s in (*SCHEMES, *OLD_SCHEMES) if s.hash == SHA1] == ["rsa-sha1"]
    assert BY_NAME["rsa-sha1"].method == RSA_SHA1
    assert SHA1 not in ANNOUNCED


@given(
    kind=st.sampled_from(KINDS),
    method=st.one_of(st.sampled_from(sorted(METHODS)), st.integers(0, 255)),
    scheme=st.sampled_from(SCHEMES),
    data=st.binary(max_size=300),
    framed=st.booleans(),
)
def test_any_octets_are_declined(kind: str, method: int, scheme: Scheme, data: bytes, framed: bool) -> None:
    """AUTH data of a stranger would raise something nobody expects."""
    prefix = bytes((len(scheme.identifiers[0]),)) + scheme.identifiers[0] if framed else b""
    with pytest.raises(Declined):
        verify(key(kind).public_key(), method, prefix + data, OCTETS)
