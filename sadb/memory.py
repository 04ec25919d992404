"""A backend that transforms nothing: it remembers pairs and flows.

It is the data plane `memory` of `ikd.toml`, for machines without TUN and for tests, which read what was
installed and, with `refuse`, see what happens when a data plane is out of order.
"""

from __future__ import annotations

from collections.abc import Callable

from sadb.address import Address
from sadb.backend import Notice, Unavailable
from sadb.sa import Flow, SaPair, Usage


def _ignore(notice: Notice) -> None:
    """Until an owner sets `notify`."""


class MemoryBackend:
    """Pairs and flows as last given; `refuse`, when set, is the text of the `Unavailable` that `install` and
    `route` raise."""

    __slots__ = ("_pairs", "flows", "notify", "refuse")

    def __init__(self) -> None:
        self.notify: Callable[[Notice], None] = _ignore
        self.flows: tuple[Flow, ...] = ()
        self.refuse: str | None = None
        self._pairs: dict[int, SaPair] = {}

    @property
    def pairs(self) -> tuple[SaPair, ...]:
        """What is installed, oldest first."""
        return tuple(self._pairs.values())

    def install(self, pair: SaPair) -> None:
        """Remember a pair."""
        if self.refuse:
            raise Unavailable(self.refuse)
        self._pairs[pair.inbound.spi] = pair

    def update(self, pair: SaPair) -> None:
        """Nothing depends on it."""

    def remove(self, pair: SaPair) -> None:
        """Forget a pair."""
        if self._pairs.get(pair.inbound.spi) is pair:
            del self._pairs[pair.inbound.spi]

    def route(self, flows: tuple[Flow, ...]) -> None:
        """Remember the flows instead of the former ones."""
        if self.refuse:
            raise Unavailable(self.refuse)
        self.flows = flows

    def moved(
        self, pair: SaPair, local: Address, peer: Address, encapsulation: tuple[int, int] | None
    ) -> None:
        """Enter the new outer addresses into the pair; `encapsulation` is that of the outbound direction."""
        pair.move(local, peer, encapsulation)

    def usage(self, pair: SaPair) -> tuple[Usage, Usage]:
        """The pair's own counters, in and out."""
        return pair.inbound.usage, pair.outbound.usage
