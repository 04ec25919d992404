"""Two hosts with an adapter each, and between host and adapter channels that keep what they are given: what
goes on when is a test's choice, as long as each channel keeps its own order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from random import Random
from typing import Any, TypeVar

from support.adapter import PORT, address
from support.engines import entropy
from support.require import require
from support.tap import WireTap

from offload import vnet
from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES, Direction
from offload.nic.descriptors import Completion, Transmit
from offload.nic.driver import Driver
from offload.nic.packet_engine import PacketEngine
from offload.nic.requests import AddSa, Answer, Link, Request
from offload.outer import Arrived, CryptoStatus, Outgoing
from offload.sender import Sender
from offload.software import Batch, Frame
from sadb.sa import Flow, SaPair

Value = TypeVar("Value")


class CountingEngine(PacketEngine):
    """Counts octets that software had to do with, by pair: in, out."""

    def __init__(self, random: Callable[[int], bytes], driver: Driver, **options: Any) -> None:
        super().__init__(random, driver, **options)
        self.soft: dict[SaPair, list[int]] = {}

    def octets(self, pair: SaPair) -> tuple[int, int]:
        """All of them so far: in, out."""
        return pair.inbound.usage.octets, pair.outbound.usage.octets

    def _protect(self, sender: Sender, packet: bytes, port: bytes, now: float) -> Outgoing:
        made = super()._protect(sender, packet, port, now)
        if sender is not self._framers.get(sender.pair):
            self.soft.setdefault(sender.pair, [0, 0])[1] += len(packet)
        return made

    def _send_train(self, packets: Sequence[bytes], now: float, batch: Batch) -> bool:
        before = {pair: self.octets(pair)[1] for pair in self._senders}
        done = super()._send_train(packets, now, batch)
        for pair, octets in before.items() if done else ():
            self.soft.setdefault(pair, [0, 0])[1] += self.octets(pair)[1] - octets
        return done

    def _open(self, arrived: Arrived, data: bytes, now: float, batch: Batch) -> None:
        pair = self._spis.get(arrived.spi)
        before = self.octets(pair)[0] if pair else 0
        super()._open(arrived, data, now, batch)
        if pair and not _opened(arrived):
            self.soft.setdefault(pair, [0, 0])[0] += self.octets(pair)[0] - before


def _opened(arrived: Arrived) -> bool:
    """Whether an adapter says so."""
    return arrived.mark is not None and arrived.mark.status is CryptoStatus.SUCCESS


def native_engine(random: Callable[[int], bytes], driver: Driver) -> CountingEngine:
    """The same with the native loop."""
    require(bool(find_spec("offload._native")), "the native loop")
    from support.native_adapter import NativeHybridEngine

    class NativeCountingEngine(NativeHybridEngine, CountingEngine):
        """What the loop does with an arrival is the adapter's work if that has a mark, and else software's;
        all that it seals is."""

        soft_now = False
        believed = 0  # octets of packets that an adapter opened and Python did not see

        def octets(self, pair: SaPair) -> tuple[int, int]:
            slot = self.native.slots.get(pair)
            if slot is None:
                return super().octets(pair)
            return self.table.read(slot, True)[0], self.table.read(slot, False)[0]

        def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
            batch = Batch()
            for one in arrived:
                self.soft_now = not _opened(one)
                self._add(batch, super().inbound([one], now))
            return batch

        def _receive(self) -> tuple[int, bytes | tuple[int, bytes] | None]:
            return self._counted(super()._receive, 0, self.soft_now)

        def admitted(self, spi: int, packet: bytes, now: float) -> Batch:
            assert self.soft_now, "a packet of an adapter was taken by halves"
            return self._counted(
                lambda: super(NativeCountingEngine, self).admitted(spi, packet, now), 0, True
            )

        def _seal(self, frame: bytes) -> list[tuple[int, int, int, bool, bytes]] | None:
            return self._counted(lambda: super(NativeCountingEngine, self)._seal(frame), 1, True)

        def _counted(self, work: Callable[[], Value], way: int, soft: bool) -> Value:
            before = {pair: self.octets(pair)[way] for pair in self.native.slots}
            found = work()
            for pair, octets in before.items():
                some = self.octets(pair)[way] - octets
                if soft:
                    self.soft.setdefault(pair, [0, 0])[way] += some
                else:
                    self.believed += some
            return found

    return NativeCountingEngine(random, driver=driver)  # type: ignore[call-arg]


class Station:
    """One host. `wire(packets)` gets what leaves; `delivered` is what came out, `gone` counts packets that
    were in the receive ring of an adapter that crashed, `frames` what an adapter put together, `slow`
    additions that took their time."""

    def __init__(
        self, seed: int, profile: str, tap: WireTap, *, packet_mode: bool = False, native: bool = False
    ) -> None:
        capabilities = PROFILES[profile]
        self.driver = Driver(capabilities, packet_mode=packet_mode)
        make = native_engine if native else CountingEngine
        self.engine = make(entropy(bytes([seed % 256])), self.driver)
        self.adapter = Adapter(capabilities, Random(seed).randbytes, address)
        self.delivered: Counter[bytes] = Counter()
        self.gone = self.frames = self.slow = 0
        self.now = 1.0
        self.wire: Callable[[list[Arrived]], None] = lambda arrived: None
        self._tap = tap
        self.requests: deque[Request] = deque()
        self.late: deque[tuple[float, AddSa]] = deque()
        self.answers: deque[Answer] = deque()
        self.ring: deque[Transmit] = deque()
        self.completions: deque[Completion] = deque()
        self.arrivals: deque[Arrived] = deque()
        self.received: deque[Arrived] = deque()

    # What the host does ----------------------------------------------------------------------------------

    def route(self, flow: Flow) -> None:
        self.engine.route((flow,))

    def install(self, pair: SaPair) -> None:
        self.engine.install(pair)
        self.out(self.engine.released(self.now))

    def remove(self, pair: SaPair) -> None:
        self.check_octets(pair)
        self.engine.remove(pair)
        self.out(self.engine.released(self.now))

    def send(self, packets: Sequence[bytes]) -> None:
        self.out(self.engine.outbound(packets, self.now))

    def send_frames(self, frames: Sequence[bytes]) -> None:
        self.out(self.engine.frames(frames, self.now))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.driver.tick(self.now)
        self.out(self.engine.released(self.now))

    def out(self, batch: Batch) -> None:
        """Software's packets leave before the ring is told."""
        for one in batch.local:
            self.frames += isinstance(one, Frame)
            self.delivered.update(vnet.packets(one) if isinstance(one, Frame) else [bytes(one)])
        if batch.wire:
            self.wire(self._tap.see(batch.wire))
        self.requests += self.driver.requests
        self.ring += self.driver.ring
        self.driver.requests.clear()
        self.driver.ring.clear()
        reports, self.driver.reports = self.driver.reports, []
        for report in reports:  # whoever was refused, or is to leave, does so with both directions
            if report.what not in ("placed", "software"):
                self.driver.displace(report.pair, Direction, self.now)
        if reports:
            self.out(self.engine.released(self.now))

    # What goes on between it and its adapter -------------------------------------------------------------

    def do_requests(self, count: int) -> None:
        while self.late and self.late[0][0] <= self.now:
            self._answer(self.late.popleft()[1])
        for one in _taken(self.requests, count):
            if isinstance(one, AddSa) and self.adapter.faults.slow_add:
                self.slow += 1
                self.late.append((self.now + self.adapter.faults.slow_add, one))
            else:
                self._answer(one)

    def _answer(self, request: Request) -> None:
        answer = self.adapter.request(PORT, request)
        if answer is not None:
            self.answers.append(answer)

    def do_answers(self, count: int) -> None:
        for one in _taken(self.answers, count):
            self.driver.answered(one, self.now)
        self.out(self.engine.released(self.now))

    def do_ring(self, count: int) -> None:
        wire, done = self.adapter.transmit(PORT, _taken(self.ring, count))
        self.completions += done
        if wire:
            self.wire(self._tap.see(wire))

    def do_completions(self, count: int) -> None:
        self.driver.completed(_taken(self.completions, count), self.now)
        self.out(self.engine.released(self.now))

    def do_arrivals(self, count: int) -> None:
        self.received += self.adapter.receive(PORT, _taken(self.arrivals, count))

    def do_received(self, count: int) -> None:
        found = _taken(self.received, count)
        self.do_answers(len(self.answers))  # what was said before these were marked
        self.out(self.engine.inbound(found, self.now))
        if not self.received:
            self.driver.settled()

    STEPS = (do_requests, do_answers, do_ring, do_completions, do_arrivals, do_received)

    def settle(self) -> bool:
        """Everything on its way gets there; whether there was anything."""
        queues = (self.requests, self.answers, self.ring, self.completions, self.arrivals, self.received)
        busy = any(queues) or bool(self.late)
        for step in self.STEPS:
            step(self, 1 << 20)
        return busy

    # What happens to it ----------------------------------------------------------------------------------

    def link(self, up: bool) -> None:
        self.adapter.up = up
        if not up:
            self.adapter.reset()
        self.answers.append(Link(up))

    def reset(self) -> None:
        self.adapter.reset()
        self.answers.append(Link(False))

    def crash(self) -> None:
        """The process is gone with all that it had, and so are the rings."""
        for one in self.received:
            several = (
                len(one.mark.numbers) if one.mark else -(-len(one.data) // (one.segment or len(one.data)))
            )
            self.gone += several or 1
        for queue in (self.requests, self.late, self.answers, self.ring, self.completions, self.received):
            queue.clear()
        self.adapter.reset()
        self.driver.dead(self.now)
        self.out(self.engine.released(self.now))

    # What holds ------------------------------------------------------------------------------------------

    def check_octets(self, pair: SaPair) -> None:
        """Octets of an SA are those of both planes."""
        soft, hard = self.engine.soft.get(pair, [0, 0]), self.engine.carried(pair)
        assert pair.inbound.usage.octets == soft[0] + hard[0]
        assert pair.outbound.usage.octets == soft[1] + hard[2]

    def check_slots(self) -> None:
        """When nothing is on its way: the adapter has the SAs that the driver believes it has, no others."""
        entries = self.adapter.table.entries()
        lanes = {lane.handle for lane in self.driver.lanes.values()}
        assert {one.handle for one in entries} == lanes | set(self.driver._handles)
        assert len(entries) == self.adapter.used(PORT)
        inbound = {one.sa.destination for one in entries if one.sa.inbound}
        assert self.adapter.table.addresses == len(inbound)


def _taken(queue: deque[Value], count: int) -> list[Value]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]
