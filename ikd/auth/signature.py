"""Signatures of IKEv2: the digital signature method (RFC 7427, RFC 8420) and the older ones it replaced.

Method 14 sends `length | AlgorithmIdentifier | signature`; the identifiers are a table of exact DER
encodings, so nothing is parsed and nothing outside the table is accepted. Methods 9 to 11 are ECDSA as r | s
with a fixed curve and hash (RFC 4754); method 1 is RSA with SHA-1 (RFC 7296 section 3.8), used and accepted
only with a peer that announces no hashes. SHA-1 has no place in method 14 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

from ikd.auth import Declined

PrivateKey = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
)
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey

RSA_SHA1, ECDSA_256, ECDSA_384, ECDSA_521, DIGITAL_SIGNATURE = 1, 9, 10, 11, 14
METHODS = frozenset((RSA_SHA1, ECDSA_256, ECDSA_384, ECDSA_521, DIGITAL_SIGNATURE))

# RFC 7427 section 7, RFC 8420 section 3
SHA1, SHA2_256, SHA2_384, SHA2_512, IDENTITY = 1, 2, 3, 4, 5
ANNOUNCED = frozenset((SHA2_256, SHA2_384, SHA2_512, IDENTITY))  # what we accept, and so announce
_NONE_KNOWN = frozenset((SHA1,))  # a peer that announced hashes, but none of ours
_HASHES: dict[int, hashes.HashAlgorithm] = {
    SHA1: hashes.SHA1(),
    SHA2_256: hashes.SHA256(),
    SHA2_384: hashes.SHA384(),
    SHA2_512: hashes.SHA512(),
}
_HASH_NAMES = {SHA1: "sha1", SHA2_256: "sha256", SHA2_384: "sha384", SHA2_512: "sha512", IDENTITY: "identity"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to sign. `family` is rsa, ecdsa, ed25519 or ed448; `identifiers` are the encodings of its
    AlgorithmIdentifier we accept, the first is the one we send; `curve` binds an old method to its curve."""

    name: str
    family: str
    hash: int
    identifiers: tuple[bytes, ...] = ()
    pss: bool = False
    method: int = DIGITAL_SIGNATURE
    curve: str = ""


def _pss_identifiers(hash_oid: str, salt: int) -> tuple[bytes, ...]:
    """RFC 7427 appendix A.4 with the salt as long as the hash. RFC 4055 section 2.1 lets the NULL of the
    hash's parameters be left out, in either place."""
    out = []
    for null in ("0500", ""):
        for inner_null in ("0500", ""):
            digest = _der(0x30, _der(0x06, bytes.fromhex(hash_oid)), bytes.fromhex(null))
            inner = _der(0x30, _der(0x06, bytes.fromhex(hash_oid)), bytes.fromhex(inner_null))
            mask = _der(0x30, bytes.fromhex("06092a864886f70d010108"), inner)
            parameters = _der(
                0x30, _der(0xA0, digest), _der(0xA1, mask), _der(0xA2, _der(0x02, bytes((salt,))))
            )
            out.append(_der(0x30, bytes.fromhex("06092a864886f70d01010a"), parameters))
    return tuple(out)


def _der(tag: int, *contents: bytes) -> bytes:
    """A DER element shorter than 128 octets."""
    body = b"".join(contents)
    return bytes((tag, len(body))) + body


