"""The life of SAs with strongSwan: rekeying from either side without losing a packet, liveness, deletion."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from support import lab
from support.lab import Lab
from support.scenario import Peers, eventually, psk_peers

pytestmark = pytest.mark.interop
sides = pytest.mark.parametrize("side", ["ikd", "charon"])


def spis(peers: Peers) -> tuple[set[str], set[str]]:
    """SPIs of ikd's IKE SAs and of its Child SAs in use."""
    return (
        {one["spi_i"] for one in peers.ikd.main() if one["state"] == "established"},
        {one["spi_in"] for one in peers.ikd.quick()},
    )


@sides
@pytest.mark.parametrize("what", ["child", "ike"])
def test_rekey_loses_no_packet(hosts: Lab, place: Path, what: str, side: str) -> None:
    """Keys are replaced under traffic; a lost ping would be an outage every hour."""
    peers = psk_peers(hosts, place)
    with peers.ikd, peers.charon:
        peers.up("ikd")
        ike, child = spis(peers)
        with lab.pinging(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
            pings.goes_on()
            if side == "charon":
                peers.charon.rekey(**{what: "net"})
            elif what == "child":
                peers.ikd.ctl("rekey", peers.ikd.quick()[0]["spi_in"])
            else:
                peers.ikd.ctl("rekey", peers.ikd.main()[0]["spi_i"])
            before = child if what == "child" else ike
            place_of = 1 if what == "child" else 0
            eventually(
                lambda: spis(peers)[place_of] and not spis(peers)[place_of] & before, "the old SA is gone"
            )
            pings.goes_on()
        assert pings.lost == 0
        eventually(lambda: len(peers.charon.established()) == 1, "charon has one IKE SA")
        eventually(lambda: len(peers.charon.children()) == 1, "charon has one Child SA")
        peers.check_traffic()


@sides
def test_lifetime_rekeys_by_itself(hosts: Lab, place: Path, side: str) -> None:
    """SAs that reach their limit are replaced before it; without that, traffic stops at the hard limit."""
    extra = 'crypto = "short"\n\n[crypto.short]\nmain = ["x25519 aes128 sha256"]\nquick = ["aes128gcm"]\n'
    lifetime = 'lifetime = { main = "1 h", quick = "4 s" }' if side == "ikd" else ""
    # without jitter, which would be the difference, and make of the first now and then none: no replacement
    timed = {"children": {"net": {"rekey_time": "3s", "life_time": "5s", "rand_time": "0s"}}}
    connection = timed if side == "charon" else {}
    peers = psk_peers(hosts, place, extra=extra + lifetime, connection=connection)
    with peers.ikd, peers.charon:
        peers.up("ikd")
        seen = set(spis(peers)[1])
        with lab.pinging(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
            deadline = time.monotonic() + 60
            while len(seen) < 3 and time.monotonic() < deadline:
                seen |= spis(peers)[1]
                time.sleep(0.1)
        assert len(seen) >= 3
        assert pings.lost == 0


def test_dead_peer_is_noticed(hosts: Lab, place: Path) -> None:
    """Without liveness checks, traffic would go to a peer that is gone until the keys expire."""
    quick = {"liveness": 1.0, "retransmit_first": 0.3, "retransmit_tries": 3, "retransmit_cap": 1.0}
    peers = psk_peers(hosts, place, settings={"ike": quick})
    with peers.ikd, peers.charon:
        peers.up("ikd")
        peers.charon.signal(signal.SIGSTOP)
        try:
            eventually(lambda: not peers.ikd.main(), "the IKE SA is given up", 15)
            assert not peers.ikd.quick()
            assert "answer" in peers.ikd.ctl("why", "net")
        finally:
            peers.charon.signal(signal.SIGCONT)


def test_peer_finds_us_alive_and_then_dead(hosts: Lab, place: Path) -> None:
    """charon's own liveness check must be answered while we run, and must fail when we are stopped."""
    options = {"retransmit_timeout": 0.5, "retransmit_tries": 2}
    connection = {"dpd_delay": "1s", "children": {"net": {"dpd_action": "clear"}}}
    peers = psk_peers(hosts, place, connection=connection, options=options)
    with peers.ikd, peers.charon:
        peers.up("charon")
        time.sleep(3)
        assert len(peers.charon.established()) == 1
        peers.ikd.signal(signal.SIGSTOP)
        eventually(lambda: not peers.charon.established(), "charon gives us up", 15)
        peers.ikd.signal(signal.SIGCONT)


@sides
@pytest.mark.parametrize("what", ["child", "ike"])
def test_delete_reaches_the_other_side(hosts: Lab, place: Path, what: str, side: str) -> None:
    """A deletion that only one side knows leaves the other sending into nothing."""
    peers = psk_peers(hosts, place)
    with peers.ikd, peers.charon:
        peers.up("charon")
        if side == "charon":
            peers.charon.terminate(**{what: "net"})
        elif what == "child":
            peers.ikd.ctl("down", peers.ikd.quick()[0]["spi_in"])
        else:
            peers.ikd.ctl("down", peers.ikd.main()[0]["spi_i"])
        eventually(lambda: not peers.ikd.quick(), "ikd has no Child SA")
        eventually(lambda: not peers.charon.children(), "charon has no Child SA")
        if what == "ike":
            eventually(lambda: not peers.ikd.main(), "ikd has no IKE SA")
            eventually(lambda: not peers.charon.list_sas(), "charon has no IKE SA")
        else:
            assert len(peers.charon.established()) == 1


def test_orderly_stop_deletes_at_the_peer(hosts: Lab, place: Path) -> None:
    """SIGTERM must tell the peer, or its SAs stay behind for hours."""
    peers = psk_peers(hosts, place)
    with peers.charon:
        with peers.ikd:
            peers.up("ikd")
        eventually(lambda: not peers.charon.list_sas(), "charon was told")


def test_restarted_peer_is_accepted(hosts: Lab, place: Path) -> None:
    """A peer that lost its state and comes again replaces the old SAs (INITIAL_CONTACT)."""
    peers = psk_peers(hosts, place)
    with peers.ikd:
        with peers.charon:
            peers.up("charon")
            peers.charon.signal(signal.SIGKILL)
        with peers.charon:
            peers.charon.initiate()
            eventually(lambda: len(peers.ikd.main()) == 1, "the old IKE SA is gone")
            peers.check_traffic()
