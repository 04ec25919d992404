"""From a peer's certificate to a trust anchor: path validation (RFC 5280 section 6) and its memory.

The judge is `cryptography.x509.verification` under our extension policies. It says little when it refuses,
it knows neither Ed25519, Ed448 nor most RSASSA-PSS, and it loses its way among many certificates of one name;
so a small path walk of our own, with a budget, finds the reason of a refusal, and the one path to judge where
names are equal. Only for chains with those algorithms does the walk's acceptance count, and it is stricter
for them: name constraints and every critical extension it cannot judge are refused.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from ikd.auth import Declined
from ikd.auth.facts import Facts, claimed, is_authority, shown, title
from ikd.auth.identity import name_text
from ikd.auth.revocation import CrlCheck, Revocation
from ikd.auth.signature import key_type

MAX_CERTIFICATES = 16  # a peer may send
MAX_OCTETS = 16384  # of one certificate
MAX_DEPTH = 5  # intermediates between leaf and anchor
MINIMUM_RSA_BITS = 2048  # the library's floor; a rule may ask for more
MAXIMUM_RSA_BITS = 8192  # a verification costs with the square of it
MAXIMUM_RSA_EXPONENT = 2**32  # and with the length of this
_BUDGET = 24  # signatures one walk may verify
_REMEMBERED = 512  # chains

_STRONG_HASHES = frozenset(("sha256", "sha384", "sha512"))
_JUDGED = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    )
)


@dataclass(frozen=True, slots=True)
class Chain:
    """A verified path, leaf first, anchor last. The verdict holds from `since` until just before `until`,
    POSIX seconds."""

    certificates: tuple[x509.Certificate, ...]
    facts: Facts
    since: float
    until: float

    @property
    def leaf(self) -> x509.Certificate:
        """The peer's own certificate."""
        return self.certificates[0]


@lru_cache(maxsize=256)
def parse(data: bytes) -> x509.Certificate:
    """A certificate from DER, checked to be readable in every part we use and cheap to verify with; raises
    `Declined`."""
    if len(data) > MAX_OCTETS:
        raise Declined(f"the peer sent a certificate of {len(data)} octets; the limit is {MAX_OCTETS}")
    try:
        certificate = x509.load_der_x509_certificate(data)
        _ = (certificate.extensions, title(certificate), name_text(certificate.issuer))
        _ = (certificate.not_valid_after_utc, certificate.not_valid_before_utc)
        key = certificate.public_key()
    except Exception as error:  # hostile octets; the parser's complaints have no common base below Exception
        raise Declined(f"the peer sent a certificate that cannot be read: {shown(str(error))}") from error
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size > MAXIMUM_RSA_BITS:
            raise Declined(
                f"certificate {title(certificate)} has an RSA key of {key.key_size} bits; "
                f"the limit is {MAXIMUM_RSA_BITS}"
            )
        if key.public_numbers().e > MAXIMUM_RSA_EXPONENT:
            raise Declined(f"certificate {title(certificate)} has an RSA key with an absurd exponent")
    return certificate


