"""What the daemon tells its workers, and when."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from support import engines

from offload import channel
from offload.outer import Arrived
from offload.workers import processes
from offload.workers.pool import SILENT_SECONDS, Workers
from offload.workers.processes import Kind, Process
from offload.workers.shares import Share
from offload.workers.worker import EARLY, EARLY_SECONDS, Early
from sadb.sa import SaPair, State, Usage

HERE = ip_address("192.0.2.1")


class Told(Workers):
    """Workers that only note what they are told."""

    def __init__(self) -> None:
        super().__init__(8, Kind("python", 32, 32))
        self.told: list[channel.Order] = []
        self._processes: list[Any] = ["a worker"]

    def _send(self, message: channel.Order, to: object = None) -> None:
        self.told.append(message)

    def take(self) -> list[channel.Order]:
        """What was told since the last time."""
        told, self.told = self.told, []
        return told


@pytest.fixture
def workers() -> Told:
    """Workers with room for a few pairs."""
    return Told()


@engines.ONE_ENGINE
async def test_a_suspended_host_is_not_a_silent_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the lid for longer than a worker may say nothing would have ended all of them when it is opened
    again, and every key with them."""
    loop, ended = asyncio.get_running_loop(), []
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(processes, "kill", ended.append)
    with ours, theirs:
        theirs.sendall(channel.encoded(channel.Report({}, 0)))
        workers = Told()
        workers._loop = loop
        workers._processes = [one := Process(os.getpid(), 77, ours, loop.time())]
        workers._hear(one)
        usual, monotonic = loop.time, time.monotonic
        monkeypatch.setattr(loop, "time", lambda: usual() + 3600.0)
        workers._watch_silence()
        assert not ended
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + SILENT_SECONDS + 1)
        workers._watch_silence()
        assert ended == [77]
        workers._loop = None


