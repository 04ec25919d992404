"""Shell. `ikctl top`: asks the daemon every so often and draws what it says, until a key ends it.

The questions are asked from a thread, so that keys are heard while a daemon does not answer. Whatever ends
the program, the terminal is left as it was found.
"""

from __future__ import annotations

import json
import os
import queue
import re
import select
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final, NoReturn, Self

import click
from rich.console import Console, Group
from rich.live import Live

from ikd.control import render, render_top
from ikd.control.cli import Context, with_json
from ikd.control.client import Client
from ikd.control.protocol import ControlError, Json
from ikd.control.render_top import View
from ikd.control.requests import MOST_ROWS, SORTS

PATIENCE: Final = 5.0  # seconds for an answer
SILENCE: Final = 2.0  # seconds without one that are worth a word
ROWS: Final = 20  # peers and SAs of a frame that no screen bounds
_KEYS: Final = {
    "A": "up",
    "B": "down",
    "5~": "page up",
    "6~": "page down",
    "H": "home",
    "1~": "home",
}
_SEQUENCE: Final = re.compile(r"\x1b[\[O]([0-9;]*[A-Za-z~])|(.)", re.DOTALL)
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


@click.command("top")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default=SORTS[0],
    show_default=True,
    help="The busiest first, the youngest first, or by name.",
)
@click.option("--once", is_flag=True, help="One frame, after one interval; so it is without a terminal.")
@with_json
def command(shared: Context, interval: float, sort: str, once: bool) -> None:
    """Peers, SAs, rates, offload and the last failures, live. With --json one sample.

    Keys: q ends it, s sorts otherwise, p pauses, arrows and page keys scroll. Rates of a peer go on when its
    keys are replaced."""
    out = Console(highlight=False)
    screen = sys.stdin.isatty() and sys.stdout.isatty() and not out.is_dumb_terminal
    with shared.client(PATIENCE) as client, suppress(KeyboardInterrupt):
        answer = client.call("top", sort=sort, limit=ROWS)
        if once or shared.as_json or not screen:
            time.sleep(interval)
            _once(shared, client.call("top", sort=sort, limit=ROWS))
        else:
            with _Asker(lambda: shared.client(PATIENCE), client) as asker:
                _live(asker, out, answer, View(sort), interval)


def _once(shared: Context, answer: Json) -> None:
    if shared.as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    out = render.console()
    for line in render_top.frame(answer, View(answer["sort"]), out.width, None):
        out.print(line)


# Live ----------------------------------------------------------------------------------------------------


def _live(asker: _Asker, out: Console, answer: Json, view: View, interval: float) -> None:
    """Draw until `q` or the end of the input."""
    screen = Live(console=out, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with _signals(asker.wake), _keys(sys.stdin.fileno()) as keys, screen as live:
        woken = asker.woken.fileno()
        due = time.monotonic() + interval
        while True:
            now = time.monotonic()
            if now >= due and not view.paused and asker.ask(view.sort, _rows(out, view)):
                due = now + interval
            answer = asker.news() or answer
            told = replace(view, trouble=asker.trouble(now))
            live.update(Group(*render_top.frame(answer, told, *out.size)), refresh=True)
            wait = interval if view.paused or asker.busy else max(0.0, due - time.monotonic())
            ready, _, _ = select.select([keys, woken], [], [], wait)
            if woken in ready:
                asker.woken.recv(4096)
            for key in _pressed(os.read(keys, 1024)) if keys in ready else ():
                if key in ("q", ""):
                    return
                before, view = view, _bounded(view.pressed(key, max(1, out.height // 3)), answer)
                if before.sort != view.sort or before.offset < view.offset:
                    due = now  # other rows than the daemon was asked for


def _rows(out: Console, view: View) -> int:
    """How many rows a screen can show, from its offset on."""
    return min(MOST_ROWS, view.offset + out.height)


def _bounded(view: View, answer: Json) -> View:
    """Not scrolled to beyond the last row."""
    most = max(0, min(MOST_ROWS, max(answer["main"], answer["quick"])) - 1)
    return replace(view, offset=min(view.offset, most))


def _pressed(data: bytes) -> list[str]:
    """Keys by name or as they are; an empty one is the end of the input."""
    if not data:
        return [""]
    found = _SEQUENCE.finditer(data.decode(errors="replace"))
    return [_KEYS.get(one[1], "none") if one[1] else one[2] for one in found]


@contextmanager
def _signals(wake: socket.socket) -> Iterator[None]:
    """A terminal of another size wakes a `select`; SIGTERM and SIGHUP end the program in an orderly way."""
    before = {number: signal.signal(number, _end) for number in _ENDS}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    former = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _keys(fileno: int) -> Iterator[int]:
    """The terminal gives each key at once and shows none; Ctrl-C still interrupts. Ctrl-Z does nothing: it
    would leave the shell on our screen."""
    before = termios.tcgetattr(fileno)
    mode = termios.tcgetattr(fileno)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    mode[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(fileno, termios.TCSADRAIN, mode)
    try:
        yield fileno
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(fileno, termios.TCSADRAIN, before)


class _Asker:
    """Asks from a thread, one question at a time, and connects anew after a failure. `woken` can be read when
    an answer is there, or whoever else wrote to `wake`."""

    def __init__(self, connect: Callable[[], Client], client: Client) -> None:
        self._connect = connect
        self._client: Client | None = client
        self._questions: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Json | ControlError] = queue.SimpleQueue()
        self._error: ControlError | None = None
        self._answered = time.monotonic()
        self.woken, self.wake = socket.socketpair()
        self.wake.setblocking(False)
        self.busy = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask no more, and do not wait for an answer."""
        self._questions.put(None)
        if self._client is not None:
            self._client.interrupt()
        self._thread.join(1)

    def ask(self, sort: str, limit: int) -> bool:
        """Ask, unless an answer is awaited; whether it was asked."""
        if self.busy:
            return False
        self.busy = True
        self._questions.put((sort, limit))
        return True

    def news(self) -> Json | None:
        """The answer that came since, if there is one."""
        try:
            came = self._answers.get_nowait()
        except queue.Empty:
            return None
        self.busy = False
        self._error = came if isinstance(came, ControlError) else None
        if self._error is not None:
            return None
        self._answered = time.monotonic()
        return came

    def trouble(self, now: float) -> str:
        """Why there is no newer answer; empty while all is well."""
        silent = now - self._answered
        if self._error is not None:
            return f"no daemon for {render.span(silent)}: {self._error.message}; trying again"
        return f"no answer for {render.span(silent)}" if self.busy and silent > SILENCE else ""

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            sort, limit = question
            try:
                self._client = self._client or self._connect()
                self._answers.put(self._client.call("top", sort=sort, limit=limit))
            except ControlError as error:
                if self._client is not None:
                    self._client.close()
                self._client = None
                self._answers.put(error)
            with suppress(OSError):  # full: it wakes already
                self.wake.send(b"\0")
