"""Ciphers of the native module, where it is built, in the place of those of `sadb.crypto`: for the simulated
adapter, which has AES-GCM and AES-GMAC. Which library computes them is `offload._native.CIPHERS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sadb.algorithms import Encryption, Kind
from sadb.crypto import Cipher, Unverified, cipher

if TYPE_CHECKING:
    from offload._native import Aead
    from offload.nic.sa_table import MakeCipher

ICV = 16


class NativeCipher:
    """See `sadb.crypto.Cipher`. AES-GMAC authenticates the payload beside the associated data and encrypts
    nothing (RFC 4543 section 3)."""

    __slots__ = ("_aead", "_gmac", "_salt")

    def __init__(self, aead: Aead, salt: bytes, *, gmac: bool) -> None:
        self._aead, self._salt, self._gmac = aead, salt, gmac

    def seal(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        """Ciphertext and check value."""
        if self._gmac:
            return data + self._aead.seal(self._salt + iv, aad + iv + data, b"")
        return self._aead.seal(self._salt + iv, aad, data)

    def open(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        """The plaintext; raises `Unverified`."""
        try:
            if not self._gmac:
                return self._aead.open(self._salt + iv, aad, data)
            text, value = data[:-ICV], data[-ICV:]
            self._aead.open(self._salt + iv, aad + iv + text, value)
            return text
        except ValueError as error:
            raise Unverified from error


def native(row: Encryption, key: bytes) -> Cipher:
    """A cipher of the native module for a row, or the one of `sadb.crypto` for what it does not know."""
    from offload._native import Aead

    if row.ikev2 not in (20, 21) or len(key) != row.key + row.salt:
        return cipher(row, key)
    return NativeCipher(Aead(0, key[: row.key]), key[row.key :], gmac=row.kind is Kind.GMAC)


def maker() -> MakeCipher:
    """What makes ciphers here."""
    try:
        import offload._native  # noqa: F401 - whether it can be loaded is the question
    except ImportError:
        return cipher
    return native
