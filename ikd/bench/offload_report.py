"""What `ikctl bench offload` prints, out of what was measured: rows, ratios, targets, the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import Final

from ikd.bench.report import spread
from ikd.control.protocol import Json
from offload.switch.contention import Contest, Result

DISABLED, SOFTWARE = "disabled", "software"
DISABLED_SEGMENTED: Final = "disabled-segmented"
# series that are offloaded, with the profile of `offload.nic.capabilities` that their adapter has
OFFLOADED: Final[Mapping[str, str]] = MappingProxyType({"offload": "82576", "offload-segmented": "ideal"})
SERIES: Final = (DISABLED, DISABLED_SEGMENTED, SOFTWARE, *OFFLOADED)
TODAY, THEN = "today", "2008-like"
PROFILES: Final = (TODAY, THEN)
SIZES: Final = (*(64 << n for n in range(10)), 65535)

# of ratio keys: which series is divided by which
COMPARED: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "host_cpu": {name: DISABLED for name in SERIES if name != DISABLED},
        "host_cpu_coalesced": {"offload-segmented": DISABLED_SEGMENTED},
    }
)
LARGE: Final = 16384  # octets of a buffer from which on the targets hold
_WITHIN, _AT_LEAST = 1.3, 3.0

# decimals of a row's figures
_NUMBERS: Final[Mapping[str, int]] = {
    "mbit_s": 1,
    "host_cpu_percent": 1,
    "host_cpu_s_per_gb": 3,
    "adapter_cpu_s_per_gb": 3,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One series at one size of the buffer. `octets` are the application's; seconds of processor time as the
    operating system counts them for either process, and once more as the host counts its own."""

    number: int
    profile: str
    series: str
    size: int
    octets: int
    packets: int
    seconds: float
    host_cpu: float
    adapter_cpu: float
    host_cpu_own: float

    @property
    def figures(self) -> dict[str, float]:
        """What rows have the medians of; percent are of one core."""
        gigabytes = self.octets / 1e9
        return {
            "mbit_s": 8000 * gigabytes / self.seconds,
            "host_cpu_percent": 100 * self.host_cpu / self.seconds,
            "host_cpu_s_per_gb": self.host_cpu / gigabytes,
            "adapter_cpu_s_per_gb": self.adapter_cpu / gigabytes,
        }

    def plain(self) -> Json:
        """As an element of `runs`."""
        return {
            "run": self.number,
            "profile": self.profile,
            "series": self.series,
            "size": self.size,
            "octets": self.octets,
            "packets": self.packets,
            "seconds": round(self.seconds, 4),
            "host_cpu_own_s": round(self.host_cpu_own, 4),
            "host_cpu_s": round(self.host_cpu, 4),
            "adapter_cpu_s": round(self.adapter_cpu, 4),
            **{key: round(self.figures[key], places) for key, places in _NUMBERS.items()},
        }


def rows(runs: Sequence[Run], missing: Mapping[str, str]) -> list[Json]:
    """A row for each profile, series and size that was measured; `missing` has why a profile was not."""
    found: list[Json] = []
    together: dict[tuple[str, int, str], list[Run]] = {}
    for one in runs:
        together.setdefault((one.profile, one.size, one.series), []).append(one)
    for (profile, size, series), these in together.items():
        row: dict[str, Json] = {"profile": profile, "series": series, "size": size}
        for key, places in _NUMBERS.items():
            values = [one.figures[key] for one in these]
            row[key] = round(median(values), places)
            row[f"{key}_spread"] = [round(min(values), places), round(max(values), places)]
        found.append(row)
    return found + [{"profile": profile, "missing": why} for profile, why in missing.items()]


def ratios(runs: Sequence[Run]) -> dict[str, Json]:
    """Host processor time for a gigabyte, of one series divided by another of the same run."""
    by = {(one.number, one.profile, one.size, one.series): one for one in runs}
    found: dict[str, list[float]] = {}
    for name, pairs in COMPARED.items():
        for (number, profile, size, series), one in by.items():
            base = by.get((number, profile, size, pairs.get(series, "")))
            if base is not None:
                cost, other = (it.figures["host_cpu_s_per_gb"] for it in (one, base))
                found.setdefault(f"{name}/{profile}/{series}/{size}", []).append(cost / other)
    return {name: spread(values) for name, values in found.items()}


def targets(found: Mapping[str, Json], sizes: Sequence[int]) -> list[Json]:
    """Whether the shape is that of the paper's figures (docs/bench.md) where it has to be: `worst` is the
    worst median of all large buffers. Nothing for what was not measured."""
    made: list[Json] = []
    for name, pairs in COMPARED.items():
        for series, base in pairs.items():
            if series == DISABLED_SEGMENTED:
                continue
            keys = (f"{name}/{THEN}/{series}/{size}" for size in sizes if size >= LARGE)
            medians = [found[key]["median"] for key in keys if key in found]
            if not medians:
                continue
            dear = series == SOFTWARE
            worst, limit = (min(medians), _AT_LEAST) if dear else (max(medians), _WITHIN)
            made.append(
                {
                    "series": series,
                    "relative_to": base,
                    "at_least" if dear else "at_most": limit,
                    "worst": worst,
                    "met": worst >= limit if dear else worst <= limit,
                }
            )
    return made


def placement(of: Contest, results: Sequence[Result]) -> list[Json]:
    """A row for each policy that decides about slots, relative to the first one."""
    return [
        {
            "policy": one.policy,
            "sas": of.sas,
            "slots": of.capabilities.slots,
            "ports": of.ports,
            "offloaded_share": round(one.share, 4),
            "to_first_come": round(one.octets_offloaded / results[0].octets_offloaded, 2),
            "moves": one.moves,
            "most_slots": one.most,
            "broken": len(one.broken),
        }
        for one in results
    ]


def offload(
    machine: Json,
    link: float,
    engine: str,
    runs: Sequence[Run],
    missing: Mapping[str, str],
    placed: Sequence[Json],
) -> dict[str, Json]:
    """The object that `ikctl bench offload --json` prints; `link` in Mb/s, `engine` the host's, `placed` from
    `placement`."""
    found = ratios(runs)
    return {
        "machine": machine,
        "link_mbit_s": link,
        "engine": engine,
        "rows": rows(runs, missing),
        "ratios": found,
        "targets": targets(found, sorted({one.size for one in runs})),
        "placement": list(placed),
        "runs": [one.plain() for one in runs],
    }
