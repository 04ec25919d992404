"""Shell. The data plane: what transforms packets, and what the host routes to it.

`HostPlane` is the real one: workers (`offload.workers.pool`) between a TUN device and the network, raw
sockets, routes and a packet filter. Packets never pass through this process. `MemoryPlane` is the same engine
in this process with a device in memory, for trials without root: ESP that would leave as IP protocol 50 goes
in a UDP datagram to the peer's port for ESP in UDP instead, though no NAT is there and no SA says so; both
ends must be such planes."""

from __future__ import annotations

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ikd import __version__
from ikd.events import Broken, EngineRestarted, Event, Warned
from ikd.settings import DataplaneSettings
from ikd.transport import MARK, Transport
from offload.host.tun import MemoryTun
from offload.outer import Arrived, Outgoing
from offload.software import Batch, SoftwareEngine
from sadb.address import Path as Way
from sadb.address import SocketAddress
from sadb.backend import Backend, Unavailable
from sadb.sa import Flow, SaPair

if TYPE_CHECKING:
    from offload.host.tun import Tun
    from offload.workers.inheritance import Estate, Orphan
    from offload.workers.processes import Bequest
    from offload.workers.shares import Share

ESP: Final = 50
LEAVING: Final = 1024  # accounts beyond the limit of pairs, for those that workers have not let go of yet

Guarded = Callable[[str, Callable[[], object]], None]


class Plane(ABC):
    """What the daemon and its driver want of a data plane."""

    name = ""
    short = ""

    def __init__(
        self,
        settings: DataplaneSettings,
        transport: Transport,
        guarded: Guarded,
        tell: Callable[[Event], None],
    ) -> None:
        self.settings = settings
        self.transport = transport
        self.guarded = guarded
        self.tell = tell
        self.notices: tuple[str, ...] = ()
        # pairs of a former run, with digests of their rules
        self.inherited: Sequence[tuple[SaPair, str]] = ()
        self.digest: Callable[[str], str] = lambda rule: ""  # of a rule in force, see `policy.engine.Policy`
        self._control: Path | None = None
        self._estate: Estate | None = None
        self._unopened = ExitStack()  # what was claimed, as long as nothing is opened
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """What there is before the plane is open."""

    @property
    @abstractmethod
    def backend(self) -> Backend:
        """For the database."""

    @property
    @abstractmethod
    def held(self) -> int:
        """Packets that wait for a pair."""

    @property
    def accounts(self) -> int | None:
        """Pairs that whatever carries packets has, or has not let go of yet; None when that is the same as
        the database."""
        return None

    @property
    def outlives(self) -> bool:
        """Whether packets go on when this process ends."""
        return False

    @property
    def circumstances(self) -> dict[str, str]:
        """What has to be the same for workers of a former daemon to go on with this plane."""
        return {"the engine": self.name}

    def claim(self, control: Path, given: Sequence[socket.socket] = ()) -> Sequence[socket.socket]:
        """Before everything else is opened, look for a data plane that has outlived the daemon with this
        control socket. One that is not to be gone on with is ended. Returns the sockets for IKE that it kept,
        else those that are `given`."""
        from offload.workers.inheritance import claim

        def unfit(orphan: Orphan) -> str:
            if orphan.handover.number == 0 and not _has_all(orphan.kept, given):
                return "systemd has opened other sockets for IKE"
            return self._unfit(orphan)

        self._control = control
        self._estate, reason = claim(control, self.circumstances, unfit)
        if self._estate is not None:
            self._unopened.callback(self._estate.close)
            for one in given:  # they are the same ones
                one.close()
            return self._estate.orphans[0].kept
        if reason:
            self.notices += (f"the SAs of the former run are gone: {reason}",)
        return given

    def _unfit(self, orphan: Orphan) -> str:
        """What is wrong with what a worker gave."""
        return "this data plane has no workers"

    @abstractmethod
    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take packets from now on; raises `Unavailable` or `OSError`."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""

    def leave(self) -> None:
        """End here, and let packets go on where the plane `outlives` us."""
        self.close()

    @abstractmethod
    def route(self, flows: tuple[Flow, ...]) -> None:
        """Another policy; raises `Unavailable`, and then the one before is in force."""

    def network_changed(self) -> None:  # noqa: B027 - in memory there are no routes
        """This host has other addresses or routes; raises `Unavailable`."""

    @abstractmethod
    def dropped(self) -> Mapping[str, int]:
        """Packets that came to nothing, by reason."""

    def arrived(self, datagrams: Sequence[tuple[bytes, Way]]) -> None:  # noqa: B027 - workers have their own
        """ESP in UDP that came to the socket for IKE."""

    def carrier(self, pairs: Collection[SaPair]) -> str:
        """What carries these pairs, in a word."""
        return self.short

    def flush(self) -> None:  # noqa: B027 - workers do it
        """Send what was set free."""

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return None

    def tick(self, now: float) -> None:  # noqa: B027 - workers have a clock
        """Pass deadlines."""


