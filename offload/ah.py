"""Authentication Header, RFC 4302: the check value over a whole IP packet, with HMAC or AES-GMAC (RFC 4543).

Fields that may change on the way count as zero, those that change predictably as what they will be. Routing
headers of IPv6 are obsolete where they change (RFC 5095) and are refused unless used up.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from offload.ip import AH, DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, Dropped, addressed, extensions
from sadb.algorithms import Kind
from sadb.sa import SecurityAssociation

HEADER = 12  # next header to sequence number

# IPv4 options that do not change (RFC 4302 Appendix A1); all others count as zero
_IMMUTABLE = frozenset((0, 1, 130, 133, 134, 148, 149))
_SOURCE_ROUTES = frozenset((131, 137))
_CHANGES = 0x20  # the bit of an IPv6 option's type that says its data may change (RFC 8200 section 4.2)


class Authenticator:
    """Makes and checks the headers of one SA, in either direction."""

    __slots__ = ("_esn", "_gmac", "_hash", "_icv", "_iv", "_key", "_salt", "_spi")

    def __init__(self, sa: SecurityAssociation) -> None:
        suite, row = sa.suite, sa.suite.encryption
        self._spi = sa.spi.to_bytes(4, "big")
        self._esn = suite.esn
        self._icv = suite.icv
        self._gmac: AESGCM | None = None
        if suite.integrity is not None:
            self._key, self._hash, self._iv = bytes(sa.integrity_key), suite.integrity.hash, 0
        elif row is not None and row.kind is Kind.GMAC:
            key = bytes(sa.encryption_key)
            self._gmac, self._salt, self._iv = AESGCM(key[: row.key]), key[row.key :], row.iv
        else:
            raise ValueError("AH needs an integrity algorithm")

    def size(self, version: int) -> int:
        """Octets of the header, a multiple of 4 in IPv4 and of 8 in IPv6."""
        length = HEADER + self._iv + self._icv
        return length + -length % (4 if version == 4 else 8)

    def sign(self, number: int, header: bytes, field: int, next_header: int, payload: bytes) -> bytes:
        """The packet with AH between its header and the payload. `field` is the offset in the header of the
        octet that names what follows; a number must not come twice."""
        size = self.size(header[0] >> 4)
        head = addressed(header, field, AH, size + len(payload))
        full = number.to_bytes(8, "big")
        fixed = bytes((next_header, size // 4 - 2, 0, 0)) + self._spi + full[4:]
        iv, padding = full[: self._iv], bytes(size - HEADER - self._iv - self._icv)
        return head + fixed + iv + self._value(full, iv, head, fixed, payload, padding) + padding + payload

    def check(self, data: bytes) -> int:
        """The size of the header at the beginning of `data`, if it can be one of this SA."""
        size = (data[1] + 2) * 4
        # peers that align to 8 octets in IPv4 too are common: Linux does
        if len(data) < size or size not in (self.size(4), self.size(6)):
            raise Dropped("malformed")
        return size

    def verify(self, number: int, header: bytes, data: bytes, size: int) -> tuple[int, bytes]:
        """Next header and payload of `data`, which begins with AH, behind its IP header. After `check`."""
        end = HEADER + self._iv + self._icv
        fixed, payload = data[:HEADER], data[size:]
        iv, icv = data[HEADER : HEADER + self._iv], data[HEADER + self._iv : end]
        value = self._value(number.to_bytes(8, "big"), iv, header, fixed, payload, data[end:size])
        if not hmac.compare_digest(value, icv):
            raise Dropped("unverified")
        return data[0], payload

    def _value(
        self, full: bytes, iv: bytes, head: bytes, fixed: bytes, payload: bytes, padding: bytes
    ) -> bytes:
        """The check value. The authentication data count as zero, padding behind them as it is, and the high
        half of an extended sequence number stands at the end without being sent (section 3.3.3.2)."""
        zero = bytes(self._iv + self._icv)
        high = full[:4] if self._esn else b""
        text = b"".join((immutable(head), fixed, zero, padding, payload, high))
        if self._gmac is None:
            return hmac.digest(self._key, text, self._hash)[: self._icv]
        # the authentication data of GMAC begin with its IV (RFC 4543 section 4), which is part of the nonce
        return self._gmac.encrypt(self._salt + iv, b"", text)


class Unsigned(Authenticator):
    """Everything but the check value, for which there are zeros: an adapter makes it."""

    __slots__ = ()

    def _value(
        self, full: bytes, iv: bytes, head: bytes, fixed: bytes, payload: bytes, padding: bytes
    ) -> bytes:
        return bytes(self._icv)


def immutable(header: bytes) -> bytes:
    """The IP header as the receiver will have it, with zeros where it may change (section 3.3.3.1)."""
    head = bytearray(header)
    if head[0] >> 4 == 4:
        head[1] = head[6] = head[7] = head[8] = head[10] = head[11] = 0
        if len(head) > 20:
            _clear_options4(head)
        return bytes(head)
    head[0], head[1], head[2], head[3], head[7] = 0x60, 0, 0, 0, 0
    for kind, at, end in extensions(header):
        if kind in (HOP_BY_HOP, DESTINATION_OPTIONS):
            _clear_options6(head, at + 2, end)
        elif kind == ROUTING and header[at + 3]:
            raise Dropped("malformed")
    return bytes(head)


def _clear_options4(head: bytearray) -> None:
    at = 20
    while at < len(head):
        kind = head[at]
        if kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        size = head[at + 1] if at + 1 < len(head) else 0
        if size < 2 or at + size > len(head):
            raise Dropped("malformed")
        if kind in _SOURCE_ROUTES and size >= 7 and head[at + 2] < size:
            head[16:20] = head[at + size - 4 : at + size]  # the destination it will arrive at
        if kind not in _IMMUTABLE:
            head[at : at + size] = bytes(size)
        at += size


def _clear_options6(head: bytearray, at: int, end: int) -> None:
    while at < end:
        if head[at] == 0:  # Pad1
            at += 1
            continue
        if at + 2 > end or at + 2 + head[at + 1] > end:
            raise Dropped("malformed")
        size = head[at + 1]
        if head[at] & _CHANGES:
            head[at + 2 : at + 2 + size] = bytes(size)
        at += 2 + size
