"""Who decides and what planes report, together: slots are given when they are empty, and failures are
remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from support.engines import GCM, GCM_ESN, association

from offload.nic.capabilities import PROFILES, Capabilities, Direction
from offload.nic.eligibility import Reason
from offload.switch.placement import RESIDENT, Outcome
from offload.switch.ports import HOST, Ports
from offload.switch.steering import Member, Steering
from sadb.sa import Mode, State
from sadb.selector import Selector

pytestmark = pytest.mark.parametrize("engine", ["python"])
BOTH = frozenset(Direction)
SMALL = replace(PROFILES["82599"], rx_slots=2, tx_slots=2)  # one of two is kept for successors


class Plane:
    """Does what it is told, and says so when it is asked to."""

    def __init__(self, capabilities: Capabilities = SMALL) -> None:
        self.told: list[tuple[int, frozenset[Direction], bool]] = []
        self.steering = Steering(
            Ports(capabilities), lambda member, decision, other: self.events.append(decision.outcome)
        )
        self.events: list[Outcome] = []
        self.steering.link(True, 0.0)

    def pair(self, spi: int, now: float = 0.0, **more: object) -> Member:
        ends = ("192.0.2.1", "192.0.2.2")
        inbound = association(GCM, spi, Mode.TRANSPORT, ends[::-1], Selector((), ()), True)
        outbound = association(GCM, spi, Mode.TRANSPORT, ends, Selector((), ()), False)
        return self.steering.join(
            self.steering.ports[HOST],
            inbound,
            outbound,
            lambda directions, hard: self.told.append((spi, directions, hard)),
            now,
            **more,  # type: ignore[arg-type]
        )

    def done(self, member: Member, what: str, now: float) -> None:
        for direction in Direction:
            self.steering.came(member, direction, what, now)

    def placed(self, spi: int) -> frozenset[Direction]:
        """Directions that it was told to put into the adapter."""
        return frozenset(one for other, some, hard in self.told if other == spi and hard for one in some)

    def carries(self, member: Member, octets: int, now: float) -> None:
        self.steering.carried(member, octets, octets if member.hard else 0, now)


def test_a_slot_is_given_when_it_is_empty() -> None:
    """An adapter whose table is full refuses what comes before its predecessor has left."""
    plane = Plane()
    old = plane.pair(1)
    plane.done(old, "placed", 0.0)
    new = plane.pair(2)
    later = RESIDENT + 1
    plane.carries(new, 10_000_000, later)
    plane.told.clear()
    plane.steering.rebalance(later)
    assert plane.told == [(1, BOTH, False)]
    plane.steering.came(old, Direction.INBOUND, "software", later)
    assert len(plane.told) == 1
    plane.steering.came(old, Direction.OUTBOUND, "software", later)
    assert plane.placed(2) == BOTH
    plane.done(new, "placed", later)
    assert plane.steering.why(new, Direction.OUTBOUND, later) is None
    assert not old.hard


def test_who_waits_for_a_pair_that_is_deleted_gets_its_slot() -> None:
    plane = Plane()
    old = plane.pair(1)
    plane.done(old, "placed", 0.0)
    new = plane.pair(2)
    plane.carries(new, 10_000_000, 20.0)
    plane.steering.rebalance(20.0)
    assert plane.placed(2) == frozenset()
    plane.steering.leave(old, 20.0)
    assert plane.placed(2) == BOTH


def test_what_the_adapter_refused_is_said_and_tried_again() -> None:
    plane = Plane()
    one = plane.pair(1)
    plane.steering.came(one, Direction.OUTBOUND, "refused", 0.0)
    assert plane.steering.why(one, Direction.OUTBOUND, 0.0) is Reason.REFUSED
    assert plane.told == [(1, BOTH, True), (1, BOTH, False)]
    plane.steering.rebalance(0.5)
    assert len(plane.told) == 2
    plane.steering.rebalance(5.0)
    assert plane.told[2:] == [(1, BOTH, True)]


def test_without_a_link_nothing_is_placed() -> None:
    plane = Plane()
    one = plane.pair(1)
    plane.done(one, "placed", 0.0)
    plane.steering.link(False, 1.0)
    assert not one.hard
    assert plane.steering.why(one, Direction.INBOUND, 1.0) is Reason.LINK
    plane.told.clear()
    plane.steering.link(True, 2.0)
    assert plane.told == [(1, BOTH, True)]


def test_what_ages_leaves_to_its_successor() -> None:
    """A successor by rekey is placed beside its predecessor, out of the slots kept for that."""
    plane = Plane()
    old = plane.pair(1)
    plane.done(old, "placed", 0.0)
    plane.told.clear()
    new = plane.pair(2, 1.0, replaces=old)
    assert (2, BOTH, True) in plane.told
    old.inbound.state = old.outbound.state = State.DYING
    plane.done(new, "placed", 1.0)
    assert new.hard == BOTH


def test_octets_are_of_the_plane_that_carried_them() -> None:
    plane = Plane()
    one = plane.pair(1)
    plane.carries(one, 1000, 1.0)
    plane.done(one, "placed", 1.0)
    plane.steering.carried(one, 500, 400, 2.0)
    port = one.port
    assert (port.octets_offloaded, port.octets_software) == (400, 1100)
    assert (one.octets, one.octets_offloaded) == (1500, 400)


def test_a_host_that_moved_has_one_receive_address() -> None:
    """Were the old one still counted, an adapter of few addresses would be full of some that nobody has."""
    plane = Plane(replace(SMALL, rx_slots=8, tx_slots=8, rx_addresses=1))
    one, two = plane.pair(1), plane.pair(2)
    for member in (one, two):
        plane.done(member, "placed", 0.0)
    table = plane.steering.placement.table
    for member in (one, two):
        member.inbound.destination = ip_address("192.0.2.9")
    plane.steering.rebalance(1.0)
    assert table.addresses == 1
    three = plane.pair(3, 2.0)  # to the address that was
    assert three.claim.placed == {Direction.OUTBOUND}
    three.inbound.destination = ip_address("192.0.2.9")
    plane.steering.rebalance(3.0)
    assert three.claim.placed == BOTH
    for member in (one, two, three):
        plane.steering.leave(member, 4.0)
    assert table.addresses == 0


def test_what_was_not_granted_is_not_in_the_adapter() -> None:
    """A guest may say what it likes of its pairs; who looks at them is told what was decided."""
    plane = Plane()
    one, two = plane.pair(1), plane.pair(2)  # one of two slots is kept
    plane.done(one, "placed", 0.0)
    plane.done(two, "placed", 0.0)
    assert (one.hard, two.hard, two.moves) == (BOTH, set(), 0)
    assert plane.steering.why(two, Direction.INBOUND, 0.0) is not None


CHANGES: dict[str, tuple[Callable[[Member, Steering], None], Callable[[Member, Steering], None]]] = {
    "off": (
        lambda member, steering: setattr(member, "wished", False),
        lambda member, steering: setattr(member, "wished", True),
    ),
    "off (switch)": (
        lambda member, steering: setattr(steering.ports, "enabled", False),
        lambda member, steering: setattr(steering.ports, "enabled", True),
    ),
    "off (port)": (
        lambda member, steering: setattr(member.port, "limit", 0),
        lambda member, steering: setattr(member.port, "limit", 9),
    ),
    "trust": (
        lambda member, steering: setattr(member.port, "trusted", False),
        lambda member, steering: setattr(member.port, "trusted", True),
    ),
    "link": (
        lambda member, steering: steering.link(False, 1.0),
        lambda member, steering: steering.link(True, 2.0),
    ),
    "encap": (
        lambda member, steering: setattr(member.outbound, "encapsulation", (4500, 4500)),
        lambda member, steering: setattr(member.outbound, "encapsulation", None),
    ),
    "mode": (
        lambda member, steering: setattr(member.outbound, "mode", Mode.TUNNEL),
        lambda member, steering: setattr(member.outbound, "mode", Mode.TRANSPORT),
    ),
    "esn": (
        lambda member, steering: setattr(member.outbound, "suite", GCM_ESN),
        lambda member, steering: setattr(member.outbound, "suite", GCM),
    ),
    "ageing": (
        lambda member, steering: setattr(member.outbound, "state", State.DYING),
        lambda member, steering: setattr(member.outbound, "state", State.MATURE),
    ),
}


@pytest.mark.parametrize("why", CHANGES)
def test_whatever_changes_is_followed_and_back(why: str) -> None:
    """What was found once is not asked for again until something is otherwise: whatever that may be."""
    plane = Plane(replace(SMALL, rx_slots=8, tx_slots=8))
    member = plane.pair(1)
    change, back = CHANGES[why]
    for turn in range(2):
        assert Direction.OUTBOUND not in member.claim.barred
        change(member, plane.steering)
        plane.steering.rebalance(3.0 + 2 * turn)
        assert member.claim.barred[Direction.OUTBOUND].value == why.split()[0]
        back(member, plane.steering)
        plane.steering.rebalance(4.0 + 2 * turn)
