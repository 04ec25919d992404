"""Shell. The traffic of `ikctl bench esp`: one order, JSON on the command line, done by a process of its own.

It tells in JSON lines on standard output how far it is: `port` where it listens, `began` when what counts
begins, then what it measured. It ends with standard input, so that nothing stays when the bench is gone.

Datagrams go in a closed loop: at most `window` are on their way, and the receiver gives credit for every few.
So the rate is what comes through, and loss is that of the data plane and not of a sender that overruns it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

CHUNK: Final = 256 << 10
CREDIT: Final = 16  # datagrams for which there is one of credit; the smallest window is twice that
HEADERS: Final = 28  # octets of IP and UDP
LARGEST: Final = 2048
PATIENCE: Final = 10.0  # seconds for the other side to begin
STALL: Final = 0.1  # without credit so long, everything on its way is taken for lost
QUIET: Final = 5  # so many stalls in a row, and the sender has ended
TAIL: Final = 0.25  # seconds that a sender goes on, so that it does not end before the receiver's time
PROBE: Final = 64  # octets of the packet that goes to and fro
PAUSE: Final = 0.001  # between two of them, so that they measure the load and are none
OVERDUE: Final = 1.0

_NUMBER: Final = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Order:
    """What to do, between two inner addresses; `size` is the inner packet's, headers included."""

    do: str
    address: str
    peer: str = ""
    port: int = 0
    streams: int = 1
    size: int = PROBE
    window: int = 0
    warm_up: float = 0.0
    seconds: float = 0.0
    rate: float = 0.0  # packets a second, where they do not go as fast as they can


def tell(**facts: Any) -> None:
    """One line to the bench."""
    print(json.dumps(facts), flush=True)


# TCP -----------------------------------------------------------------------------------------------------


def receive_tcp(order: Order) -> None:
    """Count what comes over all streams; they go on after the measured time, as load for something else."""
    counts = [0] * order.streams
    with socket.create_server((order.address, 0)) as listener:
        listener.settimeout(PATIENCE)
        tell(port=listener.getsockname()[1])
        for number in range(order.streams):
            stream, _ = listener.accept()
            threading.Thread(target=_count, args=(stream, counts, number), daemon=True).start()
    time.sleep(order.warm_up)
    tell(began=True)
    began, before = time.monotonic(), sum(counts)
    time.sleep(order.seconds)
    octets, seconds = sum(counts) - before, time.monotonic() - began
    tell(octets=octets, seconds=seconds)
    threading.Event().wait()


def _count(stream: socket.socket, counts: list[int], number: int) -> None:
    buffer = bytearray(CHUNK)
    with stream, suppress(ConnectionError):
        while got := stream.recv_into(buffer):
            counts[number] += got


