"""Thin adapters over pyca/cryptography for the rows of `sadb.algorithms`.

Pure but for key generation, which draws on the operating system's generator inside the library. Failed
verification raises `Unverified`; a public value that is not in its group raises `BadPublic`.
"""

from __future__ import annotations

import hmac
import warnings
from collections.abc import Callable
from functools import cache
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher as _Cipher
from cryptography.hazmat.primitives.ciphers import algorithms as _algorithms
from cryptography.hazmat.primitives.ciphers import modes as _modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from sadb.algorithms import Curve, Encryption, Group, Integrity, Kind, Prf

with warnings.catch_warnings():
    # The library means to drop finite-field groups one day, and says so whenever one of these names is read.
    # IKE cannot drop them: RFC 8247 makes group 14 mandatory.
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    from cryptography.hazmat.primitives.asymmetric.dh import (
        DHParameterNumbers,
        DHParameters,
        DHPrivateKey,
        DHPublicNumbers,
    )


class Unverified(Exception):
    """An integrity check value does not fit its data."""


class BadPublic(ValueError):
    """A Diffie-Hellman public value that is malformed or not acceptable (RFC 6989)."""


def prf(row: Prf, key: bytes, data: bytes) -> bytes:
    """prf(key, data) of RFC 7296 section 2.13."""
    return hmac.digest(key, data, row.hash)


def prf_plus(row: Prf, key: bytes, seed: bytes, length: int) -> bytes:
    """prf+ of RFC 7296 section 2.13: `length` octets, at most 255 blocks."""
    if length > 255 * row.size:
        raise ValueError(f"prf+ yields at most {255 * row.size} octets")
    out = block = b""
    counter = 1
    while len(out) < length:
        block = hmac.digest(key, block + seed + bytes((counter,)), row.hash)
        out += block
        counter += 1
    return out[:length]


