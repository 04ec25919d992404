"""sadb.memory: the backend that remembers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.sas import pair, selectors

from sadb.backend import Backend, Unavailable
from sadb.memory import MemoryBackend
from sadb.sa import Action, Expire, Flow
from sadb.selector import Selector

FLOW = Flow("db", Selector(selectors("10.0.0.1"), selectors("10.0.0.2")), Action.SECURE)


def test_methods_may_be_repeated() -> None:
    """Every method of a backend is safe to repeat, as its contract says: recovery depends on it."""
    backend: Backend = MemoryBackend()
    assert isinstance(backend, MemoryBackend)
    one, other = pair(0x100), pair(0x200)
    for each in (one, other, one):
        backend.install(each)
    assert backend.pairs == (one, other)
    backend.remove(one)
    backend.remove(one)
    assert backend.pairs == (other,)


def test_another_pair_of_the_same_spi_is_left_alone() -> None:
    """A late removal of a pair must not take its successor away."""
    backend = MemoryBackend()
    former, successor = pair(0x100), pair(0x100)
    backend.install(successor)
    backend.remove(former)
    assert backend.pairs == (successor,)


def test_flows_are_replaced_as_a_whole() -> None:
    """Flows of the former policy that stayed would go on protecting, or blocking, what is not wanted."""
    backend = MemoryBackend()
    backend.route((FLOW,))
    backend.route(())
    assert backend.flows == ()


def test_refusal_changes_nothing() -> None:
    """Tests of a data plane out of order need one that fails and stays as it was."""
    backend = MemoryBackend()
    one = pair(0x100)
    backend.install(one)
    backend.route((FLOW,))
    backend.refuse = "no device"
    with pytest.raises(Unavailable, match="no device"):
        backend.install(pair(0x200))
    with pytest.raises(Unavailable, match="no device"):
        backend.route(())
    assert (backend.pairs, backend.flows) == ((one,), (FLOW,))
    backend.remove(one)  # taking out always works
    assert backend.pairs == ()


def test_move_changes_both_directions() -> None:
    """After a NAT rebinding packets must go to the new port and be expected from it."""
    backend = MemoryBackend()
    one = pair(0x100)
    local, peer = ip_address("192.0.2.9"), ip_address("198.51.100.7")
    backend.moved(one, local, peer, (4500, 1024))
    assert (one.outbound.source, one.outbound.destination, one.outbound.encapsulation) == (
        local,
        peer,
        (4500, 1024),
    )
    assert (one.inbound.source, one.inbound.destination, one.inbound.encapsulation) == (
        peer,
        local,
        (1024, 4500),
    )
    backend.moved(one, local, peer, None)
    assert one.outbound.encapsulation is one.inbound.encapsulation is None


def test_usage_is_the_pairs_own() -> None:
    """In and out exchanged would show a peer's traffic as ours."""
    backend = MemoryBackend()
    one = pair(0x100)
    one.inbound.usage.octets = 7
    assert [usage.octets for usage in backend.usage(one)] == [7, 0]


def test_notices_go_nowhere_until_someone_listens() -> None:
    """A notice before the owner is there must not be an error."""
    backend = MemoryBackend()
    backend.notify(Expire(0x100, True, True, "octets"))
    heard: list[object] = []
    backend.notify = heard.append
    backend.notify(Expire(0x100, True, True, "octets"))
    assert len(heard) == 1
