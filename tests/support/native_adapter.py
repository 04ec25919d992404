"""The native loop with an adapter beside it, in one piece: what the adapter hands up goes through a ring in
memory, as in a worker, and what it is to send through Python."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from support.adapter import AdapterEngine
from support.native import NativeEngine

from offload import vnet
from offload.nic.hybrid import HybridEngine
from offload.nic.reader import NativeReader
from offload.nic.rings import AdapterPort, HostPort, wire
from offload.outer import Arrived
from offload.software import Batch, Frame
from sadb.sa import SaPair

if TYPE_CHECKING:
    from offload._native import Packet

EACH = 64  # packets taken at once
LARGEST = 1 << 17


@dataclass
class Rings:
    """Both sides, and a device."""

    host: HostPort
    adapter: AdapterPort
    device: socket.socket
    other: socket.socket

    @property
    def native(self) -> NativeReader:
        assert self.host.native is not None
        return self.host.native

    def put(self, one: Arrived) -> None:
        """The adapter's side."""
        assert self.adapter.received.put(one)
        self.adapter.publish()

    def frames(self) -> list[bytes]:
        """What has been written to the device."""
        found = []
        while True:
            try:
                found.append(self.other.recv(LARGEST))
            except BlockingIOError:
                return found


@cache
def rings() -> Rings:
    """One for all engines: each leaves them empty, and descriptors are few."""
    host, adapter = wire()
    device, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.setblocking(False)
    return Rings(HostPort(host, native=True), AdapterPort(adapter), device, other)


class NativeHybridEngine(NativeEngine, HybridEngine):
    """What arrives is what an adapter hands up."""

    def released(self, now: float) -> Batch:
        self._push()
        batch = super().released(now)
        self._pull(now)
        return batch

    def remove(self, pair: SaPair) -> None:
        self._push()
        super().remove(pair)

    def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
        batch = Batch()
        for one in arrived:
            rings().put(one)
            self.take(now, batch)
        return batch

    def take(self, now: float, batch: Batch) -> None:
        """All that is in the ring."""
        while True:
            self._push()
            native = rings().native
            frames, up = self._receive()
            self.passed += frames
            for frame in rings().frames():
                batch.local.append(Frame(frame) if vnet.outline(frame)[2] > 1 else frame[vnet.HEADER :])
            if up is not None:
                found = (
                    self.opened(native.value(up), now) if isinstance(up, bytes) else self.admitted(*up, now)
                )
                self._add(batch, found)
            self._pull(now)
            if up is None:
                return

    def _receive(self) -> tuple[int, bytes | Packet | None]:
        """Frames written, and what was handed up."""
        native = rings().native
        _, frames, _, up = self.table.receive(native.ring, rings().device.fileno(), EACH, True)
        return frames, up

    def opened(self, one: Arrived, now: float) -> Batch:
        """What the loop leaves to Python."""
        return HybridEngine.inbound(self, [one], now)


class NativeAdapterEngine(NativeHybridEngine, AdapterEngine):
    """Every SA is in the adapter as far as it can be."""

    def looked_at(self, arrived: Sequence[Arrived], now: float) -> Batch:
        return NativeHybridEngine.inbound(self, arrived, now)

    def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
        self._push()
        batch = AdapterEngine.inbound(self, arrived, now)
        self._pull(now)
        return batch
