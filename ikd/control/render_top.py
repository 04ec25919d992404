"""What `ikctl top` shows, as lines: a frame out of one answer of the daemon, for any size of terminal.

Nothing here is parsed as markup, and what a peer has named is printed with everything escaped that a terminal
might obey. Where the width does not suffice the least important columns go; where the height does not, each
part has its share and says how many rows there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ikd.control.protocol import Json, printable
from ikd.control.render import decimal, fitted, plain_name, span, who
from ikd.control.requests import SORTS
from ikd.events import count

_GAP: Final = "  "
KEYS: Final = "q quit   s sort   p pause   up/down, page up/down scroll"


@dataclass(frozen=True, slots=True)
class View:
    """What whoever looks has chosen, and what is wrong: `trouble` is why there is no newer answer."""

    sort: str = SORTS[0]
    paused: bool = False
    offset: int = 0
    trouble: str = ""

    def pressed(self, key: str, page: int) -> View:
        """After a key; one without a meaning changes nothing. `page` is how far a page key goes."""
        match key:
            case "s":
                return replace(self, sort=SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], offset=0)
            case "p" | " ":
                return replace(self, paused=not self.paused)
            case "home":
                return replace(self, offset=0)
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page}
        return replace(self, offset=max(0, self.offset + steps.get(key, 0)))


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, the cells, how narrow it may become, how wide at most, and which columns go
    first where there is no room: those with the highest `rank`."""

    head: str
    cells: Sequence[str]
    rank: int = 0
    least: int = 1000
    most: int = 1000
    right: bool = False

    @property
    def natural(self) -> int:
        """The width at which nothing is cut."""
        return min(max(map(cell_len, (self.head, *self.cells))), self.most)


