"""`ikctl top`: frames of any size out of any answer, keys, and the program on a terminal with a daemon that
comes and goes."""

from __future__ import annotations

import asyncio
import copy
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from support.loopback import INSIDE, Running, datagram, pair, start, until

from ikd.control import render_top, top_views
from ikd.control.cli_top import _pressed
from ikd.control.client import Client
from ikd.control.protocol import ControlError
from ikd.control.render import decimal
from ikd.control.render_top import View, frame, share
from ikd.control.requests import MOST_ROWS
from ikd.events import Broken

PING = datagram(INSIDE["left"], INSIDE["right"], b"x" * 900)
IKCTL = (sys.executable, "-c", "from ikd.control.cli import main; main()")

PER_SECOND = {"octets_in": 1_250_000.0, "packets_in": 1200.0, "octets_out": 40.0, "packets_out": 0.5}
PEER = {
    "id": 7,
    "peer": "db.corp.example",
    "peer_address": "192.0.2.9",
    "rules": ["db"],
    "keying": "ikev2",
    "state": "established",
    "waiting": "",
    "authenticated_as": "certificate CN=db.corp.example",
    "user": "",
    "user_method": "",
    "user_proof": "",
    "groups": [],
    "health": False,
    "age": 7400.0,
    "octets_in": 1,
    "octets_out": 2,
    "quick": 1,
    "plane": "software",
    "reason": "",
    "per_second": PER_SECOND,
}
CHILD = {
    "spi_in": "c0000001",
    "spi_out": "c0000002",
    "rule": "db",
    "peer": "db.corp.example",
    "mode": "transport",
    "suite": "aes128gcm",
    "age": 50.0,
    "rekey_in": 3400.0,
    "plane": "nic",
    "per_second": PER_SECOND,
}
FAILURE = {
    "rule": "branch",
    "peer": "198.51.100.7",
    "identity": "",
    "initiator": True,
    "stage": "IKE_SA_INIT",
    "notify": "NO_PROPOSAL_CHOSEN",
    "reason": "the peer refused our proposal",
    "remedy": "ask the peer for x25519",
    "ago": 12.0,
    "first_ago": 60.0,
    "times": 3,
    "mended_ago": None,
}
ANSWER: dict[str, Any] = {
    "version": "0.1.0",
    "time": "2026-01-02T03:04:05.678Z",
    "up": 11520.0,
    "seconds": 1.0,
    "engine": "software engine (native)",
    "sort": "rate",
    "main": 1,
    "quick": 1,
    "half_open": 2,
    "held": 1,
    "per_second": PER_SECOND,
    "peers": [PEER],
    "sas": [CHILD],
    "offload": {
        "adapter": {
            "profile": "82576",
            "running": True,
            "enabled": True,
            "link": "up",
            "usage": 3,
            "capacity": 1024,
        },
        "software": [
            {
                "spi_in": "c0000009",
                "rule": "hr",
                "peer": "10.0.0.5",
                "octets_per_second": 5000,
                "why": {"inbound": {"reason": "table-full", "text": "the table is full of busier SAs"}},
            }
        ],
    },
    "failures": [FAILURE],
    "drops": [
        {"what": "packets", "reason": "replay", "total": 40, "per_second": 3.0},
        {"what": "datagrams", "reason": "malformed", "total": 9, "per_second": 0.0},
    ],
}
HOSTILE = "x\x1b]0;mine\x07\x1b[2J\r\n[red]\u202egpj.exe[/] [link=http://evil]a\\"


def drawn(answer: Any, width: int, height: int | None, view: View | None = None) -> list[str]:
    """The lines as texts."""
    return [line.plain for line in frame(answer, view or View(), width, height)]


def crowded(rows: int) -> Any:
    """An answer with so many peers, SAs and failures."""
    answer = copy.deepcopy(ANSWER) | {"main": rows, "quick": rows}
    for key in ("peers", "sas", "failures"):
        answer[key] = [answer[key][0] | {"rule": f"rule-{n}"} for n in range(rows)]
    return answer


# Frames --------------------------------------------------------------------------------------------------


