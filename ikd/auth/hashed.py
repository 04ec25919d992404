"""Proofs of IKEv1: signatures over HASH_I and HASH_R (RFC 2409 section 5.1, RFC 4754), as authenticators.

What is signed is HASH_I or HASH_R itself, not hashed once more: RSA does not name the hash algorithm, ECDSA
wants it made with the hash of its curve (`hash_of`) and is written as r | s. What a rule demands of the
certificate is the same as in IKEv2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo

from ikd.auth import Declined, Step, Token, signature
from ikd.auth.certificate import CertificateVerifier, HostCertificate
from ikd.auth.facts import Facts
from ikd.auth.signature import PrivateKey

PSK, GSS = 1, 65001  # the other authentication methods of phase 1

# type of a key as rules name it -> authentication method (RFC 2409 appendix A, RFC 4754 section 6)
METHODS = {
    "rsa": 3,
    "ecdsa-p256": signature.ECDSA_256,
    "ecdsa-p384": signature.ECDSA_384,
    "ecdsa-p521": signature.ECDSA_521,
}
_HASHES = {signature.ECDSA_256: "sha256", signature.ECDSA_384: "sha384", signature.ECDSA_521: "sha512"}
_SCHEMES = {scheme.method: scheme for scheme in signature.OLD_SCHEMES if scheme.family == "ecdsa"}


def hash_of(method: int) -> str | None:
    """The hash that a method makes HASH_I and HASH_R with, None for the negotiated one (RFC 2409 section 5.1,
    RFC 4754 section 4)."""
    return _HASHES.get(method)


def sign(key: PrivateKey, method: int, digest: bytes) -> bytes:
    """The SIG payload's data; `digest` is HASH_I or HASH_R."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest, padding.PKCS1v15(), NoDigestInfo())
    return signature.sign(key, _SCHEMES[method], digest, hashed=True)


@dataclass(frozen=True, slots=True)
class HashSigner:
    """Proves us with a host certificate."""

    host: HostCertificate
    method: int
    digest: bytes

    def step(self, token: Token | None) -> Step:
        """One token, no matter what the peer has sent."""
        return Step(Token(sign(self.host.key, self.method, self.digest), self.method, self.host.sent))


class HashVerifier(CertificateVerifier):
    """Checks the peer's certificate and its signature over HASH_I or HASH_R (`transcript.octets`)."""

    __slots__ = ()

    def _verify(self, facts: Facts, token: Token) -> str:
        """How it was signed; raises `Declined`."""
        key = facts.key
        if METHODS.get(facts.key_type or "") != token.method:
            raise Declined(
                f"the peer authenticates with method {token.method}, but certificate {facts.title} has a "
                f"key of {facts.key_type}"
            )
        if not isinstance(key, rsa.RSAPublicKey):
            assert key is not None
            digest = self.transcript.octets
            return signature.verify(key, token.method, token.data, digest, hashed=True).name
        try:
            unnamed: Any = NoDigestInfo()  # the library's type hints do not know that it verifies, too
            key.verify(token.data, self.transcript.octets, padding.PKCS1v15(), unnamed)
        except (InvalidSignature, ValueError) as error:
            raise Declined(
                f"the peer's signature (rsa) does not fit its certificate {facts.title}",
                "the peer's certificate and private key may not belong together",
                cause="wrong-signature",
            ) from error
        return "rsa"
