"""A security context of the GSS-API (RFC 2743) through python-gssapi, which is loaded when it is needed.

Everything the library says goes wrong is a `Failure`; what tokens may look like before it sees them is
checked here. `Context.step` and the makers of credentials may talk to the network and wait for it, so they
are only reached through a question that the shell answers in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ikd.auth import Declined
from sadb.secret import Secret

MOST_OCTETS = 65535  # of a token: what a payload can carry
MOST_TEXT = 300
_EMPTY = ("Success", "Unknown error")  # the library's texts for codes that mean nothing

KRB5 = "1.2.840.113554.1.2.2"
_KRB5_DER = bytes.fromhex("06092a864886f712010202")
_OTHERS = {
    bytes.fromhex("06062b0601050502"): "SPNEGO",
    bytes.fromhex("060a2b06010401823702020a"): "NTLM",
    bytes.fromhex("06092a864882f712010202"): "Microsoft's old Kerberos OID",
}
_LOGON_INFO = b"urn:mspac:logon-info"
_SESSION_KEY = "1.2.840.113554.1.2.2.5.5"  # GSS_C_INQ_SSPI_SESSION_KEY


class Failure(Exception):
    """The library refused. `minor` is the mechanism's code, 0 when it has none; `kind` the name of the
    routine error; `token` what the mechanism has for the peer."""

    def __init__(self, kind: str, minor: int, text: str, token: bytes = b"") -> None:
        super().__init__(text)
        self.kind = kind
        self.minor = minor
        self.token = token


def library() -> Any:
    """The gssapi package; raises `Declined` with what to install."""
    try:
        import gssapi
        import gssapi.raw
    except ImportError as error:
        raise Declined(
            f"Kerberos needs the Python package gssapi, which cannot be loaded: {clean(str(error))}",
            "pip install 'ikd[kerberos]'; on Debian it needs gcc, python3-dev and libkrb5-dev",
        ) from error
    return gssapi


def clean(text: str) -> str:
    """A text of the library, which may quote a peer, fit for a log line."""
    shown = "".join(char if char.isprintable() else "?" for char in text[: MOST_TEXT + 1])
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]}..."


@contextmanager
def _translated() -> Iterator[None]:
    """What the library raises, as `Failure`."""
    gssapi = library()
    try:
        yield
    except gssapi.exceptions.GSSError as error:
        minor = int(error.min_code or 0) & 0xFFFFFFFF
        try:
            # of both codes only the mechanism's text says anything
            text = "; ".join(error.get_all_statuses(error.min_code, False)) if minor else ""
        except (gssapi.exceptions.GSSError, ValueError):
            text = ""
        if text in _EMPTY:
            minor, text = 0, ""
        kind = type(error).__name__
        raise Failure(kind, minor, clean(text) or kind, bytes(error.token or b"")) from None
    except (ValueError, TypeError) as error:  # a name that is not UTF-8, for example
        raise Failure(type(error).__name__, 0, clean(str(error))) from None


def framed(data: bytes) -> None:
    """Check the frame of a first token (RFC 2743 section 3.1): that of Kerberos; raises `Declined`."""
    if data.startswith(b"NTLMSSP\x00"):
        raise Declined("the peer sent an NTLM message where Kerberos was agreed on")
    oid = data[_after_length(data) :]
    if data[:1] != b"\x60" or not oid.startswith(_KRB5_DER):
        other = next((name for der, name in _OTHERS.items() if oid.startswith(der)), None)
        raise Declined(
            f"the peer sent a token of {other}, not of Kerberos"
            if data[:1] == b"\x60" and other
            else "the peer sent octets that are no Kerberos token"
        )


def _after_length(data: bytes) -> int:
    """Where the contents of the outermost DER element begin."""
    first = data[1] if len(data) > 1 else 0
    return 2 + (first & 0x7F if first & 0x80 else 0)


def check_size(data: bytes) -> None:
    """Refuse what is no token before the library sees it; raises `Declined`. An empty one would be taken for
    none at all."""
    if not 0 < len(data) <= MOST_OCTETS:
        raise Declined(f"the peer sent a Kerberos token of {len(data)} octets")


# Credentials ---------------------------------------------------------------------------------------------


def name(text: str, *, service: bool = False) -> Any:
    """A name; `service` is SERVICE@HOST, whose realm the library finds."""
    gssapi = library()
    kind = gssapi.NameType.hostbased_service if service else gssapi.NameType.kerberos_principal
    with _translated():
        return gssapi.Name(text, kind)


def credential(usage: str, store: dict[str, str], principal: str | None = None) -> Any:
    """A credential out of files; for an initiator this may ask a KDC."""
    gssapi = library()
    owner = name(principal) if principal else None
    with _translated():
        return gssapi.Credentials(name=owner, usage=usage, mechs=[_oid(KRB5)], store=store)


def _oid(text: str) -> Any:
    return library().OID.from_int_seq(text)


# Context -------------------------------------------------------------------------------------------------


class Context:
    """One security context; no two threads may use it at once. Its methods raise `Failure`."""

    __slots__ = ("_context", "_initiator")

    def __init__(self, credentials: Any, target: Any = None) -> None:
        gssapi = library()
        flag = gssapi.RequirementFlag
        self._initiator = target is not None
        with _translated():
            if self._initiator:
                self._context = gssapi.SecurityContext(
                    name=target,
                    creds=credentials,
                    mech=_oid(KRB5),
                    usage="initiate",
                    flags=flag.mutual_authentication
                    | flag.confidentiality
                    | flag.integrity
                    | flag.replay_detection,
                )
            else:
                self._context = gssapi.SecurityContext(creds=credentials, usage="accept")
        # else a failing step returns a token as if all were well
        self._context.__DEFER_STEP_ERRORS__ = False

    def __repr__(self) -> str:
        return f"<Context {'initiator' if self._initiator else 'acceptor'}>"

    def step(self, data: bytes | None) -> bytes:
        """One token in, one out; empty when there is none to send."""
        with _translated():
            return bytes(self._context.step(data) or b"")

    @property
    def complete(self) -> bool:
        """Whether the peer is proven and keys are there."""
        return bool(self._context.complete)

    def missing(self) -> tuple[str, ...]:
        """What we need of a context and this one does not have."""
        flag = library().RequirementFlag
        needed = {
            "mutual authentication": flag.mutual_authentication,
            "confidentiality": flag.confidentiality,
            "integrity": flag.integrity,
        }
        if self._initiator:  # an acceptor has what the initiator asked for, and not all ask for this
            needed["replay detection"] = flag.replay_detection
        with _translated():
            actual = int(self._context.actual_flags)
        return tuple(word for word, bit in needed.items() if not actual & int(bit))

    def names(self) -> tuple[str, str]:
        """The initiator's and the acceptor's name."""
        with _translated():
            return str(self._context.initiator_name), str(self._context.target_name)

    def logon_info(self) -> bytes | None:
        """What Active Directory says of the initiator, in octets, if its signature was checked; None from
        other KDCs."""
        try:
            with _translated():
                found = library().raw.get_name_attribute(self._context.initiator_name, _LOGON_INFO)
        except Failure:
            return None
        return bytes(found.values[0]) if found.authenticated and found.values else None

    def lifetime(self) -> int:
        """Seconds that are left of the ticket."""
        with _translated():
            return int(self._context.lifetime or 0)

    def key(self) -> Secret:
        """The session key: the acceptor's subkey if there is one."""
        with _translated():
            found = library().raw.inquire_sec_context_by_oid(self._context, _oid(_SESSION_KEY))
            return Secret(found[0])

    def wrap(self, data: bytes) -> bytes:
        """GSS_Wrap with confidentiality."""
        with _translated():
            return bytes(self._context.wrap(data, True).message)

    def unwrap(self, data: bytes) -> tuple[bytes, bool]:
        """GSS_Unwrap: the message, and whether it was encrypted."""
        with _translated():
            result = self._context.unwrap(data)
            return bytes(result.message), bool(result.encrypted)
