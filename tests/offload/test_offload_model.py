"""The reference model of offload: an adapter that never has anything. Whatever is placed, displaced, delayed
or goes wrong, what comes out at the other host is what comes out there with software alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from random import Random
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.adapter_link import Station
from support.engines import AH_SUITES, GCM, GCM_ESN, HOSTS, another, arrived, entropy, hosts
from support.tap import WireTap

from offload import ip, vnet
from offload.nic.capabilities import Direction
from offload.nic.driver import PATIENCE
from offload.nic.faults import Lie
from offload.nic.packet_mode import LOST
from offload.outer import Outgoing
from offload.software import SoftwareEngine
from sadb.algorithms import QuickSuite
from sadb.backend import Notice
from sadb.replay import ReplayWindow
from sadb.sa import Expire, Mode, SaPair, SecurityAssociation
from sadb.selector import TCP, UDP

AH_GMAC = next(one for one in AH_SUITES if one.encryption and one.encryption.name == "aes128gmac")


@pytest.fixture(autouse=True)
def engine() -> None:
    """These engines are their own."""


@dataclass(frozen=True)
class Kind:
    """What the two hosts have between them."""

    suite: QuickSuite = GCM
    mode: Mode = Mode.TUNNEL
    udp: bool = False
    version: int = 4
    profile: str = "ideal"
    start: int = 0  # number of the last packet sent before
    packet_mode: bool = False
    native: bool = False  # with the native loop


PYTHON = (
    Kind(),
    Kind(mode=Mode.TRANSPORT),
    Kind(mode=Mode.TRANSPORT, profile="82576"),
    Kind(mode=Mode.TRANSPORT, version=6, profile="82599"),
    Kind(AH_GMAC, Mode.TRANSPORT, profile="82599"),
    Kind(GCM_ESN, start=(1 << 32) - 30),
    Kind(GCM_ESN, Mode.TRANSPORT, start=(1 << 32) - 30),
    Kind(udp=True),
    Kind(mode=Mode.TRANSPORT, udp=True),
)
KINDS = PYTHON + tuple(replace(one, native=True) for one in PYTHON)
PACKET_KINDS = (
    *(replace(one, packet_mode=True) for one in PYTHON if one.profile == "ideal"),
    Kind(mode=Mode.TRANSPORT, version=6, packet_mode=True),
    Kind(AH_GMAC, Mode.TRANSPORT, packet_mode=True),
)


def copied(pair: SaPair) -> SaPair:
    """The same pair for another engine: nothing that changes is shared."""

    def one(sa: SecurityAssociation) -> SecurityAssociation:
        window = ReplayWindow(64, esn=sa.suite.esn) if sa.inbound else None
        if window is not None and sa.replay is not None and sa.replay.highest:
            window.close(sa.replay.highest)
        return replace(sa, usage=type(sa.usage)(), replay=window)

    return SaPair(one(pair.inbound), one(pair.outbound), pair.selector, pair.mode, pair.rule, pair.owner)


def successor(pair: SaPair, spi_in: int, spi_out: int) -> SaPair:
    """A later pair for the same traffic."""
    made = another(pair, spi_out)
    inbound = another(pair, spi_in).inbound
    made.inbound, made.created = inbound, pair.created + 1
    made.inbound.encapsulation = made.outbound.encapsulation = pair.outbound.encapsulation
    return made


@dataclass
class Side:
    """One host, with an adapter and as the model has it."""

    station: Station
    model: SoftwareEngine
    pairs: list[tuple[SaPair, SaPair]] = field(default_factory=list)
    sent: int = 0
    notices: list[Notice] = field(default_factory=list)
    expected: Counter[bytes] = field(default_factory=Counter)

    def install(self, pair: SaPair) -> None:
        twin = copied(pair)
        self.pairs.append((pair, twin))
        self.model.install(twin)
        self.station.install(pair)


class World:
    """Two hosts, the wire between them, and the commands of a trace. Each command takes a number that decides
    about all that it leaves open."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.kind, self.tap = kind, WireTap()
        self.spi = 5000
        made = hosts(kind.suite, kind.mode, outer=kind.version, udp=kind.udp)
        self.sides = []
        for number, host in enumerate(made):
            station = Station(
                seed + number, kind.profile, self.tap, packet_mode=kind.packet_mode, native=kind.native
            )
            model = SoftwareEngine(entropy(bytes([number])))
            station.route(host.flow)
            model.route((host.flow,))
            side = Side(station, model)
            station.engine.notify = side.notices.append
            self.sides.append(side)
        a, b = self.sides
        a.station.wire, b.station.wire = b.station.arrivals.extend, a.station.arrivals.extend
        self.install([host.pair for host in made])

    def install(self, pairs: Sequence[SaPair]) -> None:
        for side, pair in zip(self.sides, pairs, strict=True):
            self.tap.knows(pair.outbound)
            if self.kind.start:
                assert pair.inbound.replay is not None
                pair.outbound.sequence = self.kind.start
                pair.inbound.replay.close(self.kind.start)
            side.install(pair)

    # Commands --------------------------------------------------------------------------------------------

    def place(self, side: Side, luck: Random) -> None:
        pair = luck.choice(side.pairs)[0]
        if side.station.adapter.faults.lie:
            true_marks_only(side)
        directions = luck.choice((list(Direction), [Direction.INBOUND], [Direction.OUTBOUND]))
        side.station.driver.place(pair, directions, side.station.now)

    def displace(self, side: Side, luck: Random) -> None:
        side.station.driver.displace(luck.choice(side.pairs)[0], Direction, side.station.now)

    def detach(self, side: Side, luck: Random) -> None:
        for pair, _ in side.pairs:
            side.station.driver.displace(pair, Direction, side.station.now)

    def packets(self, side: Side, luck: Random) -> None:
        sent = [self.datagram(side, luck) for _ in range(luck.choice((1, 3, 20)))]
        side.station.send(sent)
        self.deliver(side, side.model.outbound(sent, 1.0).wire)

    def large(self, side: Side, luck: Random) -> None:
        segments = self.segments(side, luck)
        frames = vnet.frames(segments)
        side.station.send_frames(frames)
        self.deliver(side, side.model.frames(frames, 1.0).wire)

    def work(self, side: Side, luck: Random) -> None:
        """Something of what is on its way gets there."""
        for _ in range(luck.randrange(8)):
            luck.choice(Station.STEPS)(side.station, luck.choice((1, 5, 40)))

    def rest(self, side: Side, luck: Random) -> None:
        """All of it does."""
        side.station.settle()

    def rekey(self, side: Side, luck: Random) -> None:
        """Another pair on both hosts; the successor is placed where its predecessor was."""
        if len(side.pairs) <= 3:
            self.replace()

    def replace(self) -> None:
        self.spi += 2
        spis = self.spi, self.spi + 1
        self.install(
            [successor(a.pairs[-1][0], *spis[::step]) for a, step in zip(self.sides, (1, -1), strict=True)]
        )
        for one in self.sides:
            one.station.driver.place(one.pairs[-1][0], list(Direction), one.station.now)

    def bury(self, side: Side, luck: Random) -> None:
        """The oldest pair goes from one host, once the other's packets of it are here, and then there."""
        if len(side.pairs) < 2:
            return
        other = next(one for one in self.sides if one is not side)
        for one, far in ((side, other), (other, side)):
            pair, twin = one.pairs[0]
            for _ in range(20):
                far.station.settle()
                one.station.settle()
                if not far.station.driver.lanes.get(far.pairs[0][0]) or one is other:
                    break
                if not far.station.driver.lanes[far.pairs[0][0]].flights:
                    break
                far.station.tick(PATIENCE)
            one.station.remove(pair)
            one.model.remove(twin)
            if one is other:
                side.pairs.pop(0)
                other.pairs.pop(0)

    def crash(self, side: Side, luck: Random) -> None:
        side.station.crash()

    def reset(self, side: Side, luck: Random) -> None:
        side.station.reset()

    def link(self, side: Side, luck: Random) -> None:
        side.station.link(not side.station.adapter.up)

    def time(self, side: Side, luck: Random) -> None:
        side.station.tick(luck.choice((0.001, 0.05, 0.2)))

    def expired(self) -> None:
        """Whoever has lost a replay window asks for another pair at once."""
        notices = [one for side in self.sides for one in side.notices]
        if any(isinstance(one, Expire) and one.reason == LOST and not one.hard for one in notices):
            self.replace()
        for side in self.sides:
            side.notices.clear()

    # Packets ---------------------------------------------------------------------------------------------

    def header(self, side: Side, protocol: int, size: int) -> bytes:
        back = side is self.sides[1]
        source, destination = HOSTS[self.kind.version][::-1] if back else HOSTS[self.kind.version]
        side.sent += 1
        outer = ip.Outer(ip_address(source), ip_address(destination), protocol)
        return outer.header(0, size, side.sent % 0xFFFF + 1)

    def datagram(self, side: Side, luck: Random) -> bytes:
        """Now and then one that software has to have: too large for the path, or with options."""
        most = 3000 if self.kind.version == 4 and luck.random() < 0.1 else 10  # IPv6 does not cut up
        size = luck.choice((0, 50, 50, 900, most))
        body = pack(">HHHHI", 1024, 53 + luck.randrange(3), 12 + size, 1, side.sent) + luck.randbytes(size)
        head = self.header(side, UDP, len(body))
        if self.kind.version == 4 and luck.random() < 0.1:
            head = ip.addressed(b"\x46" + head[1:] + b"\x94\x04\0\0", 9, UDP, len(body))
        return ip.with_transport_checksum(head + body, len(head), UDP)

    def segments(self, side: Side, luck: Random) -> list[bytes]:
        """What one large send stands for."""
        mss, count = luck.choice((60, 500, 1300)), luck.choice((1, 2, 10, 40))
        made: list[bytes] = []
        first = side.sent << 16
        for at in range(count):
            size = mss if at < count - 1 else luck.randrange(1, mss + 1)
            sequence = first + at * mss & 0xFFFFFFFF
            body = pack(">HHIIBBHHH", 5000, 80, sequence, 1, 0x50, 0x10, 512, 0, 0)
            body += luck.randbytes(size)
            head = self.header(side, TCP, len(body))
            made.append(ip.with_transport_checksum(head + body, len(head), TCP))
        return made

    def deliver(self, side: Side, wire: Sequence[Outgoing]) -> None:
        """What the model's other host makes of it, at once."""
        other = next(one for one in self.sides if one is not side)
        for one in other.model.inbound(arrived(wire), 1.0).local:
            other.expected[bytes(one)] += 1

    # In the end ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Faults end, and everything on its way gets there or is given up."""
        for side in self.sides:
            side.station.adapter.faults = type(side.station.adapter.faults)()
        for _ in range(40):
            for side in self.sides:
                side.station.tick(PATIENCE / 2)
            busy = [side.station.settle() for side in self.sides]
            if not any(busy) and not any(side.station.driver.deadline() for side in self.sides):
                break
        else:
            pytest.fail("it never ends")

    def check(self) -> None:
        """All that must hold whatever went wrong."""
        for side in self.sides:
            got, want = side.station.delivered, side.expected
            counters = side.station.engine.counters
            assert not got.keys() - want.keys(), "what nobody sent was delivered"
            sender = next(one for one in self.sides if one is not side).station
            lost = sender.driver.counters["lost"] or sender.driver.counters["resets"]
            closed = side.station.driver.counters["windows lost"]
            wrong = counters["unverified"] + counters["stale-handle"] + side.station.gone
            if not lost and not closed:
                assert sum((want - got).values()) == wrong
                assert not got - want, "delivered twice"
                assert not counters["late"]
                assert not counters["replayed"]
            else:
                missing = len(want.keys() - got.keys())
                assert missing <= wrong + counters["late"] + (counters["replayed"] if closed else 0)
            for pair, _ in side.pairs:
                side.station.check_octets(pair)
            known = ("unverified", "stale-handle", "late", "replayed")
            assert not any(count for reason, count in counters.items() if reason not in known), counters


