"""IKE_SA_INIT and IKE_AUTH (RFC 7296 sections 1.2, 2.1, 2.6, 2.7, 2.21): loss, repetition and reordering of
each of the first messages, cookies, groups, proposals, and what forged answers can do.

If one of these fails, two hosts do not come together over a network that loses packets, or a stranger who can
send packets keeps them apart.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import combinations

import pytest
from support.hostile import weight
from support.link import (
    BOTH,
    RIGHT,
    Flight,
    Link,
    agree,
    host,
    losing,
    psk,
    tunnel_hosts,
    tunnel_rules,
)

from ikd.events import CookieDemanded, NegotiationFailed
from ikd.ikev2.channel import clear
from ikd.ikev2.message import status
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import PAYLOADS, Nonce, Notify, SecurityAssociation
from ikd.outputs import AllocateSpi
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Body, Flags, Header, chain, encode_chain
from sadb.backend import Unavailable

PATTERNS = [*((n,) for n in range(6)), *combinations(range(6), 2)]
MODP = '[crypto.modp]\nmain = ["modp2048 aes256gcm sha384", "x25519 aes256gcm sha384"]\n'
CURVE = '[crypto.curve]\nmain = ["x25519 aes256gcm sha384", "modp2048 aes256gcm sha384"]\n'


def payloads(data: bytes) -> list[Body]:
    """The payloads of an unprotected datagram."""
    return chain(Header.decode(data).next_payload, data[HEADER_SIZE:], PAYLOADS)[0]


def forged(first: bytes, *notifies: Notify, spi_r: bytes = bytes(8)) -> bytes:
    """An unprotected response to a first message."""
    header = Header.decode(first)
    return clear(replace(header, flags=int(Flags.RESPONSE), spi_r=spi_r), notifies)


# Loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("lost", PATTERNS, ids=str)
def test_any_of_the_first_messages_may_be_lost(lost: tuple[int, ...], first: str) -> None:
    """Retransmission is half of the protocol: whatever is lost, both sides end with the same one pair."""
    link = Link(*tunnel_hosts())
    link.fate = losing(*lost)
    # HDR, SAi1, KEi, Ni  -->  <--  HDR, SAr1, KEr, Nr
    # HDR, SK {IDi, AUTH, SAi2, TSi, TSr}  -->  <--  HDR, SK {IDr, AUTH, SAr2, TSi, TSr}
    link.up("net", first)
    link.run(40)
    agree(link, ikes=1, pairs=1)
    assert not link.left.failures
    assert not link.right.failures


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("late", [0.0, 0.015, 0.5, 8.0])
def test_any_of_the_first_messages_may_come_twice_or_late(number: int, late: float, first: str) -> None:
    """A repetition gets the same answer and makes nothing new, also one that arrives when all is over."""
    link = Link(*tunnel_hosts())

    def fate(flight: Flight) -> None:
        if flight.number == number:
            flight.copies, flight.delay = 2, 0.01 + late

    link.fate = fate
    link.up("net", first)
    link.run(70)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("first", BOTH)
def test_every_message_three_times_and_out_of_order(first: str) -> None:
    """Copies of everything, each later than what follows it."""
    link = Link(*tunnel_hosts())

    def fate(flight: Flight) -> None:
        flight.copies, flight.delay = 2, 0.01 + 0.4 * (flight.number % 3)

    link.fate = fate
    link.up("net", first)
    link.run(70)
    link.fate = lambda flight: None
    link.run(60)
    agree(link, ikes=1)


def test_a_peer_that_is_not_there_is_given_up() -> None:
    """Six transmissions further and further apart, then an end with a reason, and nothing is left."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net")
    link.run(200)
    assert len(link.flights) == 6
    assert len({one.data for one in link.flights}) == 1
    assert not link.left.ikes
    assert "does not answer" in link.left.failures[0].reason
    assert "500" in link.left.failures[0].remedy


def test_both_begin_at_once() -> None:
    """Two IKE SAs may come of it, but both sides have the same ones."""
    link = Link(*tunnel_hosts())
    link.up("net", "left")
    link.up("net", "right")
    link.run(60)
    agree(link)
    assert link.left.pairs