# RFC 7427 appendix A, RFC 8420 appendix A; in the order in which we would rather sign
SCHEMES = (
    Scheme("rsa-sha256", "rsa", SHA2_256, (bytes.fromhex("300d06092a864886f70d01010b0500"),)),
    Scheme("rsa-sha384", "rsa", SHA2_384, (bytes.fromhex("300d06092a864886f70d01010c0500"),)),
    Scheme("rsa-sha512", "rsa", SHA2_512, (bytes.fromhex("300d06092a864886f70d01010d0500"),)),
    Scheme("rsa-pss-sha256", "rsa", SHA2_256, _pss_identifiers("608648016503040201", 32), pss=True),
    Scheme("rsa-pss-sha384", "rsa", SHA2_384, _pss_identifiers("608648016503040202", 48), pss=True),
    Scheme("rsa-pss-sha512", "rsa", SHA2_512, _pss_identifiers("608648016503040203", 64), pss=True),
    Scheme("ecdsa-sha256", "ecdsa", SHA2_256, (bytes.fromhex("300a06082a8648ce3d040302"),)),
    Scheme("ecdsa-sha384", "ecdsa", SHA2_384, (bytes.fromhex("300a06082a8648ce3d040303"),)),
    Scheme("ecdsa-sha512", "ecdsa", SHA2_512, (bytes.fromhex("300a06082a8648ce3d040304"),)),
    Scheme("ed25519", "ed25519", IDENTITY, (bytes.fromhex("300506032b6570"),)),
    Scheme("ed448", "ed448", IDENTITY, (bytes.fromhex("300506032b6571"),)),
)
OLD_SCHEMES = (
    Scheme("ecdsa-p256-sha256", "ecdsa", SHA2_256, method=ECDSA_256, curve="secp256r1"),
    Scheme("ecdsa-p384-sha384", "ecdsa", SHA2_384, method=ECDSA_384, curve="secp384r1"),
    Scheme("ecdsa-p521-sha512", "ecdsa", SHA2_512, method=ECDSA_521, curve="secp521r1"),
    Scheme("rsa-sha1", "rsa", SHA1, method=RSA_SHA1),
)
_BY_IDENTIFIER = {identifier: scheme for scheme in SCHEMES for identifier in scheme.identifiers}
_BY_METHOD = {scheme.method: scheme for scheme in OLD_SCHEMES}
_REFUSED = {
    bytes.fromhex("300d06092a864886f70d0101050500"): "RSA with SHA-1",
    bytes.fromhex("300906072a8648ce3d0401"): "ECDSA with SHA-1",
    bytes.fromhex("300b06092a864886f70d01010a3000"): "RSASSA-PSS with SHA-1",  # all parameters default
    bytes.fromhex("300d06092a864886f70d01010a3000"): "RSASSA-PSS with SHA-1",
    bytes.fromhex("300906072a8648ce380403"): "DSA with SHA-1",
    bytes.fromhex("300b0609608648016503040302"): "DSA with SHA-256",
}

# Curve name of the library -> (name in rules, the hash as strong as the curve)
CURVES = {
    "secp256r1": ("ecdsa-p256", SHA2_256),
    "secp384r1": ("ecdsa-p384", SHA2_384),
    "secp521r1": ("ecdsa-p521", SHA2_512),
}


def key_type(key: object) -> str | None:
    """The key's type as rules name it (`AuthMethod.signing`); None for a type or curve we do not use."""
    match key:
        case rsa.RSAPrivateKey() | rsa.RSAPublicKey():
            return "rsa"
        case ec.EllipticCurvePrivateKey() | ec.EllipticCurvePublicKey():
            return CURVES[key.curve.name][0] if key.curve.name in CURVES else None
        case ed25519.Ed25519PrivateKey() | ed25519.Ed25519PublicKey():
            return "ed25519"
        case ed448.Ed448PrivateKey() | ed448.Ed448PublicKey():
            return "ed448"
    return None


def _family(key: object) -> str:
    return (key_type(key) or "none").partition("-")[0]


@lru_cache(maxsize=64)
def _candidates(kind: str, announced: frozenset[int], pss: bool) -> tuple[Scheme, ...]:
    """Schemes a key of this type can sign with and the peer can verify, best first."""
    family = kind.partition("-")[0]
    curve, preferred = next(
        ((name, strong) for name, (known, strong) in CURVES.items() if known == kind), ("", SHA2_256)
    )
    fitting = [s for s in SCHEMES if s.family == family and s.pss is (pss and family == "rsa")]
    # the hash that fits the key, then stronger ones, then weaker ones
    fitting.sort(key=lambda s: (s.hash != preferred, s.hash < preferred, s.hash))
    old = [s for s in OLD_SCHEMES if s.family == family and (s.curve == curve if curve else not announced)]
    return (*(s for s in fitting if s.hash in announced), *old)


def choose(key: PrivateKey, announced: frozenset[int], *, pss: bool = False) -> Scheme:
    """How to sign for a peer that announced these hashes (RFC 7427 section 4); raises `Declined`. RSA uses
    PKCS#1 v1.5 unless `pss`: every RFC 7427 implementation verifies it."""
    known = announced & ANNOUNCED  # the rest is the peer's to invent
    for scheme in _candidates(key_type(key) or "none", known or (announced and _NONE_KNOWN), pss):
        return scheme
    names = ", ".join(_HASH_NAMES.get(h, str(h)) for h in sorted(announced)[:8]) or "none"
    raise Declined(
        f"our {key_type(key)} key fits no signature hash the peer announced ({names})",
        "use another key type for this host, or enable SHA-2 signatures (RFC 7427) at the peer",
    )


