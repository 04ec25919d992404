"""Shell. The process of a worker, as its daemon has it: started here, or left by the daemon before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from offload.channel import Answer, Decoder, Report
from offload.host.tun import Tun
from offload.workers.inheritance import LONGEST_ANSWER, kill, place_of
from offload.workers.line import Will
from offload.workers.shares import Share
from offload.workers.worker import Order


@dataclass(frozen=True, slots=True)
class Kind:
    """What all workers of a daemon are; with `adapter`, there is one, and it may be given an adapter."""

    engine: str  # "native" or "python"
    queue_packets: int
    queue_flows: int
    adapter: bool = False


@dataclass(frozen=True, slots=True)
class Bequest:
    """What makes workers outlive the daemon: its control socket, beside which they can be found, for how many
    seconds, the `circumstances` of `offload.channel.Handover`, and sockets to be kept for the next daemon."""

    control: Path
    seconds: float
    circumstances: dict[str, str]
    kept: Sequence[socket.socket]


@dataclass(slots=True, eq=False)
class Process:
    """One worker's process, a child of ours or not; its channel is written without waiting. When it was
    `heard` is monotonic time: in a suspended host nobody says anything."""

    pid: int
    pidfd: int
    channel: socket.socket
    began: float
    child: subprocess.Popen[bytes] | None = None
    decoder: Decoder = field(default_factory=lambda: Decoder(Answer, LONGEST_ANSWER))
    waiting: bytearray = field(default_factory=bytearray)
    report: Report = field(default_factory=lambda: Report({}, 0))
    plugs: socket.socket | None = None
    heard: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """End it at once."""
        kill(self.pidfd)

    def status(self) -> str:
        """How it ended, once it has."""
        if self.child is None:
            return "unknown"  # its status is for whom the system gave it to
        status = self.child.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def release(self) -> None:
        """Let go of it."""
        self.channel.close()
        if self.plugs is not None:
            self.plugs.close()
        os.close(self.pidfd)


def spawn(
    kind: Kind,
    number: int,
    shares: Sequence[Share],
    tun: Tun,
    ledger: int,
    bequest: Bequest | None,
    now: float,
) -> Process:
    """Start the worker that has one of all shares; raises `OSError`."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    plugs, their_plugs = _plugs() if kind.adapter else (None, None)
    listener, will = _will(bequest, number, len(shares)) if bequest is not None else (None, None)
    share, queue = shares[number], tun.queues[number].fileno()
    raw = tuple(one.fileno() for one in share.raw)
    natt = tuple(one.fileno() for one in share.natt)
    hints = tuple(one.fileno() for one in share.hints)
    order = Order(
        kind.engine,
        theirs.fileno(),
        ledger,
        queue,
        tun.segments_udp,
        raw,
        natt,
        hints,
        kind.queue_packets,
        kind.queue_flows,
        their_plugs.fileno() if their_plugs is not None else -1,
        will,
    )
    handed = [one for one in (theirs, their_plugs, listener) if one is not None]
    kept = will.kept if will is not None else ()
    with ExitStack() as stack:
        for one in handed:
            stack.enter_context(one)
        child = subprocess.Popen(
            [sys.executable, "-m", "offload.workers", msgspec.json.encode(order).decode()],
            stdin=subprocess.DEVNULL,
            pass_fds=(*(one.fileno() for one in handed), ledger, queue, *raw, *natt, *hints, *kept),
        )
    return Process(child.pid, os.pidfd_open(child.pid), ours, now, child, plugs=plugs)


def _plugs() -> tuple[socket.socket, socket.socket]:
    """Where adapters are given to a worker."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _will(bequest: Bequest, number: int, count: int) -> tuple[socket.socket, Will]:
    """How a worker may be found by another daemon; only its own user, and root, can."""
    place = place_of(bequest.control, number)
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listener.bind(str(place))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    kept = tuple(one.fileno() for one in bequest.kept) if number == 0 else ()
    will = Will(
        listener.fileno(),
        str(place),
        os.geteuid(),
        bequest.seconds,
        number,
        count,
        bequest.circumstances,
        kept,
    )
    return listener, will
