"""Trains of packets: whatever holds for one packet at a time holds inside a train."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import (
    CBC,
    ESP_SUITES,
    GCM,
    GCM_ESN,
    Host,
    arrived,
    between,
    datagrams,
    hosts,
    trains,
)
from support.segments import ACK, TCP, UDP, Segment, data
from support.windows import HALF, Remembering

from offload import vnet
from offload.outer import Arrived
from sadb.algorithms import QuickSuite
from sadb.replay import LARGEST, SMALLEST, ReplayWindow
from sadb.sa import Acquire, Expire, Lifetime

CHACHA = next(one for one in ESP_SUITES if one.encryption and one.encryption.name == "chacha20poly1305")
REASONS = ("replayed", "late", "unverified")


def installed(left: Host, right: Host) -> tuple[Host, Host]:
    """Both, with the pairs they have by now."""
    for one in (left, right):
        one.engine.install(one.pair)
    return left, right


def is_native(host: Host) -> bool:
    """Whether the engine is the one with the native loop."""
    return hasattr(host.engine, "passed")


def has_adapter(host: Host) -> bool:
    """Whether the engine has an adapter beside it."""
    return hasattr(host.engine, "adapter")


# Replay windows ------------------------------------------------------------------------------------------


class Wire:
    """A sender whose numbers can be chosen, and a receiver with a window of any size."""

    def __init__(self, size: int, esn: bool) -> None:
        self.left, self.right = hosts(GCM_ESN if esn else GCM, udp=True, install=False)
        self.right.pair.inbound.replay = ReplayWindow(size, esn=esn)
        installed(self.left, self.right)
        self.model = Remembering(size, esn=esn)
        self._sealed: dict[int, tuple[bytes, Arrived]] = {}

    def sealed(self, number: int, size: int) -> tuple[bytes, Arrived]:
        """The packet with a number, and the datagram it is in; the same ones each time."""
        if number not in self._sealed:
            packet = between(4, number.to_bytes(8, "big") + bytes(size))
            self.left.pair.outbound.sequence = number - 1
            (one,) = arrived(self.left.engine.outbound([packet], 1.0).wire)
            self._sealed[number] = packet, one
        return self._sealed[number]

    def receives(self, several: list[tuple[int, int, bool]]) -> None:
        """Packets by number and size, some of them forged, in trains; everything is as the model says."""
        came, want = [], []
        told = dict.fromkeys(REASONS, 0)
        before = {reason: self.right.engine.counters[reason] for reason in REASONS}
        for number, size, forged in several:
            packet, one = self.sealed(number, size)
            if forged:
                one = replace(one, data=one.data[:-1] + bytes((one.data[-1] ^ 1,)))
            came.append(one)
            refused = self.model.verdict(number, authentic=not forged)
            if refused:
                told[refused] += 1
            else:
                want.append(packet)
        found = self.right.engine.inbound(trains(came), 2.0).local
        assert found == want
        counters = self.right.engine.counters
        refused = {reason: counters[reason] - before[reason] for reason in REASONS}
        if has_adapter(self.right):  # it has verified, or not, before the host asks the window
            assert sum(refused.values()) == sum(told.values())
        else:
            assert refused == told
        assert self.right.pair.inbound.replay is not None
        assert self.right.pair.inbound.replay.highest == self.model.highest
        assert self.right.engine.usage(self.right.pair)[0].packets == len(self.model.accepted)


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("size", [SMALLEST, 65, 100, 127, 128, 129, 1000, 2048, LARGEST - 1, LARGEST])
def test_a_window_of_every_size_ends_where_it_says_inside_a_train(size: int, esn: bool) -> None:
    """One number further left and a packet can be replayed that was forgotten; one less and honest packets
    are lost. All of these are in one train, some twice."""
    wire = Wire(size, esn)
    top = 9000
    wire.receives([(top - size, 0, False), (top - 1, 0, False)])
    edge = top - size + 1  # the last number that is still inside
    several = [top, edge, edge, edge - 1, top - 1, top, top - 2, top + 1, edge, edge + 1]
    several += [top + 40, edge + 39, edge + 40, top + 39]
    wire.receives([(number, 0, False) for number in several])
    assert wire.right.engine.counters["replayed"] >= 3
    assert wire.right.engine.counters["unverified" if esn else "late"] >= 2
    # far to the right, and more than one ring of bits: nothing of what was there may be left
    several = [size + 40, 41, 40, 2 * size + 60, size + 61, 9 * size]
    wire.receives([(top + number, 0, False) for number in several])
    if is_native(wire.right):
        assert wire.right.engine.passed > 8  # type: ignore[attr-defined]


steps = st.one_of(
    st.sampled_from([1, 1, 1, 1, 0, -1, 2]),
    st.integers(-70, 70),
    st.integers(-4200, 4200),
    st.sampled_from([-HALF, HALF // 2]),
)
payloads = st.sampled_from([0, 0, 0, 40, 41, 1200])


@given(
    size=st.one_of(st.sampled_from([SMALLEST, 65, 128, LARGEST]), st.integers(SMALLEST, LARGEST)),
    esn=st.booleans(),
    start=st.sampled_from([1, 5000, HALF - 60, HALF + 3000]),
    batches=st.lists(
        st.lists(st.tuples(steps, payloads, st.sampled_from([False] * 9 + [True])), min_size=1, max_size=30),
        min_size=1,
        max_size=3,
    ),
)
def test_windows_under_trains_are_those_of_the_model(
    size: int, esn: bool, start: int, batches: list[list[tuple[int, int, bool]]]
) -> None:
    """Duplicates, disorder, forgeries and what is too old, inside trains of mixed sizes."""
    wire = Wire(size, esn)
    number = start
    for batch in batches:
        several = []
        for step, length, forged in batch:
            number = min(max(number + step, 1), 3 * HALF if esn else HALF - 1)
            several.append((number, length, forged))
        wire.receives(several)


# Limits --------------------------------------------------------------------------------------------------


def frame(number: int, count: int, mss: int, *, version: int = 4, protocol: int = TCP) -> bytes:
    """A frame of `count` segments, the last one shorter, the `number`th of its kind."""
    size = mss * (count - 1) + mss - 4 * number
    one = Segment(data(size), version, protocol, flags=ACK, ident=1 + 100 * number, seq=number * 100_000)
    kind = 0 if count == 1 else 5 if protocol == UDP else 1 if version == 4 else 4
    return one.frame(kind, mss if kind else 0)


shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 90), st.sampled_from([40, 60])),
        st.tuples(st.integers(1, 8), st.sampled_from([536, 1300])),
    ),
    min_size=1,
    max_size=4,
).map(lambda several: [frame(number, count, mss) for number, (count, mss) in enumerate(several)])


@st.composite
def limits(draw: st.DrawFn, frames: list[bytes]) -> Lifetime:
    """Limits that are met in or about these frames."""
    sizes = [len(packet) for each in frames for packet in vnet.packets(each)]
    hard = draw(st.integers(1, len(sizes) + 1))
    soft = draw(st.integers(1, hard))
    if draw(st.booleans()):
        return Lifetime(soft_packets=soft, hard_packets=hard)
    off = draw(st.sampled_from([-1, 0, 1]))
    return Lifetime(soft_octets=sum(sizes[:soft]), hard_octets=max(1, sum(sizes[:hard]) + off))


limited = shapes.flatmap(lambda frames: st.tuples(st.just(frames), limits(frames)))


def within(life: Lifetime, octets: int, packets: int, *, soft: bool = False) -> bool:
    """Whether so much is below the hard limits, or the soft ones."""
    if soft:
        return octets < (life.soft_octets or HALF) and packets < (life.soft_packets or HALF)
    return octets <= (life.hard_octets or HALF) and packets <= (life.hard_packets or HALF)


def expiries(host: Host) -> list[tuple[bool, bool]]:
    """Inbound and hard, of each expiry that was told."""
    return [(one.inbound, one.hard) for one in host.notices if isinstance(one, Expire)]


@given(limited)
def test_a_limit_inside_a_train_that_leaves_is_met_to_the_packet(case: tuple[list[bytes], Lifetime]) -> None:
    """A train that is sent whole goes beyond what the cipher bears; one that is refused whole ends an SA
    early. What does not fit waits for the next SA, but for the packet that met the limit."""
    frames, life = case
    left, right = hosts(udp=True, install=False)
    left.pair.outbound.lifetime = life
    installed(left, right)
    sent = [packet for each in frames for packet in vnet.packets(each)]
    fit = 0
    while fit < len(sent) and within(life, sum(map(len, sent[: fit + 1])), fit + 1):
        fit += 1
    wire = [one for each in frames for one in left.engine.frames([each], 1.0).wire]
    came = datagrams(arrived(wire))
    assert [int.from_bytes(one.data[4:8], "big") for one in came] == list(range(1, fit + 1))
    assert right.engine.inbound(trains(came), 1.0).local == sent[:fit]
    usage = left.engine.usage(left.pair)[1]
    assert (usage.octets, usage.packets) == (sum(map(len, sent[:fit])), fit)
    soft = not within(life, usage.octets, usage.packets, soft=True)
    hard = fit < len(sent)
    assert expiries(left) == [(False, False)] * soft + [(False, True)] * hard
    rest = left.engine.held + left.engine.counters["queue-full"] + left.engine.counters["used-up"]
    assert rest == len(sent) - fit
    assert left.engine.counters["used-up"] == hard
    assert any(isinstance(one, Acquire) for one in left.notices) == (len(sent) - fit > 1)


@given(limited)
def test_a_limit_inside_a_train_that_arrives_is_met_to_the_packet(case: tuple[list[bytes], Lifetime]) -> None:
    """The receiver's limits are its own: the sender may have forgotten them."""
    frames, life = case
    left, right = hosts(udp=True, install=False)
    right.pair.inbound.lifetime = life
    installed(left, right)
    sent = [packet for each in frames for packet in vnet.packets(each)]
    want: list[bytes] = []
    octets = 0
    for packet in sent:
        if within(life, octets + len(packet), len(want) + 1):
            want.append(packet)
            octets += len(packet)
    came = trains(datagrams(arrived(left.engine.frames(frames, 1.0).wire)))
    assert right.engine.inbound(came, 1.0).local == want
    usage = right.engine.usage(right.pair)[0]
    assert (usage.octets, usage.packets) == (octets, len(want))
    assert right.engine.counters["used-up"] == len(sent) - len(want)
    told = expiries(right)
    assert told.count((True, False)) == (not within(life, octets, len(want), soft=True))
    assert told.count((True, True)) == (len(want) < len(sent))
    assert len(told) == len(set(told))


