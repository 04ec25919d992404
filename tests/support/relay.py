"""A data plane without keys, for tests of what is around it: packets from the TUN device travel to the peer
as protocol 50 behind a SPI and a sequence number, and back. Run in a namespace by `Relay`, steered by lines.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from offload import vnet
from offload.host.network import Host
from offload.host.raw import ESP, RawSockets
from offload.host.tun import Tun
from offload.outer import Outgoing
from sadb.address import Address
from sadb.backend import Unavailable
from sadb.sa import Flow

ROOT = Path(__file__).resolve().parents[2]
MARK = 0x1CE0
SPI = 0x1234_5678


class Relay:
    """The other process, seen from the test. `local` and `peer` are the outer addresses."""

    def __init__(
        self,
        namespace: str,
        local: str,
        peer: str,
        flows: Sequence[Flow],
        *,
        device: str = "ikd0",
        stay_closed: bool = True,
    ) -> None:
        code = "from support.relay import main; main()"
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        )
        started = self.ask(
            "start", local=local, peer=peer, flows=_packed(flows), device=device, stay_closed=stay_closed
        )
        assert started == "ok", started

    def ask(self, what: str, **words: Any) -> Any:
        """One request and its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(words | {"do": what}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def apply(self, flows: Sequence[Flow]) -> str:
        """Other flows; "ok" or the complaint."""
        answer: str = self.ask("apply", flows=_packed(flows))
        return answer

    def stop(self) -> None:
        """An orderly end."""
        assert self.ask("stop") == "ok"
        self.process.wait(10)

    def kill(self) -> None:
        """A crash."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                self.ask("stop")
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def _packed(flows: Sequence[Flow]) -> str:
    return base64.b64encode(pickle.dumps(tuple(flows))).decode()


class _Plane:
    """The process in the namespace."""

    def __init__(self, local: str, peer: str, flows: str, device: str, stay_closed: bool) -> None:
        self.local, self.peer = ip_address(local), ip_address(peer)
        self.tun = Tun(device, 1400)
        self.queue = self.tun.queues[0]
        self.raw = RawSockets(RawSockets.opened(MARK))
        self.host = Host(self.tun.name, self.tun.mtu, MARK, stay_closed=stay_closed)
        self.host.apply(pickle.loads(base64.b64decode(flows)))
        self.number = 0

    def move(self) -> None:
        """Everything that waits, both ways."""
        packets = [one for frame in self.queue.read_batch(64) for one in vnet.packets(frame)]
        self.raw.write_batch([Outgoing(self.wrapped(one)) for one in packets])
        for fileno, _ in self.raw.receivers():
            for one in self.raw.read_batch(fileno, 64):
                if one.protocol == ESP and one.data[:4] == SPI.to_bytes(4, "big") and one.source == self.peer:
                    self.queue.write_batch(vnet.frames([one.data[8:]]))

    def wrapped(self, packet: bytes) -> bytes:
        """A packet with the outer header of a tunnel."""
        self.number += 1
        data = SPI.to_bytes(4, "big") + self.number.to_bytes(4, "big") + packet
        return outer_header(self.local, self.peer, len(data)) + data

    def answer(self, request: dict[str, Any]) -> Any:
        match request["do"]:
            case "apply":
                self.host.apply(pickle.loads(base64.b64decode(request["flows"])))
            case "drops":
                return self.host.drops()
            case "counters":
                return self.raw.counters
            case "told":
                return [(str(one.destination), one.mtu, one.spi) for one in self.raw.told()]
            case "addresses":
                return sorted(map(str, self.host.addresses()))
            case "send":
                return self.raw.write_batch([Outgoing(bytes.fromhex(request["packet"]))])
            case "stop":
                self.host.close()
                self.raw.close()
                self.tun.close()
        return "ok"


def outer_header(source: Address, destination: Address, size: int, protocol: int = ESP) -> bytes:
    """An IP header; the kernel fills in the checksum of IPv4."""
    if source.version == 4:
        start = bytes((0x45, 0)) + (size + 20).to_bytes(2, "big") + bytes((0, 0, 0x40, 0, 64, protocol, 0, 0))
    else:
        start = bytes((0x60, 0, 0, 0)) + size.to_bytes(2, "big") + bytes((protocol, 64))
    return start + source.packed + destination.packed


def main() -> None:
    """Start when told how, then relay and answer until told to stop."""
    plane: _Plane | None = None
    waiting = [0]
    while True:
        ready, _, _ = select.select(waiting, [], [], 10)
        if plane and set(ready) - {0}:
            plane.move()
        if 0 not in ready:
            continue
        request = json.loads(sys.stdin.buffer.raw.readline() or '{"do": "stop"}')  # type: ignore[attr-defined]
        try:
            if plane:
                answer: Any = plane.answer(request)
            elif request["do"] == "start":
                del request["do"]
                plane = _Plane(**request)
                waiting = [0, plane.queue.fileno(), *(fileno for fileno, _ in plane.raw.receivers())]
                answer = "ok"
            else:
                return
        except Unavailable as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
        if request.get("do") == "stop":
            return
