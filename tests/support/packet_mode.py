"""Two hosts with adapters in packet mode, and what lies between them."""

from __future__ import annotations

from support.adapter_link import Station
from support.engines import (
    AH_SUITES,
    GCM,
    Host,
    between,
    hosts,
)
from support.tap import WireTap

from offload.nic.capabilities import Direction
from offload.outer import Arrived
from sadb.algorithms import QuickSuite
from sadb.sa import SaPair

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
AH_GMAC = next(one for one in AH_SUITES if one.encryption and one.encryption.name == "aes128gmac")


class End:
    """One host with an adapter in packet mode; `wire` has what left, and was not delivered yet."""

    def __init__(self, host: Host, seed: int, tap: WireTap) -> None:
        self.station = Station(seed, "ideal", tap, packet_mode=True)
        self.driver, self.adapter = self.station.driver, self.station.adapter
        self.pair: SaPair = host.pair
        self.notices: list[object] = []
        self.station.engine.notify = self.notices.append
        self.station.route(host.flow)
        self.station.install(host.pair)
        self.wire: list[Arrived] = []
        self.station.wire = self.wire.extend
        self.sent = 0

    def placed(self, *directions: Direction) -> End:
        self.driver.place(self.pair, directions or Direction, self.station.now)
        self.work()
        return self

    def sends(self, count: int) -> list[bytes]:
        packets = [between(4, b"%d" % number) for number in range(self.sent, self.sent + count)]
        self.sent += count
        self.station.send(packets)
        return packets

    def work(self) -> None:
        """Whatever is on its way gets there, several times: answers make requests."""
        self.station.out(self.station.engine.released(self.station.now))
        while self.station.settle():
            pass

    def numbers(self) -> list[int]:
        """Of packets on the wire."""
        return [int.from_bytes(one.data[4:8], "big") for one in self.wire]


def ends(suite: QuickSuite = GCM, *, start: int = 0, **options: object) -> tuple[End, End]:
    """Two hosts with a tap between them; what leaves has to be carried over by `deliver`."""
    tap = WireTap()
    made = hosts(suite, **options)  # type: ignore[arg-type]
    for host in made:
        tap.knows(host.pair.outbound)
        if start:
            assert host.pair.inbound.replay is not None
            host.pair.outbound.sequence = start
            host.pair.inbound.replay.close(start)
    return End(made[0], 1, tap), End(made[1], 2, tap)


def deliver(one: End, other: End) -> None:
    other.station.arrivals.extend(one.wire)
    one.wire.clear()
    other.work()
