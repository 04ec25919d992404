"""The simulated adapter by itself, and beside an engine: what it takes, what it says, what it sends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import engines
from support.adapter import PORT, AdapterEngine, address
from support.engines import (
    AH_SUITES,
    ENGINES,
    ESP_SUITES,
    GCM,
    GCM_ESN,
    Host,
    another,
    arrived,
    between,
    hosts,
    segments,
)

from offload import ip, vnet
from offload.nic import requests
from offload.nic.adapter import Adapter
from offload.nic.capabilities import PROFILES
from offload.nic.descriptors import Task, Transmit
from offload.nic.management import Quota
from offload.nic.requests import Added, AddSa, Refused, UpdateSa
from offload.outer import Arrived, CryptoStatus, Mark
from offload.software import Frame, SoftwareEngine
from sadb.algorithms import QuickSuite, SecurityProtocol
from sadb.sa import Expire, Lifetime, Mode, SecurityAssociation
from sadb.selector import TCP, UDP

AH_GMAC = next(one for one in AH_SUITES if one.encryption and one.encryption.name == "aes128gmac")
GCM_256 = next(one for one in ESP_SUITES if one.encryption and one.encryption.name == "aes256gcm")
GMAC = next(one for one in ESP_SUITES if one.encryption and one.encryption.name == "aes128gmac")
ADAPTERS = tuple(name for name in ENGINES if "adapter" in name)  # in crypto mode
ONCE = pytest.mark.parametrize("engine", ["adapter"], indirect=True)  # no engine takes part, or all do


@pytest.fixture(autouse=True, params=ADAPTERS)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hosts have an adapter with everything it can have."""
    before, engines.chosen = engines.chosen, request.param
    yield
    engines.chosen = before


def adapter(profile: str = "ideal") -> Adapter:
    return Adapter(PROFILES[profile], Random(1).randbytes, address)


def of(host: Host) -> AdapterEngine:
    assert isinstance(host.engine, AdapterEngine)
    return host.engine


def handle(one: Adapter, sa: SecurityAssociation, port: str = PORT, *, packets: bool = False) -> int:
    answer = one.request(port, requests.add(1, sa, 0 if sa.suite.esn else None, packets=packets))
    assert isinstance(answer, Added), answer
    return answer.handle


def flat(local: list[bytes | Frame]) -> list[bytes]:
    """Packets of a batch, one by one."""
    return [
        one for some in local for one in (vnet.packets(some) if isinstance(some, Frame) else [bytes(some)])
    ]


# What it takes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "suite", "mode", "udp", "reason"),
    [
        ("82599", GCM, Mode.TRANSPORT, False, ""),
        ("82599", AH_GMAC, Mode.TRANSPORT, False, ""),
        ("82599", GCM_256, Mode.TRANSPORT, False, "transform"),
        ("ideal", GCM_256, Mode.TRANSPORT, False, ""),
        ("82599", GCM, Mode.TUNNEL, False, "mode"),
        ("82599", GCM, Mode.TRANSPORT, True, "encap"),
        ("82599", GCM_ESN, Mode.TRANSPORT, False, "esn"),
        ("ideal", GCM_ESN, Mode.TUNNEL, True, ""),
    ],
)
def test_an_adapter_takes_what_it_says_it_can(
    profile: str, suite: QuickSuite, mode: Mode, udp: bool, reason: str
) -> None:
    """Whoever asks for more is told why not, and no slot is taken."""
    one, pair = adapter(profile), hosts(suite, mode, udp=udp)[0].pair
    for sa in (pair.inbound, pair.outbound):
        answer = one.request(PORT, requests.add(5, sa, 0 if suite.esn else None))
        assert isinstance(answer, Refused if reason else Added)
        assert not isinstance(answer, Refused) or answer == Refused(5, reason)
    assert one.used(PORT) == (0 if reason else 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": bytes(36)}, "transform"),  # a driver took the first 16 octets of an AES-256 key
        ({"key": bytes(16)}, "transform"),  # and one did without a salt
        ({"encryption": "aes128cbc"}, "transform"),
        ({"encryption": "nothing"}, "transform"),
        ({"protocol": "ah"}, "transform"),  # AH does not encrypt
        ({"protocol": "tcp"}, "transform"),
        ({"spi": 1 << 32}, "transform"),
        ({"high": 1 << 32}, "transform"),
        ({"source": bytes(5)}, "transform"),
        ({"source": bytes(16)}, "transform"),
        ({"destination": bytes(4)}, "address"),
        ({"destination": bytes((224, 0, 0, 1))}, "address"),
    ],
)
def test_a_request_that_cannot_be_is_refused(change: dict[str, object], reason: str) -> None:
    """A port asks for anything; the adapter of all ports must not fall over."""
    one = adapter()
    good = requests.add(1, hosts()[0].pair.inbound, None)
    assert one.request(PORT, msgspec.structs.replace(good, **change)) == Refused(1, reason)
    assert not one.table.entries()


