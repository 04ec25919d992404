"""The life of IKEv1's SAs with strongSwan: rekeying of either phase from either side without losing a packet,
dead peer detection, deletion, restart."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from support import lab
from support.lab import Lab
from support.scenario import Peers, eventually, ikev1_rule, psk_peers
from support.strongswan import WEAK_AGGRESSIVE, ikev1, merged

pytestmark = pytest.mark.interop
sides = pytest.mark.parametrize("side", ["ikd", "charon"])
whats = pytest.mark.parametrize("what", ["child", "ike"])


def spis(peers: Peers, what: str) -> set[str]:
    """SPIs of ikd's main-mode SAs that are up, or of its quick-mode SAs in use."""
    if what == "child":
        return {one["spi_in"] for one in peers.ikd.quick()}
    return {one["spi_i"] for one in peers.ikd.main() if one["state"] == "established"}


def rekey(peers: Peers, what: str, side: str) -> None:
    """Replace a quick-mode SA, or the main-mode SA."""
    if side == "charon":
        peers.charon.rekey(**{what: "net"})
    else:
        (which,) = spis(peers, what)
        peers.ikd.ctl("rekey", which)


def early(side: str, replaced: int) -> int:
    """How many may be: charon as responder receives on what it has agreed to a moment later, on a busy
    machine after we have waited for it, and then misses the first packet."""
    return replaced if side == "ikd" else 0


@sides
@whats
@pytest.mark.parametrize("aggressive", [False, True], ids=["main", "aggressive"])
def test_rekey_loses_no_packet(hosts: Lab, place: Path, what: str, side: str, aggressive: bool) -> None:
    """Keys are replaced under traffic; a lost ping would be an outage every hour. Some peers delete what they
    have replaced, others leave that to us."""
    deletes = {"delete_rekeyed": "yes" if aggressive else "no"}
    peers = psk_peers(
        hosts,
        place,
        extra=ikev1_rule(more="aggressive = true" if aggressive else ""),
        connection=ikev1(aggressive=aggressive),
        options=merged(WEAK_AGGRESSIVE, deletes),
    )
    with peers.ikd, peers.charon:
        peers.up("ikd")
        before = spis(peers, what)
        with lab.pinging(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
            pings.goes_on()
            rekey(peers, what, side)
            eventually(lambda: spis(peers, what) and not spis(peers, what) & before, "the old SA is gone")
            pings.goes_on()
        assert pings.lost <= early(side, 1)
        eventually(lambda: len(peers.charon.established()) == 1, "charon has one ISAKMP SA")
        eventually(lambda: len(peers.charon.children()) == 1, "charon has one Child SA")
        assert len(peers.ikd.quick()) == 1
        peers.check_traffic()


@sides
def test_rekey_again_and_again(hosts: Lab, place: Path, side: str) -> None:
    """What one replacement leaves behind must not stand in the way of the next, of the same or another
    kind."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1())
    with peers.ikd, peers.charon:
        peers.up("charon")
        with lab.pinging(hosts.right, lab.INSIDE_LEFT, lab.INSIDE_RIGHT) as pings:
            for what in ("child", "ike", "child", "ike"):
                before = spis(peers, what)
                rekey(peers, what, side)
                eventually(
                    lambda what=what, before=before: (  # type: ignore[misc]
                        len(spis(peers, what)) == 1 and not spis(peers, what) & before
                    ),
                    f"{what} is replaced",
                )
        assert pings.lost <= early(side, 4)
        assert len(peers.ikd.quick()) == 1
        eventually(lambda: len(peers.charon.established()) == 1, "charon lets the old ISAKMP SAs go")


@sides
def test_lifetime_rekeys_by_itself(hosts: Lab, place: Path, side: str) -> None:
    """SAs of either phase that reach their limit are replaced before it; without that, traffic stops at the
    hard limit."""
    lives = 'lifetime = { main = "9 s", quick = "4 s" }' if side == "ikd" else ""
    # without time over, charon's own hard limit may come first and cut what was to be replaced
    timed = {
        "reauth_time": "6s",
        "over_time": "10s",
        # charon's jitter would be their difference, and make of the first now and then none: no replacement
        "children": {"net": {"rekey_time": "3s", "life_time": "5s", "rand_time": "0s"}},
    }
    change = merged(ikev1(), timed) if side == "charon" else ikev1()
    peers = psk_peers(hosts, place, extra=ikev1_rule(crypto=lives), connection=change)
    with peers.ikd, peers.charon:
        peers.up("ikd")
        pairs, mains = spis(peers, "child"), spis(peers, "ike")
        with lab.pinging(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
            deadline = time.monotonic() + 60
            while (len(pairs) < 4 or len(mains) < 3) and time.monotonic() < deadline:
                pairs |= spis(peers, "child")
                mains |= spis(peers, "ike")
                time.sleep(0.1)
        assert len(pairs) >= 4
        assert len(mains) >= 3
        assert pings.lost <= early(side, len(pairs))


def test_dead_peer_is_noticed(hosts: Lab, place: Path) -> None:
    """Without dead peer detection, traffic would go to a peer that is gone until the keys expire."""
    quick = {"liveness": 1.0, "retransmit_first": 0.3, "retransmit_tries": 3, "retransmit_cap": 1.0}
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1(), settings={"ike": quick})
    with peers.ikd, peers.charon:
        peers.up("ikd")
        time.sleep(3)
        assert len(peers.ikd.main()) == 1, "a peer that answers was given up"
        assert "R_U_THERE" in peers.ikd.log()
        peers.charon.signal(signal.SIGSTOP)
        try:
            eventually(lambda: not peers.ikd.main(), "the main-mode SA is given up", 15)
            assert not peers.ikd.quick()
            assert "R-U-THERE" in peers.ikd.ctl("why", "net")
        finally:
            peers.charon.signal(signal.SIGCONT)


def test_peer_finds_us_alive_and_then_dead(hosts: Lab, place: Path) -> None:
    """charon's R-U-THERE must be answered while we run, and must not be when we are stopped."""
    timed = {"dpd_delay": "1s", "dpd_timeout": "4s", "children": {"net": {"dpd_action": "clear"}}}
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=merged(ikev1(), timed))
    with peers.ikd, peers.charon:
        peers.up("charon")
        time.sleep(6)
        assert len(peers.charon.established()) == 1
        peers.charon_says("DPD_ACK")
        peers.ikd.signal(signal.SIGSTOP)
        eventually(lambda: not peers.charon.established(), "charon gives us up", 15)
        peers.ikd.signal(signal.SIGCONT)


