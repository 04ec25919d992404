"""Frames that stand for many packets: putting them together, and what must stay apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ONE_ENGINE
from support.segments import (
    ACK,
    CWR,
    ECE,
    FIN,
    GOOD,
    GOOD_UDP,
    OPTIONS6,
    PROTOCOLS,
    PSH,
    RST,
    SIX,
    SYN,
    TCP,
    TIMES,
    UDP,
    URG,
    VERSIONS,
    Segment,
    changed,
    checking,
    counts,
    data,
    internet,
    made,
    segments,
    sound,
    sum16,
)

from offload.vnet import frames, packets

pytestmark = ONE_ENGINE


@PROTOCOLS
@VERSIONS
@pytest.mark.parametrize("extra", [b"", TIMES])
def test_a_frame_says_what_the_kernel_needs(version: int, protocol: int, extra: bytes) -> None:
    """The kernel refuses frames with wrong headers, and drops segments whose missing checksum is not the
    pseudo header's sum."""
    extra = extra if protocol == TCP else b""
    several = Segment(data(101), version, protocol, options=extra).stream(3)
    several[2] = replace(several[2], payload=data(40), flags=ACK | PSH)
    (frame,) = frames(made(several), uso=True)
    whole = replace(several[0], payload=b"".join(one.payload for one in several), flags=ACK | PSH)
    kind = 5 if protocol == UDP else 1 if version == 4 else 4
    assert frame == whole.frame(kind, 101)
    assert unpack_from("=BBHHHH", frame) == (1, kind, whole.head, 101, whole.at, 16 if protocol == TCP else 6)
    assert packets(frame) == made(several)


@PROTOCOLS
def test_a_sum_of_the_pseudo_header_is_not_zero(protocol: int) -> None:
    """In UDP the kernel could take zero for a datagram without a checksum."""
    first, second = Segment(data(100), protocol=protocol).stream(2)
    size = first.head - first.at + 200
    rest = 0xFFFF - sum16(replace(first, source="10.1.0.0").pseudo(size))
    source = str(ip_address(0x0A010000 + rest))
    (frame,) = frames(made(replace(one, source=source) for one in (first, second)), uso=True)
    assert frame[10 + first.place : 12 + first.place] == b"\xff\xff"
    assert frames(packets(frame), uso=True) == [frame]


def test_a_single_packet_has_an_empty_header() -> None:
    """Any flag would have the host skip or complete a checksum that is the sender's."""
    packet = Segment().packet
    assert frames([packet]) == [bytes(10) + packet]
    assert frames([]) == []


PAIRS = {
    "acknowledges more": {"ack": 78},
    "window": {"window": 501},
    "options": {"options": TIMES[:-1] + b"\xff"},
    "options of another length": {"options": b""},
    "lifetime": {"ttl": 63},
    "traffic class": {"tos": 2},
    "gap": {"seq": 1000 + 101},
    "overlap": {"seq": 1000 + 99},
    "again": {"seq": 1000},
    "longer": {"payload": data(101)},
    "nothing in it": {"payload": b""},
    "SYN": {"flags": SYN | ACK},
    "RST": {"flags": RST | ACK},
    "URG": {"flags": URG | ACK},
    "ECE": {"flags": ECE | ACK},
    "CWR": {"flags": CWR | ACK},
    "no ACK": {"flags": 0},
    "accurate ECN": {"reserved": 1},
    "source port": {"ports": (40001, 443)},
    "destination port": {"ports": (40000, 444)},
    "source": {"source": {4: "10.1.0.6", 6: "2001:db8:a::6"}},
    "destination": {"target": {4: "10.2.0.6", 6: "2001:db8:b::6"}},
}
PAIRS4 = {
    "DF": {"fragment": 0},
    "reserved bit": {"fragment": 0xC000},
    "first fragment": {"fragment": 0x2000},
    "later fragment": {"fragment": 0x4001},
    "identification skips": {"ident": 9},
    "identification goes back": {"ident": 4},
    "IP options": {"between": b"\1\1\1\1"},
}
PAIRS6 = {"flow label": {"label": 1}, "extension header": {"between": OPTIONS6}}


