"""ikd.auth.identity: identities on the wire and as text, and distinguished names."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.auth.identity import (
    Identity,
    IdKind,
    canonical,
    distinguished_name,
    name_key,
    name_of,
    name_text,
)


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("10.0.0.9", IdKind.IPV4_ADDR, bytes((10, 0, 0, 9))),
        ("2001:db8::1", IdKind.IPV6_ADDR, bytes.fromhex("20010db8000000000000000000000001")),
        ("vpn.example", IdKind.FQDN, b"vpn.example"),
        ("alice@corp.example", IdKind.RFC822_ADDR, b"alice@corp.example"),
        ("keyid:box 7", IdKind.KEY_ID, b"box 7"),
        ("CN=db", IdKind.DER_ASN1_DN, bytes.fromhex("300d310b300906035504030c026462")),
        ("id-null:", IdKind.NULL, b""),
        ("id-fqdn:31302e302e302e39", IdKind.FQDN, b"10.0.0.9"),
        ("id-200:00ff", 200, b"\0\xff"),
    ],
)
def test_text_and_octets_belong_together(text: str, kind: int, data: bytes) -> None:
    """What the administrator wrote would not be what the peer sends."""
    assert Identity.parse(text) == Identity(kind, data)
    assert str(Identity(kind, data)) == text


@pytest.mark.parametrize(
    ("written", "one"),
    [
        ("  vpn.example ", "vpn.example"),
        ("@vpn.example", "vpn.example"),
        ("2001:0DB8::0001", "2001:db8::1"),
        ("cn = db , o=Example", "CN=db,O=Example"),
        ("CN=a,emailAddress=x@y.example", "CN=a,E=x@y.example"),
        ("CN=a\\, b", "CN=a\\, b"),
        ("CN=a\\ ", "CN=a\\ "),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.example", "*.example"),
        ("10.0.0.0/8", "10.0.0.0/8"),
    ],
)
def test_canonical_spelling(written: str, one: str) -> None:
    """Two spellings of one identity would be two peers to the policy."""
    assert canonical(written) == one
    assert canonical(one) == one


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "CN=",
        "=x",
        "CN=a,",
        "XX=a",
        "CN=a\\",
        "id-999:00",
        "id-xyz:00",
        "id-fqdn:0",
        "a\nb",
        "ä@example",
        "." * 3,
        "x" * 64 + ".exampleé",
        "CN=a,,O=b",
    ],
)
def test_what_is_no_identity_says_so(text: str) -> None:
    """A typing error would become some identity nobody has."""
    with pytest.raises(ValueError, match="is not an identity"):
        Identity.parse(text)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (IdKind.FQDN, b"10.0.0.9"),
        (IdKind.FQDN, b"CN=db"),
        (IdKind.FQDN, b"alice@corp.example"),
        (IdKind.FQDN, b"keyid:box"),
        (IdKind.FQDN, b"id-null:"),
        (IdKind.FQDN, b""),
        (IdKind.FQDN, b"vpn.example\n"),
        (IdKind.FQDN, b"vpn.example\x1b[2J"),
        (IdKind.FQDN, "vpn.éxample".encode()),
        (IdKind.FQDN, b" vpn.example"),
        (IdKind.RFC822_ADDR, b"vpn.example"),
        (IdKind.RFC822_ADDR, b"CN=x@y"),
        (IdKind.IPV4_ADDR, b"\x0a\0\0"),
        (IdKind.IPV6_ADDR, b"\x0a\0\0\x09"),
        (IdKind.DER_ASN1_DN, b""),
        (IdKind.DER_ASN1_DN, b"CN=db"),
        (IdKind.DER_ASN1_GN, b"vpn.example"),
        (IdKind.NULL, b"vpn.example"),
        (77, b"vpn.example"),
    ],
)
def test_one_type_never_prints_as_another(kind: int, data: bytes) -> None:
    """A peer could choose a text of somebody else, or write into the administrator's terminal."""
    text = str(Identity(kind, data))
    assert text.startswith("id-")
    assert text.isprintable()
    assert Identity.parse(text) == Identity(kind, data)


@given(st.integers(0, 255), st.binary(max_size=80))
def test_any_octets_have_a_text_that_leads_back(kind: int, data: bytes) -> None:
    """An identity of a stranger would raise, or two identities would share a text."""
    identity = Identity(kind, data)
    text = str(identity)
    assert text.isprintable()
    assert Identity.parse(text).kind == kind


