"""A small public-key infrastructure: authorities, host certificates, revocation lists (RFC 5280).

Enough for `ikctl cert`, the demo and the tests; not a CA product: no requests, no database. Pure but for the
generators inside the library; the caller reads and writes files and says what time it is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from ikd.auth.facts import is_authority, names, usages
from ikd.auth.health import SYSTEM_HEALTH
from ikd.auth.identity import distinguished_name, name_text
from ikd.auth.signature import PrivateKey, PublicKey, key_type

KEY_TYPES: dict[str, Callable[[], PrivateKey]] = {
    "ecdsa-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ecdsa-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-3072": lambda: rsa.generate_private_key(65537, 3072),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
}
EKUS = {
    "ike": ExtendedKeyUsageOID.IPSEC_IKE,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "health": x509.ObjectIdentifier(SYSTEM_HEALTH),
}
_SIGNATURE_HASHES: dict[str, hashes.SHA384 | hashes.SHA512] = {
    "ecdsa-p384": hashes.SHA384(),
    "ecdsa-p521": hashes.SHA512(),
}
HEALTH_DAYS = 4 / 24  # a health certificate: its life is all there is of revocation
_BACKDATE = dt.timedelta(hours=1)  # clocks of the hosts may differ
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)


def make_key(kind: str) -> PrivateKey:
    """A new private key; raises `ValueError` for an unknown type."""
    if kind not in KEY_TYPES:
        raise ValueError(f'"{kind}" is no key type; there are {", ".join(KEY_TYPES)}')
    return KEY_TYPES[kind]()


def subject_of(text: str) -> x509.Name:
    """A subject: a distinguished name, or a plain name that becomes its CN. Raises `ValueError`."""
    return distinguished_name(text if "=" in text else "CN=" + text)


def make_ca(
    subject: str,
    now: float,
    *,
    days: float = 3650,
    kind: str = "ecdsa-p256",
    key: PrivateKey | None = None,
    issuer: Pair | None = None,
    path_length: int | None = None,
) -> Pair:
    """An authority, self-signed or below `issuer`; `now` in POSIX seconds. Raises `ValueError`."""
    key = key or make_key(kind)
    name = subject_of(subject)
    builder = _begin(name, key.public_key(), issuer, now, days * _DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return Pair(_signed(builder, issuer.key if issuer else key), key)


def issue(
    ca: Pair,
    subject: str,
    san: Iterable[str] = (),
    *,
    now: float,
    days: float = 365,
    kind: str = "ecdsa-p256",
    key: PrivateKey | None = None,
    eku: Sequence[str] = ("ike",),
) -> Pair:
    """A host certificate. `san` has DNS names, addresses and user@host; `eku` names of `EKUS` or dotted OIDs.
    Raises `ValueError`."""
    _check_authority(ca, now, days)
    key = key or make_key(kind)
    builder = _begin(subject_of(subject), key.public_key(), ca, now, days * _DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    if alternatives := [alternative_name(text) for text in san]:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if eku:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([_key_usage(one) for one in eku]), critical=False
        )
    return Pair(_signed(builder, ca.key), key)


def _key_usage(text: str) -> x509.ObjectIdentifier:
    try:
        return EKUS[text] if text in EKUS else x509.ObjectIdentifier(text)
    except ValueError:
        raise ValueError(f'"{text}" is no key usage: {", ".join(EKUS)}, or an OID in dots') from None


def renew(
    ca: Pair, old: x509.Certificate, public: PublicKey, *, now: float, days: float | None = None
) -> x509.Certificate:
    """The same certificate again, for `public`: subject and extensions as they are, valid as long as the old
    one was made for or for `days`, but not beyond the authority's own end. Raises `ValueError` when it is not
    for this authority to renew."""
    if is_authority(old):
        raise ValueError(
            f"{name_text(old.subject)} is an authority, whom others trust by the certificate they have"
        )
    _check_authority(ca, now, 1)
    try:
        old.verify_directly_issued_by(ca.certificate)
    except (ValueError, TypeError, InvalidSignature):
        raise ValueError(
            f"{name_text(old.subject)} was not issued by {name_text(ca.certificate.subject)} with this key"
        ) from None
    life = old.not_valid_after_utc - old.not_valid_before_utc if days is None else dt.timedelta(days=days)
    if days is None and life > 2 * _BACKDATE:
        life -= _BACKDATE
    life = min(life, ca.certificate.not_valid_after_utc - dt.datetime.fromtimestamp(now, dt.UTC))
    builder = _begin(old.subject, public, ca, now, life)
    for extension in old.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    return _signed(builder, ca.key)


def another_key(public: PublicKey) -> PrivateKey:
    """A new private key of the same type and size."""
    match public:
        case rsa.RSAPublicKey():
            return rsa.generate_private_key(65537, public.key_size)
        case ec.EllipticCurvePublicKey():
            return ec.generate_private_key(public.curve)
        case ed25519.Ed25519PublicKey():
            return ed25519.Ed25519PrivateKey.generate()
    return ed448.Ed448PrivateKey.generate()


def _check_authority(ca: Pair, now: float, days: float) -> None:
    if not is_authority(ca.certificate):
        raise ValueError(f"{name_text(ca.certificate.subject)} is not a CA certificate")
    if days > 0 and dt.datetime.fromtimestamp(now, dt.UTC) > ca.certificate.not_valid_after_utc:
        raise ValueError(f"the CA expired {ca.certificate.not_valid_after_utc:%Y-%m-%d}")


def alternative_name(text: str) -> x509.GeneralName:
    """An address, user@host or DNS name as subjectAltName; raises `ValueError`."""
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    if not text or " " in text or not text.isprintable():
        raise ValueError(f'"{text}" is no DNS name, address or user@host')
    return x509.RFC822Name(text) if "@" in text else x509.DNSName(text.encode("idna").decode())


def make_crl(
    ca: Pair, revoked: Iterable[x509.Certificate], now: float, *, days: float = 30
) -> x509.CertificateRevocationList:
    """A revocation list that is good for `days`."""
    when = dt.datetime.fromtimestamp(now, dt.UTC)
    builder = x509.CertificateRevocationListBuilder(
        ca.certificate.subject, when - _BACKDATE, when + dt.timedelta(days=days)
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder(certificate.serial_number, when - _BACKDATE)
        builder = builder.add_revoked_certificate(entry.build())
    builder = builder.add_extension(_authority_key(ca.certificate), critical=False)
    return builder.sign(ca.key, _signature_hash(ca.key))


def _begin(
    name: x509.Name, public: PublicKey, issuer: Pair | None, now: float, life: dt.timedelta
) -> x509.CertificateBuilder:
    when = dt.datetime.fromtimestamp(now, dt.UTC)
    end = when + life
    start = min(when, end) - _BACKDATE
    builder = (
        x509.CertificateBuilder(subject_name=name, serial_number=x509.random_serial_number())
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(public)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(_authority_key(issuer.certificate), critical=False)
    return builder


def _signed(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    return builder.sign(key, _signature_hash(key))


def _signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None:
    """The hash as strong as the key; EdDSA has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    return _SIGNATURE_HASHES.get(key_type(key) or "", hashes.SHA256())


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:  # of another tool
        public = issuer.public_key()
        assert isinstance(public, PublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


# Files and people ----------------------------------------------------------------------------------------


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """PEM, in the order given: leaf first."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(key: PrivateKey) -> bytes:
    """PKCS#8 PEM without encryption; the file it goes to must be mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_pair(certificate: bytes, key: bytes) -> Pair:
    """A pair from two PEM files; raises `ValueError` when they do not belong together."""
    loaded = load_pem_private_key(key, None)
    leaf = x509.load_pem_x509_certificate(certificate)
    if not isinstance(loaded, PrivateKey) or loaded.public_key() != leaf.public_key():
        raise ValueError("certificate and private key do not belong together")
    return Pair(leaf, loaded)


def describe(certificate: x509.Certificate, now: float) -> dict[str, object]:
    """What `ikctl cert show` prints; JSON values. `days_left` is negative when it has expired."""
    key = certificate.public_key()
    bits = f"-{key.key_size}" if isinstance(key, rsa.RSAPublicKey) else ""
    left = certificate.not_valid_after_utc - dt.datetime.fromtimestamp(now, dt.UTC)
    return {
        "subject": name_text(certificate.subject),
        "issuer": name_text(certificate.issuer),
        "serial": f"{certificate.serial_number:x}",
        "key": f"{key_type(key) or type(key).__name__}{bits}",
        "names": list(names(certificate)),
        "ca": is_authority(certificate),
        "usages": sorted(usages(certificate) or ()),
        "not_before": certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "not_after": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "days_left": left.days,
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }
