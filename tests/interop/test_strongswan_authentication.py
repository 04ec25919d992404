"""ikd and strongSwan prove themselves to each other and pass traffic, either as initiator; and refuse when a
key or an identity is wrong, with a reason an operator understands on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import lab
from support.lab import Lab
from support.scenario import PEER_ID, certificate_peers, eventually, psk_peers

pytestmark = pytest.mark.interop
initiators = pytest.mark.parametrize("initiator", ["ikd", "charon"])


@initiators
def test_pre_shared_key(hosts: Lab, place: Path, initiator: str) -> None:
    """Without this, not even the simplest peer can be spoken to."""
    peers = psk_peers(hosts, place)
    with peers.ikd, peers.charon:
        peers.up(initiator)
        peers.check_traffic()
        assert peers.ikd.main()[0]["authenticated_as"] == PEER_ID


@initiators
@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p256", "ed25519"])
def test_certificates(hosts: Lab, place: Path, kind: str, initiator: str) -> None:
    """Signatures, certificate requests or identity matching would differ from what others expect."""
    peers = certificate_peers(hosts, place, kind)
    with peers.ikd, peers.charon:
        peers.up(initiator)
        peers.check_traffic()
        assert PEER_ID in peers.ikd.main()[0]["authenticated_as"]


def test_packet_starts_negotiation(hosts: Lab, place: Path) -> None:
    """A packet covered by the rule must bring the SA up by itself and be delivered, not lost."""
    peers = psk_peers(hosts, place)
    with peers.ikd, peers.charon:
        pinged = lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=1, wait=5)
        assert pinged.received == 1


@initiators
def test_wrong_key_is_refused_with_a_reason(hosts: Lab, place: Path, initiator: str) -> None:
    """A peer with another key must get nothing, and the operator must read that it was the key."""
    peers = psk_peers(hosts, place, secret="another-secret-than-the-peer-has")
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            assert peers.ikd.try_ctl("up", "net").returncode == 3
        else:
            assert not peers.charon.try_initiate(timeout=5)
        eventually(lambda: "key" in peers.ikd.ctl("why", "net"), "ikctl why speaks of the key")
        assert not peers.ikd.quick()
        assert not peers.charon.children()
        if initiator == "ikd":
            assert "AUTHENTICATION_FAILED" in peers.ikd.ctl("why", "net")
            peers.charon_says("MAC mismatched", "N(AUTH_FAILED)")
        else:
            peers.charon_says("AUTHENTICATION_FAILED")


@initiators
def test_wrong_identity_is_refused_with_a_reason(hosts: Lab, place: Path, initiator: str) -> None:
    """A peer with a valid certificate of somebody else must get nothing; both names must be in the reason."""
    peers = certificate_peers(hosts, place, "ecdsa-p256", peer="other.lab")
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            assert peers.ikd.try_ctl("up", "net").returncode == 3
        else:
            assert not peers.charon.try_initiate(timeout=5)
        eventually(lambda: "other.lab" in peers.ikd.ctl("why", "net"), "ikctl why names whom it wanted")
        assert PEER_ID in peers.ikd.ctl("why", "net")
        assert not peers.ikd.quick()
        assert not peers.charon.children()
        peers.charon_says("AUTH_FAILED", "AUTHENTICATION_FAILED")


def test_refused_proposal_is_explained(hosts: Lab, place: Path) -> None:
    """The operator must see both proposals when nothing is in common."""
    peers = psk_peers(hosts, place, connection={"proposals": "aes256-sha1-modp1024"})
    with peers.ikd, peers.charon:
        assert not peers.charon.try_initiate(timeout=5)
        eventually(lambda: "modp1024" in peers.ikd.ctl("why", lab.RIGHT), "ikctl why names the peer's group")
        assert "x25519" in peers.ikd.ctl("why", lab.RIGHT)
        assert peers.ikd.try_ctl("up", "net").returncode == 3
        assert "NO_PROPOSAL_CHOSEN" in peers.ikd.ctl("why", "net")
