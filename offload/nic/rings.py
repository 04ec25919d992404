"""Shell. Rings in memory that a host's data plane and an adapter share: descriptors to send, completions and
packets received.

    host, adapter = wire()       two plugs: descriptors to inherit, of one memory and two doorbells
    port = HostPort(host)        port = AdapterPort(adapter), in another process
    port.transmit.put(…)         port.transmit.take(…)
    port.publish()               once for a batch: all that was put and taken
    if port.doze():              nothing to do: the other side rings when there is
        poll(port.fileno())
    port.wake()

A ring has one writer and one reader, each in one thread: fixed descriptors in slots, and a room used in
circles for octets of any length, in the order of the slots. So the reader knows where a buffer begins, and
takes nothing but its length from the memory; each word is written by one side:

    0     head: descriptors ever put; whether the writer waits for room
    128   tail: descriptors ever taken; whether the reader waits for descriptors
    256   slots, then room

A count is a 64-bit word, which CPython reads and writes with one instruction ("Q" of a memoryview). Three
things must not be reordered: octets are there before the count that tells of them, they are looked at after
it, and whoever goes to sleep has said so before he looks a last time, while the other has told before he
looks who sleeps. The last takes a full barrier, also on x86. Giving up a lock and taking it again is one (a
locked instruction there, a release and then an acquire on ARM), for less than the system call that it saves.

The doorbells are pipes, not eventfds: the other end has flags of its own, so that nobody can make a write
here wait; and the end of a process is seen. A side that is awake is not rung for.

The other process may have been taken over. What it may do is garble packets or be silent: sizes come from
the plug, the memory is sealed against becoming shorter, and what the memory says is checked where it is
read."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from offload.nic.slots import Arrivals, Broken, Codec, Completions, Octets, Transmits

if TYPE_CHECKING:
    from offload.nic.reader import NativeReader
SLOTS: Final = 512
ROOM: Final = 8 << 20  # octets; a ring has no more in it
MOUTHFUL: Final = 256 << 10  # octets that end a batch: memory for more at once costs more than the copy

_HEAD, _WRITER_WAITS, _TAIL, _READER_WAITS = 0, 1, 16, 17  # words of a ring
_SLOTS_AT: Final = 256
_PAGE: Final = 4096

Value = TypeVar("Value")


# Rings ---------------------------------------------------------------------------------------------------


class _Region(NamedTuple):
    """Where in the memory a ring is."""

    memory: mmap.mmap
    words: memoryview
    fence: Callable[[], None]
    start: int
    slots: int
    room: int


class _Side(Generic[Value]):
    """Writer or reader of a ring."""

    waits: bool
    """Whether something that the other side does is waited for."""

    def __init__(
        self, region: _Region, codec: Codec[Value], own: int, flag: int, other: int, bell: int
    ) -> None:
        self._memory, self._words, self._fence, start, self._slots, self._room = region
        self._encode, self._decode = codec.encode, codec.decode
        self._size, self._stride = codec.size, codec.stride
        self._slots_at = start + _SLOTS_AT
        self._room_at = self._at = self._slots_at + self._slots * codec.stride
        self._room_end = self._room_at + self._room
        self._own, self._flag, self._other, self._bell = (
            start // 8 + word for word in (own, flag, other, bell)
        )
        self._told = 0
        self.count = 0
        """Descriptors put or taken so far."""

    @property
    def moved(self) -> bool:
        """Whether there is something to tell."""
        return self.count != self._told

    def tell(self) -> None:
        """How far this side is; a fence must have come before."""
        self._told = self._words[self._own] = self.count

    def awaited(self) -> bool:
        """Whether the other side sleeps until it is told."""
        return bool(self._words[self._bell])

    def sleep(self) -> None:
        """Ask to be rung for; a fence must follow."""
        self._words[self._flag] = 1

    def wake(self) -> None:
        """Ask no more."""
        self._words[self._flag] = 0


class Writer(_Side[Value]):
    """The side that puts."""

    def __init__(self, region: _Region, codec: Codec[Value]) -> None:
        super().__init__(region, codec, _HEAD, _WRITER_WAITS, _TAIL, _READER_WAITS)
        self.waits = False
        self.full = 0
        """Values that found no place."""
        self._taken = 0  # descriptors that the reader told of
        self._free = self._room
        self._sizes = [0] * self._slots

    def put(self, one: Value, *rest: Octets) -> bool:
        """Put a value, and octets that follow its data (to spare a join); whether there was a place. The
        other side sees it with the next `publish`. Raises `Broken`; `ValueError` when it is larger than the
        room, and `struct.error` or `OverflowError` when a number does not fit its field."""
        slot, parts, size = self._encode(one, rest)
        count = self.count
        if (count - self._taken == self._slots or size > self._free) and not self._reclaimed(size):
            return False
        index = count % self._slots
        at = self._slots_at + index * self._stride
        self._memory[at : at + len(slot)] = slot
        for part in parts:
            if part:
                self._lay(part)
        self._sizes[index] = size
        self._free -= size
        self.count = count + 1
        return True

    def _lay(self, part: Octets) -> None:
        at = self._at
        end = at + len(part)
        if end < self._room_end:
            self._memory[at:end] = part
            self._at = end
            return
        view, cut = memoryview(part), self._room_end - at
        self._memory[at : self._room_end] = view[:cut]
        self._at = self._room_at + len(part) - cut
        self._memory[self._room_at : self._at] = view[cut:]

    def _reclaimed(self, size: int) -> bool:
        """Whether there is a place after a look at what the reader has taken."""
        if size > self._room:
            raise ValueError("larger than the room of the ring")
        taken = self._words[self._other]
        if not self._taken <= taken <= self._told:
            raise Broken("what was never put has been taken")
        self._fence()
        self._free += sum(self._sizes[number % self._slots] for number in range(self._taken, taken))
        self._taken = taken
        self.waits = self.count - taken == self._slots or size > self._free
        self.full += self.waits
        return not self.waits

    def wake(self) -> None:
        """See `_Side`. Who still has something to put tries again."""
        super().wake()
        self.waits = False

    def stirred(self) -> bool:
        """Whether something was taken since a value found no place."""
        return bool(self._words[self._other] != self._taken)


class Reader(_Side[Value]):
    """The side that takes."""

    def __init__(self, region: _Region, codec: Codec[Value]) -> None:
        super().__init__(region, codec, _TAIL, _READER_WAITS, _HEAD, _WRITER_WAITS)
        self.waits = True
        self._left = 0

    def take(self, limit: int) -> list[Value]:
        """Up to `limit` values, oldest first, or fewer if they are long; none when the ring is empty. The
        other side sees that they are gone with the next `publish`. Raises `Broken`; then nothing of the batch
        is to be had."""
        first = self.count
        waiting = self._words[self._other] - first
        if not waiting:
            return []
        if not 0 < waiting <= self._told - first + self._slots:
            raise Broken("more has been put than there are slots")
        self._fence()
        self._left = self._room
        enough = self._room - MOUTHFUL
        memory, decode, cut, size, found = self._memory, self._decode, self._cut, self._size, []
        for number in range(first, first + min(limit, waiting)):
            at = self._slots_at + number % self._slots * self._stride
            found.append(decode(memory[at : at + size], cut))
            if self._left <= enough:
                break
        self.count += len(found)
        return found

    def _cut(self, length: int) -> bytes:
        """The next octets of the room. One batch cannot have more of them than there are."""
        self._left -= length
        if self._left < 0:
            raise Broken("more octets than the room has")
        at = self._at
        end = at + length
        if end < self._room_end:
            self._at = end
            return self._memory[at:end]
        self._at = self._room_at + end - self._room_end
        return self._memory[at : self._room_end] + self._memory[self._room_at : self._at]

    def stirred(self) -> bool:
        """Whether there is something to take."""
        return bool(self._words[self._other] != self.count)


# Ports ---------------------------------------------------------------------------------------------------


class Plug(msgspec.Struct, frozen=True):
    """One end of a port: descriptors to inherit or to pass, and the sizes."""

    memory: int
    bell: int
    """Readable when the other side rang."""
    other_bell: int
    slots: int
    room: int

    def filenos(self) -> tuple[int, int, int]:
        """The descriptors."""
        return self.memory, self.bell, self.other_bell

    def close(self) -> None:
        """Close the descriptors here, once another process has them: as long as they are open, neither side
        sees the other's end."""
        for fileno in self.filenos():
            os.close(fileno)


