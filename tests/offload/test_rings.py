"""Rings between host and adapter: nothing put is lost or changed, nobody sleeps while there is work, and a
memory that somebody else writes to is believed in nothing that matters."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from ipaddress import ip_address
from random import Random
from struct import error as StructError
from threading import Thread
from time import monotonic, sleep

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.require import require

from offload.nic.descriptors import Completion, Task, Transmit
from offload.nic.rings import MOUTHFUL, AdapterPort, HostPort, Plug, wire
from offload.nic.slots import Broken
from offload.outer import Arrived, CryptoStatus, Mark
from sadb.address import Path, SocketAddress

HERE = ip_address("192.0.2.1")

# Another process that is an adapter: it sends back what it is to send, as packets received, and completes it.
ECHO = """
import select, sys
from ipaddress import ip_address
import msgspec
from offload.nic.descriptors import Completion
from offload.outer import Arrived, CryptoStatus, Mark
from offload.nic.rings import AdapterPort, Plug
from offload.nic.slots import Broken

port = AdapterPort(msgspec.json.decode(sys.argv[1], type=Plug))
where = ip_address("192.0.2.1")
poll = select.poll()
poll.register(port.fileno(), select.POLLIN)

def sure(put, value):
    while not put(value):
        rest()

def rest():
    if port.doze():
        poll.poll()
    port.wake()

try:
    while True:
        for one in port.transmit.take(8):
            sure(port.received.put, Arrived(50, where, where, one.data, path=one.path))
            sure(port.completed.put, Completion(one.ident, True))
        port.publish()
        rest()
except Broken:
    print("the host is gone")
"""
SECONDS = 20.0  # until a test gives up

octets = st.binary(max_size=300)
ports = st.integers(0, 0xFFFF)
words32, words64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
addresses = st.ip_addresses()
ends = st.builds(SocketAddress, addresses, ports)
paths = st.none() | st.builds(Path, ends, ends)
transmits = st.builds(
    Transmit,
    words64,
    words64,
    st.sampled_from(Task),
    octets,
    words32,
    paths,
    st.integers(0, 255),
    ports,
    words64,
)
marks = st.builds(
    Mark, words64, st.sampled_from(CryptoStatus), st.lists(words32, max_size=50).map(tuple), st.booleans()
)
arrivals = st.builds(
    Arrived,
    st.integers(0, 255),
    addresses,
    addresses,
    octets,
    st.integers(0, 255),
    st.binary(max_size=60),
    paths,
    ports,
    st.none() | marks,
)
completions = st.builds(Completion, words64, st.booleans())


reader = "python"


@pytest.fixture(autouse=True, params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """There is none here, but two readers of what an adapter hands up."""
    global reader
    require(request.param == "python" or find_spec("offload._native") is not None, "the native loop")
    before, reader = reader, request.param
    yield
    reader = before


def host_port(plug: Plug) -> HostPort:
    return HostPort(plug, native=reader == "native")


@contextmanager
def joined(slots: int = 8, room: int = 4096) -> Iterator[tuple[HostPort, AdapterPort]]:
    """Both sides, in this process."""
    plugs = wire(slots, room)
    with closing(host_port(plugs[0])) as host, closing(AdapterPort(plugs[1])) as adapter:
        yield host, adapter


@contextmanager
def apart(slots: int = 8, room: int = 4096) -> Iterator[HostPort]:
    """The host's side, the other one in a process that echoes. It ends when the host's side is closed."""
    plug, other = wire(slots, room)
    host = host_port(plug)
    command = [sys.executable, "-c", ECHO, msgspec.json.encode(other).decode()]
    with subprocess.Popen(command, pass_fds=other.filenos(), stdout=subprocess.PIPE, text=True) as child:
        other.close()
        try:
            yield host
        finally:
            host.close()
            try:
                said, _ = child.communicate(timeout=SECONDS)
            finally:
                child.kill()
    assert said == "the host is gone\n"


def rung(port: HostPort | AdapterPort, seconds: float = 0.0) -> bool:
    """Whether the doorbell is readable, or becomes so."""
    return bool(select.select([port.fileno()], [], [], seconds)[0])


def sent(ident: int, data: bytes = b"") -> Transmit:
    return Transmit(ident, 1, Task.SECURE, data)


# Values --------------------------------------------------------------------------------------------------


@given(
    st.lists(transmits, max_size=3), st.lists(arrivals, max_size=3), st.lists(completions, max_size=3), octets
)
def test_every_field_arrives(
    to_send: list[Transmit], came: list[Arrived], done: list[Completion], rest: bytes
) -> None:
    """A field that is lost or cut short would have a packet sent elsewhere, or with another number."""
    with joined() as (host, adapter):
        assert all(host.transmit.put(one, rest, memoryview(rest)) for one in to_send)
        assert all(map(adapter.received.put, came))
        assert all(map(adapter.completed.put, done))
        host.publish()
        adapter.publish()
        assert adapter.transmit.take(9) == [replace(one, data=one.data + 2 * rest) for one in to_send]
        assert host.received.take(9) == came
        assert host.completed.take(9) == done


def test_value_that_does_not_fit_changes_nothing() -> None:
    """Half a descriptor, or octets without one, would shift all that follow."""
    with joined(room=100) as (host, adapter):
        assert host.transmit.put(sent(1, b"first"))
        with pytest.raises(ValueError, match="larger than the room"):
            host.transmit.put(sent(2, bytes(101)))
        with pytest.raises(StructError):
            host.transmit.put(replace(sent(3, b"octets"), segment=1 << 16))
        with pytest.raises(OverflowError):
            adapter.received.put(Arrived(50, HERE, HERE, b"", mark=Mark(1, CryptoStatus.SUCCESS, (1 << 32,))))
        assert host.transmit.put(sent(4, b"second"))
        host.publish()
        assert adapter.transmit.take(9) == [sent(1, b"first"), sent(4, b"second")]


# Room ----------------------------------------------------------------------------------------------------


def test_room_is_used_whole_at_every_offset() -> None:
    """A buffer that wraps would come out with another's octets, or wait for room that never comes."""
    room, random = 257, Random(1)
    with joined(room=room) as (host, adapter):
        for ident in range(2 * room):
            values = [sent(ident, random.randbytes(room)), sent(ident, b"x")]
            for one in values:  # the first takes all of the room, so the second waits for it
                assert host.transmit.put(one, *[b""] * (ident % 2))
                host.publish()
                assert adapter.transmit.take(2) == [one]
                adapter.publish()


