"""Authentication sets and crypto sets out of their tables."""

from __future__ import annotations

import re

import pytest
from support.policies import complaints, one

from policy.rules import AuthMethod, AuthSet, CryptoSet
from policy.sets import LONGEST


def auth(keys: str) -> AuthSet:
    """A set of these keys, whole: the rule that carries it is kept for later."""
    found = one('auth = "own"\nenabled = false', sets=f"[auth.own]\n{keys}\n").auth
    assert found is not None
    return found


def crypto(keys: str) -> CryptoSet:
    """A crypto set of these keys."""
    found = one('crypto = "own"', sets=f"[crypto.own]\n{keys}\n").crypto
    assert found is not None
    return found


def wrong(kind: str, keys: str) -> str:
    """The one thing that is wrong with a set."""
    found = complaints(f"[{kind}.own]\n{keys}\n")
    assert len(found) == 1, found
    assert re.match(r"policy\.toml:[1-3]: ", found[0]), found
    return found[0].partition(": ")[2]


# Authentication ---------------------------------------------------------------------------------------------


def test_methods_keep_their_order() -> None:
    """The first is what a peer is asked for first."""
    assert [m.method for m in auth('first = ["psk", "certificate"]').first] == ["psk", "certificate"]
    assert [m.method for m in auth('first = ["certificate", "psk"]').first] == ["certificate", "psk"]


def test_a_certificate_may_be_narrowed() -> None:
    """Every key of a method arrives."""
    method = (
        '{ method = "certificate", ca = "CN=Corp CA,O=Corp", eku = ["1.3.6.1.5.5.7.3.17", "2.5.29.37.0"], '
        'signing = "ecdsa-p256", minimum_rsa_bits = 3072 }'
    )
    assert auth(f"first = [{method}]").first == (
        AuthMethod(
            "certificate",
            ca="CN=Corp CA,O=Corp",
            eku=("1.3.6.1.5.5.7.3.17", "2.5.29.37.0"),
            signing="ecdsa-p256",
            minimum_rsa_bits=3072,
        ),
    )


def test_second_lists() -> None:
    """The ready-made combinations that Windows offers can be written."""
    found = auth('first = ["kerberos", "psk"]\nsecond = ["user-kerberos", "user-ntlm", "anonymous"]')
    assert [m.method for m in found.second] == ["user-kerberos", "user-ntlm", "anonymous"]
    healthy = auth('first = ["psk"]\nsecond = [{ method = "certificate", health = true }]')
    assert healthy.second == (AuthMethod("certificate", health=True),)
    assert (found.proves_users, found.optional) == (True, True)
    assert (healthy.proves_users, healthy.optional) == (False, False)
    assert auth('first = ["anonymous"]\nsecond = ["user-ntlm"]').first == (AuthMethod("anonymous"),)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", 'auth.own.first: missing: name at least one method, such as "certificate"'),
        ("first = []", "auth.own.first: the list is empty; name a method or leave the key out"),
        ('first = "psk"', 'auth.own.first: "psk" is text; it takes ordered list of methods'),
        ("first = [5]", 'auth.own.first: 5 is neither a method name nor a table like { method = "psk" }'),
        ('first = ["pks"]', 'auth.own.first[1].method: "pks" is not a method here; did you mean "psk"?'),
        ('first = ["user-kerberos"]', '"user-kerberos" is not a method here; did you mean "kerberos"?'),
        ('first = ["psk"]\nsecond = ["psk"]', 'auth.own.second[1].method: "psk" is not a method here'),
        ('first = [{ ca = "CN=x" }]', "auth.own.first[1].method: missing: one of certificate, psk"),
        (
            'first = [{ method = "psk", health = true }]',
            'first[1].health: only a certificate has it, not "psk"',
        ),
        (
            'first = [{ method = "certificate", ca = "Corp" }]',
            'first[1].ca: "Corp" is not a distinguished name',
        ),
        ('first = [{ method = "certificate", eku = "ipsec" }]', '"ipsec" is not a dotted object identifier'),
        ('first = [{ method = "certificate", signing = "dsa" }]', '"dsa" is not one of rsa'),
        ('first = [{ method = "certificate", minimum_rsa_bits = 512 }]', "512 is not in 1024 to 16384"),
        ('first = [{ method = "certificate", key = 1 }]', "key: unknown key in an authentication method"),
        ('frist = ["psk"]', 'auth.own.frist: unknown key in an authentication set; did you mean "first"?'),
        # MS-FASP section 2.2.65
        ('first = ["psk", "psk"]', 'auth.own.first: "psk" stands in the list twice'),
        ('first = ["kerberos", "psk", "kerberos"]', '"kerberos" stands in the list twice'),
        ('first = ["ntlm", "psk"]', "ntlm and psk may not stand in one set"),
        # 2
        (
            'first = [{ method = "certificate", signing = "rsa" }, "certificate", '
            '{ method = "certificate", signing = "rsa" }]',
            "certificates with signing rsa must follow each other",
        ),
        (
            'first = ["certificate", { method = "certificate", health = true }]',
            "either all certificates of the set",
        ),
        # 3
        ('first = ["psk"]\nsecond = ["anonymous"]', "anonymous alone proves nobody"),
        ('first = ["psk"]\nsecond = ["user-ntlm", "user-ntlm"]', '"user-ntlm" stands in the list twice'),
        (
            'first = ["psk"]\nsecond = ["certificate"]',
            "a machine certificate in second must have health = true",
        ),
        (
            'first = ["psk"]\nsecond = [{ method = "user-certificate", health = true }]',
            "a user certificate is never a health certificate",
        ),
        # 4
        (
            'first = ["psk"]\nsecond = ["user-ntlm", { method = "certificate", health = true }]',
            "a health certificate and user methods may not stand in one second list",
        ),
        # MS-AIPS section 5.1.1
        ('first = ["kerberos", "anonymous"]', "own.first: anonymous proves nobody, and whoever sits between"),
        (
            'first = ["anonymous"]\nsecond = ["user-ntlm", "anonymous"]',
            "it needs a second list that does not end with anonymous",
        ),
        # 5
        ('first = ["psk"]\nsecond = ["anonymous", "user-ntlm"]', "anonymous stands last or nowhere"),
    ],
)
def test_bad_authentication_sets(keys: str, said: str) -> None:
    """Every constraint of MS-FASP section 2.2.65, and every key."""
    assert said in wrong("auth", keys)


