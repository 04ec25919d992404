"""The three messages of NTLM ([MS-NLMP] section 2.2.1), as far as they are ours to judge or to make.

They arrive as they are, without SPNEGO around them. Whatever cannot be read, or offers less than NTLMv2 with
a key of its own, raises `Declined`; nothing else that is hostile gets any further than here.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from cryptography.hazmat.decrepit.ciphers.algorithms import ARC4
from cryptography.hazmat.primitives.ciphers import Cipher

from ikd.auth import Declined, Token
from sadb.secret import Secret

SIGNATURE = b"NTLMSSP\x00"
MOST_OCTETS = 16384  # of a message; Windows needs less than 1000
KEY_OCTETS = 16
MIC_AT, MIC_OCTETS = 72, 16
_HEADER = MIC_AT + MIC_OCTETS  # of AUTHENTICATE; the fields' contents follow
_V1_OCTETS = 24  # an NTLMv1 response has exactly these, an NTLMv2 one more
_BEFORE_PAIRS = 44  # of an NTLMv2 response: proof, versions, time, client's challenge
_EPOCH = 11_644_473_600  # seconds from 1601 to 1970
_VERSION = bytes((0, 1, 0, 0, 0, 0, 0, 15))  # 15: the revision of NTLM
_LATER = "the peer must use NTLMv2 (LmCompatibilityLevel 3 or higher, in Windows since Vista)"


class Kind(IntEnum):
    """MessageType."""

    NEGOTIATE = 1
    CHALLENGE = 2
    AUTHENTICATE = 3


class Flag(IntFlag):
    """Negotiate flags (section 2.2.2.5)."""

    UNICODE = 0x00000001
    REQUEST_TARGET = 0x00000004
    SIGN = 0x00000010
    SEAL = 0x00000020
    NTLM = 0x00000200
    ANONYMOUS = 0x00000800
    ALWAYS_SIGN = 0x00008000
    TARGET_SERVER = 0x00020000
    EXTENDED_SECURITY = 0x00080000
    TARGET_INFO = 0x00800000
    VERSION = 0x02000000
    KEY_128 = 0x20000000
    KEY_EXCHANGE = 0x40000000
    KEY_56 = 0x80000000


NEEDED = Flag.UNICODE | Flag.SIGN | Flag.NTLM | Flag.EXTENDED_SECURITY | Flag.KEY_128 | Flag.KEY_EXCHANGE
_ECHOED = NEEDED | Flag.SEAL | Flag.ALWAYS_SIGN | Flag.VERSION | Flag.KEY_56
_OURS = Flag.REQUEST_TARGET | Flag.TARGET_SERVER | Flag.TARGET_INFO


class Av(IntEnum):
    """AvId (section 2.2.2.1)."""

    END = 0
    COMPUTER = 1
    DOMAIN = 2
    FLAGS = 6
    TIME = 7


_MIC_PROVIDED = 2  # of MsvAvFlags


def octets(token: Token | None, kind: Kind) -> bytes:
    """The octets of a message of this kind; raises `Declined` for anything else."""
    data = b"" if token is None else token.data
    if not 0 < len(data) <= MOST_OCTETS:
        raise Declined(f"the peer sent an NTLM message of {len(data)} octets")
    if not data.startswith(SIGNATURE):
        what = "a token of SPNEGO or Kerberos" if data[0] in (0x60, 0xA0, 0xA1) else "octets"
        raise Declined(f"the peer sent {what} where an NTLM message was due")
    found = _number(data, 8)
    if found != kind:
        raise Declined(f"the peer sent NTLM message {found} where {kind} ({kind.name}) was due")
    return data


def _number(data: bytes, at: int) -> int:
    if len(data) < at + 4:
        raise Declined("the peer's NTLM message is too short")
    return int.from_bytes(data[at : at + 4], "little")


def _field(data: bytes, at: int, lowest: int) -> bytes:
    """What a field's length and offset point at; it must lie behind the header."""
    offset = _number(data, at + 4)
    length = int.from_bytes(data[at : at + 2], "little")
    if length and not lowest <= offset <= len(data) - length:
        raise Declined("the peer's NTLM message has a field outside of itself")
    return data[offset : offset + length] if length else b""


def _agreed(flags: Flag, message: str) -> Flag:
    if lacking := NEEDED & ~flags:
        raise Declined(f"the peer's {message} lacks {lacking.name or hex(lacking)}", _LATER)
    return flags


