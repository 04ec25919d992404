"""Jumbo frames and congestion marks through a router: ESP by itself or in UDP, with either engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.lab import Lab
from support.path import OUTER, Datagrams, across, fragments, sizes, stream
from support.scenario import eventually

pytestmark = pytest.mark.interop

ECT, CE = 2, 3
MARKING = """
table inet marks {
    chain pass {
        type filter hook forward priority 0
        ip ecn ect0 ip ecn set ce
        ip6 ecn ect0 ip6 ecn set ce
        ip dscp af11 ip ecn set ce
        ip6 dscp af11 ip6 ecn set ce
    }
}
"""
AF11 = 10 << 2
MARKED = [
    ("native", False, 4),
    ("native", True, 4),
    ("native", True, 6),
    ("python", True, 4),
    ("python", False, 6),
]


@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("udp", [False, True], ids=["raw", "udp"])
def test_jumbo_frames(routed: Lab, place: Path, engine: str, udp: bool) -> None:
    """Links of 9000 octets are for those who want few large packets: a limit of 1500 somewhere on the way
    would make six of each, or fragments."""
    routed.mtu(9000)
    both = across(routed, place, udp=udp, engine=engine, mtu=8900)
    with both, Capture(routed.right, "e0", place / "wire.pcap") as wire, Datagrams(routed) as one:
        one.may_be_cut(False)
        one.passed(bytes(8192))
        stream(routed)
    assert not fragments(wire)
    assert sum(size > 8900 for size in sizes(wire)) > 100, "the stream did not go in large packets"
    assert max(sizes(wire)) <= 9000


@pytest.mark.parametrize(("engine", "udp", "outer"), MARKED)
def test_congestion_marks(routed: Lab, place: Path, engine: str, udp: bool, outer: int) -> None:
    """RFC 6040: the sender's word that it understands marks is copied out, a mark made on the way is copied
    in, and a marked packet of a sender that would not understand is dropped."""
    lab.nft(routed.router, MARKING)
    inner = 10 - outer
    both = across(routed, place, udp=udp, outer=outer, inner=inner, engine=engine)
    with both, Capture(routed.left, "e0", place / "wire.pcap") as wire, Datagrams(routed, inner) as one:
        assert one.passed(b"not capable") == 0
        for _ in range(3):  # looked up, remembered, and seen by the native loop alone
            one.traffic_class(ECT)
            assert one.passed(b"capable") == CE
        one.traffic_class(AF11)
        one.sender.send(b"marked and not capable")
        eventually(lambda: both.right.drops().get("congestion") == 1, "it is dropped and counted")
        one.traffic_class(0)
        assert one.passed(b"the next one") == 0
    fields = ("-T", "fields", "-e", "ip.dsfield.ecn" if outer == 4 else "ipv6.tclass.ecn")
    seen = wire.tshark("-Y", f"esp && {'ip' if outer == 4 else 'ipv6'}.src == {OUTER[outer][0]}", *fields)
    assert seen.split().count(str(ECT)) == 3