# Cookies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("lost", [(), (0,), (1,), (2,), (3,), (4,), (5,)], ids=str)
def test_cookie(first: str, lost: tuple[int, ...]) -> None:
    """With a threshold of 0 every first message must return a cookie; nothing is kept for the one without."""
    link = Link(*tunnel_hosts(settings=IkeSettings(cookie_threshold=0)))
    link.fate = losing(*lost)
    # HDR, SAi1, KEi, Ni  -->  <--  HDR, N(COOKIE)
    # HDR, N(COOKIE), SAi1, KEi, Ni  -->  <--  HDR, SAr1, KEr, Nr
    link.up("net", first)
    responder = link.other(link.named(first))
    if not lost:
        link.run(0.011)
        assert responder.of(CookieDemanded)
        assert not responder.ikes
    link.run(40)
    agree(link, ikes=1, pairs=1)


def test_cookies_are_asked_for_from_the_threshold_on() -> None:
    """Below it they would only cost a round trip."""
    link = Link(*tunnel_hosts(settings=IkeSettings(cookie_threshold=1)))
    link.up("net")
    link.run(5)
    assert not link.right.of(CookieDemanded)
    first = link.flights[0].data
    link.inject(link.right, b"\7" * 8 + first[8:])  # a stranger begins and does not go on
    assert link.right.endpoint.half_open == 1
    link.inject(link.right, b"\6" * 8 + first[8:])
    assert link.right.endpoint.half_open == 1
    assert link.right.of(CookieDemanded)


@pytest.mark.parametrize("change", ["cookie", "nonce", "address", "age"])
def test_a_wrong_or_stale_cookie_is_answered_with_a_new_one(change: str) -> None:
    """A cookie is for one nonce, SPI and address, and not for ever; else one cookie would pay for a flood."""
    link = Link(*tunnel_hosts(settings=IkeSettings(cookie_threshold=0)))
    link.up("net")
    link.run(0.021)
    second = link.flights[2].data
    found = payloads(second)
    assert isinstance(found[0], Notify)
    if change == "cookie":
        found[0] = status(N.COOKIE, found[0].data[:-1] + bytes((found[0].data[-1] ^ 1,)))
    if change == "nonce":
        found = [Nonce(data=bytes(32)) if isinstance(one, Nonce) else one for one in found]
    if change == "age":
        link.now += 1000
    before = len(link.right.of(CookieDemanded))
    other = ip_address("192.0.2.77") if change == "address" else None
    header = replace(Header.decode(second), spi_i=second[:8])
    link.inject(link.right, clear(header, found), source=other)
    assert len(link.right.of(CookieDemanded)) == before + 1
    assert not link.right.ikes


def test_cookie_and_then_another_group() -> None:
    """Section 2.6.1: the cookie is kept when the group changes, and a second cookie is taken up too."""
    left, right = tunnel_hosts(
        left_rule='crypto = "curve"',
        right_rule='crypto = "modp"',
        sets=CURVE + '[crypto.modp]\nmain = ["modp2048 aes256gcm sha384"]\n',
        right_settings=IkeSettings(cookie_threshold=0),
    )
    link = Link(left, right)
    # HDR, SAi1, KEi(31), Ni  -->  <--  HDR, N(COOKIE)
    # HDR, N(COOKIE), SAi1, KEi(31), Ni  -->  <--  HDR, N(INVALID_KE_PAYLOAD)
    # HDR, N(COOKIE), SAi1, KEi(14), Ni  -->  <--  HDR, SAr1, KEr(14), Nr
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    first = [one for flight in link.flights[:4] for one in payloads(flight.data)[:1]]
    assert [one.type for one in first if isinstance(one, Notify)] == [
        N.COOKIE,
        N.COOKIE,
        N.INVALID_KE_PAYLOAD,
    ]
    assert left.ikes[0].suite is not None
    assert left.ikes[0].suite.group.name == "modp2048"


