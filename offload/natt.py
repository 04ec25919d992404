"""Shell. UDP sockets for ESP alone, beside the daemon's for IKE on the same port (RFC 3948): trains in,
trains out.

Linux takes and gives several datagrams of one length at once (udp(7), UDP_SEGMENT and UDP_GRO). Each socket
is one worker's; `offload.bpf.demultiplexer` decides who gets what."""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from offload.channel import address
from offload.outer import Arrived, Outgoing
from sadb.address import Address, Path, SocketAddress

ESP: Final = 50
LARGEST: Final = 65_535
BUFFER: Final = 16 << 20
ADDRESSES: Final = 8192  # socket addresses kept; a stranger can vary them, so the table is emptied when full
MTU: Final = 1500  # of a link that says nothing, or less: smaller ones are learned from the network

# Linux numbers that the socket module of Python 3.11 does not name
IP_MTU_DISCOVER, IP_PKTINFO, IP_RECVTOS, IP_MTU = 10, 8, 13, 14
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
PMTUDISC_DONT: Final = 0  # no DF: what became too long on the way is fragmented by IP
UDP_SEGMENT, UDP_GRO = 103, 104
SO_RXQ_OVFL, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 40, 32, 33

_INT: Final = struct.Struct("=i")
_SHORT: Final = struct.Struct("=H")
_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")
_SPACE: Final = 256
_WHOLE: Final = frozenset(
    (errno.EINVAL, errno.EMSGSIZE, errno.EIO)
)  # the system will not cut a train up here
_FAILURES: Final = {
    errno.EAGAIN: "send-buffer-full",
    errno.ENOBUFS: "send-buffer-full",
    errno.EMSGSIZE: "send-too-big",
    errno.ENETUNREACH: "send-no-route",
    errno.EHOSTUNREACH: "send-no-route",
}

_Ancillary = list[tuple[int, int, bytes]]


