"""Two containers with nothing but three capabilities and a read-only file system: the daemon must ask for no
more."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.containers import Podman, why_not
from support.daemon import IKCTL, IKD, toml
from support.require import require
from support.scenario import secrets, write_identity

from ikd import pki

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

POLICY = """\
[[rule]]
name     = "other"
remote   = "{remote}"
security = "require"
peer     = "{peer}.lab"
keying   = "{keying}"
auth     = "{auth}"

[auth.machine]
first = ["certificate"]
"""


@pytest.fixture
def podman(place: Path) -> Iterator[Podman]:
    """A network for containers, when containers work here."""
    reason = why_not(place)
    require(not reason, f"containers: {reason}")
    with Podman(place) as made:
        yield made


def write(directory: Path, own: str, other: str, remote: str, keying: str, authority: pki.Pair) -> None:
    """The configuration of one side: a pre-shared key for IKEv2, a certificate for AuthIP."""
    directory.mkdir()
    auth = "machine" if keying == "authip" else "default"
    policy = POLICY.format(remote=remote, peer=other, keying=keying, auth=auth)
    (directory / "policy.toml").write_text(policy)
    certificate: dict[str, Any] = {}
    if keying == "authip":
        pair = pki.issue(authority, f"CN={own}.lab", [f"{own}.lab"], now=time.time())
        certificate = write_identity(directory, authority, pair)
    (directory / "secrets.toml").write_text(secrets(peer=f"{other}.lab"))
    (directory / "secrets.toml").chmod(0o600)
    tables = {
        "daemon": {"control": "/run/ikd.sock", "state": "/run/state"},
        "identity": {"id": f"{own}.lab"} | certificate,
        "log": {"format": "text"},
    }
    (directory / "ikd.toml").write_text(toml(tables))


def wait_for_daemon(podman: Podman, name: str, log: Path) -> None:
    """Until its control socket answers."""
    deadline = time.monotonic() + 30
    while "ikd" not in podman.execute(name, *IKCTL, "--socket", "/run/ikd.sock", "version", check=False):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.2)


@pytest.mark.parametrize("keying", ["ikev2", "authip"])
def test_ping_through_esp_between_containers(podman: Podman, place: Path, keying: str) -> None:
    """If it needs more than a container gives, it cannot be deployed in one; and the counters must have
    moved."""
    authority = pki.make_ca("CN=Lab CA", time.time())
    addresses = {"alpha": f"{podman.subnet}.11", "beta": f"{podman.subnet}.12"}
    for own, other in (("alpha", "beta"), ("beta", "alpha")):
        write(place / own, own, other, addresses[other], keying, authority)
        podman.run(own, int(addresses[own].rsplit(".", 1)[1]), place / own)
        started = " ".join((sys.executable, *IKD[1:], "--config", str(place / own)))
        podman.background(own, "sh", "-c", f"exec {started} >{place / own}/ikd.log 2>&1")
    for name in addresses:
        wait_for_daemon(podman, name, place / name / "ikd.log")
    pinged = podman.execute("alpha", "ping", "-n", "-c", "3", "-i", "0.2", "-W", "10", addresses["beta"])
    assert " 0% packet loss" in pinged
    shown = podman.execute("beta", *IKCTL, "--socket", "/run/ikd.sock", "status")
    assert "alpha.lab" in shown
