"""A tap on the wire: nothing may leave in the clear, and no key may meet a number twice."""

from __future__ import annotations

from collections.abc import Iterable

from support.engines import arrived

from offload import ip
from offload.ah import Authenticator
from offload.esp import Opener
from offload.ip import Dropped
from offload.outer import Arrived, Outgoing
from sadb.algorithms import Kind, SecurityProtocol
from sadb.sa import SecurityAssociation


class WireTap:
    """Opens all that passes with the keys of the SAs it was told of. A packet in the clear, one of an unknown
    SA and a number that came before fail the test at once. `spoilt` counts what its key does not open;
    `turned`, what comes after a higher number, and `late`, after one so much higher that a window of 64 has
    no place for it."""

    def __init__(self) -> None:
        self.packets = self.spoilt = self.turned = self.late = 0
        self.numbers: set[tuple[bytes, int]] = set()
        self._sas: dict[int, SecurityAssociation] = {}
        self._highest: dict[int, int] = {}

    def knows(self, *sas: SecurityAssociation) -> None:
        """SAs whose packets may pass from now on."""
        self._sas |= {sa.spi: sa for sa in sas}

    def see(self, wire: Iterable[Outgoing]) -> list[Arrived]:
        """Look at what leaves; what the other side's sockets will show of it."""
        found = arrived(wire)
        for one in found:
            size = one.segment or len(one.data)
            for at in range(0, len(one.data), size):
                self._look(one, one.data[at : at + size])
        return found

    def _look(self, one: Arrived, data: bytes) -> None:
        assert one.protocol in (ip.ESP, ip.AH), "a packet left in the clear"
        esp = one.protocol == ip.ESP
        spi, low = (int.from_bytes(data[at : at + 4], "big") for at in ((0, 4) if esp else (4, 8)))
        sa = self._sas.get(spi)
        assert sa is not None, f"a packet of SPI {spi:08x}, which nobody has"
        assert esp == (sa.suite.protocol is SecurityProtocol.ESP)
        row, number = sa.suite.encryption, low
        if row is not None and row.kind in (Kind.AEAD, Kind.GMAC):
            number = int.from_bytes(data[8:16] if esp else data[12:20], "big")
            assert number & 0xFFFFFFFF == low, "the IV is not the sequence number"
        key = bytes(sa.encryption_key) + bytes(sa.integrity_key), number
        assert key not in self.numbers, f"number {number} of SPI {spi:08x} came twice"
        self.numbers.add(key)
        self.packets += 1
        self.spoilt += not self._opens(sa, number, one, data)
        highest = self._highest.get(spi, 0)
        self.turned += highest > number
        self.late += highest - number >= 64
        self._highest[spi] = max(highest, number)

    def _opens(self, sa: SecurityAssociation, number: int, one: Arrived, data: bytes) -> bool:
        try:
            if sa.suite.protocol is SecurityProtocol.ESP:
                Opener(sa).decrypt(number, data)
            else:
                signer = Authenticator(sa)
                header = one.header or ip.Outer(one.source, one.destination, ip.AH).header(0, len(data))
                signer.verify(number, header, data, signer.check(data))
        except Dropped:
            return False
        return True
