"""sadb.algorithms: the table agrees with the registries and with itself."""

from __future__ import annotations

import hashlib

import pytest

from sadb.algorithms import (
    ALIASES,
    ENCRYPTION,
    ENCRYPTION_BY_NAME,
    GROUP_BY_ID,
    GROUP_BY_NAME,
    GROUPS,
    INTEGRITY,
    INTEGRITY_BY_NAME,
    PRF,
    PRF_BY_NAME,
    REFUSED,
    Integrity,
    MainSuite,
    Prf,
    QuickSuite,
    SecurityProtocol,
)

NAMES = {**ENCRYPTION_BY_NAME, **INTEGRITY_BY_NAME, **PRF_BY_NAME, **GROUP_BY_NAME}

# IANA, "Internet Key Exchange Version 2 (IKEv2) Parameters": name here -> transform ID
ENCR = {
    "aes128": 12,
    "aes192": 12,
    "aes256": 12,
    "null": 11,
    "3des": 3,
    "aes128gcm": 20,
    "aes192gcm": 20,
    "aes256gcm": 20,
    "aes128gmac": 21,
    "aes192gmac": 21,
    "aes256gmac": 21,
    "chacha20poly1305": 28,
}
DH = {
    "modp1024": 2,
    "modp2048": 14,
    "modp3072": 15,
    "modp4096": 16,
    "modp6144": 17,
    "modp8192": 18,
    "p256": 19,
    "p384": 20,
    "p521": 21,
    "x25519": 31,
    "x448": 32,
}


def test_numbers_are_those_of_the_registry() -> None:
    """A wrong transform ID negotiates one algorithm and uses another."""
    assert {row.name: row.ikev2 for row in ENCRYPTION} == ENCR
    assert {row.name: row.ikev2 for row in GROUPS} == DH
    assert {row.name: row.ikev2 for row in INTEGRITY} == {"sha1": 2, "sha256": 12, "sha384": 13, "sha512": 14}
    assert {row.name: row.ikev2 for row in PRF} == {"sha1": 2, "sha256": 5, "sha384": 6, "sha512": 7}


