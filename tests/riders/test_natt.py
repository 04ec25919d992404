"""NAT detection hashes (RFC 7296 section 2.23).

If one of these fails, we see NATs where there are none, or none where there are.
"""

from __future__ import annotations

import hashlib
from ipaddress import ip_address

from ikd.riders.natt import KEEPALIVE, fingerprint
from sadb.address import SocketAddress

SPI_I, SPI_R = bytes.fromhex("0011223344556677"), bytes.fromhex("8899aabbccddeeff")


def test_known_answer_ipv4() -> None:
    """SHA-1 over SPIs, four octets of address and the port in network order, written out by hand."""
    where = SocketAddress(ip_address("192.0.2.1"), 500)
    octets = bytes.fromhex("00112233445566778899aabbccddeeffc000020101f4")
    assert fingerprint(SPI_I, SPI_R, where) == hashlib.sha1(octets).digest()
    assert fingerprint(SPI_I, SPI_R, where).hex() == "f62ead21e6a756c429b205b272e506bec103e0ea"


def test_known_answer_ipv6() -> None:
    """The same with sixteen octets of address, and the zero SPI of a first message."""
    where = SocketAddress(ip_address("2001:db8::1"), 4500)
    octets = bytes.fromhex("0011223344556677" + "00" * 8 + "20010db80000000000000000000000011194")
    assert fingerprint(SPI_I, bytes(8), where) == hashlib.sha1(octets).digest()


def test_everything_counts() -> None:
    """Address, port and both SPIs."""
    where = SocketAddress(ip_address("192.0.2.1"), 500)
    found = {
        fingerprint(SPI_I, SPI_R, where),
        fingerprint(SPI_R, SPI_I, where),
        fingerprint(SPI_I, bytes(8), where),
        fingerprint(SPI_I, SPI_R, SocketAddress(ip_address("192.0.2.2"), 500)),
        fingerprint(SPI_I, SPI_R, SocketAddress(ip_address("192.0.2.1"), 4500)),
    }
    assert len(found) == 5


def test_keepalive() -> None:
    """RFC 3948 section 2.3: one octet, 0xFF."""
    assert KEEPALIVE == b"\xff"
