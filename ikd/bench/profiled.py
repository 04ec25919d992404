"""Shell. `python -m ikd.bench.profiled FILE …`: the daemon, with samples of where its processor time goes.

A sample is taken whenever the process has used a few milliseconds more. That costs next to nothing, unlike
cProfile, which makes a daemon of many small functions three times slower and its figures wrong.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

from ikd.__main__ import main

INTERVAL: Final = 0.001  # of processor time; the kernel's tick may be longer
ROOT: Final = Path(__file__).resolve().parents[2]


class Samples:
    """Where the process was."""

    def __init__(self) -> None:
        self.taken = 0
        self._within: Counter[CodeType] = Counter()
        self._at: Counter[tuple[CodeType, int]] = Counter()

    def take(self, _: int, frame: FrameType | None) -> None:
        """One sample, for the signal handler."""
        self.taken += 1
        if frame is not None:
            self._at[frame.f_code, frame.f_lineno or 0] += 1
        seen = set()
        while frame is not None:
            seen.add(frame.f_code)
            frame = frame.f_back
        self._within.update(seen)

    def text(self) -> str:
        """Functions by the share of samples in them and what they call, then lines by their own share."""
        lines = [f"{self.taken} samples", "", "% within function"]
        for code, count in self._within.most_common(150):
            lines.append(f"{100 * count / self.taken:5.1f}  {_place(code, code.co_firstlineno)}")
        lines += ["", "% in line, with what it calls in C"]
        for (code, number), count in self._at.most_common(80):
            lines.append(f"{100 * count / self.taken:5.1f}  {_place(code, number)}")
        return "\n".join(lines) + "\n"


def _place(code: CodeType, number: int) -> str:
    path = Path(code.co_filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-2:])
    return f"{name}:{number} {code.co_qualname}"


if __name__ == "__main__":
    samples = Samples()
    signal.signal(signal.SIGPROF, samples.take)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        status = main(sys.argv[2:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(sys.argv[1]).write_text(samples.text())
    sys.exit(status)
