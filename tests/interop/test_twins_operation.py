"""Operating ikd: reload, stop, crash, a second daemon, and hostile octets while others work."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.daemon import Ikd
from support.lab import Lab
from support.scenario import eventually, tunnel_policy, twins

from ikd.control.protocol import ControlError

pytestmark = pytest.mark.interop

LEFT_POLICY = tunnel_policy(lab.LEFT, lab.RIGHT, peer="right.lab")
RIGHT_POLICY = tunnel_policy(
    lab.RIGHT, lab.LEFT, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab"
)
ANOTHER = """
[[rule]]
name     = "another"
remote   = "203.0.113.7"
security = "require"
"""


def resident(pid: int) -> int:
    """Octets of memory a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_stop_leaves_nothing_behind(hosts: Lab, place: Path) -> None:
    """A route, rule, device or table that stays would break the host after an upgrade."""
    before = lab.footprint(hosts.left)
    both = twins(hosts, place, LEFT_POLICY, RIGHT_POLICY)
    with both.right:
        both.left.start()
        both.left.ctl("up", "net")
        assert lab.footprint(hosts.left) != before
        assert both.left.stop() == 0
        eventually(lambda: not both.right.main(), "the peer was told")
    assert lab.footprint(hosts.left) == before
    assert not both.left.socket.exists()


def test_crash_stays_closed(hosts: Lab, place: Path) -> None:
    """After a crash, traffic that must be protected must not leave in the clear; a new start takes over."""
    both = twins(hosts, place, LEFT_POLICY, RIGHT_POLICY)
    with both.right:
        both.left.start()
        both.left.ctl("up", "net")
        both.left.stop(number=signal.SIGKILL)
        lab.ip("-n", hosts.left, "route", "add", lab.NET_RIGHT, "via", lab.RIGHT)
        with Capture(hosts.right, "e0", place / "w.pcap") as wire:
            lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=2, wait=1)
        assert "icmp" not in wire.protocols()
        with both.left:
            pinged = lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT)
            assert pinged.received == pinged.sent


def test_crash_opens_when_told_so(hosts: Lab, place: Path) -> None:
    """Whoever prefers reachability says stay_closed = false, and that must do something."""
    settings = {"dataplane": {"stay_closed": False}}
    policy = 'name = "host"\nremote = "{}"\nsecurity = "require"\n'
    left = "[[rule]]\n" + policy.format(lab.RIGHT)
    both = twins(hosts, place, left, left, settings=settings)
    both.left.start()
    assert lab.ping(hosts.left, lab.RIGHT, count=1, wait=1).received == 0
    both.left.stop(number=signal.SIGKILL)
    eventually(lambda: lab.ping(hosts.left, lab.RIGHT, count=1, wait=1).received, "the link is open again")


def test_second_daemon_is_refused(hosts: Lab, place: Path) -> None:
    """Two daemons on one socket would fight over routes and ports."""
    both = twins(hosts, place, LEFT_POLICY, RIGHT_POLICY)
    with both.left:
        second = Ikd(hosts.left, both.left.directory, LEFT_POLICY)
        done = second.run_once()
        assert done.returncode != 0
        assert "running" in done.stdout + done.stderr or "socket" in done.stdout + done.stderr
        assert both.left.answers()


@pytest.mark.parametrize("how", ["command", "signal"])
def test_reload_keeps_what_did_not_change(hosts: Lab, place: Path, how: str) -> None:
    """Adding a rule must not interrupt the others."""
    with twins(hosts, place, LEFT_POLICY, RIGHT_POLICY) as both:
        both.left.ctl("up", "net")
        spis = {one["spi_in"] for one in both.left.quick()}
        both.left.write_policy(LEFT_POLICY + ANOTHER)
        if how == "command":
            both.left.ctl("reload")
        else:
            both.left.signal(signal.SIGHUP)
        eventually(lambda: "another" in both.left.ctl("policy", "show"), "the new rule is in force")
        assert {one["spi_in"] for one in both.left.quick()} == spis
        assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT).received == 3


def test_bad_policy_is_refused_whole(hosts: Lab, place: Path) -> None:
    """A typing error must not take half a policy into force, nor end the daemon."""
    with twins(hosts, place, LEFT_POLICY, RIGHT_POLICY) as both:
        both.left.ctl("up", "net")
        both.left.write_policy(LEFT_POLICY + ANOTHER.replace("security", "securty"))
        refused = both.left.try_ctl("reload")
        assert refused.returncode == 1
        assert "securty" in refused.stdout + refused.stderr
        assert "security" in refused.stdout + refused.stderr
        assert "another" not in both.left.ctl("policy", "show")
        assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT).received == 3


