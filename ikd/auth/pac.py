"""Whose member a ticket's owner is: the logon information of the PAC ([MS-PAC] section 2.5), in NDR.

`gss.Context.logon_info` hands it out only when the KDC's signature over it was checked. It is read with care
all the same: every length is held against the octets that are there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_ENABLED = 0x00000004  # SE_GROUP_ENABLED
MOST_GROUPS: Final = 4096  # Windows allows 1024 in a token
_SIZES = {"H": 2, "I": 4}


class Unreadable(ValueError):
    """The octets are no logon information; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class LogonInfo:
    """The user's SID, that of the primary group, and those of all groups that count (both included)."""

    user: str
    primary: str
    groups: tuple[str, ...]

    @property
    def sids(self) -> tuple[str, ...]:
        """Everything a rule may name."""
        return tuple(dict.fromkeys((self.user, self.primary, *self.groups)))


class _Reader:
    """NDR (C706 chapter 14), little-endian: primitives at multiples of their size."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, octets: int) -> bytes:
        """The next octets."""
        piece = self._data[self._at : self._at + octets]
        if len(piece) < octets:
            raise Unreadable("it ends too early")
        self._at += octets
        return piece

    def number(self, kind: str = "I") -> int:
        """One number."""
        size = _SIZES[kind]
        self.take(-self._at % size)
        found: int = struct.unpack(f"<{kind}", self.take(size))[0]
        return found

    def numbers(self, count: int) -> list[int]:
        """Several of four octets."""
        return [self.number() for _ in range(count)]

    def count(self, said: int) -> int:
        """How many elements an array has; the structure that points at it said so, too."""
        found = self.number()
        if found != said or found > MOST_GROUPS:
            raise Unreadable(f"an array of {found} elements that should have {said}")
        return found

    def string(self) -> bool:
        """The fixed part of an RPC_UNICODE_STRING: whether its text follows."""
        self.number("H")
        self.number("H")
        return bool(self.number())

    def text(self) -> None:
        """Pass over such a text: most characters, where it begins, how many there are."""
        _, _, actual = self.numbers(3)
        self.take(2 * actual)

    def sid(self) -> str:
        """A SID in the form S-1-5-21-..."""
        size = self.number()
        revision, count = self.take(2)
        authority = int.from_bytes(self.take(6), "big")
        if revision != 1 or count != size or not 0 < count <= 15:
            raise Unreadable("a SID that is none")
        parts = (revision, authority, *self.numbers(count))
        return "S-" + "-".join(map(str, parts))

    def memberships(self, said: int) -> list[int]:
        """The relative identifiers of an array of GROUP_MEMBERSHIP that are enabled."""
        pairs = [self.numbers(2) for _ in range(self.count(said))]
        return [rid for rid, attributes in pairs if attributes & _ENABLED]

    def extra_sids(self, said: int) -> list[str]:
        """The SIDs of an array of KERB_SID_AND_ATTRIBUTES that are enabled: pointers first, then contents."""
        pairs = [self.numbers(2) for _ in range(self.count(said))]
        found = [(self.sid(), attributes) for pointer, attributes in pairs if pointer]
        return [sid for sid, attributes in found if attributes & _ENABLED]


def read(data: bytes) -> LogonInfo:
    """A KERB_VALIDATION_INFO with its headers; raises `Unreadable`."""
    reader = _Reader(data)
    version, order, length, _ = struct.unpack("<BBHI", reader.take(8))
    if (version, order, length) != (1, 0x10, 8):
        raise Unreadable("it does not begin as NDR does")
    reader.numbers(2)  # length of what follows, filler
    if not reader.number():
        raise Unreadable("it is empty")
    reader.numbers(12)  # six times
    texts = [reader.string() for _ in range(6)]  # names and paths of the user
    reader.number("H")  # logons, wrong passwords
    reader.number("H")
    user, primary, count, groups, _ = reader.numbers(5)
    reader.take(16)  # UserSessionKey
    servers = [reader.string() for _ in range(2)]
    domain = reader.number()
    reader.numbers(2 + 2 + 6)  # reserved, account control and status, logons, reserved
    extra_count, extra, resource_domain, resource_count, resources = reader.numbers(5)
    # what the pointers point at, in their order
    for there in texts:
        if there:
            reader.text()
    rids = reader.memberships(count) if groups else []
    for there in servers:
        if there:
            reader.text()
    above = reader.sid() if domain else ""
    extras = reader.extra_sids(extra_count) if extra else []
    resource = reader.sid() if resource_domain else ""
    locals_ = reader.memberships(resource_count) if resources else []
    if not above or (locals_ and not resource):
        raise Unreadable("it names no domain")
    own = f"{above}-{user}" if user else next(iter(extras), "")  # [MS-PAC]: then it is the first extra SID
    if not own:
        raise Unreadable("it names no user")
    found = [f"{above}-{rid}" for rid in rids] + extras + [f"{resource}-{rid}" for rid in locals_]
    return LogonInfo(own, f"{above}-{primary}", tuple(dict.fromkeys(found)))
