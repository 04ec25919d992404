"""`ikctl bench ike` and `esp`, short: all parties work, the output is as agreed, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.daemon import IKCTL, ROOT
from support.scenario import eventually

pytestmark = pytest.mark.interop


def start(*arguments: str, files: Path | None = None) -> subprocess.Popen[str]:
    """`ikctl bench` beside the test; with `files` it makes its own there."""
    variables = {"PYTHONPATH": str(ROOT), "COLUMNS": "160"} | ({"TMPDIR": str(files)} if files else {})
    return subprocess.Popen(
        [*IKCTL, "bench", *arguments],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def namespaces(pid: int) -> list[str]:
    """Those that an `ikctl bench` has made and not removed."""
    output = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in output.splitlines() if line.startswith(f"ikd-bench-{pid}-")]


def processes(names: list[str]) -> list[int]:
    """What runs in them."""
    found: list[int] = []
    for name in names:
        output = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        found += map(int, output.stdout.split())
    return found


def test_both_responders_establish(place: Path) -> None:
    """The comparison would be with nothing, or of something else than establishments."""
    profile = place / "profile.log"
    bench = start(
        "ike", "--json", "--count", "6", "--runs", "2", "--auth", "psk,rsa-2048", "--profile", str(profile)
    )
    output, told = bench.communicate(timeout=100)
    assert bench.returncode == 0, told
    answer: dict[str, Any] = json.loads(output)
    assert set(answer) == {"machine", "rows", "ratios", "runs"}
    assert [(row["auth"], row["responder"]) for row in answer["rows"]] == [
        ("psk", "ikd"),
        ("psk", "strongswan"),
        ("rsa-2048", "ikd"),
        ("rsa-2048", "strongswan"),
    ]
    for row in answer["rows"]:
        assert (row["group"], row["established"], row["failed"]) == ("x25519", 12, 0), row
        assert row["per_second"] > 0
        assert 0.05 < row["responder_cpu_ms"] < 100
        assert 0.05 < row["initiator_cpu_ms"] < 100
    assert set(answer["ratios"]) == {"cpu/psk", "cpu/rsa-2048", "rate/psk", "rate/rsa-2048"}
    orders = [(run["auth"], run["run"], run["responder"]) for run in answer["runs"]]
    assert orders[:4] == [
        ("psk", 1, "ikd"),
        ("psk", 1, "strongswan"),
        ("psk", 2, "strongswan"),
        ("psk", 2, "ikd"),
    ]
    assert "% within function" in (place / "profile-rsa-2048.log").read_text()
    assert not namespaces(bench.pid)


def test_authip_beside_our_certificates() -> None:
    """Nobody could tell what AuthIP costs, or a gap would look as if strongSwan had been asked."""
    auths = ("ecdsa-p256", "authip-kerberos", "authip-certificate")
    bench = start("ike", "--json", "--count", "6", "--runs", "1", "--auth", ",".join(auths))
    output, told = bench.communicate(timeout=100)
    assert bench.returncode == 0, told
    answer: dict[str, Any] = json.loads(output)
    rows = {(row["auth"], row["responder"]): row for row in answer["rows"]}
    assert list(rows) == [(auth, responder) for auth in auths for responder in ("ikd", "strongswan")]
    for auth in auths[1:]:
        row = rows[auth, "ikd"]
        assert (row["group"], row["established"], row["failed"]) == ("p256", 6, 0), row
        assert rows[auth, "strongswan"]["missing"] == "strongSwan does not speak AuthIP"
    measured = [row for row in rows.values() if "missing" not in row]
    assert len(measured) == 4
    assert all(0.2 < row["complete_ms"] < 5000 for row in measured)
    ratios = {"complete/authip-kerberos", "complete/authip-certificate", "cpu/ecdsa-p256", "rate/ecdsa-p256"}
    assert set(answer["ratios"]) == ratios
    assert not namespaces(bench.pid)


def test_a_flood_beside_a_peer() -> None:
    """A figure for a flood that does not arrive, or that a rule of ours for tests lets through, is none."""
    bench = start("flood", "--json", "--initiations", "6000", "--rate", "4000", "--runs", "1")
    output, told = bench.communicate(timeout=100)
    assert bench.returncode == 0, told
    answer: dict[str, Any] = json.loads(output)
    assert set(answer) == {"machine", "rows", "ratios", "resident_before", "runs"}
    quiet, flooded = answer["rows"]
    assert flooded["initiations"] == 6000
    assert flooded["half_open"] == 200  # from where on strangers have to return a cookie
    assert flooded["resident"] < answer["resident_before"] + (32 << 20)
    assert all(one["rekeys_s"] > 1 and one["packets_s"] > 500 for one in (quiet, flooded))
    assert not namespaces(bench.pid)


def test_data_planes_beside_each_other(place: Path) -> None:
    """A plane that carries nothing, loses packets or measures something else would decide about ours."""
    tests = ("tcp-1", "udp-512", "ike", "sas")
    bench = start(
        *("esp", "--json", "--seconds", "0.3", "--runs", "1"),
        *("--planes", "veth,python", "--tests", ",".join(tests), "--pairs", "1200"),
        files=place,
    )
    output, told = bench.communicate(timeout=100)
    assert bench.returncode == 0, told
    answer: dict[str, Any] = json.loads(output)
    assert set(answer) == {"machine", "rows", "ratios", "runs"}
    rows = {(row["plane"], row["test"]): row for row in answer["rows"]}
    planes = [(plane, test) for plane in ("veth", "python") for test in tests]
    assert list(rows) == [one for one in planes if one not in (("veth", "ike"), ("veth", "sas"))]
    assert not [row for row in rows.values() if "failed" in row or "missing" in row], told
    for plane in ("veth", "python"):
        assert rows[plane, "tcp-1"]["gbit_s"] > 0.005
        assert 0 < rows[plane, "tcp-1"]["latency_ms"]["p50"] <= rows[plane, "tcp-1"]["latency_ms"]["p99"]
        udp = rows[plane, "udp-512"]
        assert udp["packets_s"] > 500
        assert udp["lost"] == 0
        assert udp["gbit_s"] == pytest.approx(udp["packets_s"] * 484 * 8 / 1e9, rel=0.05)
    assert rows["veth", "tcp-1"]["cpu_s_per_gb"] is None
    assert {"left/ikd", "right/ikd"} <= set(rows["python", "tcp-1"]["cpu_s_per_gb_of"])
    assert rows["python", "tcp-1"]["cpu_s_per_gb"] > 0.1
    assert 0.2 < rows["python", "ike"]["ike_idle_ms"]["p50"] < 1000
    crowded = rows["python", "sas"]
    assert crowded["pairs"] == 1202
    assert 0.2 < crowded["many"]["packets_s"] / crowded["few"]["packets_s"] < 5
    assert not namespaces(bench.pid)
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (signal.SIGINT, ("ike", "--auth", "psk")),
        (signal.SIGTERM, ("ike", "--auth", "psk")),
        (signal.SIGINT, ("ike", "--auth", "authip-kerberos")),
        (signal.SIGINT, ("esp", "--planes", "strongswan")),
        (signal.SIGTERM, ("esp", "--planes", "python")),
    ],
)
def test_an_interrupt_leaves_nothing(place: Path, number: int, arguments: tuple[str, ...]) -> None:
    """Namespaces, daemons and keys would pile up on the machine of whoever loses patience."""
    bench = start(*arguments, "--seconds", "60", files=place)
    assert bench.stderr is not None
    deadline = time.monotonic() + 60
    # a party on each side, and a third: the other responder, the KDC, or traffic
    while len(running := processes(namespaces(bench.pid))) < 3:
        assert bench.poll() is None, bench.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    bench.send_signal(number)
    _, told = bench.communicate(timeout=40)
    assert bench.returncode == 130, told
    assert not namespaces(bench.pid)
    # a worker whose daemon ended before it had begun finds its channel closed when it has
    eventually(lambda: not [pid for pid in running if Path(f"/proc/{pid}").exists()], "an end of everything")
    assert not list(place.iterdir())
