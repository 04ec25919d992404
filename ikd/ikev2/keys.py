"""Key derivation of IKEv2, RFC 7296 sections 2.14 to 2.18. Checked against NIST's vectors."""

from __future__ import annotations

from dataclasses import dataclass

from sadb.algorithms import MainSuite, Prf, QuickSuite
from sadb.crypto import prf, prf_plus
from sadb.secret import Secret


@dataclass(frozen=True, slots=True)
class IkeKeys:
    """The seven secrets of section 2.14; encryption keys include the salt of an AEAD."""

    d: Secret
    ai: Secret
    ar: Secret
    ei: Secret
    er: Secret
    pi: Secret
    pr: Secret


def seed(row: Prf, nonce_i: bytes, nonce_r: bytes, shared: bytes) -> bytes:
    """SKEYSEED = prf(Ni | Nr, g^ir)."""
    return prf(row, nonce_i + nonce_r, shared)


def rekeyed_seed(row: Prf, former: Secret, nonce_i: bytes, nonce_r: bytes, shared: bytes) -> bytes:
    """SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr), section 2.18; `row` is the PRF of the old IKE SA."""
    return prf(row, bytes(former), shared + nonce_i + nonce_r)


def expand(
    suite: MainSuite, skeyseed: bytes, nonce_i: bytes, nonce_r: bytes, spi_i: bytes, spi_r: bytes
) -> IkeKeys:
    """{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)."""
    mac = suite.integrity.key if suite.integrity else 0
    key = suite.encryption.key + suite.encryption.salt
    size = suite.prf.size
    sizes = (size, mac, mac, key, key, size, size)
    octets = prf_plus(suite.prf, skeyseed, nonce_i + nonce_r + spi_i + spi_r, sum(sizes))
    cut = []
    at = 0
    for one in sizes:
        cut.append(Secret(octets[at : at + one]))
        at += one
    return IkeKeys(*cut)


def keymat(
    row: Prf, sk_d: Secret, suite: QuickSuite, shared: bytes, nonce_i: bytes, nonce_r: bytes
) -> tuple[tuple[Secret, Secret], tuple[Secret, Secret]]:
    """KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr), section 2.17: (encryption, integrity) from initiator to
    responder, then the other way."""
    encryption, integrity = suite.keys
    one = encryption + integrity
    octets = prf_plus(row, bytes(sk_d), shared + nonce_i + nonce_r, 2 * one)
    first, second = octets[:one], octets[one:]
    return (
        (Secret(first[:encryption]), Secret(first[encryption:])),
        (Secret(second[:encryption]), Secret(second[encryption:])),
    )
