"""Health certificates in IKEv2 and IKEv1: rules that demand them, hosts that have one, none, or a bad one.

If one of these fails, a host whose condition nobody vouches for has an SA, or one that lasts longer than the
certificate it stands on; or healthy hosts do not come together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support import certificates
from support.link import BOTH, LEFT, POSIX, RIGHT, Host, Link, agree, host, story, tunnel_rules
from support.phases import AGGRESSIVE, RULE, authority, certified, sets

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.auth.health import SYSTEM_HEALTH, UNHEALTHY
from ikd.events import AuthenticationFailed, PeerAuthenticated

HEALTHY = '[auth.set]\nfirst = [{ method = "certificate", health = true }]\n'
ANY = '[auth.set]\nfirst = ["certificate"]\n'
PROTOCOLS = pytest.mark.parametrize(
    "keys", ['keying = "ikev2"\n', RULE, RULE + AGGRESSIVE], ids=["ikev2", "main", "aggressive"]
)
ORDERS = pytest.mark.parametrize("first", BOTH)
HOURS = 4


def well(
    name: str, *, ca: str = "CN=Lab CA", eku: tuple[str, ...] = ("health",), both: bool = True
) -> Material:
    """Credentials with a health certificate, of four hours; `both`: and with the machine's, of a year."""
    full, (kind, number) = f"{name}.example", ("ecdsa-p256", 7)
    pair = pki.issue(
        authority(ca),
        f"CN=health of {full}",
        [full],
        now=POSIX,
        days=HOURS / 24,
        key=certificates.key(kind, number),
        eku=eku,
    )
    machine = certified(name)
    vouching = HostCertificate((pair.certificate,), pair.key)
    return replace(machine, hosts=(*(machine.hosts if both else ()), vouching))


def link(
    keys: str, first: str, left: Material, right: Material, *, demands: tuple[str, str] = (HEALTHY, HEALTHY)
) -> Link:
    """Two hosts that have tried to come together; `demands` are the sets of the left and the right one."""
    made: list[Host] = []
    for name, address, material, demand in zip(BOTH, (LEFT, RIGHT), (left, right), demands, strict=True):
        rules = tunnel_rules(name, auth="set", extra=keys) + demand + sets()
        made.append(host(name, address, rules, material))
    found = Link(made[0], made[1])
    found.up("net", first)
    found.run(100)
    return found


@PROTOCOLS
@ORDERS
def test_healthy_hosts_come_together_for_as_long_as_they_are_known_to_be(keys: str, first: str) -> None:
    """The certificate that vouches is chosen and recognised; the SA ends with it, not after its own life."""
    found = link(keys, first, well("left"), well("right"))
    agree(found, ikes=1, pairs=1)
    for one, other in ((found.left, "right"), (found.right, "left")):
        assert f"CN=health of {other}.example" in one.of(PeerAuthenticated)[0].description
        (ike,) = one.ikes
        assert ike.main.peer is not None
        assert ike.main.peer.health
        assert ike.life.hard_at == pytest.approx(ike.life.since + HOURS * 3600, abs=1)


@PROTOCOLS
@ORDERS
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (certified("left"), f"lacks the extended key usage {SYSTEM_HEALTH}"),
        (well("left", eku=("health", UNHEALTHY), both=False), "says that its host is not healthy"),
        (well("left", eku=("2.5.29.37.0",), both=False), "lacks the extended key usage"),
    ],
    ids=["none", "unhealthy", "any usage"],
)
def test_a_host_that_nobody_vouches_for(keys: str, first: str, bad: Material, said: str) -> None:
    """Its own rule does not ask for health, so only the other side can notice, and must."""
    found = link(keys, first, bad, well("right"), demands=(ANY, HEALTHY))
    agree(found, ikes=0, pairs=0)
    assert not found.right.backend.pairs
    (refused, *_) = found.right.of(AuthenticationFailed)
    assert said in refused.reason, story(found)
    assert not found.right.of(PeerAuthenticated)


@PROTOCOLS
def test_a_health_certificate_of_an_unknown_authority(keys: str) -> None:
    """Anybody could vouch for himself."""
    found = link(keys, "left", well("left", ca="CN=Another CA", both=False), well("right"))
    agree(found, ikes=0, pairs=0)
    reasons = [refused.reason for refused in found.right.of(AuthenticationFailed)]
    assert any("is not trusted" in reason for reason in reasons), story(found)


@PROTOCOLS
def test_a_host_without_one_does_not_even_try(keys: str) -> None:
    """Its own rule demands health: the reason is told at home, before a peer refuses."""
    found = link(keys, "left", certified("left"), well("right"))
    agree(found, ikes=0, pairs=0)
    assert found.left.failures, story(found)
    assert not found.right.of(PeerAuthenticated)


@PROTOCOLS
def test_where_none_is_demanded_the_machines_certificate_is_shown(keys: str) -> None:
    """An SA that could last a day would end with a certificate of four hours; yet who has only that one is
    not kept out."""
    found = link(keys, "left", well("left"), well("right", both=False), demands=(ANY, ANY))
    agree(found, ikes=1, pairs=1)
    assert "CN=left.example" in found.right.of(PeerAuthenticated)[0].description
    assert "CN=health of right.example" in found.left.of(PeerAuthenticated)[0].description
