"""Dead peer detection, RFC 3706: an answer to R-U-THERE, or any other sign of life, is enough."""

from __future__ import annotations

from collections.abc import Callable

from ikd.ikev1 import informational
from ikd.ikev1.session import Session
from ikd.isakmp.message import Silent
from ikd.wire.isakmp import Payload


class Liveness:
    """Asks a silent peer whether it lives. `say` sends a protected informational message."""

    __slots__ = ("_due", "_say", "_sequence", "_session", "_since", "_tries")

    def __init__(self, session: Session, say: Callable[[Payload], object]) -> None:
        self._session = session
        self._say = say
        self._sequence: int | None = None  # of the R-U-THERE on its way
        self._since = self._due = 0.0
        self._tries = 0

    @property
    def due(self) -> float | None:
        """When it is asked again; None while no question is open."""
        return None if self._sequence is None else self._due

    def acknowledged(self, sequence: int) -> None:
        """R-U-THERE-ACK came."""
        if sequence == self._sequence:
            self._sequence = None

    def tick(self, heard: float, now: float) -> Silent | None:
        """Ask, or ask again, when it is time; `heard` is the last sign of life. Returns why it is
        given up."""
        settings = self._session.env.settings
        if self._sequence is None:
            if heard + settings.liveness <= now:
                self._sequence = int.from_bytes(self._session.env.random(4), "big") & 0x7FFFFFFF
                self._since, self._tries = now, 0
                self._ask(now)
        elif heard > self._since:
            self._sequence = None
        elif self._due <= now:
            if self._tries >= settings.retransmit_tries and not self._session.stranded:
                return Silent(
                    f"the peer does not answer (R-U-THERE sent {self._tries} times)",
                    "check that the peer runs, and that firewalls pass UDP 500 and 4500",
                )
            self._ask(now)
        return None

    def _ask(self, now: float) -> None:
        settings = self._session.env.settings
        wait = settings.retransmit_first * settings.retransmit_factor**self._tries
        self._due = now + min(wait, settings.retransmit_cap)
        self._tries += not self._session.stranded
        assert self._sequence is not None
        self._say(informational.are_you_there(self._session, self._sequence))
