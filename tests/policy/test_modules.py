"""Which keying modules and methods a rule can use, and what is said about those it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.policies import complaint, one, policy

from policy.modules import MODULES, default_keying, settle
from policy.parse import presets
from policy.rules import AuthMethod, AuthSet


def methods(first: str, second: str = "") -> AuthSet:
    """A set of methods by name."""
    return AuthSet("own", tuple(map(AuthMethod, first.split())), tuple(map(AuthMethod, second.split())))


def test_default_is_ikev2_and_authip_only_if_needed() -> None:
    """policy.md section 6.2; IKEv1 only by explicit choice."""
    assert default_keying(methods("certificate psk")) == ("ikev2",)
    assert default_keying(methods("kerberos certificate")) == ("authip", "ikev2")
    assert default_keying(methods("certificate", "user-kerberos")) == ("authip", "ikev2")


def test_order_of_modules_is_kept() -> None:
    """It is the order in which they are tried once they exist."""
    assert one('keying = ["ikev1", "ikev2"]').keying == ("ikev1", "ikev2")


def test_modules_that_are_not_available_are_left_out_aloud() -> None:
    """The rule works with what is left, and loading says with what."""
    (warning,) = policy('keying = ["ikev2", "authip"]').warnings
    assert warning == 'policy.toml:4: rule[1] "r1".keying: authip: not available yet; only ikev2 is used'


@pytest.mark.parametrize(
    ("keys", "sets", "said"),
    [
        ('keying = "authip"', "", "authip: not available yet (or set enabled = false until then)"),
        (
            'auth = "machine-and-user"',
            "",
            'no second authentication, which set "machine-and-user" asks for; only authip',
        ),
        (
            'auth = "own"',
            '[auth.own]\nfirst = ["kerberos"]',
            'it cannot do any method of set "own" (kerberos); ikev1 can',
        ),
    ],
)
def test_rule_that_nothing_can_serve_is_refused_unless_kept_for_later(
    keys: str, sets: str, said: str
) -> None:
    """It would block its traffic for ever; with `enabled = false` the file may hold it."""
    assert said in complaint(keys, f"{sets}\n")
    kept = policy(f"{keys}\nenabled = false", sets=f"{sets}\n")
    assert not kept.rules[0].enabled
    assert any(
        said.replace(" (or set enabled = false until then)", "") in warning for warning in kept.warnings
    )


def test_health_certificates_are_for_every_module() -> None:
    """A rule that demands health would be refused, or served without the demand."""
    sets = '[auth.own]\nfirst = [{ method = "certificate", health = true }]\n'
    for keying in ("ikev2", "ikev1"):
        loaded = policy(f'auth = "own"\nkeying = "{keying}"', sets=sets)
        assert loaded.rules[0].auth is not None
        assert [(one.method, one.health) for one in loaded.rules[0].auth.first] == [("certificate", True)]
        assert not loaded.warnings


def test_kerberos_is_for_ikev1() -> None:
    """A rule for a realm's peers; where IKEv2 may be used, too, each protocol has its own method."""
    sets = '[auth.own]\nfirst = ["kerberos", "certificate"]\n'
    for keying in ('"ikev1"', '["ikev2", "ikev1"]'):
        loaded = policy(f'auth = "own"\nkeying = {keying}', sets=sets)
        assert loaded.rules[0].auth is not None
        assert [method.method for method in loaded.rules[0].auth.first] == ["kerberos", "certificate"]
        assert not loaded.warnings
    assert settle(methods("kerberos"), ("ikev1",)).refusals == ()
    (warning,) = settle(methods("kerberos"), ("ikev2", "ikev1")).warnings
    assert warning == 'ikev2: it cannot do any method of set "own" (kerberos); ikev1 can; only ikev1 is used'


def test_methods_that_are_not_available_are_left_out_aloud() -> None:
    """Certificates go on where Kerberos cannot be; no part of the daemon sees what it cannot do."""
    loaded = policy('auth = "own"', sets='[auth.own]\nfirst = ["kerberos", "certificate"]\n')
    rule = loaded.rules[0]
    assert rule.auth is not None
    assert [method.method for method in rule.auth.first] == ["certificate"]
    (warning,) = loaded.warnings
    assert 'over ikev2: authentication by kerberos (set "own"); only certificate is used' in warning


def test_available_modules_refuse_nothing() -> None:
    """What this build has is usable without a word."""
    settled = settle(methods("certificate psk"), ("ikev2",))
    assert settled == type(settled)(("ikev2",), methods("certificate psk"))
    assert [module.name for module in MODULES.values() if module.available] == ["ikev2", "ikev1"]


NO_FORM = [
    ('main = ["x25519 aes128 sha256", "p256 aes128gcm sha256"]', "any main proposal", "p256 aes256 sha256"),
    ('quick = ["chacha20poly1305", "aes128gcm x25519"]', "any quick proposal", '"aes128gcm"'),
]


@pytest.mark.parametrize(("keys", "said", "remedy"), NO_FORM)
def test_ikev1_needs_suites_it_has_numbers_for(
    monkeypatch: pytest.MonkeyPatch, keys: str, said: str, remedy: str
) -> None:
    """Negotiation could not even begin; with another module beside it, that one is used and it is said."""
    monkeypatch.setitem(MODULES, "ikev1", replace(MODULES["ikev1"], available=True))
    sets = f"[crypto.own]\n{keys}\n"
    found = complaint('crypto = "own"\nkeying = "ikev1"', sets)
    assert f'ikev1: it has no form of {said} of crypto set "own"; add one' in found
    assert remedy in found
    loaded = policy('crypto = "own"\nkeying = ["ikev1", "ikev2"]', sets=sets)
    assert any(said in warning and "only ikev2 is used" in warning for warning in loaded.warnings)
    assert not policy('crypto = "own"', sets=sets).warnings


@pytest.mark.parametrize("name", sorted(presets().crypto))
def test_built_in_sets_serve_ikev1(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """All but "modern", whose suites came after IKEv1."""
    monkeypatch.setitem(MODULES, "ikev1", replace(MODULES["ikev1"], available=True))
    settled = settle(methods("certificate psk"), ("ikev1",), presets().crypto[name])
    assert bool(settled.refusals) is (name == "modern")
