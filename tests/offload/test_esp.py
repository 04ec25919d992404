"""ESP against published packets, its padding, and octets that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import ESP_SUITES, GCM, association, covering, entropy

from offload.esp import Opener, Sealer, strip
from offload.ip import Dropped
from sadb.algorithms import ENCRYPTION_BY_NAME, INTEGRITY_BY_NAME, QuickSuite, SecurityProtocol
from sadb.crypto import cipher
from sadb.sa import Mode, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import Selector

VECTORS = Path(__file__).parents[1] / "vectors"
EVERYTHING = Selector(covering("0.0.0.0/0"), covering("0.0.0.0/0"))


def load(name: str) -> list[Any]:
    """The entries of a file of vectors as test parameters."""
    return [pytest.param(one, id=one["name"]) for one in json.loads((VECTORS / name).read_text())]


def sa(
    suite: QuickSuite, spi: int = 1, key: bytes | None = None, mac_key: bytes = b""
) -> SecurityAssociation:
    """An SA for both directions of a test."""
    made = association(suite, spi, Mode.TUNNEL, ("192.0.2.1", "192.0.2.2"), EVERYTHING, False)
    if key is not None:
        made.encryption_key, made.integrity_key = Secret(key), Secret(mac_key)
    return made


@pytest.mark.parametrize("vector", load("esp_combined.json"))
def test_published_packet_of_a_combined_cipher(vector: dict[str, Any]) -> None:
    """AAD, nonce or layout differ from everybody else's: no packet of another implementation would open."""
    row = ENCRYPTION_BY_NAME[vector["encryption"]]
    packet, plaintext = bytes.fromhex(vector["packet"]), bytes.fromhex(vector["plaintext"])
    key, number = bytes.fromhex(vector["key"]), int(vector["sequence"], 16)
    suite = QuickSuite(SecurityProtocol.ESP, row, esn=vector["esn"])
    opener = Opener(sa(suite, int.from_bytes(packet[:4], "big"), key))
    opener.check(packet)
    assert opener.decrypt(number, packet) == plaintext
    strip(plaintext)
    aad = packet[:4] + number.to_bytes(8, "big") if vector["esn"] else packet[:8]
    assert packet[:16] + cipher(row, key).seal(packet[8:16], aad, plaintext) == packet


@pytest.mark.parametrize("vector", load("esp_cbc.json"))
def test_published_packet_of_aes_cbc(vector: dict[str, Any]) -> None:
    """RFC 3602's packets: padding, IV and ciphertext octet by octet."""
    packet = bytes.fromhex(vector["packet"])
    suite = QuickSuite(
        SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128"], INTEGRITY_BY_NAME["sha256"], esn=False
    )
    made = sa(suite, int.from_bytes(packet[:4], "big"), bytes.fromhex(vector["key"]), bytes(32))
    sealer = Sealer(made, lambda size: packet[8 : 8 + size])
    payload = bytes.fromhex(vector["payload"])
    found = sealer.seal(int.from_bytes(packet[4:8], "big"), payload, vector["next_header"])
    assert found[:-16] == packet
    opener = Opener(made)
    assert strip(opener.decrypt(int.from_bytes(packet[4:8], "big"), found)) == (
        vector["next_header"],
        payload,
    )


@pytest.mark.parametrize("vector", load("esp_separate.json"))
def test_packet_another_implementation_made_with_hmac(vector: dict[str, Any]) -> None:
    """The order of IV, ciphertext and the unsent half of an extended sequence number under the HMAC."""
    suite = QuickSuite(
        SecurityProtocol.ESP,
        ENCRYPTION_BY_NAME[vector["encryption"]],
        INTEGRITY_BY_NAME[vector["integrity"]],
        esn=vector["esn"],
    )
    made = sa(
        suite,
        int(vector["spi"], 16),
        bytes.fromhex(vector["key"]),
        bytes.fromhex(vector["integrity_key"]),
    )
    inner, number = bytes.fromhex(vector["inner"]), int(vector["sequence"], 16)
    tunnel = vector["mode"] == "tunnel"
    payload, kind = (inner, 4) if tunnel else (inner[20:], inner[9])
    packet = bytes.fromhex(vector["packet"])
    assert Sealer(made, lambda size: bytes.fromhex(vector["iv"])).seal(number, payload, kind) == packet
    assert strip(Opener(made).decrypt(number, packet)) == (kind, payload)


