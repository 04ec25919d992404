"""ikd.authip.profile: no switch is dead, all are documented, and in every reading two hosts come together.

If one of these fails, a capture of a Windows host cannot be answered by changing one line of the profile."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from support import authip
from support.authip import CERTIFICATE, EXTENDED, well
from support.link import Link, mirrored, story
from support.phases import sets

from ikd.authip.numbers import Exchange
from ikd.authip.profile import PROFILES, Profile
from ikd.events import Broken
from ikd.isakmp.conversations import MOST_TALKS
from ikd.settings import IkeSettings

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [one.name for one in fields(Profile)]
DEFAULT = PROFILES["windows-2012"]

# Another reading of each field than the default
OTHER: dict[str, Any] = {
    "natd_hash": "sha256",
    "first_sync_id": "same",
    "extended_reply_id": 0,
    "clear_iv": False,
    "spn": "RestrictedKrbHost",
    "ecdsa_methods": False,
    "vendor_version": 7,
    "announces_modules": False,
    "announces_group": False,
    "method_attribute": 3,
    "extended_exchange": 243,
    "anonymous_tokens": False,
    "length_prefixes": True,
    "kerberos_key": 16,
    "tls_key": "eap-key-block",
    "transcript": "payloads",
    "authentication_key_first": False,
    "salt": False,
    "fast_quick": True,
    "later_nonce": False,
    "later_hash": False,
    "cookie_exchange": 243,
    "drops_every_ikev1": True,
    "failed_attempts_count": False,
    "auth1_hashed": False,
    "auth_inside": False,
    "sync_in_extended": True,
    "short_icv": "received",
    "crypto_id": "little",
    "first_new": False,
    "names": "utf-16-be",
    "ack_echoes": False,
    "icv_key": "e",
}
# What both ends have to have in common; with the message that fails otherwise
UNVERIFIED, REFUSED, UNEQUAL = "unverified", "13870", "other keys"
DECISIVE = {
    "length_prefixes": UNVERIFIED,
    "crypto_id": UNVERIFIED,
    "icv_key": UNVERIFIED,
    "tls_key": UNVERIFIED,
    "transcript": REFUSED,
    "auth1_hashed": REFUSED,
    "auth_inside": REFUSED,
    "sync_in_extended": REFUSED,
    "authentication_key_first": UNEQUAL,
}


# Nothing dead, nothing undocumented ------------------------------------------------------------------------


def read_fields(tree: ast.AST) -> Iterator[str]:
    """Names of what is read of a `profile`, or of a row of `PROFILES`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            match node.value:
                case ast.Name(id="profile") | ast.Attribute(attr="profile"):
                    yield node.attr
                case ast.Subscript(value=ast.Name(id="PROFILES")):
                    yield node.attr


def test_every_switch_is_connected() -> None:
    """One that nothing reads lets us believe that we have tried the other reading."""
    sources = [*(ROOT / "ikd" / "authip").glob("*.py"), ROOT / "ikd" / "endpoint.py"]
    used = {name for path in sources for name in read_fields(ast.parse(path.read_text(encoding="utf-8")))}
    assert set(FIELDS) <= used
    assert set(OTHER) == set(FIELDS)
    assert all(getattr(DEFAULT, name) != value for name, value in OTHER.items())


