"""What the host looks like around the data plane: who is led into the TUN device, what the packet filter
stops, and what is left behind. Packets travel through a relay that wraps without encrypting, so that only
routing and filter are under test."""

from __future__ import annotations

import dataclasses
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.lab import Lab
from support.relay import MARK, SPI, Relay, outer_header
from support.scenario import eventually

from offload.host.filter import REASONS, Marks
from sadb.flows import FlowTable
from sadb.sa import Action, Flow, Level, Mode
from sadb.selector import ANY_PORT, ICMPV6, TCP, Selector, TrafficSelector, fields_of

pytestmark = pytest.mark.interop

OUTER = {4: (lab.LEFT, lab.RIGHT), 6: (lab.LEFT6, lab.RIGHT6)}
INNER = {4: (lab.INSIDE_LEFT, lab.INSIDE_RIGHT), 6: (lab.INSIDE_LEFT6, lab.INSIDE_RIGHT6)}
NETS = {4: (lab.NET_LEFT, lab.NET_RIGHT), 6: (lab.NET_LEFT6, lab.NET_RIGHT6)}
SEEDS = (0, 5, 45)  # chosen so that every outcome is frequent
ANY = {4: "0.0.0.0/0", 6: "::/0"}


def side(
    networks: str | Sequence[str], protocol: int = 0, ports: tuple[int, int] = ANY_PORT
) -> tuple[TrafficSelector, ...]:
    """One side of a selector; prefixes or addresses."""
    texts = [networks] if isinstance(networks, str) else networks
    return tuple(TrafficSelector.of(ip_network(text), protocol, ports) for text in texts)


DISCOVERY = Flow(
    "neighbour discovery",
    Selector(side(ANY[6], ICMPV6, (135 << 8, 137 << 8 | 0xFF)), side(ANY[6], ICMPV6)),
    Action.PERMIT,
)


def flow(
    local: tuple[TrafficSelector, ...],
    remote: tuple[TrafficSelector, ...],
    action: Action = Action.SECURE,
    **more: object,
) -> Flow:
    """A flow; `ordered` gives it its place."""
    return dataclasses.replace(Flow("", Selector(local, remote), action), **more)  # type: ignore[arg-type]


def ordered(*flows: Flow) -> tuple[Flow, ...]:
    """In this order, behind what is always exempt."""
    return tuple(
        dataclasses.replace(one, order=n, rule=one.rule or f"rule {n}")
        for n, one in enumerate((DISCOVERY, *flows))
    )


def host_flows(version: int, **more: object) -> tuple[tuple[Flow, ...], tuple[Flow, ...]]:
    """Transport mode between the hosts' own addresses: left's flows and right's."""
    left, right = OUTER[version]
    any_ = side(ANY[version])
    return ordered(flow(any_, side(right), **more)), ordered(flow(any_, side(left), **more))


def net_flows(inner: int, outer: int = 4) -> tuple[tuple[Flow, ...], tuple[Flow, ...]]:
    """Tunnel mode between the networks behind the hosts."""
    (left, right), nets = OUTER[outer], NETS[inner]
    ends = [ip_address(one) for one in (left, right)]
    return (
        ordered(
            flow(side(nets[0]), side(nets[1]), mode=Mode.TUNNEL, tunnel_local=ends[0], tunnel_remote=ends[1])
        ),
        ordered(
            flow(side(nets[1]), side(nets[0]), mode=Mode.TUNNEL, tunnel_local=ends[1], tunnel_remote=ends[0])
        ),
    )


@contextmanager
def relays(
    hosts: Lab, flows: tuple[tuple[Flow, ...], tuple[Flow, ...]], outer: int = 4
) -> Iterator[tuple[Relay, Relay]]:
    """Both hosts with their flows."""
    left, right = OUTER[outer]
    with (
        Relay(hosts.left, left, right, flows[0]) as one,
        Relay(hosts.right, right, left, flows[1]) as other,
    ):
        yield one, other


def check_both_ways(hosts: Lab, left: str, right: str, *, bound: bool = True) -> None:
    """Ping and much TCP, each side once as client; the application chooses its source or leaves that open."""
    for client, server, source, destination in (
        (hosts.left, hosts.right, left, right),
        (hosts.right, hosts.left, right, left),
    ):
        pinged = lab.ping(client, destination, source if bound else None)
        assert pinged.received == pinged.sent, f"{source} -> {destination}: {pinged}"
        data = b"marker-in-clear-text" * 20000
        assert lab.tcp(client, server, destination, data, source if bound else None) == data


