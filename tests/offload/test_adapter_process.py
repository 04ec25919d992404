"""The adapter's process as the daemon manages it: ports and what they may have outlive it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
from support import engines
from support.engines import GCM, association

from offload.channel import Decoder, framed
from offload.nic import management, requests
from offload.nic.management import Attach, Gone, Quota
from offload.nic.requests import Added, Answer, Refused
from offload.switch import adapters
from offload.switch.adapters import AdapterProcess, Plugged
from sadb.sa import Mode
from sadb.selector import Selector

pytestmark = engines.ONE_ENGINE


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def until(loop: asyncio.AbstractEventLoop, true: Callable[[], object], seconds: float = 10.0) -> None:
    async def wait() -> None:
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.01)

    loop.run_until_complete(wait())


def adds(control: socket.socket, count: int) -> list[str]:
    """Ask for so many SAs: what becomes of each."""
    ends = ("192.0.2.2", "192.0.2.1")
    for spi in range(1, count + 1):
        sa = association(GCM, spi, Mode.TRANSPORT, ends, Selector((), ()), True)
        control.sendall(framed(requests.add(spi, sa, None)))
    decoder, found = Decoder(Answer, 1 << 16), list[str]()
    control.settimeout(10)
    while len(found) < count:
        for one in decoder.feed(control.recv(1 << 16)):
            if isinstance(one, Added | Refused):
                found.append(one.reason if isinstance(one, Refused) else "added")
    return found


def test_the_next_adapter_knows_what_each_port_may_have(loop: asyncio.AbstractEventLoop) -> None:
    """One that dies and comes again without limits would let the first guest take the whole table."""
    process, got = AdapterProcess("82576", packet_mode=False, resend_lost=True), list[Plugged]()
    process.allow(Quota("vm", 250))
    process.open(loop)
    try:
        process.allow(Quota("other", 10, kept=(255,)))
        process.attach("vm", [], [], got.append)
        for number in (1, 2):
            until(loop, lambda: len(got) == number)  # noqa: B023 - waited for at once
            plugged = got[-1]
            with socket.socket(fileno=os.dup(plugged.control)) as control:
                assert adds(control, 3) == ["added", "slots_full", "slots_full"]
            plugged.close()
            if number == 1:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
    finally:
        process.close()


@pytest.mark.parametrize("meanwhile", ["", "detached", "attached anew"])
def test_a_port_that_fell_off_is_attached_again(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Else whatever broke once would keep a host's own SAs in software until a restart. Not where nobody
    wants it any more, or another start has been made."""
    monkeypatch.setattr(adapters, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(AdapterProcess, "_start", lambda self: None)
    process, got = AdapterProcess("82576", packet_mode=False, resend_lost=True), list[Plugged]()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process.open(loop)
        process._manager, process._process = ours, object()  # type: ignore[assignment]
        process.attach("host", [], [], got.append)
        theirs.send(management.encode(Gone("host")))
        process._hear()
        if meanwhile:
            process.detach("host")
        if meanwhile == "attached anew":
            process.attach("host", [], [], got.append)
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        process._process = None
        process.close()
        theirs.setblocking(False)
        commands = []
        for _ in range(len(got) + bool(meanwhile)):
            data, filenos, _, _ = socket.recv_fds(theirs, 4096, 10)
            commands.append(management.command_of(data))
            for one in filenos:
                os.close(one)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        for plugged in got:
            plugged.close()
    assert len(got) == {"": 2, "detached": 1, "attached anew": 2}[meanwhile]
    assert sum(isinstance(one, Attach) for one in commands) == len(got)