def test_ah_is_not_esp() -> None:
    """A driver tested a bit that both protocols have."""
    capabilities = replace(PROFILES["ideal"], protocols=frozenset({SecurityProtocol.ESP}))
    one = Adapter(capabilities, Random(1).randbytes, address)
    answer = one.request(PORT, requests.add(1, hosts(AH_GMAC)[0].pair.inbound, None))
    assert answer == Refused(1, "protocol")


def test_a_port_has_no_more_than_its_limit_and_may_give_back_only_its_own() -> None:
    one, (a, b) = adapter(), hosts()
    one.quotas["guest"] = Quota("guest", 1)
    mine = handle(one, a.pair.inbound, "guest")
    assert one.request("guest", requests.add(2, a.pair.outbound, None)) == Refused(2, "port_limit")
    other = handle(one, b.pair.inbound)
    one.request("guest", requests.DeleteSa(other))
    one.request("guest", UpdateSa(other, 7))
    entry = one.table.get(other)
    assert entry is not None
    assert entry.high == 0
    one.detach("guest")
    assert one.table.get(mine) is None
    assert one.used(PORT) == 1


# What leaves ---------------------------------------------------------------------------------------------


def framed(host: Host) -> Transmit:
    """The descriptor of one packet."""
    engine = of(host)
    engine.flush = lambda batch, now: batch  # type: ignore[method-assign]
    engine.outbound([between(4)], 1.0)
    (one,) = engine.driver.ring
    return one


def test_a_wrong_handle_fails_and_nothing_leaves() -> None:
    """Never in the clear, never under another key: unknown, another port's, of the past, inbound, or an SA
    that the packet was not framed for."""
    a, _ = hosts()
    one, good = of(a).adapter, framed(a)
    pair = another(a.pair, 7777)
    strange = handle(one, pair.outbound)
    guest = handle(one, another(a.pair, 7778).outbound, "guest")
    (inbound,) = (entry.handle for entry in one.table.entries() if entry.sa is not None and entry.sa.inbound)
    wrong = [0, 1 << 40, good.handle - (1 << 16), good.handle + (1 << 16), inbound, strange, guest]
    for number in wrong:
        wire, (done,) = one.transmit(PORT, [replace(good, handle=number)])
        assert not wire
        assert not done.sent
    wire, (done,) = one.transmit("guest", [good])
    assert not wire
    wire, (done,) = one.transmit(PORT, [good])
    assert len(wire) == 1
    assert done.sent
    assert done.ident == good.ident


