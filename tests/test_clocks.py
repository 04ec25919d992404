"""The time of day jumps, and the host is suspended: lifetimes are counted on a clock that nobody sets and
that does not stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.loopback import INSIDE, Running, datagram, pair, until

from ikd.events import Broken, ChildClosed, IkeClosed, Resumed
from ikd.loop import Loop
from sadb import clock

PING = datagram(INSIDE["left"], INSIDE["right"], b"a packet")
DAY = 86_400.0


async def passes(left: Running, right: Running) -> None:
    """A packet gets through, if need be after a negotiation."""
    left.tun.inject(PING)
    assert await asyncio.wait_for(right.tun.next(), 30) == PING


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["ahead", "back"])
async def test_the_time_of_day_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """A wrong battery clock that NTP puts right by a day must neither end SAs nor let them live for ever: SAs
    stay, keys are replaced as before, and nothing is told that is not so."""
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    async with pair(tmp_path) as (left, right):
        await passes(left, right)
        before = (await left.ask("sa"))["quick"]
        offset[0] = jump
        await passes(left, right)
        after = (await left.ask("sa"))["quick"]
        assert [one["spi_in"] for one in after] == [one["spi_in"] for one in before]
        assert abs(after[0]["expires_in"] - before[0]["expires_in"]) < 60
        await left.ask("rekey", name="net")
        await passes(left, right)
        for side in (left, right):
            assert not side.happened(Broken)
            assert not side.happened(IkeClosed)
            assert not side.happened(Resumed)


@pytest.fixture
async def suspend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the loop's clock go on by so many seconds in which nothing runs."""
    loop = asyncio.get_running_loop()
    usual, slept = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: usual() + slept[0])

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    return sleep


async def test_a_night_in_suspend_ends_what_was_over(
    tmp_path: Path, suspend: Callable[[float], None]
) -> None:
    """Keys must not be in use for longer than policy says because a lid was closed; and the first packet
    afterwards must get through with new ones."""
    async with pair(tmp_path) as (left, right):
        await passes(left, right)
        (old,) = (await left.ask("sa"))["quick"]
        suspend(10 * 3600.0)
        await until(lambda: left.happened(Resumed) and right.happened(Resumed))
        assert left.happened(Resumed)[0].seconds == pytest.approx(36_000, abs=60)
        await until(lambda: left.happened(ChildClosed))
        assert left.happened(ChildClosed)[0].spi_in == old["spi_in"]
        await passes(left, right)
        assert old["spi_in"] not in {one["spi_in"] for one in (await left.ask("sa"))["quick"]}
        assert left.daemon.metrics.text().count('ikd_loop_lag_seconds_bucket{le="2.5"}') == 1
        assert not left.happened(Broken)


async def test_after_a_short_suspend_the_peer_is_asked_at_once(
    tmp_path: Path, suspend: Callable[[float], None]
) -> None:
    """What the peer has deleted meanwhile would else be sent into for half a minute more."""
    async with pair(tmp_path) as (left, right):
        await passes(left, right)
        right.daemon.driver.close()  # it is gone, without a word
        right.daemon.transport.close()
        suspend(120.0)
        (one,) = left.daemon.endpoint.associations.values()
        await until(lambda: one.waiting == "INFORMATIONAL response", 10)


def test_the_daemons_loop_counts_what_the_workers_count() -> None:
    """When an SA was used last is written by a worker and compared by the daemon."""

    async def now() -> float:
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=Loop) as runner:
        before = clock.now()
        assert before <= runner.run(now()) <= clock.now()
