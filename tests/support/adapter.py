"""An engine with an adapter beside it in one piece: every SA is in the adapter, as far as it can be, and what
the rings would carry is handed over at once."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from offload import vnet
from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.cipher import maker
from offload.nic.driver import Driver
from offload.nic.packet_engine import PacketEngine
from offload.outer import Arrived
from offload.software import Batch, Frame
from sadb.address import Address
from sadb.sa import SaPair, SecurityAssociation

PORT = "host"


def address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


class AdapterEngine(PacketEngine):
    """Like `SoftwareEngine` from outside."""

    packet_mode = False

    def __init__(self, random: Callable[[int], bytes], *, profile: str = "ideal", **options: int) -> None:
        capabilities = PROFILES[profile]
        super().__init__(random, Driver(capabilities, packet_mode=self.packet_mode), **options)
        self.adapter = Adapter(capabilities, _random.Random(1).randbytes, address, maker())
        self.everything = True  # every SA is placed when it comes

    def install(self, pair: SaPair) -> None:
        super().install(pair)
        if self.everything:
            wanted = [one for one in Direction if self.able(pair, one)]
            self.driver.place(pair, wanted, 0.0)
            self.settle(0.0)

    def able(self, pair: SaPair, direction: Direction) -> bool:
        """Whether the transform is one that a request can carry."""
        sa: SecurityAssociation = pair.inbound if direction is Direction.INBOUND else pair.outbound
        row = sa.suite.encryption
        return row is not None and row.aead and sa.suite.integrity is None

    def moved(
        self, pair: SaPair, local: Address, peer: Address, encapsulation: tuple[int, int] | None
    ) -> None:
        super().moved(pair, local, peer, encapsulation)
        self.driver.moved(pair, 0.0)

    def settle(self, now: float) -> None:
        """Requests and answers."""
        while self.driver.requests:
            requests, self.driver.requests = self.driver.requests, []
            for one in requests:
                answer = self.adapter.request(PORT, one)
                if answer is not None:
                    self.driver.answered(answer, now)

    def flush(self, batch: Batch, now: float) -> Batch:
        """What is in the ring goes out, behind what software sent before."""
        self.settle(now)
        while self.driver.ring or self._again:
            ring, self.driver.ring = self.driver.ring, []
            wire, done = self.adapter.transmit(PORT, ring)
            batch.wire += wire
            self.driver.completed(done, now)
            self.settle(now)
            self._release(batch, now)
        return batch

    def outbound(self, packets: Sequence[bytes], now: float) -> Batch:
        batch = self.flush(super().outbound([], now), now)
        for packet in packets:  # one by one: the order on the wire is that of the packets
            self.merge(batch, super().outbound([packet], now), now)
        return batch

    def frames(self, frames: Sequence[bytes], now: float) -> Batch:
        batch = self.flush(super().frames([], now), now)
        for frame in frames:
            self.merge(batch, super().frames([frame], now), now)
        return batch

    def released(self, now: float) -> Batch:
        return self.flush(super().released(now), now)

    def looked_at(self, arrived: Sequence[Arrived], now: float) -> Batch:
        """What comes up from an adapter."""
        return super().inbound(arrived, now)

    def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
        self.settle(now)
        batch = self.flush(self.looked_at(self.adapter.receive(PORT, arrived), now), now)
        batch.local = [
            packet
            for one in batch.local
            for packet in (vnet.packets(one) if isinstance(one, Frame) else [one])
        ]
        return batch

    def merge(self, batch: Batch, other: Batch, now: float) -> None:
        self.flush(other, now)
        batch.wire += other.wire
        batch.local += other.local


class PacketAdapterEngine(AdapterEngine):
    """With every SA in packet mode."""

    packet_mode = True
