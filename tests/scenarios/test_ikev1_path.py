"""What is on the way between two hosts that speak IKEv1: a NAT in front of either (RFC 3947 and its draft 02,
RFC 3948), and packets of a limited size (Microsoft's fragmentation).

If one of these fails, a host behind a NAT has no SA or loses it, large certificates do not arrive, or a
stranger who knows an address fills tables."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from support.link import (
    BOTH,
    NAT,
    SHIFT,
    Flight,
    Host,
    Link,
    agree,
    story,
)
from support.phases import AGGRESSIVE, both, connected, ends, hosts, large, main_mode

from ikd.ikev1 import quick_mode
from ikd.ikev1.message import Message
from ikd.isakmp.numbers import Exchange, Traversal
from ikd.isakmp.payloads import NatOriginalAddress, NatOriginalAddressDraft
from ikd.riders.fragment1 import FRAGMENT
from ikd.riders.vendor import Known
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Header
from sadb.sa import Mode

NATTED = pytest.mark.parametrize("nat", BOTH)
ORDERS = pytest.mark.parametrize("first", BOTH)
MODES = pytest.mark.parametrize("mode", ["", AGGRESSIVE], ids=["main", "aggressive"])
TEXTS = pytest.mark.parametrize("text", [Traversal.RFC_3947, Traversal.DRAFT_02], ids=lambda one: one.value)


def unknown(*vendors: Known) -> Callable[[Flight], None]:
    """A fate that makes these vendor IDs unknown to whoever gets them."""

    def fate(flight: Flight) -> None:
        if not flight.header.flags & 1:
            for one in vendors:
                flight.data = flight.data.replace(one.value, bytes(len(one.value)))

    return fate


def without(text: Traversal) -> Callable[[Flight], None]:
    """Leaves the peers with this text on NAT traversal alone."""
    others = {Traversal.RFC_3947: (), Traversal.DRAFT_02: (Known.RFC_3947,)}
    return unknown(*others[text])


# NAT --------------------------------------------------------------------------------------------------------


@TEXTS
@NATTED
def test_nat_on_either_side(nat: str, text: Traversal) -> None:
    """Both notice it and go to UDP 4500 with message 5; ESP is in UDP with the ports that pass the NAT."""
    link = Link(*hosts(nat=nat), nat=nat)
    link.fate = without(text)
    link.up("net", nat)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    inside = link.named(nat)
    outside = link.other(inside)
    for one, other in ((inside, False), (outside, True)):
        session = main_mode(one).session
        assert session.traversal is text
        assert (session.nat_local, session.nat_peer) == (not other, other)
    (ours,), (theirs,) = inside.pairs, outside.pairs
    assert ours.outbound.encapsulation == (4500, 4500)
    assert theirs.outbound.encapsulation == (4500, SHIFT + 4500)
    assert theirs.outbound.destination == NAT
    assert [one.path.peer.port for one in link.flights[:5]] == [500, SHIFT + 500, 500, SHIFT + 500, 4500]
    assert link.flights[5].path.peer.port == SHIFT + 4500


@NATTED
def test_nat_in_aggressive_mode(nat: str) -> None:
    """The third message goes to 4500 already."""
    link = Link(*hosts(nat=nat, left_rule=AGGRESSIVE, right_rule=AGGRESSIVE), nat=nat)
    link.up("net", nat)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    assert link.flights[2].path.peer.port == 4500
    assert link.other(link.named(nat)).pairs[0].outbound.encapsulation == (4500, SHIFT + 4500)


@NATTED
def test_a_peer_that_knows_nothing_of_nat(nat: str) -> None:
    """No NAT-D, no other port; and what it does not know is not used."""
    link = Link(*hosts(nat=nat), nat=nat)
    link.fate = unknown(Known.RFC_3947, Known.NAT_DRAFT_02)
    link.up("net", nat)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    assert not link.left.ikes[0].nat
    assert link.left.pairs[0].outbound.encapsulation is None


@ORDERS
def test_no_nat_traversal_in_ipv6(first: str) -> None:
    """There it is not announced, and NAT-D of a peer is passed over."""
    ends = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    link = Link(*hosts(ends=ends, family=6))
    link.up("net", first)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    for flight in link.flights[:4]:
        assert Known.RFC_3947.value not in flight.data
        assert Known.NAT_DRAFT_02.value not in flight.data
    assert main_mode(link.left).session.traversal is Traversal.NONE


@TEXTS
@ORDERS
@NATTED
def test_transport_mode_through_a_nat(nat: str, first: str, text: Traversal) -> None:
    """RFC 3947 section 5: each side has selectors with the addresses it sees itself, and both say what the
    addresses really were."""
    link = ends(nat=nat)
    link.fate = without(text)
    inside = link.named(nat)
    outside = link.other(inside)
    said: list[Message] = []
    original = quick_mode._sealed

    def listening(*given: Any) -> Message:
        said.append(original(*given))
        return said[-1]

    quick_mode._sealed = listening
    try:
        link.up("host", inside)
        link.run(5)
        if first != nat:
            link.rekey_child(outside)
            link.run(15)
    finally:
        quick_mode._sealed = original
    assert len(inside.pairs) == len(outside.pairs) == 1, story(link)
    (ours,), (theirs,) = inside.pairs, outside.pairs
    assert ours.mode is theirs.mode is Mode.TRANSPORT
    assert (ours.selector.local[0].low, ours.selector.remote[0].low) == (inside.address, outside.address)
    assert (theirs.selector.local[0].low, theirs.selector.remote[0].low) == (outside.address, NAT)
    assert bytes(ours.inbound.encryption_key) == bytes(theirs.outbound.encryption_key)
    assert not outside.failures + inside.failures
    kind = NatOriginalAddress if text is Traversal.RFC_3947 else NatOriginalAddressDraft
    for message in said:
        assert [len(one.address) for one in message.every(kind)] == [4, 4]


# Fragments --------------------------------------------------------------------------------------------------


def is_fragment(flight: Flight) -> bool:
    """Whether it is a part of a message."""
    return flight.header.next_payload == FRAGMENT


def narrow(link: Link, limit: int = 1200) -> None:
    """The path loses what is larger, as one does that loses IP fragments."""

    def fate(flight: Flight) -> None:
        flight.lost = len(flight.data) > limit

    link.fate = fate


def laden(**how: Any) -> Link:
    """Two hosts with large certificates."""
    return Link(*hosts(**both(large("left"), large("right")), **how), nat=how.get("nat", ""))


@ORDERS
@NATTED
def test_large_messages_are_cut(nat: str, first: str) -> None:
    """When whole messages do not come through they go in parts, both ways, with a NAT as without."""
    link = laden(nat=nat if first == nat else "")
    narrow(link)
    link.up("net", first)
    link.run(30)
    agree(link, ikes=1, pairs=1)
    parts = [one for one in link.flights if is_fragment(one)]
    assert {one.sender.name for one in parts} == {"left", "right"}
    assert max(len(one.data) for one in parts) + 28 + 4 <= 576 + 4
    assert all(not one.header.flags for one in parts)


def test_a_path_that_takes_everything() -> None:
    """Then nothing is cut."""
    link = laden()
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert not any(map(is_fragment, link.flights))


@ORDERS
@pytest.mark.parametrize("lost", range(0, 14, 3))
def test_a_part_is_lost(lost: int, first: str) -> None:
    """All of them are sent again."""
    link = laden()
    seen = 0

    def fate(flight: Flight) -> None:
        nonlocal seen
        flight.lost = len(flight.data) > 1200
        if is_fragment(flight):
            flight.lost = seen == lost
            seen += 1

    link.fate = fate
    link.up("net", first)
    link.run(40)
    agree(link, ikes=1, pairs=1)
    assert seen > lost


@ORDERS
def test_parts_in_any_order_and_twice(first: str) -> None:
    """They come backwards, each several times."""
    link = laden()

    def fate(flight: Flight) -> None:
        flight.lost = len(flight.data) > 1200
        if is_fragment(flight):
            flight.copies, flight.delay = 1, 0.4 - 0.01 * (flight.number % 16)

    link.fate = fate
    link.up("net", first)
    link.run(40)
    agree(link, ikes=1, pairs=1)


@ORDERS
def test_parts_made_up_by_others(first: str) -> None:
    """Wrong numbers, wrong lengths, other payloads behind, parts of other messages: what is authentic comes
    through all the same."""
    link = laden()
    luck = random.Random(3)

    def fate(flight: Flight) -> None:
        flight.lost = len(flight.data) > 1200
        if not is_fragment(flight):
            return
        receiver = link.other(flight.sender)
        for at in (28, 30, 31, 32, 34, 35, len(flight.data) - 1):
            data = bytearray(flight.data)
            data[at] ^= luck.randrange(1, 256)
            if at in (32, 33):
                link.inject(receiver, bytes(data), flight.path.peer.port)
            else:
                data[32] ^= 0x55  # of another message: whoever spoils the true one needs no art
                link.inject(receiver, bytes(data), flight.path.peer.port)

    link.fate = fate
    link.up("net", first)
    link.run(60)
    agree(link, ikes=1, pairs=1)


def test_a_side_that_does_not_take_parts() -> None:
    """Then none are sent, and those that come are nothing."""
    link = laden(right_settings=IkeSettings(fragmentation=False))
    narrow(link)
    link.up("net")
    link.run(60)
    agree(link, ikes=0, pairs=0)
    assert not any(map(is_fragment, link.flights))
    up = connected(settings=IkeSettings(fragmentation=False))
    up.inject(up.right, part(up.left, 1, 1, 1, up.flights[4].data))
    assert set(up.right.drops) == {"malformed"}
    assert not stored(up.right)


def stored(one: Host) -> int:
    """Octets a host keeps of messages that are not whole."""
    return sum(
        len(piece) for found in main_mode(one)._fragments._found.values() for piece in found[2].values()
    )


def part(one: Host, identity: int, number: int, flags: int, data: bytes, next_payload: int = 0) -> bytes:
    """A fragment for this host's ISAKMP SA."""
    channel = main_mode(one).session.channel
    length = 8 + len(data)
    body = bytes((next_payload, 0)) + length.to_bytes(2, "big") + identity.to_bytes(2, "big")
    body += bytes((number, flags)) + data
    header = Header(
        channel.cookie_i, channel.cookie_r, FRAGMENT, 0x10, Exchange.MAIN, 0, 0, HEADER_SIZE + len(body)
    )
    return header.encode() + body


