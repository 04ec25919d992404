"""Certificate revocation lists (RFC 5280 section 5) as loaded data; nothing is fetched here.

Delta, indirect and partitioned lists (those with critical extensions) are not used.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ikd.auth import Declined
from ikd.auth.identity import name_key, name_text
from ikd.auth.signature import PublicKey


class CrlCheck(Enum):
    """How strict revocation is (policy.md section 7)."""

    NONE = "none"
    ATTEMPT = "attempt"  # refuse what a list revokes
    REQUIRE = "require"  # also refuse when no current list covers a certificate


class Revocation:
    """The loaded lists. A list's signature is verified once, by the first issuer that fits."""

    __slots__ = ("_by_issuer", "_mode", "_signed")

    def __init__(self, crls: Iterable[x509.CertificateRevocationList], mode: CrlCheck) -> None:
        self._mode = mode
        self._by_issuer: dict[object, list[x509.CertificateRevocationList]] = {}
        self._signed: dict[int, bytes] = {}  # id of a list we hold -> the issuer key that signed it
        for crl in crls:
            if not any(extension.critical for extension in crl.extensions):
                self._by_issuer.setdefault(name_key(crl.issuer), []).append(crl)

    def check(self, chain: Sequence[x509.Certificate], now: dt.datetime) -> dt.datetime:
        """Check each certificate of a verified chain (leaf first) against its issuer's lists; returns until
        when the verdict holds, raises `Declined`."""
        until = dt.datetime.max.replace(tzinfo=dt.UTC)
        if self._mode is CrlCheck.NONE:
            return until
        for certificate, issuer in pairwise(chain):
            until = min(until, self._check(certificate, issuer, now))
        return until

    def _check(
        self, certificate: x509.Certificate, issuer: x509.Certificate, now: dt.datetime
    ) -> dt.datetime:
        until = dt.datetime.max.replace(tzinfo=dt.UTC)
        current = False
        for crl in self._by_issuer.get(name_key(issuer.subject), ()):
            if not self._is_signed(crl, issuer):
                continue
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is not None:  # an old list does not un-revoke
                name = name_text(certificate.subject)
                raise Declined(
                    f"certificate {name} was revoked {entry.revocation_date_utc:%Y-%m-%d}",
                    "the peer needs a new certificate",
                )
            if crl.last_update_utc > now:
                until = min(until, crl.last_update_utc)
            elif crl.next_update_utc is None or now < crl.next_update_utc:
                current = True
                until = min(until, crl.next_update_utc or until)
        if self._mode is CrlCheck.REQUIRE and not current:
            raise Declined(
                f"no current revocation list of {name_text(issuer.subject)} is loaded",
                'add a fresh list to identity.crls and reload, or set crl_check = "attempt"',
            )
        return until

    def _is_signed(self, crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
        key = issuer.public_key()
        data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if self._signed.get(id(crl)) == data:
            return True
        if not isinstance(key, PublicKey):
            return False
        try:
            usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
            if not usage.crl_sign:
                return False
        except x509.ExtensionNotFound:
            pass
        try:
            if not crl.is_signature_valid(key):
                return False
        except (UnsupportedAlgorithm, TypeError, ValueError):
            return False
        self._signed[id(crl)] = data
        return True
