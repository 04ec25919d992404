"""The engine beside an adapter in packet mode (see `offload.nic.packet_mode`): plain packets go over and come
back, and are counted here against the limits of their SA. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from offload import ip, vnet
from offload.nic.descriptors import MOST_PACKETS
from offload.nic.driver import Driver
from offload.nic.hybrid import HybridEngine
from offload.nic.lanes import Lane, Stage
from offload.nic.packet_mode import LOST
from offload.outer import Arrived
from offload.sender import Sender
from offload.software import Batch
from sadb.sa import Expire, SaPair

_PLAIN = bytes(vnet.HEADER)  # before a packet that stands for itself alone


class PacketEngine(HybridEngine):
    """See `HybridEngine`, which is all there is to SAs in crypto mode."""

    def __init__(self, random: Callable[[int], bytes], driver: Driver, **options: Any) -> None:
        super().__init__(random, driver, **options)
        driver.lending, driver.lost = self._lending, self._window_lost

    # Outbound --------------------------------------------------------------------------------------------

    def _lane(self, sender: Sender) -> Lane | None:
        """Whither packets that the adapter is to make, while it may."""
        lane = self.driver.lanes.get(sender.pair)
        return lane if lane is not None and lane.packets and lane.stage is Stage.HARD else None

    def _put(self, sender: Sender, packet: bytes, port: bytes, now: float, batch: Batch) -> None:
        lane = self._lane(sender)
        if lane is None or self._unfit(sender, packet) is not None:
            super()._put(sender, packet, port, now, batch)
        else:
            self._hand_over(lane, sender, packet, port, now)

    def _send_large(
        self, route: tuple[Sender, int, bytes], packet: bytes, cut: bool, now: float, batch: Batch
    ) -> None:
        if self._lane(route[0]) is None or self._unfit(route[0], packet) is not None:
            super()._send_large(route, packet, cut, now, batch)
        else:  # as in software, but for what becomes of the pieces
            super(HybridEngine, self)._send_large(route, packet, cut, now, batch)

    def _put_pieces(
        self, sender: Sender, packet: bytes, pieces: Sequence[bytes], port: bytes, now: float, batch: Batch
    ) -> None:
        lane = self._lane(sender)
        if lane is None:
            super()._put_pieces(sender, packet, pieces, port, now, batch)
            return
        for at, piece in enumerate(pieces):
            mtu = min(self._mtu(sender.sa), ip.LARGEST) if piece is packet else 0
            self._hand_over(lane, sender, piece, port, now, mtu=mtu, of=packet, behind=at > 0)

    def _hand_over(
        self,
        lane: Lane,
        sender: Sender,
        packet: bytes,
        port: bytes,
        now: float,
        *,
        mtu: int = 0,
        of: bytes = b"",
        behind: bool = False,
    ) -> None:
        """Count a packet, or a piece of one, and leave all else to the adapter."""
        ready = self.driver.leased(lane, 1)

        def number() -> int | None:
            if not ready:
                sender.meter.exhaust("sequence")
            return 1 if ready else None

        self._numbered(sender, len(packet), now, number)
        shown = ip.with_port(packet, port, source=False) if port else packet
        self.driver.send_packets(
            lane, _PLAIN + shown, of or packet, len(packet), 1, now, mtu=mtu, behind=behind
        )

    def _send_large_frame(self, frame: bytes, now: float) -> bool:
        driver, packet = self.driver, frame[vnet.HEADER :]
        key = ip.flow_key(packet) if driver.packet_mode and driver.capabilities.lso else None
        sender, fits, port = (self._routes.get(key) if key is not None else None) or (None, 0, b"")
        lane = self._lane(sender) if sender is not None else None
        if sender is None or lane is None:
            return super()._send_large_frame(frame, now)
        head, mss, count = vnet.outline(frame)
        octets = len(packet) + (count - 1) * head
        if not 1 < count <= MOST_PACKETS or port or head + mss > fits or not driver.leased(lane, count):
            return False
        if not sender.meter.take_all(octets, count, now):
            return False  # a limit is near: one by one
        driver.send_packets(lane, frame, frame, octets, count, now)
        return True

    # Inbound ---------------------------------------------------------------------------------------------

    def _open(self, arrived: Arrived, data: bytes, now: float, batch: Batch) -> None:
        """What the adapter has not looked at, of an SA whose window it has, nobody can judge."""
        if arrived.mark is None:
            spi = data[:4] if arrived.protocol == ip.ESP else data[4:8]
            pair = self._spis.get(int.from_bytes(spi, "big"))
            if pair is not None and self.driver.lent(pair):
                self._counters["late"] += 1
                return
        super()._open(arrived, data, now, batch)

    def _lending(self, pair: SaPair) -> None:
        """Should this process end, the next must not believe that nothing newer has come."""
        receiver = self._receivers.get(pair.inbound.spi)
        if receiver is not None:
            receiver.meter.tell()

    def _window_lost(self, pair: SaPair) -> None:
        """The SA receives no more; its successor will."""
        if self._spis.get(pair.inbound.spi) is pair:
            self._notices.append(Expire(pair.inbound.spi, True, False, LOST, pair.owner))
