"""Two hosts that speak AuthIP, on the link of `support.link`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from support import certificates
from support.link import POSIX, Host, Link, mirrored, tunnel_hosts
from support.phases import authority, certified, sets

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.authip.association import AuthipAssociation

RULE = 'keying = ["authip"]\ncrypto = "old"\n'
CERTIFICATE = '[auth.machine]\nfirst = ["certificate"]\n'
EXTENDED = CERTIFICATE + 'second = [{ method = "certificate", health = true }]\n'


def hosts(
    *, left_rule: str = "", right_rule: str = "", crypto: str = "", auth: str = CERTIFICATE, **how: Any
) -> tuple[Host, Host]:
    """`tunnel_hosts` whose rules are for AuthIP with the authentication set `machine` out of `auth`, and
    certificates."""
    how = {"left": certified("left"), "right": certified("right"), "sets": ""} | how
    tables = "\n".join((crypto or sets(), auth, how.pop("sets")))
    return tunnel_hosts(
        left_rule=RULE + left_rule, right_rule=RULE + right_rule, auth="machine", sets=tables, **how
    )


def connected(**how: Any) -> Link:
    """Two hosts with the tunnel `net` up by AuthIP, and everything quiet."""
    nat = how.get("nat", "")
    link = Link(*hosts(**how), nat=nat)
    link.up("net", nat or "left")
    link.run(1)
    assert mirrored(link.left, link.right)
    return link


def main_mode(one: Host) -> AuthipAssociation:
    """The newest main-mode SA of a host."""
    found = one.ikes[-1]
    assert isinstance(found, AuthipAssociation)
    return found


@cache
def well(name: str) -> Material:
    """Credentials with a health certificate beside the machine's."""
    full = f"{name}.example"
    key = certificates.key("ecdsa-p256", 7)
    pair = pki.issue(authority(), f"CN={full}", [full], now=POSIX, days=1, key=key, eku=("health",))
    machine = certified(name)
    return replace(machine, hosts=(*machine.hosts, HostCertificate((pair.certificate,), pair.key)))
