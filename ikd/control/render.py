"""Answers of the control socket as text for people: tables with rich, plain when it is not a terminal.

Everything shown comes out of the JSON answer; nothing is asked or decided here. Numbers are rounded for
reading, the exact ones are in `--json`. Peers have chosen some of the texts: none is taken for markup, and
what a terminal might obey is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import markup
from rich.console import Console
from rich.table import Table

from ikd.control.protocol import Json, printable

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


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


def count(number: int, thing: str) -> str:
    """`1 peer`, `2 peers`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def console(width: int | None = None) -> Console:
    """Where output goes; a pipe gets no colour and no line breaks of ours."""
    plain = Console(highlight=False, soft_wrap=False, width=width)
    return plain if plain.is_terminal or width else Console(highlight=False, width=240, no_color=True)


def safe(text: object, keep: str = "\n") -> str:
    """A text that neither rich nor a terminal takes for orders; characters of `keep` stay as they are."""
    return markup.escape(printable(str(text), keep))


def table(out: Console, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table without lines; the last column takes what is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=number < len(heads) - 1, overflow="fold")
    for row in rows:
        table.add_row(*(safe(cell, keep="") for cell in row))
    out.print(table)


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
        told = f"failed {span(one['age'])} ago: {one['reason']}"
        return plain_name(one["peer"]), rules, one["keying"], "-", told, "", "", ""
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
    where = f"{one['local_address']} - {one['peer_address']}" + (", NAT" if one["nat"] else "")
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
        for key, value in one.items():
            if key not in ("name", "source", "enabled") and value not in (None, "", [], {}):
                out.print(f"  {key:<12} {safe(_flat(value))}")
    if not answer["rules"]:
        out.print("no rules: everything passes")
    for warning in answer.get("warnings", ()):
        out.print(f"[yellow]![/] {safe(warning)}")


def _flat(value: Json) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {_flat(item)}" for key, item in value.items() if item not in (None, "", [], {})
        )
    if isinstance(value, list):
        return "; ".join(map(_flat, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def explain(out: Console, answer: Json) -> None:
    """`ikctl explain`."""
    for line in answer["lines"]:
        out.print(safe(line), soft_wrap=True)


def why(out: Console, answer: Json) -> None:
    """`ikctl why`: what each side had, side by side, with an arrow at what differs."""
    for number, one in enumerate(answer["failures"]):
        if number:
            out.print()
        stage = ", ".join(text for text in (one["stage"], one["notify"]) if text)
        head = f"{one['rule'] or one['peer']}: {one['reason']} {span(one['ago'])} ago"
        out.print(f"[bold]{safe(head)}[/]" + (f" ({safe(stage)})" if stage else ""), soft_wrap=True)
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
            table(out, ("", one["ours_title"], one["theirs_title"], ""), rows)
        if one["times"] > 1:
            out.print(f"seen {one['times']} times, first {span(one['first_ago'])} ago")
        if one["mended_ago"] is not None:
            out.print(f"it has worked since, {span(one['mended_ago'])} ago")
        elif one["remedy"]:
            out.print(f"[green]remedy:[/] {safe(one['remedy'])}", soft_wrap=True)
    if not answer["failures"]:
        out.print(f"nothing has failed{answer['about']}")


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
        text = " ".join(f"{key}={_flat(value)}" for key, value in rest.items() if value not in (None, "", []))
    out.print(f"{moment} [bold]{safe(line['event'])}[/] {safe(text)}", soft_wrap=True)


def error(out: Console, message: str, remedy: str) -> None:
    """What went wrong, on standard error."""
    out.print(f"[red]ikctl:[/] {safe(message)}", soft_wrap=True)
    if remedy:
        out.print(f"[green]remedy:[/] {safe(remedy)}", soft_wrap=True)