def sign(key: PrivateKey, scheme: Scheme, octets: bytes, *, hashed: bool = False) -> bytes:
    """The AUTH data. With `hashed`, `octets` are what ECDSA would hash them to."""
    match key:
        case rsa.RSAPrivateKey():
            signature = key.sign(octets, _rsa_padding(scheme), _HASHES[scheme.hash])
        case ec.EllipticCurvePrivateKey():
            signature = key.sign(octets, _ecdsa(scheme, hashed))
        case _:
            signature = key.sign(octets)
    if scheme.method == DIGITAL_SIGNATURE:
        identifier = scheme.identifiers[0]
        return bytes((len(identifier),)) + identifier + signature
    if scheme.family == "ecdsa":
        size = (key.key_size + 7) // 8 if isinstance(key, ec.EllipticCurvePrivateKey) else 0
        return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))
    return signature


def read(method: int, data: bytes) -> tuple[Scheme, bytes]:
    """Scheme and signature inside AUTH data; raises `Declined`."""
    if method in _BY_METHOD:
        return _BY_METHOD[method], data
    if method != DIGITAL_SIGNATURE:
        raise Declined(f"authentication method {method} is not a signature we know")
    if not data or len(data) < 1 + data[0]:
        raise Declined("the peer's AUTH payload is shorter than its AlgorithmIdentifier")
    identifier, signature = data[1 : 1 + data[0]], data[1 + data[0] :]
    scheme = _BY_IDENTIFIER.get(identifier)
    if scheme is None:
        what = _REFUSED.get(identifier, f"an unknown algorithm {identifier.hex()}")
        raise Declined(f"the peer signed with {what}", "let it sign with RSA, ECDSA or EdDSA and SHA-2")
    return scheme, signature


def verify(key: PublicKey, method: int, data: bytes, octets: bytes, *, hashed: bool = False) -> Scheme:
    """Check AUTH data; returns how it was signed, raises `Declined`. `hashed` as in `sign`."""
    scheme, signature = read(method, data)
    if scheme.family != _family(key):
        raise Declined(
            f"the peer signed with {scheme.name}, but its certificate has a key of {key_type(key)}"
        )
    try:
        _verify(key, scheme, signature, octets, hashed)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise Declined(
            f"the peer's signature ({scheme.name}) does not fit its certificate",
            "the peer's certificate and private key may not belong together, or the messages were altered",
            cause="wrong-signature",
        ) from error
    return scheme


def _verify(key: PublicKey, scheme: Scheme, signature: bytes, octets: bytes, hashed: bool) -> None:
    match key:
        case rsa.RSAPublicKey():
            key.verify(signature, octets, _rsa_padding(scheme), _HASHES[scheme.hash])
        case ec.EllipticCurvePublicKey():
            if scheme.method != DIGITAL_SIGNATURE:
                signature = _der_signature(key, scheme, signature)
            key.verify(signature, octets, _ecdsa(scheme, hashed))
        case _:
            key.verify(signature, octets)


def _ecdsa(scheme: Scheme, hashed: bool) -> ec.ECDSA:
    digest = _HASHES[scheme.hash]
    return ec.ECDSA(Prehashed(digest) if hashed else digest)


def _der_signature(key: ec.EllipticCurvePublicKey, scheme: Scheme, data: bytes) -> bytes:
    """r | s of RFC 4754 as the library takes it."""
    size = (key.key_size + 7) // 8
    if key.curve.name != scheme.curve or len(data) != 2 * size:
        raise ValueError(f"not a signature of {scheme.name}")
    return encode_dss_signature(int.from_bytes(data[:size], "big"), int.from_bytes(data[size:], "big"))


def _rsa_padding(scheme: Scheme) -> padding.AsymmetricPadding:
    if not scheme.pss:
        return padding.PKCS1v15()
    digest = _HASHES[scheme.hash]
    return padding.PSS(padding.MGF1(digest), digest.digest_size)
