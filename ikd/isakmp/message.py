"""A message of IKEv1 or AuthIP as the exchanges see it, and what they raise when it will not do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ikd.events import Comparison
from ikd.exchange import Step, Steps, Wait
from ikd.isakmp.numbers import PAYLOAD_NAMES
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Payload

P = TypeVar("P", bound=Payload)
T = TypeVar("T")

REMEDY = "compare `crypto`, `auth`, `local` and `remote` of both hosts' rules; the peer's log may say more"


@dataclass(frozen=True, slots=True)
class Contents:
    """The payloads of one message. `octets` is the chain of payloads as it came, decrypted, with payload type
    `first` at its head: hashes cover octets, not what they mean."""

    exchange: int
    payloads: tuple[Body, ...] = ()
    message_id: int = 0
    encrypted: bool = False
    first: int = 0
    octets: bytes = field(default=b"", repr=False)

    def maybe(self, kind: type[P]) -> P | None:
        """The first payload of a class (or one derived from it), or None."""
        return next(self.every(kind), None)

    def one(self, kind: type[P]) -> P:
        """The payload of a class; raises `Malformed` without one."""
        found = self.maybe(kind)
        if found is None:
            raise Malformed(f"no {PAYLOAD_NAMES[kind.kind]} payload")
        return found

    def every(self, kind: type[P]) -> Iterator[P]:
        """All payloads of a class, in order."""
        return (one for one in self.payloads if isinstance(one, kind))

    def names(self) -> tuple[str, ...]:
        """Payloads as logs show them."""
        return tuple(PAYLOAD_NAMES.get(one.kind, f"payload {one.kind}") for one in self.payloads)


class Refused(Exception):
    """Understood and declined: by us (then `notify` is what the peer is told) or by the peer (`by_peer`).
    `str()` is for the administrator of this host."""

    def __init__(
        self,
        notify: int,
        reason: str,
        remedy: str = "",
        *,
        comparison: Comparison | None = None,
        by_peer: bool = False,
    ) -> None:
        super().__init__(reason)
        self.notify = notify
        self.remedy = remedy
        self.comparison = comparison
        self.by_peer = by_peer


class Silent(Exception):
    """The peer does not answer."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Unauthentic(Exception):
    """A hash does not fit: the message counts for nothing."""


def expect(step: Step, take: Callable[[Any], T]) -> Steps[T]:
    """Send, and take the first message that `take` believes; others count for nothing."""
    while True:
        message = yield step
        try:
            return take(message)
        except (Malformed, Unauthentic) as error:
            step = Wait(error)
        except Refused as refused:
            if message.encrypted:
                raise
            step = Wait(refused)