# Crypto -----------------------------------------------------------------------------------------------------


def test_proposals_keep_their_order_and_stand_once() -> None:
    """The first is preferred; a second of the same is no other offer."""
    found = crypto('quick = ["aes256gcm", "aes128gcm", "aes256gcm16"]\nmain = ["p256 aes128 sha256"]')
    assert [str(suite) for suite in found.quick] == ["aes256gcm", "aes128gcm"]
    assert [str(suite) for suite in found.main] == ["p256 aes128 sha256"]


def test_what_is_left_out_comes_from_the_default_set() -> None:
    """A set that changes one thing says one thing."""
    default = one('remote = "10.0.0.9"').crypto
    assert default is not None
    assert crypto('quick = ["aes128gcm"]').main == default.main
    assert crypto('main = ["p256 aes128 sha256"]').quick == default.quick
    assert crypto("").lifetime == default.lifetime
    assert {suite.esn for suite in crypto("esn = false").quick} == {False}


def test_forward_secrecy_takes_the_groups_of_main_mode() -> None:
    """Each group once, unless a proposal names its own."""
    found = crypto(
        'main = ["x25519 aes128 sha256", "x25519 aes256 sha256", "p256 aes128 sha256"]\n'
        'quick = ["aes128gcm", "aes256gcm p384"]\npfs = true'
    )
    assert [str(suite) for suite in found.quick] == ["aes128gcm x25519", "aes128gcm p256", "aes256gcm p384"]
    assert all(suite.group is None for suite in crypto('quick = ["aes128gcm"]').quick)


