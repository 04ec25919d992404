"""Addresses and paths, in the one form all packages use."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

IKE_PORT = 500
NATT_PORT = 4500


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """A UDP end point: address and port."""

    address: Address
    port: int

    def __str__(self) -> str:
        text = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{text}:{self.port}"


@dataclass(frozen=True, slots=True)
class Path:
    """Where a datagram comes from and goes to, seen from here."""

    local: SocketAddress
    peer: SocketAddress

    def __str__(self) -> str:
        return f"{self.local} -> {self.peer}"

    def moved(self, port: int) -> Path:
        """The same pair of addresses on another port at both ends (UDP 500 to UDP 4500)."""
        return Path(SocketAddress(self.local.address, port), SocketAddress(self.peer.address, port))


def unspecified(address: Address) -> bool:
    """Whether the address is 0.0.0.0 or ::, which stand for "any"."""
    return int(address) == 0


def parse(text: str) -> Address:
    """An address from text; raises `ValueError`."""
    return ip_address(text)
