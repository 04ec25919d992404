"""Notifies of AuthIP and their acknowledgements: lost, crossing, or of nothing (MS-AIPS section 3.1.7.5).

If one of these fails, a deletion leaves one side with an SA, or a notify is repeated without end."""

from __future__ import annotations

import pytest
from support.authip import (
    connected,
    hosts,
    main_mode,
    notice,
    read,
)
from support.authip_hostile import SIDES, quick_request, unharmed
from support.link import Flight, Link, agree
from support.phases import sets

from ikd.authip.message import notify, status
from ikd.authip.numbers import RELIABLE, Exchange, N, Subject
from ikd.settings import IkeSettings


def test_acknowledgements_are_lost() -> None:
    """A reliable notify is repeated until one comes; it is acknowledged each time, and heeded once."""
    link = connected()
    lost = 0

    def fate(flight: Flight) -> None:
        nonlocal lost
        if flight.sender is link.right and flight.header.exchange == Exchange.NOTIFY and lost < 3:
            flight.lost, lost = True, lost + 1

    link.fate = fate
    link.close_child(link.left)
    link.run(20)
    assert lost == 3
    agree(link, ikes=1, pairs=0)
    sent = [one.data for one in link.flights if one.sender is link.left and one.data[18] == Exchange.NOTIFY]
    assert len(sent) == 4
    assert len(set(sent)) == 1


def test_nobody_acknowledges() -> None:
    """It is given up after a while."""
    link = connected(settings=IkeSettings(liveness=0))
    link.fate = lambda flight: setattr(flight, "lost", True)
    count = len(link.flights)
    link.close_child(link.left)
    link.run(60)
    assert len(link.flights) - count == 5
    assert main_mode(link.left).idle


@pytest.mark.parametrize("number", [0, 1, 5, 2**32 - 1])
def test_acknowledgements_of_nothing(number: int) -> None:
    """Neither what was never sent nor what is long acknowledged is heeded; empty ones are nothing."""
    link = connected()
    for data in (number.to_bytes(4, "big"), b"", b"\0"):
        link.inject(link.left, notice(link.right, notify(N.ACK, Subject.MAIN, data), sequence=number))
    link.run(1)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("flags", [0, RELIABLE])
def test_a_deletion(flags: int) -> None:
    """One that is not reliable is heeded as well, and gets no acknowledgement; one that comes twice is
    acknowledged twice, with the same octets, and heeded once."""
    link = connected()
    number = main_mode(link.right).session.quick_ids[link.right.pairs[0].inbound.spi]
    data = notice(link.right, status(13807, Subject.QUICK, flags), number=number)
    count = len(link.flights)
    link.inject(link.left, data)
    assert not link.left.pairs
    assert len(link.flights) - count == flags
    if flags:
        (ack,) = [read(link.right, one.data) for one in link.flights[count:]]
        assert ack.notify(N.ACK) is not None
        assert ack.notify(N.ACK).data == (1000).to_bytes(4, "big")  # type: ignore[union-attr]
        assert not ack.notify(N.ACK).flags & RELIABLE  # type: ignore[union-attr]
    link.up("net")
    link.run(5)
    said, count = [one.data for one in link.flights[count:][:flags]], len(link.flights)
    link.inject(link.left, data)
    assert len(link.left.pairs) == 1, "what it names is long gone"
    assert [one.data for one in link.flights[count:]] == said, "a recording makes nothing grow"


def test_deletions_that_cross() -> None:
    """Both delete the same one: others on the same main-mode SA stay."""
    link = Link(*hosts(nets=3))
    for name in ("net", "net1", "net2"):
        link.up(name)
        link.run(2)
    agree(link, ikes=1, pairs=3)
    for one in (link.left, link.right):
        (pair,) = [found for found in one.pairs if found.rule == "net1"]
        link.perform(one, one.endpoint.close_child(pair, link.now, "a test"))
    link.run(20)
    agree(link, ikes=1, pairs=2)
    late = notice(link.right, notify(N.NO_PROPOSAL_CHOSEN, Subject.QUICK, b"", RELIABLE), number=0x777)
    link.inject(link.left, late)
    agree(link, ikes=1, pairs=2)


@SIDES
def test_the_main_mode_sa_alone_is_deleted(side: str) -> None:
    """As Windows does it: nothing more is made on it, quick-mode SAs live on until their own end, and with
    the last of them it goes; what is needed meanwhile gets a main-mode SA of its own."""
    link = connected(crypto=sets(lifetime='{ main = "60 min", quick = "5 min" }'))
    one = link.named(side)
    other = link.other(one)
    (pair,), (association,) = one.pairs, one.ikes
    link.inject(one, notice(other, status(13807, Subject.MAIN, RELIABLE)))
    link.run(30)
    assert one.pairs == [pair]
    assert one.ikes == [association]
    assert not main_mode(one).usable
    link.inject(one, quick_request(other, 3))
    assert len(one.pairs) == 1
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(600)
    unharmed(link)
    agree(link, ikes=0, pairs=0)


def test_both_delete_the_main_mode_sa() -> None:
    """At once: both are acknowledged, and nothing stays."""
    link = connected()
    for one in (link.left, link.right):
        link.close(one)
    link.run(20)
    agree(link, ikes=0, pairs=0)
