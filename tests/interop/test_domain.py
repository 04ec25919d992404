"""Kerberos in a domain of Active Directory: machines and users prove themselves, and their tickets say what
they belong to."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from support.domain import GROUP, MEMBER, NETBIOS, OUTSIDER, REALM, Domain
from support.lab import Lab

from policy.peers import matches_any

pytestmark = pytest.mark.interop

# Both sides in one process on a host of the domain: argv is the directory of both keytabs, a user's cache.
PROVE = """
import json, sys, time
from pathlib import Path
from ikd.auth.files import load_material
from ikd.auth.kerberos import KerberosAcceptor, KerberosInitiator
from ikd.settings import IdentitySettings

base = Path(sys.argv[1])
cache = sys.argv[2] or None
ours = load_material(base, IdentitySettings(keytab="alpha.keytab", user_tickets=cache), time.time())
peers = load_material(base, IdentitySettings(keytab="beta.keytab", groups="groups.toml"), time.time(), base)
initiator = KerberosInitiator("host/beta.ad.test", ours.tickets or ours.keytab, time.time)
acceptor = KerberosAcceptor(peers.keytab, time.time, peers.groups, users=bool(cache))
reply = acceptor.step(initiator.step(None).token)
last = initiator.step(reply.token)
assert last.key == reply.key and len(last.key) == 32
json.dump([last.peer.names, reply.peer.names, reply.peer.groups], sys.stdout)
"""
GROUPS = '["{netbios}\\\\{name}"]\nsid = "{sid}"\n'


@dataclass
class Proven:
    """What the two sides know of each other."""

    acceptor: tuple[str, ...]
    initiator: tuple[str, ...]
    groups: tuple[str, ...]


@pytest.fixture
def host(hosts: Lab, domain: Domain) -> str:
    """A host of the domain, which knows the name of its group."""
    domain.join(hosts.left, "10.77.0.11")
    text = GROUPS.format(netbios=NETBIOS, name=GROUP, sid=domain.groups[GROUP])
    (domain.base / "groups.toml").write_text(text)
    return hosts.left


def prove(domain: Domain, host: str, user: str = "") -> Proven:
    """The machine alpha or a user on it proves itself to the machine beta."""
    cache = domain.ticket(host, user) if user else ""
    return Proven(*map(tuple, json.loads(domain.python(host, PROVE, str(domain.base), cache))))


def test_machines_of_a_domain(domain: Domain, host: str) -> None:
    """Active Directory gives tickets to NAME$ for host/NAME with a PAC in them: each is a way to fail that
    MIT's KDC does not have."""
    proven = prove(domain, host)
    assert proven.acceptor == (f"{domain.service('beta')}@{REALM}", domain.service("beta"))
    assert proven.initiator == (f"alpha$@{REALM}",)
    above = domain.groups[GROUP].rpartition("-")[0]
    assert f"group:{above}-515" in proven.groups  # Domain Computers
    assert f"group:{domain.groups[GROUP]}" not in proven.groups


def test_groups_of_users(domain: Domain, host: str) -> None:
    """A rule for HR that lets others in, or HR out."""
    name, sid = f"group:{NETBIOS}\\{GROUP}", f"group:{domain.groups[GROUP]}"
    clerk, guest = prove(domain, host, MEMBER), prove(domain, host, OUTSIDER)
    assert clerk.initiator == (f"{MEMBER}@{REALM}",)
    assert guest.initiator == (f"{OUTSIDER}@{REALM}",)
    assert {name, sid} <= set(clerk.groups)
    assert not {name, sid} & set(guest.groups)
    for pattern in (name.lower(), sid):
        assert matches_any((pattern,), clerk.initiator + clerk.groups)
        assert not matches_any((pattern,), guest.initiator + guest.groups)
