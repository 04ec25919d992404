"""Shell. The data plane: the software engine between a TUN device and the network, and what the host routes
to it.

`HostPlane` is the real one, with a TUN device, raw sockets, routes and a packet filter. `MemoryPlane` is the
same engine with a device in memory, for trials without root: ESP that would leave as IP protocol 50 goes in a
UDP datagram to the peer's port for ESP in UDP instead, though no NAT is there and no SA says so; both ends
must be such planes.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, Protocol

from ikd.settings import DataplaneSettings
from ikd.transport import MARK, Transport
from offload.outer import Arrived, Outgoing
from offload.software import Batch, SoftwareEngine
from offload.tun import MemoryTun
from sadb.address import Path, SocketAddress
from sadb.backend import Backend, Unavailable
from sadb.sa import Flow

ESP: Final = 50

Guarded = Callable[[str, Callable[[], object]], None]


class Device(Protocol):
    """A TUN device, real or not."""

    def fileno(self) -> int: ...
    def read_batch(self, limit: int) -> list[bytes]: ...
    def write_batch(self, packets: Iterable[bytes]) -> int: ...
    def close(self) -> None: ...


class Plane(ABC):
    """What both have in common: the engine, its device, and ESP in UDP."""

    name = ""
    short = ""

    def __init__(self, settings: DataplaneSettings, transport: Transport, guarded: Guarded) -> None:
        self.settings = settings
        self.transport = transport
        self.guarded = guarded
        self.engine = SoftwareEngine(
            os.urandom, queue_packets=settings.queue_packets, queue_flows=settings.queue_flows
        )
        self.notices: tuple[str, ...] = ()
        self._device: Device | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: list[int] = []

    @property
    def backend(self) -> Backend:
        """For the database."""
        return self.engine

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take packets from now on; raises `Unavailable` or `OSError`."""
        self._loop = loop
        self._device = device = self._make_device()
        self._read(device.fileno(), "the TUN device", lambda: self._outbound(device))

    def close(self) -> None:
        """Leave nothing behind."""
        if self._loop is not None:
            for fileno in self._readers:
                self._loop.remove_reader(fileno)
        self._readers.clear()
        if self._device is not None:
            self._device.close()

    def route(self, flows: tuple[Flow, ...]) -> None:
        """Another policy; raises `Unavailable`, and then the one before is in force."""
        self.engine.route(flows)

    def arrived(self, datagrams: Sequence[tuple[bytes, Path]]) -> None:
        """ESP in UDP."""
        self._inbound(
            [Arrived(ESP, path.peer.address, path.local.address, data, path=path) for data, path in datagrams]
        )

    def flush(self) -> None:
        """Send what was set free."""
        self._emit(self.engine.released(self._now()))

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self.engine.deadline()

    def tick(self, now: float) -> None:
        """Pass deadlines."""
        self.engine.tick(now)

    def dropped(self) -> Mapping[str, int]:
        """Packets that came to nothing, by reason."""
        return self.engine.counters

    @abstractmethod
    def _make_device(self) -> Device: ...

    @abstractmethod
    def _send(self, packets: list[Outgoing]) -> None:
        """Packets that are whole IP packets."""

    def _read(self, fileno: int, what: str, work: Callable[[], object]) -> None:
        """Do this whenever something can be read there."""
        assert self._loop is not None
        self._loop.add_reader(fileno, self.guarded, what, work)
        self._readers.append(fileno)

    def _outbound(self, device: Device) -> None:
        """Packets that the host wants to send."""
        packets = device.read_batch(self.settings.batch)
        if packets:
            self._emit(self.engine.outbound(packets, self._now()))

    def _inbound(self, arrived: list[Arrived]) -> None:
        """Protected packets that came."""
        if arrived:
            self._emit(self.engine.inbound(arrived, self._now()))

    def _emit(self, batch: Batch) -> None:
        """Out of the engine, to the network and the host."""
        if batch.wire:
            wrapped = [(one.data, one.path) for one in batch.wire if one.path is not None]
            if wrapped:
                self.transport.send_esp(wrapped)
            if len(wrapped) < len(batch.wire):
                self._send([one for one in batch.wire if one.path is None])
        if batch.local and self._device is not None:
            self._device.write_batch(batch.local)

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0


