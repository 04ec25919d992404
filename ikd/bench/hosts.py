"""Shell. Namespaces and processes of `ikctl bench`: made when entered, gone when left, whatever happens.

Processes are ended by their own id. They have sessions of their own, so that an interrupt at the keyboard
reaches only `ikctl`, which then takes everything apart in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ikd import pki
from ikd.bench import parties
from ikd.bench.load import Measured, Order
from ikd.bench.parties import IKD, RESPONDERS, STRONGSWAN
from ikd.control.client import Client
from ikd.control.protocol import ControlError

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE: Final = 20.0


class Trouble(Exception):
    """Something that the measurement needs does not work; the text has what was seen."""


# Places --------------------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    """One `ip` command; raises `Trouble` with its message."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Trouble(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def namespaces(*parts: str) -> Iterator[Mapping[str, str]]:
    """A namespace for each part, by its name."""
    names = {who: f"ikd-bench-{os.getpid()}-{who}" for who in parts}
    try:
        for name in names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextlib.contextmanager
def responders() -> Iterator[Mapping[str, str]]:
    """A namespace for the initiator, `load`, and one for each responder, by its name, linked to it."""
    with namespaces("load", *(one.name for one in RESPONDERS)) as names:
        for one in RESPONDERS:
            link((names["load"], one.device, one.load_address), (names[one.name], "e0", one.address))
            inside(names[one.name], parties.SERVER_INSIDE)
        yield names


