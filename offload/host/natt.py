"""Shell. UDP sockets for ESP alone, beside the daemon's for IKE on the same port (RFC 3948): trains in,
trains out.

Linux takes and gives several datagrams of one length at once (udp(7), UDP_SEGMENT and UDP_GRO). Each socket
is one worker's; `offload.host.bpf.demultiplexer` decides who gets what. DF is a property of the socket
(ip(7)), so each has two at a place: one for datagrams that have it, which receives, too, and one for those
that IP may cut up. What the kernel believes about a path does not limit the first, see `offload.host.raw`;
what does not fit the link itself goes by the second."""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from offload.channel import address
from offload.host import buffers
from offload.host.raw import (
    IP_MTU_DISCOVER,
    IP_RECVERR,
    IPV6_MTU_DISCOVER,
    IPV6_RECVERR,
    LARGEST,
    PMTUDISC_PROBE,
    reported,
)
from offload.outer import Arrived, Outgoing
from sadb.address import Address, Path, SocketAddress

ESP: Final = 50
BUFFER: Final = 16 << 20
ADDRESSES: Final = 8192  # socket addresses kept; a stranger can vary them, so the table is emptied when full
MTU: Final = 1500  # octets, of a link that says nothing

# Linux numbers that the socket module of Python 3.11 does not name
IP_PKTINFO, IP_RECVTOS, IP_MTU, IPV6_MTU = 8, 13, 14, 24
PMTUDISC_DONT: Final = 0  # no DF: IP fragments
UDP_SEGMENT, UDP_GRO = 103, 104
SO_RXQ_OVFL = 40

_INT: Final = struct.Struct("=i")
_SHORT: Final = struct.Struct("=H")
_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")
_SPACE: Final = 256
_NO_LINKS: Final = bytes(65_507)  # the largest datagram of IPv4
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


def opened(where: Address, port: int, mark: int, *, receives: bool = True) -> socket.socket:
    """A socket bound to what the daemon's is, for one worker: that with DF, which receives, or the other one;
    raises `OSError`."""
    four = where.version == 4
    discovery = PMTUDISC_PROBE if receives else PMTUDISC_DONT
    sock = socket.socket(
        socket.AF_INET if four else socket.AF_INET6,
        socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        buffers.receive(sock, BUFFER if receives else 0)
        buffers.send(sock, BUFFER)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        if four:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discovery)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, discovery)
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
        self._bound: dict[tuple[bool, int, str, int], socket.socket] = {}
        self._wildcards: dict[tuple[bool, int, int], socket.socket] = {}
        self._names: dict[tuple[bytes, int], SocketAddress] = {}
        self._overflows: dict[int, int] = {}
        self._ports = {fileno: one.getsockname()[1] for fileno, one in self._sockets.items()}
        for one in self._sockets.values():
            version = 4 if one.family == socket.AF_INET else 6
            host, port = one.getsockname()[:2]
            if host in ("0.0.0.0", "::"):
                self._wildcards[_whole(one), version, port] = one
            else:
                self._bound[_whole(one), version, host, port] = one

    def close(self) -> None:
        """Close all sockets; safe to repeat."""
        for one in self._sockets.values():
            one.close()

    def filenos(self) -> tuple[int, ...]:
        """Each is readable when datagrams wait."""
        return tuple(fileno for fileno, one in self._sockets.items() if _whole(one))

    def sender(self, local: Address, port: int, dont_fragment: bool) -> tuple[int, bool]:
        """The descriptor that sends from an address, with DF or without, and whether the address has to be
        said; -1 if there is none."""
        found = self._bound.get((dont_fragment, local.version, str(local), port))
        if found is not None:
            return found.fileno(), False
        found = self._wildcards.get((dont_fragment, local.version, port))
        return found.fileno() if found is not None else -1, True

    def read_batch(self, fileno: int, limit: int) -> list[Arrived]:
        """Up to `limit` trains that wait on one socket. Never waits or raises."""
        sock = self._sockets[fileno]
        found: list[Arrived] = []
        for _ in range(limit):
            try:
                data, ancillary, _, source = sock.recvmsg(LARGEST, _SPACE, socket.MSG_DONTWAIT)
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
                self._send(packet, packet.data, packet.segment, packet.dont_fragment)
            except OSError as error:
                if error.errno in _WHOLE:
                    self._send_segments(packet)
                else:
                    segment = packet.segment or len(packet.data)
                    self._count(error, -(-len(packet.data) // segment))

    def _send_segments(self, packet: Outgoing) -> None:
        """One by one, and without DF what the link does not take."""
        size = packet.segment or len(packet.data)
        for at in range(0, len(packet.data), size):
            data = packet.data[at : at + size]
            try:
                try:
                    self._send(packet, data, 0, packet.dont_fragment)
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
                    self._send(packet, data, 0, False)
            except OSError as error:
                self._count(error, 1)

    def _count(self, error: OSError, packets: int) -> None:
        self.counters[_FAILURES.get(error.errno or 0, "send-failed")] += packets

    def _send(self, packet: Outgoing, data: bytes, segment: int, dont_fragment: bool) -> None:
        """One system call; raises `OSError`."""
        assert packet.path is not None
        local, peer = packet.path.local, packet.path.peer
        fileno, wildcard = self.sender(local.address, local.port, dont_fragment)
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
        self._sockets[fileno].sendmsg([data], ancillary, socket.MSG_DONTWAIT, (str(peer.address), peer.port))

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


def _whole(sock: socket.socket) -> bool:
    """Whether what a socket sends has DF."""
    four = sock.family == socket.AF_INET
    option = (socket.IPPROTO_IP, IP_MTU_DISCOVER) if four else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
    return sock.getsockopt(*option) == PMTUDISC_PROBE


class Probes:
    """Asks which packets a link takes, with datagrams that none takes. What the kernel knows of the path
    beyond the link does not count, see `offload.host.raw`."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self._sockets: dict[int, socket.socket] = {}

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets.values():
            one.close()

    def link_mtu(self, destination: Address) -> int:
        """Octets of a packet that the link towards an address takes; 1500 when nobody knows."""
        try:
            probe = self._probe(destination.version)
            probe.connect((str(destination), 9))
            four = destination.version == 4
            option = (socket.IPPROTO_IP, IP_MTU) if four else (socket.IPPROTO_IPV6, IPV6_MTU)
            if probe.getsockopt(*option) >= LARGEST:  # it would be sent
                return LARGEST
            with suppress(OSError):
                probe.send(_NO_LINKS)
            _, ancillary, _, about = probe.recvmsg(0, _SPACE, socket.MSG_ERRQUEUE)
            report = reported(b"", ancillary, about[0], None)
            return report.mtu if report else MTU
        except OSError:
            return MTU

    def _probe(self, version: int) -> socket.socket:
        probe = self._sockets.get(version)
        if probe is None:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            probe = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._sockets[version] = probe
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            if version == 4:
                probe.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
                probe.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            else:
                probe.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
                probe.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        return probe