def test_parts_that_never_become_whole() -> None:
    """They are few, and gone after a while."""
    link = connected()
    for identity in range(200):
        for number in range(1, 70):
            link.inject(link.right, part(link.right, identity, number, 0, bytes(1400)))
    assert len(main_mode(link.right)._fragments._found) <= 4
    assert stored(link.right) <= 4 * 65535
    link.run(100)
    link.inject(link.right, part(link.right, 999, 1, 0, b"x"))
    assert stored(link.right) <= 1
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize(
    ("number", "flags", "data", "following"),
    [
        (0, 0, b"x", 0),
        (0, 1, b"x", 0),
        (255, 1, b"x", 0),
        (1, 1, b"", 0),
        (1, 1, b"x" * 40, 0),
        (1, 1, b"x" * 40, 5),
        (2, 1, b"x", 0),
        (1, 255, b"\0" * 100, 0),
    ],
)
def test_parts_that_cannot_be(number: int, flags: int, data: bytes, following: int) -> None:
    """Alone they make nothing, and nothing breaks."""
    link = connected()
    link.inject(link.right, part(link.right, 7, number, flags, data, following))
    for inner in (part(link.right, 7, 1, 1, b"y"), link.flights[0].data, link.flights[5].data):
        link.inject(link.right, part(link.right, 8, 1, 1, inner))
    agree(link, ikes=1, pairs=1)
    link.rekey_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=1)


@MODES
def test_both_orders_of_reading(mode: str) -> None:
    """A whole message cut in ten parts of any size is the same message."""
    link = Link(*hosts(left_rule=mode, right_rule=mode))

    def fate(flight: Flight) -> None:
        header = flight.header
        if header.exchange not in (Exchange.MAIN, Exchange.AGGRESSIVE) or is_fragment(flight):
            return
        if flight.number >= 2:
            flight.lost = True
            receiver = link.other(flight.sender)
            step = max(1, len(flight.data) // 9)
            pieces = [flight.data[at : at + step] for at in range(0, len(flight.data), step)]
            for number, piece in enumerate(pieces, 1):
                body = bytes(2) + (8 + len(piece)).to_bytes(2, "big") + flight.number.to_bytes(2, "big")
                body += bytes((number, number == len(pieces))) + piece
                made = Header(
                    header.spi_i, header.spi_r, FRAGMENT, 0x10, header.exchange, 0, 0, HEADER_SIZE + len(body)
                )
                link.inject(receiver, made.encode() + body)

    link.fate = fate
    link.up("net")
    link.run(20)
    agree(link, ikes=1, pairs=1)
