"""What strongSwan does in IKEv1 that two of our own hosts do not do to each other, in virtual time.

If one of these fails, a real peer is lost although all scenarios between two of us go well.
"""

from __future__ import annotations

import itertools

import pytest
from support.link import BOTH, Flight, Host, Link, psk, story
from support.phases import AGGRESSIVE, both, connected, hosts, informed, large, main_mode, sealed

from ikd.events import ChildClosed, IkeClosed
from ikd.ikev1 import informational
from ikd.ikev1.message import Message, status
from ikd.isakmp.numbers import Exchange, N
from ikd.keying import RETIRE
from ikd.riders.fragment1 import FRAGMENT, SIZES, cut
from ikd.settings import IkeSettings


def test_a_replaced_quick_mode_sa_that_the_peer_keeps() -> None:
    """strongSwan does not delete what it has replaced (`delete_rekeyed = no`). Were such pairs kept until
    their end, a peer that replaces often would soon have as many as it may, and be refused the next."""
    link = connected(right_settings=IkeSettings(children=4))

    def keeps(flight: Flight) -> None:
        flight.lost = flight.sender is link.left and flight.header.exchange == Exchange.INFORMATIONAL

    link.fate = keeps
    for _ in range(12):
        link.rekey_child(link.left)
        link.run(RETIRE / 2)
    link.run(2 * RETIRE)
    assert not link.left.failures, story(link)
    assert len(link.right.pairs) == 1
    assert len(link.right.of(ChildClosed)) == 12


def renewed() -> tuple[Link, int, int]:
    """strongSwan's way to replace an ISAKMP SA: another phase 1, no word about it, and quick-mode SAs that it
    speaks of by way of the newer one. Returns the numbers of both at the right host."""
    link = connected()
    old = main_mode(link.right).number
    link.up("net", "left", childless=True)
    link.run(2)
    return link, old, main_mode(link.right).number


def test_quick_mode_sas_go_with_a_newer_phase_1() -> None:
    """The old ISAKMP SA may end without taking them along, and nothing is lost meanwhile."""
    link, old, new = renewed()
    assert old != new
    assert [pair.owner for pair in link.right.database.pairs()] == [new]
    link.run(2 * RETIRE)
    assert [one.ike for one in link.right.of(IkeClosed)] == [old]
    (before,) = link.right.pairs
    link.rekey_child(link.left)
    link.run(RETIRE + 5)
    assert len(link.right.pairs) == 1, story(link)
    assert before not in link.right.pairs
    assert [pair.owner for pair in link.right.pairs] == [new]


def test_a_delete_by_way_of_a_newer_phase_1() -> None:
    """A Delete names an SPI, and may come protected by any ISAKMP SA with the peer."""
    link, _, _ = renewed()
    (pair,) = link.left.pairs
    link.inject(link.right, informed(link.left, informational.delete_pair(pair)))
    assert not link.right.pairs, story(link)


def test_initial_contact_ends_instead() -> None:
    """Who says that it has begun anew gets nothing of what was before."""
    link = connected()
    former = link.right.pairs[0]
    other = Link(hosts()[0], link.right)
    other.now = link.now
    other.up("net", "left")
    other.run(2)
    assert former not in other.right.pairs
    assert len(other.right.pairs) == 1


@pytest.mark.parametrize("first", BOTH)
def test_an_answer_in_fragments_before_anything_is_known(first: str) -> None:
    """strongSwan cuts already its first answer of aggressive mode, whose certificate makes it large: that the
    peer knows fragments is said in it."""
    material = both(large("left"), large("right"))
    link = Link(*hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE, **material))
    sender = link.named(first)

    def cuts(flight: Flight) -> None:
        header = flight.header
        if flight.sender is sender or header.exchange != Exchange.AGGRESSIVE:
            return
        if header.next_payload != FRAGMENT:
            flight.lost = True
            for one in cut(flight.data, flight.path, lambda size: b"\x01" * size):
                link.inject(sender, one, flight.path.local.port)

    link.fate = cuts
    link.up("net", first)
    link.run(20)
    assert len(link.left.pairs) == len(link.right.pairs) == 1, story(link)


def test_fragments_are_not_taken_where_they_are_off() -> None:
    """A host that does not announce them keeps none."""
    off = IkeSettings(fragmentation=False)
    link = Link(*hosts(left_settings=off))
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    link.up("net")
    link.run(0.5)
    answer = next(one for one in link.flights if one.sender is link.right)
    big = answer.data[:24] + (2000).to_bytes(4, "big") + answer.data[28:].ljust(1972, b"\0")
    for one in cut(big, answer.path, lambda size: bytes(size)):
        link.inject(link.left, one)
    assert link.left.drops.count("malformed") == len(cut(big, answer.path, lambda size: bytes(size)))


@pytest.mark.parametrize("first", BOTH)
def test_a_path_that_drops_what_is_large(first: str) -> None:
    """Both ends have large certificates, and the path drops every datagram that would be an IP fragment:
    repetitions go out cut, from the initiator and from the responder."""
    link = Link(*hosts(**both(large("left"), large("right"))))
    link.fate = lambda flight: setattr(flight, "lost", len(flight.data) > SIZES[4])
    link.up("net", first)
    link.run(60)
    assert len(link.left.pairs) == len(link.right.pairs) == 1, story(link)


def strangers(one: Host, reason: str) -> bool:
    """Whether a failure speaks of something."""
    return any(reason in failed.reason + failed.remedy for failed in one.failures)


@pytest.mark.parametrize("first", BOTH)
def test_a_peer_that_cannot_read_us_says_nothing(first: str) -> None:
    """strongSwan drops what it cannot decrypt: with another key, main mode ends in silence. The operator has
    to read that it may be the key."""
    link = Link(*hosts(right=psk("right.example", "left.example", b"quite another secret")))
    quiet = link.other(link.named(first))

    def silent(flight: Flight) -> None:
        flight.lost = flight.sender is quiet and flight.header.exchange == Exchange.INFORMATIONAL

    link.fate = silent
    link.up("net", first)
    link.run(180)
    for one in (link.left, link.right):
        assert strangers(one, "pre-shared key"), story(link)


def test_a_refusal_that_cannot_be_read() -> None:
    """In aggressive mode the initiator is the first to see that the keys differ; what it says of it is
    protected with its own. The responder, who cannot read it, has to draw its conclusion."""
    other = psk("left.example", "right.example", b"quite another secret")
    link = Link(*hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE, left=other))
    link.up("net")
    link.run(180)
    assert strangers(link.left, "pre-shared key"), story(link)
    assert strangers(link.right, "pre-shared key"), story(link)


def test_an_error_in_the_clear_while_keys_are_new() -> None:
    """A peer that cannot read message 5 may say so in the clear. It may be forged, so it counts only when
    nothing better comes; but then it does."""
    link = Link(*hosts())
    count = itertools.count()

    def fate(flight: Flight) -> None:
        if flight.sender is link.right and next(count) >= 2:
            flight.lost = True

    link.fate = fate
    link.up("net")
    link.run(0.5)
    notify = Message(Exchange.INFORMATIONAL, (status(N.PAYLOAD_MALFORMED),), 0x11223344)
    link.inject(link.left, sealed(link.left, notify))
    assert main_mode(link.left).waiting
    link.run(60)
    assert [one.notify for one in link.left.failures] == ["PAYLOAD_MALFORMED"], story(link)
