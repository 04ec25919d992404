"""What `ikctl bench` prints, out of what was measured: rows, ratios, and the whole object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ikd.bench.parties import GROUP, IKD, STRONGSWAN
from ikd.control.protocol import Json


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one responder. Seconds cover all establishments of the run."""

    number: int
    responder: str
    auth: str
    established: int
    failed: int
    seconds: float
    responder_cpu: float
    initiator_cpu: float

    @property
    def per_second(self) -> float:
        """Establishments a second."""
        return self.established / self.seconds

    @property
    def responder_cpu_ms(self) -> float:
        """Processor time of the responder for each."""
        return 1000 * self.responder_cpu / self.established

    @property
    def initiator_cpu_ms(self) -> float:
        """Processor time of the initiator for each."""
        return 1000 * self.initiator_cpu / self.established

    def plain(self) -> Json:
        """As an element of `runs`."""
        return {
            "run": self.number,
            "responder": self.responder,
            "auth": self.auth,
            "established": self.established,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            **_figures([self]),
        }


def _figures(runs: Sequence[Run]) -> dict[str, float]:
    """Medians of what is compared. `responder_busy` and `initiator_busy` are shares of one core: the
    side that is near 1 (more, with threads) was what limited the rate."""
    return {
        "per_second": round(median(one.per_second for one in runs), 1),
        "responder_cpu_ms": round(median(one.responder_cpu_ms for one in runs), 3),
        "initiator_cpu_ms": round(median(one.initiator_cpu_ms for one in runs), 3),
        "responder_busy": round(median(one.responder_cpu / one.seconds for one in runs), 2),
        "initiator_busy": round(median(one.initiator_cpu / one.seconds for one in runs), 2),
    }


def rows(runs: Iterable[Run], auths: Iterable[str], missing: Mapping[str, str]) -> list[Json]:
    """A row for each responder and authentication; `missing` has how to install a responder that is not
    here."""
    everything = list(runs)
    found: list[Json] = []
    for auth in auths:
        for responder in (IKD.name, STRONGSWAN.name):
            row: dict[str, Json] = {"responder": responder, "auth": auth, "group": GROUP}
            these = [one for one in everything if (one.responder, one.auth) == (responder, auth)]
            if responder in missing:
                found.append(row | {"missing": missing[responder]})
            elif these:
                counts = {"established": sum(one.established for one in these)}
                counts["failed"] = sum(one.failed for one in these)
                found.append(row | _figures(these) | counts)
    return found


def ratios(runs: Iterable[Run]) -> dict[str, Json]:
    """Ours divided by strongSwan's: the median of the ratios within each run, with the least and the most."""
    by: dict[tuple[str, int], dict[str, Run]] = {}
    for one in runs:
        by.setdefault((one.auth, one.number), {})[one.responder] = one
    found: dict[str, list[float]] = {}
    for (auth, _), both in by.items():
        ours, theirs = both.get(IKD.name), both.get(STRONGSWAN.name)
        if ours and theirs:
            cpu = ours.responder_cpu_ms / theirs.responder_cpu_ms
            found.setdefault(f"cpu/{auth}", []).append(cpu)
            found.setdefault(f"rate/{auth}", []).append(ours.per_second / theirs.per_second)
    return {name: spread(values) for name, values in sorted(found.items())}


def spread(values: Sequence[float]) -> Json:
    """Median, least and most."""
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def ike(
    machine: Json, runs: Sequence[Run], auths: Sequence[str], missing: Mapping[str, str]
) -> dict[str, Json]:
    """The object that `ikctl bench ike --json` prints."""
    return {
        "machine": machine,
        "rows": rows(runs, auths, missing),
        "ratios": ratios(runs),
        "runs": [one.plain() for one in runs],
    }