# Order and counters --------------------------------------------------------------------------------------


@given(order=st.lists(st.integers(0, 2), min_size=2, max_size=60), size=st.sampled_from([100, 300]))
def test_flows_that_alternate_keep_their_order(order: list[int], size: int) -> None:
    """TCP takes disorder for loss and sends slower. Frames of three flows leave and arrive mixed, as large
    frames and as single segments."""
    left, right = hosts(udp=True)
    number = [0, 0, 0]
    sent: list[list[bytes]] = [[], [], []]
    came = []
    for flow in order:
        protocol = UDP if flow == 2 else TCP
        payload, at = data(size if flow else 100), number[flow]
        ports = 1000 + flow, 443
        one = Segment(payload, 4, protocol, ports=ports, seq=len(payload) * at, ident=at)
        number[flow] += 1
        sent[flow].append(one.packet)
        came += arrived(left.engine.frames([one.frame()], 1.0).wire)
    found = right.engine.inbound(trains(came), 1.0).local
    for flow, each in enumerate(sent):
        source = (1000 + flow).to_bytes(2, "big")
        assert [packet for packet in found if packet[20:22] == source] == each
    assert len(found) == len(order)


@given(
    suite=st.sampled_from([GCM, GCM_ESN, CHACHA, CBC]),
    udp=st.booleans(),
    shapes=st.lists(
        st.tuples(
            st.sampled_from([1, 1, 2, 3, 20, 45]),
            st.sampled_from([60, 200]),
            st.sampled_from([4, 6]),
            st.sampled_from([TCP, TCP, UDP]),
        ),
        min_size=1,
        max_size=8,
    ),
    lost=st.sets(st.integers(0, 120), max_size=40),
    again=st.sets(st.integers(0, 120), max_size=5),
)
def test_what_was_sent_is_what_was_lost_and_what_was_received(
    suite: QuickSuite,
    udp: bool,
    shapes: list[tuple[int, int, int, int]],
    lost: set[int],
    again: set[int],
) -> None:
    """Counters of both sides agree after any run, or nobody can tell where packets went."""
    left, right = hosts(suite, udp=udp)
    frames = [
        frame(number, count, mss, version=version, protocol=protocol)
        for number, (count, mss, version, protocol) in enumerate(shapes)
    ]
    sent = [packet for each in frames for packet in vnet.packets(each)]
    came = datagrams(arrived(left.engine.frames(frames, 1.0).wire))
    assert len(came) == len(sent)
    there = [n for n in range(len(sent)) if n not in lost]
    kept = [came[n] for n in there for _ in range(1 + (n in again))]
    found = right.engine.inbound(trains(kept), 2.0).local
    assert found == [sent[n] for n in there]
    out, into = left.engine.usage(left.pair)[1], right.engine.usage(right.pair)[0]
    assert (out.octets, out.packets) == (sum(map(len, sent)), len(sent))
    missing = [packet for n, packet in enumerate(sent) if n in lost]
    assert (into.octets, into.packets) == (out.octets - sum(map(len, missing)), out.packets - len(missing))
    assert right.engine.counters["replayed"] == len(kept) - len(there)
    assert sum(right.engine.counters.values()) == len(kept) - len(there)
    assert not any(left.engine.counters.values())
    assert left.pair.outbound.sequence == len(sent)
