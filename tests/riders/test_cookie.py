"""Cookies (RFC 7296 section 2.6, MS-IKEE section 3.9).

If one of these fails, a flood from forged addresses costs memory, or an honest peer under load is turned
away."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from ikd.riders.cookie import SLICE, Cookies, ResponderCookies
from sadb.address import Path, SocketAddress

NONCE, SPI = b"n" * 32, b"12345678"


def path(address: str = "192.0.2.1", port: int = 500) -> Path:
    """To us from an address."""
    return Path(SocketAddress(ip_address("192.0.2.9"), 500), SocketAddress(ip_address(address), port))


def cookies(lifetime: float = 60.0) -> Cookies:
    """A maker with reproducible secrets."""
    return Cookies(random.Random(1).randbytes, lifetime)


def test_a_cookie_is_good_for_what_it_was_made_for() -> None:
    """For the same nonce, SPI and address, and of a length that may stand in the notify (1 to 64)."""
    maker = cookies()
    cookie = maker.make(NONCE, SPI, path(), 0.0)
    assert 1 <= len(cookie) <= 64
    assert maker.good(cookie, NONCE, SPI, path(), 1.0)


@pytest.mark.parametrize(
    ("nonce", "spi", "where"),
    [
        (b"m" * 32, SPI, path()),
        (b"n" * 31, SPI, path()),
        (NONCE, b"87654321", path()),
        (NONCE, SPI, path("192.0.2.2")),
        (NONCE, SPI, path(port=501)),
        (NONCE, SPI, path("2001:db8::1")),
    ],
)
def test_and_for_nothing_else(nonce: bytes, spi: bytes, where: Path) -> None:
    """Else one cookie would pay for a flood."""
    maker = cookies()
    assert not maker.good(maker.make(NONCE, SPI, path(), 0.0), nonce, spi, where, 0.0)


def test_octets_do_not_move_between_fields() -> None:
    """A nonce that ends like an SPI begins is another message."""
    maker = cookies()
    cookie = maker.make(b"n" * 20, b"n" * 8, path(), 0.0)
    assert not maker.good(cookie, b"n" * 21, b"n" * 8, path(), 0.0)


@pytest.mark.parametrize("cookie", [b"", b"\0", bytes(33), b"\xff" * 64])
def test_made_up(cookie: bytes) -> None:
    """Any octets that are not ours, whatever their length."""
    assert not cookies().good(cookie, NONCE, SPI, path(), 0.0)


def test_every_bit_counts() -> None:
    """A changed cookie is none."""
    maker = cookies()
    cookie = maker.make(NONCE, SPI, path(), 0.0)
    for at in range(len(cookie)):
        assert not maker.good(
            cookie[:at] + bytes((cookie[at] ^ 1,)) + cookie[at + 1 :], NONCE, SPI, path(), 0.0
        )


def test_age() -> None:
    """Good for one to two lifetimes: the secret changes, and the one before counts until the next change."""
    maker = cookies(60.0)
    cookie = maker.make(NONCE, SPI, path(), 0.0)
    assert maker.good(cookie, NONCE, SPI, path(), 59.0)
    assert maker.good(cookie, NONCE, SPI, path(), 61.0)
    assert maker.good(cookie, NONCE, SPI, path(), 119.0)
    assert not maker.good(cookie, NONCE, SPI, path(), 125.0)
    assert maker.make(NONCE, SPI, path(), 126.0) != cookie


def test_a_long_silence() -> None:
    """After two lifetimes without any request nothing from before is good."""
    maker = cookies(60.0)
    cookie = maker.make(NONCE, SPI, path(), 0.0)
    assert not maker.good(cookie, NONCE, SPI, path(), 1000.0)


def test_secrets_do_not_pile_up() -> None:
    """The version has one octet and wraps; two secrets are kept at most."""
    maker = cookies(1.0)
    for second in range(600):
        cookie = maker.make(NONCE, SPI, path(), float(second))
        assert maker.good(cookie, NONCE, SPI, path(), second + 0.5)
        assert len(maker._secrets) <= 2


def test_two_hosts() -> None:
    """Another host's cookie is worth nothing here."""
    other = Cookies(random.Random(2).randbytes, 60.0)
    assert not other.good(cookies().make(NONCE, SPI, path(), 0.0), NONCE, SPI, path(), 0.0)


# IKEv1 ------------------------------------------------------------------------------------------------------


def responder_cookies() -> ResponderCookies:
    """The same for IKEv1."""
    return ResponderCookies(random.Random(1).randbytes)


def test_a_responder_cookie_is_good_for_its_initiator_and_address() -> None:
    """Eight octets that only come back from where they were sent."""
    maker = responder_cookies()
    cookie = maker.make(SPI, path(), 0.0)
    assert len(cookie) == 8
    assert maker.good(cookie, SPI, path(), 1.0)
    assert not maker.good(cookie, b"87654321", path(), 1.0)
    assert not maker.good(cookie, SPI, path("192.0.2.2"), 1.0)
    assert not maker.good(cookie, SPI, path(port=501), 1.0)
    assert not maker.good(bytes(8), SPI, path(), 1.0)
    assert not responder_cookies().good(b"", SPI, path(), 1.0)


def test_two_slices() -> None:
    """Good in its own slice of 150 seconds and the next one."""
    maker = responder_cookies()
    cookie = maker.make(SPI, path(), 0.0)
    assert maker.good(cookie, SPI, path(), SLICE - 1)
    assert maker.good(cookie, SPI, path(), SLICE + 1)
    assert not maker.good(cookie, SPI, path(), 2 * SLICE + 2)
    assert maker.make(SPI, path(), 2 * SLICE + 3) != cookie
    assert not maker.good(cookie, SPI, path(), 99 * SLICE)
