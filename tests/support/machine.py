"""A container booted by systemd, with `ikd` installed as docs/operator.md says: units, user, directories."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.containers import ROOT, Podman
from support.daemon import toml
from support.scenario import eventually, secrets

UNITS = ("ikd.service", "ikd.socket", "ikd-control.socket")
PYTHON = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
IKCTL = f'{PYTHON} -c "from ikd.control.cli import main; main()"'
PATHS = ("PYTHONPATH=/opt/ikd:/opt/site", "LD_LIBRARY_PATH=/opt/python/lib")

# only where Python is differs from an installation
DROP_IN = f"""\
[Service]
Environment={" ".join(PATHS)}
ExecStart=
ExecStart={PYTHON} -m ikd --config /etc/ikd
ExecReload=
ExecReload={IKCTL} reload
"""
USERS = """\
u member - "who may use ikctl"
m member ikd
u stranger - "who may not"
"""
POLICY = """\
[[rule]]
name     = "other"
remote   = "{remote}"
security = "require"
peer     = "{peer}.lab"
"""

# An IKE request of major version 3, which is answered at once and without state (RFC 7296 section 2.5)
ASK = """\
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(50)
    request = "0102030405060708" + "00" * 8 + "21302208" + "00" * 4 + "0000001c"
    sock.sendto(bytes.fromhex(request), ("127.0.0.1", 500))
    print("sent", flush=True)
    print(sock.recv(100).hex())
"""


# TCP: one message at a time, each answered; when input ends, the longest time without an answer
ANSWER = """\
import socket
with socket.create_server(("0.0.0.0", 7)) as server:
    print("listens", flush=True)
    with server.accept()[0] as sock:
        while data := sock.recv(65536):
            sock.sendall(data)
"""
TALK = """\
import select, socket, sys, time
with socket.create_connection((sys.argv[1], 7), 20) as sock:
    longest, count, last = 0.0, 0, time.monotonic()
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        sock.sendall(b"x" * 1000)
        left = 1000
        while left:
            left -= len(sock.recv(left)) or sys.exit("the other hung up")
        longest, last, count = max(longest, time.monotonic() - last), time.monotonic(), count + 1
        print(count, flush=True)
    print("end", longest)
"""


class Talk:
    """A TCP connection between two machines, in use."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def goes_on(self) -> None:
        """Wait until something that was sent from now on has come back."""
        assert self._process.stdout is not None
        until = time.monotonic()
        while True:
            line = self._process.stdout.readline()
            assert line, f"the connection ended: {self._process.communicate()[1]}"
            if time.monotonic() > until + 0.2:
                return

    def end(self) -> float:
        """Hang up; the longest time in seconds in which nothing came through."""
        output, error = self._process.communicate("", timeout=60)
        *_, last = output.splitlines() or [""]
        assert last.startswith("end "), f"the connection broke: {last} {error}"
        return float(last.removeprefix("end "))