class Trust:
    """Trust anchors and revocation lists, with the chains found good so far.

    An anchor that is not a CA is a pinned certificate: it is trusted as it is, without a revocation check.
    """

    __slots__ = ("_anchors", "_chains", "_revocation", "_store")

    def __init__(
        self,
        anchors: Sequence[x509.Certificate],
        crls: Iterable[x509.CertificateRevocationList] = (),
        crl_check: CrlCheck = CrlCheck.ATTEMPT,
    ) -> None:
        self._anchors = _Anchors(anchors)
        self._store = verification.Store(list(anchors)) if anchors else None
        self._revocation = Revocation(crls, crl_check)
        self._chains: dict[bytes, tuple[bytes, Chain]] = {}  # by leaf, with all it came with, oldest first

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """All of them."""
        return self._anchors.all

    def untrusted(self, certificate: x509.Certificate) -> Declined:
        """In words: the issuer of this certificate is none of the anchors."""
        return self._walk(0).untrusted(certificate) if self._store else _nobody_trusted()

    def fault(self, certificate: x509.Certificate, now: float) -> Declined | None:
        """What is wrong with one certificate alone, whatever its path, at POSIX time `now`."""
        try:
            self._walk(now).check(certificate)
        except Declined as declined:
            return declined
        return None

    def _walk(self, now: float) -> _Walk:
        return _Walk(self._anchors, (), dt.datetime.fromtimestamp(now, dt.UTC))

    def verify(self, presented: Sequence[bytes], now: float) -> Chain:
        """The path of the first of `presented` (DER) at POSIX time `now`; raises `Declined`."""
        if not presented:
            raise Declined(
                "the peer sent no certificate",
                "let the peer send its certificate (strongSwan: leftsendcert=always, send_cert = always)",
            )
        if len(presented) > MAX_CERTIFICATES:
            raise Declined(f"the peer sent {len(presented)} certificates; the limit is {MAX_CERTIFICATES}")
        digests = [hashlib.sha256(data).digest() for data in presented]
        leaf, everything = digests[0], b"".join(digests)
        known = self._chains.pop(leaf, None)
        if known is not None and known[0] == everything and known[1].since <= now < known[1].until:
            chain = known[1]
        else:
            chain = self._verify(presented, now)
        # Only good chains are kept, one per leaf: strangers cannot push others out, members hardly.
        self._chains[leaf] = everything, chain
        while len(self._chains) > _REMEMBERED:
            self._chains.pop(next(iter(self._chains)), None)
        return chain

    def _verify(self, presented: Sequence[bytes], now: float) -> Chain:
        """Without the memory."""
        when = dt.datetime.fromtimestamp(now, dt.UTC)
        leaf, *others = [parse(data) for data in dict.fromkeys(presented)]
        try:
            path = self._path(leaf, [other for other in others if other not in self._anchors], when)
            facts = Facts.of(path)
            until = min(self._revocation.check(path, when).timestamp(), facts.expires)
        except Declined as declined:
            declined.claimed = claimed(leaf)
            raise
        return Chain(tuple(path), facts, now, until)

    def _path(
        self, leaf: x509.Certificate, others: Sequence[x509.Certificate], when: dt.datetime
    ) -> list[x509.Certificate]:
        if self._store is None:
            raise _nobody_trusted()
        builder = verification.PolicyBuilder().store(self._store).time(when)
        builder = builder.max_chain_depth(MAX_DEPTH).extension_policies(
            ca_policy=_AUTHORITY_POLICY, ee_policy=_PEER_POLICY
        )
        path: list[x509.Certificate] = []
        if len({other.subject for other in others}) < len(others):
            # Equal names are a maze for the library: it gets the one path we found.
            path = _Walk(self._anchors, others, when).path(leaf)
            others = path[1:]
        try:
            return builder.build_client_verifier().verify(leaf, list(others)).chain
        except verification.VerificationError as error:
            path = path or _Walk(self._anchors, others, when).path(leaf)
            if _is_beyond_library(path):
                _check_extensions(path)
                return path
            raise Declined(f"certificate {title(leaf)} is not acceptable: {shown(str(error))}") from error


def _nobody_trusted() -> Declined:
    return Declined(
        "this host trusts no certificate authority",
        "name the CA's certificate in identity.trust of ikd.toml",
        cause="untrusted",
    )


# The library's policies ----------------------------------------------------------------------------------


def _peer_constraints(
    policy: verification.Policy, certificate: x509.Certificate, extension: x509.BasicConstraints | None
) -> None:
    if extension is not None and extension.ca:
        raise ValueError("a CA certificate is no peer's certificate")


def _peer_usage(
    policy: verification.Policy, certificate: x509.Certificate, extension: x509.KeyUsage | None
) -> None:
    # RFC 4945 section 5.1.3.2: either bit will do
    if extension is not None and not (extension.digital_signature or extension.content_commitment):
        raise ValueError("keyUsage allows no signatures")