class HostPlane(Plane):
    """TUN device, raw sockets, routes and packet filter of this host."""

    name = "software engine (python)"
    short = "software"

    def __init__(self, settings: DataplaneSettings, transport: Transport, guarded: Guarded) -> None:
        super().__init__(settings, transport, guarded)
        self._host: Any = None
        self._raw: Any = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raw sockets, then the device, then what leads packets into it."""
        from offload.host import Host
        from offload.raw import RawSockets

        self._raw = RawSockets(MARK)
        super().open(loop)
        for fileno in self._raw.filenos():
            self._read(fileno, "raw sockets", partial(self._raw_ready, fileno))
        self._host = Host(
            self.settings.device, self.settings.mtu, MARK, stay_closed=self.settings.stay_closed
        )

    def close(self) -> None:
        """Routes, rules and filter first, so that nothing is led into a device that is gone."""
        if self._host is not None:
            self._host.close()
        super().close()
        if self._raw is not None:
            self._raw.close()

    def route(self, flows: tuple[Flow, ...]) -> None:
        """The packet filter and routes first: only they can refuse."""
        if self._host is not None:
            self._host.apply(flows)
        super().route(flows)

    def dropped(self) -> Mapping[str, int]:
        """Those of the engine, of the raw sockets, and of the packet filter, which sees them first."""
        counts = Counter(self.engine.counters)
        if self._raw is not None:
            counts.update({f"raw: {reason}": number for reason, number in self._raw.counters.items()})
        if self._host is not None:
            with suppress(Unavailable):
                counts.update({f"filter: {reason}": number for reason, number in self._host.drops().items()})
        return counts

    def _make_device(self) -> Device:
        from offload.tun import Tun

        return Tun(self.settings.device, self.settings.mtu)

    def _send(self, packets: list[Outgoing]) -> None:
        self._raw.write_batch(packets)
        self._path_mtus()

    def _raw_ready(self, fileno: int) -> None:
        self._inbound(self._raw.read_batch(fileno, self.settings.batch))
        self._path_mtus()

    def _path_mtus(self) -> None:
        """What the network told about the size of packets."""
        for report in self._raw.told():
            self.engine.path_mtu(report.destination, report.mtu, self._now(), report.spi)


class MemoryPlane(Plane):
    """Devices in memory; `tun` is the one."""

    name = "software engine, packets in memory"
    short = "memory"

    def __init__(self, settings: DataplaneSettings, transport: Transport, guarded: Guarded) -> None:
        super().__init__(settings, transport, guarded)
        self.tun = MemoryTun(mtu=settings.mtu)

    def _make_device(self) -> Device:
        return self.tun

    def _send(self, packets: list[Outgoing]) -> None:
        wrapped = [found for one in packets if (found := self._wrapped(one.data))]
        self.transport.send_esp(wrapped)

    def arrived(self, datagrams: Sequence[tuple[bytes, Path]]) -> None:
        """As if it had come without UDP, which is how it left the peer's engine."""
        self._inbound([Arrived(ESP, path.peer.address, path.local.address, data) for data, path in datagrams])

    @staticmethod
    def _ends(packet: bytes) -> tuple[int, int, bytes, bytes]:
        """Where the header ends, the protocol, source and destination."""
        if packet[0] >> 4 == 4:
            return (packet[0] & 15) * 4, packet[9], packet[12:16], packet[16:20]
        return 40, packet[6], packet[8:24], packet[24:40]

    def _wrapped(self, packet: bytes) -> tuple[bytes, Path] | None:
        """An IP packet's ESP as the payload of a datagram; AH has no form in UDP and is dropped."""
        start, protocol, *ends = self._ends(packet)
        if protocol != ESP:
            return None
        local, peer = (SocketAddress(ip_address(packed), self.transport.nat_port) for packed in ends)
        return packet[start:], Path(local, peer)


PLANES: Final[Mapping[str, type[Plane]]] = {"software": HostPlane, "memory": MemoryPlane}


def make_plane(settings: DataplaneSettings, transport: Transport, guarded: Guarded) -> Plane:
    """The plane that the settings ask for."""
    return PLANES[settings.backend](settings, transport, guarded)
