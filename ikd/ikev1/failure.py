"""What went wrong, in the words of the peer and of people: exceptions as notifies and as events.

RFC 2408 section 3.14.1.
"""

from __future__ import annotations

from ikd.auth import Declined
from ikd.events import AuthenticationFailed, NegotiationFailed
from ikd.ikev1.session import Session
from ikd.isakmp.message import Refused, Silent, Unauthentic
from ikd.isakmp.numbers import N, notify_name
from ikd.wire.codec import Malformed
from sadb.backend import Unavailable

KNOWN = (Refused, Malformed, Declined, Unavailable, Silent, Unauthentic)  # all others are bugs of ours
_NOTIFIES: dict[type[Exception], N] = {
    Declined: N.AUTHENTICATION_FAILED,
    Unavailable: N.NO_PROPOSAL_CHOSEN,
    Unauthentic: N.INVALID_HASH_INFORMATION,
}


def notify_of(error: Exception) -> int:
    """The notify that tells the peer; 0 when it told us, or there is nothing to tell."""
    if isinstance(error, Silent):
        return 0
    if isinstance(error, Refused):
        return 0 if error.by_peer else error.notify
    return _NOTIFIES.get(type(error), N.PAYLOAD_MALFORMED)


def told(
    session: Session, error: Exception, stage: str, rule: str, sent: int, *, initiator: bool, child: bool
) -> NegotiationFailed:
    """An error of an exchange as the event that `ikctl why` shows; `sent` is the notify we have told."""
    refused = error if isinstance(error, Refused) else None
    number = refused.notify if refused else sent
    return NegotiationFailed(
        ike=session.number,
        rule=rule,
        peer=str(session.path.peer.address),
        initiator=initiator,
        stage=stage,
        notify=notify_name(number) if number else "",
        reason=str(error) or type(error).__name__,
        remedy=getattr(error, "remedy", ""),
        child=child,
        comparison=refused.comparison if refused else None,
        keying="ikev1",
    )


def not_authenticated(session: Session, error: Exception, rule: str) -> AuthenticationFailed | None:
    """The event for the security log when an error says that somebody is not who he should be."""
    if not isinstance(error, Declined):
        return None
    return AuthenticationFailed(
        ike=session.number,
        rule=rule,
        identity=str(session.claimed) if session.claimed else "",
        address=str(session.path.peer.address),
        reason=str(error),
    )
