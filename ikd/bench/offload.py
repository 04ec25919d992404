"""Shell. `ikctl bench offload`: what a host spends on receiving, with IPsec disabled, in software, offloaded.

For each profile of the processor there are two processes, `ikd.bench.ends`, on cores of their own. Each run
goes through all series, and every other one backwards. This process only reads the clocks, and sleeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ikd.bench import ends, offload_report, tape
from ikd.bench.hosts import ROOT, Talker, Trouble
from ikd.bench.machine import cpu_seconds, load, machine
from ikd.bench.offload_report import PROFILES, SERIES, SIZES, THEN, TODAY, Run
from ikd.control.protocol import ControlError, Json
from offload.nic.rings import wire
from offload.switch.contention import Contest, contest
from offload.switch.placement import Ceiling, FirstCome, Weighted

MASK: Final = "OPENSSL_ia32cap"
# of OpenSSL's processor capabilities, without AES-NI and PCLMULQDQ (OPENSSL_ia32cap(3))
ENVIRONMENTS: Final[Mapping[str, Mapping[str, str]]] = {TODAY: {}, THEN: {MASK: "~0x200000200000000"}}
MASKED: Final = 3.0  # times as long as without the mask AES-GCM takes at least, if that does anything
SEED: Final = 6  # of the traffic that policies contend with
FASTEST: Final = 200_000  # packets a second that no host here takes: tapes need not be longer


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: each series at each size `seconds` in each run, over a link of `link` Mb/s."""

    profiles: tuple[str, ...] = PROFILES
    series: tuple[str, ...] = SERIES
    sizes: tuple[int, ...] = SIZES
    runs: int = 5
    seconds: float = 0.5
    link: float = 300.0

    def length(self, size: int) -> int:
        """Packets of a tape with buffers of this size."""
        lengths = tape.segments(size)
        mean = sum(lengths) / len(lengths) + tape.HEADERS + tape.FRAMING
        rate = min(FASTEST, self.link * 1e6 / 8 / mean)
        return round(rate * self.seconds / (1 - ends.WARM_UP))


@dataclass(slots=True)
class Findings:
    """What has been measured up to now."""

    runs: list[Run] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    gcm: dict[str, Json] = field(default_factory=dict)


