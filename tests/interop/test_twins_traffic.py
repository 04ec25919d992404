"""Two ikd daemons: what is protected passes as ESP in every mix of addresses, and what is not protected does
not."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.lab import Lab
from support.scenario import Twins, eventually, tunnel_policy, twins

pytestmark = pytest.mark.interop

OUTER = {4: (lab.LEFT, lab.RIGHT), 6: (lab.LEFT6, lab.RIGHT6)}
INNER = {4: (lab.INSIDE_LEFT, lab.INSIDE_RIGHT), 6: (lab.INSIDE_LEFT6, lab.INSIDE_RIGHT6)}
NETS = {4: (lab.NET_LEFT, lab.NET_RIGHT), 6: (lab.NET_LEFT6, lab.NET_RIGHT6)}

HOST_RULE = """\
[[rule]]
name     = "host"
remote   = "{remote}"
security = "require"
peer     = "{peer}"
{extra}
"""


def host_twins(hosts: Lab, place: Path, *, version: int = 4, extra: str = "") -> Twins:
    """Transport mode between the hosts' own addresses."""
    left, right = OUTER[version]
    return twins(
        hosts,
        place,
        HOST_RULE.format(remote=right, peer="right.lab", extra=extra),
        HOST_RULE.format(remote=left, peer="left.lab", extra=extra),
    )


def net_twins(hosts: Lab, place: Path, *, outer: int = 4, inner: int = 4) -> Twins:
    """Tunnel mode between the networks behind the hosts."""
    left, right = OUTER[outer]
    nets = NETS[inner]
    return twins(
        hosts,
        place,
        tunnel_policy(left, right, local_net=nets[0], remote_net=nets[1], peer="right.lab"),
        tunnel_policy(right, left, local_net=nets[1], remote_net=nets[0], peer="left.lab"),
    )


def check_both_ways(hosts: Lab, left: str, right: str) -> None:
    """Ping and TCP, each side once as client."""
    for client, server, source, destination in (
        (hosts.left, hosts.right, left, right),
        (hosts.right, hosts.left, right, left),
    ):
        pinged = lab.ping(client, destination, source)
        assert pinged.received == pinged.sent, f"{source} -> {destination}: {pinged}"
        data = b"marker-in-clear-text" * 20000
        assert lab.tcp(client, server, destination, data, source) == data


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_tunnel_in_every_mix(hosts: Lab, place: Path, outer: int, inner: int) -> None:
    """A tunnel must carry either version in either version, and nothing readable may be on the wire."""
    both = net_twins(hosts, place, outer=outer, inner=inner)
    with both, Capture(hosts.right, "e0", place / "w.pcap") as wire:
        check_both_ways(hosts, *INNER[inner])
    assert set(wire.protocols()) == {"isakmp", "esp"}
    assert not wire.holds(b"marker-in-clear-text")


@pytest.mark.parametrize("version", [4, 6])
def test_transport_between_own_addresses(hosts: Lab, place: Path, version: int) -> None:
    """The simplest rule, host to host: same addresses inside and outside, so routing must not loop."""
    with host_twins(hosts, place, version=version), Capture(hosts.right, "e0", place / "w.pcap") as wire:
        check_both_ways(hosts, *OUTER[version])
    assert set(wire.protocols()) == {"isakmp", "esp"}
    assert not wire.holds(b"marker-in-clear-text")


SUITES = (
    "aes128gcm",
    "chacha20poly1305",
    "aes256 sha384 p256",
    "aes128gmac",
    "null sha256",
    "3des sha1",
    "ah sha256",
    "ah sha512",
)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", SUITES)
def test_every_kind_of_suite(hosts: Lab, place: Path, suite: str, version: int) -> None:
    """A suite that negotiates and then drops packets is an outage nobody expects; ESP and AH, between the
    hosts' own addresses, before and after a rekey."""
    crypto = f'\n[crypto.one]\nmain = ["x25519 aes128gcm sha256"]\nquick = ["{suite}"]\n'
    with (
        host_twins(hosts, place, version=version, extra='crypto = "one"\n' + crypto) as both,
        Capture(hosts.right, "e0", place / "w.pcap") as wire,
    ):
        check_both_ways(hosts, *OUTER[version])
        old = {one["spi_in"] for one in both.left.quick()}
        both.left.ctl("rekey", "host")
        eventually(lambda: not old & {one["spi_in"] for one in both.left.quick()}, "the old pair is gone")
        check_both_ways(hosts, *OUTER[version])
    carrier = "ah" if suite.startswith("ah") else "esp"
    assert carrier in wire.protocols()
    hidden = "gcm" in suite or "chacha" in suite or suite.startswith(("aes256", "3des"))
    assert wire.holds(b"marker-in-clear-text") is not hidden


