"""Who may begin an IKE SA with us, and how we begin one: IKE_SA_INIT before anything is kept.

RFC 7296 sections 2.5, 2.6 and 2.21.4. Finds the association a datagram is for; a first message becomes one
when limits and cookie allow it. Complaints to strangers are few and short.
"""

from __future__ import annotations

from ikd.admission import Registry
from ikd.association import Association
from ikd.events import CookieDemanded, NegotiationStarted
from ikd.ikev2.association import Ikev2Association
from ikd.ikev2.channel import VERSION, Channel, clear
from ikd.ikev2.first import nonce_of, open_first
from ikd.ikev2.message import Message, UnknownCritical, status
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import KeyExchange, Nonce, Notify
from ikd.ikev2.session import Session
from ikd.outputs import Transmit
from ikd.riders.cookie import Cookies
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Body, Flags, Header
from sadb.address import Path


class Ikev2Admission:
    """IKEv2 as a keying module of the endpoint."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        env = registry.env
        self._cookies = Cookies(env.random, env.settings.cookie_lifetime)

    def begin(self, path: Path, now: float) -> Association:
        """A new IKE SA of ours, without any message yet."""
        return self._hold(True, self._registry.new_spi(), ZERO_SPI, path, now)

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram of major version 2; raises `Malformed`."""
        if header.exchange == Exchange.IKE_SA_INIT and not header.flags & Flags.RESPONSE:
            self._admit(header, data, path, now)
            return
        own = header.spi_r if header.flags & Flags.INITIATOR else header.spi_i
        association = self._registry.by_spi(own)
        other = header.spi_i if header.flags & Flags.INITIATOR else header.spi_r
        if not isinstance(association, Ikev2Association) or not self._fits(association, header, other):
            self._registry.dropped("unknown-spi", f"no IKE SA {own.hex()}", path)
            if not header.flags & Flags.RESPONSE:
                self._complain(header, status(N.INVALID_IKE_SPI), path, now)
            return
        association.receive(header, data, path, now)

    def wrong_version(self, header: Header, path: Path, now: float) -> None:
        """A request of a version nobody speaks yet (section 2.5)."""
        if not header.flags & Flags.RESPONSE:
            self._complain(header, status(N.INVALID_MAJOR_VERSION, b"\x02"), path, now)

    @staticmethod
    def _fits(association: Ikev2Association, header: Header, other: bytes) -> bool:
        """Whether the peer's SPI and role are right; before it has answered, its SPI is not known."""
        if bool(header.flags & Flags.INITIATOR) == association.initiator:
            return False
        known = association.spi_r if association.initiator else association.spi_i
        return other == known or (known == ZERO_SPI and header.exchange == Exchange.IKE_SA_INIT)

    def _admit(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A first message: nothing is kept before limits and cookie allow it."""
        key = ("ikev2", path.peer.address, path.peer.port, header.spi_i)
        known = self._registry.strangers.find(key)
        if isinstance(known, Ikev2Association):
            if known.session.init_request == data:
                known.first_repeated()
            else:
                self._registry.dropped("repeated", "another first message with the same SPI", path)
            return
        if header.spi_i == ZERO_SPI or header.spi_r != ZERO_SPI or header.message_id != 0:
            raise Malformed("not a first message")
        if not header.flags & Flags.INITIATOR:
            raise Malformed("a first message without the initiator flag")
        registry = self._registry
        settings, half_open, address = registry.env.settings, registry.strangers, path.peer.address
        crowded = half_open.crowded(settings, address)
        if crowded and header.next_payload != Notify.kind:  # in a flood most of it need not be read
            self._demand(nonce_of(header, data), header, path, now)
            return
        try:
            message = open_first(header, data)
        except UnknownCritical as error:
            self._complain(header, status(N.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((error.kind,))), path, now)
            self._registry.dropped("critical", str(error), path)
            return
        if crowded and not self._paid(message, header, path, now):
            return
        if refused := registry.refuses(address, now):
            registry.dropped(*refused, path)
        else:
            self._begin(key, message, header, path, now)

    def _paid(self, message: Message, header: Header, path: Path, now: float) -> bool:
        """Whether the peer returned our cookie; if not, it is asked to (section 2.6)."""
        nonce = message.one(Nonce).data
        found = message.notify(N.COOKIE)
        if found and self._cookies.good(found.data, nonce, header.spi_i, path, now):
            return True
        self._demand(nonce, header, path, now)
        return False

    def _demand(self, nonce: bytes, header: Header, path: Path, now: float) -> None:
        cookie = self._cookies.make(nonce, header.spi_i, path, now)
        self._answer_unprotected(header, [status(N.COOKIE, cookie)], path)
        self._registry.emit(CookieDemanded(path=path))

    def _begin(self, key: object, message: Message, header: Header, path: Path, now: float) -> None:
        message.one(KeyExchange)
        registry = self._registry
        association = self._hold(False, header.spi_i, registry.new_spi(), path, now)
        registry.strangers.enter(key, association)
        registry.emit(NegotiationStarted(ike=association.number, rule="", initiator=False, path=path))
        association.first_request(message, now)

    def _hold(self, initiator: bool, spi_i: bytes, spi_r: bytes, path: Path, now: float) -> Ikev2Association:
        env = self._registry.env
        settings = env.settings
        channel = Channel(
            initiator, spi_i, spi_r, env.random, window=settings.window, message_limit=settings.message_size
        )
        association = Ikev2Association(Session(0, env, channel, path, now), self._registry, now)
        self._registry.adopt(association)
        return association

    def _complain(self, header: Header, notify: Notify, path: Path, now: float) -> None:
        """An unprotected error to a request, a few a second at most: it may be forged."""
        if self._registry.may_complain(now):
            self._answer_unprotected(header, [notify], path)

    def _answer_unprotected(self, header: Header, payloads: list[Body], path: Path) -> None:
        flags = int(Flags.RESPONSE) | (0 if header.flags & Flags.INITIATOR else int(Flags.INITIATOR))
        reply = Header(header.spi_i, header.spi_r, 0, VERSION, header.exchange, flags, header.message_id, 0)
        self._registry.emit(Transmit(clear(reply, payloads), path))
