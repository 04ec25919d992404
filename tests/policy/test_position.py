"""Lines of keys: a complaint that points at another line is worse than one that points at none."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from policy.position import Place, positions

TEXT = '''# comment
[auth.own]
first = ["psk"]

[[rule]]
name = "a"
local = [
    "10.0.0.1",
    "10.0.0.2",
]
description = """
[[rule]]
name = "not a key"
"""
"remote" = "10.0.0.9"

[rule.tunnel]
remote = "any"

[[rule]]
name = "b"

[rule.tunnel]
remote = "any"
'''


def test_lines_of_tables_and_keys() -> None:
    """Headers, arrays of tables, tables inside them, quoted keys; nothing out of texts."""
    lines = positions(TEXT)
    assert lines[("auth", "own")] == 2
    assert lines[("auth", "own", "first")] == 3
    assert lines[("rule", 0)] == 5
    assert lines[("rule", 0, "local")] == 7
    assert lines[("rule", 0, "remote")] == 15
    assert lines[("rule", 0, "tunnel", "remote")] == 18
    assert lines[("rule", 1, "name")] == 21
    assert lines[("rule", 1, "tunnel", "remote")] == 24
    assert ("rule", 2) not in lines


def test_a_place_without_line_has_that_of_its_table() -> None:
    """Keys of inline tables have no lines of their own."""
    place = Place("p.toml", positions(TEXT)).key("rule").member(0, "a").key("allow").key("machines")
    assert str(place) == 'p.toml:5: rule[1] "a".allow.machines'
    assert Place("p.toml", {}).file == "p.toml"
    assert str(Place("p.toml", {})) == "p.toml"


@given(st.text(alphabet='[]"=.#a\n ', max_size=60))
def test_any_text_has_positions(text: str) -> None:
    """It runs on every file that is TOML, and must not fail on one."""
    lines = positions(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert not values or lines