class Machine:
    """One such container, `NAME.lab` with a rule for `other`."""

    def __init__(
        self, podman: Podman, directory: Path, name: str, number: int, other: str, remote: str
    ) -> None:
        self.podman = podman
        self.name = name
        self.directory = directory / name
        self._here = (*(f"--env={one}" for one in PATHS), f"{podman.network}-{name}")
        files = self._write(other, remote)
        self.address = podman.boot(name, number, files)
        eventually(self._booted, "boot", 60)
        self("chown", "-R", "ikd:", "/etc/ikd")
        self("systemctl", "enable", "--now", "ikd.service")

    def _booted(self) -> bool:
        """Degraded it may be: some services of the host cannot run in a container."""
        return self("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def _write(self, other: str, remote: str) -> Mapping[str, Path]:
        """What the machine needs to have at boot, by the paths in it."""
        configuration, extra = self.directory / "ikd", self.directory / "extra"
        for one in (configuration, extra):
            one.mkdir(parents=True)
        (configuration / "ikd.toml").write_text(toml({"identity": {"id": f"{self.name}.lab"}}))
        self.policy = POLICY.format(remote=remote, peer=other)
        self.write_policy(self.policy)
        (configuration / "secrets.toml").write_text(secrets(peer=f"{other}.lab"))
        (configuration / "secrets.toml").chmod(0o600)
        (extra / "python.conf").write_text(DROP_IN)
        (extra / "users.conf").write_text(USERS)
        (extra / "machine-id").write_text("1" * 32 + "\n")  # else systemd enables all that the host has
        system, units = "/etc/systemd/system", ROOT / "systemd"
        return {
            "/etc/ikd": configuration,
            "/etc/machine-id": extra / "machine-id",
            f"{system}/ikd.service.d/python.conf": extra / "python.conf",
            "/etc/sysusers.d/ikd.conf": units / "ikd.sysusers",
            "/etc/sysusers.d/users.conf": extra / "users.conf",
            "/etc/tmpfiles.d/ikd.conf": units / "ikd.tmpfiles",
        } | {f"{system}/{unit}": units / unit for unit in UNITS}

    def write_policy(self, text: str) -> None:
        """Another policy.toml, for the next start or reload."""
        (self.directory / "ikd" / "policy.toml").write_text(text)

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command as root, whatever its status."""
        return self.podman.attempt("exec", *self._here, *command)

    def __call__(self, *command: str, check: bool = True) -> str:
        """A command as root; its output."""
        done = self.attempt(*command)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}{self.said()}"
        return done.stdout

    def ikctl(self, *arguments: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """`ikctl` as a user with the groups of that user."""
        become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        return self.attempt(*become, PYTHON, "-c", "from ikd.control.cli import main; main()", *arguments)

    def drop_in(self, name: str, *lines: str) -> None:
        """Lines for [Service] until the next boot; without any, none."""
        place = f"/run/systemd/system/ikd.service.d/{name}.conf"
        text = "\n".join(("[Service]", *lines)) if lines else ""
        self(
            "sh",
            "-c",
            f"mkdir -p $(dirname {place}); printf '%s\\n' '{text}' >{place}; systemctl daemon-reload",
        )

    def show(self, name: str) -> str:
        """A property of the service."""
        return self("systemctl", "show", "--value", "--property", name, "ikd.service").strip()

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """The service's messages in the journal, every field of each."""
        self("journalctl", "--sync")
        lines = self("journalctl", "-o", "json", "--no-pager", "-u", "ikd.service", *matches)
        return [json.loads(line) for line in lines.splitlines()]

    def said(self) -> str:
        """The end of the journal, for people."""
        return self("journalctl", "--no-pager", "-n", "40", check=False)

    @staticmethod
    def now() -> str:
        """This moment, as an argument of `entries`."""
        return f"--since=@{time.time():.6f}"

    def ask(self) -> subprocess.Popen[str]:
        """Send one IKE request to this machine, which waits for the answer; returns when it is sent."""
        asking = self._begin(ASK)
        assert asking.stdout is not None
        assert asking.stdout.readline() == "sent\n"
        return asking

    @contextmanager
    def talking_to(self, other: Machine) -> Iterator[Talk]:
        """A TCP connection that is in use."""
        with other._begin(ANSWER) as answering:
            assert answering.stdout is not None
            assert answering.stdout.readline() == "listens\n"
            with self._begin(TALK, other.address) as talking:
                yield Talk(talking)

    def _begin(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """A script of Python in the machine, with our pipes."""
        return subprocess.Popen(
            ["podman", "exec", "--interactive", *self._here, PYTHON, "-c", script, *arguments],
            env=self.podman.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self, name: str, value: str, seconds: float = 30) -> None:
        """Until a property of the service has a value."""
        deadline = time.monotonic() + seconds
        while (now := self.show(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {now} and not {value}: {self.said()}"
            time.sleep(0.05)
