"""ikd.bench.parties and the files made of it: what the three parties are configured with."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.require import require

from ikd.bench import hosts, kdc, parties
from ikd.bench.parties import AUTHS, IKD, RESPONDERS, STRONGSWAN
from ikd.loading import load
from sadb.sa import Mode

FILES = ("secrets.toml", "host.key", "swanctl.conf", "private/host.pem", parties.KEYTAB)
SECRETS = {"psk": 3, "authip-kerberos": 2, "authip-certificate": 2}


def prepare(base: Path, auth: str) -> dict[str, Path]:
    """The homes with all that is in them."""
    homes = hosts.prepare(base, auth, time.time())
    if AUTHS[auth].method == "kerberos":
        require(not kdc.missing(), f"Kerberos ({kdc.missing()})")
        kdc.Realm(base / "kdc").keytabs(homes)
    return homes


@pytest.mark.parametrize("auth", AUTHS)
def test_our_files_load_and_meet(tmp_path: Path, auth: str) -> None:
    """Files that do not load, or whose suites differ, would measure failures, or two different things."""
    homes = prepare(tmp_path, auth)
    initiator, responder = load(homes["load"]), load(homes[IKD.name])
    theirs = responder.policy.rule("load")
    assert theirs is not None
    for one in RESPONDERS:
        ours = initiator.policy.rule(one.name)
        assert ours is not None
        assert (ours.crypto, ours.auth, ours.mode) == (theirs.crypto, theirs.auth, Mode.TUNNEL)
        assert ours.keying == theirs.keying == (AUTHS[auth].keying,)
        assert ours.selector.local == theirs.selector.remote
    assert theirs.crypto is not None
    (suite,) = theirs.crypto.main
    assert (str(suite), suite.group.name) == (AUTHS[auth].main, AUTHS[auth].group)
    assert bool(initiator.material.keys) == (auth == "psk")
    for one in (initiator, responder):
        assert (one.material.keytab is not None) == (auth == "authip-kerberos")
    assert responder.settings.ike.half_open_per_address > 512  # more than --parallel can be


@pytest.mark.parametrize("auth", AUTHS)
def test_secrets_are_private(tmp_path: Path, auth: str) -> None:
    """Keys in a world-readable directory of /tmp are nobody's secret, even those of a measurement."""
    homes = prepare(tmp_path, auth)
    secret = [path for home in homes.values() for name in FILES for path in home.rglob(name)]
    assert len(secret) == SECRETS.get(auth, 4)
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}


def test_strongswan_gets_the_same_suites() -> None:
    """Another cipher or group there would be compared with ours as if it were the same."""
    text = parties.charon_connection("psk", "0123")
    assert "proposals = aes128gcm16-prfsha256-x25519" in text
    assert "esp_proposals = aes128gcm16" in text
    assert f"local_addrs = {STRONGSWAN.address}" in text
    assert 'secret = "0123"' in text
    assert "secret" not in parties.charon_connection("rsa-2048", "0123")


def test_strongswan_has_no_part_in_authip(tmp_path: Path) -> None:
    """It would be started with a connection of IKEv2 that nobody negotiates."""
    assert STRONGSWAN.name not in hosts.prepare(tmp_path, "authip-certificate", time.time())


def test_strongswan_settings_nest() -> None:
    """A brace too few and charon starts with its defaults, which throttle the initiator."""
    text = parties.charon_settings("/tmp/here")
    assert text.count("{") == text.count("}") == 7
    assert "socket = unix:///tmp/here/charon.vici" in text
    assert "    dos_protection = no\n" in text
