"""Certificate authentication in IKEv2: proving with our host certificate, verifying the peer's.

The path to an anchor is `ikd.auth.chain`, the signature `ikd.auth.signature`; here are what a rule demands of
the leaf (RFC 4945 section 5), and whether the certificate names the identity the peer claims.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ikd.auth import Authenticated, Declined, Identity, Step, Token, Transcript, signature
from ikd.auth.chain import Chain, Trust, public_key_octets, title
from ikd.auth.identity import IdKind, distinguished_name, name_key, name_of, name_text
from ikd.auth.signature import PrivateKey, PublicKey
from policy.rules import AuthMethod
from sadb.address import Address

SYSTEM_HEALTH = "1.3.6.1.4.1.311.47.1.1"
# A certificate with an extended key usage must carry one of these (RFC 4945 section 5.1.3.12). The TLS usages
# are there because most CAs issue host certificates with them.
IKE_USAGES = frozenset(
    (
        ExtendedKeyUsageOID.IPSEC_IKE.dotted_string,
        "1.3.6.1.5.5.8.2.2",  # IKE intermediate
        "1.3.6.1.5.5.7.3.5",  # IPsec end system, tunnel and user of RFC 2459
        "1.3.6.1.5.5.7.3.6",
        "1.3.6.1.5.5.7.3.7",
        ExtendedKeyUsageOID.SERVER_AUTH.dotted_string,
        ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string,
        SYSTEM_HEALTH,
    )
)


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """Our certificate with its intermediates (leaf first) and private key. `source` is for messages."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    source: str = ""
    sent: tuple[bytes, ...] = field(init=False, repr=False)  # DER, without self-signed roots

    def __post_init__(self) -> None:
        sent = tuple(
            certificate.public_bytes(Encoding.DER)
            for index, certificate in enumerate(self.chain)
            if index == 0 or certificate.subject != certificate.issuer
        )
        object.__setattr__(self, "sent", sent)

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of `key`."""
        return self.chain[0]

    def descends_from(self, authorities: Iterable[bytes], anchors: Sequence[x509.Certificate]) -> bool:
        """Whether the chain, as far as we hold it, goes through a key the peer trusts (RFC 7296 section 3.7:
        SHA-1 of the SubjectPublicKeyInfo)."""
        wanted = frozenset(authorities)
        issuers = {name_key(c.issuer) for c in self.chain}
        above = [*self.chain[1:], *(a for a in anchors if name_key(a.subject) in issuers)]
        return any(key_hash(certificate) in wanted for certificate in above)


def key_hash(certificate: x509.Certificate) -> bytes:
    """What a Certificate Request payload carries for an authority (RFC 7296 section 3.7)."""
    return hashlib.sha1(public_key_octets(certificate), usedforsecurity=False).digest()


# Names ---------------------------------------------------------------------------------------------------


def _alternatives(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Every name it proves, as text: alternative names, then the subject. Wildcards prove nothing here."""
    out = []
    for name in _alternatives(certificate):
        match name:
            case x509.DNSName() if "*" not in name.value:
                out.append(name.value)
            case x509.RFC822Name():
                out.append(name.value)
            case x509.IPAddress() if isinstance(name.value, Address):
                out.append(str(name.value))
    if certificate.subject.rdns:
        out.append(name_text(certificate.subject))
    return tuple(out)


def identity_of(certificate: x509.Certificate) -> Identity:
    """The identity to claim with it: its first alternative name, else its subject."""
    for text in names(certificate)[:-1] if certificate.subject.rdns else names(certificate):
        return Identity.parse(text)
    return Identity(IdKind.DER_ASN1_DN, certificate.subject.public_bytes())


def proves(certificate: x509.Certificate, identity: Identity) -> bool:
    """Whether the certificate names this identity (RFC 4945 section 3): the ID type decides which name."""
    alternatives = _alternatives(certificate)
    if identity.kind == IdKind.DER_ASN1_DN:
        try:
            claimed = name_key(name_of(identity.data))
        except ValueError:
            return False
        return bool(claimed) and claimed == name_key(certificate.subject)
    if identity.kind in (IdKind.IPV4_ADDR, IdKind.IPV6_ADDR):
        return any(
            isinstance(name, x509.IPAddress)
            and isinstance(name.value, Address)
            and name.value.packed == identity.data
            for name in alternatives
        )
    try:
        text = identity.data.decode("ascii")
    except UnicodeError:
        return False
    if identity.kind == IdKind.FQDN and "*" not in text:
        return any(isinstance(n, x509.DNSName) and n.value.lower() == text.lower() for n in alternatives)
    if identity.kind == IdKind.RFC822_ADDR:
        return any(
            isinstance(n, x509.RFC822Name) and _mailbox(n.value) == _mailbox(text) for n in alternatives
        )
    return False


