"""Virtual machines, here containers, each with a daemon of its own and a port on the host's adapter: quotas
hold, and whatever becomes of slots or host, traffic goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.containers import Podman, why_not
from support.daemon import IKCTL, IKD, Ikd, toml
from support.lab import Lab
from support.require import require
from support.scenario import eventually, secrets

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

RULES = 40  # pairs of each guest, of two SAs each
PORT = 7000
RULE = """\
[[rule]]
name = "{name}"
remote = "{remote}"
protocol = "udp"
{port} = {number}
security = "require"
peer = "{peer}.lab"
crypto = "offload"
"""
CRYPTO = """
[crypto.offload]
quick = ["aes128gcm"]
esn = false
"""
ECHO = """
import socket, sys
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range({rules})]
import selectors
ready = selectors.DefaultSelector()
for number, one in enumerate(sockets):
    one.bind(("0.0.0.0", {port} + number))
    ready.register(one, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        data, where = key.fileobj.recvfrom(2048)
        key.fileobj.sendto(data, where)
"""
TALK = """
import socket, sys, time
peer, first, last, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(10)
sent = lost = 0
print("begun", flush=True)
until = time.monotonic() + seconds
while time.monotonic() < until or sent == 0:
    for port in range(first, last):
        one.sendto(b"%d" % sent, (peer, port))
        sent += 1
        try:
            one.recvfrom(2048)
        except TimeoutError:
            lost += 1
print(sent, lost)
"""


def policy(rows: list[tuple[str, str, str]], key: str) -> str:
    """Rules for each of several remote hosts: name, address, and the identity it proves."""
    rules = [
        RULE.format(name=f"{name}{number}", remote=remote, port=key, number=PORT + number, peer=peer)
        for name, remote, peer in rows
        for number in range(RULES)
    ]
    return "\n".join(rules) + CRYPTO


def told(process: subprocess.Popen[str]) -> tuple[int, int]:
    """How many datagrams it has sent, and how many of them had no answer."""
    sent, lost = process.communicate(timeout=90)[0].split()
    return int(sent), int(lost)


@dataclass
class Site:
    """The host's daemon, which has the adapter, and the containers."""

    host: Ikd
    podman: Podman
    place: Path
    peer: str

    def ctl(self, name: str, *words: str) -> str:
        """`ikctl` in a container."""
        return self.podman.execute(name, *IKCTL, "--socket", "/run/ikd.sock", *words)

    def talk(self, name: str, *, ports: tuple[int, int] = (0, RULES), seconds: float = 0) -> tuple[int, int]:
        """Datagrams there and back, one after the other: how many, and how many of them had no answer."""
        with self.talking(name, ports=ports, seconds=seconds) as process:
            return told(process)

    def talking(
        self, name: str, *, ports: tuple[int, int] = (0, RULES), seconds: float = 0
    ) -> subprocess.Popen[str]:
        """The same beside the test; returns when it has begun."""
        first, last = (str(PORT + one) for one in ports)
        command = (sys.executable, "-c", TALK, self.peer, first, last, str(seconds))
        process = subprocess.Popen(
            ["podman", "exec", self.podman.full(name), *command],
            env=self.podman.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process

    def ports(self) -> dict[str, dict[str, Any]]:
        """What the host says of its ports."""
        return {one["name"]: one for one in self.host.json("offload")["ports"]}

    def start(self, name: str, number: int, mounts: list[Path], text: str, settings: dict[str, Any]) -> None:
        """A container with a daemon."""
        directory = self.place / name
        directory.mkdir()
        (directory / "policy.toml").write_text(text)
        (directory / "secrets.toml").write_text(secrets(peer=".lab"))
        (directory / "secrets.toml").write_text(
            "\n".join(secrets(peer=f"{other}.lab") for other in ("one", "two", "peer") if other != name)
        )
        (directory / "secrets.toml").chmod(0o600)
        tables = {
            "daemon": {"control": "/run/ikd.sock", "state": "/run/state"},
            "identity": {"id": f"{name}.lab"},
            "log": {"format": "text"},
            "dataplane": settings,
        }
        (directory / "ikd.toml").write_text(toml(tables))
        self.podman.run(name, number, directory, *mounts)
        started = " ".join((sys.executable, *IKD[1:], "--config", str(directory)))
        self.podman.background(name, "sh", "-c", f"exec {started} >{directory}/ikd.log 2>&1")
        eventually(
            lambda: (
                "ikd"
                in self.podman.execute(name, *IKCTL, "--socket", "/run/ikd.sock", "version", check=False)
            ),
            f"the daemon in {name}",
            60,
        )


@contextmanager
def site(hosts: Lab, place: Path, offload: str) -> Iterator[Site]:
    """A host with an adapter, two guests with ports `one` and `two`, and a peer for both."""
    reason = why_not(place)
    require(not reason, f"containers: {reason}")
    (place / "host").mkdir()
    (place / "host" / "offload.toml").write_text(offload)
    settings = {"dataplane": {"backend": "nic"}}
    with Podman(place) as podman, Ikd(hosts.left, place / "host", "", settings=settings) as host:
        made = Site(host, podman, place, f"{podman.subnet}.13")
        for number, name in ((11, "one"), (12, "two")):
            sock = Path(host.json("offload")["ports"][number - 10]["socket"])
            rules = policy([("to", made.peer, "peer")], "remote_port")
            made.start(name, number, [sock], rules, {"backend": "nic", "switch": str(sock)})
        rows = [("a", f"{podman.subnet}.11", "one"), ("b", f"{podman.subnet}.12", "two")]
        made.start("peer", 13, [], policy(rows, "local_port"), {})
        podman.background("peer", sys.executable, "-c", ECHO.format(rules=RULES, port=PORT))
        yield made


OFFLOAD = """\
[adapter]
profile = "82599"

[port.one]
limit = 64

[port.two]
limit = 0
"""


def test_quotas_of_two_guests(hosts: Lab, place: Path) -> None:
    """The first has at most 64 SAs in the adapter, the second none, and both pass traffic; a limit that is
    lowered under load, and a host that dies, cost no packet that is not in flight."""
    with site(hosts, place, OFFLOAD) as made:
        for name in ("one", "two"):
            made.talk(name)  # makes the pairs
            assert made.talk(name) == (RULES, 0)
        eventually(lambda: made.ports()["one"]["used"] == 64, "64 SAs in the adapter")
        ports = made.ports()
        assert ports["two"]["used"] == 0
        assert ports["one"]["refused"]["port_limit"] > 0
        assert ports["two"]["attached"]
        assert "port one of the host's adapter, 32 SA pairs in it" in made.ctl("one", "offload")
        eventually(lambda: made.ports()["one"]["octets_offloaded"] > 0, "octets through the adapter")

        with made.talking("one", seconds=3) as process:
            made.host.ctl("offload", "set-port", "one", "--max-sa", "16")
            eventually(lambda: made.ports()["one"]["used"] == 16, "what is above the limit to leave")
            sent, lost = told(process)
        assert sent > RULES
        assert lost == 0

        made.host.stop(number=9)
        assert made.talk("one", seconds=1)[1] <= 1
        eventually(lambda: "does not answer" in made.ctl("one", "offload"), "it is told")
        assert json.loads(made.ctl("one", "offload", "--json"))["guest"]["pairs_offloaded"] == 0
