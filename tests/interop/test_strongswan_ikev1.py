"""ikd and strongSwan in IKEv1: main and aggressive mode, pre-shared key and certificates, either as
initiator; and what each says when a key, an identity or a proposal is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.lab import Lab
from support.scenario import PEER_ID, Peers, certificate_peers, eventually, ikev1_rule, psk_peers
from support.strongswan import WEAK_AGGRESSIVE, ikev1

pytestmark = pytest.mark.interop
initiators = pytest.mark.parametrize("initiator", ["ikd", "charon"])
modes = pytest.mark.parametrize("aggressive", [False, True], ids=["main", "aggressive"])


def more(aggressive: bool) -> str:
    """What the rule says of the mode."""
    return "aggressive = true" if aggressive else ""


def check_main(peers: Peers) -> None:
    """One ISAKMP SA on either side, and ikd says that it is one of IKEv1."""
    eventually(lambda: len(peers.charon.established()) == 1, "charon has an ISAKMP SA")
    assert peers.charon.established()[0]["version"] == "1"
    (main,) = peers.ikd.main()
    assert main["keying"] == "ikev1"
    assert PEER_ID in main["authenticated_as"]


@initiators
@modes
def test_pre_shared_key(hosts: Lab, place: Path, aggressive: bool, initiator: str) -> None:
    """Without this, not even the simplest peer of IKEv1 can be spoken to."""
    peers = psk_peers(
        hosts,
        place,
        extra=ikev1_rule(more=more(aggressive)),
        connection=ikev1(aggressive=aggressive),
        options=WEAK_AGGRESSIVE,
    )
    with peers.ikd, peers.charon:
        peers.up(initiator)
        check_main(peers)
        peers.check_traffic()
        assert ("AGGRESSIVE" in peers.charon.log()) is aggressive


@initiators
@modes
@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p256"])
def test_certificates(hosts: Lab, place: Path, kind: str, aggressive: bool, initiator: str) -> None:
    """Signatures over HASH_I and HASH_R, certificate requests or identities would differ from what others
    expect."""
    peers = certificate_peers(
        hosts, place, kind, extra=ikev1_rule(more=more(aggressive)), connection=ikev1(aggressive=aggressive)
    )
    with peers.ikd, peers.charon:
        peers.up(initiator)
        check_main(peers)
        peers.check_traffic()


@initiators
@pytest.mark.parametrize("group", ["modp2048", "p384"])
def test_groups(hosts: Lab, place: Path, group: str, initiator: str) -> None:
    """The group of old peers, and one whose hash has another size, give both sides the same keys."""
    digest = "sha384" if group == "p384" else "sha256"
    name = group.replace("p384", "ecp384") if group == "p384" else group
    peers = psk_peers(
        hosts,
        place,
        extra=ikev1_rule(main=(f"{group} aes256 {digest}",), quick=("aes256gcm",)),
        connection=ikev1(proposals=f"aes256-{digest}-{name}", esp="aes256gcm16"),
    )
    with peers.ikd, peers.charon:
        peers.up(initiator)
        check_main(peers)
        peers.check_traffic()


@initiators
def test_perfect_forward_secrecy(hosts: Lab, place: Path, initiator: str) -> None:
    """With PFS the keys of quick mode come out of a key exchange of their own; a peer that asks for it gets
    it, and one that does not is refused."""
    peers = psk_peers(
        hosts,
        place,
        extra=ikev1_rule(quick=("aes128 sha256 p256",)),
        connection=ikev1(esp="aes128-sha256-ecp256"),
    )
    with peers.ikd, peers.charon:
        peers.up(initiator)
        peers.check_traffic()
        assert peers.charon.children()[0]["dh-group"] == "ECP_256"


def test_missing_pfs_is_explained(hosts: Lab, place: Path) -> None:
    """A peer without PFS where the rule demands it must get nothing, and the operator must read of it."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(quick=("aes128 sha256 p256",)), connection=ikev1())
    with peers.ikd, peers.charon:
        assert not peers.charon.try_initiate(timeout=4)
        eventually(lambda: "PFS" in peers.ikd.ctl("why", "net"), "ikctl why speaks of PFS")
        assert not peers.ikd.quick()
        peers.charon_says("NO_PROP")


def test_packet_starts_negotiation(hosts: Lab, place: Path) -> None:
    """A packet covered by the rule must bring the SA up by itself and be delivered, not lost."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1())
    with peers.ikd, peers.charon:
        pinged = lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=1, wait=5)
        assert pinged.received == 1


@initiators
@modes
def test_wrong_key_is_refused_with_a_reason(
    hosts: Lab, place: Path, aggressive: bool, initiator: str
) -> None:
    """A peer with another key must get nothing, and the operator must read that it was the key: in main mode
    neither side can even read the other's message."""
    peers = psk_peers(
        hosts,
        place,
        secret="another-secret-than-the-peer-has",
        extra=ikev1_rule(more=more(aggressive)),
        connection=ikev1(aggressive=aggressive),
        options=WEAK_AGGRESSIVE,
        settings={"ike": {"half_open_timeout": 4.0, "retransmit_tries": 3, "retransmit_first": 0.5}},
    )
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            assert peers.ikd.try_ctl("up", "net").returncode == 3
        else:
            assert not peers.charon.try_initiate(timeout=5)
        eventually(lambda: "pre-shared key" in peers.ikd.ctl("why", lab.RIGHT), "ikctl why speaks of the key")
        assert not peers.ikd.quick()
        assert not peers.charon.children()


