"""How octets become a trusted message: protection, fragments, message IDs and what counts as a repetition.

RFC 7296 sections 2.1 to 2.3, 2.21 and 3.14, RFC 5282 for combined modes, RFC 7383 for fragments. One
`Channel` per IKE SA; it has keys from the moment `arm` is called and nothing of an unauthenticated message
stays in it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from ikd.ikev2.keys import IkeKeys
from ikd.ikev2.message import Message
from ikd.ikev2.payloads import PAYLOADS, Encrypted, EncryptedFragment
from ikd.riders.fragment import MOST_FRAGMENTS, Reassembly, cut
from ikd.wire.codec import Malformed, Reader
from ikd.wire.isakmp import HEADER, HEADER_SIZE, LARGEST, Body, Flags, Header, chain, encode_chain
from sadb.address import NATT_PORT, Path
from sadb.algorithms import MainSuite
from sadb.crypto import Cipher, cipher

VERSION: Final = 0x20
_FRAGMENT_HEADER: Final = 4
_MOST_REASSEMBLIES: Final = 4


class Standing(Enum):
    """What a request's message ID says about it."""

    NEW = "new"
    REPEATED = "repeated"  # answered: the same answer goes out again
    UNDER_WAY = "under way"  # being worked on: ignored
    STALE = "stale"  # outside the window, or an answered number with other octets


def clear(header: Header, payloads: Iterable[Body]) -> bytes:
    """An unprotected message; next payload and length of the header are filled in."""
    kind, octets = encode_chain(payloads)
    return (
        HEADER.pack(
            header.spi_i,
            header.spi_r,
            kind,
            header.version,
            header.exchange,
            header.flags,
            header.message_id,
            HEADER_SIZE + len(octets),
        )
        + octets
    )


