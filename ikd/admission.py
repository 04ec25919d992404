"""What a keying module and the endpoint need of each other, to find associations and to begin them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ikd.association import Association, Owner
from ikd.halfopen import HalfOpen
from ikd.keying import Environment
from ikd.wire.isakmp import Header
from sadb.address import Address, Path


class Registry(Owner, Protocol):
    """What a keying module needs of the endpoint to find and begin associations."""

    env: Environment
    associations: Mapping[int, Association]
    strangers: HalfOpen

    def dropped(self, reason: str, detail: str, path: Path) -> None: ...
    def refuses(self, address: Address, now: float) -> tuple[str, str] | None: ...


class Admission(Protocol):
    """A keying module as the endpoint uses it."""

    def begin(self, path: Path, now: float) -> Association: ...
    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None: ...
