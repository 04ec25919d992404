"""The payloads of IKEv2, RFC 7296 section 3 and RFC 7383 section 2.5: a class each, a row each in
`PAYLOADS`."""

from __future__ import annotations

from ipaddress import ip_address
from typing import ClassVar

from ikd.wire.codec import (
    Malformed,
    Structure,
    attributes,
    item_length_of,
    items,
    length_of,
    linked,
    many,
    octets,
    rest,
    sized,
    uint,
    wire,
)
from ikd.wire.isakmp import Payload
from sadb.selector import TrafficSelector


@wire
class Transform(Structure):
    """Transform substructure, section 3.3.2; attribute 14 is the key length in bits."""

    type: int = uint(1)
    reserved: int = uint(1, default=0)
    id: int = uint(2)
    attributes: tuple[tuple[int, int | bytes], ...] = attributes()


@wire
class Proposal(Structure):
    """Proposal substructure, section 3.3.1."""

    number: int = uint(1)
    protocol: int = uint(1)
    spi_size: ClassVar[int] = length_of("spi", 1)
    transform_count: ClassVar[int] = length_of("transforms", 1)
    spi: bytes = octets("spi_size")
    transforms: tuple[Transform, ...] = linked(Transform, more=3, count="transform_count")


@wire
class SecurityAssociation(Payload):
    """Security Association payload, section 3.3."""

    kind: ClassVar[int] = 33
    proposals: tuple[Proposal, ...] = linked(Proposal, more=2)


@wire
class KeyExchange(Payload):
    """Key Exchange payload, section 3.4."""

    kind: ClassVar[int] = 34
    group: int = uint(2)
    reserved: int = uint(2, default=0)
    public: bytes = rest(low=1)


@wire
class IdentificationI(Payload):
    """Identification payload of the initiator, section 3.5."""

    kind: ClassVar[int] = 35
    type: int = uint(1)
    reserved: int = uint(3, default=0)
    data: bytes = rest(high=4096)


@wire
class IdentificationR(Payload):
    """Identification payload of the responder, section 3.5."""

    kind: ClassVar[int] = 36
    type: int = uint(1)
    reserved: int = uint(3, default=0)
    data: bytes = rest(high=4096)


@wire
class Certificate(Payload):
    """Certificate payload, section 3.6; encoding 4 is one X.509 certificate in DER."""

    kind: ClassVar[int] = 37
    encoding: int = uint(1)
    data: bytes = rest(low=1)


@wire
class CertificateRequest(Payload):
    """Certificate Request payload, section 3.7: SHA-1 hashes of trusted public keys, 20 octets each."""

    kind: ClassVar[int] = 38
    encoding: int = uint(1)
    data: bytes = rest()


@wire
class Authentication(Payload):
    """Authentication payload, section 3.8."""

    kind: ClassVar[int] = 39
    method: int = uint(1)
    reserved: int = uint(3, default=0)
    data: bytes = rest(low=1)


@wire
class Nonce(Payload):
    """Nonce payload, section 3.9."""

    kind: ClassVar[int] = 40
    data: bytes = rest(low=16, high=256)


@wire
class Notify(Payload):
    """Notify payload, section 3.10."""

    kind: ClassVar[int] = 41
    protocol: int = uint(1, default=0)
    spi_size: ClassVar[int] = length_of("spi", 1)
    type: int = uint(2)
    spi: bytes = octets("spi_size")
    data: bytes = rest(default=b"")


@wire
class Delete(Payload):
    """Delete payload, section 3.11; no SPIs for the IKE SA itself."""

    kind: ClassVar[int] = 42
    protocol: int = uint(1)
    spi_size: ClassVar[int] = item_length_of("spis", 1)
    count: ClassVar[int] = length_of("spis", 2)
    spis: tuple[bytes, ...] = items("spi_size", "count")


@wire
class VendorId(Payload):
    """Vendor ID payload, section 3.12."""

    kind: ClassVar[int] = 43
    data: bytes = rest()


