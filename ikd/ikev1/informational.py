"""Informational exchanges: notify, delete and dead peer detection, RFC 2409 section 5.7, RFC 2408 sections
3.14 and 3.15, RFC 3706. One message each way, and nobody acknowledges it."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from ikd.ikev1.keys import message_hash
from ikd.ikev1.message import Message, status
from ikd.ikev1.session import Session
from ikd.isakmp.message import Unauthentic
from ikd.isakmp.numbers import Exchange, N, ProtocolId
from ikd.isakmp.payloads import Delete, Hash
from ikd.isakmp.proposals import CARRIERS, PROTOCOLS
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload, encode_chain
from sadb.sa import SaPair


def sealed(session: Session, message_id: int, payloads: Sequence[Payload]) -> Message:
    """HDR*, HASH(1), N or D."""
    assert session.keys is not None
    _, rest = encode_chain(payloads)
    digest = message_hash(session.row, session.keys.a, message_id, rest)
    return Message(Exchange.INFORMATIONAL, (Hash(data=digest), *payloads), message_id, encrypted=True)


def check(session: Session, message: Message) -> None:
    """Raises `Unauthentic` unless the message is encrypted and its hash fits."""
    if not message.encrypted or session.keys is None:
        raise Malformed("an informational message in the clear")
    expected = message_hash(session.row, session.keys.a, message.message_id, message.behind_hash())
    if not hmac.compare_digest(message.one(Hash).data, expected):
        raise Unauthentic("the hash of an informational message does not fit")


def cookies(session: Session) -> bytes:
    """The SPI of the ISAKMP SA: both cookies."""
    return session.channel.cookie_i + session.channel.cookie_r


def are_you_there(session: Session, sequence: int, *, answer: bool = False) -> Payload:
    """N(R-U-THERE) or its acknowledgement, RFC 3706 section 5.3."""
    kind = N.R_U_THERE_ACK if answer else N.R_U_THERE
    return status(kind, sequence.to_bytes(4, "big"), ProtocolId.ISAKMP, cookies(session))


def delete_main(session: Session) -> Payload:
    """D for the ISAKMP SA."""
    return Delete(protocol=ProtocolId.ISAKMP, spis=(cookies(session),))


def delete_pair(pair: SaPair) -> Payload:
    """D for our half of a quick-mode SA."""
    protocol = PROTOCOLS[pair.inbound.suite.protocol]
    return Delete(protocol=protocol, spis=(pair.inbound.spi.to_bytes(4, "big"),))


def deleted(session: Session, message: Message) -> bool:
    """Drop what the peer deletes; whether that is the ISAKMP SA itself. Quick-mode SAs may be those of
    another ISAKMP SA with the same peer."""
    whole = False
    for payload in message.every(Delete):
        if payload.protocol == ProtocolId.ISAKMP:
            whole = whole or cookies(session) in payload.spis
            continue
        for spi in payload.spis:
            lost(session, payload.protocol, spi, "deleted by the peer")
    return whole


def lost(session: Session, protocol: int, spi: bytes, reason: str) -> None:
    """The peer no longer has the SA with this SPI of its own."""
    family = (session, *session.hooks.kin())
    for one in family:
        pair = one.by_outbound(int.from_bytes(spi, "big")) if len(spi) == 4 else None
        if pair is None or pair.inbound.suite.protocol is not CARRIERS.get(protocol):
            continue
        others = (other for main in family for other in main.children.pairs.values())
        twin = any(other is not pair and other.selector == pair.selector for other in others)
        one.now = session.now
        one.drop(pair, "replaced" if twin else reason, linger=twin)
