"""The built-in sets: what other implementations propose by default must be among them."""

from __future__ import annotations

import pytest
from support.policies import one

from policy.parse import presets
from policy.values import main_suite, quick_suite

DEFAULT = presets().crypto["default"]


@pytest.mark.parametrize(
    "proposal",
    [
        "aes128-sha256-x25519",
        "aes256gcm16-prfsha384-x25519",
        "aes128-sha256-ecp256",
        "aes256-sha256-ecp256",
        "aes128-sha256-modp2048",
        "aes256-sha256-modp2048",
        "aes256-sha384-ecp384",
        "aes256gcm16-prfsha384-ecp384",
        "aes256gcm16-prfsha384-ecp256",
        "aes128gcm16-prfsha256-modp2048",
        "aes256-sha256-modp3072",
        "chacha20poly1305-prfsha256-x25519",
    ],
)
def test_default_main_mode_meets_strongswan_and_windows(proposal: str) -> None:
    """Interoperating must not begin with editing crypto sets."""
    assert main_suite(proposal) in DEFAULT.main


@pytest.mark.parametrize(
    "proposal", ["aes128gcm16", "aes256gcm16", "chacha20poly1305", "aes128-sha256", "aes256-sha256"]
)
def test_default_quick_mode_meets_strongswan_and_windows(proposal: str) -> None:
    """The same for the SAs that carry packets."""
    assert quick_suite(proposal) in DEFAULT.quick


def test_default_has_nothing_old_and_always_encrypts() -> None:
    """The default is the safe one; what is old has to be asked for."""
    assert not DEFAULT.deprecated
    assert all(suite.encryption and suite.encryption.encrypts for suite in DEFAULT.quick)
    assert DEFAULT.main[0].encryption.aead


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("default", ()),
        ("modern", ()),
        ("compatible-2012", ()),
        ("compatible-2008", ("sha1",)),
        ("compatible-xp", ("modp1024", "3des", "sha1")),
    ],
)
def test_what_is_old_is_in_the_sets_for_old_machines_only(name: str, old: tuple[str, ...]) -> None:
    """3DES and group 2 for machines that have nothing else; whoever names that set is warned."""
    assert set(presets().crypto[name].deprecated) == set(old)


@pytest.mark.parametrize("name", ["compatible-2012", "compatible-2008", "compatible-xp"])
def test_sets_for_windows_serve_ikev1(name: str) -> None:
    """Those machines speak it: what it has no numbers for would be dead, and so would extended numbers. What
    two such systems agree on must not be the weakest they have in common."""
    found = presets().crypto[name]
    assert all(suite.ikev1 for suite in (*found.main, *found.quick))
    assert not any(suite.esn for suite in found.quick)
    keys = [suite.encryption.key for suite in found.quick if suite.encryption and suite.encryption.encrypts]
    assert keys[0] == max(keys)


@pytest.mark.parametrize(
    ("name", "mains", "quicks"),
    [
        # what L2TP clients of Windows 7 and later propose for themselves, but for 3DES and group 2
        (
            "compatible-2008",
            ("p384 aes256 sha1", "p256 aes128 sha1", "modp2048 aes256 sha1"),
            ("aes256 sha1", "aes128 sha1", "null sha1"),
        ),
        ("compatible-xp", ("modp2048 3des sha1", "modp1024 3des sha1"), ("3des sha1",)),
    ],
)
def test_sets_meet_what_those_machines_propose(
    name: str, mains: tuple[str, ...], quicks: tuple[str, ...]
) -> None:
    """A set named after a system that does not connect to it is a trap."""
    found = presets().crypto[name]
    assert {main_suite(text) for text in mains} <= set(found.main)
    assert {quick_suite(text, esn=False) for text in quicks} <= set(found.quick)


def test_names_of_the_interface_exist() -> None:
    """docs/policy.md promises these."""
    sets = presets()
    assert set(sets.auth) == {"default", "machine-and-user"}
    assert set(sets.crypto) == {"default", "modern", "compatible-2012", "compatible-2008", "compatible-xp"}
    assert not sets.wrong
    assert all(suite.group for suite in sets.crypto["modern"].quick)


def test_proposals_fit_one_datagram() -> None:
    """The first message of an initiator must not need IP fragments: an IKEv2 proposal is some 44 octets."""
    assert len(DEFAULT.main) * 44 < 800
    assert one('remote = "10.0.0.9"').crypto == DEFAULT
