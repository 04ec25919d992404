"""ikd.ikev1.shapes: what each message must have, may have, and is kept from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.ikev1.shapes import METHOD_SHAPES, PROOFS, SHAPES, check
from ikd.isakmp.numbers import Exchange, Method
from ikd.isakmp.payloads import (
    PAYLOADS,
    Certificate,
    CertificateRequest,
    Delete,
    GssToken,
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    NatDiscoveryDraft,
    NatOriginalAddress,
    Nonce,
    Notify,
    SecurityAssociation,
    Signature,
    VendorId,
)
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Unknown

SA = SecurityAssociation(proposals=())
KE = KeyExchange(public=b"k")
NONCE = Nonce(data=b"n" * 16)
ID = Identification(type=1, data=b"\x0a\0\0\1")
HASH = Hash(data=b"h" * 20)
SIG = Signature(data=b"s")
CERT = Certificate(encoding=4, data=b"c")
REQUEST = CertificateRequest(encoding=4)
NOTIFY = Notify(protocol=1, type=24578, spi=b"")
DELETE = Delete(protocol=3, spis=(b"\1\2\3\4",))
VENDOR = VendorId(data=b"v")
NAT_D = NatDiscovery(hash=b"d")
NAT_D_DRAFT = NatDiscoveryDraft(hash=b"d")
NAT_OA = NatOriginalAddress(type=1, address=b"\x0a\0\0\1")
TOKEN = GssToken(token=b"t")

GOOD: dict[str, tuple[int, int, int, list[Body]]] = {
    "main 1": (Exchange.MAIN, 1, 0, [SA, VENDOR, VENDOR]),
    "main 2": (Exchange.MAIN, 2, 0, [SA, VENDOR]),
    "main 3": (Exchange.MAIN, 3, Method.PSK, [KE, NONCE, NAT_D, NAT_D, VENDOR]),
    "main 4 with draft and request": (
        Exchange.MAIN,
        4,
        Method.RSA,
        [KE, NONCE, REQUEST, REQUEST, NAT_D_DRAFT, NAT_D_DRAFT],
    ),
    "main 3 with GSS": (Exchange.MAIN, 3, Method.GSS, [KE, NONCE, TOKEN]),
    "more GSS": (Exchange.MAIN, 0, Method.GSS, [TOKEN]),
    "main 5 with key": (Exchange.MAIN, 5, Method.PSK, [ID, HASH, NOTIFY]),
    "main 5 with GSS": (Exchange.MAIN, 5, Method.GSS, [ID, HASH]),
    "main 6 with certificates": (Exchange.MAIN, 6, Method.ECDSA_256, [ID, CERT, CERT, REQUEST, SIG]),
    "aggressive 1": (Exchange.AGGRESSIVE, 1, Method.PSK, [SA, KE, NONCE, ID, VENDOR]),
    "aggressive 2": (Exchange.AGGRESSIVE, 2, Method.PSK, [SA, KE, NONCE, ID, NAT_D, NAT_D, HASH]),
    "aggressive 3": (Exchange.AGGRESSIVE, 3, Method.RSA, [NAT_D, NAT_D, CERT, SIG]),
    "quick 1": (Exchange.QUICK, 1, 0, [HASH, SA, NONCE]),
    "quick 1 with all": (
        Exchange.QUICK,
        1,
        0,
        [HASH, SA, NONCE, KE, ID, ID, NAT_OA, NAT_OA, NOTIFY],
    ),
    "quick 2": (Exchange.QUICK, 2, 0, [HASH, SA, NONCE, ID, ID, NAT_OA, NOTIFY]),
    "quick 3": (Exchange.QUICK, 3, 0, [HASH]),
    "quick 4": (Exchange.QUICK, 4, 0, [HASH, NOTIFY]),
    "clear notify": (Exchange.INFORMATIONAL, 0, 0, [NOTIFY]),
    "liveness": (Exchange.INFORMATIONAL, 1, 0, [HASH, NOTIFY]),
    "several deletes": (Exchange.INFORMATIONAL, 1, 0, [HASH, DELETE, DELETE]),
    "reliable delete": (Exchange.INFORMATIONAL, 1, 0, [HASH, NONCE, DELETE]),
    "its answer": (Exchange.INFORMATIONAL, 2, 0, [HASH, DELETE, NONCE]),
}


@pytest.mark.parametrize(("exchange", "number", "method", "payloads"), GOOD.values(), ids=GOOD.keys())
def test_honest_messages_are_kept_whole(
    exchange: int, number: int, method: int, payloads: list[Body]
) -> None:
    """What a peer rightly sends must reach the exchange, and what makes it a message must not be missing."""
    assert check(exchange, number, payloads, method) == tuple(payloads)
    shape = SHAPES.get((exchange, number)) or METHOD_SHAPES[exchange, number, method]
    for kind in shape.required:
        rest = [one for one in payloads if one.kind != kind]
        with pytest.raises(Malformed):
            check(exchange, number, rest, method)
    for kind in shape.required | shape.optional:
        again = next((one for one in payloads if one.kind == kind), None)
        if again:
            with pytest.raises(Malformed, match="twice"):
                check(exchange, number, [*payloads, again], method)


def test_proof_must_be_that_of_the_method() -> None:
    """Who agreed on signatures must not be satisfied with a hash that anybody can compute."""
    for number in (5, 6):
        with pytest.raises(Malformed):
            check(Exchange.MAIN, number, [ID, HASH], Method.RSA)
        with pytest.raises(Malformed):
            check(Exchange.MAIN, number, [ID, SIG], Method.PSK)
        # the other proof does not come along, either
        assert check(Exchange.MAIN, number, [ID, HASH, SIG], Method.RSA) == (ID, SIG)
    with pytest.raises(Malformed):
        check(Exchange.AGGRESSIVE, 3, [HASH], Method.ECDSA_521)


def test_payloads_of_elsewhere_are_left_out() -> None:
    """Certificates before there is an identity, deletes within main mode, unknown payloads of any kind."""
    strange = Unknown(200, True, b"?")
    assert check(Exchange.MAIN, 1, [SA, CERT, DELETE, KE, strange]) == (SA,)
    assert check(Exchange.MAIN, 3, [KE, NONCE, CERT, TOKEN], Method.PSK) == (KE, NONCE)
    assert check(Exchange.QUICK, 3, [HASH, SA, DELETE]) == (HASH,)


def test_exchanges_that_are_refused_have_nothing() -> None:
    """Mode configuration and new groups are not spoken."""
    for exchange, number in ((Exchange.TRANSACTION, 1), (Exchange.NEW_GROUP, 1), (99, 1), (Exchange.MAIN, 7)):
        assert check(exchange, number, [HASH, SA, ID, NOTIFY]) == ()
    assert check(Exchange.MAIN, 0, [TOKEN], Method.PSK) == ()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_identities_of_quick_mode_are_a_pair(count: int) -> None:
    """Of one alone nobody knows whose it is (RFC 2409 section 5.5)."""
    for number in (1, 2):
        with pytest.raises(Malformed, match="pair"):
            check(Exchange.QUICK, number, [HASH, SA, NONCE, *[ID] * count])


def test_original_addresses_are_at_most_two() -> None:
    """One for each side (RFC 3947 section 5.2)."""
    with pytest.raises(Malformed, match="original"):
        check(Exchange.QUICK, 1, [HASH, SA, NONCE, NAT_OA, NAT_OA, NAT_OA])


@pytest.mark.parametrize(
    ("exchange", "number", "payloads"),
    [
        (Exchange.QUICK, 1, [SA, HASH, NONCE]),
        (Exchange.QUICK, 3, [VENDOR, HASH]),
        (Exchange.INFORMATIONAL, 1, [DELETE, HASH]),
        (Exchange.INFORMATIONAL, 1, [Unknown(200, False, b""), HASH, DELETE]),
    ],
)
def test_hash_of_phase_2_comes_first(exchange: int, number: int, payloads: list[Body]) -> None:
    """It covers what stands behind it: what stands before it would be believed without a proof."""
    with pytest.raises(Malformed, match="first"):
        check(exchange, number, payloads)


@given(
    st.sampled_from([*SHAPES, *((kind, number) for kind, number, _ in METHOD_SHAPES)]),
    st.sampled_from(sorted(PROOFS)),
    st.lists(st.sampled_from([*PAYLOADS, 200]), max_size=12),
)
def test_any_payloads_pass_or_are_malformed(place: tuple[int, int], method: int, kinds: list[int]) -> None:
    """A stranger chooses which payloads come in which order."""
    examples: dict[int, Any] = {one.kind: one for _, _, _, several in GOOD.values() for one in several}
    payloads = [examples.get(kind, Unknown(kind, False, b"")) for kind in kinds]
    try:
        kept = check(*place, payloads, method)
    except Malformed:
        return
    assert [one for one in payloads if one in kept] == list(kept)
