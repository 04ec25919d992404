"""ikd.ikev1.conversations: repetition in both directions, and what is kept how long (RFC 2408 section 5.1).

If one of these fails, a lost datagram ends a negotiation, or two hosts repeat themselves for ever."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.link import BOTH, Flight, Link, agree
from support.phases import AGGRESSIVE, connected, hosts, main_mode

from ikd.events import MessageReceived, MessageSent
from ikd.isakmp.conversations import KEPT_SECONDS, MOST_TALKS
from ikd.isakmp.numbers import Exchange
from ikd.settings import IkeSettings

ORDERS = pytest.mark.parametrize("first", BOTH)


def lost(flight: Flight) -> None:
    """Everything is lost."""
    flight.lost = True


def test_when_a_message_is_repeated() -> None:
    """With growing pauses, as often as the settings say, and always the same octets."""
    pace = IkeSettings(retransmit_first=2.0, retransmit_factor=2.0, retransmit_cap=9.0, retransmit_tries=5)
    link = Link(*hosts(settings=pace))
    link.fate = lost
    times = []
    start = link.now
    link.up("net")
    seen = 0
    while link.step():
        if len(link.flights) > seen:
            times.append(link.now - start)
            seen = len(link.flights)
    assert [round(later - one) for one, later in pairwise([0.0, *times])][-3:] == [4, 8, 9]
    assert len({one.data for one in link.flights}) == 1
    assert [event.tries for event in link.left.of(MessageSent)] == [1, 2, 3, 4, 5]


def test_what_a_stranger_does_not_get() -> None:
    """The responder of main mode repeats nothing on its own: whoever forged an address would flood it."""
    link = Link(*hosts())
    link.up("net")
    link.run(0.015)
    link.fate = lost
    link.left.endpoint.shutdown(link.now)
    link.run(100)
    assert len([one for one in link.flights if one.sender is link.right]) == 1
    assert not link.right.ikes


@ORDERS
def test_a_repetition_is_answered_from_memory(first: str) -> None:
    """Each message of each exchange once more: the same answer, no new one, and no event of a new message."""
    link = Link(*hosts())
    link.up("net", first)
    link.run(2)
    agree(link, ikes=1, pairs=1)
    responder = link.other(link.named(first))
    for exchange in (Exchange.MAIN, Exchange.QUICK):
        theirs = [one for one in link.flights if one.header.exchange == exchange]
        last = [one for one in theirs if one.sender is not responder][-1]
        answers = [one for one in theirs if one.sender is responder]
        count, heard = len(link.flights), len(responder.of(MessageReceived))
        link.inject(responder, last.data)
        if exchange == Exchange.MAIN:
            assert [one.data for one in link.flights[count:]] == [answers[-1].data]
        else:  # HASH(3) wants no answer
            assert len(link.flights) == count
        assert len(responder.of(MessageReceived)) == heard
    link.run(5)
    agree(link, ikes=1, pairs=1)


def test_an_older_message_is_not_answered() -> None:
    """Message 3, when 5 has been heard, is of the past."""
    link = connected()
    count = len(link.flights)
    link.inject(link.right, link.flights[2].data)
    assert len(link.flights) == count
    agree(link, ikes=1, pairs=1)


def test_finished_exchanges_are_forgotten() -> None:
    """After a minute nothing is left to answer with, and nothing is kept."""
    link = connected()
    assert len(main_mode(link.right).talks.talks) == 2
    link.run(KEPT_SECONDS + 1)
    assert not main_mode(link.right).talks.talks
    assert not main_mode(link.left).talks.talks
    count = len(link.flights)
    link.inject(link.right, link.flights[4].data)
    assert len(link.flights) == count
    agree(link, ikes=1, pairs=1)


def test_more_exchanges_than_are_kept() -> None:
    """Finished ones make room; each of a hundred quick modes in a minute gets its answer."""
    link = Link(*hosts(nets=100))
    link.up("net", childless=True)
    link.run(1)
    for n in range(100):
        link.up(f"net{n or ''}")
        link.run(0.1)
    agree(link, ikes=1, pairs=100)
    assert len(main_mode(link.right).talks.talks) <= MOST_TALKS
    assert not link.right.drops


def test_two_hosts_do_not_repeat_themselves_for_ever() -> None:
    """Both wait and both hear the other's repetition: only what answers it is sent again."""
    link = Link(*hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE))

    def fate(flight: Flight) -> None:
        flight.copies, flight.delay = 3, 0.4

    link.fate = fate
    link.up("net")
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert len(link.flights) < 100


def test_what_is_waited_for_has_a_name() -> None:
    """`ikctl sa` shows it."""
    link = Link(*hosts())
    link.fate = lost
    link.up("net")
    assert link.left.ikes[0].waiting == "MAIN message 2"
    up = connected()
    up.fate = lost
    up.rekey_child(up.left)
    assert up.left.ikes[0].waiting == "QUICK message 2"
