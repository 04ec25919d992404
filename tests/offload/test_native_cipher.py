"""The native module's ciphers are those of `sadb.crypto`, octet by octet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.nic.cipher import maker, native
from sadb.algorithms import ENCRYPTION_BY_NAME
from sadb.crypto import Unverified, cipher

pytestmark = pytest.mark.parametrize("engine", ["python"])
ROWS = [ENCRYPTION_BY_NAME[f"aes{bits}{mode}"] for bits in (128, 192, 256) for mode in ("gcm", "gmac")]
KEY = bytes(range(100, 136))


@given(
    st.sampled_from(ROWS),
    st.binary(min_size=8, max_size=8),
    st.binary(max_size=12),
    st.binary(max_size=200),
    st.integers(0, 2000),
)
def test_both_make_and_open_the_same(
    engine: str, row: object, iv: bytes, aad: bytes, data: bytes, flip: int
) -> None:
    one = ENCRYPTION_BY_NAME[row.name]  # type: ignore[attr-defined]
    key = KEY[: one.key + one.salt]
    ours, theirs = native(one, key), cipher(one, key)
    sealed = ours.seal(iv, aad, data)
    assert sealed == theirs.seal(iv, aad, data)
    assert ours.open(iv, aad, sealed) == data
    at = flip % len(sealed)
    forged = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
    with pytest.raises(Unverified):
        ours.open(iv, aad, forged)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_too_short_or_of_another_key_is_refused(row: object, engine: str) -> None:
    one = ENCRYPTION_BY_NAME[row.name]  # type: ignore[attr-defined]
    ours = native(one, KEY[: one.key + one.salt])
    for data in (b"", bytes(15)):
        with pytest.raises(Unverified):
            ours.open(bytes(8), b"", data)
    with pytest.raises(ValueError, match="octets of key"):
        native(one, KEY[: one.key])


def test_what_is_built_serves(engine: str) -> None:
    assert maker() is native
