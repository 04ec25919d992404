"""Groups of `groups.toml` in every keying module: whose member a peer is does not depend on how it proves
itself.

If one of these fails, who is denied as a member of a group gets in by another method of authentication."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.link import LEFT, RIGHT, Host, Link, agree, host, psk
from support.phases import certified, sets

from ikd.auth.groups import Group, Groups

RULE = """
[[rule]]
name = "host"
local = "{local}"
remote = "{remote}"
security = "require"
auth = "machine"
keying = ["{keying}"]
crypto = "old"
{extra}
[auth.machine]
first = ["{method}"]
"""
GUESTS = Groups((Group("Guests", members=("left.example",)),))
METHODS = [
    ("ikev2", "psk"),
    ("ikev2", "certificate"),
    ("ikev1", "psk"),
    ("ikev1", "certificate"),
    ("authip", "certificate"),
]


def hosts(keying: str, method: str, extra: str) -> tuple[Host, Host]:
    """Two hosts with a rule in transport mode; `extra` is a line of the right one's, which knows the
    group."""
    made = []
    for name, own, peer in (("left", LEFT, RIGHT), ("right", RIGHT, LEFT)):
        other = "right" if name == "left" else "left"
        lines = extra if name == "right" else ""
        rules = RULE.format(local=own, remote=peer, keying=keying, method=method, extra=lines) + sets()
        material = psk(f"{name}.example", f"{other}.example") if method == "psk" else certified(name)
        made.append(host(name, own, rules, replace(material, groups=GUESTS)))
    return made[0], made[1]


@pytest.mark.parametrize(("keying", "method"), METHODS)
@pytest.mark.parametrize("word", ["allow", "deny"])
def test_a_member_of_a_group(word: str, keying: str, method: str) -> None:
    """It is admitted where a rule allows the group and refused where it denies it."""
    link = Link(*hosts(keying, method, f'{word} = {{ machines = ["group:Guests"] }}'))
    link.up("host")
    link.run(60)
    admitted = word == "allow"
    agree(link, ikes=int(admitted), pairs=int(admitted))
    if not admitted:
        assert 'rule "host" denies left.example' in link.right.failures[0].reason
