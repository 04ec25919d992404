"""Several workers at the limits of one pair: together they let pass what one alone would."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ONE_ENGINE, Host, arrived, between, datagrams, entropy, hosts, trains
from support.require import require

from offload.host import buffers
from offload.host.natt import BUFFER
from offload.outer import Arrived
from offload.software import SoftwareEngine
from sadb.address import Path, SocketAddress
from sadb.replay import ReplayWindow
from sadb.sa import Expire, Lifetime

pytestmark = ONE_ENGINE

try:
    from support.native import WorkerEngine
except ImportError:
    WorkerEngine = None  # type: ignore[assignment, misc]

NEVER = Lifetime()


def workers(host: Host, life: Lifetime, *, size: int = 64) -> list[Host]:
    """Two engines with the host's pair, each with its own copy, and one account."""
    require(WorkerEngine is not None, "the native loop")
    account = WorkerEngine.account()
    made = []
    for number in range(2):
        pair = hosts(udp=True, install=False)[0 if host.pair.inbound.spi == 1001 else 1].pair
        pair.inbound.lifetime = pair.outbound.lifetime = life
        pair.inbound.replay = ReplayWindow(size)
        engine = WorkerEngine(entropy(bytes([number])), account)
        engine.ledger.begin(account, pair)
        notices: list[object] = []
        engine.notify = notices.append
        engine.route((host.flow,))
        engine.install(pair)
        made.append(Host(engine, pair, host.flow, notices))  # type: ignore[arg-type]
    return made


def usage(host: Host, inbound: bool) -> tuple[int, int]:
    """Octets and packets in the account."""
    engine = host.engine
    assert isinstance(engine, WorkerEngine)
    found = engine.ledger.usage(engine.native.slots[host.pair], inbound)
    return found.octets, found.packets


turns = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 20)), max_size=12)


@given(turns=turns, hard=st.integers(1, 120), soft=st.integers(1, 120), octets=st.booleans())
def test_two_workers_send_what_one_limit_allows(
    turns: list[tuple[int, int]], hard: int, soft: int, octets: bool
) -> None:
    """Each with the whole limit for itself would protect twice as much with one key as it bears."""
    left, right = hosts(udp=True)
    right.pair.inbound.lifetime = NEVER
    packet = between(4, bytes(40))
    hard = max(hard, soft)
    scale = len(packet) if octets else 1
    life = (
        Lifetime(soft_octets=soft * scale, hard_octets=hard * scale + scale // 2)
        if octets
        else Lifetime(soft_packets=soft, hard_packets=hard)
    )
    both = workers(left, life)
    wire, total = [], 0
    for who, count in turns:
        wire += both[who].engine.outbound([packet] * count, 1.0).wire
        total += count
    fit = min(total, hard)
    came = datagrams(arrived(wire))
    assert [int.from_bytes(one.data[4:8], "big") for one in came] == list(range(1, fit + 1))
    assert right.engine.inbound(trains(came), 1.0).local == [packet] * fit
    assert usage(both[0], False) == (fit * len(packet), fit)
    told = [(notice.hard) for each in both for notice in each.notices if isinstance(notice, Expire)]
    assert any(not hard for hard in told) == (fit >= soft)
    assert any(told) == (total > hard)
    rest = sum(e.engine.counters["used-up"] + e.engine.counters["queue-full"] + e.engine.held for e in both)
    assert rest == total - fit


@given(turns=turns, hard=st.integers(1, 120))
def test_two_workers_receive_what_one_limit_allows_and_nothing_twice(
    turns: list[tuple[int, int]], hard: int
) -> None:
    """A packet shown to both workers is delivered once, and counted once."""
    left, right = hosts(udp=True)
    both = workers(right, Lifetime(hard_packets=hard))
    total = sum(count for _, count in turns)
    sent = [between(4, n.to_bytes(2, "big")) for n in range(total)]
    came = datagrams(arrived(left.engine.outbound(sent, 1.0).wire))
    found, at = [], 0
    for who, count in turns:
        train = trains(came[at : at + count])
        found += both[who].engine.inbound(train, 1.0).local
        assert both[1 - who].engine.inbound(train, 1.0).local == []
        at += count
    assert found == sent[:hard]
    assert usage(both[0], True)[1] == min(hard, total)
    drops = {why: sum(each.engine.counters[why] for each in both) for why in ("used-up", "replayed", "late")}
    assert drops["used-up"] == max(0, total - hard)
    assert sum(drops.values()) == 2 * total - min(hard, total)


# At the same time ----------------------------------------------------------------------------------------


def together(work: list[Callable[[], None]]) -> None:
    """Let all begin at once, on threads; the native loop runs without the interpreter's lock."""
    barrier = threading.Barrier(len(work))
    failed: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            barrier.wait()
            one()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


QUEUE, UDP = 1, 2  # enum source of offload/native/native.h
IDLE, TEN = 0.01, 10.0  # seconds
EACH = 1000  # long enough that both are at work when the limit is met
TURNS = 12


def pumping(host: Host, sock: socket.socket, device: int) -> Callable[[], None]:
    """What a worker does when datagrams wait (offload.workers.worker)."""
    engine = host.engine
    assert isinstance(engine, WorkerEngine)

    poll = select.epoll()
    engine.table.add_source(device, QUEUE)
    engine.table.add_source(sock.fileno(), UDP)
    poll.register(sock.fileno(), select.EPOLLIN)

    def run() -> None:
        # a thread that did not run for so long comes back with packets left
        while (up := engine.table.carry(poll.fileno(), IDLE, TEN)) is not None or poll.poll(0):
            if up is None:
                continue
            found = up[1]
            assert isinstance(found, tuple)
            if len(found) == 2:
                engine.admitted(*found, 1.0)
            else:
                sa = host.pair.inbound
                one = Arrived(
                    50,
                    sa.source,
                    sa.destination,
                    found[0],
                    path=Path(SocketAddress(sa.destination, 4500), SocketAddress(sa.source, 4500)),
                )
                SoftwareEngine.inbound(engine, [one], 1.0)
        poll.close()

    return run


@pytest.mark.parametrize("by", ["octets", "packets"])
def test_two_workers_that_receive_at_once_do_not_exceed_a_limit(by: str) -> None:
    """Each looks at the counters, opens a packet and counts it: what the other counts meanwhile must not be
    overlooked."""
    packet = between(4, bytes(200))
    require(os.geteuid() == 0, "root, for large buffers")
    left, _ = hosts(udp=True)
    came = datagrams(arrived(left.engine.outbound([packet] * 2 * EACH, 1.0).wire))
    with ExitStack() as stack:
        device = os.open("/dev/null", os.O_WRONLY)
        stack.callback(os.close, device)
        ends = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in "12"]
        peer = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for sock in ends:
            buffers.receive(sock, BUFFER)
            sock.bind(("127.0.0.1", 0))
        for turn in range(TURNS):
            fit = EACH + 50 * turn
            if by == "octets":
                life = Lifetime(hard_octets=fit * len(packet) + 37 * turn % len(packet))
            else:
                life = Lifetime(hard_packets=fit)
            both = workers(hosts(udp=True)[1], life, size=4096)
            for number, one in enumerate(came):
                peer.sendto(one.data, ends[number % 2].getsockname())
            together([pumping(host, sock, device) for host, sock in zip(both, ends, strict=True)])
            assert usage(both[0], True) == (fit * len(packet), fit)
            assert sum(each.engine.counters["used-up"] for each in both) == 2 * EACH - fit
