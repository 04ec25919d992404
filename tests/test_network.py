"""ikd.network: what the kernel says about addresses and routes."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd import network
from ikd.network import OURS, tables

NEWADDR, DELADDR, NEWROUTE, DELROUTE = 20, 21, 24, 25


def message(kind: int, body: bytes) -> bytes:
    """A message of netlink, padded."""
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body + bytes(-len(body) % 4)


def route(table: int, *, small: int = 0) -> bytes:
    """A route in a table, which has its number in an attribute behind others."""
    oif, number = struct.pack("=HHI", 8, 4, 3), struct.pack("=HHI", 8, 15, table)
    return bytes((socket.AF_INET, 24, 0, 0, small, 3, 0, 1)) + bytes(4) + oif + number


def test_which_table_a_route_is_in() -> None:
    """Our own routes must not count as a change: each would lead to the next."""
    ours = OURS.start + 6
    data = message(NEWROUTE, route(ours, small=252)) + message(DELROUTE, route(254, small=254))
    assert list(tables(data + message(DELADDR, bytes(24)))) == [ours, 254, 0]
    assert list(tables(message(NEWROUTE, route(0, small=254)[:12]))) == [254]


@given(st.binary(max_size=200))
def test_whatever_the_kernel_says_is_survived(data: bytes) -> None:
    """It ends, and raises nothing."""
    assert len(list(tables(data))) <= len(data) // 16


@pytest.mark.parametrize("size", range(40))
def test_a_message_that_is_cut_short(size: int) -> None:
    """A large one may be."""
    assert len(list(tables(message(NEWROUTE, route(254))[:size]))) <= 1


def test_the_addresses_of_this_host() -> None:
    """Loopback at least: what is usable is among all."""
    usable = network.places()
    assert any(one.is_loopback and index == 1 for one, index in usable.items())
    assert set(usable) <= network.addresses()
