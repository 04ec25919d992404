"""Whether a data plane takes over what a former one has left, by what it is given besides."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import offload.workers.inheritance
from ikd.plane import MemoryPlane
from ikd.settings import DataplaneSettings
from ikd.transport import Transport
from sadb.address import parse


class Able(MemoryPlane):
    """It would go on with workers, if there were some."""

    def _unfit(self, orphan: Any) -> str:
        return ""


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket for IKE that the only worker of a former daemon has kept."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        orphan = SimpleNamespace(handover=SimpleNamespace(number=0), kept=[sock])
        estate = SimpleNamespace(orphans=[orphan], close=lambda: None)

        def claim(control: Path, wanted: Mapping[str, str], unfit: Callable[[Any], str]) -> tuple[Any, str]:
            reason = unfit(orphan)
            return (None if reason else estate), reason

        monkeypatch.setattr(offload.workers.inheritance, "claim", claim)
        yield sock


@pytest.fixture
def plane() -> Able:
    """A plane that is not open yet."""
    transport: Any = Transport((parse("127.0.0.1"),), (500, 4500), SimpleNamespace())  # type: ignore[arg-type]
    return Able(DataplaneSettings(), transport, lambda where, work: work() and None, lambda event: None)


def test_the_sockets_of_systemd_are_those_that_were_kept(kept: socket.socket, plane: Able) -> None:
    """Two descriptors of one socket would read from each other."""
    same = socket.socket(fileno=os.dup(kept.fileno()))
    assert plane.claim(Path("control.sock"), (same,)) == [kept]
    assert same.fileno() == -1
    assert not plane.notices


def test_sockets_that_systemd_has_opened_since_are_served(kept: socket.socket, plane: Able) -> None:
    """Datagrams would go to one that nobody reads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert plane.claim(Path("control.sock"), (other,)) == (other,)
        assert other.fileno() != -1
    (notice,) = plane.notices
    assert "other sockets for IKE" in notice


def test_without_systemd_the_sockets_that_were_kept_serve(kept: socket.socket, plane: Able) -> None:
    """Binding them anew would lose what waits in them."""
    assert plane.claim(Path("control.sock")) == [kept]
