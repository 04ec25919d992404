"""Shell. `ikctl bench esp`: data planes beside each other, the same packets through one after the other.

Each run brings up every plane in turn, alone on the machine, measures it and takes it down again; the order
is turned round from run to run, so that what else happens on the machine meets all alike. A plane that fails
has a row that says why, and the others are measured all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from ikd.__main__ import NICE
from ikd.bench import crowd, esp_report, hosts, planes
from ikd.bench.esp_report import IKE, LATENCY_TEST, OURS_ALONE, SIZES, STREAMS, TESTS, Figures, Run
from ikd.bench.hosts import Talker, Trouble
from ikd.bench.machine import load, machine
from ikd.bench.planes import CROWD_RULE, ENDS, LEFT, PLANES, QUIET_RULE, RIGHT, Names, Standing
from ikd.bench.traffic import HEADERS, Order
from ikd.bench.usage import spent, usage
from ikd.control.client import Client
from ikd.control.protocol import ControlError, Json

WARM_UP: Final = 0.5
WINDOWS: Final = (256, 128, 64, 32)  # datagrams on their way: the most that a plane carries without loss
REACHED: Final = 0.1  # seconds of packets to and fro that show that a plane carries any
TRIES: Final = 3
PROBING: Final = 2.0  # seconds for latency, at most
EXCHANGES: Final = 5  # at least so many, however long they take
BETWEEN: Final = 0.02  # seconds from one exchange to the next


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, each test so many seconds in each run; `pairs` are those that `sas` adds."""

    planes: tuple[str, ...] = tuple(PLANES)
    tests: tuple[str, ...] = TESTS
    runs: int = 3
    seconds: float = 3.0
    pairs: int = 10_000


@dataclass(slots=True)
class Findings:
    """What has been measured up to now, and what went wrong."""

    runs: list[Run] = field(default_factory=list)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)


def measure(plan: Plan, tell: Callable[[str], None]) -> Json:
    """Run it; raises `ControlError`. `tell` hears about progress."""
    if os.geteuid() != 0:
        raise ControlError("not-permitted", "the measurement needs network namespaces", "run it as root")
    if shutil.which("ip") is None:
        raise ControlError("unavailable", "the program ip is missing", "apt-get install iproute2")
    missing = {name: how for name in plan.planes if (how := PLANES[name].missing())}
    there = [name for name in plan.planes if name not in missing]
    facts = machine() | {"load_before": load()}
    findings = Findings()
    for number in range(1, plan.runs + 1):
        for name in there if number % 2 else reversed(there):
            _plane(plan, number, name, findings, tell)
    ciphers = {name: PLANES[name].cipher for name in plan.planes}
    ours = [name for name in plan.planes if PLANES[name].ours]
    rows = esp_report.rows(findings.runs, ciphers, plan.tests, ours, missing, findings.failed)
    return esp_report.esp(facts | {"load_after": load()}, rows, findings.runs)


def _plane(plan: Plan, number: int, name: str, findings: Findings, tell: Callable[[str], None]) -> None:
    """All tests of one plane in one run."""
    tests = [one for one in plan.tests if one not in OURS_ALONE or PLANES[name].ours]
    try:
        with up(name) as bench:
            for test in tests:
                figures = bench.run(test, plan)
                findings.runs.append(Run(number, name, test, figures))
                tell(f"run {number} of {plan.runs}, {name}: {test} {_summary(figures)}")
    except (Trouble, OSError) as error:
        done = {one.test for one in findings.runs if (one.number, one.plane) == (number, name)}
        for test in tests:
            if test not in done:
                findings.failed[name, test] = f"run {number}: {error}"
        tell(f"run {number} of {plan.runs}, {name}: {error}")


def _summary(figures: Figures) -> str:
    if "many" in figures:
        few, many = figures["few"], figures["many"]
        return ", ".join(f"{key} {few[key]} with few pairs, {many[key]} with many" for key in few)
    if "ike_loaded_ms" in figures:
        return f"{figures['ike_idle_ms']['p50']} ms idle, {figures['ike_loaded_ms']['p50']} ms loaded"
    packets = f", {figures['packets_s']} packets/s" if figures["packets_s"] else ""
    return f"{figures['gbit_s']:.3f} Gbit/s{packets}"