def frame(answer: Json, view: View, width: int, height: int | None) -> list[Text]:
    """The lines to print, no wider than `width`; as many as are needed without a `height`, else no more than
    that."""
    parts = [
        _peers(answer, view, width),
        _sas(answer, view, width),
        _offload(answer["offload"], width),
        _failures(answer["failures"], width),
        _drops(answer["drops"]),
    ]
    shown = [part for part in parts if part]
    top = _top(answer, view)
    bottom = [Text(KEYS, "dim")] if height is not None else []
    lengths = [len(part) for part in shown]
    gaps = 1
    if height is not None:
        room = height - len(top) - len(bottom)
        gaps = 1 if sum(lengths) + len(lengths) <= room else 0
        lengths = share(room - gaps * len(lengths), lengths)
    lines = list(top)
    for part, length in zip(shown, lengths, strict=True):
        lines += [Text()] * gaps + part[:length]
    if height is not None:
        lines += [Text()] * (height - len(lines) - len(bottom))
    lines = (lines + bottom)[:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def share(room: int, wanted: Sequence[int]) -> list[int]:
    """Lines for each part: a head and a row for everybody, then in turn until all have enough or none is
    left."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for at, most in enumerate(wanted):
            if room > 0 and given[at] < most:
                given[at] += 1
                room -= 1
    return given


def columns(width: int, wanted: Iterable[Column]) -> list[Text]:
    """A table: its head and its rows."""
    kept = list(wanted)
    while any(one.rank for one in kept) and _width(min(one.least, one.natural) for one in kept) > width:
        last = max(one.rank for one in kept)
        kept = [one for one in kept if one.rank < last]
    natural, least = [one.natural for one in kept], [min(one.least, one.natural) for one in kept]
    widths = fitted(natural, least, width, len(_GAP)) or least
    heads = [Text(_row(kept, widths, [one.head for one in kept]), "bold")]
    rows = zip(*(one.cells for one in kept), strict=True)
    return heads + [Text(_row(kept, widths, cells)) for cells in rows]


def _width(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + len(_GAP) * (len(found) - 1)


def _row(kept: Sequence[Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    return _GAP.join(
        _fit(cell, size, right=one.right) for one, size, cell in zip(kept, widths, cells, strict=True)
    ).rstrip()


def _fit(cell: str, size: int, *, right: bool) -> str:
    """A cell in exactly so many columns of the terminal."""
    spare = size - cell_len(cell)
    if spare < 0:
        return set_cell_size(cell, size - 1) + "…"
    return " " * spare + cell if right else cell + " " * spare


def _safe(text: Json) -> str:
    """A text on one line that no terminal obeys."""
    return printable(str(text), keep="")


# Parts ---------------------------------------------------------------------------------------------------


def _top(answer: Json, view: View) -> list[Text]:
    """Who answers, and how much passes."""
    about = [
        f"ikd {answer['version']}",
        f"up {span(answer['up'])}",
        answer["engine"],
        count(answer["main"], "IKE SA"),
        count(answer["quick"], "quick-mode SA"),
    ]
    about += [f"{answer['half_open']} half open"] if answer["half_open"] else []
    about += [f"{count(answer['held'], 'packet')} held"] if answer["held"] else []
    rate = answer["per_second"]
    moving = Text("  ".join(f"{way} {_traffic(rate, way)}" for way in ("in", "out")))
    if view.trouble:
        moving = Text(_safe(view.trouble), "bold red")
    elif view.paused:
        moving.append("  paused", "bold yellow")
    return [Text(_safe(" · ".join(about))), moving]


def _traffic(rate: Json, way: str) -> str:
    if rate is None:
        return "-"
    return f"{decimal(rate[f'octets_{way}'] * 8, 'bit/s')}, {decimal(rate[f'packets_{way}'])} packets/s"


def _rates(rows: Sequence[Json]) -> list[Column]:
    """The four columns of traffic."""

    def cells(key: str, times: int) -> list[str]:
        return [
            decimal(None if one["per_second"] is None else one["per_second"][key] * times) for one in rows
        ]

    return [
        Column("IN bit/s", cells("octets_in", 8), 0, right=True),
        Column("OUT bit/s", cells("octets_out", 8), 0, right=True),
        Column("IN pkt/s", cells("packets_in", 1), 6, right=True),
        Column("OUT pkt/s", cells("packets_out", 1), 6, right=True),
    ]


def _age(seconds: float | None) -> str:
    """A duration in one unit: hours and minutes together are too wide for a column."""
    text = span(seconds)
    return text.split(" h ")[0] + " h" if " h " in text else text


def _scrolled(rows: list[Json], view: View) -> list[Json]:
    """From the offset on, but never to beyond the last row."""
    return rows[min(view.offset, max(0, len(rows) - 1)) :]


def _peers(answer: Json, view: View, width: int) -> list[Text]:
    rows = _scrolled(answer["peers"], view)
    if not rows:
        return [Text("no IKE SA yet: the first packet that a rule secures starts a negotiation")]
    return columns(
        width,
        [
            Column(f"PEER ({answer['main']})", [_safe(plain_name(one["peer"])) for one in rows], 0, 14),
            Column("RULE", [_safe(", ".join(one["rules"]) or "-") for one in rows], 1, 8),
            Column("KEYING", [_safe(one["keying"]) for one in rows], 4),
            Column("AUTHENTICATED AS", [_safe(who(one)) for one in rows], 7, 16, 48),
            Column("AGE", [_state(one) for one in rows], 3),
            *_rates(rows),
            Column("PLANE", [_safe(one["plane"]) for one in rows], 5),
        ],
    )


def _state(one: Json) -> str:
    age = _age(one["age"])
    return age if one["state"] == "established" else f"{_safe(one['state'])} {age}"


def _sas(answer: Json, view: View, width: int) -> list[Text]:
    rows = _scrolled(answer["sas"], view)
    if not rows:
        return []
    return columns(
        width,
        [
            Column(f"QUICK MODE ({answer['quick']})", [_safe(one["spi_in"]) for one in rows], 0, 10),
            Column("RULE", [_safe(one["rule"]) for one in rows], 2, 8),
            Column("PEER", [_safe(plain_name(one["peer"])) for one in rows], 1, 12),
            Column("MODE", [_safe(one["mode"]) for one in rows], 8),
            Column("SUITE", [_safe(one["suite"]) for one in rows], 7, 12, 32),
            Column("AGE", [_age(one["age"]) for one in rows], 3),
            Column("REKEY IN", [_age(one["rekey_in"]) for one in rows], 6),
            *_rates(rows),
            Column("PLANE", [_safe(one["plane"]) for one in rows], 5),
        ],
    )


def _offload(answer: Json, width: int) -> list[Text]:
    if answer is None:
        return []
    if guest := answer.get("guest"):
        where = f"port {guest['port']}" if guest["connected"] else "no answer from the host's switch"
        return [Text(_safe(f"OFFLOAD  {where}, {count(guest['pairs_offloaded'], 'SA pair')} in the adapter"))]
    adapter, rows = answer["adapter"], answer["software"]
    state = "not running" if not adapter["running"] else "off" if not adapter["enabled"] else adapter["link"]
    slots = f"{adapter['usage']} of {adapter['capacity']} slots"
    head = Text(_safe(f"OFFLOAD  {adapter['profile']}, {state}, {slots}"), "bold")
    if not rows:
        return [head]
    table = columns(
        width,
        [
            Column("IN SOFTWARE", [_safe(one["spi_in"]) for one in rows]),
            Column("RULE", [_safe(one["rule"]) for one in rows], 2, 8),
            Column("PEER", [_safe(one["peer"]) for one in rows], 1, 12),
            Column("bit/s", [decimal(one["octets_per_second"] * 8) for one in rows], right=True),
            Column("WHY", [_reasons(one) for one in rows], 0, 12),
        ],
    )
    return [head, *table]


def _reasons(one: Json) -> str:
    """Why each direction is in software; one text when it is the same for both."""
    texts = {way: _safe(told["text"]) for way, told in one["why"].items()}
    if len(set(texts.values())) == 1 and len(texts) > 1:
        return next(iter(texts.values()))
    return "; ".join(f"{way}: {text}" for way, text in texts.items()) or "moving"


def _failures(rows: list[Json], width: int) -> list[Text]:
    if not rows:
        return []
    return columns(
        width,
        [
            Column("FAILED", [_safe(one["rule"] or one["peer"]) for one in rows], 0, 10, 24),
            Column("AGO", [_age(one["ago"]) for one in rows], 1),
            Column("WHY", [_why(one) for one in rows], 0, 20),
        ],
    )


def _why(one: Json) -> str:
    """What `ikctl why` says, in one line."""
    stage = ", ".join(text for text in (one["stage"], one["notify"]) if text)
    times = f", {one['times']} times" if one["times"] > 1 else ""
    text = one["reason"] + (f" ({stage}{times})" if stage or times else "")
    if one["mended_ago"] is not None:
        return _safe(f"{text}; it has worked since")
    return _safe(f"{text}; {one['remedy']}" if one["remedy"] else text)


def _drops(rows: list[Json]) -> list[Text]:
    """What is dropped, in one line: what is dropped now, then what was."""
    if not rows:
        return []
    line = Text("DROPPED  ", "bold")
    told = [
        f"{_safe(one['reason'])} {decimal(one['per_second'])}/s"
        if one["per_second"]
        else f"{_safe(one['reason'])} {one['total']} in all"
        for one in rows
    ]
    line.append(" · ".join(told), "")
    return [line]
