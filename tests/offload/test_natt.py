"""Sockets for ESP in UDP, over loopback: the kernel cuts trains up and puts them together."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ONE_ENGINE
from support.require import require

from offload.host import natt
from offload.host.natt import LARGEST, MTU, NattSockets, Probes
from offload.outer import Arrived, Outgoing
from sadb.address import Address, Path, SocketAddress

pytestmark = ONE_ENGINE

VERSIONS = pytest.mark.parametrize("version", [4, 6])
HOSTS = {4: (ip_address("127.0.0.1"), ip_address("127.0.0.2")), 6: (ip_address("::1"), ip_address("::1"))}
ANY = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
# socket options that take checksums away, and with them the system's reason to cut trains up
NO_CHECK = {4: [(socket.SOL_SOCKET, 11)], 6: [(socket.IPPROTO_UDP, 101), (socket.IPPROTO_UDP, 102)]}
TEN = 10.0  # seconds: so long waits only who would fail


def whole(data: bytes, path: Path, segment: int = 0, traffic: int = 0) -> Outgoing:
    """Something to send with DF, which is the socket's that receives, too."""
    return Outgoing(data, path, traffic, segment, True)


class End:
    """One socket in the hands of a worker."""

    def __init__(self, where: Address, port: int = 0) -> None:
        require(os.geteuid() == 0, "root, for the mark")
        self.socket = natt.opened(where, port, 0)
        self.sockets = NattSockets([self.socket])
        self.address = SocketAddress(where, self.socket.getsockname()[1])

    def sends(self, to: End, data: bytes, segment: int = 0, traffic: int = 0) -> None:
        """Send a datagram or a train."""
        self.sockets.write_batch([whole(data, Path(self.address, to.address), segment, traffic)])

    def gets(self, octets: int) -> list[Arrived]:
        """What comes, until there are so many octets of it."""
        found: list[Arrived] = []
        while sum(len(one.data) for one in found) < octets:
            assert select.select([self.socket], [], [], TEN)[0], f"{found} is all that came"
            found += self.sockets.read_batch(self.socket.fileno(), 16)
        return found

    def silent(self) -> bool:
        """Whether nothing waits."""
        return not select.select([self.socket], [], [], 0)[0]


@contextmanager
def ends(version: int = 4) -> Iterator[tuple[End, End]]:
    """Two of them."""
    made: list[End] = []
    try:
        made += (End(where) for where in HOSTS[version])
        yield made[0], made[1]
    finally:
        for one in made:
            one.socket.close()


def octets(size: int) -> bytes:
    """Octets in which every datagram differs from the next."""
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4 + 1))[:size]


def cut(data: bytes, segment: int) -> list[bytes]:
    """The datagrams of a train."""
    return [data[at : at + segment] for at in range(0, len(data), segment)] if segment else [data]


def datagrams(arrived: Sequence[Arrived]) -> list[bytes]:
    """What came, one by one."""
    return [data for one in arrived for data in cut(one.data, one.segment)]


# Trains --------------------------------------------------------------------------------------------------


@VERSIONS
@pytest.mark.parametrize("count", [1, 2, 40, 64])
@pytest.mark.parametrize("last", [1, 4, 999, 1000])
def test_a_train_arrives_whole(version: int, count: int, last: int) -> None:
    """Cut up anywhere else every datagram in it is another packet, and none verifies; in pieces it costs a
    system call for each."""
    with ends(version) as (left, right):
        data = octets(1000 * (count - 1) + last)
        left.sends(right, data, 1000 if len(data) > 1000 else 0, 0xB9)
        (one,) = right.gets(len(data))
        assert one.data == data
        assert cut(one.data, one.segment) == cut(data, 1000)
        assert one.path == Path(right.address, left.address)
        assert (one.source, one.destination) == (left.address.address, right.address.address)
        assert one.traffic_class == 0xB9
        assert not left.sockets.counters
        assert not right.sockets.counters


shapes = st.tuples(st.integers(1, 1500), st.integers(0, 43), st.integers(1, 1500))


@given(trains=st.lists(shapes, min_size=1, max_size=8), version=st.sampled_from([4, 6]))
def test_trains_of_all_sizes_come_in_order(trains: list[tuple[int, int, int]], version: int) -> None:
    """Two trains of different sizes are two trains, also where one could be taken for the other's end."""
    with ends(version) as (left, right):
        sent: list[bytes] = []
        for size, count, last in trains:
            data = octets(size * count + min(last, size))
            left.sends(right, data, size if count else 0)
            sent += cut(data, size)
        keep = [one for one in sent if one != b"\xff"]
        assert datagrams(right.gets(sum(map(len, keep)))) == keep
        assert right.silent()
        assert not left.sockets.counters


@VERSIONS
def test_what_the_system_does_not_cut_up_goes_one_by_one(version: int) -> None:
    """A link without checksum offload, a kernel with a lower limit: slower, and nothing is lost."""
    with ends(version) as (left, right):
        many = octets(100 * 200 + 7)  # more segments than any kernel takes
        left.sends(right, many, 100)
        assert datagrams(right.gets(len(many))) == cut(many, 100)
        large = octets(1400 * 50)  # more than a datagram has
        left.sends(right, large, 1400)
        assert datagrams(right.gets(len(large))) == cut(large, 1400)
        for level, option in NO_CHECK[version]:  # UDP_NO_CHECK6_TX, and UDP_NO_CHECK6_RX to receive such ones
            for one in (left.socket, right.socket):
                one.setsockopt(level, option, 1)
        few = octets(2500)
        left.sends(right, few, 1000)
        found = right.gets(len(few))
        assert [one.segment for one in found] == [0, 0, 0], "the system did cut it up"
        assert datagrams(found) == cut(few, 1000)
        assert not left.sockets.counters


