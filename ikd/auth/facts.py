"""What authentication reads out of certificates, and the same for a whole chain worked out once.

A busy responder meets the same chains again and again; `Facts` has everything a rule, an identity or a
signature check asks of one, so that only the signature itself costs anything. Nothing here judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ikd.auth.health import ailment
from ikd.auth.identity import Identity, IdKind, NameKey, name_key, name_of, name_text
from ikd.auth.signature import PublicKey, key_type
from sadb.address import Address

_SHOWN = 200  # characters of a stranger's name in a message


def shown(text: str) -> str:
    """A stranger's text fit for a message: no control characters, not endless."""
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def title(certificate: x509.Certificate) -> str:
    """What people call this certificate."""
    return shown(name_text(certificate.subject)) or f"serial {certificate.serial_number:x}"


def public_key_octets(certificate: x509.Certificate) -> bytes:
    """Its SubjectPublicKeyInfo in DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_hash(certificate: x509.Certificate) -> bytes:
    """What a Certificate Request payload carries for an authority (RFC 7296 section 3.7)."""
    return hashlib.sha1(public_key_octets(certificate), usedforsecurity=False).digest()


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether basicConstraints says CA."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def usages(certificate: x509.Certificate) -> frozenset[str] | None:
    """Extended key usages as dotted OIDs; None when it has no such extension."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return frozenset(oid.dotted_string for oid in value)


# Names ---------------------------------------------------------------------------------------------------


def identities(certificate: x509.Certificate) -> tuple[Identity, ...]:
    """Every identity it proves: alternative names, then the subject. Wildcards prove nothing here."""
    alternatives: list[x509.GeneralName] = []
    with suppress(x509.ExtensionNotFound):
        alternatives += certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    out = []
    for name in alternatives:
        match name:
            case x509.DNSName() if name.value and "*" not in name.value:
                out.append(Identity(IdKind.FQDN, name.value.encode()))
            case x509.RFC822Name() if name.value:
                out.append(Identity(IdKind.RFC822_ADDR, name.value.encode()))
            case x509.IPAddress() if isinstance(name.value, Address):
                kind = IdKind.IPV4_ADDR if name.value.version == 4 else IdKind.IPV6_ADDR
                out.append(Identity(kind, name.value.packed))
    if certificate.subject.rdns:
        out.append(Identity(IdKind.DER_ASN1_DN, certificate.subject.public_bytes()))
    return tuple(out)


def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The same as text, which never passes for a name of another type."""
    return tuple(str(identity) for identity in identities(certificate))


def identity_of(certificate: x509.Certificate) -> Identity:
    """The identity to claim with it: its first alternative name, else its subject."""
    return next(
        iter(identities(certificate)), Identity(IdKind.DER_ASN1_DN, certificate.subject.public_bytes())
    )


def claimed(certificate: x509.Certificate) -> str:
    """The same of one that proves nothing, for a message: it may be anything that can be read."""
    try:
        return shown(str(identity_of(certificate)))
    except ValueError:  # a subject that can be read and not written
        return title(certificate)


def proves(certificate: x509.Certificate, identity: Identity) -> bool:
    """Whether the certificate names this identity (RFC 4945 section 3): the ID type decides which name."""
    claimed = _comparable(identity)
    return claimed is not None and claimed in map(_comparable, identities(certificate))


@lru_cache(maxsize=512)
def _comparable(identity: Identity) -> tuple[int, Hashable] | None:
    """What two equal identities have in common; None for what no certificate can name."""
    match identity.kind:
        case IdKind.IPV4_ADDR | IdKind.IPV6_ADDR:
            return identity.kind, identity.data
        case IdKind.DER_ASN1_DN:
            try:
                key = name_key(name_of(identity.data))
            except ValueError:
                return None
            return (identity.kind, key) if key else None
        case IdKind.FQDN if identity.data.isascii() and b"*" not in identity.data:
            return identity.kind, identity.data.lower()
        case IdKind.RFC822_ADDR if identity.data.isascii():
            # RFC 5280 section 7.5: the host part in any case, the local part as it is
            local, at, host = identity.data.rpartition(b"@")
            return identity.kind, local + at + host.lower()
    return None


# A chain -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """A chain as rules, identities and signatures ask about it. `weakest` are bits and title of its shortest
    RSA key; `above` are the names of the authorities it comes from; `ailment` is why the leaf is no health
    certificate, None when it is one; times are POSIX seconds."""

    title: str
    names: tuple[str, ...]
    identity: Identity  # to claim with it
    usages: frozenset[str] | None
    ailment: str | None
    key: PublicKey | None = field(repr=False)
    key_type: str | None
    weakest: tuple[int, str] | None
    above: frozenset[NameKey] = field(repr=False)
    begins: float
    ends: float  # of the leaf
    expires: float  # of whatever ends first
    proven: frozenset[tuple[int, Hashable] | None] = field(repr=False)

    @classmethod
    def of(cls, chain: Sequence[x509.Certificate]) -> Facts:
        """The facts of a chain, leaf first."""
        leaf = chain[0]
        key = leaf.public_key()
        usage = usages(leaf)
        rsa_keys = [
            (public.key_size, title(certificate))
            for certificate in chain
            if isinstance(public := certificate.public_key(), rsa.RSAPublicKey)
        ]
        return cls(
            title=title(leaf),
            names=names(leaf),
            identity=identity_of(leaf),
            usages=usage,
            ailment=ailment(leaf, usage),
            key=key if isinstance(key, PublicKey) else None,
            key_type=key_type(key),
            weakest=min(rsa_keys, default=None),
            above=frozenset([name_key(c.issuer) for c in chain] + [name_key(c.subject) for c in chain[1:]]),
            begins=leaf.not_valid_before_utc.timestamp(),
            ends=leaf.not_valid_after_utc.timestamp(),
            expires=min(c.not_valid_after_utc for c in chain).timestamp(),
            proven=frozenset(map(_comparable, identities(leaf))) - {None},
        )

    def prove(self, identity: Identity) -> bool:
        """Whether the leaf names this identity, as `proves` has it."""
        return _comparable(identity) in self.proven

    def is_current(self, now: float) -> bool:
        """Whether the leaf is valid at POSIX time `now`."""
        return self.begins <= now <= self.ends
