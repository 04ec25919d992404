"""Answers of the control socket as text for people: tables with rich, plain when it is not a terminal.

Everything shown comes out of the JSON answer; nothing is asked or decided here. Numbers are rounded for
reading, the exact ones are in `--json`. Peers have chosen some of the texts: none is taken for markup, and
what a terminal might obey is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from rich import markup
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ikd.control.protocol import Json, printable
from ikd.events import count

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_PREFIXES = ("", "k", "M", "G", "T")
_UNBOUNDED = 10_000  # columns of a pipe
_GAP = 2
_SHORT = 12  # columns of a table's cells that are never wrapped
_EMPTY: tuple[Json, ...] = (None, "", [], {})


def size(octets: float) -> str:
    """Octets with a binary unit: `1.2 MiB`."""
    if octets < 1024:
        return f"{octets:.0f} B"
    for unit in _UNITS:
        octets /= 1024
        if octets < 1024 or unit == _UNITS[-1]:
            break
    return f"{octets:.0f} {unit}" if octets >= 100 else f"{octets:.1f} {unit}"


def span(seconds: float | None) -> str:
    """A duration in its largest unit, with the next one for hours: `41 s`, `2 min`, `3 h 12 min`, `5 d`."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{whole // 86400} d"


def decimal(number: float | None, unit: str = "") -> str:
    """A number with a decimal prefix: `0.5`, `950`, `1.2 k`, `34 Mbit/s`; `-` when it is not known."""
    if number is None:
        return "-"
    at = 0
    while number >= 999.5 and at < len(_PREFIXES) - 1:
        number, at = number / 1000, at + 1
    text = f"{number:.1f}" if number < 9.95 else f"{number:.0f}"
    text = text if at else text.removesuffix(".0")
    return f"{text} {_PREFIXES[at]}{unit}".rstrip()


def console(width: int | None = None) -> Console:
    """Where output goes; a pipe gets no colour and no line breaks of ours."""
    plain = Console(highlight=False, soft_wrap=False, width=width)
    return plain if plain.is_terminal or width else Console(highlight=False, width=_UNBOUNDED, no_color=True)


def safe(text: object, keep: str = "\n") -> str:
    """A text that neither rich nor a terminal takes for orders; characters of `keep` stay as they are."""
    return markup.escape(printable(str(text), keep))


