"""What error queues say about the path MTU; the sockets themselves are tested in namespaces."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from offload.host.raw import AH, ESP, IP_RECVERR, IPV6_RECVERR, TooBig, reported

SPI = 0xC0FFEE01


def entry(code: int, mtu: int, *, six: bool = False) -> list[tuple[int, int, bytes]]:
    """Ancillary data as the kernel makes it."""
    value = struct.pack("=IBBBxII", code, 2, 3, 4, mtu, 0) + bytes(16)
    level = (socket.IPPROTO_IPV6, IPV6_RECVERR) if six else (socket.IPPROTO_IP, IP_RECVERR)
    return [(socket.SOL_SOCKET, 29, bytes(16)), (*level, value)]


@pytest.mark.parametrize(("protocol", "header"), [(ESP, b""), (AH, bytes(4))])
@pytest.mark.parametrize("peer", ["192.0.2.9", "2001:db8::9"])
def test_report_names_the_spi(protocol: int, header: bytes, peer: str) -> None:
    """The SPI stands elsewhere in AH; without it a stranger's message could not be told from a router's."""
    with socket.socket() as any_socket:
        found = reported(
            header + SPI.to_bytes(4, "big") + bytes(4),
            entry(errno.EMSGSIZE, 1400, six=":" in peer),
            peer,
            (any_socket, protocol),
        )
    assert found == TooBig(ip_address(peer), 1400, SPI)


def test_own_link_needs_no_spi() -> None:
    """What our own system says when we send is not to be doubted."""
    assert reported(b"", entry(errno.EMSGSIZE, 1300), "192.0.2.9", None) == TooBig(
        ip_address("192.0.2.9"), 1300
    )


@pytest.mark.parametrize(("peer", "least"), [("192.0.2.9", 576), ("2001:db8::9", 1280)])
def test_claims_below_the_least_mtu_are_raised(peer: str, least: int) -> None:
    """Else one forged message would make every packet a crumb."""
    found = reported(b"", entry(errno.EMSGSIZE, 68, six=":" in peer), peer, None)
    assert found
    assert found.mtu == least


def test_other_errors_and_cut_ones_say_nothing() -> None:
    """A port unreachable is no path MTU, and a message cut before the SPI proves nothing."""
    with socket.socket() as any_socket:
        assert reported(bytes(3), entry(errno.EMSGSIZE, 1400), "192.0.2.9", (any_socket, ESP)) is None
    assert reported(b"", entry(errno.ECONNREFUSED, 1400), "192.0.2.9", None) is None
    assert reported(b"", entry(errno.EMSGSIZE, 1400), "", None) is None
    assert reported(b"", [(socket.IPPROTO_IP, IP_RECVERR, b"short")], "192.0.2.9", None) is None
