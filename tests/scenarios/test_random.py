"""Random commands on both sides over a bad link, and random octets at any moment.

If one of these fails, there is an order of events in which the two sides end with different SAs or one of
them hangs; or a stranger's datagram does more than be counted."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.link import (
    BOTH,
    RIGHT,
    Flight,
    Link,
    agree,
    connected,
    host,
    mirrored,
    psk,
    tunnel_hosts,
    tunnel_rules,
)

from ikd.events import Broken
from ikd.ikev2.message import Message
from ikd.settings import IkeSettings
from sadb.sa import Expire

SIDES = st.sampled_from(BOTH)
QUICK = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
RULE = 'crypto = "short"'
SHORT = '[crypto.short]\nlifetime = { main = "9 min", quick = "2 min" }\n'


class TwoHosts(RuleBasedStateMachine):
    """Whatever is commanded and lost, in the end both sides agree."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(*tunnel_hosts(nets=3, sets=SHORT, left_rule=RULE, right_rule=RULE))
        self.luck = random.Random(0)
        self.loss = self.copies = 0.0
        self.slow = 0.01
        self.link.fate = self.fate

    def fate(self, flight: Flight) -> None:
        flight.lost = self.luck.random() < self.loss
        flight.copies = int(self.luck.random() < self.copies)
        flight.delay = self.luck.uniform(0.005, self.slow)

    @initialize(seed=st.integers(0, 10**6), side=SIDES)
    def begin(self, seed: int, side: str) -> None:
        self.luck.seed(seed)
        self.link.up("net", side)

    @rule(side=SIDES, net=st.sampled_from(["net", "net1", "net2"]))
    def up(self, side: str, net: str) -> None:
        if self.link.named(side).endpoint.policy.rule(net) is None:
            return
        if not any(one.awaits(net) for one in self.link.named(side).ikes):
            self.link.up(net, side)

    @rule(side=SIDES)
    def rekey_child(self, side: str) -> None:
        self.link.rekey_child(self.link.named(side))

    @rule(side=SIDES)
    def rekey(self, side: str) -> None:
        self.link.rekey(self.link.named(side))

    @rule(side=SIDES)
    def close_child(self, side: str) -> None:
        self.link.close_child(self.link.named(side))

    @rule(side=SIDES)
    def close(self, side: str) -> None:
        self.link.close(self.link.named(side))

    @rule(loss=st.sampled_from([0.0, 0.0, 0.2, 0.5, 1.0]), copies=st.sampled_from([0.0, 0.3]))
    def weather(self, loss: float, copies: float) -> None:
        self.loss, self.copies = loss, copies

    @rule(slow=st.sampled_from([0.01, 0.1, 3.0]))
    def distance(self, slow: float) -> None:
        self.slow = slow

    @rule(seconds=st.sampled_from([0.0, 0.006, 0.011, 0.021, 0.1, 1.5, 20.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.link.run(seconds)

    @rule(side=SIDES, seconds=st.sampled_from([0.0, 0.05, 2.0]))
    def slowness(self, side: str, seconds: float) -> None:
        self.link.named(side).slow = seconds

    @rule(side=SIDES, hard=st.booleans(), inbound=st.booleans())
    def limit(self, side: str, hard: bool, inbound: bool) -> None:
        one = self.link.named(side)
        for pair in one.pairs[-1:]:
            half = pair.inbound if inbound else pair.outbound
            found = one.database.noticed(Expire(half.spi, inbound, hard, "octets", pair.owner))
            if found is not None:
                self.link.perform(one, one.endpoint.expired(found, self.link.now))

    @rule(side=SIDES, nets=st.integers(2, 3))
    def reload(self, side: str, nets: int) -> None:
        self.link.reload(self.link.named(side), tunnel_rules(side, nets=nets, extra=RULE) + SHORT)

    @rule(side=SIDES)
    def out_of_order(self, side: str) -> None:
        backend = self.link.named(side).backend
        backend.refuse = None if backend.refuse else "out of order"

    @rule(back=st.integers(1, 30), side=SIDES)
    def replay(self, back: int, side: str) -> None:
        if len(self.link.flights) >= back:
            self.link.inject(self.link.named(side), self.link.flights[-back].data)

    @invariant()
    def nothing_broke(self) -> None:
        for one in (self.link.left, self.link.right):
            assert not one.of(Broken), one.of(Broken)[0].text
            assert len(one.ikes) < 40

    def teardown(self) -> None:
        self.loss = self.copies = 0.0
        self.slow = 0.01
        for one in (self.link.left, self.link.right):
            one.slow, one.backend.refuse = 0.0, None
        self.link.run(400)
        while self.link.left.endpoint.idle is False or self.link.right.endpoint.idle is False:
            self.link.run(1)
            assert self.link.now < 10**6
        self.link.run(1)
        quiet(self.link)
        agree(self.link)


def quiet(link: Link) -> None:
    """Go on until a moment in which nothing is under way and nothing lingers."""
    for _ in range(200):
        hosts = (link.left, link.right)
        if all(one.endpoint.idle and len(one.pairs) == len(list(one.database.pairs())) for one in hosts):
            return
        link.run(0.5)


TestTwoHosts = pytest.mark.timeout(400)(TwoHosts.TestCase)  # what fails has to be made short, too
TestTwoHosts.settings = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# Hostile octets ---------------------------------------------------------------------------------------------


def stage(number: int) -> Link:
    """A negotiation or an IKE SA at some point: before, between and after each of its messages."""
    if number < 5:
        link = Link(*tunnel_hosts())
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
    """Nothing broke, tables are small, and the two sides come together or are together."""
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert len(one.ikes) <= 5
        assert len(list(one.database.pairs())) <= 3
        assert one.endpoint.half_open <= 2


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
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    shorter=st.integers(0, 3),
)
def test_mutated_datagrams(
    number: int, which: int, side: str, cuts: list[tuple[float, int]], shorter: int
) -> None:
    """Real datagrams with some octets changed, and with a length that still fits."""
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
