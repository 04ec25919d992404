"""Which keying modules and methods a rule can use, and what is said about those it cannot."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.policies import complaint, one, policy

from policy.modules import MODULES, default_keying, settle
from policy.parse import presets
from policy.rules import AuthMethod, AuthSet

HEALTH = '{ method = "certificate", health = true }'


def methods(first: str, second: str = "") -> AuthSet:
    """A set of methods by name."""
    return AuthSet("own", tuple(map(AuthMethod, first.split())), tuple(map(AuthMethod, second.split())))


def test_default_is_ikev2_and_authip_only_if_needed() -> None:
    """IKEv1 only by explicit choice."""
    assert default_keying(methods("certificate psk")) == ("ikev2",)
    assert default_keying(methods("kerberos certificate")) == ("authip", "ikev2")
    assert default_keying(methods("certificate", "user-kerberos")) == ("authip", "ikev2")


def test_order_of_modules_is_kept() -> None:
    """It is the order in which they are tried once they exist."""
    assert one('keying = ["ikev1", "ikev2"]').keying == ("ikev1", "ikev2")


def test_modules_that_cannot_are_left_out_aloud() -> None:
    """The rule works with what is left, and loading says with what."""
    sets = '[auth.own]\nfirst = ["psk"]\n'
    loaded = policy('auth = "own"\nkeying = ["ikev2", "authip"]', sets=sets)
    (warning,) = loaded.warnings
    assert warning.endswith(
        'rule[1] "r1".keying: authip: it cannot do any method of set "own" (psk); ikev2 and ikev1 can; '
        "only ikev2 is used"
    )
    assert loaded.rules[0].keying == ("ikev2",)


@pytest.mark.parametrize("second", ['"user-kerberos"', '"user-ntlm", "anonymous"', HEALTH])
def test_no_module_without_second_authentication_carries_a_rule_that_asks_for_it(second: str) -> None:
    """A peer that comes over another protocol would get in with its machine alone."""
    sets = f'[auth.own]\nfirst = ["certificate"]\nsecond = [{second}]\n'
    for keying in ('["ikev2", "authip", "ikev1"]', '["authip", "ikev2"]'):
        loaded = policy(f'remote = "10.0.0.9"\nauth = "own"\nkeying = {keying}', sets=sets)
        assert loaded.rules[0].keying == ("authip",)
        assert "ikev2: it has no second authentication" in loaded.warnings[0]
        ends = ip_address("10.0.0.5"), ip_address("10.0.0.9")
        assert [len(loaded.for_peer(*ends, module)) for module in ("ikev2", "ikev1", "authip")] == [0, 0, 1]
    quiet = policy('auth = "own"', sets=sets)
    assert (quiet.rules[0].keying, quiet.warnings) == (("authip",), ())


@pytest.mark.parametrize(
    ("keys", "sets", "said"),
    [
        (
            'auth = "own"\nkeying = "authip"',
            '[auth.own]\nfirst = ["psk"]',
            'authip: it cannot do any method of set "own" (psk); ikev2 and ikev1 can',
        ),
        (
            'auth = "machine-and-user"\nkeying = ["ikev2", "ikev1"]',
            "",
            'ikev1: it has no second authentication, which set "machine-and-user" asks for; only authip has',
        ),
        (
            'auth = "own"\nkeying = "ikev2"',
            '[auth.own]\nfirst = ["kerberos"]',
            'it cannot do any method of set "own" (kerberos); authip and ikev1 can',
        ),
        (
            'auth = "own"\nkeying = "ikev1"',
            '[auth.own]\nfirst = ["ntlm"]',
            'it cannot do any method of set "own" (ntlm); authip can',
        ),
    ],
)
def test_rule_that_nothing_can_serve_is_refused_unless_kept_for_later(
    keys: str, sets: str, said: str
) -> None:
    """It would block its traffic for ever; with `enabled = false` the file may hold it."""
    found = complaint(keys, f"{sets}\n")
    assert said in found
    assert found.endswith("(or set enabled = false)")
    kept = policy(f"{keys}\nenabled = false", sets=f"{sets}\n")
    assert not kept.rules[0].enabled
    assert any(said in warning for warning in kept.warnings)


def test_each_module_uses_what_it_can_do() -> None:
    """Kerberos over AuthIP or IKEv1, the certificate over IKEv2: nothing is lost and nothing said."""
    sets = '[auth.own]\nfirst = ["kerberos", "certificate"]\n'
    for keying in ('"ikev1"', '["ikev2", "ikev1"]', '["authip", "ikev2"]', '["authip", "ikev1"]'):
        loaded = policy(f'auth = "own"\nkeying = {keying}', sets=sets)
        assert loaded.rules[0].auth is not None
        assert [method.method for method in loaded.rules[0].auth.first] == ["kerberos", "certificate"]
        assert not loaded.warnings
    assert settle(methods("kerberos"), ("ikev1",)).refusals == ()
    settled = settle(methods("kerberos"), ("ikev2", "ikev1"))
    assert settled.keying == ("ikev1",)
    assert settled.warnings == (
        'ikev2: it cannot do any method of set "own" (kerberos); authip and ikev1 can; only ikev1 is used',
    )


def test_methods_that_no_module_of_the_rule_can_do_are_left_out_aloud() -> None:
    """Certificates go on where Kerberos cannot be; no part of the daemon sees what it cannot do."""
    loaded = policy(
        'auth = "own"\nkeying = "ikev2"', sets='[auth.own]\nfirst = ["kerberos", "certificate"]\n'
    )
    rule = loaded.rules[0]
    assert rule.auth is not None
    assert [method.method for method in rule.auth.first] == ["certificate"]
    (warning,) = loaded.warnings
    assert 'over ikev2: authentication by kerberos (set "own"); only certificate is used' in warning
    (warning,) = policy('keying = "authip"').warnings
    assert 'over authip: authentication by psk (set "default"); only certificate is used' in warning


@pytest.mark.parametrize("module", MODULES)
def test_health_certificates_are_for_every_module(module: str) -> None:
    """They are certificates with one more extended key usage."""
    loaded = policy(f'auth = "own"\nkeying = "{module}"', sets=f"[auth.own]\nfirst = [{HEALTH}]\n")
    assert loaded.rules[0].auth is not None
    assert loaded.rules[0].auth.first[0].health
    assert not loaded.warnings


def test_what_every_module_can_do_is_settled_without_a_word() -> None:
    """The plain case, unchanged."""
    settled = settle(methods("certificate psk"), ("ikev2",))
    assert settled == type(settled)(("ikev2",), methods("certificate psk"))
    for first in ("certificate", "kerberos", "ntlm", "certificate kerberos ntlm"):
        settled = settle(methods(first, "user-certificate user-ntlm user-kerberos"), ("authip",))
        assert (settled.keying, settled.refusals, settled.warnings) == (("authip",), (), ())


@pytest.mark.parametrize(
    ("crypto", "said"),
    [
        ("", None),
        ('crypto = "default"', None),
        (
            'crypto = "compatible-2012"',
            "AuthIP cannot negotiate groups: p384 is proposed, never p256, modp2048",
        ),
        ('crypto = "several"', "AuthIP cannot negotiate groups: p256 is proposed, never modp2048"),
        ('crypto = "single"', None),
    ],
)
def test_authip_proposes_one_group(crypto: str, said: str | None) -> None:
    """A peer that has only the second group is never reached; who wrote the list must hear of it once."""
    sets = (
        '[crypto.several]\nmain = ["x25519 aes128 sha256", "p256 aes128 sha256", "modp2048 aes128 sha256"]\n'
        '[crypto.single]\nmain = ["x25519 aes128 sha256", "p256 aes256 sha256", "p256 aes128 sha256"]\n'
    )
    loaded = policy(f'keying = ["authip", "ikev2"]\n{crypto}', sets=sets)
    found = [warning for warning in loaded.warnings if "groups" in warning]
    assert [warning.partition('"r1".crypto: ')[2] for warning in found] == ([said] if said else [])
    assert not any("groups" in one for one in policy(f'keying = "ikev2"\n{crypto}', sets=sets).warnings)


NO_FORM = [
    ('main = ["x25519 aes128 sha256", "p256 aes128gcm sha256"]', "any main proposal", "p256 aes256 sha256"),
    ('quick = ["chacha20poly1305", "aes128gcm x25519"]', "any quick proposal", '"aes128gcm"'),
]


@pytest.mark.parametrize("module", ["ikev1", "authip"])
@pytest.mark.parametrize(("keys", "said", "remedy"), NO_FORM)
def test_old_modules_need_suites_they_have_numbers_for(
    module: str, keys: str, said: str, remedy: str
) -> None:
    """Negotiation could not even begin; with another module beside it, that one is used and it is said."""
    sets = f"[crypto.own]\n{keys}\n"
    found = complaint(f'crypto = "own"\nkeying = "{module}"', sets)
    assert f'{module}: it has no form of {said} of crypto set "own"; add one' in found
    assert remedy in found
    loaded = policy(f'crypto = "own"\nkeying = ["{module}", "ikev2"]', sets=sets)
    assert loaded.rules[0].keying == ("ikev2",)
    assert any(said in warning and "only ikev2 is used" in warning for warning in loaded.warnings)
    assert not policy('crypto = "own"', sets=sets).warnings


@pytest.mark.parametrize("name", sorted(presets().crypto))
def test_built_in_sets_serve_old_modules(name: str) -> None:
    """All but "modern", whose suites came after IKEv1."""
    for module in ("ikev1", "authip"):
        settled = settle(methods("certificate"), (module,), presets().crypto[name])
        assert bool(settled.refusals) is (name == "modern")
