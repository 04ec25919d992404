"""The engine with its native loop, driven without sockets: what a worker does, packet by packet."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from offload import ip, vnet
from offload._native import REASONS, Table
from offload.accounts import NativeAccounts
from offload.ledger import INBOUND, LAST, NUMBER, OCTETS, PACKETS, WORDS, Ledger
from offload.outer import Arrived, Outgoing
from offload.software import Batch, SoftwareEngine
from sadb.address import Path, SocketAddress
from sadb.sa import SaPair, SecurityAssociation

SLOTS = 4096
_ledger = Ledger(SLOTS)  # one for all: engines that are forgotten would keep their descriptors for long
_slots = itertools.cycle(range(SLOTS))
PLAIN = bytes(10)  # a virtio_net_hdr that asks for nothing


class NativeEngine(SoftwareEngine):
    """Each packet goes to the loop first. The ledger and the objects of the pairs are kept equal, so that
    tests may look at and change the latter."""

    def __init__(self, random: Callable[[int], bytes], **options: Any) -> None:
        self.ledger = _ledger
        self.table = Table(self.ledger.memory, random(16))
        self.native = NativeAccounts(self.table, lambda sa: (-1, -1, True))
        self.passed = 0  # packets that needed no Python
        super().__init__(random, accounts=self.native, **options)

    def install(self, pair: SaPair) -> None:
        if pair not in self.native.slots:
            slot = self.native.slots[pair] = next(_slots)
            self.ledger.begin(slot, pair)
            self._push()
        try:
            super().install(pair)
        except Exception:
            self.native.slots.pop(pair, None)
            raise

    @property
    def counters(self) -> Mapping[str, int]:
        return Counter(super().counters) + Counter(dict(zip(REASONS, self.table.drops(), strict=True)))

    def outbound(self, packets: Sequence[bytes], now: float) -> Batch:
        return self.frames([PLAIN + packet for packet in packets], now)

    def frames(self, frames: Sequence[bytes], now: float) -> Batch:
        self._push()
        batch = super().frames([], now)
        self._pull(now)
        for frame in frames:
            self._push()
            trains = self._seal(frame)
            if trains is None:
                rest = super().frames([frame], now)
                batch.wire += rest.wire
                batch.local += rest.local
            else:
                self.passed += 1
                batch.wire += [out for train in trains for out in self._outgoing(*train)]
            self._pull(now)
        return batch

    def _seal(self, frame: bytes) -> list[tuple[int, int, int, bool, bytes]] | None:
        return self.table.seal(frame)

    def _outgoing(self, slot: int, segment: int, traffic: int, whole: bool, data: bytes) -> list[Outgoing]:
        pair = next(pair for pair, at in self.native.slots.items() if at == slot)
        sa = pair.outbound
        if sa.encapsulation is None:
            return [Outgoing(data)]
        path = Path(
            SocketAddress(sa.source, sa.encapsulation[0]), SocketAddress(sa.destination, sa.encapsulation[1])
        )
        return [Outgoing(data, path, traffic, segment if len(data) > segment else 0, whole)]

    def inbound(self, arrived: Sequence[Arrived], now: float) -> Batch:
        batch = Batch()
        for one in arrived:
            if one.protocol == ip.ESP:
                self._train(one, now, batch)
            else:
                self._push()
                self._add(batch, super().inbound([one], now))
                self._pull(now)
        return batch

    def _train(self, one: Arrived, now: float, batch: Batch) -> None:
        """What is handed up is dealt with before the loop goes on with what is behind it."""
        at, udp = 0, one.path is not None
        while at == 0 or at < len(one.data):
            self._push()
            found, used = self.table.open(one.data[at:], one.segment, one.header, one.traffic_class, udp)
            for each in found:
                if isinstance(each, bytes):
                    self.passed += 1
                    batch.local += vnet.packets(each)
                elif len(each) == 2:
                    self._add(batch, self.admitted(*each, now))
                else:
                    self._add(batch, super().inbound([replace(one, data=each[0], segment=0)], now))
            self._pull(now)
            at += max(1, used)

    @staticmethod
    def _add(batch: Batch, found: Batch) -> None:
        batch.wire += found.wire
        batch.local += found.local

    def _push(self) -> None:
        for pair, slot in self.native.slots.items():
            for sa, at in ((pair.outbound, slot * WORDS), (pair.inbound, slot * WORDS + INBOUND)):
                words = self.ledger.words
                words[at + OCTETS], words[at + PACKETS] = sa.usage.octets, sa.usage.packets
                words[at + NUMBER] = _number(sa)

    def _pull(self, now: float) -> None:
        for pair, slot in self.native.slots.items():
            for sa, at in ((pair.outbound, slot * WORDS), (pair.inbound, slot * WORDS + INBOUND)):
                words = self.ledger.words
                sa.usage.octets, sa.usage.packets = words[at + OCTETS], words[at + PACKETS]
                if words[at + LAST]:
                    sa.usage.last, words[at + LAST] = now, 0
                if sa.replay is not None:
                    sa.replay.highest = words[at + NUMBER]
                elif not sa.inbound:
                    sa.sequence = words[at + NUMBER]


class WorkerEngine(NativeEngine):
    """One of several workers: the state of its only pair is in an account of theirs, and nowhere else."""

    def __init__(self, random: Callable[[int], bytes], slot: int, **options: Any) -> None:
        super().__init__(random, **options)
        self._slot = slot

    @staticmethod
    def account() -> int:
        """A new one."""
        return next(_slots)

    def install(self, pair: SaPair) -> None:
        self.native.slots[pair] = self._slot
        SoftwareEngine.install(self, pair)

    def _push(self) -> None:
        pass

    def _pull(self, now: float) -> None:
        pass


def _number(sa: SecurityAssociation) -> int:
    return sa.replay.highest if sa.replay is not None else sa.sequence
