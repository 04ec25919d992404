"""Shell. The machine a measurement ran on, and the processor time of a process."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Final

import cryptography
from cryptography.hazmat.backends.openssl import backend

from ikd import __version__
from ikd.control.protocol import Json

_CPU_INFO: Final = Path("/proc/cpuinfo")


def cpu_model(text: str) -> str:
    """The processor's name out of /proc/cpuinfo."""
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def machine() -> Json:
    """Facts that decide about figures."""
    return {
        "cpu": cpu_model(_CPU_INFO.read_text(errors="replace")),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "versions": {
            "ikd": __version__,
            "python": platform.python_version(),
            "cryptography": cryptography.__version__,
            "openssl": backend.openssl_version_text().split()[1],
        },
    }


def load() -> list[float]:
    """The load averages."""
    return [round(one, 2) for one in os.getloadavg()]


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have used, user and system: what utime + stime of
    /proc/PID/stat say, in nanoseconds instead of ticks (`clock_getcpuclockid`). Raises `OSError`."""
    return time.clock_gettime((~pid << 3) | 2)
