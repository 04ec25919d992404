"""What an auditor reads, the same in every keying module: who has proven what or has not, by which method,
for which rule, and why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support import authip, phases
from support.link import Host, Link, story, tunnel_hosts
from support.phases import certified

from ikd.auth.credentials import Material
from ikd.events import AuthenticationFailed, PeerAuthenticated

CERTIFICATE = '[auth.own]\nfirst = ["certificate"]\n'
Hosts = Callable[..., tuple[Host, Host]]


def ikev2(**materials: Material) -> tuple[Host, Host]:
    """Two hosts that speak IKEv2 and have certificates."""
    return tunnel_hosts(auth="own", sets=CERTIFICATE, **materials)


def ikev1(**materials: Material) -> tuple[Host, Host]:
    """The same with IKEv1."""
    return phases.hosts(auth="own", crypto=phases.sets() + CERTIFICATE, **materials)


MODULES = pytest.mark.parametrize("hosts", [ikev2, ikev1, authip.hosts], ids=["ikev2", "ikev1", "authip"])


@MODULES
def test_success(hosts: Hosts) -> None:
    """Whoever wants to know later who had an SA has these events and nothing else."""
    link = Link(*hosts(left=certified("left"), right=certified("right")))
    link.up("net")
    link.run(10)
    for one, other in ((link.left, link.right), (link.right, link.left)):
        (told,) = one.of(PeerAuthenticated)
        assert (told.identity, told.method, told.rule) == (f"{other.name}.example", "certificate", "net")
        assert told.address
        assert not one.of(AuthenticationFailed), story(link)


@MODULES
@pytest.mark.parametrize("side", ["left", "right"])
def test_failure(hosts: Hosts, side: str) -> None:
    """Whoever does not trust the certificate says whose it was, for which rule, and why."""
    foreign = replace(certified(side), hosts=certified(side, ca="CN=Another CA").hosts)
    link = Link(*hosts(**({"left": certified("left"), "right": certified("right")} | {side: foreign})))
    link.up("net")
    link.run(70)
    failed = [
        one for one in link.other(link.named(side)).of(AuthenticationFailed) if one.cause == "untrusted"
    ]
    assert failed, story(link)
    for one in failed:
        assert (one.identity, one.method, one.rule) == (f"{side}.example", "certificate", "net")
        assert "CN=Another CA" in one.reason
        assert one.address