@wire
class SelectorRange(Structure):
    """One traffic selector, section 3.13.1: type 7 is an IPv4 range, 8 an IPv6 range."""

    type: int = uint(1)
    protocol: int = uint(1)
    body: bytes = sized(2, extra=4)

    def selector(self) -> TrafficSelector | None:
        """The selector, or None for a type that is not known here; raises `Malformed`."""
        size = {7: 4, 8: 16}.get(self.type)
        if size is None:
            return None
        if len(self.body) != 4 + 2 * size:
            raise Malformed(f"traffic selector of {len(self.body)} octets")
        first, last = int.from_bytes(self.body[:2], "big"), int.from_bytes(self.body[2:4], "big")
        low, high = ip_address(self.body[4 : 4 + size]), ip_address(self.body[4 + size :])
        if int(low) > int(high) or (first > last and (first, last) != (0xFFFF, 0)):
            raise Malformed("traffic selector ends before it starts")
        return TrafficSelector(low, high, self.protocol, (first, last))

    @classmethod
    def of(cls, selector: TrafficSelector) -> SelectorRange:
        """The octets of a selector."""
        first, last = selector.ports
        return cls(
            type=7 if selector.version == 4 else 8,
            protocol=selector.protocol,
            body=first.to_bytes(2, "big")
            + last.to_bytes(2, "big")
            + selector.low.packed
            + selector.high.packed,
        )


@wire
class TrafficSelectorsI(Payload):
    """Traffic Selector payload of the initiator's side, section 3.13."""

    kind: ClassVar[int] = 44
    count: ClassVar[int] = length_of("ranges", 1)
    reserved: int = uint(3, default=0)
    ranges: tuple[SelectorRange, ...] = many(SelectorRange, "count")


@wire
class TrafficSelectorsR(Payload):
    """Traffic Selector payload of the responder's side, section 3.13."""

    kind: ClassVar[int] = 45
    count: ClassVar[int] = length_of("ranges", 1)
    reserved: int = uint(3, default=0)
    ranges: tuple[SelectorRange, ...] = many(SelectorRange, "count")


@wire
class Encrypted(Payload):
    """Encrypted payload, section 3.14: IV, ciphertext and check value, opened by the channel."""

    kind: ClassVar[int] = 46
    data: bytes = rest()


@wire
class ConfigurationAttribute(Structure):
    """Configuration attribute, section 3.15.1."""

    type: int = uint(2)
    value: bytes = sized(2)


@wire
class Configuration(Payload):
    """Configuration payload, section 3.15."""

    kind: ClassVar[int] = 47
    type: int = uint(1)
    reserved: int = uint(3, default=0)
    attributes: tuple[ConfigurationAttribute, ...] = many(ConfigurationAttribute)


@wire
class Eap(Payload):
    """EAP payload, section 3.16."""

    kind: ClassVar[int] = 48
    message: bytes = rest(low=4)


@wire
class EncryptedFragment(Payload):
    """Encrypted Fragment payload, RFC 7383 section 2.5; numbers start with 1."""

    kind: ClassVar[int] = 53
    number: int = uint(2)
    total: int = uint(2)
    data: bytes = rest()


@wire
class Correlation(Payload):
    """Correlation payload, MS-IKEE section 2.2.9: SPIs of another IKE SA, and a hash with a key of it."""

    kind: ClassVar[int] = 200
    spi_i: bytes = octets(8)
    spi_r: bytes = octets(8)
    hash: bytes = rest(low=1, high=64)


PAYLOADS: dict[int, type[Payload]] = {
    cls.kind: cls
    for cls in (
        SecurityAssociation,
        KeyExchange,
        IdentificationI,
        IdentificationR,
        Certificate,
        CertificateRequest,
        Authentication,
        Nonce,
        Notify,
        Delete,
        VendorId,
        TrafficSelectorsI,
        TrafficSelectorsR,
        Encrypted,
        Configuration,
        Eap,
        EncryptedFragment,
        Correlation,
    )
}
ENCRYPTED = frozenset((Encrypted.kind, EncryptedFragment.kind))
