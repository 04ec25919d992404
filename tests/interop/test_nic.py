"""Two daemons, one with a simulated network adapter: SAs move between it and software under traffic, the
adapter fails in every way, and the network must notice nothing, or as little as is promised."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import lab
from support.capture import Capture
from support.daemon import Ikd
from support.lab import Lab
from support.scenario import Twins, eventually, tunnel_policy, twins

pytestmark = pytest.mark.interop

DATA = bytes(range(256)) * 4096
SIDES = (lab.INSIDE_LEFT, lab.INSIDE_RIGHT)
PLAIN = (lab.LEFT, lab.RIGHT)
WITHOUT_ESN = """\
crypto = "offload"

[crypto.offload]
quick = ["aes128gcm"]
esn = false
"""
TRANSPORT = """
[[rule]]
name = "host"
remote = "{remote}"
security = "require"
peer = "{peer}"
{extra}
"""


@contextmanager
def daemons(
    hosts: Lab,
    place: Path,
    profile: str = "ideal",
    *,
    transport: bool = False,
    mode: str = "crypto",
    engine: str = "auto",
    extra: str = "",
) -> Iterator[Twins]:
    """Two daemons with a tunnel between their networks or, with `transport`, a rule between the hosts; the
    left one with an adapter, in crypto or packet mode."""
    if transport:
        left = TRANSPORT.format(remote=lab.RIGHT, peer="right.lab", extra=extra)
        right = TRANSPORT.format(remote=lab.LEFT, peer="left.lab", extra="")
    else:
        left = tunnel_policy(lab.LEFT, lab.RIGHT, peer="right.lab", extra=extra)
        nets = {"local_net": lab.NET_RIGHT, "remote_net": lab.NET_LEFT}
        right = tunnel_policy(lab.RIGHT, lab.LEFT, peer="left.lab", **nets)
    (place / "left").mkdir(exist_ok=True)
    (place / "left" / "offload.toml").write_text(f'[adapter]\nprofile = "{profile}"\nmode = "{mode}"\n')
    settings = {"dataplane": {"backend": "nic", "faults": True, "engine": engine}}
    with twins(hosts, place, left, right, left=settings) as both:
        yield both


def check(both: Twins, ends: tuple[str, str] = SIDES) -> None:
    """A megabyte there and back."""
    near, far = ends
    assert lab.tcp(both.lab.left, both.lab.right, far, DATA, near) == DATA


def placed(daemon: Ikd) -> list[dict[str, Any]]:
    """Pairs with both directions in the adapter."""
    return [one for one in daemon.ask("offload")["offloaded"] if len(one["in_adapter"]) == 2]


def placed_anew(daemon: Ikd, old: set[str]) -> bool:
    """Whether pairs are in the adapter, and none of them is an old one."""
    return bool(now := placed(daemon)) and old.isdisjoint(one["spi_out"] for one in now)


def reasons(daemon: Ikd) -> set[str]:
    """Why pairs are in software; "" for those that are not."""
    answer = daemon.ask("offload")
    found = {why["reason"] for row in answer["software"] for why in row["why"].values()}
    return found | {"" for one in answer["offloaded"] if one["in_adapter"]}


def numbers(wire: Capture) -> Counter[tuple[bytes, bytes]]:
    """SPI and sequence number of each ESP packet of a capture: with one key never the same twice."""
    found: Counter[tuple[bytes, bytes]] = Counter()
    for frame in wire.frames():
        packet = frame[14:]
        if frame[12:14] == b"\x08\x00" and packet[9] == 50 and not packet[6] & 0x3F:
            at = (packet[0] & 15) * 4
            found[packet[at : at + 4], packet[at + 4 : at + 8]] += 1
    return found


def no_repetition(wire: Capture) -> None:
    """Nothing in the clear, and no number used twice."""
    seen = numbers(wire)
    assert len(seen) > 500
    assert max(seen.values()) == 1
    assert not wire.holds(DATA[:256])


MODES = pytest.mark.parametrize("mode", ["crypto", "packet"])


@pytest.mark.parametrize(
    ("mode", "engine", "serves"),
    [
        ("crypto", "auto", "native"),
        ("crypto", "python", "python"),
        ("packet", "auto", "python"),
    ],
)
def test_pairs_move_under_traffic_without_loss(
    hosts: Lab, place: Path, mode: str, engine: str, serves: str
) -> None:
    """If a hand-over lost, reordered or renumbered packets, pings or numbers on the wire would show it."""
    with daemons(hosts, place, mode=mode, engine=engine) as both:
        assert f"adapter ideal, software engine ({serves})" in both.left.ctl("status")
        check(both)
        eventually(lambda: placed(both.left), "a pair in the adapter")
        with (
            Capture(hosts.right, "e0", place / "wire.pcap") as wire,
            lab.pinging(hosts.left, SIDES[1], SIDES[0]) as pings,
        ):
            for _ in range(3):
                both.left.ctl("offload", "disable")
                check(both)
                eventually(lambda: not placed(both.left), "everything in software")
                both.left.ctl("offload", "enable")
                check(both)
                eventually(lambda: placed(both.left), "a pair in the adapter")
        assert pings.lost == 0
        no_repetition(wire)
        eventually(
            lambda: both.right.quick()[0]["packets_in"] == both.left.quick()[0]["packets_out"],
            "each packet sent to be taken",
        )
        assert "nic:ideal" in both.left.ctl("status")
        assert f"adapter ideal, {mode} mode" in both.left.ctl("offload")
        view = both.left.json("offload")
        assert [(one["of"], one["used"]) for one in view["adapter"]["pools"]] == [
            ("inbound", 1),
            ("outbound", 1),
        ]
        assert view["placement"]["evicted"] >= 3  # as often as it was turned off
        leased = mode == "packet"  # which is told once a second
        eventually(lambda: (placed(both.left)[0]["lease"] is not None) == leased, "the lease")


@MODES
def test_dead_adapter_costs_what_was_in_flight(hosts: Lab, place: Path, mode: str) -> None:
    """Killing it under load loses at most the frames in flight, and for hardly longer than it takes to
    replace a pair. In packet mode its replay window dies with it: the pair is replaced at once, and nothing
    comes in until it is."""
    with daemons(hosts, place, mode=mode) as both:
        check(both)
        before = {one["spi_out"] for one in both.left.quick()}
        began = time.monotonic()
        both.left.ask("rekey", name="net")
        replaced = time.monotonic() - began  # on this machine, now
        eventually(lambda: placed_anew(both.left, before), "a pair in the adapter")
        pid = both.left.ask("offload")["adapter"]["pid"]
        with (
            Capture(hosts.right, "e0", place / "wire.pcap") as wire,
            lab.pinging(hosts.left, SIDES[1], SIDES[0]) as pings,
        ):
            check(both)
            os.kill(pid, signal.SIGKILL)
            check(both)
            eventually(lambda: placed(both.left), "a pair in the next adapter")
            check(both)
        assert pings.lost <= 2 + replaced * 20  # of twenty a second
        no_repetition(wire)
        assert both.left.ask("offload")["adapter"]["pid"] != pid
        assert "its SAs go on in software" in both.left.log()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("link down", "link"), ("full on", "slots_full"), ("refuse_once on", "refused")],
    ids=lambda value: value.split()[0],
)
def test_adapter_that_refuses_costs_nothing(hosts: Lab, place: Path, fault: str, reason: str) -> None:
    with daemons(hosts, place) as both:
        both.left.ctl("offload", "fault", *fault.split())
        check(both)
        eventually(lambda: reasons(both.left) == {reason}, f"the reason {reason}")
        name, _ = fault.split()
        both.left.ctl("offload", "fault", name, "up" if name == "link" else "off")
        eventually(lambda: placed(both.left), "a pair in the adapter")
        check(both)


@pytest.mark.parametrize(
    "fault", ["stuck on", "drop_tx 0.02", "swap on", "evict on", "reset on", "reorder 8"]
)
def test_adapter_that_fails_later_is_survived(hosts: Lab, place: Path, fault: str) -> None:
    """Transfers end, and no number is used twice, whatever the adapter does with what it was given."""
    with daemons(hosts, place) as both:
        check(both)
        eventually(lambda: placed(both.left), "a pair in the adapter")
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            both.left.ctl("offload", "fault", *fault.split())
            check(both)
            name, _ = fault.split()
            if name not in ("swap", "evict", "reset"):
                both.left.ctl("offload", "fault", name, "off" if name == "stuck" else "0")
            eventually(lambda: placed(both.left), "a pair in the adapter again")
            check(both)
        no_repetition(wire)


def test_worker_dies_beside_the_adapter(hosts: Lab, place: Path) -> None:
    """Its SAs are replaced, as without an adapter, and their successors go into the adapter."""
    with daemons(hosts, place) as both:
        check(both)
        eventually(lambda: placed(both.left), "a pair in the adapter")
        before = {one["spi_out"] for one in both.left.quick()}
        adapter = both.left.ask("offload")["adapter"]["pid"]
        children = Path(f"/proc/{both.left.pid}/task/{both.left.pid}/children").read_text().split()
        (worker,) = (int(one) for one in children if int(one) != adapter)
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: placed_anew(both.left, before), "a new pair in the adapter")
            check(both)
        no_repetition(wire)


@MODES
def test_a_device_deleted_beside_the_adapter_is_made_anew(hosts: Lab, place: Path, mode: str) -> None:
    """The loop that has the adapter's ring finds it, too: new workers get a new device and the adapter, and
    nothing leaves in the clear or twice."""
    with daemons(hosts, place, mode=mode) as both:
        check(both)
        eventually(lambda: placed(both.left), "a pair in the adapter")
        before = {one["spi_out"] for one in both.left.quick()}
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            lab.ip("-n", hosts.left, "link", "del", "ikd0")
            eventually(lambda: "TUN device was deleted" in both.left.log(), "it is told")
            eventually(lambda: placed_anew(both.left, before), "a new pair in the adapter")
            check(both)
        no_repetition(wire)
        assert "internal error" not in both.left.log()


def test_large_sends_of_an_82599(hosts: Lab, place: Path) -> None:
    """Transport mode, where the adapter segments: what reaches the wire fits it, and all arrives."""
    with daemons(hosts, place, "82599", transport=True, extra=WITHOUT_ESN) as both:
        check(both, PLAIN)
        eventually(lambda: placed(both.left), "a pair in the adapter")
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            check(both, PLAIN)
        no_repetition(wire)
        assert max(map(len, wire.frames())) <= 1514
        eventually(lambda: placed(both.left)[0]["octets_offloaded"] > 2 * len(DATA), "the octets of it")


def test_what_an_82599_cannot_carry_stays_in_software(hosts: Lab, place: Path) -> None:
    with daemons(hosts, place, "82599") as both:  # a tunnel
        check(both)
        eventually(lambda: reasons(both.left) == {"mode"}, "the reason mode")
        assert "mode  The adapter does not carry this mode" in both.left.ctl("offload")


def test_rule_and_port_keep_sas_out_of_the_adapter(hosts: Lab, place: Path) -> None:
    """A limit of 0 turns off the offload and never IPsec itself; what is set is kept for the next start."""
    with daemons(hosts, place) as both:
        check(both)
        eventually(lambda: placed(both.left), "a pair in the adapter")
        both.left.ctl("offload", "set-port", "host", "--max-sa", "0")
        eventually(lambda: reasons(both.left) == {"off"}, "everything in software")
        check(both)
        kept = tomllib.loads((place / "left" / "offload.toml").read_text())
        assert kept["port"]["host"]["limit"] == 0
        refused = both.left.try_ctl("offload", "set-port", "vm", "--max-sa", "9000", "--reserve", "9000")
        assert refused.returncode == 1
        assert "lower a reserve" in refused.stderr
        both.left.ctl("offload", "set-port", "host", "--max-sa", "10")
        eventually(lambda: placed(both.left), "a pair in the adapter")
    with daemons(hosts, place, extra="offload = false") as both:
        check(both)
        eventually(lambda: reasons(both.left) == {"off"}, "the reason off")


def test_without_an_adapter_there_is_a_clear_answer(hosts: Lab, place: Path) -> None:
    with daemons(hosts, place) as both:
        answer = both.right.try_ctl("offload")
        assert answer.returncode == 1
        assert "offload.toml" in answer.stderr
    (place / "left" / "offload.toml").unlink()
    result = both.left.run_once()
    assert result.returncode == os.EX_CONFIG
    assert "offload.toml" in result.stderr
