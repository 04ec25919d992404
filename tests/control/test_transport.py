"""ikd.transport on loopback: markers, batches, the local address, errors that must not be fatal."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support import alone

from ikd.transport import KEEPALIVE, Transport
from offload.host import bpf
from sadb.address import Address, Path, SocketAddress, parse

ANY, ONE, TWO = parse("0.0.0.0"), parse("127.0.0.1"), parse("127.0.0.2")


class Recorder:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, Path]] = []
        self.batches: list[Sequence[tuple[bytes, Path]]] = []
        self.troubles: list[str] = []

    def ike(self, data: bytes, path: Path) -> None:
        self.messages.append((data, path))

    def esp(self, datagrams: Sequence[tuple[bytes, Path]]) -> None:
        self.batches.append(datagrams)

    def trouble(self, what: str, path: Path | None) -> None:
        self.troubles.append(what)

    def recovered(self, path: Path) -> None:
        self.troubles.append("recovered")


@asynccontextmanager
async def transport(
    *listen: Address, ports: tuple[int, int] | None = None
) -> AsyncIterator[tuple[Transport, Recorder]]:
    recorder = Recorder()
    one = Transport(listen, ports or (alone.port(), alone.port()), recorder)
    one.open(asyncio.get_running_loop())
    try:
        yield one, recorder
    finally:
        one.close()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_wildcard_learns_and_uses_the_local_address() -> None:
    """A host with several addresses must answer from the one it was asked at, or the answer is dropped."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        async with transport(ANY) as (ours, seen):
            peer.sendto(b"question", ("127.0.0.2", ours.port))
            await settle()
            ((data, path),) = seen.messages
            assert (data, path.local) == (b"question", SocketAddress(TWO, ours.port))
            assert ours.send(b"answer", path)
            assert peer.recvfrom(100) == (b"answer", ("127.0.0.2", ours.port))


async def test_marker_separates_ike_from_esp() -> None:
    """ESP taken for IKE, or the other way, loses both; a keepalive is neither (RFC 3948 section 2)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        async with transport(ONE) as (ours, seen):
            for data in (b"\0\0\0\0ike", b"esp1", KEEPALIVE, b"", b"esp2", b"\0\0\0"):
                peer.sendto(data, ("127.0.0.1", ours.nat_port))
            await settle()
            ((data, path),) = seen.messages
            assert data == b"ike"
            assert [d for batch in seen.batches for d, _ in batch] == [b"esp1", b"esp2", b"\0\0\0"]
            ours.send(b"reply", path)
            ours.send(KEEPALIVE, path)
            ours.send_esp([(b"esp3", path)])
            assert [peer.recv(100) for _ in range(3)] == [b"\0\0\0\0reply", KEEPALIVE, b"esp3"]


async def test_send_errors_are_told_not_raised() -> None:
    """An unreachable peer or an oversized datagram is that peer's trouble, not the end of the daemon."""
    async with transport(ONE) as (ours, seen):
        here = SocketAddress(ONE, ours.port)
        assert not ours.send(b"x" * 70_000, Path(here, SocketAddress(ONE, 9)))
        assert not ours.send(b"x", Path(SocketAddress(TWO, ours.port), SocketAddress(ONE, 9)))
        assert not ours.send(
            b"x", Path(SocketAddress(parse("::1"), ours.port), SocketAddress(parse("::1"), 9))
        )
        assert len(seen.troubles) == 3


async def test_the_same_failure_is_told_once() -> None:
    """Without a route every repetition to every peer fails: the log must not have a line for each. When one
    gets out again that is told, too, and the next failure is news."""
    async with transport(ONE) as (ours, seen):
        here, there = SocketAddress(ONE, ours.port), SocketAddress(ONE, 9)
        for _ in range(3):
            assert not ours.send(b"x" * 70_000, Path(here, there))
        assert len(seen.troubles) == 1
        for _ in range(3):
            ours.send(b"x", Path(here, there))
        assert seen.troubles[1:] == ["recovered"]
        ours.send(b"x" * 70_000, Path(here, there))
        assert len(seen.troubles) == 3


async def test_an_address_that_no_interface_has_may_be_ours() -> None:
    """All of 127.0.0.0/8 is, and whatever a route of type `local` leads to: an SA there has lost nothing."""
    async with transport(ANY) as (ours, _):
        assert ours.is_local(TWO)
        assert not ours.is_local(parse("192.0.2.77"))


async def test_which_of_our_addresses_can_be_spoken_from() -> None:
    """An SA that moves to an address without a socket is lost."""
    async with transport(ONE) as (ours, _):
        assert ours.listens_on(ONE)
        assert not ours.listens_on(TWO)
        assert not ours.listens_on(parse("::1"))
    async with transport(ANY) as (ours, _):
        assert ours.listens_on(TWO)
        assert not ours.listens_on(parse("::1"))
        ours.interfaces = frozenset({"no-such"})
        ours.network_changed({ONE: 1, TWO: 1 << 20})
        assert ours.listens_on(ONE)  # of loopback
        assert not ours.listens_on(TWO)