@pytest.mark.parametrize("row", [*INTEGRITY, *PRF], ids=lambda row: f"{type(row).__name__} {row.name}")
def test_sizes_follow_from_the_hash(row: Integrity | Prf) -> None:
    """A key of the wrong length derives other keys than the peer's (RFC 4868 sections 2.1.1 and 2.3)."""
    digest = hashlib.new(row.hash).digest_size
    if isinstance(row, Prf):
        assert row.size == digest
    else:
        assert row.key == digest
        assert row.icv == (12 if row.name == "sha1" else digest // 2)


def test_ciphers_take_keys_as_their_names_say() -> None:
    """aes256 with a key of 128 bits would be weaker than the policy asks, and nobody would see it."""
    for row in ENCRYPTION:
        if row.name.startswith("aes"):
            assert row.key * 8 == int(row.name[3:6])
            assert row.block == (16 if row.iv == 16 else 1)
            assert not row.fixed_length
        elif row.name == "3des":  # RFC 2451: no Key Length, whatever the parity bits are
            assert (row.key, row.iv, row.block, row.fixed_length) == (24, 8, 8, True)
        assert (row.icv == 16) is row.aead
        assert (row.salt == 4) is row.aead
    assert [row.name for row in ENCRYPTION if not row.encrypts] == [
        "aes128gmac",
        "aes192gmac",
        "aes256gmac",
        "null",
    ]


def test_what_encrypts_nothing_is_for_esp_only() -> None:
    """An IKE SA without encryption would send identities and keys in the clear."""
    assert all(row.esp_only for row in ENCRYPTION if not row.encrypts)
    assert not any(row.esp_only for row in ENCRYPTION if row.encrypts)


def test_what_is_for_old_peers_only() -> None:
    """These must never be offered unless a policy names them; DES, MD5 and groups 1 and 5 not even then."""
    rows = (*ENCRYPTION, *INTEGRITY, *PRF, *GROUPS)
    assert {row.name for row in rows if row.deprecated} == {"3des", "sha1", "modp1024"}


def test_what_ikev1_can_propose() -> None:
    """A proposal without numbers in its registries would end in another one, or in an exception."""
    names = ENCRYPTION_BY_NAME
    sha1, sha256 = INTEGRITY_BY_NAME["sha1"], INTEGRITY_BY_NAME["sha256"]
    group, curve = GROUP_BY_NAME["modp1024"], GROUP_BY_NAME["x25519"]
    assert MainSuite(group, names["3des"], PRF_BY_NAME["sha1"], sha1).ikev1
    assert MainSuite(GROUP_BY_NAME["p256"], names["aes128"], PRF_BY_NAME["sha256"], sha256).ikev1
    assert not MainSuite(curve, names["aes128"], PRF_BY_NAME["sha256"], sha256).ikev1
    assert not MainSuite(group, names["aes128"], PRF_BY_NAME["sha256"], sha1).ikev1
    assert not MainSuite(group, names["aes128gcm"], PRF_BY_NAME["sha256"]).ikev1
    esp = SecurityProtocol.ESP
    assert QuickSuite(esp, names["aes128gcm"], group=group).ikev1
    assert QuickSuite(SecurityProtocol.AH, None, sha1).ikev1
    assert not QuickSuite(esp, names["aes128gcm"], group=curve).ikev1
    assert not QuickSuite(esp, names["chacha20poly1305"]).ikev1


def test_names_are_unique_and_aliases_lead_to_rows() -> None:
    """An alias to nowhere would be an error at the worst moment; a refused name must not be in the table."""
    for rows in (ENCRYPTION, INTEGRITY, PRF, GROUPS):
        assert len({row.name for row in rows}) == len(rows)
    assert len(GROUP_BY_ID) == len(GROUPS)
    assert set(ALIASES.values()) <= set(NAMES)
    assert not set(ALIASES) & set(NAMES)
    assert not set(REFUSED) & (set(NAMES) | set(ALIASES))


@pytest.mark.parametrize("name", ["des", "md5", "modp768", "modp1536", "group1", "group5", "dh1", "dh5"])
def test_broken_algorithms_are_refused_with_a_remedy(name: str) -> None:
    """A refusal that does not say what to use instead sends people to look for a switch to turn it off."""
    assert "use " in REFUSED[name]


def test_suites_read_as_they_are_written() -> None:
    """`ikctl` shows suites in the words of the policy file, so that they can be compared."""
    gcm, sha256 = ENCRYPTION_BY_NAME["aes128gcm"], PRF_BY_NAME["sha256"]
    main = MainSuite(GROUP_BY_NAME["p256"], gcm, sha256)
    assert str(main) == "p256 aes128gcm sha256"
    mac = INTEGRITY_BY_NAME["sha384"]
    assert str(MainSuite(GROUP_BY_NAME["x448"], ENCRYPTION_BY_NAME["aes256"], sha256, mac)) == (
        "x448 aes256 sha384"
    )
    assert str(QuickSuite(SecurityProtocol.ESP, gcm, group=GROUP_BY_NAME["x25519"])) == "aes128gcm x25519"
    assert str(QuickSuite(SecurityProtocol.AH, None, mac)) == "ah sha384"


def test_keying_material_of_a_child() -> None:
    """Keys are cut from one string: a wrong length shifts every key behind it (RFC 7296 section 2.17)."""
    sha256 = INTEGRITY_BY_NAME["sha256"]
    gcm = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes256gcm"])
    assert (gcm.keys, gcm.icv) == ((36, 0), 16)
    cbc = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128"], sha256)
    assert (cbc.keys, cbc.icv) == ((16, 32), 16)
    ah = QuickSuite(SecurityProtocol.AH, None, sha256)
    assert (ah.keys, ah.icv) == ((0, 32), 16)
