"""Two daemons in this process, on two loopback addresses, with packet devices in memory: no root, no
kernel."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from support import alone

from ikd.control.client import Client
from ikd.control.host import DaemonHost
from ikd.control.service import ControlService
from ikd.daemon import Daemon
from ikd.events import Event
from ikd.loading import load
from ikd.plane import MemoryPlane
from offload.host.tun import MemoryTun

ADDRESSES = {"left": "127.0.0.1", "right": "127.0.0.2"}
INSIDE = {"left": "10.1.0.1", "right": "10.2.0.1"}
SECRET = "a-secret-of-the-tests-0123456789"

POLICY = """\
[[rule]]
name   = "net"
local  = "{local_net}"
remote = "{remote_net}"
tunnel = {{ local = "{local}", remote = "{remote}" }}
peer   = "{peer}"
{extra}
"""


def free_ports() -> tuple[int, int]:
    """Two ports that both addresses have free."""
    return alone.port(*ADDRESSES.values()), alone.port(*ADDRESSES.values())


def write(
    directory: Path,
    side: str,
    ports: tuple[int, int],
    *,
    secret: str = SECRET,
    extra: str = "",
    settings: str = "",
) -> Path:
    """The configuration directory of one side."""
    other = "right" if side == "left" else "left"
    home = directory / side
    home.mkdir()
    (home / "ikd.toml").write_text(
        f'[daemon]\nlisten = ["{ADDRESSES[side]}"]\nport = {ports[0]}\nnat_port = {ports[1]}\n'
        f'control = "{home}/c.sock"\nstate = "{home}"\n[dataplane]\nbackend = "memory"\n'
        f'[identity]\nid = "{side}.test"\n[log]\nlevel = "debug"\nformat = "text"\n{settings}'
    )
    nets = {one: f"{INSIDE[one]}/32" for one in INSIDE}
    (home / "policy.toml").write_text(
        POLICY.format(
            local_net=nets[side],
            remote_net=nets[other],
            local=ADDRESSES[side],
            remote=ADDRESSES[other],
            peer=f"{other}.test",
            extra=extra,
        )
    )
    secrets = home / "secrets.toml"
    secrets.write_text(f'[[psk]]\npeers = ["{other}.test"]\nsecret = "{secret}"\n')
    secrets.chmod(0o600)
    return home


@dataclass
class Running:
    """One daemon with what it said."""

    daemon: Daemon
    home: Path
    said: io.StringIO
    task: asyncio.Task[None]
    events: list[Event] = field(default_factory=list)

    @property
    def tun(self) -> MemoryTun:
        """Its device."""
        assert isinstance(self.daemon.plane, MemoryPlane)
        return self.daemon.plane.tun

    @property
    def host(self) -> DaemonHost:
        """What requests steer it by."""
        assert isinstance(self.daemon.control, ControlService)
        return self.daemon.control.host

    async def ask(self, do: str, **parameters: Any) -> Any:
        """A request over its socket."""
        return await asyncio.to_thread(self._ask, do, parameters)

    def _ask(self, do: str, parameters: dict[str, Any]) -> Any:
        with Client(self.home / "c.sock", 60) as client:
            return client.call(do, **parameters)

    def happened(self, kind: type[Event]) -> list[Any]:
        """Its events of a kind."""
        return [one for one in self.events if isinstance(one, kind)]

    async def stop(self) -> None:
        """End it in an orderly way."""
        self.daemon.stop("the test is over")
        await self.task


async def start(home: Path) -> Running:
    """Run a daemon from a directory, without signals; returns when it serves."""
    said = io.StringIO()
    daemon = Daemon(await load(home).resolved(), ControlService, said)
    ready = asyncio.Event()
    events: list[Event] = []
    daemon.publisher.listen(events.append)
    task = asyncio.create_task(daemon.run(signals=False, ready=ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        task.result()
    return Running(daemon, home, said, task, events)


@asynccontextmanager
async def pair(directory: Path, **left: Any) -> AsyncIterator[tuple[Running, Running]]:
    """Both sides running; `left` changes the left one's files."""
    ports = free_ports()
    homes = write(directory, "left", ports, **left), write(directory, "right", ports)
    sides = [await start(home) for home in homes]
    try:
        yield sides[0], sides[1]
    finally:
        for one in sides:
            await one.stop()


async def until(true: Callable[[], object | Awaitable[object]], seconds: float = 30) -> None:
    """Wait until it holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        value = true()
        if await value if isinstance(value, Awaitable) else value:
            return
        assert asyncio.get_running_loop().time() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


def datagram(source: str, destination: str, payload: bytes) -> bytes:
    """An IPv4 UDP packet; its checksum is left out, as UDP over IPv4 may."""
    udp = (4000).to_bytes(2, "big") + (5000).to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big")
    body = udp + bytes(2) + payload
    head = bytearray(bytes.fromhex("450000000000000040110000"))
    head += ip_address(source).packed + ip_address(destination).packed
    head[2:4] = (20 + len(body)).to_bytes(2, "big")
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(head) + body