COMMANDS: tuple[Callable[[World, Side, Random], None], ...] = (
    World.packets,
    World.packets,
    World.large,
    World.large,
    World.work,
    World.work,
    World.work,
    World.rest,
    World.place,
    World.displace,
    World.rekey,
    World.bury,
    World.time,
)
DISASTERS = (World.crash, World.reset, World.link, World.detach)


# Faults --------------------------------------------------------------------------------------------------

FAULTS: dict[str, dict[str, object]] = {
    "full": {"full": True},
    "refuse_once": {"refuse_once": True},
    "slow_add": {"slow_add": 0.1},
    "drop_tx": {"drop_tx": 0.1},
    "stuck": {"stuck": True},
    "bad_icv": {"bad_icv": 0.1},
    "lie raw": {"lie": Lie.RAW},
    "lie stale": {"lie": Lie.STALE},
    "lie other": {"lie": Lie.OTHER},
    "swap": {"swap": True},
    "reorder": {"reorder": 30},
    "evict": {"evict": True},
    "esn_lag": {"esn_lag": True},
}


def true_marks_only(side: Side) -> None:
    """Until everything has been looked at, the handle of an SA that was deleted is believed."""
    for _ in range(3):
        side.station.settle()


def fault(side: Side, name: str) -> None:
    """One more thing that the adapter does wrong."""
    if "lie" in FAULTS[name]:
        true_marks_only(side)
    for what, value in FAULTS[name].items():
        setattr(side.station.adapter.faults, what, value)


