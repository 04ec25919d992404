"""The latest events, for bug reports: a few of each kind, so that what strangers cause, which can come
thousands of times a second, pushes out only its own kind."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Final

from ikd.control.protocol import LARGEST_LINE, Json
from ikd.control.views import event_line
from ikd.events import Event
from ikd.settings import LEVELS

OF_A_KIND: Final = 50
MOST_OCTETS: Final = LARGEST_LINE // 2  # of an answer; the oldest are left out of it
_LEAST: Final = LEVELS.index("info")  # each message is an event too, of level debug


class Recent:
    """Fed by events; `clock` gives POSIX seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[type[Event], deque[tuple[float, Event]]] = {}

    def listener(self, kind: type[Event]) -> Callable[[Event], None] | None:
        """Who takes notice of events of a kind."""
        if LEVELS.index(kind.level) < _LEAST:
            return None
        kept = self._kept.setdefault(kind, deque(maxlen=OF_A_KIND))
        return lambda event: kept.append((self._clock(), event))

    def lines(self) -> list[Json]:
        """As `ikctl watch` has them, the oldest first."""
        every = sorted((one for kept in self._kept.values() for one in kept), key=lambda one: one[0])
        found: list[Json] = []
        left = MOST_OCTETS
        for posix, event in reversed(every):
            line = event_line(event, posix)
            left -= len(json.dumps(line))
            if left < 0:
                break
            found.append(line)
        return found[::-1]
