"""How the values of `offload.nic.descriptors` and packets received lie in the slots of a ring. Pure.

Host byte order. A slot has the fields of fixed size and the lengths of the others, whose octets lie in the
ring's room (see `offload.nic.rings`). What is read was written by another process and may be anything: a
value that cannot be is `Broken`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Final, Protocol, TypeVar

from offload.channel import address
from offload.nic.descriptors import Completion, Task, Transmit
from offload.outer import Arrived, CryptoStatus, Mark
from sadb.address import Address, Path, SocketAddress

ADDRESSES: Final = 8192  # addresses kept; a stranger can vary them, so the table is emptied when full

_END: Final = Struct("=BH16s")  # IP version (0: nothing), port, address
_NO_END: Final = bytes(_END.size)
_TRANSMIT: Final = Struct("=QQQIIHBB19s19s")
_TRANSMITTED: Final = Struct("=QQQIIHBB38s")
_ARRIVED: Final = Struct("=IIIQIHBBBB19s19s19s19s")
_ARRIVAL: Final = Struct("=IIIQIHBBBB76s")
_COMPLETION: Final = Struct("=Q?Q")
_MARKED, _EVICT, _JUDGED = 1, 2, 4
_WHOLE: Final = 0x80  # beside the task: don't fragment

_KINDS: Final = {int(one): one for one in Task}
_STATUSES: Final = {int(one): one for one in CryptoStatus}

Octets = bytes | memoryview
Cut = Callable[[int], bytes]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Broken(Exception):
    """The other side is gone, or what it left in the memory cannot be. The port is of no more use."""


class Codec(Protocol[Value]):
    """How a value lies in a slot, and its long parts in the room."""

    @property
    def stride(self) -> int:
        """Octets from slot to slot."""

    @property
    def size(self) -> int:
        """Octets of a slot that say something."""

    def encode(self, one: Value, rest: Sequence[Octets]) -> tuple[bytes, Sequence[Octets], int]:
        """What goes into the slot, what into the room, and how many octets that is; raises `struct.error` or
        `OverflowError` when a number does not fit its field."""

    def decode(self, slot: bytes, cut: Cut) -> Value:
        """The value; `cut` takes so many octets out of the room. Raises `Broken`."""


class _Names:
    """Address objects and their octets: making either out of the other costs as much as all the rest of a
    descriptor. Objects are known by identity, for hashing an address costs the same; being in the table keeps
    them alive."""

    def __init__(self) -> None:
        self._octets: dict[int, tuple[Address | SocketAddress, bytes]] = {}
        self._paths: dict[bytes, Path | None] = {}
        self._ends: dict[bytes, tuple[Address, Address, Path | None]] = {}

    def octets(self, one: Address | SocketAddress) -> bytes:
        """An address, with port or without, in 19 octets."""
        found = self._octets.get(id(one))
        if found is None:
            where, port = (one.address, one.port) if isinstance(one, SocketAddress) else (one, 0)
            found = one, _END.pack(where.version, port, where.packed)
            _keep(self._octets, id(one), found)
        return found[1]

    def path(self, octets: bytes) -> Path | None:
        """What two ends are; raises `Broken`."""
        try:
            return self._paths[octets]
        except KeyError:
            pass
        path = _path(octets)
        _keep(self._paths, octets, path)
        return path

    def ends(self, octets: bytes) -> tuple[Address, Address, Path | None]:
        """What source, destination and the two ends of a path are; raises `Broken`."""
        found = self._ends.get(octets)
        if found is None:
            both = _path(octets[: 2 * _END.size])
            if both is None:
                raise Broken("a packet from nowhere")
            found = both.local.address, both.peer.address, _path(octets[2 * _END.size :])
            _keep(self._ends, octets, found)
        return found


def _keep(table: dict[Key, Value], key: Key, value: Value) -> None:
    if len(table) >= ADDRESSES:
        table.clear()
    table[key] = value


def _path(octets: bytes) -> Path | None:
    local, peer = _end(octets[: _END.size]), _end(octets[_END.size :])
    if local and peer:
        return Path(local, peer)
    if local or peer:
        raise Broken("half a path")
    return None


def _end(octets: bytes) -> SocketAddress | None:
    version, port, packed = _END.unpack(octets)
    if version == 4:
        return SocketAddress(address(packed[:4]), port)
    if version == 6:
        return SocketAddress(address(packed), port)
    if version:
        raise Broken("an address of no IP version")
    return None


class Transmits:
    """Codec of `Transmit`; what is put after it follows its data."""

    stride: Final = 128
    size: Final = _TRANSMIT.size

    def __init__(self) -> None:
        self._names = _Names()

    def encode(self, one: Transmit, rest: Sequence[Octets]) -> tuple[bytes, Sequence[Octets], int]:
        """See `Codec`."""
        path, octets = one.path, self._names.octets
        parts = (one.data, *rest)
        size = sum(map(len, parts))
        slot = _TRANSMIT.pack(
            one.ident,
            one.handle,
            one.number,
            size,
            one.at,
            one.segment,
            one.task | _WHOLE * one.dont_fragment,
            one.traffic_class,
            octets(path.local) if path else _NO_END,
            octets(path.peer) if path else _NO_END,
        )
        return slot, parts, size

    def decode(self, slot: bytes, cut: Cut) -> Transmit:
        """See `Codec`."""
        ident, handle, number, size, at, segment, kind, traffic, ends = _TRANSMITTED.unpack(slot)
        known = _KINDS.get(kind & ~_WHOLE)
        if known is None:
            raise Broken("a descriptor of no kind")
        path, whole = self._names.path(ends), bool(kind & _WHOLE)
        return Transmit(ident, handle, known, cut(size), at, path, traffic, segment, number, whole)


class Arrivals:
    """Codec of `Arrived`; what is put after it follows its data."""

    stride: Final = 128
    size: Final = _ARRIVED.size

    def __init__(self) -> None:
        self._names = _Names()

    def encode(self, one: Arrived, rest: Sequence[Octets]) -> tuple[bytes, Sequence[Octets], int]:
        """See `Codec`."""
        path, octets, mark = one.path, self._names.octets, one.mark
        numbers = array("I", mark.numbers).tobytes() if mark and mark.numbers else b""
        parts = (one.header, numbers, one.data, *rest)
        size = sum(map(len, parts))
        slot = _ARRIVED.pack(
            len(one.header),
            len(numbers),
            size - len(one.header) - len(numbers),
            mark.handle if mark else 0,
            mark.high if mark else 0,
            one.segment,
            one.protocol,
            one.traffic_class,
            mark.status if mark else 0,
            _MARKED | _EVICT * mark.evict | _JUDGED * mark.judged if mark else 0,
            octets(one.source),
            octets(one.destination),
            octets(path.local) if path else _NO_END,
            octets(path.peer) if path else _NO_END,
        )
        return slot, parts, size

    def decode(self, slot: bytes, cut: Cut) -> Arrived:
        """See `Codec`."""
        (
            header,
            numbers,
            size,
            handle,
            high,
            segment,
            protocol,
            traffic,
            status,
            flags,
            ends,
        ) = _ARRIVAL.unpack(slot)
        source, destination, path = self._names.ends(ends)
        before, listed, mark = cut(header) if header else b"", cut(numbers) if numbers else b"", None
        if flags & _MARKED:
            known = _STATUSES.get(status)
            if known is None or numbers % 4:
                raise Broken("a mark that says nothing")
            several = tuple(memoryview(listed).cast("I")) if listed else ()
            mark = Mark(handle, known, several, bool(flags & _EVICT), high, bool(flags & _JUDGED))
        return Arrived(protocol, source, destination, cut(size), traffic, before, path, segment, mark)


class Completions:
    """Codec of `Completion`."""

    stride: Final = 32
    size: Final = _COMPLETION.size

    def encode(self, one: Completion, rest: Sequence[Octets]) -> tuple[bytes, Sequence[Octets], int]:
        """See `Codec`; nothing can be put after it."""
        return _COMPLETION.pack(one.ident, one.sent, one.number), rest, sum(map(len, rest))

    def decode(self, slot: bytes, cut: Cut) -> Completion:
        """See `Codec`."""
        return Completion(*_COMPLETION.unpack(slot))
