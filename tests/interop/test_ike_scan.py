"""What a scanner is told by the running daemon: ike-scan sends first messages of both versions, well-formed
and not, and shows what comes back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.daemon import Ikd
from support.lab import Lab
from support.require import require
from support.scenario import IKD_ID, eventually, ikev1_rule, secrets, tunnel_policy

pytestmark = pytest.mark.interop
# Encryption (AES), key length, hash (SHA-256), method (pre-shared key), group
CURVE, MODP = (f"--trans=(1=7,14=128,2=4,3=1,4={group})" for group in (19, 14))
VENDOR_IDS = (
    "4a131c81070358455c5728f20e95452f",  # RFC 3947
    "90cb80913ebb696e086381b5ec427b1f",  # draft-ietf-ipsec-nat-t-ike-02
    "4048b7d56ebce88525e7de7f00d6c2d3",  # fragmentation
    "afcad71368a1f1c96b8696fc77570100",  # dead peer detection
)
REFUSED = "Notify message 14 (NO-PROPOSAL-CHOSEN)"
MOST = 3  # times a datagram's octets may come back


@pytest.fixture(autouse=True)
def _scanner() -> None:
    require(shutil.which("ike-scan") is not None, "ike-scan")


def daemon(hosts: Lab, place: Path, more: str = "") -> Ikd:
    """A daemon whose one rule answers the right host by both protocols."""
    rule = ikev1_rule(keying=("ikev2", "ikev1"), more=more)
    policy = tunnel_policy(lab.LEFT, lab.RIGHT, extra=rule)
    return Ikd(hosts.left, place / "ikd", policy, secrets=secrets(), settings={"identity": {"id": IKD_ID}})


@pytest.fixture
def scanned(hosts: Lab, place: Path) -> Iterator[tuple[Lab, Ikd]]:
    """Two hosts, with the daemon on the left one."""
    with daemon(hosts, place) as running:
        yield hosts, running


def scan(hosts: Lab, *arguments: str, patience: float = 20) -> str:
    """What ike-scan has to say of the left host; empty when there was no answer within `patience` seconds."""
    timeout = f"--timeout={patience * 1000:.0f}"
    command = ("ike-scan", "--sport=0", "--retry=1", timeout, *arguments, lab.LEFT)
    done = lab.run(hosts.right, *command)
    assert done.returncode == 0, done.stderr
    found = re.findall(rf"^{re.escape(lab.LEFT)}\t.*", done.stdout, re.MULTILINE)
    assert len(found) <= 1, "more than one answer to one datagram"
    return found[0] if found else ""


@pytest.mark.parametrize(("transform", "group"), [(CURVE, "Group=19:ecp256"), (MODP, "Group=14:modp2048")])
def test_acceptable_transform_is_answered(scanned: tuple[Lab, Ikd], transform: str, group: str) -> None:
    """Main mode begins for whom a rule is, with the vendor IDs that peers look for, and no others."""
    hosts, _ = scanned
    found = scan(hosts, transform)
    assert "Main Mode Handshake returned" in found
    assert "Enc=AES KeyLength=128 Hash=SHA2-256 Auth=PSK" in found
    assert group in found
    assert tuple(re.findall(r"VID=([0-9a-f]+)", found)) == VENDOR_IDS


def test_transform_is_chosen_among_others(scanned: tuple[Lab, Ikd]) -> None:
    """Of many transforms exactly one comes back, as it was sent."""
    hosts, _ = scanned
    weak = ("--trans=(1=5,2=2,3=1,4=2)", "--trans=(1=1,2=1,3=1,4=1)", "--trans=(1=7,14=256,2=2,3=1,4=2)")
    found = scan(hosts, *weak, MODP, CURVE)
    assert "Main Mode Handshake returned" in found
    assert found.count("Auth=PSK") == 1
    assert "Group=19:ecp256" in found, "what the rule prefers is not taken"


@pytest.mark.parametrize(
    "arguments",
    [
        (),  # what ike-scan offers by itself: 3DES and DES with groups 1 and 2
        ("--trans=(1=7,14=128,2=4,3=3,4=19)",),  # signatures, for which there is no certificate
        ("--trans=(1=7,14=128,2=4,3=65001,4=19)",),  # XAUTH
        (CURVE, "--doi=7"),
        (CURVE, "--situation=9"),
        (CURVE, "--protocol=3"),
    ],
    ids=["weak", "signatures", "xauth", "doi", "situation", "protocol"],
)
def test_other_transforms_are_refused(scanned: tuple[Lab, Ikd], arguments: tuple[str, ...]) -> None:
    """A scanner must not be led to believe that DES is good enough here; the operator reads who asked."""
    hosts, running = scanned
    found = scan(hosts, *arguments)
    assert REFUSED in found
    assert "NO_PROPOSAL_CHOSEN" in running.ctl("why", lab.RIGHT)


def test_aggressive_mode_is_refused_without_a_rule(scanned: tuple[Lab, Ikd]) -> None:
    """What comes back in aggressive mode lets anybody guess the pre-shared key at leisure."""
    hosts, running = scanned
    arguments = ("--aggressive", "--dhgroup=14", MODP)
    assert REFUSED in scan(hosts, *arguments, "--id=peer.lab", "--idtype=2")
    assert REFUSED in scan(hosts, *arguments, "--id=somebody")
    assert "aggressive" in running.ctl("why", lab.RIGHT)


def test_aggressive_mode_is_answered_where_a_rule_asks_for_it(hosts: Lab, place: Path) -> None:
    """The rule says it in so many words, and loading it warns of what this test does."""
    offered = ("--aggressive", "--dhgroup=14", MODP)
    with daemon(hosts, place, "aggressive = true") as running:
        found = scan(hosts, *offered, "--id=peer.lab", "--idtype=2")
        assert "Aggressive Mode Handshake returned" in found
        assert "Hash(32 bytes)" in found
        assert IKD_ID in found
        assert "guess" in running.ctl("status")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--exchange=6",),
        ("--exchange=32",),
        ("--exchange=255",),
        ("--hdrflags=1",),
        ("--hdrmsgid=77",),
        ("--cookie=0000000000000000",),
        ("--rcookie=0102030405060708",),
        ("--nextpayload=33",),
        ("--headerver=1",),
    ],
    ids=lambda arguments: str(arguments[0][2:]),
)
def test_nonsense_is_not_answered(scanned: tuple[Lab, Ikd], arguments: tuple[str, ...]) -> None:
    """An answer to what is no first message helps nobody but a scanner; it is counted, and the daemon goes
    on."""
    hosts, running = scanned
    assert scan(hosts, CURVE, *arguments, patience=0.5) == ""
    eventually(lambda: "dropped a datagram" in running.log(), "it is told of in the log")
    assert "Handshake returned" in scan(hosts, CURVE)


def test_version_2_is_answered(scanned: tuple[Lab, Ikd]) -> None:
    """What ike-scan offers in IKE_SA_INIT is refused by name, and without an SPI of ours."""
    hosts, running = scanned
    found = scan(hosts, "--ikev2")
    assert "Notify message 14 (NO_PROPOSAL_CHOSEN)" in found
    assert "CKY-R=0000000000000000" in found
    assert "IKE_SA_INIT" in running.ctl("why", lab.RIGHT)


def test_version_3_is_answered(scanned: tuple[Lab, Ikd]) -> None:
    """RFC 7296 section 2.5: who comes with a later version is told ours."""
    hosts, _ = scanned
    assert "Notify message 5 (INVALID_MAJOR_VERSION)" in scan(hosts, CURVE, "--headerver=48")


def test_scan_leaves_nothing_behind(hosts: Lab, place: Path) -> None:
    """Scans end in half-open negotiations, which have to go by themselves and never be more than allowed."""
    limits = {"limits": {"half_open_per_address": 4}, "ike": {"half_open_timeout": 4.0}}
    policy = tunnel_policy(lab.LEFT, lab.RIGHT, extra=ikev1_rule())
    settings = {"identity": {"id": IKD_ID}, **limits}
    with Ikd(hosts.left, place / "ikd", policy, secrets=secrets(), settings=settings) as running:
        assert all(scan(hosts, CURVE) for _ in range(4))
        assert not scan(hosts, CURVE, patience=0.5)
        eventually(lambda: not running.main(), "all are forgotten")
        assert scan(hosts, CURVE)


@pytest.mark.parametrize(
    "arguments",
    [
        (CURVE,),
        (),
        ("--ikev2",),
        ("--ikev2", "--dhgroup=14"),
        ("--aggressive", "--dhgroup=14", MODP, "--id=peer.lab", "--idtype=2"),
        ("--aggressive", "--dhgroup=5", "--trans=5,1,1,5", "--id=peer.lab", "--idtype=2"),
        (CURVE, "--headerver=48"),
    ],
    ids=["main", "main-refused", "ikev2", "ikev2-modp", "aggressive", "aggressive-refused", "version"],
)
def test_answers_are_no_amplification(hosts: Lab, place: Path, arguments: tuple[str, ...]) -> None:
    """On the wire, headers and repetitions included: a forged first datagram brings its victim at most three
    times as many octets. tests/scenarios/test_amplification.py has the rest of the cases."""
    quick = {"ike": {"retransmit_first": 0.2, "retransmit_cap": 0.3, "half_open_timeout": 3.0}}
    rule = ikev1_rule(keying=("ikev2", "ikev1"), more="aggressive = true")
    policy = tunnel_policy(lab.LEFT, lab.RIGHT, extra=rule)
    settings = {"identity": {"id": IKD_ID}, **quick}
    with (
        Ikd(hosts.left, place / "ikd", policy, secrets=secrets(), settings=settings) as running,
        Capture(hosts.right, "e0", place / "wire.pcap") as wire,
    ):
        scan(hosts, *arguments)
        eventually(lambda: not running.main(), "it is forgotten")
    sent, back = (
        sum(
            map(int, wire.tshark("-Y", f"udp && ip.src == {one}", "-T", "fields", "-e", "udp.length").split())
        )
        for one in (lab.RIGHT, lab.LEFT)
    )
    assert sent
    assert back <= MOST * sent