def wire(slots: int = SLOTS, room: int = ROOM) -> tuple[Plug, Plug]:
    """Plugs of the host and of the adapter: new, empty rings of so many descriptors, and octets for each
    direction. Raises `OSError`; of the memory only what is used is taken."""
    with ExitStack() as opened:

        def kept(fileno: int) -> int:
            opened.callback(os.close, fileno)
            return fileno

        memory = kept(os.memfd_create("ikd-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(memory, _layout(slots, room)[1])
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        again = kept(fcntl.fcntl(memory, fcntl.F_DUPFD_CLOEXEC, 0))
        for_host, by_adapter = map(kept, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        for_adapter, by_host = map(kept, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        opened.pop_all()
    return (
        Plug(memory, for_host, by_host, slots, room),
        Plug(again, for_adapter, by_adapter, slots, room),
    )


def _layout(slots: int, room: int) -> tuple[list[tuple[int, int]], int]:
    """Where each ring begins and what room it has, and where the last one ends."""
    found, at = [], 0
    for stride, octets in ((Transmits.stride, room), (Completions.stride, 0), (Arrivals.stride, room)):
        found.append((at, octets))
        at += -(-(_SLOTS_AT + slots * stride + octets) // _PAGE) * _PAGE
    return found, at


class _Port:
    """All rings of one side, and its doorbell."""

    _sides: tuple[Writer[Any] | Reader[Any] | NativeReader, ...]

    def __init__(self, plug: Plug) -> None:
        """Takes the plug's descriptors over. Raises `OSError`, and `Broken` when its memory is not what the
        plug says; then they are still the caller's."""
        places, end = _layout(plug.slots, plug.room)
        sealed = fcntl.fcntl(plug.memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        if not sealed or os.fstat(plug.memory).st_size != end:
            raise Broken("not the memory of these rings")
        self._plug = plug
        self._memory = mmap.mmap(plug.memory, end)
        self._words = memoryview(self._memory).cast("Q")
        lock = Lock()
        lock.acquire()
        self._release, self._acquire = lock.release, lock.acquire
        self._regions = [
            _Region(self._memory, self._words, self._fence, start, plug.slots, room) for start, room in places
        ]

    def fileno(self) -> int:
        """Readable when the other side rang or is gone."""
        return self._plug.bell

    def publish(self) -> None:
        """Tell of all that was put and taken, and wake the other side if it waits for that. Raises
        `Broken`."""
        moved = [one for one in self._sides if one.moved]
        if not moved:
            return
        self._fence()
        for one in moved:
            one.tell()
        self._fence()
        if any(one.awaited() for one in moved):
            self._ring()

    def doze(self) -> bool:
        """Publish, and ask to be rung for; whether to sleep until the doorbell is readable. If not, there is
        something to take, or perhaps a place for what found none. Then, and after any sleep, `wake`. Raises
        `Broken`."""
        self.publish()
        waiting = [one for one in self._sides if one.waits]
        for one in waiting:
            one.sleep()
        self._fence()
        return not any(one.stirred() for one in waiting)

    def wake(self) -> None:
        """Not to be rung for any more; what found no place is to be tried again. Raises `Broken` when the
        other side is gone."""
        for one in self._sides:
            one.wake()
        try:
            if not os.read(self._plug.bell, _PAGE):
                raise Broken("the other side is gone")
        except BlockingIOError:  # something else ended the sleep
            pass

    def close(self) -> None:
        """Give everything back; the other side sees it."""
        self._words.release()
        self._memory.close()
        self._plug.close()

    def _fence(self) -> None:
        """A full barrier."""
        self._release()
        self._acquire()

    def _ring(self) -> None:
        try:
            os.write(self._plug.other_bell, b"\0")
        except BlockingIOError:  # it has not heard a great many
            pass
        except BrokenPipeError:
            raise Broken("the other side is gone") from None


class HostPort(_Port):
    """The side of the data plane."""

    def __init__(self, plug: Plug, *, native: bool = False) -> None:
        """With `native` a reader in C has the packets received, for the native loop to take them from."""
        super().__init__(plug)
        first, second, third = self._regions
        self.transmit = Writer(first, Transmits())
        self.completed = Reader(second, Completions())
        self.native: NativeReader | None = None
        if native:
            from offload.nic.reader import NativeReader

            starts, bells = [one.start for one in self._regions], (plug.bell, plug.other_bell)
            self.native = NativeReader(self._memory, starts, plug.slots, plug.room, bells)
        self.received = self.native or Reader(third, Arrivals())
        self._sides = self.transmit, self.completed, self.received

    def close(self) -> None:
        if self.native is not None:  # it has the memory, too
            self.native.close()
        super().close()


class AdapterPort(_Port):
    """The side of the adapter."""

    def __init__(self, plug: Plug) -> None:
        super().__init__(plug)
        first, second, third = self._regions
        self.transmit = Reader(first, Transmits())
        self.completed = Writer(second, Completions())
        self.received = Writer(third, Arrivals())
        self._sides = self.transmit, self.completed, self.received
