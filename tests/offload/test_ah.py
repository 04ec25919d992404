"""AH against packets made elsewhere and one laid out by hand; what may change on the way and what may not."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from support.engines import AH_SUITES, association, between, covering

from offload import ip
from offload.ah import Authenticator, immutable
from offload.ip import Dropped
from sadb.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, QuickSuite, SecurityProtocol
from sadb.sa import Mode, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import Selector

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ah.json").read_text())
EVERYTHING = Selector(covering("0.0.0.0/0"), covering("0.0.0.0/0"))
SHA256 = QuickSuite(SecurityProtocol.AH, None, INTEGRITY_BY_NAME["sha256"], esn=False)


def sa(suite: QuickSuite, spi: int = 0x1234ABCD, key: bytes | None = None) -> SecurityAssociation:
    """An SA for both directions of a test."""
    made = association(suite, spi, Mode.TRANSPORT, ("192.0.2.1", "192.0.2.2"), EVERYTHING, False)
    if key is not None:
        made.integrity_key = Secret(key)
    return made


def behind(packet: bytes) -> tuple[bytes, bytes]:
    """A packet's headers before AH, and the rest."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
    else:
        size, kind = 40, packet[6]
        while kind != ip.AH:
            kind, size = packet[size], size + 8 * (packet[size + 1] + 1)
    return packet[:size], packet[size:]


@pytest.mark.parametrize("vector", [pytest.param(one, id=one["name"]) for one in VECTORS])
def test_packet_another_implementation_made(vector: dict[str, Any]) -> None:
    """Which fields count, and as what, is the whole of AH: one octet of difference and nothing verifies."""
    suite = QuickSuite(SecurityProtocol.AH, None, INTEGRITY_BY_NAME[vector["integrity"]], esn=vector["esn"])
    packet, inner = bytes.fromhex(vector["packet"]), bytes.fromhex(vector["inner"])
    number = int(vector["sequence"], 16)
    authenticator = Authenticator(sa(suite, int(vector["spi"], 16), bytes.fromhex(vector["key"])))
    header, data = behind(packet)
    size = authenticator.check(data)
    kind, payload = authenticator.verify(number, header, data, size)
    if vector["mode"] == "tunnel":
        assert (kind, payload) == (4 if inner[0] >> 4 == 4 else 41, inner)
    else:
        assert inner.endswith(payload)
    assert authenticator.sign(number, header, ip.last_field(header), kind, payload) == packet


def test_header_laid_out_by_hand() -> None:
    """The layout of RFC 4302 section 2.2, written out octet by octet and authenticated with hmac alone."""
    key = bytes(range(32))
    payload = bytes.fromhex("04000035000c0000") + b"data"
    on_wire = bytes.fromhex("4528 0044 1234 4000 3f33 0000 c0000201 c0000202")
    as_zero = bytes.fromhex("4500 0044 1234 0000 0033 0000 c0000201 c0000202")
    fixed = bytes.fromhex("11 05 0000 1234abcd 00000007")
    icv = hmac.new(key, as_zero + fixed + bytes(16) + payload, hashlib.sha256).digest()[:16]
    header = on_wire[:2] + (20 + 28 + len(payload)).to_bytes(2, "big") + on_wire[4:]
    as_zero = as_zero[:2] + header[2:4] + as_zero[4:]
    icv = hmac.new(key, as_zero + fixed + bytes(16) + payload, hashlib.sha256).digest()[:16]
    found = Authenticator(sa(SHA256, key=key)).sign(7, header, 9, 17, payload)
    assert found[20:] == fixed + icv + payload
    assert found[:10] + found[12:20] == header[:10] + header[12:]
    assert ip.ones_complement(found[:20]) in (0, 0xFFFF)


@pytest.mark.parametrize("version", [4, 6])
def test_gmac_carries_its_iv_before_the_tag(version: int) -> None:
    """RFC 4543 section 4 with erratum 3643: 8 octets of IV and 16 of tag, and 4 of padding in IPv6."""
    row = ENCRYPTION_BY_NAME["aes128gmac"]
    key = bytes(range(20))
    made = sa(QuickSuite(SecurityProtocol.AH, row, esn=False))
    made.encryption_key = Secret(key)
    packet = between(version)
    at, field, kind = ip.insertion(packet)
    signed = Authenticator(made).sign(3, packet[:at], field, kind, packet[at:])
    header, data = behind(signed)
    size = 36 if version == 4 else 40
    assert data[1] == size // 4 - 2
    text = immutable(header) + data[:12] + bytes(24) + data[36:size] + packet[at:]
    iv = (3).to_bytes(8, "big")
    assert data[12:20] == iv
    assert data[20:36] == AESGCM(key[:16]).encrypt(key[16:] + iv, b"", text)