def _pairs(data: bytes) -> dict[int, bytes]:
    """AV_PAIRs up to the end mark; raises `Declined`."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        kind, length = struct.unpack_from("<HH", data, position)
        position += 4
        if kind == Av.END and length == 0:
            return found
        if position + length > len(data) or kind in found:
            break
        found[kind] = data[position : position + length]
        position += length
    raise Declined("the peer's NTLM message has a list of names that cannot be read")


# NEGOTIATE and CHALLENGE ---------------------------------------------------------------------------------


def offered(negotiate: bytes) -> Flag:
    """The flags of a NEGOTIATE; raises `Declined` when they are not enough."""
    return _agreed(Flag(_number(negotiate, 12)), "NTLM offer")


def challenge(flags: Flag, nonce: bytes, name: str, now: float) -> bytes:
    """A CHALLENGE to an offer. It tells the time, on which a client must protect its answer with a MIC."""
    target = name.upper().encode("utf-16-le")
    time = struct.pack("<Q", int((now + _EPOCH) * 10_000_000))
    pairs = ((Av.COMPUTER, target), (Av.DOMAIN, target), (Av.TIME, time), (Av.END, b""))
    info = b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in pairs)
    begin = 56
    return b"".join(
        (
            SIGNATURE + struct.pack("<I", Kind.CHALLENGE),
            struct.pack("<HHI", len(target), len(target), begin),
            struct.pack("<I", (flags & _ECHOED) | _OURS) + nonce + bytes(8),
            struct.pack("<HHI", len(info), len(info), begin + len(target)),
            _VERSION + target + info,
        )
    )


def nonce_of(data: bytes) -> bytes:
    """The server's nonce out of a CHALLENGE that we can answer; raises `Declined`."""
    _agreed(Flag(_number(data, 20)), "NTLM challenge")
    if Av.TIME not in _pairs(_field(data, 40, 48)):
        raise Declined("the peer's NTLM challenge has no time, so our answer would not be protected")
    return data[24:32]


# AUTHENTICATE --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An AUTHENTICATE. `response` is the NTLMv2 response, `sealed` the session key under another."""

    data: bytes = field(repr=False)
    domain: str
    user: str
    response: bytes = field(repr=False)
    sealed: bytes = field(repr=False)

    @classmethod
    def read(cls, data: bytes) -> Answer:
        """Raises `Declined` for what is no whole NTLMv2 answer with a MIC."""
        flags = Flag(_number(data, 60))
        response = _field(data, 20, 64)
        if len(response) == _V1_OCTETS or not response:
            raise Declined("the peer answered with NTLMv1, LM or nothing, none of which is accepted", _LATER)
        parts = [_field(data, at, _HEADER) for at in (12, 20, 28, 36, 44, 52)]
        if len(data) < _HEADER or len(response) < _BEFORE_PAIRS or response[16:18] != b"\x01\x01":
            raise Declined("the peer's NTLM answer is no whole NTLMv2 answer", _LATER)
        protected = _pairs(response[_BEFORE_PAIRS:]).get(Av.FLAGS, b"")
        if not int.from_bytes(protected, "little") & _MIC_PROVIDED:
            raise Declined("the peer's NTLM answer has no MIC", _LATER)
        _, _, domain, user, _, sealed = parts
        if not user or flags & Flag.ANONYMOUS:
            raise Declined("the peer wants to be anonymous with NTLM")
        _agreed(flags, "NTLM answer")
        if len(sealed) != KEY_OCTETS:
            raise Declined("the peer's NTLM answer has no session key")
        return cls(data, _text(domain), _text(user), response, sealed)

    @property
    def proof(self) -> bytes:
        """NTProofStr."""
        return self.response[:16]

    def expected(self, nt_hash: Secret, nonce: bytes) -> tuple[bytes, Secret]:
        """The proof that this user's hash makes (section 3.3.2), and the session key if it is that one."""
        owner = (self.user.upper() + self.domain).encode("utf-16-le")
        base = _hmac(bytes(nt_hash), owner)
        proof = _hmac(base, nonce + self.response[16:])
        opened = Cipher(ARC4(_hmac(base, proof)), None).decryptor().update(self.sealed)
        return proof, Secret(opened)

    def protected(self, key: Secret, before: Sequence[bytes]) -> bool:
        """Whether its MIC covers it and the messages before it (section 3.1.5.1.2)."""
        bare = self.data[:MIC_AT] + bytes(MIC_OCTETS) + self.data[_HEADER:]
        given = self.data[MIC_AT:_HEADER]
        return hmac.compare_digest(_hmac(bytes(key), b"".join(before) + bare), given)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "md5")


def _text(data: bytes) -> str:
    try:
        found = data.decode("utf-16-le")
    except UnicodeDecodeError:
        raise Declined("the peer's NTLM answer has a name that is no text") from None
    if not found.isprintable():
        raise Declined("the peer's NTLM answer has a name with control characters")
    return found
