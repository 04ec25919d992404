"""What `ikctl offload` says of the adapter's table."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from ikd.control import render_offload
from ikd.control.offload_views import _pools
from offload.nic.capabilities import PROFILES
from offload.nic.management import Status
from offload.switch.ports import Ports
from offload.switch.switch import Switch


@pytest.mark.parametrize(
    ("profile", "used", "said"),
    [
        ("82576", (7,), "7 of 256 slots for both directions"),
        ("82599", (7, 3), "7 of 1024 slots inbound, 3 of 1024 slots outbound"),
        ("82599", None, "0 of 1024 slots inbound, 0 of 1024 slots outbound"),
    ],
)
def test_slots_are_told_as_the_adapter_has_them(
    profile: str, used: tuple[int, ...] | None, said: str, tmp_path: object
) -> None:
    """A sum of two pools would not say that one of them is full."""
    nothing = [lambda *_: None] * 3
    switch = Switch(Ports(PROFILES[profile]), tmp_path, *nothing)  # type: ignore[arg-type]
    if used is not None:
        switch.status = Status({}, {}, {}, used, 0, True)
    adapter = {
        "profile": profile,
        "mode": "crypto",
        "running": True,
        "enabled": True,
        "link": "up",
        "pools": _pools(switch),
        "addresses_used": 1,
        "addresses": 128,
    }
    out = StringIO()
    answer = {"adapter": adapter, "sas": 2, "ports": [], "offloaded": [], "software": []}
    render_offload.offload(Console(file=out, width=200), answer)  # type: ignore[arg-type]
    assert f" · {said} · " in out.getvalue()
