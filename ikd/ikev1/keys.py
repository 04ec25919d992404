"""Key derivation, IVs and authenticating hashes of IKEv1, RFC 2409 sections 5 and appendix B. SKEYID and what
comes of it are checked against NIST's vectors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sadb.algorithms import MainSuite, Prf, QuickSuite
from sadb.crypto import prf
from sadb.secret import Secret


@dataclass(frozen=True, slots=True)
class IkeKeys:
    """SKEYID and what is derived from it (section 5); `cipher` is the key of the negotiated cipher."""

    skeyid: Secret
    d: Secret
    a: Secret
    e: Secret
    cipher: Secret


@dataclass(frozen=True, slots=True)
class Transcript:
    """What HASH_I and HASH_R cover: g^xi, g^xr, both cookies, and SAi_b, the initiator's SA payload as it was
    on the wire without its generic header."""

    public_i: bytes
    public_r: bytes
    cookie_i: bytes
    cookie_r: bytes
    sa: bytes


# Phase 1 ---------------------------------------------------------------------------------------------------


def skeyid_psk(row: Prf, psk: Secret, nonce_i: bytes, nonce_r: bytes) -> Secret:
    """SKEYID = prf(pre-shared-key, Ni_b | Nr_b)."""
    return Secret(prf(row, bytes(psk), nonce_i + nonce_r))


def skeyid_signature(row: Prf, nonce_i: bytes, nonce_r: bytes, shared: bytes) -> Secret:
    """SKEYID = prf(Ni_b | Nr_b, g^xy), for signatures and, as peers do it, for GSS-API."""
    return Secret(prf(row, nonce_i + nonce_r, shared))


def derive(suite: MainSuite, skeyid: Secret, shared: bytes, cookie_i: bytes, cookie_r: bytes) -> IkeKeys:
    """SKEYID_d, SKEYID_a and SKEYID_e, and the cipher's key."""
    row, key = suite.prf, bytes(skeyid)
    tail = shared + cookie_i + cookie_r
    d = prf(row, key, tail + b"\0")
    a = prf(row, key, d + tail + b"\1")
    e = prf(row, key, a + tail + b"\2")
    cipher = cipher_key(row, e, suite.encryption.key)
    return IkeKeys(skeyid, Secret(d), Secret(a), Secret(e), Secret(cipher))


def cipher_key(row: Prf, skeyid_e: bytes, length: int) -> bytes:
    """The first octets of SKEYID_e, or of Ka = K1 | K2 | ..., K1 = prf(SKEYID_e, 0), K2 = prf(SKEYID_e, K1)
    when it is too short (appendix B)."""
    if length <= len(skeyid_e):
        return skeyid_e[:length]
    out = block = prf(row, skeyid_e, b"\0")
    while len(out) < length:
        block = prf(row, skeyid_e, block)
        out += block
    return out[:length]


def first_iv(suite: MainSuite, public_i: bytes, public_r: bytes) -> bytes:
    """IV of phase 1: hash(g^xi | g^xr), cut to a block (appendix B)."""
    return hashlib.new(suite.prf.hash, public_i + public_r).digest()[: suite.encryption.iv]


def phase2_iv(suite: MainSuite, last_block: bytes, message_id: int) -> bytes:
    """IV of a phase 2 exchange: hash(last CBC block of phase 1 | M-ID), cut to a block (appendix B)."""
    data = last_block + message_id.to_bytes(4, "big")
    return hashlib.new(suite.prf.hash, data).digest()[: suite.encryption.iv]


def hash_i(row: Prf, skeyid: Secret, transcript: Transcript, identity: bytes, extra: bytes = b"") -> bytes:
    """HASH_I = prf(SKEYID, g^xi | g^xr | CKY-I | CKY-R | SAi_b | IDii_b). `extra` is what peers add for
    GSS-API: the sender's name, then all its tokens."""
    t = transcript
    data = t.public_i + t.public_r + t.cookie_i + t.cookie_r + t.sa + identity + extra
    return prf(row, bytes(skeyid), data)


def hash_r(row: Prf, skeyid: Secret, transcript: Transcript, identity: bytes, extra: bytes = b"") -> bytes:
    """HASH_R = prf(SKEYID, g^xr | g^xi | CKY-R | CKY-I | SAi_b | IDir_b)."""
    t = transcript
    data = t.public_r + t.public_i + t.cookie_r + t.cookie_i + t.sa + identity + extra
    return prf(row, bytes(skeyid), data)


# Phase 2 ---------------------------------------------------------------------------------------------------


def message_hash(row: Prf, skeyid_a: Secret, message_id: int, rest: bytes, nonce_i: bytes = b"") -> bytes:
    """HASH(1) = prf(SKEYID_a, M-ID | rest) of quick mode (section 5.5) and of an informational exchange
    (section 5.7); with the initiator's nonce HASH(2) = prf(SKEYID_a, M-ID | Ni_b | rest). `rest` is the
    message behind the Hash payload, headers of payloads included, padding not."""
    return prf(row, bytes(skeyid_a), message_id.to_bytes(4, "big") + nonce_i + rest)


def last_hash(row: Prf, skeyid_a: Secret, message_id: int, nonce_i: bytes, nonce_r: bytes) -> bytes:
    """HASH(3) = prf(SKEYID_a, 0 | M-ID | Ni_b | Nr_b)."""
    return prf(row, bytes(skeyid_a), b"\0" + message_id.to_bytes(4, "big") + nonce_i + nonce_r)


def delete_hash(row: Prf, skeyid_a: Secret, message_id: int, nonce_i: bytes, rest: bytes) -> bytes:
    """HASH(2) of Microsoft's reliable delete: prf(SKEYID_a, Ni_b | M-ID | rest), MS-IKEE section 3.8; its
    HASH(1) is `message_hash`."""
    return prf(row, bytes(skeyid_a), nonce_i + message_id.to_bytes(4, "big") + rest)


def keymat(
    row: Prf,
    skeyid_d: Secret,
    suite: QuickSuite,
    protocol: int,
    spi: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    shared: bytes = b"",
) -> tuple[Secret, Secret]:
    """KEYMAT of the SA with this SPI (section 5.5): keys of encryption, its salt behind it (RFC 4106 section
    8.1), and of integrity. `shared` is g(qm)^xy with PFS.

    K1 = prf(SKEYID_d, [g(qm)^xy |] protocol | SPI | Ni_b | Nr_b), K2 = prf(SKEYID_d, K1 | ...)
    """
    encryption, integrity = suite.keys
    seed = shared + bytes((protocol,)) + spi + nonce_i + nonce_r
    out = block = b""
    while len(out) < encryption + integrity:
        block = prf(row, bytes(skeyid_d), block + seed)
        out += block
    return Secret(out[:encryption]), Secret(out[encryption : encryption + integrity])