@contextlib.contextmanager
def up(name: str, kind: type[Bench] | None = None) -> Iterator[Bench]:
    """Two hosts with this plane between them, over which packets have passed; `kind` knows other tests."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ikd-bench-")))
        names = stack.enter_context(planes.link())
        standing = stack.enter_context(PLANES[name].up(names, directory))
        bench = (kind or Bench)(names, standing, directory / "traffic.log")
        if all(bench.to_and_fro(REACHED) is None for _ in range(TRIES)):
            raise Trouble(f"no packet came back\n{hosts.tails(sorted(directory.rglob('*log')))}")
        yield bench


class Bench:
    """The tests of a plane that is up. Traffic goes from the left to the right."""

    def __init__(self, names: Names, standing: Standing, log: Path) -> None:
        self._names = names
        self._standing = standing
        self._log = log

    def run(self, test: str, plan: Plan) -> Figures:
        """One test; raises `Trouble`, or `OSError` when a process of the plane has ended."""
        seconds = plan.seconds
        if test in STREAMS:
            return self._tcp(STREAMS[test], seconds, latency=test == LATENCY_TEST)
        if test in SIZES:
            return self._udp(SIZES[test], seconds)
        return self._ike(seconds) if test == IKE else self._sas(seconds, plan.pairs)

    def to_and_fro(self, seconds: float) -> Json:
        """Latency of one packet after the other there and back."""
        with (
            self._receiver(Order("echo", RIGHT.inner)) as (_, port),
            self._sender(Order("ping", LEFT.inner, RIGHT.inner, port, seconds=seconds)) as ping,
        ):
            return esp_report.latency(**ping.hear())

    # Tests -----------------------------------------------------------------------------------------------

    def _tcp(self, streams: int, seconds: float, *, latency: bool) -> Figures:
        probing = min(seconds, PROBING)
        idle = self.to_and_fro(probing) if latency else None
        with self._streams(streams, seconds) as receiver:
            result, cpu = self._measured(receiver)
            if not result["octets"]:
                raise Trouble("no octet came through")
            figures = esp_report.throughput(result["octets"], result["seconds"], cpu)
            if latency:
                figures |= {"latency_ms": self.to_and_fro(probing), "latency_idle_ms": idle}
        return figures

    def _udp(self, size: int, seconds: float) -> Figures:
        """With the most datagrams on their way of which none is lost; with the fewest in any case."""
        for window in WINDOWS:
            figures = self._window(size, window, seconds)
            if not figures["lost"]:
                break
        return figures

    def _window(self, size: int, window: int, seconds: float) -> Figures:
        whole = Order("receive-udp", RIGHT.inner, size=size, window=window, warm_up=WARM_UP, seconds=seconds)
        with self._receiver(whole) as (receiver, port):
            order = replace(whole, do="send-udp", address=LEFT.inner, peer=RIGHT.inner, port=port)
            with self._sender(order) as sender:
                result, cpu = self._measured(receiver)
                sent, received = sender.hear()["sent"], receiver.hear()["received"]
        packets, taken = result["packets"], result["seconds"]
        if not packets:
            raise Trouble(f"no packet of {size} octets came through")
        return esp_report.throughput(packets * (size - HEADERS), taken, cpu) | {
            "packets_s": round(packets / taken),
            "lost": sent - received,
            "sent": sent,
            "window": window,
        }

    def _ike(self, seconds: float) -> Figures:
        """Replacing keys of a Child SA that nothing passes, while nothing and while much passes another."""
        assert self._standing.control is not None
        try:
            with Client(self._standing.control) as client:
                with prompt():
                    idle = _rekeyed(client, seconds)
                with self._streams(1, 0.0) as receiver:
                    self._measured(receiver)
                    with prompt():
                        return esp_report.exchanges(idle, _rekeyed(client, seconds))
        except ControlError as error:
            raise Trouble(f"rekey: {error}") from None

    def _sas(self, seconds: float, pairs: int) -> Figures:
        """The same traffic while the daemons have few SA pairs, and while they have many more."""
        assert self._standing.control is not None
        few = self._both(seconds)
        with contextlib.ExitStack() as stack:
            for talker in [stack.enter_context(self._crowd(side, pairs)) for side, _ in ENDS]:
                talker.hear()
            try:
                with Client(self._standing.control) as client:
                    there = client.call("status")["quick"]
            except ControlError as error:
                raise Trouble(f"status: {error}") from None
            if there < pairs:
                raise Trouble(f"of {pairs} SA pairs {there} are there")
            return {"pairs": there, "few": few, "many": self._both(seconds)}

    def _both(self, seconds: float) -> Figures:
        stream = self._tcp(1, seconds, latency=False)
        return {"gbit_s": stream["gbit_s"], "packets_s": self._udp(min(SIZES.values()), seconds)["packets_s"]}

    @contextlib.contextmanager
    def _crowd(self, side: planes.Side, pairs: int) -> Iterator[Talker]:
        """Other peers of one side; the first line from them says that all their pairs are there."""
        home = str(self._standing.crowds[side.name])
        order = crowd.Order(home, CROWD_RULE, side.crowd, side.beside, pairs)
        command = [sys.executable, "-m", "ikd.bench.crowd", json.dumps(asdict(order))]
        with hosts.process(self._names[side.others], command, self._log, talks=True) as made:
            yield Talker(made, self._log, "the other peers")

    # Traffic ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _streams(self, number: int, seconds: float) -> Iterator[Talker]:
        """So many TCP streams; who receives them. They go on until this is left."""
        order = Order("receive-tcp", RIGHT.inner, streams=number, warm_up=WARM_UP, seconds=seconds)
        with (
            self._receiver(order) as (receiver, port),
            self._sender(Order("send-tcp", LEFT.inner, RIGHT.inner, port, number)),
        ):
            yield receiver

    def _measured(self, receiver: Talker) -> tuple[Json, dict[str, float]]:
        """What a receiver counts between beginning and end, and the plane's processor time meanwhile."""
        receiver.hear()
        before = usage(self._standing.processes)
        result = receiver.hear()
        return result, spent(before, usage(self._standing.processes))

    @contextlib.contextmanager
    def _receiver(self, order: Order) -> Iterator[tuple[Talker, int]]:
        """A process on the right, and the port it listens on."""
        with self._job(RIGHT.name, order) as talker:
            yield talker, talker.hear()["port"]

    def _sender(self, order: Order) -> contextlib.AbstractContextManager[Talker]:
        """A process on the left."""
        return self._job(LEFT.name, order)

    @contextlib.contextmanager
    def _job(self, side: str, order: Order) -> Iterator[Talker]:
        command = [sys.executable, "-m", "ikd.bench.traffic", json.dumps(asdict(order))]
        with hosts.process(self._names[side], command, self._log, talks=True) as made:
            yield Talker(made, self._log, order.do)


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Ask with the daemons' priority: how long this process waits for a processor is no part of IKE."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def _rekeyed(client: Client, seconds: float) -> list[float]:
    """Milliseconds of one exchange after the other."""
    times: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times) < EXCHANGES:
        began = time.perf_counter()
        client.call("rekey", name=QUIET_RULE)
        times.append(1000 * (time.perf_counter() - began))
        time.sleep(BETWEEN)
    return times
