"""Cookies against floods of first messages, RFC 7296 section 2.6: nothing is kept for a peer that has not
shown that it receives at its address."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from sadb.address import Path


class Cookies:
    """Makes and checks cookies: version | HMAC(secret, Ni | address | port | SPIi). Secrets change every
    `lifetime` seconds; the one before stays good for as long."""

    __slots__ = ("_changed", "_lifetime", "_random", "_secrets", "_version")

    def __init__(self, random: Callable[[int], bytes], lifetime: float) -> None:
        self._random = random
        self._lifetime = lifetime
        self._version = 0
        self._secrets: dict[int, bytes] = {0: random(32)}
        self._changed: float | None = None

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
        where = path.peer.address.packed + path.peer.port.to_bytes(2, "big")
        return bytes((version,)) + hmac.digest(
            self._secrets[version], len(nonce).to_bytes(2, "big") + nonce + where + spi_i, "sha256"
        )

    def _turn(self, now: float) -> None:
        if self._changed is None:
            self._changed = now
        elif now - self._changed >= self._lifetime:
            former = self._version
            self._version = (former + 1) % 256
            kept = {former: self._secrets[former]} if now - self._changed < 2 * self._lifetime else {}
            self._secrets = kept | {self._version: self._random(32)}
            self._changed = now