def test_removed_rule_takes_its_sas_along(hosts: Lab, place: Path) -> None:
    """SAs of a rule that is gone would keep passing traffic nobody allows any more."""
    with twins(hosts, place, LEFT_POLICY, RIGHT_POLICY) as both:
        both.left.ctl("up", "net")
        both.left.write_policy(ANOTHER)
        both.left.ctl("reload")
        eventually(lambda: not both.left.quick() and not both.right.quick(), "both sides dropped the SAs")


def test_hostile_octets_disturb_nobody(hosts: Lab, place: Path) -> None:
    """Garbage, truncated, oversized and replayed datagrams at full speed: another association goes on, memory
    stays bounded, and a counter says what happened."""
    with twins(hosts, place, LEFT_POLICY, RIGHT_POLICY) as both:
        with Capture(hosts.right, "e0", place / "w.pcap") as wire:
            both.left.ctl("up", "net")
            assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT).received == 3
        frames = [one for one in wire.frames() if one[12:14] == b"\x08\x00"]
        memory = resident(both.right.pid)
        spi = bytes.fromhex(both.right.quick()[0]["spi_in"].removeprefix("0x"))
        with lab.pinging(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT) as pings:
            pings.goes_on()
            for _ in range(3):
                send_garbage(hosts.left, frames, spi)
                pings.goes_on()
        assert pings.lost <= 2  # each flood may overrun the queue of the device
        assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT).received == 3
        assert len(both.right.main()) == 1
        assert resident(both.right.pid) < memory + 64 * 2**20
        counted = [
            line
            for line in both.right.ask("metrics")["text"].splitlines()
            if line[:1] != "#" and any(word in line for word in ("malformed", "dropped", "replay"))
        ]
        assert any(float(line.split()[-1]) > 0 for line in counted), counted


def send_garbage(namespace: str, frames: list[bytes], spi: bytes) -> None:
    """From `namespace` to the right host: random octets, cut, flipped and repeated frames, empty ESP
    packets."""
    with lab.socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for n in range(4000):
            data = os.urandom((0, 1, 4, 27, 28, 60, 400, 1400)[n % 8])
            stranger.sendto(data, (lab.RIGHT, (500, 4500)[n // 8 % 2]))
        stranger.sendto(os.urandom(60000), (lab.RIGHT, 500))
    with lab.socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("e0", 0))
        for frame in frames:
            link.send(frame)
            for at in range(42, len(frame), 7):
                link.send(frame[:at] + bytes((frame[at] ^ 0x10,)) + frame[at + 1 :])
    with lab.socket_in(namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ESP) as esp:
        for length in range(40):
            esp.sendto(spi + struct.pack("!I", 0x7FFF0000) + bytes(length), (lab.RIGHT, 0))


def test_half_open_flood_is_bounded(hosts: Lab, place: Path) -> None:
    """Strangers who only say hello fill no table, and a peer that means it still gets through."""
    with twins(hosts, place, LEFT_POLICY, RIGHT_POLICY) as both:
        with Capture(hosts.right, "e0", place / "w.pcap") as wire:
            both.left.ctl("up", "net")
            both.left.ctl("down", "net")
        first = next(
            one for one in wire.frames() if one[12:14] == b"\x08\x00" and one[23] == 17 and one[42 + 18] == 34
        )
        memory = resident(both.right.pid)
        with lab.socket_in(hosts.left, socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(3000):
                stranger.sendto(os.urandom(8) + first[50:], (lab.RIGHT, 500))
        eventually(both.right.answers, "the daemon answers")
        assert len(both.right.main()) <= 1000
        assert resident(both.right.pid) < memory + 64 * 2**20
        assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=1).received == 1


def test_control_socket_refuses_nonsense(hosts: Lab, place: Path) -> None:
    """A script with a typing error gets an answer that helps, and the next one is served."""
    with twins(hosts, place, LEFT_POLICY, RIGHT_POLICY).left as one:
        with pytest.raises(ControlError, match="no request"):
            one.ask("statsu")
        assert one.ctl("status")