class HostPlane(Plane):
    """Workers, TUN device, sockets, routes and packet filter of this host."""

    short = "software"
    with_adapter = False

    def _prepare(self) -> None:
        from offload.workers.pool import Workers
        from offload.workers.processes import Kind

        settings = self.settings
        engine = settings.engine
        self._missing = missing = _native_missing() if engine != "python" else ""
        native = engine != "python" and not missing
        self._count = settings.workers if native and not self.with_adapter else 1
        if engine == "auto" and missing:
            self.notices = (f"the engine in Python serves, several times slower: {missing}",)
        if settings.workers > self._count:
            alone = "the engine beside an adapter" if native else "the engine in Python"
            self.notices += (f"{alone} has one worker, whatever dataplane.workers says",)
        self.name = f"software engine ({'native' if native else 'python'})"
        self.transport.shared = True
        self._stack = ExitStack()
        self._host: Any = None
        self._tun: Any = None
        self._flows: tuple[Flow, ...] = ()
        self._routed = True  # whether what there is of routes leads into the device
        self._trouble = ""  # why no packets are carried
        engine = "native" if native else "python"
        kind = Kind(engine, settings.queue_packets, settings.queue_flows, self.with_adapter)
        self.workers = Workers(settings.pairs + LEAVING, kind)
        self.workers.watcher = self
        self.workers.digest = lambda rule: self.digest(rule)

    @property
    def backend(self) -> Backend:
        return self.workers

    @property
    def held(self) -> int:
        return self.workers.held

    @property
    def accounts(self) -> int:
        return self.workers.accounts

    @property
    def outlives(self) -> bool:
        return self.settings.orphan_seconds > 0 and not self.with_adapter

    @property
    def circumstances(self) -> dict[str, str]:
        from offload.channel import language

        settings, transport = self.settings, self.transport
        same = ("device", "mtu", "pairs", "queue_packets", "queue_flows")
        return {
            "the version": f"{__version__} {language()}",
            "the engine": self.name,
            "the number of workers": str(self._count),
            "daemon.listen": " ".join(map(str, transport.listen)),
            "the ports": f"{transport.port} {transport.nat_port}",
            "whether they outlive the daemon": "yes" if self.outlives else "no",
            **{f"dataplane.{name}": str(getattr(settings, name)) for name in same},
        }

    def _unfit(self, orphan: Orphan) -> str:
        """What is wrong with what a worker gave; one that somebody has taken over may give anything."""
        from offload.host.tun import device_of
        from offload.ledger import ACCOUNT

        try:
            if device_of(orphan.queue) != self.settings.device:
                return "another device"
        except OSError:
            return "no device"
        if os.fstat(orphan.ledger).st_size != (self.settings.pairs + LEAVING) * ACCOUNT:
            return "a ledger of another size"
        return "" if all(map(self.transport.fits, orphan.kept)) else "other sockets for IKE"

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The device and sockets, then workers on them, then what leads packets into the device."""
        from offload.host import natt
        from offload.host.network import Host

        settings, stack = self.settings, self._stack
        if settings.engine == "native" and self._missing:
            raise Unavailable(f'dataplane.engine = "native": {self._missing}; or set it to "auto"')
        shares = self._open_device(stack)
        probes = stack.enter_context(natt.Probes(MARK))
        self.workers.link_mtu = probes.link_mtu
        self._begin(loop, shares)
        estate, self._estate = self._estate, None
        stack.callback(self.workers.close)
        self.inherited = self.workers.open(loop, self._tun, shares, self._bequest(), estate)
        self._host = Host(
            settings.device,
            settings.mtu,
            MARK,
            stay_closed=settings.stay_closed,
            interfaces=sorted(self.transport.interfaces),
        )

    def _open_device(self, stack: ExitStack) -> Sequence[Share]:
        """The device, and sockets for each worker: new ones, or those that are there."""
        from offload.host.tun import Tun
        from offload.workers.shares import inherited_shares, open_shares

        settings = self.settings
        if self._estate is None:
            shares = stack.enter_context(open_shares(self._count, self.transport.shared_addresses(), MARK))
            self._tun = Tun(settings.device, settings.mtu, self._count)
        else:
            orphans = self._estate.orphans
            self._unopened.pop_all()  # from here on, each part has its own end
            shares = stack.enter_context(inherited_shares(self._estate))
            uso = orphans[0].handover.segments_udp
            queues = [one.queue for one in orphans]
            self._tun = Tun.inherited(settings.device, settings.mtu, queues, segments_udp=uso)
        stack.callback(lambda: self._tun.close())  # it may be another one by then
        return shares

    def _bequest(self) -> Bequest | None:
        """What makes workers outlive us."""
        from offload.workers.processes import Bequest

        if not self.outlives or self._control is None:
            return None
        return Bequest(
            self._control, self.settings.orphan_seconds, self.circumstances, self.transport.sockets
        )

    def _begin(self, loop: asyncio.AbstractEventLoop, shares: Sequence[Share]) -> None:
        """What has to be there before workers are."""

    def close(self) -> None:
        """Routes, rules and filter first, so that nothing is led into a device that is gone."""
        if self._host is not None:
            self._host.close()
        self._stack.close()
        self._unopened.close()

    def leave(self) -> None:
        if self._host is not None:
            self._host.leave()
        self.workers.leave()
        self._stack.close()

    def route(self, flows: tuple[Flow, ...]) -> None:
        """The packet filter and routes first: only they can refuse."""
        if self._host is not None:
            self._host.apply(flows)
        self._flows = flows
        self.workers.route(flows)

    def network_changed(self) -> None:
        """What leads packets into the device may be gone with an address, or lead with another one. One that
        was deleted gets everything when it is made anew."""
        if self._host is not None and self._tun.there:
            self._host.refresh()

    def flush(self) -> None:
        self.workers.flush()

    def dropped(self) -> Mapping[str, int]:
        """Those of the workers, of the device's full queues, and of the packet filter, which sees them
        first."""
        counts = Counter(self.workers.counters)
        if self._tun is not None:
            counts["device-queue-full"] += self._tun.dropped()
        if self._host is not None:
            with suppress(Unavailable):
                counts.update({f"filter: {reason}": number for reason, number in self._host.drops().items()})
        return counts

    # Of the workers --------------------------------------------------------------------------------------

    def device(self) -> Tun:
        """See `offload.workers.pool.Watcher`. Routes went with a device that was deleted; the packet filter
        did not, so that meanwhile nothing has left in the clear."""
        from offload.host.tun import Tun

        try:
            if not self._tun.there:
                self._tun.close()
                self._tun = Tun(self.settings.device, self.settings.mtu, self._count)
                self._host.forget_routes()
                self._routed = False
            if not self._routed:
                self._host.apply(self._flows)
                self._routed = True
        except (OSError, Unavailable) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self.tell(Warned(about="data plane", warning=f"no packets are carried: {error}"))
            raise
        self._trouble = ""
        return self._tun  # type: ignore[no-any-return]

    def restarted(self, reason: str, pairs: int) -> None:
        """See `offload.workers.pool.Watcher`."""
        self.tell(EngineRestarted(reason=reason, pairs=pairs))

    def broken(self, where: str, traceback: str) -> None:
        """See `offload.workers.pool.Watcher`."""
        self.tell(Broken(where="a worker of the data plane", error=where, traceback=traceback))


class MemoryPlane(Plane):
    """An engine in this process, with a device in memory: `tun`."""

    name = "software engine, packets in memory"
    short = "memory"

    def _prepare(self) -> None:
        settings = self.settings
        self.engine = SoftwareEngine(
            os.urandom, queue_packets=settings.queue_packets, queue_flows=settings.queue_flows
        )
        self.tun = MemoryTun(mtu=settings.mtu)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def backend(self) -> Backend:
        return self.engine

    @property
    def held(self) -> int:
        return self.engine.held

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self.tun.fileno(), self.guarded, "the TUN device", self._outbound)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self.tun.fileno())
        self.tun.close()

    def route(self, flows: tuple[Flow, ...]) -> None:
        self.engine.route(flows)

    def dropped(self) -> Mapping[str, int]:
        return self.engine.counters

    def arrived(self, datagrams: Sequence[tuple[bytes, Way]]) -> None:
        """As if it had come without UDP, which is how it left the peer's engine."""
        arrived = [Arrived(ESP, path.peer.address, path.local.address, data) for data, path in datagrams]
        self._emit(self.engine.inbound(arrived, self._now()))

    def flush(self) -> None:
        self._emit(self.engine.released(self._now()))

    def deadline(self) -> float | None:
        return self.engine.deadline()

    def tick(self, now: float) -> None:
        self.engine.tick(now)

    def _outbound(self) -> None:
        """Packets that the host wants to send."""
        packets = self.tun.read_batch(self.settings.batch)
        if packets:
            self._emit(self.engine.outbound(packets, self._now()))

    def _emit(self, batch: Batch) -> None:
        """Out of the engine, to the network and the host."""
        self.transport.send_esp([found for one in batch.wire if (found := self._wrapped(one))])
        self.tun.write_batch(batch.local)

    @staticmethod
    def _ends(packet: bytes) -> tuple[int, int, bytes, bytes]:
        """Where the header ends, the protocol, source and destination."""
        if packet[0] >> 4 == 4:
            return (packet[0] & 15) * 4, packet[9], packet[12:16], packet[16:20]
        return 40, packet[6], packet[8:24], packet[24:40]

    def _wrapped(self, packet: Outgoing) -> tuple[bytes, Way] | None:
        """An IP packet's ESP as the payload of a datagram; AH has no form in UDP and is dropped."""
        if packet.path is not None:
            return packet.data, packet.path
        start, protocol, *ends = self._ends(packet.data)
        if protocol != ESP:
            return None
        local, peer = (SocketAddress(ip_address(packed), self.transport.nat_port) for packed in ends)
        return packet.data[start:], Way(local, peer)

    def _now(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0


def _has_all(kept: Sequence[socket.socket], given: Sequence[socket.socket]) -> bool:
    """Whether sockets are among others, which may be other descriptors of the same ones."""
    return all(any(os.path.sameopenfile(one.fileno(), other.fileno()) for other in kept) for one in given)


def _native_missing() -> str:
    """Why there is no native engine, with what to do; empty when there is one."""
    try:
        import offload._native  # noqa: F401 - whether it can be loaded is the question
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            remedy = "apt-get install gcc python3-dev libssl-dev, then pip install again"
            return f"offload._native is not built: {remedy}"
        return f"offload._native does not load: {error}"
    return ""
