"""Every test of the engine runs on both: all in Python, and the native loop with Python for what it hands
up. Modules in which no engine takes part say so with `ONE_ENGINE`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import engines


@pytest.fixture(params=sorted(engines.ENGINES), autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that `engines.hosts` makes."""
    before, engines.chosen = engines.chosen, request.param
    yield request.param
    engines.chosen = before