def connects(client: str, server: str, address: str, port: int, patience: float = 20) -> bool:
    """Whether a TCP connection comes about, within so many seconds."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        lab.socket_in(server, family, socket.SOCK_STREAM) as listener,
        lab.socket_in(client, family, socket.SOCK_STREAM) as sender,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
        sender.settimeout(patience)
        return sender.connect_ex((address, port)) == 0


def of_protocol(wire: Capture, condition: str) -> int:
    """How many captured frames fit a display filter."""
    return len(wire.tshark("-Y", condition, "-T", "fields", "-e", "frame.number").split())


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("version", [4, 6])
def test_transport_between_own_addresses(hosts: Lab, place: Path, version: int, bound: bool) -> None:
    """Inner and outer packets have the same addresses: the ones must be led into the device, the others not,
    and what comes out of it must be believed although it is routed elsewhere."""
    with relays(hosts, host_flows(version), version), Capture(hosts.right, "e0", place / "w.pcap") as wire:
        check_both_ways(hosts, *OUTER[version], bound=bound)
    assert of_protocol(wire, "esp") > 100
    assert not of_protocol(wire, "tcp || icmp.type == 8 || icmpv6.type == 128")


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_tunnel_without_other_route(hosts: Lab, place: Path, inner: int, outer: int, bound: bool) -> None:
    """The remote network has no route besides ours, and who chose no source gets the inside address."""
    with (
        relays(hosts, net_flows(inner, outer), outer),
        Capture(hosts.right, "e0", place / "w.pcap") as wire,
    ):
        check_both_ways(hosts, *INNER[inner], bound=bound)
    assert of_protocol(wire, "esp") > 100
    assert not of_protocol(wire, "tcp || icmp.type == 8 || icmpv6.type == 128")


@pytest.mark.parametrize("strict", ["all", "e0"])
def test_strict_reverse_path_filter(hosts: Lab, strict: str) -> None:
    """Distributions switch it on: decrypted packets must pass although "all" is strict, and the packets of
    the peer must pass although a tunnel to "any" would be the way back."""
    for namespace in (hosts.left, hosts.right):
        lab.run(namespace, "sysctl", "-qw", f"net.ipv4.conf.{strict}.rp_filter=1")
    with relays(hosts, host_flows(4)):
        check_both_ways(hosts, *OUTER[4])
    left, right = net_flows(4)
    wide = ordered(
        flow(side(lab.NET_LEFT), side(lab.NET_LEFT), Action.PERMIT),
        dataclasses.replace(left[1], selector=Selector(side(lab.NET_LEFT), side(ANY[4]))),
    )
    back = ordered(dataclasses.replace(right[1], selector=Selector(side(ANY[4]), side(lab.NET_LEFT))))
    with relays(hosts, (wide, back)):
        check_both_ways(hosts, *INNER[4])
        assert lab.ping(hosts.right, lab.LEFT).received == 3


def test_forwarding_between_networks(hosts: Lab) -> None:
    """A gateway's tunnel is for the hosts behind it; their packets are only forwarded here."""
    for namespace, inside, outside in (
        (hosts.left, lab.INSIDE_LEFT, "10.1.0.9"),
        (hosts.right, lab.INSIDE_RIGHT, "10.2.0.9"),
    ):
        lab.run(namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        behind = f"{namespace}b"
        lab.ip("netns", "add", behind)
        lab.ip("-n", namespace, "link", "set", "in1", "netns", behind)
        lab.ip("-n", behind, "addr", "add", f"{outside}/24", "dev", "in1")
        lab.ip("-n", behind, "link", "set", "in1", "up")
        lab.ip("-n", behind, "route", "add", "default", "via", inside)
    try:
        with relays(hosts, net_flows(4)) as (left, _):
            one, other = f"{hosts.left}b", f"{hosts.right}b"
            assert lab.ping(one, "10.2.0.9").received == 3
            data = b"through two gateways" * 20000
            assert lab.tcp(one, other, "10.2.0.9", data) == data
            assert not any(left.ask("drops").values())
    finally:
        for namespace in (hosts.left, hosts.right):
            lab.ip("netns", "del", f"{namespace}b")


def test_only_one_port_is_secured(hosts: Lab, place: Path) -> None:
    """A rule for one service, open to any client: others go in the clear, and nobody reaches this one so."""
    server = ordered(flow(side(ANY[4], TCP, (1433, 1433)), side(ANY[4], TCP)))
    client = ordered(flow(side(ANY[4], TCP), side(lab.LEFT, TCP, (1433, 1433))))
    with (
        Relay(hosts.left, lab.LEFT, lab.RIGHT, server) as left,
        Relay(hosts.right, lab.RIGHT, lab.LEFT, client) as right,
        Capture(hosts.right, "e0", place / "w.pcap") as wire,
    ):
        assert connects(hosts.right, hosts.left, lab.LEFT, 1433)
        assert connects(hosts.right, hosts.left, lab.LEFT, 1434)
        right.stop()
        assert not connects(hosts.right, hosts.left, lab.LEFT, 1433, 1)
        assert left.ask("drops")["clear_in"] > 0
    assert of_protocol(wire, "esp")
    assert of_protocol(wire, "tcp.port == 1434")
    assert not of_protocol(wire, f"tcp.port == 1433 && ip.src == {lab.LEFT}")


def test_exception_before_a_wider_rule(hosts: Lab, place: Path) -> None:
    """A permit flow before a secure one must win in both directions, for a host and for a tunnel."""
    left, right = (
        ordered(
            flow(side(ANY[4], TCP, mine), side(ANY[4], TCP, theirs), Action.PERMIT),
            *flows[0][1:],
            *flows[1][1:],
        )
        for flows, mine, theirs in zip(
            zip(host_flows(4), net_flows(4), strict=True),
            ((8080, 8080), ANY_PORT),
            (ANY_PORT, (8080, 8080)),
            strict=True,
        )
    )
    lab.ip("-n", hosts.left, "route", "add", lab.NET_RIGHT, "via", lab.RIGHT)
    lab.ip("-n", hosts.right, "route", "add", lab.NET_LEFT, "via", lab.LEFT)
    with relays(hosts, (left, right)), Capture(hosts.right, "e0", place / "w.pcap") as wire:
        for address in (lab.LEFT, lab.INSIDE_LEFT):
            assert connects(hosts.right, hosts.left, address, 8080)
            assert connects(hosts.right, hosts.left, address, 8081)
    assert of_protocol(wire, f"tcp.port == 8080 && ip.addr == {lab.LEFT}")
    assert of_protocol(wire, f"tcp.port == 8080 && ip.addr == {lab.INSIDE_LEFT}")
    assert not of_protocol(wire, "tcp.port == 8081")


@pytest.mark.parametrize("version", [4, 6])
def test_block_in_both_directions(hosts: Lab, version: int) -> None:
    """A blocked service must be out of reach from both sides, and out of the tunnel, too."""
    both = side([ANY[4], ANY[6]], TCP, (2323, 2323))
    blocking = ordered(
        flow(both, side([ANY[4], ANY[6]], TCP), Action.BLOCK),
        flow(side([ANY[4], ANY[6]], TCP), both, Action.BLOCK),
        *host_flows(version)[0][1:],
    )
    with relays(hosts, (blocking, host_flows(version)[1]), version) as (left, _):
        address, peer = OUTER[version]
        assert connects(hosts.right, hosts.left, address, 8080)
        assert not connects(hosts.right, hosts.left, address, 2323, 1)
        assert not connects(hosts.left, hosts.right, peer, 2323, 1)
        assert left.ask("drops")["blocked"] >= 2


@pytest.mark.parametrize("version", [4, 6])
def test_require_stops_what_is_clear(hosts: Lab, place: Path, version: int) -> None:
    """With a peer that protects nothing, neither its packets come in nor ours go out; the link itself works
    before and after."""
    address, peer = OUTER[version]
    assert lab.ping(hosts.right, address, count=1).received == 1
    with (
        Relay(hosts.left, address, peer, host_flows(version)[0]) as left,
        Capture(hosts.right, "e0", place / "w.pcap") as wire,
    ):
        assert lab.ping(hosts.right, address, count=2, wait=1).received == 0
        assert lab.ping(hosts.left, peer, count=2, wait=1).received == 0
        assert left.ask("drops")["clear_in"] >= 2
        bound = lab.run(hosts.left, "ping", "-c1", "-W1", "-I", "e0", peer)  # past our routes, not the filter
        assert bound.returncode != 0
        assert left.ask("drops")["clear_out"] >= 1
        assert lab.ping(hosts.left, address, count=1).received == 1  # loopback is untouched
    # what an error message quotes counts as well for tshark, so only echo messages are looked for
    echo, source = (
        ("icmp.type in {0, 8}", "ip.src") if version == 4 else ("icmpv6.type in {128, 129}", "ipv6.src")
    )
    assert not of_protocol(wire, f"{echo} && {source} == {address}")
    assert lab.ping(hosts.right, address, count=1).received == 1


def test_request_and_none_let_clear_packets_in(hosts: Lab) -> None:
    """Only "require" closes a direction."""
    flows = host_flows(4, inbound=Level.REQUEST, outbound=Level.REQUIRE)[0]
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, flows) as left:
        lab.ping(hosts.right, lab.LEFT, count=1, wait=1)
        assert left.ask("drops")["clear_in"] == 0


