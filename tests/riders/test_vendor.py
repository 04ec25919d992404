"""Vendor IDs and the profiles of those we send (MS-IKEE section 2.1).

If one of these fails, an ability of a peer is taken for another one, or we announce what we cannot do.
"""

from __future__ import annotations

from hashlib import md5

import pytest

from ikd.riders import vendor
from ikd.riders.announced import PROFILES
from ikd.riders.vendor import Known

# what MS-IKEE, RFC 3706 and RFC 3947 hash; for three of Microsoft's the real preimage, not the printed one
HASHED = {
    Known.MICROSOFT: b"MS NT5 ISAKMPOAKLEY",
    Known.KEYING_MODULES: b"MSFT supported keying modules",
    Known.GSSAPI: b"GSSAPI",
    Known.GSSAPI_DRAFT: b"A GSS-API Authentication Method for IKE",
    Known.INITIAL_CONTACT: b"Vid-Initial-Contact",
    Known.NLBS_PRESENT: b"NLBS_PRESENT",
    Known.FRAGMENTATION: b"FRAGMENTATION",
    Known.NAT_DRAFT_02: b"draft-ietf-ipsec-nat-t-ike-02\n",
    Known.RFC_3947: b"RFC 3947",
    Known.AUTHIP: b"MS-MamieExists",
    Known.CGA: b"IKE CGA version 1",
    Known.NEGOTIATION_DISCOVERY: b"MS-Negotiation Discovery Capable",
    Known.XBOX: b"Microsoft Xbox One 2013",
    Known.XBOX_NEGOTIATION: b"XBox IKEv2 Negotiation",
    Known.REALM: b"MSFT IPsec Security Realm Id",
}


@pytest.mark.parametrize("known", list(HASHED), ids=lambda one: one.name)
def test_octets_are_the_hash_of_the_name(known: Known) -> None:
    """A wrong octet, and the peer's ability is never seen."""
    assert known.value == md5(HASHED[known], usedforsecurity=False).digest()
    assert vendor.recognised(known.value + b"\0\0\0\1") is known


def test_every_known_one_has_a_name() -> None:
    """Else `ikctl sa --json` fails on a peer that sends it."""
    assert set(vendor.NAMES) == set(Known)
    assert vendor.names(dict.fromkeys(Known, b"")) == tuple(vendor.NAMES[one] for one in Known)


def test_what_follows_is_read() -> None:
    """Versions, modules and abilities, as Windows and others send them."""
    found = vendor.heard(
        [
            Known.KEYING_MODULES.value + bytes((0, 0, 0, 1)),
            Known.MICROSOFT.value + bytes((0, 0, 0, 9)),
            Known.FRAGMENTATION.value + bytes.fromhex("80000000"),
            Known.REALM.value + bytes(range(16)),
            Known.RFC_3947.value,
            b"a stranger",
            b"",
        ]
    )
    assert vendor.microsoft(found) == 9
    assert vendor.names(found) == (
        "keying modules 1 (AuthIP)",
        "Microsoft 9 (Windows 8, Server 2012 or later)",
        "fragmentation 0x80000000",
        "security realm 000102030405060708090a0b0c0d0e0f",
        "NAT traversal (RFC 3947)",
    )


@pytest.mark.parametrize(
    ("following", "version", "name"),
    [
        (b"", 0, "Microsoft"),
        (b"\0\0\0", 0, "Microsoft"),
        (bytes((0, 0, 0, 77)), 77, "Microsoft 77"),
        (bytes((0, 0, 0, 5)) + b"x" * 5000, 5, "Microsoft 5 (Windows Vista)"),
    ],
)
def test_odd_versions(following: bytes, version: int, name: str) -> None:
    """Short, unknown and long ones are no error, and nothing long is kept."""
    found = vendor.heard([Known.MICROSOFT.value + following])
    assert vendor.microsoft(found) == version
    assert vendor.names(found) == (name,)
    assert len(found[Known.MICROSOFT]) <= vendor.MOST_FOLLOWING


def test_a_repeated_one_counts_once() -> None:
    """The first word stands: a second one cannot change what was heard."""
    found = vendor.heard([Known.MICROSOFT.value + bytes((0, 0, 0, v)) for v in (9, 2)])
    assert vendor.microsoft(found) == 9
    assert vendor.microsoft({}) is None


def test_order_of_windows() -> None:
    """As a Windows 8 client sends them, without those for what we do not do; DPD, which it lacks, behind."""
    sent = [vendor.recognised(one) for one in PROFILES["windows"].of_ikev1(())]
    assert sent == [
        Known.KEYING_MODULES,
        Known.MICROSOFT,
        Known.GSSAPI,
        Known.RFC_3947,
        Known.NAT_DRAFT_02,
        Known.FRAGMENTATION,
        Known.INITIAL_CONTACT,
        Known.DPD,
    ]
    assert vendor.microsoft(vendor.heard(PROFILES["windows"].of_ikev1(()))) == 9
    assert vendor.names(vendor.heard(PROFILES["windows"].of_ikev2(())))[-1] == "keying modules 2 (IKEv2)"


def test_profiles() -> None:
    """`none` says nothing, `standard` claims to be no Windows, and what is left out is left out."""
    assert list(PROFILES["none"].of_ikev1(())) == list(PROFILES["none"].of_ikev2(())) == []
    standard = PROFILES["standard"]
    assert not standard.knows(Known.MICROSOFT)
    assert standard.knows(Known.DPD)
    assert Known.RFC_3947.value not in list(standard.of_ikev1({Known.RFC_3947}))
    assert list(standard.of_ikev2(())) == []
    for profile in PROFILES.values():
        assert not profile.knows(Known.CGA)
        assert not profile.knows(Known.NEGOTIATION_DISCOVERY)
