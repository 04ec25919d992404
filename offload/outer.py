"""Protected packets at the edge of the engine: what leaves for the wire and what came from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sadb.address import Address, Path

ESP = 50


class CryptoStatus(IntEnum):
    """What an adapter found about a packet it looked at (CryptoStatus of NDIS_IPSEC_OFFLOAD_V2_NET_BUFFER_
    LIST_INFO); only success makes a packet one that may be believed decrypted."""

    SUCCESS = 0
    GENERIC_ERROR = 1
    TRANSPORT_AH_FAILED = 2
    TRANSPORT_ESP_FAILED = 3
    TUNNEL_AH_FAILED = 4
    TUNNEL_ESP_FAILED = 5
    INVALID_SYNTAX = 6
    INVALID_PROTOCOL = 7
    # in packet mode only, and of ours
    REPLAYED = 8
    LATE = 9
    DUMMY = 10
    CONGESTION = 11


@dataclass(frozen=True, slots=True)
class Mark:
    """What an adapter says of a packet it received: CryptoDone, for the SA of `handle`. The ICV and the text
    are then checked and in the clear, ESP or AH header and trailer still there. `numbers`: the packet is a
    frame of `offload.vnet`, put together from packets with these sequence numbers (the 32 bits of the wire),
    in order, behind the ESP header of the first one. `evict`: the adapter wants to be relieved of the SA
    (SaDeleteReq). `high`: the upper half of the sequence number with which the ICV was right, 0 without
    extended ones: were it left out, a packet of 2^32 numbers ago would be taken for a new one until the
    adapter follows our update. `judged`: packet mode, the adapter has looked into its own replay window, and
    what it opened is always such a frame, of one packet perhaps."""

    handle: int
    status: CryptoStatus
    numbers: tuple[int, ...] = ()
    evict: bool = False
    high: int = 0
    judged: bool = False


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
