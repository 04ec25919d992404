"""IP headers: sums, insertion points, ECN."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import between, datagram

from offload import ip
from offload.ip import CE, ECT0, ECT1, NOT_ECT, Dropped


def slow_checksum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(min_size=1, max_size=60))
def test_checksum_agrees_with_the_loop_of_rfc_1071(data: bytes) -> None:
    """Every router would drop packets with a wrong header checksum."""
    data = data + data + b"\x45\0"
    assert ip.checksum(data) == slow_checksum(data)


@pytest.mark.parametrize("ends", [("192.0.2.1", "198.51.100.1"), ("0.0.0.0", "255.255.255.255")])
@given(
    traffic=st.integers(0, 255),
    size=st.integers(0, 65515),
    ident=st.integers(0, 65535),
    flags=st.sampled_from([0, ip.DONT_FRAGMENT]),
)
def test_prepared_header_has_the_checksum_of_its_octets(
    ends: tuple[str, str], traffic: int, size: int, ident: int, flags: int
) -> None:
    """The outer header's checksum is computed from a prepared sum; a wrong one is fatal on the wire."""
    outer = ip.Outer(ip_address(ends[0]), ip_address(ends[1]), ip.ESP)
    header = outer.header(traffic, size, ident, flags)
    assert slow_checksum(header) == 0
    assert int.from_bytes(header[2:4], "big") == size + 20


@given(st.binary(max_size=90))
def test_any_octets_are_a_whole_packet_or_dropped(data: bytes) -> None:
    """An exception of another kind would end the loop that reads the TUN device."""
    for packet in (data, b"\x45" + data, b"\x60" + data, b"\x60\0\0\0\0\1" + data):
        with suppress(Dropped):
            found = ip.whole(packet)
            assert packet.startswith(found)
            ip.flow_key(found)
            assert ip.insertion(found)[0] <= len(found)
            ip.last_field(found)


def test_what_stands_behind_the_packet_is_cut_off() -> None:
    """Padding of a link layer would be encrypted and arrive as part of the packet."""
    packet = between(4)
    assert ip.whole(packet + b"\0\0\0") == packet


def test_insertion_in_ipv6_is_behind_what_every_hop_reads() -> None:
    """RFC 4303 section 3.1.1: routers on the way would not find their headers inside the ciphertext."""
    base = b"\x60\0\0\0\0\x30\0\x40" + bytes(32)
    hop, options, routing = (
        bytes((60, 0)) + bytes(6),
        bytes((43, 0)) + bytes(6),
        bytes((60, 0, 4, 0)) + bytes(4),
    )
    final = bytes((17, 0)) + bytes(6)
    packet = base + hop + options + routing + final + bytes(8)
    assert ip.insertion(packet) == (40 + 24, 56, 60)
    assert ip.last_field(packet[: 40 + 32]) == 64


# RFC 6040 section 4.2, figure 4, read off line by line: inner, outer, what is delivered.
FIGURE_4 = [
    (NOT_ECT, NOT_ECT, NOT_ECT),
    (NOT_ECT, ECT0, NOT_ECT),
    (NOT_ECT, ECT1, NOT_ECT),
    (NOT_ECT, CE, None),
    (ECT0, NOT_ECT, ECT0),
    (ECT0, ECT0, ECT0),
    (ECT0, ECT1, ECT1),
    (ECT0, CE, CE),
    (ECT1, NOT_ECT, ECT1),
    (ECT1, ECT0, ECT1),
    (ECT1, ECT1, ECT1),
    (ECT1, CE, CE),
    (CE, NOT_ECT, CE),
    (CE, ECT0, CE),
    (CE, ECT1, CE),
    (CE, CE, CE),
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("inner", "outer", "delivered"), FIGURE_4)
def test_congestion_marks_are_combined_as_in_rfc_6040(
    version: int, inner: int, outer: int, delivered: int | None
) -> None:
    """A lost mark makes senders ignore congestion inside the tunnel's path."""
    packet = between(version, traffic=0xB8 | inner)
    if delivered is None:
        with pytest.raises(Dropped):
            ip.decapsulated(packet, 0x20 | outer)
        return
    found = ip.decapsulated(packet, 0x20 | outer)
    assert ip.traffic_class(found) == 0xB8 | delivered
    assert found == between(version, traffic=0xB8 | delivered)


@given(st.binary(max_size=40))
def test_transport_checksum_is_that_of_the_addresses_now(payload: bytes) -> None:
    """Behind a NAT the receiver's stack would drop every packet with the old checksum (RFC 3948 3.1.2)."""
    sent = datagram("10.0.0.1", "192.0.2.9", payload)
    moved = bytearray(sent)
    moved[12:16] = bytes((203, 0, 113, 4))
    assert (
        ip.with_transport_checksum(bytes(moved), 20, 17)[20:]
        == datagram("203.0.113.4", "192.0.2.9", payload)[20:]
    )


def test_a_udp_checksum_of_zero_stays_and_none_becomes_zero() -> None:
    """In IPv4 zero says that there is none; a computed zero is sent as all ones (RFC 768)."""
    none = bytearray(datagram("10.0.0.1", "192.0.2.9"))
    none[26:28] = b"\0\0"
    assert ip.with_transport_checksum(bytes(none), 20, 17) == bytes(none)
    for n in range(0x10000):
        body = datagram("10.0.0.1", "192.0.2.9", n.to_bytes(2, "big"))
        if body[26:28] == b"\xff\xff":
            return
        assert body[26:28] != b"\0\0"
    pytest.fail("one payload of two octets has the sum of zero")


def test_what_carries_no_such_checksum_is_left_alone() -> None:
    """ICMP covers no addresses in IPv4, and a cut-off header has no checksum to mend."""
    packet = datagram("10.0.0.1", "192.0.2.9")
    assert ip.with_transport_checksum(packet, 20, 1) == packet
    assert ip.with_transport_checksum(packet[:24], 20, 17) == packet[:24]