def test_a_frame_says_what_goes_on() -> None:
    """Each part with the figures that people look for."""
    text = "\n".join(drawn(ANSWER, 160, None))
    for part in (
        "ikd 0.1.0 · up 3 h 12 min · software engine (native) · 1 IKE SA · 1 quick-mode SA · 2 half open",
        "in 10 Mbit/s, 1.2 k packets/s  out 320 bit/s",
        "db.corp.example",
        "certificate CN=db.corp.example",
        "2 h",
        "OFFLOAD  82576, up, 3 of 1024 slots",
        "inbound: the table is full of busier SAs",
        "the peer refused our proposal (IKE_SA_INIT, NO_PROPOSAL_CHOSEN, 3 times); ask the peer for x25519",
        "DROPPED  replay 3/s · malformed 9 in all",
    ):
        assert part in text, text


def test_rates_that_are_not_known_are_not_nought() -> None:
    """The first answer of a connection has no rate: a busy peer must not look idle."""
    answer = copy.deepcopy(ANSWER) | {"per_second": None, "seconds": None}
    answer["peers"][0] = PEER | {"per_second": None}
    answer["sas"] = []
    lines = drawn(answer, 120, None)
    assert lines[1] == "in -  out -"
    (row,) = [line for line in lines if line.startswith("db.corp")]
    assert row.split()[-5:] == ["-", "-", "-", "-", "software"]


@pytest.mark.parametrize("width", [20, 40, 80, 100, 132, 200])
@pytest.mark.parametrize("height", [1, 5, 10, 24, 50])
def test_any_size_is_kept_to(width: int, height: int) -> None:
    """A line too many scrolls the screen with every frame, one too wide wraps."""
    for answer in (ANSWER, crowded(300), ANSWER | {"peers": [], "sas": [], "offload": None, "drops": []}):
        lines = drawn(answer, width, height)
        assert len(lines) == height
        assert max(map(cell_len, lines)) <= width


def test_80_by_24_has_what_matters() -> None:
    """The usual terminal: names, both rates and each part must be there however much there is."""
    text = "\n".join(drawn(crowded(300), 80, 24))
    for part in ("PEER (300)", "IN bit/s", "OUT bit/s", "db.corp.example", "10 M", "QUICK MODE (300)"):
        assert part in text, text
    for part in ("OFFLOAD", "FAILED", "the peer refused our", "DROPPED", "q quit"):
        assert part in text, text


def test_hostile_names_are_only_texts() -> None:
    """A peer's name would clear the screen, set the terminal's title, colour a line or turn its direction."""
    answer = copy.deepcopy(ANSWER)
    for entry in (
        answer["peers"][0],
        answer["sas"][0],
        answer["failures"][0],
        answer["offload"]["software"][0],
    ):
        for key, value in entry.items():
            if isinstance(value, str) and key not in ("stage", "notify"):
                entry[key] = HOSTILE
    answer["peers"][0]["rules"] = [HOSTILE]
    answer["drops"][0]["reason"] = HOSTILE
    view = View(trouble=HOSTILE)
    for line in frame(answer, view, 400, None):
        assert line.plain.isprintable(), line.plain
        assert not [span for span in line.spans if "red" in str(span.style)]
    assert "[red]" in "\n".join(line.plain for line in frame(answer, view, 400, None)), "shown as it is"


def test_trouble_is_in_the_frame_and_the_last_answer_stays() -> None:
    """A daemon that goes away must not look like one where nothing happens."""
    lines = drawn(ANSWER, 100, 24, View(trouble="no daemon for 3 s; trying again"))
    assert lines[1] == "no daemon for 3 s; trying again"
    assert "db.corp.example" in "\n".join(lines)


def test_lines_are_shared() -> None:
    """Hundreds of peers must not push out the failures."""
    assert share(10, [300, 300, 2]) == [4, 4, 2]
    assert share(2, [5, 5, 5]) == [1, 1, 0]
    assert share(-3, [5]) == [0]
    assert share(100, [5, 1]) == [5, 1]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.04, "0"),
        (0.52, "0.5"),
        (3, "3"),
        (999, "999"),
        (999.6, "1.0 k"),
        (9_949, "9.9 k"),
        (9_960, "10 k"),
        (3.2e15, "3200 T"),
    ],
)
def test_decimal(number: float, text: str) -> None:
    """A rounding must not print a thousand of something."""
    assert decimal(number) == text


# Keys ----------------------------------------------------------------------------------------------------


def test_keys() -> None:
    """What the bottom line promises."""
    view = View()
    assert [(view := view.pressed("s", 5)).sort for _ in range(3)] == ["age", "name", "rate"]
    assert view.pressed("p", 5).paused
    assert not view.pressed("p", 5).pressed("p", 5).paused
    assert view.pressed("page down", 5).pressed("down", 5).offset == 6
    assert view.pressed("up", 5).offset == 0
    assert view.pressed("none", 5) == view.pressed("\x1b", 5) == view


