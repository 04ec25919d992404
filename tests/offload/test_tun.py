"""The packet device in memory, and what is said when there is no real one."""

from __future__ import annotations

import asyncio
import select

import pytest

from offload.host.tun import QUEUE, MemoryTun, Tun
from sadb.backend import Unavailable


def readable(tun: MemoryTun) -> bool:
    return bool(select.select([tun], [], [], 0)[0])


def test_what_is_injected_is_read_in_batches() -> None:
    """The event loop must hear of a packet, and must not be woken when nothing is left."""
    tun = MemoryTun()
    assert not readable(tun)
    for n in range(5):
        assert tun.inject(bytes((n,)))
    assert readable(tun)
    assert tun.read_batch(3) == [b"\0", b"\1", b"\2"]
    assert readable(tun)
    assert tun.read_batch(3) == [b"\3", b"\4"]
    assert not readable(tun)
    assert tun.read_batch(3) == []
    tun.close()
    tun.close()


async def test_what_is_written_can_be_awaited() -> None:
    """Tests wait for a packet instead of sleeping."""
    tun = MemoryTun()
    waiting = asyncio.create_task(tun.next())
    await asyncio.sleep(0)
    assert tun.write_batch([b"one", b"two"]) == 2
    assert await waiting == b"one"
    assert await tun.next() == b"two"
    tun.close()


def test_queues_have_an_end() -> None:
    """A sender that is not read must not take all memory."""
    tun = MemoryTun()
    assert tun.write_batch([b"x"] * (QUEUE + 5)) == QUEUE
    assert sum(tun.inject(b"x") for _ in range(QUEUE + 5)) == QUEUE
    tun.close()


@pytest.mark.parametrize("name", ["", "a b", 'x"y', "ikd*", "waytoolongforadevice", "../x", "ikd\n0"])
def test_impossible_names_are_refused(name: str) -> None:
    """The name stands in the text of the packet filter, where '*' and quotes mean something."""
    with pytest.raises(Unavailable, match="name"):
        Tun(name)


def test_missing_device_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers seldom have it, and the message must say what to do."""
    monkeypatch.setattr("offload.host.tun._DEVICE", "/nonexistent/tun")
    with pytest.raises(Unavailable, match="modprobe tun"):
        Tun("ikd9")
