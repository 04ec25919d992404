"""ikd.bench.esp_report, planes, plot and usage: figures, rows and ratios of data planes, and
what both sides are configured with."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ikd.bench import esp_report, hosts, parties, planes, plot, render
from ikd.bench.esp_report import TESTS, Run
from ikd.bench.load import part
from ikd.bench.planes import ENDS, LEFT, PLANES, RIGHT
from ikd.bench.usage import descendants, spent, usage
from ikd.control.cli import run
from ikd.control.protocol import ControlError
from ikd.loading import load
from sadb.sa import Mode

MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "kernel": "6.1",
    "versions": {"ikd": "0.1.0", "python": "3.11"},
    "load_before": [0.1, 0.2, 0.3],
    "load_after": [1.0, 0.5, 0.4],
}
CIPHERS = {"veth": None, "native": "AES-128-GCM", "strongswan": "AES-128-GCM"}
OURS = ("native", "python")


def tcp(number: int, plane: str, gbit: float, cpu: float, test: str = "tcp-1") -> Run:
    """A second in which so much came through; `cpu` is that of the left side, the right takes as much."""
    used = {} if plane == "veth" else {"left/it": cpu, "right/it": cpu}
    figures = esp_report.throughput(round(gbit * 1e9 / 8), 1.0, used)
    figures["latency_ms"] = esp_report.latency([gbit, 2 * gbit, 100.0], lost=number)
    return Run(number, plane, test, figures)


def udp(number: int, plane: str, packets: int, lost: int, window: int, size: int = 64) -> Run:
    """A second with so many packets."""
    figures = esp_report.throughput(packets * (size - 28), 1.0, {}) | {
        "packets_s": packets,
        "lost": lost,
        "sent": packets + lost,
        "window": window,
    }
    return Run(number, plane, f"udp-{size}", figures)


RUNS = [
    tcp(1, "veth", 20.0, 0.0),
    tcp(1, "native", 2.0, 0.5),
    tcp(1, "strongswan", 0.5, 0.25),
    tcp(2, "strongswan", 0.25, 0.5),
    tcp(2, "native", 1.0, 0.25),
    tcp(3, "native", 3.0, 0.75),
    tcp(3, "strongswan", 0.25, 0.125),
]
CROWDED = Run(
    1,
    "native",
    "sas",
    {
        "pairs": 10_002,
        "few": {"gbit_s": 8.0, "packets_s": 1000},
        "many": {"gbit_s": 7.6, "packets_s": 1010},
    },
)
EXCHANGES = Run(1, "native", "ike", esp_report.exchanges([2.0, 3.0, 2.5], [4.0, 5.0, 6.0, 20.0]))


def rows(runs: list[Run], tests: tuple[str, ...] = ("tcp-1",), **more: Any) -> dict[Any, Any]:
    """By plane and test."""
    found = esp_report.rows(runs, CIPHERS, tests, OURS, more.get("missing", {}), more.get("failed", {}))
    return {(one["plane"], one["test"]): one for one in found}


# Figures -------------------------------------------------------------------------------------------------


def test_throughput_is_of_the_payload_and_cpu_of_both_sides() -> None:
    """Bits for octets, or the cost of one side only, would be believed."""
    figures = esp_report.throughput(250_000_000, 2.0, {"left/ikd": 1.0, "right/ikd": 0.5, "right/ikd.1": 2.0})
    assert figures["gbit_s"] == 1.0
    assert figures["cpu_s_per_gb"] == 14.0
    assert figures["cpu_s_per_gb_of"] == {"left/ikd": 4.0, "right/ikd": 2.0, "right/ikd.1": 8.0}


def test_what_has_no_process_has_no_processor_time() -> None:
    """Nothing is not free: zero would be divided by, and drawn."""
    assert esp_report.throughput(1000, 1.0, {})["cpu_s_per_gb"] is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_quantiles_are_values_that_were_measured(share: float, expected: int) -> None:
    """One too far, and the 99th percentile is the worst of all."""
    assert esp_report.quantile([float(one) for one in range(100, 0, -1)], share) == expected


def test_latency_of_nothing_is_none() -> None:
    """A plane that lets nothing through must not be the fastest."""
    assert esp_report.latency([], 3) is None
    assert esp_report.latency([1.0, 9.0], 3) == {"p50": 1.0, "p99": 9.0, "lost": 3}


def test_exchanges_in_time_are_counted_by_the_idle_median() -> None:
    """The promise is about the usual time of an exchange, not the slowest idle one."""
    assert EXCHANGES.figures == {
        "ike_idle_ms": {"p50": 2.5, "p95": 3.0},
        "ike_loaded_ms": {"p50": 5.0, "p95": 20.0},
        "within_2x": 0.5,
        "exchanges": 4,
    }


# Rows and ratios -----------------------------------------------------------------------------------------


def test_rows_have_medians_and_ciphers() -> None:
    """A mean that one bad run spoils, or a comparison that hides another cipher."""
    row = rows(RUNS)["native", "tcp-1"]
    assert (row["gbit_s"], row["cpu_s_per_gb"], row["cipher"]) == (2.0, 4.0, "AES-128-GCM")
    assert row["cpu_s_per_gb_of"] == {"left/it": 2.0, "right/it": 2.0}
    assert (row["latency_ms"]["p50"], row["latency_ms"]["p99"]) == (4.0, 100.0)
    assert rows(RUNS)["veth", "tcp-1"]["cipher"] is None


def test_losses_add_up_and_the_least_window_counts() -> None:
    """The median of 0, 0 and 500 lost packets is none."""
    several = [udp(1, "native", 90, 0, 256), udp(2, "native", 100, 0, 256), udp(3, "native", 80, 500, 32)]
    row = rows(several, ("udp-64",))["native", "udp-64"]
    assert (row["packets_s"], row["lost"], row["sent"], row["window"]) == (90, 500, 770, 32)
    assert row["latency_ms"] is None


def test_only_ours_have_a_row_for_ike() -> None:
    """An empty row for the others would look like a gap."""
    found = rows([EXCHANGES], ("tcp-1", "ike"))
    assert ("native", "ike") in found
    assert not [plane for plane, test in found if test == "ike" and plane not in OURS]


def test_what_is_missing_or_failed_has_a_row() -> None:
    """A silent gap would look like a plane that was not asked for; what was measured before stays."""
    failed = {("native", "tcp-1"): "run 3: it ended"}
    found = rows(RUNS, missing={"strongswan": "apt-get install it"}, failed=failed)
    assert found["strongswan", "tcp-1"] == {
        "plane": "strongswan",
        "test": "tcp-1",
        "missing": "apt-get install it",
    }
    assert found["native", "tcp-1"]["failed"] == "run 3: it ended"
    assert found["native", "tcp-1"]["gbit_s"] == 2.0


def test_ratios_are_taken_within_each_run() -> None:
    """The machine changes from run to run: dividing medians of different moments would compare those."""
    found = esp_report.ratios(RUNS)
    assert found["native/strongswan/tcp-1"] == {"median": 4.0, "min": 4.0, "max": 12.0}
    assert found["cpu/native/strongswan/tcp-1"] == {"median": 0.5, "min": 0.125, "max": 0.5}
    assert found["native/veth/tcp-1"] == {"median": 0.1, "min": 0.1, "max": 0.1}
    assert "veth/native/tcp-1" not in found


def test_ratios_of_ike() -> None:
    """They say whether IKE is served while packets pass."""
    found = esp_report.ratios([EXCHANGES])
    assert found["ike/native"]["median"] == 0.5
    assert found["ike_p95/native"]["median"] == 8.0


def test_ratios_of_many_pairs() -> None:
    """The wrong way round, what slows packets down would seem to speed them up."""
    found = esp_report.ratios([CROWDED])
    assert found["sas/native/gbit_s"]["median"] == 0.95
    assert found["sas/native/packets_s"]["median"] == 1.01


def test_ratios_stand_in_the_order_of_tests() -> None:
    """By letter, 1400 stands before 512, and processor time between throughput and throughput."""
    several = [udp(1, plane, 100, 0, 256, size) for plane in ("native", "strongswan") for size in (1400, 512)]
    for one in several:
        assert isinstance(one.figures, dict)
        one.figures["cpu_s_per_gb"] = 1.0
    assert list(esp_report.ratios([CROWDED, *several, *RUNS, EXCHANGES])) == [
        "native/strongswan/tcp-1",
        "native/strongswan/udp-512",
        "native/strongswan/udp-1400",
        "native/veth/tcp-1",
        "cpu/native/strongswan/tcp-1",
        "cpu/native/strongswan/udp-512",
        "cpu/native/strongswan/udp-1400",
        "ike/native",
        "ike_p95/native",
        "sas/native/gbit_s",
        "sas/native/packets_s",
    ]


def whole(runs: list[Run], **more: Any) -> dict[str, Any]:
    """The object."""
    return esp_report.esp(MACHINE, list(rows(runs, TESTS, **more).values()), runs)


def test_the_object_is_json_with_the_agreed_keys() -> None:
    """Whoever reads `--json` relies on these names."""
    answer = json.loads(json.dumps(whole(RUNS)))
    assert set(answer) == {"machine", "rows", "ratios", "runs"}
    agreed = {"plane", "test", "gbit_s", "packets_s", "lost", "cpu_s_per_gb", "latency_ms"}
    assert all(agreed <= set(row) for row in answer["rows"] if "gbit_s" in row)
    assert [(one["run"], one["plane"]) for one in answer["runs"]][:2] == [(1, "veth"), (1, "native")]


def test_people_see_every_figure_and_what_is_missing() -> None:
    """A table without the ratios, or one that fails on a missing plane, is of no use."""
    runs = [one for one in RUNS if one.plane != "strongswan"]
    runs += [udp(1, "native", 123456, 7, 64), EXCHANGES, CROWDED]
    failed = {("native", "udp-512"): "run 1: it ended\nits log"}
    out = Console(width=160, file=io.StringIO(), record=True)
    render.esp(out, whole(runs, missing={"strongswan": "pip install 'it[part]'"}, failed=failed))
    text = out.export_text()
    for wanted in (
        "a processor",
        "123,456",
        "10,002",
        "7.600",
        "2.000",
        "4.00 ms",
        "20.0 ms",
        "50%",
        "native/veth/tcp-1",
        "not measured: strongswan, tcp-1, tcp-4, udp-64, udp-512, udp-1400: pip install 'it[part]'",
        "failed: native, udp-512: run 1: it ended",
    ):
        assert wanted in text
    assert "its log" not in text


# The picture ---------------------------------------------------------------------------------------------


def test_without_matplotlib_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To learn it after minutes of measuring would be an annoyance."""
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["bench", "esp", "--plot", "it.png"]) == 1
    assert "pip install 'ikd[plot]'" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_picture_needs_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor may a typing mistake cost the figures."""
    monkeypatch.setattr(plot, "find_spec", lambda _: object())
    with pytest.raises(ControlError, match="no such directory"):
        plot.check(tmp_path / "nowhere" / "it.png")
    plot.check(tmp_path / "it.png")


@pytest.mark.parametrize("runs", [[*RUNS, udp(1, "native", 5000, 0, 256)], RUNS[:1], []])
def test_the_picture_is_drawn_of_what_there_is(tmp_path: Path, runs: list[Run]) -> None:
    """A plane that is missing, or all, must not lose the others' picture."""
    pytest.importorskip("matplotlib")
    plot.draw(whole(runs), tmp_path / "it.png")
    assert (tmp_path / "it.png").read_bytes()[:4] == b"\x89PNG"


