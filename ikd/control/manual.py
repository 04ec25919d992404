"""Shell. `python -m ikd.control.manual` writes the reference pages of `docs/` out of the code they describe.

Settings come from `ikd.settings`, the control socket from `control.requests` and `ikd.events`, the policy
file from `policy.manual`. A test compares the files with what this writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from ikd import settings
from ikd.control.protocol import EXIT_CODES, LARGEST_LINE, PROTOCOL, hyphened
from ikd.control.requests import REQUESTS, WORDS
from ikd.events import EVENTS, Event
from policy.manual import manual as policy

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"

_CONTROL: Final = """\
# Control socket

Generated from `ikd/control/requests.py` and `ikd/events.py` by `python -m ikd.control.manual`; do not edit.

A Unix stream socket (`daemon.control` of ikd.toml) with one JSON object a line, UTF-8, at most {octets}
octets a line. This is protocol {protocol}; the greeting says which one a daemon speaks:

```json
{{"ikd": "0.1.0", "protocol": 1}}
{{"id": 7, "do": "sa", "with": {{"kind": "quick"}}}}
{{"id": 7, "ok": true, "result": {{"quick": []}}}}
{{"id": 8, "ok": false, "error": {{"code": "no-such-rule", "message": "…", "remedy": "…"}}}}
```

The second line is a request, the others are the daemon's. `id` comes back unchanged. Names are lower-case
with hyphens in values and snake_case in keys; octets are hexadecimal, times RFC 3339 in UTC, durations
seconds, sizes octets. Secrets never appear. Every `ikctl` command prints its answer with `--json`.

## Requests"""
_EVENTS: Final = """
## Events

`watch` sends them as lines without `id`; `up` sends those of its own negotiation before the answer. Besides
its own keys each line has `event`, `time`, `group` and `text`, a sentence for people. A reader that is too
slow loses the oldest and is told by `{"event": "lost", "count": 12}`. Group and level say where the log has
it."""


def pages() -> Mapping[str, str]:
    """Every generated page by its file name."""
    return {"settings.md": settings.manual(), "control.md": control(), "policy.md": policy()}


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


# docs/control.md -----------------------------------------------------------------------------------------


def control() -> str:
    """The control socket: its lines, requests, errors and events."""
    lines = [_CONTROL.format(octets=f"{LARGEST_LINE:,}", protocol=PROTOCOL)]
    for one in REQUESTS.values():
        lines += ["", f"### {one.name}", "", one.help]
        if one.parameters:
            lines += _table(
                ("parameter", "type", "default"),
                (
                    (f"`{p.name}`", WORDS[p.kind], "required" if p.required else f"`{json.dumps(p.default)}`")
                    for p in one.parameters
                ),
            )
    lines += ["", "## Errors", "", "`code` is for programs; `ikctl` ends with the status beside it."]
    lines += _table(("code", "exit status"), ((f"`{code}`", str(n)) for code, n in EXIT_CODES.items()))
    lines += _events()
    return "\n".join(lines) + "\n"


def _events() -> Iterator[str]:
    yield _EVENTS
    rows = ((hyphened(name), kind) for name, kind in EVENTS.items())
    yield from _table(
        ("event", "group", "level", "meaning", "keys"),
        ((f"`{name}`", kind.group, kind.level, _first_paragraph(kind), _keys(kind)) for name, kind in rows),
    )


def _first_paragraph(kind: type[Event]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _keys(kind: type[Event]) -> str:
    return ", ".join(f"`{one.name}`" for one in dataclasses.fields(kind)) or "-"


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