def measure(plan: Plan, tell: Callable[[str], None]) -> Json:
    """Run it; raises `ControlError`. `tell` hears about progress."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ControlError("unavailable", "host and adapter need a processor core each; there is one")
    facts = machine() | {"load_before": load()}
    findings = Findings()
    try:
        with tempfile.TemporaryDirectory(prefix="ikd-bench-") as directory:
            for profile in plan.profiles:
                with Pair(ENVIRONMENTS[profile], Path(directory), (cores[-1], cores[-2])) as pair:
                    findings.gcm[profile] = pair.gcm_us
                    if profile == THEN and not _masked(pair.gcm_us):
                        findings.missing[profile] = _UNMASKABLE
                        continue
                    _profile(plan, profile, pair, findings, tell)
    except (Trouble, OSError) as error:
        raise ControlError("internal", str(error)) from None
    facts |= {"load_after": load(), "aes_gcm_16k_us": findings.gcm}
    return offload_report.offload(
        facts, plan.link, ends.ENGINE, findings.runs, findings.missing, _placement()
    )


def _placement() -> list[Json]:
    """How much of unequal traffic each policy gets through the slots: the same traffic, in virtual time."""
    of = Contest()
    results = [contest(policy, of, random.Random(SEED).random) for policy in (FirstCome, Ceiling, Weighted)]
    return offload_report.placement(of, results)


_UNMASKABLE: Final = (
    f"{MASK} does not make AES-GCM slower here: {platform.machine()}, or a library without it"
)


_TIMES: Final = """
import json
from ikd.bench.ends import ENGINE, gcm_us
print(json.dumps({"host": gcm_us(ENGINE), "adapter": gcm_us("adapter")}))
"""


def _masked(times: Mapping[str, float]) -> bool:
    """Whether AES-GCM is slower in both processes than where the environment masks nothing."""
    environment = {name: value for name, value in os.environ.items() if name != MASK}
    command = [sys.executable, "-c", _TIMES]
    done = subprocess.run(
        command,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Trouble(f"AES-GCM cannot be timed: {done.stderr[-2000:]}")
    return all(times[end] >= MASKED * took for end, took in json.loads(done.stdout).items())


def _profile(plan: Plan, profile: str, pair: Pair, findings: Findings, tell: Callable[[str], None]) -> None:
    for size in plan.sizes:
        pair.make(size, plan.length(size))
        for number in range(1, plan.runs + 1):
            for series in plan.series if number % 2 else reversed(plan.series):
                findings.runs.append(pair.run(number, profile, series, size, plan))
        done = [one for one in findings.runs if (one.profile, one.size) == (profile, size)]
        costs = {one["series"]: one["host_cpu_s_per_gb"] for one in offload_report.rows(done, {})}
        tell(f"{profile}, {size} octets, host s/GB: {', '.join(f'{it} {costs[it]:.2f}' for it in costs)}")


class Pair(contextlib.ExitStack):
    """Host and adapter, until it is left; `gcm_us` is how long AES-GCM takes in each."""

    def __init__(
        self,
        environment: Mapping[str, str],
        directory: Path,
        cores: tuple[int, int],
        engine: str = ends.ENGINE,
    ) -> None:
        super().__init__()
        self._key = os.urandom(2 * tape.KEY).hex()
        sink = os.memfd_create("ikd-sink", os.MFD_CLOEXEC)
        self.callback(os.close, sink)
        os.ftruncate(sink, ends.SINK)
        self.sink = sink
        names = engine, "adapter"
        try:
            with contextlib.ExitStack() as passed:  # closed here once the processes have them
                plugs = wire()
                for plug in plugs:
                    passed.callback(plug.close)
                controls = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                for control in controls:
                    passed.enter_context(control)
                made = [
                    self.enter_context(
                        _process(name, environment, directory, (plug, control.fileno(), sink), core)
                    )
                    for name, plug, control, core in zip(names, plugs, controls, cores, strict=True)
                ]
            (self._host, self._host_pid), (self._adapter, self._adapter_pid) = made
            self.gcm_us = {"host": self._host.hear()["gcm_us"], "adapter": self._adapter.hear()["gcm_us"]}
        except BaseException:
            self.close()
            raise

    def make(self, size: int, packets: int) -> None:
        """A tape for the runs to come."""
        self._adapter.say({"do": "tape", "size": size, "packets": packets, "key": self._key})
        self._adapter.hear()

    def run(self, number: int, profile: str, series: str, size: int, plan: Plan) -> Run:
        """Play it once; raises `Trouble`, also when an octet is missing."""
        self._host.say({"series": series, "key": self._key})
        self._adapter.say({"do": "play", "series": series, "seconds": plan.seconds, "mbit": plan.link})
        self._adapter.hear()
        before = self._clocks()
        self._adapter.say({})
        played, taken = self._adapter.hear(), self._host.hear()
        after = self._clocks()
        if not played["octets"] == played["delivered"] == taken["octets"]:
            raise Trouble(f"{series}, {size} octets: {played}, but the host has {taken}")
        return Run(
            number,
            profile,
            series,
            size,
            played["octets"],
            played["packets"],
            played["seconds"],
            after[0] - before[0],
            after[1] - before[1],
            taken["cpu"],
        )

    def _clocks(self) -> tuple[float, float]:
        return cpu_seconds(self._host_pid), cpu_seconds(self._adapter_pid)


@contextlib.contextmanager
def _process(
    name: str, environment: Mapping[str, str], directory: Path, what: tuple[Any, int, int], core: int
) -> Iterator[tuple[Talker, int]]:
    """One of the two; who talks to it, and its process id."""
    plug, control, sink = what
    log = directory / "ends.log"  # of both: when one ends, the other knows why
    places = [msgspec.json.encode(plug).decode(), str(control), str(sink), str(core)]
    clean = {key: value for key, value in os.environ.items() if key != MASK}
    with log.open("ab") as output:
        made = subprocess.Popen(
            [sys.executable, "-m", "ikd.bench.ends", name, *places],
            env=clean | {"PYTHONPATH": str(ROOT)} | dict(environment),
            pass_fds=(*plug.filenos(), control, sink),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield Talker(made, log, f"the {name}"), made.pid
    finally:
        made.terminate()
        made.communicate()
