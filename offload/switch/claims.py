"""What contends for an adapter's slots, and what is taken of them: pairs with their rates, and the table.

A `Claim` is one SA pair as placement sees it. The `Table` counts entries by pool and port and addresses with
their references; it decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from offload.nic.capabilities import Capabilities, Direction
from offload.nic.eligibility import Reason
from offload.switch.ports import Port
from sadb.address import Address

SaId = int  # of a pair: what the owner of placement knows it by
HALF_LIFE: Final = 5.0  # seconds after which traffic counts half
BOTH: Final = frozenset(Direction)

_SHARE: Final = 0.6931471805599453 / HALF_LIFE  # so that steady traffic is shown as what it is


@dataclass(slots=True)
class Rate:
    """Octets per second, smoothed exponentially with half-life `HALF_LIFE`."""

    value: float = 0.0
    since: float = 0.0

    def add(self, octets: int, now: float) -> None:
        """Octets that were carried by now."""
        self.value = self.at(now) + octets * _SHARE
        self.since = max(now, self.since)

    def at(self, now: float) -> float:
        """The rate now, octets per second."""
        elapsed = now - self.since
        return float(self.value * 2.0 ** (-elapsed / HALF_LIFE)) if elapsed > 0 else self.value


@dataclass(slots=True, eq=False)
class Claim:
    """A pair that would have slots. `address`: the inbound destination; `wanted`: directions that are asked
    for; `barred`: what `eligibility.ineligible` says of each, kept current by the owner. `predecessor` is the
    pair that this one replaces by rekey. What placement writes follows."""

    sa: SaId
    port: Port
    address: Address
    wanted: frozenset[Direction] = BOTH
    barred: dict[Direction, Reason] = field(default_factory=dict)
    predecessor: Claim | None = None
    rate: Rate = field(default_factory=Rate)
    placed: set[Direction] = field(default_factory=set)
    arrival: int = 0
    since: float = 0.0  # when it came to its first slot
    superseded: float | None = None  # when its successor came
    retry: float = 0.0  # not before, after the adapter refused it
    backoff: float = 0.0  # seconds

    def carried(self, octets: int, now: float, *, offloaded: bool) -> None:
        """Account for traffic of either direction, by the plane that carried it."""
        self.rate.add(octets, now)
        if offloaded:
            self.port.octets_offloaded += octets
        else:
            self.port.octets_software += octets

    def score(self, now: float) -> float:
        """What placement ranks by: octets per second times the port's weight."""
        return self.port.weight * self.rate.at(now)

    @property
    def missing(self) -> Iterator[Direction]:
        """Directions that are wanted and not placed, inbound first."""
        return (one for one in Direction if one in self.wanted and one not in self.placed)


class Table:
    """Entries and addresses in use. The sum over ports, that over pools and that over placed claims agree."""

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self.pools = capabilities.pools
        self._used = [0] * len(self.pools)
        self._by_port: Counter[tuple[Port, int]] = Counter()
        self._addresses: Counter[Address] = Counter()

    @property
    def used(self) -> int:
        """Slots in use (Windows: IPsecSAUsage)."""
        return sum(self._used)

    @property
    def addresses(self) -> int:
        """Different inbound destinations in use."""
        return len(self._addresses)

    def enter(self, claim: Claim, direction: Direction) -> None:
        """Take a slot, and an address where that is new."""
        self._count(claim, direction, 1)
        if direction is Direction.INBOUND:
            self._refer(claim.address, 1)
        claim.placed.add(direction)

    def leave(self, claim: Claim) -> None:
        """Give back all that a claim has."""
        for direction in claim.placed:
            self._count(claim, direction, -1)
        if Direction.INBOUND in claim.placed:
            self._refer(claim.address, -1)
        claim.placed.clear()

    def move(self, claim: Claim, address: Address) -> None:
        """The inbound destination of a claim is another one. Its owner has moved already, so that is not a
        question of room."""
        if Direction.INBOUND in claim.placed:
            self._refer(claim.address, -1)
            self._refer(address, 1)
        claim.address = address

    def _refer(self, address: Address, amount: int) -> None:
        self._addresses[address] += amount
        if not self._addresses[address]:
            del self._addresses[address]

    def _count(self, claim: Claim, direction: Direction, amount: int) -> None:
        pool = self.capabilities.pool(direction)
        self._used[pool] += amount
        self._by_port[claim.port, pool] += amount
        claim.port.used += amount

    def held(self, claim: Claim | None, pool: int) -> int:
        """How many slots of a pool a claim has."""
        if claim is None:
            return 0
        return sum(self.capabilities.pool(direction) == pool for direction in claim.placed)

    def free(self, pool: int, without: Claim | None = None) -> int:
        """Free slots of a pool, as if `without` had left."""
        return self.pools[pool] - self._used[pool] + self.held(without, pool)

    def of_port(self, port: Port, pool: int, without: Claim | None = None) -> int:
        """A port's slots of a pool, as if `without` had left."""
        gone = self.held(without, pool) if without is not None and without.port is port else 0
        return self._by_port[port, pool] - gone

    def owed(self, pool: int, ports: Iterable[Port], without: Claim | None = None) -> int:
        """Slots of a pool that are reserved for ports and not yet taken by them."""
        pools = len(self.pools)
        return sum(
            share - used
            for port in ports
            if (share := port.share(pool, pools)) > (used := self.of_port(port, pool, without))
        )

    def knows(self, address: Address, without: Claim | None = None) -> bool:
        """Whether an inbound destination has its entry, as if `without` had left."""
        return self._references(address, without) > 0

    def address_free(self, without: Claim | None = None) -> bool:
        """Whether there is an entry for another inbound destination, as if `without` had left."""
        last = without is not None and not self._references(without.address, without)
        known = without is not None and without.address in self._addresses
        return len(self._addresses) - (last and known) < self.capabilities.rx_addresses

    def _references(self, address: Address, without: Claim | None) -> int:
        gone = without is not None and without.address == address and Direction.INBOUND in without.placed
        return self._addresses.get(address, 0) - gone