@pytest.mark.parametrize("version", [4, 6])
def test_later_fragments_do_not_slip_through(hosts: Lab, version: int) -> None:
    """They show no ports, and a rule with ports must not let them in: mixed with protected ones they would be
    put together to something nobody sent."""
    address, peer = OUTER[version]
    flows = ordered(flow(side(ANY[version], 17, (53, 53)), side(ANY[version], 17)))
    with Relay(hosts.left, address, peer, flows) as left:
        size = 3000
        with lab.socket_in(
            hosts.right, socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM
        ) as one:
            one.sendto(bytes(size), (address, 53))
        eventually(lambda: left.ask("drops")["fragments"] == 2, "two later fragments are dropped")
        assert left.ask("drops")["clear_in"] == 1


def test_stop_leaves_nothing(hosts: Lab) -> None:
    """A rule, route, device or table that stays breaks the host after an upgrade."""
    before = lab.footprint(hosts.left)
    flows = ordered(*host_flows(4)[0][1:], *host_flows(6)[0][1:], *net_flows(4)[0][1:], *net_flows(6)[0][1:])
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, flows) as one:
        during = lab.footprint(hosts.left)
        for word in ("ikd0", "lookup", "table inet ikd_ikd0"):
            assert word in during
        one.stop()
    assert lab.footprint(hosts.left) == before


