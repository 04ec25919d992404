"""Fixtures of the tests with real peers: namespaces, a short directory for sockets, and logs when a test
fails."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support import capture, lab, leftovers, strongswan
from support import domain as directory
from support.domain import Domain
from support.kerberos import Kdc
from support.lab import Lab
from support.require import require
from support.tiers import Choice, Tier, choose


@cache
def _tools() -> tuple[tuple[bool, str], ...]:
    """Each thing these tests need and whether it is here; tried once."""
    leftovers.remove_namespaces()
    return (
        (lab.available(), "root with network namespaces and /dev/net/tun"),
        *((shutil.which(tool) is not None, tool) for tool in (*capture.TOOLS, "ping", "nft")),
        (not strongswan.missing(), f"strongSwan ({', '.join(strongswan.missing())})"),
    )


@pytest.fixture(autouse=True)
def _machine(request: pytest.FixtureRequest) -> None:
    """Everything the tests of this folder need from the machine."""
    if request.node.get_closest_marker("interop"):
        for there, what in _tools():
            require(there, what)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory with a short path, as Unix sockets need one; the logs in it are printed when the test
    fails."""
    directory = Path(tempfile.mkdtemp(prefix="ikd-"))
    yield directory
    _show_logs(directory)
    shutil.rmtree(directory)


def _show_logs(directory: Path) -> None:
    for log in sorted(directory.rglob("*.log")):  # pytest shows it for a failed test only
        print(f"--- {log.relative_to(directory)}\n{log.read_text(errors='replace')[-12000:]}")


@pytest.fixture
def hosts() -> Iterator[Lab]:
    """Two hosts on one link."""
    with Lab() as made:
        yield made


@pytest.fixture
def natted() -> Iterator[Lab]:
    """Two hosts, the left one behind a NAT."""
    with Lab(nat=True) as made:
        yield made


@pytest.fixture
def routed() -> Iterator[Lab]:
    """Two hosts, a router between them."""
    with Lab(routed=True) as made:
        yield made


@pytest.fixture(scope="session")
def domain() -> Iterator[Domain]:
    """A domain of Active Directory, made once: provisioning takes some ten seconds."""
    missing = directory.missing()
    require(not missing, f"a domain controller of Samba ({', '.join(missing)})")
    with directory.running() as made:
        yield made


@pytest.fixture(scope="session")
def _chosen() -> Iterator[tuple[Tier, Choice]]:
    """The place for two daemons: what IKD_TIER names and nothing else, or the best that works."""
    base = Path(tempfile.mkdtemp(prefix="ikd-"))
    base.chmod(0o755)
    try:
        try:
            choice = choose(base, os.environ.get("IKD_TIER", ""))
        except RuntimeError as error:
            pytest.fail(str(error))
        made = choice.tier(base)
        try:
            yield made, choice
        finally:
            made.close()
    finally:
        shutil.rmtree(base)


@pytest.fixture
def tier(_chosen: tuple[Tier, Choice], record_property: Callable[[str, object], None]) -> Tier:
    """The place for two daemons; which one it is stands in the summary."""
    made, choice = _chosen
    record_property("tier", choice.line)
    return made


@pytest.fixture
def home(tier: Tier) -> Iterator[Path]:
    """A directory that the hosts of the tier see, too."""
    directory = Path(tempfile.mkdtemp(prefix="t", dir=tier.directory))
    directory.chmod(0o755)
    yield directory
    _show_logs(directory)


@pytest.fixture
def realm(tier: Tier, request: pytest.FixtureRequest) -> Kdc:
    """The hosts' Kerberos realm."""
    found: Kdc = tier.kdc or request.getfixturevalue("kdc")
    return found
