"""Two daemons for some time: a hundred tunnels whose keys are replaced every few seconds, datagrams that are
lost, and daemons that are stopped and killed. Nothing may grow: no memory, descriptor, task, route, rule or
element of the packet filter, and no SPI that only one of database and workers knows.

`SOAK_SECONDS` is how long (two minutes). In the first third daemons are restarted, then they are left alone.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import lab
from support.daemon import Ikd
from support.lab import Lab
from support.scenario import Twins, eventually, twins

SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "120"))
pytestmark = [pytest.mark.interop, pytest.mark.long, pytest.mark.timeout(SECONDS + 180)]

RULES: Final = 100  # and as many Child SAs, which are 200 SAs
OLD: Final = 20  # of them by IKEv1
PORT: Final = 20_000
RESTARTS: Final = 1 / 3  # the part of the time in which there are any
WARM: Final = 1 / 2  # the part after which nothing shall grow any more
PAUSE: Final = 6.0  # seconds from one to the next
EVERY: Final = 0.01  # seconds between two packets; each rule has one a second
GROWTH: Final = 1.05, 3 << 20  # factor, and octets, by which memory may grow once it is warm

RULE = """
[[rule]]
name        = "net{n}"
local       = "{local}"
remote      = "{remote}"
tunnel      = {{ local = "{own}", remote = "{peer}" }}
peer        = "{other}.lab"
security    = "require"
keying      = ["{keying}"]
auth        = "psk"
crypto      = "short"
"""
SETS = """
[auth.psk]
first = ["psk"]
[crypto.short]
main     = ["p256 aes128 sha256"]
quick    = ["aes128gcm"]
pfs      = false
lifetime = { main = "25 s", quick = "8 s" }
"""
# One datagram of twenty is lost on its way in, IKE and ESP; those of ESP are counted.
LOSS = """
table inet loss {
    chain in {
        type filter hook prerouting priority -400
        iifname e0 udp dport { 500, 4500 } numgen random mod 100 < 5 drop
        iifname e0 meta l4proto esp numgen random mod 100 < 5 counter drop
    }
}
"""
SETTINGS = {
    "ike": {"retransmit_first": 0.3, "retransmit_cap": 1.0, "retransmit_tries": 6, "liveness": 3.0},
    "log": {"level": "info", "format": "text"},
}


def policy(side: str) -> str:
    """All rules of a side: the network on the left and an address each on the right."""
    turn = 1 if side == "left" else -1
    own, peer = (lab.LEFT, lab.RIGHT)[::turn]
    rules = []
    for n in range(RULES):
        local, remote = (lab.NET_LEFT, inside(n))[::turn]
        rules.append(
            RULE.format(
                n=n,
                local=local,
                remote=remote,
                own=own,
                peer=peer,
                other="right" if side == "left" else "left",
                keying="ikev1" if n < OLD else "ikev2",
            )
        )
    return "".join(rules) + SETS


def inside(n: int) -> str:
    """The address behind the right one that a rule is for."""
    return f"10.2.1.{n + 1}"


class Traffic:
    """A packet to each address in turn, which comes back; in a thread."""

    def __init__(self, hosts: Lab) -> None:
        self.heard: dict[str, float] = {}  # by address: when something last came back
        self.sent = 0
        self._sender = lab.socket_in(hosts.left, socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.bind((lab.INSIDE_LEFT, 0))
        self._sender.setblocking(False)
        self._echoes = {}
        for n in range(RULES):
            lab.ip("-n", hosts.right, "addr", "add", f"{inside(n)}/32", "dev", "lo")
            echo = lab.socket_in(hosts.right, socket.AF_INET, socket.SOCK_DGRAM)
            echo.bind((inside(n), PORT))
            echo.setblocking(False)
            self._echoes[echo.fileno()] = echo
        self._quiet = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        poll = select.epoll()
        for one in (self._sender, *self._echoes.values()):
            poll.register(one, select.EPOLLIN)
        due = time.monotonic()
        while not self._over.is_set():
            for fileno, _ in poll.poll(EVERY if self._quiet else max(0.0, due - time.monotonic())):
                try:
                    if (echo := self._echoes.get(fileno)) is not None:
                        data, source = echo.recvfrom(64)
                        echo.sendto(data, source)
                    else:
                        _, (source, _) = self._sender.recvfrom(64)
                        self.heard[source] = time.monotonic()
                except OSError:  # the packet filter refuses, a queue is full: it is sent again
                    continue
            if time.monotonic() >= due and not self._quiet:
                due = max(due + EVERY, time.monotonic() - 1)
                self.sent += 1
                try:
                    self._sender.sendto(b"soak", (inside(self.sent % RULES), PORT))
                except OSError:
                    continue

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing is sent, and nothing is on its way: looking at both ends takes a while."""
        self._quiet = True
        time.sleep(1)
        yield
        self._quiet = False

    def working(self) -> bool:
        """Whether every rule carried a packet there and back in the last seconds."""
        return sum(when > time.monotonic() - 4 for when in self.heard.values()) == RULES

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        for one in (self._sender, *self._echoes.values()):
            one.close()


@dataclass
class Sample:
    """What a daemon has at a moment."""

    memory: int  # octets, of the daemon and its workers
    open: int  # descriptors, of both
    host: tuple[int, int, int]  # routes, routing rules, lines of the packet filter
    lost: int  # ESP on its way in
    gauges: dict[str, float] = field(default_factory=dict)

    def packets(self, direction: str) -> float:
        """What all rules have carried."""
        start = f"ikd_rule_packets_total {direction} "
        return sum(value for name, value in self.gauges.items() if name.startswith(start))


