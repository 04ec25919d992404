"""What is counted on both sides adds up, with either engine, whatever the network loses; and transforms that
only Python knows go through the same hands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import lab
from support.lab import Lab
from support.path import Datagrams, across, stream
from support.scenario import eventually

pytestmark = pytest.mark.interop

# One packet of ESP in fifty, either way; what begins with the non-ESP marker is IKE.
LOSS = """
table inet loss {{
    counter there {{ }}
    counter back {{ }}
    chain pass {{
        type filter hook forward priority 0
        {esp} numgen random mod 50 == 0 goto lost
    }}
    chain lost {{
        oifname e0 counter name there drop
        counter name back drop
    }}
}}
"""
ESP = {False: "meta l4proto esp", True: "udp length > 8 udp dport 4500 @th,64,32 != 0"}


def lost(hosts: Lab) -> tuple[int, int]:
    """Packets the router dropped on the way to the right, and to the left."""
    text = lab.run(hosts.router, "nft", "list", "counters", "table", "inet", "loss").stdout
    found = dict(re.findall(r"counter (\w+) \{\s*packets (\d+)", text))
    return int(found["there"]), int(found["back"])


@pytest.mark.parametrize(
    ("engine", "udp", "workers"),
    [("native", False, 1), ("native", True, 2), ("python", True, 1)],
)
def test_counters_add_up_with_loss(routed: Lab, place: Path, engine: str, udp: bool, workers: int) -> None:
    """Who looks for a fault compares what one side sent with what the other got: the difference must be the
    network's, to the packet, and nothing may look replayed or forged."""
    lab.nft(routed.router, LOSS.format(esp=ESP[udp]))
    with across(routed, place, udp=udp, engine=engine, workers=workers) as both, Datagrams(routed) as one:
        for _ in range(workers):  # as many flows, spread over the queues by their ports
            stream(routed)
        for n in range(500):
            one.sender.send(bytes(n))

        def adds_up() -> bool:
            (left,), (right,) = both.left.quick(), both.right.quick()
            there, back = lost(routed)
            return (
                left["packets_out"] - there == right["packets_in"]
                and right["packets_out"] - back == left["packets_in"]
            )

        eventually(adds_up, "sent less lost is received")
        there, back = lost(routed)
        assert there > 5
        assert back > 0
        assert both.left.quick()[0]["packets_out"] > 1200
        for side in (both.left, both.right):
            assert not side.drops().keys() & {"replayed", "late", "unverified", "malformed"}
        carried = both.left.quick()[0]
        both.left.ctl("rekey", carried["rule"])
        told = both.left.ctl("metrics")
        found = re.search(r'^ikd_child_octets_total\{direction="out"\} (\S+)$', told, re.M)
        assert found, "a pair that was replaced has carried what it had before"
        assert float(found[1]) >= carried["octets_out"] > 0


@pytest.mark.parametrize(
    ("engine", "suite"), [("native", "null sha256"), ("native", "aes128 sha256"), ("python", "aes128 sha256")]
)
def test_transforms_that_only_python_knows(routed: Lab, place: Path, engine: str, suite: str) -> None:
    """With either engine they are sealed and opened packet by packet in Python, large packets of the host and
    trains of datagrams among them."""
    with across(routed, place, udp=True, engine=engine, suite=suite) as both:
        stream(routed)
        assert both.left.quick()[0]["suite"].startswith(suite.split()[0])
        for side in (both.left, both.right):
            assert side.drops().keys() <= {"no-sa"}  # the first packet, which waited
