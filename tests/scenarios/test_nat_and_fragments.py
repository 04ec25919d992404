"""What is on the way between two hosts: a NAT in front of either (RFC 7296 section 2.23, RFC 3948), and
packets of a limited size (RFC 7383).

If one of these fails, a host behind a NAT has no SA, loses it when the NAT forgets, or large messages get
lost; or a stranger who sees packets can move an SA to himself."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address

import pytest
from support import certificates
from support.link import (
    BOTH,
    HOST,
    LEFT,
    NAT,
    POSIX,
    RIGHT,
    SHIFT,
    Flight,
    Link,
    agree,
    connected,
    host,
    mirrored,
    psk,
    story,
    tunnel_hosts,
)

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.auth.identity import Identity
from ikd.events import DatagramDropped, IkeClosed, PeerMoved
from ikd.ikev2.message import Message
from ikd.settings import IkeSettings
from sadb.address import Path, SocketAddress
from sadb.sa import Mode

NATTED = pytest.mark.parametrize("nat", BOTH)
ORDERS = pytest.mark.parametrize("first", BOTH)

# NAT --------------------------------------------------------------------------------------------------------


@NATTED
def test_nat_in_front_of_the_initiator(nat: str) -> None:
    """Both notice it and go to UDP 4500; ESP is encapsulated in UDP with the ports that pass the NAT."""
    link = connected(nat=nat)
    inside, outside = link.named(nat), link.other(link.named(nat))
    agree(link, ikes=1, pairs=1)
    assert inside.ikes[0].nat
    assert outside.ikes[0].nat
    (ours,), (theirs,) = inside.pairs, outside.pairs
    assert ours.outbound.encapsulation == (4500, 4500)
    assert theirs.outbound.encapsulation == (4500, SHIFT + 4500)
    assert theirs.outbound.destination == NAT
    assert theirs.inbound.encapsulation == (SHIFT + 4500, 4500)
    assert [one.path.peer.port for one in link.flights[2:]] == [4500, SHIFT + 4500]


@NATTED
def test_the_nat_takes_another_port(nat: str) -> None:
    """It forgot its mapping: the next authentic message from inside tells the new port, and the pair
    follows."""
    link = connected(nat=nat, settings=IkeSettings(mobike=False))
    inside, outside = link.named(nat), link.other(link.named(nat))
    link.shift = 20000
    # HDR, SK {N(REKEY_SA), ...}  -->
    link.rekey_child(inside)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    moved = outside.of(PeerMoved)
    assert moved[0].new.peer == SocketAddress(NAT, 24500)
    assert outside.pairs[0].outbound.encapsulation == (4500, 24500)
    link.rekey_child(outside)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert not inside.of(PeerMoved)


@NATTED
def test_the_pair_that_is_there_moves_too(nat: str) -> None:
    """Not only new ones: traffic of the old pair goes to the new port as soon as it is known."""
    link = connected(nat=nat)
    inside, outside = link.named(nat), link.other(link.named(nat))
    pair = outside.pairs[0]
    link.shift = 20000
    link.run(60)  # liveness of the inside
    assert outside.pairs == [pair]
    assert pair.outbound.encapsulation == (4500, 24500)
    assert mirrored(inside, outside)


@NATTED
@pytest.mark.parametrize("mobike", [False, True])
def test_a_copy_from_elsewhere_moves_nobody(nat: str, mobike: bool) -> None:
    """Section 2.23: only authentic *new* messages count; whoever repeats a recorded one from his own address
    gets nothing, nor does a changed one. From a peer that can move it may be a path that is tried (RFC 4555
    section 3.10): then he gets what was sent already, and nothing moves either."""
    link = connected(nat=nat, settings=IkeSettings(mobike=mobike))
    inside, outside = link.named(nat), link.other(link.named(nat))
    path = outside.ikes[0].path
    link.rekey_child(inside)
    link.run(5)
    thief = Path(SocketAddress(outside.address, 4500), SocketAddress(ip_address("203.0.113.66"), 4500))
    count = len(link.flights)
    for flight in list(link.flights):
        if flight.sender is inside:
            for data in (flight.data, flight.data[:-1] + bytes((flight.data[-1] ^ 1,))):
                link.perform(outside, outside.endpoint.receive(data, thief, link.now))
    assert outside.ikes[0].path == path
    assert not outside.of(PeerMoved)
    said = {one.data for one in link.flights[:count] if mobike and one.header.exchange != 35}
    assert all(
        one.path.peer.address != thief.peer.address or one.header.exchange == 34 or one.data in said
        for one in link.flights[count:]
    )


@ORDERS
@NATTED
def test_transport_mode_through_a_nat(nat: str, first: str) -> None:
    """Section 2.23.1: each side has selectors with the addresses it sees itself."""
    made = []
    for name, own, peer in (("left", LEFT, RIGHT), ("right", RIGHT, LEFT)):
        other = "right" if name == "left" else "left"
        seen = NAT if nat == other else peer
        rules = HOST.format(peer=seen, extra=f'local = "{own}"')
        made.append(host(name, own, rules, psk(f"{name}.example", f"{other}.example")))
    link = Link(*made, nat=nat)
    inside, outside = link.named(nat), link.other(link.named(nat))
    link.up("host", inside)
    link.run(5)
    assert len(inside.pairs) == len(outside.pairs) == 1, story(link)
    if first != nat:
        link.rekey_child(outside)
        link.run(5)
    (ours,), (theirs,) = inside.pairs, outside.pairs
    assert ours.mode is theirs.mode is Mode.TRANSPORT
    assert (ours.selector.local[0].low, ours.selector.remote[0].low) == (inside.address, outside.address)
    assert (theirs.selector.local[0].low, theirs.selector.remote[0].low) == (outside.address, NAT)
    assert bytes(ours.inbound.encryption_key) == bytes(theirs.outbound.encryption_key)
    assert not outside.failures
    assert not inside.failures


# Fragments --------------------------------------------------------------------------------------------------


@cache
def large(name: str) -> Material:
    """Credentials with a certificate of about five thousand octets."""
    authority = pki.make_ca("CN=Lab CA", POSIX - 3600, key=certificates.key("ecdsa-p256", 8))
    names = [f"{name}.example", *(f"filler-{n:02}.{'x' * 50}.example" for n in range(70))]
    pair = pki.issue(
        authority, f"CN={name}.example", names, now=POSIX - 3600, key=certificates.key("ecdsa-p256")
    )
    own = HostCertificate((pair.certificate,), pair.key)
    return Material(Identity.parse(f"{name}.example"), hosts=(own,), anchors=(authority.certificate,))


def fragmented(**settings: IkeSettings) -> Link:
    """Two hosts with large certificates."""
    return Link(*tunnel_hosts(left=large("left"), right=large("right"), **settings))


def is_fragment(flight: Flight) -> bool:
    """Whether it is one of several parts of a message."""
    return flight.header.next_payload == 53


@ORDERS
@pytest.mark.parametrize("size", [576, 1280, 1500])
def test_large_messages_are_cut(first: str, size: int) -> None:
    """No packet is larger than the setting says, headers included, and the message arrives."""
    link = fragmented(settings=IkeSettings(fragment_size=size))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    parts = [one for one in link.flights if is_fragment(one)]
    assert len(parts) > 2 * 5000 // size
    assert max(len(one.data) for one in parts) + 28 <= size
    assert max(len(one.data) for one in parts) + 28 > size - 64  # and none is needlessly small


@ORDERS
@pytest.mark.parametrize("lost", range(0, 12, 2))
def test_a_fragment_is_lost(lost: int, first: str) -> None:
    """All of them are sent again, and what came before still counts."""
    link = fragmented()
    seen = 0

    def fate(flight: Flight) -> None:
        nonlocal seen
        if is_fragment(flight):
            flight.lost = seen == lost
            seen += 1

    link.fate = fate
    link.up("net", first)
    link.run(20)
    agree(link, ikes=1, pairs=1)


@ORDERS
def test_fragments_in_any_order_and_twice(first: str) -> None:
    """They come backwards, each several times."""
    link = fragmented()

    def fate(flight: Flight) -> None:
        if is_fragment(flight):
            flight.copies, flight.delay = 1, 0.4 - 0.01 * (flight.number % 16)

    link.fate = fate
    link.up("net", first)
    link.run(20)
    agree(link, ikes=1, pairs=1)


@ORDERS
def test_fragments_that_are_changed_or_made_up(first: str) -> None:
    """RFC 7383 section 2.6: each fragment is authenticated before it is kept, so one that is changed spoils
    nothing."""
    link = fragmented()

    def fate(flight: Flight) -> None:
        if not is_fragment(flight):
            return
        receiver = link.other(flight.sender)
        for at in (19, 28 + 4, 28 + 5, 28 + 7, len(flight.data) - 1):
            data = bytearray(flight.data)
            data[at] ^= 3
            link.inject(receiver, bytes(data), flight.path.peer.port)

    link.fate = fate
    link.up("net", first)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert {one.reason for one in link.right.of(DatagramDropped)} <= {
        "unverified",
        "malformed",
        "unknown-spi",
        "unexpected",
        "unprotected",
        "repeated",
        "replayed",
    }


def test_one_side_does_not_take_fragments() -> None:
    """Then the other sends none, however large the message."""
    link = fragmented(left_settings=IkeSettings(fragmentation=False))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert not any(map(is_fragment, link.flights))


def test_more_than_a_message_may_have() -> None:
    """Above `message_size` the parts are thrown away, and the sender is told or gives up; nothing is kept."""
    link = fragmented(right_settings=IkeSettings(message_size=4096))
    link.up("net")
    link.run(120)
    agree(link, ikes=0, pairs=0)
    assert any(
        one.reason == "malformed" or "fragments" in one.detail for one in link.right.of(DatagramDropped)
    ) or (link.right.failures)


@pytest.mark.parametrize(("number", "total"), [(0, 3), (4, 3), (1, 0), (0, 0), (1, 65535), (65535, 65535)])
def test_numbers_of_fragments_that_cannot_be(number: int, total: int) -> None:
    """From an authentic peer even: nothing is reserved for them."""
    link = connected()
    channel = link.left.ikes[0].session.channel

    message = Message(37, (), False, channel.next_id)
    data = channel._sealed(message, 53, 0, number.to_bytes(2, "big") + total.to_bytes(2, "big"), b"part")
    link.inject(link.right, data)
    assert not link.right.ikes[0].session.channel._partial
    link.run(100)
    agree(link)


def test_fragments_of_many_messages_do_not_pile_up() -> None:
    """A peer that begins messages and finishes none fills a small fixed number of places."""

    link = connected()
    channel = link.left.ikes[0].session.channel
    for n in range(8):
        message = Message(37, (), False, channel.next_id + n)
        data = channel._sealed(message, 53, 0, b"\0\1\0\x40", b"x" * 1000)
        link.inject(link.right, data)
    assert 1 <= len(link.right.ikes[0].session.channel._partial) <= 4
    link.run(100)
    agree(link, ikes=1, pairs=1)


def test_a_smaller_size_is_tried() -> None:
    """RFC 7383 section 2.5.2: more fragments of the same message replace the former ones, fewer are
    ignored."""

    link = connected()
    channel = link.left.ikes[0].session.channel
    message = Message(37, (), False, channel.next_id)

    def part(number: int, total: int) -> bytes:
        return channel._sealed(message, 53, 0, bytes((0, number, 0, total)), b"")

    count = len(link.flights)
    for number, total in ((1, 2), (1, 3), (2, 2), (3, 3)):
        link.inject(link.right, part(number, total))
    assert len(link.flights) == count
    link.inject(link.right, part(2, 3))
    assert len(link.flights) == count + 1  # answered


def test_closing_words() -> None:
    """A link that is cut for longer than all repetitions ends both sides, and later they come together
    again."""
    link = connected(nat="left")
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(200)
    assert not link.left.ikes
    assert not link.right.ikes
    assert link.left.of(IkeClosed)
    link.fate = lambda flight: None
    link.up("net", "left")
    link.run(5)
    agree(link, ikes=1, pairs=1)