def _mailbox(text: str) -> tuple[str, str]:
    """RFC 5280 section 7.5: the host part in any case, the local part as it is."""
    local, _, host = text.rpartition("@")
    return local, host.lower()


def usages(certificate: x509.Certificate) -> frozenset[str] | None:
    """Extended key usages as dotted OIDs; None when it has no such extension."""
    try:
        value = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return frozenset(oid.dotted_string for oid in value)


# What a rule demands -------------------------------------------------------------------------------------


def unfit(method: AuthMethod, chain: Sequence[x509.Certificate]) -> str | None:
    """Why a chain (leaf first) is not what an entry of an authentication set asks for; None when it is."""
    leaf = chain[0]
    usage = usages(leaf)
    if usage is not None and not usage & IKE_USAGES:
        return (
            f"certificate {title(leaf)} is for other uses ({', '.join(sorted(usage))}), not for IPsec or TLS"
        )
    wanted = {*method.eku, SYSTEM_HEALTH} if method.health else set(method.eku)
    if missing := wanted - (usage or frozenset()):
        return f"certificate {title(leaf)} lacks the extended key usage {', '.join(sorted(missing))}"
    kind = signature.key_type(leaf.public_key())
    if kind is None:
        return f"the key of certificate {title(leaf)} has a type or curve that is not accepted"
    if method.signing is not None and kind != method.signing:
        return f"certificate {title(leaf)} has a key of {kind}, wanted is {method.signing}"
    for certificate in chain:
        key = certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < method.minimum_rsa_bits:
            return (
                f"certificate {title(certificate)} has an RSA key of {key.key_size} bits, "
                f"wanted are at least {method.minimum_rsa_bits}"
            )
    if method.ca is not None:
        wanted_name = name_key(distinguished_name(method.ca))
        above = {name_key(c.issuer) for c in chain} | {name_key(c.subject) for c in chain[1:]}
        if wanted_name not in above:
            return f"certificate {title(leaf)} does not come from {method.ca}"
    return None


# The two sides -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertificateProver:
    """Proves us with a host certificate."""

    host: HostCertificate
    scheme: signature.Scheme
    transcript: Transcript

    def step(self, token: Token | None) -> Step:
        """One token, no matter what the peer has sent."""
        data = signature.sign(self.host.key, self.scheme, self.transcript.octets)
        return Step(Token(data, self.scheme.method, self.host.sent))


@dataclass(frozen=True, slots=True)
class CertificateVerifier:
    """Checks the peer's certificate and signature. `announced` are the peer's signature hashes: a peer that
    knows RFC 7427 may not fall back to SHA-1."""

    methods: tuple[AuthMethod, ...]
    identity: Identity
    transcript: Transcript
    trust: Trust
    clock: Callable[[], float]
    announced: frozenset[int] = signature.ANNOUNCED

    def step(self, token: Token | None) -> Step:
        """The proven peer; raises `Declined`."""
        if token is None:
            raise Declined("the peer sent no proof")
        if token.method == signature.RSA_SHA1 and self.announced:
            raise Declined("the peer signed with RSA and SHA-1 although it announced better hashes")
        chain = self.trust.verify(token.certificates, self.clock())
        leaf = chain.leaf
        self._check_rule(chain)
        if not proves(leaf, self.identity):
            known = ", ".join(names(leaf)) or "nobody"
            raise Declined(
                f"the peer claims to be {self.identity}, but its certificate names {known}",
                "let the peer claim a name its certificate has, or issue one with that subjectAltName",
            )
        key = leaf.public_key()
        if not isinstance(key, PublicKey):
            raise Declined(f"the key of certificate {title(leaf)} has a type that is not accepted")
        scheme = signature.verify(key, token.method, token.data, self.transcript.octets)
        proven = (str(self.identity), *(name for name in names(leaf) if name != str(self.identity)))
        return Step(
            peer=Authenticated(
                self.identity,
                "certificate",
                f"host cert {title(leaf)} ({scheme.name})",
                chain.expires,
                proven,
            )
        )

    def _check_rule(self, chain: Chain) -> None:
        reasons = [unfit(method, chain.certificates) for method in self.methods]
        if None not in reasons:
            raise Declined(
                "; ".join(dict.fromkeys(reason for reason in reasons if reason)),
                "issue the peer a certificate as its rule's authentication set asks, or widen the set",
            )


def is_current(certificate: x509.Certificate, now: float) -> bool:
    """Whether it is valid at POSIX time `now`."""
    when = dt.datetime.fromtimestamp(now, dt.UTC)
    return certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc
