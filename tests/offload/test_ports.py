"""Ports of the virtual switch: what an administrator may set, and what is refused with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from offload.nic.capabilities import PROFILES
from offload.switch.ports import HOST, PortError, Ports

# No engine takes part.
pytestmark = pytest.mark.parametrize("engine", ["python"], indirect=True)


def test_defaults_are_those_of_hyper_v() -> None:
    """Who knows Hyper-V expects 512, and the host among the ports."""
    ports = Ports(PROFILES["82576"])
    (host,) = ports
    assert (host.name, host.limit, host.reserve, host.trusted, host.exclusive) == (HOST, 512, 0, True, False)
    assert ports.limit(host) == 512


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"limit": -1}, 'port "vm1": limit must be from 0 up, not -1'),
        ({"reserve": -1}, 'port "vm1": reserve must be from 0 up, not -1'),
        ({"weight": 101}, 'port "vm1": weight must be from 0 to 100, not 101'),
        ({"weight": -1}, 'port "vm1": weight must be from 0 to 100, not -1'),
        (
            {"reserve": 157},
            'port "vm1": a reserve of 157 makes 257 slots reserved in all, and the 82576 has 256; '
            "lower a reserve",
        ),
    ],
)
def test_impossible_values_change_nothing(words: dict[str, Any], said: str) -> None:
    """A reserve that cannot be kept for all, once accepted, is broken for somebody."""
    ports = Ports(PROFILES["82576"])
    ports.change(HOST, reserve=100)
    port = ports.attach("vm1", reserve=156)
    with pytest.raises(PortError) as error:
        ports.change("vm1", **{"limit": 7, **words} if "reserve" not in words else words)
    assert str(error.value) == said
    assert (port.limit, port.reserve, port.weight) == (512, 156, 100)
    with pytest.raises(PortError):
        ports.attach("vm2", reserve=1)
    assert [one.name for one in ports] == [HOST, "vm1"]


def test_a_reserve_is_of_both_directions() -> None:
    """A pair takes one slot of each table: 2048 slots of an 82599 can be reserved as 1024 and 1024 only. A
    port without trust has no outbound SAs to reserve for."""
    ports = Ports(PROFILES["82599"])
    port = ports.attach("vm1", limit=2048, reserve=2048)
    assert [port.share(pool, 2) for pool in (0, 1)] == [1024, 1024]
    with pytest.raises(PortError, match=r"the 82599 has 1024 \+ 1024"):
        ports.change("vm1", trusted=False)
    ports.change("vm1", reserve=7)
    assert [port.share(pool, 2) for pool in (0, 1)] == [4, 3]
    ports.change("vm1", trusted=False)
    assert [port.share(pool, 2) for pool in (0, 1)] == [7, 0]


def test_a_reserve_counts_up_to_the_limit() -> None:
    """A port that is turned off keeps its settings, and others get its reserve."""
    ports = Ports(PROFILES["82576"])
    ports.attach("vm1", reserve=256)
    ports.change("vm1", limit=0)
    ports.attach("vm2", reserve=256)
    with pytest.raises(PortError, match="lower a reserve"):
        ports.change("vm1", limit=512)


def test_off_is_a_limit_of_nothing() -> None:
    """The switch that is off and a port that is gone offload nothing, whatever their numbers say."""
    ports = Ports(PROFILES["82576"])
    port = ports.attach("vm1")
    ports.enabled = False
    assert [ports.limit(one) for one in ports] == [0, 0]
    ports.enabled = True
    assert ports.detach("vm1") is port
    again = ports.attach("vm1")
    assert (ports.limit(port), ports.limit(again)) == (0, 512)


def test_names() -> None:
    """Names stand in files, in metrics and on terminals."""
    ports = Ports(PROFILES["82576"])
    for name in ("", "a b", "-a", "x" * 64, "a\n", 'a"', "ä"):
        with pytest.raises(PortError, match="not a name of a port"):
            ports.attach(name)
    with pytest.raises(PortError, match="already"):
        ports.attach(HOST)
    with pytest.raises(PortError, match="limit of 0"):
        ports.detach(HOST)
    with pytest.raises(PortError, match="there are host"):
        ports.change("vm9", limit=1)