@engines.ONE_ENGINE
async def test_a_worker_that_cannot_be_made_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two would have read its queue for as long as an orphan waits, beside those of the next
    attempt, and dropped what it read."""
    done: list[str] = []

    def spawned(kind: Kind, number: int, *rest: object) -> Any:
        if number == 1:
            raise OSError(errno.EAGAIN, "no process")
        quiet = {"channel": socket.socket(), "pidfd": 78, "waiting": bytearray(), "child": None}
        told = {"kill": lambda: done.append("killed"), "release": lambda: done.append("released")}
        return SimpleNamespace(**quiet, **told, report=channel.Report({}, 0))

    monkeypatch.setattr("offload.workers.pool.spawn", spawned)
    monkeypatch.setattr("offload.workers.pool.ended", lambda pidfd, seconds: True)
    workers = Workers(8, Kind("python", 32, 32))
    tun: Any = SimpleNamespace(queues=[None, None], segments_udp=False)
    with pytest.raises(OSError, match="no process"):
        workers.open(asyncio.get_running_loop(), tun, [Share((), [], ()), Share((), [], ())])
    workers.close()
    assert "released" in done


def pair() -> SaPair:
    return engines.hosts(install=False)[0].pair


def test_new_pair_is_received_on_before_it_is_sent_on(workers: Told) -> None:
    """A held packet that overtook the last message of a negotiation was dropped by a peer who installs the
    pair when it reads that message (seen with strongSwan's IKEv1, and with users in AuthIP)."""
    new = pair()
    workers.install(new)
    (add,) = workers.take()
    assert isinstance(add, channel.Add)
    assert channel.pair_of(add).outbound.state is State.LARVAL
    workers.flush()
    assert workers.take() == [channel.Update(0, "mature", False, new.owner)]
    workers.flush()
    assert workers.take() == []


def test_slots_are_reused_when_workers_have_let_go(workers: Told) -> None:
    """A slot that another pair got too early would have had two keys count the same numbers."""
    first, second = pair(), pair()
    workers.install(first)
    workers.remove(first)
    workers.install(second)
    adds = [one.slot for one in workers.take() if isinstance(one, channel.Add)]
    assert adds == [0, 1]
    workers._answer("a worker", channel.Removed(0))  # type: ignore[arg-type]
    workers.install(third := pair())
    assert workers.usage(third)[0].octets == 0
    (add,) = (one for one in workers.take() if isinstance(one, channel.Add))
    assert add.slot == 0


def test_a_pair_knows_what_workers_have_counted(workers: Told) -> None:
    """Without it a busy Child SA met its idle limit, peers were asked whether they live while their packets
    came, and a pair that ended had carried nothing."""
    first, second = pair(), pair()
    for one in (first, second):
        workers.install(one)
    for octets, packets, last in ((700, 2, 3.0), (900, 3, 4.5)):
        workers._ledger.publish(0, True, octets, packets, last, packets)
        usage = first.inbound.usage
        assert (usage.octets, usage.packets, usage.last) == (octets, packets, last)
    workers._ledger.publish(1, False, 50, 1, 6.0, 1)
    assert first.outbound.usage.packets == second.inbound.usage.packets == 0
    workers.remove(first)
    assert first.inbound.usage == Usage(900, 3, 4.5)
    workers._processes = []
    workers._loop = asyncio.new_event_loop()
    workers._loop.close()
    workers.close()
    assert second.outbound.usage == Usage(50, 1, 6.0)


def test_packets_that_come_too_early_wait_for_their_pair() -> None:
    """A peer that is faster than our daemon would lose its first packets (seen with extended mode of AuthIP);
    a stranger's must make room for others, and be counted in the end."""
    early = Early()
    mine, other = (Arrived(50, HERE, HERE, spi.to_bytes(4, "big") + bytes(30)) for spi in (7000, 8000))
    assert early.keep(mine, 0.0) == []
    assert early.keep(other, 0.01) == []
    assert early.take(7000) == [mine]
    assert early.take(7000) == []
    assert early.deadline() == pytest.approx(0.01 + EARLY_SECONDS)
    assert early.expire(0.05) == []
    assert early.expire(0.2) == [other]
    flood = [early.keep(other, 1.0) for _ in range(EARLY + 3)]
    assert flood == [[]] * EARLY + [[other]] * 3


def test_pair_that_cannot_be_sent_on_releases_and_asks_for_nothing(engine: str) -> None:
    """Held packets must neither leave on a pair that the peer may not have, nor ask for another one."""
    left, _ = engines.hosts(install=False)
    packet = engines.between(4)
    left.engine.outbound([packet], 1.0)
    assert len(left.notices) == 1
    left.pair.outbound.state = State.LARVAL
    left.engine.install(left.pair)
    assert not left.engine.released(1.1)
    assert len(left.notices) == 1
    left.engine.outbound([packet], 6.5)
    assert len(left.notices) == 1, "it asked although a pair is there"
    left.pair.outbound.state = State.MATURE
    left.engine.update(left.pair)
    assert len(left.engine.released(6.6).wire) == 2


def test_pair_on_standby_is_not_used_while_another_one_is_about_to_be(engine: str) -> None:
    """After a rekey of IKEv1 the peer has dropped the old pair, and a packet sent on it would be lost."""
    left, right = engines.hosts()
    (first,) = left.engine.outbound([engines.between(4)], 1.0).wire
    assert right.engine.inbound(engines.arrived([first]), 1.0).local
    new = engines.another(left.pair, 3003)
    new.outbound.state = State.LARVAL
    left.engine.install(new)
    assert left.engine.outbound([engines.between(4)], 2.0).wire, (
        "the old one serves as long as it is no worse"
    )
    left.pair.standby = True
    left.engine.update(left.pair)
    assert not left.engine.outbound([engines.between(4)], 3.0)
    new.outbound.state = State.MATURE
    left.engine.update(new)
    (held,) = left.engine.released(3.01).wire
    assert engines.arrived([held])[0].spi == new.outbound.spi
    assert not left.notices
