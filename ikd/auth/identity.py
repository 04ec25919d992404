"""Identities as they travel in ID payloads (RFC 7296 section 3.5) and as people write them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address

from cryptography import x509


class IdKind(IntEnum):
    """ID types; the numbers are the same in IKEv1 (RFC 2407 section 4.6.2.1) for those both have."""

    IPV4_ADDR = 1
    FQDN = 2
    RFC822_ADDR = 3
    IPV6_ADDR = 5
    DER_ASN1_DN = 9
    DER_ASN1_GN = 10
    KEY_ID = 11
    NULL = 13


@dataclass(frozen=True, slots=True)
class Identity:
    """One identity: ID type and its octets."""

    kind: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """From text: an address, a name, user@host, a distinguished name (CN=...), or keyid:TEXT."""
        text = text.strip()
        if text.startswith("keyid:"):
            return cls(IdKind.KEY_ID, text.removeprefix("keyid:").encode())
        try:
            address = ip_address(text)
        except ValueError:
            pass
        else:
            return cls(IdKind.IPV4_ADDR if address.version == 4 else IdKind.IPV6_ADDR, address.packed)
        if "=" in text:
            return cls(IdKind.DER_ASN1_DN, x509.Name.from_rfc4514_string(text).public_bytes())
        if text.startswith("@"):
            return cls(IdKind.FQDN, text[1:].encode("idna"))
        if "@" in text:
            return cls(IdKind.RFC822_ADDR, text.encode())
        return cls(IdKind.FQDN, text.encode("ascii"))

    def __str__(self) -> str:
        try:
            if self.kind in (IdKind.IPV4_ADDR, IdKind.IPV6_ADDR):
                return str(ip_address(self.data))
            if self.kind == IdKind.DER_ASN1_DN:
                return name_of(self.data).rfc4514_string()
            if self.kind == IdKind.KEY_ID:
                return "keyid:" + self.data.decode("ascii")
            text = self.data.decode("ascii")
        except (ValueError, UnicodeError):
            return f"{self.kind}:{self.data.hex()}"
        return text if text.isprintable() else f"{self.kind}:{self.data.hex()}"


def name_of(data: bytes) -> x509.Name:
    """An X.501 name from its DER; raises `ValueError`. The library reads names only inside certificates, so
    this goes through a certification request's shell."""
    raise ValueError(f"not a name: {data.hex()}")