def link(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Two namespaces, each with the name and the address of its end."""
    ends = "netns", one[0], "type", "veth", "peer", "name", other[1], "netns", other[0]
    ip("link", "add", one[1], *ends)
    for name, device, address in (one, other):
        ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
        ip("-n", name, "link", "set", device, "up")


def inside(name: str, address: str) -> None:
    """A network behind a host, with the host's address in it."""
    ip("-n", name, "link", "add", "in0", "type", "veth", "peer", "name", "in1")
    ip("-n", name, "addr", "add", address, "dev", "in0")
    for device in ("in0", "in1"):
        ip("-n", name, "link", "set", device, "up")


# Processes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(
    namespace: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    talks: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """A program in a namespace, its output in `log`; with pipes to its standard input and output when it
    `talks` to us."""
    with log.open("wb") as output:
        made = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield made
    finally:
        made.terminate()
        try:
            made.wait(10)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()
        for pipe in (made.stdin, made.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def await_file(made: subprocess.Popen[str], ready: Path, what: str, *logs: Path) -> None:
    """Until somebody listens on a socket, or another file is there that tells that a program serves."""
    deadline = time.monotonic() + PATIENCE
    while not _serves(ready):
        if made.poll() is not None or time.monotonic() > deadline:
            raise Trouble(f"{what} does not start:\n{tails(logs)}")
        time.sleep(0.02)


def _serves(ready: Path) -> bool:
    if not ready.is_socket():
        return ready.exists()
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(ready)) == 0


def tails(logs: Sequence[Path]) -> str:
    """The ends of logs, for whoever has to find out."""
    return "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())


@contextlib.contextmanager
def ikd(namespace: str, home: Path, profile: Path | None, environment: Mapping[str, str]) -> Iterator[int]:
    """Our responder; its process id. With `profile` its processor time is sampled, and that file written at
    the end."""
    program = ("ikd.bench.profiled", str(profile)) if profile else ("ikd",)
    command = [sys.executable, "-m", *program, "--config", str(home)]
    control, log = home / "control.sock", home / "log"
    with process(namespace, command, log, environment) as made:
        await_file(made, control, "ikd", log)
        _await_answer(made, control, log)
        yield made.pid


def _await_answer(made: subprocess.Popen[str], control: Path, log: Path) -> None:
    """Until the daemon serves: its socket is there before, so that a second one is refused."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with Client(control, PATIENCE) as client:
                client.call("version")
                return
        except ControlError as error:
            if made.poll() is not None or time.monotonic() > deadline:
                raise Trouble(f"ikd does not answer: {error}\n{tails([log])}") from None
        time.sleep(0.02)


@contextlib.contextmanager
def strongswan(namespace: str, home: Path) -> Iterator[int]:
    """charon in the foreground with its own files; its process id."""
    log = home / "log"
    with process(namespace, [parties.CHARON], log, _charon_places(home)) as made:
        await_file(made, home / "charon.vici", "strongSwan", log, home / "charon.log")
        swanctl(home, "--load-all")
        yield made.pid


def swanctl(home: Path, *arguments: str) -> None:
    """One swanctl command to the charon of this directory; raises `Trouble`."""
    done = subprocess.run(
        ["swanctl", *arguments, "--uri", f"unix://{home / 'charon.vici'}"],
        env=os.environ | _charon_places(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Trouble(f"swanctl {' '.join(arguments)}: {done.stdout}{done.stderr}")


def _charon_places(home: Path) -> dict[str, str]:
    return {"STRONGSWAN_CONF": str(home / "strongswan.conf"), "SWANCTL_DIR": str(home / "swanctl")}


def strongswan_missing() -> bool:
    """Whether strongSwan, or a part of it that is needed, is not installed."""
    return not all(Path(one).exists() for one in parties.CHARON_FILES)


class Talker:
    """A process of ours that speaks in JSON lines."""

    def __init__(self, made: subprocess.Popen[str], log: Path, what: str) -> None:
        self._made = made
        self._log = log
        self._what = what

    def say(self, words: Mapping[str, Any]) -> None:
        """One line to it; when it has ended, `hear` tells."""
        assert self._made.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._made.stdin.write(json.dumps(words) + "\n")
            self._made.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next line from it; raises `Trouble`."""
        assert self._made.stdout is not None
        line = self._made.stdout.readline()
        if not line:
            raise Trouble(f"{self._what} ended:\n{tails([self._log])}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Trouble(f"{self._what}: {answer['error']}\n{tails([self._log])}")
        return answer


class Initiator(Talker):
    """The process of `ikd.bench.load`."""

    def run(self, order: Order) -> Measured:
        """One batch; raises `Trouble`."""
        self.say(asdict(order))
        return Measured(**self.hear())


@contextlib.contextmanager
def initiator(namespace: str, log: Path, environment: Mapping[str, str]) -> Iterator[Initiator]:
    """The one initiator of all measurements."""
    command = [sys.executable, "-m", "ikd.bench.load"]
    with process(namespace, command, log, environment, talks=True) as made:
        yield Initiator(made, log, "the initiator")


# Files ---------------------------------------------------------------------------------------------------


def prepare(directory: Path, auth: str, now: float) -> dict[str, Path]:
    """The directories of initiator and responders for a kind of authentication; for Kerberos without the
    keytabs."""
    kind = parties.AUTHS[auth]
    homes = {who: directory / f"{auth}-{who}" for who in ("load", IKD.name)}
    secret = os.urandom(24).hex()
    for who, identity, peer in (
        ("load", parties.LOAD_ID, parties.SERVER_ID),
        (IKD.name, parties.SERVER_ID, parties.LOAD_ID),
    ):
        home = homes[who]
        (home / "pki").mkdir(parents=True)
        (home / "ikd.toml").write_text(parties.settings(identity, auth, str(home)))
        policy = parties.load_policy(auth) if who == "load" else parties.server_policy(auth)
        (home / "policy.toml").write_text(policy)
        if kind.method == "psk":
            private(home / "secrets.toml", parties.secrets(peer, secret).encode())
    if kind.keying == "ikev2":
        homes[STRONGSWAN.name] = home = directory / f"{auth}-{STRONGSWAN.name}"
        charon_files(home, parties.charon_connection(auth, secret))
    if kind.key:
        _certify(homes, kind.key, now)
    return homes


def charon_files(home: Path, connections: str) -> None:
    """What a charon reads, in a new directory."""
    for name in ("conf.d", "x509", "x509ca", "private"):
        (home / "swanctl" / name).mkdir(parents=True)
    (home / "strongswan.conf").write_text(parties.charon_settings(str(home)))
    private(home / "swanctl" / "swanctl.conf", connections.encode())


def _certify(homes: Mapping[str, Path], kind: str, now: float) -> None:
    """An authority, a certificate for the initiator, and one that the responders share."""
    authority = pki.make_ca("CN=Bench CA", now, days=1, kind=kind)
    trusted = pki.certificate_pem(authority.certificate)
    hosts: dict[str, Any] = {
        name: pki.issue(authority, f"CN={name}", [name], now=now, days=1, kind=kind)
        for name in (parties.LOAD_ID, parties.SERVER_ID)
    }
    for who, host in (("load", hosts[parties.LOAD_ID]), (IKD.name, hosts[parties.SERVER_ID])):
        home = homes[who] / "pki"
        (home / "ca.pem").write_bytes(trusted)
        (home / "host.pem").write_bytes(pki.certificate_pem(host.certificate))
        private(home / "host.key", pki.key_pem(host.key))
    if STRONGSWAN.name not in homes:
        return
    home, host = homes[STRONGSWAN.name] / "swanctl", hosts[parties.SERVER_ID]
    (home / "x509ca" / "ca.pem").write_bytes(trusted)
    (home / "x509" / "host.pem").write_bytes(pki.certificate_pem(host.certificate))
    private(home / "private" / "host.pem", pki.key_pem(host.key))


def private(path: Path, content: bytes) -> None:
    """A file that nobody else may read, not even for a moment."""
    path.touch(mode=0o600)
    path.write_bytes(content)