def test_a_slot_that_was_given_away_sends_nothing_of_its_former_owner() -> None:
    """Invariant 7: the generation in the handle."""
    a, _ = hosts()
    one, good = of(a).adapter, framed(a)
    one.faults.swap = True
    assert one.transmit(PORT, [good])[0] == []
    assert not one.faults.swap


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
@pytest.mark.parametrize("udp", [False, True], ids=["bare", "encapsulated"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", [GCM, GCM_ESN, GMAC], ids=["gcm", "esn", "gmac"])
def test_large_sends_are_what_software_would_have_sent(
    suite: QuickSuite, version: int, udp: bool, protocol: int
) -> None:
    """Octet for octet, with the same numbers: transport mode, cut up by the adapter."""
    a, _ = hosts(suite, Mode.TRANSPORT, outer=version, udp=udp)
    engines.chosen = "python"
    c, d = hosts(suite, Mode.TRANSPORT, outer=version, udp=udp)
    for sizes in ([500] * 7 + [3], [1200] * 40, [100, 100]):
        (frame,) = vnet.frames(segments(version, sizes, protocol=protocol), uso=True)
        for host in (a, c):  # the first packet of a flow finds its route
            host.engine.outbound([segments(version, [1], protocol=protocol)[0]], 1.0)
        before = of(a).adapter.counters.copy()
        hard, soft = a.engine.frames([frame], 1.0).wire, c.engine.frames([frame], 1.0).wire
        assert of(a).adapter.counters == before
        assert [one.data for one in arrived(hard)] == [one.data for one in arrived(soft)] or udp
        assert pieces(arrived(hard)) == pieces(arrived(soft))
        assert [one.header for one in arrived(hard)] == [one.header for one in arrived(soft)] or udp
        assert len(flat(d.engine.inbound(arrived(hard), 1.0).local)) == len(sizes)
    assert of(a).driver.carried(a.pair)[3] == a.pair.outbound.usage.packets


def pieces(found: list[Arrived]) -> list[bytes]:
    """ESP packets, out of their trains."""
    return [
        one.data[at : at + (one.segment or len(one.data))]
        for one in found
        for at in range(0, len(one.data), one.segment or len(one.data))
    ]


def test_a_frame_for_which_too_few_numbers_were_taken_is_not_sent() -> None:
    """More segments than numbers would use the numbers of the next packets: a nonce twice."""
    a, _ = hosts(mode=Mode.TRANSPORT)
    one, good = of(a).adapter, framed(a)
    (frame,) = vnet.frames(segments(4, [500] * 5))
    large = replace(good, task=Task.LARGE, data=frame, number=100)
    assert len(one.transmit(PORT, [large])[0]) == 5
    lying = bytes((0,)) + frame[1:]  # no checksum wanted, so the kernel did not make it
    assert one.transmit(PORT, [replace(large, data=lying)])[0] == []
    (plain,) = vnet.frames(segments(4, [500]))
    assert one.transmit(PORT, [replace(large, data=plain)])[0] == []


# What comes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_each_bad_packet_has_its_status(mode: Mode) -> None:
    """Values of IPsecOV2; bad packets go up marked, as they came, for the host to count."""
    tunnel = mode is Mode.TUNNEL
    for suite, failed in ((GCM, 5 if tunnel else 3), (AH_GMAC, 4 if tunnel else 2)):
        a, b = hosts(suite, mode)
        (good,) = arrived(a.engine.outbound([between(4)], 1.0).wire)
        spoilt = replace(good, data=good.data[:-1] + bytes((good.data[-1] ^ 1,)))
        cut = replace(good, data=good.data[: 20 if suite is GCM else 30])
        other = replace(good, protocol=ip.AH if suite is GCM else ip.ESP)
        if suite is GCM:
            other = replace(other, data=bytes(4) + other.data[:4] + other.data[8:])
        else:
            other = replace(other, data=other.data[4:8] + other.data[4:])
        for packet, status in ((good, 0), (spoilt, failed), (cut, 6), (other, 7)):
            (found,) = of(b).adapter.receive(PORT, [packet])
            assert found.mark is not None
            assert found.mark.status == status
            assert status == 0 or found.data == packet.data
        assert b.engine.inbound([good, spoilt, cut], 1.0).local == [between(4)]
        assert b.engine.counters["unverified"] == 1
        assert b.engine.counters["malformed"] == 1


def test_what_an_adapter_does_not_look_at_comes_as_it_was() -> None:
    """IPv4 options, an unknown SPI, another destination: software's."""
    a, _ = hosts(mode=Mode.TRANSPORT)
    one = adapter("82576")
    b = hosts(mode=Mode.TRANSPORT)[1]
    handle(one, b.pair.inbound)
    (good,) = arrived(a.engine.outbound([between(4)], 1.0).wire)
    options = replace(good, header=b"\x46" + good.header[1:] + bytes(4))
    stranger = replace(good, data=b"\0\0\x99\x99" + good.data[4:])
    elsewhere = replace(good, destination=ip_address("10.9.9.9"))
    assert one.receive(PORT, [options, stranger, elsewhere]) == [options, stranger, elsewhere]
    assert one.receive("guest", [good]) == [good]
    assert one.receive(PORT, [good])[0].mark is not None


def test_a_train_may_be_of_several_sas() -> None:
    """The network's card joins datagrams of one pair of ports, before and behind a rekey: each is opened
    with its own SA, and what is in no table goes up as it came."""
    a, b = hosts(udp=True)
    sent = [between(4, bytes([number]) * 40) for number in range(3)]
    first = arrived(a.engine.outbound(sent[:1], 1.0).wire)
    newer = another(a.pair, 3003), another(b.pair, 3003)
    for made in newer:
        made.inbound.encapsulation = made.outbound.encapsulation = (4500, 4500)
    a.engine.install(newer[0])
    of(b).everything = False
    b.engine.install(newer[1])
    rest = arrived(a.engine.outbound(sent[1:], 1.0).wire)
    size = len(first[0].data)
    for some in ([*first, *rest], [*rest, *first]):
        (train,) = [replace(first[0], data=b"".join(one.data for one in some), segment=size)]
        opened = of(b).adapter.receive(PORT, [train])
        assert [one.mark is not None for one in opened] == [one in first for one in some]
    assert sorted(b.engine.inbound([train], 1.0).local) == sorted(sent)


@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_segments_of_a_flow_are_put_together_with_their_numbers(mode: Mode) -> None:
    """In order, mixed with other flows, a bad one among them: one frame, and the window sees each number."""
    a, b = hosts(mode=mode)
    sent = segments(4, [500] * 10)
    other = between(4, b"other")
    wire = arrived(a.engine.outbound([*sent[:4], other, *sent[4:]], 1.0).wire)
    found = of(b).adapter.receive(PORT, wire)
    assert [one.mark.numbers for one in found if one.mark] == [(1, 2, 3, 4), (), (6, 7, 8, 9, 10, 11)]
    assert flat(b.engine.inbound(wire, 1.0).local) == [*sent[:4], other, *sent[4:]]
    assert b.pair.inbound.usage.packets == 11
    assert b.pair.inbound.usage.octets == sum(map(len, sent)) + len(other)
    assert of(b).carried(b.pair)[:2] == (b.pair.inbound.usage.octets, 11)
    # the same again, and one more behind two that came
    more = arrived(a.engine.outbound(segments(4, [500], start=11), 1.0).wire)
    assert b.engine.inbound(wire, 1.0).local == []
    assert b.engine.counters["replayed"] == 11
    assert len(flat(b.engine.inbound([*wire[-2:], *more], 1.0).local)) == 1
    assert b.engine.counters["replayed"] == 13


def test_a_duplicate_inside_a_frame_is_counted_and_dropped() -> None:
    """An adapter whose list names a number twice, or one that came: only what is new passes."""
    a, b = hosts()
    sent = segments(4, [500] * 4)
    (frame,) = of(b).adapter.receive(PORT, arrived(a.engine.outbound(sent, 1.0).wire))
    assert frame.mark is not None
    twice = replace(frame, mark=replace(frame.mark, numbers=(1, 2, 2, 3)))
    found = of(b).looked_at([twice], 1.0).local
    assert found == [sent[0], sent[1], sent[3]]
    assert b.engine.counters["replayed"] == 1
    wrong = replace(frame, mark=replace(frame.mark, numbers=(5, 6, 7)))
    assert of(b).looked_at([wrong], 1.0).local == []
    assert b.engine.counters["malformed"] == 3


# Limits and numbers --------------------------------------------------------------------------------------


@ONCE
@pytest.mark.parametrize(
    "lifetime",
    [
        Lifetime(soft_packets=20, hard_packets=31),
        Lifetime(soft_octets=9000, hard_octets=15000),
    ],
    ids=["packets", "octets"],
)
def test_limits_are_met_to_the_packet(lifetime: Lifetime) -> None:
    """With large sends and coalescing as without an adapter: the same packets, the same notices."""
    sent = segments(4, [500] * 10)
    found = []
    for chosen in ("python", *ADAPTERS, "packet"):
        engines.chosen = chosen
        a, b = hosts(mode=Mode.TRANSPORT, lifetime=lifetime)
        wire = []
        for _ in range(5):
            wire += a.engine.frames(vnet.frames(sent), 1.0).wire
        local = flat(
            [
                one
                for at in range(0, len(wire), 10)
                for one in b.engine.inbound(arrived(wire[at : at + 10]), 1.0).local
            ]
        )
        expired = [[one for one in host.notices if isinstance(one, Expire)] for host in (a, b)]
        found.append((len(wire), local, expired, a.pair.outbound.usage, b.pair.inbound.usage))
    assert all(one == found[0] for one in found)
    assert 0 < found[0][0] < 50


def test_an_adapter_that_knows_an_old_upper_half_lets_no_old_packet_in_again() -> None:
    """ESN: 2^32 numbers later the same low half is new to the window. Before the adapter follows the update
    it verifies packets of the past, which must not pass for ones of today."""
    a, b = hosts(GCM_ESN)
    a.pair.outbound.sequence = (1 << 32) - 200
    assert b.pair.inbound.replay is not None
    b.pair.inbound.replay.close((1 << 32) - 201)
    old = arrived(a.engine.outbound([between(4, b"old")], 1.0).wire)
    assert len(b.engine.inbound(old, 1.0).local) == 1
    b.pair.inbound.replay.close((2 << 32) - 300)
    of(b).adapter.faults.esn_lag = True
    assert b.engine.inbound(old, 1.0).local == []
    assert b.engine.counters["unverified"] == 1


def test_extended_numbers_go_on_past_the_roll_over() -> None:
    """Both directions: the outbound SA is placed anew, the inbound one is updated, and no packet is lost."""
    a, b = hosts(GCM_ESN, Mode.TRANSPORT)
    a.pair.outbound.sequence = (1 << 32) - 20
    assert b.pair.inbound.replay is not None
    b.pair.inbound.replay.close((1 << 32) - 20)
    sent = segments(4, [500] * 40)
    (frame,) = vnet.frames(sent)
    wire = a.engine.outbound(sent[:1], 1.0).wire + a.engine.frames([frame], 1.0).wire
    got = flat([one for packet in arrived(wire) for one in b.engine.inbound([packet], 1.0).local])
    assert got == [sent[0], *sent]
    assert of(a).driver.counters["esn renewals"] == 1
    assert of(b).driver.counters["updates"] == 1
    b.engine.inbound(arrived(a.engine.outbound([between(4)], 1.0).wire), 1.0)
    assert of(b).driver.counters["verified in software"] == 1


# Anything ------------------------------------------------------------------------------------------------

OCTETS = st.binary(max_size=120)


@ONCE
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Task)),
            st.integers(0, 5),
            st.one_of(OCTETS, st.sampled_from([b"frame", b"esp", b"ah"])),
            st.one_of(st.integers(-30, 60), st.integers()),
            st.one_of(st.integers(-2, 80), st.integers()),
            st.one_of(st.integers(0, 1 << 70), st.just(0xFFFFFFFF)),
            st.binary(max_size=12),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_no_descriptor_brings_an_adapter_down(
    rows: list[tuple[Task, int, bytes, int, int, int, bytes]], packets: bool
) -> None:
    """Ports are of virtual machines: each descriptor is completed, and what cannot be is not sent."""
    one = adapter()
    sas = [hosts(suite, mode)[0].pair.outbound for suite in (GCM, AH_GMAC, GCM_ESN) for mode in Mode]
    for number, sa in enumerate(sas):
        sa.spi += number
    handles = [handle(one, sa, packets=packets) for sa in sas]
    one.transmit(PORT, [Transmit(0, which, Task.LEASE, segment=50, number=1) for which in handles])
    (frame,) = vnet.frames(segments(4, [60] * 5))
    known = {b"frame": frame, b"esp": bytes(90), b"ah": segments(4, [70])[0]}
    descriptors = []
    for ident, (task, which, data, at, segment, number, patch) in enumerate(rows):
        octets = bytearray(known.get(data, data))
        if patch and octets:
            place = patch[0] % len(octets)
            octets[place : place + len(patch)] = patch
        descriptors.append(Transmit(ident, handles[which], task, bytes(octets), at, None, 0, segment, number))
    wire, done = one.transmit(PORT, descriptors)
    assert [completion.ident for completion in done] == list(range(len(rows)))
    assert all(len(packet.data) >= 24 for packet in wire)