@initiators
@modes
def test_wrong_identity_is_refused_with_a_reason(
    hosts: Lab, place: Path, aggressive: bool, initiator: str
) -> None:
    """A peer with a valid certificate of somebody else must get nothing; both names must be in the reason."""
    peers = certificate_peers(
        hosts,
        place,
        "ecdsa-p256",
        peer="other.lab",
        extra=ikev1_rule(more=more(aggressive)),
        connection=ikev1(aggressive=aggressive),
    )
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            assert peers.ikd.try_ctl("up", "net").returncode == 3
        else:
            assert not peers.charon.try_initiate(timeout=5)
        eventually(lambda: "other.lab" in peers.ikd.ctl("why", "net"), "ikctl why names whom it wanted")
        assert PEER_ID in peers.ikd.ctl("why", "net")
        assert not peers.ikd.quick()
        eventually(lambda: not peers.charon.children(), "charon has no Child SA")
        if not (aggressive and initiator == "ikd"):  # there charon puts off the notify until it is proven
            peers.charon_says("AUTH_FAILED", "AUTHENTICATION_FAILED")


def test_peer_refuses_our_identity(hosts: Lab, place: Path) -> None:
    """When the peer does not take us for whom it expects, that must be told, not a silence."""
    peers = certificate_peers(
        hosts,
        place,
        "ecdsa-p256",
        extra=ikev1_rule(),
        connection=ikev1() | {"remote": {"auth": "pubkey", "id": "other.lab"}},
    )
    with peers.ikd, peers.charon:
        assert peers.ikd.try_ctl("up", "net").returncode == 3
        assert "AUTHENTICATION_FAILED" in peers.ikd.ctl("why", "net")


def test_refused_proposal_is_explained(hosts: Lab, place: Path) -> None:
    """The operator must see both proposals when nothing is in common."""
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=ikev1(proposals="aes256-sha1-modp1024"))
    with peers.ikd, peers.charon:
        assert not peers.charon.try_initiate(timeout=5)
        eventually(lambda: "modp1024" in peers.ikd.ctl("why", lab.RIGHT), "ikctl why names the peer's group")
        assert "p256" in peers.ikd.ctl("why", lab.RIGHT)
        peers.charon_says("NO_PROP")
        assert peers.ikd.try_ctl("up", "net").returncode == 3
        assert "NO_PROPOSAL_CHOSEN" in peers.ikd.ctl("why", "net")


@initiators
def test_refused_traffic_is_explained(hosts: Lab, place: Path, initiator: str) -> None:
    """Networks that do not mirror each other: quick mode cannot narrow, so the operator has to read of it."""
    change = ikev1()
    change["children"]["net"]["remote_ts"] = "10.9.0.0/24"
    peers = psk_peers(hosts, place, extra=ikev1_rule(), connection=change)
    with peers.ikd, peers.charon:
        if initiator == "ikd":
            assert peers.ikd.try_ctl("up", "net").returncode == 3
            assert "INVALID_ID_INFORMATION" in peers.ikd.ctl("why", "net")
        else:
            assert not peers.charon.try_initiate(timeout=4)
            eventually(lambda: "10.9.0.0/24" in peers.ikd.ctl("why", "net"), "ikctl why names the network")
            peers.charon_says("INVAL_ID")
        assert not peers.ikd.quick()


def test_refused_mode_is_explained(hosts: Lab, place: Path) -> None:
    """Aggressive mode gives a key away to guessing: who asks for it without a rule that wants it is told no
    before anything is computed with the key, and the operator reads why."""
    peers = psk_peers(
        hosts, place, extra=ikev1_rule(), connection=ikev1(aggressive=True), options=WEAK_AGGRESSIVE
    )
    with peers.ikd, peers.charon, Capture(hosts.right, "e0", place / "wire.pcap") as wire:
        assert not peers.charon.try_initiate(timeout=4)
        eventually(lambda: "aggressive" in peers.ikd.ctl("why", lab.RIGHT), "ikctl why speaks of the mode")
    answers = wire.tshark(
        "-Y", f"isakmp && ip.src == {lab.LEFT}", "-T", "fields", "-e", "isakmp.exchangetype"
    )
    assert set(answers.split()) == {"5"}, "something other than a refusal was answered"
