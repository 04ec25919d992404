"""Groups of `groups.toml` in every keying module: whose member a peer is does not depend on how it proves
itself.

If one of these fails, who is denied as a member of a group gets in by another method of authentication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.link import agree
from support.phases import certified, ends, shared

from ikd.auth.credentials import Material
from ikd.auth.groups import Group, Groups

GUESTS = Groups((Group("Guests", members=("left.example",)),))
METHODS = [
    ("ikev2", shared),
    ("ikev2", certified),
    ("ikev1", shared),
    ("ikev1", certified),
    ("authip", certified),
]


@pytest.mark.parametrize(("keying", "method"), METHODS)
@pytest.mark.parametrize("word", ["allow", "deny"])
def test_a_member_of_a_group(word: str, keying: str, method: Callable[[str], Material]) -> None:
    """It is admitted where a rule allows the group and refused where it denies it."""
    link = ends(
        right=f'{word} = {{ machines = ["group:Guests"] }}',
        keying=keying,
        material=lambda name: replace(method(name), groups=GUESTS),
    )
    link.up("host")
    link.run(60)
    admitted = word == "allow"
    agree(link, ikes=int(admitted), pairs=int(admitted))
    if not admitted:
        assert 'rule "host" denies left.example' in link.right.failures[0].reason
