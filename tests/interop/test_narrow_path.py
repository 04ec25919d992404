"""A router with a narrower link behind it: nothing that left too large may be lost for good, whether ESP goes
by itself or in UDP, whichever IP versions are outside and inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.capture import Capture
from support.lab import Lab
from support.path import Datagrams, across, fragments, sizes, stream

pytestmark = pytest.mark.interop

NARROW = 1380
LARGE = bytes(range(256)) * 20
CASES = [
    ("native", True, 4, 4),
    ("native", True, 6, 4),
    ("native", True, 6, 6),
    ("native", False, 4, 4),
    ("native", False, 6, 6),
    ("python", True, 4, 6),
]


@pytest.mark.parametrize(("engine", "udp", "outer", "inner"), CASES)
def test_path_mtu_is_learned(
    routed: Lab, place: Path, engine: str, udp: bool, outer: int, inner: int
) -> None:
    """Else connections open and hang on the first full packet, or each of their packets is two on the way.
    Behind the router it has to be learned, from the other side the link itself is narrow. What its sender
    lets be cut is cut before it is protected."""
    routed.mtu(1500, narrow=NARROW)
    both = across(routed, place, udp=udp, outer=outer, inner=inner, engine=engine)
    with both, Capture(routed.right, "e0", place / "wire.pcap") as wire:
        stream(routed, inner)
        for back in (False, True):
            with Datagrams(routed, inner, back=back) as one:
                limit = one.largest(1340)
                assert 1200 < limit < 1340
                one.passed(bytes(limit))
                one.may_be_cut(True)
                one.passed(LARGE)
    assert NARROW - 8 <= max(sizes(wire)) <= NARROW
    assert not fragments(wire)
