"""Every test of the engine runs on all of them: in Python, the native loop with Python for what it hands up,
and each of these with an adapter that has every SA it can have. Modules in which no engine takes part say so
with `ONE_ENGINE`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import engines

PARAMS = [
    pytest.param(name, marks=[pytest.mark.long] if "adapter" in name else [])
    for name in sorted(engines.ENGINES)
    if name != "packet"  # numbers and windows that tests look at are the adapter's there, see test_leases
]


@pytest.fixture(params=PARAMS, autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that `engines.hosts` makes."""
    before, engines.chosen = engines.chosen, request.param
    yield request.param
    engines.chosen = before
