"""`ikctl bench offload`: what is received is what the tape has, and figures are those of the runs."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.require import require

from ikd.bench import offload, offload_plot, offload_report, render, tape
from ikd.bench.ends import ENGINE
from ikd.bench.hosts import Trouble
from ikd.bench.offload import ENVIRONMENTS, Pair, Plan
from ikd.bench.offload_report import DISABLED, OFFLOADED, SERIES, SIZES, SOFTWARE, THEN, TODAY, Run
from ikd.control.cli import run
from offload import vnet
from offload.software import SoftwareEngine

KEY = bytes(range(2 * tape.KEY))


def seeded(size: int, packets: int) -> list[tape.Batch]:
    return tape.tape(size, packets, KEY, random.Random(1).randbytes)


# The tape ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_tape_holds_whole_buffers_in_packets_that_fit(size: int) -> None:
    """Larger packets than a link carries, or octets that are not the application's, would be another test."""
    batches = seeded(size, 200)
    plain = [one for batch in batches for one in batch.plain]
    each = len(tape.segments(size))
    assert len(plain) >= 200
    assert len(plain) % each == 0
    assert sum(batch.octets for batch in batches) == len(plain) // each * size
    assert max(len(one.header) + len(one.data) for batch in batches for one in batch.sealed) <= 1500
    pushed = [bool(one[33] & 8) for one in plain]
    assert pushed == [number % each == each - 1 for number in range(len(plain))]


def test_a_tape_can_be_played_to_one_pair_after_the_other() -> None:
    """A second run whose packets are replays would measure how fast they are dropped."""
    batches = seeded(4096, 300)
    for _ in range(2):
        engine = SoftwareEngine(bytes)
        engine.install(tape.pair(KEY, host=True))
        opened = [one for batch in batches for one in engine.inbound(batch.sealed, 0.0).local]
        assert opened == [one for batch in batches for one in batch.plain]
        assert not any(engine.counters.values())


def test_what_is_put_together_ends_with_the_buffer() -> None:
    """Across buffers small ones would be as cheap as large ones."""
    for size, frames in ((64, 64), (1426, 64), (2852, 32), (16384, 6)):
        assert len(vnet.frames(seeded(size, 64)[0].plain)) == frames


