"""A message of IKEv2 as the exchanges see it, and what they raise when it will not do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from ikd.events import Comparison
from ikd.ikev2.numbers import FIRST_STATUS, PAYLOAD_NAMES, N, notify_name
from ikd.ikev2.payloads import Notify
from ikd.riders import windows_status
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Payload
from sadb.address import Path

P = TypeVar("P", bound=Payload)


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `octets` is the datagram it came in, the first one when there were fragments, and `path`
    the one it came by."""

    exchange: int
    payloads: tuple[Body, ...] = ()
    response: bool = False
    message_id: int = 0
    octets: bytes = field(default=b"", repr=False)
    path: Path | None = None

    def maybe(self, kind: type[P]) -> P | None:
        """The first payload of a class, or None."""
        for one in self.payloads:
            if type(one) is kind:
                return one
        return None

    def one(self, kind: type[P]) -> P:
        """The payload of a class; raises `Malformed` without one."""
        found = self.maybe(kind)
        if found is None:
            raise Malformed(f"no {PAYLOAD_NAMES[kind.kind]} payload")
        return found

    def every(self, kind: type[P]) -> Iterator[P]:
        """All payloads of a class, in order."""
        return (one for one in self.payloads if type(one) is kind)

    def notify(self, *types: int) -> Notify | None:
        """The first notify of one of these types, or None."""
        return next((one for one in self.every(Notify) if one.type in types), None)

    def error(self) -> Notify | None:
        """The first error notify, or None; that of Microsoft only when there is no other."""
        found = [one for one in self.every(Notify) if one.type < FIRST_STATUS]
        usual = (one for one in found if one.type != N.NOTIFY_STATUS)
        return next(usual, found[0] if found and self.windows_status() else None)

    def windows_status(self) -> int | None:
        """What NOTIFY_STATUS says, None without one (MS-IKEE section 2.2.7)."""
        notify = self.notify(N.NOTIFY_STATUS)
        told = windows_status.read(notify.spi, notify.data) if notify else None
        return told.value if told else None

    def names(self) -> tuple[str, ...]:
        """Payloads as logs show them: SA KE No N(COOKIE)."""
        shown = [_shown(one.kind, one.type if type(one) is Notify else 0) for one in self.payloads]
        if (code := self.windows_status()) is not None:
            name = notify_name(N.NOTIFY_STATUS)
            shown = [one.replace(name, f"{name} {windows_status.label(code)}") for one in shown]
        return tuple(shown)


@lru_cache(maxsize=1024)
def _shown(kind: int, notify: int) -> str:
    if kind == Notify.kind:
        return f"N({notify_name(notify)})"
    return PAYLOAD_NAMES.get(kind) or f"payload {kind}"


def status(kind: N, data: bytes = b"") -> Notify:
    """A notify about the IKE SA itself."""
    return Notify(type=kind, spi=b"", data=data)


class Refused(Exception):
    """Understood and declined: by us (then `notify` is what the peer is told) or by the peer (`by_peer`).
    `str()` is for the administrator of this host."""

    def __init__(
        self,
        notify: int,
        reason: str,
        remedy: str = "",
        *,
        data: bytes = b"",
        comparison: Comparison | None = None,
        by_peer: bool = False,
    ) -> None:
        super().__init__(reason)
        self.notify = notify
        self.remedy = remedy
        self.data = data
        self.comparison = comparison
        self.by_peer = by_peer


class UnknownCritical(Exception):
    """A critical payload we do not know, section 2.5; `kind` is its type."""

    def __init__(self, kind: int) -> None:
        super().__init__(f"critical payload {kind} is unknown")
        self.kind = kind


class Silent(Exception):
    """The peer does not answer."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy
