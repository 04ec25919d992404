"""Certificate authentication in IKEv2: proving with our host certificate, verifying the peer's.

The path to an anchor is `ikd.auth.chain`, the signature `ikd.auth.signature`; here are what a rule demands of
the leaf (RFC 4945 section 5), and whether the certificate names the identity the peer claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ikd.auth import Authenticated, Declined, Identity, Step, Token, Transcript, signature
from ikd.auth.chain import Trust
from ikd.auth.facts import Facts, key_hash, shown
from ikd.auth.groups import NO_GROUPS, Groups
from ikd.auth.health import SYSTEM_HEALTH
from ikd.auth.identity import distinguished_name, name_key
from ikd.auth.signature import PrivateKey
from policy.rules import AuthMethod

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
    """Our certificate with its intermediates (leaf first) and private key."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    sent: tuple[bytes, ...] = field(init=False, repr=False)  # DER, without self-signed roots
    facts: Facts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sent = tuple(
            certificate.public_bytes(Encoding.DER)
            for index, certificate in enumerate(self.chain)
            if index == 0 or certificate.subject != certificate.issuer
        )
        object.__setattr__(self, "sent", sent)
        object.__setattr__(self, "facts", Facts.of(self.chain))

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of `key`."""
        return self.chain[0]

    def authorities(self, anchors: Iterable[x509.Certificate]) -> frozenset[bytes]:
        """The keys it comes from, as far as we know them, in the form of a Certificate Request payload
        (RFC 7296 section 3.7)."""
        issuers = {name_key(certificate.issuer) for certificate in self.chain}
        known = (*self.chain[1:], *(anchor for anchor in anchors if name_key(anchor.subject) in issuers))
        return frozenset(map(key_hash, known))


# What a rule demands -------------------------------------------------------------------------------------


def unfit(method: AuthMethod, facts: Facts) -> str | None:
    """Why a chain is not what an entry of an authentication set asks for; None when it is."""
    usage, title = facts.usages, facts.title
    if usage is not None and not usage & IKE_USAGES:
        return (
            f"certificate {title} is for other uses ({shown(', '.join(sorted(usage)))}), not for IPsec or TLS"
        )
    if missing := set(method.eku) - (usage or frozenset()):
        return f"certificate {title} lacks the extended key usage {', '.join(sorted(missing))}"
    if method.health and facts.ailment:
        return f"certificate {title} {facts.ailment}"
    if facts.key is None or facts.key_type is None:
        return f"the key of certificate {title} has a type or curve that is not accepted"
    if method.signing is not None and facts.key_type != method.signing:
        return f"certificate {title} has a key of {facts.key_type}, wanted is {method.signing}"
    if facts.weakest is not None and facts.weakest[0] < method.minimum_rsa_bits:
        bits, whose = facts.weakest
        wanted_bits = method.minimum_rsa_bits
        return f"certificate {whose} has an RSA key of {bits} bits, wanted are at least {wanted_bits}"
    if method.ca is not None:
        try:
            authority = name_key(distinguished_name(method.ca))
        except ValueError as error:
            return f'certificate {title} cannot come from "{method.ca}": {error}'
        if authority not in facts.above:
            return f"certificate {title} does not come from {method.ca}"
    return None


def unfit_for_all(methods: tuple[AuthMethod, ...], facts: Facts) -> str | None:
    """Why a chain is not what any of these entries asks for; None when one of them takes it."""
    reasons = [unfit(method, facts) for method in methods]
    if None in reasons:
        return None
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or "certificate is not wanted"


def check_wanted(methods: tuple[AuthMethod, ...], facts: Facts) -> None:
    """Whether a peer's chain is what any of these entries asks for; raises `Declined`."""
    if reason := unfit_for_all(methods, facts):
        raise Declined(
            reason, "issue the peer a certificate as its rule's authentication set asks, or widen the set"
        )


def proven(identity: Identity, facts: Facts, how: str, groups: Groups, whose: str = "host") -> Authenticated:
    """A peer whose certificate is good, by the identity it claims or is known by; `how` it was proven, and
    `whose` certificate it is, are for people."""
    claimed = str(identity)
    peer = Authenticated(
        identity,
        "certificate",
        f"{whose} cert {facts.title} ({how})",
        facts.expires,
        (claimed, *(name for name in facts.names if name != claimed)),
        health=facts.ailment is None,
    )
    return groups.joined(peer)


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
    groups: Groups = NO_GROUPS

    def step(self, token: Token | None) -> Step:
        """The proven peer; raises `Declined`."""
        if token is None:
            raise Declined("the peer sent no proof")
        if token.method == signature.RSA_SHA1 and self.announced:
            raise Declined("the peer signed with RSA and SHA-1 although it announced better hashes")
        facts = self.trust.verify(token.certificates, self.clock()).facts
        check_wanted(self.methods, facts)
        if not facts.prove(self.identity):
            known = shown(", ".join(facts.names)) or "nobody"
            raise Declined(
                f"the peer claims to be {self.identity}, but its certificate names {known}",
                "let the peer claim a name its certificate has, or issue one with that subjectAltName",
                cause="wrong-identity",
            )
        if facts.key is None:
            raise Declined(f"the key of certificate {facts.title} has a type that is not accepted")
        scheme = self._verify(facts, token)
        return Step(peer=proven(self.identity, facts, scheme, self.groups))

    def _verify(self, facts: Facts, token: Token) -> str:
        """How the peer signed; raises `Declined`."""
        assert facts.key is not None
        return signature.verify(facts.key, token.method, token.data, self.transcript.octets).name
