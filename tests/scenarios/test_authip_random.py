"""Random commands on two hosts that speak AuthIP over a bad link, and random octets at any moment.

If one of these fails, there is an order of events in which the two sides end with different SAs or one of
them hangs; or a stranger's datagram does more than be counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lives as lives_of
from support.authip import CERTIFICATE, connected, hosts, person
from support.link import Link, agree
from support.lives import CUTS, PATIENT, SIDES, Lives, damaged, quiet, say_to_both
from support.phases import sets

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
    """Any moment of a main-mode SA."""
    return lives_of.stage(number, lambda: Link(*hosts()), connected, 10)


def unharmed(link: Link) -> None:
    """Nothing broke, and tables are small."""
    lives_of.unharmed(link, ikes=6)


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
    cuts=CUTS,
    shorter=st.integers(0, 3),
)
def test_mutated_datagrams(
    number: int, which: int, side: str, cuts: list[tuple[float, int]], shorter: int
) -> None:
    """Real datagrams with some octets changed, and with a length that still fits: what is forged in the clear
    may end that negotiation, nothing else, and the next one goes on."""
    link = stage(number)
    flight = link.flights[which % len(link.flights)]
    say_to_both(link, damaged(flight.data, cuts, 7 * shorter), side)
    unharmed(link)
    link.run(150)
    agree(link)
    link.up("net")
    link.run(20)
    agree(link)
    assert link.left.pairs
