"""What IKEv1, IKEv2 and AuthIP share on the wire: the ISAKMP header and the chain of payloads.

RFC 2408 section 3.1, RFC 7296 sections 3.1 and 3.2. What the payloads mean is each protocol's own registry, a
table from payload type to `@wire` class; a type that is not in it becomes `Unknown`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ikd.wire.codec import Malformed, Reader, Structure

HEADER = struct.Struct("!8s8sBBBBII")
HEADER_SIZE = HEADER.size
GENERIC = struct.Struct("!BBH")  # in front of every payload: next payload, flags, length with these four
LARGEST = 0xFFFF
MOST_PAYLOADS = 128

ZERO_SPI = bytes(8)


class Flags:
    """Header flags: E, C, A of IKEv1 (RFC 2408) and I, V, R of IKEv2 (RFC 7296). Plain numbers, because every
    datagram is asked for them a dozen times and `IntFlag` takes a microsecond for each."""

    ENCRYPTION = 0x01
    COMMIT = 0x02
    AUTHENTICATION = 0x04
    INITIATOR = 0x08
    VERSION = 0x10
    RESPONSE = 0x20


@dataclass(frozen=True, slots=True)
class Header:
    """The 28 octets in front of every message; `length` counts the whole message."""

    spi_i: bytes
    spi_r: bytes
    next_payload: int
    version: int
    exchange: int
    flags: int
    message_id: int
    length: int

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """From a datagram; raises `Malformed` when it is shorter or longer than it says."""
        if len(data) < HEADER_SIZE:
            raise Malformed(f"{len(data)} octets are no ISAKMP header")
        header = cls(*HEADER.unpack_from(data))
        if header.length != len(data):
            raise Malformed(f"header says {header.length} octets, datagram has {len(data)}")
        return header

    def encode(self) -> bytes:
        """The 28 octets."""
        return HEADER.pack(
            self.spi_i,
            self.spi_r,
            self.next_payload,
            self.version,
            self.exchange,
            self.flags,
            self.message_id,
            self.length,
        )

    @property
    def major(self) -> int:
        """Major version: 1 is IKEv1 and AuthIP, 2 is IKEv2."""
        return self.version >> 4


class Payload(Structure):
    """A payload body; `kind` is its payload type number."""

    __slots__ = ()
    kind: ClassVar[int] = 0
    critical: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A payload whose type the registry does not have."""

    kind: int
    critical: bool
    data: bytes

    def encode(self) -> bytes:
        """The body as it came."""
        return self.data


Registry = Mapping[int, type[Payload]]
Body = Payload | Unknown


def chain(
    kind: int, data: bytes, registry: Registry, final: frozenset[int] = frozenset()
) -> tuple[list[Body], int]:
    """The payloads of a chain that starts with type `kind`, and the "next payload" of the last one.

    A type in `final` (encrypted payloads) ends the chain; its next-payload octet, returned, names the first
    payload inside. Every turn consumes at least a header, so any octets end. Raises `Malformed`.
    """
    found: list[Body] = []
    reader = Reader(data)
    while kind:
        if len(found) == MOST_PAYLOADS:
            raise Malformed("too many payloads")
        following, flags, length = reader.unpack(GENERIC)
        known = registry.get(kind)
        if known:
            found.append(reader.structure(known, length - 4))
        else:
            found.append(Unknown(kind, bool(flags & 0x80), reader.take(length - 4)))
        if kind in final:
            reader.finish()
            return found, following
        kind = following
    reader.finish()
    return found, 0


def encode_chain(payloads: Iterable[Body]) -> tuple[int, bytes]:
    """The type of the first payload and the octets of the whole chain."""
    parts: list[bytes] = []
    listed = list(payloads)
    kinds = [one.kind for one in listed[1:]] + [0]
    for one, following in zip(listed, kinds, strict=False):
        body = one.encode()
        critical = 0x80 if one.critical else 0
        parts += GENERIC.pack(following, critical, len(body) + 4), body
    return (listed[0].kind if listed else 0), b"".join(parts)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a payload lies in its chain, generic header included."""

    kind: int
    start: int
    end: int

    def body(self, data: bytes) -> bytes:
        """Its octets as they came, without the generic header."""
        return data[self.start + GENERIC.size : self.end]


def extents(kind: int, data: bytes) -> list[Extent]:
    """Where the payloads of a chain lie. IKEv1 needs it twice: its hashes cover payloads as they came, and an
    encrypted message ends in padding that nothing counts (RFC 2408 section 3.1), which begins where the last
    payload ends. Raises `Malformed`."""
    found: list[Extent] = []
    reader = Reader(data)
    while kind:
        if len(found) == MOST_PAYLOADS:
            raise Malformed("too many payloads")
        start = reader.at
        following, _, length = reader.unpack(GENERIC)
        reader.take(length - GENERIC.size)
        found.append(Extent(kind, start, reader.at))
        kind = following
    return found
