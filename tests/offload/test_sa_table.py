"""The SA table of an adapter: who has which slot, and who is found by a packet."""

from __future__ import annotations

import gc
import weakref
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import GCM, association

from offload.nic.capabilities import PROFILES
from offload.nic.sa_table import Entry, SaTable, slot_of
from sadb.algorithms import Encryption
from sadb.crypto import Cipher, cipher
from sadb.sa import Mode, SecurityAssociation
from sadb.selector import Selector

HOST, FAR = "192.0.2.1", "198.51.100.1"


@pytest.fixture(autouse=True)
def engine() -> None:
    """No engine takes part."""


def inbound(spi: int, to: str = HOST) -> SecurityAssociation:
    return association(GCM, spi, Mode.TRANSPORT, (FAR, to), Selector((), ()), True)


def outbound(spi: int) -> SecurityAssociation:
    return association(GCM, spi, Mode.TRANSPORT, (HOST, FAR), Selector((), ()), False)


def added(table: SaTable, sa: SecurityAssociation, port: str = "host") -> Entry:
    entry = table.add(port, sa, None)
    assert isinstance(entry, Entry), entry
    return entry


@pytest.mark.parametrize(("name", "first", "then"), [("82576", 256, 0), ("82599", 1024, 1024)])
def test_slots_are_one_pool_or_two(name: str, first: int, then: int) -> None:
    """An 82576 full of inbound SAs has no slot for an outbound one; an 82599 has all of those still."""
    table = SaTable(PROFILES[name])
    for spi in range(first):
        added(table, inbound(1000 + spi))
    assert table.add("host", inbound(9999), None) == "slots_full"
    for spi in range(then):
        added(table, outbound(1000 + spi))
    assert table.add("host", outbound(9999), None) == "slots_full"
    assert len(table.entries()) == first + then
    assert table.in_use == ((first, then) if then else (first,))


def test_receive_addresses_are_shared_and_counted() -> None:
    """82599: 128 addresses. The last SA of an address gives it free, not the first one that goes."""
    table = SaTable(PROFILES["82599"])
    made = [added(table, inbound(1000 + number, f"10.0.0.{number}")) for number in range(128)]
    assert table.add("host", inbound(5000, "10.1.0.1"), None) == "addresses_full"
    second = added(table, inbound(5001, "10.0.0.7"))
    added(table, outbound(5002))
    assert table.addresses == 128
    table.delete(made[7].handle)
    assert table.add("host", inbound(5000, "10.1.0.1"), None) == "addresses_full"
    table.delete(second.handle)
    added(table, inbound(5000, "10.1.0.1"))
    assert table.addresses == 128


def test_equal_spis_of_two_destinations_or_ports_are_two_sas() -> None:
    """A driver that looked for the SPI alone deleted the wrong one."""
    table = SaTable(PROFILES["82599"])
    one, two = added(table, inbound(1000, "10.0.0.1")), added(table, inbound(1000, "10.0.0.2"))
    guest = added(table, inbound(1000, "10.0.0.1"), "guest")
    assert table.add("host", inbound(1000, "10.0.0.1"), None) == "refused"
    assert table.delete(one.handle)
    assert table.find("host", 1000, ip_address("10.0.0.1")) is None
    assert table.find("host", 1000, ip_address("10.0.0.2")) is two
    assert table.find("guest", 1000, ip_address("10.0.0.1")) is guest


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 7)), max_size=60))
def test_no_handle_comes_twice(steps: list[tuple[bool, bool, int]]) -> None:
    """What is in flight for an SA that is gone must never find its successor, not even after a reset."""
    table = SaTable(PROFILES["82576"])
    live: list[Entry] = []
    gone: list[int] = []
    for number, (adds, whole, which) in enumerate(steps):
        if adds:
            entry = added(table, inbound(1000 + number) if whole else outbound(1000 + number))
            assert entry.handle not in gone
            live.append(entry)
        elif whole and which == 0:
            gone += [one.handle for one in table.clear()]
            live.clear()
        elif live:
            entry = live.pop(which % len(live))
            assert table.delete(entry.handle)
            gone.append(entry.handle)
        assert {one.handle for one in table.entries()} == {one.handle for one in live}
        assert len({slot_of(one.handle) for one in live}) == len(live)
    assert not any(table.get(handle) or table.delete(handle) for handle in gone)
    assert all(table.get(one.handle) is one for one in live)


@pytest.mark.parametrize("way", ["inbound", "outbound"])
@pytest.mark.parametrize("packets", [False, True], ids=["crypto", "packet"])
def test_keys_go_with_their_slot(way: str, packets: bool) -> None:
    """What has the expanded key is gone at once, not whenever somebody collects what is left over: then its
    library overwrites it."""
    made: list[weakref.ref[Cipher]] = []

    class Kept:
        """A cipher whose end can be seen."""

        def __init__(self, inner: Cipher) -> None:
            self.seal, self.open = inner.seal, inner.open

    def make(row: Encryption, key: bytes) -> Cipher:
        one: Cipher = Kept(cipher(row, key))
        made.append(weakref.ref(one))
        return one

    table = SaTable(PROFILES["ideal"], make)
    which = inbound(1) if way == "inbound" else outbound(1)
    gc.disable()
    try:
        entry = table.add("host", which, None, packets=packets)
        assert isinstance(entry, Entry)
        assert made[0]() is not None
        handle = entry.handle
        del entry
        table.delete(handle)
        assert made[0]() is None
    finally:
        gc.enable()
