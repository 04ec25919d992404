"""ikd.authip.payloads: every payload survives writing and reading, any octets read or are malformed, and the
octets are those of the drawings in MS-AIPS section 2.2.3."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.structures import Values, read_in_noise

from ikd.authip.message import notify, status
from ikd.authip.numbers import RELIABLE, Exchange, GssFlags, Method, N, Status, Subject
from ikd.authip.payloads import (
    PAYLOADS,
    Auth,
    AuthEntry,
    GssApi,
    GssId,
    KeyDictation,
    KeyDictationWeight,
    Notify,
    decode_name,
)
from ikd.isakmp.numbers import PAYLOAD_NAMES
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    NatOriginalAddress,
    Nonce,
    Proposal,
    Transform,
)
from ikd.wire.codec import Malformed, decode
from ikd.wire.isakmp import Body, Payload, Unknown, chain, encode_chain

CLASSES = sorted(PAYLOADS.values(), key=lambda cls: cls.kind)
UTF16 = "utf-16-le"

# Lengths of octet strings that are not 0 to 64, by class and field; without its row the round trip fails.
LENGTHS = {
    (KeyExchange, "public"): (1, 200),
    (Hash, "data"): (1, 100),
    (Nonce, "data"): (8, 256),
    (NatDiscovery, "hash"): (1, 64),
    (NatOriginalAddress, "address"): (0, 16),
    (GssApi, "token"): (0, 300),
    (GssId, "name"): (0, 2048),
}
values = Values(LENGTHS, (Proposal, Transform)).of


def entries(*methods: int) -> Auth:
    """An AUTH payload with these methods."""
    return Auth(entries=tuple(AuthEntry(method=one) for one in methods))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_what_is_written_is_read(cls: type[Any], data: st.DataObject) -> None:
    """A payload that changes on its way is another payload; the transcript covers its octets."""
    value = data.draw(values(cls))
    assert decode(cls, value.encode()) == value
    assert chain(*encode_chain([value]), PAYLOADS) == ([value], 0)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_octets_are_read_or_malformed(cls: type[Any], data: st.DataObject) -> None:
    """Noise, and honest payloads with an octet changed or cut: neither may raise anything else."""
    assert all(isinstance(value, cls) for value in read_in_noise(cls, values(cls), data))


@given(st.integers(0, 255), st.binary(max_size=120))
def test_any_octets_are_a_chain_or_malformed(kind: int, octets: bytes) -> None:
    """A stranger writes this chain, and its type: it must be read as it stands or be refused."""
    try:
        found, following = chain(kind, octets, PAYLOADS)
    except Malformed:
        return
    assert following == 0
    assert chain(*encode_chain(found), PAYLOADS) == (found, 0)


def test_registry_has_what_authip_has() -> None:
    """MS-AIPS sections 2.2.1 and 2.2.3: what they use is read, and of what it never uses (certificates,
    signatures, deletions) nothing can be believed."""
    used = {0x01, 0x04, 0x05, 0x08, 0x0A, 0x0B, 0x0D, 0x14, 0x15, 0x81, 0x86, 0x87, 0x88, 0x89}
    assert set(PAYLOADS) == used
    assert not used & {0x06, 0x07, 0x09, 0x0C}
    assert all(issubclass(cls, Payload) and not cls.critical for cls in CLASSES)
    assert PAYLOADS[0x0B] is Notify  # not that of IKEv1, which has an SPI size where flags are


def test_every_payload_has_a_name() -> None:
    """Else a log line shows a number where the administrator looks for a name."""
    assert set(PAYLOADS) <= set(PAYLOAD_NAMES)


# Octet by octet --------------------------------------------------------------------------------------------

SPN = "host/größe.例.example"
# each with its generic header, as the drawings of MS-AIPS section 2.2.3 have it
DRAWN: dict[str, tuple[Body, str]] = {
    "GSS with an empty token": (GssApi(), "00000009 00000000 00"),
    "first GSS of a user": (
        GssApi(flags=GssFlags.NEW | GssFlags.IMPERSONATION, token=b"\x60\x03"),
        "0000000b 00000000 03 6003",
    ),
    "GSS that has failed": (
        GssApi(status=Status.AUTH_FAIL, flags=GssFlags.RETRY),
        "00000009 000035e9 04",
    ),
    "last GSS of a responder": (GssApi(flags=GssFlags.COMPLETE), "00000009 00000000 10"),
    "GSS with every flag": (
        GssApi(flags=GssFlags.NEW | 2 | GssFlags.RETRY | GssFlags.EXPLICIT | GssFlags.COMPLETE),
        "00000009 00000000 1f",
    ),
    "GSS_ID": (GssId(name="host/a".encode(UTF16)), "00000010 68006f00730074002f006100"),
    "GSS_ID that is not ASCII": (
        GssId(name=SPN.encode(UTF16)),
        "0000002c 68006f00730074002f0067007200f600df0065002e008b4f2e006500780061006d0070006c006500",
    ),
    "AUTH with one method": (entries(Method.KERBEROS), "00000008 00020000"),
    "AUTH with two methods": (entries(Method.TLS, Method.NTLM), "0000000c 00040000 00050000"),
    "AUTH with three methods": (
        entries(Method.KERBEROS, Method.TLS_ECDSA_256, Method.ANONYMOUS),
        "00000010 00020000 00090000 00030000",
    ),
    "notify of IKEv1": (
        notify(N.NO_PROPOSAL_CHOSEN, Subject.QUICK, b"", RELIABLE),
        "0000000c 00000001 0201000e",
    ),
    "reliable status about main mode": (
        status(Status.SA_DELETED, Subject.MAIN, RELIABLE),
        "00000010 00000001 01 01 9c54 000035ef",
    ),
    "status that nobody acknowledges": (
        status(Status.INVALID_HASH, Subject.QUICK),
        "00000010 00000001 02 00 9c54 0000362e",
    ),
    "acknowledgement": (notify(N.ACK, Subject.MAIN, b"\0\0\0\7"), "00000010 00000001 0100 9c56 00000007"),
    "synchronisation": (notify(N.QM_SYNCHRONIZE, Subject.QUICK), "0000000c 00000001 0200 9c57"),
    "cookie": (notify(N.DOS_COOKIE, Subject.MAIN, b"c" * 8), "00000014 00000001 0100 9c55" + "63" * 8),
    "boundary": (notify(N.EXCHANGE_INFO, Subject.QUICK, b"\0\0\0\1"), "00000010 00000001 0200 9c45 00000001"),
    "guaranteed encryption": (
        notify(N.EXCHANGE_INFO, Subject.QUICK, b"\0\0\0\2"),
        "00000010 00000001 0200 9c45 00000002",
    ),
    "boundary and guaranteed encryption": (
        notify(N.EXCHANGE_INFO, Subject.QUICK, b"\0\0\0\3"),
        "00000010 00000001 0200 9c45 00000003",
    ),
    "weight": (KeyDictationWeight(weight=0x01020304), "00000008 01020304"),
    "dictated keys": (KeyDictation(data=b"\xaa" * 5), "00000009 aaaaaaaaaa"),
}


@pytest.mark.parametrize(("value", "octets"), DRAWN.values(), ids=DRAWN.keys())
def test_payloads_are_as_drawn(value: Payload, octets: str) -> None:
    """A field in the wrong place survives a round trip, but not another implementation."""
    expected = bytes.fromhex(octets)
    assert encode_chain([value]) == (value.kind, expected)
    assert chain(value.kind, expected, PAYLOADS) == ([value], 0)
    assert int.from_bytes(expected[2:4], "big") == len(expected)


def test_acquire_is_as_drawn() -> None:
    """Encapsulation and flags, then the sender's identity and the peer's: a responder that writes it
    otherwise never gets the quick mode that it asks for."""
    mine, yours = (Identification(type=1, protocol=6, port=p, data=bytes((10, 0, 0, p))) for p in (1, 2))
    acquire = notify(N.ACQUIRE, Subject.QUICK, bytes.fromhex("00000002 00000002"), RELIABLE)
    octets = bytes.fromhex(
        "05000014 00000001 0201 9c58 00000002 000000020500000c 01060001 0a0000010000000c 01060002 0a000002"
    )
    assert encode_chain([acquire, mine, yours]) == (Notify.kind, octets)
    assert chain(Notify.kind, octets, PAYLOADS) == ([acquire, mine, yours], 0)


def test_flags_that_nobody_knows_are_kept_apart() -> None:
    """Their receiver ignores them, so they must not be taken for a retry or for a user."""
    value = decode(GssApi, bytes.fromhex("00000000 e0"))
    assert not any(value.flags & flag for flag in GssFlags)
    assert decode(Notify, bytes.fromhex("00000001 01 fe 9c54")).flags & RELIABLE == 0
    assert decode(Auth, bytes.fromhex("0002ffff")).entries[0].method == Method.KERBEROS


def test_unknown_payloads_are_skipped_by_their_length() -> None:
    """The specification lets others add types; IKEv1's certificate, which AuthIP has not, is one of them."""
    octets = bytes.fromhex("06000006 beef 89000005 04 00000008 00000001")
    assert chain(200, octets, PAYLOADS)[0] == [
        Unknown(200, False, b"\xbe\xef"),
        Unknown(6, False, b"\x04"),
        KeyDictationWeight(weight=1),
    ]


