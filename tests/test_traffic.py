"""Traffic of rules and peers outlives Child SAs, never falls, and has an end of names."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

from ikd.traffic import Traffic
from sadb.sa import SaPair, Usage

_SPIS = count(256)


class Plane:
    """The counts a data plane has, by pair."""

    def __init__(self) -> None:
        self.counts: dict[int, tuple[int, int]] = {}

    def pair(self, rule: str = "net", peer: str = "192.0.2.2") -> SaPair:
        """A pair of a rule with a peer; only what is counted by."""
        one: Any = SimpleNamespace(
            rule=rule, inbound=SimpleNamespace(spi=next(_SPIS)), outbound=SimpleNamespace(destination=peer)
        )
        self.counts[one.inbound.spi] = (0, 0)
        return one  # type: ignore[no-any-return]

    def carried(self, pair: SaPair, inward: int, outward: int) -> None:
        """What it has carried in all."""
        self.counts[pair.inbound.spi] = (inward, outward)

    def usage(self, pair: SaPair) -> tuple[Usage, Usage]:
        """As a backend answers."""
        inward, outward = self.counts[pair.inbound.spi]
        return Usage(inward, inward // 100), Usage(outward, outward // 100)


def read(traffic: Traffic, *pairs: SaPair) -> dict[tuple[str, ...], float]:
    """Values by name and label values."""
    found = traffic.readings(pairs)
    return {(one.name, *(value for _, value in one.labels)): one.value for one in found}


def test_a_rekey_does_not_set_totals_back() -> None:
    """A graph of a rule would else fall to zero every hour, and what passed between two looks be lost."""
    plane = Plane()
    traffic = Traffic(plane.usage, 10)
    old, new = plane.pair(), plane.pair()
    plane.carried(old, 1000, 200)
    assert read(traffic, old)["rule_octets", "net", "in"] == 1000
    plane.carried(old, 1500, 300)  # nobody looks before it goes
    plane.carried(new, 70, 0)
    traffic.end(old)
    found = read(traffic, new)
    assert found["rule_octets", "net", "in"] == found["peer_octets", "192.0.2.2", "in"] == 1570
    assert (found["rule_octets", "net", "out"], found["rule_packets", "net", "in"]) == (300, 15)
    assert found["sa_octets", "in"] == 70
    assert read(traffic)["rule_octets", "net", "in"] == 1570


def test_counts_that_begin_anew_are_added() -> None:
    """A worker that died and was replaced may count from zero; a total that fell would look like a restart of
    the daemon, and one that ignored it would lose what comes next."""
    plane = Plane()
    traffic = Traffic(plane.usage, 10)
    pair = plane.pair()
    plane.carried(pair, 5000, 5000)
    read(traffic, pair)
    plane.carried(pair, 300, 6000)
    found = read(traffic, pair)
    assert (found["rule_octets", "net", "in"], found["rule_octets", "net", "out"]) == (5300, 6000)


def test_peers_beyond_the_limit_share_one_series() -> None:
    """A thousand peers must not be a thousand series, and none may change its place later: its counter would
    fall."""
    plane = Plane()
    traffic = Traffic(plane.usage, 2)
    pairs = [plane.pair(peer=f"192.0.2.{n}") for n in range(5)]
    for pair in pairs:
        plane.carried(pair, 100, 0)
    found = read(traffic, *pairs)
    assert {name[1] for name in found if name[0] == "peer_octets"} == {"192.0.2.0", "192.0.2.1", "other"}
    assert found["peer_octets", "other", "in"] == 300
    traffic.end(pairs[0])
    plane.carried(pairs[4], 150, 0)
    found = read(traffic, *pairs[1:])
    assert found["peer_octets", "192.0.2.0", "in"] == 100
    assert found["peer_octets", "other", "in"] == 350


def test_pairs_that_went_are_not_remembered() -> None:
    """What is kept for a pair must end with it, or a year of rekeys fills the memory."""
    plane = Plane()
    traffic = Traffic(plane.usage, 2)
    for _ in range(50):
        pair = plane.pair()
        read(traffic, pair)
        traffic.end(pair)
    assert not traffic._seen
