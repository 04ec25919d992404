"""Where the state of SAs is kept: counters, numbers and replay windows, and what the native loop is told.

`Accounts` keeps it in the SAs themselves, for an engine inside the daemon. `LedgerAccounts` does so too, and
writes to the ledger what the daemon wants to know. `NativeAccounts` keeps it in the ledger alone, where the
native loop of this worker and of others count, too, and programs that loop with SAs and flows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from offload.meter import NEVER, Meter
from sadb.algorithms import Kind, SecurityProtocol
from sadb.replay import ReplayWindow
from sadb.sa import Mode, SaPair, SecurityAssociation

if TYPE_CHECKING:
    from offload._native import Table
    from offload.ledger import Ledger

UNLIMITED: Final = 0xFFFFFFFFFFFFFFFF
_CIPHERS: Final = {"aes": 0, "chacha20poly1305": 1}  # enum cipher of offload/native/native.h


class Window(Protocol):
    """A replay window, see `sadb.replay.ReplayWindow`."""

    def look(self, low: int) -> tuple[int, str]: ...
    def accept(self, number: int) -> bool: ...


class Accounts:
    """State in the SAs themselves."""

    def meter(self, pair: SaPair, inbound: bool) -> Meter:
        """What counts one direction of a pair."""
        return Meter(pair.inbound if inbound else pair.outbound)

    def window(self, pair: SaPair) -> Window:
        """The replay window of a pair."""
        sa = pair.inbound
        return sa.replay if sa.replay is not None else ReplayWindow(esn=sa.suite.esn)

    def install(self, pair: SaPair) -> None:
        """The pair may be used from now on, or goes elsewhere now."""

    def remove(self, pair: SaPair) -> None:
        """The pair is gone."""

    def route(self, key: bytes, pair: SaPair, fits: int) -> None:
        """Packets of this flow leave on the pair if they have at most `fits` octets."""

    def forget(self, key: bytes | None) -> None:
        """No route for this flow any more, or for any."""

    def admit(self, key: bytes, pair: SaPair) -> None:
        """The pair is for this inbound flow."""

    def forget_admitted(self) -> None:
        """No pair is known to be for any flow any more."""

    def number(self, pair: SaPair, inbound: bool) -> int:
        """The last number sent, or the highest one authenticated."""
        window = pair.inbound.replay
        return (window.highest if window is not None else 0) if inbound else pair.outbound.sequence

    def place(self, pair: SaPair, outbound: bool, handle: int, high: int) -> None:
        """What an adapter has of a pair: the outbound SA, and the inbound one if it has a handle. Its marks
        with this one are true, for numbers with this upper half."""

    def framed(self, frame: bytes) -> list[tuple[bytes, bytes, int, bool]] | None:
        """The packets of a frame of `offload.vnet` for an adapter: framed, as they are, traffic class, and DF
        for UDP. None, and nothing is counted, when they have to be looked at one by one."""
        return None

    def marked(self, pair: SaPair) -> tuple[int, int]:
        """Octets and packets with such marks that the native loop took since it was last asked."""
        return 0, 0


class LedgerAccounts(Accounts):
    """State in the SAs, copied to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.slots: dict[SaPair, int] = {}

    def meter(self, pair: SaPair, inbound: bool) -> Meter:
        sa = pair.inbound if inbound else pair.outbound
        return Meter(sa, partial(self.ledger.publish, self.slots[pair], inbound))

    def remove(self, pair: SaPair) -> None:
        self.slots.pop(pair, None)


