"""sadb.address: addresses and paths."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from sadb.address import NATT_PORT, Path, SocketAddress, parse, unspecified


def test_text_can_be_told_apart_from_a_port() -> None:
    """Without brackets the port of an IPv6 end point would read as part of its address."""
    assert str(SocketAddress(ip_address("192.0.2.1"), 500)) == "192.0.2.1:500"
    assert str(SocketAddress(ip_address("2001:db8::1"), 4500)) == "[2001:db8::1]:4500"


def test_path_moves_both_ends_and_keeps_addresses() -> None:
    """A move to UDP 4500 that changed only one end would send what no one listens to."""
    path = Path(SocketAddress(ip_address("192.0.2.1"), 500), SocketAddress(ip_address("192.0.2.2"), 1024))
    moved = path.moved(NATT_PORT)
    assert (moved.local.port, moved.peer.port) == (4500, 4500)
    assert (moved.local.address, moved.peer.address) == (path.local.address, path.peer.address)
    assert str(path) == "192.0.2.1:500 -> 192.0.2.2:1024"


@pytest.mark.parametrize(("text", "any_address"), [("0.0.0.0", True), ("::", True), ("::1", False)])
def test_unspecified_stands_for_any(text: str, any_address: bool) -> None:
    """A host address taken for "any" would bind or match far too much."""
    assert unspecified(parse(text)) is any_address


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.0/8", "host.example", "1.2.3.4:500"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """A prefix or name taken for an address would fail much later, far from its line."""
    with pytest.raises(ValueError):  # noqa: PT011
        parse(text)
