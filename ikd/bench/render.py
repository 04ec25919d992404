"""What `ikctl bench` shows people: a line about the machine, one table, and the ratios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ikd.bench.parties import BASELINE
from ikd.control.protocol import Json


def _table(out: Console, heads: Sequence[str], numbers: int, rows: Iterable[Sequence[Any]]) -> None:
    """A table without lines, its last `numbers` columns flush right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at >= len(heads) - numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    out.print(table)


def machine_line(machine: Json) -> str:
    """The machine in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, {versions}, "
        f"load {machine['load_before'][0]} before, {machine['load_after'][0]} after"
    )


_RATIOS = f"Ours divided by strongSwan's (cpu, rate) or by our own {BASELINE} (complete)"


def ike(out: Console, answer: Json) -> None:
    """Establishments."""
    out.print(machine_line(answer["machine"]), soft_wrap=True)
    out.print()
    shown = [
        (
            one["auth"],
            one["responder"],
            f"{one['per_second']:.0f}",
            f"{one['responder_cpu_ms']:.2f} ms",
            f"{one['initiator_cpu_ms']:.2f} ms",
            f"{one['complete_ms']:.2f} ms",
            f"{one['responder_busy']:.0%}",
            f"{one['initiator_busy']:.0%}",
            one["failed"],
        )
        for one in answer["rows"]
        if "missing" not in one
    ]
    heads = (
        "AUTH",
        "RESPONDER",
        "PER SECOND",
        "RESPONDER CPU",
        "INITIATOR CPU",
        "ONE ALONE",
        "RESPONDER BUSY",
        "INITIATOR BUSY",
        "FAILED",
    )
    _table(out, heads, 7, shown)
    gaps: dict[tuple[str, str], list[str]] = {}
    for one in answer["rows"]:
        if "missing" in one:
            gaps.setdefault((one["responder"], one["missing"]), []).append(one["auth"])
    for (responder, why), auths in gaps.items():
        text = f"not measured: {responder} with {', '.join(auths)}: {why}"
        out.print(text, soft_wrap=True, markup=False)
    if answer["ratios"]:
        out.print(f"\n{_RATIOS}, median of the runs (least to most):")
        _table(
            out,
            ("RATIO", "MEDIAN", "MIN", "MAX"),
            3,
            (
                (name, f"{one['median']:.2f}", f"{one['min']:.2f}", f"{one['max']:.2f}")
                for name, one in answer["ratios"].items()
            ),
        )
        out.print("cpu, complete: less is better; rate: more is better, and limited by whoever is busy.")


def sadb(out: Console, answer: Json) -> None:
    """The SADB."""
    out.print(machine_line(answer["machine"]), soft_wrap=True)
    out.print()
    _table(
        out,
        ("BACKEND", "LOOKUP BY", "PAIRS", "OCTETS PER PAIR", "LOOKUP", "INSTALL"),
        4,
        (
            (
                one["backend"],
                one["by"],
                f"{one['pairs']:,}",
                f"{one['octets_per_pair']:,}",
                f"{one['lookup_ns']:,} ns",
                f"{one['install_us']:.1f} µs",
            )
            for one in answer["rows"]
        ),
    )