@ONCE
@given(
    st.lists(
        st.tuples(
            st.sampled_from([ip.ESP, ip.AH]),
            st.sampled_from([b"", b"\0\0\x07\xd2", bytes(4) + b"\0\0\x07\xd2"]),
            OCTETS,
            st.sampled_from(["", "short", "long", "six"]),
            st.integers(0, 60),
            st.one_of(
                st.none(),
                st.tuples(st.integers(0, 7), st.sampled_from(list(CryptoStatus)), st.integers(0, 3)),
            ),
        ),
        max_size=6,
    ),
    st.sampled_from([GCM, AH_GMAC, GCM_ESN]),
    st.sampled_from(list(Mode)),
    st.sampled_from([*ADAPTERS, "packet"]),
)
def test_no_octets_bring_adapter_or_engine_down(
    rows: list[tuple[int, bytes, bytes, str, int, tuple[int, CryptoStatus, int] | None]],
    suite: QuickSuite,
    mode: Mode,
    chosen: str,
) -> None:
    """From the wire, and from a ring that somebody else writes to: counted and dropped."""
    engines.chosen = chosen
    a, b = hosts(suite, mode)
    for _ in range(2):  # in packet mode the adapter judges from then on
        assert b.engine.inbound(arrived(a.engine.outbound([between(4)], 1.0).wire), 1.0).local
    sa = b.pair.inbound
    headers = {"": b"", "short": bytes(7), "long": b"\x4f" + bytes(59), "six": b"\x60" + bytes(39)}
    real = [entry.handle for entry in of(b).adapter.table.entries() if entry.sa.inbound]
    packets = []
    for protocol, spi, data, header, segment, marked in rows:
        mark = None
        if marked is not None:
            which, status, count = marked
            mark = Mark((real * 7 + [0])[which], status, tuple(range(count)), bool(which & 1), 0, which > 3)
        packets.append(
            Arrived(protocol, sa.source, sa.destination, spi + data, 0, headers[header], None, segment, mark)
        )
    of(b).adapter.receive(PORT, packets)
    b.engine.inbound([replace(one, mark=None) for one in packets], 1.0)
    of(b).looked_at(packets, 1.0)
    assert isinstance(b.engine, SoftwareEngine)
    assert b.pair.inbound.usage.packets <= 2 + len(rows) * 60
    assert isinstance(requests.add(1, sa, None), AddSa)