def test_endless_cookies_are_not_followed() -> None:
    """A forger who answers each first message with a new cookie would keep us sending for ever."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net")
    for n in range(50):
        link.inject(link.left, forged(link.flights[-1].data, status(N.COOKIE, bytes((n,)) * 8)))
    assert len(link.flights) <= 5


# Groups and proposals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BOTH)
def test_another_group(first: str) -> None:
    """INVALID_KE_PAYLOAD costs a round trip and nothing else (section 1.2)."""
    rules = {"left_rule": 'crypto = "curve"', "right_rule": 'crypto = "modp"'}
    link = Link(*tunnel_hosts(**rules, sets=CURVE + MODP))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    # the responder's order decides
    wished = "modp2048" if first == "left" else "x25519"
    assert link.left.ikes[0].suite is not None
    assert link.left.ikes[0].suite.group.name == wished


@pytest.mark.parametrize("first", BOTH)
def test_nothing_in_common_for_the_ike_sa(first: str) -> None:
    """Both sides say so, each with what it knows side by side; nothing is left at either."""
    sets = '[crypto.a]\nmain = ["x25519 aes256gcm sha384"]\n[crypto.b]\nmain = ["p256 aes128 sha256"]\n'
    link = Link(*tunnel_hosts(left_rule='crypto = "a"', right_rule='crypto = "b"', sets=sets))
    link.up("net", first)
    link.run(30)
    agree(link, ikes=0, pairs=0)
    initiator = link.named(first)
    responder = link.other(initiator)
    told, known = initiator.failures[0], responder.failures[0]
    assert told.notify == known.notify == "NO_PROPOSAL_CHOSEN"
    assert told.initiator
    assert not known.initiator
    assert told.comparison is not None
    assert known.comparison is not None
    rows = {row.what: row for row in known.comparison.rows}
    assert rows["cipher"].note == "nothing in common"
    assert rows["DH"].note == "nothing in common"
    assert set(rows["DH"].ours) != set(rows["DH"].theirs)
    assert "crypto" in told.remedy
    assert "crypto" in known.remedy


def test_no_rule_for_the_peer() -> None:
    """A stranger's first message is refused with the reason in our log, and no IKE SA is made."""
    link = Link(*tunnel_hosts())
    link.up("net")
    first = link.flights[0].data
    link.inject(link.right, first, source=ip_address("203.0.113.200"))
    assert not link.right.ikes
    assert "no rule secures traffic with 203.0.113.200" in link.right.failures[0].reason


# Forged answers ---------------------------------------------------------------------------------------------


ERRORS = (14, 7, 5, 17, 24, 12345)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_forged_error_does_not_end_the_negotiation(kind: int) -> None:
    """Section 2.21.1: before there are keys an error is a hint; the true answer, which comes later,
    counts."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "delay", 0.2)
    link.up("net")
    data = b"\0\1" if kind == N.INVALID_KE_PAYLOAD else b"forged"
    link.inject(link.left, forged(link.flights[0].data, Notify(type=kind, spi=b"", data=data)))
    link.run(40)
    agree(link, ikes=1, pairs=1)
    assert not link.left.of(NegotiationFailed)


def test_a_true_error_is_believed_when_nothing_better_comes() -> None:
    """Else a refused initiator would say that the peer does not answer."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net")
    link.inject(link.left, forged(link.flights[0].data, status(N.NO_PROPOSAL_CHOSEN)))
    link.run(1.5)
    assert link.left.failures[0].notify == "NO_PROPOSAL_CHOSEN"
    assert not link.left.ikes


