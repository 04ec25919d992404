"""Shell. `make demo` where there is no root or no TUN: the same two daemons in this process, on loopback.

Their packet devices are in memory, so this program plays the applications itself. What it shows of the wire
is what both daemons hand to their UDP sockets: ESP goes in UDP here, since raw sockets need root.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from ikd.control.service import ControlService
from ikd.daemon import Daemon
from ikd.demo_steps import MARKER, DemoFailed, Seen, Steps, ikctl, judge, prepare
from ikd.loading import load
from ikd.plane import MemoryPlane

OUTSIDE: Final = {"left": "127.0.0.1", "right": "127.0.0.2"}
INSIDE: Final = {"left": "10.1.0.1", "right": "10.2.0.1"}
PACKETS: Final = 2000
BURST: Final = 50
PATIENCE: Final = 10.0

SETTINGS: Final = """\
[daemon]
listen   = ["{outside}"]
port     = {port}
nat_port = {nat_port}
control  = "{directory}/{side}.sock"
state    = "{directory}/{side}"

[dataplane]
backend  = "memory"

[identity]
id          = "{side}.example"
certificate = "pki/host.pem"
key         = "pki/host.key"
trust       = ["pki/ca.pem"]
"""
POLICY: Final = """\
# Loopback itself is never protected, so each host has a network behind it.

[[rule]]
name     = "{other}"
local    = "{inside}"
remote   = "{other_inside}"
tunnel   = {{ local = "{outside}", remote = "{other_outside}" }}
security = "require"
peer     = "{other}.example"
"""


def with_memory(steps: Steps, directory: Path) -> None:
    """Both daemons on loopback; raises `DemoFailed`."""
    homes = prepare(directory)
    ports = free_ports()
    for (side, home), other in zip(homes.items(), reversed(homes), strict=True):
        words = {
            "side": side,
            "other": other,
            "directory": directory,
            "port": ports[0],
            "nat_port": ports[1],
            "outside": OUTSIDE[side],
            "other_outside": OUTSIDE[other],
            "inside": INSIDE[side],
            "other_inside": INSIDE[other],
        }
        (home / "ikd.toml").write_text(SETTINGS.format(**words))
        (home / "policy.toml").write_text(POLICY.format(**words))
    asyncio.run(_run(steps, homes))


def free_ports() -> tuple[int, int]:
    """Two UDP ports that are free on both addresses."""
    found: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(found) < 2:
            first, second = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
            held += [first, second]
            first.bind((OUTSIDE["left"], 0))
            with suppress(OSError):
                second.bind((OUTSIDE["right"], first.getsockname()[1]))
                found.append(first.getsockname()[1])
    finally:
        for one in held:
            one.close()
    return found[0], found[1]


async def _run(steps: Steps, homes: dict[str, Path]) -> None:
    seen = Seen()
    async with AsyncExitStack() as stack:
        daemons = {side: await _start(stack, home, seen) for side, home in homes.items()}
        steps.done(
            "two hosts in memory, [b]left[/b] and [b]right[/b], a certificate for each, loopback between"
        )
        for home in homes.values():
            steps.policy(home)
        left, right = (_tun(daemon) for daemon in daemons.values())
        loop = asyncio.get_running_loop()
        began = loop.time()
        await _deliver(left, right, [packet(INSIDE["left"], INSIDE["right"], b"first")])
        steps.done(
            "the first packet waited for the negotiation and arrived after "
            f"[b]{(loop.time() - began) * 1000:.0f} ms[/b]"
        )
        data = packet(INSIDE["left"], INSIDE["right"], MARKER * 30)
        back = packet(INSIDE["right"], INSIDE["left"], MARKER * 30)
        began = loop.time()
        for _ in range(PACKETS // BURST):
            await _deliver(left, right, [data] * BURST)
            await _deliver(right, left, [back] * BURST)
        took = loop.time() - began
        steps.done(
            f"{2 * PACKETS:,} packets of {len(data)} octets, there and back: every one arrived as it was "
            f"sent, in {took:.1f} s"
        )
        judge(steps, seen, 2 * PACKETS * 30)
        for side, daemon in daemons.items():
            control = Path(daemon.settings.daemon.control)
            text = await asyncio.to_thread(ikctl, control, "status")
            steps.output(f"ikctl status      (on {side})", text)
        steps.console.print()
    steps.done("both daemons told each other goodbye; nothing is left")


async def _start(stack: AsyncExitStack, home: Path, seen: Seen) -> Daemon:
    """Run a daemon until the stack ends."""
    log = stack.enter_context((home / "log").open("w"))
    daemon = Daemon(await load(home).resolved(), ControlService, log)
    watch(daemon, seen)
    ready = asyncio.Event()
    running = asyncio.create_task(daemon.run(signals=False, ready=ready.set))

    async def end() -> None:
        daemon.stop("the demonstration is over")
        await asyncio.wait({running})

    stack.push_async_callback(end)
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE)
    waiting.cancel()
    if not ready.is_set():
        reason = running.exception() if running.done() else "it does not become ready"
        raise DemoFailed(f"ikd of {home.name} does not start: {reason}")
    return daemon


def watch(daemon: Daemon, seen: Seen) -> None:
    """Count what a daemon hands to its sockets."""

    def counting(kind: str, send: Callable[..., Any], octets: Callable[..., Sequence[bytes]]) -> Any:
        def sent(*arguments: Any) -> Any:
            for data in octets(*arguments):
                seen.kinds[kind] += 1
                seen.octets[kind] += len(data)
                seen.readable += MARKER in data
            return send(*arguments)

        return sent

    transport: Any = daemon.transport
    transport.send = counting("IKE", transport.send, lambda data, path: [data])
    transport.send_esp = counting(
        "ESP in UDP", transport.send_esp, lambda datagrams: [data for data, _ in datagrams]
    )


def _tun(daemon: Daemon) -> Any:
    assert isinstance(daemon.plane, MemoryPlane)
    return daemon.plane.tun


async def _deliver(source: Any, destination: Any, packets: list[bytes]) -> None:
    """Send packets and check that each arrives as it was."""
    for one in packets:
        source.inject(one)
    for one in packets:
        try:
            arrived = await asyncio.wait_for(destination.next(), PATIENCE)
        except TimeoutError:
            raise DemoFailed("a packet did not arrive") from None
        if arrived != one:
            raise DemoFailed("a packet did not arrive as it was sent")


def packet(source: str, destination: str, payload: bytes) -> bytes:
    """An IPv4 UDP packet of an application; UDP over IPv4 may leave its checksum out."""
    length = 8 + len(payload)
    udp = b"\x0f\xa0\x13\x88" + length.to_bytes(2, "big") + bytes(2) + payload
    head = bytearray(b"\x45\x00" + (20 + length).to_bytes(2, "big") + bytes(4) + b"\x40\x11" + bytes(2))
    head += ip_address(source).packed + ip_address(destination).packed
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    return bytes(head) + udp
