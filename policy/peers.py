"""Who may use a rule: proven names against the rule's `peer`, `deny` and `allow`.

`peer` is what the other end must prove to be; without it every identity that the authentication proves (a
certificate of a trusted authority, a pre-shared key) is accepted. Then `deny` refuses, then `allow`, if there
is one, must match. A pattern matches only names of its own form, so that a mail address in a certificate
never passes for a host of that domain: distinguished names, user@name, addresses, `keyid:`, `group:`, and
host names, for which `host/NAME` is another spelling. `*` stands for any characters of a name, `?` for one;
not in groups, which are whole names or SIDs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from ipaddress import ip_address

from policy.rules import AccessList, Rule

GROUP = "group:"  # before what a peer belongs to, among the names it has proven
_CACHED = 512  # names read; patterns come again and again, a stranger's name seldom


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether somebody may use a rule, and why not; the reason is for the administrator of this host only."""

    admitted: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.admitted


class Form(Enum):
    """What kind of name a text is."""

    ADDRESS = "address"
    DN = "distinguished name"
    GROUP = "group"
    HOST = "host name"
    KEY_ID = "key identifier"
    MAIL = "user@name"
    PRINCIPAL = "principal"


def admits(rule: Rule, names: Sequence[str], users: Sequence[str] = ()) -> Verdict:
    """Whether a peer that proved to be `names` (by the first authentication) and `users` (by the second) may
    use the rule. Fails closed: a rule that lists machines or users admits nobody who proved none."""
    shown = _shown(names) or "nobody"
    if rule.peer is not None and not matches_any((rule.peer,), names):
        text = f'rule "{rule.name}" expects peer "{rule.peer}", the other end proved to be {shown}'
        return Verdict(False, text)
    deny = rule.deny or AccessList()
    if deny.machines and not names:
        return Verdict(False, f'rule "{rule.name}" asks for a machine, and none was proven')
    if _denied(deny.machines, names) or _denied(deny.users, users):
        return Verdict(False, f'rule "{rule.name}" denies {shown}')
    allow = rule.allow or AccessList()
    if allow.machines and not matches_any(allow.machines, names):
        return Verdict(False, f'rule "{rule.name}" does not allow {shown}')
    if (allow.users or deny.users) and not users:
        return Verdict(False, f'rule "{rule.name}" asks for a user, and none was proven')
    if allow.users and not matches_any(allow.users, users):
        return Verdict(False, f'rule "{rule.name}" does not allow user {_shown(users)}')
    return Verdict(True)


def _denied(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """In any case of letters: to Active Directory Clerk@CORP is clerk@CORP; a ticket has what was typed."""
    return matches_any(map(str.lower, patterns), [name.lower() for name in names])


def _shown(names: Sequence[str]) -> str:
    """Names for a message; what somebody belongs to would be a long list."""
    return ", ".join(name for name in names if not name.startswith(GROUP))


def matches_any(patterns: Iterable[str], names: Sequence[str]) -> bool:
    """Whether one of the patterns fits one of the names."""
    for pattern in patterns:
        for name in names:
            if matches(pattern, name):
                return True
    return False


@lru_cache(maxsize=_CACHED)
def matches(pattern: str, name: str) -> bool:
    """Whether a pattern fits a name; `*` alone fits every name."""
    if pattern.strip() == "*":
        return bool(name)
    (wanted, expected), (found, given) = classify(pattern), classify(name)
    if wanted is not found:
        return False
    if wanted is Form.GROUP:
        return expected == given
    if wanted is Form.DN:
        return _same_name(expected, given)
    return _glob(expected).fullmatch(given) is not None


@lru_cache(maxsize=_CACHED)
def classify(text: str) -> tuple[Form, str]:
    """The form of a name or pattern, and the text in the spelling that is compared."""
    text = text.strip()
    if text.lower().startswith("keyid:"):
        return Form.KEY_ID, text[6:]
    if text.lower().startswith(GROUP):
        return Form.GROUP, text[len(GROUP) :].strip().casefold()
    try:
        return Form.ADDRESS, str(ip_address(text))
    except ValueError:
        pass
    if "=" in text:
        return Form.DN, text
    if "\\" in text or ("/" in text and ("@" in text or not text.lower().startswith("host/"))):
        return Form.PRINCIPAL, text.lower()
    if text.startswith("@"):
        text = text[1:]
    elif "@" in text:
        user, _, domain = text.rpartition("@")
        return Form.MAIL, f"{user}@{domain.lower()}"
    return Form.HOST, text.lower().removeprefix("host/").rstrip(".")


@lru_cache(maxsize=_CACHED)
def _glob(pattern: str) -> re.Pattern[str]:
    # fnmatch's expressions do not backtrack, whatever name a peer brings; its [sets] are not ours
    return re.compile(translate(pattern.replace("[", "[[]")))


def _same_name(pattern: str, name: str) -> bool:
    """Distinguished names fit when they have the same attributes with fitting values in the same order. Both
    orders of writing are in use (RFC 4514 puts the most specific first, some tools last), so either fits."""
    wanted, given = distinguished(pattern), distinguished(name)
    if not wanted or len(wanted) != len(given):
        return False
    return any(all(map(_same_part, wanted, order)) for order in (given, given[::-1]))


def _same_part(wanted: tuple[tuple[str, str], ...], given: tuple[tuple[str, str], ...]) -> bool:
    return len(wanted) == len(given) and all(
        kind == other and _glob(value).fullmatch(text)
        for (kind, value), (other, text) in zip(wanted, given, strict=True)
    )


_OID = {
    "2.5.4.3": "cn", "2.5.4.6": "c", "2.5.4.7": "l", "2.5.4.8": "st", "2.5.4.10": "o", "2.5.4.11": "ou",
    "0.9.2342.19200300.100.1.25": "dc", "0.9.2342.19200300.100.1.1": "uid",
    "1.2.840.113549.1.9.1": "e", "emailaddress": "e", "s": "st",
}  # fmt: skip


@lru_cache(maxsize=_CACHED)
def distinguished(text: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """A distinguished name (RFC 4514) as its parts, each a sorted set of attribute and value, without case
    and repeated spaces; empty when it is not one."""
    parts = []
    for part in _split(text, ","):
        pairs = []
        for one in _split(part, "+"):
            kind, equals, value = one.partition("=")
            if not equals or not kind.strip():
                return ()
            kind = kind.strip().lower().removeprefix("oid.")
            plain = re.sub(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)", _unescape, value.strip())
            pairs.append((_OID.get(kind, kind), " ".join(plain.lower().split())))
        parts.append(tuple(sorted(pairs)))
    return tuple(parts)


def _split(text: str, at: str) -> list[str]:
    """At a separator that no backslash escapes."""
    return [part for part in re.findall(rf"(?:\\.|[^\\{at}])+", text, re.DOTALL) if part.strip()]


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        return bytes.fromhex(match[1].replace("\\", "")).decode("utf-8", "replace")
    return match[2]
