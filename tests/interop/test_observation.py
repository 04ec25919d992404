"""What is seen of the real data plane: totals that outlive a rekey, and a capture that can be read."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support import lab
from support.capture import Recording, wireshark_tables
from support.daemon import IKCTL, ROOT, Ikd
from support.lab import Lab
from support.scenario import eventually, tunnel_policy, twins

pytestmark = pytest.mark.interop

LEFT_POLICY = tunnel_policy(lab.LEFT, lab.RIGHT, peer="right.lab")
RIGHT_POLICY = tunnel_policy(
    lab.RIGHT, lab.LEFT, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab"
)
ESP_OPTIONS = ("-o", "esp.enable_encryption_decode:TRUE")


def packets_out(daemon: Ikd) -> dict[str, int]:
    """Packets sent so far, by rule and by peer."""
    text = daemon.ask("metrics")["text"]
    found = re.findall(r'^ikd_(rule|peer)_packets_total\{direction="out",\w+="[^"]+"\} (\S+)', text, re.M)
    return {what: int(float(number)) for what, number in found}


def esp(capture: Path) -> int:
    """How many packets of ESP a capture of IP packets has until now."""
    return sum(packet[9] == 50 for packet in Recording(capture).frames())


def test_totals_and_a_capture_over_a_rekey(hosts: Lab, place: Path) -> None:
    """Workers count what totals are made of: none may be lost when the old pair goes. The pcap has what the
    peer was sent, and with the keys beside it tshark reads both what IKE and what ESP said."""
    both = twins(hosts, place, LEFT_POLICY, RIGHT_POLICY)
    target = place / "peer.pcap"
    command = [*IKCTL, "--socket", str(both.left.socket), "capture", "net", str(target)]
    with both.right, both.left:
        both.left.ctl("up", "net")
        capturing = subprocess.Popen(
            ["ip", "netns", "exec", hosts.left, *command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            eventually(lambda: target.exists() and target.stat().st_size, "the capture has begun")
            assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=3).received == 3
            old = both.left.quick()[0]["spi_in"]
            both.left.ctl("rekey", "net")
            assert lab.ping(hosts.left, lab.INSIDE_RIGHT, lab.INSIDE_LEFT, count=2).received == 2
            eventually(
                lambda: old not in [one["spi_in"] for one in both.left.quick()], "the old pair is gone"
            )
            assert packets_out(both.left) == {"rule": 5, "peer": 5}
            eventually(lambda: esp(target) >= 10, "the capture has both directions")
        finally:
            capturing.send_signal(signal.SIGINT)
            said, _ = capturing.communicate(timeout=30)
        assert capturing.returncode == 0, said
        assert "warning: whoever can read both files" in said
    configuration = wireshark_tables(place / "peer.pcap.keys", place)
    recording = Recording(target)
    pings = recording.tshark(*ESP_OPTIONS, "-Y", "icmp", configuration=configuration)
    assert (pings.count("(ping) request"), pings.count("(ping) reply")) == (5, 5), pings
    ike = recording.tshark("-Y", "isakmp.exchangetype == 36", "-V", configuration=configuration)
    assert "Traffic Selector - Responder" in ike, "the rekey is not readable"