def opened(where: Address, port: int, mark: int) -> socket.socket:
    """A socket bound to what the daemon's is, for one worker; raises `OSError`."""
    four = where.version == 4
    sock = socket.socket(
        socket.AF_INET if four else socket.AF_INET6,
        socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        if four:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
        sock.bind((str(where), port))
    except OSError:
        sock.close()
        raise
    return sock


class NattSockets:
    """The sockets of one worker."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self.counters: Counter[str] = Counter()
        self._sockets = {one.fileno(): one for one in sockets}
        self._bound: dict[tuple[int, str, int], socket.socket] = {}
        self._wildcards: dict[tuple[int, int], socket.socket] = {}
        self._names: dict[tuple[bytes, int], SocketAddress] = {}
        self._overflows: dict[int, int] = {}
        self._ports = {fileno: one.getsockname()[1] for fileno, one in self._sockets.items()}
        for one in self._sockets.values():
            version = 4 if one.family == socket.AF_INET else 6
            host, port = one.getsockname()[:2]
            if host in ("0.0.0.0", "::"):
                self._wildcards[version, port] = one
            else:
                self._bound[version, host, port] = one

    def filenos(self) -> tuple[int, ...]:
        """Each is readable when datagrams wait."""
        return tuple(self._sockets)

    def sender(self, local: Address, port: int) -> tuple[int, bool]:
        """The descriptor that sends from an address, and whether that has to be said; -1 if there is none."""
        found = self._bound.get((local.version, str(local), port))
        if found is not None:
            return found.fileno(), False
        found = self._wildcards.get((local.version, port))
        return found.fileno() if found is not None else -1, True

    def read_batch(self, fileno: int, limit: int) -> list[Arrived]:
        """Up to `limit` trains that wait on one socket. Never waits or raises."""
        sock = self._sockets[fileno]
        found: list[Arrived] = []
        for _ in range(limit):
            try:
                data, ancillary, _, source = sock.recvmsg(LARGEST, _SPACE)
            except BlockingIOError:
                break
            except OSError:  # an error of an earlier datagram, reported late
                continue
            arrived = self._arrived(sock, data, ancillary, source)
            if arrived:
                found.append(arrived)
        return found

    def write_batch(self, packets: Sequence[Outgoing]) -> None:
        """Send datagrams and trains; what the system refuses is counted packet by packet."""
        for packet in packets:
            assert packet.path is not None
            try:
                self._send(packet, packet.data, packet.segment)
            except OSError as error:
                if packet.segment and error.errno in _WHOLE:
                    self._send_segments(packet)
                else:
                    segment = packet.segment or len(packet.data)
                    self._count(error, -(-len(packet.data) // segment))

    def _send_segments(self, packet: Outgoing) -> None:
        for at in range(0, len(packet.data), packet.segment):
            try:
                self._send(packet, packet.data[at : at + packet.segment], 0)
            except OSError as error:
                self._count(error, 1)

    def _count(self, error: OSError, packets: int) -> None:
        self.counters[_FAILURES.get(error.errno or 0, "send-failed")] += packets

    def _send(self, packet: Outgoing, data: bytes, segment: int) -> None:
        """One system call; raises `OSError`."""
        assert packet.path is not None
        local, peer = packet.path.local, packet.path.peer
        fileno, wildcard = self.sender(local.address, local.port)
        if fileno < 0:
            raise OSError(errno.ENETUNREACH, "no socket")
        ancillary: _Ancillary = []
        traffic = _INT.pack(packet.traffic_class)
        if local.address.version == 4:
            ancillary.append((socket.IPPROTO_IP, socket.IP_TOS, traffic))
            if wildcard:
                from_ = _PKTINFO4.pack(0, local.address.packed, bytes(4))
                ancillary.append((socket.IPPROTO_IP, IP_PKTINFO, from_))
        else:
            ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, traffic))
            if wildcard:
                from_ = _PKTINFO6.pack(local.address.packed, 0)
                ancillary.append((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, from_))
        if segment:
            ancillary.append((socket.IPPROTO_UDP, UDP_SEGMENT, _SHORT.pack(segment)))
        self._sockets[fileno].sendmsg([data], ancillary, 0, (str(peer.address), peer.port))

    def _arrived(
        self, sock: socket.socket, data: bytes, ancillary: _Ancillary, source: tuple[str, int]
    ) -> Arrived | None:
        segment, traffic, packed = 0, 0, b""
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                (segment,) = _INT.unpack_from(value)
            elif (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS):
                traffic = value[0]
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_TCLASS):
                (traffic,) = _INT.unpack_from(value)
            elif (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                packed = value[8:12]
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                packed = value[:16]
            elif (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
                total = int.from_bytes(value[:4], "little")
                self.counters["receive-buffer-full"] += total - self._overflows.get(sock.fileno(), 0)
                self._overflows[sock.fileno()] = total
        if not packed or data == b"\xff":  # a keepalive (RFC 3948 section 2.3)
            return None
        peer = socket.inet_pton(sock.family, source[0].partition("%")[0])
        return self.arrived(sock.fileno(), data, peer, source[1], packed, traffic, segment)

    def arrived(
        self, fileno: int, data: bytes, source: bytes, port: int, local: bytes, traffic: int, segment: int = 0
    ) -> Arrived:
        """A train that came to one of the sockets, with its addresses."""
        peer, here = self._name(source, port), self._name(local, self._ports[fileno])
        path = Path(here, peer)
        return Arrived(ESP, peer.address, here.address, data, traffic, path=path, segment=segment)

    def _name(self, packed: bytes, port: int) -> SocketAddress:
        """An address object: making one costs as much as a system call."""
        found = self._names.get((packed, port))
        if found is None:
            if len(self._names) >= ADDRESSES:
                self._names.clear()
            found = self._names[packed, port] = SocketAddress(address(packed), port)
        return found


class Probes:
    """Asks which packets a link takes. What the kernel knows of the path beyond the link is not asked, see
    `offload.raw`."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self._sockets: dict[int, socket.socket] = {}

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets.values():
            one.close()

    def link_mtu(self, destination: Address) -> int:
        """Octets of a packet that the link towards an address takes, at least 1500."""
        four = destination.version == 4
        try:
            probe = self._sockets.get(destination.version)
            if probe is None:
                family = socket.AF_INET if four else socket.AF_INET6
                probe = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._sockets[destination.version] = probe
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            probe.connect((str(destination), 9))
            option = (socket.IPPROTO_IP, IP_MTU) if four else (socket.IPPROTO_IPV6, IPV6_MTU)
            return max(MTU, min(probe.getsockopt(*option), LARGEST))
        except OSError:
            return MTU