def test_keys_as_terminals_send_them() -> None:
    """Arrow keys in both modes of a terminal; an unknown sequence must not be taken for letters of which one
    is q."""
    assert _pressed(b"s\x1b[A\x1bOB\x1b[5~\x1b[6~") == ["s", "up", "down", "page up", "page down"]
    assert _pressed(b"\x1b[1;5q") == ["none"]
    assert _pressed(b"") == [""]
    assert _pressed(b"\xff") == ["\ufffd"]


def test_scrolling_ends_at_the_last_row() -> None:
    """An empty list would look as if everybody had gone."""
    answer = crowded(30)
    shown = drawn(answer, 120, 24, View(offset=500))
    assert "db.corp.example" in "\n".join(shown)


# The daemon's side ---------------------------------------------------------------------------------------


@pytest.fixture
async def sides(tmp_path: Path) -> AsyncIterator[tuple[Running, Running]]:
    """Both daemons with matching files."""
    async with pair(tmp_path) as both:
        yield both


async def test_rates_of_a_daemon_go_on_over_a_rekey(sides: tuple[Running, Running]) -> None:
    """What the command shows comes from the data plane's counters, through the socket."""
    left, right = sides
    with await asyncio.to_thread(Client, left.home / "c.sock", 30) as client:

        async def top(**wanted: Any) -> Any:
            return await asyncio.to_thread(client.call, "top", **wanted)

        async def sends(packets: int) -> None:
            for _ in range(packets):
                left.tun.inject(PING)
                await asyncio.wait_for(right.tun.next(), 30)

        await sends(1)
        first = await top()
        assert first["seconds"] is first["per_second"] is first["peers"][0]["per_second"] is None
        await sends(4)
        await left.ask("rekey", name="net")
        await sends(3)
        second = await top()
        octets = second["peers"][0]["per_second"]["octets_out"] * second["seconds"]
        assert octets == pytest.approx(7 * len(PING), rel=0.02)
        assert second["per_second"]["packets_out"] * second["seconds"] == pytest.approx(7, rel=0.1)
        assert second["peers"][0]["peer"] == "right.test"
        newest = min(second["sas"], key=lambda one: float(one["age"]))
        assert newest["per_second"]["octets_out"] * second["seconds"] == pytest.approx(
            3 * len(PING), rel=0.02
        )
        before = dict(left.daemon.plane.dropped())
        left.tun.inject(datagram(INSIDE["left"], "192.0.2.77", b"for nobody"))
        await until(lambda: left.daemon.plane.dropped() != before)
        third = await top(sort="name", limit=0)
        assert (third["peers"], third["sas"], third["main"]) == ([], [], second["main"])
        moving, *still = [one["per_second"] for one in third["drops"]]
        assert moving > 0 == sum(still)
        for line in frame(third, View(), 80, None):
            assert line.plain.isprintable()
        with pytest.raises(ControlError, match="sort is rate"):
            await top(sort="speed")
    await until(lambda: not left.host._readers)
    assert not left.happened(Broken)


async def test_meters_end_with_their_connection(sides: tuple[Running, Running]) -> None:
    """Whoever asks a thousand times and hangs up would slow down every look at the traffic for good."""
    left, _ = sides
    for _ in range(5):
        await left.ask("top")
    await until(lambda: not left.host._readers and not left.daemon.traffic._listeners)


