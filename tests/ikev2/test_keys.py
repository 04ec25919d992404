"""Key derivation of IKEv2 (RFC 7296 sections 2.14, 2.17, 2.18) against NIST's vectors, and how it is cut into
keys.

If one of these fails, we agree with ourselves and with nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from support.sas import hexed, vectors

from ikd.ikev2.keys import expand, keymat, rekeyed_seed, seed
from policy.values import main_suite, quick_suite
from sadb.algorithms import PRF_BY_NAME, MainSuite
from sadb.crypto import prf_plus
from sadb.secret import Secret

CASES = vectors("ikev2_kdf.json")
IDS = [case["id"] for case in CASES]
MAIN = [
    "x25519 aes128gcm sha256",
    "x25519 aes256gcm sha512",
    "p384 chacha20poly1305 sha384",
    "p256 aes192 sha256",
    "modp2048 aes128 sha1",
]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_seed(case: dict[str, Any]) -> None:
    """SKEYSEED of IKE_SA_INIT."""
    ni, nr, shared, expected = hexed(case, "ni", "nr", "gir", "skeyseed")
    assert seed(PRF_BY_NAME[case["hash"]], ni, nr, shared) == expected


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_expansion(case: dict[str, Any]) -> None:
    """The seven keys are the vector's octets in the order of section 2.14."""
    ni, nr, spi_i, spi_r, skeyseed, dkm = hexed(case, "ni", "nr", "spi_i", "spi_r", "skeyseed", "dkm")
    text = "x25519 aes128 " + case["hash"]
    keys = expand(main_suite(text), skeyseed, ni, nr, spi_i, spi_r)
    parts = (keys.d, keys.ai, keys.ar, keys.ei, keys.er, keys.pi, keys.pr)
    octets = b"".join(map(bytes, parts))
    whole = prf_plus(PRF_BY_NAME[case["hash"]], skeyseed, ni + nr + spi_i + spi_r, max(len(octets), len(dkm)))
    assert whole.startswith(dkm)
    assert whole.startswith(octets)
    size = PRF_BY_NAME[case["hash"]].size
    assert bytes(keys.d) == dkm[:size]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_child_keys(case: dict[str, Any]) -> None:
    """KEYMAT without and with a key exchange of its own, cut into both directions."""
    ni, nr, dkm, shared, plain, with_pfs = hexed(
        case, "ni", "nr", "dkm", "gir_new", "dkm_child", "dkm_child_dh"
    )
    row = PRF_BY_NAME[case["hash"]]
    sk_d = Secret(dkm[: row.size])
    suite = quick_suite("aes128 sha256")
    for extra, expected in ((b"", plain), (shared, with_pfs)):
        from_i, from_r = keymat(row, sk_d, suite, extra, ni, nr)
        octets = b"".join(map(bytes, (*from_i, *from_r)))
        assert len(octets) == 2 * (16 + 32)
        assert octets == expected[: len(octets)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_seed_of_a_replaced_ike_sa(case: dict[str, Any]) -> None:
    """Section 2.18: out of the old SK_d, the new shared secret and the nonces."""
    ni, nr, dkm, shared, expected = hexed(case, "ni", "nr", "dkm", "gir_new", "skeyseed_rekey")
    row = PRF_BY_NAME[case["hash"]]
    assert rekeyed_seed(row, Secret(dkm[: row.size]), ni, nr, shared) == expected


@pytest.mark.parametrize("text", MAIN)
def test_sizes_fit_the_suite(text: str) -> None:
    """Keys of AEADs have their salt and no integrity key; no two of the keys are the same."""
    suite: MainSuite = main_suite(text)
    keys = expand(suite, b"s" * suite.prf.size, b"i" * 32, b"r" * 32, b"1" * 8, b"2" * 8)
    assert len(bytes(keys.ei)) == len(bytes(keys.er)) == suite.encryption.key + suite.encryption.salt
    assert len(bytes(keys.ai)) == len(bytes(keys.ar)) == (suite.integrity.key if suite.integrity else 0)
    assert len(bytes(keys.d)) == len(bytes(keys.pi)) == suite.prf.size
    filled = [
        bytes(one) for one in (keys.d, keys.ai, keys.ar, keys.ei, keys.er, keys.pi, keys.pr) if bytes(one)
    ]
    assert len(set(filled)) == len(filled)


def test_keys_do_not_show() -> None:
    """A log or a traceback with a repr must not hold a key."""
    suite = main_suite(MAIN[0])
    keys = expand(suite, b"s" * 32, b"i" * 32, b"r" * 32, b"1" * 8, b"2" * 8)
    assert bytes(keys.d).hex() not in repr(keys)
    assert repr(bytes(keys.d)) not in repr(keys)