# The parties ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", OURS)
def test_our_files_load_and_meet(tmp_path: Path, engine: str) -> None:
    """Rules that do not mirror each other, or another cipher, would measure nothing or something else."""
    loaded = []
    for side, other in ENDS:
        home = tmp_path / side.name
        home.mkdir()
        (home / "ikd.toml").write_text(planes.settings(side.id, str(home), engine))
        (home / "policy.toml").write_text(planes.policy(side, other))
        hosts.private(home / "secrets.toml", parties.secrets(other.id, "0123456789abcdef0123").encode())
        loaded.append(load(home))
    for name in (planes.RULE, planes.QUIET_RULE):
        ours, theirs = (one.policy.rule(name) for one in loaded)
        assert ours
        assert theirs
        assert (ours.selector.local, ours.selector.remote) == (theirs.selector.remote, theirs.selector.local)
        assert ours.mode is theirs.mode is Mode.TUNNEL
        assert ours.crypto == theirs.crypto
        assert ours.crypto
        assert [str(suite) for suite in ours.crypto.quick] == ["aes128gcm"]
    assert {one.settings.dataplane.mtu for one in loaded} == {planes.MTU}


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_every_pair_of_the_crowd_is_one_of_its_own(tmp_path: Path, side: planes.Side) -> None:
    """Pairs for the same addresses would replace each other, and few be measured as many."""
    (tmp_path / "ikd.toml").write_text(planes.settings(planes.CROWD_ID, str(tmp_path), "native"))
    (tmp_path / "policy.toml").write_text(planes.crowd_policy(side))
    hosts.private(tmp_path / "secrets.toml", parties.secrets(side.id, "0123456789abcdef0123").encode())
    rule = load(tmp_path).policy.rule(planes.CROWD_RULE)
    assert rule
    parts = {part(rule, number).selector.local for number in range(10_000)}
    assert len(parts) == 10_000
    whole = IPv4Network(planes.CROWD_NET)
    assert all(one.low == one.high and one.low in whole for (one,) in parts)


