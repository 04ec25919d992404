"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

import pytest

from ikd.control import manual
from ikd.control.protocol import hyphened
from ikd.control.requests import REQUESTS
from ikd.events import EVENTS
from ikd.settings import OPTIONS


@pytest.mark.parametrize("name", sorted(manual.pages()))
def test_page_is_current(name: str) -> None:
    """A reference that lags behind the code misleads; run `python -m ikd.control.manual`."""
    assert (manual.DOCS / name).read_text(encoding="utf-8") == manual.pages()[name]


def test_everything_is_in_the_pages() -> None:
    """A request, an event or a setting that is not documented does not exist for a reader."""
    control, settings = manual.pages()["control.md"], manual.pages()["settings.md"]
    for name in REQUESTS:
        assert f"### {name}\n" in control, name
    for name in EVENTS:
        assert f"| `{hyphened(name)}` |" in control, name
    for table, keys in OPTIONS.items():
        for key in keys:
            assert f"| `{key}` |" in settings, f"{table}.{key}"
