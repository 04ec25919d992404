"""What went wrong, in the words of the peer and of people: exceptions as notifies and as events.

RFC 2408 section 3.14.1.
"""

from __future__ import annotations

from ikd.auth import Declined
from ikd.events import NegotiationFailed
from ikd.ikev1.session import Session
from ikd.isakmp import failure
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
    number = error.notify if isinstance(error, Refused) else sent
    name = notify_name(number) if number else ""
    return failure.told(session, error, stage, rule, name, initiator=initiator, child=child)
