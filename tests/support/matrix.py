"""Every keying module with every method of authentication that it has, between two hosts, as administrators
would write it; and what each host must then know of the other.

`alpha` begins and `beta` answers. What the modules can do stands in `policy.modules`; a test compares that
with this table, so a method that is new there needs a case here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.daemon import Ikd
from support.hosts import Host
from support.kerberos import REALM, Kdc
from support.scenario import SECRET, eventually, secrets, write_identity
from support.strongswan import merged

from ikd import pki

if TYPE_CHECKING:
    from support.tiers import Pair

ALPHA, BETA = "alpha", "beta"
OTHER = {ALPHA: BETA, BETA: ALPHA}
NAMES = {one: f"{one}.example.test" for one in (ALPHA, BETA)}
USER, ACCOUNT = "clerk@corp.example", r"CORP\clerk"
PRINCIPAL = "clerk"
MACHINE = r"CORP\ALPHA$"
# The longer keys of a kind that is here are signed with in the same way.
KINDS = tuple(one for one in pki.KEY_TYPES if one not in ("rsa-3072", "rsa-4096"))
# RFC 4754 has no other curves for IKEv1, and AuthIP is TLS 1.0 to 1.2 without Edwards curves.
OLD_KINDS = tuple(one for one in KINDS if not one.startswith("ed"))

CERTIFICATE, HEALTH = '"certificate"', '{ method = "certificate", health = true }'


@dataclass(frozen=True)
class Case:
    """One row. `proves` is what it is about: the list of the authentication set, and the method in it.
    `seen` is what alpha must say of beta and beta of alpha, `user` whom beta must know besides."""

    keying: str
    proves: tuple[str, str]
    first: str
    seen: tuple[str, str] = (NAMES[BETA], NAMES[ALPHA])
    variant: str = ""
    second: str = ""
    user: str = ""
    health: bool = False
    aggressive: bool = False
    tunnel: bool = False
    peer: bool = True  # whether the rule names the peer
    kind: str = "ecdsa-p256"

    @property
    def name(self) -> str:
        """For the test's name."""
        which, method = self.proves
        words = (self.keying, "then" if which == "second" else "", method, self.variant)
        return "-".join(filter(None, words))

    @property
    def kerberos(self) -> bool:
        """Whether it needs a KDC."""
        return "kerberos" in self.first + self.second


def _certificates(keying: str, kinds: tuple[str, ...], **more: Any) -> list[Case]:
    proves = ("first", "certificate")
    return [Case(keying, proves, CERTIFICATE, variant=kind, kind=kind, **more) for kind in kinds]


def _second(method: str, text: str = "", **more: Any) -> Case:
    """The machine by its certificate, then something else."""
    return Case("authip", ("second", method), CERTIFICATE, second=text or f'"{method}"', **more)


_TICKETS = tuple(f"host/{NAMES[one]}@{REALM}" for one in (BETA, ALPHA))
CASES = (
    Case("ikev2", ("first", "psk"), '"psk"'),
    Case("ikev2", ("first", "psk"), '"psk"', variant="tunnel", tunnel=True),
    *_certificates("ikev2", KINDS),
    Case("ikev2", ("first", "certificate"), HEALTH, variant="health", health=True),
    Case("ikev1", ("first", "psk"), '"psk"', variant="main"),
    Case("ikev1", ("first", "psk"), '"psk"', variant="main-tunnel", tunnel=True),
    Case("ikev1", ("first", "psk"), '"psk"', variant="aggressive", aggressive=True),
    *_certificates("ikev1", OLD_KINDS),
    Case("ikev1", ("first", "certificate"), CERTIFICATE, variant="aggressive", aggressive=True),
    Case("ikev1", ("first", "certificate"), HEALTH, variant="health", health=True),
    Case("ikev1", ("first", "kerberos"), '"kerberos"', _TICKETS),
    *_certificates("authip", OLD_KINDS),
    Case("authip", ("first", "certificate"), CERTIFICATE, variant="tunnel", tunnel=True),
    Case("authip", ("first", "certificate"), HEALTH, variant="health", health=True),
    Case(
        "authip", ("first", "certificate"), '{ method = "certificate", mutual = false }',
        (NAMES[BETA], "anonymous"), "server-only", peer=False,
    ),
    Case("authip", ("first", "kerberos"), '"kerberos"', _TICKETS),
    Case("authip", ("first", "ntlm"), '"ntlm"', ("", MACHINE), peer=False),
    Case(
        "authip", ("first", "anonymous"), '"anonymous"', ("anonymous", "anonymous"), "then-user-ntlm",
        '"user-ntlm"', ACCOUNT, peer=False,
    ),
    _second("user-certificate", user=USER),
    _second("user-ntlm", user=ACCOUNT),
    _second("user-kerberos", user=f"{PRINCIPAL}@{REALM}"),
    _second("certificate", HEALTH, variant="health", health=True),
    _second("anonymous", '"user-kerberos", "anonymous"', variant="nobody-there"),
)  # fmt: skip

RULE = """\
[[rule]]
name     = "net"
{traffic}
security = "require"
keying   = "{keying}"
auth     = "set"
{more}

[auth.set]
first  = [{first}]
{second}
"""
NTLM = """\
[[ntlm]]
account  = '{account}'
password = "correct horse battery"
use      = ["{use}"]
"""


