"""Which payloads each message of IKEv1 may have: RFC 2409 section 5, RFC 3947 section 3.2, MS-IKEE.

Messages of an exchange are numbered from 1, odd ones are the initiator's. Number 0 is a message that has no
place of its own: in main mode one of an additional pair of GSS-API tokens, in an informational exchange what
comes in the clear. What is encrypted and what is not is the channel's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from ikd.isakmp.numbers import SIGNATURES, UNDECIDED, Exchange, Method
from ikd.isakmp.payloads import (
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
    NatOriginalAddressDraft,
    Nonce,
    Notify,
    SecurityAssociation,
    Signature,
    VendorId,
)
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Payload
from ikd.wire.shapes import Shape


def _kinds(*classes: type[Payload]) -> frozenset[int]:
    return frozenset(one.kind for one in classes)


_ANY = _kinds(Notify, VendorId)
_DISCOVERY = _kinds(NatDiscovery, NatDiscoveryDraft)
_ORIGINAL = _kinds(NatOriginalAddress, NatOriginalAddressDraft)
_CERTIFICATES = _kinds(Certificate, CertificateRequest)
_REQUEST = _kinds(CertificateRequest)
_SA = _kinds(SecurityAssociation)
_KEYS = _kinds(KeyExchange, Nonce)
_ID = _kinds(Identification)
_TOKEN = _kinds(GssToken)
_HASH = _kinds(Hash)

# authentication method -> what proves the sender
PROOFS: dict[int, frozenset[int]] = {
    Method.PSK: _HASH,
    Method.GSS: _HASH,
    **{method: _kinds(Signature) for method in SIGNATURES},
}

# (exchange, number) -> shape where the authentication method makes no difference
SHAPES: dict[tuple[int, int], Shape] = {
    # HDR, SA  -->   <--  HDR, SA
    (Exchange.MAIN, 1): Shape(_SA, many=_ANY | _REQUEST),
    (Exchange.MAIN, 2): Shape(_SA, many=_ANY | _REQUEST),
    # HDR*, HASH(1), SA, Ni, [KE,] [IDci, IDcr]  -->
    (Exchange.QUICK, 1): Shape(_HASH | _SA | _kinds(Nonce), _kinds(KeyExchange), _ANY | _ID | _ORIGINAL),
    # <--  HDR*, HASH(2), SA, Nr, [KE,] [IDci, IDcr]
    (Exchange.QUICK, 2): Shape(_HASH | _SA | _kinds(Nonce), _kinds(KeyExchange), _ANY | _ID | _ORIGINAL),
    # HDR*, HASH(3)  -->
    (Exchange.QUICK, 3): Shape(_HASH, many=_ANY),
    # <--  HDR*, HASH(4), N(CONNECTED), after the commit bit
    (Exchange.QUICK, 4): Shape(_HASH | _kinds(Notify), many=_kinds(VendorId)),
    (Exchange.INFORMATIONAL, 0): Shape(many=_ANY | _kinds(Delete)),
    # HDR*, HASH, N/D  -->; with a nonce it asks for an answer (MS-IKEE section 3.8)
    (Exchange.INFORMATIONAL, 1): Shape(_HASH, _kinds(Nonce), _ANY | _kinds(Delete)),
    # <--  HDR*, HASH(2), D, Nr
    (Exchange.INFORMATIONAL, 2): Shape(_HASH | _kinds(Nonce, Delete), many=_ANY),
}


def _by_method(method: int) -> dict[tuple[int, int, int], Shape]:
    proof = PROOFS[method]
    token = _TOKEN if method == Method.GSS else frozenset()
    exchange = Shape(_KEYS | token, many=_ANY | _DISCOVERY | _REQUEST)
    proving = Shape(_ID | proof, many=_ANY | _CERTIFICATES)
    shapes = {
        # HDR, KE, Ni, [GSSi]  -->   <--  HDR, KE, Nr, [GSSr]
        (Exchange.MAIN, 3): exchange,
        (Exchange.MAIN, 4): exchange,
        # HDR*, IDii, [CERT,] HASH_I or SIG_I  -->   <--  HDR*, IDir, [CERT,] HASH_R or SIG_R
        (Exchange.MAIN, 5): proving,
        (Exchange.MAIN, 6): proving,
        # HDR, SA, KE, Ni, IDii  -->
        (Exchange.AGGRESSIVE, 1): Shape(_SA | _KEYS | _ID, _TOKEN, _ANY | _REQUEST),
        # <--  HDR, SA, KE, Nr, IDir, [CERT,] HASH_R or SIG_R
        (Exchange.AGGRESSIVE, 2): Shape(
            _SA | _KEYS | _ID | proof | token, many=_ANY | _DISCOVERY | _CERTIFICATES
        ),
        # HDR, [CERT,] HASH_I or SIG_I  -->
        (Exchange.AGGRESSIVE, 3): Shape(proof, many=_ANY | _DISCOVERY | _CERTIFICATES),
    }
    if token:
        # HDR, GSSi  -->   <--  HDR, GSSr
        shapes[Exchange.MAIN, 0] = Shape(token, many=_ANY)
    return {(kind, number, method): shape for (kind, number), shape in shapes.items()}


# (exchange, number, authentication method) -> shape where the method matters
METHOD_SHAPES: dict[tuple[int, int, int], Shape] = {
    key: shape for method in PROOFS for key, shape in _by_method(method).items()
} | {
    # <--  HDR, SA, KE, Nr, IDir, [CERT,] HASH_R or SIG_R, whose SA is what tells the method
    (Exchange.AGGRESSIVE, 2, UNDECIDED): Shape(
        _SA | _KEYS | _ID, _HASH | _kinds(Signature) | _TOKEN, _ANY | _DISCOVERY | _CERTIFICATES
    )
}
_NOTHING = Shape()


def check(exchange: int, number: int, payloads: Sequence[Body], method: int = Method.PSK) -> tuple[Body, ...]:
    """The payloads that belong into this message. The first message of aggressive mode is the same with every
    method, which is not known yet. Raises `Malformed`."""
    shape = SHAPES.get((exchange, number)) or METHOD_SHAPES.get((exchange, number, method), _NOTHING)
    kept = shape.check(payloads)
    if shape.required >= _HASH and exchange in (Exchange.QUICK, Exchange.INFORMATIONAL):
        # the hash covers what comes behind it (RFC 2409 sections 5.5 and 5.7)
        if payloads[0].kind != Hash.kind:
            raise Malformed("the hash is not the first payload")
        _pairs(kept)
    return kept


def _pairs(payloads: Sequence[Body]) -> None:
    """IDci and IDcr come together or not at all; of original addresses there are at most both."""
    identities = sum(one.kind == Identification.kind for one in payloads)
    if identities not in (0, 2):
        raise Malformed(f"{identities} identities where a pair belongs")
    if sum(one.kind in _ORIGINAL for one in payloads) > 2:
        raise Malformed("more than two original addresses")
