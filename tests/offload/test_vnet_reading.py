"""Frames that stand for many packets: cutting them up, and what the kernel would never send."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from struct import pack

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
    SHIFTED,
    SIX,
    TCP,
    UDP,
    VERSIONS,
    Segment,
    changed,
    checking,
    data,
    internet,
    made,
    segments,
)

from offload.ip import Dropped
from offload.vnet import packets

pytestmark = ONE_ENGINE


def test_a_plain_frame_is_its_packet() -> None:
    """Otherwise the device's own header is encrypted; octets behind the packet are cut off elsewhere."""
    packet = Segment().packet
    assert packets(bytes(10) + packet) == [packet]
    assert packets(bytes(10) + packet + b"\0\0\0") == [packet + b"\0\0\0"]
    assert packets(b"\2" + bytes(9) + packet) == [packet]  # DATA_VALID


@given(st.sampled_from([TCP, UDP]).flatmap(segments))
def test_a_missing_checksum_is_completed(one: Segment) -> None:
    """The peer's host would drop nearly all that is sent: the kernel leaves this work to the device."""
    assert packets(one.frame()) == [one.packet]


@PROTOCOLS
@VERSIONS
def test_a_sum_of_zero_is_all_ones_in_udp_only(version: int, protocol: int) -> None:
    """A UDP checksum of zero says that there is none, and IPv6 forbids that (RFC 8200 section 8.1)."""
    size = 2 * (2 if protocol == UDP else 3)
    for n in range(0x10000):
        one = Segment(n.to_bytes(2, "big") + b"\0\0" * (size // 2 - 1), version, protocol)
        bare = one.transport(0)
        if internet(one.pseudo(len(bare)) + bare) == 0:
            break
    want = b"\xff\xff" if protocol == UDP else b"\0\0"
    kind = 5 if protocol == UDP else 1 if version == 4 else 4
    for frame in (one.frame(), one.frame(kind, 1000)):
        (found,) = packets(frame)
        assert found[one.place : one.place + 2] == want
        assert found == one.packet


@given(segments(TCP), st.integers(1, 300), st.booleans(), st.booleans())
def test_a_tcp_frame_is_cut_up_as_the_kernel_would(one: Segment, mss: int, ecn: bool, partial: bool) -> None:
    """Wrong numbers, lengths, flags or checksums in any segment are lost data for the whole connection."""
    mss += len(one.payload) // 40
    kind = (1 if one.four else 4) | (0x80 if ecn else 0)
    if not partial and not one.four and one.between:
        return  # the header of the frame is what says where TCP begins
    assert packets(one.frame(kind, mss, flags=int(partial))) == made(one.cut(mss))


@given(segments(UDP), st.integers(1, 300))
def test_a_udp_frame_is_cut_up_as_the_kernel_would(one: Segment, mss: int) -> None:
    """Datagrams with wrong lengths or checksums never reach the application."""
    mss += len(one.payload) // 40
    assert packets(one.frame(5, mss)) == made(one.cut(mss))


@VERSIONS
def test_only_the_last_segment_pushes_and_ends_and_only_the_first_has_cwr(version: int) -> None:
    """FIN too early loses the rest of the stream; CWR repeated says that the sender slowed down again."""
    one = Segment(data(2500), version, flags=FIN | PSH | ACK | ECE | CWR)
    found = packets(one.frame(0x81 if version == 4 else 0x84, 1000))
    assert [packet[one.at + 13] for packet in found] == [ACK | ECE | CWR, ACK | ECE, FIN | PSH | ACK | ECE]
    (alone,) = packets(one.frame(0x81 if version == 4 else 0x84, 2500))
    assert alone[one.at + 13] == one.flags


@pytest.mark.parametrize("ident", [0xFFFD, 0xFFFF, 0])
def test_numbers_go_round(ident: int) -> None:
    """The field in front would change with the overflow: another port, another length."""
    one = Segment(data(6000), seq=0xFFFFFFFF - 2500, ident=ident)
    assert packets(one.frame(1, 1000)) == made(one.cut(1000))


def test_header_checksums_go_round() -> None:
    """A checksum below zero would make another protocol of the packet."""
    one = replace(checking(Segment(data(1000)), 2), payload=data(6000))
    found = packets(one.frame(1, 1000))
    assert [packet[10] << 8 | packet[11] for packet in found] == [2, 1, 0, 0xFFFE, 0xFFFD, 0xFFFC]
    assert found == made(one.cut(1000))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(GOOD.frame()[:9], id="half a header"),
        pytest.param(bytes(10), id="no packet"),
        pytest.param(GOOD.frame(1, 0), id="no segment size"),
        pytest.param(GOOD.frame(3, 100), id="UFO"),
        pytest.param(GOOD.frame(2, 100), id="unknown kind"),
        pytest.param(GOOD.frame(0x80, 100), id="ECN without a kind"),
        pytest.param(GOOD_UDP.frame(0x85, 100), id="ECN of UDP"),
        pytest.param(GOOD_UDP.frame(1, 100), id="UDP as TCP"),
        pytest.param(GOOD.frame(5, 100), id="TCP as UDP"),
        pytest.param(GOOD.frame(4, 100), id="IPv4 as IPv6"),
        pytest.param(SIX.frame(1, 100), id="IPv6 as IPv4"),
        pytest.param(replace(SIX, between=OPTIONS6, kind=99).frame(4, 100), id="unknown extension header"),
        pytest.param(replace(SIX, between=OPTIONS6, kind=44).frame(4, 100), id="fragment"),
        pytest.param(replace(SIX, between=OPTIONS6).frame(4, 100, flags=0), id="TCP not where it would be"),
        pytest.param(replace(SIX, between=b"\6\7" + OPTIONS6[2:]).frame(4, 100), id="extension too long"),
        pytest.param(changed(SIX.frame(4, 100), 6, b"\x20\0"), id="IPv6 header cut off by the start"),
        pytest.param(changed(SHIFTED.frame(4, 100), 6, pack("=H", 32)), id="IPv6 header too short"),
        pytest.param(changed(GOOD.frame(1, 100), 10, b"\x44"), id="IPv4 header too short"),
        pytest.param(changed(GOOD.frame(1, 100), 12, b"\0\x28"), id="IPv4 length"),
        pytest.param(changed(SIX.frame(4, 100), 14, b"\xff\xff"), id="IPv6 length"),
        pytest.param(GOOD.frame(1, 100) + b"\0", id="octets behind"),
        pytest.param(changed(GOOD.frame(1, 100), 42, b"\x40"), id="TCP header too short"),
        pytest.param(replace(GOOD, payload=b"").frame(1, 100)[:-1], id="TCP header cut off"),
        pytest.param(
            changed(replace(GOOD, payload=b"").frame(1, 100), 42, b"\xf0"),
            id="TCP options that are not there",
        ),
        pytest.param(changed(GOOD_UDP.frame(5, 100), 34, b"\0\x10"), id="UDP length"),
        pytest.param(changed(GOOD.frame(1, 100), 6, pack("=H", 24)), id="checksum from elsewhere"),
        pytest.param(changed(GOOD.frame(1, 100), 8, pack("=H", 6)), id="checksum elsewhere"),
        pytest.param(changed(GOOD.frame(1, 100), 6, pack("=HH", 24, 12)), id="checksum of less"),
        pytest.param(changed(GOOD.frame(), 6, pack("=H", 925)), id="checksum behind the packet"),
        pytest.param(changed(GOOD.frame(), 8, pack("=H", 0xFFFF)), id="checksum far behind"),
        pytest.param(changed(GOOD.frame(), 8, pack("=H", 919)), id="half a checksum"),
    ],
)
def test_what_the_kernel_would_not_send_is_dropped(frame: bytes) -> None:
    """Cut up anyway, it would be packets nobody sent; as another exception it would end the reading loop."""
    with pytest.raises(Dropped) as caught:
        packets(frame)
    assert caught.value.reason == "malformed"


@st.composite
def octets(draw: st.DrawFn) -> bytes:
    """A frame with anything in it, often with most of it right."""
    one = draw(
        st.sampled_from([GOOD, SIX, GOOD_UDP, replace(SIX, between=OPTIONS6), replace(GOOD, payload=b"")])
    )
    kind = draw(st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84]))
    frame = bytearray(
        one.frame(kind, draw(st.sampled_from([0, 1, 100, 5000])), flags=draw(st.integers(0, 1)))
    )
    for at in draw(st.lists(st.integers(0, 75), max_size=3)):
        if at < len(frame):
            frame[at] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(0, 100))]) if draw(st.booleans()) else bytes(frame)


@given(st.one_of(st.binary(max_size=120), octets()))
def test_any_octets_are_packets_or_dropped(frame: bytes) -> None:
    """An exception of another kind would end the loop that reads the TUN device."""
    with suppress(Dropped):
        assert packets(frame)
