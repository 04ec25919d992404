"""Who may begin an ISAKMP SA with us, and how we begin one: the first message of main and aggressive mode.

RFC 2408 section 2.5.3, MS-IKEE section 3.9. Finds the association a datagram is for by its cookies; what is
for nobody gets no answer. Under load a stranger first has to return a cookie.
"""

from __future__ import annotations

from ikd.association import Association, Registry
from ikd.events import CookieDemanded, NegotiationStarted
from ikd.ikev1.association import Ikev1Association
from ikd.ikev1.channel import Channel
from ikd.ikev1.message import Message, status
from ikd.ikev1.session import Session
from ikd.isakmp.numbers import Exchange, N
from ikd.isakmp.payloads import SecurityAssociation
from ikd.outputs import Transmit
from ikd.riders.cookie import ResponderCookies
from ikd.riders.vendor import Known
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Flags, Header
from sadb.address import Address, Path


class Ikev1Admission:
    """IKEv1 as a keying module of the endpoint."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cookies = ResponderCookies(registry.env.random)

    def begin(self, path: Path, now: float) -> Association:
        """A new ISAKMP SA of ours, without any message yet."""
        association = self._make(True, self._registry.new_spi(), ZERO_SPI, path, now)
        self._registry.adopt(association)
        return association

    def _make(
        self, initiator: bool, cookie_i: bytes, cookie_r: bytes, path: Path, now: float
    ) -> Ikev1Association:
        env = self._registry.env
        channel = Channel(cookie_i, cookie_r, env.random)
        return Ikev1Association(Session(initiator, env, channel, path, now), self._registry, now)

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram of major version 1; raises `Malformed`."""
        if header.version != 0x10:
            self._registry.dropped("version", f"version {header.version:#x}", path)
            return
        association = self._find(header)
        if association is not None:
            association.talks.received(data)
            association.receive(header, data, path, now)
        elif header.exchange in (Exchange.MAIN, Exchange.AGGRESSIVE) and (
            header.spi_r == ZERO_SPI or self._returned(header, path, now)
        ):
            self._admit(header, data, path, now)
        else:
            self._registry.dropped("unknown-spi", f"no ISAKMP SA {header.spi_i.hex()}", path)

    def _find(self, header: Header) -> Ikev1Association | None:
        """By the cookie of ours; the responder's is learned from its first answer."""
        for own, initiator in ((header.spi_i, True), (header.spi_r, False)):
            found = self._registry.by_spi(own)
            if not isinstance(found, Ikev1Association) or found.initiator is not initiator:
                continue
            channel = found.session.channel
            if channel.cookie_i != header.spi_i:
                continue
            if channel.cookie_r == ZERO_SPI and header.exchange in (Exchange.MAIN, Exchange.AGGRESSIVE):
                return found
            if channel.cookie_r in (header.spi_r, ZERO_SPI):
                return found
        return None

    def _admit(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A first message: nothing is kept before the limits allow it."""
        if header.spi_i == ZERO_SPI or header.message_id or header.flags & Flags.ENCRYPTION:
            raise Malformed("not a first message")
        registry, address = self._registry, path.peer.address
        settings = registry.env.settings
        key = ("ikev1", address, path.peer.port, header.spi_i)
        known = registry.strangers.find(key)
        if isinstance(known, Ikev1Association):
            known.talks.received(data)
            known.receive(header, data, path, now)  # the same once more is answered again
        elif header.spi_r == ZERO_SPI and self._must_pay(data, address):
            self._demand(header, path, now)
        elif full := registry.strangers.full(settings, address):
            registry.dropped("half-open-limit", full, path)
        elif len(registry.associations) >= settings.associations:
            registry.dropped("association-limit", f"there are {settings.associations} IKE SAs", path)
        else:
            own = registry.new_spi() if header.spi_r == ZERO_SPI else header.spi_r
            association = self._make(False, header.spi_i, own, path, now)
            registry.adopt(association)
            registry.strangers.enter(key, association)
            registry.emit(NegotiationStarted(ike=association.number, rule="", initiator=False, path=path))
            try:
                association.talks.received(data)
                association.first_request(header, data, now)
            except Malformed:
                association.abandon("its first message is malformed", now)
                raise

    # Cookies ---------------------------------------------------------------------------------------------

    def _returned(self, header: Header, path: Path, now: float) -> bool:
        """Whether a first message brings a cookie of ours. One that brings another's is for nobody: it may
        as well be the late answer to a first message of ours."""
        first = header.next_payload == SecurityAssociation.kind
        return first and self._cookies.good(header.spi_r, header.spi_i, path, now)

    def _must_pay(self, data: bytes, address: Address) -> bool:
        """Whether a cookie is asked for. Who is no Windows mostly does not know how to return it and is
        locked out: only when there are many half-open negotiations in all."""
        settings, strangers = self._registry.env.settings, self._registry.strangers
        if not settings.ikev1_cookies:
            return False
        knows = Known.MICROSOFT.value in data
        return len(strangers) >= settings.cookie_threshold or (knows and strangers.crowded(settings, address))

    def _demand(self, header: Header, path: Path, now: float) -> None:
        """HDR, N(NOTIFY_DOS_COOKIE), and nothing is kept (MS-IKEE section 3.9)."""
        registry = self._registry
        random = registry.env.random
        cookie = self._cookies.make(header.spi_i, path, now)
        number = int.from_bytes(random(4), "big") or 1
        message = Message(Exchange.INFORMATIONAL, (status(N.NOTIFY_DOS_COOKIE, cookie),), number)
        datagram, _ = Channel(header.spi_i, ZERO_SPI, random).seal(message, b"")
        registry.emit(Transmit(datagram, path))
        registry.emit(CookieDemanded(path=path))
