"""What a driver knows of each SA that is in an adapter, or on the way there. Values; `offload.nic.driver` has
the rules."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from offload.nic.capabilities import Direction
from offload.nic.packet_mode import Lease
from sadb.sa import SaPair


class Stage(Enum):
    """Where packets of an outbound SA go."""

    SOFT = "software"
    ADDING = "adding"
    HARD = "adapter"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened to one direction of a pair: it is in the adapter ("placed"), or not: "software" as
    asked, "lost", or for a reason of `offload.nic.eligibility` ("refused" also when the adapter wants to be
    relieved)."""

    pair: SaPair
    direction: Direction
    what: str


@dataclass(slots=True, eq=False)
class Flight:
    """A descriptor that is not completed, of `count` packets. `frame`: they are those of a frame of
    `offload.vnet`. Pieces of one packet are of one `group`: it leaves again whole if one of them is lost."""

    lane: Lane
    packet: bytes
    since: float
    frame: bool
    count: int
    group: int


@dataclass(slots=True, eq=False)
class Lane:
    """One outbound SA. In packet mode (`packets`) the adapter has a `lease` from its first packet on."""

    pair: SaPair
    stage: Stage = Stage.SOFT
    packets: bool = False
    lease: Lease | None = None
    handle: int = 0
    high: int = 0  # of extended sequence numbers, as the adapter has it
    fence: int = 0
    then: Stage = Stage.SOFT  # what follows DRAINING
    until: float = 0.0
    flights: set[int] = field(default_factory=set)  # idents of descriptors that are not completed
    held: deque[bytes] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Inbound:
    """One inbound SA in the adapter, or on the way there (`handle` 0). In packet mode (`packets`) the adapter
    has the replay window while that is `lent`, and its marks are `judged` since then."""

    pair: SaPair
    packets: bool = False
    handle: int = 0
    high: int = 0
    lagging: int = 0
    judged: bool = False
    lent: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Packets of a pair that have to leave in software: those of `lost` had left before, perhaps."""

    pair: SaPair
    lost: tuple[Flight, ...]
    held: tuple[bytes, ...]