@pytest.mark.parametrize("first", BOTH)
def test_answers_of_strangers_before_the_true_one(first: str) -> None:
    """Garbage, other exchanges, wrong SPIs and empty answers: none of it is taken for the answer."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "delay", 0.2)
    link.up("net", first)
    initiator = link.named(first)
    sent = Header.decode(link.flights[0].data)
    answer = replace(sent, flags=int(Flags.RESPONSE), spi_r=b"\5" * 8)
    for data in (
        b"",
        b"garbage",
        bytes(28),
        clear(answer, ()),
        clear(replace(answer, exchange=Exchange.IKE_AUTH, message_id=1), ()),
        clear(replace(answer, exchange=Exchange.INFORMATIONAL), ()),
        clear(replace(answer, message_id=7), (Nonce(data=bytes(32)),)),
        clear(answer, payloads(link.flights[0].data)[:2]),
        clear(replace(answer, flags=int(Flags.RESPONSE | Flags.INITIATOR)), ()),
    ):
        link.inject(initiator, data)
    link.run(40)
    agree(link, ikes=1, pairs=1)


# What the SADB cannot do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("trouble", ["spi", "install"])
@pytest.mark.parametrize("where", ["initiator", "responder"])
def test_the_sadb_is_unavailable(first: str, trouble: str, where: str) -> None:
    """The peer must not keep a Child SA that we do not have; the IKE SA may stay, and later all is well."""
    link = Link(*tunnel_hosts())
    initiator = link.named(first)
    broken = initiator if where == "initiator" else link.other(initiator)

    def spi(question: object) -> Exception | None:
        return Unavailable("the SADB is full") if isinstance(question, AllocateSpi) else None

    if trouble == "spi":
        broken.asked = spi
    else:
        broken.backend.refuse = "the engine is out of order"
    link.up("net", first)
    link.run(40)
    agree(link, pairs=0)
    assert any("SADB is full" in one.reason or "out of order" in one.reason for one in broken.failures)
    broken.asked, broken.backend.refuse = None, None
    link.up("net", first)
    link.run(10)
    agree(link, ikes=1, pairs=1)


# Version and form -------------------------------------------------------------------------------------------


def first_message(link: Link) -> bytes:
    """A first message of left that never arrived at right."""
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.left)
    link.up("net")
    return link.flights[0].data


def test_a_higher_major_version_is_told_ours() -> None:
    """Section 2.5: N(INVALID_MAJOR_VERSION) with 2, and nothing is kept; a lower one gets no answer."""
    link = Link(*tunnel_hosts())
    data = bytearray(first_message(link))
    data[17] = 0x30
    link.inject(link.right, bytes(data))
    answer = link.flights[-1]
    assert answer.sender is link.right
    (notify,) = payloads(answer.data)
    assert isinstance(notify, Notify)
    assert (notify.type, notify.data) == (N.INVALID_MAJOR_VERSION, b"\2")
    assert answer.header.major == 2
    data[17] = 0x10
    before = len(link.flights)
    link.inject(link.right, bytes(data))
    data[17], data[19] = 0x30, 0x20  # an answer in version 3 is no reason to answer
    link.inject(link.right, bytes(data))
    assert len(link.flights) == before
    assert len(link.right.drops) == 3
    assert link.right.drops[0] == link.right.drops[2] == "version"  # version 1 is another protocol's business
    assert not link.right.ikes


def test_a_higher_minor_version_is_ignored() -> None:
    """Section 2.5: minor versions are compatible."""
    link = Link(*tunnel_hosts())
    data = bytearray(first_message(link))
    data[17] = 0x2F
    link.inject(link.right, bytes(data))
    assert link.right.endpoint.half_open == 1


@pytest.mark.parametrize("critical", [True, False])
def test_an_unknown_payload_in_the_first_message(critical: bool) -> None:
    """Section 2.5: a critical one is refused by its number, another one skipped."""
    link = Link(*tunnel_hosts())
    data = first_message(link)
    header = Header.decode(data)
    kind, octets = encode_chain(payloads(data))
    extra = bytes((kind, 0x80 if critical else 0, 0, 8)) + b"what" + octets
    header = replace(header, next_payload=201, length=HEADER_SIZE + len(extra))
    link.inject(link.right, header.encode() + extra)
    (answer, *_) = payloads(link.flights[-1].data)
    if critical:
        assert isinstance(answer, Notify)
        assert (answer.type, answer.data) == (N.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc9")
        assert not link.right.ikes
    else:
        assert not isinstance(answer, Notify)
        assert link.right.endpoint.half_open == 1


@pytest.mark.parametrize("exchange", [33, 38, 43, 200])
def test_an_unknown_exchange_without_an_ike_sa(exchange: int) -> None:
    """It is for nobody; the complaint is for the sender, and nothing is kept."""
    link = Link(*tunnel_hosts())
    data = bytearray(first_message(link))
    data[18] = exchange
    link.inject(link.right, bytes(data))
    assert not link.right.ikes
    assert link.right.drops == ["unknown-spi"]


def test_a_zero_length_payload_and_every_truncation() -> None:
    """A payload that says its length is 0 would be read for ever; a message cut anywhere is dropped."""
    link = Link(*tunnel_hosts())
    data = first_message(link)
    header = Header.decode(data)
    link.inject(link.right, replace(header, length=HEADER_SIZE + 4).encode() + bytes(4))
    for n in range(0, len(data), 7):
        link.inject(link.right, data[:n])
        if n >= HEADER_SIZE:
            link.inject(link.right, data[:24] + n.to_bytes(4, "big") + data[28:n])
    assert not link.right.ikes
    assert set(link.right.drops) == {"malformed"}
    link.inject(link.right, data)
    assert link.right.endpoint.half_open == 1


# Half-open negotiations -------------------------------------------------------------------------------------


def flood(link: Link, count: int, addresses: int) -> None:
    """First messages with different SPIs from some addresses, whose senders never go on."""
    data = first_message(Link(*tunnel_hosts(seed=3)))
    for n in range(count):
        source = ip_address(f"198.51.100.{n % addresses + 1}")
        link.inject(link.right, (n + 1).to_bytes(8, "big") + data[8:], source=source)


ROAD = tunnel_rules("right", peer="any")


def road_link(**settings: int) -> Link:
    """Right takes any peer."""
    left, _ = tunnel_hosts()
    right = host("right", RIGHT, ROAD, psk("right.example", "left.example"), IkeSettings(**settings))
    return Link(left, right)


def test_a_flood_stays_bounded_and_passes() -> None:
    """Half-open negotiations end by their limit and by their time, and then a good peer gets in."""
    link = road_link(half_open=50, half_open_per_address=1000, cookie_threshold=1000)
    flood(link, 300, 100)
    assert link.right.endpoint.half_open == 50
    assert len(link.right.ikes) == 50
    assert link.right.drops.count("half-open-limit") == 250
    link.run(31)
    assert link.right.endpoint.half_open == 0
    assert not link.right.ikes
    link.up("net")
    link.run(10)
    agree(link, pairs=1)


def test_one_address_cannot_take_all_places() -> None:
    """From half of its share on an address must return cookies, and beyond its share it gets nothing more, so
    that others still get in; one that is only written down by a forger is not locked out."""
    link = road_link(half_open=50, half_open_per_address=6, cookie_threshold=1000)
    data = first_message(Link(*tunnel_hosts(seed=4)))
    flood(link, 40, 1)
    assert link.right.endpoint.half_open == 3
    source = ip_address("198.51.100.1")
    for n in range(100, 110):
        spi = n.to_bytes(8, "big")
        link.inject(link.right, spi + data[8:], source=source)
        (cookie,) = payloads(link.flights[-1].data)[:1]
        paid = clear(replace(Header.decode(data), spi_i=spi), [cookie, *payloads(data)])
        link.inject(link.right, paid, source=source)
    assert link.right.endpoint.half_open == 6
    assert "half-open-limit" in link.right.drops
    link.up("net")
    link.run(5)
    assert link.left.pairs


def test_with_cookies_a_flood_of_forged_addresses_keeps_nothing() -> None:
    """Who does not receive at its address cannot return the cookie."""
    link = road_link(cookie_threshold=10)
    flood(link, 200, 200)
    assert link.right.endpoint.half_open == 10
    link.up("net")
    link.run(5)
    assert link.left.pairs


def test_a_large_offer_is_not_kept() -> None:
    """Sixty thousand octets of transforms are a million in memory, and a thousand strangers may wait."""
    link = Link(*tunnel_hosts())
    link.up("net")
    offer, *others = payloads(link.flights[0].data)
    assert isinstance(offer, SecurityAssociation)
    first, *more = offer.proposals
    many = tuple(replace(first.transforms[0], attributes=((0x7FFF, b""),) * 250) for _ in range(58))
    large = replace(first, transforms=(*first.transforms, *many))
    data = clear(link.flights[0].header, [replace(offer, proposals=(large, *more)), *others])
    link._queue.clear()
    before = weight(link.right)
    link.inject(link.right, data)
    assert link.right.endpoint.half_open == 1
    assert weight(link.right) - before < 3 * len(data)


def test_a_half_open_peer_that_comes_too_late() -> None:
    """After the time for it has passed there is no IKE SA any more, and its IKE_AUTH is for nobody."""
    link = Link(*tunnel_hosts())
    link.fate = lambda flight: setattr(flight, "delay", 40.0 if flight.header.exchange == 35 else 0.01)
    link.up("net")
    link.run(35)
    assert link.right.endpoint.half_open == 0
    assert not link.right.ikes
    link.run(100)
    assert not link.left.pairs
    assert not link.right.pairs


def test_more_ike_sas_than_there_may_be() -> None:
    """Beyond `limits.associations` first messages are dropped and counted; who is there stays."""
    link = road_link(associations=3, cookie_threshold=100)
    link.up("net")
    link.run(2)
    flood(link, 20, 20)
    assert len(link.right.ikes) == 3
    assert link.right.drops.count("association-limit") == 18
    assert link.right.pairs


@pytest.mark.parametrize("change", ["no initiator flag", "zero SPI", "responder's SPI", "message ID"])
def test_first_messages_that_are_none(change: str) -> None:
    """The header of a first message leaves nothing to choose (section 3.1)."""
    link = Link(*tunnel_hosts())
    data = first_message(link)
    header = Header.decode(data)
    changes: dict[str, dict[str, object]] = {
        "no initiator flag": {"flags": 0},
        "zero SPI": {"spi_i": bytes(8)},
        "responder's SPI": {"spi_r": b"\1" * 8},
        "message ID": {"message_id": 1},
    }
    link.inject(link.right, replace(header, **changes[change]).encode() + data[HEADER_SIZE:])
    assert not link.right.ikes
    assert link.right.drops == ["malformed"]
