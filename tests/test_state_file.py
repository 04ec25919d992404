"""What outlives a run: counters and verdicts go on, in a file that no crash tears and no damage makes
fatal."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.loopback import (
    ADDRESSES,
    INSIDE,
    SECRET,
    Running,
    datagram,
    free_ports,
    pair,
    start,
    until,
    write,
)

from ikd import atomic
from ikd.events import Broken, Warned
from ikd.metrics import Metrics, Reading
from ikd.state_file import ASIDE, FILE, StateFile
from ikd.traffic import Traffic
from sadb.address import parse

PEER = parse(ADDRESSES["right"])
PING = datagram(INSIDE["left"], INSIDE["right"], b"a packet")


def counted(side: Running) -> dict[tuple[str, ...], float]:
    """Counters as Prometheus reads them, by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(side.daemon.metrics.text())
        for sample in family.samples
        if family.type == "counter" and sample.name.startswith("ikd_") and sample.name.endswith("_total")
    }


async def restarted(side: Running) -> Running:
    """Another run on the same files."""
    await side.stop()
    return await start(side.home)


async def test_counters_go_on(tmp_path: Path) -> None:
    """A rate over a restart would else be missing what was counted before it, and a total would lie."""
    async with pair(tmp_path) as (left, right):
        left.tun.inject(PING)
        assert await asyncio.wait_for(right.tun.next(), 30) == PING
        left.daemon.traffic.look(*left.daemon.database.pairs())
        before = counted(left)
        assert before["ikd_rule_octets_total", "out", "net"] == len(PING)
        again = await restarted(left)
        try:
            after = counted(again)
            assert {key: after.get(key, 0) for key in before if after.get(key, 0) < before[key]} == {}
            assert after["ikd_events_total", "started"] == 2
            again.tun.inject(PING)
            assert await asyncio.wait_for(right.tun.next(), 30) == PING
            assert counted(again)["ikd_peer_octets_total", "out", ADDRESSES["right"]] == 2 * len(PING)
            assert not again.happened(Broken)
        finally:
            await again.stop()
        text = (left.home / FILE).read_text()
        assert SECRET not in text
        assert (left.home / FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("jump", "low", "high"),
    [(0, 90, 100), (-86_400, 3590, 3600), (86_400, 0, 0)],
    ids=["steady", "back", "ahead"],
)
async def test_verdicts_are_kept_by_the_time_of_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: int, low: float, high: float
) -> None:
    """Without the verdict the first packet after a restart waits for a protocol the peer does not speak. A
    clock that was wrong in one of the runs must not make one that is believed for a day."""
    home = write(tmp_path, "left", free_ports())
    left = await start(home)
    now = left.daemon.loop.time()
    left.daemon.endpoint.recall([(PEER, "ikev1", 100.0), (PEER + 1, "ikev9", 100.0)], now)
    await left.stop()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    left = await start(home)
    try:
        found = left.daemon.endpoint.verdicts(left.daemon.loop.time())
        assert [(peer, module) for peer, module, _ in found] == ([(PEER, "ikev1")] if high else [])
        assert all(low <= seconds <= high for _, _, seconds in found)
    finally:
        await left.stop()


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"format": "another"}',
        b'{"version": 2}',
        b'{"counters": {"events": [[["x"], -1]]}}',
        b'{"counters": {"events": [[["x"], 1e999]]}}',
        b'{"traffic": {"rule": {"net": [1, 2]}}}',
        b'{"verdicts": [["nobody", "ikev1", 1]]}',
        b"[" * 100_000,
    ],
)
async def test_a_file_that_cannot_be_used_is_set_aside(tmp_path: Path, octets: bytes) -> None:
    """A disk that wrote nonsense, or a later version of ikd, must not keep this one from starting."""
    home = write(tmp_path, "left", free_ports())
    (home / FILE).write_bytes(octets)
    left = await start(home)
    try:
        (told,) = [one.warning for one in left.happened(Warned) if one.about == "state"]
        assert "cannot be used" in told
        assert (home / ASIDE).read_bytes() == octets
    finally:
        await left.stop()
    left = await start(home)
    await left.stop()
    assert not [one for one in left.happened(Warned) if one.about == "state"]


def told_by(directory: Path) -> tuple[StateFile, list[str]]:
    """A state file, and what is told of it."""
    told: list[str] = []
    return StateFile(directory, told.append), told


