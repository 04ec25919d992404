"""What goes over the rings between the data plane and an adapter (IPsec task offload v2, Windows driver
documentation). Pure values; `offload.nic.rings` writes and reads them.

The host frames packets, chooses sequence numbers and keeps the replay window. The adapter encrypts, decrypts
and makes or checks the ICV; with large sends it cuts one packet into segments, with coalescing it puts
segments together. Nothing is sent bare for want of an SA: a descriptor with a handle that the adapter does
not know fails.

In packet mode (Linux' packet offload) the adapter does more: outbound it frames and numbers packets itself,
with numbers that the host leases it; inbound it checks the sequence number too, and hands up plain packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from offload import ip, vnet
from sadb.address import Path

LONGEST: Final = vnet.HEADER + ip.LARGEST  # octets of a descriptor's data
MOST_PACKETS: Final = 128  # that one large packet comes to; an adapter that cuts longer keeps others waiting


class Task(IntEnum):
    """What a transmit descriptor asks for."""

    SECURE = 0  # packets framed by the host, with zeros for the ICV
    LARGE = 1  # one large packet that the adapter cuts, frames and protects
    FENCE = 2  # nothing: it is completed when all before it are
    PACKETS = 3  # packet mode: a plain packet, or a large one, for the adapter to do everything with
    LEASE = 4  # packet mode: the adapter may use more numbers


@dataclass(frozen=True, slots=True)
class Transmit:
    """A transmit descriptor. `ident` comes back with its completion.

    SECURE: `data` is what `Outgoing.data` would be, framed for ESP or AH by the host, sequence number, IV and
    padding in place and zeros for the ICV; `at` is where the ESP or AH header begins. With `segment` it is a
    train of such packets in UDP.

    LARGE: `data` is a frame of `offload.vnet` (transport mode only); its first segment gets the number
    `number`.

    PACKETS: `data` is a frame of `offload.vnet`, in any mode. With `segment` it is one packet that does not
    fit its path: what leaves is cut up into packets of at most so many octets.

    LEASE: `segment` numbers from the 64-bit number `number` on."""

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
    """A transmit descriptor is done with: its packets are on the wire, or never will be. Of a fence in packet
    mode `number` is the first one that the adapter has not used, and never will."""

    ident: int
    sent: bool
    number: int = 0
