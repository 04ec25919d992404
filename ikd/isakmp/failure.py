"""What went wrong in IKEv1 or AuthIP, as events for people."""

from __future__ import annotations

from ikd.auth import Declined
from ikd.events import AuthenticationFailed, NegotiationFailed
from ikd.isakmp.message import Refused
from ikd.isakmp.numbers import N
from ikd.keying import MainMode


def told(
    main: MainMode, error: Exception, stage: str, rule: str, notify: str, *, initiator: bool, child: bool
) -> NegotiationFailed:
    """An error of an exchange as the event that `ikctl why` shows; `notify` is what was sent or came."""
    return NegotiationFailed(
        ike=main.number,
        rule=rule,
        peer=str(main.path.peer.address),
        initiator=initiator,
        stage=stage,
        notify=notify,
        reason=str(error) or type(error).__name__,
        remedy=getattr(error, "remedy", ""),
        child=child,
        comparison=error.comparison if isinstance(error, Refused) else None,
        keying=main.keying,
    )


def not_authenticated(
    main: MainMode, error: Exception, rule: str, refusal: int = N.AUTHENTICATION_FAILED
) -> AuthenticationFailed | None:
    """The event for the security log when an error says that somebody is not who he should be; `refusal` is
    how a peer says so of us."""
    refused = isinstance(error, Refused) and error.notify == refusal
    if not refused and not isinstance(error, Declined):
        return None
    return main.unproven(error, rule, by_peer=refused)
