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

from ikd.auth import Declined
from ikd.auth.facts import title
from ikd.auth.identity import NameKey, name_key
from ikd.auth.signature import PublicKey

_REMEMBERED = 4096  # certificates looked up


class CrlCheck(Enum):
    """How strict revocation is (MS-FASP section 2.2.42)."""

    NONE = "none"
    ATTEMPT = "attempt"  # refuse what a list revokes
    REQUIRE = "require"  # also refuse when no current list covers a certificate


class Revocation:
    """The loaded lists. What a list says of a certificate and whose signature it has is looked up once: a
    list may have a million entries, and a revoked peer may come every second."""

    __slots__ = ("_by_issuer", "_entries", "_mode", "_signed")

    def __init__(self, crls: Iterable[x509.CertificateRevocationList], mode: CrlCheck) -> None:
        self._mode = mode
        self._by_issuer: dict[NameKey, list[x509.CertificateRevocationList]] = {}
        # by id of a list, which we hold, and issuer or serial number; both only of verified chains
        self._signed: dict[tuple[int, x509.Certificate], bool] = {}
        self._entries: dict[tuple[int, int], dt.datetime | None] = {}
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
            revoked = self._revoked(crl, certificate.serial_number)
            if revoked is not None:  # an old list does not un-revoke
                raise Declined(
                    f"certificate {title(certificate)} was revoked {revoked:%Y-%m-%d}",
                    "the peer needs a new certificate",
                    cause="revoked",
                )
            if crl.last_update_utc > now:
                until = min(until, crl.last_update_utc)
            elif crl.next_update_utc is None or now < crl.next_update_utc:
                current = True
                until = min(until, crl.next_update_utc or until)
        if self._mode is CrlCheck.REQUIRE and not current:
            raise Declined(
                f"no current revocation list of {title(issuer)} is loaded",
                'add a fresh list to identity.crls and reload, or set crl_check = "attempt"',
                cause="no-revocation-list",
            )
        return until

    def _revoked(self, crl: x509.CertificateRevocationList, serial: int) -> dt.datetime | None:
        key = id(crl), serial
        if key not in self._entries:
            entry = crl.get_revoked_certificate_by_serial_number(serial)
            if len(self._entries) >= _REMEMBERED:
                self._entries.clear()
            self._entries[key] = entry.revocation_date_utc if entry is not None else None
        return self._entries[key]

    def _is_signed(self, crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
        key = id(crl), issuer
        if key not in self._signed:
            if len(self._signed) >= _REMEMBERED:
                self._signed.clear()
            self._signed[key] = _fits(crl, issuer)
        return self._signed[key]


def _fits(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether the issuer signed this list, and may."""
    key = issuer.public_key()
    try:
        if not issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign:
            return False
    except x509.ExtensionNotFound:
        pass
    try:
        return isinstance(key, PublicKey) and crl.is_signature_valid(key)
    except (UnsupportedAlgorithm, TypeError, ValueError):
        return False
