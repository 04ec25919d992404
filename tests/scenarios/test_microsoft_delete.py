"""Reliable delete of IKEv1 (MS-IKEE section 3.8) between two endpoints in virtual time.

If one of these fails, a deletion that is lost leaves one side sending into nothing, or a peer that keeps its
quick-mode SAs is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.link import Flight, Host, Link, agree, mirrored, story, tunnel_hosts
from support.phases import connected

from ikd.association import Association
from ikd.events import ChildClosed, IkeClosed, MessageReceived, MessageSent
from ikd.ikev1 import deletion, informational
from ikd.ikev1.association import Ikev1Association
from ikd.ikev1.keys import delete_hash
from ikd.ikev1.message import Message
from ikd.isakmp.message import Unauthentic
from ikd.isakmp.numbers import Exchange
from ikd.isakmp.payloads import Delete, Hash, Nonce
from ikd.life import State
from ikd.settings import IkeSettings
from ikd.wire.isakmp import encode_chain

IKEV1 = 'keying = ["ikev1"]\ncrypto = "cbc"'
CBC = '[crypto.cbc]\nmain = ["p256 aes128 sha256"]\n'
WINDOWS = IkeSettings(vendor_ids="windows", liveness=0)
STANDARD = IkeSettings(liveness=0)
INFORMATIONAL = 5


def up(left: IkeSettings = WINDOWS, right: IkeSettings = WINDOWS, sets: str = CBC) -> Link:
    """Two hosts with an ISAKMP SA and a quick-mode SA."""
    hosts = tunnel_hosts(
        left_rule=IKEV1, right_rule=IKEV1, left_settings=left, right_settings=right, sets=sets
    )
    link = Link(*hosts)
    link.up()
    link.run(1)
    agree(link, ikes=1, pairs=1)
    return link


def deletions(link: Link, sender: Host) -> list[Flight]:
    """Informational messages of a host."""
    return [one for one in link.flights if one.sender is sender and one.header.exchange == INFORMATIONAL]


def one(host: Host) -> Ikev1Association:
    """Its only ISAKMP SA."""
    found: list[Association] = host.ikes
    assert len(found) == 1
    assert isinstance(found[0], Ikev1Association)
    return found[0]


def test_a_pair_is_deleted_and_acknowledged() -> None:
    """One message each way under one message ID, and both have dropped the pair."""
    link = up()
    link.close_child(link.left)
    assert link.left.pairs[0].standby, "nothing more is sent on it"
    link.run(1)
    agree(link, ikes=1, pairs=0)
    asked, answered = deletions(link, link.left), deletions(link, link.right)
    assert len(asked) == len(answered) == 1
    assert asked[0].header.message_id == answered[0].header.message_id != 0
    assert link.left.of(MessageSent)[-1].payloads == ("HASH", "NONCE", "D")
    assert link.left.of(MessageReceived)[-1].payloads == ("HASH", "NONCE", "D")


def test_lost_request() -> None:
    """It is repeated after 1, 2, 4 and 8 seconds, and the repetition is believed."""
    link = up()
    times: list[float] = []

    def fate(flight: Flight) -> None:
        times.append(link.now)
        flight.lost = len(times) < 4

    link.fate = fate
    begin = link.now
    link.close_child(link.left)
    link.run(30)
    agree(link, ikes=1, pairs=0)
    assert [round(when - begin) for when in times[:4]] == [0, 1, 3, 7]


def test_lost_answer() -> None:
    """The deletion comes again and is answered again, though there is nothing left to delete."""
    link = up()
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right and link.now < 103)
    link.close_child(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=0)
    assert len(deletions(link, link.right)) >= 2
    assert len(link.right.of(ChildClosed)) == 1


def test_no_answer_at_all() -> None:
    """After four repetitions the pair is gone here all the same, and the ISAKMP SA stays."""
    link = up()
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.close_child(link.left)
    link.run(60)
    assert len(deletions(link, link.left)) == 5
    assert not list(link.left.database.pairs())
    assert one(link.left).state is State.ESTABLISHED


def test_a_recording_of_a_deletion_from_elsewhere() -> None:
    """Whoever sends it once more has the answer sent to the peer again, and nothing else: a peer behind a
    NAT would else lose its traffic to any address, and one that is dead would count as alive."""
    link = connected(nat="right", left_settings=WINDOWS, right_settings=WINDOWS)
    link.close_child(link.right)
    link.run(1)
    path, heard = one(link.left).path, one(link.left).life.heard
    link.run(20)
    (asked,) = deletions(link, link.right)
    answers = len(deletions(link, link.left))
    link.inject(link.left, asked.data, 4500, source=link.right.address + 40)
    assert one(link.left).path == path
    assert one(link.left).life.heard == heard
    assert [flight.path.peer for flight in deletions(link, link.left)[answers:]] == [path.peer]


def test_a_deletion_as_large_as_a_message_can_be() -> None:
    """The answer repeats it: it is no larger, else there would be none, and an internal error instead."""
    link = up()
    session = one(link.left).session
    assert session.keys is not None
    payloads = Nonce(data=bytes(8)), Delete(protocol=3, spis=(b"\0\0\1\1",) * 16361)
    message = informational.sealed(session, 5, payloads)
    data, _ = session.channel.seal(message, session.channel.iv_of(5))
    assert len(data) == 65532, "16 more would be too much"
    link.inject(link.right, data)
    (answer,) = deletions(link, link.right)
    assert len(answer.data) == len(data)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize(
    ("left", "right"), [(STANDARD, STANDARD), (WINDOWS, STANDARD)], ids=["neither", "peer does not say it"]
)
def test_peers_that_do_not_announce_it(left: IkeSettings, right: IkeSettings) -> None:
    """One message without a nonce that nobody answers, as RFC 2408 has it."""
    link = up(left, right)
    link.close_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=0)
    assert len(deletions(link, link.left)) == 1
    assert link.left.of(MessageSent)[-1].payloads == ("HASH", "D")
    assert not deletions(link, link.right)


def test_answered_even_by_who_does_not_announce_it() -> None:
    """A nonce asks for an answer, whoever we claim to be."""
    link = up(STANDARD, WINDOWS)
    link.close_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=0)
    assert len(deletions(link, link.left)) == len(deletions(link, link.right)) == 1


@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_all_is_deleted(lost: tuple[int, ...]) -> None:
    """`ikctl down`: both sides forget everything, whichever message is lost."""
    link = up()
    begin = len(link.flights)
    link.fate = lambda flight: setattr(flight, "lost", flight.number - begin in lost)
    link.close(link.left)
    assert not link.left.endpoint.idle, "an orderly stop waits for the answers"
    link.run(60)
    agree(link, ikes=0, pairs=0)
    assert [one.reason for one in link.left.of(IkeClosed)] == ["a test"]
    assert [one.by_peer for one in link.right.of(IkeClosed)] == [True]


def test_both_delete_at_once() -> None:
    """Deletions that cross are answered by both."""
    link = up()
    link.close(link.left)
    link.close(link.right)
    link.run(60)
    agree(link, ikes=0, pairs=0)


def main_mode_alone(link: Link, host: Host) -> None:
    """A host deletes its ISAKMP SA and keeps its quick-mode SAs, as Windows does."""
    found = one(host)
    found.session.now = link.now
    with host.endpoint._outputs as outputs:
        found._say_deleted(informational.delete_main(found.session), lambda: None)
    link.perform(host, outputs)
    link.run(1)


def test_quick_modes_outlive_their_main_mode() -> None:
    """Windows keeps them: whoever drops them is cut off. The ISAKMP SA stays for their deletions only."""
    link = up()
    main_mode_alone(link, link.right)
    assert mirrored(link.left, link.right), story(link)
    assert one(link.left).state is State.DELETING
    assert not one(link.left).usable
    link.run(30)
    assert mirrored(link.left, link.right)
    link.close_child(link.right)
    link.run(10)
    assert not link.left.ikes
    assert not list(link.left.database.pairs())
    assert [one.reason for one in link.left.of(IkeClosed)] == ["deleted by the peer"]


def test_another_main_mode_takes_them_over() -> None:
    """A pair that is to be replaced brings up another ISAKMP SA, which has all the pairs then."""
    link = up()
    main_mode_alone(link, link.right)
    link.rekey_child(link.left)
    link.run(10)
    assert len(link.left.ikes) == 1, story(link)
    assert one(link.left).usable
    assert len(link.left.pairs) == 1
    assert link.left.pairs[0].owner == one(link.left).number
    assert link.left.pairs[0].outbound.spi in [pair.inbound.spi for pair in link.right.pairs]


def test_quick_modes_left_alone_still_meet_their_idle_limit() -> None:
    """What nobody uses does not keep an ISAKMP SA for ever."""
    link = up()
    main_mode_alone(link, link.right)
    link.run(700)
    assert not link.left.ikes
    assert not list(link.left.database.pairs())


def test_other_peers_take_their_quick_modes_along() -> None:
    """Who is no Windows means all of it."""
    link = up(STANDARD, STANDARD)
    main_mode_alone(link, link.right)
    assert not link.left.ikes
    assert not list(link.left.database.pairs())


# The hash ---------------------------------------------------------------------------------------------------


def answered_by(make: Callable[[Nonce, Delete], tuple[bytes, tuple[Nonce | Delete, ...]]]) -> Link:
    """A deletion that the right host answers with another order of payloads or another hash."""
    link = up()
    right = one(link.right)

    def answer(session: object, asked: Message) -> Message:
        covered, payloads = make(Nonce(data=bytes(32)), asked.one(Delete))
        assert right.session.keys is not None
        digest = delete_hash(
            right.session.row, right.session.keys.a, asked.message_id, asked.one(Nonce).data, covered
        )
        sent = (Hash(data=digest), *payloads)
        return Message(Exchange.INFORMATIONAL, sent, asked.message_id, encrypted=True)

    original, deletion.answer = deletion.answer, answer  # type: ignore[assignment]
    try:
        link.close_child(link.left)
        link.run(0.5)
    finally:
        deletion.answer = original
    return link


def _octets(*payloads: Nonce | Delete) -> bytes:
    return encode_chain(payloads)[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda n, d: (_octets(n, d), (n, d)),
        lambda n, d: (_octets(d, n), (d, n)),
        lambda n, d: (_octets(d, n)[-36:] + _octets(d, n)[:-36], (d, n)),
    ],
    ids=["nonce first", "deletion first", "deletion first, hashed the other way"],
)
def test_either_order_is_believed(
    make: Callable[[Nonce, Delete], tuple[bytes, tuple[Nonce | Delete, ...]]],
) -> None:
    """The specification's text and figure differ; whichever Windows sends, it is an answer."""
    link = answered_by(make)
    assert not list(link.left.database.pairs())
    assert link.left.endpoint.idle


