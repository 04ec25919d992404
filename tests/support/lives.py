"""Random commands on two hosts over a bad link, whatever the protocol."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.link import BOTH, Flight, Link

from ikd.events import Broken
from sadb.sa import Expire

SIDES = st.sampled_from(BOTH)
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Lives(RuleBasedStateMachine):
    """Two hosts with the rules net, net1 and net2, of which some may go; a test makes the link and says what
    is to hold in the end."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link
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

    def calm(self, seconds: float) -> None:
        """Nothing is lost or refused any more, and time passes."""
        self.loss = self.copies = 0.0
        self.slow = 0.01
        for one in (self.link.left, self.link.right):
            one.slow, one.backend.refuse = 0.0, None
        self.link.run(seconds)


def quiet(link: Link) -> None:
    """Go on until a moment in which nothing is under way, nothing lingers, and nothing is being replaced."""
    for _ in range(600):
        both = (link.left, link.right)
        settled = all(
            one.endpoint.idle
            and not any(found.inherited or found.main.children.retiring for found in one.ikes)
            and len(one.pairs) == len(list(one.database.pairs()))
            for one in both
        )
        if settled and len(link.left.ikes) == len(link.right.ikes):
            return
        link.run(0.5)


# Octets at any moment ---------------------------------------------------------------------------------------


def stage(number: int, begun: Callable[[], Link], up: Callable[[], Link], steps: int) -> Link:
    """A negotiation or a main-mode SA at some point: before, between and after each of its first `steps`
    messages on a link that is `begun`, or of what is done with one that is `up`."""
    if number < steps:
        link = begun()
        link.up("net")
        for _ in range(number):
            link.step()
        return link
    link = up()
    (Link.rekey_child, Link.rekey, Link.close_child, Link.close)[number % 4](link, link.left)
    for _ in range(number % 3):
        link.step()
    return link


def unharmed(link: Link, *, ikes: int, pairs: int = 3, half_open: int = 2) -> None:
    """Nothing broke, and tables are small."""
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert len(one.ikes) <= ikes
        assert len(list(one.database.pairs())) <= pairs
        assert one.endpoint.half_open <= half_open


CUTS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)


def damaged(data: bytes, cuts: list[tuple[float, int]], shorter: int, *, fitting: bool = False) -> bytes:
    """A datagram with some octets changed, and without its last ones; what its header says of its length is
    true when some are missing, or it is to be `fitting`."""
    made = bytearray(data)
    for at, value in cuts:
        made[int(at * (len(made) - 1))] = value
    if shorter:
        del made[-shorter:]
    if shorter or fitting:
        made[24:28] = len(made).to_bytes(4, "big")
    return bytes(made)


def say_to_both(link: Link, data: bytes, first: str) -> None:
    """The same datagram to either side."""
    link.inject(link.named(first), data)
    link.inject(link.other(link.named(first)), data)