@sides
@whats
def test_delete_reaches_the_other_side(hosts: Lab, place: Path, what: str, side: str) -> None:
    """A deletion that only one side knows leaves the other sending into nothing."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1())
    with peers.ikd, peers.charon:
        peers.up("charon")
        if side == "charon":
            peers.charon.terminate(**{what: "net"})
        else:
            (which,) = spis(peers, what)
            peers.ikd.ctl("down", which)
        eventually(lambda: not peers.ikd.quick(), "ikd has no quick-mode SA")
        eventually(lambda: not peers.charon.children(), "charon has no Child SA")
        if what == "ike":
            eventually(lambda: not peers.ikd.main(), "ikd has no main-mode SA")
            eventually(lambda: not peers.charon.list_sas(), "charon has no ISAKMP SA")
        else:
            assert len(peers.charon.established()) == 1
            peers.up("ikd")
            peers.check_traffic()


def test_orderly_stop_deletes_at_the_peer(hosts: Lab, place: Path) -> None:
    """SIGTERM must tell the peer, or its SAs stay behind for hours."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1())
    with peers.charon:
        with peers.ikd:
            peers.up("ikd")
        eventually(lambda: not peers.charon.list_sas(), "charon was told")


def test_restarted_peer_is_accepted(hosts: Lab, place: Path) -> None:
    """A peer that lost its state and comes again replaces the old SAs (INITIAL-CONTACT)."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1())
    with peers.ikd:
        with peers.charon:
            peers.up("charon")
            peers.charon.signal(signal.SIGKILL)
        with peers.charon:
            peers.charon.initiate()
            eventually(lambda: len(peers.ikd.main()) == 1, "the old main-mode SA is gone")
            eventually(lambda: len(peers.ikd.quick()) == 1, "the old quick-mode SA is gone")
            peers.check_traffic()


def test_our_restart_is_accepted(hosts: Lab, place: Path) -> None:
    """After a crash of ours the peer must let its old SAs go, because we say INITIAL-CONTACT."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1())
    with peers.charon:
        with peers.ikd:
            peers.up("ikd")
            peers.ikd.stop(number=signal.SIGKILL)
        assert len(peers.charon.established()) == 1
        with peers.ikd:
            peers.up("ikd")
            eventually(lambda: len(peers.charon.established()) == 1, "charon has dropped the old ISAKMP SA")
            eventually(lambda: len(peers.charon.children()) == 1, "charon has dropped the old Child SA")
            peers.check_traffic()
