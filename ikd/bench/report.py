"""What `ikctl bench` prints, out of what was measured: rows, ratios, and the whole object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ikd.bench.parties import AUTHS, BASELINE, IKD, STRONGSWAN
from ikd.control.protocol import Json

Missing = Mapping[tuple[str, str], str]  # responder and authentication -> why it is not there, or a remedy


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one responder. Seconds cover all establishments of the run; `complete` is that of
    one on its own."""

    number: int
    responder: str
    auth: str
    established: int
    failed: int
    seconds: float
    responder_cpu: float
    initiator_cpu: float
    complete: float

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

    @property
    def complete_ms(self) -> float:
        """How long one takes when nothing else is under way."""
        return 1000 * self.complete

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
        "complete_ms": round(median(one.complete_ms for one in runs), 3),
        "responder_busy": round(median(one.responder_cpu / one.seconds for one in runs), 2),
        "initiator_busy": round(median(one.initiator_cpu / one.seconds for one in runs), 2),
    }


def rows(runs: Iterable[Run], auths: Iterable[str], missing: Missing) -> list[Json]:
    """A row for each responder and authentication; `missing` has why there are no figures."""
    everything = list(runs)
    found: list[Json] = []
    for auth in auths:
        for responder in (IKD.name, STRONGSWAN.name):
            row: dict[str, Json] = {"responder": responder, "auth": auth, "group": AUTHS[auth].group}
            these = [one for one in everything if (one.responder, one.auth) == (responder, auth)]
            if (responder, auth) in missing:
                found.append(row | {"missing": missing[responder, auth]})
            elif these:
                counts = {"established": sum(one.established for one in these)}
                counts["failed"] = sum(one.failed for one in these)
                found.append(row | _figures(these) | counts)
    return found


def ratios(runs: Iterable[Run]) -> dict[str, Json]:
    """Ours divided by strongSwan's, and our AuthIP by our IKEv2: the median of the ratios within each run,
    with the least and the most."""
    by = {(one.responder, one.auth, one.number): one for one in runs}
    found: dict[str, list[float]] = {}
    for (responder, auth, number), ours in by.items():
        if responder != IKD.name:
            continue
        if theirs := by.get((STRONGSWAN.name, auth, number)):
            cpu = ours.responder_cpu_ms / theirs.responder_cpu_ms
            found.setdefault(f"cpu/{auth}", []).append(cpu)
            found.setdefault(f"rate/{auth}", []).append(ours.per_second / theirs.per_second)
        base = by.get((IKD.name, BASELINE, number))
        if base and AUTHS[auth].keying == "authip":
            found.setdefault(f"complete/{auth}", []).append(ours.complete / base.complete)
    return {name: spread(values) for name, values in sorted(found.items())}


def spread(values: Sequence[float]) -> Json:
    """Median, least and most."""
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def ike(machine: Json, runs: Sequence[Run], auths: Sequence[str], missing: Missing) -> dict[str, Json]:
    """The object that `ikctl bench ike --json` prints."""
    return {
        "machine": machine,
        "rows": rows(runs, auths, missing),
        "ratios": ratios(runs),
        "runs": [one.plain() for one in runs],
    }
