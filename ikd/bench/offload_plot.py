"""Shell. `ikctl bench offload --plot`: the rows as a picture, with matplotlib, which is loaded for that only.

The upper two rows are the figures of the paper that docs/bench.md names, processor time and throughput of
received data over the size of the buffer; the third is the processor time for a gigabyte, which alone
compares like with like when the throughput differs. The adapter's own is drawn there too, dashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ikd.bench.offload_report import PROFILES, SERIES, SIZES
from ikd.bench.render import machine_line
from ikd.control.protocol import Json

# Okabe and Ito's, which people who do not see all colours tell apart
COLOURS: Final = dict(zip(SERIES, ("#000000", "#999999", "#D55E00", "#56B4E9", "#0072B2"), strict=True))
_TITLES: Final = {"2008-like": "2008-like: AES-NI and PCLMULQDQ masked", "today": "today"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram in each profile's column; `other` is drawn dashed."""

    title: str
    key: str
    other: str = ""
    log: bool = False


PANELS: Final = (
    Panel("Host CPU, % of one core", "host_cpu_percent"),
    Panel("Throughput, Mb/s", "mbit_s"),
    Panel(
        "CPU seconds per gigabyte: host, and adapter (dashed)",
        "host_cpu_s_per_gb",
        "adapter_cpu_s_per_gb",
        True,
    ),
)


def draw(answer: Json, path: Path) -> None:
    """Draw all panels of the profiles that were measured."""
    backend: Any = import_module("matplotlib")
    backend.use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    rows = [row for row in answer["rows"] if "mbit_s" in row]
    profiles = [one for one in PROFILES if any(row["profile"] == one for row in rows)] or [PROFILES[0]]
    figure, places = pyplot.subplots(
        len(PANELS),
        len(profiles),
        figsize=(6.2 * len(profiles), 10.5),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for column, profile in enumerate(profiles):
        for line, panel in enumerate(PANELS):
            place = places[line][column]
            _panel(place, panel, [row for row in rows if row["profile"] == profile])
            if panel.key == "mbit_s":
                place.axhline(answer["link_mbit_s"], color="#999999", linewidth=0.8, linestyle=":")
        places[0][column].set_title(_TITLES[profile], loc="right", fontsize=10, fontweight="bold")
    for line, panel in enumerate(PANELS):  # once all is drawn: it ends the search for the other end
        if not panel.log:
            places[line][0].set_ylim(bottom=0)
    handles, labels = places[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(
        "octets in a buffer of the application, received over a simulated link, "
        f"{answer['link_mbit_s']:g} Mb/s; median, least and most of the runs\n"
        + machine_line(answer["machine"]),
        fontsize=8,
        color="#555555",
        wrap=True,
    )
    figure.savefig(path, dpi=80, format="png")
    pyplot.close(figure)


def _panel(place: Any, panel: Panel, rows: Sequence[Json]) -> None:
    """One diagram."""
    for series in SERIES:
        these = sorted((row for row in rows if row["series"] == series), key=lambda row: row["size"])
        sizes = [row["size"] for row in these]
        for key, style in ((panel.key, "-"), (panel.other, "--")):
            if not key or not these:
                continue
            middle = [row[key] for row in these]
            least, most = zip(*(row[f"{key}_spread"] for row in these), strict=True)
            place.plot(
                sizes,
                middle,
                style,
                color=COLOURS[series],
                label=series if key == panel.key else None,
                linewidth=1.6 if style == "-" else 0.9,
                marker="o" if style == "-" else None,
                markersize=3,
            )
            if style == "-":
                place.fill_between(sizes, least, most, color=COLOURS[series], alpha=0.12, linewidth=0)
    place.set_xscale("log", base=2)
    place.set_xticks(SIZES, [str(size) for size in SIZES], fontsize=7, rotation=45)
    place.minorticks_off()
    place.set_title(panel.title, loc="left", fontsize=9)
    if panel.log:
        place.set_yscale("log")
    place.spines[["top", "right"]].set_visible(False)
    place.grid(color="#dddddd", linewidth=0.6)
    place.set_axisbelow(True)
