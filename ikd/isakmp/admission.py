"""Who may begin an ISAKMP SA with us, and how we begin one, as far as IKEv1 and AuthIP do it alike.

RFC 2408 section 2.5.3, MS-IKEE section 3.9, MS-AIPS section 3.3.5.1. Finds the association a datagram is for
by its cookies; what is for nobody gets no answer. Under load a stranger first has to return a cookie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ikd.admission import Registry
from ikd.events import CookieDemanded, NegotiationStarted
from ikd.outputs import Transmit
from ikd.riders.cookie import ResponderCookies
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Flags, Header
from sadb.address import Address, Path


class IsakmpAdmission(ABC):
    """A keying module of major version 1. `first` are the exchange types that begin an SA, `leading` is the
    payload their first message begins with, `noun` what the protocol calls the SA."""

    keying: ClassVar[str]
    noun: ClassVar[str]
    first: ClassVar[tuple[int, ...]]
    leading: ClassVar[int]

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cookies = ResponderCookies(registry.env.random)

    # What the protocols do differently -------------------------------------------------------------------

    @abstractmethod
    def _make(self, initiator: bool, cookie_i: bytes, cookie_r: bytes, path: Path, now: float) -> Any:
        """A new association of the protocol."""

    @abstractmethod
    def _learns(self, association: Any) -> bool:
        """Whether an association of ours may still learn the responder's cookie."""

    @abstractmethod
    def _must_pay(self, data: bytes, address: Address) -> bool:
        """Whether a cookie is asked for."""

    @abstractmethod
    def _demanded(self, header: Header, cookie: bytes) -> bytes:
        """The datagram that asks for a cookie."""

    # What they do alike ----------------------------------------------------------------------------------

    def begin(self, path: Path, now: float) -> Any:
        """A new SA of ours, without any message yet."""
        association = self._make(True, self._registry.new_spi(), ZERO_SPI, path, now)
        self._registry.adopt(association)
        return association

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram of the protocol; raises `Malformed`."""
        association = self._find(header)
        if association is not None:
            association.talks.received(data)
            association.receive(header, data, path, now)
        elif header.exchange in self.first and (
            header.spi_r == ZERO_SPI or self._returned(header, path, now)
        ):
            self._admit(header, data, path, now)
        else:
            self._registry.dropped("unknown-spi", f"no {self.noun} {header.spi_i.hex()}", path)

    def _find(self, header: Header) -> Any:
        """By the cookie of ours; the responder's is learned from its first answer, or returned to it."""
        for own, initiator in ((header.spi_i, True), (header.spi_r, False)):
            found: Any = self._registry.by_spi(own)
            if found is None or found.main.keying != self.keying or found.initiator is not initiator:
                continue
            channel = found.session.channel
            learns = initiator and self._learns(found)
            if channel.cookie_i == header.spi_i and (learns or channel.cookie_r == header.spi_r):
                return found
        return None

    def _returned(self, header: Header, path: Path, now: float) -> bool:
        """Whether a first message brings a cookie of ours. One that brings another's is for nobody: it may
        as well be the late answer to a first message of ours."""
        leads = header.next_payload == self.leading
        return leads and self._cookies.good(header.spi_r, header.spi_i, path, now)

    def _admit(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A first message: nothing is kept before the limits allow it."""
        if header.spi_i == ZERO_SPI or header.message_id or header.flags & Flags.ENCRYPTION:
            raise Malformed("not a first message")
        if header.next_payload != self.leading:  # a fragment would be kept for whoever writes an address
            raise Malformed(f"a first message that begins with payload {header.next_payload}")
        registry, address = self._registry, path.peer.address
        key = (self.keying, address, path.peer.port, header.spi_i)
        known: Any = registry.strangers.find(key)
        if known is not None:
            known.talks.received(data)
            known.receive(header, data, path, now)  # the same once more is answered again
        elif header.spi_r == ZERO_SPI and self._must_pay(data, address):
            cookie = self._cookies.make(header.spi_i, path, now)
            registry.emit(Transmit(self._demanded(header, cookie), path))
            registry.emit(CookieDemanded(path=path))
        elif refused := registry.refuses(address, now):
            registry.dropped(*refused, path)
        else:
            self._enter(key, header, data, path, now)

    def _enter(self, key: Any, header: Header, data: bytes, path: Path, now: float) -> None:
        registry = self._registry
        own = registry.new_spi() if header.spi_r == ZERO_SPI else header.spi_r
        association = self._make(False, header.spi_i, own, path, now)
        registry.adopt(association)
        registry.strangers.enter(key, association)
        registry.emit(
            NegotiationStarted(
                ike=association.number, rule="", initiator=False, path=path, keying=self.keying
            )
        )
        try:
            association.talks.received(data)
            association.first_request(header, data, now)
        except Malformed:
            association.abandon("its first message is malformed", now)
            raise
