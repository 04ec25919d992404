"""Why Kerberos failed and what to do about it: the library's codes as words for the administrator.

The codes are those of RFC 4120 section 7.5.9 and of MIT's library, which reports what goes wrong with a
ticket where the ticket is fetched, so a code and the stage it came in decide together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ikd.auth import Declined
from ikd.auth.gss import Failure

_BASE = 0x96C73A00  # of the error table "krb5"; RFC 4120's codes are its first 128


class Stage(Enum):
    """What we were doing."""

    OBTAIN = "getting a ticket"
    ACCEPT = "checking the peer's ticket"
    REPLY = "checking the peer's reply"
    MESSAGE = "unwrapping a message"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names for the texts: where our credential is, who we are, whom we want to reach."""

    place: str
    ours: str = ""
    target: str = ""


_CLOCKS = "set the clock of {whose} by NTP; Kerberos allows 5 minutes (clockskew in krb5.conf)"
_WRITE_ANEW = (
    "write the keytab anew: kadmin -q 'ktadd -k {file} {ours}' (Active Directory: ktpass or adcli update)"
)
_KDC_LOG = "look into the KDC's log"
_ON_THE_PEER = "look into the peer's log; `ikctl why` of the peer says more"

# stage and code: what happened, what to do
_Row = tuple[str, str]
_TABLE: dict[tuple[Stage, int], _Row] = {
    (Stage.OBTAIN, 6): (
        "the KDC does not know {ours}",
        "create the principal and write its key into the keytab, or correct identity.keytab",
    ),
    (Stage.OBTAIN, 7): (
        "the KDC does not know the service {target}",
        "create it: kadmin -q 'addprinc -randkey {target}' (Active Directory: setspn), or correct `peer` of "
        "the rule",
    ),
    (Stage.OBTAIN, 12): ("the KDC's policy forbids a ticket for {target}", _KDC_LOG),
    (Stage.OBTAIN, 14): (
        "the KDC has no key of an encryption type that both know",
        "give both principals aes256-cts-hmac-sha1-96 keys, and write the keytabs anew",
    ),
    (Stage.OBTAIN, 18): ("the KDC has locked {ours}", "enable the account in the KDC"),
    (Stage.OBTAIN, 23): ("the key of {ours} has expired in the KDC", _WRITE_ANEW),
    (Stage.OBTAIN, 24): ("{place} is out of date: its key for {ours} is not the KDC's", _WRITE_ANEW),
    (Stage.OBTAIN, 27): (
        "the KDC gives no ticket for {target} as a service",
        "allow it: kadmin -q 'modprinc +allow_svr {target}'",
    ),
    (Stage.OBTAIN, 31): ("{place} is out of date: its key for {ours} is not the KDC's", _WRITE_ANEW),
    (Stage.OBTAIN, 32): (
        "the ticket in {place} has expired",
        "get a new one: kinit; or let the daemon use a keytab, which renews by itself",
    ),
    (Stage.OBTAIN, 33): ("our ticket is not valid yet", _CLOCKS.format(whose="this host and the KDC")),
    (Stage.OBTAIN, 37): ("the KDC's clock is another", _CLOCKS.format(whose="this host and the KDC")),
    (Stage.OBTAIN, 148): ("the KDC's clock is another", _CLOCKS.format(whose="this host and the KDC")),
    (Stage.OBTAIN, 68): ("the KDC is not one of the realm of {ours}", "correct [realms] in krb5.conf"),
    (Stage.OBTAIN, 181): (
        "{place} does not exist, is empty or has no key for {ours}",
        "write it: kadmin -q 'ktadd -k {file} host/NAME', mode 0600, and name it as identity.keytab",
    ),
    (Stage.OBTAIN, 195): (
        "there is no ticket for {ours} in {place}",
        "get one: kinit; or let the daemon use a keytab",
    ),
    (Stage.ACCEPT, 31): (
        "the peer's ticket does not open with our key for {ours}",
        "either the token was altered on the way, or our keytab has the right version of another key: "
        + _WRITE_ANEW,
    ),
    (Stage.ACCEPT, 32): (
        "the peer's ticket has expired",
        "when the peer's clock is right, set ours by NTP; else the peer must get a new ticket",
    ),
    (Stage.ACCEPT, 33): ("the peer's ticket is not valid yet", _CLOCKS.format(whose="this host")),
    (Stage.ACCEPT, 34): (
        "the peer's token was used before: a replay",
        "nothing to mend on this host; somebody repeats what he has recorded",
    ),
    (Stage.ACCEPT, 35): (
        "{place} has no key for the name the peer's ticket is for",
        "write that key into the keytab, or correct the name under which the peer reaches this host",
    ),
    (Stage.ACCEPT, 37): ("the peer's clock and ours differ too much", _CLOCKS.format(whose="both hosts")),
    (Stage.ACCEPT, 39): ("the peer speaks another version of Kerberos", ""),
    (Stage.ACCEPT, 41): ("the peer's token was altered", _ON_THE_PEER),
    (Stage.ACCEPT, 44): (
        "{place} is out of date: the peer's ticket is for another version of our key",
        _WRITE_ANEW + "; a peer may keep its old ticket for hours",
    ),
    (Stage.ACCEPT, 45): ("{place} has no key of the encryption type of the peer's ticket", _WRITE_ANEW),
    (Stage.ACCEPT, 181): (
        "{place} does not exist or is empty",
        "write it: kadmin -q 'ktadd -k {file} {ours}', mode 0600, and name it as identity.keytab",
    ),
    (Stage.REPLY, 31): ("the peer's reply was altered, or the peer is not {target}", _ON_THE_PEER),
    (Stage.REPLY, 32): (
        "the peer says that our ticket has expired",
        "set the clocks of both hosts by NTP",
    ),
    (Stage.REPLY, 33): ("the peer says that our ticket is not valid yet", _CLOCKS.format(whose="the peer")),
    (Stage.REPLY, 34): (
        "the peer says that our token is a replay",
        "try again; are two hosts one principal?",
    ),
    (Stage.REPLY, 35): (
        "the peer has no key for {target}",
        "write the key of {target} into the peer's keytab",
    ),
    (Stage.REPLY, 37): (
        "the peer says that its clock and ours differ too much",
        _CLOCKS.format(whose="both hosts"),
    ),
    (Stage.REPLY, 44): (
        "the peer's keytab is out of date",
        "write the key of {target} into the peer's keytab anew",
    ),
    (Stage.REPLY, 46): ("the peer did not prove itself", _ON_THE_PEER),
}
_NO_KDC = "[realms] of krb5.conf must name the realm's KDCs; then see to port 88 of them, UDP and TCP"
_REPLAYS = "the daemon must be able to write into its state directory (daemon.state), else into /var/tmp"
_NO_RECORD: _Row = ("the record of used tokens cannot be written", _REPLAYS)
_ANYWHERE: dict[int, _Row] = {
    135: ("krb5.conf cannot be read", "mend /etc/krb5.conf, or what KRB5_CONFIG names"),
    136: ("krb5.conf has a mistake", "mend /etc/krb5.conf, or what KRB5_CONFIG names"),
    154: ("no KDC is known for a realm", _NO_KDC),
    156: ("no KDC answers", _NO_KDC),
    184: ("{place} cannot be read", "is it a file, and may the daemon read it?"),
    213: ("{place} is no keytab", "write it: kadmin -q 'ktadd -k {file} {ours}'"),
    220: ("no KDC is known for a realm", _NO_KDC),
    224: ("krb5.conf names no default realm", "set default_realm in [libdefaults] of krb5.conf"),
    230: ("{place} has no key of that version", _WRITE_ANEW),
    235: ("{place} is no keytab", "write it: kadmin -q 'ktadd -k {file} {ours}'"),
} | dict.fromkeys(range(164, 173), _NO_RECORD)
_LARGEST_ERRNO = 133
_NO_TOKEN: _Row = ("the peer sent octets that are no Kerberos token", "")
_KINDS: dict[str, _Row] = {  # GSS-API routine errors without a code of the mechanism
    "InvalidTokenError": _NO_TOKEN,
    "BadMechanismError": ("the peer sent a token of another mechanism", ""),
    "BadMICError": ("the peer's wrapped message was altered", _ON_THE_PEER),
    "DuplicateTokenError": ("the peer's wrapped message came before: a replay", ""),
    "ExpiredCredentialsError": (
        "the ticket in {place} has expired",
        "get a new one: kinit; or let the daemon use a keytab, which renews by itself",
    ),
    "ExpiredContextError": ("the ticket has expired meanwhile", ""),
}
_NO_TRUST: _Row = (
    "our KDC knows no way to the realm of {target}",
    "correct `peer` of the rule or [domain_realm] of krb5.conf, or let the two realms trust each other",
)


