"""Which principals a keytab has: MIT's file format, version 2. Keys are passed over and never kept.

The Kerberos library reads the keys itself, each time; this is for choosing our own name, and for telling the
administrator at load what the file is good for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ikd.auth.principal import Principal

MOST_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class KeytabEntry:
    """One key without the key: whose it is, its version, its encryption type."""

    principal: Principal
    version: int
    kind: int


@dataclass(frozen=True, slots=True)
class Keytab:
    """A keytab file. `cache` names the ticket cache in memory that goes with it, `replays` the file that
    remembers what peers have sent, empty for the library's own place."""

    path: str
    entries: tuple[KeytabEntry, ...] = ()
    cache: str = field(default="MEMORY:ikd", compare=False)
    replays: str = ""

    @property
    def principals(self) -> tuple[Principal, ...]:
        """Whose keys are in it, in the order of the file."""
        return tuple(dict.fromkeys(entry.principal for entry in self.entries))

    @property
    def client(self) -> Principal | None:
        """As whom this machine gets tickets: Active Directory gives them to the account, not to host/NAME."""
        machines = [one for one in self.principals if one.machine]
        return next((one for one in machines if one.account), machines[0] if machines else None)

    @property
    def service(self) -> Principal | None:
        """As whom peers reach this machine: host/NAME, else the account."""
        machines = [one for one in self.principals if one.machine]
        return next((one for one in machines if one.host), machines[0] if machines else None)


def parse(data: bytes) -> tuple[KeytabEntry, ...]:
    """The entries of a keytab; raises `ValueError`. Principals that no rule could name are left out."""
    if not data:
        raise ValueError("an empty file")
    if data[:2] != b"\x05\x02":
        raise ValueError("not a keytab (it does not begin with 05 02)")
    entries: list[KeytabEntry] = []
    position = 2
    while position + 4 <= len(data):
        (size,) = struct.unpack_from(">i", data, position)
        position += 4
        if size == 0:
            break
        record = data[position : position + abs(size)]
        position += abs(size)
        if size < 0:  # a hole that a deleted entry left
            continue
        if len(record) < size:
            raise ValueError("a keytab that ends in the middle of an entry")
        if len(entries) >= MOST_ENTRIES:
            raise ValueError(f"a keytab with more than {MOST_ENTRIES} entries")
        try:
            principal, version, kind = _entry(record)
        except struct.error as error:
            raise ValueError("a keytab with an entry that is too short") from error
        if principal is not None:
            entries.append(KeytabEntry(principal, version, kind))
    return tuple(entries)


def _entry(record: bytes) -> tuple[Principal | None, int, int]:
    """One entry: names, name type, time, version, encryption type, key, and a longer version if there is."""
    (count,) = struct.unpack_from(">H", record)
    position = 2
    names = []
    for _ in range(count + 1):
        (length,) = struct.unpack_from(">H", record, position)
        name = record[position + 2 : position + 2 + length]
        if len(name) < length:
            raise struct.error
        names.append(name)
        position += 2 + length
    _, _, version, kind, length = struct.unpack_from(">IIBHH", record, position)
    position += 13 + length
    if position > len(record):
        raise struct.error
    if len(record) - position >= 4:
        version = struct.unpack_from(">I", record, position)[0] or version
    return _principal(names), version, kind


def _principal(names: list[bytes]) -> Principal | None:
    try:
        realm, *parts = (name.decode() for name in names)
        found = Principal(tuple(parts), realm)
        return found if Principal.parse(str(found)) == found else None
    except ValueError:
        return None
