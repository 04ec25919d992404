"""What stands for a machine in a test: a network namespace of this one, of a user namespace, or a container.

A program under test is started as one of the machine's own processes, with no more rights than those have;
what looks at its network from outside (`ping`, `nft`, `ip`) has all of them.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from support.containers import Podman


class Host(ABC):
    """One machine."""

    @abstractmethod
    def outside(self, *command: str) -> list[str]:
        """The command that runs another one on the machine's network, as somebody who may do everything
        there."""

    @abstractmethod
    def start(
        self, program: Sequence[str], variables: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a program on the machine; signals that are sent to what is returned reach it."""

    def give(self, directory: Path) -> None:  # noqa: B027 - most machines are root's
        """Let the machine's programs have a directory and all that is in it."""

    def run(self, *command: str, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command from outside with its output; does not raise on a status."""
        return subprocess.run(
            self.outside(*command), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )

    def do(self, *command: str, stdin: str = "") -> str:
        """The same; raises with what it said when it fails."""
        done = self.run(*command, stdin=stdin)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout


def _popen(
    command: Sequence[str], variables: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


@dataclass(frozen=True)
class Namespace(Host):
    """A network namespace. `entry` leads to where its name is known, `owner` is who owns that place."""

    name: str
    entry: tuple[str, ...] = ()
    owner: int = 0

    def outside(self, *command: str) -> list[str]:
        return [*self.entry, "ip", "netns", "exec", self.name, *command]

    def start(
        self, program: Sequence[str], variables: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return _popen(self.outside(*program), variables, output)  # each on the way becomes the next

    def give(self, directory: Path) -> None:
        if self.owner:
            for one in (directory, *directory.rglob("*")):
                os.chown(one, self.owner, self.owner)


class Local(Host):
    """This machine itself."""

    def outside(self, *command: str) -> list[str]:
        return list(command)

    def start(
        self, program: Sequence[str], variables: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return _popen(program, variables, output)


class _Executed(subprocess.Popen[bytes]):
    """`podman exec`, which passes no signals on: they are sent in the container, to the process whose id the
    file has."""

    container: Container
    file: Path

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            deadline = time.monotonic() + 10
            while not (self.file.exists() and self.file.read_text().endswith("\n")):
                assert time.monotonic() < deadline, "podman starts nothing"
                time.sleep(0.02)
            inside = self.file.read_text().strip()
            command = ["nsenter", "-t", str(self.container.pid), "-p", "kill", f"-{sig}", inside]
            subprocess.run(command, capture_output=True, check=False)  # it may have ended meanwhile


@dataclass(frozen=True)
class Container(Host):
    """A container of podman; `pid` is its first process here."""

    podman: Podman
    name: str
    namespace: str
    pid: int
    directory: Path  # which it shares with us

    def outside(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]

    def start(
        self, program: Sequence[str], variables: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        file = self.directory / f"{self.name}-{time.monotonic_ns()}.pid"
        given = [f"--env={name}={value}" for name, value in variables.items()]
        script = 'echo $$ >"$0"; exec "$@"'
        process = _Executed(
            ["podman", "exec", *given, self.podman.full(self.name), "sh", "-c", script, str(file), *program],
            env=self.podman.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process.container, process.file = self, file
        return process
