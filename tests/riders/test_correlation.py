"""The hash of IKE_SA correlation (MS-IKEE section 3.10).

If it fails, no Windows host can prove itself again, or one without the keys can.
"""

from __future__ import annotations

from ikd.riders.correlation import proof
from sadb.algorithms import PRF_BY_NAME
from sadb.secret import Secret


def test_check_value() -> None:
    """HMAC-SHA-1 with the key of the original IKE SA over the SPIs of both, computed by hand."""
    found = proof(
        PRF_BY_NAME["sha1"],
        Secret(bytes(range(20))),
        (b"\xc1" * 8, b"\xc2" * 8),
        (b"\xa1" * 8, b"\xa2" * 8),
    )
    assert found.hex() == "3b3544739d498c325dedae9b2b0a78f7ba94707c"