def test_full_ring_takes_nothing_and_counts() -> None:
    """A descriptor over one that has not been read yet would be sent instead of it."""
    with joined(slots=3, room=100) as (host, adapter):
        for lap in range(7):
            values = [sent(lap * 3 + n, bytes([lap]) * 10) for n in range(3)]
            assert all(map(host.transmit.put, values))
            assert not host.transmit.put(sent(99))
            host.publish()
            assert adapter.transmit.take(2) == values[:2]
            assert not host.transmit.put(sent(99))  # taken, but that was not told yet
            adapter.publish()
            assert adapter.transmit.take(2) == values[2:]
            adapter.publish()
        assert host.transmit.full == 14
        assert host.transmit.put(sent(1, bytes(60)))
        assert not host.transmit.put(sent(2, bytes(41)))
        assert host.transmit.put(sent(3, bytes(40)))


def test_long_values_come_a_few_at_a_time() -> None:
    """A batch of large sends would take megabytes of fresh memory; but all of them come, before any sleep."""
    with joined(slots=16, room=1 << 20) as (host, adapter):
        values = [sent(ident, bytes([ident]) * 65_535) for ident in range(16)]
        assert all(map(host.transmit.put, values))
        host.publish()
        first = adapter.transmit.take(99)
        assert sum(len(one.data) for one in first) < MOUTHFUL + 65_535
        rest = []
        while not adapter.doze():
            adapter.wake()
            rest += adapter.transmit.take(99)
        assert first + rest == values


# Doorbells -----------------------------------------------------------------------------------------------


def test_only_who_sleeps_is_rung_for() -> None:
    """A system call for every batch is what rings are there to spare."""
    with joined() as (host, adapter):
        host.transmit.put(sent(1))
        host.publish()
        assert not rung(adapter)
        assert not adapter.doze()
        adapter.wake()
        assert adapter.transmit.take(9)
        assert adapter.doze()
        host.publish()  # nothing new
        assert not rung(adapter)
        host.transmit.put(sent(2))
        assert not rung(adapter)
        host.publish()
        assert rung(adapter)
        adapter.wake()
        assert not rung(adapter)
        host.transmit.put(sent(3))
        host.publish()
        assert not rung(adapter)


def test_who_waits_for_a_place_is_rung_for_it() -> None:
    """An adapter whose completions find no place would sleep on them; one that gave up must not be kept
    awake by its wish."""
    with joined(slots=1) as (host, adapter):
        assert adapter.completed.put(Completion(1, True))
        assert not adapter.completed.put(Completion(2, True))
        assert adapter.doze()
        assert host.completed.take(9)
        host.publish()
        assert rung(adapter)
        adapter.wake()
        assert adapter.completed.put(Completion(2, True))
        assert not adapter.completed.put(Completion(3, True))
        adapter.publish()
        host.completed.take(9)
        host.publish()
        assert not adapter.doze()
        adapter.wake()
        assert adapter.doze()


