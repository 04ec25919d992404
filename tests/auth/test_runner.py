"""ikd.auth.runner: threads, queue and time have limits, and the loop is never held up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support.kerberos import BETA, Kdc

from ikd.auth import Declined, Token
from ikd.auth.kerberos import KerberosAcceptor, KerberosInitiator
from ikd.auth.runner import Runner


class Gate:
    """Work that waits until it is let go, and knows how many do it at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()

    def work(self) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(20)
        with self._lock:
            self.inside -= 1
        return "done"


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """Let go at the end, whatever happens."""
    gate = Gate()
    yield gate
    gate.open.set()


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def test_results_and_exceptions_come_on_the_loop() -> None:
    """An answer on another thread would run the protocol core in two threads at once."""
    runner = Runner(asyncio.get_running_loop())
    here, seen = threading.get_ident(), []

    def note(value: object) -> None:
        seen.append((value, threading.get_ident()))

    error = Declined("no")

    def fail() -> object:
        raise error

    elsewhere: list[int] = []
    runner.run(lambda: elsewhere.append(threading.get_ident()) or 7, note)
    runner.run(fail, note)
    await until(lambda: len(seen) == 2)
    assert {(7, here), (error, here)} == set(seen)
    assert elsewhere != [here]
    assert runner.busy == 0
    runner.close()


async def test_threads_and_queue_are_bounded(gate: Gate) -> None:
    """A thousand negotiations against a dead KDC would be a thousand threads; then a queue without end."""
    runner = Runner(asyncio.get_running_loop(), threads=3, waiting=4)
    seen: list[object] = []
    for _ in range(7):
        runner.run(gate.work, seen.append)
    with pytest.raises(Declined, match="7 authentications wait for a KDC already") as caught:
        runner.run(gate.work, seen.append)
    assert "try again" in caught.value.remedy
    await until(lambda: gate.inside == 3)
    await asyncio.sleep(0.05)
    assert (gate.most, runner.busy, seen) == (3, 7, [])
    gate.open.set()
    await until(lambda: len(seen) == 7)
    assert gate.most == 3
    runner.run(lambda: "room again", seen.append)
    await until(lambda: len(seen) == 8)
    runner.close()


async def test_deadline_counts_and_a_late_answer_is_thrown_away(gate: Gate) -> None:
    """An exchange answered twice, or one that waits for ever."""
    runner = Runner(asyncio.get_running_loop(), threads=1, waiting=1, deadline=0.1)
    seen: list[object] = []
    ran: list[int] = []
    runner.run(gate.work, seen.append)
    runner.run(lambda: ran.append(1), seen.append)
    await until(lambda: len(seen) == 2)
    assert all(isinstance(one, Declined) for one in seen)
    assert str(seen[0]) == "the KDC does not answer within 0.1 s"
    # the thread is busy until the library returns: its slot is not given away
    assert runner.busy == 2
    with pytest.raises(Declined):
        runner.run(gate.work, seen.append)
    gate.open.set()
    await until(lambda: runner.busy == 0)
    assert len(seen) == 2
    assert ran == []  # nobody waited for it any more
    runner.close()


async def test_closing_answers_nobody(gate: Gate) -> None:
    """What comes after the end must not reach a core that is gone, nor hold up the process."""
    runner = Runner(asyncio.get_running_loop(), threads=1)
    seen: list[object] = []
    runner.run(gate.work, seen.append)
    await until(lambda: gate.inside == 1)
    thread = next(one for one in threading.enumerate() if one.name == "gss-1" and one.is_alive())
    assert thread.daemon
    runner.close()
    with pytest.raises(Declined):
        runner.run(gate.work, seen.append)
    gate.open.set()
    await until(lambda: not thread.is_alive())
    await asyncio.sleep(0.01)
    assert seen == []


async def test_kdc_that_says_nothing(kdc: Kdc) -> None:
    """A KDC behind a firewall: the library waits half a minute, the negotiation must not."""
    path = kdc.base / "silent.keytab"
    entry = "addent -password -p host/silent@SILENT.TEST -k 1 -e aes256-cts-hmac-sha1-96 -s salt\nsecret\n"
    kdc.run("ktutil", stdin=f"{entry}wkt {path}\nq\n")
    side = KerberosInitiator("host/other@SILENT.TEST", kdc.load(path), time.time)
    runner = Runner(asyncio.get_running_loop(), deadline=0.3)
    seen: list[object] = []
    lag = began = time.monotonic()
    longest = 0.0
    runner.run(lambda: side.step(None), seen.append)
    while not seen:
        await asyncio.sleep(0.01)
        now = time.monotonic()
        longest, lag = max(longest, now - lag), now
    assert time.monotonic() - began < 15
    assert longest < 5  # the loop went on
    assert isinstance(seen[0], Declined)
    assert str(seen[0]) == "the KDC does not answer within 0.3 s"
    assert "port 88" in seen[0].remedy
    runner.close()


async def test_many_authentications_at_once(kdc: Kdc) -> None:
    """Contexts, ticket cache and replay record are shared by the threads."""
    alpha, beta = kdc.load(kdc.base / "alpha.keytab"), kdc.load(kdc.base / "beta.keytab")
    runner = Runner(asyncio.get_running_loop())

    def whole() -> object:
        ours, peers = KerberosInitiator(BETA, alpha, time.time), KerberosAcceptor(beta, time.time)
        answer = peers.step(ours.step(None).token)
        assert isinstance(answer.token, Token)
        return bytes(ours.step(answer.token).key) == bytes(answer.key)

    seen: list[object] = []
    for _ in range(60):
        runner.run(whole, seen.append)
    await until(lambda: len(seen) == 60)
    assert seen == [True] * 60
    runner.close()
