"""Shell. What routers say about the size of ESP in UDP: ICMP errors, on raw sockets of their own.

The error queue of a UDP socket does not serve here. Of all sockets that share a port the kernel gives an
error to any one, that for IKE among them, and lets its next datagram fail. So each worker hears every
message, as it does of raw ESP (`offload.host.raw`), and a stranger's costs nothing but being read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from offload.channel import address
from offload.host import bpf
from offload.host.raw import HEARD, TooBig

_LONGEST: Final = 60 + 8 + 60  # octets looked at: an IPv4 header, ICMP, and what it quotes up to the SPI


def opened() -> list[socket.socket]:
    """A socket for each IP version this host has; raises `OSError`."""
    made: list[socket.socket] = []
    for family, protocol in (
        (socket.AF_INET, socket.IPPROTO_ICMP),
        (socket.AF_INET6, socket.IPPROTO_ICMPV6),
    ):
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            one = socket.socket(family, kind, protocol)
        except OSError:
            if family == socket.AF_INET6 and made:
                continue  # a host without IPv6
            raise
        made.append(one)
        bpf.attach_filter(one, bpf.too_big(family == socket.AF_INET))
    return made


class Hints:
    """The sockets of one worker."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._sockets = {one.fileno(): one for one in sockets}

    def filenos(self) -> tuple[int, ...]:
        """Each is readable when messages wait."""
        return tuple(self._sockets)

    def read(self, fileno: int) -> list[TooBig]:
        """Some of what waits on a socket, oldest first. Never waits or raises."""
        sock, found = self._sockets[fileno], []
        for _ in range(HEARD):
            try:
                data = sock.recv(_LONGEST)
            except OSError:
                break
            hint = hint4(data) if sock.family == socket.AF_INET else hint6(data)
            if hint is not None:
                found.append(hint)
        return found


def hint4(packet: bytes) -> TooBig | None:
    """Fragmentation needed (RFC 1191 section 4) about a datagram, its IP header before it; None for anything
    else. What it quotes may end behind the ports."""
    start = (packet[0] & 15) * 4 if packet else 0
    quoted = packet[start + 8 :]
    if len(quoted) < 28 or packet[start : start + 2] != b"\3\4" or quoted[0] != 0x45:
        return None
    if quoted[9] != socket.IPPROTO_UDP or quoted[6] & 0x1F or quoted[7]:
        return None
    return _hint(quoted[16:20], packet[start + 6 : start + 8], quoted[20:])


def hint6(message: bytes) -> TooBig | None:
    """Packet too big (RFC 4443 section 3.2) about a datagram, without an IP header; None for anything
    else."""
    quoted = message[8:]
    if len(quoted) < 48 or message[:2] != b"\2\0" or quoted[0] >> 4 != 6 or quoted[6] != socket.IPPROTO_UDP:
        return None
    return _hint(quoted[24:40], message[4:8], quoted[40:])


def _hint(destination: bytes, mtu: bytes, udp: bytes) -> TooBig:
    ports = int.from_bytes(udp[:2], "big"), int.from_bytes(udp[2:4], "big")
    spi = int.from_bytes(udp[8:12], "big") if len(udp) >= 12 else None
    return TooBig(address(destination), int.from_bytes(mtu, "big"), spi, ports)
