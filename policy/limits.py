"""What a policy file may say and this build does not do as written, said when a rule asks for it.

A rule that would be weaker or emptier than written is refused while it is enabled; one that is enforced in
another way than written loads with a warning. The model and the file format hold all of it already.
"""

from __future__ import annotations

from typing import NamedTuple

from policy.rules import Rule, Tunnel
from policy.section import Section
from sadb.sa import Level


class Limit(NamedTuple):
    """A level that is not enforced as written: the key, the level, and what happens instead."""

    key: str
    level: Level
    text: str


LIMITS = (
    Limit(
        "outbound",
        Level.REQUEST,
        'outbound "request" does not fall back to clear text: packets, answers among them, wait for keys and '
        "are dropped when negotiation fails. Only after a crash of the daemon do they pass in the clear",
    ),
    Limit(
        "inbound",
        Level.REQUEST,
        'inbound "request" accepts packets in the clear, also of a flow that was protected before, and '
        "starts no negotiation because of them",
    ),
    Limit(
        "outbound",
        Level.NONE,
        'outbound "none" starts no negotiation, but what this end sends, answers among it, is dropped '
        "until the other end has started one",
    ),
)

_INTERFACE = "not available yet: rules apply on every interface; leave it out"
_USERS = (
    "it lists users, whom only a second authentication proves, and set {auth} has none for users; write "
    'auth = "machine-and-user" or a set with user-kerberos, user-ntlm or user-certificate in second'
)


def report(section: Section, rule: Rule) -> None:
    """Say what of a rule this build does not do."""
    if rule.interface is not None and "interface" not in section.bad:
        unavailable(section, rule, "interface", _INTERFACE)
    for key, access in (("allow", rule.allow), ("deny", rule.deny)):
        if access and access.users and rule.auth and not rule.auth.proves_users:
            unavailable(section, rule, key, _USERS.format(auth=f'"{rule.auth.name}"'))
    if not rule.secures or not rule.enabled:
        return
    for limit in LIMITS:
        if limit.level is (rule.inbound if limit.key == "inbound" else rule.outbound):
            section.warn(
                "security" if "security" in section else limit.key,
                f"not enforced yet as written: {limit.text}",
            )
    if rule.tunnel and _loops(rule.tunnel):
        section.warn("tunnel", "both ends are on this machine; fit for trying it out, not for use")


def unavailable(section: Section, rule: Rule, key: str, message: str) -> None:
    """A complaint about a rule that is to be in force; a rule kept for later (`enabled = false`) may load."""
    if rule.enabled:
        section.complain(key, f"{message} (or set enabled = false)")
    else:
        section.warn(key, message)


def _loops(tunnel: Tunnel) -> bool:
    return all(end is not None and end.is_loopback for end in (tunnel.local, tunnel.remote))
