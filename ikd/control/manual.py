"""Shell. `python -m ikd.control.manual` writes the reference pages of `docs/` out of the code they describe.

Settings come from `ikd.settings`, the control socket from `control.requests` and `ikd.events`, the policy
file from `policy.manual`. A test compares the files with what this writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from ikd import settings
from ikd.control.protocol import EXIT_CODES, LARGEST_LINE, PROTOCOL, hyphened
from ikd.control.requests import REQUESTS, WORDS
from ikd.events import EVENTS, Comparison, Event
from ikd.logs import MOST_PER_SECOND, MOST_PER_SECOND_DEBUG
from ikd.settings import GROUPS
from policy.manual import manual as policy
from sadb.address import Path as AddressPath

_VALUES: Final[Mapping[type, str]] = {
    str: "text",
    int: "a number",
    bool: "true or false",
    tuple: "a list of texts",
    AddressPath: "text, both ends with their ports",
    Comparison: "both sides side by side: titles, and rows with what each has",
}
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
slow loses the oldest and is told by `{"event": "lost", "count": 12}`. [events.md](events.md) lists them."""
_LIST: Final = """\
# Events

Generated from `ikd/events.py` by `python -m ikd.control.manual`; do not edit.

What happens is told once and heard by the log, by `ikctl watch` and by the counters behind `ikctl metrics`.
The name of an event, its group, its level and its keys are stable: a later version may add events and keys,
and does not give another meaning to one that is there. `[log] level` of ikd.toml, or `ikctl log LEVEL GROUP`,
says from which level on a group is written; with `format = "json"` a line has the keys below and besides

| key | value |
|---|---|
| `time` | RFC 3339, in UTC |
| `level`, `group`, `event` | as below |
| `text` | the sentence for people, which alone may change its wording |

Under systemd each message goes to journald with fields of its own: `IKD_EVENT`, `IKD_GROUP`, and for each key
below `IKD_` with the key in capitals, such as `IKD_PEER` or `IKD_RULE`. `MESSAGE` is the sentence, `PRIORITY`
the level in syslog's numbers. A list is one field for each of its texts; numbers, `true` and `false` are as
in JSON; what is null is left out.

    journalctl -t ikd IKD_EVENT=authentication-failed
    journalctl -t ikd IKD_RULE=branch -o json

Of one kind of event the log has at most {most} a second (level debug: {most_debug}), then a line
`suppressed` with the number of the others (`count`); the counters miss none. Behind lines that could not be
written, because a disk was full, `lines-lost` has their number. These two are of the log only.

## Audit

Every authentication that succeeds or fails is one of these events, with the identity that was proven or
claimed, the method, the rule and, for a failure, the reason in words (`reason`) and in a word (`cause`). They
are in group `auth`, which is written unless its level is raised. A peer that does not believe this host and
says so leaves `authentication-failed` with the cause `refused-by-peer`; one that falls silent instead, as in
main mode of IKEv1, leaves only `negotiation-failed`. A wrong pre-shared key shows there in messages that
cannot be read: `identity` is empty then, because the name is in one of them.
"""


def pages() -> Mapping[str, str]:
    """Every generated page by its file name."""
    return {
        "settings.md": settings.manual(),
        "control.md": control(),
        "events.md": events(),
        "policy.md": policy(),
    }


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
    lines.append(_EVENTS)
    return "\n".join(lines) + "\n"


# docs/events.md ------------------------------------------------------------------------------------------


def events() -> str:
    """Every event with its level and its keys."""
    lines = [_LIST.format(most=MOST_PER_SECOND, most_debug=MOST_PER_SECOND_DEBUG)]
    lines += [f"- [`{hyphened(name)}`](#{hyphened(name)})" for name, kind in EVENTS.items() if kind.audit]
    for group in GROUPS:
        kinds = {name: kind for name, kind in EVENTS.items() if kind.group == group}
        lines += ["", f"## Group {group}"] if kinds else []
        for name, kind in kinds.items():
            lines += ["", f"### {hyphened(name)}", "", f"Level {kind.level}. {_first_paragraph(kind)}"]
            lines += _table(("key", "value"), _keys(kind)) if dataclasses.fields(kind) else ()
    return "\n".join(lines) + "\n"


def _first_paragraph(kind: type[Event]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _keys(kind: type[Event]) -> Iterator[tuple[str, str]]:
    """Names of an event's fields, and what they are on a line."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        optional = "" if one.default is dataclasses.MISSING or one.default is None else ", may be empty"
        yield f"`{one.name}`", _value(hints[one.name]) + (optional if hints[one.name] is str else "")


def _value(hint: Any) -> str:
    """A type as it is written in JSON."""
    parts = get_args(hint)
    if type(None) in parts:
        return f"{_value(next(one for one in parts if one is not type(None)))}, or null"
    return _VALUES[get_origin(hint) or hint]


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
