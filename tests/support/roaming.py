"""A `Link` whose hosts have several addresses that come and go, and NATs that appear in front of them.

link = roaming()
link.gain(link.left, OTHER)        # what a host sends with is the first of its addresses
link.lose(link.left, LEFT)
link.run(5)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from support.link import Flight, Host, Link, mirrored, tunnel_hosts

from ikd.outputs import Transmit
from policy.engine import Policy
from sadb.address import Address, Path, SocketAddress
from sadb.sa import SaPair

LEFT2, LEFT3, RIGHT2 = ip_address("198.51.100.1"), ip_address("198.51.100.77"), ip_address("198.51.100.2")
OUTSIDE = ip_address("203.0.113.10")  # of a NAT
VICTIM = ip_address("203.0.113.66")  # somebody who has nothing to do with it


class Roaming(Link):
    """`addresses` of each host, the one it prefers first; `nats` are outer addresses and what they add to
    ports, by inner address; `cut` are pairs of addresses between which nothing passes."""

    def __init__(self, left: Host, right: Host) -> None:
        super().__init__(left, right)
        self.addresses: dict[Host, list[Address]] = {left: [left.address], right: [right.address]}
        self.nats: dict[Address, tuple[Address, int]] = {}
        self.cut: set[frozenset[Address]] = set()
        self.routed: dict[Host, bool] = {left: True, right: True}
        self.unrouted: set[Address] = set()  # addresses that nobody has a route to
        self.refused: list[Transmit] = []  # what a host could not send
        for one in (left, right):
            self.tell(one)

    # What happens to a host ------------------------------------------------------------------------------

    def tell(self, one: Host) -> None:
        """What the shell does when the kernel says that something has changed."""
        peers = one.endpoint.destinations()
        found = self.ways(one, peers)
        ways = {peer: found.get(peer) for peer in peers}
        addresses = frozenset(self.addresses[one])
        self.perform(one, one.endpoint.network_changed(addresses, ways, self.now))

    def gain(self, one: Host, address: Address, *, preferred: bool = True) -> None:
        """A host gets another address."""
        self.addresses[one].insert(0 if preferred else len(self.addresses[one]), address)
        self.tell(one)

    def lose(self, one: Host, address: Address) -> None:
        """A host loses an address."""
        self.addresses[one].remove(address)
        self.tell(one)

    def change(self, one: Host, old: Address, new: Address) -> None:
        """One goes and another comes before the host has noticed."""
        self.addresses[one][self.addresses[one].index(old)] = new
        self.tell(one)

    def route(self, one: Host, *, there: bool) -> None:
        """The default route of a host comes or goes."""
        self.routed[one] = there
        self.tell(one)

    # What is on the wire ---------------------------------------------------------------------------------

    def ways(self, one: Host, peers: Iterable[Address]) -> dict[Address, Address]:
        own = self.addresses[one] if self.routed[one] else []
        to = (peer for peer in peers if peer not in self.unrouted)
        found = {peer: next((a for a in own if a.version == peer.version), None) for peer in to}
        return {peer: local for peer, local in found.items() if local is not None}

    def _send(self, one: Host, output: Transmit) -> None:
        local, peer = output.path.local.address, output.path.peer.address
        if local not in self.addresses[one] or not self.routed[one] or peer in self.unrouted:
            self.refused.append(output)
            return
        super()._send(one, output)

    def _arrive(self, flight: Flight) -> None:
        receiver = self.other(flight.sender)
        source, target = flight.path.local, flight.path.peer
        inner = target
        for inside, (outside, shift) in self.nats.items():
            if source.address == inside:
                source = SocketAddress(outside, source.port + shift)
            if target.address == outside:
                inner = SocketAddress(inside, target.port - shift)
        if inner.address not in self.addresses[receiver] or inner.port not in (500, 4500):
            return
        if frozenset((flight.path.local.address, inner.address)) in self.cut:
            return
        self.perform(receiver, receiver.endpoint.receive(flight.data, Path(inner, source), self.now))

    def deliver(self, flight: Flight, source: SocketAddress) -> None:
        """A datagram that was sent comes with another source address than it left with."""
        receiver = self.other(flight.sender)
        path = Path(SocketAddress(receiver.address, flight.path.peer.port), source)
        self.perform(receiver, receiver.endpoint.receive(flight.data, path, self.now))


def open_ended(one: Host) -> None:
    """Let a host's tunnels begin at whatever address it has."""
    found = one.endpoint.policy
    rules = (replace(rule, tunnel=replace(rule.tunnel, local=None)) for rule in found.rules if rule.tunnel)
    one.endpoint.env.policy = Policy((*rules, *(rule for rule in found.rules if not rule.tunnel)))


def roaming(
    made: Callable[..., tuple[Host, Host]] = tunnel_hosts, *, named: bool = False, **how: Any
) -> Roaming:
    """Two hosts, as `made` makes them, with the tunnel `net` up; each names the other's end, and its own only
    if it is `named`."""
    left, right = made(**how)
    for one in () if named else (left, right):
        open_ended(one)
    link = Roaming(left, right)
    link.up("net")
    link.run(1)
    assert mirrored(link.left, link.right)
    return link


def ends(pair: SaPair) -> tuple[Address, Address, tuple[int, int] | None]:
    """Where a pair sends from and to, and the ports when it goes in UDP."""
    return pair.outbound.source, pair.outbound.destination, pair.outbound.encapsulation


def meet(link: Roaming) -> bool:
    """Whether what each side sends on its newest pair arrives at the other one."""
    ours, theirs = link.left.pairs[-1], link.right.pairs[-1]
    return all(_arrives(link, *both) for both in ((link.left, ours, theirs), (link.right, theirs, ours)))


def _arrives(link: Roaming, sender: Host, out: SaPair, into: SaPair) -> bool:
    local, peer, ports = ends(out)
    inner = next((inside for inside, (outside, _) in link.nats.items() if outside == peer), peer)
    natted = local in link.nats or inner != peer
    there = local in link.addresses[sender] and inner in link.addresses[link.other(sender)]
    return there and out.outbound.spi == into.inbound.spi and (ports is not None or not natted)