@pytest.mark.parametrize(
    ("version", "change"),
    [
        pytest.param(version, change, id=f"{name} {version}")
        for version, more in ((4, PAIRS4), (6, PAIRS6))
        for name, change in (PAIRS | more).items()
    ],
)
def test_what_differs_does_not_go_into_the_same_frame(version: int, change: dict[str, object]) -> None:
    """Merged it would become what was not sent: the difference is lost with the second header. It also ends
    the frame, or what comes later would overtake it."""
    change = {name: value[version] if isinstance(value, dict) else value for name, value in change.items()}
    first, second, third, fourth = Segment(data(100), version, options=TIMES).stream(4)
    assert counts(frames(made([first, second]))) == [2]
    other = replace(second, **change)  # type: ignore[arg-type]
    assert frames(made([first, other])) == [bytes(10) + one.packet for one in (first, other)]
    # Behind two packets the next header is foreseen, so that must be looked through as well.
    late = replace(other, seq=other.seq + 100, ident=other.ident + 1)
    found = frames(made([first, second, late, fourth]))
    if late.ports == third.ports and late.addresses == third.addresses:
        assert counts(found) == [2, 1, 1]
    assert found[1] == bytes(10) + late.packet
    back = [packet for frame in found for packet in packets(frame)]
    assert back == made([first, second, late, fourth])


@VERSIONS
@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_a_packet_that_comes_twice_goes_twice(version: int, where: int) -> None:
    """In one frame the second would be taken for the octets that follow."""
    several = made(Segment(data(100), version).stream(4))
    several.insert(where, several[where])
    assert counts(frames(several)) == [where + 1, 4 - where]


def test_a_flag_that_both_have_is_as_bad_as_one() -> None:
    """Equal flags would be in one header only, and the host would see one signal where there were two."""
    one = Segment(data(100))
    for other in (
        replace(one, flags=ECE | ACK),
        replace(one, flags=0),
        replace(one, reserved=1),
        replace(one, fragment=0x2000),
        replace(one, between=b"\1\1\1\1"),
    ):
        assert counts(frames(made(other.stream(2)))) == [1, 1]


@VERSIONS
@pytest.mark.parametrize("flags", [PSH, FIN, PSH | FIN])
def test_a_push_or_the_end_is_the_last_in_its_frame(version: int, flags: int) -> None:
    """The flag stays with the octets it came with, and an application waits for no later segment."""
    several = Segment(data(100), version).stream(5)
    several[2] = replace(several[2], flags=ACK | flags)
    found = frames(made(several))
    assert counts(found) == [3, 2]
    assert found[0][10 + several[0].at + 13] == ACK | flags
    several[0] = replace(several[0], flags=ACK | flags)
    assert counts(frames(made(several))) == [1, 2, 2]


@PROTOCOLS
@VERSIONS
def test_a_shorter_packet_is_the_last_in_its_frame(version: int, protocol: int) -> None:
    """Cut up by one size, a frame with a short one in the middle would move the borders of those behind it:
    for UDP these are other datagrams."""
    several = Segment(data(100), version, protocol).stream(3)
    rest = replace(several[2], payload=data(100), seq=several[2].seq + 60, ident=8).stream(2)
    several[2] = replace(several[2], payload=data(60))
    assert counts(frames(made(several + rest), uso=True)) == [3, 2]


