"""ikd.bench.traffic over loopback: what it says went through did, and what did not is missing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
from support.daemon import ROOT

from ikd.bench import traffic
from ikd.bench.esp import WINDOWS
from ikd.bench.traffic import Order

HOME = "127.0.0.1"


@contextmanager
def job(order: Order) -> Iterator[subprocess.Popen[str]]:
    """A process that does one order."""
    command = [sys.executable, "-m", "ikd.bench.traffic", json.dumps(asdict(order))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as made:
        yield made
        assert made.stdin
        made.stdin.close()  # as when the bench is gone
        made.wait(60)


def hear(made: subprocess.Popen[str]) -> dict[str, Any]:
    """Its next line."""
    assert made.stdout
    found: dict[str, Any] = json.loads(made.stdout.readline())
    return found


@pytest.mark.parametrize("window", WINDOWS)
def test_datagrams_are_counted_at_both_ends(window: int) -> None:
    """A loop that stalls with a small window, or counts the warm-up, would tell of something else."""
    whole = Order("receive-udp", HOME, size=512, window=window, warm_up=0.1, seconds=0.2)
    with job(whole) as receiver:
        order = Order("send-udp", HOME, HOME, hear(receiver)["port"], 1, 512, window, 0.1, 0.2)
        with job(order) as sender:
            assert hear(receiver) == {"began": True}
            result = hear(receiver)
            sent = hear(sender)["sent"]
            assert hear(receiver)["received"] == sent
    assert 0.2 <= result["seconds"] < 5
    assert 1000 < result["packets"] < sent  # one stall after the other makes some hundred


def test_lost_datagrams_are_missing_and_do_not_stop_the_sender() -> None:
    """A loop that waits for credit for what was lost would measure its own waiting, or for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((HOME, 0))
        order = Order("send-udp", HOME, HOME, sink.getsockname()[1], 1, 64, 32, 0.0, 0.2)
        with job(order) as sender:
            sent = hear(sender)["sent"]
    stalls = (order.seconds + traffic.TAIL) / traffic.STALL
    assert 2 * order.window <= sent <= (stalls + 2) * order.window


def test_streams_are_counted_in_the_measured_time() -> None:
    """Octets of the warm-up in a rate would make every plane faster."""
    with job(Order("receive-tcp", HOME, streams=4, warm_up=0.1, seconds=0.2)) as receiver:
        order = Order("send-tcp", HOME, HOME, hear(receiver)["port"], 4)
        with job(order):
            assert hear(receiver) == {"began": True}
            result = hear(receiver)
    assert 0.2 <= result["seconds"] < 5
    assert result["octets"] > 1 << 20


def test_to_and_fro() -> None:
    """Latency comes of answers to the packet that was sent, one at a time."""
    with (
        job(Order("echo", HOME)) as echo,
        job(Order("ping", HOME, HOME, hear(echo)["port"], seconds=0.2)) as ping,
    ):
        answer = hear(ping)
    assert answer["lost"] == 0
    assert 5 < len(answer["times"]) <= 200
    assert 0 < min(answer["times"]) < 100


def test_an_error_is_told() -> None:
    """A sender that ends without a word leaves the bench with nothing to say."""
    with job(Order("echo", "192.0.2.77")) as made:
        assert "echo: Cannot assign" in hear(made)["error"]
        made.wait(60)
        assert made.returncode == 1
