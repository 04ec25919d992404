"""How octets become a message here: the CRYPTO payload, MS-AIPS section 2.2.3.2.

It stands in front of every message. In the clear it carries a sequence number; encrypted it looks like ESP
without an SPI: sequence number, IV, ciphertext that ends in padding, and an integrity check value over the
whole message, which is verified before anything is decrypted. Nothing is chained from message to message.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace

from ikd.authip.keys import MainKeys
from ikd.authip.message import Message
from ikd.authip.numbers import CRYPTO
from ikd.authip.payloads import PAYLOADS
from ikd.wire.codec import Malformed, Reader
from ikd.wire.isakmp import GENERIC, HEADER, HEADER_SIZE, LARGEST, Body, Flags, Header, chain, encode_chain
from sadb.algorithms import MainSuite
from sadb.crypto import cbc_decrypt, cbc_encrypt, prf

VERSION = 0x10
CLEAR_IV = 8  # octets of an IV in the clear variant
OLD_VERSIONS = range(5, 8)  # Microsoft's implementations whose check values have 12 octets always
_OLD_ICV = 12
_MARK = 8  # octets of a check value that tell it from all others
MOST_WRITTEN = 1 << 18  # messages of ours that are told from the peer's; after those the keys are used up
_ICV = {"sha1": 12, "sha256": 16, "sha384": 24, "sha512": 32}  # RFC 2404, RFC 4868


class Unprotected(Malformed):
    """A message in the clear where it must be encrypted, or encrypted before there are keys."""


class Unverified(Malformed):
    """The integrity check value does not fit: the message is not the peer's."""


def icv_size(suite: MainSuite, *, old: bool) -> int:
    """Octets of the check value; `old` when it has to be that of Windows Vista to 7."""
    return _OLD_ICV if old else _ICV[suite.prf.hash]


