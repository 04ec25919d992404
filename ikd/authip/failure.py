"""What went wrong, in the words of the peer and of people: exceptions as Windows error codes and as events
(MS-AIPS section 3.1.7.2)."""

from __future__ import annotations

from ikd.auth import Declined
from ikd.authip.keys import WeakKey
from ikd.authip.numbers import Status, notify_name
from ikd.authip.session import Session
from ikd.events import NegotiationFailed
from ikd.isakmp import failure
from ikd.isakmp.message import Refused, Silent, Unauthentic
from ikd.isakmp.numbers import N
from ikd.riders import windows_status
from ikd.wire.codec import Malformed
from sadb.backend import Unavailable

KNOWN = (Refused, Malformed, Declined, Unavailable, Silent, Unauthentic, WeakKey)  # others are bugs of ours
_CODES: dict[type[Exception], Status] = {
    Declined: Status.AUTH_FAIL,
    Unavailable: Status.QM_LIMIT,
    Unauthentic: Status.INVALID_HASH,
    Malformed: Status.INVALID_PAYLOAD,
}
_REFUSALS: dict[int, Status] = {
    N.NO_PROPOSAL_CHOSEN: Status.POLICY_MATCH,
    N.INVALID_ID_INFORMATION: Status.POLICY_MATCH,
    N.AUTHENTICATION_FAILED: Status.INVALID_AUTH_PAYLOAD,
}


_DELETIONS = (
    ("rule has changed", Status.POLICY_CHANGE),
    ("shuts down", Status.SHUTTING_DOWN),
    ("lifetime", Status.MM_EXPIRED),
)


def deletion(reason: str) -> int:
    """Why we delete something, as a Windows error code."""
    return next((code for text, code in _DELETIONS if text in reason), Status.SA_DELETED)


def code_of(error: Exception) -> int:
    """The Windows error code that tells the peer; 0 when it told us, or there is nothing to tell."""
    if isinstance(error, Silent):
        return 0
    if isinstance(error, Refused):
        if error.by_peer:
            return 0
        return error.notify if error.notify > 13000 else _REFUSALS.get(error.notify, Status.PROCESS_ERROR)
    return _CODES.get(type(error), Status.PROCESS_ERROR)


def told(
    session: Session, error: Exception, stage: str, rule: str, sent: int, *, initiator: bool, child: bool
) -> NegotiationFailed:
    """An error of an exchange as the event that `ikctl why` shows; `sent` is the code we have told."""
    name = windows_status.label(sent) if sent else ""
    if isinstance(error, Refused) and error.by_peer:
        name = notify_name(error.notify)
    return failure.told(session, error, stage, rule, name, initiator=initiator, child=child)