@pytest.mark.parametrize("page", ["interop-windows.md", "domain-isolation.md"])
def test_every_switch_is_documented(page: str) -> None:
    """Who has a capture looks there for what it settles; a name that is gone would send them astray."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    missing = [name for name in FIELDS if f"`{name}`" not in text]
    assert not missing


def test_the_table_has_the_choices_of_the_profile() -> None:
    """docs/interop-windows.md, section AuthIP: each row has its OQ number, the value that is chosen and its
    field, as ikd/authip/profile.py has them."""
    text = (ROOT / "docs" / "interop-windows.md").read_text(encoding="utf-8")
    section = text.partition("\n## AuthIP\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| ([^|]*) \| .*`([^`|]*)`[^|`]* \| `(\w+)` \|$", section, re.MULTILINE)
    source = (ROOT / "ikd" / "authip" / "profile.py").read_text(encoding="utf-8")
    numbers = dict(re.findall(r"^    (\w+): .*# (OQ-\d+)", source, re.MULTILINE)) | {"tls_key": "OQ-18"}
    assert {field: (number, value) for number, value, field in rows} == {
        name: (numbers.get(name, "–"), str(getattr(DEFAULT, name)).lower()) for name in FIELDS
    }


def test_profiles_are_what_the_settings_offer() -> None:
    """A name in ikd.toml that has no row would stop the daemon at its first peer."""
    assert IkeSettings().authip_profile in PROFILES
    assert PROFILES["windows-2012"] == Profile()
    assert PROFILES["windows-2008"] == replace(
        Profile(), ecdsa_methods=False, announces_modules=False, announces_group=False
    )


# Readings that both ends must share (those of one end alone: scenarios/test_authip_profiles) ---------------

ANONYMOUS = EXTENDED.replace('["certificate"]', '["anonymous"]')


def negotiated(auth: str, other: str, left: bool = True, right: bool = True, **how: Any) -> Link:
    """Two hosts, of which one or both have another reading of a field, after they have tried it."""
    PROFILES["other"] = replace(DEFAULT, **{other: OTHER[other]})
    try:
        settings, usual = IkeSettings(authip_profile="other"), IkeSettings()
        how = {"left": well("left"), "right": well("right")} | how
        made = authip.hosts(
            auth=auth,
            left_settings=settings if left else usual,
            right_settings=settings if right else usual,
            **how,
        )
        link = Link(*made)
        link.up()
        link.run(4)
        if link.left.pairs:
            link.rekey_child(link.left)
            link.run(2)
    finally:
        del PROFILES["other"]
    assert not any(one.of(Broken) for one in (link.left, link.right)), story(link)
    return link


@pytest.mark.parametrize("ends", [(True, False), (False, True)], ids=["initiator", "responder"])
@pytest.mark.parametrize("field", DECISIVE)
def test_one_end_in_another_reading_of_what_must_agree(field: str, ends: tuple[bool, bool]) -> None:
    """A switch that does not reach the octets, the keys or the proofs would make no difference here; and the
    error is the one that docs/domain-isolation.md tells to look for."""
    link = negotiated(EXTENDED, field, *ends)
    assert not mirrored(link.left, link.right)
    if DECISIVE[field] == UNEQUAL:
        assert link.left.pairs
        assert link.right.pairs
        return
    assert not link.left.pairs
    assert not link.right.pairs
    if DECISIVE[field] == UNVERIFIED:
        assert UNVERIFIED in link.right.drops
    else:
        assert REFUSED in link.left.failures[0].reason


# Single switches -------------------------------------------------------------------------------------------


def exchanges(link: Link) -> list[int]:
    """Exchange types of what both have sent, in order."""
    return [one.header.exchange for one in link.flights]


def test_anonymous_without_tokens() -> None:
    """OQ-15: quick mode begins right behind the second message; one round trip less, and whoever reads it
    the other way takes it, too."""
    usual = negotiated(ANONYMOUS, "natd_hash")
    assert exchanges(usual)[:6] == [Exchange.MAIN] * 6
    for ends in ((True, True), (True, False)):
        link = negotiated(ANONYMOUS, "anonymous_tokens", *ends)
        assert exchanges(link)[:5] == [Exchange.MAIN] * 4 + [Exchange.QUICK]
        assert link.flights[2].header.flags == 1  # the third message is encrypted already


def test_check_values_are_short_as_soon_as_one_end_is_old() -> None:
    """OQ-33: whichever end announces Windows 7, both cut all of theirs to 12 octets; SHA-256 has 16."""
    for ends, size in (((True, False), 12), ((False, True), 12), ((False, False), 16)):
        link = negotiated(CERTIFICATE, "vendor_version", *ends)
        encrypted = [len(one.data) for one in link.flights if one.header.flags]
        assert encrypted
        assert {(one - 28 - 8 - 16 - size) % 16 for one in encrypted} == {0}


@pytest.mark.parametrize("auth", [CERTIFICATE, EXTENDED], ids=["machine", "extended"])
def test_fast_quick_mode_has_no_synchronisation(auth: str) -> None:
    """OQ-22: neither the initiator's nor an answer to what was never sent, with extended mode right behind
    the first quick mode; and the responder sends on the pair in the end."""
    PROFILES["other"] = replace(DEFAULT, fast_quick=True)
    try:
        link = Link(
            *authip.hosts(
                auth=auth,
                left=well("left"),
                right=well("right"),
                left_settings=IkeSettings(authip_profile="other"),
            )
        )
        link.up()
        link.run(60)
    finally:
        del PROFILES["other"]
    assert Exchange.QUICK not in exchanges(link)
    assert mirrored(link.left, link.right)
    assert not link.left.drops + link.right.drops
    assert not link.right.pairs[0].standby


def test_later_fast_quick_modes_come_to_an_end() -> None:
    """They would stay open for good, until there are so many that no quick mode is answered any more; and
    what each has replaced would not be dropped."""
    PROFILES["other"] = replace(DEFAULT, fast_quick=True)
    try:
        link = Link(*authip.hosts(left_settings=IkeSettings(authip_profile="other")))
        link.up()
        for _ in range(MOST_TALKS + 2):
            link.run(2)
            link.rekey_child(link.left)
        link.run(40)
    finally:
        del PROFILES["other"]
    assert mirrored(link.left, link.right)
    assert not link.left.drops + link.right.drops
    assert not authip.main_mode(link.right).talks.open
    assert [one.standby for one in link.right.pairs] == [False]


def test_without_salt_what_needs_one_is_refused() -> None:
    """OQ-21: a salt of zero would be a nonce that comes again under the same key."""
    crypto = sets(quick='["aes128gcm"]')
    link = negotiated(CERTIFICATE, "natd_hash", crypto=crypto)
    assert link.left.pairs
    for ends in ((True, True), (True, False), (False, True)):
        link = negotiated(CERTIFICATE, "salt", *ends, crypto=crypto)
        assert not link.left.pairs + link.right.pairs, ends
