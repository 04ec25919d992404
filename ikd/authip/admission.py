"""Who may begin a main-mode SA of AuthIP with us, and how we begin one: MS-AIPS sections 3.3.5.1 and 3.3.7.1.

Finds the association a datagram is for by its cookies; what is for nobody gets no answer. Under load a
stranger first has to return a cookie.
"""

from __future__ import annotations

from collections import OrderedDict

from ikd.association import Association, Registry
from ikd.authip.association import AuthipAssociation
from ikd.authip.channel import VERSION, Channel
from ikd.authip.message import notify
from ikd.authip.numbers import CRYPTO, Exchange, N, Subject
from ikd.authip.profile import PROFILES
from ikd.authip.session import Session
from ikd.events import CookieDemanded, NegotiationStarted
from ikd.outputs import Transmit
from ikd.riders.cookie import ResponderCookies
from ikd.riders.fragment1 import FRAGMENT
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER, HEADER_SIZE, ZERO_SPI, Flags, Header, encode_chain
from sadb.address import Address, Path

EXCHANGES = frozenset(Exchange)
MOST_NAMES = 4096


class AuthipAdmission:
    """AuthIP as a keying module of the endpoint."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cookies = ResponderCookies(registry.env.random)
        self._names: OrderedDict[Address, str] = OrderedDict()  # what responders call themselves

    def begin(self, path: Path, now: float) -> Association:
        """A new main-mode SA of ours, without any message yet."""
        association = self._make(True, self._registry.new_spi(), ZERO_SPI, path, now)
        # taken out: should it lead to nothing, the next negotiation asks for the name again
        association.session.principal = self._names.pop(path.peer.address, "")
        association.session.hooks.named = lambda name: self._remember(path.peer.address, name)
        self._registry.adopt(association)
        return association

    def _remember(self, peer: Address, name: str) -> None:
        """A responder's name has led to a main-mode SA: the next one can do with one round trip less."""
        self._names[peer] = name
        while len(self._names) > MOST_NAMES:
            self._names.popitem(last=False)

    def _make(
        self, initiator: bool, cookie_i: bytes, cookie_r: bytes, path: Path, now: float
    ) -> AuthipAssociation:
        env = self._registry.env
        whole = PROFILES[env.settings.authip_profile].transcript == "message"
        channel = Channel(cookie_i, cookie_r, env.random, covers_header=whole)
        return AuthipAssociation(Session(initiator, env, channel, path, now), self._registry, now)

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram of major version 1 with an exchange type of AuthIP; raises `Malformed`. A larger minor
        version does not matter (section 2.2.1)."""
        association = self.find(header)
        if association is not None:
            association.talks.received(data)
            association.receive(header, data, path, now)
        elif header.exchange == Exchange.MAIN and (
            header.spi_r == ZERO_SPI or self._returned(header, path, now)
        ):
            self._admit(header, data, path, now)
        else:
            self._registry.dropped("unknown-spi", f"no main-mode SA {header.spi_i.hex()}", path)

    def find(self, header: Header) -> AuthipAssociation | None:
        """By the cookie of ours; the responder's is learned from its first answer, or returned to it."""
        for own, initiator in ((header.spi_i, True), (header.spi_r, False)):
            found = self._registry.by_spi(own)
            if not isinstance(found, AuthipAssociation) or found.initiator is not initiator:
                continue
            channel = found.session.channel
            if channel.cookie_i != header.spi_i:
                continue
            if channel.cookie_r == header.spi_r or (initiator and not found.answered):
                return found
        return None

    def _admit(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A first message: nothing is kept before the limits allow it."""
        if header.spi_i == ZERO_SPI or header.message_id or header.flags & Flags.ENCRYPTION:
            raise Malformed("not a first message")
        if header.next_payload not in (CRYPTO, FRAGMENT):
            raise Malformed("the CRYPTO payload is not the first")
        registry, address = self._registry, path.peer.address
        settings = registry.env.settings
        key = ("authip", address, path.peer.port, header.spi_i)
        known = registry.strangers.find(key)
        if isinstance(known, AuthipAssociation):
            known.talks.received(data)
            known.receive(header, data, path, now)  # the same once more is answered again
        elif header.next_payload == FRAGMENT:
            raise Malformed("a first message in fragments")
        elif header.spi_r == ZERO_SPI and self._must_pay(address):
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
            registry.emit(
                NegotiationStarted(
                    ike=association.number, rule="", initiator=False, path=path, keying="authip"
                )
            )
            try:
                association.talks.received(data)
                association.first_request(header, data, now)
            except Malformed:
                association.abandon("its first message is malformed", now)
                raise

    # Cookies ---------------------------------------------------------------------------------------------

    def _returned(self, header: Header, path: Path, now: float) -> bool:
        """Whether a first message brings a cookie of ours."""
        return header.next_payload == CRYPTO and self._cookies.good(header.spi_r, header.spi_i, path, now)

    def _must_pay(self, address: Address) -> bool:
        """Whether a cookie is asked for: every implementation of AuthIP knows it."""
        return self._registry.strangers.crowded(self._registry.env.settings, address)

    def _demand(self, header: Header, path: Path, now: float) -> None:
        """HDR, N(NOTIFY_DOS_COOKIE), without a CRYPTO payload, and nothing is kept (MS-AIPS section 3.1.7.6,
        MS-IKEE section 3.9)."""
        registry = self._registry
        random, profile = registry.env.random, PROFILES[registry.env.settings.authip_profile]
        cookie = self._cookies.make(header.spi_i, path, now)
        kind, octets = encode_chain((notify(N.DOS_COOKIE, Subject.MAIN, cookie),))
        number = int.from_bytes(random(4), "big") | 2
        size = HEADER_SIZE + len(octets)
        head = HEADER.pack(header.spi_i, cookie, kind, VERSION, profile.cookie_exchange, 0, number, size)
        registry.emit(Transmit(head + octets, path))
        registry.emit(CookieDemanded(path=path))
