"""Protected packets at the edge of the engine: what leaves for the wire and what came from it."""

from __future__ import annotations

from dataclasses import dataclass

from offload.descriptors import Mark
from sadb.address import Address, Path

ESP = 50


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A protected packet. With `path` it is the payload of a UDP datagram (RFC 3948) with this traffic class,
    or of a train of them, `segment` octets each, the last one perhaps shorter; IP may cut it up unless it has
    `dont_fragment`. Without, `data` is a whole IP packet, outer header included, for a raw socket."""

    data: bytes
    path: Path | None = None
    traffic_class: int = 0
    segment: int = 0
    dont_fragment: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet of protocol 50 or 51 off the wire. `data` begins with the ESP or AH header. `header` is the IP
    header as it came, with options or extension headers, where the socket shows it (IPv4) and empty where not
    (IPv6); `traffic_class` is its TOS octet. `path` is set when it came in UDP; then `data` may be a train of
    datagrams of `segment` octets each, the last one perhaps shorter. `mark` is what an adapter says of it."""

    protocol: int
    source: Address
    destination: Address
    data: bytes
    traffic_class: int = 0
    header: bytes = b""
    path: Path | None = None
    segment: int = 0
    mark: Mark | None = None

    @property
    def spi(self) -> int:
        """The SPI of the first packet (RFC 4303 section 2, RFC 4302 section 2)."""
        at = 0 if self.protocol == ESP else 4
        return int.from_bytes(self.data[at : at + 4], "big")
