"""The contract between key management and whatever transforms packets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sadb.address import Address
from sadb.sa import Acquire, Expire, Flow, SaPair, UnknownSpi, Usage

Notice = Acquire | Expire | UnknownSpi


class Unavailable(Exception):
    """The backend cannot do it now; the operator's concern, not the peer's."""


class Backend(Protocol):
    """Something that transforms packets: the engine, the NIC, the kernel.

    Every method is safe to repeat and answers at once: the engine and the simulated NIC live in this process
    and netlink is served inside the system call, so nothing here waits. Failure raises `Unavailable`.
    """

    notify: Callable[[Notice], None]  # set by the owner

    def install(self, pair: SaPair) -> None:
        """Inbound first, then outbound; from now on the newest pair of its flow is used for sending."""
        ...

    def update(self, pair: SaPair) -> None:
        """The pair's state or standby is another one."""
        ...

    def remove(self, pair: SaPair) -> None:
        """Forget both directions; unknown pairs are ignored."""
        ...

    def route(self, flows: tuple[Flow, ...]) -> None:
        """Replace the whole set of flows, atomically."""
        ...

    def moved(
        self, pair: SaPair, local: Address, peer: Address, encapsulation: tuple[int, int] | None
    ) -> None:
        """The peer's address or port changed (NAT rebinding): send there from now on."""
        ...

    def usage(self, pair: SaPair) -> tuple[Usage, Usage]:
        """What went in and out so far."""
        ...
