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
        _ratios(out, answer, _RATIOS)
        out.print("cpu, complete: less is better; rate: more is better, and limited by whoever is busy.")


def _ratios(out: Console, answer: Json, about: str) -> None:
    out.print(f"\n{about}, median of the runs (least to most):")
    _table(
        out,
        ("RATIO", "MEDIAN", "MIN", "MAX"),
        3,
        (
            (name, f"{one['median']:.2f}", f"{one['min']:.2f}", f"{one['max']:.2f}")
            for name, one in answer["ratios"].items()
        ),
    )


_ESP_RATIOS = "What passes through one plane divided by what passes through the other; cpu: processor time"
_ESP_HEADS = (
    "PLANE",
    "TEST",
    "GBIT/S",
    "PACKETS/S",
    "LOST",
    "WINDOW",
    "CPU S/GB",
    "LATENCY p50",
    "p99",
    "IDLE p50",
    "p99",
)


def esp(out: Console, answer: Json) -> None:
    """Data planes."""
    out.print(machine_line(answer["machine"]), soft_wrap=True)
    out.print()
    rows: list[Json] = answer["rows"]
    traffic = [one for one in rows if "gbit_s" in one]
    if traffic:
        _table(out, _ESP_HEADS, 9, map(_esp_row, traffic))
    exchanges = [one for one in rows if "ike_idle_ms" in one]
    if exchanges:
        out.print("\nReplacing keys of another SA while nothing passes, and while a TCP stream does:")
        heads = ("PLANE", "IDLE p50", "p95", "LOADED p50", "p95", "WITHIN 2x IDLE p50")
        _table(out, heads, 5, map(_ike_row, exchanges))
    crowded = [one for one in rows if "many" in one]
    if crowded:
        out.print("\nThe same traffic while there are few SA pairs, and while there are many:")
        _table(
            out, ("PLANE", "PAIRS", "GBIT/S few", "many", "PACKETS/S few", "many"), 5, map(_sas_row, crowded)
        )
    for what, key in (("not measured", "missing"), ("failed", "failed")):
        for plane, why in dict.fromkeys((one["plane"], one[key]) for one in rows if key in one):
            tests = ", ".join(one["test"] for one in rows if (one["plane"], one.get(key)) == (plane, why))
            first = why.partition("\n")[0]  # logs have been shown when it happened
            out.print(f"{what}: {plane}, {tests}: {first}", soft_wrap=True, markup=False)
    if answer["ratios"]:
        _ratios(out, answer, _ESP_RATIOS)
        out.print("cpu, ike_p95: less is better; the others: more.")


def _esp_row(one: Json) -> tuple[str, ...]:
    """A dash where a test has no such figure."""

    def number(key: str, form: str) -> str:
        return "-" if one.get(key) is None else format(one[key], form)

    latencies = (one.get(key) or {} for key in ("latency_ms", "latency_idle_ms"))
    return (
        one["plane"],
        one["test"],
        number("gbit_s", ".3f"),
        *(number(key, ",.0f") for key in ("packets_s", "lost", "window")),
        number("cpu_s_per_gb", ".2f"),
        *(f"{it[name]:.2f} ms" if it else "-" for it in latencies for name in ("p50", "p99")),
    )


def _ike_row(one: Json) -> tuple[str, ...]:
    kinds = (one["ike_idle_ms"], one["ike_loaded_ms"])
    times = (f"{it[name]:.1f} ms" for it in kinds for name in ("p50", "p95"))
    return one["plane"], *times, f"{one['within_2x']:.0%}"


def _sas_row(one: Json) -> tuple[str, ...]:
    kinds = (one["few"], one["many"])
    rates = (
        format(it[key], form) for key, form in (("gbit_s", ".3f"), ("packets_s", ",.0f")) for it in kinds
    )
    return one["plane"], f"{one['pairs']:,}", *rates


_OFFLOAD_HEADS = (
    "PROFILE",
    "SERIES",
    "BUFFER",
    "MBIT/S",
    "HOST CPU",
    "HOST S/GB",
    "LEAST",
    "MOST",
    "/ DISABLED",
    "ADAPTER S/GB",
)


