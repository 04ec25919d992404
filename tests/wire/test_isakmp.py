"""ikd.wire.isakmp: headers and chains of payloads, honest and hostile."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.ikev2.payloads import (
    ENCRYPTED,
    PAYLOADS,
    Encrypted,
    EncryptedFragment,
    KeyExchange,
    Nonce,
    Notify,
    Proposal,
    SecurityAssociation,
    Transform,
    VendorId,
)
from ikd.wire.codec import Malformed, rest, wire
from ikd.wire.isakmp import (
    HEADER_SIZE,
    MOST_PAYLOADS,
    ZERO_SPI,
    Body,
    Flags,
    Header,
    Payload,
    Unknown,
    chain,
    encode_chain,
)


def header(length: int = HEADER_SIZE, **changed: int) -> Header:
    values = {"next_payload": 33, "version": 0x20, "exchange": 34, "flags": 8, "message_id": 0} | changed
    return Header(b"\1" * 8, ZERO_SPI, length=length, **values)


def payload(following: int, body: bytes, *, flags: int = 0, length: int | None = None) -> bytes:
    """A payload with its generic header, whose length may lie."""
    size = len(body) + 4 if length is None else length
    return bytes((following, flags)) + size.to_bytes(2, "big") + body


# Header --------------------------------------------------------------------------------------------------


def test_header_is_that_of_the_drawing() -> None:
    """28 octets in this order (RFC 7296 section 3.1)."""
    octets = bytes.fromhex("0102030405060708 1112131415161718 21 20 22 08 00000005 0000001c")
    found = Header.decode(octets)
    assert (found.spi_i, found.spi_r) == (bytes(range(1, 9)), bytes(range(17, 25)))
    assert (found.next_payload, found.major, found.exchange) == (33, 2, 34)
    assert (found.flags, found.message_id, found.length) == (Flags.INITIATOR, 5, 28)
    assert found.encode() == octets


@given(st.binary(max_size=60))
def test_any_octets_are_a_header_or_malformed(octets: bytes) -> None:
    """Every datagram comes here first."""
    try:
        found = Header.decode(octets)
    except Malformed:
        return
    assert found.encode() == octets[:HEADER_SIZE]
    assert found.length == len(octets)


@pytest.mark.parametrize(("says", "has"), [(0, 28), (27, 28), (29, 28), (28, 29), (0xFFFFFFFF, 28)])
def test_length_must_be_that_of_the_datagram(says: int, has: int) -> None:
    """Octets behind the message are not authenticated; missing ones were cut on the way."""
    with pytest.raises(Malformed):
        Header.decode((header(says).encode() + b"\0")[:has])


# Chains --------------------------------------------------------------------------------------------------

TRANSFORMS = (
    Transform(type=1, id=20, attributes=((14, 256),)),
    Transform(type=2, id=6),
    Transform(type=4, id=31),
)
INIT: list[Body] = [
    SecurityAssociation(proposals=(Proposal(number=1, protocol=1, spi=b"", transforms=TRANSFORMS),)),
    KeyExchange(group=31, public=b"\x22" * 32),
    Nonce(data=b"\x33" * 16),
    Notify(type=16388, spi=b"", data=b"\x44" * 20),
]
# the same octet by octet, after the drawings of RFC 7296 sections 3.2 to 3.10
INIT_OCTETS = bytes.fromhex(
    "22000028"  # SA, next KE
    "00000024 01010003"  # proposal 1, IKE, no SPI, three transforms
    "0300000c 01000014 800e0100"  # ENCR_AES_GCM_16, 256 bits
    "03000008 02000006"  # PRF_HMAC_SHA2_384
    "00000008 0400001f"  # Curve25519
    "28000028 001f0000" + "22" * 32 + "29000014" + "33" * 16 + "0000001c 00004004" + "44" * 20
)


def test_first_message_is_written_and_read_as_drawn() -> None:
    """Round trips alone would not show a mistake made both ways."""
    assert encode_chain(INIT) == (33, INIT_OCTETS)
    assert chain(33, INIT_OCTETS, PAYLOADS, ENCRYPTED) == (INIT, 0)


def test_no_payloads_are_an_empty_chain() -> None:
    """An empty INFORMATIONAL is how a peer asks whether we live (RFC 7296 section 1.4)."""
    assert encode_chain([]) == (0, b"")
    assert chain(0, b"", PAYLOADS) == ([], 0)


def test_encrypted_payload_ends_the_chain_and_names_the_first_inside() -> None:
    """Its "next payload" belongs to the chain within (RFC 7296 section 3.14)."""
    octets = payload(46, b"x" * 16) + payload(35, b"sealed")
    found, inner = chain(40, octets, PAYLOADS, ENCRYPTED)
    assert found == [Nonce(data=b"x" * 16), Encrypted(data=b"sealed")]
    assert inner == 35
    fragment = payload(0, b"\0\2\0\3" + b"sealed")
    assert chain(53, fragment, PAYLOADS, ENCRYPTED) == (
        [EncryptedFragment(number=2, total=3, data=b"sealed")],
        0,
    )


def test_nothing_may_follow_an_encrypted_payload() -> None:
    """What stands behind it is not protected and must not be read as if it were."""
    with pytest.raises(Malformed):
        chain(46, payload(41, b"sealed") + payload(0, b"\0\0\x40\x04"), PAYLOADS, ENCRYPTED)


@pytest.mark.parametrize("critical", [False, True])
def test_unknown_payloads_are_kept_with_their_critical_bit(critical: bool) -> None:
    """Whether to refuse the message is the protocol's decision (RFC 7296 section 2.5)."""
    flags = 0x80 if critical else 0x7F
    octets = payload(40, b"what?", flags=flags) + payload(0, b"n" * 16)
    found, _ = chain(201, octets, PAYLOADS)
    assert found == [Unknown(201, critical, b"what?"), Nonce(data=b"n" * 16)]


