"""The software engine with an adapter beside it: SAs that `offload.nic.driver` has placed are framed here and
protected there, all others, and every packet the adapter cannot have, as ever.

Packets for the adapter are in `driver.ring` when a batch is done. What the adapter marked as done is believed
for the SA it says, and only then; the replay window, limits, selectors and counters are the engine's. A
native loop, which `Accounts` tells of what moves, takes marked packets about which nothing has to be decided,
and leaves here all that an adapter is to send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offload import ip, vnet
from offload.accounts import Accounts
from offload.ip import Dropped
from offload.nic.descriptors import MOST_PACKETS, Task, Transmit
from offload.nic.driver import Driver
from offload.nic.eligibility import Reason, Shape, unfit
from offload.nic.lanes import Again, Lane, Stage
from offload.outer import Arrived, CryptoStatus, Mark, Outgoing
from offload.sender import Sender
from offload.software import Batch, Frame, SoftwareEngine
from sadb.algorithms import SecurityProtocol
from sadb.sa import SaPair


class HybridEngine(SoftwareEngine):
    """See `SoftwareEngine`; `driver` is that of its adapter."""

    def __init__(
        self,
        random: Callable[[int], bytes],
        driver: Driver,
        *,
        queue_packets: int = 32,
        queue_flows: int = 1024,
        link_mtu: int = 1500,
        accounts: Accounts | None = None,
    ) -> None:
        super().__init__(
            random,
            queue_packets=queue_packets,
            queue_flows=queue_flows,
            link_mtu=link_mtu,
            accounts=accounts,
        )
        self.driver = driver
        self._again: list[Again] = []
        driver.again = self._again.append
        driver.changed, driver.number = self._changed, self._accounts.number
        self._framers: dict[SaPair, Sender] = {}

    def remove(self, pair: SaPair) -> None:
        super().remove(pair)
        self.driver.forget(pair)

    def _forget(self, pair: SaPair) -> None:
        self._framers.pop(pair, None)
        super()._forget(pair)

    # The native loop -------------------------------------------------------------------------------------

    def _changed(self, pair: SaPair) -> None:
        """Say what the adapter has of a pair. Packets that have to leave again do so first: of what the loop
        sends nothing must overtake them."""
        lane = self.driver.lanes.get(pair)
        placed = lane is not None and lane.stage is not Stage.ADDING
        again = any(one.pair is pair for one in self._again)
        self._accounts.place(pair, placed or again, *self.driver.mark(pair))

    def _credit(self, pair: SaPair) -> None:
        octets, packets = self._accounts.marked(pair)
        if packets:
            self.driver.credit(pair, octets, packets)

    def carried(self, pair: SaPair) -> tuple[int, int, int, int]:
        """See `Driver.carried`."""
        self._credit(pair)
        return self.driver.carried(pair)

    # Outbound --------------------------------------------------------------------------------------------

    def _put(self, sender: Sender, packet: bytes, port: bytes, now: float, batch: Batch) -> None:
        """One packet that fits: to the adapter if that has the SA, else protect it here."""
        driver = self.driver
        lane = driver.lanes.get(sender.pair)
        if lane is None or lane.stage is Stage.ADDING:
            batch.wire.append(self._protect(sender, packet, port, now))
            return
        reason = self._unfit(sender, packet)
        if self._waits(lane, packet, now, batch, soft=reason is not None):
            return
        if reason is not None:
            driver.counters[f"packet: {reason.value}"] += 1
            batch.wire.append(self._protect(sender, packet, port, now))
            return
        framed = self._protect(self._framer(sender), packet, port, now)
        at = 0 if framed.path is not None else ip.insertion(framed.data)[0]
        driver.send(lane, framed, at, packet, now)

    def _send_large(
        self, route: tuple[Sender, int, bytes], packet: bytes, cut: bool, now: float, batch: Batch
    ) -> None:
        lane = self.driver.lanes.get(route[0].pair)
        placed = lane is not None and lane.stage is not Stage.ADDING
        # pieces are made here; what is not to be cut up gets no number
        if lane is None or not placed or not cut or not self._waits(lane, packet, now, batch, soft=True):
            super()._send_large(route, packet, cut, now, batch)

    def _waits(self, lane: Lane, packet: bytes, now: float, batch: Batch, *, soft: bool) -> bool:
        """Whether a packet waits until the adapter has sent what it has of the SA. One that is protected here
        (`soft`) must not overtake those: behind it they might be too late for the peer's replay window."""
        driver = self.driver
        if lane.stage is Stage.HARD:
            driver.prepare(lane, now, soft=soft)
        if lane.stage is not Stage.DRAINING:
            return False
        driver.hold(lane, packet, now)
        self._send_again(batch, now)
        return True

    def _unfit(self, sender: Sender, packet: bytes) -> Reason | None:
        """Why an adapter is not to have this packet; in tunnel mode and in UDP the outer header is plain."""
        if sender.tunnel or sender.sa.encapsulation is not None or ip.flow_key(packet) is not None:
            return None
        return unfit(Shape.of(packet), sender.sa.mode, ip.LARGEST, self.driver.capabilities)

    def _framer(self, sender: Sender) -> Sender:
        framer = self._framers.get(sender.pair)
        if framer is None:
            framer = Sender(sender.pair, self._random, self._ident, sender.meter, bare=True)
            self._framers[sender.pair] = framer
        return framer

    def _send_large_frame(self, frame: bytes, now: float) -> bool:
        """Leave a large packet to an adapter that has its SA and segments; False when that is not so."""
        driver, packet = self.driver, frame[vnet.HEADER :]
        if not driver.capabilities.lso or len(packet) < 40:
            return False
        head, mss, count = vnet.outline(frame)
        key = ip.flow_key(packet)
        sender, fits, port = (self._routes.get(key) if key is not None else None) or (None, 0, b"")
        if not 1 < count <= MOST_PACKETS or sender is None or sender.tunnel or port or head + mss > fits:
            return False
        lane = self.driver.lanes.get(sender.pair)
        esp = sender.sa.suite.protocol is SecurityProtocol.ESP
        if lane is None or lane.stage is not Stage.HARD or not esp or sender.sa.dont_fragment is not None:
            return False
        octets = len(packet) + (count - 1) * head
        if lane.high != self.driver.number(sender.pair, False) + count >> 32:
            return False  # one by one, until the one that crosses
        number = sender.meter.take_train(octets, count, now)
        if not number:
            return False
        large = Transmit(
            0,
            0,
            Task.LARGE,
            frame,
            0,
            sender.path,
            ip.traffic_class(packet),
            number=number,
            dont_fragment=sender.whole(packet, packet[0] >> 4 == 4),
        )
        driver.send_large(lane, large, octets, count, now)
        return True

    def _send_framed(self, frame: bytes, now: float) -> bool:
        """Have the native loop frame packets that an adapter is to protect; False when there is none, or
        something about them is to be decided."""
        driver = self.driver
        key = ip.flow_key(frame[vnet.HEADER :])
        route = self._routes.get(key) if key is not None else None
        lane = driver.lanes.get(route[0].pair) if route is not None else None
        if route is None or lane is None or lane.stage is not Stage.HARD:
            return False
        sender, _, port = route
        last = driver.number(sender.pair, False)
        if port or not lane.high == last + 1 >> 32 == last + MOST_PACKETS >> 32:
            return False
        framed = self._accounts.framed(frame)
        for data, packet, traffic, whole in framed or ():
            at = 0 if sender.path is not None else 20 if data[0] >> 4 == 4 else 40
            outgoing = Outgoing(data, sender.path, traffic, dont_fragment=whole)
            driver.send(lane, outgoing, at, packet, now)
        return framed is not None

    def _resend(self, again: Again, now: float, batch: Batch) -> None:
        """Packets that an adapter lost, under new numbers, then those that waited for it."""
        for flight in again.lost:
            try:
                packets = vnet.packets(flight.packet) if flight.frame else [flight.packet]
            except Dropped as dropped:
                self._counters[dropped.reason] += 1
                continue
            for packet in packets:
                self._send(packet, now, batch)
        for packet in again.held:
            self._send(packet, now, batch)

    def _send_frame(self, frame: bytes, now: float, batch: Batch) -> None:
        placed = self.driver.lanes and (self._send_large_frame(frame, now) or self._send_framed(frame, now))
        if not placed:
            super()._send_frame(frame, now, batch)

    def _send_train(self, packets: Sequence[bytes], now: float, batch: Batch) -> bool:
        if self.driver.lanes:
            key = ip.flow_key(packets[0])
            route = self._routes.get(key) if key is not None else None
            if route is not None and route[0].pair in self.driver.lanes:
                return False
        return super()._send_train(packets, now, batch)

    def _release(self, batch: Batch, now: float) -> None:
        self._send_again(batch, now)
        super()._release(batch, now)

    def _send_again(self, batch: Batch, now: float) -> None:
        while self._again:
            again = self._again.pop(0)
            self._resend(again, now, batch)
            self._changed(again.pair)

    # Inbound ---------------------------------------------------------------------------------------------

    def _open_all(self, arrived: Arrived, now: float, batch: Batch) -> None:
        if arrived.mark is not None:
            self._open_marked(arrived, arrived.mark, now, batch)
        else:
            super()._open_all(arrived, now, batch)

    def _open_marked(self, arrived: Arrived, mark: Mark, now: float, batch: Batch) -> None:
        """What an adapter looked at: believed for the SA that it is said to be of, and no other."""
        if len(arrived.data) < 12:
            self._counters["malformed"] += 1
            return
        pair = self._spis.get(arrived.spi)
        if pair is None or not self.driver.believes(pair, mark):
            self._counters["stale-handle"] += len(mark.numbers) or 1
            return
        self._credit(pair)
        # of extended numbers the adapter may know an old upper half: then they are opened here
        final = mark.judged or self.driver.lent(pair) or not pair.inbound.suite.esn
        if mark.status is not CryptoStatus.SUCCESS and final:
            self._counters[_WRONG.get(mark.status, "unverified")] += 1
            return
        before = len(batch.local)
        if mark.numbers:
            self._open_frame(arrived, mark, now, batch)
        else:
            self._open(arrived, arrived.data, now, batch)
        if len(batch.local) > before:
            sizes = [_carried(one) for one in batch.local[before:]]
            self.driver.opened(
                pair, mark, sum(octets for octets, _ in sizes), sum(count for _, count in sizes)
            )

    def _open_frame(self, arrived: Arrived, mark: Mark, now: float, batch: Batch) -> None:
        frame = arrived.data[8:]
        try:
            receiver = self._receiver(arrived, arrived.data, now)
            try:
                packets, refused = receiver.open_frame(mark, frame, now)
                for reason in refused:
                    self._counters[reason] += 1
                if packets is None and not self._twins:
                    batch.local.append(Frame(frame))
                else:
                    packets = vnet.packets(frame) if packets is None else packets
                    batch.local += (
                        self._twins.inbound(receiver.pair, one) if self._twins else one for one in packets
                    )
            finally:
                if receiver.meter.crossed:
                    self._crossed(receiver.meter, receiver.pair, inbound=True)
        except Dropped as dropped:
            self._counters[dropped.reason] += len(mark.numbers)


_WRONG = {
    CryptoStatus.INVALID_SYNTAX: "malformed",
    CryptoStatus.INVALID_PROTOCOL: "malformed",
    CryptoStatus.REPLAYED: "replayed",
    CryptoStatus.LATE: "late",
    CryptoStatus.DUMMY: "dummy",
    CryptoStatus.CONGESTION: "congestion",
}


def _carried(packet: bytes | Frame) -> tuple[int, int]:
    """Octets and packets that came on the wire for this."""
    if not isinstance(packet, Frame):
        return len(packet), 1
    head, _, count = vnet.outline(packet)
    return len(packet) - vnet.HEADER + (count - 1) * head, count
