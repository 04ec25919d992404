"""What lies between ikd and strongSwan in IKEv1: a NAT on either side, paths that drop IP fragments, loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.lab import Lab
from support.scenario import Peers, certificate_peers, eventually, ikev1_rule, psk_peers
from support.strongswan import WEAK_AGGRESSIVE, ikev1, merged

pytestmark = pytest.mark.interop
initiators = pytest.mark.parametrize("initiator", ["ikd", "charon"])
modes = pytest.mark.parametrize("aggressive", [False, True], ids=["main", "aggressive"])

# Before fragments are put together.
NO_FRAGMENTS = """
table ip path {
    chain in {
        type filter hook prerouting priority -500
        ip frag-off & 0x3fff != 0 drop
    }
}
"""


def rekey(peers: Peers, kind: str) -> None:
    """Let charon replace the SA of either phase; returns when ikd has another one."""

    def names() -> set[str]:
        if kind == "child":
            return {one["spi_in"] for one in peers.ikd.quick()}
        return {one["spi_i"] for one in peers.ikd.main()}

    before = names()
    peers.charon.rekey(**{kind: "net"})
    eventually(lambda: names() - before, f"{kind} is replaced")


@pytest.mark.parametrize("inside", ["ikd", "charon"])
@modes
def test_nat_between(natted: Lab, place: Path, inside: str, aggressive: bool) -> None:
    """Behind a NAT everything must go over UDP 4500, in both directions, and stay up through rekeying of
    either phase."""
    peers = psk_peers(
        natted,
        place,
        extra=ikev1_rule(more="aggressive = true" if aggressive else ""),
        connection=ikev1(aggressive=aggressive),
        options=merged(WEAK_AGGRESSIVE, {"delete_rekeyed": "yes"}),  # else we do, after ten seconds
        settings={"ike": {"nat_keepalive": 1.0}},
        swapped=inside == "charon",
    )
    with peers.ikd, peers.charon, Capture(natted.right, "e0", place / "wire.pcap") as wire:
        peers.up(inside)
        peers.check_traffic()
        if inside == "ikd":
            eventually(wire.keepalives, "a keepalive")
        for kind in ("child", "ike"):
            rekey(peers, kind)
            peers.check_traffic()
        eventually(lambda: len(peers.ikd.quick()) == 1, "the old quick-mode SA is gone", 15)
        peers.check_traffic()
    assert set(wire.protocols()) <= {"isakmp", "esp", "udp", "udpencap"}


@initiators
@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p256"])
def test_large_certificates_go_in_fragments(hosts: Lab, place: Path, kind: str, initiator: str) -> None:
    """Many paths drop IP fragments: what is too large must be cut by IKE itself, in both directions."""
    peers = certificate_peers(
        hosts,
        place,
        kind,
        padding=2500,
        extra=ikev1_rule(),
        settings={"ike": {"retransmit_first": 0.3}},
        connection=ikev1() | {"fragmentation": "yes"},
        options={"fragment_size": 500},
    )
    for name in (hosts.left, hosts.right):
        lab.nft(name, NO_FRAGMENTS)
    with peers.ikd, peers.charon:
        peers.up(initiator)
        peers.check_traffic()
        peers.charon_says("received fragment #1")
        peers.charon_says("splitting IKE message")


@pytest.mark.parametrize(
    ("aggressive", "initiator"),
    [(False, "ikd"), (False, "charon"), (True, "ikd")],
    ids=["main-ikd", "main-charon", "aggressive-ikd"],
)
def test_loss_on_the_path(hosts: Lab, place: Path, aggressive: bool, initiator: str) -> None:
    """A quarter of the messages are lost each way: repetition must bring the SAs up all the same. (charon
    never repeats its last message of aggressive mode.)"""
    fast = {"ike": {"retransmit_first": 0.2, "retransmit_tries": 14, "retransmit_cap": 0.5}}
    options = {"retransmit_timeout": 0.3, "retransmit_tries": 14, "retransmit_base": 1}
    peers = psk_peers(
        hosts,
        place,
        extra=ikev1_rule(more="aggressive = true" if aggressive else ""),
        connection=ikev1(aggressive=aggressive),
        settings=fast,
        options=merged(options, WEAK_AGGRESSIVE),
    )
    for name in (hosts.left, hosts.right):
        hosts.drop(name, "udp dport { 500, 4500 } numgen random mod 100 < 25 drop")
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            peers.ikd.ctl("up", "net")
        else:
            peers.charon.initiate()
        for name in (hosts.left, hosts.right):
            hosts.undrop(name)
        # the initiator is done when it has sent its third message, which may be one of those that are lost
        eventually(lambda: peers.ikd.quick() and peers.charon.children(), "both have the SA")
        peers.check_traffic()
