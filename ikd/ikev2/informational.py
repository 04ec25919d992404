"""INFORMATIONAL: deletion, liveness and notices, RFC 7296 sections 1.4, 1.5 and 2.4."""

from __future__ import annotations

from collections.abc import Sequence

from ikd.exchange import Steps, send
from ikd.ikev2 import mobike
from ikd.ikev2.message import Message, status
from ikd.ikev2.numbers import Exchange, N, ProtocolId
from ikd.ikev2.payloads import Delete, Notify
from ikd.ikev2.proposals import CARRIERS, PROTOCOLS
from ikd.ikev2.session import Session
from ikd.wire.isakmp import Body
from sadb.sa import SaPair

MOST_EARLY = 64  # deletions of what we do not know yet that are kept in mind


def _deletes(spis: Sequence[tuple[int, int]]) -> list[Body]:
    """A Delete payload for each protocol, out of (protocol, SPI)."""
    protocols = dict.fromkeys(protocol for protocol, _ in spis)
    return [
        Delete(protocol=one, spis=tuple(spi.to_bytes(4, "big") for protocol, spi in spis if protocol == one))
        for one in protocols
    ]


# Initiator --------------------------------------------------------------------------------------------------


def tell(session: Session, notify: Notify) -> Steps[None]:
    """HDR, SK {N}  -->"""
    yield from send(Message(Exchange.INFORMATIONAL, (notify,)))


def delete_children(
    session: Session,
    pairs: Sequence[SaPair],
    reason: str,
    *,
    linger: bool = False,
    extra: tuple[int, tuple[int, ...]] | None = None,
) -> Steps[None]:
    """HDR, SK {D}  -->  for Child SAs; `extra` are inbound SPIs (with their protocol) that never became
    pairs. What is on its way on a replaced pair is still received for a moment."""
    children = session.children
    going = [one for one in pairs if one.inbound.spi not in children.deleting]
    spis = [(int(PROTOCOLS[one.inbound.suite.protocol]), one.inbound.spi) for one in going]
    if extra:
        spis += [(extra[0], spi) for spi in extra[1]]
    if not spis:
        return
    children.deleting.update(one.inbound.spi for one in going)
    for one in going:
        one.standby = True  # the peer drops it when it reads this
    try:
        yield from send(Message(Exchange.INFORMATIONAL, tuple(_deletes(spis))))
    finally:
        for one in going:
            session.drop(one, reason, linger=linger)


def delete_ike(session: Session, reason: str) -> Steps[None]:
    """HDR, SK {D}  -->  for the IKE SA itself, which takes its Child SAs along."""
    try:
        yield from send(Message(Exchange.INFORMATIONAL, (Delete(protocol=ProtocolId.IKE, spis=()),)))
    finally:
        session.hooks.close(reason, False)


def refuse_peer(session: Session) -> Steps[None]:
    """The initiator could not authenticate the responder, who believes to be done (section 2.21.2)."""
    yield from send(Message(Exchange.INFORMATIONAL, (status(N.AUTHENTICATION_FAILED),)))


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message]:
    """<--  HDR, SK {[N,] [D,] ...}; the answer has the other halves of deleted pairs."""
    yield from ()
    mobility = session.mobility
    about_addresses = mobike.respond(session, mobility, request) if mobility is not None else []
    answers: list[tuple[int, int]] = []
    for payload in request.every(Delete):
        if payload.protocol == ProtocolId.IKE:
            session.hooks.close("deleted by the peer", True)
            return Message(Exchange.INFORMATIONAL)
        if payload.protocol in CARRIERS:
            answers += _deleted(session, payload)
    if request.notify(N.AUTHENTICATION_FAILED):
        session.hooks.close("the peer could not authenticate us", True)
    # HDR, SK {[N,] [D]}  -->
    return Message(Exchange.INFORMATIONAL, (*about_addresses, *_deletes(answers)))


def _deleted(session: Session, payload: Delete) -> list[tuple[int, int]]:
    """Drop the pairs a peer deletes; our inbound SPIs of those it does not know to be deleted (section
    1.4.1)."""
    children = session.children
    answers = []
    for spi in payload.spis:
        pair = session.named(payload.protocol, spi)
        if pair is None:
            if children.asking and len(children.early) < MOST_EARLY:
                children.early.add(int.from_bytes(spi, "big"))
            continue
        own = pair.inbound.spi
        crossed = own in children.deleting
        record = children.rekeys.get(own)
        if record and record.theirs:
            record.theirs[1].standby = False  # the peer has it by now
        session.drop(pair, "replaced" if record else "deleted by the peer", linger=record is not None)
        if not crossed:
            answers.append((payload.protocol, own))
    return answers
