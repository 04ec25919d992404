"""Microsoft's reliable delete: a deletion that is acknowledged, MS-IKEE section 3.8.

    HDR*, HASH(1), Ni, D  -->
                          <--  HDR*, HASH(2), Nr, D

Asked of peers that announce Microsoft's implementation, answered to everybody who sends a nonce. The answer
keeps no state: a deletion that comes again is answered again, and finds nothing to delete.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import suppress

from ikd.exchange import Send, Steps
from ikd.ikev1 import informational
from ikd.ikev1.keys import delete_hash
from ikd.ikev1.message import Message
from ikd.ikev1.session import Session
from ikd.isakmp.message import Silent, Unauthentic, expect
from ikd.isakmp.numbers import Exchange
from ikd.isakmp.payloads import Delete, Hash, Nonce
from ikd.riders import vendor
from ikd.wire.isakmp import Payload, encode_chain, extents

NONCE = 32
ANSWER_SECONDS = 8.0  # how long a deleted ISAKMP SA still answers; a peer repeats itself after 1, 3 and 7


def reliable(session: Session) -> bool:
    """Whether the peer acknowledges deletions."""
    return vendor.microsoft(session.vendors) is not None


def request(
    session: Session, message_id: int, payload: Payload, over: Callable[[], None]
) -> Steps[Message | None]:
    """Delete something at the peer; with an answer, or when none comes, it is `over`."""
    nonce = Nonce(data=session.env.random(NONCE))

    def take(reply: Message) -> Message:
        _check_answer(session, reply, nonce.data)
        return reply

    try:
        with suppress(Silent):
            # HDR*, HASH(1), Ni, D  -->
            step = Send(informational.sealed(session, message_id, (nonce, payload)))
            # <--  HDR*, HASH(2), D, Nr
            yield from expect(step, take)
    finally:
        over()
    return None


def asks(message: Message) -> bool:
    """Whether an informational message is a deletion that wants an answer."""
    return message.maybe(Nonce) is not None and message.maybe(Delete) is not None


def answer(session: Session, asked: Message) -> Message:
    """HDR*, HASH(2), Nr, D: in the order in which the hash has them, whichever way the peer reads the
    specification. It is no larger than the question, so that it can be sent."""
    assert session.keys is not None
    nonce_i = asked.one(Nonce).data
    payloads = (Nonce(data=session.env.random(min(NONCE, len(nonce_i)))), *asked.every(Delete))
    _, rest = encode_chain(payloads)
    digest = delete_hash(session.row, session.keys.a, asked.message_id, nonce_i, rest)
    return Message(Exchange.INFORMATIONAL, (Hash(data=digest), *payloads), asked.message_id, encrypted=True)


def _check_answer(session: Session, message: Message, nonce_i: bytes) -> None:
    """Raises `Unauthentic` unless HASH(2) fits. The specification's text and figure differ in the order of Nr
    and D: the hash may have them as they came, or Nr in front."""
    assert session.keys is not None
    found = extents(message.first, message.octets)[1:]
    parts = {one.kind: message.octets[one.start : one.end] for one in found}
    given = message.one(Hash).data
    for rest in (message.behind_hash(), parts[Nonce.kind] + parts[Delete.kind]):
        made = delete_hash(session.row, session.keys.a, message.message_id, nonce_i, rest)
        if hmac.compare_digest(given, made):
            return
    raise Unauthentic("the hash of an acknowledged deletion does not fit")
