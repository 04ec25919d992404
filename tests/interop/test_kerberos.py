"""Two daemons of one Kerberos realm, with a KDC that they reach over the link their SAs are for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import kerberos, lab
from support.capture import Capture
from support.daemon import Ikd
from support.kerberos import REALM, Kdc
from support.lab import Lab
from support.require import require
from support.scenario import Twins, eventually, tunnel_policy

pytestmark = pytest.mark.interop

KEYING = ("ikev1", "authip")
NAMES = {"left": "left.example.test", "right": "right.example.test"}
HOST_RULE = """\
[[rule]]
name     = "net"
remote   = "{remote}"
security = "require"
peer     = "{peer}"
{extra}
"""
EXTRA = """\
keying = ["{keying}"]
auth   = "realm"
crypto = "old"
"""
SETS = """
[auth.realm]
first = ["kerberos"]

[crypto.old]
main  = ["p256 aes128 sha256"]
quick = ["aes128 sha256"]
"""
TO_KDC = """
[[rule]]
name     = "kdc-{protocol}"
action   = "permit"
remote   = "{remote}"
protocol = "{protocol}"
{end}_port = {port}
"""


@pytest.fixture
def realm(hosts: Lab, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kdc]:
    """A realm with both hosts, whose KDC runs on the right one; the daemons are in it."""
    missing = kerberos.missing()
    require(not missing, f"Kerberos ({', '.join(missing)})")
    base = place / "realm"
    base.mkdir()
    kdc = Kdc(base, lab.RIGHT, hosts.right)
    try:
        for own, name in NAMES.items():
            kdc.principal(f"host/{name}")
            kdc.keytab(f"{own}.keytab", f"host/{name}")
        kdc.start()
        for variable, value in kdc.variables.items():
            monkeypatch.setenv(variable, value)
        yield kdc
    finally:
        kdc.close()


def realm_twins(hosts: Lab, place: Path, kdc: Kdc, left: str, right: str) -> Twins:
    """Two daemons with a keytab each and a policy each."""
    made = [
        Ikd(
            namespace,
            place / own,
            policy + SETS,
            settings={"identity": {"id": f"{own}.lab", "keytab": str(kdc.base / f"{own}.keytab")}},
        )
        for namespace, own, policy in ((hosts.left, "left", left), (hosts.right, "right", right))
    ]
    return Twins(hosts, *made)


def host_twins(hosts: Lab, place: Path, kdc: Kdc, keying: str) -> Twins:
    """Everything between the hosts' own addresses is protected, but for the way to the KDC."""
    texts = []
    for remote, peer, end in ((lab.RIGHT, "right", "remote"), (lab.LEFT, "left", "local")):
        rule = HOST_RULE.format(remote=remote, peer=NAMES[peer], extra=EXTRA.format(keying=keying))
        ways = (
            TO_KDC.format(protocol=protocol, remote=remote, end=end, port=kdc.port)
            for protocol in ("udp", "tcp")
        )
        texts.append(rule + "".join(ways))
    return realm_twins(hosts, place, kdc, *texts)


def net_twins(hosts: Lab, place: Path, kdc: Kdc, keying: str) -> Twins:
    """A tunnel between the networks behind the hosts, which does not cover the KDC."""
    return realm_twins(
        hosts,
        place,
        kdc,
        tunnel_policy(lab.LEFT, lab.RIGHT, peer=NAMES["right"], extra=EXTRA.format(keying=keying)),
        tunnel_policy(
            lab.RIGHT,
            lab.LEFT,
            local_net=lab.NET_RIGHT,
            remote_net=lab.NET_LEFT,
            peer=NAMES["left"],
            extra=EXTRA.format(keying=keying),
        ),
    )


@pytest.mark.parametrize("keying", KEYING)
@pytest.mark.parametrize("mode", ["transport", "tunnel"])
def test_ping_between_hosts_of_a_realm(hosts: Lab, place: Path, realm: Kdc, mode: str, keying: str) -> None:
    """The first packet must bring up an SA although its negotiation needs a ticket first, from a KDC on the
    very host that the SA is for."""
    made = host_twins if mode == "transport" else net_twins
    ends = (lab.LEFT, lab.RIGHT) if mode == "transport" else (lab.INSIDE_LEFT, lab.INSIDE_RIGHT)
    with made(hosts, place, realm, keying) as both, Capture(hosts.right, "e0", place / "w.pcap") as wire:
        pinged = lab.ping(hosts.left, ends[1], ends[0], count=5, wait=5)
        assert pinged.received == pinged.sent, pinged
        pinged = lab.ping(hosts.right, ends[0], ends[1])
        assert pinged.received == pinged.sent, pinged
        for one, other in ((both.left, "right"), (both.right, "left")):
            (main,) = one.main()
            assert f"host/{NAMES[other]}@{REALM}" in str(main)
            assert len(one.quick()) == 1
    protocols = set(wire.protocols())
    assert {"isakmp", "esp"} <= protocols
    assert "icmp" not in protocols


@pytest.mark.parametrize("keying", KEYING)
def test_stale_keytab_is_told_at_both_ends(hosts: Lab, place: Path, realm: Kdc, keying: str) -> None:
    """`ikctl why` is where an administrator looks: reason and remedy, whichever end it is on."""
    realm.keytab("elsewhere.keytab", f"host/{NAMES['right']}", fresh=True)
    with net_twins(hosts, place, realm, keying) as both:
        both.left.try_ctl("up", "net")
        # AuthIP says of a failure only that there is one
        known = "the peer's keytab is out of date" if keying == "ikev1" else "Kerberos failed there"
        eventually(lambda: known in both.left.try_ctl("why", "net").stdout, "the initiator knows")
        right = both.right.ctl("why", "net")
        assert "right.keytab is out of date" in right
        assert "ktadd -k" in right
