"""The daemon is restarted, or dies and is started again, under a TCP connection that must not notice."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.daemon import Ikd
from support.lab import Lab
from support.scenario import Peers, Twins, eventually, psk_peers, tunnel_policy, twins

from ikd.daemon import RESTART

pytestmark = pytest.mark.interop

DATA = bytes(range(256)) * 1024
DROP = b"marker-in-clear-text"
NEAR, FAR = lab.INSIDE_LEFT, lab.INSIDE_RIGHT


def tunnel(hosts: Lab, place: Path, **dataplane: object) -> Twins:
    """Two daemons with a tunnel between their networks."""
    left = tunnel_policy(lab.LEFT, lab.RIGHT, peer="right.lab")
    right = tunnel_policy(
        lab.RIGHT, lab.LEFT, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab"
    )
    return twins(hosts, place, left, right, settings={"dataplane": dataplane})


def workers(daemon: Ikd) -> list[int]:
    """The processes that carry a daemon's packets, whoever started them."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                command = (one / "cmdline").read_bytes()
            except OSError:
                continue
            if b"offload.workers" in command and str(daemon.directory).encode() in command:
                found.append(int(one.name))
    return sorted(found)


def spis(daemon: Ikd) -> set[str]:
    """Outbound SPIs of the pairs there are."""
    return {one["spi_out"] for one in daemon.quick()}


def octets(daemon: Ikd) -> int:
    """What has left on all pairs that the rule has had."""
    found = re.search(
        r'^ikd_rule_octets_total{direction="out",rule="net"} (\S+)$', daemon.ctl("metrics"), re.M
    )
    assert found
    return int(float(found[1]))


def numbers(wire: Capture) -> list[bytes]:
    """SPI and sequence number of each ESP packet over IPv4, in UDP or not."""
    four = [frame for frame in wire.frames() if frame[12:14] == b"\x08\0"]
    bare = [frame[34:42] for frame in four if frame[23] == 50]
    udp = [frame[42:50] for frame in four if frame[23] == 17 and frame[36:38] == (4500).to_bytes(2, "big")]
    return bare + [one for one in udp if one[:4] != bytes(4)]


def again(daemon: Ikd, number: int, old: set[str]) -> set[str]:
    """End a daemon in a way that leaves its workers, and start another; the SPIs that have replaced the old
    ones."""
    before = workers(daemon)
    daemon.stop(number=number)
    assert workers(daemon) == before != []
    daemon.start()
    assert workers(daemon) == before
    eventually(lambda: spis(daemon) and spis(daemon).isdisjoint(old), "the pairs are replaced")
    return spis(daemon)


def test_connection_survives_restart_and_crash(hosts: Lab, place: Path) -> None:
    """Packets must go on while no daemon is there, and on new keys when one is; never in the clear, and no
    number twice. What was adopted is as good as what was made: its workers may die, too."""
    with tunnel(hosts, place, workers=2) as both:
        left = both.left
        left.ctl("up", "net")
        used, carried = spis(left), left.quick()[0]["packets_out"]
        with (
            Capture(hosts.right, "e0", place / "wire.pcap") as wire,
            lab.dripping(hosts.left, hosts.right, FAR, DROP, NEAR),
        ):
            eventually(lambda: left.quick()[0]["packets_out"] > carried + 10, "packets")
            for number in (RESTART, signal.SIGKILL):
                used |= again(left, number, used)
            died = workers(left)
            os.kill(died[0], signal.SIGKILL)
            eventually(lambda: set(workers(left)).isdisjoint(died) and workers(left), "other workers")
            eventually(lambda: spis(left) and spis(left).isdisjoint(used), "their pairs")
        assert not wire.holds(DROP)
        found = numbers(wire)
        assert len(found) == len(set(found)) > 100
        assert left.log().count("the data plane has gone on; replacing 1 SA pair of") == 2
        left.stop()
        assert workers(left) == []
        assert not list(left.directory.glob("control.worker*"))
        assert "ikd0" not in lab.ip("-n", hosts.left, "link")
        eventually(lambda: "closed: deleted by the peer" in both.right.log(), "the peer was told")