def test_another_hash_is_not() -> None:
    """An answer that proves nothing counts for nothing: the deletion is repeated, and answered then."""
    link = answered_by(lambda n, d: (b"something else", (n, d)))
    assert "unverified" in link.left.drops
    assert list(link.left.database.pairs())
    link.run(2)
    agree(link, ikes=1, pairs=0)


def test_a_request_whose_hash_does_not_fit_is_silence() -> None:
    """A made-up deletion deletes nothing and gets no answer."""
    link = up()
    session = one(link.left).session
    pair = link.left.pairs[0]
    message = informational.sealed(session, 77, (Nonce(data=bytes(32)), informational.delete_pair(pair)))
    forged = replace(message, payloads=(Hash(data=bytes(32)), *message.payloads[1:]))
    datagram, _ = session.channel.seal(forged, session.channel.iv_of(77))
    link.inject(link.right, datagram)
    link.run(1)
    agree(link, ikes=1, pairs=1)
    assert link.right.drops == ["unverified"]
    assert not deletions(link, link.right)
    with pytest.raises(Unauthentic):
        informational.check(session, _opened(link, datagram))


def _opened(link: Link, datagram: bytes) -> Message:
    session = one(link.right).session
    header = Flight(link.left, datagram, link.path(link.left), 0).header
    return session.channel.open(header, datagram, session.channel.iv_of(77))[0]