@pytest.mark.parametrize("suite", ESP_SUITES, ids=lambda s: f"{s}{' esn' if s.esn else ''}")
@given(payload=st.binary(max_size=70), kind=st.integers(0, 255), number=st.integers(1, 0xFFFFFFFF))
def test_what_is_sealed_opens_and_has_the_size_foretold(
    suite: QuickSuite, payload: bytes, kind: int, number: int
) -> None:
    """Path MTU decisions are made from the size before anything is encrypted."""
    made = sa(suite)
    if suite.esn:
        number <<= 20
    sealer = Sealer(made, entropy())
    packet = sealer.seal(number, payload, kind)
    assert len(packet) == sealer.size(len(payload))
    assert sealer.most(len(packet)) >= len(payload)
    assert sealer.size(sealer.most(len(packet))) <= len(packet)
    assert len(packet) % 4 == 0
    opener = Opener(made)
    opener.check(packet)
    text = opener.decrypt(number, packet)
    assert strip(text) == (kind, payload)
    length = text[-2]
    assert text[len(payload) : -2] == bytes(range(1, length + 1))


@pytest.mark.parametrize("suite", [s for s in ESP_SUITES if s.esn], ids=str)
def test_the_unsent_half_of_the_number_is_authenticated(suite: QuickSuite) -> None:
    """Otherwise a packet could be replayed 2^32 numbers later."""
    made = sa(suite)
    packet = Sealer(made, entropy()).seal(5, b"text", 4)
    with pytest.raises(Dropped, match="unverified"):
        Opener(made).decrypt(5 + (1 << 32), packet)


@pytest.mark.parametrize("suite", ESP_SUITES, ids=lambda s: f"{s}{' esn' if s.esn else ''}")
@given(data=st.data())
def test_no_changed_octet_goes_unnoticed(suite: QuickSuite, data: st.DataObject) -> None:
    """SPI, number, IV, ciphertext, check value: all of it is authenticated."""
    made = sa(suite, 0x01020304)
    packet = Sealer(made, entropy()).seal(9, b"some payload", 4)
    # the SPI found the SA: with AES-GCM it comes out of the SA where the number is extended
    place = data.draw(st.integers(4, len(packet) - 1))
    flip = data.draw(st.integers(1, 255))
    broken = packet[:place] + bytes((packet[place] ^ flip,)) + packet[place + 1 :]
    number = 9 if place >= 8 else int.from_bytes(broken[4:8], "big")
    with pytest.raises(Dropped, match="unverified"):
        Opener(made).decrypt(number, broken)


def test_aead_ivs_are_the_sequence_number() -> None:
    """A nonce that comes twice under one key gives AES-GCM's authentication key away."""
    sealer = Sealer(sa(GCM), entropy())
    assert [sealer.seal(n, b"", 4)[8:16] for n in (1, 2, 0xFFFFFFFF)] == [
        n.to_bytes(8, "big") for n in (1, 2, 0xFFFFFFFF)
    ]


@pytest.mark.parametrize(
    "text",
    [b"", b"\4", b"\1\4", b"\2\2\2\4", b"\0\2\1\2\4", b"\1\2\3\5\4\4", b"\xff\4", b"payload\2\1\2\4"],
)
def test_wrong_padding_is_refused(text: bytes) -> None:
    """RFC 4303 section 2.4: the receiver should look; a length beyond the text must not wrap round."""
    with pytest.raises(Dropped, match="malformed"):
        strip(text)


@pytest.mark.parametrize("suite", ESP_SUITES, ids=lambda s: f"{s}{' esn' if s.esn else ''}")
def test_a_packet_of_header_iv_and_check_value_alone_is_malformed(suite: QuickSuite) -> None:
    """There is no room for pad length and next header; reading them would fall off the front."""
    opener = Opener(sa(suite))
    for size in range(opener.overhead + 2):
        with pytest.raises(Dropped, match="malformed"):
            opener.check(bytes(size))
