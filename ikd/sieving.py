"""Shell. Keeps a flood of first messages from taking the processor: when more come than may be answered, the
kernel throws away most of them before anybody is woken.

Each first message costs little once cookies are asked for, but it costs, and there is no end of them. What
is for SAs there are passes always, so that peers notice nothing. Of first messages a share passes that is
made smaller until no more than `limits.first_messages` a second ask for an answer, and larger again as soon
as there are fewer: an honest stranger gets in by repeating itself. Those that seem to return a cookie are
thrown away only when the others are gone and there are still too many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ikd.events import CookieDemanded, DatagramDropped, Event, FloodBegan, FloodOver
from ikd.transport import Transport

EVERY: Final = 0.1  # seconds between two looks
LEAST: Final = 0.001  # share of first messages without a cookie, before those with one are thrown away, too
_LEAST_OF_ALL: Final = LEAST * LEAST

Later = Callable[[float, Callable[[], None]], Any]
Listener = Callable[[Event], None]


def adjusted(share: float, rate: float, most: float) -> float:
    """The share that is to pass when with this one so many a second came."""
    if rate > most:
        return max(_LEAST_OF_ALL, share * most / rate)
    return min(1.0, 2 * share) if rate < most / 2 else share


class Sieving:
    """`most` says how many first messages of strangers a second are worth an answer; 0 is without limit."""

    def __init__(
        self, transport: Transport, publish: Listener, later: Later, most: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._publish = publish
        self._later = later
        self._most = most
        self._count = 0
        self._share = 1.0
        self._watching = False

    @property
    def trouble(self) -> str:
        """That there is a flood; empty as long as there is none."""
        if self._share == 1.0:
            return ""
        return (
            "a flood of first messages: most are thrown away unread; strangers get in by repeating themselves"
        )

    def listener(self, kind: type[Event]) -> Listener | None:
        """What counts strangers that were turned away."""
        if kind is CookieDemanded:
            return self._turned_away
        return self._dropped if kind is DatagramDropped else None

    def _dropped(self, event: Any) -> None:
        if event.reason == "half-open-limit":
            self._turned_away(event)

    def _turned_away(self, event: Event) -> None:
        self._count += 1
        if not self._watching:
            self._watching = True
            self._later(EVERY, self._look)

    def _look(self) -> None:
        count, self._count = self._count, 0
        before, most = self._share, self._most()
        self._share = adjusted(before, count / EVERY, most) if most else 1.0
        if self._share != before:
            share = self._share
            try:
                self._transport.sieve(max(LEAST, share), min(1.0, share / LEAST))
            except OSError:  # no memory for it: at the next look again
                self._share = before
            else:
                if before == 1.0:
                    self._publish(FloodBegan(rate=round(count / EVERY)))
                elif share == 1.0:
                    self._publish(FloodOver())
        self._watching = count > 0 or self._share < 1.0
        if self._watching:
            self._later(EVERY, self._look)
