"""Shell. A worker with an adapter: see `offload.workers.worker`.

While an adapter is attached it reads the wire, and hands up what it has or has not opened; what software
protects leaves through the same sockets. Without one, or when it dies, this is a worker like any other. The
native loop has the packets received and all that software protects; what the adapter is to send, and how SAs
move, is Python's."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

import msgspec

from offload import channel
from offload.channel import address
from offload.nic import requests
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.driver import Driver
from offload.nic.link import NicLink
from offload.nic.packet_engine import PacketEngine
from offload.nic.rings import Plug
from offload.nic.slots import Broken
from offload.outer import Arrived
from offload.software import Batch, Frame, SoftwareEngine
from offload.workers.worker import Order, Worker
from sadb import clock

if TYPE_CHECKING:
    from offload._native import Datagram, Packet, Table

CARRIED_SECONDS: Final = 1.0  # between two reports of what the adapter carried


class Plugged(msgspec.Struct, frozen=True, array_like=True):
    """An adapter to use from now on, instead of any before. With it come descriptors: those of the plug, and
    of the socket for requests."""

    profile: str
    slots: int
    room: int
    packet_mode: bool
    resend_lost: bool


class NicWorker(Worker):
    """See `Worker`."""

    engine: PacketEngine

    def __init__(self, order: Order) -> None:
        self.link: NicLink | None = None
        self.driver = Driver(next(iter(PROFILES.values())))  # nothing is placed before it is known better
        super().__init__(order)
        self.plugs = socket.socket(fileno=order.plugs)
        self.plugs.setblocking(False)
        self._watch(order.plugs, self._plugged)
        self.carried_at = 0.0
        self.paused = False

    def _engine(self, order: Order) -> SoftwareEngine:
        return PacketEngine(
            os.urandom,
            self.driver,
            queue_packets=order.queue_packets,
            queue_flows=order.queue_flows,
            accounts=self.accounts,
        )

    # Turns -----------------------------------------------------------------------------------------------

    def _deadlines(self) -> Sequence[float | None]:
        return *super()._deadlines(), self.driver.deadline()

    def _carry(self, table: Table, wait: float) -> None:
        self._linked(NicLink.push)
        dozing = self._linked(lambda link: link.rings.doze(), True)
        super()._carry(table, wait if dozing else 0.0)
        self._linked(lambda link: link.rings.wake())

    def _sleep(self, seconds: float) -> list[tuple[int, int]]:
        if self.table is not None:  # it has been slept already
            return super()._sleep(seconds)
        self._linked(NicLink.push)
        dozing = self._linked(lambda link: link.rings.doze(), True)
        ready = super()._sleep(seconds if dozing else 0.0)
        self._linked(lambda link: link.rings.wake())
        return ready

    def _tick(self, now: float) -> None:
        self._linked(lambda link: link.pull(now))
        self.driver.tick(now)
        self._emit(self.engine.released(now))
        super()._tick(now)
        self._pause()
        self._tell(now)

    def _emit(self, batch: Batch) -> None:
        super()._emit(batch)
        self._linked(NicLink.push)

    def _linked(self, work: Callable[[NicLink], object], otherwise: object = None) -> object:
        """Do something with the adapter, if there is one; if it turns out to be gone, go on without it."""
        if self.link is None:
            return otherwise
        try:
            return work(self.link)
        except Broken:
            self._unplug()
            return otherwise

    def _pause(self) -> None:
        """Leave packets in the device while the adapter has enough to do."""
        full = self.link is not None and self.link.full
        if full != self.paused:
            self.paused = full
            self.poll.modify(self.queue.fileno(), 0 if full else select.EPOLLIN)

    # Packets ---------------------------------------------------------------------------------------------

    def _frames(self, packets: Sequence[bytes]) -> list[bytes]:
        found: list[bytes] = []
        for whole, group in groupby(packets, key=lambda one: isinstance(one, Frame)):
            some = list(group)
            found += some if whole else super()._frames(some)
        return found

    def _handed_up(self, fileno: int, found: bytes | Packet | Datagram | None) -> None:
        if self.link is None or fileno != self.link.rings.fileno() or isinstance(found, tuple):
            super()._handed_up(fileno, found)
        elif found is None:
            self._linked(lambda link: link.rings.received.take(0))  # which says what is wrong
        else:
            now = clock.now()
            self._linked(lambda link: link.open(found, now))
            self._emit(self.engine.released(now))

    def _too_big(self, report: requests.TooBig) -> None:
        self.engine.path_mtu(address(report.destination), report.mtu, clock.now(), report.spi, None)

    # The adapter -----------------------------------------------------------------------------------------

    def _plugged(self) -> None:
        """A new adapter; it reads the sockets from now on."""
        try:
            data, filenos, _, _ = socket.recv_fds(self.plugs, 256, 8)
        except BlockingIOError:
            return
        if not data:
            self._unwatch(self.plugs.fileno())
            return
        message = msgspec.msgpack.decode(data, type=Plugged)
        self._unplug()
        memory, bell, other_bell, control = filenos
        plug = Plug(memory, bell, other_bell, message.slots, message.room)
        self.driver.capabilities = PROFILES[message.profile]
        native = self.table is not None
        # numbers and windows of the native loop are the ledger's, and cannot be lent
        self.driver.packet_mode = message.packet_mode and not native
        self.driver.resend_lost = message.resend_lost
        self.link = NicLink(plug, control, self.driver, self._open_arrived, self._too_big, native=native)
        for fileno in self._wire():
            self._unwatch(fileno)
        rings = self.link.rings
        if self.table is None or rings.native is None:
            self._watch(rings.fileno(), self._nothing)
        else:
            self.table.add_ring(rings.native.ring)
            self.poll.register(rings.fileno(), select.EPOLLIN)
        self._watch(self.link.control.fileno(), self._nothing)

    def _unplug(self) -> None:
        link, self.link = self.link, None
        if link is None:
            return
        self._unwatch(link.rings.fileno())
        self._unwatch(link.control.fileno())
        link.close()
        self.driver.dead(clock.now())
        self._watch_wire()

    def _open_arrived(self, arrived: Sequence[Arrived]) -> None:
        self._orders()
        self._open(arrived)

    def _nothing(self) -> None:
        """What is readable is looked at in each turn."""

    def _wire(self) -> list[int]:
        return [*self.natt.filenos(), *(fileno for fileno, _ in self.raw.receivers())]

    def _unwatch(self, fileno: int) -> None:
        watched = self.work.pop(fileno, None) is not None
        if watched or (self.table is not None and self.table.remove_source(fileno)):
            self.poll.unregister(fileno)

    # The daemon ------------------------------------------------------------------------------------------

    def _order(self, message: channel.Order) -> None:
        if not isinstance(message, channel.Place):
            super()._order(message)
            if isinstance(message, channel.Move):
                self.driver.moved(self.slots[message.slot], clock.now())
            return
        pair = self.slots.get(message.slot)
        if pair is None:
            return
        wanted = [
            direction
            for direction, asked in (
                (Direction.INBOUND, message.inbound),
                (Direction.OUTBOUND, message.outbound),
            )
            if asked
        ]
        now = clock.now()
        self._plugged()  # it was given before anything was placed in it
        if not message.hard:
            self.driver.displace(pair, wanted, now)
        elif self.link is not None:
            self.driver.place(pair, wanted, now)
        else:
            for direction in wanted:
                self._answer(channel.Came(message.slot, direction is Direction.INBOUND, "link"))

    def _tell(self, now: float) -> None:
        """What became of SAs, and now and then what the adapter carried."""
        for report in self.driver.reports:
            slot = self.accounts.slots.get(report.pair)
            if slot is not None:
                self._answer(channel.Came(slot, report.direction is Direction.INBOUND, report.what))
        self.driver.reports.clear()
        if now >= self.carried_at:
            self.carried_at = now + CARRIED_SECONDS
            pairs = [
                (self.accounts.slots[pair], *self.engine.carried(pair))
                for pair in self.driver.pairs
                if pair in self.accounts.slots
            ]
            slots, leases = self.accounts.slots, self.driver.leases
            granted = [(slots[pair], *lease) for pair, lease in leases.items() if pair in slots]
            self._answer(channel.Carried(pairs, dict(+self.driver.counters), granted))
