"""Two keying modules side by side: a rule that allows both finds the one its peer speaks, and remembers it; a
responder answers whichever comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import lab
from support.lab import Lab
from support.scenario import IKD_ID, PEER_ID, SECRET, Peers, eventually, ikev1_rule, psk_peers
from support.strongswan import ikev1, merged, psk_connection

pytestmark = pytest.mark.interop
BOTH = ("ikev2", "ikev1")
IKEV2 = {"proposals": "aes128-sha256-ecp256", "children": {"net": {"esp_proposals": "aes128-sha256"}}}


def spoken(peers: Peers) -> str:
    """The one keying module in use."""
    (main,) = peers.ikd.main()
    return str(main["keying"])


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "silent"])
def test_peer_with_version_1_only(hosts: Lab, place: Path, silent: bool) -> None:
    """A peer that has no IKEv2 for us, whether it says so or does not even answer, is reached by IKEv1; the
    second time at once."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(keying=BOTH), connection=ikev1())
    with peers.ikd, peers.charon:
        if silent:
            hosts.drop(hosts.right, "udp dport 500 @th,200,4 2 drop")  # major version 2 does not get through
        peers.ikd.ctl("up", "net")
        assert spoken(peers) == "ikev1"
        peers.check_traffic()
        assert "trying ikev1" in peers.ikd.log()
        peers.ikd.ctl("down", peers.ikd.main()[0]["spi_i"])
        eventually(lambda: not peers.ikd.main(), "it is down")
        begun = len(peers.ikd.log())
        peers.ikd.ctl("up", "net")
        assert spoken(peers) == "ikev1"
        assert "IKE_SA_INIT" not in peers.ikd.log()[begun:], "IKEv2 was tried again"


def test_peer_with_version_2(hosts: Lab, place: Path) -> None:
    """The first module of the rule is used where the peer speaks it."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(keying=BOTH), connection=IKEV2)
    with peers.ikd, peers.charon:
        peers.ikd.ctl("up", "net")
        assert spoken(peers) == "ikev2"
        peers.check_traffic()


@pytest.mark.parametrize("version", [1, 2])
def test_responder_answers_either(hosts: Lab, place: Path, version: int) -> None:
    """A rule that allows both must answer a peer of either kind."""
    change = ikev1() if version == 1 else IKEV2
    peers = psk_peers(hosts, place, extra=ikev1_rule(keying=BOTH), connection=change)
    with peers.ikd, peers.charon:
        peers.up("charon")
        assert spoken(peers) == f"ikev{version}"
        peers.check_traffic()


def test_peer_changes_its_version(hosts: Lab, place: Path) -> None:
    """A peer that was upgraded comes by IKEv2 although it is remembered as one of IKEv1, and is spoken to by
    IKEv2 from then on."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(keying=BOTH), connection=ikev1())
    with peers.ikd, peers.charon:
        peers.ikd.ctl("up", "net")
        assert spoken(peers) == "ikev1"
        peers.ikd.ctl("down", peers.ikd.main()[0]["spi_i"])
        eventually(lambda: not peers.charon.list_sas(), "it is down")
        base = psk_connection(lab.RIGHT, lab.LEFT, lab.NET_RIGHT, lab.NET_LEFT)
        peers.charon.configure(merged(base, IKEV2), secret=SECRET, secret_ids=(IKD_ID, PEER_ID))
        peers.charon.load()
        peers.charon.initiate()
        eventually(lambda: peers.ikd.quick(), "up by IKEv2")
        assert spoken(peers) == "ikev2"
        peers.ikd.ctl("down", peers.ikd.main()[0]["spi_i"])
        eventually(lambda: not peers.charon.list_sas(), "it is down again")
        peers.ikd.ctl("up", "net")
        assert spoken(peers) == "ikev2"


def test_refusal_by_both_is_explained(hosts: Lab, place: Path) -> None:
    """When neither protocol comes to anything, the reason of the last one is told, and that both were
    tried."""
    peers = psk_peers(
        hosts, place, extra=ikev1_rule(keying=BOTH), connection=ikev1(proposals="aes256-sha1-modp1024")
    )
    with peers.ikd, peers.charon:
        assert peers.ikd.try_ctl("up", "net").returncode == 3
        assert "NO_PROPOSAL_CHOSEN" in peers.ikd.ctl("why", "net")
        assert "MAIN" in peers.ikd.ctl("why", "net")