def test_first_packet_after_a_cold_ping(
    hosts: Lab, place: Path, record_property: Callable[[str, object], None]
) -> None:
    """The administrator's first impression: the packet that starts the negotiation arrives, and soon. The aim
    is 50 ms on a quiet machine; the limit here allows for a busy one."""
    with net_twins(hosts, place) as both:
        times: list[float] = []
        for _ in range(7):
            pinged = lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=1, wait=5)
            assert pinged.received == 1
            times += pinged.times
            both.left.ctl("down", "net")
            eventually(lambda: not both.right.main() and not both.left.main(), "both sides are cold again")
    median = statistics.median(times)
    record_property("cold_ping_median_ms", round(median * 1000, 1))
    print(f"first protected packet: median {median * 1000:.1f} ms of {[round(t * 1000, 1) for t in times]}")
    assert median < 0.5


def test_large_packets_fit_or_are_told(hosts: Lab, place: Path) -> None:
    """Without path MTU messages, connections open and then hang on the first full packet."""
    with net_twins(hosts, place):
        assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT).received == 3
        whole = _big_ping(hosts, "do", 1472)
        assert "mtu" in whole.lower()
        cut = _big_ping(hosts, "dont", 4000)
        assert " 0% packet loss" in cut


def _big_ping(hosts: Lab, fragment: str, size: int) -> str:
    """Two packets of a size, with or without "do not fragment"; what the program printed."""
    sizes = ("-M", fragment, "-s", str(size))
    done = lab.run(hosts.left, "ping", "-c2", "-W2", *sizes, "-I", lab.INSIDE_LEFT, lab.INSIDE_RIGHT)
    return done.stdout + done.stderr


def test_require_drops_what_comes_in_the_clear(hosts: Lab, place: Path) -> None:
    """A rule that requires protection and still answers clear packets protects nobody."""
    both = host_twins(hosts, place)
    assert lab.ping(hosts.right, lab.LEFT, count=1).received == 1
    with both.left, Capture(hosts.right, "e0", place / "w.pcap") as wire:
        assert lab.ping(hosts.right, lab.LEFT, count=2, wait=1).received == 0
        lab.ping(hosts.left, lab.RIGHT, count=2, wait=1)
    sources = wire.tshark(
        "-Y", f"icmp.type in {{0, 8}} && ip.src == {lab.LEFT}", "-T", "fields", "-e", "ip.src"
    )
    assert not sources.strip(), "left sent in the clear what its rule requires protected"
    assert lab.ping(hosts.right, lab.LEFT, count=1).received == 1


def test_block_blocks_and_permit_permits(hosts: Lab, place: Path) -> None:
    """Plain filtering rules stand in the same file and must be as real as the others."""
    policy = """\
[[rule]]
name        = "no telnet"
action      = "block"
protocol    = "tcp"
local_port  = 2323

[[rule]]
name        = "web"
action      = "permit"
protocol    = "tcp"
local_port  = 8080
"""
    both = twins(hosts, place, policy, policy)
    with both.left:
        assert _connects(hosts, 8080)
        assert not _connects(hosts, 2323)
    assert _connects(hosts, 2323)


def _connects(hosts: Lab, port: int) -> bool:
    """Whether the right host gets a TCP connection to a listening port of the left one."""
    with (
        lab.socket_in(hosts.left, socket.AF_INET, socket.SOCK_STREAM) as listener,
        lab.socket_in(hosts.right, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((lab.LEFT, port))
        listener.listen()
        client.settimeout(1.5)
        return client.connect_ex((lab.LEFT, port)) == 0


def test_traffic_continues_through_a_rekey(hosts: Lab, place: Path) -> None:
    """Both ends replace keys at the same moment; no packet may fall between the old and the new SA."""
    with net_twins(hosts, place) as both:
        both.left.ctl("up", "net")
        old = {one["spi_in"] for one in both.left.quick()}
        with lab.pinging(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
            pings.goes_on()
            both.left.ask("rekey", name="net")
            both.right.ask("rekey", name="net")
            eventually(lambda: not old & {one["spi_in"] for one in both.left.quick()}, "the old pair is gone")
            pings.goes_on()
        assert pings.lost == 0
        eventually(lambda: len(both.left.quick()) == len(both.right.quick()) == 1, "one pair is left")
