"""The SA table of an adapter: slots, handles that are never used twice, and the table of receive addresses.

A handle is a slot and, above its lowest 16 bits, a generation that only grows: what was in flight for an SA
that is gone finds nothing, and never its successor. Which slot is free is the adapter's business alone; who
may have one is the host's (`offload.switch.placement`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from offload.ah import Authenticator
from offload.esp import Sealer
from offload.meter import Meter
from offload.nic.capabilities import Capabilities
from offload.nic.eligibility import direction
from offload.nic.packet_mode import Judge, Numbers
from offload.sender import Sender
from sadb.address import Address
from sadb.algorithms import Encryption, SecurityProtocol
from sadb.crypto import Cipher, cipher
from sadb.sa import Mode, SaPair, SecurityAssociation

_SLOT = 0xFFFF
MakeCipher = Callable[[Encryption, bytes], Cipher]


def slot_of(handle: int) -> int:
    """The slot in a handle."""
    return handle & _SLOT


@dataclass(slots=True, eq=False)
class Entry:
    """One row: an SA of one direction, and who asked for it. `high` is the upper half of extended sequence
    numbers as last told. In packet mode outbound `sender` makes whole packets, with `numbers`; inbound
    `judge` says which are new."""

    handle: int
    port: str
    sa: SecurityAssociation
    spi: bytes
    high: int
    cipher: Cipher | None = field(repr=False)  # of ESP
    sealer: Sealer | None = field(repr=False)  # of ESP that leaves
    signer: Authenticator | None = field(repr=False)  # of AH
    sender: Sender | None = field(repr=False)
    numbers: Numbers | None
    judge: Judge | None = field(repr=False)

    @property
    def tunnel(self) -> bool:
        """Whether it is in tunnel mode."""
        return self.sa.mode is Mode.TUNNEL

    def number(self, low: int) -> int:
        """The whole sequence number for 32 bits on the wire, as far as the adapter knows."""
        return self.high << 32 | low


def _no_random(octets: int) -> bytes:
    raise AssertionError("the transforms of an adapter take no random IV")


class SaTable:
    """Rows of both directions, in one pool or two (`Capabilities.shared`)."""

    def __init__(self, capabilities: Capabilities, make: MakeCipher = cipher) -> None:
        self._capabilities, self._make = capabilities, make
        shared = capabilities.shared
        count = capabilities.rx_slots if shared else capabilities.rx_slots + capabilities.tx_slots
        self._slots: list[Entry | None] = [None] * count
        self._generations = [0] * count
        receive = range(capabilities.rx_slots)
        transmit = receive if shared else range(capabilities.rx_slots, count)
        self._free: dict[bool, list[int]] = {True: list(reversed(receive))}
        self._free[False] = self._free[True] if shared else list(reversed(transmit))
        self._identification = 0
        self._inbound: dict[tuple[str, int, bytes], Entry] = {}
        self._addresses: Counter[Address] = Counter()
        self._used: Counter[tuple[str, int]] = Counter()  # by port and pool

    @property
    def addresses(self) -> int:
        """Receive addresses in use."""
        return len(self._addresses)

    @property
    def in_use(self) -> tuple[int, ...]:
        """Slots in use, by pool."""
        pools = self._capabilities.pools
        return tuple(slots - self.free(pool) for pool, slots in enumerate(pools))

    def entries(self) -> list[Entry]:
        """All rows, by slot."""
        return [one for one in self._slots if one is not None]

    def used(self, port: str, pool: int) -> int:
        """Slots of a pool that a port has."""
        return self._used[port, pool]

    def free(self, pool: int) -> int:
        """Slots of a pool that nobody has."""
        return len(self._free[pool == 0])

    def add(
        self, port: str, sa: SecurityAssociation, high: int | None, *, packets: bool = False
    ) -> Entry | str:
        """A row for an SA, with `packets` in packet mode, or the reason why there is none."""
        inbound = sa.inbound
        if inbound and (port, sa.spi, sa.destination.packed) in self._inbound:
            return "refused"
        known = not inbound or sa.destination in self._addresses
        if not known and len(self._addresses) >= self._capabilities.rx_addresses:
            return "addresses_full"
        if not self._free[inbound]:
            return "slots_full"
        slot = self._free[inbound].pop()
        self._generations[slot] += 1
        esp = sa.suite.protocol is SecurityProtocol.ESP
        row = sa.suite.encryption
        assert row is not None
        made = self._make(row, bytes(sa.encryption_key)) if esp else None
        sealer = Sealer(sa, _no_random, made) if esp and not inbound else None
        entry = Entry(
            self._generations[slot] << 16 | slot,
            port,
            sa,
            sa.spi.to_bytes(4, "big"),
            high or 0,
            made,
            sealer,
            None if esp else Authenticator(sa),
            self._sender(sa, sealer) if packets and not inbound else None,
            Numbers(sa.last_sequence) if packets and not inbound else None,
            Judge(sa.replay) if packets and sa.replay is not None else None,
        )
        self._slots[slot] = entry
        self._used[port, self._pool(sa)] += 1
        if inbound:
            self._inbound[port, sa.spi, sa.destination.packed] = entry
            self._addresses[sa.destination] += 1
        return entry

    def _pool(self, sa: SecurityAssociation) -> int:
        return self._capabilities.pool(direction(sa))

    def _sender(self, sa: SecurityAssociation, sealer: Sealer | None) -> Sender:
        pair = SaPair(sa, sa, sa.selector, sa.mode, "", 0)  # a sender looks at the outbound one alone
        return Sender(pair, _no_random, self.ident, Meter(sa), sealer=sealer)

    def ident(self) -> int:
        """An IPv4 identification, never 0."""
        self._identification = self._identification % 0xFFFF + 1
        return self._identification

    def get(self, handle: int) -> Entry | None:
        """The row of a handle, if it is still that of this handle."""
        slot = slot_of(handle)
        entry = self._slots[slot] if slot < len(self._slots) else None
        return entry if entry is not None and entry.handle == handle else None

    def find(self, port: str, spi: int, destination: Address) -> Entry | None:
        """The inbound row of a packet that came to a port: the SPI, then the address, or a wildcard."""
        found = self._inbound.get((port, spi, destination.packed))
        return found or self._inbound.get((port, spi, bytes(len(destination.packed))))

    def delete(self, handle: int) -> bool:
        """Free the slot; False when the handle is of the past."""
        entry = self.get(handle)
        if entry is None:
            return False
        slot, sa = slot_of(handle), entry.sa
        self._slots[slot] = None
        self._free[sa.inbound].append(slot)
        self._used[entry.port, self._pool(sa)] -= 1
        if sa.inbound:
            del self._inbound[entry.port, sa.spi, sa.destination.packed]
            self._addresses[sa.destination] -= 1
            if not self._addresses[sa.destination]:
                del self._addresses[sa.destination]
        return True

    def clear(self) -> list[Entry]:
        """Forget everything, as a reset does; what was there. Generations go on."""
        gone = self.entries()
        for entry in gone:
            self.delete(entry.handle)
        return gone
