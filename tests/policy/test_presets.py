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


def test_compatible_set_has_what_is_not_refused() -> None:
    """SHA-1 and group 14 for machines of 2008; DES, 3DES, MD5 and group 2 stay refused."""
    old = presets().crypto["compatible-2008"]
    assert old.deprecated
    assert {"sha1"} <= {suite.prf.name for suite in old.main}
    assert {suite.group.name for suite in old.main} == {"modp2048", "p256", "p384"}
    assert not any(suite.esn for suite in old.quick)


def test_names_of_the_interface_exist() -> None:
    """interface.md promises these."""
    sets = presets()
    assert set(sets.auth) == {"default", "machine-and-user"}
    assert set(sets.crypto) == {"default", "modern", "compatible-2008"}
    assert not sets.wrong
    assert all(suite.group for suite in sets.crypto["modern"].quick)


def test_proposals_fit_one_datagram() -> None:
    """The first message of an initiator must not need IP fragments: an IKEv2 proposal is some 44 octets."""
    assert len(DEFAULT.main) * 44 < 800
    assert one('remote = "10.0.0.9"').crypto == DEFAULT
