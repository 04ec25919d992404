"""A message of AuthIP as the exchanges see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ikd.authip.numbers import N, Subject, notify_name
from ikd.authip.payloads import Notify
from ikd.isakmp.message import REMEDY, Contents, Refused
from ikd.riders import windows_status
from ikd.wire.isakmp import Body


@dataclass(frozen=True, slots=True)
class Message(Contents):
    """One message. `sequence` is the number of its CRYPTO payload; `covered` what of it the transcripts hash:
    the plaintext, whatever the wire had."""

    sequence: int = 0
    covered: bytes = field(default=b"", repr=False)
    iv: bool = False  # in the clear with an IV, which means nothing

    def notify(self, *types: int) -> Notify | None:
        """The first notify of one of these types, or None."""
        return next((one for one in self.every(Notify) if one.type in types), None)

    def refusal(self) -> Refused | None:
        """What the peer declines with, None when it does not."""
        if notify := self.notify(N.STATUS):
            code = int.from_bytes(notify.data[:4], "big") if len(notify.data) >= 4 else 0
            told = windows_status.shown(code) if code else "no reason given"
            return Refused(N.STATUS, f"the peer refused: {told}", REMEDY, by_peer=True)
        if self.notify(N.NO_PROPOSAL_CHOSEN):
            text = "the peer accepts none of our quick-mode proposals"
            return Refused(N.NO_PROPOSAL_CHOSEN, text, REMEDY, by_peer=True)
        return None

    def names(self) -> tuple[str, ...]:
        """Payloads as logs show them: SA AUTH NONCE N(STATUS 13801 IKE_AUTH_FAIL)."""
        names = Contents.names(self)
        return tuple(
            f"N({_shown(one)})" if isinstance(one, Notify) else name
            for one, name in zip(self.payloads, names, strict=True)
        )


def _shown(notify: Notify) -> str:
    name = notify_name(notify.type)
    if notify.type != N.STATUS or len(notify.data) != 4:
        return name
    return f"{name} {windows_status.label(int.from_bytes(notify.data, 'big'))}"


def notify(kind: int, subject: Subject, data: bytes = b"", flags: int = 0) -> Notify:
    """A notify about a main-mode or quick-mode SA."""
    return Notify(protocol=subject, flags=flags, type=kind, data=data)


def status(code: int, subject: Subject, flags: int = 0) -> Notify:
    """N(NOTIFY_STATUS): the SA is to be deleted, for this Windows error."""
    return notify(N.STATUS, subject, code.to_bytes(4, "big"), flags)


def plain(exchange: int, message_id: int, *payloads: Body) -> Message:
    """A message in the clear."""
    return Message(exchange, payloads, message_id)


def sealed(exchange: int, message_id: int, *payloads: Body) -> Message:
    """A message that is encrypted."""
    return Message(exchange, payloads, message_id, encrypted=True)
