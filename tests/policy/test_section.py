"""Strict reading: every mistake is found, named with its place, and leads to no second complaint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import complaint, complaints, one, table

from policy.load import PolicyError, parse
from policy.schema import ACCESS, CRYPTO, LIFETIME, METHOD, RULE, TABLES, TUNNEL, Key
from policy.section import shown

# How each key of each table is written, so that every key is known to load.
RULE_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ('"n"', lambda rule: rule.name == "n"),
    "enabled": ("false", lambda rule: not rule.enabled),
    "group": ('"g"', lambda rule: rule.group == "g"),
    "description": ('"words"', lambda rule: rule.description == "words"),
    "action": ('"block"', lambda rule: rule.action.value == "block"),
    "local": ('"10.0.0.5"', lambda rule: str(rule.selector.local[0]) == "10.0.0.5"),
    "remote": ('["10.0.0.9", "10.1.0.0/16"]', lambda rule: len(rule.selector.remote) == 2),
    "protocol": ('"gre"', lambda rule: {s.protocol for s in rule.selector.remote} == {47}),
    "local_port": ('"ssh"\nprotocol = "tcp"', lambda rule: rule.selector.local[0].ports == (22, 22)),
    "remote_port": ('[80, 443]\nprotocol = "udp"', lambda rule: rule.selector.remote[1].ports == (443, 443)),
    "interface": ('"eth0"\nenabled = false', lambda rule: rule.interface == "eth0"),
    "security": ('"request"', lambda rule: {rule.inbound.value, rule.outbound.value} == {"request"}),
    "inbound": ('"require"\noutbound = "request"', lambda rule: rule.inbound.value == "require"),
    "outbound": ('"none"\ninbound = "request"', lambda rule: rule.outbound.value == "none"),
    "tunnel": ('{ remote = "any" }\nlocal = "any"\nremote = "any"', lambda rule: rule.mode.value == "tunnel"),
    "encrypt": ("true", lambda rule: rule.encrypt),
    "auth": ('"machine-and-user"\nenabled = false', lambda rule: rule.auth.name == "machine-and-user"),
    "crypto": ('"modern"', lambda rule: rule.crypto.name == "modern"),
    "keying": ('["ikev2"]', lambda rule: rule.keying == ("ikev2",)),
    "aggressive": ('true\nkeying = ["ikev2", "ikev1"]', lambda rule: rule.aggressive),
    "peer": ('"db.corp.example"', lambda rule: rule.peer == "db.corp.example"),
    "allow": ('{ machines = "a.example" }', lambda rule: rule.allow.machines == ("a.example",)),
    "deny": ('{ machines = ["a", "b"] }', lambda rule: rule.deny.machines == ("a", "b")),
    "offload": ("false", lambda rule: not rule.offload),
}


def test_every_key_of_a_rule_is_tried_here() -> None:
    """A new key comes with a line above."""
    assert set(RULE_KEYS) == set(RULE.names)


@pytest.mark.parametrize("key", RULE.names)
def test_key_does_what_it_says(key: str) -> None:
    """A key that is accepted and ignored is a hole in somebody's policy."""
    value, holds = RULE_KEYS[key]
    assert holds(one(f"{key} = {value}")), key


@pytest.mark.parametrize("key", [key for key in RULE.keys if key.name != "name"], ids=lambda key: key.name)
def test_wrong_type_names_key_and_form(key: Key) -> None:
    """What it is, and what it takes."""
    said = complaint(f"{key.name} = 1979-05-27")
    assert said.startswith(f'policy.toml:4: rule[1] "r1".{key.name}: 1979-05-27 is ')
    assert said.endswith(f"; it takes {key.form}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rules]]\nname = "x"', 'policy.toml:1: rules: unknown key in a policy file; did you mean "rule"?'),
        ("rule = 1", "policy.toml:1: rule: 1 is a number; it takes array of tables: `[[rule]]`"),
        ("rule = [1]", "policy.toml:1: rule: rules are tables: write [[rule]] above the keys of each"),
        ('crypto.x = "y"', "policy.toml:1: crypto.x: a set is a table: write [crypto.x] above its keys"),
        ('[[rule]]\nremote = "any"', "policy.toml:1: rule[1].name: missing: every rule has a name"),
        ("[[rule]", "policy.toml:1: not TOML: Expected ']]' at the end of an array declaration"),
        ("a = 1\nb = [\n", "policy.toml:2: not TOML: Invalid value"),
        ("a = 1\na = 2\nb = 3", "policy.toml:2: not TOML: Cannot overwrite a value"),
    ],
)
def test_mistakes_of_the_file(text: str, said: str) -> None:
    """The whole message, as it is read."""
    assert complaints(text) == (said,)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('remot = "10.0.0.9"', '"r1".remot: unknown key in a rule; did you mean "remote"?'),
        ('rightsubnet = "10.0.0.0/8"', '"r1".rightsubnet: unknown key in a rule; did you mean "remote"?'),
        ("xyzzy = 1", '"r1".xyzzy: unknown key in a rule; known: name, enabled, group'),
        ('action = "deny"', '"r1".action: "deny" is not one of permit, block, secure; write `secure`'),
        ('action = "premit"', 'did you mean "permit"?'),
        (
            'security = "required"',
            '"r1".security: "required" is not one of none, request, require; did you mean',
        ),
        ("enabled = 1", '"r1".enabled: 1 is a number; it takes true or false'),
        ('enabled = "yes"', '"r1".enabled: "yes" is text; it takes true or false'),
        ("remote_port = true", "true is true or false; it takes port"),
        ('protocol = "tcp"\nremote_port = [80, "x y"]', '"r1".remote_port[2]: "x y" is not a port'),
        (
            'protocol = "tcp"\nremote_port = [80.5]',
            '"r1".remote_port[1]: 80.5 is a number, not a number or text',
        ),
        ("remote = [10]", '"r1".remote[1]: 10 is a number, not text'),
        ("remote = []", '"r1".remote: the list is empty; leave the key out or name something'),
        ('remote = ["10.0.0.9", "10.0.0.5/24"]', '"r1".remote[2]: bad prefix "10.0.0.5/24"'),
        (
            'tunnel = { remot = "x" }\nlocal = "any"\nremote = "any"',
            '"r1".tunnel.remot: unknown key in tunnel',
        ),
        (
            'allow = { machine = "x" }',
            '"r1".allow.machine: unknown key in allow or deny; did you mean "machines"?',
        ),
        ('allow = { machines = ["a", "CN"], users = [1] }', '"r1".allow.users[1]: 1 is a number, not text'),
        (f"description = {[1] * 40}", "..."),
    ],
)
def test_mistakes_of_a_rule(keys: str, said: str) -> None:
    """One mistake, one complaint, with the key it is about."""
    found = complaint(keys)
    assert said in found
    assert found.startswith("policy.toml:")


