"""Random commands on two hosts that speak AuthIP over a bad link, and random octets at any moment.

If one of these fails, there is an order of events in which the two sides end with different SAs or one of
them hangs; or a stranger's datagram does more than be counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.authip import CERTIFICATE, connected, hosts, person
from support.link import Link, agree
from support.lives import PATIENT, SIDES, Lives, quiet
from support.phases import sets

from ikd.events import Broken

QUICK = settings(PATIENT, max_examples=25)
SHORT = sets(lifetime='{ main = "9 min", quick = "2 min" }')


USER = CERTIFICATE + 'second = ["user-certificate"]\n'
OPTIONAL = CERTIFICATE + 'second = ["user-certificate", "anonymous"]\n'
ONE_WAY = '[auth.machine]\nfirst = [{ method = "certificate", mutual = false }]\n'
USERS = {"left": person("left"), "right": person("right")}


def lives(examples: int, **how: Any) -> Any:
    """Whatever is commanded and lost, in the end both sides agree."""

    class TwoHosts(Lives):
        def __init__(self) -> None:
            super().__init__(Link(*hosts(nets=3, crypto=SHORT, **how)))

        def teardown(self) -> None:
            self.calm(800)
            quiet(self.link)
            agree(self.link)

    case: Any = pytest.mark.timeout(400)(TwoHosts.TestCase)  # what fails has to be made short, too
    case.settings = settings(PATIENT, max_examples=examples, stateful_step_count=20)
    return case


TestMachines = lives(30, auth=CERTIFICATE)
TestUsers = pytest.mark.long(lives(12, auth=USER, **USERS))
TestOptionalUsers = pytest.mark.long(lives(12, auth=OPTIONAL, left=USERS["left"]))
TestOneWay = pytest.mark.long(lives(12, auth=ONE_WAY))


# Hostile octets ---------------------------------------------------------------------------------------------


def stage(number: int) -> Link:
    """A negotiation or a main-mode SA at some point: before, between and after each of its messages."""
    if number < 10:
        link = Link(*hosts())
        link.up("net")
        for _ in range(number):
            link.step()
        return link
    link = connected()
    (Link.rekey_child, Link.rekey, Link.close_child, Link.close)[number % 4](link, link.left)
    for _ in range(number % 3):
        link.step()
    return link


def unharmed(link: Link) -> None:
    """Nothing broke, and tables are small."""
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert len(one.ikes) <= 6
        assert len(list(one.database.pairs())) <= 3
        assert one.endpoint.half_open <= 2


@QUICK
@given(number=st.integers(0, 20), data=st.binary(max_size=400), side=SIDES)
def test_random_octets(number: int, data: bytes, side: str) -> None:
    """No exception, no event of a bug, no growth."""
    link = stage(number)
    link.inject(link.named(side), data)
    link.inject(link.named(side), link.flights[-1].data[:17] + b"\x10" + data)
    unharmed(link)
    link.run(100)
    agree(link)


@QUICK
@given(
    number=st.integers(0, 20),
    which=st.integers(0, 12),
    side=SIDES,
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    shorter=st.integers(0, 3),
)
def test_mutated_datagrams(
    number: int, which: int, side: str, cuts: list[tuple[float, int]], shorter: int
) -> None:
    """Real datagrams with some octets changed, and with a length that still fits: what is forged in the clear
    may end that negotiation, nothing else, and the next one goes on."""
    link = stage(number)
    flight = link.flights[which % len(link.flights)]
    data = bytearray(flight.data)
    for at, value in cuts:
        data[int(at * (len(data) - 1))] = value
    if shorter:
        del data[-shorter * 7 :]
        data[24:28] = len(data).to_bytes(4, "big")
    link.inject(link.named(side), bytes(data))
    link.inject(link.other(link.named(side)), bytes(data))
    unharmed(link)
    link.run(150)
    agree(link)
    link.up("net")
    link.run(20)
    agree(link)
    assert link.left.pairs
