"""Atheris target: any octets either decode or raise `Malformed`, and what decodes encodes to something that
decodes to the same.

    python tests/fuzz/fuzz_wire.py -max_total_time=30 CORPUS_DIRECTORY
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ikd.wire", "ikd.ikev2", "sadb"]):
    from ikd.ikev2.payloads import ENCRYPTED, PAYLOADS, SelectorRange
    from ikd.wire.codec import Malformed, decode
    from ikd.wire.isakmp import HEADER_SIZE, Header, Payload, chain, encode_chain

KINDS = sorted(PAYLOADS)


def whole_datagram(data: bytes) -> None:
    """The header, then the chain behind it as an unprotected message has it."""
    header = Header.decode(data)
    payloads, following = chain(header.next_payload, data[HEADER_SIZE:], PAYLOADS, ENCRYPTED)
    assert Header.decode(header.encode() + data[HEADER_SIZE:]) == header
    if not ENCRYPTED & {one.kind for one in payloads}:
        assert following == 0
        kind, octets = encode_chain(payloads)
        assert chain(kind, octets, PAYLOADS) == (payloads, 0)


def one_payload(data: bytes) -> None:
    """The body of the payload that the first octet chooses."""
    kind = PAYLOADS[KINDS[data[0] % len(KINDS)]]
    value = decode(kind, data[1:])
    assert isinstance(value, Payload)
    assert decode(kind, value.encode()) == value
    for selector in getattr(value, "ranges", ()):
        assert isinstance(selector, SelectorRange)
        selector.selector()


def inner_chain(data: bytes) -> None:
    """A decrypted chain of payloads, which a proven but hostile peer chooses."""
    chain(data[0], data[1:], PAYLOADS)


TARGETS = (whole_datagram, one_payload, inner_chain)


def one_input(data: bytes) -> None:
    """Entry point of the fuzzer: the first octet chooses what the rest is."""
    if len(data) < 2:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except Malformed:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
