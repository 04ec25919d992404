"""The processes that carry packets die, hang, are more than one, or are the ones in Python: a network between
two daemons must not notice, but for a moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support import lab
from support.capture import Capture
from support.daemon import Ikd
from support.lab import Lab
from support.scenario import Twins, eventually, tunnel_policy, twins

from offload.workers.pool import FIRST_PAUSE

pytestmark = pytest.mark.interop

DATA = bytes(range(256)) * 4096
SIDES = (lab.INSIDE_LEFT, lab.INSIDE_RIGHT)


def children(daemon: Ikd) -> list[int]:
    """The workers of a daemon."""
    return [int(one) for one in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()]


def tunnel(hosts: Lab, place: Path, **dataplane: object) -> Twins:
    """Two daemons with a tunnel between their networks."""
    left = tunnel_policy(lab.LEFT, lab.RIGHT, peer="right.lab")
    right = tunnel_policy(
        lab.RIGHT, lab.LEFT, local_net=lab.NET_RIGHT, remote_net=lab.NET_LEFT, peer="left.lab"
    )
    return twins(hosts, place, left, right, settings={"dataplane": dataplane})


def check(both: Twins) -> None:
    """A megabyte there and back."""
    near, far = SIDES
    assert lab.tcp(both.lab.left, both.lab.right, far, DATA, near) == DATA


@pytest.mark.parametrize("engine", ["native", "python"])
def test_dead_worker_is_replaced_and_all_pairs_with_it(hosts: Lab, place: Path, engine: str) -> None:
    """If numbers of an SA were used again after a crash, or packets left in the clear meanwhile, this is
    where it would show: the pair must be another one, and the wire must have shown ESP and IKE alone."""
    with tunnel(hosts, place, engine=engine) as both:
        check(both)
        before = {one["spi_out"] for one in both.left.quick()}
        (worker,) = children(both.left)
        with Capture(hosts.right, "e0", place / "wire.pcap") as wire:
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: children(both.left) not in ([], [worker]), "another worker")
            eventually(lambda: {one["spi_out"] for one in both.left.quick()}.isdisjoint(before), "new pairs")
            check(both)
        assert not wire.holds(DATA[:256])
        assert "started again" in both.left.log()


def new_pairs(both: Twins, old: set[str]) -> set[str]:
    """Outbound SPIs on the left when none of the old ones is left."""

    def found() -> set[str]:
        return {one["spi_out"] for one in both.left.quick()}

    eventually(lambda: found() and found().isdisjoint(old), "new pairs alone")
    return found()


def numbers(wire: Capture) -> list[bytes]:
    """SPI and sequence number of each ESP packet over IPv4."""
    return [frame[34:42] for frame in wire.frames() if frame[12:14] == b"\x08\0" and frame[23] == 50]


def test_worker_that_dies_again_and_again(hosts: Lab, place: Path) -> None:
    """A packet that kills workers must not become a busy loop of starting them; and however often they die,
    no number is used twice, nothing is readable on the wire, and connections go on."""
    drop = b"marker-in-clear-text"
    near, far = SIDES
    with tunnel(hosts, place, engine="native") as both:
        check(both)
        seen = {one["spi_out"] for one in both.left.quick()}
        pauses = []
        with (
            Capture(hosts.right, "e0", place / "wire.pcap") as wire,
            lab.dripping(hosts.left, hosts.right, far, drop, near),
        ):
            for _ in range(4):
                (worker,) = children(both.left)
                began = time.monotonic()
                os.kill(worker, signal.SIGKILL)
                while children(both.left) in ([], [worker]):
                    time.sleep(0.01)
                pauses.append(time.monotonic() - began)
                seen |= new_pairs(both, seen)
            check(both)
    assert all(pause >= FIRST_PAUSE * 2**n for n, pause in enumerate(pauses)), pauses
    assert not wire.holds(drop)
    used = numbers(wire)
    assert len(used) == len(set(used)) > 500


# The daemon, less patient than it is: the time a worker may be silent is nobody's setting.
IMPATIENT = """
import offload.workers.pool as workers
workers.SILENT_SECONDS, workers.ALIVE_SECONDS = 4.0, 0.5
from ikd.__main__ import main
main()
"""


def test_worker_that_hangs_is_replaced(hosts: Lab, place: Path) -> None:
    """A worker that lives and does nothing holds the packets of everybody: it must be ended, though not
    before its time."""
    near, far = SIDES
    both = tunnel(hosts, place, engine="native")
    both.left.program = sys.executable, "-c", IMPATIENT
    with both:
        check(both)
        (worker,) = children(both.left)
        with lab.dripping(hosts.left, hosts.right, far, b"drop", near):
            began = time.monotonic()
            os.kill(worker, signal.SIGSTOP)
            eventually(lambda: children(both.left) not in ([], [worker]), "another worker")
            assert time.monotonic() - began > 1.5  # 4 s after its last sign of life, which it gives every 2 s
        check(both)
        assert "started again" in both.left.log()
        assert "SIGKILL" in both.left.log()


def test_two_workers_share_the_work(hosts: Lab, place: Path) -> None:
    """Sequence numbers and windows are shared between workers: what one sent must not look replayed to the
    peer, whichever of its workers gets it."""
    with tunnel(hosts, place, engine="native", workers=2) as both:
        assert len(children(both.left)) == len(children(both.right)) == 2
        for _ in range(8):  # as many flows, spread over the queues by their ports
            check(both)
        assert both.left.quick()[0]["packets_out"] > 1000
        # Asked one after the other while the last acknowledgements go out: equal once the wire is still.
        eventually(
            lambda: both.left.quick()[0]["packets_out"] == both.right.quick()[0]["packets_in"],
            "each packet sent to be taken",
        )