async def test_a_host_without_ipv6_has_no_way_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that can move tells its IPv6 addresses, too: that there are no such sockets here
    (ipv6.disable=1) would have ended its IKE SA."""
    usual = socket.socket

    def without(family: int, *rest: Any, **named: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return usual(family, *rest, **named)

    async with transport(ONE) as (ours, _):
        monkeypatch.setattr(socket, "socket", without)
        assert ours.source_for(parse("2001:db8::1")) is None
        assert ours.source_for(TWO) == ONE
        monkeypatch.undo()


async def test_occupied_port_names_it_and_leaves_nothing_open() -> None:
    """ "Address already in use" without the address sends people searching."""
    async with transport(ONE) as (ours, _):
        other = Transport((TWO, ONE), (ours.port, alone.port()), Recorder())
        with pytest.raises(OSError, match=f"cannot listen on UDP 127.0.0.1:{ours.port}"):
            other.open(asyncio.get_running_loop())
        async with transport(TWO, ports=(ours.port, alone.port())):
            pass


def given(address: str, port: int = 0, *, dual: bool = False) -> socket.socket:
    """A socket as systemd binds it: blocking, and with no option of ours."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind((address, port))
    return sock


async def test_given_socket_serves_with_what_waited_in_it() -> None:
    """Systemd keeps the socket while the daemon restarts: what came then must be read, and be answered from
    the address it was sent to."""
    first, second = given("0.0.0.0"), given("0.0.0.0")
    ports = first.getsockname()[1], second.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        peer.sendto(b"early", ("127.0.0.2", ports[0]))
        seen = Recorder()
        ours = Transport((ANY,), ports, seen)
        ours.open(asyncio.get_running_loop(), (second, first))
        try:
            await settle()
            ((data, path),) = seen.messages
            assert (data, path.local.address) == (b"early", TWO)
            assert ours.send(b"answer", path)
            assert peer.recvfrom(100) == (b"answer", ("127.0.0.2", ports[0]))
            assert not first.getblocking()
        finally:
            ours.close()


async def test_given_socket_has_no_sieve_of_a_former_run() -> None:
    """A daemon that ended in a flood has left it; strangers would be turned away for ever, and nobody would
    know what for. What it threw away then is not counted again."""
    sock = given("127.0.0.1")
    bpf.attach_filter(sock, bpf.sieve(False, 0.0, 0.0))
    first = bytes(range(8)) + bytes(20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(first, sock.getsockname())
        seen = Recorder()
        ours = Transport((ONE,), (sock.getsockname()[1], alone.port()), seen)
        ours.open(asyncio.get_running_loop(), (sock,))
        try:
            assert ours.unread() == 0
            peer.sendto(first, sock.getsockname())
            await settle()
            assert [data for data, _ in seen.messages] == [first]
        finally:
            ours.close()


async def test_given_socket_in_another_place_is_refused() -> None:
    """A daemon that is to listen on one address and gets a wildcard must not answer on all of them."""
    sock = given("0.0.0.0")
    ours = Transport((ONE,), (sock.getsockname()[1], alone.port()), Recorder())
    with pytest.raises(OSError, match=r"0\.0\.0\.0:.* daemon.listen is 127\.0\.0\.1 .*ListenDatagram="):
        ours.open(asyncio.get_running_loop(), (sock,))
    assert sock.fileno() == -1


async def test_given_socket_for_both_families_is_refused() -> None:
    """Its IPv4 peers would have addresses of IPv6, which no rule covers."""
    sock = given("::", dual=True)
    ours = Transport((parse("::"),), (sock.getsockname()[1], alone.port()), Recorder())
    with pytest.raises(OSError, match="BindIPv6Only=ipv6-only"):
        ours.open(asyncio.get_running_loop(), (sock,))


async def test_given_socket_shares_its_port_with_the_data_plane() -> None:
    """Workers bind the port for ESP in UDP beside it, though systemd did not bind it to be shared."""
    sock = given("127.0.0.1")
    ours = Transport((ONE,), (alone.port(), sock.getsockname()[1]), Recorder())
    ours.shared = True
    ours.open(asyncio.get_running_loop(), (sock,))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", ours.nat_port))
    finally:
        ours.close()


async def test_source_for_asks_the_routing_table() -> None:
    """Before the first datagram the local address has to be known: NAT detection hashes it."""
    async with transport(ANY) as (ours, _):
        assert ours.source_for(ONE) == ONE
