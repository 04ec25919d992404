"""A host's address changes under its tunnels: pings go on, and the SAs are the same as before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.daemon import Ikd
from support.lab import Lab
from support.scenario import Peers, Twins, eventually, psk_peers, tunnel_policy, twins

pytestmark = pytest.mark.interop
LEFT2, RIGHT2 = "198.51.100.11", "198.51.100.12"
EACH = 0.05  # seconds from one ping to the next
FOUND = 10.0  # seconds in which a machine that does other things, too, has to follow


def change(namespace: str, old: str, new: str) -> None:
    """One address goes and another comes, as with DHCP on another network."""
    lab.ip("-n", namespace, "addr", "del", f"{old}/24", "dev", "e0")
    lab.ip("-n", namespace, "addr", "add", f"{new}/24", "dev", "e0")


def survives(namespace: str, move: Callable[[], None], moved: Callable[[], object]) -> None:
    """Pings through the tunnel while something moves: those before the other side knows may be lost, and no
    later ones, but for a few that were on their way."""
    with lab.pinging(namespace, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
        pings.goes_on()
        began = time.monotonic()
        move()
        eventually(moved, "the other side knows the new address", FOUND)
        took = time.monotonic() - began
        pings.goes_on()
    print(f"pings: {pings.sent} sent, {pings.received} received; it took {took:.2f} s")
    assert pings.lost <= took / EACH + 10


def seen(daemon: Ikd) -> list[str]:
    """Where a daemon's Child SAs lead."""
    return [str(one["peer_address"]) for one in daemon.quick()]


def open_ended(hosts: Lab, place: Path, **settings: object) -> Twins:
    """Two daemons with a tunnel whose own ends are left open."""
    left = tunnel_policy("any", lab.RIGHT, peer="right.lab")
    right = tunnel_policy("any", lab.LEFT, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab")
    left, right = (one.replace('local = "any", ', "") for one in (left, right))
    return twins(hosts, place, left, right, settings={"ike": settings})


def test_two_hosts_move(hosts: Lab, place: Path) -> None:
    """First the one that began, then the one that answered."""
    with open_ended(hosts, place) as both:
        both.left.ctl("up", "net")
        before = [one["spi_in"] for one in both.left.quick()], [one["spi_i"] for one in both.left.main()]
        survives(
            hosts.left,
            lambda: change(hosts.left, lab.LEFT, LEFT2),
            lambda: seen(both.right) == [LEFT2],
        )
        survives(
            hosts.left,
            lambda: change(hosts.right, lab.RIGHT, RIGHT2),
            lambda: seen(both.left) == [RIGHT2],
        )
        after = [one["spi_in"] for one in both.left.quick()], [one["spi_i"] for one in both.left.main()]
        assert after == before


def ends(peers: Peers) -> list[tuple[str, str]]:
    """Both ends of each IKE SA as charon sees them, its own first."""
    return [(one["local-host"], one["remote-host"]) for one in peers.charon.established()]


@pytest.mark.parametrize("initiator", ["ikd", "charon"])
def test_strongswan(hosts: Lab, place: Path, initiator: str) -> None:
    """MOBIKE is on there by default: we move, then it does, in both roles. The IKE SA stays; its userspace
    engine cannot change the addresses of a Child SA, so that charon replaces it when it has moved."""
    for namespace, address in ((hosts.left, lab.LEFT6), (hosts.right, lab.RIGHT6)):  # it would try these, too
        lab.ip("-n", namespace, "addr", "del", f"{address}/64", "dev", "e0")
    peers = psk_peers(hosts, place)
    with peers.ikd, peers.charon:
        peers.up(initiator)
        before = [one["spi_i"] for one in peers.ikd.main()]
        survives(
            hosts.left,
            lambda: change(hosts.left, lab.LEFT, LEFT2),
            lambda: ends(peers) == [(lab.RIGHT, LEFT2)],
        )
        survives(
            hosts.left,
            lambda: change(hosts.right, lab.RIGHT, RIGHT2),
            lambda: ends(peers) == [(RIGHT2, LEFT2)] and RIGHT2 in seen(peers.ikd),
        )
        assert [one["spi_i"] for one in peers.ikd.main()] == before


def test_no_default_route(routed: Lab, place: Path) -> None:
    """Nothing can be sent: that is told once, the SAs wait longer than a silent peer is given, and go on when
    the route is back. Then an inner address goes and comes, which takes the routes along that name it."""
    left = tunnel_policy("any", lab.RIGHT, peer="right.lab").replace('local = "any", ', "")
    right = tunnel_policy(
        lab.RIGHT, lab.NATTED, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab"
    )
    lab.ip("-6", "-n", routed.left, "route", "del", "default")  # it would move to IPv6
    quick = {"ike": {"liveness": 0.3, "retransmit_first": 0.25, "retransmit_tries": 3}}
    with twins(routed, place, left, right, left=quick) as both:
        both.left.ctl("up", "net")
        before = [one["spi_in"] for one in both.left.quick()]
        route = ("default", "via", "192.168.7.1")
        lab.ip("-n", routed.left, "route", "del", *route)
        eventually(lambda: both.left.main()[0]["stranded"], "it has noticed")
        time.sleep(2.5)  # a silent peer is given two
        assert "no way to right.lab" in both.left.ctl("status")
        lab.ip("-n", routed.left, "route", "add", *route)
        eventually(lambda: not both.left.main()[0]["stranded"], "it has noticed the route")
        eventually(lambda: not both.left.main()[0]["waiting"], "what was due got through")
        assert [one["spi_in"] for one in both.left.quick()] == before
        said = both.left.log()
        assert [said.count(what) for what in ("is unreachable", "can be sent again", "there is no way")] == [
            1,
            1,
            1,
        ]
        for what in ("del", "add"):
            lab.ip("-n", routed.left, "addr", what, f"{lab.INSIDE_LEFT}/24", "dev", "in0")
        eventually(
            lambda: lab.ping(routed.left, lab.INSIDE_RIGHT, count=1, wait=0.3).received, "it has its source"
        )
