"""The path between two daemons changes under their SAs, strangers say that it did, or packets come
another way."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

import pytest
from support import lab
from support.lab import Lab
from support.path import Datagrams, across, stream
from support.scenario import eventually

from offload import ip

pytestmark = pytest.mark.interop


@pytest.mark.parametrize(("engine", "udp"), [("native", False), ("native", True), ("python", True)])
def test_link_that_becomes_narrow(routed: Lab, place: Path, engine: str, udp: bool) -> None:
    """An interface's MTU may change under an SA: what the system then refuses must not be lost for ever."""
    with across(routed, place, udp=udp, engine=engine):
        stream(routed)
        for namespace, device in ((routed.left, "e0"), (routed.router, "e1")):
            lab.ip("-n", namespace, "link", "set", device, "mtu", "1300")
        stream(routed)


def hint(source: str, destination: str, ports: tuple[int, int], mtu: int) -> bytes:
    """ICMP "fragmentation needed" about a datagram, as short as RFC 792 allows."""
    quoted = ip.Outer(ip_address(source), ip_address(destination), ip.UDP).header(0, 1400)
    udp = b"".join(number.to_bytes(2, "big") for number in (*ports, 1400, 0))
    body = b"\3\4\0\0\0\0" + mtu.to_bytes(2, "big") + quoted + udp
    return body[:2] + ip.checksum(body).to_bytes(2, "big") + body[4:]


@pytest.mark.parametrize("engine", ["native", "python"])
def test_forged_hints_do_little(routed: Lab, place: Path, engine: str) -> None:
    """Anybody can send ICMP: about ports that are not ours it must change nothing, and with the right ones
    packets stay as large as every IPv4 path takes, and get through."""
    with across(routed, place, udp=True, engine=engine), Datagrams(routed) as one:
        one.passed(b"the first one")
        one.may_be_cut(False)
        with lab.socket_in(routed.router, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as forger:
            for ports in ((4500, 4501), (4501, 4500), (500, 500)):
                forger.sendto(hint(lab.NATTED, lab.RIGHT, ports, 68), (lab.NATTED, 0))
            forger.sendto(hint(lab.NATTED, "192.0.2.1", (4500, 4500), 68), (lab.NATTED, 0))
            one.passed(bytes(1350))
            forger.sendto(hint(lab.NATTED, lab.RIGHT, (4500, 4500), 68), (lab.NATTED, 0))
        assert one.largest(1340) == 552 - 28  # Linux makes no less of what it is told about inner packets
        one.passed(bytes(440))
        stream(routed)


@pytest.mark.parametrize("wanted", [["e0"], ["e0", "e1"]], ids=["one", "both"])
def test_interfaces_that_are_not_listened_on(routed: Lab, place: Path, wanted: list[str]) -> None:
    """ESP in UDP passes the daemon by, so who wants datagrams from some interfaces only has to be obeyed by
    the data plane, too: it is dropped where it comes in elsewhere, counted, and taken where it is wanted."""
    peer = ("type", "veth", "peer", "name", "e2", "netns", routed.router)
    lab.ip("link", "add", "e1", "netns", routed.left, *peer)
    for namespace, device, address in (
        (routed.left, "e1", "192.168.9.2/24"),
        (routed.router, "e2", "192.168.9.1/24"),
    ):
        lab.ip("-n", namespace, "addr", "add", address, "dev", device)
        lab.ip("-n", namespace, "link", "set", device, "up")
    both = across(routed, place, udp=True, left={"daemon": {"interfaces": wanted}})
    with both, Datagrams(routed, back=True) as one:
        stream(routed)
        assert one.passed(b"by the first link") == 0
        lab.ip("-n", routed.router, "route", "add", lab.NATTED, "via", "192.168.9.2", "dev", "e2")
        if "e1" in wanted:
            assert one.passed(b"by the second link") == 0
            return
        one.sender.send(b"by the second link")
        eventually(lambda: both.left.drops().get("filter: interface") == 1, "it is dropped and counted")
        lab.ip("-n", routed.router, "route", "del", lab.NATTED, "via", "192.168.9.2", "dev", "e2")
        assert one.passed(b"by the first link again") == 0
