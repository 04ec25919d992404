"""What runs of tests that were killed have left on this machine. Names say which process made a thing: what
is of one that is gone is removed before the next run makes its own, which may get the same process id."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_MADE = re.compile(r"(?:localhost/ikd-test-|ikd-user-|ikdtest|ikdnet|ikdt)(\d+)|ikd(\d+)[nd]\d")


def orphaned(names: Iterable[str]) -> list[str]:
    """Those whose maker is gone."""
    found = ((name, _MADE.match(name)) for name in names)
    return [name for name, made in found if made and not Path(f"/proc/{made[1] or made[2]}").exists()]


@cache
def remove_namespaces() -> None:
    """Network namespaces, with what runs in them; once for a process. Others may do the same now."""
    for name in orphaned(_lines("ip", "netns", "list")):
        for pid in _lines("ip", "netns", "pids", name):
            with suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        _lines("ip", "netns", "del", name)


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


def remove_containers(podman: Callable[..., str]) -> None:
    """Containers, networks and images, by a function that runs podman."""
    for listed, removed in (
        (("ps", "--all", "--format", "{{.Names}}"), ("rm", "--force", "--time", "0")),
        (("network", "ls", "--format", "{{.Name}}"), ("network", "rm", "--force")),
        (("images", "--format", "{{.Repository}}"), ("rmi", "--force")),
    ):
        for name in orphaned(podman(*listed, check=False).split()):
            podman(*removed, name, check=False)
