"""Shell. Raw sockets: ESP and AH (protocols 50 and 51) as they come off the wire and as they leave.

What leaves are whole IP packets of the engine's making, marked so that policy routing keeps them out of the
TUN device. The path MTU is learned from the error queues (ip(7), IP_RECVERR), for our protocols only. The
kernel's own cache is not asked and does not limit us (IP_PMTUDISC_PROBE): in transport mode it is shared with
the inner packets, whose smaller MTU would come back as that of the path and shrink both without end.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from offload.host import bpf, buffers
from offload.outer import Arrived, Outgoing
from sadb.address import Address
from sadb.backend import Unavailable

ESP: Final = 50
AH: Final = 51
LARGEST: Final = 65_535
BUFFER: Final = 8 << 20
LEAST: Final = {4: 576, 6: 1280}  # a smaller path MTU is nobody's, whoever claims it
TOLD: Final = 256  # reports kept until they are fetched
HEARD: Final = 16  # entries of an error queue taken at once: anybody can fill it
ADDRESSES: Final = 8192  # address objects kept; a stranger can vary them, so the table is emptied when full

# Linux numbers that the socket module of Python 3.11 does not name
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IPV6_MTU_DISCOVER: Final = 23
IPV6_RECVERR: Final = 25
PMTUDISC_PROBE: Final = 3  # DF, and the link is the only limit

_RIGHTS: Final = (
    "CAP_NET_RAW and CAP_NET_ADMIN are missing: run as root or with the rights in systemd/ikd.service"
)
_PKTINFO6: Final = struct.Struct("=16si")
_INT: Final = struct.Struct("=i")
_ERROR: Final = struct.Struct("=IBBBxII")  # sock_extended_err: errno, origin, type, code, info, data
_SPACE: Final = socket.CMSG_SPACE(_PKTINFO6.size) + socket.CMSG_SPACE(_INT.size)
_ERROR_SPACE: Final = 512
_ERROR_KINDS: Final = frozenset(((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)))


@dataclass(frozen=True, slots=True)
class TooBig:
    """Packets to `destination` may have at most `mtu` octets. `spi` is that of the packet an ICMP message is
    about, and `ports` are its UDP ports, ours first: anybody can send one, so believe it for an SA of ours
    only. Without ports, no SPI means that our own link said so; with them, that the message is short."""

    destination: Address
    mtu: int
    spi: int | None = None
    ports: tuple[int, int] | None = None


class RawSockets:
    """All raw sockets of one worker, for the families this host has."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        """Over what `opened` gave, perhaps to another process."""
        self.counters: Counter[str] = Counter()
        self._told: deque[TooBig] = deque(maxlen=TOLD)
        self._addresses: dict[bytes, Address] = {}
        self._receivers: dict[int, tuple[socket.socket, int]] = {}
        self._senders: dict[int, socket.socket] = {}
        for one in sockets:
            if one.proto == socket.IPPROTO_RAW:
                self._senders[4 if one.family == socket.AF_INET else 6] = one
            else:
                self._receivers[one.fileno()] = one, one.proto

    @staticmethod
    def opened(mark: int, share: int = 0, shares: int = 1) -> list[socket.socket]:
        """New sockets whose packets carry a mark, and which get one of several shares of all SPIs; raises
        `Unavailable`."""
        made: list[socket.socket] = []
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                try:
                    sender = _socket(family, socket.IPPROTO_RAW)
                except OSError as error:
                    if family == socket.AF_INET6 and error.errno == errno.EAFNOSUPPORT:
                        continue  # a host without IPv6
                    raise
                made.append(sender)
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                for protocol in (ESP, AH):
                    one = _socket(family, protocol)
                    made.append(one)
                    if shares > 1:
                        # in IPv4 the program sees the header, in IPv6 it does not (raw(7), ipv6(7))
                        at = 0 if protocol == ESP else 4  # RFC 4303 section 2, RFC 4302 section 2
                        bpf.attach_filter(one, bpf.share(at, share, shares, family == socket.AF_INET))
        except OSError as error:
            for one in made:
                one.close()
            reason = _RIGHTS if isinstance(error, PermissionError) else error.strerror
            raise Unavailable(f"no raw sockets for ESP: {reason}") from None
        return made

    def sender(self, version: int) -> int:
        """The descriptor that sends packets of an IP version, or -1."""
        found = self._senders.get(version)
        return found.fileno() if found else -1

    def senders(self) -> tuple[int, ...]:
        """Descriptors with an error when the system said why it did not send."""
        return tuple(one.fileno() for one in self._senders.values())

    def close(self) -> None:
        """Close all sockets; safe to repeat."""
        for one in (*self._senders.values(), *(sock for sock, _ in self._receivers.values())):
            one.close()
        self._senders.clear()
        self._receivers.clear()

    def receivers(self) -> tuple[tuple[int, int], ...]:
        """Descriptors that are readable when packets, or errors about ours, wait, each with its protocol."""
        return tuple((fileno, protocol) for fileno, (_, protocol) in self._receivers.items())

    def read_batch(self, fileno: int, limit: int) -> list[Arrived]:
        """Up to `limit` packets that wait on one socket. Never waits or raises."""
        found = self._receivers.get(fileno)
        if found is None:
            return []
        sock, protocol = found
        four = sock.family == socket.AF_INET
        packets: list[Arrived] = []
        for _ in range(limit):
            try:
                data, ancillary, _, source = sock.recvmsg(LARGEST, 0 if four else _SPACE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:  # an ICMP message about a packet of ours; it waits in the queue
                self._hear(sock)
                continue
            arrived = self._four(data, protocol) if four else self._six(data, ancillary, source[0], protocol)
            if arrived:
                packets.append(arrived)
            else:
                self.counters["malformed"] += 1
        return packets

    def write_batch(self, packets: Iterable[Outgoing]) -> int:
        """Send whole IP packets; how many the system took. Never raises: what it refuses is counted, and what
        is too big for the link is told by `told`."""
        sent = 0
        for packet in packets:
            data = packet.data
            version = data[0] >> 4 if data else 0
            sender = self._senders.get(version)
            if sender is None or len(data) < (20 if version == 4 else 40):
                self.counters["no socket" if data else "malformed"] += 1
                continue
            try:
                sender.sendto(data, socket.MSG_DONTWAIT, (_destination(data), 0))
                sent += 1
            except OSError as error:
                self.counters[_FAILURES.get(error.errno or 0, "send failed")] += 1
                if error.errno == errno.EMSGSIZE:
                    self._hear(sender)
        return sent

    def hear(self, fileno: int) -> None:
        """Something went wrong on one of these sockets: see what the network says of it."""
        for one in (*self._senders.values(), *(sock for sock, _ in self._receivers.values())):
            if one.fileno() == fileno:
                self._hear(one)

    def told(self) -> list[TooBig]:
        """What was learned about path MTUs since the last call, oldest first; the engine wants to know."""
        reports = list(self._told)
        self._told.clear()
        return reports

    def _hear(self, sock: socket.socket) -> None:
        """Take what a socket's error queue holds, and keep what says something about the path MTU."""
        with suppress(OSError):
            for _ in range(HEARD):
                data, ancillary, _, about = sock.recvmsg(
                    64, _ERROR_SPACE, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
                receiver = self._receivers.get(sock.fileno())
                if receiver:
                    self.counters["icmp errors"] += 1
                report = reported(data, ancillary, about[0] if about else "", receiver)
                if report:
                    self._told.append(report)

    def _four(self, data: bytes, protocol: int) -> Arrived | None:
        """A packet with its IPv4 header."""
        start = (data[0] & 15) * 4 if data else 0
        if start < 20 or len(data) < start:
            return None
        return Arrived(
            protocol,
            self._address(data[12:16]),
            self._address(data[16:20]),
            data[start:],
            data[1],
            data[:start],
        )

    def _six(
        self, data: bytes, ancillary: Sequence[tuple[int, int, bytes]], source: str, protocol: int
    ) -> Arrived | None:
        """A packet without its IPv6 header, which the system shows as ancillary data."""
        destination, traffic_class = None, 0
        for level, kind, value in ancillary:
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                destination = self._address(value[:16])
            elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_TCLASS):
                (traffic_class,) = _INT.unpack(value)
        if destination is None:
            return None
        packed = socket.inet_pton(socket.AF_INET6, source.partition("%")[0])
        return Arrived(protocol, self._address(packed), destination, data, traffic_class)

    def _address(self, packed: bytes) -> Address:
        """An address object: peers are few, and making one costs as much as a system call."""
        address = self._addresses.get(packed)
        if address is None:
            if len(self._addresses) >= ADDRESSES:
                self._addresses.clear()
            address = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
            self._addresses[packed] = address
        return address


