"""Which payloads each message of IKEv2 may have: RFC 7296 sections 1.2 to 1.5 and appendix C."""

from __future__ import annotations

from collections.abc import Sequence

from ikd.ikev2.message import UnknownCritical
from ikd.ikev2.numbers import FIRST_STATUS, Exchange, N
from ikd.ikev2.payloads import (
    Authentication,
    Certificate,
    CertificateRequest,
    Configuration,
    Correlation,
    Delete,
    Eap,
    IdentificationI,
    IdentificationR,
    KeyExchange,
    Nonce,
    Notify,
    SecurityAssociation,
    TrafficSelectorsI,
    TrafficSelectorsR,
    VendorId,
)
from ikd.wire.isakmp import Body, Payload, Unknown
from ikd.wire.shapes import Shape


def _kinds(*classes: type[Payload]) -> frozenset[int]:
    return frozenset(one.kind for one in classes)


_ANY = _kinds(Notify, VendorId)
_CHILD = _kinds(SecurityAssociation, TrafficSelectorsI, TrafficSelectorsR, Configuration)

# (exchange, response?) -> shape
SHAPES: dict[tuple[int, bool], Shape] = {
    (Exchange.IKE_SA_INIT, False): Shape(_kinds(SecurityAssociation, KeyExchange, Nonce), many=_ANY),
    (Exchange.IKE_SA_INIT, True): Shape(
        _kinds(SecurityAssociation, KeyExchange, Nonce), many=_ANY | _kinds(CertificateRequest)
    ),
    (Exchange.IKE_AUTH, False): Shape(
        _kinds(IdentificationI),
        _CHILD | _kinds(IdentificationR, Authentication, Eap, Correlation),
        _ANY | _kinds(Certificate, CertificateRequest),
    ),
    (Exchange.IKE_AUTH, True): Shape(
        _kinds(IdentificationR, Authentication), _CHILD | _kinds(Eap), _ANY | _kinds(Certificate)
    ),
    (Exchange.CREATE_CHILD_SA, False): Shape(
        _kinds(SecurityAssociation, Nonce), _CHILD | _kinds(KeyExchange), _ANY
    ),
    (Exchange.CREATE_CHILD_SA, True): Shape(
        _kinds(SecurityAssociation, Nonce), _CHILD | _kinds(KeyExchange), _ANY
    ),
    (Exchange.INFORMATIONAL, False): Shape(optional=_kinds(Configuration), many=_ANY | _kinds(Delete)),
    (Exchange.INFORMATIONAL, True): Shape(optional=_kinds(Configuration), many=_ANY | _kinds(Delete)),
}
_NOTHING = Shape()


def check(exchange: int, response: bool, payloads: Sequence[Body]) -> tuple[Body, ...]:
    """The payloads that belong into this message. Raises `Malformed`, or `UnknownCritical` as section 2.5
    asks."""
    for one in payloads:
        if isinstance(one, Unknown) and one.critical:
            raise UnknownCritical(one.kind)
    shape = SHAPES.get((exchange, response), _NOTHING)
    whole = not response or not any(map(_stands_alone, payloads))
    return shape.check(payloads, whole=whole)


def _stands_alone(payload: Body) -> bool:
    """Whether a notify comes instead of what a response otherwise has to contain."""
    return isinstance(payload, Notify) and (payload.type < FIRST_STATUS or payload.type == N.COOKIE)