def table(out: Console, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table without lines. Where the width does not suffice long texts are wrapped between words, and where
    that does not either, each row becomes a list of its own."""
    texts = [[printable(str(cell), keep="") for cell in row] for row in rows]
    cells = list(zip(heads, *texts, strict=True))
    natural = [max(map(cell_len, column)) for column in cells]
    least = [_least(column, size) for column, size in zip(cells, natural, strict=True)]
    widths = fitted(natural, least, out.width, _GAP)
    if widths is None and all(heads):
        _records(out, heads, texts)
        return
    for number, row in enumerate([heads, *texts]):
        _row(out, widths or least, row, "" if number else "bold")


def _row(out: Console, widths: Sequence[int], cells: Sequence[str], style: str = "") -> None:
    """One row of a table, of as many lines as its longest cell needs."""
    wrapped = [
        [line.plain for line in Text(cell).wrap(out, max(1, size), overflow="fold")]
        for cell, size in zip(cells, widths, strict=True)
    ]
    for parts in zip_longest(*wrapped, fillvalue=""):
        line = (" " * _GAP).join(
            set_cell_size(part.rstrip(), size) for part, size in zip(parts, widths, strict=True)
        )
        out.print(Text(line.rstrip(), style), soft_wrap=True)


def _least(column: Iterable[str], natural: int) -> int:
    """How narrow a column may become: short ones stay as they are."""
    return natural if natural <= _SHORT else max(cell_len(word) for text in column for word in text.split())


def fitted(natural: Sequence[int], least: Sequence[int], width: int, gap: int) -> list[int] | None:
    """Widths of columns that fit side by side, the widest made narrower first; None when there are none."""
    widths, room = list(natural), width - gap * (len(natural) - 1)
    while sum(widths) > room:
        able = [at for at, size in enumerate(widths) if size > least[at]]
        if not able:
            return None
        widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def _records(out: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as a list of what it has."""
    for number, row in enumerate(rows):
        if number:
            out.print()
        pairs(out, [(head, cell) for head, cell in zip(heads, row, strict=True) if cell])


def pairs(out: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns; a long value is wrapped in its own."""
    texts = [(printable(name), printable(value, keep="")) for name, value in rows]
    names = max((cell_len(name) for name, _ in texts), default=0)
    for row in texts:
        _row(out, (names, max(1, out.width - names - _GAP)), row)


def status(out: Console, answer: Json) -> None:
    """`ikctl status`."""
    parts = [
        f"ikd {answer['version']}",
        f"up {span(answer['up'])}",
        answer["engine"],
        count(answer["peers_up"], "peer"),
        count(answer["quick"], "quick-mode SA"),
    ]
    out.print(safe(" · ".join(parts)))
    if answer["peers"]:
        out.print()
        heads = ("PEER", "RULE", "KEYING", "AUTHENTICATED AS", "AGE", "IN", "OUT", "PLANE")
        table(out, heads, map(_peer, answer["peers"]))
    else:
        out.print(
            "no peer yet: the first packet that a rule secures, or `ikctl up RULE`, starts a negotiation"
        )
    if answer["wrong"]:
        out.print()
        for sentence in answer["wrong"]:
            out.print(f"[yellow]![/] {safe(sentence)}")


def _peer(one: Json) -> tuple[str, ...]:
    rules = ", ".join(one["rules"]) or "-"
    if one["state"] == "failed":
        told = f"failed {span(one['age'])} ago"  # why stands below the table
        return plain_name(one["peer"]), rules, one["keying"], "-", told, "-", "-", "-"
    age = span(one["age"]) if one["state"] == "established" else f"{one['state']} {span(one['age'])}"
    return (
        plain_name(one["peer"]),
        rules,
        one["keying"],
        who(one),
        age,
        size(one["octets_in"]),
        size(one["octets_out"]),
        one["plane"],
    )


def who(one: Json) -> str:
    """Whom a peer has proven to be; with a second authentication in short, its whole name is PEER."""
    if one["user"]:
        return f"{_short(one['peer'])} + {one['user']} ({_method(one)})"
    if one["health"] and one["user_method"]:
        return f"{_short(one['peer'])} + health ({_method(one)})"
    return plain_name(one["authenticated_as"]) or "-"


def plain_name(name: str) -> str:
    """A proven name as it is said, without its type."""
    return name.removeprefix("principal:")


def _short(peer: str) -> str:
    """A machine's name; of a principal without its realm."""
    name = plain_name(peer)
    return name if name == peer else name.partition("@")[0]


def _method(one: Json) -> str:
    return str(one["user_method"]).removeprefix("user-")


_MAIN_HEADS = (
    "MAIN MODE",
    "PEER",
    "KEYING",
    "STATE",
    "ROLE",
    "AUTHENTICATED AS",
    "SUITE",
    "AGE",
    "REKEY IN",
    "ADDRESSES",
)
_QUICK_HEADS = (
    "QUICK MODE",
    "RULE",
    "PEER",
    "MODE",
    "SUITE",
    "IN",
    "OUT",
    "AGE",
    "REKEY IN",
    "TRAFFIC",
)


_EXTENDED_HEADS = (
    "EXTENDED MODE",
    "PEER",
    "KEYING",
    "USER",
    "METHOD",
    "HEALTH",
    "AGE",
    "RULES",
    "GROUPS",
)


def sa(out: Console, answer: Json) -> None:
    """`ikctl sa`."""
    parts = (
        ("main", _MAIN_HEADS, _main),
        ("quick", _QUICK_HEADS, _quick),
        ("extended", _EXTENDED_HEADS, _extended),
    )
    shown = [part for part in parts if part[0] in answer]
    for number, (kind, heads, row) in enumerate(shown):
        if number:
            out.print()
        if answer[kind]:
            table(out, heads, [row(one) for one in answer[kind]])
        else:
            out.print(f"no {kind}-mode SA")


def _main(one: Json) -> tuple[str, ...]:
    state = f"{one['state']} ({one['waiting']})" if one.get("waiting") else one["state"]
    more = (("nat", "NAT"), ("mobile", "MOBIKE"), ("stranded", "no way there"))
    where = f"{one['local_address']} - {one['peer_address']}" + "".join(f", {t}" for k, t in more if one[k])
    return (
        one["spi_i"][:8],
        plain_name(one["peer"]),
        one["keying"],
        state,
        one["role"],
        who(one),
        one["suite"] or "-",
        span(one["age"]),
        span(one["rekey_in"]),
        where,
    )


def _extended(one: Json) -> tuple[str, ...]:
    return (
        one["spi_i"][:8],
        plain_name(one["peer"]),
        one["keying"],
        one["user"] or "-",
        _method(one),
        "proven" if one["health"] else "-",
        span(one["age"]),
        ", ".join(one["rules"]) or "-",
        ", ".join(name.removeprefix("group:") for name in one["groups"]) or "-",
    )


def _quick(one: Json) -> tuple[str, ...]:
    traffic = f"{', '.join(one['local'])} === {', '.join(one['remote'])}"
    wrapped = " in UDP" if one["encapsulation"] else ""
    return (
        f"{one['spi_in']}/{one['spi_out']}",
        one["rule"],
        plain_name(one["peer"]),
        one["mode"] + wrapped,
        one["suite"],
        size(one["octets_in"]),
        size(one["octets_out"]),
        span(one["age"]),
        span(one["rekey_in"]),
        traffic,
    )


def policy(out: Console, answer: Json) -> None:
    """`ikctl policy show`: every rule with every default, in the order of matching."""
    for one in answer["rules"]:
        state = "" if one["enabled"] else "  (disabled)"
        out.print(f"[bold]{safe(one['name'])}[/]{state}  {safe(one['source'])}")
        pairs(out, _nested({key: one[key] for key in one if key not in ("name", "source", "enabled")}, "  "))
    if not answer["rules"]:
        out.print("no rules: everything passes")
    for warning in answer.get("warnings", ()):
        out.print(f"[yellow]![/] {safe(warning)}")


def _nested(values: dict[str, Json], indent: str) -> Iterator[tuple[str, str]]:
    """What is set; of a set that has a name, first that and below it the rest."""
    for key, value in values.items():
        if value in _EMPTY:
            continue
        if isinstance(value, dict) and "name" in value:
            yield indent + key, value["name"]
            yield from _nested({name: value[name] for name in value if name != "name"}, indent + "  ")
        else:
            yield indent + key, _flat(value)


def _flat(value: Json) -> str:
    if isinstance(value, dict):
        told = [_named(name, item) for name, item in value.items() if name != "method" and item not in _EMPTY]
        rest = ", ".join(told)
        return f"{value['method']} ({rest})" if "method" in value else rest
    if isinstance(value, list):
        return "; ".join(map(_flat, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _named(name: str, value: Json) -> str:
    """A value with its name, amounts in units for people."""
    if name.endswith("_seconds"):
        return f"{name.removesuffix('_seconds')} {span(value)}"
    if name.endswith("_octets"):
        return f"{name.removesuffix('_octets')} {decimal(value, 'B')}"
    return f"{name} {_flat(value)}"


def explain(out: Console, answer: Json) -> None:
    """`ikctl explain`."""
    for line in answer["lines"]:
        out.print(safe(line), soft_wrap=True)


def why(out: Console, answer: Json) -> None:
    """`ikctl why`: what each side had, side by side, with an arrow at what differs."""
    for number, one in enumerate(answer["failures"]):
        if number:
            out.print()
        stage = ", ".join(text for text in (one["stage"], one["notify"], f"{span(one['ago'])} ago") if text)
        head = f"{one['rule'] or one['peer']}: {one['reason']}"
        out.print(f"[bold]{safe(head)}[/] ({safe(stage)})", soft_wrap=True)
        if one["rows"]:
            rows = [
                (
                    f"  {row['what']}",
                    ", ".join(row["ours"]) or "-",
                    ", ".join(row["theirs"]) or "-",
                    _arrow(row),
                )
                for row in one["rows"]
            ]
            heads = ("", one["ours_title"], one["theirs_title"], "")
            most = (
                4 if any(row["theirs"] for row in one["rows"]) else 2
            )  # who refuses need not say what it has
            table(out, heads[:most], [row[:most] for row in rows])
        if one["times"] > 1:
            out.print(f"seen {one['times']} times, first {span(one['first_ago'])} ago")
        if one["mended_ago"] is not None:
            out.print(f"it has worked since, {span(one['mended_ago'])} ago")
        elif one["remedy"]:
            out.print(f"[green]remedy:[/] {safe(one['remedy'])}", soft_wrap=True)
    if not answer["failures"]:
        out.print(safe(f"nothing has failed{answer['about']}"))
    for one in answer.get("under_way", ()):
        waiting = f", waiting for: {one['waiting']}" if one["waiting"] else ""
        told = f"negotiating with {plain_name(one['peer'])} for {span(one['age'])}{waiting}"
        out.print(safe(told), soft_wrap=True)


def _arrow(row: Json) -> str:
    return f"<- {row['note']}" if row["note"] else ""


def reload(out: Console, answer: Json) -> None:
    """`ikctl reload`."""
    verb = "would be " if answer["dry_run"] else ""
    for what in ("added", "changed", "removed"):
        for name in answer[what]:
            touched = [one["id"] for one in answer["touched"] if one["rule"] == name]
            tail = f", ending {count(len(touched), 'quick-mode SA')}" if touched else ""
            out.print(safe(f"{name}: {verb}{what}{tail}"))
    if not any(answer[what] for what in ("added", "changed", "removed")):
        out.print("no rule differs")
    for warning in answer["warnings"]:
        out.print(f"[yellow]![/] {safe(warning)}")


def event(out: Console, line: Json) -> None:
    """One line of `ikctl watch`."""
    moment = line.get("time", "")[11:23]
    text = line.get("text")
    if text is None:
        rest = {key: value for key, value in line.items() if key not in ("event", "time", "group")}
        text = " ".join(f"{key}={_flat(value)}" for key, value in rest.items() if value not in _EMPTY)
    out.print(f"{moment} [bold]{safe(line['event'])}[/] {safe(text)}", soft_wrap=True)
