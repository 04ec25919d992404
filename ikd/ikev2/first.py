"""IKE_SA_INIT messages as octets: the only ones that are not protected."""

from __future__ import annotations

from ikd.ikev2 import shapes
from ikd.ikev2.message import Message, UnknownCritical
from ikd.ikev2.payloads import ENCRYPTED, PAYLOADS, Nonce
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER_SIZE, Flags, Header, chain

_NONCE = {Nonce.kind: Nonce}


def nonce_of(header: Header, data: bytes) -> bytes:
    """The nonce of a request, on which alone a cookie depends: what else there is, is not looked into. Raises
    `Malformed`."""
    payloads, _ = chain(header.next_payload, data[HEADER_SIZE:], _NONCE, ENCRYPTED)
    found = [one.data for one in payloads if isinstance(one, Nonce)]
    if len(found) != 1:
        raise Malformed(f"{len(found)} nonces in a first message")
    return found[0]


def open_first(header: Header, data: bytes) -> Message:
    """The message in a datagram. Raises `Malformed`, and `UnknownCritical` for a request."""
    payloads, _ = chain(header.next_payload, data[HEADER_SIZE:], PAYLOADS, ENCRYPTED)
    response = bool(header.flags & Flags.RESPONSE)
    try:
        kept = shapes.check(header.exchange, response, payloads)
    except UnknownCritical as error:
        if response:
            raise Malformed(str(error)) from error
        raise
    return Message(header.exchange, kept, response, header.message_id, data)
