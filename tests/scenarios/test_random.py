"""Random commands on both sides over a bad link, and random octets at any moment.

If one of these fails, there is an order of events in which the two sides end with different SAs or one of
them hangs; or a stranger's datagram does more than be counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from support import lives
from support.link import (
    RIGHT,
    Link,
    agree,
    connected,
    host,
    mirrored,
    psk,
    tunnel_hosts,
    tunnel_rules,
)
from support.lives import CUTS, PATIENT, SIDES, Lives, damaged, quiet, say_to_both

from ikd.events import Broken
from ikd.ikev2.message import Message
from ikd.settings import IkeSettings

QUICK = settings(PATIENT, max_examples=40)
RULE = 'crypto = "short"'
SHORT = '[crypto.short]\nlifetime = { main = "9 min", quick = "2 min" }\n'


class TwoHosts(Lives):
    """Whatever is commanded and lost, in the end both sides agree."""

    def __init__(self) -> None:
        super().__init__(Link(*tunnel_hosts(nets=3, sets=SHORT, left_rule=RULE, right_rule=RULE)))

    @rule(side=SIDES, nets=st.integers(2, 3))
    def reload(self, side: str, nets: int) -> None:
        self.link.reload(self.link.named(side), tunnel_rules(side, nets=nets, extra=RULE) + SHORT)

    def teardown(self) -> None:
        self.calm(400)
        quiet(self.link)
        agree(self.link)


TestTwoHosts = pytest.mark.timeout(400)(TwoHosts.TestCase)  # what fails has to be made short, too
TestTwoHosts.settings = settings(PATIENT, max_examples=60, stateful_step_count=25)


# Hostile octets ---------------------------------------------------------------------------------------------


def stage(number: int) -> Link:
    """Any moment of an IKE SA."""
    return lives.stage(number, lambda: Link(*tunnel_hosts()), connected, 5)


def unharmed(link: Link) -> None:
    """Nothing broke, and tables are small."""
    lives.unharmed(link, ikes=5)


@QUICK
@given(number=st.integers(0, 16), data=st.binary(max_size=400), side=SIDES)
def test_random_octets(number: int, data: bytes, side: str) -> None:
    """No exception, no event of a bug, no growth."""
    link = stage(number)
    link.inject(link.named(side), data)
    link.inject(link.named(side), link.flights[-1].data[:17] + b"\x20" + data)
    unharmed(link)
    link.run(100)
    agree(link)


@QUICK
@given(
    number=st.integers(0, 16),
    which=st.integers(0, 10),
    side=SIDES,
    cuts=CUTS,
    shorter=st.integers(0, 3),
)
def test_mutated_datagrams(
    number: int, which: int, side: str, cuts: list[tuple[float, int]], shorter: int
) -> None:
    """Real datagrams with some octets changed, and with a length that still fits."""
    link = stage(number)
    flight = link.flights[which % len(link.flights)]
    say_to_both(link, damaged(flight.data, cuts, 7 * shorter), side)
    unharmed(link)
    link.run(100)
    agree(link)


@QUICK
@given(
    plain=st.binary(max_size=200),
    kind=st.integers(0, 60),
    exchange=st.integers(34, 38),
    number=st.integers(0, 16),
    response=st.booleans(),
)
def test_authentic_garbage(plain: bytes, kind: int, exchange: int, number: int, response: bool) -> None:
    """A peer that has the keys writes nonsense: its own IKE SA may end, and no more."""
    link = stage(number)
    if not link.left.ikes or not link.left.ikes[-1].session.channel.armed:
        return
    channel = link.left.ikes[-1].session.channel
    for message_id in (0, 1, 2, 3):
        message = Message(exchange, (), response, message_id)
        link.inject(link.right, channel._sealed(message, 46, kind, b"", plain))
    unharmed(link)
    link.run(150)
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert one.endpoint.idle


def test_a_thousand_strangers() -> None:
    """Tables stay as small as the settings say, and whoever was there stays."""
    left, _ = tunnel_hosts()
    small = IkeSettings(half_open=20, half_open_per_address=10, associations=30)
    right = host(
        "right", RIGHT, tunnel_rules("right", peer="any"), psk("right.example", "left.example"), small
    )
    link = Link(left, right)
    link.up("net")
    link.run(2)
    first = link.flights[0].data
    luck = random.Random(5)
    for n in range(1000):
        data = bytearray(luck.randbytes(8) + first[8:])
        if n % 3 == 0:
            data[luck.randrange(28, len(data))] ^= 1 << luck.randrange(8)
        link.fate = lambda flight: setattr(flight, "lost", True)
        link.inject(right, bytes(data), port=1024 + n, source=right.address + 1 + n % 50)
    assert right.endpoint.half_open <= 20
    assert len(right.ikes) <= 30
    assert mirrored(left, right)
    link.fate = lambda flight: None
    link.run(100)
    agree(link, ikes=1, pairs=1)
