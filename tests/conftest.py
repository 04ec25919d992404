"""Puts the tests' shared helpers, `support`, on the import path, and lets Hypothesis take its time; the
Kerberos realm that tests share."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.kerberos import Kdc

sys.path.insert(0, str(Path(__file__).parent))

# How long one example takes says more about what else the machine is doing.
settings.register_profile("ikd", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)  # make unit: an answer within a minute
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ikd"))


@pytest.fixture(scope="session")
def kdc() -> Iterator[Kdc]:
    """A Kerberos realm with a KDC on loopback, started once; this process is in it from then on."""
    from support import kerberos
    from support.require import require

    missing = kerberos.missing()
    require(not missing, f"Kerberos ({', '.join(missing)})")
    base = Path(tempfile.mkdtemp(prefix="ikd-kdc-"))
    base.chmod(0o755)
    try:
        with kerberos.running(base) as realm:
            yield realm
    finally:
        shutil.rmtree(base)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes first, so that nobody waits for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_soak.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where the tests between two hosts ran, in containers or in something less."""
    reports = (one for some in terminalreporter.stats.values() for one in some)
    found = (one for report in reports for one in getattr(report, "user_properties", ()))
    for line in dict.fromkeys(str(text) for name, text in found if name == "tier"):
        terminalreporter.write_line(line, bold=True)
