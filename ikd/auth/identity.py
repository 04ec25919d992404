"""Identities as they travel in ID payloads (RFC 7296 section 3.5) and as people write them.

The text form is unambiguous: what a peer sends as one type never prints as another (a domain name of
"10.0.0.9" or "CN=db" prints with its type and octets), so that policy may compare texts.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from ipaddress import ip_address

from cryptography import x509
from cryptography.x509.oid import NameOID

# The library remarks on long attributes of names it reads; strangers must not write to our standard error.
warnings.filterwarnings("ignore", message="Attribute's length must be")


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
    PRINCIPAL = 256  # ours: what Kerberos has proven; no ID payload can claim it


_LABELS: dict[int, str] = {
    IdKind.IPV4_ADDR: "ipv4",
    IdKind.FQDN: "fqdn",
    IdKind.RFC822_ADDR: "email",
    IdKind.IPV6_ADDR: "ipv6",
    IdKind.DER_ASN1_DN: "dn",
    IdKind.DER_ASN1_GN: "gn",
    IdKind.KEY_ID: "keyid",
    IdKind.NULL: "null",
    IdKind.PRINCIPAL: "principal",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """One identity: ID type and its octets."""

    kind: int
    data: bytes

    @classmethod
    def parse(cls, text: str) -> Identity:
        """From text: an address, a name, user@host, a distinguished name (CN=...), keyid:TEXT, or what
        `str()` gives; raises `ValueError` naming the text."""
        try:
            return cls._parse(text)
        except (ValueError, UnicodeError) as error:
            raise ValueError(f'"{text.strip()}" is not an identity: {error or "not understood"}') from error

    @classmethod
    def _parse(cls, whole: str) -> Identity:
        text = whole.strip()  # a distinguished name may end in a space that is escaped
        if text.startswith("principal:"):
            raise ValueError("a Kerberos principal is proven with a keytab and not claimed")
        if text.lower().startswith("group:"):
            raise ValueError("a group has members and is none itself")
        if text.startswith("keyid:"):
            return cls(IdKind.KEY_ID, text.removeprefix("keyid:").encode())
        if tagged := re.fullmatch(r"id-(\d{1,3}|[a-z0-9]+):([0-9a-f]*)", text):
            kinds = {label: kind for kind, label in _LABELS.items()}
            kind = int(tagged[1]) if tagged[1].isdigit() else kinds.get(tagged[1], -1)
            if not 0 <= kind <= 255:
                raise ValueError(f"no such ID type: {tagged[1]}")
            return cls(kind, bytes.fromhex(tagged[2]))
        try:
            address = ip_address(text)
        except ValueError:
            pass
        else:
            return cls(IdKind.IPV4_ADDR if address.version == 4 else IdKind.IPV6_ADDR, address.packed)
        if "=" in text:
            return cls(IdKind.DER_ASN1_DN, distinguished_name(whole).public_bytes())
        if "/" in text or "\\" in text:  # policy takes those for principals
            raise ValueError("a name has no slashes; principals are proven with a keytab and not claimed")
        if text.startswith("@"):
            return cls(IdKind.FQDN, text[1:].encode("idna"))
        if not text or not text.isprintable() or " " in text:
            raise ValueError("a name has no spaces and is not empty")
        if "@" in text:
            return cls(IdKind.RFC822_ADDR, text.encode("ascii"))
        return cls(IdKind.FQDN, text.encode("idna"))

    def __str__(self) -> str:
        return _text(self.kind, self.data)

    @property
    def tagged(self) -> str:
        """Type and octets in hexadecimal: the form nothing else prints as."""
        return f"id-{_LABELS.get(self.kind, str(self.kind))}:{self.data.hex()}"


def canonical(text: str) -> str:
    """The one spelling of an identity as people write it, as `str(Identity)` gives it; patterns with `*` and
    address prefixes stay as they are. Raises `ValueError`."""
    if "*" in text or ("/" in text and "=" not in text):
        return text.strip()
    return str(Identity.parse(text))


@lru_cache(maxsize=512)
def _text(kind: int, data: bytes) -> str:
    identity = Identity(kind, data)
    if kind == IdKind.PRINCIPAL:
        return (
            f"principal:{data.decode(errors='replace')}"  # nothing else prints like this: it cannot be parsed
        )
    try:
        text = _plain(kind, data)
        if text is not None and text.isprintable():
            # the reverse must hold, or a peer could choose a text that belongs to somebody else
            again = Identity.parse(text)
            if again == identity or again.kind == kind == IdKind.DER_ASN1_DN:
                return text
    except ValueError:
        pass
    return identity.tagged


def _plain(kind: int, data: bytes) -> str | None:
    """The natural text, None when the type has none; raises `ValueError` (`UnicodeError` is one)."""
    if kind == IdKind.IPV4_ADDR and len(data) == 4:
        return str(ip_address(data))
    if kind == IdKind.IPV6_ADDR and len(data) == 16:
        return str(ip_address(data))
    if kind == IdKind.DER_ASN1_DN:
        return name_text(name_of(data))
    if kind == IdKind.KEY_ID:
        return "keyid:" + data.decode("ascii")
    if kind in (IdKind.FQDN, IdKind.RFC822_ADDR):
        return data.decode("ascii")
    return None


# Distinguished names -------------------------------------------------------------------------------------

# Keywords beyond RFC 4514 section 3 that administrators write and other implementations print
_KEYWORDS = {
    "CN": NameOID.COMMON_NAME,
    "L": NameOID.LOCALITY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "C": NameOID.COUNTRY_NAME,
    "STREET": NameOID.STREET_ADDRESS,
    "DC": NameOID.DOMAIN_COMPONENT,
    "UID": NameOID.USER_ID,
    "E": NameOID.EMAIL_ADDRESS,
    "EMAIL": NameOID.EMAIL_ADDRESS,
    "EMAILADDRESS": NameOID.EMAIL_ADDRESS,
    "SN": NameOID.SURNAME,
    "SERIALNUMBER": NameOID.SERIAL_NUMBER,
}
_PART = re.compile(r"((?:\\.|[^\\,+])*)([,+]?)", re.S)  # up to a separator that is not escaped
_PRINTED = {NameOID.EMAIL_ADDRESS: "E"}


@lru_cache(maxsize=256)
def distinguished_name(text: str) -> x509.Name:
    """A name from RFC 4514 text; keywords in any case, spaces around separators. Raises `ValueError`."""
    out = []
    separator, position = ",", 0
    while separator:
        part = _PART.match(text, position)
        assert part is not None  # it matches nothing at all, too
        position, separator = part.end(), part[2]
        keyword, equals, value = part[1].partition("=")
        if not equals:
            raise ValueError(f'"{part[1]}" lacks "="')
        oid = _KEYWORDS.get(keyword.strip().upper())
        out += [oid.dotted_string if oid else keyword.strip(), "=", _trimmed(value), separator]
    if position != len(text):
        raise ValueError("it ends in a backslash")
    try:
        return x509.Name.from_rfc4514_string("".join(out))
    except ValueError as error:
        raise ValueError(str(error) or "not a distinguished name (like CN=host,O=Example)") from error


def _trimmed(value: str) -> str:
    """Without the spaces around it, but with a last one that is escaped."""
    bare = value.strip()
    escaped = (len(bare) - len(bare.rstrip("\\"))) % 2 == 1
    return bare + " " if escaped and bare != value.lstrip() else bare


def name_text(name: x509.Name) -> str:
    """RFC 4514 text, with E for the electronic-mail attribute."""
    return name.rfc4514_string(_PRINTED)


NameKey = tuple[frozenset[tuple[str, str]], ...]


def name_key(name: x509.Name) -> NameKey:
    """What two names have in common when RFC 5280 section 7.1 calls them equal: case, the string type and
    runs of spaces do not count."""
    return tuple(
        frozenset((a.oid.dotted_string, " ".join(str(a.value).casefold().split())) for a in rdn)
        for rdn in name.rdns
    )


def _tlv(tag: int, *contents: bytes) -> bytes:
    """One DER element."""
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = (len(body).bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + len(body).to_bytes(size, "big") + body


_ED25519 = bytes.fromhex("300506032b6570")
_KEY = _tlv(0x30, _ED25519, _tlv(0x03, bytes(33)))
_SIGNATURE = _ED25519 + _tlv(0x03, bytes(65))


@lru_cache(maxsize=256)
def name_of(data: bytes) -> x509.Name:
    """An X.501 name from its DER; raises `ValueError`. The library reads names only inside certificates, so
    this wraps the octets in a certification request (RFC 2986) whose key and signature are zeros."""
    if len(data) > 4096:
        raise ValueError("a name of more than 4096 octets")
    request = _tlv(0x30, b"\x02\x01\x00", data, _KEY, b"\xa0\x00")
    try:
        return x509.load_der_x509_csr(_tlv(0x30, request, _SIGNATURE)).subject
    except Exception as error:  # the parser's complaints have no common base below Exception
        raise ValueError(f"not a distinguished name: {data[:32].hex()}") from error