def test_critical_bit_of_known_payloads_is_ignored() -> None:
    """ "MUST be ignored by the recipient if it understands the payload" (RFC 7296 section 3.2)."""
    assert chain(40, payload(0, b"n" * 16, flags=0x80), PAYLOADS) == ([Nonce(data=b"n" * 16)], 0)


def test_unknown_payload_is_written_as_it_came() -> None:
    """A tool that repeats a message must not change it."""
    bodies: list[Body] = [Unknown(201, True, b"what?"), VendorId(data=b"v")]
    kind, octets = encode_chain(bodies)
    assert octets == payload(43, b"what?", flags=0x80) + payload(0, b"v")
    assert chain(kind, octets, PAYLOADS) == (bodies, 0)


def test_critical_payload_of_a_registry_is_marked() -> None:
    """A payload class may ask for the bit."""

    @wire
    class Must(Payload):
        """A payload the peer has to understand."""

        kind: ClassVar[int] = 201
        critical: ClassVar[bool] = True
        data: bytes = rest()

    assert encode_chain([Must(data=b"x")]) == (201, payload(0, b"x", flags=0x80))


NONCE = payload(0, b"n" * 16)
HOSTILE = {
    "no octets": (40, b""),
    "half a header": (40, b"\0\0\0"),
    "zero length": (40, payload(0, b"n" * 16, length=0)),
    "length less than its header": (40, payload(0, b"n" * 16, length=3)),
    "zero length where any would do": (43, payload(0, b"", length=0)),
    "three octets where any would do": (43, payload(43, b"", length=3) + payload(0, b"")),
    "length that runs over": (40, payload(0, b"n" * 16, length=21)),
    "largest length": (40, payload(0, b"n" * 16, length=0xFFFF)),
    "length that stops short": (40, payload(0, b"n" * 17, length=20)),
    "next payload that is not there": (40, payload(41, b"n" * 16)),
    "octets after the last": (40, NONCE + b"\0"),
    "payloads after the last": (40, NONCE + NONCE),
    "octets without a payload": (0, b"\0\0\0\4"),
    "unknown with zero length": (201, payload(0, b"", length=0)),
    "nonce too short": (40, payload(0, b"n" * 15)),
    "nonce too long": (40, payload(0, b"n" * 257)),
    "proposal that runs over its payload": (
        33,
        payload(40, bytes.fromhex("000000ff 01010000")) + NONCE,
    ),
    "transform of zero length": (33, payload(0, bytes.fromhex("00000010 01010001 00000000 00000000"))),
    "SPI longer than its notify": (41, payload(0, bytes.fromhex("01ff4000 00000000"))),
    "deletion of more SPIs than octets": (42, payload(0, bytes.fromhex("0304ffff 00000001"))),
    "deletion of SPIs without length": (42, payload(0, bytes.fromhex("0300ffff"))),
    "selectors that are not there": (44, payload(0, bytes.fromhex("ff000000"))),
    "selector of no length": (44, payload(0, bytes.fromhex("01000000 07000000"))),
    "fragment without numbers": (53, payload(0, b"\0\1\0")),
}


@pytest.mark.parametrize(("kind", "octets"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_chains_are_malformed(kind: int, octets: bytes) -> None:
    """Each is a way in which a parser has been made to loop, to overrun or to believe."""
    with pytest.raises(Malformed):
        chain(kind, octets, PAYLOADS, ENCRYPTED)


def test_payloads_are_bounded() -> None:
    """64 KiB hold 16000 empty payloads; each would become an object before anyone is authenticated."""
    one = payload(43, b"")
    found, _ = chain(43, one * (MOST_PAYLOADS - 1) + payload(0, b""), PAYLOADS)
    assert len(found) == MOST_PAYLOADS
    with pytest.raises(Malformed, match="too many"):
        chain(43, one * MOST_PAYLOADS + payload(0, b""), PAYLOADS)


@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_octets_are_a_chain_or_malformed(kind: int, octets: bytes) -> None:
    """A datagram of a stranger comes to an end in one of two ways."""
    try:
        found, following = chain(kind, octets, PAYLOADS, ENCRYPTED)
    except Malformed:
        return
    assert (found == []) == (kind == 0)
    if found and found[-1].kind in ENCRYPTED:
        return
    assert following == 0
    assert chain(*encode_chain(found), PAYLOADS) == (found, 0)


@given(st.data())
def test_damaged_first_message_decodes_or_is_malformed(data: st.DataObject) -> None:
    """Octets changed, cut or doubled in an honest message come further than noise does."""
    octets = bytearray(INIT_OCTETS)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 3, 4, 255])))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(octets))] * 2)))
    damaged = data.draw(
        st.sampled_from([bytes(octets), bytes(octets[:end]), bytes(octets + octets[start:end])])
    )
    try:
        found, _ = chain(33, damaged, PAYLOADS, ENCRYPTED)
    except Malformed:
        return
    assert found
