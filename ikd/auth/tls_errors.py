"""Why a TLS handshake failed and what to do about it: the library's words as words for the administrator.

What the library refuses in a peer's certificate is told as IKE tells it; what the peer refused in ours comes
as an alert (RFC 5246 section 7.2.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509
from OpenSSL import SSL, crypto

from ikd.auth import Declined
from ikd.auth.chain import Trust, parse
from ikd.auth.facts import claimed, is_authority, shown, title

_Codes = SSL.X509VerificationCodes
_UNTRUSTED = frozenset(
    (
        _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT,
        _Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT,
        _Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN,
        _Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
        _Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    )
)
_VERIFY_FAILED = "certificate verify failed"

_Row = tuple[str, str]
_PEER_WHY = "`ikctl why` of the peer says more"
_ALERTS: dict[str, _Row] = {
    "unknown ca": (
        "the peer does not trust the issuer of our certificate",
        "add our CA to the peer's trusted authorities, or our intermediate certificates to "
        "identity.certificate",
    ),
    "certificate expired": (
        "the peer says that our certificate has expired",
        "renew it; if it is new, compare the clocks of both hosts",
    ),
    "certificate revoked": ("the peer says that our certificate was revoked", "issue this host another"),
    "certificate unknown": ("the peer does not accept our certificate", _PEER_WHY),
    "bad certificate": ("the peer does not accept our certificate", _PEER_WHY),
    "unsupported certificate": (
        "the peer has no use for a certificate like ours",
        "give this host one with the extended key usages and the kind of key that the peer wants",
    ),
    "access denied": (
        "our certificate is good, but not what the peer's rule asks for",
        "compare the authentication sets of both hosts' rules",
    ),
    "handshake failure": (
        "the peer cannot agree with us: it wants another cipher suite, or a certificate that we did not send",
        "compare the kinds of key and the cipher suites of both hosts; " + _PEER_WHY,
    ),
    "protocol version": ("the peer does not speak TLS 1.2", "let the peer enable TLS 1.2"),
    "insufficient security": ("the peer wants stronger ciphers or keys", _PEER_WHY),
    "decrypt error": ("the peer could not verify what we signed, or a message was altered", _PEER_WHY),
    "bad record mac": ("a message of ours was altered on the way", _PEER_WHY),
}
_NO_COMMON: _Row = (
    "the peer and this host have no cipher suite, key exchange or signature in common",
    "compare the kinds of key of both hosts' certificates; old peers may need RSA and old suites",
)
_NO_VERSION: _Row = ("the peer does not speak TLS 1.2", "let the peer enable TLS 1.2")
_REASONS: dict[str, _Row] = {
    "peer did not return a certificate": (
        "the peer has sent no certificate, and one is wanted",
        "give the peer a certificate, and name it under [identity] in its ikd.toml",
    ),
    "unsupported protocol": _NO_VERSION,
    "wrong version number": _NO_VERSION,
    "no shared cipher": _NO_COMMON,
    "wrong cipher returned": _NO_COMMON,
    "no suitable signature algorithm": _NO_COMMON,
    "no shared signature algorithms": _NO_COMMON,
    "no suitable groups": _NO_COMMON,
    "bad signature": ("the peer's signature does not fit its certificate", _PEER_WHY),
}


@dataclass(slots=True)
class Objection:
    """The first certificate of a peer that the library did not accept, as DER, and its code for why."""

    code: int = 0
    certificate: bytes = b""


def explain(error: SSL.Error, objection: Objection, trust: Trust, now: float, alert: bytes = b"") -> Declined:
    """A failed handshake in words, at POSIX time `now`; `alert` is what the library has for the peer."""
    if isinstance(error, SSL.ZeroReturnError):  # close_notify
        return Declined("the peer gave up", _PEER_WHY)
    said = reason_of(error)
    if said == _VERIFY_FAILED and objection.code:
        found = _of_certificate(objection, trust, now)
        found.token = alert
        return found
    if match := re.search(r"\balert (.+)", said):
        reason, remedy = _ALERTS.get(
            match[1], (f"the peer broke off the TLS handshake: {match[1]}", _PEER_WHY)
        )
        return Declined(reason, remedy, alert)
    known = _REASONS.get(said)
    if known is None:
        return Declined(f"the peer's TLS messages make no sense or were altered ({shown(said)})", "", alert)
    return Declined(*known, alert)


def reason_of(error: SSL.Error | crypto.Error) -> str:
    """The last thing the library says."""
    try:
        return str(error.args[0][-1][2])
    except (IndexError, TypeError):
        return "no reason given"


def _of_certificate(objection: Objection, trust: Trust, now: float) -> Declined:
    try:
        certificate = parse(objection.certificate)
    except Declined as declined:
        return declined
    if objection.code in _UNTRUSTED:
        found = trust.untrusted(certificate)
    else:
        found = trust.fault(certificate, now) or _unacceptable(certificate, objection.code)
    found.claimed = "" if is_authority(certificate) else claimed(certificate)
    return found


def _unacceptable(certificate: x509.Certificate, code: int) -> Declined:
    names = {value: name for name, value in vars(_Codes).items() if name.startswith("ERR_")}
    why = names.get(code, f"code {code}").removeprefix("ERR_").replace("_", " ").lower()
    return Declined(f"certificate {title(certificate)} is not acceptable: {why}")
