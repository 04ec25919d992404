"""The demonstration is the first thing a stranger runs: it must work, say what it did, and leave nothing
behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.scenario import eventually

ROOT = Path(__file__).resolve().parents[2]
DEMO = (sys.executable, "-m", "ikd.demo")
SECONDS = 60  # under a minute, as it says

pytestmark = pytest.mark.interop


def start(files: Path, *arguments: str) -> subprocess.Popen[str]:
    """The program with its output piped, which makes its files there."""
    return subprocess.Popen(
        [*DEMO, *arguments],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(files)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def namespaces(pid: int) -> list[str]:
    """The network namespaces a demonstration with this process id has."""
    place = Path("/run/netns")
    return sorted(one.name for one in place.glob(f"ikd-demo-{pid}-*"))


def daemons(files: Path) -> list[Path]:
    """The daemons of a demonstration and their workers."""
    return [one for one in Path("/proc").glob("[0-9]*/cmdline") if f"{files}/".encode() in _read(one)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_demo_shows_protected_traffic(place: Path) -> None:
    """If this fails, the README's first command does."""
    process = start(place)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "only ESP and IKE" in output
    assert "left.example" in output
    assert "right.example" in output
    assert not namespaces(process.pid)
    assert not list(place.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_cleans_up(place: Path, number: int) -> None:
    """Ctrl-C is how many demonstrations end; namespaces and daemons must not stay."""
    process = start(place)
    eventually(lambda: len(daemons(place)) >= 2, "the demonstration goes on")
    assert namespaces(process.pid)
    process.send_signal(number)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (0, 130), output
    assert not namespaces(process.pid)
    # a worker whose daemon ended before it had begun finds its channel closed when it has
    eventually(lambda: not daemons(place), "an end of everything")
    assert not list(place.iterdir())


def test_demo_in_memory(place: Path) -> None:
    """Without root or TUN the same two daemons must still have something to show."""
    process = start(place, "--memory")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "memory" in output
    assert "only ESP and IKE" in output