def test_crash_stays_closed_until_the_next_start(hosts: Lab) -> None:
    """After a crash nothing leaves in the clear, not even by a route somebody adds, and the next start has no
    trouble with what is left and leaves nothing of it."""
    before = lab.footprint(hosts.left)
    left, right = (ordered(*a[1:], *b[1:]) for a, b in zip(host_flows(4), net_flows(4), strict=True))
    with relays(hosts, (left, right)) as (one, other):
        check_both_ways(hosts, *INNER[4])
        one.kill()
        assert "table inet ikd_ikd0" in lab.footprint(hosts.left)
        lab.ip("-n", hosts.left, "route", "add", lab.NET_RIGHT, "via", lab.RIGHT)
        other.stop()
        for destination, source in ((lab.RIGHT, lab.LEFT), (lab.INSIDE_RIGHT, lab.INSIDE_LEFT)):
            assert lab.ping(hosts.left, destination, source, count=1, wait=1).received == 0
        assert lab.ping(hosts.right, lab.LEFT, count=1, wait=1).received == 0
        lab.ip("-n", hosts.left, "route", "del", lab.NET_RIGHT)
    with relays(hosts, (left, right)) as (one, _):
        check_both_ways(hosts, *INNER[4])
        check_both_ways(hosts, *OUTER[4])
        one.stop()
    assert lab.footprint(hosts.left) == before


def test_masquerading_after_a_crash(hosts: Lab, place: Path) -> None:
    """NAT on the way out hides the inner addresses from a filter behind it; closed must still be closed."""
    lab.nft(hosts.left, lab.MASQUERADE)
    lab.ip("-n", hosts.left, "route", "add", "default", "via", lab.RIGHT)
    with relays(hosts, net_flows(4)) as (one, _):
        check_both_ways(hosts, *INNER[4])
        one.kill()
        with Capture(hosts.right, "e0", place / "w.pcap") as wire:
            assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=1, wait=1).received == 0
    assert not of_protocol(wire, "icmp")