class NativeAccounts(Accounts):
    """State in the ledger, shared with the native loop. `sockets(sa)` gives the descriptors an SA sends with,
    with DF and without, and whether they are bound to no address."""

    def __init__(self, table: Table, sockets: Callable[[SecurityAssociation], tuple[int, int, bool]]) -> None:
        self.table = table
        self.slots: dict[SaPair, int] = {}
        self._sockets = sockets

    def meter(self, pair: SaPair, inbound: bool) -> Meter:
        return SharedMeter(pair.inbound if inbound else pair.outbound, self.table, self.slots[pair], inbound)

    def window(self, pair: SaPair) -> Window:
        return SharedWindow(self.table, self.slots[pair], pair.inbound)

    def install(self, pair: SaPair) -> None:
        slot, out, back = self.slots[pair], pair.outbound, pair.inbound
        if _is_native(out):
            ports = out.encapsulation or (0, 0)
            self.table.add_outbound(
                slot,
                out.spi,
                *_cipher(out),
                out.suite.esn,
                out.mode is Mode.TUNNEL,
                out.encapsulation is not None,
                *self._sockets(out),
                -1 if out.dscp is None else out.dscp,
                -1 if out.dont_fragment is None else int(out.dont_fragment),
                out.source.packed,
                ports[0],
                out.destination.packed,
                ports[1],
                0,  # nothing before a meter sets the limits
                0,
            )
        # In transport mode through a NAT `offload.twins` looks at every packet, and IPv6 headers are not
        # shown.
        bare = back.encapsulation is None and back.source.version == 4
        if _is_native(back) and (back.mode is Mode.TUNNEL or bare):
            size, esn = _window_size(back), back.suite.esn
            tunnel = back.mode is Mode.TUNNEL
            self.table.add_inbound(slot, back.spi, *_cipher(back), esn, tunnel, size, 0, 0)

    def remove(self, pair: SaPair) -> None:
        slot = self.slots.pop(pair, None)
        if slot is not None:
            self.table.remove(slot)

    def route(self, key: bytes, pair: SaPair, fits: int) -> None:
        if _is_native(pair.outbound):
            self.table.add_route(key, self.slots[pair], fits)

    def forget(self, key: bytes | None) -> None:
        if key is None:
            self.table.clear_routes()
        else:
            self.table.remove_route(key)

    def admit(self, key: bytes, pair: SaPair) -> None:
        self.table.admit(self.slots[pair], key)

    def forget_admitted(self) -> None:
        self.table.clear_admitted()

    def number(self, pair: SaPair, inbound: bool) -> int:
        return self.table.read(self.slots[pair], inbound)[2]

    def place(self, pair: SaPair, outbound: bool, handle: int, high: int) -> None:
        slot = self.slots.get(pair)
        if slot is not None:
            self.table.place(slot, outbound, handle, high)

    def framed(self, frame: bytes) -> list[tuple[bytes, bytes, int, bool]] | None:
        return self.table.frame(frame)

    def marked(self, pair: SaPair) -> tuple[int, int]:
        slot = self.slots.get(pair)
        return self.table.marked(slot) if slot is not None else (0, 0)


class SharedMeter(Meter):
    """Counts in the ledger; also tells the native loop from where on it must ask."""

    __slots__ = ("_inbound", "_slot", "_table")

    def __init__(self, sa: SecurityAssociation, table: Table, slot: int, inbound: bool) -> None:
        self._table, self._slot, self._inbound = table, slot, inbound
        super().__init__(sa)

    def take(self, size: int, now: float) -> bool:
        count, slot, inbound = self._table.count, self._slot, self._inbound
        octets, packets = count(slot, inbound, size, 1)
        if (octets >= self._octets or packets >= self._packets) and not self._look(octets, packets):
            count(slot, inbound, -size, -1)
            return False
        return True

    def take_train(self, size: int, count: int, now: float) -> int:
        if not self.take_all(size, count, now):
            return 0
        number = self._table.number(self._slot, self._sa.suite.esn, count)
        if number is None:
            self._table.count(self._slot, self._inbound, -size, -count)
        return number or 0

    def take_all(self, size: int, count: int, now: float) -> bool:
        octets, packets = self._table.count(self._slot, self._inbound, size, count)
        if octets >= self._octets or packets >= self._packets:
            self._table.count(self._slot, self._inbound, -size, -count)
            return False
        return True

    def number(self) -> int | None:
        number = self._table.number(self._slot, self._sa.suite.esn)
        if number is None:
            self.exhaust("sequence")
        return number

    def _sequence(self) -> tuple[int, int]:
        _, packets, number = self._table.read(self._slot, self._inbound)
        return packets, number

    def _set_limits(self) -> None:
        super()._set_limits()
        octets, packets = (UNLIMITED if one == NEVER else one for one in (self._octets, self._packets))
        self._table.limit(self._slot, self._inbound, octets, packets)


class SharedWindow:
    """A replay window in the ledger."""

    __slots__ = ("_esn", "_size", "_slot", "_table")

    def __init__(self, table: Table, slot: int, sa: SecurityAssociation) -> None:
        self._table, self._slot, self._size, self._esn = table, slot, _window_size(sa), sa.suite.esn

    def look(self, low: int) -> tuple[int, str]:
        found = self._table.check(self._slot, self._size, self._esn, low)
        return (found, "") if found > 0 else (0, "replayed" if found == -1 else "late")

    def accept(self, number: int) -> bool:
        return self._table.accept(self._slot, self._size, number)


def _window_size(sa: SecurityAssociation) -> int:
    return (sa.replay or ReplayWindow()).size


def _is_native(sa: SecurityAssociation) -> bool:
    """Whether the native loop knows the transform."""
    row = sa.suite.encryption
    return (
        sa.suite.protocol is SecurityProtocol.ESP
        and row is not None
        and row.kind is Kind.AEAD
        and row.icv == 16
    )


def _cipher(sa: SecurityAssociation) -> tuple[int, bytes, bytes]:
    """Number, key and salt."""
    row = sa.suite.encryption
    assert row is not None
    key = bytes(sa.encryption_key)
    return _CIPHERS.get(row.name, _CIPHERS["aes"]), key[: row.key], key[row.key :]
