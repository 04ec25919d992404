"""The payloads of IKEv1: RFC 2408 section 3 as RFC 2407 and 2409 use it, RFC 3947, MS-IKEE section 2.2.3. A
class each, a row each in `PAYLOADS`.

The authenticating hashes cover octets as they came; what is written again may differ from them in reserved
fields, so they are cut out of the message (`ikd.wire.isakmp.extents`).
"""

from __future__ import annotations

from typing import ClassVar

from ikd.isakmp.numbers import DOI_IPSEC, SITUATION
from ikd.wire.codec import (
    Structure,
    attributes,
    item_length_of,
    items,
    length_of,
    linked,
    octets,
    rest,
    uint,
    wire,
)
from ikd.wire.isakmp import Payload

Attributes = tuple[tuple[int, int | bytes], ...]


@wire
class Transform(Structure):
    """Transform payload, RFC 2408 section 3.6."""

    number: int = uint(1)
    id: int = uint(1)
    reserved: int = uint(2, default=0)
    attributes: Attributes = attributes()


@wire
class Proposal(Structure):
    """Proposal payload, RFC 2408 section 3.5; those of one number belong together."""

    number: int = uint(1)
    protocol: int = uint(1)
    spi_size: ClassVar[int] = length_of("spi", 1)
    transform_count: ClassVar[int] = length_of("transforms", 1)
    spi: bytes = octets("spi_size")
    transforms: tuple[Transform, ...] = linked(Transform, more=3, count="transform_count")


@wire
class SecurityAssociation(Payload):
    """Security Association payload, RFC 2408 section 3.4 and RFC 2407 section 4.6.1."""

    kind: ClassVar[int] = 1
    doi: int = uint(4, default=DOI_IPSEC)
    situation: int = uint(4, default=SITUATION)
    proposals: tuple[Proposal, ...] = linked(Proposal, more=2)


@wire
class KeyExchange(Payload):
    """Key Exchange payload, RFC 2408 section 3.7."""

    kind: ClassVar[int] = 4
    public: bytes = rest(low=1)


@wire
class Identification(Payload):
    """Identification payload, RFC 2407 section 4.6.2."""

    kind: ClassVar[int] = 5
    type: int = uint(1)
    protocol: int = uint(1, default=0)
    port: int = uint(2, default=0)
    data: bytes = rest(high=4096)


@wire
class Certificate(Payload):
    """Certificate payload, RFC 2408 section 3.9; encoding 4 is an X.509 certificate for signatures."""

    kind: ClassVar[int] = 6
    encoding: int = uint(1)
    data: bytes = rest(low=1)


@wire
class CertificateRequest(Payload):
    """Certificate Request payload, RFC 2408 section 3.10: the name of an authority, or nothing for any."""

    kind: ClassVar[int] = 7
    encoding: int = uint(1)
    authority: bytes = rest(default=b"")


@wire
class Hash(Payload):
    """Hash payload, RFC 2408 section 3.11; with Kerberos wrapped, and then longer than any hash."""

    kind: ClassVar[int] = 8
    data: bytes = rest(low=1)


@wire
class Signature(Payload):
    """Signature payload, RFC 2408 section 3.12."""

    kind: ClassVar[int] = 9
    data: bytes = rest(low=1)


@wire
class Nonce(Payload):
    """Nonce payload, RFC 2408 section 3.13; 8 to 256 octets (RFC 2409 section 5)."""

    kind: ClassVar[int] = 10
    data: bytes = rest(low=8, high=256)


@wire
class Notify(Payload):
    """Notification payload, RFC 2408 section 3.14."""

    kind: ClassVar[int] = 11
    doi: int = uint(4, default=DOI_IPSEC)
    protocol: int = uint(1)
    spi_size: ClassVar[int] = length_of("spi", 1)
    type: int = uint(2)
    spi: bytes = octets("spi_size")
    data: bytes = rest(default=b"")


@wire
class Delete(Payload):
    """Delete payload, RFC 2408 section 3.15; the SPI of the ISAKMP SA is both its cookies."""

    kind: ClassVar[int] = 12
    doi: int = uint(4, default=DOI_IPSEC)
    protocol: int = uint(1)
    spi_size: ClassVar[int] = item_length_of("spis", 1)
    count: ClassVar[int] = length_of("spis", 2)
    spis: tuple[bytes, ...] = items("spi_size", "count")


@wire
class VendorId(Payload):
    """Vendor ID payload, RFC 2408 section 3.16."""

    kind: ClassVar[int] = 13
    data: bytes = rest()


@wire
class NatDiscovery(Payload):
    """NAT-D payload, RFC 3947 section 3.2."""

    kind: ClassVar[int] = 20
    hash: bytes = rest(low=1)


@wire
class NatOriginalAddress(Payload):
    """NAT-OA payload, RFC 3947 section 5.2; the type is that of an address in an Identification payload."""

    kind: ClassVar[int] = 21
    type: int = uint(1)
    reserved: int = uint(3, default=0)
    address: bytes = rest(high=16)


@wire
class GssToken(Payload):
    """GSS-API token, draft-ietf-ipsec-isakmp-gss-auth-07."""

    kind: ClassVar[int] = 129
    token: bytes = rest()


@wire
class NatDiscoveryDraft(NatDiscovery):
    """NAT-D payload as draft-ietf-ipsec-nat-t-ike-02 numbers it."""

    kind: ClassVar[int] = 130


@wire
class NatOriginalAddressDraft(NatOriginalAddress):
    """NAT-OA payload as draft-ietf-ipsec-nat-t-ike-02 numbers it."""

    kind: ClassVar[int] = 131


@wire
class Fragment(Payload):
    """Fragment payload, MS-IKEE section 2.2.3; numbers start with 1, flag 1 is on the last."""

    kind: ClassVar[int] = 132
    id: int = uint(2)
    number: int = uint(1)
    flags: int = uint(1, default=0)
    data: bytes = rest()


@wire
class Lifetime(Structure):
    """Data of a RESPONDER-LIFETIME notify, RFC 2407 section 4.6.3.1: attributes of phase 1 or 2."""

    attributes: Attributes = attributes()


PAYLOADS: dict[int, type[Payload]] = {
    cls.kind: cls
    for cls in (
        SecurityAssociation,
        KeyExchange,
        Identification,
        Certificate,
        CertificateRequest,
        Hash,
        Signature,
        Nonce,
        Notify,
        Delete,
        VendorId,
        NatDiscovery,
        NatOriginalAddress,
        GssToken,
        NatDiscoveryDraft,
        NatOriginalAddressDraft,
        Fragment,
    )
}