def test_what_routing_leads_is_marked_all_the_same(hosts: Lab) -> None:
    """Another program's rules may route it elsewhere after that: only the mark then says that it must not
    leave, also behind a NAT that hides where it comes from."""
    lab.nft(hosts.left, f"table inet spy {{\nchain out {{\n{_SPY}}}\n}}\n")
    with relays(hosts, net_flows(4)):
        check_both_ways(hosts, *INNER[4])
        seen = lab.run(hosts.left, "nft", "list", "table", "inet", "spy").stdout
    must, other = (
        int(line.split("packets ")[1].split()[0]) for line in seen.splitlines() if "packets" in line
    )
    assert must > 0
    assert other == 0


_SPY = f"""\
type filter hook output priority -90;
oifname ikd0 meta mark {Marks.of("ikd0", MARK).must:#x} counter accept
oifname ikd0 counter
"""


def test_crash_opens_when_told_so(hosts: Lab) -> None:
    """Whoever prefers reachability gets it, and a stop cleans up all the same."""
    before = lab.footprint(hosts.left)
    flows = host_flows(4)[0]
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, flows, stay_closed=False) as one:
        assert lab.ping(hosts.left, lab.RIGHT, count=1, wait=1).received == 0
        assert one.apply(flows) == "ok"
        one.kill()
    eventually(lambda: lab.ping(hosts.left, lab.RIGHT, count=1, wait=1).received, "the link is open again")
    assert "table inet" not in lab.footprint(hosts.left)
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, flows, stay_closed=False) as one:
        one.stop()
    assert lab.footprint(hosts.left) == before


def test_reload_never_opens(hosts: Lab, place: Path) -> None:
    """While the filter is replaced again and again, no clear packet gets through, and drops add up: but for
    those between reading an old counter and replacing it."""
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, host_flows(4)[0]) as one:
        other = ordered(*host_flows(4)[0][1:], *net_flows(4)[0][1:])
        command = ["ip", "netns", "exec", hosts.right, "ping", "-n", "-q", "-f", "-w", "3", lab.LEFT]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
            for n in range(40):
                assert one.apply((other, host_flows(4)[0])[n % 2]) == "ok"
            replaced = time.monotonic() - began
            output, _ = flood.communicate()
        pinged = lab.Pinged.read(output)
        assert pinged.sent > 50
        assert pinged.received == 0
        uncounted = pinged.sent - one.ask("drops")["clear_in"]
        assert uncounted <= 0.75 * pinged.sent * min(1, replaced / 3)


def test_failed_reload_keeps_the_former_state(hosts: Lab) -> None:
    """Half a policy in force would be worse than either."""
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, host_flows(4)[0], stay_closed=True) as one:
        before = lab.footprint(hosts.left)
        # the table now belongs to somebody else, who is alive
        lab.run(hosts.left, "nft", "delete", "table", "inet", "ikd_ikd0")
        with subprocess.Popen(
            ["ip", "netns", "exec", hosts.left, "nft", "-i"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as owner:
            assert owner.stdin
            owner.stdin.write("add table inet ikd_ikd0 { flags owner; }\n")
            owner.stdin.flush()
            eventually(
                lambda: "ikd_ikd0" in lab.run(hosts.left, "nft", "list", "tables").stdout, "it is taken"
            )
            complaint = one.apply(ordered(*host_flows(4)[0][1:], *net_flows(4)[0][1:]))
            assert "another running ikd" in complaint
            owner.stdin.close()
        assert _routing(lab.footprint(hosts.left)) == _routing(before)
        assert one.apply(host_flows(4)[0]) == "ok"
        assert lab.footprint(hosts.left) == before


def _routing(text: str) -> list[str]:
    return [line for line in text.splitlines() if "lookup" in line or "dev ikd0" in line]


def test_two_devices_side_by_side(hosts: Lab) -> None:
    """The names tell two data planes apart: stopping the one leaves the other."""
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, host_flows(4)[0]) as one:
        before = lab.footprint(hosts.left)
        with Relay(hosts.left, lab.LEFT, lab.RIGHT, net_flows(4)[0], device="ikd1") as two:
            assert "table inet ikd_ikd1" in lab.footprint(hosts.left)
            two.stop()
        assert lab.footprint(hosts.left) == before
        one.stop()


def test_second_user_of_the_device_is_told(hosts: Lab) -> None:
    """The message must name the reason and what to do."""
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, host_flows(4)[0]):
        second = Relay.__new__(Relay)
        with pytest.raises(AssertionError, match=r"in use.*dataplane\.device"):
            Relay.__init__(second, hosts.left, lab.LEFT, lab.RIGHT, host_flows(4)[0])
        second.__exit__()


