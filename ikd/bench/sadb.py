"""Shell. `ikctl bench sadb`: what an SA pair costs in memory, how long it takes to find and to install one.

Pairs are those of many hosts, each with a tunnel for one address. `memory` is the database alone, with a
backend that only remembers; `software` adds the engine's own tables, as in a daemon.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeVar

from ikd.bench.machine import load, machine
from ikd.control.protocol import ControlError, Json
from offload.software import SoftwareEngine
from sadb.algorithms import ENCRYPTION_BY_NAME, QuickSuite, SecurityProtocol
from sadb.backend import Backend
from sadb.database import Database
from sadb.memory import MemoryBackend
from sadb.replay import ReplayWindow
from sadb.sa import Lifetime, Mode, SaPair, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import Fields, Selector, TrafficSelector

LOOKUPS: Final = 100_000
BATCH: Final = 1000
RULE: Final = "bench"
LOCAL: Final = IPv4Address("198.51.100.1")
FIRST_PEER: Final = int(IPv4Address("10.0.0.0"))
SUITE: Final = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128gcm"])
LIFETIME: Final = Lifetime(soft_seconds=3000.0, hard_seconds=3600.0)
TCP: Final = 6
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

BACKENDS: Final[dict[str, Callable[[], Backend]]] = {
    "memory": MemoryBackend,
    "software": lambda: SoftwareEngine(os.urandom),
}


def measure(pairs: int) -> Json:
    """Rows for each backend, by SPI and by packet; each backend in a process of its own, whose memory nobody
    has used before."""
    facts = machine() | {"load_before": load()}
    rows: list[Json] = []
    for name in BACKENDS:
        command = [sys.executable, "-m", "ikd.bench.sadb", name, str(pairs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise ControlError("internal", f"the measurement with backend {name} failed")
        rows += json.loads(done.stdout)
    return {"machine": facts | {"load_after": load()}, "rows": rows, "ratios": {}, "runs": rows}


def _measure(name: str, make: Callable[[], Backend], count: int) -> Iterator[Json]:
    gc.collect()
    before = _resident()
    database = Database(make(), os.urandom, count)
    seconds = _fill(database, count)
    gc.collect()
    octets = max(0, _resident() - before) // count
    for by, lookup_ns in _look_up(database, count):
        yield {
            "backend": name,
            "by": by,
            "pairs": count,
            "octets_per_pair": octets,
            "lookup_ns": round(lookup_ns),
            "install_us": round(seconds * 1e6 / count, 2),
        }


def _fill(database: Database, count: int) -> float:
    """Install pairs; the seconds that took, without making them."""
    seconds = 0.0
    for first in range(0, count, BATCH):
        made = [
            _pair(database.allocate_spi(0.0), number) for number in range(first, min(first + BATCH, count))
        ]
        began = time.perf_counter()
        for pair in made:
            database.install(pair, 0.0)
        seconds += time.perf_counter() - began
    return seconds


def _pair(spi: int, number: int) -> SaPair:
    """A pair as an exchange makes it."""
    peer = _peer(number)
    selector = Selector((_host(LOCAL),), (_host(peer),))

    def one(source: IPv4Address, destination: IPv4Address, *, inbound: bool) -> SecurityAssociation:
        return SecurityAssociation(
            spi,
            SUITE,
            Mode.TUNNEL,
            source,
            destination,
            selector,
            Secret(os.urandom(20)),
            Secret(b""),
            inbound,
            lifetime=LIFETIME,
            replay=ReplayWindow(256, esn=SUITE.esn) if inbound else None,
        )

    inbound, outbound = one(peer, LOCAL, inbound=True), one(LOCAL, peer, inbound=False)
    return SaPair(inbound, outbound, selector, Mode.TUNNEL, RULE, owner=number + 1)


def _peer(number: int) -> IPv4Address:
    return IPv4Address(FIRST_PEER + number)


def _host(address: IPv4Address) -> TrafficSelector:
    return TrafficSelector(address, address)


def _look_up(database: Database, count: int) -> Iterator[tuple[str, float]]:
    """Nanoseconds of a lookup by SPI and by packet, of pairs in no order."""
    chosen = random.Random(1)
    spis = [pair.inbound.spi for pair in database.pairs()]
    wanted = [spis[chosen.randrange(count)] for _ in range(LOOKUPS)]
    yield "spi", _time(wanted, database.by_spi)
    packets = [Fields(LOCAL, _peer(chosen.randrange(count)), TCP, 40000, 443) for _ in range(LOOKUPS)]
    yield "flow", _time(packets, lambda packet: database.outbound(RULE, packet))


T = TypeVar("T")


def _time(arguments: list[T], look: Callable[[T], SaPair | None]) -> float:
    """Nanoseconds of one call, the loop around it taken off."""
    empties = []
    for _ in range(3):  # the least: what interrupts one of them must not be taken off
        began = time.perf_counter_ns()
        for _ in arguments:
            pass
        empties.append(time.perf_counter_ns() - began)
    began = time.perf_counter_ns()
    for one in arguments:
        look(one)
    taken = time.perf_counter_ns() - began - min(empties)
    if any(look(one) is None for one in arguments[:100]):
        raise AssertionError("a pair that was installed is not found")
    return taken / len(arguments)


def _resident() -> int:
    """Memory of this process, in octets."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


if __name__ == "__main__":
    print(json.dumps(list(_measure(sys.argv[1], BACKENDS[sys.argv[1]], int(sys.argv[2])))))