def test_a_doorbell_that_nobody_hears_does_not_stop_the_host() -> None:
    """Or an adapter that hangs, or wants to, would hang the data plane with it."""
    plug, other = wire(8, 100)
    fcntl.fcntl(other.bell, fcntl.F_SETPIPE_SZ, 4096)
    fcntl.fcntl(other.bell, fcntl.F_SETFL, 0)  # what it can do to its end
    with closing(host_port(plug)) as host, closing(AdapterPort(other)) as adapter:
        assert adapter.doze()
        for ident in range(5000):
            assert host.transmit.put(sent(ident))
            host.publish()
            assert adapter.transmit.take(9)
            adapter.publish()
        assert rung(adapter)


def test_another_process_carries_packets() -> None:
    """Through descriptors that it inherits; and it sees that the host is gone."""
    random, path = Random(2), Path(SocketAddress(HERE, 4500), SocketAddress(HERE, 1))
    with apart(slots=16, room=1 << 17) as host:
        waiting = [
            replace(sent(n, random.randbytes(random.choice((0, 64, 1446, 65535)))), path=path)
            for n in range(300)
        ]
        expected, came, done = list(waiting), [], []
        while len(done) < len(expected) or len(came) < len(expected):
            while waiting and host.transmit.put(waiting[0]):
                waiting.pop(0)
            if host.doze():
                assert rung(host, SECONDS)
            host.wake()
            came += host.received.take(5)
            done += host.completed.take(5)
        assert [one.data for one in came] == [one.data for one in expected]
        assert {one.path for one in came} == {path}
        assert done == [Completion(n, True) for n in range(300)]


@pytest.mark.parametrize("host_sleeps", [False, True])
def test_no_wake_up_is_lost(host_sleeps: bool) -> None:
    """Each side publishes just as the other goes to sleep; one that sleeps on work would sleep forever."""
    random = Random(3)
    with apart() as host:
        for ident in range(3000):
            assert host.transmit.put(sent(ident))
            host.publish()
            for _ in range(random.randrange(200)):
                pass
            done: list[Completion] = []
            until = monotonic() + SECONDS
            while not done:
                if host_sleeps:
                    if host.doze():
                        assert rung(host, SECONDS)
                    host.wake()
                assert monotonic() < until
                done = host.completed.take(9)
                host.received.take(9)
            assert done == [Completion(ident, True)]


def test_end_of_the_other_side_is_seen() -> None:
    """The host is to take its SAs back at once, asleep or not."""
    plug, other = wire()
    with closing(host_port(plug)) as host:
        with closing(AdapterPort(other)) as adapter:
            assert adapter.doze()
            assert host.doze()
            assert not rung(host)
        assert rung(host)
        with pytest.raises(Broken, match="gone"):
            host.wake()
        host.transmit.put(sent(1))
        with pytest.raises(Broken, match="gone"):
            host.publish()


@pytest.mark.parametrize("engine", ["native"], indirect=True)
def test_the_loop_sleeps_until_there_is_something() -> None:
    """What a host of measurements does in C: it misses nothing that came before it slept, is rung for while
    it does, tells of what it took, and sees the other side's end."""
    plug, other = wire()
    with closing(host_port(plug)) as host:
        assert host.native is not None
        ring = host.native.ring
        with closing(AdapterPort(other)) as adapter:

            def gives(after: float) -> None:
                sleep(after)
                assert adapter.received.put(Arrived(50, HERE, HERE, b"something"))
                adapter.publish()

            gives(0)
            ring.wait()  # it is there already
            for _ in range(20):
                assert len(host.native.take(10)) == 1
                thread = Thread(target=gives, args=(0.002,))
                thread.start()
                ring.wait()
                thread.join()
            host.native.take(10)
            gives(0)
            assert host.native.moved
            ring.wait()
            assert not host.native.moved
            host.native.take(10)
        ring.wait()
        assert ring.broken


# Hostile memory ------------------------------------------------------------------------------------------

SLOT, ARRIVED = 256 + 128, 2 * 4096 + 256  # slot 1 of the first ring, slot 0 of the third
FIRST = st.sampled_from((0, 128, 8, 136)) | st.integers(0, 8191)
WORDS = st.sampled_from((0, 1, 2, 3, 9, 2**32 - 1, 2**63, 2**64 - 1)).map(
    lambda word: word.to_bytes(8, "little")
)