@pytest.mark.parametrize("version", [4, 6])
def test_link_mtu_is_told(hosts: Lab, version: int) -> None:
    """A packet that does not fit our own link would vanish again and again if nobody learned why."""
    address, peer = OUTER[version]
    lab.ip("-n", hosts.left, "link", "set", "e0", "mtu", "1300")
    with Relay(hosts.left, address, peer, ()) as one:
        assert one.ask("send", packet=esp_packet(address, peer, 1301)) == 0
        assert one.ask("told") == [[peer, 1300, None]]
        assert one.ask("send", packet=esp_packet(address, peer, 1300)) == 1
        assert one.ask("counters")["too big"] == 1


def test_path_mtu_is_learned_for_our_packets_only(natted: Lab) -> None:
    """A router's word comes with the SPI it is about, so that it can be judged, and the kernel does not act
    on it behind our back: it would take the inner packets' limit for that of the path."""
    assert natted.nat
    lab.ip("-n", natted.nat, "link", "set", "e0", "mtu", "1200")
    with Relay(natted.left, lab.NATTED, lab.RIGHT, ()) as one:
        assert one.ask("send", packet=esp_packet(lab.NATTED, lab.RIGHT, 1400)) == 1
        reports: list[list[object]] = []
        eventually(lambda: reports.extend(one.ask("told")) or reports, "the router's message has come")
        assert reports == [[lab.RIGHT, 1200, SPI]]
        assert one.ask("send", packet=esp_packet(lab.NATTED, lab.RIGHT, 1400)) == 1
        assert one.ask("send", packet=esp_packet(lab.NATTED, lab.RIGHT, 1200)) == 1


def esp_packet(source: str, destination: str, size: int) -> str:
    """An IP packet of `size` octets in all, as hexadecimal digits."""
    header = outer_header(ip_address(source), ip_address(destination), 0)
    header = outer_header(ip_address(source), ip_address(destination), size - len(header))
    return (header + SPI.to_bytes(4, "big")).ljust(size, b"\0").hex()


def test_strangers_octets_disturb_nobody(hosts: Lab) -> None:
    """Protocol 50 and 51 with any content, from any source."""
    with (
        Relay(hosts.left, lab.LEFT, lab.RIGHT, ()) as one,
        lab.socket_in(hosts.right, socket.AF_INET, socket.SOCK_RAW, 50) as esp,
        lab.socket_in(hosts.right, socket.AF_INET6, socket.SOCK_RAW, 51) as ah,
    ):
        for size in (0, 1, 3, 4, 7, 8, 9, 200, 4000, 60000):
            esp.sendto(SPI.to_bytes(4, "big")[:size].ljust(size, b"\x41"), (lab.LEFT, 0))
            ah.sendto(bytes(size), (lab.LEFT6, 0))
        assert one.ask("told") == []