class Channel:
    """Cookies and, from `arm` on, the keys of one main-mode SA."""

    __slots__ = (
        "_covers_header",
        "_icv",
        "_keys",
        "_random",
        "_suite",
        "_written",
        "cookie_i",
        "cookie_r",
    )

    def __init__(
        self, cookie_i: bytes, cookie_r: bytes, random: Callable[[int], bytes], *, covers_header: bool = True
    ) -> None:
        self.cookie_i = cookie_i
        self.cookie_r = cookie_r
        self._random = random
        self._covers_header = covers_header  # whether transcripts cover ISAKMP headers
        self._suite: MainSuite | None = None
        self._keys: MainKeys | None = None
        self._icv = 0
        self._written = bytearray()  # the beginnings of the check values of all we have encrypted

    @property
    def armed(self) -> bool:
        """Whether it has keys."""
        return self._keys is not None

    def arm(self, suite: MainSuite, keys: MainKeys, *, old: bool) -> None:
        """Take keys into use; `old` as in `icv_size`."""
        self._suite, self._keys, self._icv = suite, keys, icv_size(suite, old=old)

    @property
    def used_up(self) -> bool:
        """Whether so much has been encrypted that nothing more should be."""
        return len(self._written) >= MOST_WRITTEN * _MARK

    def disarm(self) -> None:
        """Forget the keys: the authentication they came from did not succeed."""
        self._suite = self._keys = None

    # Writing ---------------------------------------------------------------------------------------------

    def seal(self, message: Message) -> tuple[bytes, bytes]:
        """The datagram of a message, and what of it transcripts cover."""
        kind, octets = encode_chain(message.payloads)
        if message.encrypted:
            datagram = self._encrypt(message, kind, octets)
        else:
            iv = bytes(CLEAR_IV if message.iv else 0)
            crypto = GENERIC.pack(kind, 0, GENERIC.size + 4 + len(iv)) + _number(message.sequence) + iv
            datagram = self._header(message, len(crypto) + len(octets)) + crypto + octets
        return datagram, self._covered(message, datagram, octets)

    def _header(self, message: Message, size: int, *, length: bool = True) -> bytes:
        if HEADER_SIZE + size > LARGEST:
            raise ValueError(f"a message of {HEADER_SIZE + size} octets cannot be sent")
        return HEADER.pack(
            self.cookie_i,
            self.cookie_r,
            CRYPTO,
            VERSION,
            message.exchange,
            Flags.ENCRYPTION if message.encrypted else 0,
            message.message_id,
            HEADER_SIZE + size if length else 0,
        )

    def _encrypt(self, message: Message, kind: int, octets: bytes) -> bytes:
        assert self._suite is not None
        assert self._keys is not None
        row = self._suite.encryption
        padding = bytes(n % 256 for n in range(1, 1 + -(len(octets) + 2) % row.block))
        iv = self._random(row.iv)
        plain = octets + padding + bytes((len(padding), kind))
        crypto = GENERIC.pack(0, 0, GENERIC.size + 4 + len(iv)) + _number(message.sequence) + iv
        body = crypto + cbc_encrypt(row, bytes(self._keys.cipher), iv, plain)
        icv = self._check_value(self._header(message, 0, length=False) + body)
        self._written += icv[:_MARK]
        return self._header(message, len(body) + len(icv)) + body + icv

    def _check_value(self, octets: bytes) -> bytes:
        """HMAC over the message, in whose header the length is zero."""
        assert self._suite is not None
        assert self._keys is not None
        return prf(self._suite.prf, bytes(self._keys.icv), octets)[: self._icv]

    def _covered(self, message: Message, datagram: bytes, octets: bytes) -> bytes:
        """What of a message transcripts cover: its payloads, and in front of them the header as it would be
        without encryption; the CRYPTO payload only where it was in the clear."""
        if not self._covers_header:
            return octets
        if not message.encrypted:
            return datagram
        return self._header(message, len(octets)) + octets

    def wrote(self, data: bytes) -> bool:
        """Whether an encrypted message is one of ours: both directions have one key, and nothing in a message
        says which way it goes."""
        return data[-self._icv :][:_MARK] in self._written

    # Reading ---------------------------------------------------------------------------------------------

    def open(self, header: Header, data: bytes) -> Message:
        """The message in a datagram; raises `Malformed`."""
        encrypted = bool(header.flags & Flags.ENCRYPTION)
        reader = Reader(data)
        reader.take(HEADER_SIZE)
        if header.next_payload != CRYPTO:
            raise Malformed("the CRYPTO payload is not the first")
        kind, _, length = reader.unpack(GENERIC)
        sequence = reader.uint(4)
        iv = reader.take(length - GENERIC.size - 4)
        rest = reader.rest()
        if encrypted:
            kind, octets = self._decrypt(data, kind, iv, rest)
        elif len(iv) not in (0, CLEAR_IV):
            raise Malformed(f"a CRYPTO payload of {length} octets in the clear")
        else:
            octets = rest
        payloads: list[Body] = chain(kind, octets, PAYLOADS)[0]
        if any(one.kind == CRYPTO for one in payloads):
            raise Malformed("a second CRYPTO payload")
        message = Message(
            header.exchange, tuple(payloads), header.message_id, encrypted, kind, octets, sequence
        )
        return self._with_covered(message, header, data)

    def _with_covered(self, message: Message, header: Header, data: bytes) -> Message:
        covered = message.octets
        if self._covers_header:
            covered = data
            if message.encrypted:
                plain = replace(header, length=HEADER_SIZE + len(message.octets))
                covered = plain.encode() + message.octets
        return replace(message, covered=covered)

    def _decrypt(self, data: bytes, following: int, iv: bytes, rest: bytes) -> tuple[int, bytes]:
        """The type of the first payload, and the chain of payloads."""
        if self._suite is None or self._keys is None:
            raise Unprotected("encrypted before there are keys")
        row = self._suite.encryption
        ciphertext, icv = rest[: -self._icv], rest[-self._icv :]
        if following or len(iv) != row.iv or not ciphertext or len(ciphertext) % row.block:
            raise Malformed("an encrypted message of a strange size")
        made = self._check_value(data[: HEADER_SIZE - 4] + bytes(4) + data[HEADER_SIZE : -self._icv])
        if not hmac.compare_digest(made, icv):
            raise Unverified("the integrity check value does not fit")
        plain = cbc_decrypt(row, bytes(self._keys.cipher), iv, ciphertext)
        padding, kind = plain[-2], plain[-1]
        if padding + 2 > len(plain):
            raise Malformed(f"{padding} octets of padding in {len(plain)}")
        return kind, plain[: len(plain) - 2 - padding]


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")
