"""ikd.isakmp.payloads: every payload survives writing and reading, and any octets read or are malformed;
first messages of others, octet by octet.

What is tried is derived from the layouts, so that a new payload class is tested by standing in `PAYLOADS`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ikev1 import IKE_SCAN, WINDOWS
from support.structures import Values, read_in_noise

from ikd.isakmp.numbers import PAYLOAD_NAMES
from ikd.isakmp.payloads import (
    PAYLOADS,
    Certificate,
    CertificateRequest,
    Delete,
    Fragment,
    GssToken,
    Hash,
    Identification,
    KeyExchange,
    Lifetime,
    NatDiscovery,
    NatDiscoveryDraft,
    NatOriginalAddress,
    NatOriginalAddressDraft,
    Nonce,
    Notify,
    Proposal,
    SecurityAssociation,
    Signature,
    Transform,
    VendorId,
)
from ikd.wire.codec import MOST_ITEMS, Malformed, decode
from ikd.wire.isakmp import HEADER_SIZE, MOST_PAYLOADS, Extent, Header, Payload, chain, encode_chain, extents

CLASSES = sorted(PAYLOADS.values(), key=lambda cls: cls.kind)

# Lengths of octet strings that are not 0 to 64, by class and field; without its row the round trip fails.
LENGTHS = {
    (KeyExchange, "public"): (1, 200),
    (Certificate, "data"): (1, 200),
    (Hash, "data"): (1, 100),
    (Signature, "data"): (1, 200),
    (Nonce, "data"): (8, 256),
    (NatDiscovery, "hash"): (1, 64),
    (NatDiscoveryDraft, "hash"): (1, 64),
    (NatOriginalAddress, "address"): (0, 16),
    (NatOriginalAddressDraft, "address"): (0, 16),
}
values = Values(LENGTHS, (Proposal, Transform)).of


@pytest.mark.parametrize("cls", [*CLASSES, Lifetime], ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_is_written_is_read(cls: type[Any], data: st.DataObject) -> None:
    """A payload that changes on its way is another payload; hashes cover its octets."""
    value = data.draw(values(cls))
    assert decode(cls, value.encode()) == value
    if cls is not Lifetime:
        assert chain(*encode_chain([value]), PAYLOADS) == ([value], 0)


@pytest.mark.parametrize("cls", [*CLASSES, Lifetime], ids=lambda cls: cls.__name__)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_octets_are_read_or_malformed(cls: type[Any], data: st.DataObject) -> None:
    """Noise, and honest payloads with an octet changed or cut: neither may raise anything else."""
    assert all(isinstance(value, cls) for value in read_in_noise(cls, values(cls), data))


def test_registry_has_every_payload_once() -> None:
    """A payload that is missing would be left out as unknown, and with it what it asks for."""
    inside, of_authip = {2, 3}, set(range(133, 138))  # proposals and transforms stand in an SA payload only
    assert set(PAYLOADS) == set(PAYLOAD_NAMES) - inside - of_authip
    assert all(PAYLOADS[cls.kind] is cls for cls in CLASSES)
    assert all(issubclass(cls, Payload) and not cls.critical for cls in CLASSES)


# After the drawings of RFC 2408 section 3, RFC 2407 section 4.6, RFC 3947 and MS-IKEE, octet by octet.
ONE = Transform(number=1, id=1, attributes=((1, 7), (14, 128), (12, b"\0\0\x70\x80")))
TWO = Transform(number=2, id=1)
DRAWN: list[tuple[Payload, str]] = [
    (
        SecurityAssociation(
            proposals=(
                Proposal(number=1, protocol=1, spi=b"", transforms=(ONE, TWO)),
                Proposal(number=2, protocol=3, spi=b"\1\2\3\4", transforms=(TWO,)),
            )
        ),
        "00000001 00000001"
        "02000028 01010002 03000018 01010000 80010007 800e0080 000c0004 00007080 00000008 02010000"
        "00000014 02030401 01020304 00000008 02010000",
    ),
    (KeyExchange(public=b"\xaa\xbb"), "aabb"),
    (Identification(type=1, data=b"\x0a\0\3\x0a"), "01000000 0a00030a"),
    (Identification(type=1, protocol=17, port=1701, data=b"\x0a\0\3\x0a"), "01 11 06a5 0a00030a"),
    (Certificate(encoding=4, data=b"\x30\x03"), "04 3003"),
    (CertificateRequest(encoding=4), "04"),
    (Hash(data=b"\x11" * 20), "11" * 20),
    (Signature(data=b"\x22" * 3), "222222"),
    (Notify(protocol=1, type=14, spi=b""), "00000001 01 00 000e"),
    (
        Notify(protocol=1, type=36136, spi=b"\1" * 8 + b"\2" * 8, data=b"\0\0\0\7"),  # R-U-THERE
        "00000001 01 10 8d28" + "01" * 8 + "02" * 8 + "00000007",
    ),
    (Delete(protocol=3, spis=(b"\1\2\3\4", b"\5\6\7\x08")), "00000001 03 04 0002 01020304 05060708"),
    (Delete(protocol=1, spis=(b"\1" * 8 + b"\2" * 8,)), "00000001 01 10 0001" + "01" * 8 + "02" * 8),
    (NatDiscovery(hash=b"\x33" * 20), "33" * 20),
    (NatOriginalAddress(type=1, address=b"\x0a\0\0\1"), "01000000 0a000001"),
    (NatOriginalAddressDraft(type=1, address=b"\x0a\0\0\1"), "01000000 0a000001"),
    (GssToken(token=b"\x60\1"), "6001"),
    (Fragment(id=1, number=2, flags=1, data=b"\xff"), "0001 02 01 ff"),
]


@pytest.mark.parametrize(("value", "octets"), DRAWN, ids=lambda one: type(one).__name__)
def test_payloads_are_as_drawn(value: Payload, octets: str) -> None:
    """A field in the wrong place survives a round trip, but not another implementation."""
    assert value.encode() == bytes.fromhex(octets)
    assert decode(type(value), bytes.fromhex(octets)) == value


def test_both_numbers_of_nat_payloads_are_the_same_payload() -> None:
    """What serves RFC 3947 serves draft 02, but each is written with its own number."""
    assert issubclass(NatDiscoveryDraft, NatDiscovery)
    assert issubclass(NatOriginalAddressDraft, NatOriginalAddress)
    bodies: list[Any] = [NatDiscovery(hash=b"a"), NatDiscoveryDraft(hash=b"a")]
    assert bodies[0] != bodies[1]
    assert chain(*encode_chain(bodies), PAYLOADS) == (bodies, 0)


# First messages of others ----------------------------------------------------------------------------------


def test_first_message_of_windows_is_read_and_written() -> None:
    """408 octets, seen of Windows 8 and later: a proposal of five transforms, then eight vendor IDs."""
    assert len(WINDOWS) == 408
    header = Header.decode(WINDOWS)
    found, _ = chain(header.next_payload, WINDOWS[HEADER_SIZE:], PAYLOADS)
    assert encode_chain(found) == (1, WINDOWS[HEADER_SIZE:])
    sa, *vendors = found
    assert isinstance(sa, SecurityAssociation)
    (proposal,) = sa.proposals
    kinds = [[kind for kind, _ in one.attributes] for one in proposal.transforms]
    assert kinds == [[1, 14, 2, 4, 3, 11, 12]] * 3 + [[1, 2, 4, 3, 11, 12]] * 2
    assert all(isinstance(one, VendorId) for one in vendors)
    assert VendorId(data=hashlib.md5(b"RFC 3947").digest()) in vendors


def test_first_message_of_ike_scan_is_read_and_written() -> None:
    """Eight transforms, lifetimes in the long form, no vendor IDs."""
    header = Header.decode(IKE_SCAN)
    found, _ = chain(header.next_payload, IKE_SCAN[HEADER_SIZE:], PAYLOADS)
    (sa,) = found
    assert isinstance(sa, SecurityAssociation)
    assert len(sa.proposals[0].transforms) == 8
    assert encode_chain(found) == (1, IKE_SCAN[HEADER_SIZE:])


# Hostile ---------------------------------------------------------------------------------------------------

HEAD = "00000001 00000001"
HOSTILE: dict[str, tuple[type[Any], str]] = {
    "no situation": (SecurityAssociation, "00000001"),
    "no proposals": (SecurityAssociation, HEAD),
    "proposal of zero length": (SecurityAssociation, HEAD + "00000000 01010000"),
    "proposal that runs over": (SecurityAssociation, HEAD + "000000ff 01010000"),
    "proposal that goes on for ever": (SecurityAssociation, HEAD + "02000010 01010001 00000008 01010000"),
    "transform where a proposal belongs": (
        SecurityAssociation,
        HEAD + "03000010 01010001 00000008 01010000" + "00000010 01010001 00000008 01010000",
    ),
    "fewer transforms than announced": (SecurityAssociation, HEAD + "00000010 01010002 00000008 01010000"),
    "more transforms than announced": (
        SecurityAssociation,
        HEAD + "00000018 01010001 03000008 01010000 00000008 01010000",
    ),
    "attribute that runs over": (Transform, "01010000 000c0004 0000"),
    "half an attribute": (Transform, "01010000 8001"),
    "labels of another situation": (SecurityAssociation, "00000001 00000003 00000000" + "00000008 01010000"),
    "SPI longer than its notify": (Notify, "00000001 01 ff 4000 00000000"),
    "deletion of more SPIs than octets": (Delete, "00000001 03 04 ffff 00000001"),
    "deletion of SPIs without length": (Delete, "00000001 03 00 ffff"),
    "nonce too short": (Nonce, "00" * 7),
    "nonce too long": (Nonce, "00" * 257),
    "original address too long": (NatOriginalAddress, "05000000" + "00" * 17),
    "hash of nothing": (Hash, ""),
    "fragment without flags": (Fragment, "000101"),
}


@pytest.mark.parametrize(("cls", "octets"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_payloads_are_malformed(cls: type[Any], octets: str) -> None:
    """Each is a way in which a parser has been made to loop, to overrun or to believe."""
    with pytest.raises(Malformed):
        decode(cls, bytes.fromhex(octets))


def transforms(count: int) -> bytes:
    """That many of the smallest transforms in one proposal, behind DOI and situation."""
    body = (b"\3\0\0\x08\1\1\0\0" * (count - 1)) + b"\0\0\0\x08\1\1\0\0"
    proposal = b"\1\1\0" + bytes((count & 0xFF,)) + body
    return bytes.fromhex(HEAD) + b"\0\0" + (len(proposal) + 4).to_bytes(2, "big") + proposal


def test_transforms_are_bounded() -> None:
    """An SA payload of 64 KiB has room for 8000 of them before anyone is authenticated."""
    assert len(decode(SecurityAssociation, transforms(255)).proposals[0].transforms) == 255
    for count in (MOST_ITEMS + 1, 8000):
        with pytest.raises(Malformed):
            decode(SecurityAssociation, transforms(count))


# Extents ---------------------------------------------------------------------------------------------------


def test_extents_tell_payloads_from_padding() -> None:
    """Padding behind the last payload is not covered by the hash and not read (RFC 2408 section 3.1)."""
    kind, octets = encode_chain([Hash(data=b"h" * 20), Nonce(data=b"n" * 16)])
    padded = octets + b"\0" * 12
    assert extents(kind, padded) == [Extent(8, 0, 24), Extent(10, 24, 44)]
    first, last = extents(kind, padded)
    assert (first.body(padded), last.body(padded)) == (b"h" * 20, b"n" * 16)
    with pytest.raises(Malformed):
        chain(kind, padded, PAYLOADS)


def test_extents_keep_what_reading_loses() -> None:
    """A peer's reserved octets are covered by its hashes, whatever they are."""
    body = bytes.fromhex(HEAD + "00ff0010 01010001 00ff0008 0101ffff")
    message = b"\0\xff\0" + bytes((len(body) + 4,)) + body
    (where,) = extents(1, message)
    assert where.body(message) == body
    found, _ = chain(1, message, PAYLOADS)
    assert found[0].encode() != body


@given(st.integers(0, 255), st.binary(max_size=120))
def test_any_octets_have_extents_or_are_malformed(kind: int, octets: bytes) -> None:
    """What `chain` reads, and padding behind it, lies where `extents` says."""
    try:
        found = extents(kind, octets)
    except Malformed:
        with pytest.raises(Malformed):
            chain(kind, octets, PAYLOADS)
        return
    assert (found == []) == (kind == 0)
    assert all(one.end >= one.start + 4 for one in found)
    assert [one.start for one in found[1:]] == [one.end for one in found[:-1]]


def test_extents_are_bounded() -> None:
    """As many as `chain` reads, no more."""
    one = b"\x0d\0\0\4"
    assert len(extents(13, one * (MOST_PAYLOADS - 1) + b"\0\0\0\4")) == MOST_PAYLOADS
    with pytest.raises(Malformed, match="too many"):
        extents(13, one * MOST_PAYLOADS + b"\0\0\0\4")
