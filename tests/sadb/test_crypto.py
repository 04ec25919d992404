"""sadb.crypto against published vectors, and what hostile input comes to."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dh, ec, x448, x25519
from hypothesis import given
from hypothesis import strategies as st
from support.sas import hexed, vectors

from sadb.algorithms import (
    ENCRYPTION,
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    GROUPS,
    INTEGRITY,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    Curve,
    Encryption,
    Group,
)
from sadb.crypto import (
    BadPublic,
    Cipher,
    KeyExchange,
    MacCipher,
    PrivateKey,
    Unverified,
    cipher,
    modp_prime,
    prf,
    prf_plus,
)

SLOW = {"modp6144", "modp8192"}  # tested for their primes only


def label(case: dict[str, Any]) -> str:
    return case.get("id") or " ".join(filter(None, (case.get("cipher"), case.get("hash"), case["source"])))


# PRF -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", vectors("ikev2_kdf.json"), ids=label)
def test_key_derivation_of_ikev2(case: dict[str, Any]) -> None:
    """Wrong keys do not interoperate with anyone but ourselves (NIST's vectors)."""
    row = PRF_BY_NAME[case["hash"]]
    ni, nr, gir, gir_new, spi_i, spi_r = hexed(case, "ni", "nr", "gir", "gir_new", "spi_i", "spi_r")
    dkm, child, child_dh = hexed(case, "dkm", "dkm_child", "dkm_child_dh")
    skeyseed = prf(row, ni + nr, gir)
    assert skeyseed.hex() == case["skeyseed"]
    assert prf_plus(row, skeyseed, ni + nr + spi_i + spi_r, len(dkm)) == dkm
    sk_d = dkm[: row.size]
    assert prf_plus(row, sk_d, ni + nr, len(child)) == child
    assert prf_plus(row, sk_d, gir_new + ni + nr, len(child_dh)) == child_dh
    assert prf(row, sk_d, gir_new + ni + nr).hex() == case["skeyseed_rekey"]


@pytest.mark.parametrize("case", vectors("hmac_sha2.json"), ids=label)
def test_prf_is_hmac(case: dict[str, Any]) -> None:
    """Every key and every AUTH payload depends on it (RFC 4231)."""
    key, data, mac = hexed(case, "key", "data", "mac")
    assert prf(PRF_BY_NAME[case["hash"]], key, data) == mac


@pytest.mark.parametrize("name", sorted(PRF_BY_NAME))
def test_prf_plus_ends_after_255_blocks(name: str) -> None:
    """Its counter has one octet: more would repeat keys (RFC 7296 section 2.13)."""
    row = PRF_BY_NAME[name]
    assert len(prf_plus(row, b"key", b"seed", 255 * row.size)) == 255 * row.size
    with pytest.raises(ValueError, match="at most"):
        prf_plus(row, b"key", b"seed", 255 * row.size + 1)
    assert prf_plus(row, b"key", b"seed", 0) == b""


# Ciphers -------------------------------------------------------------------------------------------------


def made(row: Encryption, seed: int = 1) -> Cipher:
    key = bytes(range(seed, seed + row.key + row.salt))
    if row.aead:
        return cipher(row, key)
    mac = INTEGRITY_BY_NAME["sha256"]
    return cipher(row, key, mac, bytes(mac.key))


@pytest.mark.parametrize("case", vectors("aead.json"), ids=label)
def test_aead_of_published_cases(case: dict[str, Any]) -> None:
    """Salt, IV or associated data put together otherwise would be unreadable to everyone else."""
    key, salt, iv, aad, plaintext, ciphertext, icv = hexed(
        case, "key", "salt", "iv", "aad", "plaintext", "ciphertext", "icv"
    )
    one = cipher(ENCRYPTION_BY_NAME[case["cipher"]], key + salt)
    assert one.seal(iv, aad, plaintext) == ciphertext + icv
    assert one.open(iv, aad, ciphertext + icv) == plaintext


@pytest.mark.parametrize("case", [*vectors("aes_cbc.json"), *vectors("3des_cbc.json")], ids=label)
def test_cbc_of_published_cases(case: dict[str, Any]) -> None:
    """CBC with the check value behind it, whichever packet came before (RFC 3602, RFC 2451, SP 800-38A)."""
    key, iv, plaintext, ciphertext = hexed(case, "key", "iv", "plaintext", "ciphertext")
    mac = INTEGRITY_BY_NAME["sha256"]
    one = cipher(ENCRYPTION_BY_NAME[case["cipher"]], key, mac, b"m" * 32)
    for _ in range(2):
        sealed = one.seal(iv, b"header", plaintext)
        assert sealed[: -mac.icv] == ciphertext
        assert one.open(iv, b"header", sealed) == plaintext
        other = one.seal(bytes(len(iv)), b"other", plaintext[::-1])
        assert one.open(bytes(len(iv)), b"other", other) == plaintext[::-1]


@pytest.mark.parametrize("equal", [0, 2])
def test_3des_with_a_key_of_des_is_refused(equal: int) -> None:
    """With two equal keys next to each other it is DES, which can be searched (RFC 2451 section 2.3); octets
    that differ in their parity bit alone are equal to the cipher."""
    row, mac = ENCRYPTION_BY_NAME["3des"], INTEGRITY_BY_NAME["sha1"]
    keys = [bytes(range(8 * n, 8 * n + 8)) for n in range(3)]
    cipher(row, b"".join(keys), mac, bytes(mac.key))
    cipher(row, keys[0] + keys[1] + keys[0], mac, bytes(mac.key))  # two keys are weaker, but not DES
    keys[equal] = bytes(octet ^ 1 for octet in keys[1])
    with pytest.raises(ValueError, match="no better than one of DES"):
        cipher(row, b"".join(keys), mac, bytes(mac.key))


@pytest.mark.parametrize("row", INTEGRITY, ids=lambda row: row.name)
def test_check_value_is_truncated_hmac_over_all_that_is_sent(row: Any) -> None:
    """IV and header must be covered, and the high half of the number behind them (RFC 4303 section 3.3.2)."""
    one = cipher(ENCRYPTION_BY_NAME["null"], b"", row, b"k" * row.key)
    assert isinstance(one, MacCipher)
    whole = hmac.digest(b"k" * row.key, b"headertexthigh", row.hash)
    assert one.seal(b"", b"header", b"text", b"high") == b"text" + whole[: row.icv]
    with pytest.raises(Unverified):
        one.open(b"", b"header", b"text" + whole[: row.icv], b"HIGH")


@pytest.mark.parametrize("row", ENCRYPTION, ids=lambda row: row.name)
@given(data=st.data())
def test_sealed_opens_and_changed_does_not(row: Encryption, data: st.DataObject) -> None:
    """A flipped bit, a cut or another header that still opened would be a forged packet."""
    one = made(row)
    iv = data.draw(st.binary(min_size=row.iv, max_size=row.iv))
    aad = data.draw(st.binary(max_size=12))
    text = data.draw(st.binary(max_size=3 * row.block).map(lambda t: t[: len(t) // row.block * row.block]))
    sealed = one.seal(iv, aad, text)
    assert one.open(iv, aad, sealed) == text
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    flipped = bytearray(sealed)
    flipped[at // 8] ^= 1 << at % 8
    for octets, header in (
        (bytes(flipped), aad),
        (sealed[:-1], aad),
        (sealed[1:], aad),
        (sealed, aad + b"x"),
    ):
        with pytest.raises(Unverified):
            one.open(iv, header, octets)


@pytest.mark.parametrize("row", ENCRYPTION, ids=lambda row: row.name)
@given(st.binary(max_size=40), st.binary(max_size=8), st.binary(max_size=20))
def test_any_octets_are_unverified(row: Encryption, octets: bytes, aad: bytes, iv: bytes) -> None:
    """Another exception, from a short IV say, would end the association instead of dropping the packet."""
    with pytest.raises(Unverified):
        made(row, seed=3).open(iv, aad, octets)


@pytest.mark.parametrize("name", ["aes128", "3des"])
def test_authentic_octets_of_no_whole_block_are_unverified(name: str) -> None:
    """A peer with the key may send what its cipher could never produce."""
    row, mac = ENCRYPTION_BY_NAME[name], INTEGRITY_BY_NAME["sha256"]
    block = row.block
    one = cipher(row, bytes(range(row.key)), mac, b"k" * 32)
    for iv, text in ((bytes(block), b"x" * (block - 1)), (bytes(block - 1), b"x" * block)):
        icv = hmac.digest(b"k" * 32, iv + text, "sha256")[:16]
        with pytest.raises(Unverified):
            one.open(iv, b"", text + icv)
    sealed = one.seal(bytes(block), b"", b"p" * 16)
    assert one.open(bytes(block), b"", sealed) == b"p" * 16  # the refused ones left no trace


@pytest.mark.parametrize("row", ENCRYPTION, ids=lambda row: row.name)
def test_keys_of_another_length_are_refused(row: Encryption) -> None:
    """A key cut in the wrong place must not work by accident."""
    mac = INTEGRITY_BY_NAME["sha384"]
    size = row.key + row.salt
    for key in (bytes(size + 1), bytes(max(size - 1, 0))):
        if len(key) != size:
            with pytest.raises(ValueError, match="octets of key"):
                cipher(row, key, mac, bytes(mac.key))
    if not row.aead:
        with pytest.raises(ValueError, match="octets of key"):
            cipher(row, bytes(size), mac, bytes(mac.key - 1))
        with pytest.raises(ValueError, match="needs an integrity algorithm"):
            cipher(row, bytes(size))


# Diffie-Hellman ------------------------------------------------------------------------------------------


def private(group: Group, octets: bytes) -> PrivateKey:
    if group.name == "x25519":
        return x25519.X25519PrivateKey.from_private_bytes(octets)
    if group.name == "x448":
        return x448.X448PrivateKey.from_private_bytes(octets)
    curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[group.name]
    return ec.derive_private_key(int.from_bytes(octets, "big"), curve)


@pytest.mark.parametrize("case", vectors("key_exchange.json"), ids=label)
def test_key_exchange_of_published_cases(case: dict[str, Any]) -> None:
    """Public values and secrets have one form on the wire and in key derivation (RFC 7748, RFC 5903)."""
    group = GROUP_BY_NAME[case["group"]]
    private_i, public_i, private_r, public_r, shared = hexed(
        case, "private_i", "public_i", "private_r", "public_r", "shared"
    )
    ours = KeyExchange(group, private(group, private_i))
    theirs = KeyExchange(group, private(group, private_r))
    assert (ours.public, theirs.public) == (public_i, public_r)
    assert ours.agree(public_r) == shared
    assert theirs.agree(public_i) == shared


@pytest.mark.parametrize("case", vectors("modp.json"), ids=lambda case: f"group {case['group']}")
def test_modp_primes_are_the_published_ones(case: dict[str, Any]) -> None:
    """They are computed from RFC 3526's formula; another prime would be nobody's group, perhaps weak."""
    written = modp_prime(case["group"]).to_bytes(case["octets"], "big").hex()
    assert written == case.get("prime", written)
    assert written.startswith(case.get("head", ""))
    assert written.endswith(case.get("tail", ""))


@pytest.mark.parametrize("name", sorted(set(GROUP_BY_NAME) - SLOW))
def test_two_ends_agree(name: str) -> None:
    """The public value must have the length the KE payload says, and both ends the same secret."""
    group = GROUP_BY_NAME[name]
    ours, theirs = KeyExchange(group), KeyExchange(group)
    assert len(ours.public) == len(theirs.public) == group.public
    assert ours.agree(theirs.public) == theirs.agree(ours.public)
    assert ours.public != theirs.public
    assert name in repr(ours)


@pytest.mark.filterwarnings("ignore:Diffie-Hellman over finite fields")
def test_modp_secret_keeps_its_leading_zeros() -> None:
    """g^ir is as long as the prime (RFC 7296 section 2.14); of 256 secrets one begins with a zero octet."""
    prime, exponent = modp_prime(14), 3
    numbers = dh.DHPublicNumbers(pow(2, exponent, prime), dh.DHParameterNumbers(prime, 2))
    ours = KeyExchange(GROUP_BY_NAME["modp2048"], dh.DHPrivateNumbers(exponent, numbers).private_key())
    peer = 1 << 660  # its third power has 1981 bits, eight octets less than the prime
    assert ours.agree(peer.to_bytes(256, "big")) == (peer**exponent).to_bytes(256, "big")


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_public_values_outside_the_group_are_refused(group: Group) -> None:
    """Degenerate values make the secret known to a stranger (RFC 6989, RFC 8031 section 4)."""
    if group.name in SLOW:
        group = GROUP_BY_NAME["modp2048"]
    ours = KeyExchange(group)
    size = group.public
    bad = [b"", bytes(size), bytes(size - 1), bytes(size + 1), ours.public + b"\0", ours.public[:-1]]
    if group.curve is Curve.MODP:
        prime = modp_prime(group.ikev2)
        bad += [n.to_bytes(size, "big") for n in (1, prime - 1, prime, prime + 1, 256**size - 1)]
    elif group.curve is Curve.ECP:
        bad += [ours.public[:-1] + bytes((ours.public[-1] ^ 1,)), b"\xff" * size]
    else:
        bad += [b"\1" + bytes(size - 1)]  # of small order
    for public in bad:
        with pytest.raises(BadPublic):
            ours.agree(public)


@given(st.sampled_from(["x25519", "x448", "p256", "p384", "p521"]), st.data())
def test_any_public_value_agrees_or_is_bad(name: str, data: st.DataObject) -> None:
    """A KE payload comes from strangers: no other exception may come out of it."""
    group = GROUP_BY_NAME[name]
    public = data.draw(st.binary(min_size=group.public, max_size=group.public))
    try:
        assert KeyExchange(group).agree(public)
    except BadPublic:
        return


def test_truncated_macs_come_from_the_right_hash() -> None:
    """A table of hash objects with two rows swapped would only be noticed by a peer."""
    for row in INTEGRITY:
        one = cipher(ENCRYPTION_BY_NAME["null"], b"", row, bytes(row.key))
        expected = hmac.new(bytes(row.key), b"x", getattr(hashlib, row.hash)).digest()[: row.icv]
        assert one.seal(b"", b"", b"x") == b"x" + expected
