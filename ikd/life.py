"""The life of an IKE SA: its states as a table, and the clocks that end, replace or probe it.

RFC 7296 sections 2.4 and 2.8, RFC 3948 section 4. What is done when a clock runs out is decided in
each protocol's association.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from ikd.keying import MainMode
from sadb.sa import SaPair

SOFT = 0.85  # the part of its life after which an IKE SA is replaced, made up to a tenth smaller at random
JITTER = 0.1
AGAIN_SECONDS = 30.0  # after which replacing an IKE SA is tried again
REPLACED_SECONDS = 60.0  # how long a replaced IKE SA waits for the peer to delete it


class State(Enum):
    """Life of an IKE SA."""

    CONNECTING = "connecting"
    ESTABLISHED = "established"
    REKEYING = "rekeying"
    DELETING = "deleting"
    CLOSED = "closed"


class Input(Enum):
    """What changes it."""

    AUTHENTICATED = "authenticated"
    REKEY = "rekey"
    KEPT = "kept"  # replacing it failed
    DELETE = "delete"
    GONE = "gone"


S, I = State, Input  # noqa: E741
TRANSITIONS: Mapping[State, Mapping[Input, State]] = {
    S.CONNECTING: {I.AUTHENTICATED: S.ESTABLISHED, I.GONE: S.CLOSED},
    S.ESTABLISHED: {I.REKEY: S.REKEYING, I.DELETE: S.DELETING, I.GONE: S.CLOSED},
    S.REKEYING: {I.KEPT: S.ESTABLISHED, I.DELETE: S.DELETING, I.GONE: S.CLOSED},
    S.DELETING: {I.GONE: S.CLOSED},
    S.CLOSED: {},
}


class Life:
    """State and clocks of one IKE SA. Times are on the caller's clock; None means never."""

    __slots__ = ("half_open_until", "hard_at", "heard", "rekey_at", "since", "state")

    def __init__(self, now: float, half_open_timeout: float) -> None:
        self.state = State.CONNECTING
        self.half_open_until = now + half_open_timeout
        self.heard = now  # when the last authentic message came
        self.since = now  # when the peer was proven
        self.rekey_at: float | None = None
        self.hard_at: float | None = None

    def move(self, what: Input) -> bool:
        """Change the state as the table allows; whether it did."""
        following = TRANSITIONS[self.state].get(what)
        if following is not None:
            self.state = following
        return following is not None

    @property
    def up(self) -> bool:
        """Whether the peer is proven and the end has not begun."""
        return self.state in (State.ESTABLISHED, State.REKEYING)

    def begin(
        self, now: float, seconds: float | None, credential: float | None, random: Callable[[int], bytes]
    ) -> None:
        """The keys are proven: their time runs, `seconds` as policy says, and not beyond the peer's
        `credential`. The two ends do not replace them at the same moment."""
        self.state = State.ESTABLISHED
        self.heard = self.since = now
        if seconds is not None:
            share = 1 - JITTER * int.from_bytes(random(2), "big") / 0x10000
            self.rekey_at, self.hard_at = now + seconds * SOFT * share, now + seconds
        if credential is not None:
            self.hard_at = min(now + credential, self.hard_at or now + credential)

    def replaced(self, now: float) -> None:
        """A successor has taken over; the peer deletes this IKE SA, or we do when it does not."""
        self.rekey_at = None
        limit = now + REPLACED_SECONDS
        self.hard_at = min(self.hard_at or limit, limit)

    def deadlines(self, session: MainMode, sent_at: float, *, busy: bool) -> Iterator[float]:
        """When a clock runs out. `sent_at` is when we sent the last message; `busy` with a request of ours,
        which tells as well as a probe whether the peer lives."""
        settings = session.env.settings
        if self.state is State.CONNECTING and not session.initiator:
            yield self.half_open_until
        if self.hard_at is not None:
            yield self.hard_at
        if not self.up:
            return
        if self.rekey_at is not None:
            yield self.rekey_at
        if settings.liveness and not busy:
            yield self.heard + settings.liveness
        if session.nat_local and settings.nat_keepalive:
            yield sent_at + settings.nat_keepalive


def idle_limits(session: MainMode) -> list[tuple[float, SaPair]]:
    """Pairs with an idle limit, and when they meet it."""
    found = []
    for spi, pair in session.children.pairs.items():
        limit = session.idle_seconds(session.env.policy.rule(pair.rule))
        if limit is not None and spi not in session.children.deleting:
            last = max(pair.created, pair.inbound.usage.last or 0.0, pair.outbound.usage.last or 0.0)
            found.append((last + limit, pair))
    return found
