"""Encapsulating Security Payload, RFC 4303: one payload in, one ESP packet out, and back.

A `Sealer` or `Opener` belongs to one SA and makes its cipher once. What the payload is (tunnel or transport),
which number it gets and whether that number is new is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from offload.ip import Dropped
from sadb.crypto import Cipher, MacCipher, Unverified, cipher
from sadb.sa import SecurityAssociation

HEADER = 8  # SPI and sequence number
_PADDING = bytes(range(1, 256))


@cache
def _trailers(next_header: int) -> tuple[bytes, ...]:
    """Padding, pad length and next header for each length of padding that alignment can ask for."""
    return tuple(_PADDING[:length] + bytes((length, next_header)) for length in range(16))


class _Transform:
    """What both directions share."""

    __slots__ = ("_cipher", "_esn", "_iv", "_mac", "_spi", "align", "overhead")

    def __init__(self, sa: SecurityAssociation, made: Cipher | None = None) -> None:
        row = sa.suite.encryption
        if row is None:
            raise ValueError("ESP without an encryption algorithm")
        made = made or cipher(row, bytes(sa.encryption_key), sa.suite.integrity, bytes(sa.integrity_key))
        # With a separate integrity algorithm the high half of an extended sequence number is authenticated
        # behind the packet, with a combined one inside the associated data (RFC 4303 section 2.2.1, RFC 4106
        # section 5).
        self._mac: MacCipher | None = made if isinstance(made, MacCipher) else None
        self._cipher: Cipher = made
        self._spi = sa.spi.to_bytes(4, "big")
        self._esn = sa.suite.esn
        self._iv = row.iv
        self.align = max(4, row.block)
        self.overhead = HEADER + row.iv + sa.suite.icv


class Sealer(_Transform):
    """Protects payloads of one outbound SA; `random(n)` gives the unpredictable IVs CBC needs (RFC 3602)."""

    __slots__ = ("_random",)

    def __init__(
        self, sa: SecurityAssociation, random: Callable[[int], bytes], made: Cipher | None = None
    ) -> None:
        """With another cipher than that of `sadb.crypto`, if it is given."""
        super().__init__(sa, made)
        self._random = random

    def seal(self, number: int, payload: bytes, next_header: int) -> bytes:
        """The ESP packet of a payload. A number must not come twice: it is the IV of AEAD ciphers, which
        makes every nonce unique for as long as the key lives (RFC 4106 section 3.1)."""
        trailer = _trailers(next_header)[-(len(payload) + 2) % self.align]
        full = number.to_bytes(8, "big")
        header = self._spi + full[4:]
        if self._mac is not None:
            iv = self._random(self._iv) if self._iv else b""
            high = full[:4] if self._esn else b""
            return header + iv + self._mac.seal(iv, header, payload + trailer, high)
        aad = self._spi + full if self._esn else header
        return header + full + self._cipher.seal(full, aad, payload + trailer)

    def seal_train(self, number: int, payloads: Sequence[bytes], next_header: int) -> list[bytes]:
        """The ESP packets of several payloads, numbered from `number` on."""
        if self._mac is not None:
            return [self.seal(at, one, next_header) for at, one in enumerate(payloads, number)]
        trailers, align, spi, seal = _trailers(next_header), self.align, self._spi, self._cipher.seal
        made = []
        for payload in payloads:
            full = number.to_bytes(8, "big")
            header = spi + full[4:]
            text = payload + trailers[-(len(payload) + 2) % align]
            made.append(header + full + seal(full, spi + full if self._esn else header, text))
            number += 1
        return made

    def size(self, payload: int) -> int:
        """Octets of the ESP packet of a payload of this length."""
        return self.overhead + payload + 2 + -(payload + 2) % self.align

    def most(self, room: int) -> int:
        """The longest payload whose ESP packet has at most `room` octets."""
        return max(0, (room - self.overhead) // self.align * self.align - 2)


class _Blank:
    """A cipher that leaves its work to somebody else."""

    def seal(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        return data + bytes(16)

    def open(self, iv: bytes, aad: bytes, data: bytes) -> bytes:
        raise AssertionError("nothing arrives blank")


class Framer(Sealer):
    """Everything but encryption and check value, for which there are zeros: an adapter makes them. For AEAD
    and GMAC, whose IV is the sequence number."""

    __slots__ = ()

    def __init__(self, sa: SecurityAssociation, random: Callable[[int], bytes]) -> None:
        super().__init__(sa, random)
        self._cipher = _Blank()


class Opener(_Transform):
    """Opens ESP packets of one inbound SA."""

    __slots__ = ()

    def check(self, data: bytes) -> None:
        """Refuse what has no room for a trailer between IV and ICV."""
        if len(data) < self.overhead + 2:
            raise Dropped("malformed")

    def text(self, data: bytes) -> bytes:
        """Payload with trailer of a packet that an adapter has verified and decrypted in place."""
        return data[HEADER + self._iv : HEADER + self._iv - self.overhead]

    def decrypt(self, number: int, data: bytes) -> bytes:
        """Payload with trailer, authentic; `number` is the whole sequence number. After `check`."""
        header, iv, rest = data[:HEADER], data[HEADER : HEADER + self._iv], data[HEADER + self._iv :]
        try:
            if self._mac is not None:
                high = (number >> 32).to_bytes(4, "big") if self._esn else b""
                return self._mac.open(iv, header, rest, high)
            aad = self._spi + number.to_bytes(8, "big") if self._esn else header
            return self._cipher.open(iv, aad, rest)
        except Unverified:
            raise Dropped("unverified") from None


def strip(text: bytes) -> tuple[int, bytes]:
    """Next header and payload of a decrypted text; the padding must be 1, 2, 3 … (RFC 4303 section 2.4)."""
    if len(text) < 2:
        raise Dropped("malformed")
    length, next_header = text[-2], text[-1]
    end = len(text) - 2 - length
    if end < 0 or text[end:-2] != _PADDING[:length]:
        raise Dropped("malformed")
    return next_header, text[:end]
