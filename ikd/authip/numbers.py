"""Numbers of AuthIP and their names: MS-AIPS sections 2.2.1 and 2.2.3. What it has from IKEv1 is in
`ikd.isakmp.numbers`."""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAIN_MESSAGE_ID = 0
EXTENDED_MESSAGE_ID = 1
CRYPTO = 133  # the payload in front of every message, which the channel writes and reads


class Exchange(IntEnum):
    """Exchange types, section 2.2.1."""

    MAIN = 243
    QUICK = 244
    EXTENDED = 245
    NOTIFY = 246


class Method(IntEnum):
    """Authentication methods of an AUTH payload, section 2.2.3.4; 9 and 10 are those of the Windows Filtering
    Platform (OQ-9)."""

    KERBEROS = 2
    ANONYMOUS = 3
    TLS = 4
    NTLM = 5
    TLS_ECDSA_256 = 9
    TLS_ECDSA_384 = 10


TLS = frozenset({Method.TLS, Method.TLS_ECDSA_256, Method.TLS_ECDSA_384})
NEEDS_DH = frozenset({Method.ANONYMOUS, Method.NTLM})  # section 3.2.4


class GssFlags(IntFlag):
    """Flags of a GSS-API payload, section 2.2.3.1."""

    NEW = 0x01  # a new authentication exchange begins
    IMPERSONATION = 0x02  # the principal is a user
    RETRY = 0x04  # the same method again, with another credential
    EXPLICIT = 0x08  # explicitly supplied credentials
    COMPLETE = 0x10  # the responder's side has finished


class N(IntEnum):
    """Notify message types, section 2.2.3.5."""

    NO_PROPOSAL_CHOSEN = 14
    EXCHANGE_INFO = 40005
    STATUS = 40020
    DOS_COOKIE = 40021
    ACK = 40022
    QM_SYNCHRONIZE = 40023
    ACQUIRE = 40024


OLD_DOS_COOKIE = 40004  # as IKEv1 numbers it


class Subject(IntEnum):
    """Protocol IDs of a notify: what it is about, section 2.2.3.5."""

    MAIN = 1
    QUICK = 2


RELIABLE = 0x01  # flag of a notify: it is to be acknowledged


class Status(IntEnum):
    """Windows error codes that we send; all that are known are in `ikd.riders.windows_status`."""

    AUTH_FAIL = 13801
    TIMED_OUT = 13805
    SA_DELETED = 13807
    POLICY_CHANGE = 13849
    KERBEROS_ERROR = 13827
    PROCESS_ERROR = 13829
    INVALID_PAYLOAD = 13843
    POLICY_MATCH = 13868
    INVALID_HASH = 13870
    QM_LIMIT = 13884
    MM_EXPIRED = 13885
    INVALID_AUTH_PAYLOAD = 13889
    SHUTTING_DOWN = 13891


# Names and words -------------------------------------------------------------------------------------------

METHOD_NAMES: dict[int, str] = {
    Method.KERBEROS: "Kerberos",
    Method.ANONYMOUS: "anonymous",
    Method.TLS: "certificate (TLS)",
    Method.NTLM: "NTLMv2",
    Method.TLS_ECDSA_256: "certificate (TLS, ECDSA P-256)",
    Method.TLS_ECDSA_384: "certificate (TLS, ECDSA P-384)",
}
_EXCHANGES = {
    Exchange.MAIN: "AuthIP MAIN",
    Exchange.QUICK: "AuthIP QUICK",
    Exchange.EXTENDED: "AuthIP EXTENDED",
    Exchange.NOTIFY: "AuthIP NOTIFY",
}
_NOTIFIES = {int(one): one.name for one in N}


def exchange_name(number: int) -> str:
    """The name of an exchange type, with its number when there is none."""
    return _EXCHANGES.get(number) or f"exchange {number}"  # type: ignore[call-overload]


def notify_name(number: int) -> str:
    """The name of a notify type, with its number when there is none."""
    return _NOTIFIES.get(number) or f"notify {number}"


def method_name(number: int) -> str:
    """An authentication method for people."""
    return METHOD_NAMES.get(number) or f"method {number}"
