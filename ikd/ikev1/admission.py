"""Who may begin an ISAKMP SA of IKEv1 with us: the first message of main and aggressive mode (RFC 2408
section 2.5.3, MS-IKEE section 3.9)."""

from __future__ import annotations

from ikd.ikev1.association import Ikev1Association
from ikd.ikev1.channel import Channel
from ikd.ikev1.message import Message, status
from ikd.ikev1.session import Session
from ikd.isakmp.admission import IsakmpAdmission
from ikd.isakmp.numbers import Exchange, N
from ikd.isakmp.payloads import SecurityAssociation
from ikd.riders.vendor import Known
from ikd.wire.isakmp import ZERO_SPI, Header
from sadb.address import Address, Path


class Ikev1Admission(IsakmpAdmission):
    """IKEv1 as a keying module of the endpoint."""

    keying, noun = "ikev1", "ISAKMP SA"
    first = Exchange.MAIN, Exchange.AGGRESSIVE
    leading = SecurityAssociation.kind

    def _make(
        self, initiator: bool, cookie_i: bytes, cookie_r: bytes, path: Path, now: float
    ) -> Ikev1Association:
        env = self._registry.env
        channel = Channel(cookie_i, cookie_r, env.random)
        return Ikev1Association(Session(initiator, env, channel, path, now), self._registry, now)

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram of version 1.0; raises `Malformed`."""
        if header.version != 0x10:
            self._registry.dropped("version", f"version {header.version:#x}", path)
        else:
            IsakmpAdmission.receive(self, header, data, path, now)

    def _learns(self, association: Ikev1Association) -> bool:
        """Once: what a demand brings is the cookie of the answer, too."""
        return association.session.channel.cookie_r == ZERO_SPI

    def _must_pay(self, data: bytes, address: Address) -> bool:
        """Who is no Windows mostly does not know how to return a cookie and is locked out: only when there
        are many half-open negotiations in all."""
        settings, strangers = self._registry.env.settings, self._registry.strangers
        if not settings.ikev1_cookies:
            return False
        knows = Known.MICROSOFT.value in data
        return len(strangers) >= settings.cookie_threshold or (knows and strangers.crowded(settings, address))

    def _demanded(self, header: Header, cookie: bytes) -> bytes:
        """HDR, N(NOTIFY_DOS_COOKIE) (MS-IKEE section 3.9)."""
        random = self._registry.env.random
        number = int.from_bytes(random(4), "big") or 1
        message = Message(Exchange.INFORMATIONAL, (status(N.NOTIFY_DOS_COOKIE, cookie),), number)
        return Channel(header.spi_i, ZERO_SPI, random).seal(message, b"")[0]
