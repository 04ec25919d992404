"""Shell. Processor time of data planes: of processes we started, and of those that these have started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ikd.bench.machine import cpu_seconds


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have, and so on: the oldest first."""
    return sorted(_below(pid))


def _below(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, thread.read_text().split()):
                yield child
                yield from _below(child)


def usage(processes: Mapping[str, int]) -> dict[str, float]:
    """Seconds that each has used, the ones they have started under a name of their own: `left/ikd.1`.
    Raises `OSError` when one that was started by us has ended."""
    found: dict[str, float] = {}
    for name, pid in processes.items():
        found[name] = cpu_seconds(pid)
        for number, child in enumerate(descendants(pid), 1):
            with suppress(OSError):
                found[f"{name}.{number}"] = cpu_seconds(child)
    return found


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used between two moments."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
