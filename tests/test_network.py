"""ikd.network: what the kernel says about addresses and routes."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.loopback import pair, until

from ikd import network
from ikd.events import AddressesChanged, Broken
from ikd.network import OURS, tables
from sadb.address import Address, parse

ONE, TWO = parse("127.0.0.1"), parse("127.0.0.2")

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


def test_a_name_server_that_is_dead_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a change of address is noticed, and the state is written, when all look-ups have timed out; and
    the daemon cannot end before that."""
    answering = threading.Event()

    def lookup(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if name != "known":
            answering.wait(20)
        return [(0, 0, 0, "", ("192.0.2.7", 0))]

    async def run() -> Mapping[str, tuple[Address, ...]]:
        found = await network.resolve(["known", *(f"host{n}" for n in range(60))])
        await asyncio.wait_for(asyncio.to_thread(network.places), 5)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(network, "PATIENCE", 0.1)
    began = time.monotonic()
    try:
        assert asyncio.run(run()) == {"known": (parse("192.0.2.7"),)}
        assert time.monotonic() - began < 10
    finally:
        answering.set()


def test_the_addresses_of_this_host() -> None:
    """Loopback at least: what is usable is among all."""
    usable = network.places()
    assert any(one.is_loopback and index == 1 for one, index in usable.items())
    assert set(usable) <= network.addresses()


class Changes:
    """Changes of the network when a test says so."""

    def __init__(self, *_: object) -> None:
        self.changes = asyncio.Event()
        self.changed, self.clear = self.changes.wait, self.changes.clear

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        pass


async def test_a_failure_is_not_the_end_of_listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAs would never again follow this host to another address."""
    answers: list[dict[Address, int] | Exception] = [{ONE: 1}, RuntimeError("no thread"), {ONE: 1, TWO: 1}]

    def places() -> dict[Address, int]:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async with pair(tmp_path) as (left, _):
        watch = Changes()
        monkeypatch.setattr(network, "places", places)
        monkeypatch.setattr(network, "Watch", lambda loop: watch)
        task = asyncio.create_task(left.daemon._follow_network())
        for left_over in (2, 1, 0):
            await until(lambda n=left_over: len(answers) == n and not watch.changes.is_set())  # type: ignore[misc]
            watch.changes.set()
        await until(lambda: left.happened(AddressesChanged))
        assert left.happened(Broken)
        task.cancel()
