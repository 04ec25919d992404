"""IKE_SA_INIT messages as octets: the only ones that are not protected."""

from __future__ import annotations

from ikd.ikev2 import shapes
from ikd.ikev2.message import Message, UnknownCritical
from ikd.ikev2.payloads import ENCRYPTED, PAYLOADS
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER_SIZE, Flags, Header, chain


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