def test_no_directory_and_no_file(tmp_path: Path) -> None:
    """The first start makes both; what cannot be read is told and stays."""
    file, told = told_by(tmp_path / "var" / "ikd")
    assert file.read() is None
    assert not told
    assert (tmp_path / "var" / "ikd").stat().st_mode & 0o777 == 0o700
    file.path.mkdir()
    assert file.read() is None
    assert "cannot be read: Is a directory" in told[0]
    assert file.path.is_dir()


def test_a_full_disk_is_told_once_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a minute in the log of a host whose disk is full helps nobody; that it is over does."""
    file, told = told_by(tmp_path)
    file.note(file.write(b"{}"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            file.note(file.write(b"other"))
            assert "No space left" in file.trouble
    assert len(told) == 1
    assert file.path.read_bytes() == b"{}"
    assert os.listdir(tmp_path) == [FILE]
    file.note(file.write(b"new"))
    assert file.path.read_bytes() == b"new"
    assert "written again" in told[1]
    assert not file.trouble


def test_what_lies_where_the_new_file_is_made_is_not_followed(tmp_path: Path) -> None:
    """What a crash left must not stop us, nor a link lead us to another file."""
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / ".file.new").symlink_to(tmp_path / "other")
    atomic.replace(tmp_path / "file", b"new", 0o640)
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_system_that_cannot_sync_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is there all the same: to say that it is not would be wrong, every minute."""

    def sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", sync)
    atomic.replace(tmp_path / "file", b"new", 0o640)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_totals_of_earlier_runs_leave_room_for_new_names() -> None:
    """A table that a year ago was filled with peers of that time would count all others together for ever:
    those that were used last stay."""
    former = Traffic(lambda pair: pair, 4)  # type: ignore[arg-type,return-value]
    former.go_on({"peer": {f"192.0.2.{n}": [n, 0, 0, 0] for n in range(9)} | {"other": [7, 0, 0, 0]}})
    assert former.counted()["peer"] == {
        "192.0.2.7": [7, 0, 0, 0],
        "192.0.2.8": [8, 0, 0, 0],
        "other": [7, 0, 0, 0],
    }


def test_counters_that_are_asked_go_on_too() -> None:
    """What the data plane has dropped begins at 0 with every run of it, and a graph must not show that; a
    gauge and a total that is whole already are left alone."""
    dropped = [("replay", 3.0)]

    def readings() -> list[Reading]:
        return [
            *(Reading("dropped", "", n, (("reason", why),), counter=True) for why, n in dropped),
            Reading("rule_octets", "", 5, (("rule", "net"),), counter=True, whole=True),
            Reading("held", "", 1),
        ]

    first = Metrics(readings)
    first.go_on({"dropped": [(("replay",), 10.0), (("late",), 2.0)], "held": [((), 5.0)]})
    assert {
        'ikd_dropped_total{reason="replay"} 13.0',
        "ikd_held 1.0",
        'ikd_rule_octets_total{rule="net"} 5.0',
    } <= {*first.text().splitlines()}
    dropped[:] = [("late", 1.0)]  # one that has not come up yet in a run is not lost
    assert dict(first.counted()["dropped"]) == {("replay",): 10.0, ("late",): 3.0}
    assert "rule_octets" not in first.counted()


async def test_it_is_written_while_the_daemon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash must not cost more than the last minute."""
    monkeypatch.setattr("ikd.daemon.KEEP_EVERY", 0.05)
    home = write(tmp_path, "left", free_ports())
    left = await start(home)
    try:
        await until(lambda: (home / FILE).exists())
        first = (home / FILE).stat().st_ino
        await until(lambda: (home / FILE).stat().st_ino != first)
    finally:
        await left.stop()


async def test_the_last_state_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk the daemon is stopped while it writes: two writers at once would tear the file, or leave
    the older one."""
    written: list[str] = []
    replace = atomic.replace

    def slow(path: Path, octets: bytes, mode: int) -> None:
        written.append("begins")
        time.sleep(0.2)
        replace(path, octets, mode)
        written.append("ends")

    monkeypatch.setattr("ikd.daemon.KEEP_EVERY", 0.05)
    monkeypatch.setattr(atomic, "replace", slow)
    left = await start(write(tmp_path, "left", free_ports()))
    await until(lambda: written)
    await left.stop()
    assert written == ["begins", "ends"] * (len(written) // 2)
    assert len(written) >= 4
