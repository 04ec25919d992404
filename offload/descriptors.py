"""What goes over the rings between the data plane and an adapter (IPsec task offload v2, Windows driver
documentation). Pure values; `offload.rings` writes and reads them.

The host frames packets, chooses sequence numbers and keeps the replay window. The adapter encrypts, decrypts
and makes or checks the ICV; with large sends it cuts one packet into segments, with coalescing it puts
segments together. Nothing is sent bare for want of an SA: a descriptor with a handle that the adapter does
not know fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sadb.address import Path


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


@dataclass(frozen=True, slots=True)
class Mark:
    """What an adapter says of a packet it received: CryptoDone, for the SA of `handle`. The ICV and the text
    are then checked and in the clear, ESP or AH header and trailer still there. `numbers`: the packet is a
    frame of `offload.vnet`, put together from packets with these sequence numbers (the 32 bits of the wire),
    in order, behind the ESP header of the first one. `evict`: the adapter wants to be relieved of the SA
    (SaDeleteReq). `high`: the upper half of the sequence number with which the ICV was right, 0 without
    extended ones: were it left out, a packet of 2^32 numbers ago would be taken for a new one until the
    adapter follows our update."""

    handle: int
    status: CryptoStatus
    numbers: tuple[int, ...] = ()
    evict: bool = False
    high: int = 0


class Task(IntEnum):
    """What a transmit descriptor asks for."""

    SECURE = 0  # packets framed by the host, with zeros for the ICV
    LARGE = 1  # one large packet that the adapter cuts, frames and protects
    FENCE = 2  # nothing: it is completed when all before it are


@dataclass(frozen=True, slots=True)
class Transmit:
    """A transmit descriptor. `ident` comes back with its completion.

    SECURE: `data` is what `Outgoing.data` would be, framed for ESP or AH by the host, sequence number, IV and
    padding in place and zeros for the ICV; `at` is where the ESP or AH header begins. With `segment` it is a
    train of such packets in UDP.

    LARGE: `data` is a frame of `offload.vnet` (transport mode only); its first segment gets the number
    `number`."""

    ident: int
    handle: int
    task: Task
    data: bytes = b""
    at: int = 0
    path: Path | None = None
    traffic_class: int = 0
    segment: int = 0
    number: int = 0
    dont_fragment: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """A transmit descriptor is done with: its packets are on the wire, or never will be."""

    ident: int
    sent: bool
