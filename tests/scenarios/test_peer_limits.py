"""What a proven peer may cost: how often it may negotiate, and how many SAs it may have.

If one of these fails, a peer that is broken or hostile takes the processor or the memory from all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import authip, link, phases
from support.link import LEFT, Link, agree

from ikd.events import ChildEstablished, PeerLimited
from ikd.settings import IkeSettings

CONNECTED: dict[str, Callable[..., Link]] = {
    "ikev2": link.connected,
    "ikev1": phases.connected,
    "authip": authip.connected,
}
PROTOCOLS = pytest.mark.parametrize("protocol", CONNECTED)


def first_message() -> bytes:
    """A first message of left, in a negotiation of which right knows nothing."""
    made = Link(*link.tunnel_hosts(seed=9))
    made.up("net")
    return made.flights[0].data


def limits(one: Any) -> set[str]:
    """Limits of its own that a host has told of."""
    return {event.limit for event in one.of(PeerLimited)}


@PROTOCOLS
def test_a_peer_that_negotiates_without_end_is_slowed_down(protocol: str) -> None:
    """A loop in somebody's configuration must not take a processor: beyond the rate the peer waits, and what
    it asked for comes in the end."""
    made = CONNECTED[protocol](right_settings=IkeSettings(peer_rate=1.0))
    before = len(made.right.of(ChildEstablished))
    for _ in range(60):
        made.rekey_child(made.left)
        made.run(0.1)
    done = len(made.right.of(ChildEstablished)) - before
    assert 8 <= done <= 16  # ten at once, and one a second
    assert limits(made.right) == {"peer_rate"}
    made.run(90)
    agree(made, pairs=1)


def test_ike_sas_count_too() -> None:
    """Each costs more than a Child SA; and who is slowed down is so at the first message, before anything
    expensive."""
    made = link.connected(right_settings=IkeSettings(peer_rate=0.5, liveness=0))
    for _ in range(30):
        made.up("net", childless=True)
        made.run(0.1)
    assert len(made.right.ikes) <= 7
    assert "rate-limit" in made.right.drops
    made.run(60)
    assert len(made.right.ikes) > 14  # repetitions bring them in


def test_a_forger_does_not_use_up_a_peers_rate() -> None:
    """Anybody can write down a peer's address: only what is proven counts."""
    made = link.connected(right_settings=IkeSettings(peer_rate=0.5, half_open_timeout=5))
    data = first_message()
    for n in range(300):
        made.inject(made.right, (n + 1).to_bytes(8, "big") + data[8:], source=LEFT)
    made.run(6)
    made.up("net", childless=True)
    made.run(3)
    assert len([one for one in made.right.ikes if one.life.up]) == 2
    assert "rate-limit" not in made.right.drops


def test_a_peer_with_too_many_ike_sas_loses_the_oldest() -> None:
    """One that forgets what it had and begins anew again and again must neither fill the table nor be locked
    out; the newest is the one it knows."""
    made = link.connected(right_settings=IkeSettings(peer_associations=3))
    (first,) = made.right.ikes
    for _ in range(5):
        made.up("net", childless=True)
        made.run(2)
    assert len(made.right.ikes) == 3
    assert first not in made.right.ikes
    assert limits(made.right) == {"peer_associations"}
    assert len(made.right.of(PeerLimited)) == 3
    made.run(20)
    agree(made, ikes=3)


def test_half_open_negotiations_are_nobodys() -> None:
    """Anybody can begin one from a peer's address, and must not throw out what the peer has."""
    made = link.connected(right_settings=IkeSettings(peer_associations=2))
    data = first_message()
    for n in range(5):
        made.inject(made.right, (n + 1).to_bytes(8, "big") + data[8:], source=LEFT)
    made.run(1)
    assert len(made.right.ikes) == 6
    assert not limits(made.right)


@PROTOCOLS
def test_rekeyed_ike_sas_do_not_count_twice(protocol: str) -> None:
    """The one that was replaced is there until the peer deletes it: replacing must work at the limit."""
    made = CONNECTED[protocol](right_settings=IkeSettings(peer_associations=2))
    for side in (made.left, made.right):
        made.rekey(side)
        made.run(15)
    assert not limits(made.right)
    made.run(90)
    agree(made, ikes=1, pairs=1)


@PROTOCOLS
@pytest.mark.parametrize("limit", ["children", "peer_children"])
def test_rekeyed_child_sas_do_not_count_twice(protocol: str, limit: str) -> None:
    """A peer that has as many as it may would lose one after the other when their lives end."""
    made = CONNECTED[protocol](right_settings=IkeSettings(**{limit: 1}))
    for side in (made.left, made.right, made.left):
        old = made.left.pairs[0].inbound.spi
        made.rekey_child(side)
        made.run(30)
        assert [one.inbound.spi != old for one in made.left.pairs] == [True]
    assert not made.left.failures
    agree(made, ikes=1, pairs=1)


def test_child_sas_of_all_ike_sas_of_a_peer_count() -> None:
    """Else who may have a thousand under one IKE SA has a hundred thousand under a hundred."""
    made = link.connected(nets=6, right_settings=IkeSettings(children=2, peer_children=3))
    made.up("net", childless=True)
    made.run(2)
    left = made.left.endpoint
    for n, one in enumerate(made.left.ikes):
        for name in (f"net{2 * n + 1}", f"net{2 * n + 2}"):
            rule = left.policy.rule(name)
            assert rule is not None
            with left._outputs as out:
                one.create_child(rule, None, made.now)
            made.perform(made.left, out)
            made.run(2)
    assert len(made.right.pairs) == 3
    assert {one.notify for one in made.left.failures} == {"NO_ADDITIONAL_SAS"}
    assert any("and 3 is the most" in one.reason for one in made.right.failures)
    made.rekey_child(made.left)
    made.run(5)
    agree(made, ikes=2, pairs=3)


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
def test_a_recording_does_not_use_up_a_peers_rate(protocol: str) -> None:
    """The first message of a quick mode is authentic whoever sends it again, and how often."""
    made = CONNECTED[protocol](right_settings=IkeSettings(peer_rate=1.0))
    count = len(made.flights)
    made.rekey_child(made.left)
    made.run(100)
    recorded = next(one for one in made.flights[count:] if one.sender is made.left)
    for _ in range(100):
        made.inject(made.right, recorded.data, source=LEFT)
    assert made.right.drops.count("replayed") == 100
    assert not limits(made.right)
