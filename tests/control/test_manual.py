"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

from dataclasses import fields

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
    control, settings, events = (manual.pages()[f"{name}.md"] for name in ("control", "settings", "events"))
    for name in REQUESTS:
        assert f"### {name}\n" in control, name
    for name, kind in EVENTS.items():
        assert f"\n### {hyphened(name)}\n" in events, name
        for one in fields(kind):
            assert f"| `{one.name}` |" in events, f"{name}.{one.name}"
    for table, keys in OPTIONS.items():
        for key in keys:
            assert f"| `{key}` |" in settings, f"{table}.{key}"


def test_audit_events_say_who_how_and_for_what() -> None:
    """Whoever has to answer who came in, and who was turned away and why, reads these and nothing else."""
    audit = {name: {one.name for one in fields(kind)} for name, kind in EVENTS.items() if kind.audit}
    assert set(audit) == {name for name, kind in EVENTS.items() if kind.group == "auth"}
    for name, keys in audit.items():
        assert {"rule", "method", "address"} <= keys, name
        assert {"identity", "peer"} & keys, name
    assert {"reason", "cause"} <= audit["AuthenticationFailed"]
