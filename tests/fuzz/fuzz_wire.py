"""Atheris target: any octets either decode or raise `Malformed`, and what decodes encodes to something that
decodes to the same.

    python tests/fuzz/fuzz_wire.py -max_total_time=30 CORPUS_DIRECTORY
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ikd.wire", "ikd.authip", "ikd.ikev1", "ikd.ikev2", "sadb"]):
    from ikd.authip import shapes as shapes_a
    from ikd.authip.channel import Channel
    from ikd.authip.payloads import PAYLOADS as PAYLOADS_A
    from ikd.authip.payloads import GssId, decode_name
    from ikd.ikev1 import shapes
    from ikd.ikev2.payloads import ENCRYPTED, PAYLOADS, SelectorRange
    from ikd.isakmp import proposals
    from ikd.isakmp.payloads import PAYLOADS as PAYLOADS_1
    from ikd.isakmp.payloads import SecurityAssociation as SecurityAssociation1
    from ikd.wire.codec import Malformed, decode
    from ikd.wire.isakmp import HEADER_SIZE, Header, Payload, chain, encode_chain, extents
    from ikd.wire.shapes import Shape
    from sadb.algorithms import (
        ENCRYPTION,
        GROUPS,
        INTEGRITY,
        PRF_BY_NAME,
        MainSuite,
        QuickSuite,
        SecurityProtocol,
    )

KINDS = sorted(PAYLOADS)
KINDS_1 = sorted(PAYLOADS_1)
KINDS_A = sorted(PAYLOADS_A)
SHAPES_A = [one for _, one in sorted(vars(shapes_a).items()) if isinstance(one, Shape)]
MAINS = [
    MainSuite(group, cipher, PRF_BY_NAME[integrity.name], integrity)
    for group in GROUPS
    for cipher in ENCRYPTION
    for integrity in INTEGRITY
]
QUICKS = [QuickSuite(SecurityProtocol.ESP, cipher, INTEGRITY[0]) for cipher in ENCRYPTION]


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


def datagram_of_ikev1(data: bytes) -> None:
    """The same of IKEv1, then what the first octet of the initiator's cookie says the message is."""
    header = Header.decode(data)
    body = data[HEADER_SIZE:]
    payloads, following = chain(header.next_payload, body, PAYLOADS_1)
    assert following == 0
    kind, octets = encode_chain(payloads)
    assert chain(kind, octets, PAYLOADS_1) == (payloads, 0)
    places = extents(header.next_payload, body)
    assert [one.kind for one in places] == [one.kind for one in payloads]
    assert not places or places[-1].end == len(body)
    for one in payloads:
        if isinstance(one, SecurityAssociation1):
            choose(one)
    method = sorted(shapes.PROOFS)[header.spi_i[0] % len(shapes.PROOFS)]
    assert len(shapes.check(header.exchange, header.spi_i[1] % 7, payloads, method)) <= len(payloads)


def choose(payload: SecurityAssociation1) -> None:
    """What is chosen out of an offer is what its sender takes for an answer."""
    proposals.compare_main(payload, MAINS[:1], (1,), sent=True)
    proposals.compare_quick(payload, QUICKS[:1], (1,), sent=True)
    main = proposals.choose_main(payload, MAINS, (1, 3))
    if main:
        answer = proposals.accept_main(main)
        assert proposals.main_chosen(answer, [main.suite], (main.method,)) is not None
    quick = proposals.choose_quick(payload, QUICKS, (1, 2), GROUPS, pfs=len(payload.proposals) % 2 == 0)
    if quick:
        answer = proposals.accept_quick(quick, b"\1\2\3\4")
        assert answer.proposals[0].transforms == quick.proposal.transforms


def payload_of_ikev1(data: bytes) -> None:
    """The body of the payload of IKEv1 that the first octet chooses."""
    kind = PAYLOADS_1[KINDS_1[data[0] % len(KINDS_1)]]
    value = decode(kind, data[1:])
    assert isinstance(value, Payload)
    assert decode(kind, value.encode()) == value


def datagram_of_authip(data: bytes) -> None:
    """The same of AuthIP, as a main-mode SA without keys reads it, then what the first octet of the
    initiator's cookie says the message is."""
    header = Header.decode(data)
    channel = Channel(header.spi_i, header.spi_r, bytes)
    message = channel.open(header, data)
    assert not message.encrypted
    assert message.covered == data
    again, covered = channel.seal(message)
    assert again == covered
    assert channel.open(Header.decode(again), again).payloads == message.payloads
    shapes_a.check_acquire(message)
    shape = SHAPES_A[header.spi_i[0] % len(SHAPES_A)]
    assert len(shapes_a.fitting(message, shape).payloads) <= len(message.payloads)


def payload_of_authip(data: bytes) -> None:
    """The body of the payload of AuthIP that the first octet chooses; a name is read as well."""
    kind = PAYLOADS_A[KINDS_A[data[0] % len(KINDS_A)]]
    value = decode(kind, data[1:])
    assert isinstance(value, Payload)
    assert decode(kind, value.encode()) == value
    if isinstance(value, GssId):
        for encoding in ("utf-16-le", "utf-16-be"):
            assert decode_name(value, encoding).encode(encoding) == value.name


def chain_of_authip(data: bytes) -> None:
    """A decrypted chain of payloads of AuthIP, or a message without a CRYPTO payload."""
    payloads, following = chain(data[0], data[1:], PAYLOADS_A)
    assert following == 0
    assert chain(*encode_chain(payloads), PAYLOADS_A) == (payloads, 0)


TARGETS = (
    whole_datagram,
    one_payload,
    inner_chain,
    datagram_of_ikev1,
    payload_of_ikev1,
    datagram_of_authip,
    payload_of_authip,
    chain_of_authip,
)


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
