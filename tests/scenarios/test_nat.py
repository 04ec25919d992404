"""A NAT in front of either host, whatever the keying module (RFC 3947, RFC 3948, RFC 7296 section 2.23); what
only one of them has is in `test_nat_and_fragments`, `test_ikev1_path` and `test_authip_path`.

If one of these fails, a host behind a NAT loses its SA when the NAT forgets, or a stranger who sees packets
can move an SA to himself."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from itertools import pairwise

import pytest
from support import authip, phases
from support import link as ikev2
from support.link import BOTH, NAT, RIGHT, SHIFT, Link, agree, story

from ikd.events import PeerMoved
from ikd.settings import IkeSettings
from sadb.address import Path, SocketAddress

CONNECTED: dict[str, Callable[..., Link]] = {
    "ikev2": ikev2.connected,
    "ikev1": phases.connected,
    "authip": authip.connected,
}
EVERY = pytest.mark.parametrize("protocol", CONNECTED)
NATTED = pytest.mark.parametrize("nat", BOTH)
# seconds after which a pair is replaced, a main-mode SA, and one is deleted with all acknowledgements
WAITS = {"ikev2": (5, 5, 5), "ikev1": (15, 70, 2), "authip": (15, 70, 10)}
FIXED = IkeSettings(mobike=False)  # with MOBIKE an IKE SA moves in other ways


@EVERY
def test_without_a_nat(protocol: str) -> None:
    """Nothing is encapsulated, and everything stays on port 500."""
    link = CONNECTED[protocol](settings=FIXED)
    assert not link.left.ikes[0].nat
    assert link.left.pairs[0].outbound.encapsulation is None
    assert {one.path.peer.port for one in link.flights} == {500}


@EVERY
@NATTED
def test_everything_works_through_a_nat(nat: str, protocol: str) -> None:
    """Replacing both kinds of SA from either side, and deleting, with the ports kept."""
    link = CONNECTED[protocol](nat=nat)
    link.watch()
    pair, whole, end = WAITS[protocol]
    for one in (link.left, link.right):
        link.rekey_child(one)
        link.run(pair)
        link.rekey(one)
        link.run(whole)
        agree(link, ikes=1, pairs=1)
        assert link.other(link.named(nat)).pairs[0].outbound.encapsulation == (4500, SHIFT + 4500)
    assert not link.gaps, story(link)
    link.close(link.other(link.named(nat)))
    link.run(end)
    agree(link, ikes=0, pairs=0)


@EVERY
@NATTED
def test_keepalives_come_from_inside_only(nat: str, protocol: str) -> None:
    """RFC 3948 section 4: whoever is behind the NAT keeps its mapping open, the other has nothing to keep."""
    link = CONNECTED[protocol](nat=nat, settings=IkeSettings(liveness=0))
    link.run(100)
    inside = link.named(nat)
    assert {round(later - one) for one, later in pairwise(inside.keepalives)} == {20}
    assert 4 <= len(inside.keepalives) <= 5
    assert not link.other(inside).keepalives


@EVERY
@NATTED
def test_the_nat_takes_another_port(nat: str, protocol: str) -> None:
    """It forgot its mapping: the next authentic message from inside tells the new port, and pairs follow."""
    link = CONNECTED[protocol](nat=nat, settings=FIXED)
    outside = link.other(link.named(nat))
    (pair,) = outside.pairs
    link.shift = 20000
    link.run(60)  # liveness of the inside
    (moved,) = outside.of(PeerMoved) or (None,)
    assert moved is None or moved.new.peer == SocketAddress(NAT, 24500)
    assert outside.pairs == [pair]
    assert pair.outbound.encapsulation == (4500, 24500)
    link.rekey_child(outside)
    link.run(15)
    agree(link, ikes=1, pairs=1)
    assert outside.pairs[0].outbound.encapsulation == (4500, 24500)


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
@NATTED
def test_a_recording_from_elsewhere_moves_nobody(nat: str, protocol: str) -> None:
    """Only new authentic messages count: what was recorded, acknowledgements included, or changed, does
    not."""
    link = CONNECTED[protocol](nat=nat)
    inside = link.named(nat)
    outside = link.other(inside)
    for one in (inside, outside, inside):
        link.rekey_child(one)
        link.run(40)
    path = outside.ikes[0].path
    thief = Path(SocketAddress(outside.address, 4500), SocketAddress(ip_address("203.0.113.66"), 4500))
    count = len(link.flights)
    for flight in list(link.flights):
        if flight.sender is inside:
            for data in (flight.data, flight.data[:-1] + bytes((flight.data[-1] ^ 1,))):
                link.perform(outside, outside.endpoint.receive(data, thief, link.now))
                assert outside.ikes[0].path == path, str(flight)
    assert outside.pairs[0].outbound.encapsulation == (4500, SHIFT + 4500)
    for flight in link.flights[count:]:
        if flight.path.peer == thief.peer:  # a first message is anybody's
            assert flight.header.spi_r != outside.ikes[0].spi_r


@EVERY
def test_without_a_nat_a_peer_does_not_move(protocol: str) -> None:
    """Another address is not the peer's: no NAT was found, and MOBIKE is another protocol."""
    link = CONNECTED[protocol](settings=FIXED)
    path = link.right.ikes[0].path
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.rekey_child(link.left)
    elsewhere = Path(SocketAddress(RIGHT, 500), SocketAddress(ip_address("203.0.113.66"), 500))
    link.perform(link.right, link.right.endpoint.receive(link.flights[-1].data, elsewhere, link.now))
    assert link.right.ikes[0].path == path
    assert link.flights[-1].path == path
