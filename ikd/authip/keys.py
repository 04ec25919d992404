"""Key derivation and transcripts of AuthIP: MS-AIPS section 3.1.7.4 (the concatenation KDF of SP 800-56A),
sections 3.4 to 3.7."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from ikd.authip.profile import Profile
from ikd.isakmp.numbers import ALGORITHMS
from sadb.algorithms import MainSuite, QuickSuite
from sadb.crypto import prf
from sadb.secret import Secret

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


class WeakKey(Exception):
    """Chance has made a key that the cipher must not have (RFC 2451 section 2.2)."""


@dataclass(frozen=True, slots=True)
class MainKeys:
    """SKEYID and what is derived from it; `cipher` is the key of the negotiated cipher, `icv` that of the
    integrity check value."""

    skeyid: Secret
    d: Secret
    a: Secret
    e: Secret
    cipher: Secret
    icv: Secret


@dataclass(frozen=True, slots=True)
class Parties:
    """What every derivation of a main-mode SA has in it: suite, both cookies, both nonces of main mode."""

    suite: MainSuite
    cookie_i: bytes
    cookie_r: bytes
    nonce_i: bytes
    nonce_r: bytes
    profile: Profile

    def derive(self, z: bytes, public: bytes, private: bytes, length: int) -> bytes:
        """A-KDF(Z, OtherInfo, length), OtherInfo = AlgorithmID | PartyUInfo | PartyVInfo | public |
        private."""
        number = ALGORITHMS[self.suite.encryption.name].main
        parts = [number.to_bytes(2, self.profile.crypto_id), self.cookie_i, self.cookie_r, public, private]
        if self.profile.length_prefixes:
            parts = [len(one).to_bytes(4, "big") + one for one in parts]
        algorithm = _HASHES[self.suite.prf.hash]()
        return ConcatKDFHash(algorithm, length, b"".join(parts)).derive(z)

    def main(self, z: bytes, secret: Secret) -> MainKeys:
        """SKEYID, SKEYID_d, SKEYID_a, SKEYID_e; `z` is g^xy, empty without DH, `secret` that of the GSS
        exchange. Raises `WeakKey`."""
        nonces, size = self.nonce_i + self.nonce_r, self.suite.prf.size
        key = self.suite.encryption.key
        skeyid = self.derive(z, nonces, bytes(secret), size)
        d = self.derive(z, nonces + b"\0", skeyid, size)
        a = self.derive(z, nonces + b"\1", d + skeyid, size)
        e = self.derive(z, nonces + b"\2", a + skeyid, max(size, key))
        cipher = _cipher_key(self.suite.encryption.name, e[:key])
        icv = a if self.profile.icv_key == "a" else e
        return MainKeys(Secret(skeyid), Secret(d), Secret(a), Secret(e), Secret(cipher), Secret(icv))

    def extended(self, z: bytes, secret: Secret) -> Secret:
        """SKEYID_em."""
        return Secret(self.derive(z, self.nonce_i + self.nonce_r, bytes(secret), self.suite.prf.size))

    def quick(
        self,
        suite: QuickSuite,
        keys: MainKeys,
        em: Secret | None,
        message_id: int,
        spi: bytes,
        nonces: tuple[bytes, bytes],
        z: bytes = b"",
    ) -> tuple[Secret, Secret]:
        """Keys of the SA with this SPI: encryption, its salt behind it, and integrity. `em` is SKEYID_em when
        there was extended mode, `z` g(qm)^xy with PFS."""
        encryption, integrity = suite.keys
        public = message_id.to_bytes(4, "big") + spi + b"".join(nonces) + bytes(keys.d)
        private = b"" if em is None else self.nonce_i + self.nonce_r + bytes(em)
        made = self.derive(z, public, private, encryption + integrity)
        if self.profile.authentication_key_first:
            first, second = made[:integrity], made[integrity:]
        else:
            second, first = made[:encryption], made[encryption:]
        if suite.encryption is not None:
            second = _cipher_key(suite.encryption.name, second)
        return Secret(second), Secret(first)


def _cipher_key(name: str, key: bytes) -> bytes:
    """A key as its cipher takes it: 3DES has odd parity in each octet (section 3.1.7.4); raises `WeakKey`."""
    if name != "3des":
        return key
    key = bytes(octet if octet.bit_count() % 2 else octet ^ 1 for octet in key)
    if key[:8] == key[8:16] or key[8:16] == key[16:]:
        raise WeakKey("two of the three keys of 3DES are equal")
    return key


# Transcripts -----------------------------------------------------------------------------------------------


class Transcript:
    """The chain of hashes over the messages of main mode: t = sha256(#1), sha256(#2 | t), H(#3 | t), ...; H
    is the negotiated hash."""

    __slots__ = ("_messages",)

    MOST_OCTETS = 1 << 18  # of a negotiation's messages, all attempts to authenticate included

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def add(self, covered: bytes) -> None:
        """One more message."""
        self._messages.append(covered)

    @property
    def length(self) -> int:
        """How many messages there are."""
        return len(self._messages)

    @property
    def full(self) -> bool:
        """Whether there is more than any honest peer says: a stranger must not have us keep without end."""
        return sum(map(len, self._messages)) > self.MOST_OCTETS

    def cut(self, keep: int) -> None:
        """Forget all but the first `keep` messages."""
        del self._messages[keep:]

    def choose_first(self, number: int) -> None:
        """Of several first messages the second one answers this; the others count for nothing."""
        self._messages = [self._messages[number], self._messages[-1]]

    def begin_attempt(self, latest: int) -> None:
        """Forget the tokens of earlier attempts: main mode's first two messages stay, and the `latest`."""
        del self._messages[2 : max(2, len(self._messages) - latest)]

    def value(self, hash_name: str, *, main: bool = True, hashed: bool = True) -> bytes:
        """t; extended mode (`main` false) hashes with the negotiated hash from the start. Without `hashed`
        the third message stands before the chain unhashed, as Auth1 is printed (OQ-29)."""
        value = b""
        for n, one in enumerate(self._messages):
            value = one + value
            if hashed or n != 2:
                value = hashlib.new("sha256" if main and n < 2 else hash_name, value).digest()
        return value


def auth(suite: MainSuite, skeyid: Secret, t: bytes, number: int) -> bytes:
    """Auth1 (of the initiator) or Auth2 = prf(SKEYID, t | number)."""
    return prf(suite.prf, bytes(skeyid), t + bytes((number,)))


def extended_auth(suite: MainSuite, em: Secret, u: bytes, main: bytes, *, inside: bool) -> bytes:
    """Auth3 (of the initiator) or Auth4: prf(SKEYID_em, u | Auth1 or Auth2)."""
    if inside:
        return prf(suite.prf, bytes(em), u + main)
    return prf(suite.prf, bytes(em), u) + main
