"""Many pairs with unequal traffic contend for few slots: policies beside each other, in virtual time.

All pairs come at the start, those of one port after those of another, and whatever their traffic will be: it
is distributed by Zipf's law and changes hands in the middle of the time. The bench and a test ask how much of
it the policies get through the slots; no packet is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from offload.nic.capabilities import PROFILES, Capabilities
from offload.switch.claims import BOTH, Claim
from offload.switch.placement import FirstCome, Outcome
from offload.switch.ports import Port, Ports

ADDRESS: Final = ip_address("192.0.2.1")


@dataclass(frozen=True, slots=True)
class Contest:
    """The contestants. `sas` counts directions, two to a pair; each port has as many pairs as
    another, `limit` and `reserve`. The busiest pair has `octets` a second, the one of rank n 1/n of it."""

    sas: int = 10_000
    ports: int = 8
    limit: int = 48
    reserve: int = 8
    seconds: int = 40
    octets: int = 100_000_000
    capabilities: Capabilities = PROFILES["82576"]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it; a pair with only one direction in the table counts as not offloaded. `most`: the most
    slots each port ever had; `broken`: when something did not hold that Weighted promises: a limit, a reserve
    (each port has demand), the size of the table."""

    policy: str
    octets: int
    octets_offloaded: int
    moves: int
    most: dict[str, int]
    broken: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of all octets, the part that slots carried."""
        return self.octets_offloaded / self.octets


def contest(policy: Callable[[Ports], FirstCome], of: Contest, uniform: Callable[[], float]) -> Result:
    """Run one policy; `uniform` gives random numbers in [0, 1), the same for each policy to be compared."""
    ports = Ports(of.capabilities)
    shared = [
        ports.attach(f"vm{number + 1}", limit=of.limit, reserve=of.reserve) for number in range(of.ports)
    ]
    claims = [
        Claim(number, shared[number * 2 * of.ports // of.sas], ADDRESS) for number in range(of.sas // 2)
    ]
    placement = policy(ports)
    by_rank = _shuffled(claims, uniform)
    for claim in claims:
        placement.admit(claim, 0.0)
    most = {port.name: 0 for port in shared}
    moves, broken = 0, []
    for second in range(1, of.seconds + 1):
        if second == of.seconds // 2:
            by_rank = _shuffled(claims, uniform)
        for rank, claim in enumerate(by_rank, 1):
            claim.carried(of.octets // rank, second, offloaded=claim.placed == BOTH)
        decisions = placement.rebalance(second)
        moves += sum(one.outcome is Outcome.EVICTED for one in decisions)
        for port in shared:
            most[port.name] = max(most[port.name], port.used)
        broken += [f"{second} s: {text}" for text in _broken(placement, shared)]
    offloaded = sum(port.octets_offloaded for port in shared)
    total = offloaded + sum(port.octets_software for port in shared)
    return Result(type(placement).__name__, total, offloaded, moves, most, tuple(broken))


def _shuffled(claims: Sequence[Claim], uniform: Callable[[], float]) -> list[Claim]:
    return sorted(claims, key=lambda _: uniform())


def _broken(placement: FirstCome, ports: Sequence[Port]) -> list[str]:
    """What does not hold now."""
    used, slots = placement.table.used, placement.capabilities.slots
    found = [f"{port.name} has {port.used} of {port.limit}" for port in ports if port.used > port.limit]
    found += [
        f"{port.name} has {port.used} of {port.reserve} reserved"
        for port in ports
        if port.used < port.reserve
    ]
    return found + ([f"{used} of {slots} slots"] if used > slots else [])
