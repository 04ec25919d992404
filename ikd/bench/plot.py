"""Shell. `ikctl bench esp --plot`: the rows as a picture, with matplotlib, which is loaded for that only.

Planes that protect have bars; what passes without protection is another order of magnitude and would leave
nothing to see of them, so it is written above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ikd.bench.esp_report import LATENCY_TEST, SIZES, STREAMS
from ikd.bench.render import machine_line
from ikd.control.protocol import ControlError, Json

REFERENCE: Final = "veth"
# Okabe and Ito's, which people who do not see all colours tell apart
COLOURS: Final = {
    "native": "#0072B2",
    "python": "#56B4E9",
    "strongswan": "#D55E00",
    "wireguard-go": "#009E73",
}
WIDTH: Final = 0.8  # of all bars of a group
GROUPS: Final = {name: f"{number} stream{'s' * (number > 1)}" for name, number in STREAMS.items()} | {
    name: f"{size} octets" for name, size in SIZES.items()
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: groups of bars, a bar for each plane. `value` finds a bar's height in a plane's rows."""

    title: str
    groups: Sequence[str]
    value: Callable[[dict[str, Json], str], float | None]
    form: str


def _of_test(key: str) -> Callable[[dict[str, Json], str], float | None]:
    """Groups are tests."""
    return lambda rows, test: rows.get(test, {}).get(key)


def _latency(rows: dict[str, Json], group: str) -> float | None:
    """Groups are percentiles, idle or loaded."""
    key, name = LATENCIES[group]
    found = rows.get(LATENCY_TEST, {}).get(key)
    return found[name] if found else None


LATENCIES: Final = {
    "idle, p50": ("latency_idle_ms", "p50"),
    "idle, p99": ("latency_idle_ms", "p99"),
    "loaded, p50": ("latency_ms", "p50"),
    "loaded, p99": ("latency_ms", "p99"),
}
PANELS: Final = (
    Panel("TCP, Gbit/s", tuple(STREAMS), _of_test("gbit_s"), "{:.2f}"),
    Panel("UDP without loss, packets/s", tuple(SIZES), _of_test("packets_s"), "{:,.0f}"),
    Panel("Round trip, ms, idle and beside a TCP stream", tuple(LATENCIES), _latency, "{:.2f}"),
    Panel("Processor time, s/GB, both sides", (*STREAMS, "udp-1400"), _of_test("cpu_s_per_gb"), "{:.1f}"),
)


def check(path: Path) -> None:
    """Whether it can be drawn, before anything is measured; raises `ControlError`."""
    if find_spec("matplotlib") is None:
        raise ControlError("unavailable", "--plot needs matplotlib", "pip install 'ikd[plot]'")
    if not path.absolute().parent.is_dir():
        raise ControlError("usage", f"{path}: there is no such directory")


def draw(answer: Json, path: Path) -> None:
    """Draw all panels."""
    backend: Any = import_module("matplotlib")
    backend.use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    by: dict[str, dict[str, Json]] = {}
    for row in answer["rows"]:
        if "gbit_s" in row:
            by.setdefault(row["plane"], {})[row["test"]] = row
    planes = [name for name in COLOURS if name in by]
    figure, places = pyplot.subplots(2, 2, figsize=(13, 8.5), layout="constrained")
    for place, panel in zip(places.flat, PANELS, strict=True):
        _panel(place, panel, planes, by)
    handles, labels = places.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)
    figure.supxlabel(machine_line(answer["machine"]), fontsize=8, color="#555555", wrap=True)
    figure.savefig(path, dpi=130, format="png")
    pyplot.close(figure)


def _panel(place: Any, panel: Panel, planes: Sequence[str], by: dict[str, dict[str, Json]]) -> None:
    """One diagram; bars that were not measured are left out."""
    width = WIDTH / max(1, len(planes))
    for number, plane in enumerate(planes):
        heights = [panel.value(by[plane], group) for group in panel.groups]
        at = [n + (number - (len(planes) - 1) / 2) * width for n in range(len(heights))]
        known = [(x, y) for x, y in zip(at, heights, strict=True) if y is not None]
        bars = place.bar(
            [x for x, _ in known],
            [y for _, y in known],
            width * 0.92,
            label=f"{plane} ({_cipher(by[plane])})",
            color=COLOURS[plane],
        )
        place.bar_label(bars, [panel.form.format(y) for _, y in known], fontsize=7, padding=2)
    place.set_xticks(range(len(panel.groups)), [GROUPS.get(one, one) for one in panel.groups])
    place.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=20)
    place.text(0, 1.02, _reference(panel, by), transform=place.transAxes, fontsize=8, color="#555555")
    place.spines[["top", "right"]].set_visible(False)
    place.grid(axis="y", color="#dddddd", linewidth=0.6)
    place.set_axisbelow(True)
    place.yaxis.set_major_formatter("{x:,g}")
    place.margins(y=0.12)


def _cipher(rows: dict[str, Json]) -> str:
    return next(str(row["cipher"]) for row in rows.values())


def _reference(panel: Panel, by: dict[str, dict[str, Json]]) -> str:
    """What passes without protection, in words."""

    def words() -> Iterator[str]:
        for group in panel.groups:
            value = panel.value(by.get(REFERENCE, {}), group)
            if value is not None:
                yield f"{panel.form.format(value)} ({GROUPS.get(group, group)})"

    text = ", ".join(words())
    return f"without protection: {text}" if text else ""