def processes(daemon: Ikd) -> list[int]:
    """The daemon and its workers."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return [daemon.pid, *map(int, children)]


def gauges(daemon: Ikd) -> dict[str, float]:
    """Metrics by name and labels."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(daemon.ask("metrics")["text"])
        for sample in family.samples
    }


def sample(daemon: Ikd) -> Sample:
    """Look at it."""
    memory = descriptors = 0
    for pid in processes(daemon):
        status = Path(f"/proc/{pid}/status").read_text()
        memory += int(status.split("VmRSS:")[1].split()[0]) << 10
        descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    lines = [
        len(lab.run(daemon.host.name, *command).stdout.splitlines())
        for command in (
            ("ip", "route", "show", "table", "all"),
            ("ip", "rule"),
            ("nft", "list", "ruleset"),
        )
    ]
    dropped = re.search(
        r"counter packets (\d+)", lab.run(daemon.host.name, "nft", "list", "table", "inet", "loss").stdout
    )
    lost = int(dropped[1]) if dropped else 0
    return Sample(memory, descriptors, (lines[0], lines[1], lines[2]), lost, gauges(daemon))


def pairs(daemon: Ikd) -> dict[str, float]:
    """Pairs in the database by their state, and those that workers have."""
    names = ("sadb_pairs mature", "sadb_pairs dying", "sadb_pairs larval", "engine_pairs")
    now = gauges(daemon)
    return {name: now[f"ikd_{name}"] for name in names}


def settled(daemon: Ikd) -> bool:
    """Whether there is one pair for each rule, besides those that go, for database and workers alike. Keys
    are replaced all the time, so it holds at some moments only. In IKEv1, where both sides may begin at once,
    a few have a twin, until the older one would be replaced."""
    mature, dying, larval, engine = pairs(daemon).values()
    return RULES <= mature <= RULES + OLD // 4 and (larval, engine) == (0, mature + dying) and dying < RULES


def twice(daemon: Ikd) -> str:
    """The pairs of rules that have more than one in use."""
    rules: dict[str, list[dict[str, Any]]] = {}
    for one in daemon.quick():
        if one["state"] == "mature":
            rules.setdefault(one["rule"], []).append(one)
    return "\n".join(str(one) for found in rules.values() if len(found) > 1 for one in found)


def restart(daemon: Ikd, number: int) -> None:
    """Kill it, or stop it, and start it again."""
    status = daemon.stop(number=number)
    assert status == (0 if number == signal.SIGTERM else -number), daemon.log()[-4000:]
    daemon.start()


@contextmanager
def loss(hosts: Lab) -> Iterator[None]:
    """Datagrams get lost."""
    for one in (hosts.left, hosts.right):
        lab.nft(one, LOSS)
    try:
        yield
    finally:
        for one in (hosts.left, hosts.right):
            lab.nft(one, "delete table inet loss")


def told(both: Twins) -> str:
    """What may explain a failure."""
    return "\n".join(
        f"{one.host.name}: {one.ctl('status')}\n{one.log()[-3000:]}" for one in (both.left, both.right)
    )


def test_nothing_grows(hosts: Lab, place: Path) -> None:
    """A daemon that leaks a little for each rekey is one that stops in a month, at night."""
    began = time.monotonic()
    both: Any = twins(hosts, place, policy("left"), policy("right"), settings=SETTINGS)
    daemons = both.left, both.right
    with both, Traffic(hosts) as traffic:
        eventually(traffic.working, "all tunnels are up", 40)
        first = {one: sample(one) for one in daemons}
        with loss(hosts):
            turns = [(one, how) for how in (signal.SIGKILL, signal.SIGTERM) for one in daemons]
            done = 0
            while done < 2 or time.monotonic() - began < SECONDS * RESTARTS:
                restart(*turns[done % len(turns)])
                done += 1
                time.sleep(PAUSE)
            eventually(traffic.working, f"all tunnels are up after restarts\n{told(both)}", 30)
            time.sleep(max(10.0, SECONDS * WARM - (time.monotonic() - began)))
            with traffic.quiet():
                warm = {one: sample(one) for one in daemons}
            time.sleep(max(5.0, SECONDS - 15 - (time.monotonic() - began)))
            with traffic.quiet():
                hot = {one: sample(one) for one in daemons}
            for one in daemons:
                print(f"{one.host.name}: {warm[one].memory >> 20} MiB, then {hot[one].memory >> 20} MiB")
        eventually(traffic.working, f"all tunnels are up in the end\n{told(both)}", 15)
        for one in daemons:
            for _ in range(60):
                if settled(one):
                    break
                time.sleep(0.1)
            else:
                pytest.fail(f"{one.host.name} does not settle: {pairs(one)}\n{twice(one)}")
        for one in daemons:
            now = sample(one)
            factor, octets = GROWTH
            assert hot[one].memory <= warm[one].memory * factor + octets, (warm[one], hot[one])
            assert now.open <= first[one].open + 1, (first[one].open, now.open)
            assert now.host[:2] == first[one].host[:2]
            assert now.host[2] == first[one].host[2]
            assert now.gauges["ikd_tasks"] <= first[one].gauges["ikd_tasks"] + 1
            assert now.gauges["ikd_half_open"] == 0
            assert "internal error" not in one.log()
        for near, far in (daemons, daemons[::-1]):
            sent = hot[near].packets("out") - warm[near].packets("out")
            came = hot[far].packets("in") - warm[far].packets("in")
            lost = hot[far].lost - warm[far].lost
            assert sent > 100
            assert abs(sent - came - lost) < 0.03 * sent + 30, (sent, came, lost)
        rekeyed = [one[both.left].gauges["ikd_child_established_total rekeyed tunnel"] for one in (warm, hot)]
        assert rekeyed[1] - rekeyed[0] > RULES  # it was a soak
