"""Two hosts that speak AuthIP, on the link of `support.link`."""

from __future__ import annotations

from typing import Any

from support.link import Host, Link, mirrored, tunnel_hosts
from support.phases import certified, sets

from ikd.authip.association import AuthipAssociation

RULE = 'keying = ["authip"]\ncrypto = "old"\n'
CERTIFICATE = '[auth.machine]\nfirst = ["certificate"]\n'


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