def test_strongswan_gets_the_same_cipher_and_networks() -> None:
    """Another cipher would be compared with ours as if it were the same."""
    text = planes.charon_connection(LEFT, RIGHT, "0123")
    assert "esp_proposals = aes128gcm16\n" in text
    assert f"local_ts = {LEFT.net}" in text
    assert f"remote_ts = {RIGHT.net}" in text
    assert text.count("{") == text.count("}")


def test_every_plane_of_the_agreement_is_there() -> None:
    """`plane` and `test` have these values."""
    assert list(PLANES) == ["veth", "native", "python", "strongswan", "wireguard-go"]
    assert [name for name, plane in PLANES.items() if plane.ours] == list(OURS)
    assert PLANES["wireguard-go"].cipher == "ChaCha20-Poly1305"
    assert TESTS == ("tcp-1", "tcp-4", "udp-64", "udp-512", "udp-1400", "ike", "sas")


def test_programs_that_are_not_there_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of `ip netns exec` names no package."""
    monkeypatch.setattr("shutil.which", lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(hosts, "strongswan_missing", lambda: True)
    assert {name: plane.missing() for name, plane in PLANES.items() if name != "veth"} == {
        "native": "build it: apt-get install gcc libssl-dev, then pip install again",
        "python": "apt-get install nftables",
        "strongswan": parties.INSTALL_CHARON,
        "wireguard-go": "apt-get install wireguard-go wireguard-tools",
    }
    assert PLANES["veth"].missing() == ""


# Processor time ------------------------------------------------------------------------------------------


def test_workers_count() -> None:
    """An engine that does its work in processes of its own would seem to cost nothing."""
    child = os.fork()
    if not child:
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass
        time.sleep(60)
    try:
        assert child in descendants(os.getpid())
        before = {"left/it": usage({"left/it": os.getpid()})["left/it"]}
        deadline = time.monotonic() + 60
        number = descendants(os.getpid()).index(child) + 1
        while usage({"left/it": os.getpid()})[f"left/it.{number}"] < 0.03:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        used = spent(before, usage({"left/it": os.getpid()}))
        assert used[f"left/it.{number}"] >= 0.03
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# The command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "known"), [("--planes", "wireguard-go"), ("--tests", "udp-1400")])
def test_unknown_names_are_told(option: str, known: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing mistake must not measure something else."""
    assert run(["bench", "esp", option, "tcp-2"]) == 1
    told = capsys.readouterr().err
    assert "tcp-2" in told
    assert known in told


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback of `ip` tells nobody to use sudo."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["bench", "esp"]) == 5
    assert "root" in capsys.readouterr().err
