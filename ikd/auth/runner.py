"""Shell. Runs the steps of authentications that may wait for a KDC, in threads of their own.

There is a limit of threads, of work that waits for one, and of the time an answer may take. A thread in a
library's call cannot be interrupted: it stays busy until the call returns, and what it brings then is thrown
away. The threads do not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ikd.auth import Declined

THREADS: Final = 8
WAITING: Final = 64
DEADLINE: Final = 10.0

_REMEDY: Final = (
    "[realms] of krb5.conf must name KDCs that answer; see to port 88 of them, UDP and TCP, and to DNS "
    "(dns_canonicalize_hostname = false, dns_lookup_kdc = false)"
)

Work = Callable[[], object]
Done = Callable[[object], None]


@dataclass(slots=True, eq=False)
class _Job:
    """One piece of work. Only the loop's thread touches `timer` and `done`."""

    work: Work
    done: Done | None
    timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return self.done is not None


class Runner:
    """Made and called on the loop's thread, on which every `done` is called, too."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int = THREADS,
        waiting: int = WAITING,
        deadline: float = DEADLINE,
    ) -> None:
        self._loop = loop
        self._most_threads = threads
        self.most = threads + waiting
        self._deadline = deadline
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unfinished: set[_Job] = set()
        self._threads = 0
        self._closed = False

    @property
    def busy(self) -> int:
        """Pieces of work that are under way or wait for a thread."""
        return len(self._unfinished)

    def run(self, work: Work, done: Done) -> None:
        """Call `done` later, once, with what `work` returns or raises, or with a `Declined` when that takes
        too long. Raises `Declined` at once when there is too much to do already."""
        if self._closed or len(self._unfinished) >= self.most:
            raise Declined(
                f"{len(self._unfinished)} authentications wait for a KDC already",
                f"try again; {_REMEDY}",
                cause="no-kdc",
            )
        job = _Job(work, done)
        job.timer = self._loop.call_later(self._deadline, self._late, job)
        self._unfinished.add(job)
        if self._threads < min(len(self._unfinished), self._most_threads):
            self._threads += 1
            threading.Thread(target=self._serve, name=f"gss-{self._threads}", daemon=True).start()
        self._jobs.put(job)

    def close(self) -> None:
        """Nobody waits for anything any more."""
        self._closed = True
        for job in self._unfinished:
            job.done = None
            if job.timer is not None:
                job.timer.cancel()
        for _ in range(self._threads):
            self._jobs.put(None)

    def _late(self, job: _Job) -> None:
        done, job.done = job.done, None
        if done is not None:
            done(Declined(f"the KDC does not answer within {self._deadline:g} s", _REMEDY, cause="no-kdc"))

    def _finished(self, job: _Job, value: object) -> None:
        self._unfinished.discard(job)
        done, job.done = job.done, None
        if job.timer is not None:
            job.timer.cancel()
        if done is not None:
            done(value)

    def _serve(self) -> None:
        """A thread."""
        while (job := self._jobs.get()) is not None:
            value: object = None
            if job.wanted:
                try:
                    value = job.work()
                except Exception as error:
                    value = error
            try:
                self._loop.call_soon_threadsafe(self._finished, job, value)
            except RuntimeError:  # the loop has closed meanwhile
                return
