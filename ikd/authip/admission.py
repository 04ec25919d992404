"""Who may begin a main-mode SA of AuthIP with us, and how we begin one (MS-AIPS 3.3.5.1 and 3.3.7.1)."""

from __future__ import annotations

from collections import OrderedDict

from ikd.admission import Registry
from ikd.authip.association import AuthipAssociation
from ikd.authip.channel import VERSION, Channel
from ikd.authip.message import notify
from ikd.authip.numbers import CRYPTO, Exchange, N, Subject
from ikd.authip.profile import PROFILES
from ikd.authip.session import Session
from ikd.isakmp.admission import IsakmpAdmission
from ikd.wire.isakmp import HEADER, HEADER_SIZE, Header, encode_chain
from sadb.address import Address, Path

EXCHANGES = frozenset(Exchange)
MOST_NAMES = 4096


class AuthipAdmission(IsakmpAdmission):
    """AuthIP as a keying module of the endpoint. A larger minor version does not matter (section 2.2.1)."""

    keying, noun = "authip", "main-mode SA"
    first = (Exchange.MAIN,)
    leading = CRYPTO

    def __init__(self, registry: Registry) -> None:
        IsakmpAdmission.__init__(self, registry)
        self._names: OrderedDict[Address, str] = OrderedDict()  # what responders call themselves

    def begin(self, path: Path, now: float) -> AuthipAssociation:
        """A new main-mode SA of ours, without any message yet."""
        association: AuthipAssociation = IsakmpAdmission.begin(self, path, now)
        # taken out: should it lead to nothing, the next negotiation asks for the name again
        association.session.principal = self._names.pop(path.peer.address, "")
        association.session.hooks.named = lambda name: self._remember(path.peer.address, name)
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

    def _learns(self, association: AuthipAssociation) -> bool:
        """The cookie it has been asked to return need not be that of the answer."""
        return not association.answered

    def _must_pay(self, data: bytes, address: Address) -> bool:
        """Every implementation of AuthIP knows how to return a cookie."""
        return self._registry.strangers.crowded(self._registry.env.settings, address)

    def _demanded(self, header: Header, cookie: bytes) -> bytes:
        """HDR, N(NOTIFY_DOS_COOKIE), without a CRYPTO payload (MS-AIPS section 3.1.7.6)."""
        env = self._registry.env
        kind, octets = encode_chain((notify(N.DOS_COOKIE, Subject.MAIN, cookie),))
        number = int.from_bytes(env.random(4), "big") | 2
        size, exchange = HEADER_SIZE + len(octets), PROFILES[env.settings.authip_profile].cookie_exchange
        return HEADER.pack(header.spi_i, cookie, kind, VERSION, exchange, 0, number, size) + octets