@given(st.sampled_from([IdKind.FQDN, IdKind.RFC822_ADDR, IdKind.KEY_ID]), st.text(max_size=40))
def test_any_text_as_data_leads_back(kind: int, text: str) -> None:
    """A name would print as another type's, or as another name."""
    identity = Identity(kind, text.encode())
    again = Identity.parse(str(identity))
    assert again == identity


@given(st.text(max_size=60))
def test_any_text_is_identity_or_value_error(text: str) -> None:
    """The control socket and the configuration pass what people type."""
    try:
        identity = Identity.parse(text)
    except ValueError:
        return
    assert str(identity)


@pytest.mark.filterwarnings("ignore")
@given(st.binary(max_size=80))
def test_any_octets_are_name_or_value_error(data: bytes) -> None:
    """An ID payload of type DER_ASN1_DN has any octets a stranger likes."""
    try:
        name = name_of(data)
    except ValueError:
        return
    assert isinstance(name_text(name), str)


@pytest.mark.filterwarnings("ignore")
def test_changed_names_are_name_or_value_error() -> None:
    """The same, with octets that are nearly right."""
    good = distinguished_name("CN=db.corp.example,OU=Dâtabase+UID=7,DC=corp,DC=example,C=DE").public_bytes()
    assert name_of(good).public_bytes() == good
    for n in range(len(good)):
        for change in (1, 0x55, 0x80, 0xFF):
            data = good[:n] + bytes((good[n] ^ change,)) + good[n + 1 :]
            assert str(Identity(IdKind.DER_ASN1_DN, data)).isprintable()


def test_name_does_not_reach_out_of_its_wrapper() -> None:
    """Octets after the name would be read as the key of the request around it."""
    good = distinguished_name("CN=db").public_bytes()
    for tail in (b"\0", good, bytes.fromhex("3000"), bytes.fromhex("300506032b6570")):
        with pytest.raises(ValueError, match="not a distinguished name"):
            name_of(good + tail)


def test_names_equal_for_rfc_5280() -> None:
    """RFC 5280 section 7.1: a peer whose tools encode the same name otherwise would be refused."""
    one = distinguished_name("CN=DB  Server,O=Example")
    printable = bytes.fromhex("30263110300e060355040a130765786d61706c65"[0:0] or "3000")
    assert printable == b"\x30\x00"
    assert name_key(one) == name_key(distinguished_name("CN=db server,O=EXAMPLE"))
    assert name_key(one) != name_key(distinguished_name("CN=db server"))
    assert name_key(one) != name_key(distinguished_name("O=Example,CN=db server"))
    assert name_key(distinguished_name("CN=a+O=b")) == name_key(distinguished_name("O=b+CN=a"))
    # PrintableString 0x13 instead of UTF8String 0x0c
    utf8 = distinguished_name("CN=db").public_bytes()
    assert name_key(name_of(utf8.replace(b"\x0c\x02db", b"\x13\x02db"))) == name_key(name_of(utf8))


@pytest.mark.parametrize(
    "data",
    [
        b" " * 4096,
        b"," * 4096,
        b"a" + b" " * 4000 + b"b",
        b"\\" * 4096,
        b"CN=" + b"a, " * 1300,
        b"a@" * 2000,
        b"1" * 4096,
        b"id-" + b"1" * 4000 + b":",
    ],
)
def test_long_names_cost_little(data: bytes) -> None:
    """A stranger's ID payload would keep the daemon busy."""
    start = time.process_time()
    for kind in (IdKind.FQDN, IdKind.RFC822_ADDR, IdKind.KEY_ID, IdKind.DER_ASN1_DN):
        str(Identity(kind, data))
    assert time.process_time() - start < 1.0


def test_long_distinguished_name_costs_little() -> None:
    """The same for names whose values have many spaces or separators."""
    good = distinguished_name("CN=" + "a" * 60).public_bytes()[2:]
    for filler in (b" ", b",", b"\\", b"+"):
        value = good.replace(b"a" * 60, b"x" + filler * 58 + b"x")
        data = b"\x30\x82" + (len(value) * 54).to_bytes(2, "big") + value * 54
        start = time.process_time()
        text = str(Identity(IdKind.DER_ASN1_DN, data))
        assert time.process_time() - start < 1.0
        assert text.isprintable()