def run(kind: Kind, seed: int, trace: Sequence[tuple[int, int]], extra: Sequence[object] = ()) -> World:
    """A trace of (command, number); odd numbers are for the second host."""
    world = World(kind, seed)
    commands = [*COMMANDS, *extra]
    for command, number in trace:
        side, one = world.sides[number & 1], commands[command % len(commands)]
        if isinstance(one, str):
            fault(side, one)
        else:
            one(world, side, Random(number))  # type: ignore[operator]
        side.station.out(side.station.engine.released(side.station.now))
        world.expired()
    world.finish()
    world.check()
    return world


def random_trace(seed: int, length: int = 40) -> list[tuple[int, int]]:
    luck = Random(seed)
    return [(luck.randrange(1 << 16), luck.randrange(1 << 16)) for _ in range(length)]


def driven(name: str) -> Callable[[World], int]:
    """How often something happened to a driver of either host."""
    return lambda world: sum(side.station.driver.counters[name] for side in world.sides)


def dropped(name: str) -> Callable[[World], int]:
    return lambda world: sum(side.station.engine.counters[name] for side in world.sides)


def adapted(name: str) -> Callable[[World], int]:
    return lambda world: sum(side.station.adapter.counters[name] for side in world.sides)


LAGS = {False: "verified in software", True: "windows lent"}

