"""How octets become a message here: CBC with a chain of IVs for each exchange (RFC 2409 section 5 and
appendix B).

There is no integrity check on a message as a whole: garbage decrypts to garbage, which mostly fails to be a
chain of payloads; what an exchange believes is decided by its hashes. So an IV moves on only when the
exchange has accepted the message.
"""

from __future__ import annotations

from collections.abc import Callable

from ikd.ikev1.keys import IkeKeys, first_iv, phase2_iv
from ikd.ikev1.message import Message
from ikd.isakmp.payloads import PAYLOADS
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER, HEADER_SIZE, LARGEST, Flags, Header, chain, encode_chain, extents
from sadb.algorithms import MainSuite
from sadb.crypto import cbc_decrypt, cbc_encrypt

VERSION = 0x10


class Unprotected(Malformed):
    """A message in the clear where it must be encrypted, or the reverse."""


class Channel:
    """Cookies and, from `arm` on, the cipher of one ISAKMP SA."""

    __slots__ = ("_key", "_random", "_suite", "cookie_i", "cookie_r", "last_block", "start_iv")

    def __init__(self, cookie_i: bytes, cookie_r: bytes, random: Callable[[int], bytes]) -> None:
        self.cookie_i = cookie_i
        self.cookie_r = cookie_r
        self.start_iv = b""  # of phase 1
        self.last_block = b""  # of phase 1, when it is done
        self._random = random
        self._suite: MainSuite | None = None
        self._key = b""

    @property
    def armed(self) -> bool:
        """Whether it has keys."""
        return self._suite is not None

    def arm(self, suite: MainSuite, keys: IkeKeys, public_i: bytes, public_r: bytes) -> None:
        """Take the keys into use; phase 1 begins its chain of IVs."""
        self._suite, self._key = suite, bytes(keys.cipher)
        self.start_iv = first_iv(suite, public_i, public_r)

    def iv_of(self, message_id: int) -> bytes:
        """Where the chain of IVs of a phase 2 exchange begins."""
        assert self._suite is not None
        return phase2_iv(self._suite, self.last_block, message_id)

    def seal(self, message: Message, iv: bytes) -> tuple[bytes, bytes]:
        """The datagram of a message, and the IV of the next one of its exchange."""
        kind, octets = encode_chain(message.payloads)
        flags = 0
        if message.encrypted:
            assert self._suite is not None
            block = len(iv)
            octets += bytes(-len(octets) % block)
            octets = cbc_encrypt(self._suite.encryption, self._key, iv, octets)
            flags, iv = Flags.ENCRYPTION, octets[-block:]
        if HEADER_SIZE + len(octets) > LARGEST:
            raise ValueError(f"a message of {HEADER_SIZE + len(octets)} octets cannot be sent")
        header = HEADER.pack(
            self.cookie_i,
            self.cookie_r,
            kind,
            VERSION,
            message.exchange,
            flags,
            message.message_id,
            HEADER_SIZE + len(octets),
        )
        return header + octets, iv

    def open(self, header: Header, data: bytes, iv: bytes) -> tuple[Message, bytes]:
        """The message in a datagram, and the IV of the next one if this one is believed; raises
        `Malformed`."""
        octets = data[HEADER_SIZE:]
        encrypted = bool(header.flags & Flags.ENCRYPTION)
        if encrypted:
            if self._suite is None:
                raise Unprotected("encrypted before there are keys")
            if not octets or len(octets) % len(iv):
                raise Malformed(f"{len(octets)} octets are no whole blocks")
            following = octets[-len(iv) :]
            octets = cbc_decrypt(self._suite.encryption, self._key, iv, octets)
            end = max((one.end for one in extents(header.next_payload, octets)), default=0)
            payloads, _ = chain(header.next_payload, octets[:end], PAYLOADS)
            iv = following
        else:
            payloads, _ = chain(header.next_payload, octets, PAYLOADS)
        return (
            Message(
                header.exchange,
                tuple(payloads),
                header.message_id,
                encrypted,
                header.next_payload,
                octets,
            ),
            iv,
        )
