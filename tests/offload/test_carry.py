"""The native loop's own waiting: whom it serves, when it comes back, and that nothing stays in it. Datagrams
are for SPIs nobody has, so each of them is handed up."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from offload.ledger import Ledger
from offload.natt import UDP_GRO, UDP_SEGMENT

if TYPE_CHECKING:
    from offload._native import Table

SIZE = 64
QUEUE, UDP = 1, 2


@dataclass
class Loop:
    """A loop with a device and a socket; the other ends of both; and a pipe that is not its business."""

    table: Table
    poll: select.epoll
    device: socket.socket
    peer: socket.socket
    pipe: int

    def carry(self, idle: float = 0.0, busy: float = 0.0) -> list[bytes]:
        """The datagrams that are handed up until it has nothing more."""
        found = []
        while (up := self.table.carry(self.poll.fileno(), idle, busy)) is not None:
            found.append(up[1][0])
        return found

    def send(self, *datagrams: bytes) -> None:
        """One train."""
        size = struct.pack("=H", SIZE)
        self.peer.sendmsg([b"".join(datagrams)], [(socket.IPPROTO_UDP, UDP_SEGMENT, size)])


def datagram(number: int) -> bytes:
    return struct.pack("!II", 0x1000 + number, 1) + bytes([number]) * (SIZE - 8)


@pytest.fixture
def loop() -> Iterator[Loop]:
    native = pytest.importorskip("offload._native")
    ledger = Ledger(1)
    table = native.Table(ledger.memory, bytes(16))
    queue, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    reading, writing = os.pipe()
    with queue, device, receiver, peer, select.epoll() as poll:
        queue.setblocking(False)
        receiver.bind(("127.0.0.1", 0))
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        peer.connect(receiver.getsockname())
        for fileno, kind in ((queue.fileno(), QUEUE), (receiver.fileno(), UDP)):
            table.add_source(fileno, kind)
            poll.register(fileno, select.EPOLLIN)
        poll.register(reading, select.EPOLLIN)
        yield Loop(table, poll, device, peer, writing)
    os.close(reading)
    os.close(writing)


def test_every_datagram_of_a_train_is_handed_up(loop: Loop) -> None:
    """The socket is not readable any more by then: the others would wait for the next packet."""
    train = [datagram(number) for number in range(5)]
    loop.send(*train)
    assert loop.carry() == train


def test_frames_are_handed_up_in_order(loop: Loop) -> None:
    """What has no route goes to Python whole, with the header of the device."""
    frames = [bytes(10) + bytes([0x45, number]) + bytes(40) for number in range(3)]
    for one in frames:
        loop.device.send(one)
    up = [loop.table.carry(loop.poll.fileno(), 0.0, 0.0)[1] for _ in frames]
    assert up == frames


def test_it_comes_back_for_what_is_not_its_business(loop: Loop) -> None:
    """The daemon's orders must not wait for the end of a time without packets."""
    os.write(loop.pipe, b"!")
    began = time.monotonic()
    assert loop.carry(idle=60.0) == []
    assert time.monotonic() - began < 30


def test_orders_do_not_keep_packets_waiting(loop: Loop) -> None:
    """Were they only served while nothing else is ready, a busy daemon could stop them for ever."""
    os.write(loop.pipe, b"!")
    loop.send(datagram(1))
    assert loop.carry(idle=60.0) == [datagram(1)]


def test_it_comes_back_in_time(loop: Loop) -> None:
    """Held packets expire and drops are told, whether packets pass or not."""
    assert loop.carry(idle=0.01) == []
    loop.peer.send(b"\xff")  # a keepalive, which is for nobody
    assert loop.carry(idle=60.0, busy=0.01) == []


@pytest.mark.parametrize(("fileno", "kind"), [(-1, UDP), (1024, UDP), (3, 0), (3, 4)])
def test_what_cannot_be_a_source_is_refused(loop: Loop, fileno: int, kind: int) -> None:
    """A descriptor too large would be written behind a table."""
    with pytest.raises(ValueError, match="descriptor"):
        loop.table.add_source(fileno, kind)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e9])
def test_times_are_checked(loop: Loop, seconds: float) -> None:
    """In nanoseconds they would be any number."""
    with pytest.raises(ValueError, match="seconds"):
        loop.table.carry(loop.poll.fileno(), seconds, 0.0)