class Channel:
    """The protected channel of one IKE SA. `initiator` tells who sent the first message of the IKE SA, which
    decides keys and flags for its whole life (section 2.2)."""

    __slots__ = (
        "_block",
        "_ciphers",
        "_expected",
        "_integrity",
        "_iv",
        "_limit",
        "_overhead",
        "_partial",
        "_random",
        "_replies",
        "_sent_ivs",
        "_under_way",
        "_window",
        "fragments",
        "initiator",
        "next_id",
        "spi_i",
        "spi_r",
    )

    def __init__(
        self,
        initiator: bool,
        spi_i: bytes,
        spi_r: bytes,
        random: Callable[[int], bytes],
        *,
        window: int,
        message_limit: int,
        next_id: int = 0,
        expected: int = 0,
    ) -> None:
        self.initiator = initiator
        self.spi_i = spi_i
        self.spi_r = spi_r
        self.fragments = 0  # size of the largest IP packet, once the peer has said that it takes fragments
        self.next_id = next_id
        self._random = random
        self._limit = message_limit
        self._window = window
        self._expected = expected
        self._ciphers: tuple[Cipher, Cipher] | None = None
        self._iv = self._block = self._overhead = self._sent_ivs = 0
        self._integrity = False
        self._replies: dict[int, tuple[bytes, list[bytes]]] = {}
        self._under_way: dict[int, bytes] = {}
        self._partial: OrderedDict[tuple[bool, int], Reassembly] = OrderedDict()

    # Keys ------------------------------------------------------------------------------------------------

    @property
    def armed(self) -> bool:
        """Whether it has keys."""
        return self._ciphers is not None

    def arm(self, suite: MainSuite, keys: IkeKeys) -> None:
        """Take the keys of both directions into use."""
        row, mac = suite.encryption, suite.integrity
        from_i = cipher(row, bytes(keys.ei), mac, bytes(keys.ai))
        from_r = cipher(row, bytes(keys.er), mac, bytes(keys.ar))
        self._ciphers = (from_i, from_r) if self.initiator else (from_r, from_i)
        self._iv, self._block = row.iv, row.block
        self._integrity = not row.aead
        self._overhead = row.iv + row.block + (mac.icv if mac else row.icv)

    # Sending ---------------------------------------------------------------------------------------------

    def header(self, exchange: int, message_id: int, *, response: bool) -> Header:
        """The header of a message of ours, still without next payload and length."""
        flags = (Flags.INITIATOR if self.initiator else 0) | (Flags.RESPONSE if response else 0)
        return Header(self.spi_i, self.spi_r, 0, VERSION, exchange, int(flags), message_id, 0)

    def seal(self, message: Message, path: Path) -> list[bytes]:
        """The datagrams of a protected message: one, or fragments when it is larger than a packet on this
        path may be and the peer takes them."""
        kind, inner = encode_chain(message.payloads)
        if self.fragments:
            room = self.fragments - HEADER_SIZE - 4 - (48 if path.peer.address.version == 6 else 28)
            room -= self._overhead + (4 if path.local.port == NATT_PORT else 0)
            if len(inner) > room:
                pieces = cut(inner, room - _FRAGMENT_HEADER)
                if len(pieces) <= MOST_FRAGMENTS:
                    total = len(pieces).to_bytes(2, "big")
                    return [
                        self._sealed(
                            message,
                            EncryptedFragment.kind,
                            kind if number == 1 else 0,
                            number.to_bytes(2, "big") + total,
                            piece,
                        )
                        for number, piece in enumerate(pieces, 1)
                    ]
        return [self._sealed(message, Encrypted.kind, kind, b"", inner)]

    def _sealed(self, message: Message, outer: int, inner: int, prefix: bytes, plaintext: bytes) -> bytes:
        assert self._ciphers is not None
        if self._integrity:
            pad = -(len(plaintext) + 1) % self._block
            plaintext += bytes(pad) + bytes((pad,))
            iv = self._random(self._iv)
        else:
            plaintext += b"\0"
            self._sent_ivs += 1  # never the same twice under one key, which is all an AEAD asks for
            iv = self._sent_ivs.to_bytes(8, "big")
        length = 4 + len(prefix) + self._overhead + len(plaintext) - self._block
        if HEADER_SIZE + length > LARGEST:
            raise ValueError(f"a message of {HEADER_SIZE + length} octets cannot be sent")
        flags = (Flags.INITIATOR if self.initiator else 0) | (Flags.RESPONSE if message.response else 0)
        aad = (
            HEADER.pack(
                self.spi_i,
                self.spi_r,
                outer,
                VERSION,
                message.exchange,
                flags,
                message.message_id,
                HEADER_SIZE + length,
            )
            + bytes((inner, 0, length >> 8, length & 0xFF))
            + prefix
        )
        return aad + iv + self._ciphers[0].seal(iv, aad, plaintext)

    # Receiving -------------------------------------------------------------------------------------------

    def open(self, header: Header, data: bytes) -> Message | None:
        """The message in a protected datagram, or None while fragments are missing.

        Raises `sadb.crypto.Unverified` before anything else is believed, `Malformed` for octets that are
        wrong although they are authentic.
        """
        assert self._ciphers is not None
        try:
            inner, number, total, start = self._outside(header, data)
        except Malformed as error:  # whoever has written that
            raise Unprotected(str(error)) from error
        ciphertext = start + self._iv
        plaintext = self._ciphers[1].open(data[start:ciphertext], data[:start], data[ciphertext:])
        pad = plaintext[-1] if plaintext else 0
        if len(plaintext) < pad + 1:
            raise Malformed("padding longer than the payload")
        content = plaintext[: len(plaintext) - 1 - pad]
        response = bool(header.flags & Flags.RESPONSE)
        if header.next_payload == EncryptedFragment.kind:
            key = (response, header.message_id)
            found = self._reassembly(key, total)
            if total < found.total:
                return None
            if not found.add(number, inner, content, data):
                del self._partial[key]
                raise Malformed(f"fragments of more than {self._limit} octets")
            whole = found.whole()
            if whole is None:
                return None
            del self._partial[key]
            inner, content, data = found.first, whole, found.datagram
        payloads, _ = chain(inner, content, PAYLOADS)
        return Message(header.exchange, tuple(payloads), response, header.message_id, data)

    def _outside(self, header: Header, data: bytes) -> tuple[int, int, int, int]:
        """What is before the IV: the first inner payload, the number of the fragment and of how many,
        and where the IV begins. Raises `Malformed`: nothing of it is authentic yet."""
        reader = Reader(data)
        reader.take(HEADER_SIZE)
        if header.next_payload not in (Encrypted.kind, EncryptedFragment.kind):
            raise Malformed(f"exchange {header.exchange} in the clear")
        inner = reader.uint(1)
        reader.take(1)
        if reader.uint(2) != len(data) - HEADER_SIZE:
            raise Malformed("the encrypted payload is not the last one")
        number = total = 1
        if header.next_payload == EncryptedFragment.kind:
            number, total = reader.uint(2), reader.uint(2)
            if not 1 <= number <= total <= MOST_FRAGMENTS:  # RFC 7383 section 2.6: in silence
                raise Malformed(f"fragment {number} of {total}")
        start = reader.at
        reader.take(self._iv)
        return inner, number, total, start

    def _reassembly(self, key: tuple[bool, int], total: int) -> Reassembly:
        """Where the fragments of a message are put together; few at a time, the oldest gives way."""
        found = self._partial.get(key)
        if found is None or total > found.total:  # RFC 7383 section 2.6: a smaller size was tried
            found = self._partial[key] = Reassembly(total, self._limit)
        while len(self._partial) > _MOST_REASSEMBLIES:
            self._partial.popitem(last=False)
        return found

    # Message IDs -----------------------------------------------------------------------------------------

    def standing(self, header: Header, data: bytes) -> Standing:
        """How a request's number stands to the window; changes nothing."""
        number = header.message_id
        if number in self._under_way:
            return Standing.UNDER_WAY
        answered = self._replies.get(number)
        if answered is not None:
            if _digest(data) == answered[0]:
                return Standing.REPEATED
            # a fragment other than the first belongs to what is answered already (RFC 7383 section 2.6.1)
            return Standing.UNDER_WAY if header.next_payload == EncryptedFragment.kind else Standing.STALE
        if self._expected <= number < self._expected + self._window:
            return Standing.NEW
        return Standing.STALE

    def accept(self, message: Message) -> None:
        """Note an authenticated, whole request: it will be answered once."""
        self._under_way[message.message_id] = _digest(message.octets)

    def answered(self, message_id: int, datagrams: list[bytes]) -> None:
        """Keep the answer for repetitions, as many as the window has (section 2.3)."""
        self._replies[message_id] = (self._under_way.pop(message_id, b""), datagrams)
        while self._expected in self._replies:
            self._expected += 1
        while len(self._replies) > self._window:
            del self._replies[min(self._replies)]  # the order of answers is not that of requests

    def repeated(self, message_id: int) -> list[bytes]:
        """The answer that was given."""
        return self._replies[message_id][1]


class Unprotected(Malformed):
    """A message in the clear where it must be protected."""


def _digest(data: bytes) -> bytes:
    """What a repetition has in common with the original: every octet (section 2.1)."""
    return hashlib.blake2b(data, digest_size=16).digest()
