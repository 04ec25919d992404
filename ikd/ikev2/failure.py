"""What went wrong, and right, in the words of the peer and of people: exceptions as notifies and as events.

RFC 7296 section 2.21.
"""

from __future__ import annotations

from ikd.auth import Declined
from ikd.events import AuthenticationFailed, NegotiationFailed
from ikd.ikev2.message import Refused, UnknownCritical, status
from ikd.ikev2.numbers import N, notify_name
from ikd.ikev2.payloads import Notify
from ikd.ikev2.session import Session
from ikd.riders import windows_status
from sadb.backend import Unavailable

# What a negotiation meets every day and needs no explanation
_USUAL = frozenset((N.INVALID_KE_PAYLOAD, N.TEMPORARY_FAILURE, N.CHILD_SA_NOT_FOUND))


def is_usual(error: Exception) -> bool:
    """Whether a refusal of ours is part of an ordinary negotiation."""
    return isinstance(error, Refused) and not error.by_peer and error.notify in _USUAL


def notify_of(error: Exception) -> Notify:
    """The one place where an exception becomes what the peer is told."""
    match error:
        case Refused() if error.notify:
            return Notify(type=error.notify, spi=b"", data=error.data)
        case Declined():
            return status(N.AUTHENTICATION_FAILED)
        case UnknownCritical():
            return status(N.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((error.kind,)))
        case Unavailable():
            return status(N.NO_ADDITIONAL_SAS)
    return status(N.INVALID_SYNTAX)


def told(session: Session, error: Exception, stage: str, rule: str, *, child: bool) -> NegotiationFailed:
    """An error of an exchange as the event that `ikctl why` shows."""
    refused = error if isinstance(error, Refused) else None
    code = session.windows_status if refused and refused.by_peer else 0
    return NegotiationFailed(
        ike=session.number,
        rule=rule,
        peer=str(session.path.peer.address),
        initiator=session.initiator,
        stage=stage,
        notify=notify_name(refused.notify) if refused and refused.notify else "",
        reason=(str(error) or type(error).__name__) + (f" ({windows_status.shown(code)})" if code else ""),
        remedy=getattr(error, "remedy", ""),
        child=child,
        comparison=refused.comparison if refused else None,
    )


def not_authenticated(session: Session, error: Exception, rule: str) -> AuthenticationFailed | None:
    """The event for the security log when an error says that somebody is not who he should be."""
    failed = isinstance(error, Refused) and error.notify == N.AUTHENTICATION_FAILED
    if not failed and not isinstance(error, Declined):
        return None
    return session.unproven(error, rule, by_peer=isinstance(error, Refused) and error.by_peer)