_FAILURES: Final = {
    errno.EMSGSIZE: "too big",
    errno.EAGAIN: "send buffer full",
    errno.ENOBUFS: "send buffer full",
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "no route",
    errno.EPERM: "refused by a packet filter",
}


def _socket(family: socket.AddressFamily, protocol: int) -> socket.socket:
    """A raw socket with room for bursts that keeps errors for `_hear`."""
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        if protocol == socket.IPPROTO_RAW:  # it only sends, yet a raw socket receives its own protocol, 255
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            buffers.send(sock, BUFFER)
        else:
            buffers.receive(sock, BUFFER)
    except OSError:
        sock.close()
        raise
    return sock


def _destination(data: bytes) -> str:
    if data[0] >> 4 == 4:
        return socket.inet_ntoa(data[16:20])
    return socket.inet_ntop(socket.AF_INET6, data[24:40])


def reported(
    data: bytes,
    ancillary: Sequence[tuple[int, int, bytes]],
    about: str,
    receiver: tuple[socket.socket, int] | None,
) -> TooBig | None:
    """The report in one entry of an error queue; `data` is the ESP or AH header of the packet it is about."""
    for level, kind, value in ancillary:
        if (level, kind) not in _ERROR_KINDS or len(value) < _ERROR.size:
            continue
        code, _, _, _, mtu, _ = _ERROR.unpack_from(value)
        if code != errno.EMSGSIZE or not about:
            return None
        address = socket.inet_pton(
            socket.AF_INET6 if ":" in about else socket.AF_INET, about.partition("%")[0]
        )
        destination = IPv4Address(address) if len(address) == 4 else IPv6Address(address)
        spi = None
        if receiver:
            at = 0 if receiver[1] == ESP else 4  # RFC 4303 section 2, RFC 4302 section 2
            if len(data) < at + 4:
                return None
            spi = int.from_bytes(data[at : at + 4], "big")
        return TooBig(destination, max(mtu, LEAST[destination.version]), spi)
    return None
