"""Shell. UDP for IKE and for ESP in UDP: ports 500 and 4500 (RFC 7296 section 3.1, RFC 3948).

Datagrams come in batches straight from the event loop's reader callback. The 4500 sockets are shared with the
data plane: keepalives end here, the non-ESP marker is taken off IKE and put back on, the rest is ESP and goes
up a batch at a time. It knows no message formats beyond those first octets and keeps no state about peers.

These are plain non-blocking sockets, not `asyncio-dgram`, for three reasons, the first measured. Answering
a 400 octet datagram costs 90 to 107 µs of CPU with `asyncio-dgram` 3.0 (a queue, a future and a task switch
each) and 12 to 14 µs here, in the same run on the same machine; two of them are in every establishment, whose
whole budget is below 1.4 ms, and every ESP packet behind a NAT is one. Its queue has no bound, so a flood
would grow memory. And it cannot say to which local address a datagram came: IKE has to answer from that one,
which IP_PKTINFO tells on a wildcard socket without watching for address changes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, Protocol

from offload.host import bpf, buffers
from sadb.address import Address, Path, SocketAddress, unspecified

MARK: Final = 0x1CE0  # our own packets carry it, so that policy routing keeps them out of the TUN device
NON_ESP_MARKER: Final = bytes(4)  # RFC 3948 section 2.2
KEEPALIVE: Final = b"\xff"  # RFC 3948 section 2.3
LARGEST: Final = 65_535
RECEIVE_BUFFER: Final = 4 << 20
LOOPBACK: Final = 1  # the index of lo
MOST_FAILING: Final = 4096  # paths on which sending fails that are remembered

# Linux numbers that the socket module of Python 3.11 does not name
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_DONT: Final = 0  # no DF: an IKE message may be fragmented by IP when it has to
IP_PKTINFO: Final = 8

_MEMINFO: Final = socket.SOL_SOCKET, 55, 36  # SO_MEMINFO: nine numbers
_DROPS: Final = struct.Struct("=32xI")  # SK_MEMINFO_DROPS, the last of them
_PKTINFO4: Final = struct.Struct("=i4s4s")  # interface, our address for replies, destination in the header
_PKTINFO6: Final = struct.Struct("=16si")
_SPACE: Final = socket.CMSG_SPACE(_PKTINFO6.size)


class Receiver(Protocol):
    """Who takes what arrives."""

    def ike(self, data: bytes, path: Path) -> None:
        """One IKE message, marker removed."""
        ...

    def esp(self, datagrams: Sequence[tuple[bytes, Path]]) -> None:
        """ESP packets out of UDP, in order of arrival."""
        ...

    def trouble(self, what: str, path: Path | None) -> None:
        """A datagram was dropped or could not be sent. Of one path the same is told once, until one gets out
        again."""
        ...

    def recovered(self, path: Path) -> None:
        """One got out where that failed before."""
        ...


@dataclass(slots=True)
class _Socket:
    """One bound socket."""

    sock: socket.socket
    address: Address
    port: int
    wildcard: bool
    nat: bool


class Transport:
    """All UDP sockets of the daemon. Create, `open`, and `close` on the event loop's thread."""

    def __init__(
        self,
        listen: Iterable[Address],
        ports: tuple[int, int],
        receiver: Receiver,
        *,
        interfaces: Sequence[str] = (),
        batch: int = 64,
        shared: bool = False,
    ) -> None:
        self.listen = tuple(listen)
        self.port, self.nat_port = ports
        self.receiver = receiver
        self.interfaces = frozenset(interfaces)
        self.batch = batch
        self.shared = shared
        self.marked = False
        self._sockets: list[_Socket] = []
        self._routes: dict[tuple[int, int, Address | None], _Socket] = {}
        self._wanted: dict[int, bool] = {}
        self._addresses: dict[bytes, Address] = {}
        self._places: Mapping[Address, int] = {}
        self._former = 0  # datagrams that sockets had not had room for when we got them
        self._failing: dict[Path, str] = {}  # where sending fails, and how

    def open(self, loop: asyncio.AbstractEventLoop, given: Sequence[socket.socket] = ()) -> None:
        """Bind every address on both ports; raises `OSError` with the address in its text, and then nothing
        stays open. A wildcard whose family this host does not have is left out. Sockets that are `given` are
        bound already and take the places of ours: all of them must be places where we want to listen."""
        places = [(address, port) for address in self.listen for port in (self.port, self.nat_port)]
        ready = {_place(one): one for one in given}
        try:
            for address, port in ready.keys() - places:
                wanted = ", ".join(map(str, self.listen))
                raise OSError(
                    errno.EINVAL,
                    f"systemd listens on UDP {SocketAddress(address, port)}, but daemon.listen is {wanted} "
                    f"with ports {self.port} and {self.nat_port}: change ListenDatagram= of ikd.socket "
                    "(systemctl edit ikd.socket), or ikd.toml",
                )
            for place in places:
                if place in ready:
                    self._take(ready[place], *place)
                else:
                    self._bind(*place)
        except OSError:
            for sock in given:
                sock.close()
            self.close()
            raise
        if not self._sockets:
            raise OSError("no address to listen on")
        self._former = self._drops()
        for one in self._sockets:
            loop.add_reader(one.sock, self._ready, one)

    def close(self) -> None:
        """Close all sockets."""
        for one in self._sockets:
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(one.sock)
            one.sock.close()
        self._sockets.clear()
        self._routes.clear()

    def sieve(self, strangers: float, returning: float) -> None:
        """Let the kernel throw away first messages but for a share chosen by chance, from 0 to 1, and another
        share of those that seem to return a cookie; what is for SAs there are passes."""
        for one in self._sockets:
            if strangers >= 1.0:
                bpf.detach_filter(one.sock)
            else:
                bpf.attach_filter(one.sock, bpf.sieve(one.nat, strangers, returning))

    def unread(self) -> int:
        """Datagrams so far that a socket had no room for, or that were thrown away unread. Not those before
        it was `given` to us."""
        return self._drops() - self._former

    def _drops(self) -> int:
        return sum(_DROPS.unpack_from(one.sock.getsockopt(*_MEMINFO))[0] for one in self._sockets)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """All of them, for whoever is to keep them."""
        return tuple(one.sock for one in self._sockets)

    def fits(self, sock: socket.socket) -> bool:
        """Whether a socket may be `given`."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_DGRAM:
            return False
        address, port = _place(sock)
        return address in self.listen and port in (self.port, self.nat_port)

    def shared_addresses(self) -> tuple[tuple[Address, int, socket.socket], ...]:
        """Where ESP in UDP comes, with the socket for IKE there: the first of those that share the place."""
        return tuple((one.address, one.port, one.sock) for one in self._sockets if one.nat)

    def send(self, data: bytes, path: Path) -> bool:
        """Send one IKE message or keepalive; whether the system took it. Never raises."""
        nat = path.local.port == self.nat_port
        return self._transmit(NON_ESP_MARKER + data if nat and data != KEEPALIVE else data, path)

    def send_esp(self, datagrams: Iterable[tuple[bytes, Path]]) -> int:
        """Send ESP packets in UDP; how many the system took."""
        return sum(self._transmit(data, path) for data, path in datagrams)

    def source_for(self, peer: Address) -> Address | None:
        """The local address from which a datagram to this peer leaves, or None without a route."""
        family = socket.AF_INET if peer.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                _mark(probe)
                probe.connect((str(peer), self.port))
                return ip_address(probe.getsockname()[0])
        except OSError:  # also on a host without IPv6, whose peer has addresses of it
            return None

    def is_local(self, address: Address) -> bool:
        """Whether packets to an address end here, by whatever route."""
        return address.is_loopback or self.source_for(address) == address

    def listens_on(self, local: Address) -> bool:
        """Whether what is sent to one of our addresses is taken: there are sockets for it, and the interface
        it is on is one of those that are wanted. Addresses of loopback come by any interface."""
        bound = any(unspecified(one) or one == local for one in self.listen if one.version == local.version)
        place = self._places.get(local)
        return bound and (not self.interfaces or place in (None, LOOPBACK) or self._listens(place))

    def network_changed(self, places: Mapping[Address, int]) -> None:
        """The interfaces of our addresses, which may have other names now."""
        self._places = places
        self._wanted.clear()

    def _bind(self, address: Address, port: int) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        wildcard = unspecified(address)
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:
            if wildcard and family == socket.AF_INET6:  # a host without IPv6
                return
            raise
        try:
            self.marked = _mark(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _prepare(sock)
            if self.shared and port == self.nat_port:
                _refuse_second(sock, address, port)
            sock.bind((str(address), port))
        except OSError as error:
            sock.close()
            if (
                wildcard
                and family == socket.AF_INET6
                and len(self.listen) > 1
                and error.errno == errno.EADDRNOTAVAIL
            ):
                return  # IPv6 is compiled in and switched off
            where = SocketAddress(address, port)
            raise OSError(error.errno, f"cannot listen on UDP {where}: {error.strerror}") from None
        self._use(sock, address, port)

    def _take(self, sock: socket.socket, address: Address, port: int) -> None:
        """A socket that somebody else bound, with everything that ours have."""
        try:
            if address.version == 6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
                raise OSError(errno.EINVAL, "it takes IPv4, too; set BindIPv6Only=ipv6-only")
            sock.setblocking(False)
            self.marked = _mark(sock)
            _prepare(sock)
            bpf.detach_filter(sock)  # a former run may have ended in a flood
            if self.shared and port == self.nat_port:
                _share(sock)
        except OSError as error:
            where = SocketAddress(address, port)
            raise OSError(error.errno, f"UDP {where} from systemd: {error.strerror}") from None
        self._use(sock, address, port)

    def _use(self, sock: socket.socket, address: Address, port: int) -> None:
        wildcard = unspecified(address)
        one = _Socket(sock, address, port, wildcard, port == self.nat_port)
        self._sockets.append(one)
        self._routes[(address.version, port, None if wildcard else address)] = one

    def _ready(self, one: _Socket) -> None:
        """Read a batch; the loop calls again when more is left."""
        esp: list[tuple[bytes, Path]] = []
        for _ in range(self.batch):
            try:
                data, ancillary, _, source = one.sock.recvmsg(LARGEST, _SPACE)
            except BlockingIOError:
                break
            except OSError as error:  # an error of an earlier datagram, reported late
                self.receiver.trouble(f"receive failed: {error.strerror}", None)
                continue
            local, interface = self._arrived_at(one, ancillary)
            if self.interfaces and not self._listens(interface):
                continue
            path = Path(SocketAddress(local, one.port), SocketAddress(self._address_of(source), source[1]))
            if not one.nat:
                self.receiver.ike(data, path)
            elif data[:4] == NON_ESP_MARKER:
                self.receiver.ike(data[4:], path)
            elif data != KEEPALIVE and data:
                esp.append((data, path))
        if esp:
            self.receiver.esp(esp)

    def _arrived_at(self, one: _Socket, ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[Address, int]:
        """To which of our addresses, and on which interface (0: unknown)."""
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= _PKTINFO4.size:
                interface, _, destination = _PKTINFO4.unpack_from(data)
                return self._cached(destination), interface
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
                destination, interface = _PKTINFO6.unpack_from(data)
                return self._cached(destination), interface
        return one.address, 0

    def _cached(self, packed: bytes) -> Address:
        """An address object; our own are few, and making one costs as much as a system call."""
        address = self._addresses.get(packed)
        if address is None:
            address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
            if len(self._addresses) < 4096:
                self._addresses[packed] = address
        return address

    def _address_of(self, source: Any) -> Address:
        return _peer(source[0], source[3] if len(source) > 2 else 0)

    def _listens(self, interface: int) -> bool:
        """Whether the administrator wants datagrams from this interface."""
        if interface not in self._wanted:
            try:
                self._wanted[interface] = socket.if_indextoname(interface) in self.interfaces
            except OSError:
                return False
        return self._wanted[interface]

    def _transmit(self, data: bytes, path: Path) -> bool:
        local, peer = path.local, path.peer
        version = peer.address.version
        one = self._routes.get((version, local.port, local.address)) or self._routes.get(
            (version, local.port, None)
        )
        if one is None:
            self._fails(f"no socket for {local}", path)
            return False
        try:
            one.sock.sendmsg(
                [data], _source(local.address) if one.wildcard else (), 0, (str(peer.address), peer.port)
            )
        except BlockingIOError:
            self._fails("send buffer is full", path)
            return False
        except (
            OSError
        ) as error:  # EMSGSIZE, ENETUNREACH, EPERM from a filter: the peer's retransmission decides
            self._fails(f"send failed: {error.strerror}", path)
            return False
        if self._failing and self._failing.pop(path, ""):
            self.receiver.recovered(path)
        return True

    def _fails(self, what: str, path: Path) -> None:
        """Tell of it, unless it is no news."""
        if self._failing.get(path) == what:
            return
        if len(self._failing) >= MOST_FAILING:
            self._failing.clear()
        self._failing[path] = what
        self.receiver.trouble(what, path)


@lru_cache(maxsize=4096)
def _peer(host: str, scope: int) -> Address:
    """The address of a peer; most have sent before."""
    if ":" not in host:
        return IPv4Address(host)
    return IPv6Address(host if "%" in host or not scope else f"{host}%{scope}")


def _source(address: Address) -> list[tuple[int, int, bytes]]:
    """Ancillary data that makes a wildcard socket send from this address."""
    if unspecified(address):
        return []
    if address.version == 4:
        return [(socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, address.packed, bytes(4)))]
    return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(address.packed, 0))]


def _mark(sock: socket.socket) -> bool:
    """Mark what this socket sends; whether we may (CAP_NET_ADMIN). Without, there is no TUN device either."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    except PermissionError:
        return False
    return True


def _refuse_second(sock: socket.socket, address: Address, port: int) -> None:
    """Let the workers share a place with a socket, but not a second daemon: raises `OSError` when somebody
    has it already, shared or not."""
    with socket.socket(sock.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        if sock.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((str(address), port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _share(sock: socket.socket) -> None:
    """Let the workers share the place of a socket that systemd made: sharing takes the same owner
    (socket(7), SO_REUSEPORT), and that is root."""
    if os.fstat(sock.fileno()).st_uid != os.geteuid():
        try:
            os.fchown(sock.fileno(), os.geteuid(), -1)
        except PermissionError as error:
            raise OSError(error.errno, "root owns it, and CAP_CHOWN is missing") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _place(sock: socket.socket) -> tuple[Address, int]:
    """Where a socket is bound."""
    host, port = sock.getsockname()[:2]
    return ip_address(host), port


def _prepare(sock: socket.socket) -> None:
    """Options of every socket: destination address wanted, no DF, room for a burst of first messages."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
    buffers.receive(sock, RECEIVE_BUFFER)