def offload(out: Console, answer: Json) -> None:
    """Receiving with an adapter."""
    out.print(machine_line(answer["machine"]), soft_wrap=True)
    for profile, times in answer["machine"]["aes_gcm_16k_us"].items():
        each = ", ".join(f"{it} {took:.1f} µs" for it, took in times.items())
        out.print(f"AES-128-GCM of 16 KiB, {profile}: {each}", soft_wrap=True)
    out.print(f"simulated link: {answer['link_mbit_s']:g} Mb/s; engine of the host: {answer['engine']}\n")
    measured = [one for one in answer["rows"] if "missing" not in one]
    _table(out, _OFFLOAD_HEADS, 8, (_offload_row(one, answer["ratios"]) for one in measured))
    for one in answer["rows"]:
        if "missing" in one:
            out.print(f"not measured: {one['profile']}: {one['missing']}", soft_wrap=True, markup=False)
    for one in answer["targets"]:
        sort, limit = ("at least", one["at_least"]) if "at_least" in one else ("at most", one["at_most"])
        out.print(
            f"{one['series']}: {sort} {limit} times {one['relative_to']} in large buffers: "
            f"{'met' if one['met'] else 'not met'}, {one['worst']:.2f}",
            soft_wrap=True,
        )
    first = answer["placement"][0]
    sizes = f"{first['sas']:,} SAs of {first['ports']} ports, {first['slots']} slots, in virtual time"
    out.print(f"\nPlacement, {sizes}:")
    heads = ("POLICY", "OFFLOADED", "TO FIRST COME", "MOVES", "PROMISES BROKEN")
    _table(out, heads, 4, map(_placement_row, answer["placement"]))


def _placement_row(one: Json) -> tuple[str, ...]:
    share, factor = f"{one['offloaded_share']:.1%}", f"{one['to_first_come']:.2f}"
    return one["policy"], share, factor, str(one["moves"]), str(one["broken"])


def _offload_row(one: Json, ratios: Json) -> tuple[str, ...]:
    ratio = ratios.get(f"host_cpu/{one['profile']}/{one['series']}/{one['size']}")
    return (
        one["profile"],
        one["series"],
        str(one["size"]),
        f"{one['mbit_s']:.0f}",
        f"{one['host_cpu_percent']:.0f}%",
        f"{one['host_cpu_s_per_gb']:.2f}",
        *(f"{edge:.2f}" for edge in one["host_cpu_s_per_gb_spread"]),
        f"{ratio['median']:.2f}" if ratio else "-",
        f"{one['adapter_cpu_s_per_gb']:.2f}",
    )


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


def flood(out: Console, answer: Json) -> None:
    """A peer beside strangers."""
    out.print(machine_line(answer["machine"]), soft_wrap=True)
    out.print()
    shown = [
        (
            one["stage"],
            f"{one['rekeys_s']:.0f}",
            f"{one['rekey_ms']:.1f} ms",
            f"{one['rekey_p95_ms']:.1f} ms",
            f"{one['packets_s']:.0f}",
            one["lost"],
            one["initiations"],
            one["unseen"],
            one["half_open"],
            f"{one['responder_busy']:.0%}",
            f"{one['resident'] / 2**20:.0f} MiB",
        )
        for one in answer["rows"]
    ]
    heads = (
        "STAGE",
        "REKEYS/S",
        "MEDIAN",
        "95 %",
        "PACKETS/S",
        "LOST",
        "INITIATIONS",
        "UNSEEN",
        "HALF OPEN",
        "RESPONDER BUSY",
        "MEMORY",
    )
    _table(out, heads, len(heads) - 1, shown)
    out.print()
    for key, one in answer["ratios"].items():
        out.print(f"{key}: {one['median']:.2f} of what it is without ({one['min']:.2f} to {one['max']:.2f})")
    out.print(f"memory before the first flood: {answer['resident_before'] / 2**20:.0f} MiB")