class Cipher(Protocol):
    """Protects one packet: `aad` and `data` in, octets and check value out; made once per key."""

    def seal(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        """Ciphertext followed by the integrity check value."""
        ...

    def open(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        """Plaintext of `data` (ciphertext and check value); raises `Unverified`."""
        ...


class AeadCipher:
    """AES-GCM-16 and ChaCha20-Poly1305 with a salted nonce (RFC 4106, RFC 5282, RFC 7634)."""

    __slots__ = ("_aead", "_salt")

    def __init__(self, row: Encryption, key: bytes) -> None:
        make = ChaCha20Poly1305 if row.name == "chacha20poly1305" else AESGCM
        self._aead = make(key[: row.key])
        self._salt = key[row.key :]

    def seal(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        return self._aead.encrypt(self._salt + iv, data, aad)

    def open(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        try:
            return self._aead.decrypt(self._salt + iv, data, aad)
        except (InvalidTag, ValueError) as error:
            raise Unverified from error


class GmacCipher:
    """AES-GMAC: the payload is authenticated as associated data and stays readable (RFC 4543 section 3)."""

    __slots__ = ("_aead", "_icv", "_salt")

    def __init__(self, row: Encryption, key: bytes) -> None:
        self._aead = AESGCM(key[: row.key])
        self._salt = key[row.key :]
        self._icv = row.icv

    def seal(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        return data + self._aead.encrypt(self._salt + iv, b"", aad + iv + data)

    def open(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        if len(data) < self._icv:
            raise Unverified
        text, icv = data[: -self._icv], data[-self._icv :]
        try:
            self._aead.decrypt(self._salt + iv, icv, aad + iv + text)
        except (InvalidTag, ValueError) as error:
            raise Unverified from error
        return text


_HASHES: dict[str, HashAlgorithm] = {
    "sha1": SHA1(),
    "sha256": SHA256(),
    "sha384": SHA384(),
    "sha512": SHA512(),
}


def _block_cipher(row: Encryption, key: bytes) -> BlockCipherAlgorithm:
    """AES or 3DES. A key that makes 3DES no more than DES is refused, as RFC 2451 section 2.3 asks; parity
    bits are not looked at."""
    if row.block == 16:
        return _algorithms.AES(key)
    first, second, third = (bytes(octet & 0xFE for octet in key[at : at + 8]) for at in (0, 8, 16))
    if second in (first, third):
        raise ValueError(f"a key of {row.name} that is no better than one of DES")
    return TripleDES(key)


def cbc_encrypt(row: Encryption, key: bytes, iv: bytes, data: bytes) -> bytes:
    """Whole blocks in CBC, without any check value: for IKEv1, whose hashes are elsewhere."""
    encryptor = _Cipher(_block_cipher(row, key), _modes.CBC(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def cbc_decrypt(row: Encryption, key: bytes, iv: bytes, data: bytes) -> bytes:
    """The reverse; garbage gives garbage."""
    decryptor = _Cipher(_block_cipher(row, key), _modes.CBC(iv)).decryptor()
    return decryptor.update(data) + decryptor.finalize()


class MacCipher:
    """CBC or NULL encryption, then HMAC over associated data, IV, ciphertext and `after` (RFC 4303 section
    3.3.2): there the high half of an extended sequence number stands, which is not sent (section 2.2.1)."""

    __slots__ = ("_algorithm", "_block", "_decryptor", "_icv", "_keyed")

    def __init__(self, row: Encryption, key: bytes, integrity: Integrity, mac_key: bytes) -> None:
        self._algorithm = None
        self._block = row.block
        if row.kind is Kind.CBC:
            self._algorithm = _block_cipher(row, key)
            self._decryptor = _Cipher(self._algorithm, _modes.CBC(bytes(row.block))).decryptor()
        self._keyed = HMAC(mac_key, _HASHES[integrity.hash])
        self._icv = integrity.icv

    def _mac(self, data: bytes) -> bytes:
        mac = self._keyed.copy()  # half the time of beginning with the key each time
        mac.update(data)
        return mac.finalize()[: self._icv]

    def seal(self, iv: bytes, aad: bytes, data: bytes, after: bytes = b"") -> bytes:
        if self._algorithm:
            encryptor = _Cipher(self._algorithm, _modes.CBC(iv)).encryptor()
            data = encryptor.update(data) + encryptor.finalize()
        return data + self._mac(aad + iv + data + after)

    def open(self, iv: bytes, aad: bytes, data: bytes, after: bytes = b"") -> bytes:
        if len(data) < self._icv:
            raise Unverified
        text, icv = data[: -self._icv], data[-self._icv :]
        if not hmac.compare_digest(self._mac(aad + iv + text + after), icv):
            raise Unverified
        if not self._algorithm:
            return text
        if len(text) % self._block or len(iv) != self._block:
            raise Unverified
        # A block is decrypted with the ciphertext before it, so that one decryptor serves all packets: what
        # it makes of the IV depends on the packet before and is thrown away.
        return self._decryptor.update(iv + text)[self._block :]


def cipher(row: Encryption, key: bytes, integrity: Integrity | None = None, mac_key: bytes = b"") -> Cipher:
    """The cipher of a row; `key` includes the salt. A CBC or NULL row needs `integrity`."""
    if len(key) != row.key + row.salt:
        raise ValueError(f"{row.name} takes {row.key + row.salt} octets of key, not {len(key)}")
    if row.kind is Kind.AEAD:
        return AeadCipher(row, key)
    if row.kind is Kind.GMAC:
        return GmacCipher(row, key)
    if integrity is None:
        raise ValueError(f"{row.name} needs an integrity algorithm")
    if len(mac_key) != integrity.key:
        raise ValueError(f"{integrity.name} takes {integrity.key} octets of key, not {len(mac_key)}")
    return MacCipher(row, key, integrity, mac_key)


# Diffie-Hellman ------------------------------------------------------------------------------------------

# RFC 2409 and RFC 3526 define their primes by formula: 2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + c)
_MODP = {
    2: (1024, 129093),
    14: (2048, 124476),
    15: (3072, 1690314),
    16: (4096, 240904),
    17: (6144, 929484),
    18: (8192, 4743158),
}
_CURVES: dict[int, ec.EllipticCurve] = {19: ec.SECP256R1(), 20: ec.SECP384R1(), 21: ec.SECP521R1()}


def _pi(bits: int) -> int:
    """floor(pi * 2^bits), by Machin's formula with guard bits."""
    one = 1 << (bits + 64)

    def arctan(inverse: int) -> int:
        total = term = one // inverse
        square, divisor, sign = inverse * inverse, 3, -1
        while term:
            term //= square
            total += sign * (term // divisor)
            divisor, sign = divisor + 2, -sign
        return total

    return (16 * arctan(5) - 4 * arctan(239)) >> 64


@cache
def modp_prime(group: int) -> int:
    """The prime of a MODP group, RFC 2409 section 6.2 and RFC 3526."""
    bits, c = _MODP[group]
    return int(2**bits - 2 ** (bits - 64) - 1 + 2**64 * (_pi(bits - 130) + c))


@cache
def _modp_parameters(group: int) -> DHParameters:
    return DHParameterNumbers(modp_prime(group), 2).parameters()


PrivateKey = x25519.X25519PrivateKey | x448.X448PrivateKey | ec.EllipticCurvePrivateKey | DHPrivateKey
Agree = Callable[[bytes], bytes]


class KeyExchange:
    """One ephemeral Diffie-Hellman key: `public` goes into the KE payload, `agree` gives g^ir."""

    __slots__ = ("_agree", "group", "public")

    def __init__(self, group: Group, key: PrivateKey | None = None) -> None:
        """With a new key, or the one given: a known answer needs a known key."""
        self.group = group
        self.public, self._agree = _halves(group, key or _generate(group))

    def __repr__(self) -> str:
        return f"<KeyExchange {self.group.name}>"

    def agree(self, public: bytes) -> bytes:
        """The shared secret with the peer's value, of the group's full length; raises `BadPublic`."""
        if len(public) != self.group.public:
            raise BadPublic(f"{self.group.name} takes {self.group.public} octets, not {len(public)}")
        try:
            return self._agree(public)
        except ValueError as error:
            raise BadPublic(f"not a public value of {self.group.name}") from error


def _generate(group: Group) -> PrivateKey:
    if group.curve is Curve.MODP:
        return _modp_parameters(group.ikev2).generate_private_key()
    if group.curve is Curve.ECP:
        return ec.generate_private_key(_CURVES[group.ikev2])
    return x25519.X25519PrivateKey.generate() if group.ikev2 == 31 else x448.X448PrivateKey.generate()


def _halves(group: Group, key: PrivateKey) -> tuple[bytes, Agree]:
    """The public value of a key, and the agreement with another one."""
    # both Montgomery exchanges raise ValueError on the all-zero result, as RFC 8031 section 4 asks
    if isinstance(key, x25519.X25519PrivateKey):
        return key.public_key().public_bytes_raw(), lambda data: key.exchange(
            x25519.X25519PublicKey.from_public_bytes(data)
        )
    if isinstance(key, x448.X448PrivateKey):
        return key.public_key().public_bytes_raw(), lambda data: key.exchange(
            x448.X448PublicKey.from_public_bytes(data)
        )
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return _ecp(key)
    return _modp(group, key)


def _ecp(key: ec.EllipticCurvePrivateKey) -> tuple[bytes, Agree]:
    """A point is x | y, without the octet in front; the secret is x alone (RFC 5903 section 7)."""

    def agree(data: bytes) -> bytes:
        return key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(key.curve, b"\4" + data))

    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:], agree


def _modp(group: Group, key: DHPrivateKey) -> tuple[bytes, Agree]:
    prime = modp_prime(group.ikev2)

    def agree(data: bytes) -> bytes:
        y = int.from_bytes(data, "big")
        if not 1 < y < prime - 1:
            raise ValueError("degenerate public value")
        peer = DHPublicNumbers(y, DHParameterNumbers(prime, 2)).public_key()
        return key.exchange(peer)

    return key.public_key().public_numbers().y.to_bytes(group.public, "big"), agree
