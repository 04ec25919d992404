"""sadb.secret: octets that must not be seen."""

from __future__ import annotations

import pytest

from sadb.secret import Secret

DATA = b"correct horse battery"


@pytest.mark.parametrize("text", [repr, str, "{}".format, "{!r}".format, "%s".__mod__, lambda s: repr([s])])
def test_no_text_form_shows_the_octets(text: object) -> None:
    """A key in a log line or a traceback is a key lost."""
    shown = text(Secret(DATA))  # type: ignore[operator]
    assert "horse" not in shown
    assert DATA.hex() not in shown
    assert "21 octets" in shown


def test_octets_come_out_only_on_request() -> None:
    """A secret that changed its octets would break every key derived from it."""
    assert bytes(Secret(DATA)) == DATA
    assert len(Secret(DATA)) == len(DATA)


def test_equality_is_that_of_the_octets() -> None:
    """Two equal keys that compare unequal, or a secret equal to plain octets, would hide mistakes."""
    assert Secret(DATA) == Secret(bytearray(DATA))
    assert Secret(DATA) != Secret(DATA[:-1] + b"?")
    assert Secret(DATA) != Secret(b"")
    assert Secret(DATA) != DATA
    assert len({Secret(DATA), Secret(DATA)}) == 1


def test_later_change_of_the_source_does_not_reach_it() -> None:
    """A buffer that is used again must not change a key."""
    source = bytearray(DATA)
    secret = Secret(source)
    source[0] = 0
    assert bytes(secret) == DATA
