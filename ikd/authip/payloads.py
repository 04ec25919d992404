"""The payloads of AuthIP: those of its own (MS-AIPS section 2.2.3), and a registry with those it has from
IKEv1. The CRYPTO payload is `ikd.authip.channel`'s."""

from __future__ import annotations

from typing import ClassVar

from ikd.isakmp.numbers import DOI_IPSEC
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    NatOriginalAddress,
    Nonce,
    SecurityAssociation,
    VendorId,
)
from ikd.wire.codec import Malformed, Structure, many, rest, uint, wire
from ikd.wire.isakmp import Payload


@wire
class GssApi(Payload):
    """GSS-API payload, section 2.2.3.1: a token, which may be empty, with an error code (0: none)."""

    kind: ClassVar[int] = 129
    status: int = uint(4, default=0)
    flags: int = uint(1, default=0)
    token: bytes = rest(default=b"")


@wire
class GssId(Payload):
    """GSS_ID payload, section 2.2.3.3: the sender's principal name in UTF-16."""

    kind: ClassVar[int] = 134
    name: bytes = rest(high=2048)


@wire
class AuthEntry(Structure):
    """One authentication method of an AUTH payload."""

    method: int = uint(2)
    flags: int = uint(2, default=0)


@wire
class Auth(Payload):
    """AUTH payload, section 2.2.3.4: authentication methods, best first."""

    kind: ClassVar[int] = 135
    entries: tuple[AuthEntry, ...] = many(AuthEntry)


@wire
class Notify(Payload):
    """Notification payload, section 2.2.3.5: flags stand where IKEv1 has an SPI size, and there is no SPI."""

    kind: ClassVar[int] = 11
    doi: int = uint(4, default=DOI_IPSEC)
    protocol: int = uint(1)
    flags: int = uint(1, default=0)
    type: int = uint(2)
    data: bytes = rest(default=b"")


@wire
class KeyDictation(Payload):
    """Key Dictation payload, section 2.2.3.7: keys that one side makes up; read, never followed."""

    kind: ClassVar[int] = 136
    data: bytes = rest()


@wire
class KeyDictationWeight(Payload):
    """Key Dictation Weight payload, section 2.2.3.8."""

    kind: ClassVar[int] = 137
    weight: int = uint(4)


PAYLOADS: dict[int, type[Payload]] = {
    cls.kind: cls
    for cls in (
        SecurityAssociation,
        KeyExchange,
        Identification,
        Hash,
        Nonce,
        Notify,
        VendorId,
        NatDiscovery,
        NatOriginalAddress,
        GssApi,
        GssId,
        Auth,
        KeyDictation,
        KeyDictationWeight,
    )
}


def decode_name(payload: GssId, encoding: str) -> str:
    """The name in a GSS_ID payload; raises `Malformed`."""
    try:
        name = payload.name.decode(encoding)
    except UnicodeDecodeError as error:
        raise Malformed(f"a principal name that is not {encoding}") from error
    if not name or not name.isprintable():
        raise Malformed("a principal name with control characters, or none at all")
    return name
