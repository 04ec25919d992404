"""The tables of keys, and how the nearest name is found."""

from __future__ import annotations

import pytest

from policy.schema import ELSEWHERE, FIRST, RULE, SECOND, TABLES, hint, nearest


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("remot", "remote"),
        ("Remote", "remote"),
        ("remote-port", "remote_port"),
        ("securty", "security"),
        ("src", "local"),
        ("dst", "remote"),
        ("rightsubnet", "remote"),
        ("leftsubnet", "local"),
        ("remote_ts", "remote"),
        ("rightid", "peer"),
        ("mode", "tunnel"),
        ("port", "remote_port"),
        ("proto", "protocol"),
        ("level", "security"),
        ("keyexchange", "keying"),
        ("disabled", "enabled"),
        ("xyzzy", None),
    ],
)
def test_nearest_key(written: str, meant: str | None) -> None:
    """Typing errors, and what other products call it."""
    assert nearest(written, RULE.names) == meant


def test_words_of_other_products_lead_to_our_keys() -> None:
    """A hint to a key that does not exist sends people in a circle."""
    known = {key.name for table in TABLES for key in table.keys} | {*FIRST, *SECOND}
    assert set(ELSEWHERE.values()) <= known
    assert not set(ELSEWHERE) & set(RULE.names)


def test_hint_lists_what_is_known_when_nothing_is_near() -> None:
    """There is always something to go on with."""
    assert hint("remot", RULE.names) == 'did you mean "remote"?'
    assert hint("xyzzy", ("a", "b")) == "known: a, b"


def test_every_key_is_explained() -> None:
    """The reference is printed from here."""
    for table in TABLES:
        assert table.title
        assert len(set(table.names)) == len(table.keys)
        for key in table.keys:
            assert key.types, key
            assert all((key.form, key.default, key.text)), key
            assert table.key(key.name) is key
    assert RULE.key("nothing") is None
