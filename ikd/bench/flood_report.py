"""What `ikctl bench flood` prints, out of what was measured: figures, rows, ratios, the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from ikd.bench.esp_report import quantile
from ikd.bench.report import spread
from ikd.control.protocol import Json

QUIET: Final = "quiet"
FLOODED: Final = "flooded"
STAGES: Final = (QUIET, FLOODED)
BETTER: Final = ("rekeys_s", "packets_s")  # of which a flood shall leave nine tenths
_MEDIANS: Final = ("rekeys_s", "rekey_ms", "rekey_p95_ms", "packets_s", "responder_busy")
_SUMS: Final = ("lost", "initiations", "unseen")
_MOST: Final = ("resident", "half_open")


@dataclass(frozen=True, slots=True)
class Run:
    """One stage of one run."""

    number: int
    stage: str
    figures: Mapping[str, float]

    def plain(self) -> Json:
        """As an element of `runs`."""
        return {"run": self.number, "stage": self.stage, **self.figures}


def figures(
    *,
    times: Sequence[float],
    seconds: float,
    packets: int,
    lost: int,
    cpu: float,
    resident: int,
    half_open: int,
    initiations: int,
    unseen: int,
) -> dict[str, float]:
    """Of one stage: `times` in seconds of one rekey after the other, `packets` of the stream that came and
    how many did not, `cpu` seconds and most memory (octets) of the responder, first messages that strangers
    sent, and those that no socket had room for."""
    return {
        "seconds": round(seconds, 3),
        "rekeys_s": round(len(times) / sum(times), 1),
        "rekey_ms": round(1000 * median(times), 2),
        "rekey_p95_ms": round(1000 * quantile(times, 0.95), 2),
        "packets_s": round(packets / seconds, 1),
        "lost": lost,
        "responder_busy": round(cpu / seconds, 3),
        "resident": resident,
        "half_open": half_open,
        "initiations": initiations,
        "unseen": unseen,
    }


def rows(runs: Sequence[Run]) -> list[Json]:
    """A row for each stage: medians, and of what must not be hidden by them the sum or the most."""
    found = []
    for stage in STAGES:
        these = [one.figures for one in runs if one.stage == stage]
        if these:
            row: dict[str, Json] = {"stage": stage}
            row |= {key: round(median(one[key] for one in these), 3) for key in _MEDIANS}
            row |= {key: sum(one[key] for one in these) for key in _SUMS}
            found.append(row | {key: max(one[key] for one in these) for key in _MOST})
    return found


def ratios(runs: Sequence[Run]) -> dict[str, Json]:
    """With the flood divided by without it: the median of the ratios within each run, the least, the most."""
    by = {(one.number, one.stage): one.figures for one in runs}
    pairs = [(by[number, FLOODED], by[number, QUIET]) for number, stage in by if stage == FLOODED]
    return {key: spread([one[key] / other[key] for one, other in pairs]) for key in BETTER}


def flood(machine: Json, runs: Sequence[Run], before: int) -> dict[str, Json]:
    """The object that `ikctl bench flood --json` prints; `before` are the octets the responder had resident
    before the first flood."""
    return {
        "machine": machine,
        "rows": rows(runs),
        "ratios": ratios(runs),
        "resident_before": before,
        "runs": [one.plain() for one in runs],
    }
