"""Cookies against floods of first messages: nothing is kept for a peer that has not shown that it receives at
its address. `Cookies` are those of IKEv2 (RFC 7296 section 2.6), `ResponderCookies` those of IKEv1 (MS-IKEE
section 3.9)."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from sadb.address import Path

SLICE = 150.0  # seconds for which a secret of IKEv1 makes cookies


class _Secrets:
    """Secrets that change every `lifetime` seconds; the one before stays good for as long."""

    __slots__ = ("_changed", "_lifetime", "_random", "_secrets", "_version")

    def __init__(self, random: Callable[[int], bytes], lifetime: float) -> None:
        self._random = random
        self._lifetime = lifetime
        self._version = 0
        self._secrets: dict[int, bytes] = {0: random(32)}
        self._changed: float | None = None

    def _turn(self, now: float) -> None:
        if self._changed is None:
            self._changed = now
        elif now - self._changed >= self._lifetime:
            former = self._version
            self._version = (former + 1) % 256
            kept = {former: self._secrets[former]} if now - self._changed < 2 * self._lifetime else {}
            self._secrets = kept | {self._version: self._random(32)}
            self._changed = now


class Cookies(_Secrets):
    """Makes and checks cookies: version | HMAC(secret, Ni | address | port | SPIi)."""

    __slots__ = ()

    def make(self, nonce: bytes, spi_i: bytes, path: Path, now: float) -> bytes:
        """The cookie this peer has to return."""
        self._turn(now)
        return self._cookie(self._version, nonce, spi_i, path)

    def good(self, cookie: bytes, nonce: bytes, spi_i: bytes, path: Path, now: float) -> bool:
        """Whether it is one of ours, for this very message and address, and not too old."""
        self._turn(now)
        version = cookie[0] if cookie else -1
        return version in self._secrets and hmac.compare_digest(
            cookie, self._cookie(version, nonce, spi_i, path)
        )

    def _cookie(self, version: int, nonce: bytes, spi_i: bytes, path: Path) -> bytes:
        octets = len(nonce).to_bytes(2, "big") + nonce + _where(path) + spi_i
        return bytes((version,)) + hmac.digest(self._secrets[version], octets, "sha256")


class ResponderCookies(_Secrets):
    """Makes and checks responder cookies of IKEv1: the first octets of HMAC(secret, CKY-I | address | port |
    our address). They are ours alone to read, so that Windows' own construction does not matter."""

    __slots__ = ()

    def __init__(self, random: Callable[[int], bytes], lifetime: float = SLICE) -> None:
        _Secrets.__init__(self, random, lifetime)

    def make(self, cookie_i: bytes, path: Path, now: float) -> bytes:
        """The responder cookie this peer has to return."""
        self._turn(now)
        return self._cookie(self._version, cookie_i, path)

    def good(self, cookie: bytes, cookie_i: bytes, path: Path, now: float) -> bool:
        """Whether it was made in this slice of time or the one before, for this initiator and address."""
        self._turn(now)
        made = [self._cookie(version, cookie_i, path) for version in self._secrets]
        return any(hmac.compare_digest(cookie, one) for one in made)

    def _cookie(self, version: int, cookie_i: bytes, path: Path) -> bytes:
        octets = cookie_i + _where(path) + path.local.address.packed
        return hmac.digest(self._secrets[version], octets, "sha256")[:8]


def _where(path: Path) -> bytes:
    return path.peer.address.packed + path.peer.port.to_bytes(2, "big")
