"""Negotiations that others have begun and not proven themselves in: counted, in all and by address.

Every keying module enters its own here, so that a stranger cannot have the limits once per protocol
(RFC 7296 section 2.6; MS-IKEE section 3.9).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from ikd.association import Association
from ikd.settings import IkeSettings
from sadb.address import Address


class HalfOpen:
    """Half-open associations by the key under which a repeated first message finds them."""

    __slots__ = ("_by_address", "_found")

    def __init__(self) -> None:
        self._found: dict[Hashable, Association] = {}
        self._by_address: Counter[Address] = Counter()

    def __len__(self) -> int:
        return len(self._found)

    def find(self, key: Hashable) -> Association | None:
        """Who was begun with this first message."""
        return self._found.get(key)

    def crowded(self, settings: IkeSettings, address: Address) -> bool:
        """Whether a first message must show that its sender receives at its address: there are many in all,
        or from there, so that whoever writes down another's address does not use up that one's share."""
        mine = 2 * self._by_address[address] >= settings.half_open_per_address
        return mine or len(self) >= settings.cookie_threshold

    def full(self, settings: IkeSettings, address: Address) -> str:
        """Why there may be no other one, empty when there may."""
        if len(self) >= settings.half_open:
            return f"{settings.half_open} negotiations are half open"
        if self._by_address[address] >= settings.half_open_per_address:
            return f"{address} has {settings.half_open_per_address} half open"
        return ""

    def enter(self, key: Hashable, association: Association) -> None:
        """Count one in, under its address at this moment."""
        association.first_key = (key, association.path.peer.address)
        self._found[key] = association
        self._by_address[association.path.peer.address] += 1

    def leave(self, association: Association) -> None:
        """It is proven, or gone; others are ignored."""
        if association.first_key is None:
            return
        (key, address), association.first_key = association.first_key, None
        del self._found[key]
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]