@PROTOCOLS
@VERSIONS
@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_a_damaged_packet_goes_alone_and_unchanged(version: int, protocol: int, odd: int, where: int) -> None:
    """In a frame its checksum would be made anew, and the host would believe what the network broke."""
    several = made(Segment(data(100 + odd), version, protocol).stream(4))
    several[where] = several[where][:-1] + bytes((several[where][-1] ^ 1,))
    found = frames(several, uso=True)
    assert counts(found) == {0: [1, 3], 1: [1, 1, 2], 2: [2, 1, 1], 3: [3, 1]}[where]
    assert bytes(10) + several[where] in found


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_damaged_ipv4_header_goes_alone(where: int) -> None:
    """The header of a frame is made anew; whatever the damage did to this one would be healed."""
    several = made(Segment(data(100)).stream(3))
    several[where] = changed(several[where], 10, bytes((several[where][10] ^ 1,)))
    found = frames(several)
    assert counts(found) == {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[where]
    assert bytes(10) + several[where] in found


@VERSIONS
def test_acknowledgements_without_data_are_never_merged(version: int) -> None:
    """A sender counts them: fewer of them slow it down, and three equal ones say that something is lost."""
    several = made(
        [replace(Segment(b"", version), ack=77 + n) for n in range(3)] + [Segment(b"", version)] * 3
    )
    assert frames(several) == [bytes(10) + one for one in several]


def test_identifications_are_equal_or_successive() -> None:
    """Without DF the identification puts fragments together; equal ones would join what does not belong."""
    for fragment, stride, want in ((0x4000, 0, [4]), (0x4000, 1, [4]), (0, 1, [4]), (0, 0, [1, 1, 1, 1])):
        several = [
            replace(one, ident=0xFFFE + n * stride, fragment=fragment)
            for n, one in enumerate(Segment(data(100)).stream(4))
        ]
        assert counts(frames(made(several))) == want
    mixed = [
        replace(one, ident=ident)
        for one, ident in zip(Segment(data(100)).stream(4), (5, 5, 6, 6), strict=True)
    ]
    assert counts(frames(made(mixed))) == [2, 2]
    mixed = [
        replace(one, ident=ident)
        for one, ident in zip(Segment(data(100)).stream(4), (5, 6, 6, 7), strict=True)
    ]
    assert counts(frames(made(mixed))) == [2, 2]


@VERSIONS
@pytest.mark.parametrize(("size", "most"), [(1300, 50), (21000, 3), (21830, 3), (32767, 2), (40000, 1)])
def test_a_frame_is_no_longer_than_a_packet_can_be(version: int, size: int, most: int) -> None:
    """A length of more than 16 bits would be that of a short packet: the rest of the frame would be lost."""
    one = Segment(data(size), version)
    several = made(one.stream(2 * most))
    found = frames(several)
    assert all(len(frame) - 10 <= 65535 for frame in found)
    assert counts(found)[0] == (65535 - one.head) // size
    assert [packet for frame in found for packet in packets(frame)] == several


def test_a_short_last_one_fits_exactly_or_not() -> None:
    """The limit is on octets: one more is too many."""
    one = Segment(data(16000))
    *most, last = one.stream(5)
    for size, want in ((1495, [5]), (1496, [4, 1])):
        found = frames(made([*most, replace(last, payload=data(size))]))
        assert counts(found) == want


@VERSIONS
def test_datagrams_are_merged_only_on_demand_and_64_at_most(version: int) -> None:
    """An old kernel refuses such frames, and every kernel those with more."""
    several = made(Segment(data(100), version, UDP).stream(70))
    assert frames(several) == [bytes(10) + one for one in several]
    assert counts(frames(several, uso=True)) == [64, 6]
    first, second, *_ = Segment(data(100), version, UDP).stream(2)
    for change in ({"tos": 1}, {"ttl": 3}, {"ports": (1, 2)}, {"payload": b""}, {"payload": data(101)}):
        found = frames(made([first, replace(second, **change)]), uso=True)
        assert counts(found) == [1, 1]


@VERSIONS
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_datagram_without_a_checksum_stays_so(version: int, where: int) -> None:
    """In a frame it would get one, which says what nobody verified; in IPv6 the host has to refuse it."""
    several = made(Segment(data(100), version, UDP).stream(3))
    place = 26 if version == 4 else 46
    several[where] = changed(several[where], place, b"\0\0")
    assert bytes(10) + several[where] in frames(several, uso=True)


def test_a_datagram_with_another_length_than_its_packet_stays_so() -> None:
    """What is behind the datagram is no data; the next one's would be taken for it."""
    one = Segment(data(100), protocol=UDP)
    several = []
    for each in one.stream(3):
        bare = pack(">HHHH", *one.ports, 90, 0) + each.payload
        check = internet(each.pseudo(108) + bare)
        several.append(each.outer(108) + changed(bare, 6, check.to_bytes(2, "big")))
    assert frames(several, uso=True) == [bytes(10) + packet for packet in several]


def test_a_checksum_that_is_all_ones_is_none_when_it_is_zero() -> None:
    """The sum over the datagram is right either way, but only one of the two says so."""
    for n in range(0x10000):
        second = Segment(n.to_bytes(2, "big"), protocol=UDP, ident=6)
        if second.packet[26:28] == b"\xff\xff":
            break
    first = replace(second, payload=b"ab", ident=5)
    assert counts(frames(made([first, second]), uso=True)) == [2]
    assert counts(frames([first.packet, changed(second.packet, 26, b"\0\0")], uso=True)) == [1, 1]


@VERSIONS
def test_a_length_that_is_not_the_packet_s_keeps_it_alone(version: int) -> None:
    """The host would cut off or refuse this packet: in a frame it would take all of it."""
    first, second, third, *_ = made(Segment(data(100), version).stream(3))
    at = 2 if version == 4 else 4
    for by in (-1, 1):
        wrong = changed(second, at, (int.from_bytes(second[at : at + 2], "big") + by).to_bytes(2, "big"))
        if version == 4:
            wrong = changed(wrong, 10, (int.from_bytes(wrong[10:12], "big") - by).to_bytes(2, "big"))
            assert internet(wrong[:20]) == 0
        assert counts(frames([first, wrong, third])) == [1, 1, 1]


def test_a_tcp_header_that_is_too_short_keeps_it_alone() -> None:
    """Octets of the header would become data, and the frame would be none."""
    several = made(Segment(data(100)).stream(2))
    for doff in (0, 4):
        short = [changed(one, 32, bytes((doff << 4,))) for one in several]
        short = [
            changed(one, 36, (int.from_bytes(one[36:38], "big") + (5 - doff << 12)).to_bytes(2, "big"))
            for one in short
        ]
        assert all(map(sound, short))
        assert frames(short) == [bytes(10) + one for one in short]


@VERSIONS
def test_octets_behind_the_packet_keep_it_alone(version: int) -> None:
    """They would become data of the stream."""
    several = made(Segment(data(100), version).stream(3))
    several[1] += b"\0"
    assert counts(frames(several)) == [1, 1, 1]


@PROTOCOLS
@VERSIONS
def test_a_packet_cut_off_anywhere_goes_alone(version: int, protocol: int) -> None:
    """What a peer cuts off must not end the loop, nor what is left of it go into a frame."""
    one = Segment(data(20), version, protocol, options=TIMES if protocol == TCP else b"").packet
    for size in range(len(one)):
        assert frames([one[:size]] * 2, uso=True) == [bytes(10) + one[:size]] * 2


def test_flows_that_alternate_are_merged_each_by_itself() -> None:
    """Two downloads at the same time would be as slow as without frames."""
    flows = [replace(Segment(data(100)), ports=(n, 443)).stream(4) for n in range(8)]
    mixed = made(flow[n] for n in range(4) for flow in flows)
    found = frames(mixed)
    assert found == [frames(made(flow))[0] for flow in flows]


def test_the_ninth_flow_ends_the_first() -> None:
    """What is remembered must have an end, and what is forgotten must not be overtaken."""
    flows = [replace(Segment(data(100)), ports=(n, 443)).stream(2) for n in range(9)]
    found = frames(made(flow[n] for n in range(2) for flow in flows))
    assert counts(found)[0] == 1
    ended = [replace(Segment(data(100)), ports=(n, 443)).stream(2) for n in range(8)]
    ended = [[one, replace(two, flags=ACK | PSH)] for one, two in ended]
    last = replace(Segment(data(100)), ports=(9, 443)).stream(4)
    others = replace(Segment(data(100)), ports=(10, 443)).stream(4)
    several = last[:2] + [one for flow in ended for one in flow] + others + last[2:]
    assert counts(frames(made(several)))[0] == 4  # frames that are complete take nobody's place
    bare = [replace(Segment(b"", options=TIMES), ports=(n, 443)) for n in range(8)]
    assert counts(frames(made(last[:2] + bare + last[2:])))[0] == 4  # nor do acknowledgements


def test_frames_are_in_the_order_of_their_first_packets() -> None:
    """A flow's frame put behind later ones would let its packets arrive late for no reason."""
    a, b = (replace(Segment(data(100)), ports=(n, 443)).stream(3) for n in (1, 2))
    ping = changed(Segment(b"", source="10.1.0.9").packet, 9, b"\1")
    found = frames([a[0].packet, ping, b[0].packet, *made([a[1], b[1], b[2], a[2]])])
    assert found == [frames(made(a))[0], bytes(10) + ping, frames(made(b))[0]]


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_that_may_be_of_the_flow_ends_its_frame(version: int) -> None:
    """A fragment shows no ports: what came behind it must not be handed over before it."""
    first, second, third, fourth = Segment(data(100), version).stream(4)
    change = {"fragment": 0x2000} if version == 4 else {"between": OPTIONS6, "kind": 44}
    part = replace(first, **change)
    assert counts(frames(made([first, second, part, third, fourth]))) == [2, 1, 2]
    other = replace(part, source="10.1.0.9" if version == 4 else "2001:db8:a::9")
    assert counts(frames(made([first, second, other, third, fourth]))) == [4, 1]


def test_an_overflow_does_not_let_another_flow_in() -> None:
    """The next header is foreseen as a number: what its overflow changes is the field in front, and a packet
    of another port, protocol or length would be taken for data of this flow."""
    first, second, third = Segment(data(100), seq=(1 << 32) - 200).stream(3)
    other = replace(third, ports=(third.ports[0], third.ports[1] + 1))
    assert counts(frames(made([first, second, other]))) == [2, 1]
    assert counts(frames(made([first, second, third]))) == [3]

    first, second, third = Segment(data(100), ident=0xFFFE).stream(3)
    check = int.from_bytes(second.packet[10:12], "big") - 1
    longer = third.packet[:2] + (141).to_bytes(2, "big") + third.packet[4:10] + check.to_bytes(2, "big")
    assert internet(longer + third.packet[12:20]) == 0
    assert counts(frames([first.packet, second.packet, longer + third.packet[12:]])) == [2, 1]
    assert counts(frames(made([first, second, third]))) == [3]

    first, second, third = checking(Segment(data(100)), 1).stream(3)
    assert second.packet[10:12] == b"\0\0"
    lower = changed(changed(third.packet, 9, b"\5"), 10, b"\xff\xff")
    assert internet(lower[:20]) == 0
    assert counts(frames([first.packet, second.packet, lower])) == [2, 1]
    assert counts(frames(made([first, second, third]))) == [3]


# Streams -------------------------------------------------------------------------------------------------

STEPS = (
    ["next"] * 12
    + [
        "short",
        "push",
        "fin",
        "again",
        "gap",
        "broken",
        "bare ack",
        "ack",
        "ttl",
        "tos",
        "df",
        "ident",
        "options",
    ]
    + ["window", "fragment", "syn", "ece", "header", "behind", "no checksum"]
)


@st.composite
def flows(draw: st.DrawFn, number: int) -> list[bytes]:
    """What one flow sends: mostly full segments, with everything that may happen in between."""
    protocol = draw(st.sampled_from([TCP, TCP, UDP]))
    one = replace(draw(segments(protocol, plain=True)), ports=(number, 443))
    size = draw(st.one_of(st.integers(1, 60), st.sampled_from([1200, 1348])))
    stride = draw(st.sampled_from([0, 1, 1, 1]))
    found: list[bytes] = []
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=25)):
        one = replace(one, payload=data(size + len(found))[len(found) :], flags=ACK)
        sent = one
        match step:
            case "short":
                sent = replace(one, payload=one.payload[: draw(st.integers(1, size))])
            case "push" | "fin" | "syn" | "ece":
                flag = {"push": PSH, "fin": FIN, "syn": SYN, "ece": ECE}[step]
                sent = replace(one, flags=ACK | flag)
            case "again":
                found += found[-1:]
                continue
            case "gap":
                one = sent = replace(one, seq=one.seq + size)
            case "ack":
                one = sent = replace(one, ack=(one.ack + 1) & 0xFFFFFFFF)
            case "window":
                one = sent = replace(one, window=one.window ^ 1)
            case "ttl":
                one = sent = replace(one, ttl=one.ttl ^ 1)
            case "tos":
                one = sent = replace(one, tos=one.tos ^ 3)
            case "df":
                one = sent = replace(one, fragment=one.fragment ^ 0x4000)
            case "ident":
                one = sent = replace(one, ident=one.ident + 7)
            case "options" if protocol == TCP:
                one = sent = replace(one, options=b"" if one.options else TIMES)
            case "bare ack":
                sent = replace(one, payload=b"")
            case "fragment":
                sent = replace(one, fragment=one.fragment | 0x2000)
        packet = sent.packet
        match step:
            case "broken":
                packet = changed(packet, len(packet) - 1, bytes((packet[-1] ^ 0x40,)))
            case "header" if one.four:
                packet = changed(packet, 11, bytes((packet[11] ^ 0x40,)))
            case "behind":
                packet += b"\0\0"
            case "no checksum":
                packet = changed(packet, one.place, b"\0\0")
        found.append(packet)
        one = replace(one, seq=one.seq + len(sent.payload), ident=one.ident + stride)
    return found