@dataclass(frozen=True)
class Ends:
    """Where a pair of hosts is: the addresses they have, those at which each is seen by the other, and those
    that a tunnel carries."""

    outer: Mapping[str, str]
    seen: Mapping[str, str]
    inner: Mapping[str, str]


def policy(case: Case, own: str, ends: Ends) -> str:
    """policy.toml of one side."""
    other = OTHER[own]
    traffic = f'remote   = "{ends.seen[other]}"'
    if case.tunnel:
        traffic = (
            f'local    = "{ends.inner[own]}"\nremote   = "{ends.inner[other]}"\n'
            f'tunnel   = {{ local = "{ends.outer[own]}", remote = "{ends.seen[other]}" }}'
        )
    more = [f'peer     = "{NAMES[other]}"'] if case.peer else []
    more += ["aggressive = true"] if case.aggressive else []
    return RULE.format(
        traffic=traffic,
        keying=case.keying,
        more="\n".join(more),
        first=case.first,
        second=f"second = [{case.second}]" if case.second else "",
    )


@cache
def authority(kind: str) -> pki.Pair:
    """The authority of both hosts, made once for all cases."""
    return pki.make_ca("CN=Lab CA,O=Lab", time.time(), kind=kind)


@cache
def certificate(kind: str, owner: str, usage: str = "") -> pki.Pair:
    """One of its certificates, for a host, or with `usage` health or user for that."""
    now, issuer = time.time(), authority(kind)
    if usage:
        eku = ("client",) if usage == "user" else ("health", "client")
        return pki.issue(issuer, f"CN={owner}", [owner], now=now, days=0.5, kind=kind, eku=eku)
    return pki.issue(issuer, f"CN={owner},O=Lab", [owner], now=now, kind=kind)


def _identity(case: Case, own: str, directory: Path, kdc: Kdc | None) -> dict[str, Any]:
    """The table [identity], with what it names in place: only what the methods of the case need."""
    found: dict[str, Any] = {"id": NAMES[own]}
    if "certificate" in case.first + case.second:
        found |= write_identity(directory, authority(case.kind), certificate(case.kind, NAMES[own]))
    wanted = {
        "health": (case.health, NAMES[own]),
        "user": ("user-certificate" in case.second and own == ALPHA, USER),
    }
    for usage, (needed, owner) in wanted.items():
        if needed:
            pair = certificate(case.kind, owner, usage)
            for end, content in (
                ("pem", pki.certificate_pem(pair.certificate)),
                ("key", pki.key_pem(pair.key)),
            ):
                file = directory / "pki" / f"{usage}.{end}"
                file.write_bytes(content)
                file.chmod(0o600)
            found |= {f"{usage}_certificate": f"pki/{usage}.pem", f"{usage}_key": f"pki/{usage}.key"}
    if kdc is not None and case.kerberos:
        if "kerberos" in case.first or own == BETA:
            found["keytab"] = str(kdc.base / f"{own}.keytab")
        if case.user.startswith(f"{PRINCIPAL}@{REALM}") and own == ALPHA:
            found["user_tickets"] = kdc.ticket(PRINCIPAL)
    return found


def _secrets(case: Case, own: str) -> str:
    text = secrets(SECRET, NAMES[OTHER[own]]) if "psk" in case.first else ""
    for wanted, account, use in (
        ("ntlm" in case.first, MACHINE, "machine"),
        ("user-ntlm" in case.second, ACCOUNT, "user"),
    ):
        if wanted:
            text += NTLM.format(account=account, use=use if own == ALPHA else "accept")
    return text


def daemon(
    case: Case,
    own: str,
    ends: Ends,
    place: Host,
    directory: Path,
    *,
    kdc: Kdc | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Ikd:
    """One side of a case, with all its files."""
    identity = _identity(case, own, directory, kdc)
    return Ikd(
        place,
        directory,
        policy(case, own, ends),
        secrets=_secrets(case, own),
        settings=merged({"identity": identity}, settings or {}),
        variables=kdc.variables if kdc else {},
    )


def standing(one: Ikd) -> list[dict[str, Any]]:
    """The main-mode SAs of a daemon but for those that only wait for what the peer may repeat."""
    return [main for main in one.main() if main["state"] != "deleting"]


def check(pair: Pair, case: Case) -> None:
    """The first packet brings the SAs up and arrives, as do those of the other direction; each host knows
    whom it must; SAs have counted packets on both sides, and go on both; nobody on the wire could read
    anything."""
    alpha, beta = pair.sides[ALPHA], pair.sides[BETA]
    pair.send(ALPHA)
    for one, seen in zip((alpha, beta), case.seen, strict=True):
        (main,) = standing(one)
        assert main["keying"] == case.keying
        assert seen in f"{main['authenticated_as']} {main['proof']}"
        assert main["health"] is case.health
    assert main["role"] == "responder"
    assert main["user"] == case.user
    pair.send(BETA)
    for one in (alpha, beta):
        for counter in ("packets_in", "packets_out"):
            eventually(  # counted when it has been passed on
                lambda one=one, counter=counter: sum(quick[counter] for quick in one.quick()) >= pair.packets,
                counter,
            )
    alpha.ask("down", name="net")
    for one in (alpha, beta):
        eventually(lambda one=one: not one.quick() and not standing(one), "nothing is left of it")
    wire = pair.wire()
    assert wire.clear == 0
    assert wire.sealed >= 2 * pair.packets
    assert wire.keying >= 4
