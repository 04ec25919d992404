"""Shell. The log: events as text, as JSON lines, or for journald, on standard error or to journald itself.

Each group of events has its own level. What strangers cause can come thousands of times a second, so of
each kind of event only the first few of a second are written, and then how many were not. Messages for SAs
that are gone, of which a peer sends some for each after this host was restarted, are told once a minute for
each address. Octets of strangers never reach a terminal unescaped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ikd.control.protocol import hyphened, plain, printable, stamp
from ikd.events import EVENTS, DatagramDropped, Event
from ikd.journal import Journal
from ikd.settings import LEVELS, Levels

MOST_PER_SECOND: Final = 50  # of one kind of event and reason
MOST_PER_SECOND_DEBUG: Final = 2000  # whoever asks for these wants to see them
MOST_KINDS: Final = 1024
OTHERS: Final = "other kinds"  # that there is no room to tell apart
MINUTE: Final = 60.0
STALE: Final = "unknown-spi"  # the reason of datagrams for SAs that are gone
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # syslog's, as sd-daemon(3) wants them

Later = Callable[[float, Callable[[], None]], Any]


class Limiter:
    """Lets the first so many of a kind pass in each period of so many seconds, and counts the rest."""

    __slots__ = ("_counts", "_now", "period", "waiting")

    def __init__(self, period: float = 1.0) -> None:
        self.period = period
        self.waiting = False  # for the moment to report
        self._now = 0  # the number of the period
        self._counts: dict[str, int] = {}

    def passes(self, kind: str, most: int) -> bool:
        """Whether this one is written; `report` should be asked before, when the period has changed."""
        if kind not in self._counts and len(self._counts) >= MOST_KINDS:
            kind, most = OTHERS, 0
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return count <= most

    def turned(self, now: float) -> bool:
        """Whether another period has begun."""
        return int(now // self.period) != self._now

    def report(self, now: float, most: Callable[[str], int]) -> list[tuple[str, int]]:
        """Begin a period: which kinds were cut short in the one before, and by how many."""
        passed = {kind: 0 if kind == OTHERS else most(kind) for kind in self._counts}
        cut = [(kind, count - passed[kind]) for kind, count in self._counts.items() if count > passed[kind]]
        self._counts.clear()
        self._now = int(now // self.period)
        return cut


class Log:
    """Writes events. `later` runs a function after some seconds, for the last "suppressed" line of a
    flood."""

    def __init__(
        self,
        levels: Levels,
        form: str,
        stream: TextIO,
        later: Later | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.levels = levels
        self.form = form if form != "auto" else automatic(stream)
        self._later = later
        self._monotonic = monotonic
        self._clock = clock
        self._limiter, self._stale = Limiter(), Limiter(MINUTE)
        self._most: dict[str, int] = {}
        target: Any = structlog.WriteLogger(stream)
        form_of = _FORMS[self.form]
        self._journal: Journal | None = None
        if self.form == automatic(stream) == "journald":
            target = self._journal = Journal()
            form_of = _fields
        self._lost = 0  # lines that could not be written, since the last one that could
        self.trouble = ""  # why not
        self._logger: Any = structlog.wrap_logger(target, processors=[self._stamped, form_of])

    def close(self) -> None:
        """There is nothing more to say."""
        if self._journal is not None:
            self._journal.close()

    def writer(self, kind: type[Event]) -> Callable[[Event], None] | None:
        """What writes events of a kind, None when its level is off; ask again after `set_level`."""
        wanted = LEVELS.index(kind.level) >= LEVELS.index(self.levels.of(kind.group))
        return self.write if wanted else None

    def write(self, event: Event) -> None:
        """Write one event, unless its kind has been written too often in this second."""
        now = self._monotonic()
        for one in (self._limiter, self._stale):
            if one.turned(now):
                self.flush(one, now)
        debugging = self.levels.of(event.group) == "debug"  # then every one is wanted
        if not debugging and (stale := _stale(event)) and not self._stale.passes(stale, 1):
            self._flush_later(self._stale)
            return
        kind = type(event)
        name = _counted_as(event)
        most = MOST_PER_SECOND_DEBUG if kind.level == "debug" else MOST_PER_SECOND
        if not self._limiter.passes(name, most):
            self._most[name] = most
            self._flush_later(self._limiter)
            return
        self._put(kind.level, _NAMES[kind], group=kind.group, said=event)

    def flush(self, limiter: Limiter, now: float) -> None:
        """Say what was suppressed in the period that is over."""
        stale = limiter is self._stale
        for name, count in limiter.report(
            now, lambda kind: 1 if stale else self._most.get(kind, MOST_PER_SECOND)
        ):
            self._put("warning", "suppressed", group="daemon", said=f"{count} more of {name}", count=count)
        if not stale:
            self._most.clear()

    def set_level(self, level: str, group: str) -> None:
        """Another level for one group, or for all when `group` is empty."""
        self.levels = self.levels.changed(level, group)

    def _flush_later(self, limiter: Limiter) -> None:
        def flush() -> None:
            limiter.waiting = False
            self.flush(limiter, self._monotonic())

        if self._later is not None and not limiter.waiting:
            limiter.waiting = True
            self._later(limiter.period, flush)

    def _put(self, level: str, name: str, **values: Any) -> None:
        """Write a line. When nobody reads the log or the disk is full, negotiating goes on, and how many were
        lost is said as soon as lines can be written again."""
        if self._lost:
            said = f"{self._lost} lines are missing here: {self.trouble}"
            if self._written("warning", "lines-lost", {"group": "daemon", "said": said, "count": self._lost}):
                self._lost, self.trouble = 0, ""
        if not self._written(level, name, values):
            self._lost += 1

    def _written(self, level: str, name: str, values: dict[str, Any]) -> bool:
        try:
            getattr(self._logger, level)(name, **values)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self.trouble = f"the log cannot be written: {reason}"
            return False
        return True

    def _stamped(self, _: WrappedLogger, method: str, values: EventDict) -> EventDict:
        values["level"] = method
        values["time"] = stamp(self._clock())
        return values


def automatic(stream: TextIO) -> str:
    """Text on a terminal, journald when systemd reads the stream, else JSON."""
    try:
        status = os.fstat(stream.fileno())
        if stream.isatty():
            return "text"
    except (OSError, ValueError):
        return "json"
    return "journald" if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" else "json"


_NAMES: Final = {kind: hyphened(name) for name, kind in EVENTS.items()}


def _counted_as(event: Event) -> str:
    """What is counted together: the kind, and its reason where it has one of a few."""
    name = _NAMES[type(event)]
    return f"{name} ({printable(event.reason)[:60]})" if isinstance(event, DatagramDropped) else name


def _stale(event: Event) -> str:
    """What a message for an SA that is gone is counted as; empty for everything else."""
    if not isinstance(event, DatagramDropped) or event.reason != STALE or event.path is None:
        return ""
    return f"{_counted_as(event)} from {event.path.peer.address}"


def _said(values: EventDict) -> str:
    said = values["said"]
    return printable(said.text if isinstance(said, Event) else said)


def _text(_: WrappedLogger, __: str, values: EventDict) -> str:
    return f"{values['time']} {values['level']:<7} {_message(values)}"


def _json(_: WrappedLogger, __: str, values: EventDict) -> str:
    said = values.pop("said")
    line = {key: values[key] for key in ("time", "level", "group", "event")} | dict(values)
    if isinstance(said, Event):
        line |= plain(said) | {"text": said.text}
    else:
        line["text"] = said
    return json.dumps(line, ensure_ascii=False)


def _message(values: EventDict) -> str:
    """For people, without the time: journald has that itself."""
    number = getattr(values["said"], "ike", 0)
    who = f" {number}" if number else ""
    return f"{values['group']}{who}: {_said(values)}"


def _journald(_: WrappedLogger, __: str, values: EventDict) -> str:
    """Every line with its priority in front."""
    prefix = f"<{_PRIORITY[values['level']]}>"
    return "\n".join(prefix + line for line in _message(values).splitlines())


def _fields(_: WrappedLogger, __: str, values: EventDict) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `Journal`: journald's own fields, and one for each key of the event."""
    said = values["said"]
    keys = plain(said) if isinstance(said, Event) else {"count": values["count"]}
    fields = [
        ("MESSAGE", _message(values)),
        ("PRIORITY", str(_PRIORITY[values["level"]])),
        ("SYSLOG_IDENTIFIER", "ikd"),
    ]
    for key, value in ({"event": values["event"], "group": values["group"]} | keys).items():
        fields += [(field_name(key), text) for text in _texts(value)]
    return (fields,), {}


def field_name(key: str) -> str:
    """The field of journald for a key of an event."""
    return f"IKD_{key.upper()}"


def _texts(value: Any) -> Iterator[str]:
    """A value as texts, one for each field of its name."""
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_FORMS: Final[dict[str, Processor]] = {"text": _text, "json": _json, "journald": _journald}