@given(st.lists(st.tuples(st.integers(0, 5), FIRST, WORDS | st.binary(max_size=64)), max_size=12))
def test_no_memory_harms_who_reads_it(attacks: list[tuple[int, int, bytes]]) -> None:
    """Whatever the other process writes, wherever and whenever: values that can be, or `Broken`; never more
    octets than the room has."""
    room = 1000
    plug, other = wire(4, room)
    length = os.fstat(plug.memory).st_size
    mark = Mark(1, CryptoStatus.SUCCESS, (1, 2, 3))
    with (
        closing(host_port(plug)) as host,
        closing(AdapterPort(other)) as adapter,
        closing(mmap.mmap(plug.memory, length)) as memory,
        suppress(Broken),
    ):
        for ring, at, garbage in attacks:
            host.transmit.put(sent(1, bytes(300)))
            adapter.received.put(Arrived(50, HERE, HERE, bytes(300), header=bytes(20), mark=mark))
            adapter.completed.put(Completion(1, True))
            host.publish()
            adapter.publish()
            start = (ring * 4096 + at) % (length - 64)
            memory[start : start + len(garbage)] = garbage
            for one in adapter.transmit.take(9), host.received.take(9):
                assert sum(len(value.data) for value in one) <= room  # type: ignore[attr-defined]
            host.completed.take(9)
            host.doze()
            host.wake()
            adapter.doze()
            adapter.wake()


@pytest.mark.parametrize(
    ("at", "garbage"),
    [
        pytest.param(0, b"\x06", id="more descriptors than slots"),
        pytest.param(0, b"\x00", id="descriptors put back"),
        pytest.param(7, b"\xff", id="descriptors without end"),
        pytest.param(SLOT + 24, b"\xe9\x03", id="more octets than the room"),
        pytest.param(SLOT + 128 + 24, b"\xd4\x03", id="more octets than the room in all"),
        pytest.param(SLOT + 34, b"\x05", id="task"),
        pytest.param(SLOT + 36, b"\x05", id="IP version"),
        pytest.param(SLOT + 36, b"\x04", id="half a path"),
        pytest.param(ARRIVED, b"\xff\xff\xff\xff", id="header"),
        pytest.param(ARRIVED + 4, b"\x0b", id="sequence numbers that are none"),
        pytest.param(ARRIVED + 28, b"\x0c", id="status"),
        pytest.param(ARRIVED + 30, b"\x00", id="no source"),
    ],
)
def test_garbage_is_broken(at: int, garbage: bytes) -> None:
    """What is not noticed here becomes a packet of octets that are another's, or a loop without end."""
    plug, other = wire(4, 1000)
    mark = Mark(1, CryptoStatus.SUCCESS, (1, 2, 3))
    with (
        closing(host_port(plug)) as host,
        closing(AdapterPort(other)) as adapter,
        closing(mmap.mmap(plug.memory, 0)) as memory,
    ):
        assert host.transmit.put(sent(1))
        host.publish()
        assert adapter.transmit.take(1)
        assert all(host.transmit.put(sent(n, bytes(30))) for n in range(3))  # into slots 1, 2 and 3
        assert adapter.received.put(Arrived(50, HERE, HERE, bytes(30), header=bytes(20), mark=mark))
        host.publish()
        adapter.publish()
        memory[at : at + len(garbage)] = garbage
        with pytest.raises(Broken):
            assert adapter.transmit.take(9) == host.received.take(9)


@pytest.mark.parametrize("tail", [3, 13, 2**63])
def test_tail_that_cannot_be_is_broken(tail: int) -> None:
    """A writer who believed it would count what is free forever, or write over what is not."""
    plug, other = wire(4, 1000)
    with (
        closing(host_port(plug)) as host,
        closing(AdapterPort(other)) as adapter,
        closing(mmap.mmap(plug.memory, 0)) as memory,
    ):
        for _ in range(2):  # so that the host has seen a tail of 4
            assert all(host.transmit.put(sent(n)) for n in range(4))
            host.publish()
            adapter.transmit.take(4)
            adapter.publish()
        assert all(host.transmit.put(sent(n)) for n in range(4))
        memory[128:136] = tail.to_bytes(8, sys.byteorder)
        with pytest.raises(Broken):
            host.transmit.put(sent(5))


def test_memory_that_can_vanish_is_not_opened() -> None:
    """A process that reads behind the end of a file is killed."""
    plug, other = wire(4, 1000)
    with pytest.raises(PermissionError):
        os.truncate(plug.memory, 0)
    unsealed = os.memfd_create("rings", os.MFD_CLOEXEC)
    os.ftruncate(unsealed, os.fstat(plug.memory).st_size)
    for bad in msgspec.structs.replace(plug, memory=unsealed), msgspec.structs.replace(plug, room=10_000):
        with pytest.raises(Broken):
            host_port(bad)
    os.close(unsealed)
    plug.close()
    other.close()