@pytest.mark.parametrize("suite", AH_SUITES, ids=lambda s: f"{s} {s.encryption}{' esn' if s.esn else ''}")
@pytest.mark.parametrize("version", [4, 6])
@given(payload=st.binary(max_size=40), data=st.data())
def test_what_may_change_may_and_nothing_else(
    suite: QuickSuite, version: int, payload: bytes, data: st.DataObject
) -> None:
    """Routers change TTL, class and checksum; anybody else who changes anything must be noticed."""
    authenticator = Authenticator(sa(suite))
    packet = between(version, payload)
    at, field, kind = ip.insertion(packet)
    number = 5 << 32 | 8 if suite.esn else 8
    signed = bytearray(authenticator.sign(number, packet[:at], field, kind, packet[at:]))
    mutable = {1, 6, 7, 8, 10, 11} if version == 4 else {1, 2, 3, 7}
    place = data.draw(st.integers(4 if version == 6 else 1, len(signed) - 1))
    signed[place] ^= data.draw(st.integers(1, 255))
    header, rest = bytes(signed[:at]), bytes(signed[at:])
    try:
        size = authenticator.check(rest)
        low = int.from_bytes(rest[8:12], "big")
        found = authenticator.verify(number & ~0xFFFFFFFF | low, header, rest, size)
    except Dropped:
        assert place not in mutable
    else:
        # the SPI found the SA, and is compared as it stands there
        assert place in mutable
        assert found == (kind, packet[at:])


def test_source_route_counts_with_the_address_it_ends_at() -> None:
    """RFC 4302 section 3.3.3.1.1.1: the receiver sees the last destination, the sender the first."""
    route = bytes((131, 7, 4)) + bytes((203, 0, 113, 9)) + b"\0"
    sent = bytes.fromhex("4700 0020 0001 0000 4033 0000 c0000201 c0000202") + route
    came = bytes.fromhex("4700 0020 0001 0000 3f33 0000 c0000201 cb007109")
    came += bytes((131, 7, 8)) + bytes((192, 0, 2, 2)) + b"\0"
    assert immutable(sent) == immutable(came)


def test_ipv6_options_count_unless_their_type_says_they_change() -> None:
    """RFC 4302 section 3.3.3.1.2.2: the data of a changing option is zero, its type and length are not."""
    base = between(6)[:40]
    fixed, changing = bytes((0x05, 2, 1, 2)), bytes((0x3E, 2, 1, 2))
    header = ip.addressed(base, 6, 0, 16) + bytes((51, 1, 0)) + fixed + changing + bytes((1, 3, 0, 0, 0))
    found = immutable(header)
    assert found[40:] == header[40:43] + fixed + bytes((0x3E, 2, 0, 0)) + header[51:]
    broken = header[:40] + bytes((51, 0, 5, 9)) + bytes(4)
    with pytest.raises(Dropped):
        immutable(broken)


def test_routing_headers_must_be_used_up() -> None:
    """The receiver would see other addresses than the sender authenticated (RFC 5095)."""
    base = ip.addressed(between(6)[:40], 6, ip.ROUTING, 8)
    assert immutable(base + bytes((51, 0, 4, 0, 0, 0, 0, 0)))
    with pytest.raises(Dropped):
        immutable(base + bytes((51, 0, 4, 1, 0, 0, 0, 0)))


@pytest.mark.parametrize("options", ["01 94 04 00 00 07 03 00", "00 ff ff ff"])
def test_ipv4_padding_and_end_of_options(options: str) -> None:
    """No-operation is one octet; nothing counts as an option behind the end of the list."""
    data = bytes.fromhex(options)
    header = bytes((0x45 + len(data) // 4,)) + between(4)[1:20] + data
    assert immutable(header)[20:] == data.replace(bytes.fromhex("070300"), bytes(3))


@given(st.binary(min_size=4, max_size=80), st.binary(max_size=44), st.sampled_from([4, 6]))
def test_any_octets_are_dropped(data: bytes, options: bytes, version: int) -> None:
    """Options and lengths of strangers must not lead beyond the header."""
    authenticator = Authenticator(sa(SHA256))
    head = between(version)[: 20 if version == 4 else 40]
    options = options[: len(options) // 8 * 8][:40]
    header = bytes((0x45 + len(options) // 4,)) + head[1:] + options if version == 4 else head + options
    with pytest.raises(Dropped):
        authenticator.verify(1, header, data, authenticator.check(data))
