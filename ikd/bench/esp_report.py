"""What `ikctl bench esp` prints, out of what was measured: figures of a test, rows, ratios, the object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Final

from ikd.bench.report import spread
from ikd.control.protocol import Json

Figures = Mapping[str, Json]
Gap = tuple[str, str]  # plane and test

STREAMS: Final = {"tcp-1": 1, "tcp-4": 4}
SIZES: Final = {"udp-64": 64, "udp-512": 512, "udp-1400": 1400}
LATENCY_TEST: Final = "tcp-1"  # the one beside whose stream the latency is taken
IKE: Final = "ike"
SAS: Final = "sas"
TESTS: Final = (*STREAMS, *SIZES, IKE, SAS)
OURS_ALONE: Final = frozenset((IKE, SAS))  # tests that only our planes have

COMPARED: Final = (
    ("native", "strongswan"),
    ("native", "wireguard-go"),
    ("native", "veth"),
    ("python", "strongswan"),
)
CPU_COMPARED: Final = ("native", "strongswan")
# what is not a median: that would hide what one run lost, and be a window that nobody used
_OTHERWISE: Final[Mapping[str, Callable[[Iterable[int]], int]]] = {
    "pairs": min,
    "lost": sum,
    "sent": sum,
    "exchanges": sum,
    "window": min,
}
_NUMBERS: Final[Mapping[str, int]] = {"gbit_s": 4, "packets_s": 0}


@dataclass(frozen=True, slots=True)
class Run:
    """One test of one plane in one run."""

    number: int
    plane: str
    test: str
    figures: Figures

    def plain(self) -> Json:
        """As an element of `runs`."""
        return {"run": self.number, "plane": self.plane, "test": self.test, **self.figures}


# Figures -------------------------------------------------------------------------------------------------


def throughput(octets: int, seconds: float, cpu: Mapping[str, float]) -> dict[str, Json]:
    """What `octets` of inner payload in so much time are, and the processor time that each process took for
    them."""
    gigabytes = octets / 1e9
    each = {name: round(used / gigabytes, 3) for name, used in cpu.items()}
    return {
        "gbit_s": round(8 * gigabytes / seconds, 4),
        "packets_s": None,
        "lost": None,
        "cpu_s_per_gb": round(sum(cpu.values()) / gigabytes, 3) if cpu else None,
        "cpu_s_per_gb_of": each,
        "latency_ms": None,
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def quantiles(values: Sequence[float], upper: int) -> Json:
    """The median and an upper percentile."""
    return {
        "p50": round(quantile(values, 0.5), 3),
        f"p{upper}": round(quantile(values, upper / 100), 3),
    }


def latency(times: Sequence[float], lost: int) -> Json:
    """Of packets to and fro; nothing when none came back."""
    return quantiles(times, 99) | {"lost": lost} if times else None


def exchanges(idle: Sequence[float], loaded: Sequence[float]) -> Figures:
    """IKE beside ESP. `within_2x` is the share of exchanges that took at most twice the idle median although
    packets passed."""
    usual = quantile(idle, 0.5)
    return {
        "ike_idle_ms": quantiles(idle, 95),
        "ike_loaded_ms": quantiles(loaded, 95),
        "within_2x": round(sum(one <= 2 * usual for one in loaded) / len(loaded), 3),
        "exchanges": len(loaded),
    }


# Rows and ratios -----------------------------------------------------------------------------------------


def rows(
    runs: Sequence[Run],
    planes: Mapping[str, str | None],
    tests: Iterable[str],
    ours: Iterable[str],
    missing: Mapping[str, str],
    failed: Mapping[Gap, str],
) -> list[Json]:
    """A row for each plane, with its cipher, and test. `missing` has how to install what is not there,
    `failed` what went wrong."""
    found: list[Json] = []
    for plane, cipher in planes.items():
        for test in tests:
            if test in OURS_ALONE and plane not in ours:
                continue
            row: dict[str, Json] = {"plane": plane, "test": test}
            these = [one.figures for one in runs if (one.plane, one.test) == (plane, test)]
            if plane in missing:
                row["missing"] = missing[plane]
            elif these:
                row |= {"cipher": cipher} | _medians(these)
            if (plane, test) in failed:
                row["failed"] = failed[plane, test]
            found.append(row)
    return found


def _medians(several: Sequence[Figures]) -> dict[str, Json]:
    """Key by key, and so inside of what has keys."""
    found: dict[str, Json] = {}
    for key in dict.fromkeys(key for one in several for key in one):
        values = [one[key] for one in several if one.get(key) is not None]
        if not values:
            found[key] = None
        elif isinstance(values[0], Mapping):
            found[key] = _medians(values)
        elif key in _OTHERWISE:
            found[key] = _OTHERWISE[key](values)
        else:
            found[key] = round(median(values), _NUMBERS.get(key, 3))
    return found


def ratios(runs: Iterable[Run]) -> dict[str, Json]:
    """What goes through one plane divided by what goes through the other within the same run, and processor
    time likewise; for IKE, the share of exchanges in time, and how much longer the slow ones take; what goes
    through with many SA pairs divided by what does with few."""
    by = {(one.plane, one.test, one.number): one.figures for one in runs}
    found: dict[str, list[float]] = {}
    for (plane, test, number), figures in by.items():
        if test == IKE:
            found.setdefault(f"ike/{plane}", []).append(figures["within_2x"])
            slow = figures["ike_loaded_ms"]["p95"] / figures["ike_idle_ms"]["p50"]
            found.setdefault(f"ike_p95/{plane}", []).append(slow)
            continue
        if test == SAS:
            for key, few in figures["few"].items():
                found.setdefault(f"sas/{plane}/{key}", []).append(figures["many"][key] / few)
            continue
        for other in (second for first, second in COMPARED if first == plane):
            theirs = by.get((other, test, number))
            if theirs is None:
                continue
            name = f"{plane}/{other}/{test}"
            found.setdefault(name, []).append(figures["gbit_s"] / theirs["gbit_s"])
            if (plane, other) == CPU_COMPARED:
                cpu = figures["cpu_s_per_gb"] / theirs["cpu_s_per_gb"]
                found.setdefault(f"cpu/{name}", []).append(cpu)
    return {name: spread(found[name]) for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[int, str, int]:
    """Throughput first, then processor time, then IKE; sizes by size and not by letter."""
    pair, _, test = name.rpartition("/")
    kind = next((n for n, head in enumerate(("cpu/", "ike", "sas/"), 1) if name.startswith(head)), 0)
    return kind, pair, TESTS.index(test) if test in TESTS else 0


def esp(machine: Json, found: list[Json], runs: Sequence[Run]) -> dict[str, Json]:
    """The object that `ikctl bench esp --json` prints."""
    return {
        "machine": machine,
        "rows": found,
        "ratios": ratios(runs),
        "runs": [one.plain() for one in runs],
    }
