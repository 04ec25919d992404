"""Short ways to make policies, rules and packets in the tests of `policy`."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from policy.engine import Policy
from policy.load import PolicyError, parse
from policy.parse import Keywords
from policy.rules import Rule
from sadb.selector import TCP, Fields


def policy(*rules: str, sets: str = "", keywords: Keywords | None = None) -> Policy:
    """A policy from the keys of each rule; a rule without a name is called r1, r2, ..."""
    return parse(sets + "".join(map(table, rules, range(1, len(rules) + 1))), "policy.toml", keywords)


def table(keys: str, number: int = 1) -> str:
    """One `[[rule]]`."""
    name = "" if keys.startswith("name") or "\nname" in keys else f'name = "r{number}"\n'
    return f"\n[[rule]]\n{name}{keys}\n"


def one(keys: str, sets: str = "") -> Rule:
    """The rule with these keys."""
    return policy(keys, sets=sets).rules[0]


def complaints(text: str) -> tuple[str, ...]:
    """Everything that is wrong with a file."""
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return caught.value.complaints


def complaint(keys: str, sets: str = "") -> str:
    """The one thing that is wrong with a rule of these keys, named r1."""
    found = complaints(table(keys) + sets)
    assert len(found) == 1, found
    return found[0]


def packet(
    source: str,
    destination: str,
    port: int | None = None,
    protocol: int = TCP,
    source_port: int | None = 40000,
) -> Fields:
    """What classification sees of a packet to `port`."""
    return Fields(ip_address(source), ip_address(destination), protocol, source_port, port)