async def test_nothing_is_counted_for_who_has_stopped_asking(
    sides: tuple[Running, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ikctl top` that was stopped with Ctrl-Z a month ago would hold every pair there has been since."""
    left, _ = sides
    silent = threading.Event()

    def asks() -> list[Any]:
        with Client(left.home / "c.sock", 20) as client:
            found = [client.call("top")["seconds"] for _ in range(2)]
            monkeypatch.setattr(top_views, "IDLE", 0.05)
            client.call("top")
            silent.wait(10)
            return [*found, client.call("top")["seconds"]]

    asking = asyncio.create_task(asyncio.to_thread(asks))
    await until(lambda: left.daemon.traffic._listeners)
    await until(lambda: not left.daemon.traffic._listeners)
    silent.set()
    first, second, later = await asking
    assert first is later is None
    assert second > 0


async def test_many_sas_are_one_line(sides: tuple[Running, Running]) -> None:
    """An answer that is too long for a line is none at all."""
    left, _ = sides
    await left.ask("up", name="net")
    answer = await left.ask("top", limit=10**9)
    row = len(json.dumps(answer["peers"][0])) + len(json.dumps(answer["sas"][0]))
    assert row * MOST_ROWS < 1 << 20


# On a terminal -------------------------------------------------------------------------------------------


class Screen:
    """`ikctl top` on a terminal of its own."""

    def __init__(self, socket: Path, *options: str, size: tuple[int, int] = (24, 80), **env: str) -> None:
        self.fd, other = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(other)
        self.other = other
        self.seen = ""
        self.process = subprocess.Popen(
            [*IKCTL, "--socket", str(socket), "top", "--interval", "0.1", *options],
            stdin=other,
            stdout=other,
            stderr=other,
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"}
            | env,
            start_new_session=True,
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, pattern: str, seconds: float = 60) -> str:
        """Wait until something new is shown; forget what was."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.seen, re.DOTALL):
            assert time.monotonic() < deadline, f"{pattern} is not in {self.seen[-3000:]!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
        seen, self.seen = self.seen, ""
        return seen

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def ended(self) -> int:
        """Its status, after all that it wrote; the terminal is as it was."""
        status = self.process.wait(60)
        while select.select([self.fd], [], [], 0.05)[0]:
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        assert "\x1b[?1049l" in self.seen, "the screen before is not back"
        assert "\x1b[?25h" in self.seen, "the cursor is still hidden"
        assert termios.tcgetattr(self.other) == self.before
        return status


@pytest.fixture
def screens() -> Iterator[list[Screen]]:
    """Terminals that a test opened."""
    opened: list[Screen] = []
    yield opened
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(5)
        os.close(one.fd)
        os.close(one.other)


async def test_on_a_terminal(sides: tuple[Running, Running], screens: list[Screen]) -> None:
    """The program from its first frame to its last: keys, another size, a daemon that goes and comes back."""
    left, _ = sides
    await left.ask("up", name="net")
    screen = Screen(left.home / "c.sock")
    screens.append(screen)
    seen = await asyncio.to_thread(screen.shows, r"right\.test.*quit")
    assert "\x1b[?1049h" in seen, "what was on the screen would be lost"
    screen.press("s")
    await asyncio.to_thread(screen.shows, "up 0 min|up 1? ?\\d+ s")
    screen.resize(40, 150)
    screen.process.send_signal(signal.SIGWINCH)
    await asyncio.to_thread(screen.shows, "AUTHENTICATED AS")
    screen.press("p")
    await asyncio.to_thread(screen.shows, "paused")
    screen.press("p")
    await left.stop()
    await asyncio.to_thread(screen.shows, "no daemon for .* trying again")
    again = await start(left.home)
    try:
        await asyncio.to_thread(screen.shows, "0 IKE SAs")
        screen.press("q")
        assert await asyncio.to_thread(screen.ended) == 0
    finally:
        await again.stop()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
async def test_signals_leave_the_terminal_as_it_was(
    sides: tuple[Running, Running], screens: list[Screen], number: int, status: int
) -> None:
    """A shell without echo, on the other screen, is what people remember of a tool."""
    left, _ = sides
    screen = Screen(left.home / "c.sock", NO_COLOR="1")
    screens.append(screen)
    seen = await asyncio.to_thread(screen.shows, "quit")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", seen), "colour in spite of NO_COLOR"
    screen.process.send_signal(number)
    assert await asyncio.to_thread(screen.ended) == status


async def test_without_a_terminal_one_frame(sides: tuple[Running, Running]) -> None:
    """In a script it would never end, or fill a file with escape sequences."""
    left, _ = sides
    await left.ask("up", name="net")

    def run(*words: str) -> str:
        command = [*IKCTL, "--socket", str(left.home / "c.sock"), "top", "--interval", "0.1", *words]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = await asyncio.to_thread(run)
    assert "right.test" in text
    assert "\x1b" not in text
    assert render_top.KEYS not in text
    sample = json.loads(await asyncio.to_thread(run, "--once", "--json", "--sort", "age"))
    assert sample["sort"] == "age"
    assert sample["peers"][0]["per_second"] == dict.fromkeys(PER_SECOND, 0.0)


def test_without_a_daemon(tmp_path: Path) -> None:
    """Status 2, and no screen that comes and goes."""
    done = subprocess.run(
        [*IKCTL, "--socket", str(tmp_path / "none"), "top"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no daemon answers" in done.stderr