def test_device_deleted_after_a_takeover_is_made_anew(hosts: Lab, place: Path) -> None:
    """Devices, sockets and workers that were taken over are what is made anew, and how such a worker ended
    nobody tells its second daemon. What the first one counted is not counted again."""
    with tunnel(hosts, place, workers=2) as both:
        left = both.left
        left.ctl("up", "net")
        assert lab.tcp(hosts.left, hosts.right, FAR, DATA, NEAR) == DATA
        counted = octets(left)
        assert len(DATA) < counted < 2 * len(DATA)
        used = again(left, RESTART, spis(left))
        assert counted <= octets(left) < counted + 1000
        with (
            Capture(hosts.right, "e0", place / "wire.pcap") as wire,
            lab.dripping(hosts.left, hosts.right, FAR, DROP, NEAR),
        ):
            lab.ip("-n", hosts.left, "link", "del", "ikd0")
            eventually(lambda: "TUN device was deleted" in left.log(), "it is told")
            eventually(lambda: spis(left) and spis(left).isdisjoint(used), "other pairs")
        assert not wire.holds(DROP)
        again(left, signal.SIGKILL, spis(left))
        assert lab.tcp(hosts.left, hosts.right, FAR, DATA, NEAR) == DATA
        assert "internal error" not in left.log()


def test_connection_to_strongswan_survives(hosts: Lab, place: Path) -> None:
    """A peer that is told of an initial contact drops everything before the new pair is there."""
    peers: Peers = psk_peers(hosts, place, settings={"dataplane": {"engine": "python"}})
    with peers.charon, peers.ikd:
        peers.up("charon")
        with (
            Capture(hosts.right, "e0", place / "wire.pcap") as wire,
            lab.dripping(hosts.left, hosts.right, FAR, DROP, NEAR),
        ):
            new = again(peers.ikd, RESTART, spis(peers.ikd))
            assert new <= {child["spi-in"] for child in peers.charon.children()}
        assert not wire.holds(DROP)
        found = numbers(wire)
        assert len(found) == len(set(found)) > 100
        peers.check_traffic()


# The daemon, which is told to stop as soon as it has workers.
HASTY = """
import os, signal, sys
from offload.workers.pool import Workers
opened = Workers.open
def open_and_stop(*given):
    made = opened(*given)
    os.kill(os.getpid(), signal.SIGTERM)
    return made
Workers.open = open_and_stop
from ikd.__main__ import main
sys.exit(main())
"""


def test_stop_while_it_starts_is_orderly(hosts: Lab, place: Path) -> None:
    """Workers would wait for an heir that does not come, and device and filter would stay as long."""
    before = lab.footprint(hosts.left)
    left = tunnel(hosts, place).left
    left.program = sys.executable, "-c", HASTY
    left.launch()
    assert left.ended() == 0, left.log()
    assert workers(left) == []
    assert lab.footprint(hosts.left) == before


def test_changed_rule_ends_its_pairs(hosts: Lab, place: Path) -> None:
    """Whoever takes a peer's right away and restarts must not find it still served."""
    with tunnel(hosts, place) as both:
        both.left.ctl("up", "net")
        old = spis(both.left)
        both.left.stop(number=RESTART)
        both.left.write_policy(tunnel_policy(lab.LEFT, lab.RIGHT, peer="somebody.else"))
        both.left.start()
        assert spis(both.left).isdisjoint(old)
        assert "replacing 0 SA pairs of the former run; 1 more have ended" in both.left.log()


def test_workers_without_a_daemon_end(hosts: Lab, place: Path) -> None:
    """Keys stay in memory for as long as was said; then the device goes, and what must be protected stays in.
    A daemon that comes too late starts anew."""
    with tunnel(hosts, place, orphan_seconds=2, workers=2) as both:
        both.left.ctl("up", "net")
        began = time.monotonic()
        both.left.stop(number=signal.SIGKILL)
        eventually(lambda: not workers(both.left), "they end")
        assert time.monotonic() - began >= 2
        eventually(lambda: "ikd0" not in lab.ip("-n", hosts.left, "link"), "the device goes")
        assert lab.ping(hosts.left, FAR, NEAR, count=1, wait=0.3).received == 0
        both.left.start()
        assert lab.tcp(hosts.left, hosts.right, FAR, DROP, NEAR) == DROP