def test_all_complaints_come_at_once() -> None:
    """Six mistakes in two rules and a set are six complaints."""
    text = (
        table('remot = "x"\nprotocol = "tpc"\nlocal = "10.0.0.0/99"')
        + table('name = "b"\nauth = "deflt"\npeer = ""', 2)
        + '[crypto.own]\nquick = ["des"]\n'
    )
    found = complaints(text)
    assert len(found) == 6
    assert sum('rule[1] "r1"' in said for said in found) == 3


def test_a_set_that_is_wrong_is_complained_about_once() -> None:
    """Not again by each rule that uses it."""
    rules = table('crypto = "own"') + table('crypto = "own"', 2)
    assert len(complaints(rules + '[crypto.own]\nquick = ["des"]\n')) == 1


@pytest.mark.parametrize("size", [10, 100_000])
def test_brackets_without_end(size: int) -> None:
    """The TOML reader's own limit is a complaint like any other."""
    (said,) = complaints("x = " + "[" * size)
    assert "not TOML" in said


def test_number_too_long_to_read() -> None:
    """Neither is this a traceback."""
    assert complaints(f"x = {'1' * 5000}")


def test_long_values_are_shortened() -> None:
    """A complaint stays one line."""
    assert shown("x" * 100) == '"' + "x" * 56 + "..."
    assert shown(True) == "true"
    assert shown(5) == "5"


# Any TOML ---------------------------------------------------------------------------------------------------

WORDS = [
    "10.0.0.9", "10.0.0.0/8", "::/0", "224.0.0.1", "127.0.0.1", "any", "tcp", "DNS", "LocalSubnet", "require",
    "request", "none", "secure", "block", "permit", "certificate", "psk", "ikev2", "aes128-sha256-x25519",
    "aes128gcm", "8 h", "never", "default", "modern", "CN=a,O=b", "*.example", "all", "|",
]  # fmt: skip
SCALARS = (
    st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates() | st.sampled_from(WORDS)
)
NAMES = st.sampled_from(sorted({name for table in TABLES for name in table.names})) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def keys_of(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, object]]:
    """A table with some of its real keys and any values."""
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=6)


RULES = st.builds(
    lambda keys, tunnel, access: keys | tunnel | access,
    keys_of(RULE.names),
    st.just({}) | st.builds(lambda t: {"tunnel": t}, keys_of(TUNNEL.names)),
    st.just({}) | st.builds(lambda a: {"allow": a}, keys_of(ACCESS.names)),
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "rule": st.lists(RULES, max_size=3),
        "auth": st.dictionaries(
            NAMES, st.builds(lambda m: {"first": m}, st.lists(keys_of(METHOD.names) | SCALARS, max_size=3))
        ),
        "crypto": st.dictionaries(NAMES, keys_of(CRYPTO.names) | keys_of(LIFETIME.names), max_size=2),
    },
)


def quoted(text: str) -> str:
    """A TOML basic string."""
    return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


def toml(value: object) -> str:
    """A value as inline TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return str(value)


@settings(max_examples=120, deadline=None)
@given(FILES)
def test_any_toml_loads_or_is_complained_about(file: dict[str, object]) -> None:
    """A traceback would hide every other mistake in the file, and end a daemon that reloads."""
    text = "\n".join(f"{key} = {toml(value)}" for key, value in file.items())
    try:
        policy = parse(text)
    except PolicyError:
        return
    assert all(rule.name for rule in policy.rules)
    assert policy.flows()


@given(st.text(max_size=80))
def test_any_text_loads_or_is_complained_about(text: str) -> None:
    """Also what is no TOML at all."""
    with contextlib.suppress(PolicyError):
        parse(text)
