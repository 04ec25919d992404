"""What a guest says to the host over its port's socket."""

from __future__ import annotations

import pytest
from support.engines import GCM_ESN, association

from offload.switch.port_protocol import Claim, encode, facts, from_guest, plain
from offload.switch.port_protocol import association as known
from sadb.sa import Mode
from sadb.selector import Selector

pytestmark = pytest.mark.parametrize("engine", ["python"])


def test_a_guest_cannot_write_into_the_hosts_log(engine: str) -> None:
    """Its names stand in events: a line of its making there would be believed to be the daemon's."""
    assert plain("db\n2026-01-01 info ike 1: \x1b[31mforged") == "db2026-01-01 info ike 1: [31mforged"
    assert len(plain("x" * 1000)) == 64


def test_facts_arrive_without_keys(engine: str) -> None:
    """Who decides about slots needs no key, and must not get one."""
    sa = association(GCM_ESN, 7, Mode.TUNNEL, ("192.0.2.1", "192.0.2.2"), Selector((), ()), True)
    data = encode(Claim(1, facts(sa), facts(sa), "peer", "rule", True, None))
    assert bytes(sa.encryption_key)[:16] not in data
    message = from_guest(data)
    assert isinstance(message, Claim)
    got = known(message.inbound, True)
    assert (got.suite, got.mode, got.destination, got.state) == (sa.suite, sa.mode, sa.destination, sa.state)
    assert len(got.encryption_key) == 0
