"""What a test needs from the machine: with REQUIRE_INTEROP set (as `make test` does for root) its absence
fails the test instead of skipping it, so nothing can vanish from CI unseen."""

from __future__ import annotations

import os

import pytest


def require(there: bool, what: str) -> None:
    """Go on when `there`; else fail or skip, naming what is missing."""
    if there:
        return
    if os.environ.get("REQUIRE_INTEROP"):
        pytest.fail(f"missing: {what}")
    pytest.skip(f"missing: {what}")