def test_lifetimes() -> None:
    """By time, octets, packets and idleness; "never" where there is no upper bound."""
    found = crypto(
        'lifetime = { main = "4 h", quick = "30 min", idle = "10 min", quick_bytes = "20 GB", '
        "quick_packets = 1000 }"
    ).lifetime
    assert (found.main_seconds, found.quick_seconds, found.idle_seconds) == (14400, 1800, 600)
    assert (found.quick_octets, found.quick_packets) == (20 * 10**9, 1000)
    never = crypto('lifetime = { quick_bytes = "never", quick_packets = "never", idle = "never" }').lifetime
    assert (never.quick_octets, never.quick_packets, never.idle_seconds) == (None, None, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("main = 5", "crypto.own.main: 5 is a number; it takes ordered list of `group cipher hash`"),
        ('main = "aes128 sha256"', 'crypto.own.main: "aes128 sha256" names no Diffie-Hellman group'),
        ("quick = []", "crypto.own.quick: the list is empty"),
        (
            'main = ["modp768 aes128 sha256"]',
            'crypto.own.main[1]: "modp768" is refused: group 1 can be broken',
        ),
        (
            'quick = ["aes128gcm", "des sha1"]',
            'crypto.own.quick[2]: "des" is refused: DES keys can be searched',
        ),
        (
            'quick = ["3des sha1"]\nlifetime = { quick_bytes = "2 GB" }',
            "crypto.own.lifetime.quick_bytes: 3des has 64-bit blocks: at most 1 GB",
        ),
        ('quick = ["3des sha1"]\nlifetime = { quick_bytes = "never" }', "3des has 64-bit blocks"),
        ('quick = ["aes128 md5"]', '"md5" is refused: MD5 is broken (RFC 8247); use sha256'),
        ('quikc = ["aes128gcm"]', 'crypto.own.quikc: unknown key in a crypto set; did you mean "quick"?'),
        ("pfs = 1", "crypto.own.pfs: 1 is a number; it takes true or false"),
        ("lifetime = 5", "crypto.own.lifetime: 5 is a number; it takes table"),
        ('lifetime = { main = "2 d" }', '"2 d" is longer than 2879 min, the longest keys may live'),
        ('lifetime = { quick = "49 h" }', "crypto.own.lifetime.quick: "),
        ('lifetime = { quick = "never" }', '"never" is not an amount'),
        ('lifetime = { idle = "3 d" }', "crypto.own.lifetime.idle: "),
        (
            "lifetime = { quick_packets = 0 }",
            '"0" is not a number of packets; write a whole number or "never"',
        ),
        ('lifetime = { quick_packets = "many" }', '"many" is not a number of packets'),
        (
            'lifetime = { quick_byte = "1 GB" }',
            'quick_byte: unknown key in lifetime; did you mean "quick_bytes"?',
        ),
    ],
)
def test_bad_crypto_sets(keys: str, said: str) -> None:
    """Every key, with the place and the remedy."""
    assert said in wrong("crypto", keys)


def test_64_bit_blocks_are_rekeyed_early() -> None:
    """Equal blocks tell about their texts, and of so short ones there are soon two (RFC 8221)."""
    assert crypto('quick = ["aes128gcm", "3des sha1"]').lifetime.quick_octets == 10**9
    chosen = crypto('quick = ["3des sha1"]\nlifetime = { quick_bytes = "50 MB" }')
    assert chosen.lifetime.quick_octets == 50 * 10**6
    assert crypto('main = ["modp2048 3des sha1"]').lifetime.quick_octets == 100 * 10**9


def test_too_many_proposals_do_not_fit_a_message() -> None:
    """Forward secrecy multiplies them."""
    ciphers = ", ".join(
        f'"{a} {h}"' for a in ("aes128", "aes192", "aes256") for h in ("sha256", "sha384", "sha512")
    )
    groups = (
        "p256",
        "p384",
        "p521",
        "x25519",
        "x448",
        "modp2048",
        "modp3072",
        "modp4096",
        "modp6144",
        "modp8192",
    )
    mains = ", ".join(f'"{group} aes128 sha256"' for group in groups)
    assert len(crypto(f"main = [{mains}]\nquick = [{ciphers}]\npfs = true").quick) == 90
    more = ciphers + ', "aes128gcm", "aes256gcm"'
    assert "110 proposals" in wrong("crypto", f"main = [{mains}]\nquick = [{more}]\npfs = true")


@pytest.mark.parametrize("key", ["main", "quick"])
def test_longest_lifetime_is_accepted(key: str) -> None:
    """2879 minutes, as MS-FASP section 2.2.74 has it."""
    lifetime = crypto(f'lifetime = {{ {key} = "2879 min" }}').lifetime
    assert getattr(lifetime, f"{key}_seconds") == LONGEST
