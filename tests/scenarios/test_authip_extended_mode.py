"""Extended mode of AuthIP at a wrong time, or that stops on the way (MS-AIPS sections 3.6 and 3.7).

If one of these fails, a user who has proven nothing has an SA, or one side waits for ever."""

from __future__ import annotations

import pytest
from support.authip import (
    CERTIFICATE,
    main_mode,
    person,
    with_users,
)
from support.authip_hostile import over, unharmed
from support.link import Flight, Link, agree

from ikd.authip.message import plain
from ikd.authip.numbers import Exchange, Method
from ikd.authip.payloads import Auth, AuthEntry
from ikd.settings import IkeSettings


@pytest.mark.parametrize("number", range(2, 9))
def test_extended_mode_before_its_time(number: int) -> None:
    """A user's proof without a machine's: there are no keys to send it with, and in the clear it is
    nothing."""
    recorded = Link(*with_users(seed=5))
    recorded.up("net")
    recorded.run(5)
    extended = [one.data for one in recorded.flights if one.header.exchange == Exchange.EXTENDED]
    link = Link(*with_users())
    link.up("net")
    for _ in range(number):
        link.step()
    (association,) = link.right.ikes
    cookies = b"".join(association.spis)
    auth = main_mode(link.right).session.channel.seal(
        plain(Exchange.EXTENDED, 1, Auth(entries=(AuthEntry(method=Method.TLS),)))
    )[0]
    for data in (*extended, auth):
        for one in (link.left, link.right):
            link.inject(one, cookies + data[16:])
    link.run(30)
    agree(link, ikes=1, pairs=1)


def test_a_user_whose_machine_is_not_believed() -> None:
    """The first authentication fails, and there is no second one instead of it."""
    link = Link(*with_users(left=person("left", ca="CN=Another CA", user_ca="CN=Lab CA")))
    link.up("net")
    link.run(60)
    over(link)
    assert not any(one.header.exchange == Exchange.EXTENDED for one in link.flights)


OPTIONAL = CERTIFICATE + 'second = ["user-certificate", "anonymous"]\n'


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_second_authentication_that_stops(stop: int) -> None:
    """Also where it is optional, so that the main-mode SA is up without: it has its time, and is then over on
    both sides."""
    link = Link(*with_users(auth=OPTIONAL, settings=IkeSettings(liveness=0)))
    seen = 0

    def fate(flight: Flight) -> None:
        nonlocal seen
        if flight.header.exchange == Exchange.EXTENDED and flight.sender is link.left:
            seen += 1
            flight.lost = seen > stop

    link.fate = fate
    link.up("net")
    link.run(100)
    unharmed(link)
    agree(link)
    assert all(not main_mode(one).talks.open for one in (link.left, link.right) if one.ikes)
    if not link.left.pairs:
        link.fate = lambda flight: None
        link.up("net")
        link.run(20)
    agree(link, ikes=1, pairs=1)
