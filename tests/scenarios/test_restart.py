"""A daemon that is restarted: its pairs have gone on, and nobody has the keys of their IKE SAs any more.

If one of these fails, a restart costs connections, or leaves pairs that nobody answers for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support import authip, link, phases
from support.link import BOTH, LEFT, Host, Link, mirrored, story, tunnel_rules
from support.roaming import LEFT2, Roaming, ends, roaming

from ikd.adoption import AGAIN, EACH_TURN, PATIENCE, TURN, Adoption, packet_of
from ikd.endpoint import Endpoint
from ikd.events import ChildClosed, IkeClosed
from ikd.settings import IkeSettings
from policy.engine import Policy
from sadb.database import Database
from sadb.memory import MemoryBackend
from sadb.sa import SaPair, State

PROTOCOLS: dict[str, Callable[..., Link]] = {
    "ikev2": link.connected,
    "ikev1": phases.connected,
    "authip": authip.connected,
}
EACH = pytest.mark.parametrize("protocol", PROTOCOLS)


def restarted(path: Link, name: str, *, kept: bool = True) -> Host:
    """The host after a restart: with its files and, if they are `kept`, its pairs, and nothing else."""
    old, env = path.named(name), path.named(name).endpoint.env
    source = random.Random(f"{name} restarted")
    backend = old.backend if kept else MemoryBackend()
    database = Database(backend, source.randbytes)
    endpoint = Endpoint(env.settings, env.policy, env.credentials, source.randbytes)
    new = Host(name, old.address, endpoint, database, backend)
    setattr(path, name, new)
    if path.inside is old:
        path.inside = new
    pairs = list(old.database.pairs()) if kept else []
    for pair in pairs:
        pair.owner = 0
        database.adopt(pair)
    path.perform(new, endpoint.take_over(pairs, path.now))
    return new


def unbroken(path: Link) -> bool:
    """Whether each end always had a pair to send on; one that the other end had not got yet lasted no longer
    than a message to it, for which its workers keep packets (`offload.workers.worker.Early`)."""
    return not any("no pair" in gap for gap in path.gaps) and len(path.gaps) <= 1


def spis(host: Host) -> set[int]:
    """Of the pairs in use."""
    return {pair.inbound.spi for pair in host.pairs if not pair.standby}


@EACH
@pytest.mark.parametrize("name", BOTH)
def test_pairs_serve_until_they_are_replaced(protocol: str, name: str) -> None:
    """Without a pair that both ends have at every moment a connection would lose packets; and a peer that
    were told of an initial contact would drop the old pair before it has the new one."""
    path = PROTOCOLS[protocol]()
    new, before = restarted(path, name), spis(path.named(name))
    path.watch()
    path.run(5)
    assert unbroken(path), story(path)
    assert len(spis(new)) == 1
    assert spis(new).isdisjoint(before), story(path)
    assert not path.other(new).ikes[-1].main.initial_contact
    path.run(5)
    assert new.backend.pairs == tuple(new.pairs), "an old pair stays for ever"
    assert new.database.by_owner(0) == ()


@EACH
def test_peer_gets_rid_of_what_it_has_in_vain(protocol: str) -> None:
    """Else it would try to make pairs on an IKE SA that is gone, whenever it needs some; it asks for once
    even if it does not ask as a rule."""
    path = PROTOCOLS[protocol](right_settings=IkeSettings(liveness=0))
    path.run(10)
    new = restarted(path, "left")
    path.run(120)
    assert len(new.ikes) == len(path.right.ikes) == 1, story(path)
    assert mirrored(new, path.right), story(path)
    path.watch()
    path.rekey_child(path.right)
    path.run(5)
    assert unbroken(path), story(path)
    assert mirrored(new, path.right), story(path)


def test_peer_makes_pairs_on_the_newest_ike_sa() -> None:
    """What it needs before it has found out must not wait for an IKE SA that nobody answers on."""
    path = link.connected(nets=2)
    restarted(path, "left")
    path.run(2)
    assert len(path.right.ikes) == 2
    path.up("net1", "right")
    path.run(1)
    assert {pair.rule for pair in path.left.pairs} == {"net", "net1"}, story(path)


@EACH
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("nat", BOTH)
def test_ends_of_a_nat_find_each_other(protocol: str, nat: str, name: str) -> None:
    """Behind a NAT the peer is where its packets come from, and nowhere else."""
    path = PROTOCOLS[protocol](nat=nat)
    (pair,), begun = path.named(name).pairs, len(path.flights)
    new = restarted(path, name)
    path.watch()
    path.run(10)
    assert unbroken(path), story(path)
    assert mirrored(path.left, path.right) or len(path.other(new).pairs) == 2, story(path)
    assert all(pair.outbound.encapsulation is not None for pair in new.pairs)
    used = {(one.path.local.port, one.path.peer.port) for one in path.flights[begun:] if one.sender is new}
    assert used == {pair.outbound.encapsulation}


def test_all_pairs_with_a_peer_are_replaced_on_one_ike_sa() -> None:
    """An IKE SA for each pair would cost a proof each."""
    path = link.connected(nets=3)
    for n in (1, 2):
        path.up(f"net{n}")
        path.run(1)
    new = restarted(path, "left")
    path.run(2 * AGAIN + 1)
    assert len(new.ikes) == 1
    assert sorted(pair.rule for pair in new.pairs) == ["net", "net1", "net2"]
    assert len({closed.spi_in for closed in new.of(ChildClosed)}) == 3


def test_pair_whose_peer_does_not_answer_goes() -> None:
    """A pair whose other end has never proven itself to this daemon must not stay until its lifetime ends,
    nor go while the peer may only be slow."""
    path = link.connected()
    new = restarted(path, "left")
    (pair,) = new.database.pairs()

    def silent(flight: link.Flight) -> None:
        flight.lost = True

    path.fate = silent
    path.run(PATIENCE - 1)
    assert list(new.database.pairs()) == [pair]
    path.run(2)
    assert not len(new.database)
    assert not new.backend.pairs
    assert [one.reason for one in new.of(ChildClosed)] == ["nothing has replaced it since the restart"]
    assert pair.inbound.state is State.DEAD


def test_peer_that_comes_first_replaces_a_pair_as_well() -> None:
    """Else its pair and the old one would stand side by side until somebody's patience ends; here the peer
    has lost everything, and says so."""
    path = link.connected()
    new = restarted(path, "left")

    def deaf(flight: link.Flight) -> None:
        flight.lost = (
            flight.sender is new and flight.header.exchange == 34 and not flight.header.spi_r.strip(b"\0")
        )

    path.fate = deaf
    path.run(1)
    restarted(path, "right", kept=False)
    path.up("net", "right")
    path.run(5)
    assert new.database.by_owner(0) == ()
    assert len(new.pairs) == 1
    assert mirrored(new, path.right), story(path)


def test_rule_that_is_changed_while_its_pair_waits_ends_it() -> None:
    """A reload ends what the rule no longer allows, whoever negotiated it."""
    path = link.connected()
    new = restarted(path, "left")
    path.fate = link.losing(*range(100))
    path.run(1)
    path.reload(new, tunnel_rules("left", extra='peer = "somebody.else"'))
    assert not len(new.database)
    assert not len(new.endpoint.adoption)
    assert [one.reason for one in new.of(ChildClosed)] == ["its rule has changed"]


def test_administrator_can_close_a_pair_that_waits() -> None:
    """There is no IKE SA by which the peer could be told, and the pair goes all the same."""
    path = link.connected()
    new = restarted(path, "left")
    (pair,) = new.database.pairs()
    path.perform(new, new.endpoint.close_child(pair, path.now, "closed by hand"))
    assert not len(new.database)
    path.run(10)
    assert not path.left.ikes


def test_pair_that_meets_its_limit_is_not_waited_for() -> None:
    """Its own limits hold as if nothing had happened."""
    path = link.connected()
    (pair,) = path.left.pairs
    path.fate = link.losing(*range(10_000))
    path.now = pair.created + (pair.inbound.lifetime.hard_seconds or 0.0) - 10
    new = restarted(path, "left")
    path.run(20)
    assert not len(new.database)
    assert not len(new.endpoint.adoption)


def test_peers_that_lost_nothing_are_not_disturbed() -> None:
    """Two hosts that begin at once have two IKE SAs, and neither is in doubt."""
    path = link.connected()
    path.up("net", "right", childless=True)
    path.run(30)
    assert not path.left.of(IkeClosed)


# MOBIKE --------------------------------------------------------------------------------------------------


def gateway() -> Roaming:
    """The left host roams; the right one takes it wherever it is."""
    path = roaming(nets=2)
    path.up("net1")
    path.run(1)
    env = path.right.endpoint.env
    rules = [
        replace(rule, tunnel=replace(rule.tunnel, remote=None)) for rule in env.policy.rules if rule.tunnel
    ]
    env.policy = Policy(rules)
    return path


def restarted_there(path: Roaming, name: str) -> Host:
    """As `restarted`; the new daemon is told of the network."""
    old = path.named(name)
    new = restarted(path, name)
    path.addresses[new], path.routed[new] = path.addresses.pop(old), path.routed.pop(old)
    path.tell(new)
    return new


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("during", [False, True], ids=["before", "during"])
def test_pairs_that_have_moved_are_replaced_where_they_are(name: str, during: bool) -> None:
    """The rule may name another address, and the peer may move while one pair is replaced and another
    one is not: that one must not stay for ever."""
    path = gateway()
    if not during:
        path.change(path.left, LEFT, LEFT2)
        path.run(3)
    new, before = restarted_there(path, name), spis(path.named(name))
    if during:
        while len(new.pairs) == 2:
            path.run(0.01)
        path.change(path.left, LEFT, LEFT2)
    path.run(10)
    assert len(new.pairs) == 2, story(path)
    assert spis(new).isdisjoint(before)
    assert all(LEFT2 in ends(pair)[:2] for pair in new.pairs)
    path.run(120)
    assert mirrored(path.left, path.right), story(path)
    assert len(new.pairs) == 2


def test_an_address_that_only_old_pairs_have_is_in_use() -> None:
    """No interface has to have it, so the host is asked; else the pair would be replaced from another one."""
    path = gateway()
    assert LEFT in restarted(path, "left").endpoint.own_addresses()


def test_a_host_with_another_address_replaces_its_pairs_from_there() -> None:
    """It has lost the old one while no daemon was there to tell the peer: nothing can be sent from it."""
    path = gateway()
    before = spis(path.left)
    path.addresses[path.left] = [LEFT2]
    new = restarted_there(path, "left")
    path.run(10)
    assert len(new.pairs) == 2, story(path)
    assert spis(new).isdisjoint(before)
    assert all(ends(pair)[0] == LEFT2 for pair in new.pairs)
    assert not path.refused


# Time ----------------------------------------------------------------------------------------------------


class Asked:
    """An endpoint that only notes what it is asked to negotiate."""

    def __init__(self, path: Link) -> None:
        self.env = path.left.endpoint.env
        self.begun: list[str] = []
        self.emit = lambda output: None
        self.peers = lambda address: []

    def negotiate(self, rule: Any, way: Any, now: float, packet: Any, peers: Any, *, childless: bool) -> None:
        """Note it."""
        self.begun.append(f"{packet.source}")


def test_beginnings_are_spread_over_time() -> None:
    """A gateway with thousands of peers would not answer anybody while it begins with all of them; those
    whose packets wait come first."""
    path = link.connected(nets=3 * EACH_TURN)
    pairs: list[SaPair] = []
    for n in range(3 * EACH_TURN):
        if n:
            path.up(f"net{n}")
            path.run(0.2)
        pair = path.left.pairs[-1]
        pair.inbound.usage.last = 1000.0 + n
        pairs.append(pair)
    asked = Asked(path)
    adoption = Adoption(asked)
    adoption.add(pairs, 2000.0)
    adoption.tick(2000.0)
    assert asked.begun == [str(packet_of(pair).source) for pair in pairs[: -EACH_TURN - 1 : -1]]
    assert adoption.deadline() == pytest.approx(2000.0 + TURN)
    for turn in range(1, 5):
        adoption.tick(2000.0 + turn * TURN)
    assert len(set(asked.begun)) == len(asked.begun) == len(pairs)