# The processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["python", "native"])
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Host, with either engine, and adapter on whatever cores there are, with the mask."""
    cores = sorted(os.sched_getaffinity(0))
    ends = cores[-1], cores[0]
    require(request.param == "python" or ENGINE == "native", "the native loop")
    with Pair(ENVIRONMENTS[THEN], tmp_path_factory.mktemp("ends"), ends, request.param) as made:
        yield made


PLAN = Plan(seconds=5.0, link=10_000.0)


@pytest.mark.parametrize("series", SERIES)
def test_every_octet_of_the_tape_is_received(pair: Pair, series: str) -> None:
    """Octets that were counted and not delivered, or delivered and not those, would be cheap."""
    pair.make(4096, 200)
    done = pair.run(1, TODAY, series, 4096, PLAN)
    frames = list(_sunk(pair.sink))
    packets = [packet for frame in frames for packet in vnet.packets(frame)]
    # the warm-up is a batch, and is in the sink, too; three segments are a buffer of 4096 octets
    assert len(packets) == done.packets + 66
    text = [packet[tape.HEADERS :] for packet in packets]
    assert sum(map(len, text[66:])) == done.octets
    flat = [b"".join(text[at : at + 3]) for at in range(0, len(text), 3)]
    assert {len(one) for one in flat} == {4096}
    for number, packet in enumerate(packets):  # in order, and each with the text of its place
        buffer, place = divmod(number, 3)
        assert int.from_bytes(packet[24:28], "big") == buffer * 4096 + place * tape.MSS
    assert text[0][1 : 1 + 1000] == text[1][:1000]  # contents of neighbours are shifted by one octet
    assert (len(frames) == len(packets)) == (not series.endswith("segmented"))


def _sunk(sink: int) -> Iterator[bytes]:
    """Frames in the sink, up to what no frame is."""
    data = os.pread(sink, 1 << 20, 0)
    at = 0
    while data[at + vnet.HEADER : at + vnet.HEADER + 1] == b"\x45":
        size = int.from_bytes(data[at + vnet.HEADER + 2 : at + vnet.HEADER + 4], "big") + vnet.HEADER
        yield data[at : at + size]
        at += size
    os.ftruncate(sink, 0)
    os.ftruncate(sink, 1 << 20)


def test_processor_time_is_what_the_host_counts_itself(pair: Pair) -> None:
    """The two sources must agree, or one of them is of something else."""
    pair.make(1024, 12000)
    done = pair.run(1, TODAY, SOFTWARE, 1024, PLAN)
    assert done.host_cpu > 0.01
    assert done.host_cpu == pytest.approx(done.host_cpu_own, abs=0.01)
    assert done.adapter_cpu > 0.001
    assert done.host_cpu < done.seconds + 0.02


def test_the_link_limits(pair: Pair) -> None:
    """Without it small and large buffers would be compared at any rate."""
    pair.make(1426, 400)
    slow = replace(PLAN, link=40.0)
    done = pair.run(1, TODAY, DISABLED, 1426, slow)
    assert done.octets * 8 / done.seconds < 40e6 * 1.1


def test_the_mask_takes_effect(pair: Pair) -> None:
    """Without it 2008-like is today under another name; a library that ignores it has to be told of."""
    assert offload._masked(pair.gcm_us)
    assert not offload._masked({name: took / 100 for name, took in pair.gcm_us.items()})


@pytest.mark.long
def test_a_profile_that_cannot_be_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap without a word would be taken for an oversight."""
    monkeypatch.setattr(offload, "_masked", lambda times: False)
    answer = offload.measure(Plan((THEN,), sizes=(64,), runs=1), print)
    assert [(one["profile"], "OPENSSL_ia32cap" in one["missing"]) for one in answer["rows"]] == [(THEN, True)]
    assert answer["runs"] == []
    shares = {one["policy"]: one["to_first_come"] for one in answer["placement"]}
    assert list(shares) == ["FirstCome", "Ceiling", "Weighted"]
    assert shares["FirstCome"] == 1.0
    assert shares["Weighted"] >= 1.2
    assert {one["slots"] for one in answer["placement"]} == {256}


