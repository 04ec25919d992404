"""NOTIFY_ACQUIRE: the responder of main mode needs a quick mode, which only the initiator may begin, and asks
for it. MS-AIPS sections 2.2.3.5, 3.4.5.3 and 3.4.7.4."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ikd.authip import quick_mode
from ikd.authip.message import Message, notify
from ikd.authip.numbers import RELIABLE, N, Subject
from ikd.authip.session import Asked, Session
from ikd.isakmp import identities, quick
from ikd.isakmp.message import Refused
from ikd.isakmp.payloads import Identification
from ikd.wire.isakmp import Payload
from policy.rules import Rule
from sadb.sa import SaPair

SECONDS = 10.0  # how long the initiator has to begin what we have asked it for


class Wish(NamedTuple):
    """What a quick mode is to make, and what that replaces."""

    rule: Rule
    asked: Asked | None
    old: SaPair | None


@dataclass(slots=True)
class _Request:
    """A quick mode that the initiator has been asked for, until `due`."""

    wish: Wish
    due: float


class Acquires:
    """What we have asked the initiator for, by rule."""

    __slots__ = ("_requests", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._requests: dict[str, _Request] = {}

    def __contains__(self, rule: str) -> bool:
        return rule in self._requests

    def deadlines(self) -> Iterable[float]:
        """When the initiator's time is over."""
        return (one.due for one in self._requests.values())

    def ask(self, wish: Wish) -> list[Payload]:
        """N(NOTIFY_ACQUIRE), IDi, IDr: ours first, then the peer's; nothing when it is asked for already.
        Raises `Refused` for traffic that cannot be named."""
        session, rule = self._session, wish.rule
        if rule.name in self._requests:
            return []
        local, remote = quick_mode.traffic(session, rule, wish.asked, None)
        mode = session.encapsulation(rule.mode)
        flags = quick_mode.GUARANTEE_ENCRYPTION if rule.encrypt else 0
        data = mode.to_bytes(4, "big") + flags.to_bytes(4, "big")
        self._requests[rule.name] = _Request(wish, session.now + SECONDS)
        return [
            notify(N.ACQUIRE, Subject.QUICK, data, RELIABLE),
            identities.encode(local),
            identities.encode(remote),
        ]

    def settle(self) -> None:
        """Forget what has come meanwhile."""
        for name in [one for one, request in self._requests.items() if self._served(request.wish)]:
            del self._requests[name]

    def overdue(self, now: float) -> list[Wish]:
        """What has not come in time; it is forgotten."""
        late = [name for name, request in self._requests.items() if request.due <= now]
        return [self._requests.pop(name).wish for name in late]

    def _served(self, wish: Wish) -> bool:
        pairs = self._session.children.pairs.values()
        return any(one.rule == wish.rule.name and one is not wish.old for one in pairs)


def read(session: Session, message: Message) -> Wish | None:
    """What the peer asks us for, None when no rule of ours covers it."""
    try:
        remote, local = (identities.decode(one) for one in message.every(Identification))
    except Refused:
        return None  # traffic is named by addresses
    for rule in session.rules():
        selector = quick.covering(session, rule, (local, remote))
        if selector is not None and session.serves(rule) and session.admits(rule):
            return Wish(rule, selector, quick.replaced(session.pairs_of_peer(), rule, selector))
    return None