# What goes wrong, and what shows that it did.
CASES: dict[str, tuple[tuple[object, ...], Callable[[World], int]]] = {
    "full": (("full",), driven("refused: slots_full")),
    "refuse_once": (("refuse_once",), driven("refused: refused")),
    "slow_add": (("slow_add",), lambda world: sum(side.station.slow for side in world.sides)),
    "drop_tx": (("drop_tx",), driven("reframed")),
    "stuck": (("stuck",), driven("reframed")),
    "bad_icv": (("bad_icv",), dropped("unverified")),
    "lie raw": (("lie raw",), dropped("stale-handle")),
    "lie stale": (("lie stale",), dropped("stale-handle")),
    "lie other": (("lie other",), dropped("stale-handle")),
    "swap": (("swap",), adapted("unknown-handle")),
    "reorder": (("reorder",), lambda world: world.tap.turned),
    "evict": (("evict",), driven("evict requests")),
    # an adapter that judges replays itself need not be told
    "esn_lag": (("esn_lag",), lambda world: driven(LAGS[world.kind.packet_mode])(world)),
    "crash": ((World.crash,), driven("resets")),
    "reset": ((World.reset,), driven("resets")),
    "link": ((World.link,), driven("refused: link")),
    "detach": ((World.detach,), driven("drains")),
}


