"""IKE_SA correlation, MS-IKEE section 3.10: a second IKE SA proves its initiator again for one that lives,
and is thrown away. What binds the two is a hash with a key of the living one."""

from __future__ import annotations

from sadb.algorithms import Prf
from sadb.crypto import prf
from sadb.secret import Secret

Spis = tuple[bytes, bytes]


def proof(row: Prf, key: Secret, current: Spis, original: Spis) -> bytes:
    """prf_current(SK_ai or SK_ar of the original, SPIs of the current one | SPIs of the original one)."""
    return prf(row, bytes(key), b"".join((*current, *original)))
