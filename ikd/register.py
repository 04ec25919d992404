"""All main-mode SAs of this host, and by what each is found: its number, our SPI, the addresses of its peer,
and who the peer has proven to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from ikd.association import Association
from ikd.auth import Identity
from ikd.life import State
from sadb.address import Address

K = TypeVar("K")


class Register:
    """Those that are not closed. `associations` has them by number, the oldest first."""

    def __init__(self) -> None:
        self._associations: dict[int, Association] = {}
        self._by_spi: dict[bytes, Association] = {}  # by our SPI
        self._by_address: dict[Address, dict[int, Association]] = {}  # by the peer's
        self._by_identity: dict[Identity, dict[int, Association]] = {}  # by what the peer proved
        self._begun: dict[int, Association] = {}  # ours that are not up yet
        self._number = 0
        self.associations: Mapping[int, Association] = MappingProxyType(self._associations)

    @property
    def empty(self) -> bool:
        """Whether nothing is left in any index."""
        every = (self._associations, self._by_spi, self._by_address, self._by_identity, self._begun)
        return not any(every)

    def enter(self, association: Association) -> None:
        """A new one; it gets its number."""
        main = association.main
        self._number += 1
        main.number = self._number
        self._associations[main.number] = association
        self._by_spi[association.own_spi] = association
        for address in main.peer_addresses:
            self._by_address.setdefault(address, {})[main.number] = association
        if association.initiator and association.state is State.CONNECTING:
            self._begun[main.number] = association
        association.known_as = main.proven_identity
        self.known(association)

    def leave(self, association: Association) -> None:
        """It has closed."""
        del self._associations[association.number]
        self._begun.pop(association.number, None)
        self._by_spi.pop(association.own_spi, None)
        for address in association.main.peer_addresses:
            _discard(self._by_address, address, association)
        self.disown(association)

    def proven(self, association: Association) -> list[Association]:
        """Its peer is proven; the others of that peer, who do not find this one before it is `known`."""
        self._begun.pop(association.number, None)
        association.known_as = association.main.proven_identity
        return self.others(association)

    def known(self, association: Association) -> None:
        """It is found by who its peer has proven to be."""
        if association.known_as is not None:
            self._by_identity.setdefault(association.known_as, {})[association.number] = association

    def moved(self, association: Association, old: Address) -> None:
        """Its peer has another address; it is found by the one where it was proven, too."""
        if old not in association.main.peer_addresses:
            _discard(self._by_address, old, association)
        self._by_address.setdefault(association.path.peer.address, {})[association.number] = association

    def disown(self, association: Association) -> None:
        """It is not found by its peer's identity any more."""
        if association.known_as is not None:
            _discard(self._by_identity, association.known_as, association)

    def by_spi(self, spi: bytes) -> Association | None:
        """The one with this SPI of ours."""
        return self._by_spi.get(spi)

    def at(self, address: Address) -> list[Association]:
        """Those whose peer has this address, the oldest first."""
        return list(self._by_address.get(address, {}).values())

    def others(self, association: Association) -> list[Association]:
        """Others whose peer has proven to be the same."""
        known = association.known_as
        found: Iterable[Association] = self._by_identity.get(known, {}).values() if known else ()
        return [one for one in found if one is not association]

    def begun(self, address: Address) -> Collection[Association]:
        """Those of ours with an address, or with all of them if these are fewer, that are not up yet."""
        here = self._by_address.get(address, {})
        return [one for one in min(self._begun, here, key=len).values() if one.number in self._begun]


def _discard(index: dict[K, dict[int, Association]], key: K, association: Association) -> None:
    """Take an association out of an index; unknown ones are ignored."""
    found = index.get(key)
    if found and found.pop(association.number, None) and not found:
        del index[key]