def examined(name: str, seeds: range, length: int, among: Sequence[Kind]) -> None:
    """Traces with one thing that goes wrong, on all kinds of hosts."""
    extra, seen = CASES[name]
    kinds = [one for one in among if one.start] if name == "esn_lag" else among
    found = 0
    for seed in seeds:
        kind = kinds[seed % len(kinds)]
        world = run(kind, seed, [*BEGIN, *random_trace(seed, length)], extra * 2)
        found += seen(world)
    assert found, "nothing went wrong"


PLACE, REST = COMMANDS.index(World.place), COMMANDS.index(World.rest)
BEGIN = [*((PLACE, number) for number in range(8)), (REST, 0), (REST, 1)]  # both ways, on both hosts
TRACES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 1 << 16)), max_size=40)


MODES = pytest.mark.parametrize("kinds", [KINDS, PACKET_KINDS], ids=["crypto", "packet"])


@MODES
@pytest.mark.parametrize("name", CASES)
def test_each_fault_costs_no_packet_but_those_it_corrupts(name: str, kinds: Sequence[Kind]) -> None:
    """One after the other, beside every kind of request."""
    examined(name, range(len(kinds)), 30, kinds)


@pytest.mark.long
@MODES
@pytest.mark.parametrize("name", CASES)
def test_each_fault_in_long_traces(name: str, kinds: Sequence[Kind]) -> None:
    """The same, where SAs come and go more often."""
    examined(name, range(100, 100 + len(kinds)) if kinds is KINDS else range(100, 108), 150, kinds)


@given(st.sampled_from(KINDS + PACKET_KINDS), st.integers(0, 255), TRACES)
def test_without_faults_everything_comes_once(kind: Kind, seed: int, trace: list[tuple[int, int]]) -> None:
    """However SAs move and answers are delayed, nothing is lost, doubled or dropped by the peer's window."""
    world = run(kind, seed, trace)
    for side in world.sides:
        side.station.check_slots()
        if not any(side.station.driver.counters["lost"] for side in world.sides):
            assert side.station.delivered == side.expected
            assert not world.tap.late


@given(st.sampled_from(KINDS + PACKET_KINDS), st.integers(0, 255), TRACES)
def test_faults_in_any_order_never_repeat_a_number(
    kind: Kind, seed: int, trace: list[tuple[int, int]]
) -> None:
    """All of it at once: the tap, the octets and what is delivered are looked at in `check`."""
    run(kind, seed, trace, (*DISASTERS, *FAULTS))


CRYPTO = ("pauses", "esn renewals", "updates", "packet: options", "believed")
PACKET = ("leases", "leases returned", "windows lent", "windows returned")


@pytest.mark.parametrize(
    ("kinds", "names"), [(KINDS, CRYPTO), (PACKET_KINDS, PACKET)], ids=["crypto", "packet"]
)
def test_traces_do_what_they_are_for(kinds: Sequence[Kind], names: Sequence[str]) -> None:
    """Else nothing would be tested: SAs move, adapters carry most octets, cut up and put together."""
    counters: Counter[str] = Counter()
    for seed in range(2 * len(kinds)):
        world = run(kinds[seed % len(kinds)], seed, [*BEGIN, *random_trace(seed)])
        for side in world.sides:
            counters += side.station.driver.counters
            counters["frames"] += side.station.frames
            counters["believed"] += getattr(side.station.engine, "believed", 0)
            counters["hard"] += sum(side.station.engine.carried(pair)[2] for pair, _ in side.pairs)
    for name in ("drains", "frames", "hard", *names):
        assert counters[name], name
