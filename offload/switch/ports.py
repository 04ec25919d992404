"""The ports of the virtual switch that share one adapter: one for each virtual machine, and the host's own.

A port has a ceiling of offloaded SAs, as in Hyper-V, and besides it a reserve, a weight and a mark of trust.
Nothing here touches an SA: a limit of 0 turns the offload off for a port and never IPsec itself, whose
packets are then protected in software.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from offload.nic.capabilities import Capabilities
from offload.nic.eligibility import Reason

HOST: Final = "host"  # the port of the host itself
LIMIT: Final = 512  # Hyper-V's IPSecOffloadLimit
WEIGHT: Final = 100
NAME: Final = "1 to 63 letters, digits and . _ - of which the first is a letter or digit"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class PortError(Exception):
    """A port cannot be as it is wanted; the text says what would do. `key`: which of `SETTABLE` is wrong."""

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


@dataclass(slots=True, eq=False)
class Port:
    """One port. `limit`: most SAs offloaded, each direction counted, 0 for none; `reserve`: slots nobody else
    may fill; `weight`: 0 to 100, how much an octet of it counts against one of others; `trusted`: whether it
    may have outbound SAs offloaded; `exclusive`: it takes slots from ports that are not. Counters follow."""

    name: str
    limit: int = LIMIT
    reserve: int = 0
    weight: int = WEIGHT
    trusted: bool = True
    exclusive: bool = False
    used: int = 0
    refused: Counter[Reason] = field(default_factory=Counter)
    octets_offloaded: int = 0
    octets_software: int = 0

    def share(self, pool: int, pools: int) -> int:
        """How many slots of a pool are reserved for it: with two pools half of the reserve each, as pairs
        take one slot of either, or all of it inbound for a port without trust. Of a reserve above the limit
        no more than the limit counts."""
        ways = pools if self.trusted else 1
        return (min(self.reserve, self.limit) + ways - 1 - pool) // ways if pool < ways else 0


SETTABLE: Final = ("limit", "reserve", "weight", "trusted", "exclusive")


class Ports:
    """The switch: its ports by name, the host's own always among them, whether it offloads at all, whether in
    packet mode, which the adapter must have, and whether what an adapter loses leaves again."""

    def __init__(
        self,
        capabilities: Capabilities,
        *,
        enabled: bool = True,
        packet_mode: bool = False,
        resend_lost: bool = True,
    ) -> None:
        self.enabled = enabled
        self.packet_mode = packet_mode
        self.resend_lost = resend_lost
        self.capabilities = capabilities
        self._ports = {HOST: Port(HOST)}

    def __iter__(self) -> Iterator[Port]:
        return iter(self._ports.values())

    def __getitem__(self, name: str) -> Port:
        """A port by name; raises `PortError` for one that is not there."""
        if name not in self._ports:
            raise PortError(f'there is no port "{name}"; there are {", ".join(self._ports)}')
        return self._ports[name]

    def limit(self, port: Port) -> int:
        """The limit in force: 0 when the switch does not offload, or for a port that was detached."""
        return port.limit if self.enabled and self._ports.get(port.name) is port else 0

    def attach(self, name: str, **wanted: Any) -> Port:
        """A new port with some of `SETTABLE`; raises `PortError`."""
        if not _NAME.fullmatch(name):
            raise PortError(f'"{name}" is not a name of a port: {NAME}')
        if name in self._ports:
            raise PortError(f'there is a port "{name}" already; detach it first, or change it')
        port = replace(Port(name), **wanted)
        self._check(port)
        self._ports[name] = port
        return port

    def change(self, name: str, **wanted: Any) -> Port:
        """Give a port other values of `SETTABLE`; its counters go on. Raises `PortError`, and then nothing
        is changed. Placement follows at its next `rebalance`."""
        port = self[name]
        self._check(replace(port, **wanted))
        for key, value in wanted.items():
            setattr(port, key, value)
        return port

    def detach(self, name: str) -> Port:
        """Take a port off the switch; at the next `rebalance` its SAs go on in software."""
        if name == HOST:
            raise PortError(f'"{HOST}" is the host\'s own port and stays; a limit of 0 turns its offload off')
        port = self[name]
        del self._ports[name]
        return port

    def _check(self, wanted: Port) -> None:
        """Raise `PortError` for values that make no sense, or that the table cannot keep for all."""
        for key, low, high in (("limit", 0, None), ("reserve", 0, None), ("weight", 0, 100)):
            value = getattr(wanted, key)
            if value < low or (high is not None and value > high):
                span = f"from {low} to {high}" if high is not None else f"from {low} up"
                raise PortError(f'port "{wanted.name}": {key} must be {span}, not {value}', key)
        pools = self.capabilities.pools
        others = [one for one in self if one.name != wanted.name]
        for pool, slots in enumerate(pools):
            kept = sum(one.share(pool, len(pools)) for one in others)
            if kept + wanted.share(pool, len(pools)) > slots:
                room = " + ".join(map(str, pools))
                total = sum(min(one.reserve, one.limit) for one in (*others, wanted))
                raise PortError(
                    f'port "{wanted.name}": a reserve of {wanted.reserve} makes {total} slots reserved in '
                    f"all, and the {self.capabilities.name} has {room}; lower a reserve",
                    "reserve",
                )
