"""DoS protection of IKEv1 (MS-IKEE section 3.9) between two endpoints in virtual time.

If one of these fails, a flood of first messages costs memory, or an honest peer does not get through it.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from support.ikev1 import WINDOWS, first_message, payload, sa, transform
from support.link import Flight, Link, agree, mirrored, story, tunnel_hosts

from ikd.events import CookieDemanded
from ikd.isakmp.numbers import Exchange
from ikd.settings import IkeSettings

IKEV1 = 'keying = ["ikev1"]\ncrypto = "cbc"'
CBC = '[crypto.cbc]\nmain = ["p256 aes128 sha256"]\n'
CROWDED = IkeSettings(cookie_threshold=0)
INFORMATIONAL = 5


def between(settings: IkeSettings | None = None, extra: str = "") -> Link:
    """Two hosts that speak IKEv1; the right one has these settings."""
    rule = IKEV1 + extra
    return Link(*tunnel_hosts(left_rule=rule, right_rule=rule, right_settings=settings, sets=CBC))


def demands(link: Link) -> list[Flight]:
    """Cookies that the right host asked for."""
    return [one for one in link.flights if one.sender is link.right and one.header.exchange == INFORMATIONAL]


@pytest.mark.parametrize("mode", ["", "\naggressive = true"], ids=["main", "aggressive"])
def test_a_cookie_is_asked_for_and_returned(mode: str) -> None:
    """Under load the exchange takes one round trip more, and the cookie stays the responder's."""
    link = between(CROWDED, mode)
    link.up()
    link.run(2)
    agree(link, ikes=1, pairs=1)
    assert len(link.right.of(CookieDemanded)) == 1
    first, demand, again = link.flights[:3]
    assert demand.header.message_id != 0
    assert first.header.spi_r == demand.header.spi_r == bytes(8)
    cookie = demand.data[-8:]
    assert again.data == first.data[:8] + cookie + first.data[16:], "otherwise identical"
    assert link.right.ikes[0].spi_r == link.left.ikes[0].spi_r == cookie
    # header, SA's notify with DOI, protocol, SPI size 0, type and the cookie: less than what was sent
    assert len(demand.data) == 28 + 12 + 8 < len(first.data)


def test_nothing_is_kept_before_the_cookie_is_back() -> None:
    """The very point of it."""
    link = between(CROWDED)
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    link.up()
    link.run(3)
    assert demands(link)
    assert not link.right.ikes
    assert link.right.endpoint.half_open == 0


@pytest.mark.parametrize("lost", range(6))
def test_loss(lost: int) -> None:
    """Whichever of the first messages is lost, the negotiation comes through."""
    link = between(CROWDED)
    link.fate = lambda flight: setattr(flight, "lost", flight.number == lost)
    link.up()
    link.run(20)
    agree(link, ikes=1, pairs=1)


def test_everything_comes_twice() -> None:
    """A network that repeats makes no second IKE SA."""
    link = between(CROWDED)
    link.fate = lambda flight: setattr(flight, "copies", 1)
    link.up()
    link.run(20)
    agree(link, ikes=1, pairs=1)


def test_a_made_up_cookie_opens_nothing() -> None:
    """Another's cookie, or one for another address, does not get past the threshold."""
    link = between(CROWDED)
    made_up = WINDOWS[:8] + b"12345678" + WINDOWS[16:]
    link.inject(link.right, made_up)
    assert not link.right.ikes
    assert link.right.drops == ["unknown-spi"]
    link.inject(link.right, WINDOWS)
    cookie = demands(link)[-1].data[-8:]
    returned = WINDOWS[:8] + cookie + WINDOWS[16:]
    link.inject(link.right, returned, source=ip_address("192.0.2.77"))
    assert not link.right.ikes
    link.inject(link.right, returned)
    assert not link.right.endpoint.half_open or len(link.right.ikes) == 1


def test_forged_demands_change_nothing() -> None:
    """Whoever sees the first message can forge a demand: it costs a datagram each, a few at most, and the
    negotiation goes on."""
    link = between()
    link.fate = lambda flight: setattr(flight, "delay", 0.5)
    link.up()
    first = link.flights[0].header
    body = bytes.fromhex("0000001400000001 01009c44") + b"forgery!"
    head = replace(first, spi_r=bytes(8), next_payload=11, exchange=INFORMATIONAL, length=28 + len(body))
    for number in range(1, 40):
        link.inject(link.left, replace(head, message_id=number).encode() + body)
    forged = [one for one in link.flights if one.data[8:16] == b"forgery!"]
    assert 1 <= len(forged) <= 16
    link.run(10)
    agree(link, ikes=1, pairs=1)
    assert link.left.ikes[0].spi_r != b"forgery!"


def test_late_demand() -> None:
    """A cookie that comes when the responder has answered already is nothing."""
    link = between()
    link.up()
    link.run(0.03)
    head = replace(link.flights[0].header, next_payload=11, exchange=INFORMATIONAL, message_id=9, length=48)
    link.inject(link.left, head.encode() + bytes.fromhex("0000001400000001 01009c44") + b"forgery!")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert not any(one.data[8:16] == b"forgery!" for one in link.flights)


def test_who_may_not_know_it_is_asked_only_when_there_are_many() -> None:
    """From one address with many half-open negotiations Windows has to return a cookie; others, who would be
    locked out, only beyond the threshold for all."""
    link = between(IkeSettings(half_open_per_address=4, cookie_threshold=50))
    plain = first_message(sa(transform(0, 1, "80010007 800e0080 80020004 80030001 80040013")))

    def begin(data: bytes, number: int) -> None:
        link.inject(link.right, number.to_bytes(8, "big") + data[8:])

    for number in range(1, 4):
        begin(plain, number)
    assert link.right.endpoint.half_open == 3, story(link)
    begin(WINDOWS, 100)
    assert len(link.right.of(CookieDemanded)) == 1
    begin(plain, 4)
    assert link.right.endpoint.half_open == 4
    assert len(link.right.of(CookieDemanded)) == 1


def test_switched_off() -> None:
    """`ikev1_cookies = false`: no peer is locked out, the limits of half-open negotiations stand alone."""
    link = between(replace(CROWDED, ikev1_cookies=False))
    link.up()
    link.run(2)
    assert mirrored(link.left, link.right)
    assert not link.right.of(CookieDemanded)


def test_late_second_message_is_no_first_one() -> None:
    """The responder's answer to somebody who has given up has an SA payload, too: it begins nothing."""
    link = between()
    link.up()
    link.run(0.02)
    second = next(one for one in link.flights if one.sender is link.right)
    assert second.header.exchange == Exchange.MAIN
    stranger = between()
    stranger.inject(stranger.left, second.data)
    assert not stranger.left.ikes
    assert not stranger.flights
    assert stranger.left.drops == ["unknown-spi"]


def test_payload_helper_is_what_it_says() -> None:
    """The made-up first message is one: the flood above would prove nothing otherwise."""
    link = between()
    data = first_message(sa(transform(0, 1, "80010007 800e0080 80020004 80030001 80040013")))
    assert payload(0, b"") == bytes((0, 0, 0, 4))
    link.inject(link.right, data)
    assert link.right.endpoint.half_open == 1, story(link)
