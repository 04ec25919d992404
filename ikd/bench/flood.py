"""Shell. `ikctl bench flood`: what strangers who begin negotiations without end cost a peer that is there.

Two daemons with a tunnel; packets of a steady rate pass it, and the keys of another Child SA are replaced as
fast as the two can. Each run measures that for some time, and then for as long while first messages of IKEv2
from forged addresses come to the daemon that answers, whose limits for strangers are the usual ones.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ikd.bench import esp, flood_report, hosts, spoof
from ikd.bench.esp import Bench
from ikd.bench.flood_report import FLOODED, STAGES, Run
from ikd.bench.hosts import Talker, Trouble, ip
from ikd.bench.machine import cpu_seconds, load, machine
from ikd.bench.planes import LEFT, PLANES, QUIET_RULE, RIGHT
from ikd.bench.traffic import Order
from ikd.control.client import Client
from ikd.control.protocol import ControlError, Json

PLANE: Final = "native"
SIZE: Final = 512  # octets of the packets of the stream
WARM_UP: Final = 0.5
SAMPLE: Final = 0.25  # seconds between two looks at the responder's memory
SETTLE: Final = 0.5  # seconds before a stage


@dataclass(frozen=True, slots=True)
class Plan:
    """`initiations` of strangers in each run, `rate` of them a second, and `stream` packets a second."""

    initiations: int = 100_000
    rate: float = 10_000.0
    runs: int = 3
    stream: float = 2000.0

    @property
    def seconds(self) -> float:
        """How long a stage takes."""
        return self.initiations / self.rate


def measure(plan: Plan, tell: Callable[[str], None]) -> Json:
    """Run it; raises `ControlError`. `tell` hears about progress."""
    if os.geteuid() != 0:
        raise ControlError("not-permitted", "the measurement needs network namespaces", "run it as root")
    if shutil.which("ip") is None:
        raise ControlError("unavailable", "the program ip is missing", "apt-get install iproute2")
    if missing := PLANES[PLANE].missing():
        raise ControlError("unavailable", "there is no native engine", missing)
    facts = machine() | {"load_before": load()}
    runs: list[Run] = []
    try:
        with esp.up(PLANE, Flooded) as bench:
            assert isinstance(bench, Flooded)
            bench.prepare()
            before = bench.resident()
            for number in range(1, plan.runs + 1):
                for stage in STAGES:
                    runs.append(Run(number, stage, bench.stage(plan, flooded=stage == FLOODED)))
                    one = runs[-1].figures
                    tell(
                        f"run {number} of {plan.runs}, {stage}: {one['rekeys_s']:.0f} rekeys/s, "
                        f"{one['packets_s']:.0f} packets/s, {one['lost']} lost, responder "
                        f"{one['responder_busy']:.0%} of a core, {one['resident'] / 2**20:.0f} MiB"
                    )
    except (Trouble, OSError) as error:
        raise ControlError("unavailable", str(error)) from None
    return flood_report.flood(facts | {"load_after": load()}, runs, before)


class Flooded(Bench):
    """Two daemons, and a place next to the right one from which strangers write."""

    def prepare(self) -> None:
        """What the right one answers strangers has to go somewhere; raises `Trouble`."""
        ip("-n", self._names[RIGHT.name], "route", "add", "default", "via", RIGHT.crowd)

    @property
    def _pid(self) -> int:
        return self._standing.processes[f"{RIGHT.name}/ikd"]

    def resident(self) -> int:
        """Octets of memory that the responder has resident."""
        text = Path(f"/proc/{self._pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmRSS"))

    def _unseen(self) -> int:
        """Datagrams for which sockets for IKE had no room, so far."""
        rows = [line.split() for line in Path(f"/proc/{self._pid}/net/udp").read_text().splitlines()[1:]]
        return sum(int(row[-1]) for row in rows if row[1].endswith(":01F4"))

    def _half_open(self) -> int:
        assert self._standing.control is not None
        control = self._standing.control.parent.parent / RIGHT.name / "control.sock"
        with Client(control, hosts.PATIENCE) as client:
            text = client.call("metrics")["text"]
        return next(
            int(float(one.split()[1])) for one in text.splitlines() if one.startswith("ikd_half_open ")
        )

    def stage(self, plan: Plan, *, flooded: bool) -> dict[str, float]:
        """One stage; raises `Trouble`."""
        whole = Order("receive-udp", RIGHT.inner, size=SIZE, warm_up=WARM_UP, seconds=plan.seconds)
        with ExitStack() as stack:
            strangers = stack.enter_context(self._strangers(plan)) if flooded else None
            time.sleep(SETTLE)
            receiver, port = stack.enter_context(self._receiver(whole))
            order = replace(whole, do="send-paced", address=LEFT.inner, peer=RIGHT.inner, port=port)
            sender = stack.enter_context(self._sender(replace(order, rate=plan.stream)))
            receiver.hear()
            if strangers is not None:
                strangers.say({})
            began, spent, unseen = time.monotonic(), cpu_seconds(self._pid), self._unseen()
            times, resident = self._rekeys(began + plan.seconds)
            cpu, seconds = cpu_seconds(self._pid) - spent, time.monotonic() - began
            half_open = self._half_open()
            packets = receiver.hear()
            sent, received = sender.hear()["sent"], receiver.hear()["received"]
            return flood_report.figures(
                times=times,
                seconds=seconds,
                packets=packets["packets"],
                lost=sent - received,
                cpu=cpu,
                resident=resident,
                half_open=half_open,
                initiations=strangers.hear()["sent"] if strangers is not None else 0,
                unseen=self._unseen() - unseen,
            )

    def _rekeys(self, until: float) -> tuple[list[float], int]:
        """Seconds of one rekey after the other, and the most memory that was seen meanwhile."""
        times: list[float] = []
        most, looked = 0, 0.0
        assert self._standing.control is not None
        try:
            with Client(self._standing.control, hosts.PATIENCE) as client, esp.prompt():
                while (now := time.monotonic()) < until:
                    client.call("rekey", name=QUIET_RULE)
                    times.append(time.monotonic() - now)
                    time.sleep(esp.BETWEEN)
                    if now - looked > SAMPLE:
                        most, looked = max(most, self.resident()), now
        except ControlError as error:
            raise Trouble(f"rekey: {error}") from None
        return times, most

    @contextmanager
    def _strangers(self, plan: Plan) -> Iterator[Talker]:
        """They begin when they are told to."""
        order = spoof.Order(RIGHT.beside, plan.initiations, plan.rate)
        command = [sys.executable, "-m", "ikd.bench.spoof", json.dumps(asdict(order))]
        with hosts.process(self._names[RIGHT.others], command, self._log, talks=True) as made:
            talker = Talker(made, self._log, "the strangers")
            talker.hear()
            yield talker