def explain(stage: Stage, failure: Failure, facts: Facts) -> Declined:
    """A refusal of the library in words, with its own behind them."""
    known = _KINDS.get(failure.kind) if stage is Stage.MESSAGE or not failure.minor else None
    if not (failure.minor or known) and stage in (Stage.ACCEPT, Stage.REPLY):
        known = _NO_TOKEN
    reason, remedy = known or _row(stage, failure)
    names = {
        "place": facts.place,
        "file": facts.place.split(" ")[-1],
        "ours": facts.ours or "our principal",
        "target": facts.target or "the peer",
    }
    said = "" if known else f" ({failure})"
    return Declined(reason.format(**names) + said, remedy.format(**names), failure.token)


def code_of(failure: Failure) -> int:
    """The code within the table "krb5", negative or large for others."""
    return failure.minor - _BASE


def _row(stage: Stage, failure: Failure) -> _Row:
    code = code_of(failure)
    if stage is Stage.OBTAIN and code == 7 and "krbtgt/" in str(failure):
        return _NO_TRUST
    if stage is Stage.ACCEPT and failure.minor <= _LARGEST_ERRNO:  # the keytab was read by then
        return _NO_RECORD
    return (
        _TABLE.get((stage, code))
        or _ANYWHERE.get(code)
        or (f"Kerberos failed in {stage.value}", _ON_THE_PEER if stage is Stage.MESSAGE else _KDC_LOG)
    )
