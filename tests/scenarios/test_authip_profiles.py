"""The readings of MS-AIPS that a profile chooses between, each between two hosts.

If one of these fails, a switch that a recording of Windows may demand one day does not work, or a peer that
reads the specification in another way is not understood although docs/interop-windows.md says it is."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
from support.authip import CERTIFICATE, hosts, main_mode, person, reading, with_users
from support.link import BOTH, Link, agree, story
from support.phases import both, sets

from ikd.authip.numbers import Exchange
from ikd.authip.profile import PROFILES, Profile
from ikd.events import CookieDemanded
from ikd.settings import IkeSettings

OTHER: tuple[tuple[str, Any], ...] = (
    ("natd_hash", "sha256"),
    ("first_sync_id", "same"),
    ("extended_reply_id", 0),
    ("clear_iv", False),
    ("spn", "RestrictedKrbHost"),
    ("ecdsa_methods", False),
    ("vendor_version", 6),
    ("vendor_version", 9),
    ("announces_modules", False),
    ("announces_group", False),
    ("method_attribute", 3),
    ("extended_exchange", 243),
    ("anonymous_tokens", False),
    ("length_prefixes", True),
    ("kerberos_key", 16),
    ("tls_key", "eap-key-block"),
    ("tls_key", "master-secret"),
    ("tls_key", "hash-of-key-block"),
    ("transcript", "payloads"),
    ("authentication_key_first", False),
    ("salt", False),
    ("fast_quick", True),
    ("later_nonce", False),
    ("later_hash", False),
    ("cookie_exchange", 243),
    ("cookie_exchange", 5),
    ("drops_every_ikev1", True),
    ("failed_attempts_count", False),
    ("auth1_hashed", False),
    ("auth_inside", False),
    ("sync_in_extended", True),
    ("short_icv", "received"),
    ("crypto_id", "little"),
    ("first_new", False),
    ("names", "utf-16-be"),
    ("ack_echoes", False),
    ("icv_key", "e"),
)
TOLERATED = (
    "natd_hash",
    "first_sync_id",
    "extended_reply_id",
    "clear_iv",
    "spn",
    "ecdsa_methods",
    "vendor_version",
    "announces_modules",
    "announces_group",
    "method_attribute",
    "extended_exchange",
    "anonymous_tokens",
    "salt",
    "fast_quick",
    "later_nonce",
    "later_hash",
    "cookie_exchange",
    "drops_every_ikev1",
    "short_icv",
    "first_new",
    "ack_echoes",
)
AUTHS = {
    "optional": CERTIFICATE + 'second = ["user-certificate", "anonymous"]\n',
    "anonymous": '[auth.machine]\nfirst = ["anonymous"]\nsecond = ["user-certificate"]\n',
}
PEOPLE = both(person("left"), person("right"))


def shown(pair: tuple[str, Any]) -> str:
    """A reading, for people."""
    return f"{pair[0]}={pair[1]}"


def lives(link: Link, side: str) -> None:
    """Everything that a main-mode SA is there for. A responder waits a while for a synchronisation that does
    not come."""
    pause = 12 + 30 * any(one.fast_quick for one in PROFILES.values())
    link.watch()
    link.up("net", side)
    link.run(pause)
    agree(link, ikes=1, pairs=1)
    link.gaps.clear()
    for one in (link.left, link.right):
        link.rekey_child(one)
        link.run(pause)
        agree(link, ikes=1, pairs=1)
    link.rekey(link.named(side))
    link.run(40)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        assert not one.failures, story(link)
    assert not link.gaps, (link.gaps, story(link))
    link.close_child(link.left)
    link.run(10)
    link.close(link.right)
    link.run(15)
    agree(link, ikes=0, pairs=0)


def test_every_switch_is_here() -> None:
    """A field of the profile that is not in these tables would not be tested."""
    assert {name for name, _ in OTHER} == {one.name for one in fields(Profile)}
    for name, value in OTHER:
        assert getattr(PROFILES["windows-2012"], name) != value


@pytest.mark.long
@pytest.mark.parametrize("other", OTHER, ids=shown)
def test_both_sides_read_it_otherwise(other: tuple[str, Any], monkeypatch: Any) -> None:
    """Each reading is complete: two hosts that share it come together, whatever they authenticate with."""
    reading(monkeypatch, **dict([other]))
    crowded = IkeSettings(cookie_threshold=0) if other[0] == "cookie_exchange" else IkeSettings()
    for auth in ("optional", "anonymous"):
        lives(Link(*hosts(auth=AUTHS[auth], settings=crowded, **PEOPLE)), "left")


@pytest.mark.long
@pytest.mark.parametrize("other", [one for one in OTHER if one[0] in TOLERATED], ids=shown)
def test_one_side_reads_it_otherwise(other: tuple[str, Any], monkeypatch: Any) -> None:
    """Where any reading can be understood, both are: the initiator reads it in the other way, or the
    responder does."""
    monkeypatch.setitem(PROFILES, "windows-2008", replace(PROFILES["windows-2012"], **dict([other])))
    crowded = IkeSettings(cookie_threshold=0 if other[0] == "cookie_exchange" else 200)
    auth = "anonymous" if other[0] == "anonymous_tokens" else "optional"
    for side in BOTH:
        mine = {f"{side}_settings": replace(crowded, authip_profile="windows-2008")}
        lives(Link(*hosts(auth=AUTHS[auth], settings=crowded, **PEOPLE, **mine)), "left")


@pytest.mark.parametrize("side", BOTH)
def test_windows_2008_with_windows_2012(side: str) -> None:
    """The profiles that there are understand each other."""
    mine = {f"{side}_settings": IkeSettings(authip_profile="windows-2008")}
    for auth in AUTHS.values():
        lives(Link(*hosts(auth=auth, **PEOPLE, **mine)), "left")


@pytest.mark.parametrize("version", [5, 6, 7, 8, 9, None])
def test_check_values_with_old_and_new_windows(version: int | None, monkeypatch: Any) -> None:
    """One side calls itself a Windows of some version: both cut check values to what that one has."""
    monkeypatch.setitem(PROFILES, "windows-2008", replace(PROFILES["windows-2012"], vendor_version=version))
    for side, (digest, whole) in product(BOTH, {"sha1": 12, "sha256": 16, "sha384": 24}.items()):
        mine = {f"{side}_settings": IkeSettings(authip_profile="windows-2008")}
        link = Link(*hosts(crypto=sets(main=f'["p256 aes128 {digest}"]'), **mine))
        link.up("net")
        link.run(5)
        agree(link, ikes=1, pairs=1)
        size = 12 if version in (5, 6, 7) else whole
        sealed = [one for one in link.flights if one.header.flags & 1]
        assert {(len(one.data) - size - 28 - 24) % 16 for one in sealed} == {0}


@pytest.mark.parametrize("nat", BOTH)
@pytest.mark.parametrize("side", [*BOTH, "both"])
def test_the_other_hash_finds_a_nat(side: str, nat: str, monkeypatch: Any) -> None:
    """And where there is none it finds none (the runs above)."""
    monkeypatch.setitem(PROFILES, "windows-2008", replace(PROFILES["windows-2012"], natd_hash="sha256"))
    settings = IkeSettings(authip_profile="windows-2008")
    mine = {"settings" if side == "both" else f"{side}_settings": settings}
    link = Link(*hosts(nat=nat, **mine), nat=nat)
    link.up("net", nat)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert main_mode(link.left).nat
    assert main_mode(link.right).nat


def test_a_salt_that_there_is_not() -> None:
    """Without salts GCM is refused, and not used with a salt of zeros; what needs none is."""
    link = Link(*hosts(crypto=sets(quick='["aes128gcm", "aes128 sha256"]')))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert "gcm" in str(link.left.pairs[0].inbound.suite)


@pytest.mark.parametrize("side", [*BOTH, "both"])
def test_without_a_salt(side: str, monkeypatch: Any) -> None:
    """Such suites are neither offered nor chosen when something else is left, and refused when not."""
    monkeypatch.setitem(PROFILES, "windows-2008", replace(PROFILES["windows-2012"], salt=False))
    settings = IkeSettings(authip_profile="windows-2008")
    mine = {"settings" if side == "both" else f"{side}_settings": settings}
    link = Link(*hosts(crypto=sets(quick='["aes128gcm", "aes128 sha256"]'), **mine))
    link.up("net")
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert "gcm" not in str(link.left.pairs[0].inbound.suite)
    alone = Link(*hosts(crypto=sets(quick='["aes128gcm"]'), **mine))
    alone.up("net")
    alone.run(60)
    agree(alone, ikes=0, pairs=0)
    assert alone.left.failures


def test_readings_show_on_the_wire(monkeypatch: Any) -> None:
    """The runs above would prove nothing if the switches did nothing."""
    reading(
        monkeypatch,
        first_sync_id="same",
        extended_reply_id=0,
        extended_exchange=243,
        cookie_exchange=243,
        names="utf-16-be",
    )
    link = Link(*with_users(settings=IkeSettings(cookie_threshold=0)))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert link.right.of(CookieDemanded)
    assert link.flights[1].header.exchange == Exchange.MAIN
    assert "host/right.example".encode("utf-16-be") in link.flights[3].data
    extended = [one.header for one in link.flights if one.header.exchange == Exchange.EXTENDED]
    assert [one.message_id for one in extended] == [1, 0, 1, 1]
    assert all(one.header.message_id == 0 for one in link.flights if one.header.exchange == Exchange.QUICK)