def test_numbers_are_those_of_ms_aips() -> None:
    """IKEv1 of the same maker has other numbers for the same things, one apart."""
    assert [int(one) for one in Exchange] == [0xF3, 0xF4, 0xF5, 0xF6]
    found = {one.name: int(one) for one in N}
    assert found == {
        "NO_PROPOSAL_CHOSEN": 0x0E,
        "EXCHANGE_INFO": 0x9C45,
        "STATUS": 0x9C54,
        "DOS_COOKIE": 0x9C55,
        "ACK": 0x9C56,
        "QM_SYNCHRONIZE": 0x9C57,
        "ACQUIRE": 0x9C58,
    }
    assert {one.name: int(one) for one in Method} == {
        "KERBEROS": 2,
        "ANONYMOUS": 3,
        "TLS": 4,
        "NTLM": 5,
        "TLS_ECDSA_256": 9,
        "TLS_ECDSA_384": 10,
    }


# Names -----------------------------------------------------------------------------------------------------


@given(
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=60),
    st.sampled_from(["utf-16-le", "utf-16-be"]),
)
def test_names_are_read_as_they_were_written(name: str, encoding: str) -> None:
    """A name that is read otherwise asks for a ticket of somebody else."""
    assert decode_name(GssId(name=name.encode(encoding)), encoding) == name


