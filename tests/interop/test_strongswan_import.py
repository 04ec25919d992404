"""A host that ran strongSwan runs ikd with what `ikctl import` made of its files, unnoticed by the peer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.lab import Lab
from support.scenario import PEER_ID, psk_peers
from support.strongswan import ikev1

from ikd.control import cli

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("initiator", ["ikd", "charon"])
@pytest.mark.parametrize("connection", [{}, ikev1()], ids=["ikev2", "ikev1"])
def test_host_moves_from_strongswan(
    hosts: Lab, place: Path, connection: dict[str, Any], initiator: str
) -> None:
    """A translated policy that loads and cannot speak to the peer it was written for is worth nothing."""
    peers = psk_peers(hosts, place, connection=connection)
    theirs = (peers.charon.directory / "swanctl" / "swanctl.conf").read_text()
    other = {"local": "remote", "remote": "local"}
    ours = re.sub("local|remote", lambda found: other[found[0]], theirs)
    (place / "swanctl.conf").write_text(ours)
    made = place / "made"
    done = CliRunner().invoke(
        cli.cli,
        ["import", "swanctl", str(place / "swanctl.conf"), "--out", str(made)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    for name in ("policy.toml", "secrets.toml"):
        (made / name).replace(peers.ikd.directory / name)
    with peers.ikd, peers.charon:
        peers.up(initiator)
        peers.check_traffic()
        assert peers.ikd.main()[0]["authenticated_as"] == PEER_ID
