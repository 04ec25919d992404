"""An `ikd` in a namespace or a container, configured from a directory made for it, and `ikctl` to ask it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.hosts import Host, Namespace

from ikd.control.client import Client
from ikd.control.protocol import ControlError

ROOT = Path(__file__).resolve().parents[2]
IKD = (sys.executable, "-m", "ikd")
IKCTL = (sys.executable, "-c", "from ikd.control.cli import main; main()")


def toml(tree: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain values as TOML; JSON writes them the same way, except for inline tables."""
    lines = []
    for table, content in tree.items():
        lines.append(f"[{table}]")
        for key, value in content.items():
            text = str(value) if isinstance(value, Path) else value
            lines.append(f"{key} = {_inline(text)}")
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_inline(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


class CommandFailed(Exception):
    """`ikctl` ended with another status than 0; `status` has it."""

    def __init__(self, arguments: tuple[str, ...], result: subprocess.CompletedProcess[str]) -> None:
        super().__init__(
            f"ikctl {' '.join(arguments)}: status {result.returncode}: {result.stdout}{result.stderr}"
        )
        self.status = result.returncode


class Ikd:
    """One daemon, on the machine `place` or in the namespace of that name. `settings` is merged into
    ikd.toml; `secrets` is the text of secrets.toml; `variables` are those of its environment beside ours;
    `program` may be another one that becomes the daemon."""

    def __init__(
        self,
        place: Host | str,
        directory: Path,
        policy: str,
        *,
        secrets: str = "",
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.host = Namespace(place) if isinstance(place, str) else place
        self.variables = {**(variables or {}), "PYTHONPATH": str(ROOT)}
        self.program: tuple[str, ...] = IKD
        self.directory = directory
        self.socket = directory / "control.sock"
        self.log_file = directory / "ikd.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        tables: dict[str, dict[str, Any]] = {
            "daemon": {"control": str(self.socket), "state": str(directory / "state")},
            "log": {"level": "debug", "format": "text"},
        }
        for table, content in (settings or {}).items():
            tables.setdefault(table, {}).update(content)
        (directory / "ikd.toml").write_text(toml(tables))
        self.write_policy(policy)
        if secrets:
            file = directory / "secrets.toml"
            file.write_text(secrets)
            file.chmod(0o600)

    def write_policy(self, policy: str) -> None:
        """Another policy.toml, for the next start or reload."""
        (self.directory / "policy.toml").write_text(policy)

    @property
    def pid(self) -> int:
        """Process id while it runs in a namespace (`ip netns exec` replaces itself by the daemon)."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Ikd:
        """Start it; returns when the control socket answers."""
        self.launch()
        return self.started()

    def launch(self) -> None:
        """Start it without waiting."""
        program = (*self.program, "--config", str(self.directory))
        with self.log_file.open("ab") as output:
            self.host.give(self.directory)
            self._process = self.host.start(program, self.variables, output)

    def started(self) -> Ikd:
        """Wait until the control socket answers."""
        assert self._process is not None
        deadline = time.monotonic() + 60
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ikd does not start:\n{self.log()[-6000:]}")
            time.sleep(0.05)
        return self

    def replace(self, other: Ikd) -> Ikd:
        """Become another object's running daemon, which reads its files anew: those of this one."""
        self._process, other._process = other._process, None
        self.host.give(self.directory)
        self.ask("reload")
        return self

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def run_once(self) -> subprocess.CompletedProcess[str]:
        """Run it where it is expected to end by itself, such as beside another daemon."""
        return subprocess.run(
            self.host.outside(*IKD, "--config", str(self.directory)),
            env=os.environ | self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def answers(self) -> bool:
        """Whether a daemon is at the control socket."""
        try:
            self.ask("version")
        except ControlError:
            return False
        return True

    def stop(self, *, number: int = signal.SIGTERM) -> int | None:
        """End it, by its pid, and return its exit status; safe to repeat."""
        self.terminate(number=number)
        return self.ended()

    def terminate(self, *, number: int = signal.SIGTERM) -> None:
        """Tell it to end without waiting."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)

    def ended(self) -> int | None:
        """Wait for its end; its exit status."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise RuntimeError(f"ikd does not end:\n{self.log()[-6000:]}") from None

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def __enter__(self) -> Ikd:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def try_ctl(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One `ikctl` command with its status and output."""
        return subprocess.run(
            [*IKCTL, "--socket", str(self.socket), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ctl(self, *arguments: str, timeout: float = 60) -> str:
        """The output of an `ikctl` command; raises `CommandFailed`."""
        result = self.try_ctl(*arguments, timeout=timeout)
        if result.returncode != 0:
            raise CommandFailed(arguments, result)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """The answer of an `ikctl` command as data."""
        return json.loads(self.ctl(*arguments, "--json"))

    def ask(self, do: str, **parameters: Any) -> Any:
        """The answer of a request, straight from the control socket: for waiting, where a process each is
        slow."""
        with Client(self.socket, 30) as client:
            return client.call(do, **parameters)

    def main(self) -> list[dict[str, Any]]:
        """The IKE SAs."""
        found: list[dict[str, Any]] = self.ask("sa", kind="main")["main"]
        return found

    def quick(self) -> list[dict[str, Any]]:
        """The Child SAs."""
        found: list[dict[str, Any]] = self.ask("sa", kind="quick")["quick"]
        return found

    def drops(self) -> dict[str, int]:
        """Packets that came to nothing in the data plane, by reason."""
        text = self.ask("metrics")["text"]
        found = re.findall(r'^ikd_packets_dropped\w*\{reason="([^"]+)"\} (\d+)', text, re.MULTILINE)
        return {reason: int(number) for reason, number in found if int(number)}

    def log(self) -> str:
        """Everything the daemon wrote."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
