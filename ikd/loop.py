"""Shell. The daemon's event loop: the usual one, on the clock of lifetimes."""

from __future__ import annotations

import asyncio

from sadb import clock


class Loop(asyncio.SelectorEventLoop):
    """While the host is suspended no timer runs, but this clock does: whatever became due meanwhile is done
    as soon as the loop wakes, which with `Daemon` is within a second of the host's."""

    def time(self) -> float:
        """See `sadb.clock`."""
        return clock.now()