def test_host_without_ipv6(hosts: Lab) -> None:
    """IPv6 switched off for new devices is no reason not to protect IPv4."""
    lab.run(hosts.left, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    flows = ordered(*host_flows(4)[0][1:], *host_flows(6)[0][1:], *net_flows(6)[0][1:])
    before = lab.footprint(hosts.left)
    with (
        Relay(hosts.left, lab.LEFT, lab.RIGHT, flows) as one,
        Relay(hosts.right, lab.RIGHT, lab.LEFT, host_flows(4)[1]),
    ):
        check_both_ways(hosts, *OUTER[4])
        assert lab.ping(hosts.left, lab.RIGHT6, count=1, wait=1).received == 0
        one.stop()
    assert lab.footprint(hosts.left) == before


@pytest.mark.parametrize("seed", SEEDS)
def test_filter_agrees_with_the_order_of_flows(hosts: Lab, seed: int) -> None:
    """The kernel's first match must be the policy's: many packets of strangers against rules that overlap,
    and for each reason as many dropped as a plain search says."""
    dice = random.Random(seed)
    quiet = (side(["fe80::/10", "ff00::/8"]), side(ANY[6]))  # what the hosts' kernels say meanwhile
    exempt = [flow(*ends, Action.PERMIT) for ends in (quiet, quiet[::-1])]
    flows = ordered(*exempt, *(random_flow(dice) for _ in range(40)))
    table = FlowTable(flows)
    expected = dict.fromkeys(REASONS, 0)
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, flows) as one:
        link = lab.run(hosts.left, "cat", "/sys/class/net/e0/address").stdout.strip()
        begin, sent = one.ask("drops"), 0
        with lab.socket_in(hosts.right, socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("e0", 0))
            for _ in range(1500):
                packet = random_packet(dice)
                kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
                sent += 1
                wire.send(bytes.fromhex(link.replace(":", "")) + bytes(6) + kind + packet)
                fields = fields_of(packet)
                assert fields
                found = table.lookup(fields, outbound=False)
                onward = table.lookup(fields, outbound=True)  # they are for others, so they are asked twice
                if found and found.action is Action.SECURE and found.inbound is Level.REQUIRE:
                    expected["clear_in"] += 1
                elif Action.BLOCK in (found and found.action, onward and onward.action):
                    expected["blocked"] += 1
        eventually(lambda: _differences(one.ask("drops"), begin) == expected, "every packet is judged")
    assert min(expected["blocked"], expected["clear_in"], sent - sum(expected.values())) > 50


def _differences(now: dict[str, int], begin: dict[str, int]) -> dict[str, int]:
    return {name: now[name] - begin[name] for name in now}


PLACES = ["203.0.113.1", "203.0.113.2", "203.0.113.77", "2001:db8:5::1", "2001:db8:5::2", "2001:db8:5::7:7"]
PREFIXES = [
    "203.0.113.0/24",
    "203.0.113.0/30",
    "203.0.113.2/32",
    "2001:db8:5::/48",
    "2001:db8:5::/126",
    *ANY.values(),
]


def random_flow(dice: random.Random) -> Flow:
    """Any action, for some addresses, protocols and ports."""
    protocol = dice.choice((0, 0, 1, 6, 17, 58, 99, 132))

    def end() -> tuple[TrafficSelector, ...]:
        found: list[TrafficSelector] = []
        for _ in range(dice.randint(1, 3)):
            ports = ANY_PORT
            if protocol in (6, 17, 132) and dice.random() < 0.7:
                low = dice.randint(0, 6)
                ports = (low, low + dice.randint(0, 3))
            elif protocol in (1, 58) and dice.random() < 0.5:
                ports = (8 << 8, 8 << 8 | 255)
            found += side(dice.choice(PREFIXES), protocol, ports)
        return tuple(found)

    action = dice.choice((Action.BLOCK, Action.PERMIT, Action.SECURE))
    return flow(end(), end(), action, inbound=dice.choice((Level.REQUIRE, Level.REQUEST)))


def random_packet(dice: random.Random) -> bytes:
    """A packet among these addresses."""
    version = dice.choice((4, 6))
    source, destination = (
        ip_address(dice.choice([one for one in PLACES if (":" in one) == (version == 6)])) for _ in range(2)
    )
    protocol = dice.choice((1 if version == 4 else 58, 6, 17, 99, 132))
    if protocol in (1, 58):
        data = bytes((dice.choice((8, 9)), 0, 0, 0)) + bytes(16)
    else:
        data = dice.randint(0, 9).to_bytes(2, "big") + dice.randint(0, 9).to_bytes(2, "big") + bytes(20)
    packet = bytearray(outer_header(source, destination, len(data), protocol) + data)
    if version == 4:
        total = sum(int.from_bytes(packet[n : n + 2], "big") for n in range(0, 20, 2))
        packet[10:12] = (0xFFFF - (total % 0xFFFF)).to_bytes(2, "big")
    return bytes(packet)


def test_addresses(hosts: Lab) -> None:
    """Explaining a packet needs to know which end of it is this host."""
    with Relay(hosts.left, lab.LEFT, lab.RIGHT, ()) as one:
        assert {lab.LEFT, lab.LEFT6, lab.INSIDE_LEFT, lab.INSIDE_LEFT6, "127.0.0.1"} <= set(
            one.ask("addresses")
        )
