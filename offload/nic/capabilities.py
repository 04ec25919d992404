"""What an adapter can do for IPsec, field by field as IPsecOV2 reports it (NDIS_IPSEC_OFFLOAD_V2).

`PROFILES` has the adapters that can be simulated. Those of the 82576 and 82599 generation know AES-128-GCM
and AES-128-GMAC only, transport mode only, and leave sequence numbers, replay and lifetimes to the host.
Only the ideal one can take numbers and replay over (`packet_mode`, see `offload.nic.packet_mode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from sadb.algorithms import QuickSuite, SecurityProtocol


class Direction(Enum):
    """Which way an SA carries; adapters count and program the two apart."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Algorithm(Enum):
    """What such adapters compute, by the transform ID of IKEv2's registry of encryption algorithms."""

    GCM = 20
    GMAC = 21


class UdpShape(Enum):
    """Which SA of UDP-encapsulated ESP an adapter takes; values are those of the member UdpEsp."""

    TRANSPORT = 1
    TUNNEL = 2


@dataclass(frozen=True, slots=True)
class Transform:
    """An algorithm with the length of its key in bits (without salt) and of its ICV in octets."""

    algorithm: Algorithm
    key_bits: int
    icv: int

    @classmethod
    def of(cls, suite: QuickSuite) -> Transform | None:
        """What a proposal asks of an adapter; None for what no adapter of this kind computes."""
        row = suite.encryption
        if row is None or suite.integrity is not None or row.ikev2 not in _ALGORITHMS:
            return None
        return cls(_ALGORITHMS[row.ikev2], row.key * 8, row.icv)


_ALGORITHMS: Final = {one.value: one for one in Algorithm}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """An adapter's abilities. A slot is one SA of one direction; with `shared` there is one pool of
    `rx_slots` for both directions. `rx_addresses`: different destination addresses of inbound SAs."""

    name: str
    rx_slots: int
    tx_slots: int
    shared: bool
    rx_addresses: int
    protocols: frozenset[SecurityProtocol]
    ah_esp: bool
    transport: bool
    tunnel: bool
    udp_encap: frozenset[UdpShape]
    esn: bool
    ipv6: bool
    ipv4_options: bool
    ipv6_extensions: bool
    transforms: frozenset[Transform]
    lso: bool
    lro: bool
    packet_mode: bool

    @property
    def pools(self) -> tuple[int, ...]:
        """Slots of each pool: one for both directions, or inbound and outbound."""
        return (self.rx_slots,) if self.shared else (self.rx_slots, self.tx_slots)

    @property
    def slots(self) -> int:
        """Slots in all (Windows: IPsecSACapacity)."""
        return sum(self.pools)

    def pool(self, direction: Direction) -> int:
        """The index in `pools` of the pool that a direction takes its slots from."""
        return 0 if self.shared or direction is Direction.INBOUND else 1


def _profile(
    name: str,
    slots: tuple[int, int],
    rx_addresses: int,
    key_bits: tuple[int, ...] = (128,),
    *,
    shared: bool = False,
    everything: bool = False,
) -> Capabilities:
    """A row of the table: sizes, and either what this generation can do or all there is."""
    return Capabilities(
        name,
        *slots,
        shared=shared,
        rx_addresses=rx_addresses,
        protocols=frozenset(SecurityProtocol),
        ah_esp=False,  # the SADB has no such bundles
        transport=True,
        tunnel=everything,
        udp_encap=frozenset(UdpShape) if everything else frozenset(),
        esn=everything,
        ipv6=True,
        ipv4_options=everything,
        ipv6_extensions=everything,
        transforms=frozenset(Transform(one, bits, 16) for one in Algorithm for bits in key_bits),
        lso=True,
        lro=everything,
        packet_mode=everything,
    )


# The 82576 keeps the address in each SA's own registers. How its 256 SAs are divided between the directions
# is not published: here they are one pool. Nor is whether either chip passes AH and ESP in one packet.
PROFILES: Final[Mapping[str, Capabilities]] = MappingProxyType(
    {
        one.name: one
        for one in (
            _profile("82576", (256, 256), 256, shared=True),
            _profile("82599", (1024, 1024), 128),
            _profile("ideal", (4096, 4096), 4096, (128, 192, 256), everything=True),
        )
    }
)