def test_an_octet_that_is_missing_is_no_measurement(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that are dropped are cheap."""
    pair.make(1426, 100)
    monkeypatch.setattr(pair, "_key", os.urandom(2 * tape.KEY).hex())  # the host cannot open them
    with pytest.raises(Trouble, match="but the host has"):
        pair.run(1, TODAY, SOFTWARE, 1426, PLAN)


# Figures -------------------------------------------------------------------------------------------------


def made(number: int, series: str, host: float, size: int = 16384, profile: str = THEN) -> Run:
    """A gigabyte in ten seconds."""
    return Run(number, profile, series, size, 10**9, 700_000, 10.0, host, 2 * host, host)


RUNS = [
    *(made(number, DISABLED, cost) for number, cost in enumerate((2.0, 4.0, 3.0), 1)),
    *(made(number, SOFTWARE, cost) for number, cost in enumerate((8.0, 8.0, 9.0), 1)),
    *(made(number, "offload", cost) for number, cost in enumerate((4.0, 4.0, 4.0), 1)),
    *(made(number, "offload-segmented", cost) for number, cost in enumerate((2.2, 4.4, 3.3), 1)),
    *(made(number, "disabled-segmented", cost) for number, cost in enumerate((1.0, 1.0, 1.0), 1)),
    made(1, DISABLED, 1.0, 64),
    made(1, SOFTWARE, 1.0, 64),
]
MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "kernel": "6.1",
    "versions": {"ikd": "1"},
    "load_before": [0.0],
    "load_after": [0.0],
    "aes_gcm_16k_us": {THEN: {"host": 50.0, "adapter": 51.0}},
}
PLACED = [
    {
        "policy": "FirstCome",
        "sas": 10_000,
        "slots": 256,
        "ports": 8,
        "offloaded_share": 0.04,
        "to_first_come": 1.0,
        "moves": 0,
        "most_slots": {"vm1": 256},
        "broken": 3,
    }
]


def whole(runs: list[Run]) -> Any:
    """The object, as it comes out of a file."""
    found = offload_report.offload(MACHINE, 300.0, "native", runs, {TODAY: "because"}, PLACED)
    return json.loads(json.dumps(found))


def test_rows_have_the_agreed_keys_and_medians() -> None:
    """Whoever reads `--json` relies on these names."""
    answer = whole(RUNS)
    assert set(answer) >= {"machine", "rows", "ratios", "runs"}
    row = answer["rows"][0]
    assert (row["profile"], row["series"], row["size"]) == (THEN, DISABLED, 16384)
    assert (row["mbit_s"], row["host_cpu_percent"]) == (800.0, 30.0)
    assert (row["host_cpu_s_per_gb"], row["adapter_cpu_s_per_gb"]) == (3.0, 6.0)
    assert row["host_cpu_s_per_gb_spread"] == [2.0, 4.0]
    assert answer["rows"][-1] == {"profile": TODAY, "missing": "because"}
    assert len(answer["runs"]) == len(RUNS)


def test_ratios_are_taken_within_runs() -> None:
    """Of medians they would compare different moments of the machine."""
    ratios = whole(RUNS)["ratios"]
    assert ratios[f"host_cpu/{THEN}/{SOFTWARE}/16384"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert ratios[f"host_cpu_coalesced/{THEN}/offload-segmented/16384"]["median"] == 3.3
    assert f"host_cpu/{THEN}/{DISABLED}/16384" not in ratios


def test_targets_say_which_offload_meets_them() -> None:
    """One that is met by a small buffer, or by the other kind of offload, is not met."""
    found = {
        (one["series"], one["relative_to"]): (one["met"], one["worst"]) for one in whole(RUNS)["targets"]
    }
    assert found == {
        (SOFTWARE, DISABLED): (True, 3.0),
        ("offload", DISABLED): (False, 1.333),
        ("offload-segmented", DISABLED): (True, 1.1),
        ("offload-segmented", "disabled-segmented"): (False, 3.3),
    }
    assert whole([one for one in RUNS if one.size == 64])["targets"] == []


def test_it_is_shown_and_drawn(tmp_path: Path) -> None:
    """A profile that is missing must not lose the other's picture."""
    pytest.importorskip("matplotlib")
    offload_plot.draw(whole(RUNS), tmp_path / "it.png")
    assert (tmp_path / "it.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "shown").open("w") as file:
        render.offload(Console(width=140, file=file), whole(RUNS))
    shown = (tmp_path / "shown").read_text()
    assert "not measured: today: because" in shown
    assert "engine of the host: native" in shown
    assert "offload-segmented: at most 1.3 times disabled in large buffers: met, 1.10" in shown


# The command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("--series", "hardware", SOFTWARE), ("--sizes", "0", "65535"), ("--sizes", "x", "65535")],
)
def test_what_cannot_be_measured_is_told(
    option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing mistake must not measure something else."""
    assert run(["bench", "offload", option, value]) == 1
    assert told in capsys.readouterr().err


def test_one_core_is_not_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On one core the adapter's work would stand in the host's way and not show."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert run(["bench", "offload"]) != 0
    assert "core" in capsys.readouterr().err


def test_the_series_of_the_agreement_are_there() -> None:
    """`profile`, `series` and `size` have these values."""
    assert set(SERIES) >= {"disabled", "software", "offload", "offload-segmented"}
    assert list(OFFLOADED) == ["offload", "offload-segmented"]
    assert (SIZES[0], SIZES[-2], SIZES[-1], len(SIZES)) == (64, 32768, 65535, 11)
    assert offload_report.PROFILES == ("today", "2008-like")
