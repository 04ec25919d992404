"""Programs in the kernel: who gets a packet, tried on loopback with real sockets."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ONE_ENGINE
from support.require import require

from offload.host import bpf
from offload.host.natt import UDP_GRO, UDP_SEGMENT
from offload.host.raw import AH, ESP, RawSockets

pytestmark = ONE_ENGINE

MARKER = bytes(4)
KEEPALIVE = b"\xff"
FAMILIES = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


class Group:
    """The daemon's socket for IKE and one for each worker, on one port, and somebody who sends to it."""

    def __init__(self, host: str, workers: int, stack: ExitStack) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.workers = workers
        self.sockets: list[socket.socket] = []
        port = 0
        for _ in range(workers + 1):
            one = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((host, port))
            port = one.getsockname()[1]
            self.sockets.append(one)
        bpf.attach_reuseport(self.sockets[0], bpf.demultiplexer(workers))
        self.peer = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        self.peer.connect((host, port))

    def takers(self, datagrams: Sequence[bytes]) -> list[int]:
        """Which socket gets each of some datagrams."""
        found = []
        for data in datagrams:
            self.peer.send(data)
            ready, _, _ = select.select(self.sockets, [], [], 10)
            (one,) = ready
            assert one.recv(65536) == data
            found.append(self.sockets.index(one))
        return found

    def worker(self, spi: int) -> int:
        """The socket that is to get an SPI."""
        return 1 + spi % self.workers


@contextmanager
def group(host: str, workers: int) -> Iterator[Group]:
    """A group of sockets that are closed in the end."""
    with ExitStack() as stack:
        yield Group(host, workers, stack)


@FAMILIES
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_ike_goes_to_the_daemon_and_every_spi_to_its_worker(host: str, workers: int) -> None:
    """IKE at a worker is a peer without an answer; ESP at another worker than the one that has the replay
    window could be replayed there."""
    with group(host, workers) as sockets:
        ike = [MARKER + bytes([n]) * 100 for n in range(3)] + [MARKER, MARKER + MARKER]
        assert sockets.takers(ike) == [0] * len(ike)
        spis = [*range(256, 256 + 3 * workers), 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 1]
        esp = [spi.to_bytes(4, "big") + bytes(60) for spi in spis]
        assert sockets.takers(esp) == [sockets.worker(spi) for spi in spis]
        assert set(sockets.takers(esp)) == set(range(1, workers + 1))


@FAMILIES
@pytest.mark.parametrize("data", [KEEPALIVE, b"", b"\0", b"\1\2", b"\0\0\0", b"\1\2\3"])
def test_keepalives_and_what_is_too_short_go_to_the_daemon(host: str, data: bytes) -> None:
    """The program could take octets that are not there for an SPI; and one process is to look at them."""
    with group(host, 3) as sockets:
        assert sockets.takers([data, b"\0\0\1\1", data]) == [0, sockets.worker(257), 0]


@given(spis=st.lists(st.integers(1, 0xFFFFFFFF), min_size=1, max_size=8), workers=st.integers(1, 5))
def test_any_spi_has_one_worker(spis: list[int], workers: int) -> None:
    """The same arithmetic in the kernel and in whoever says where an SPI is at home."""
    with group("127.0.0.1", workers) as sockets:
        found = sockets.takers([spi.to_bytes(4, "big") + b"x" for spi in spis])
        assert found == [sockets.worker(spi) for spi in spis]


@FAMILIES
def test_a_train_goes_to_one_worker_whole(host: str) -> None:
    """The kernel decides by its first datagram, and all of them have the same SPI."""
    with group(host, 2) as sockets:
        for one in sockets.sockets:
            one.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sockets.peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 200)
        for spi in (1000, 1001):
            train = (spi.to_bytes(4, "big") + bytes(196)) * 20
            assert sockets.takers([train]) == [sockets.worker(spi)]


def test_a_program_the_kernel_refuses_is_an_error() -> None:
    """Without the program the kernel spreads by hash: IKE at workers, replay windows in several of them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, pytest.raises(OSError, match="nvalid"):
        bpf.attach_reuseport(one, [(0xFFFF, 0, 0, 0)])


# Raw sockets ---------------------------------------------------------------------------------------------


@contextmanager
def shares(count: int) -> Iterator[list[dict[tuple[int, int], socket.socket]]]:
    """The raw sockets of some workers, by family and protocol."""
    require(os.geteuid() == 0, "root, for raw sockets")
    with ExitStack() as stack:
        yield [
            {(one.family, one.proto): stack.enter_context(one) for one in RawSockets.opened(0, number, count)}
            for number in range(count)
        ]


def sent(family: int, protocol: int, payload: bytes, options: bytes = b"") -> None:
    """Send an IP packet over loopback."""
    if family == socket.AF_INET6:
        with socket.socket(family, socket.SOCK_RAW, protocol) as one:
            one.sendto(payload, ("::1", 0))
        return
    size = 20 + len(options)
    header = pack(">BBHHHBBH", 0x40 | size // 4, 0, size + len(payload), 7, 0, 64, protocol, 0)
    address = socket.inet_aton("127.0.0.1")
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
        one.sendto(header + address + address + options + payload, ("127.0.0.1", 0))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("protocol", [ESP, AH])
@pytest.mark.parametrize("options", [b"", b"\x01" * 4, b"\x01" * 40])
def test_each_spi_is_in_the_share_of_one_raw_socket(family: int, protocol: int, options: bytes) -> None:
    """In two it is opened twice, in none never; the SPI of IPv4 stands behind a header of any length, that of
    AH behind four octets. A packet without an SPI is nobody's."""
    if family == socket.AF_INET6 and options:
        return
    token = os.urandom(16)  # others may be sending over loopback, too
    before = b"" if protocol == ESP else bytes(4)
    shown = 20 + len(options) if family == socket.AF_INET else 0  # octets of header
    with shares(3) as workers:
        mine = [one[family, protocol] for one in workers]
        for spi in (256, 257, 258, 259, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            sent(family, protocol, (before + spi.to_bytes(4, "big"))[:-1], options)
            sent(family, protocol, before + spi.to_bytes(4, "big") + token, options)
            found = []
            while not found:
                ready, _, _ = select.select(mine, [], [], 10)
                assert ready
                for one in ready:
                    data = one.recv(65536)
                    assert len(data) >= shown + len(before) + 4
                    if data.endswith(token):
                        found.append(mine.index(one))
            assert found == [spi % 3]
        again = [one.recv(65536) for one in select.select(mine, [], [], 0)[0]]
        assert not [data for data in again if data.endswith(token)]
