"""The native loop's own waiting: whom it serves, when it comes back, and that nothing stays in it. Datagrams
are for SPIs nobody has, so each of them is handed up."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from support.engines import ONE_ENGINE

from offload.host.natt import UDP_GRO, UDP_SEGMENT
from offload.ledger import Ledger
from offload.nic.descriptors import Completion
from offload.nic.rings import AdapterPort, HostPort, wire
from offload.nic.slots import Broken
from offload.outer import Arrived, CryptoStatus, Mark
from sadb.address import Path, SocketAddress

if TYPE_CHECKING:
    from offload._native import Table

pytestmark = ONE_ENGINE

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


# With the rings of an adapter ----------------------------------------------------------------------------

HERE = ip_address("192.0.2.1")
END = SocketAddress(HERE, 4500)


@dataclass
class Attached:
    """A loop and an adapter's two sides; nobody has any SA."""

    loop: Loop
    host: HostPort
    adapter: AdapterPort

    def put(self, *arrived: Arrived) -> None:
        assert all(map(self.adapter.received.put, arrived))
        self.adapter.publish()

    def once(self, idle: float = 0.0) -> Arrived | bytes | None:
        """What is handed up next: what came in the ring, or a frame of the device."""
        assert self.host.native is not None
        up = self.loop.table.carry(self.loop.poll.fileno(), idle, 0.0)
        if up is None:
            return None
        fileno, what = up
        assert isinstance(what, bytes)
        return self.host.native.value(what) if fileno == self.host.fileno() else what

    def carry(self) -> list[Arrived | bytes]:
        """All that is handed up."""
        found = []
        while (one := self.once()) is not None:
            found.append(one)
        return found


@pytest.fixture
def attached(loop: Loop) -> Iterator[Attached]:
    plugs = wire(256, 1 << 20)
    with closing(HostPort(plugs[0], native=True)) as host, closing(AdapterPort(plugs[1])) as adapter:
        assert host.native is not None
        loop.table.add_ring(host.native.ring)
        loop.poll.register(host.fileno(), select.EPOLLIN)
        yield Attached(loop, host, adapter)
        loop.table.remove_source(host.fileno())


def came(number: int = 1) -> Arrived:
    return Arrived(50, HERE, HERE, datagram(number), header=b"\x45" + bytes(19))


def test_what_python_has_to_open_comes_up_as_it_was(attached: Attached) -> None:
    """A mark or a header that is lost would make another packet of it; one that is taken twice, two."""
    mark = Mark(65537, CryptoStatus.SUCCESS)
    sent = [
        came(),
        replace(came(), mark=mark),
        replace(came(), mark=replace(mark, numbers=(1, 2))),
        replace(came(), mark=replace(mark, status=CryptoStatus.TUNNEL_ESP_FAILED)),
        replace(came(), mark=replace(mark, evict=True)),
        replace(came(), protocol=51),
        replace(came(), header=b"\x46" + bytes(19)),
        replace(came(), data=b"", mark=mark),
        replace(came(), header=b"", path=Path(END, END), traffic_class=3),
    ]
    attached.put(*sent)
    assert attached.carry() == sent


def test_datagrams_of_a_train_come_up_one_by_one(attached: Attached) -> None:
    """They may be of different SAs: what Python installs for one must not come too late for the next."""
    train = replace(came(), header=b"", path=Path(END, END), segment=SIZE)
    data = [datagram(number) for number in range(4)] + [datagram(4)[:20]]
    attached.put(replace(train, data=b"".join(data)))
    assert attached.carry() == [replace(train, data=one, segment=0) for one in data]


def later(work: Callable[[], None]) -> None:
    """While the loop waits, which it does without the interpreter's lock."""
    threading.Timer(0.05, work).start()


def test_it_wakes_for_what_arrives_and_comes_back_for_completions(attached: Attached) -> None:
    """A packet would wait for the next one; a completion so long that the adapter is given up."""
    began = time.monotonic()
    assert attached.host.doze()
    later(lambda: attached.put(came()))
    assert attached.once(60.0) == came()
    attached.host.wake()
    assert attached.host.doze()

    def complete() -> None:
        assert attached.adapter.completed.put(Completion(1, True))
        attached.adapter.publish()

    later(complete)
    assert attached.once(60.0) is None
    assert attached.host.completed.take(9) == [Completion(1, True)]
    attached.host.publish()
    assert time.monotonic() - began < 30
    began = time.monotonic()
    assert attached.once(0.05) is None  # for this one it has come back
    assert time.monotonic() - began > 0.04


def test_ring_and_device_do_not_keep_each_other_waiting(attached: Attached) -> None:
    """Whoever floods one of them with packets for Python would stop the other."""
    attached.put(*map(came, range(50)))
    for number in range(20):
        attached.loop.device.send(bytes(10) + bytes([0x45, number]) + bytes(40))
    found = attached.carry()
    assert len(found) == 70
    assert {type(one) for one in found[:3]} == {Arrived, bytes}


def test_a_ring_that_cannot_be_is_told_and_left_alone(attached: Attached) -> None:
    """A count that is believed would have it read what was never put, again and again."""
    attached.put(came())
    words = attached.adapter.received._words
    words[attached.adapter.received._own] = 1000
    bell, poll = attached.host.fileno(), attached.loop.poll.fileno()
    assert attached.loop.table.carry(poll, 0.0, 0.0) == (bell, None)
    words[attached.adapter.received._own] = 1
    with pytest.raises(Broken):
        attached.host.received.take(9)


def test_the_end_of_the_adapter_is_told(loop: Loop) -> None:
    """Its SAs are software's at once."""
    plugs = wire(4, 100)
    with closing(HostPort(plugs[0], native=True)) as host:
        assert host.native is not None
        loop.table.add_ring(host.native.ring)
        loop.poll.register(host.fileno(), select.EPOLLIN)
        plugs[1].close()
        assert loop.table.carry(loop.poll.fileno(), 60.0, 0.0) == (host.fileno(), None)
        with pytest.raises(Broken, match="gone"):
            host.wake()
        loop.table.remove_source(host.fileno())


def test_a_closed_ring_is_not_served(loop: Loop) -> None:
    """Its memory is gone."""
    plugs = wire(4, 100)
    plugs[1].close()
    host = HostPort(plugs[0], native=True)
    assert host.native is not None
    ring, bell = host.native.ring, host.fileno()
    loop.table.add_ring(ring)
    host.close()
    with pytest.raises(ValueError, match="closed"):
        loop.carry()
    loop.table.remove_source(bell)
    assert loop.carry() == []
    for use in (ring.tell, ring.stirred, lambda: ring.take(1, 1), lambda: loop.table.add_ring(ring)):
        with pytest.raises(ValueError, match=r"closed|is open"):
            use()
