"""ikd.ikev2.payloads: every payload survives writing and reading, and any octets read or are malformed.

What is tried is derived from the layouts, so that a new payload class is tested by standing in `PAYLOADS`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.structures import Values, read_in_noise

from ikd.ikev2.payloads import (
    ENCRYPTED,
    PAYLOADS,
    Authentication,
    Certificate,
    CertificateRequest,
    Configuration,
    ConfigurationAttribute,
    Correlation,
    Delete,
    Eap,
    EncryptedFragment,
    IdentificationI,
    KeyExchange,
    Nonce,
    Notify,
    Proposal,
    SecurityAssociation,
    SelectorRange,
    TrafficSelectorsI,
    TrafficSelectorsR,
    Transform,
)
from ikd.wire.codec import Malformed, decode
from ikd.wire.isakmp import Payload, chain, encode_chain
from sadb.selector import ANY_PORT, OPAQUE, TCP, TrafficSelector

CLASSES = sorted(PAYLOADS.values(), key=lambda cls: cls.kind)

# Lengths of octet strings that are not 0 to 64, by class and field; without its row the round trip fails.
LENGTHS = {
    (KeyExchange, "public"): (1, 200),
    (Certificate, "data"): (1, 200),
    (Authentication, "data"): (1, 200),
    (Nonce, "data"): (16, 256),
    (Eap, "message"): (4, 64),
    (Correlation, "spi_i"): (8, 8),
    (Correlation, "spi_r"): (8, 8),
    (Correlation, "hash"): (1, 64),
}

values = Values(LENGTHS, (Proposal, Transform)).of


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_is_written_is_read(cls: type[Any], data: st.DataObject) -> None:
    """A payload that changes on its way is another payload; the AUTH payload covers its octets."""
    value = data.draw(values(cls))
    octets = value.encode()
    assert decode(cls, octets) == value
    assert chain(*encode_chain([value]), PAYLOADS) == ([value], 0)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_octets_are_read_or_malformed(cls: type[Any], data: st.DataObject) -> None:
    """Noise, and honest payloads with an octet changed or cut: neither may raise anything else."""
    for value in read_in_noise(cls, values(cls), data):
        for one in getattr(value, "ranges", ()):
            try:
                one.selector()
            except Malformed:
                continue


def test_registry_has_every_payload_once() -> None:
    """A payload that is missing would be skipped as unknown, and with it what it asks for."""
    assert set(PAYLOADS) == {*range(33, 49), 53, 200}
    assert all(PAYLOADS[cls.kind] is cls for cls in CLASSES)
    assert all(issubclass(cls, Payload) and not cls.critical for cls in CLASSES)
    assert {46, 53} == ENCRYPTED


# After the drawings of RFC 7296 section 3 and RFC 7383 section 2.5, octet by octet.
DRAWN: list[tuple[Payload, str]] = [
    (KeyExchange(group=19, public=b"\xaa\xbb"), "0013 0000 aabb"),
    (IdentificationI(type=2, data=b"a.example"), "02 000000" + b"a.example".hex()),
    (Certificate(encoding=4, data=b"\x30\x03"), "04 3003"),
    (CertificateRequest(encoding=4, data=b"\x11" * 20), "04" + "11" * 20),
    (CertificateRequest(encoding=4, data=b""), "04"),
    (Authentication(method=14, data=b"\x01\x02"), "0e 000000 0102"),
    (Notify(type=16393, protocol=3, spi=b"\1\2\3\4"), "03 04 4009 01020304"),  # REKEY_SA
    (Notify(type=17, spi=b"", data=b"\0\x13"), "00 00 0011 0013"),  # INVALID_KE_PAYLOAD
    (Delete(protocol=1, spis=()), "01 00 0000"),
    (Delete(protocol=3, spis=(b"\1\2\3\4", b"\5\6\7\x08")), "03 04 0002 01020304 05060708"),
    (
        TrafficSelectorsI(
            ranges=(
                SelectorRange.of(
                    TrafficSelector(ip_address("10.0.0.0"), ip_address("10.0.0.255"), TCP, (80, 443))
                ),
            )
        ),
        "01 000000 07 06 0010 0050 01bb 0a000000 0a0000ff",
    ),
    (
        TrafficSelectorsR(ranges=(SelectorRange.of(TrafficSelector.of(ip_address("2001:db8::1"))),)),
        "01 000000 08 00 0028 0000 ffff" + "20010db8000000000000000000000001" * 2,
    ),
    (
        Configuration(type=1, attributes=(ConfigurationAttribute(type=1, value=b""),)),
        "01 000000 0001 0000",
    ),
    (Eap(message=b"\1\2\0\4"), "01020004"),
    (EncryptedFragment(number=1, total=2, data=b"\xff"), "0001 0002 ff"),
    (Correlation(spi_i=b"i" * 8, spi_r=b"r" * 8, hash=b"\xff"), "69" * 8 + "72" * 8 + "ff"),  # MS-IKEE
    (
        SecurityAssociation(
            proposals=(
                Proposal(
                    number=1,
                    protocol=3,
                    spi=b"\1\2\3\4",
                    transforms=(Transform(type=1, id=12, attributes=((14, 128),)), Transform(type=3, id=12)),
                ),
                Proposal(number=2, protocol=3, spi=b"\1\2\3\4", transforms=(Transform(type=5, id=0),)),
            )
        ),
        "02000020 01030402 01020304 0300000c 0100000c 800e0080 00000008 0300000c"
        "00000014 02030401 01020304 00000008 05000000",
    ),
]


@pytest.mark.parametrize(("value", "octets"), DRAWN, ids=lambda one: type(one).__name__)
def test_payloads_are_as_drawn(value: Payload, octets: str) -> None:
    """A field in the wrong place survives a round trip, but not another implementation."""
    assert value.encode() == bytes.fromhex(octets)
    assert decode(type(value), bytes.fromhex(octets)) == value


def test_reserved_octets_are_read_whatever_they_are() -> None:
    """ "MUST be sent as zero; MUST be ignored on receipt" (RFC 7296 section 3)."""
    assert decode(KeyExchange, bytes.fromhex("0013 ffff aa")).public == b"\xaa"
    assert decode(IdentificationI, bytes.fromhex("02 ffffff 61")).data == b"a"
    assert decode(Transform, bytes.fromhex("04 ff 001f")).id == 31


# Traffic selectors ---------------------------------------------------------------------------------------

ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda n: ip_address(n.to_bytes(4, "big"))),
    st.integers(0, 2**128 - 1).map(lambda n: ip_address(n.to_bytes(16, "big"))),
)


@st.composite
def a_selector(draw: st.DrawFn) -> TrafficSelector:
    low = draw(ADDRESSES)
    high = type(low)(draw(st.integers(int(low), 2**low.max_prefixlen - 1)))
    first = draw(st.integers(0, 0xFFFF))
    ports = draw(st.sampled_from([ANY_PORT, OPAQUE, (first, draw(st.integers(first, 0xFFFF)))]))
    return TrafficSelector(low, high, draw(st.integers(0, 255)), ports)


@given(a_selector())
def test_selectors_survive_the_wire(selector: TrafficSelector) -> None:
    """What was agreed must be what both ends install."""
    one = SelectorRange.of(selector)
    (again,) = decode(TrafficSelectorsI, TrafficSelectorsI(ranges=(one,)).encode()).ranges
    assert again.selector() == selector


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (7, "0000 ffff 0a000002 0a000001"),  # ends before it starts
        (7, "0050 004f 0a000001 0a000001"),  # the same with ports
        (7, "ffff 0001 0a000001 0a000001"),  # nearly OPAQUE
        (7, "0000 ffff 0a000001"),
        (7, "0000 ffff" + "00" * 32),
        (8, "0000 ffff 0a000001 0a000001"),
        (7, ""),
    ],
)
def test_selectors_that_make_no_sense_are_malformed(kind: int, body: str) -> None:
    """An empty or reversed range would match nothing, or everything, further in."""
    with pytest.raises(Malformed):
        SelectorRange(type=kind, protocol=0, body=bytes.fromhex(body)).selector()


def test_selector_types_of_others_are_no_error() -> None:
    """Type 9 is Fibre Channel (RFC 4595): to be left out when narrowing, not to be refused."""
    assert SelectorRange(type=9, protocol=0, body=b"\0" * 16).selector() is None
