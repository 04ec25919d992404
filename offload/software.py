"""The software engine: finds each packet's SA and applies ESP or AH to it, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from offload.outer import Arrived, Outgoing
from sadb.address import Address
from sadb.backend import Notice
from sadb.sa import Flow, SaPair, Usage


@dataclass(slots=True)
class Batch:
    """What a batch came to: `wire` goes to the network, `local` into the TUN device."""

    wire: list[Outgoing] = field(default_factory=list)
    local: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.wire or self.local)


def _ignore(notice: Notice) -> None:
    """Until an owner sets `notify`."""


class SoftwareEngine:
    """`sadb.backend.Backend` in pure Python; `random(n)` gives n unpredictable octets."""

    def __init__(
        self,
        random: Callable[[int], bytes],
        *,
        queue_packets: int = 32,
        queue_flows: int = 1024,
        link_mtu: int = 1500,
    ) -> None:
        self.notify: Callable[[Notice], None] = _ignore

    @property
    def counters(self) -> Mapping[str, int]:
        """Packets that came to nothing, by reason."""
        raise NotImplementedError

    @property
    def held(self) -> int:
        """Packets that wait for a pair."""
        raise NotImplementedError

    def outbound(self, packets: Sequence[bytes], now: float) -> Batch:
        """Protect packets read from the TUN device."""
        raise NotImplementedError

    def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
        """Open packets that came off the wire."""
        raise NotImplementedError

    def released(self, now: float) -> Batch:
        """Packets that `install` or `route` set free; the shell drains this after either call."""
        raise NotImplementedError

    def deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Drop held packets whose time is over."""
        raise NotImplementedError

    def path_mtu(self, destination: Address, mtu: int, now: float) -> None:
        """The network told that packets to an outer address may have at most `mtu` octets."""
        raise NotImplementedError

    def install(self, pair: SaPair) -> None:
        """Receive on the pair and send on it if it is the newest of its flow."""
        raise NotImplementedError

    def remove(self, pair: SaPair) -> None:
        """Forget both directions."""
        raise NotImplementedError

    def route(self, flows: tuple[Flow, ...]) -> None:
        """Replace all flows."""
        raise NotImplementedError

    def moved(
        self, pair: SaPair, local: Address, peer: Address, encapsulation: tuple[int, int] | None
    ) -> None:
        """Send to the peer's new address from now on."""
        raise NotImplementedError

    def usage(self, pair: SaPair) -> tuple[Usage, Usage]:
        """What went in and out so far."""
        raise NotImplementedError
