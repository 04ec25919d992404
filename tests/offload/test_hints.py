"""What routers say about ESP in UDP; the sockets themselves are tested in namespaces."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import ip
from offload.host.hints import hint4, hint6
from offload.host.raw import TooBig
from tests.support.engines import datagram

HERE, PEER = {4: "198.51.100.1", 6: "2001:db8::1"}, {4: "192.0.2.9", 6: "2001:db8::9"}
SPI = 0xC0FFEE01
HEAD = {4: b"\3\4\0\0\0\0\x05\x14", 6: b"\2\0\0\0\0\0\x05\x14"}  # 1300
READ = {4: hint4, 6: hint6}


def message(version: int, quoted: bytes, head: bytes | None = None) -> bytes:
    """As the socket shows it: in IPv4 with the header of the router's packet."""
    body = (HEAD[version] if head is None else head) + quoted
    router = ip.Outer(ip_address("203.0.113.1"), ip_address(HERE[4]), 1)
    return (router.header(0, len(body)) if version == 4 else b"") + body


def sent(version: int) -> bytes:
    return datagram(HERE[version], PEER[version], SPI.to_bytes(4, "big") + bytes(200), ports=(4500, 61000))


@pytest.mark.parametrize("version", [4, 6])
def test_message_names_whom_it_is_about(version: int) -> None:
    """Ports and SPI are all by which a router's word can be told from a stranger's; RFC 792 lets routers
    quote eight octets behind the IP header."""
    whole, peer = sent(version), ip_address(PEER[version])
    assert READ[version](message(version, whole)) == TooBig(peer, 1300, SPI, (4500, 61000))
    short = whole[: (20 if version == 4 else 40) + 8]
    assert READ[version](message(version, short)) == TooBig(peer, 1300, None, (4500, 61000))
    assert READ[version](message(version, short[:-1])) is None


@pytest.mark.parametrize("version", [4, 6])
def test_other_messages_say_nothing(version: int) -> None:
    """Other errors have no MTU where this one has it, and other protocols no ports."""
    whole = sent(version)
    field = 9 if version == 4 else 6
    assert READ[version](message(version, whole[:field] + b"\6" + whole[field + 1 :])) is None
    assert READ[version](message(version, whole, b"\3\3" + HEAD[version][2:])) is None
    later = whole[:6] + b"\0\1" + whole[8:]
    if version == 4:
        assert hint4(message(4, later)) is None


@given(st.binary(max_size=128), st.sampled_from([4, 6]), st.booleans())
def test_any_octets_are_read_or_left(data: bytes, version: int, framed: bool) -> None:
    """Anybody can send ICMP."""
    found = READ[version](message(version, data) if framed else data)
    assert found is None or found.destination.version == version
