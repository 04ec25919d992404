"""AuthIP between daemons: every kind of credential out of files, a domain of Active Directory end to end, and
a peer that has only IKEv1."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import domain as directory
from support import lab
from support.capture import Capture
from support.daemon import Ikd
from support.domain import GROUP, MEMBER, NETBIOS, OUTSIDER, Domain
from support.lab import Lab
from support.scenario import Twins, certificate_peers, eventually, ikev1_rule, write_identity
from support.strongswan import ikev1

from ikd import pki

pytestmark = pytest.mark.interop

RULE = """\
[[rule]]
name     = "net"
remote   = "{remote}"
security = "require"
keying   = {keying}
auth     = "set"
crypto   = "old"
{extra}

[auth.set]
{auth}

[crypto.old]
main  = ["p256 aes128 sha256"]
quick = ["aes128 sha256"]
"""
NTLM = """\
[[ntlm]]
account  = '{account}'
password = "correct horse battery"
use      = ["{use}"]
"""
USER = "clerk@corp.example"
CERTIFICATE, HEALTH = '"certificate"', '{ method = "certificate", health = true }'


def identities(place: Path) -> dict[str, dict[str, Any]]:
    """Certificates of both hosts, for machine, health and a user, of one authority; the tables [identity]."""
    now = time.time()
    authority = pki.make_ca("CN=Lab CA,O=Lab", now)
    found = {}
    for own in ("left", "right"):
        name, home = f"{own}.lab", place / own
        table = write_identity(home, authority, pki.issue(authority, f"CN={name}", [name], now=now))
        for kind, names, eku in (("health", [name], ("health", "client")), ("user", [USER], ("client",))):
            pair = pki.issue(authority, f"CN={names[0]}", names, now=now, days=0.5, eku=eku)
            for end, content in (
                ("pem", pki.certificate_pem(pair.certificate)),
                ("key", pki.key_pem(pair.key)),
            ):
                (home / "pki" / f"{kind}.{end}").write_bytes(content)
                (home / "pki" / f"{kind}.{end}").chmod(0o600)
            table |= {f"{kind}_certificate": f"pki/{kind}.pem", f"{kind}_key": f"pki/{kind}.key"}
        found[own] = table
    return found


def twins(
    hosts: Lab,
    place: Path,
    auth: str,
    tables: Mapping[str, Mapping[str, Any]],
    *,
    keying: tuple[str, ...] = ("authip",),
    secrets: Mapping[str, str] | None = None,
    right_extra: str = "",
) -> Twins:
    """Two daemons whose rule covers everything between their addresses."""
    made = []
    seen = lab.NAT if hosts.nat else lab.LEFT
    for namespace, own, remote in ((hosts.left, "left", lab.RIGHT), (hosts.right, "right", seen)):
        extra = right_extra if own == "right" else ""
        policy = RULE.format(remote=remote, keying=json.dumps(keying), auth=auth, extra=extra)
        text = (secrets or {}).get(own, "")
        made.append(Ikd(namespace, place / own, policy, secrets=text, settings={"identity": tables[own]}))
    return Twins(hosts, *made)


def check(hosts: Lab) -> None:
    """Pings in both directions get through."""
    for source, ends in ((hosts.left, (lab.RIGHT, lab.LEFT)), (hosts.right, (lab.LEFT, lab.RIGHT))):
        pinged = lab.ping(source, *ends, count=3)
        assert pinged.received == pinged.sent, pinged


METHODS = {
    "certificate": (f"first = [{CERTIFICATE}]", "certificate", ""),
    "server only": ('first = [{ method = "certificate", mutual = false }]', "anonymous", ""),
    "health": (f"first = [{HEALTH}]", "certificate", ""),
    "ntlm": ('first = ["ntlm"]', "ntlm", ""),
    "user certificate": (f'first = [{CERTIFICATE}]\nsecond = ["user-certificate"]', "certificate", USER),
    "user ntlm": (f'first = [{CERTIFICATE}]\nsecond = ["user-ntlm"]', "certificate", r"CORP\clerk"),
    "health second": (f"first = [{CERTIFICATE}]\nsecond = [{HEALTH}]", "certificate", "right.lab"),
}


@pytest.mark.parametrize("name", METHODS)
def test_credentials_out_of_files(hosts: Lab, place: Path, name: str) -> None:
    """Each method with what an administrator writes, traffic through it, and what `ikctl sa` says of it."""
    auth, method, user = METHODS[name]
    machine = r"CORP\LEFT$"
    secrets = {
        "left": NTLM.format(account=machine, use="machine") + NTLM.format(account=r"CORP\clerk", use="user"),
        "right": NTLM.format(account=machine, use="accept")
        + NTLM.format(account=r"CORP\clerk", use="accept"),
    }
    with twins(hosts, place, auth, identities(place), secrets=secrets) as both:
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            check(hosts)
        (main,) = both.right.main()
        assert (main["keying"], main["role"]) == ("authip", "responder")
        if name == "ntlm":
            assert machine in main["proof"]
        elif name != "server only":
            assert main["method"] == method
        if user and name != "health second":
            assert user in main["user"]
            assert user in both.right.ctl("sa", "extended")
        assert main["health"] is name.startswith("health")
        assert "authip" in both.left.ctl("status")
        both.left.ctl("rekey", "net")
        check(hosts)
        both.left.ctl("down", "net")
        eventually(lambda: not both.right.quick(), "the peer is told")
    assert "icmp" not in set(wire.protocols())


def test_wrong_password_is_explained_at_both_ends(hosts: Lab, place: Path) -> None:
    """`ikctl why` says that it is the password, and nobody hears whether the account exists."""
    secrets = {
        "left": NTLM.format(account=r"CORP\clerk", use="user").replace("horse", "donkey"),
        "right": NTLM.format(account=r"CORP\clerk", use="accept"),
    }
    auth = f'first = [{CERTIFICATE}]\nsecond = ["user-ntlm"]'
    with twins(hosts, place, auth, identities(place), secrets=secrets) as both:
        assert both.left.try_ctl("up", "net").returncode == 3
        assert "NTLM" in both.left.ctl("why", "net")
        eventually(lambda: "password" in both.right.log(), "the responder's log says what is wrong")
        assert not both.left.quick()
        assert not both.right.quick()


@pytest.mark.parametrize("keying", [("authip", "ikev1"), ("ikev2", "authip", "ikev1")], ids="-".join)
@pytest.mark.parametrize("initiator", ["ikd", "charon"])
def test_peer_with_ikev1_only(hosts: Lab, place: Path, keying: tuple[str, ...], initiator: str) -> None:
    """strongSwan does not know AuthIP and answers the IKEv1 begun beside it; it costs no waiting."""
    rule = (
        ikev1_rule(keying=keying, more='auth = "certificates"')
        + '\n[auth.certificates]\nfirst = ["certificate"]\n'
    )
    peers = certificate_peers(hosts, place, "ecdsa-p256", extra=rule, connection=ikev1())
    with peers.ikd, peers.charon:
        peers.up(initiator)
        (main,) = peers.ikd.main()
        assert main["keying"] == "ikev1"
        peers.check_traffic()
        if keying[0] == "authip":
            assert "trying ikev1" not in peers.ikd.log(), "it waited for an answer in AuthIP"


def _join(hosts: Lab, domain: Domain) -> None:
    for number, namespace in ((11, hosts.left), (12, hosts.right)):
        domain.join(namespace, f"10.77.0.{number}")
    text = f'["{NETBIOS}\\\\{GROUP}"]\nsid = "{domain.groups[GROUP]}"\n'
    (domain.base / "groups.toml").write_text(text)


@pytest.mark.parametrize("user", [MEMBER, OUTSIDER])
def test_isolated_server_of_a_domain(
    hosts: Lab, place: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """Server isolation as Windows has it, against a real domain controller: the machine proves itself by its
    account, its user by his ticket, and the server's rule admits one group of the domain, which the ticket
    says. Without either there is no traffic."""
    _join(hosts, domain)
    for variable, value in domain.variables.items():
        monkeypatch.setenv(variable, value)
    tables = {
        "left": {
            "keytab": str(domain.base / "alpha.keytab"),
            "user_tickets": domain.ticket(hosts.left, user),
        },
        "right": {"keytab": str(domain.base / "beta.keytab"), "groups": str(domain.base / "groups.toml")},
    }
    allow = f"allow = {{ users = ['group:{NETBIOS}\\{GROUP}'] }}\n"
    auth = 'first = ["kerberos"]\nsecond = ["user-kerberos"]'
    with twins(hosts, place, auth, tables, right_extra=allow) as both:
        if user == OUTSIDER:
            assert both.left.try_ctl("up", "net").returncode == 3
            eventually(lambda: "does not allow user" in both.right.log(), "the server says why")
            assert not both.left.quick()
            assert not both.right.quick()
            return
        check(hosts)
        (main,) = both.right.main()
        realm = directory.REALM
        assert "alpha" in main["authenticated_as"].lower()
        assert f"{MEMBER}@{realm}" in main["user"]
        assert f"group:{NETBIOS}\\{GROUP}" in main["groups"]
        shown = both.right.ctl("sa", "extended")
        assert MEMBER in shown
        assert GROUP in shown


def test_through_a_nat(natted: Lab, place: Path) -> None:
    """From the first token on over UDP 4500, and packets in UDP."""
    auth = f"first = [{CERTIFICATE}]"
    with twins(natted, place, auth, identities(place)) as both:
        pinged = lab.ping(natted.left, lab.RIGHT, natted.left_address, count=3)
        assert pinged.received == pinged.sent, pinged
        (main,) = both.right.main()
        assert main["nat"]
        assert main["keying"] == "authip"
        (quick,) = both.right.quick()
        assert quick["encapsulation"]


def test_both_protocols_of_a_windows_rule(hosts: Lab, place: Path) -> None:
    """Two hosts with AuthIP and IKEv1 use AuthIP, in both directions and at once."""
    auth = f"first = [{CERTIFICATE}]"
    with twins(hosts, place, auth, identities(place), keying=("authip", "ikev1")) as both:
        both.right.ctl("up", "net")
        assert [one["keying"] for one in both.right.main()] == ["authip"]
        check(hosts)
        assert len(both.left.main()) == 1
