"""Keys made once per run, certificates of every kind (good and bad), and rules that ask for them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import ip_network

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ikd import pki
from ikd.auth import Identity, Transcript
from ikd.auth.certificate import HostCertificate
from ikd.auth.signature import PrivateKey, key_type
from ikd.pki import Pair
from policy.rules import AuthMethod, AuthSet, Rule
from sadb.algorithms import PRF_BY_NAME
from sadb.selector import Selector, TrafficSelector

NOW = 1_800_000_000.0
DAY = 86400.0
KINDS = ("rsa-2048", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", "ed448")
CERTIFICATE = AuthMethod("certificate")
PSK = AuthMethod("psk")


def key(kind: str = "ecdsa-p256", number: int = 0) -> PrivateKey:
    """The same key for the same arguments."""
    return _key(kind, number)


@cache
def _key(kind: str, number: int) -> PrivateKey:
    """Made once: RSA keys take long."""
    if kind == "rsa-1024":
        return rsa.generate_private_key(65537, 1024)
    if kind == "p192-like":
        return ec.generate_private_key(ec.SECP256K1())
    return pki.make_key(kind)


@cache
def authority(subject: str = "Root", kind: str = "ecdsa-p256", number: int = 100) -> Pair:
    """A self-signed authority."""
    return pki.make_ca(subject, NOW - DAY, kind=kind, key=key(kind, number))


def below(issuer: Pair, subject: str, kind: str = "ecdsa-p256", number: int = 101) -> Pair:
    """An intermediate authority."""
    return pki.make_ca(subject, NOW - DAY, key=key(kind, number), issuer=issuer)


def host(ca: Pair, name: str = "peer.example", kind: str = "ecdsa-p256", number: int = 0) -> Pair:
    """A host certificate with its name as subject and alternative name."""
    return pki.issue(ca, name, [name], now=NOW - DAY, key=key(kind, number))


def build(
    issuer: Pair,
    subject: str = "peer.example",
    *,
    public: PrivateKey | None = None,
    public_key: object = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    start: float = NOW - DAY,
    end: float = NOW + 30 * DAY,
    pss: bool = False,
    serial: int | None = None,
) -> x509.Certificate:
    """A certificate as one likes, with nothing added."""
    builder = x509.CertificateBuilder(
        issuer_name=issuer.certificate.subject,
        subject_name=pki.subject_of(subject),
        public_key=public_key or (public or key()).public_key(),  # type: ignore[arg-type]
        serial_number=serial or x509.random_serial_number(),
        not_valid_before=moment(start),
        not_valid_after=moment(end),
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    digest = None if (key_type(issuer.key) or "").startswith("ed") else hashes.SHA256()
    scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else None
    return builder.sign(issuer.key, digest, rsa_padding=scheme)  # type: ignore[arg-type]


def with_sha1(certificate: x509.Certificate, issuer: PrivateKey) -> x509.Certificate:
    """The certificate signed by RSA with SHA-1, which the library no longer does."""
    assert isinstance(issuer, rsa.RSAPrivateKey)
    sha256, sha1 = bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105")
    body = certificate.tbs_certificate_bytes
    weak = body.replace(sha256, sha1)
    data = certificate.public_bytes(Encoding.DER).replace(body, weak).replace(sha256, sha1)
    signature = issuer.sign(weak, padding.PKCS1v15(), hashes.SHA1())
    return x509.load_der_x509_certificate(data.replace(certificate.signature, signature))


def moment(seconds: float) -> dt.datetime:
    """POSIX seconds as the library takes them."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def dns(*names: str) -> tuple[x509.ExtensionType, bool]:
    """A subjectAltName of DNS names, for `build`."""
    return x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False


def constraints(*, ca: bool, length: int | None = None) -> tuple[x509.ExtensionType, bool]:
    """basicConstraints, for `build`."""
    return x509.BasicConstraints(ca, length), True


def der(*certificates: x509.Certificate | Pair) -> tuple[bytes, ...]:
    """DER of each."""
    found = (c.certificate if isinstance(c, Pair) else c for c in certificates)
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in found)


def own(pair: Pair, *chain: Pair) -> HostCertificate:
    """Our certificate with its intermediates."""
    return HostCertificate((pair.certificate, *(one.certificate for one in chain)), pair.key)


def rule(*methods: AuthMethod, peer: str | None = None) -> Rule:
    """A rule that asks for these methods."""
    everything = TrafficSelector.of(ip_network("10.0.0.0/8"))
    return Rule("office", Selector((everything,), (everything,)), auth=AuthSet("set", methods), peer=peer)


def transcript(octets: bytes = b"what the peer signs") -> Transcript:
    """Octets to sign."""
    return Transcript(octets, PRF_BY_NAME["sha256"])


def identity(text: str = "peer.example") -> Identity:
    """From text."""
    return Identity.parse(text)


def mutations(data: bytes, step: int) -> Sequence[bytes]:
    """The octets with one of every `step` changed, and cut short there."""
    changed = [data[:n] + bytes((data[n] ^ 0x55,)) + data[n + 1 :] for n in range(0, len(data), step)]
    return changed + [data[:n] for n in range(0, len(data), step)]