NAMES = {
    "odd length": b"h\0o",
    "half a surrogate": b"\0\xd8a\0",
    "a surrogate alone": b"\0\xdc",
    "none": b"",
    "terminated": "host/a\0".encode(UTF16),
    "byte order mark": "\ufeffhost/a".encode(UTF16),
    "new line": "host/a\nb".encode(UTF16),
    "right to left": "host/\u202ea".encode(UTF16),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_that_are_none(name: bytes) -> None:
    """They would get into logs and into a request for a ticket."""
    with pytest.raises(Malformed, match="principal name"):
        decode_name(GssId(name=name), UTF16)


@given(st.binary(max_size=64), st.sampled_from(["utf-16-le", "utf-16-be"]))
def test_any_octets_are_a_printable_name_or_malformed(octets: bytes, encoding: str) -> None:
    """The responder is not proven when it says its name."""
    try:
        name = decode_name(GssId(name=octets), encoding)
    except Malformed:
        return
    assert name.isprintable()
    assert name.encode(encoding) == octets


# Hostile ---------------------------------------------------------------------------------------------------

HOSTILE: dict[str, tuple[type[Payload], str]] = {
    "length 0": (GssApi, "00000000 00000000 00"),
    "length 3": (GssApi, "00000003 00000000 00"),
    "GSS shorter than status and flags": (GssApi, "00000008 00000000"),
    "GSS without anything": (GssApi, "00000004"),
    "GSS larger than what remains": (GssApi, "0000000a 00000000 00"),
    "GSS with the length of the whole world": (GssApi, "0000ffff 00000000 00"),
    "GSS followed by octets": (GssApi, "00000009 00000000 00 00"),
    "AUTH of 5 octets": (Auth, "00000005 00"),
    "AUTH of 6 octets": (Auth, "00000006 0002"),
    "AUTH of 7 octets": (Auth, "00000007 000200"),
    "AUTH with half a second method": (Auth, "0000000a 00020000 0004"),
    "GSS_ID longer than any name": (GssId, "00000806" + "6100" * 1025),
    "GSS_ID larger than what remains": (GssId, "00000010 6800"),
    "notify without type": (Notify, "0000000a 00000001 0100"),
    "weight of 3 octets": (KeyDictationWeight, "00000007 010203"),
    "weight of 5 octets": (KeyDictationWeight, "00000009 0102030405"),
    "half a generic header": (KeyDictation, "0000"),
    "chain that goes on without a payload": (KeyDictationWeight, "81000008 00000001"),
}


@pytest.mark.parametrize(("cls", "octets"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_payloads_are_malformed(cls: type[Payload], octets: str) -> None:
    """Each is a way in which a parser has been made to loop, to overrun or to believe."""
    with pytest.raises(Malformed):
        chain(cls.kind, bytes.fromhex(octets), PAYLOADS)


def test_methods_are_bounded() -> None:
    """An AUTH payload of 64 KiB has room for 16000 of them before anyone is authenticated."""
    assert len(decode(Auth, b"\0\2\0\0" * 256).entries) == 256
    with pytest.raises(Malformed):
        decode(Auth, b"\0\2\0\0" * 257)


def test_empty_auth_is_read() -> None:
    """It is for the exchange to decline: no method in common."""
    assert decode(Auth, b"").entries == ()
    assert chain(Auth.kind, b"\0\0\0\4", PAYLOADS) == ([Auth(entries=())], 0)
