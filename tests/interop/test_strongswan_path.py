"""What lies between ikd and strongSwan: a NAT, small datagrams, cookies, loss; and a capture that tshark
decrypts."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import lab
from support.capture import Capture, wireshark_tables
from support.lab import Lab
from support.scenario import certificate_peers, eventually, psk_peers

pytestmark = pytest.mark.interop
# Suites whose ESP this tshark dissects; of AES-GCM it shows octets only.
READABLE = """\
crypto = "readable"

[crypto.readable]
main  = ["x25519 aes128 sha256"]
quick = ["aes128 sha256"]
"""

initiators = pytest.mark.parametrize("initiator", ["ikd", "charon"])


def test_nat_between(natted: Lab, place: Path) -> None:
    """Behind a NAT everything must go over UDP 4500, in both directions, and stay up."""
    peers = psk_peers(natted, place, settings={"ike": {"nat_keepalive": 1.0}})
    with peers.ikd, peers.charon, Capture(natted.right, "e0", place / "wire.pcap") as wire:
        peers.up("ikd")
        peers.check_traffic()
        assert peers.charon.established()[0]["remote-host"] == lab.NAT
        eventually(wire.keepalives, "a keepalive")
        old = {one["spi_in"] for one in peers.ikd.quick()}
        peers.charon.rekey(child="net")
        eventually(lambda: not old & {one["spi_in"] for one in peers.ikd.quick()}, "rekeyed through the NAT")
        peers.check_traffic()
    assert set(wire.protocols()) <= {"isakmp", "esp", "udp", "udpencap"}


@initiators
def test_large_certificates_go_in_fragments(hosts: Lab, place: Path, initiator: str) -> None:
    """Many paths drop IP fragments: large messages must be cut by IKE itself, in both directions."""
    peers = certificate_peers(
        hosts,
        place,
        "rsa-2048",
        padding=2500,
        settings={"ike": {"fragment_size": 576}},
        connection={"fragmentation": "yes"},
        options={"fragment_size": 500},
    )
    with peers.ikd, peers.charon, Capture(hosts.right, "e0", place / "wire.pcap") as wire:
        peers.up(initiator)
        peers.check_traffic()
    # IKE_SA_INIT (34) cannot be cut: there are no keys yet
    sizes = wire.tshark("-Y", "isakmp && isakmp.exchangetype != 34", "-T", "fields", "-e", "ip.len").split()
    assert max(map(int, sizes)) <= 600
    assert len(sizes) > 10
    assert not wire.tshark("-Y", "ip.flags.mf == 1 || ip.frag_offset > 0").strip(), "IP fragments were sent"


def test_cookie_from_the_peer(hosts: Lab, place: Path) -> None:
    """A peer under load asks for a cookie before it does anything; without the second attempt nothing comes
    up."""
    options = {"cookie_threshold": 1, "cookie_threshold_ip": 1}
    peers = psk_peers(hosts, place, options=options)
    with peers.ikd, peers.charon:
        hosts.drop(hosts.left, "udp sport 500 drop")  # the answer is lost: charon keeps a half-open SA
        peers.ikd.try_ctl("up", "net", "--timeout", "2")
        hosts.undrop(hosts.left)
        peers.up("ikd")
        peers.check_traffic()
        peers.charon_says("COOKIE")


def test_cookie_to_the_peer(hosts: Lab, place: Path) -> None:
    """With a threshold of 0 every first message must return a cookie; charon does."""
    peers = psk_peers(hosts, place, settings={"limits": {"cookie_threshold": 0}})
    with peers.ikd, peers.charon:
        peers.up("charon")
        peers.check_traffic()
        peers.charon_says("N(COOKIE)")


@initiators
def test_loss_on_the_path(hosts: Lab, place: Path, initiator: str) -> None:
    """A third of the messages are lost each way: retransmission must bring the SA up all the same. (Of twelve
    attempts all would be in vain once in a thousand times.)"""
    fast = {"ike": {"retransmit_first": 0.2, "retransmit_tries": 20, "retransmit_cap": 0.5}}
    options = {"retransmit_timeout": 0.3, "retransmit_tries": 25, "retransmit_base": 1}
    peers = psk_peers(hosts, place, settings=fast, options=options)
    for name in (hosts.left, hosts.right):
        hosts.drop(name, "udp dport { 500, 4500 } numgen random mod 100 < 33 drop")
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            peers.ikd.ctl("up", "net")
        else:
            peers.charon.initiate()
        for name in (hosts.left, hosts.right):
            hosts.undrop(name)
        peers.check_traffic()


def test_exported_keys_decrypt_the_capture(hosts: Lab, place: Path) -> None:
    """Keys that do not open the capture are of no use to whoever has to find out why a negotiation fails."""
    peers = psk_peers(hosts, place, extra=READABLE)
    keys = place / "keys"
    with peers.ikd, peers.charon, Capture(hosts.right, "e0", place / "wire.pcap") as wire:
        warned = peers.ikd.try_ctl("log", "--keys", str(keys))
        assert warned.returncode == 0
        assert "read" in warned.stdout + warned.stderr
        peers.up("ikd")
        lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT)
    configuration = wireshark_tables(keys, place)
    shown = wire.tshark("-Y", "isakmp", "-V", configuration=configuration)
    assert "Identification - Initiator" in shown
    assert "Traffic Selector - Responder" in shown
    decoded = wire.tshark(
        "-o",
        "esp.enable_encryption_decode:TRUE",
        "-o",
        "esp.enable_authentication_check:TRUE",
        "-Y",
        "icmp",
        configuration=configuration,
    )
    assert "Echo (ping) reply" in decoded
