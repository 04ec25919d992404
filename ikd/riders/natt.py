"""NAT detection, RFC 7296 section 2.23: hashes that show whether addresses or ports changed on the way."""

from __future__ import annotations

import hashlib

from sadb.address import SocketAddress

KEEPALIVE = b"\xff"  # RFC 3948 section 2.3


def fingerprint(spi_i: bytes, spi_r: bytes, where: SocketAddress) -> bytes:
    """SHA-1 of SPIs, address and port, as they stand in NAT_DETECTION_*_IP. It guards nothing: a liar only
    gets UDP encapsulation."""
    octets = spi_i + spi_r + where.address.packed + where.port.to_bytes(2, "big")
    return hashlib.sha1(octets, usedforsecurity=False).digest()
