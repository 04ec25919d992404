"""Shell. The clock that everything with a lifetime is counted on, in the daemon and in its workers.

It is CLOCK_BOOTTIME (clock_gettime(2)): like CLOCK_MONOTONIC nobody can set it, but it goes on while the
host is suspended. Keys do not become older than they may by sleeping, and who was not heard of for an hour
counts as silent for an hour, so that peers are asked whether they live as soon as the host is back.
"""

from __future__ import annotations

import time


def now() -> float:
    """Seconds since the host's start, suspends included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