def send_tcp(order: Order) -> None:
    """Fill all streams until they break."""
    ends = (order.peer, order.port), PATIENCE, (order.address, 0)
    streams = [socket.create_connection(*ends) for _ in range(order.streams)]
    threads = [threading.Thread(target=_fill, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _fill(stream: socket.socket) -> None:
    stream.settimeout(None)
    data = bytes(CHUNK)
    with stream, suppress(ConnectionError):
        while True:
            stream.sendall(data)


# UDP -----------------------------------------------------------------------------------------------------


def _datagrams(order: Order, patience: float) -> socket.socket:
    """A socket with room for all that is on its way. It waits so long, by the kernel's own clock: Python's
    costs a system call more for each datagram."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((order.address, 0))
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, buffer, 4 << 20)
    _wait_at_most(made, patience)
    if order.peer:
        made.connect((order.peer, order.port))
    return made


def _wait_at_most(sock: socket.socket, seconds: float) -> None:
    whole, rest = divmod(seconds, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(whole), int(rest * 1e6)))


def receive_udp(order: Order) -> None:
    """Count what comes and give credit; at last, when nothing comes any more, how many came in all."""
    with _datagrams(order, PATIENCE) as sock:
        tell(port=sock.getsockname()[1])
        _, source = sock.recvfrom(LARGEST)
        sock.connect(source)
        _wait_at_most(sock, STALL)
        early, _ = _take(sock, time.monotonic() + order.warm_up)
        tell(began=True)
        began = time.monotonic()
        packets, _ = _take(sock, began + order.seconds)
        tell(packets=packets, seconds=time.monotonic() - began)
        late, stalls = 0, 0
        while stalls < QUIET:
            came, stalled = _take(sock, 0.0)
            late, stalls = late + came, stalls + 1 if stalled else 0
        tell(received=1 + early + packets + late)


def _take(sock: socket.socket, until: float) -> tuple[int, bool]:
    """Take datagrams until then, at least once the number for a credit; how many, and whether it ended with
    a stall. The credit is the number of the last one."""
    buffer = bytearray(LARGEST)
    number, receive, credit = memoryview(buffer)[: _NUMBER.size], sock.recv_into, sock.send
    taken, stalled = 0, False
    while True:
        came = 0
        try:
            while came < CREDIT:
                receive(buffer)
                came += 1
        except BlockingIOError:
            stalled = not came
        taken += came
        if came:
            credit(number)
        if time.monotonic() >= until:
            return taken, stalled


def send_udp(order: Order) -> None:
    """Keep the window full; how many were sent in all."""
    buffer = bytearray(order.size - HEADERS)
    sent = credited = 0
    with _datagrams(order, STALL) as sock:
        send, put, window = sock.send, _NUMBER.pack_into, order.window
        until = time.monotonic() + order.warm_up + order.seconds + TAIL
        while time.monotonic() < until:
            while sent - credited < window:
                put(buffer, 0, sent)
                send(buffer)
                sent += 1
            try:
                credited = max(credited, *_NUMBER.unpack(sock.recv(_NUMBER.size)))
            except (BlockingIOError, ConnectionRefusedError):
                credited = sent
        tell(sent=sent)
        threading.Event().wait()  # the last credit shall find somebody


def send_paced(order: Order) -> None:
    """Send at a rate, whatever comes back; how many were sent in all."""
    buffer, sent = bytearray(order.size - HEADERS), 0
    with _datagrams(order, STALL) as sock:
        began = time.monotonic()
        while (gone := time.monotonic() - began) < order.warm_up + order.seconds + TAIL:
            while sent < gone * order.rate:
                _NUMBER.pack_into(buffer, 0, sent)
                with suppress(ConnectionRefusedError):
                    sock.send(buffer)
                sent += 1
            time.sleep(PAUSE)
        tell(sent=sent)
        threading.Event().wait()


# To and fro ----------------------------------------------------------------------------------------------


def echo(order: Order) -> None:
    """Send everything back."""
    with _datagrams(order, 0.0) as sock:
        tell(port=sock.getsockname()[1])
        while True:
            sock.sendto(*sock.recvfrom(LARGEST))


def ping(order: Order) -> None:
    """One datagram at a time to and fro: milliseconds of each, and how many did not come back."""
    buffer = bytearray(order.size - HEADERS)
    times: list[float] = []
    lost = number = 0
    with _datagrams(order, OVERDUE) as sock:
        until = time.monotonic() + order.seconds
        while time.monotonic() < until:
            number += 1
            _NUMBER.pack_into(buffer, 0, number)
            began = time.perf_counter()
            sock.send(buffer)
            try:
                while sock.recv(LARGEST) != buffer:  # a late answer to one that counts as lost
                    pass
            except (BlockingIOError, ConnectionRefusedError):
                lost += 1
                continue
            times.append(round(1000 * (time.perf_counter() - began), 4))
            time.sleep(PAUSE)
    tell(times=times, lost=lost)


# Orders --------------------------------------------------------------------------------------------------

ORDERS: Final[Mapping[str, Callable[[Order], None]]] = {
    "receive-tcp": receive_tcp,
    "send-tcp": send_tcp,
    "receive-udp": receive_udp,
    "send-udp": send_udp,
    "send-paced": send_paced,
    "echo": echo,
    "ping": ping,
}


def _end_with_the_bench() -> None:
    sys.stdin.read()
    os._exit(0)


def main(text: str) -> int:
    """Do one order."""
    threading.Thread(target=_end_with_the_bench, daemon=True).start()
    order = Order(**json.loads(text))
    try:
        ORDERS[order.do](order)
    except BlockingIOError:  # what the kernel says when the time is over
        tell(error=f"{order.do}: nothing came in {PATIENCE:g} s")
        return 1
    except OSError as error:
        tell(error=f"{order.do}: {error.strerror or error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
