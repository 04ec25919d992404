"""Private notifies of Microsoft (MS-IKEE sections 2.2.6 and 2.2.7).

If one of these fails, an administrator reads a wrong reason for a refusal.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.riders.windows_status import CODES, Told, label, read, shown

POLICY_MATCH = (13868).to_bytes(4, "big")
ID = bytes.fromhex("01020304")


@pytest.mark.parametrize(
    ("spi", "data", "told"),
    [
        (b"", POLICY_MATCH, Told(13868)),
        (bytes(16), POLICY_MATCH, Told(13868)),
        (b"", ID + POLICY_MATCH, Told(13868, 0x01020304)),
        (ID + POLICY_MATCH, b"", Told(13868, 0x01020304)),  # SPI size 8, and no SPI
        (bytes(8), ID + POLICY_MATCH, Told(13868, 0x01020304)),  # SPI size 8, and an SPI
        (bytes(8), POLICY_MATCH, Told(13868)),
        (b"", b"", None),
        (bytes(4), b"", None),
        (b"", bytes(5), None),
        (b"", bytes(12), None),
    ],
)
def test_what_is_left_decides(spi: bytes, data: bytes, told: Told | None) -> None:
    """Whatever the SPI size says, the number is found."""
    assert read(spi, data) == told


@given(st.binary(max_size=32), st.binary(max_size=64))
def test_any_octets(spi: bytes, data: bytes) -> None:
    """A peer may write anything; it is read or it is not."""
    told = read(spi, data)
    if told is not None:
        assert 0 <= told.value < 2**32
        assert str(told.value) in shown(told.value)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (13801, "AUTH_FAIL"),
        (13806, "NO_CERT"),
        (13824, "INVALID_HEADER"),
        (13825, "NO_POLICY"),
        (13868, "POLICY_MATCH"),
        (13869, "UNSUPPORTED_ID"),
    ],
)
def test_names(code: int, name: str) -> None:
    """The codes people search for."""
    assert f"ERROR_IPSEC_IKE_{name}: " in shown(code)
    assert label(code) == f"{code} IKE_{name}"


def test_unknown_code() -> None:
    """The number alone, not a guess."""
    assert shown(5) == "Windows error 5"
    assert label(5) == "5"
    assert all(13800 < code < 13910 for code in CODES)
