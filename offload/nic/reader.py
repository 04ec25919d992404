"""Shell. The reader of packets received that is in C: the native loop takes them from it, and what it hands
up becomes a value here. See `offload.nic.rings.Reader`, whose place it takes in a port."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

from offload._native import Ring
from offload.nic.slots import Arrivals, Broken
from offload.outer import Arrived

MOUTHFUL: Final = 256 << 10  # octets that end a batch, as in `offload.nic.rings`


class NativeReader:
    """Packets received; `ring` is for the native loop."""

    waits: Final = True

    def __init__(
        self, memory: mmap.mmap, starts: Sequence[int], slots: int, room: int, bells: tuple[int, int]
    ) -> None:
        """`starts`: where the rings begin, in the order of `offload.nic.rings.HostPort`; `slots` and `room`:
        the size of each; `bells`: ours and the other side's."""
        transmit, completed, received = starts
        self.ring = ring = Ring(memory, transmit, completed, received, slots, room, *bells)
        self.tell, self.awaited, self.stirred = ring.tell, ring.awaited, ring.stirred
        self.sleep, self.wake, self.close = ring.sleep, ring.wake, ring.close
        self._codec = Arrivals()

    @property
    def moved(self) -> bool:
        """See `offload.nic.rings.Reader`."""
        return self.ring.moved

    def take(self, limit: int) -> list[Arrived]:
        """See `offload.nic.rings.Reader`; raises `Broken` also when the native loop found that it is."""
        found = [self.value(one) for one in self.ring.take(limit, MOUTHFUL)]
        if self.ring.broken:
            raise Broken("what is in the ring cannot be")
        return found

    def value(self, octets: bytes) -> Arrived:
        """What was handed up, slot first; raises `Broken`."""
        at = 0

        def cut(length: int) -> bytes:
            nonlocal at
            at += length
            return octets[at - length : at]

        return self._codec.decode(cut(self._codec.size), cut)