# Counted -------------------------------------------------------------------------------------------------


def test_what_cannot_be_sent_is_counted_packet_by_packet() -> None:
    """A train that is lost is as many packets as it has segments: counters of both sides are compared."""
    with ends() as (left, right):
        left.sends(right, octets(65508))  # not without DF either, for which there is no socket here
        assert left.sockets.counters == {"send-no-route": 1}
        left.sockets.counters.clear()
        elsewhere = Path(SocketAddress(ip_address("127.0.0.9"), 1), right.address)
        left.sockets.write_batch([whole(octets(1001), elsewhere, 100), whole(b"1234", elsewhere)])
        assert left.sockets.counters == {"send-no-route": 12}
        left.sockets.counters.clear()
        outside = Path(left.address, SocketAddress(ip_address("192.0.2.1"), 9))  # not from a loopback address
        left.sockets.write_batch([whole(octets(1000), outside, 100), whole(b"1234", outside)])
        assert left.sockets.counters == {"send-failed": 11}
        left.sends(right, b"1234")
        assert datagrams(right.gets(4)) == [b"1234"]


def test_what_a_full_queue_loses_is_counted() -> None:
    """Loss that nobody counts is looked for in the network. The kernel tells it with the next datagram."""
    with ends() as (left, right):
        right.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the system makes that its least
        for times in (1, 2):
            for _ in range(100):
                left.sends(right, octets(1000))
            came = len(right.gets(1000))
            came += len(right.sockets.read_batch(right.socket.fileno(), 100))
            assert 0 < came < 100
            left.sends(right, b"next")
            assert datagrams(right.gets(4)) == [b"next"]
            assert right.sockets.counters["receive-buffer-full"] == times * (100 - came)
        assert not left.sockets.counters


@VERSIONS
def test_keepalives_are_not_packets(version: int) -> None:
    """RFC 3948 section 2.3: as packets they would be counted as broken ones."""
    with ends(version) as (left, right):
        for data in (b"\xff", b"\xff\xff", b"\xff", b"\xfe", b"abcd"):
            left.sends(right, data)
        assert datagrams(right.gets(7)) == [b"\xff\xff", b"\xfe", b"abcd"]


def test_reading_takes_no_more_than_it_is_told_and_never_waits() -> None:
    """One busy socket would keep all others waiting."""
    with ends() as (left, right):
        assert right.sockets.read_batch(right.socket.fileno(), 10) == []
        for n in range(5):
            left.sends(right, bytes([n]) * 4)
        assert select.select([right.socket], [], [], TEN)[0]
        assert len(right.sockets.read_batch(right.socket.fileno(), 2)) == 2
        assert len(right.gets(12)) == 3


# Addresses -----------------------------------------------------------------------------------------------


@VERSIONS
def test_a_socket_for_every_address_sends_from_the_one_it_is_told(version: int) -> None:
    """A NAT, or the peer's filter, drops what comes from another address than it expects."""
    here = ip_address("127.7.7.7") if version == 4 else HOSTS[6][0]
    with ends(version) as (left, _):
        every = End(ANY[version])
        try:
            own = SocketAddress(here, every.address.port)
            path = Path(own, left.address)
            train = octets(250)
            every.sockets.write_batch([whole(train, path, 100, 3)])
            (one,) = left.gets(250)
            assert (one.path, one.traffic_class, one.segment) == (Path(left.address, own), 3, 100)
            left.sockets.write_batch([whole(b"answer", Path(left.address, own))])
            (back,) = every.gets(6)
            assert back.path == path
        finally:
            every.socket.close()


def test_a_socket_of_the_address_goes_before_one_of_every_address() -> None:
    """The answer would come to the socket that has a port of the same number and another address."""
    with ends() as (left, _):
        every = natt.opened(ANY[4], left.address.port, 0)
        other = natt.opened(ANY[6], left.address.port, 0)
        try:
            both = NattSockets([every, left.socket, other])
            port = left.address.port
            assert set(both.filenos()) == {every.fileno(), left.socket.fileno(), other.fileno()}
            assert both.sender(left.address.address, port, True) == (left.socket.fileno(), False)
            assert both.sender(HOSTS[4][1], port, True) == (every.fileno(), True)
            assert both.sender(HOSTS[6][0], port, True) == (other.fileno(), True)
            assert both.sender(HOSTS[4][1], port ^ 1, True)[0] == -1
            assert both.sender(HOSTS[4][1], port, False)[0] == -1
        finally:
            every.close()
            other.close()


def test_addresses_of_strangers_take_no_more_memory_than_a_little() -> None:
    """Who sends to us from many addresses must not make a table grow."""
    with ends() as (left, _):
        fileno = left.socket.fileno()
        for n in range(natt.ADDRESSES + 100):
            source = (0x0A000000 + n).to_bytes(4, "big")
            one = left.sockets.arrived(fileno, b"1234", source, n & 0xFFFF, b"\x7f\0\0\1", 0)
            assert one.path == Path(left.address, SocketAddress(ip_address(source), n & 0xFFFF))
        assert len(left.sockets._names) <= natt.ADDRESSES


def test_links_say_what_they_take() -> None:
    """Packets longer than that are cut up by IP, and shorter ones than need be cost time."""
    require(os.geteuid() == 0, "root, for the mark")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", 9))
        loopback = one.getsockopt(socket.IPPROTO_IP, natt.IP_MTU)
    with Probes(0) as probes:
        assert probes.link_mtu(ip_address("127.0.0.1")) == min(loopback, LARGEST) > MTU
        assert probes.link_mtu(ip_address("255.255.255.255")) == MTU  # refused: no broadcast
        assert probes.link_mtu(ip_address("127.0.0.1")) == min(loopback, LARGEST)