def _authority_constraints(
    policy: verification.Policy, certificate: x509.Certificate, extension: x509.BasicConstraints
) -> None:
    if not extension.ca:
        raise ValueError("the issuer is not a CA")


def _authority_usage(
    policy: verification.Policy, certificate: x509.Certificate, extension: x509.KeyUsage | None
) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError("the issuer may not sign certificates")


_ANY = verification.Criticality.AGNOSTIC
_PEER_POLICY = (
    verification.ExtensionPolicy.permit_all()
    .may_be_present(x509.BasicConstraints, _ANY, _peer_constraints)
    .may_be_present(x509.KeyUsage, _ANY, _peer_usage)
)
_AUTHORITY_POLICY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, _ANY, _authority_constraints)
    .may_be_present(x509.KeyUsage, _ANY, _authority_usage)
)


def _is_beyond_library(path: Sequence[x509.Certificate]) -> bool:
    """Whether the library refuses this path for its algorithms alone."""
    return any(
        isinstance(certificate.public_key(), ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
        for certificate in path
    ) or any(
        certificate.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS for certificate in path[:-1]
    )


# The walk ------------------------------------------------------------------------------------------------


class _Anchors:
    """The trust anchors, found by name: there may be as many as a distribution ships."""

    __slots__ = ("_by_subject", "all")

    def __init__(self, anchors: Sequence[x509.Certificate]) -> None:
        self.all = tuple(anchors)
        self._by_subject: dict[x509.Name, list[x509.Certificate]] = {}
        for anchor in anchors:
            self._by_subject.setdefault(anchor.subject, []).append(anchor)

    def __contains__(self, certificate: x509.Certificate) -> bool:
        return certificate in self.named(certificate.subject)

    def named(self, subject: x509.Name) -> Sequence[x509.Certificate]:
        """Those of a subject."""
        return self._by_subject.get(subject, ())

    def __str__(self) -> str:
        return "; ".join(title(anchor) for anchor in self.all[:8])


class _Walk:
    """One search for a path; its refusals say why."""

    def __init__(self, anchors: _Anchors, others: Sequence[x509.Certificate], when: dt.datetime) -> None:
        self.anchors = anchors
        self.others = others
        self.when = when
        self.budget = _BUDGET

    def path(self, leaf: x509.Certificate) -> list[x509.Certificate]:
        """Leaf to anchor; raises `Declined`."""
        if is_authority(leaf):
            raise Declined(
                f"the peer presented the CA certificate {title(leaf)} as its own",
                "give the peer a host certificate",
            )
        self.check(leaf)
        usage = _usage(leaf)
        if usage is not None and not (usage.digital_signature or usage.content_commitment):
            raise Declined(f"keyUsage of certificate {title(leaf)} allows no signatures")
        return [leaf] if leaf in self.anchors else self._climb(leaf)

    def _climb(self, leaf: x509.Certificate) -> list[x509.Certificate]:
        """From issuer to issuer, the shortest way, each certificate once; the first refusal wins."""
        refusals: list[Declined] = []
        reached = {leaf}
        pending = [[leaf]]
        for path in pending:  # grows while we walk
            found = False
            for issuer in self._issuers(path[-1]):
                if found and _is_other_key(path[-1], issuer):
                    break
                if issuer in reached:
                    found = True
                    continue
                try:
                    self._check_issuer(issuer, path)
                except Declined as declined:
                    refusals.append(declined)
                    continue
                if issuer in self.anchors:
                    return [*path, issuer]
                found = True
                reached.add(issuer)
                pending.append([*path, issuer])
        raise refusals[0] if refusals else self.untrusted(pending[-1][-1])

    def _issuers(self, child: x509.Certificate) -> list[x509.Certificate]:
        """Certificates of its issuer's name: the right key identifier first, then anchors before others."""
        found = [*self.anchors.named(child.issuer), *(o for o in self.others if o.subject == child.issuer)]
        return sorted(found, key=lambda issuer: _is_other_key(child, issuer))

    def untrusted(self, child: x509.Certificate) -> Declined:
        """No issuer of this one is known."""
        return Declined(
            f"issuer {shown(name_text(child.issuer))} of certificate {title(child)} is not trusted; "
            f"trusted are: {self.anchors}",
            "add the issuing CA to identity.trust, or let the peer send the intermediate certificates",
            cause="untrusted",
        )

    def _check_issuer(self, issuer: x509.Certificate, path: list[x509.Certificate]) -> None:
        """Whether `issuer` may and did sign the last certificate of `path`."""
        child = path[-1]
        if not is_authority(issuer):
            raise Declined(f"issuer {title(issuer)} of certificate {title(child)} is not a CA")
        usage = _usage(issuer)
        if usage is not None and not usage.key_cert_sign:
            raise Declined(f"keyUsage of {title(issuer)} does not allow signing certificates")
        limit = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        below = sum(1 for c in path[1:] if c.subject != c.issuer)
        if (limit is not None and below > limit) or len(path) > MAX_DEPTH + 1:
            raise Declined(f"the chain below {title(issuer)} is too long")
        self.check(issuer)
        self.budget -= 1
        if self.budget < 0:
            raise Declined("the peer's certificates form too many paths")
        try:
            child.verify_directly_issued_by(issuer)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
            raise Declined(
                f"certificate {title(child)} names {title(issuer)} as its issuer, whose key did not sign it",
                "the CA was perhaps made anew under the same name; compare its certificate on both hosts",
            ) from error

    def check(self, certificate: x509.Certificate) -> None:
        """Validity, key and signature hash of one certificate; raises `Declined`."""
        name = title(certificate)
        if self.when > certificate.not_valid_after_utc:
            raise Declined(
                f"certificate {name} expired {certificate.not_valid_after_utc:%Y-%m-%d}",
                "renew it; if it is new, compare the clocks of both hosts",
                cause="expired",
            )
        if self.when < certificate.not_valid_before_utc:
            raise Declined(
                f"certificate {name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M}",
                "compare the clocks of both hosts",
                cause="not-valid-yet",
            )
        key = certificate.public_key()
        if key_type(key) is None:
            raise Declined(f"the key of certificate {name} has a type or curve that is not accepted")
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < MINIMUM_RSA_BITS:
            raise Declined(
                f"certificate {name} has an RSA key of {key.key_size} bits, "
                f"wanted are at least {MINIMUM_RSA_BITS}"
            )
        if certificate not in self.anchors:  # nobody relies on an anchor's own signature
            _check_hash(certificate)


def _check_hash(certificate: x509.Certificate) -> None:
    """Refuse what is signed with a hash that is too weak."""
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise Declined(f"certificate {title(certificate)} is signed with an unknown algorithm") from error
    if digest is not None and digest.name not in _STRONG_HASHES:
        raise Declined(
            f"certificate {title(certificate)} is signed with {digest.name}, which is too weak",
            "issue it anew with SHA-2",
        )


def _check_extensions(path: Sequence[x509.Certificate]) -> None:
    """Refuse what the library would have judged and the walk cannot."""
    for certificate in path:
        for extension in certificate.extensions:
            constrained = extension.oid == ExtensionOID.NAME_CONSTRAINTS
            if constrained or (extension.critical and extension.oid not in _JUDGED):
                raise Declined(
                    f"certificate {title(certificate)} has extension {extension.oid.dotted_string}, "
                    "not evaluated here",
                    "for chains with name constraints use RSA or ECDSA keys throughout",
                )


def _is_other_key(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key identifiers say that another certificate of this name is the issuer (a hint only)."""
    try:
        wanted = child.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        return wanted != issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return False


def _usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
