"""Rules out of their keys: defaults, names, addresses, tunnels, sets, and the shortest that do a job."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from support.policies import complaint, complaints, one, policy, table

from policy.load import parse
from policy.parse import compose
from policy.rules import AuthMethod, Lifetimes, Tunnel
from sadb.sa import Action, Level, Mode

HOST = 'name = "db"\nremote = "10.0.0.9"\nsecurity = "require"\npeer = "db.corp.example"'
PORT = 'name = "sql"\nprotocol = "tcp"\nlocal_port = 1433\nsecurity = "require"'
SITE = (
    'name = "branch"\nlocal = "10.1.0.0/16"\nremote = "10.2.0.0/16"\n'
    'tunnel = { local = "192.0.2.1", remote = "198.51.100.7" }\nsecurity = "require"\npeer = "vpn.example"'
)


@pytest.mark.parametrize("rule", [HOST, PORT, SITE])
def test_common_cases_are_short(rule: str) -> None:
    """Host to host, a port of a server, site to site: under ten lines, complete, without a warning."""
    text = table(rule).strip()
    assert len(text.splitlines()) < 10
    loaded = parse(text)
    assert not loaded.warnings
    assert loaded.rules[0].crypto
    assert loaded.rules[0].auth


def test_defaults_are_the_safe_ones() -> None:
    """A rule with a name only requires protection of everything, both ways, with the default sets."""
    rule = one('name = "x"')
    assert (rule.action, rule.inbound, rule.outbound) == (Action.SECURE, Level.REQUIRE, Level.REQUIRE)
    assert (rule.mode, rule.tunnel, rule.enabled, rule.offload) == (Mode.TRANSPORT, None, True, True)
    assert (rule.peer, rule.allow, rule.deny, rule.encrypt) == (None, None, None, False)
    assert rule.keying == ("ikev2",)
    assert (
        {str(s) for s in rule.selector.remote}
        == {"0.0.0.0/0", "::/0"}
        == {str(s) for s in rule.selector.local}
    )
    assert rule.auth is not None
    assert rule.auth.first == (AuthMethod("certificate"), AuthMethod("psk"))
    assert rule.crypto is not None
    assert rule.crypto.lifetime == Lifetimes()
    assert rule.source == "policy.toml:2"


@pytest.mark.parametrize("action", ["permit", "block"])
def test_rules_that_do_not_secure_have_no_sets(action: str) -> None:
    """Nothing is negotiated for them."""
    rule = one(f'action = "{action}"')
    assert (rule.inbound, rule.outbound, rule.auth, rule.crypto) == (Level.NONE, Level.NONE, None, None)
    assert not rule.secures
    assert not one('security = "none"').secures


def test_security_stands_for_both_levels() -> None:
    """The shorthand and the long form mean the same."""
    short, long = one('security = "request"'), one('inbound = "request"\noutbound = "request"')
    assert (short.inbound, short.outbound) == (long.inbound, long.outbound) == (Level.REQUEST, Level.REQUEST)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ('""', "1 to 255 printable characters"),
        ('"a|b"', "1 to 255 printable characters"),
        ('"a\\nb"', "1 to 255 printable characters"),
        (f'"{"x" * 256}"', "1 to 255 printable characters"),
        ('"ALL"', "has a meaning of its own"),
        ('"exempt: loopback"', "has a meaning of its own"),
        ("5", "5 is a number; it takes text"),
    ],
)
def test_bad_names(name: str, said: str) -> None:
    """Commands and logs must be able to use a name, and built-in rules keep theirs."""
    (found,) = complaints(f"[[rule]]\nname = {name}\n")
    assert said in found


def test_names_are_unique_over_all_files() -> None:
    """The second place is complained about, with the first."""
    with pytest.raises(Exception, match="names are unique") as caught:
        compose((("policy.toml", table('name = "x"')), ("policy.d/a.toml", table('name = "x"'))))
    assert str(caught.value) == (
        'policy.d/a.toml:3: rule[1] "x".name: there is another rule of this name, at policy.toml:2; '
        "names are unique"
    )


def test_sets_are_unique_over_all_files() -> None:
    """Which one a rule means must not depend on the order of files."""
    with pytest.raises(Exception, match=r"another set of this name, at a\.toml:1"):
        compose((("a.toml", "[crypto.x]\n"), ("b.toml", "[crypto.x]\n")))
    assert compose((("a.toml", "[crypto.x]\n"), ("b.toml", '[auth.x]\nfirst = ["psk"]\n'))) is not None


def test_a_set_replaces_a_built_in_one() -> None:
    """`[crypto.default]` changes all rules that name no set."""
    rule = one('remote = "10.0.0.9"', sets='[crypto.default]\nquick = ["aes256gcm"]\n')
    assert rule.crypto is not None
    assert [str(suite) for suite in rule.crypto.quick] == ["aes256gcm"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('crypto = "modem"', 'rule[1] "r1".crypto: there is no crypto set "modem"; did you mean "modern"?'),
        (
            'auth = "kerberos"',
            'rule[1] "r1".auth: there is no auth set "kerberos"; known: default, machine-and-user',
        ),
        ('keying = "ikv2"', 'rule[1] "r1".keying: unknown keying module "ikv2"; did you mean "ikev2"?'),
        ('keying = ["ikev2", "ikev2"]', '"r1".keying: a module stands in the list twice'),
        ('peer = "CN"\n', ""),
        ('peer = "CN=a,b"', '"r1".peer: "CN=a,b" is not an identity: a name, address'),
        ('allow = { users = ["group:CORP*"] }', "a group is a whole name or SID"),
        ('peer = "group:CORP"', "is a group, and the peer is one host"),
        ('peer = "group:"', "is a group, and the peer is one host"),
        ('peer = "db corp"', '"r1".peer: "db corp" is not an identity'),
        ("allow = {}", '"r1".allow: it lists nobody; write { machines = ["*.example"] } or leave it out'),
        ('allow = { machines = [""] }', '"r1".allow.machines[1]: "" is not an identity'),
    ],
)
def test_names_that_lead_nowhere(keys: str, said: str) -> None:
    """A dangling name is never the default instead."""
    if said:
        assert said in complaint(keys)
    else:
        assert one(keys).peer == "CN"


def test_guaranteed_encryption_leaves_integrity_out() -> None:
    """`encrypt = true` must hold even if the set has proposals that do not encrypt."""
    sets = '[crypto.own]\nquick = ["null sha256", "aes128gmac", "ah sha256", "aes128 sha256", "aes128gcm"]\n'
    rule = one('encrypt = true\ncrypto = "own"', sets=sets)
    assert rule.crypto is not None
    assert [str(suite) for suite in rule.crypto.quick] == ["aes128 sha256", "aes128gcm"]
    said = complaint('encrypt = true\ncrypto = "own"', sets='[crypto.own]\nquick = ["null sha256"]\n')
    assert 'no quick proposal of crypto set "own" encrypts' in said


def test_old_algorithms_are_offered_with_a_warning() -> None:
    """SHA-1, 3DES and group 2 only when a policy names them, and then it is said."""
    (warning,) = policy('crypto = "compatible-2008"').warnings
    assert 'crypto: set "compatible-2008" has sha1, for old peers only (RFC 8221, RFC 8247)' in warning
    (warning,) = policy('crypto = "compatible-xp"').warnings
    assert 'set "compatible-xp" has 3des, sha1, modp1024, for old peers only' in warning
    (warning,) = policy('crypto = "own"', sets='[crypto.own]\nquick = ["aes128gcm modp1024"]\n').warnings
    assert 'set "own" has modp1024' in warning
    assert not policy('crypto = "modern"').warnings
    assert not policy('remote = "10.0.0.9"').warnings


def test_aggressive_mode_is_asked_for_by_name_and_warned_about() -> None:
    """It shows identities and lets strangers guess keys: nobody gets it unasked or without a word."""
    assert not one('keying = ["ikev2", "ikev1"]').aggressive
    assert not one('keying = ["ikev2", "ikev1"]\naggressive = false').aggressive
    sets = '[crypto.own]\nmain = ["modp2048 aes128 sha1", "p256 aes256 sha256"]\n'
    keys = 'keying = ["ikev2", "ikev1"]\naggressive = true\ncrypto = "own"\n'
    loaded = policy(keys, sets=sets)
    assert loaded.rules[0].aggressive
    said = [warning for warning in loaded.warnings if '"r1".aggressive: ' in warning]
    assert (
        "identities in the clear, and anybody who asks gets what it takes to guess the pre-shared" in said[0]
    )
    assert "cannot negotiate groups: modp2048 is proposed, never p256" in said[1]
    sets += '[auth.own]\nfirst = ["certificate"]\n'
    said = [w for w in policy(keys + 'auth = "own"', sets=sets).warnings if '"r1".aggressive: ' in w]
    assert "guess" not in said[0]


@pytest.mark.parametrize("keying", ["", 'keying = "ikev2"\n'])
def test_aggressive_mode_without_ikev1_is_a_mistake(keying: str) -> None:
    """The rule would never do what it says."""
    said = complaint(f"{keying}aggressive = true")
    assert 'aggressive: only IKEv1 has aggressive mode; add "ikev1" to keying, or leave it out' in said


def test_ah_is_offered_with_a_warning() -> None:
    """It does not pass a NAT."""
    (warning,) = policy('crypto = "own"', sets='[crypto.own]\nquick = ["ah sha256"]\n').warnings
    assert "AH, which does not pass a NAT" in warning


# Addresses and tunnels --------------------------------------------------------------------------------------


def test_every_address_stands_with_every_port() -> None:
    """Two addresses and two ports are four selectors; the protocol stands at both ends."""
    rule = one('remote = ["10.0.0.9", "10.0.0.8"]\nprotocol = "tcp"\nremote_port = [80, 443]')
    assert [str(s) for s in rule.selector.remote] == [
        "10.0.0.9[tcp/80]", "10.0.0.9[tcp/443]", "10.0.0.8[tcp/80]", "10.0.0.8[tcp/443]",
    ]  # fmt: skip
    assert {str(s) for s in rule.selector.local} == {"0.0.0.0/0[tcp]", "::/0[tcp]"}


KEYWORDS = {
    "DNS": [ip_address("10.0.0.53")],
    "LocalSubnet": [ip_network("10.0.0.0/24"), ip_network("fe80::/64")],
}


def test_keywords_are_replaced_by_what_they_stand_for() -> None:
    """They come resolved from outside; policy itself looks nothing up."""
    rules = policy('remote = "localsubnet"', 'remote = ["DNS", "WINS"]', keywords=KEYWORDS).rules
    found = {rule.name: [str(s) for s in rule.selector.remote] for rule in rules}
    assert found == {"r1": ["10.0.0.0/24", "fe80::/64"], "r2": ["10.0.0.53"]}


def test_keyword_without_addresses_disables_the_rule() -> None:
    """Never "any": a rule that protected the name servers would suddenly speak of everybody."""
    loaded = policy('remote = "WINS"', keywords=KEYWORDS)
    (rule,) = loaded.rules
    assert (rule.enabled, rule.status) == (False, "address resolution empty: WINS")
    assert not rule.selector.remote
    assert "not in force: address resolution empty (WINS)" in loaded.warnings[0]
    assert not [flow for flow in loaded.flows() if flow.rule == "r1"]


def test_keywords_and_addresses_are_two_rules() -> None:
    """A set of addresses is static or symbolic, never both (MS-FASP section 2.2.22)."""
    assert "write two rules" in complaint('remote = ["DNS", "10.0.0.9"]')


@pytest.mark.parametrize(
    ("tunnel", "meaning"),
    [
        ('{ remote = "198.51.100.7" }', Tunnel(None, ip_address("198.51.100.7"))),
        ('{ local = "192.0.2.1", remote = "any" }', Tunnel(ip_address("192.0.2.1"))),
        ('{ local = "any", remote = "VPN.example" }', Tunnel(None, None, "vpn.example")),
    ],
)
def test_tunnels(tunnel: str, meaning: Tunnel) -> None:
    """Addresses, names, or whoever comes."""
    rule = one(f'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\ntunnel = {tunnel}')
    assert (rule.tunnel, rule.mode) == (meaning, Mode.TUNNEL)


@pytest.mark.parametrize(
    ("tunnel", "said"),
    [
        ('{ local = "192.0.2.1" }', 'tunnel.remote: missing: the other gateway\'s address or name, or "any"'),
        (
            '{ local = "me.example", remote = "any" }',
            '"me.example" is a name; write the address of this machine',
        ),
        (
            '{ remote = "10.0.0.300" }',
            '"r1".tunnel.remote: "10.0.0.300" is not an address, a host name or "any"',
        ),
        ("{}", "tunnel.remote: missing"),
    ],
)
def test_bad_tunnels(tunnel: str, said: str) -> None:
    """The key inside the table is named."""
    assert said in complaint(f'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\ntunnel = {tunnel}')
