"""The demonstration is the first thing a stranger runs: it must work, say what it did, and leave nothing
behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = (sys.executable, "-m", "ikd.demo")

pytestmark = pytest.mark.interop


def start(*arguments: str) -> subprocess.Popen[str]:
    """The program with its output piped."""
    return subprocess.Popen(
        [*DEMO, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def namespaces(pid: int) -> list[str]:
    """The network namespaces a demonstration with this process id has."""
    place = Path("/run/netns")
    return sorted(one.name for one in place.glob(f"ikd-demo-{pid}-*"))


def test_demo_shows_protected_traffic() -> None:
    """If this fails, the README's first command does."""
    began = time.monotonic()
    process = start()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "only ESP and IKE" in output
    assert "left.example" in output
    assert "right.example" in output
    assert not namespaces(process.pid)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_cleans_up(number: int) -> None:
    """Ctrl-C is how many demonstrations end; namespaces and daemons must not stay."""
    process = start()
    deadline = time.monotonic() + 20
    while not namespaces(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert namespaces(process.pid)
    time.sleep(0.7)
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode in (0, 130), output
    assert not namespaces(process.pid)
    children = [
        one
        for one in Path("/proc").glob("[0-9]*/cmdline")
        if f"ikd-demo-{process.pid}-".encode() in _read(one) and int(one.parent.name) != os.getpid()
    ]
    assert not children


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_demo_in_memory() -> None:
    """Without root or TUN the same two daemons must still have something to show."""
    process = start("--memory")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "memory" in output
    assert "only ESP and IKE" in output