@st.composite
def traffic(draw: st.DrawFn) -> list[bytes]:
    """Some flows, mixed."""
    several = [draw(flows(number)) for number in range(draw(st.sampled_from([1, 2, 3, 10])))]
    order = draw(st.permutations([number for number, flow in enumerate(several) for _ in flow]))
    if draw(st.booleans()):
        order.sort(key=lambda number: number // 2)  # less mixed
    rest = [iter(flow) for flow in several]
    return [next(rest[number]) for number in order]


def by_flow(several: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """The packets of each flow, in order, without what is only the identification of what is never cut."""
    found = defaultdict(list)
    for packet in several:
        at = 20 if packet[0] >> 4 == 4 else 40
        key = packet[12 : at + 4] if at == 20 else packet[8 : at + 4]
        if at == 20 and packet[6] & 0x40:
            packet = packet[:4] + packet[6:10] + pack(">H", sum16(packet[:20])) + packet[12:]
        found[key].append(packet)
    return dict(found)


@given(traffic(), st.booleans())
def test_frames_are_the_packets_they_were_made_of(several: list[bytes], uso: bool) -> None:
    """Lost, doubled, reordered or altered packets: every fault of putting together shows here."""
    found = frames(several, uso=uso)
    back = [packets(frame) for frame in found]
    assert by_flow(packet for each in back for packet in each) == by_flow(several)
    rest = iter(several)
    assert all(each[0] in rest for each in back)  # in the order of their first packets
    for frame, each in zip(found, back, strict=True):
        if frame[1]:
            assert len(each) > 1
            assert all(map(sound, each))
        else:
            assert frame == bytes(10) + each[0]


@st.composite
def scribbled(draw: st.DrawFn) -> list[bytes]:
    """Packets of a few flows with octets changed anywhere, cut off or of nothing at all."""
    several = [
        packet
        for one in (GOOD, SIX, GOOD_UDP)
        for packet in made(replace(one, payload=data(draw(st.integers(0, 30)))).stream(4))
    ]
    for n in draw(st.lists(st.integers(0, len(several) - 1), max_size=6)):
        packet = several[n]
        match draw(st.integers(0, 2)):
            case 0:
                several[n] = packet[: draw(st.integers(0, len(packet)))]
            case 1:
                several[n] = draw(st.binary(max_size=60))
            case _ if packet:
                at = draw(st.integers(0, len(packet) - 1))
                several[n] = changed(packet, at, bytes((draw(st.integers(0, 255)),)))
    return several


@given(scribbled(), st.booleans())
def test_any_octets_go_through_as_they_are(several: list[bytes], uso: bool) -> None:
    """What a peer sends inside an SA is up to it: it must neither end the loop nor come out otherwise."""
    found = [packet for frame in frames(several, uso=uso) if len(frame) > 10 for packet in packets(frame)]
    assert sorted(found) == sorted(one for one in several if one)
