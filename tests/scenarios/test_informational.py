"""INFORMATIONAL, request windows and repetition (RFC 7296 sections 1.4, 1.5, 2.1 to 2.5): deletion, liveness,
notices, and what hostile or broken messages inside an IKE SA may change.

If one of these fails, SAs outlive their peers, or a message that was recorded, changed or made up has an
effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from support.link import BOTH, Flight, Host, Link, agree, connected, losing, mirrored, story, tunnel_hosts

from ikd.events import Broken, ChildClosed, IkeClosed, MessageSent
from ikd.ikev2 import child
from ikd.ikev2.channel import clear
from ikd.ikev2.message import Message, status
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import Delete, Nonce, Notify, SecurityAssociation
from ikd.settings import IkeSettings
from ikd.wire.isakmp import Body, Flags, Header, Unknown
from sadb.address import SocketAddress
from sadb.sa import UnknownSpi

ORDERS = pytest.mark.parametrize("first", BOTH)


def seal(one: Host, link: Link, exchange: int, *payloads: Body, number: int | None = None) -> bytes:
    """A protected request of a host, as only it can make it."""
    channel = one.ikes[0].session.channel
    message_id = channel.next_id if number is None else number
    (data,) = channel.seal(Message(exchange, payloads, False, message_id), link.path(one))
    return data


def opened(one: Host, flight: Flight) -> Message:
    """What a host reads in a datagram that is meant for it."""
    message = one.ikes[0].session.channel.open(flight.header, flight.data)
    assert message is not None
    return message


# Deleting ---------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("lost", [(), (0,), (1,), (0, 1)], ids=str)
def test_a_child_is_deleted(first: str, lost: tuple[int, ...]) -> None:
    """On both sides, with its reason where it began; the IKE SA stays."""
    link = connected(nets=2)
    link.up("net1")
    link.run(1)
    link.fate = losing(*lost)
    host = link.named(first)
    # HDR, SK {D(inbound SPI)}  -->  <--  HDR, SK {D(the other inbound SPI)}
    link.close_child(host)
    link.run(10)
    agree(link, ikes=1, pairs=1)
    assert host.of(ChildClosed)[0].reason == "a test"
    assert link.other(host).of(ChildClosed)[0].reason == "deleted by the peer"


@ORDERS
@pytest.mark.parametrize("lost", [(), (0,), (1,)], ids=str)
def test_an_ike_sa_is_deleted(first: str, lost: tuple[int, ...]) -> None:
    """It takes its Child SAs along at both ends."""
    link = connected(nets=3)
    link.up("net1")
    link.up("net2")
    link.run(1)
    link.fate = losing(*lost)
    host = link.named(first)
    # HDR, SK {D}  -->  <--  HDR, SK {}
    link.close(host)
    link.run(60)
    agree(link, ikes=0, pairs=0)
    assert not host.of(IkeClosed)[0].by_peer
    assert link.other(host).of(IkeClosed)[0].by_peer


def test_several_children_in_one_delete() -> None:
    """Every SPI of a Delete payload counts; unknown ones and repetitions are passed over (section 1.4.1)."""
    link = connected(nets=3)
    link.up("net1")
    link.up("net2")
    link.run(1)
    spis = [pair.inbound.spi.to_bytes(4, "big") for pair in link.left.pairs[1:]]
    delete = Delete(protocol=3, spis=(b"\1\2\3\4", *spis, spis[0], bytes(4)))
    link.inject(link.right, seal(link.left, link, Exchange.INFORMATIONAL, delete))
    assert len(link.right.pairs) == 1
    (answer,) = opened(link.left, link.flights[-1]).payloads
    assert isinstance(answer, Delete)
    assert len(answer.spis) == 2


def test_a_delete_of_another_protocol_or_size() -> None:
    """SPIs of AH name no ESP pair, and SPIs of other lengths nothing at all."""
    link = connected()
    spi = link.left.pairs[0].inbound.spi.to_bytes(4, "big")
    for delete in (
        Delete(protocol=2, spis=(spi,)),
        Delete(protocol=3, spis=(b"\0" * 4 + spi,)),
        Delete(protocol=3, spis=()),
        Delete(protocol=99, spis=(spi,)),
    ):
        link.inject(link.right, seal(link.left, link, Exchange.INFORMATIONAL, delete))
        link.left.ikes[0].session.channel.next_id += 1
        assert not link.right.of(Broken)
    assert len(link.right.pairs) == 1, story(link)


# Liveness ---------------------------------------------------------------------------------------------------


def test_both_sides_stay_up_for_a_day() -> None:
    """Liveness, replaced keys of both kinds: after a day there is one IKE SA and one pair."""
    link = connected()
    link.watch()
    link.run(86400)
    agree(link, ikes=1, pairs=1)
    assert not link.gaps
    probes = [
        one for one in link.left.of(MessageSent) if one.exchange == "INFORMATIONAL" and not one.payloads
    ]
    assert probes


@ORDERS
def test_a_dead_peer_is_noticed(first: str) -> None:
    """After silence it is asked, several times, and then all it had goes."""
    link = connected()
    host = link.named(first)
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(30 + 60)
    assert not host.ikes
    assert not host.database.pairs() or not list(host.database.pairs())
    assert host.of(IkeClosed)[0].reason == "the peer does not answer"


def test_traffic_is_a_sign_of_life() -> None:
    """While packets come in on a pair nobody needs to ask."""
    link = connected()
    count = len(link.flights)
    for _ in range(10):
        link.run(20)
        for one in (link.left, link.right):
            one.pairs[0].inbound.usage.last = link.now
    assert len(link.flights) == count


def test_liveness_can_be_switched_off() -> None:
    """With 0 nothing is sent while nothing happens."""
    link = connected(settings=IkeSettings(liveness=0))
    count = len(link.flights)
    link.run(1000)
    assert len(link.flights) == count


# Notices ----------------------------------------------------------------------------------------------------


def test_an_unknown_spi_is_told_inside_the_ike_sa() -> None:
    """Section 1.5: INVALID_SPI goes protected to a peer that has an IKE SA, and nobody else hears
    anything."""
    link = connected()
    count = len(link.flights)
    stranger = UnknownSpi(0x1234567, SocketAddress(ip_address("203.0.113.5"), 4500))
    link.perform(link.left, link.left.endpoint.unknown_spi(stranger, link.now))
    assert len(link.flights) == count
    link.perform(
        link.left, link.left.endpoint.unknown_spi(UnknownSpi(0x1234567, link.right.address), link.now)
    )
    (notify,) = opened(link.right, link.flights[-1]).payloads
    assert isinstance(notify, Notify)
    assert (notify.type, notify.data) == (N.INVALID_SPI, bytes.fromhex("01234567"))
    link.run(5)
    agree(link, ikes=1, pairs=1)


def test_unknown_spis_do_not_become_a_flood() -> None:
    """Each packet of a stranger would else cost a message."""
    link = connected()
    count = len(link.flights)
    for n in range(100):
        notice = UnknownSpi(0x1000 + n, link.right.address)
        link.perform(link.left, link.left.endpoint.unknown_spi(notice, link.now))
        link.run(0.001)
    assert len(link.flights) - count <= 20


@ORDERS
def test_authentication_failed_inside_an_ike_sa_ends_it(first: str) -> None:
    """Section 2.21.2: the initiator tells a responder that believed to be done."""
    link = connected()
    host = link.named(first)
    link.inject(link.other(host), seal(host, link, Exchange.INFORMATIONAL, status(N.AUTHENTICATION_FAILED)))
    assert not link.other(host).ikes
    assert not link.other(host).pairs


# Repetition and replay --------------------------------------------------------------------------------------


def journey(link: Link) -> None:
    """Each kind of exchange once, in both directions."""
    for one in (link.left, link.right):
        link.rekey_child(one)
        link.run(5)
        link.up("net1", one)
        link.run(5)
        link.close_child(one)
        link.run(5)
        link.rekey(one)
        link.run(5)


@ORDERS
def test_a_repeated_request_gets_the_same_octets(first: str) -> None:
    """Section 2.1: the answer is kept and sent again, and nothing is done a second time."""
    link = connected(nets=2)
    host = link.named(first)
    receiver = link.other(host)
    for begin in (Link.rekey_child, lambda link, one: link.up("net1", one), Link.close_child):
        before = len(link.flights)
        begin(link, host)
        request = link.flights[before]
        link.run(0.011)
        answers = [one for one in link.flights[before:] if one.sender is receiver]
        pairs = [one.inbound.spi for one in receiver.pairs]
        count = len(link.flights)
        for _ in range(3):
            link.inject(receiver, request.data)
        again = link.flights[count:]
        assert [one.data for one in again] == [answers[0].data] * 3
        assert [one.inbound.spi for one in receiver.pairs] == pairs
        link.run(5)
    agree(link, ikes=1)


def test_every_datagram_ever_sent_comes_again() -> None:
    """Whoever records everything and sends it again later changes nothing on either side."""
    link = connected(nets=2)
    journey(link)
    agree(link, ikes=1)
    before = [[one.inbound.spi for one in host.pairs] for host in (link.left, link.right)]
    spis = [one.ikes[0].spi_i for one in (link.left, link.right)]
    recorded = list(link.flights)
    link.fate = lambda flight: setattr(flight, "lost", True)  # answers to the replay go nowhere
    for flight in recorded:
        link.inject(link.other(flight.sender), flight.data)
        link.inject(flight.sender, flight.data)  # reflected
    assert [[one.inbound.spi for one in host.pairs] for host in (link.left, link.right)] == before
    link.fate = lambda flight: None
    link.run(60)
    agree(link, ikes=1)
    assert [one.ikes[0].spi_i for one in (link.left, link.right)] == spis


def test_every_datagram_is_changed_on_the_way() -> None:
    """A copy with one bit flipped arrives before each true datagram, at every step: nothing comes of it."""
    link = Link(*tunnel_hosts(nets=2))

    def fate(flight: Flight) -> None:
        if flight.number < 2:
            return  # IKE_SA_INIT is not protected: a changed one is another message, see below
        for at in (20, len(flight.data) - 1, len(flight.data) // 2, 34):
            data = bytearray(flight.data)
            data[at] ^= 1 << (flight.number % 8)
            link.inject(link.other(flight.sender), bytes(data))

    link.fate = fate
    link.up("net")
    link.run(5)
    assert mirrored(link.left, link.right)
    journey(link)
    agree(link, ikes=1)
    assert set(link.left.drops + link.right.drops) <= {
        "unverified",
        "malformed",
        "unexpected",
        "replayed",
        "unknown-spi",
        "unprotected",
    }
    assert "unverified" in link.left.drops
    assert "unverified" in link.right.drops


def test_a_changed_first_message_makes_no_ike_sa() -> None:
    """Whatever is changed in IKE_SA_INIT, either side notices at AUTH, and no SA comes of it (section
    2.15)."""
    for number in (0, 1):
        for at in range(28, 400, 23):
            link = Link(*tunnel_hosts())

            def fate(flight: Flight, number: int = number, at: int = at) -> None:
                header = flight.header
                if header.exchange == 34 and bool(header.flags & 0x20) == number and at < header.length:
                    data = bytearray(flight.data)
                    data[at] ^= 0x40
                    flight.data = bytes(data)

            link.fate = fate
            link.up("net")
            link.run(5)
            changed = at < len(link.flights[number].data)
            assert not changed or not link.left.pairs, (number, at, story(link))
            assert not link.left.of(Broken)
            assert not link.right.of(Broken)


@pytest.mark.parametrize("number", [0, 1, 10, 100, 0xFFFFFFFF])
def test_requests_outside_the_window(number: int) -> None:
    """Section 2.3: they are dropped, authentic or not, and the window does not move."""
    link = connected()
    link.inject(link.right, seal(link.left, link, Exchange.INFORMATIONAL, number=number))
    assert link.right.drops == ["replayed"]
    link.run(5)
    link.rekey_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=1)


def test_an_answer_to_nothing() -> None:
    """Answers to requests we have not made, and of another exchange than we asked, are dropped."""
    link = connected()
    channel = link.right.ikes[0].session.channel
    for number in (0, 1, 2, 77):
        (data,) = channel.seal(Message(Exchange.INFORMATIONAL, (), True, number), link.path(link.right))
        link.inject(link.left, data)
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.rekey_child(link.left)
    (data,) = channel.seal(Message(Exchange.INFORMATIONAL, (), True, 2), link.path(link.right))
    link.inject(link.left, data)
    assert link.left.drops == ["unexpected"] * 5
    link.fate = lambda flight: None
    link.run(10)
    agree(link, ikes=1, pairs=1)


def test_unprotected_messages_inside_an_ike_sa() -> None:
    """Section 2.21: what is not protected changes nothing, neither errors nor deletions."""
    link = connected()
    header = link.flights[3].header  # IKE_AUTH response of right
    for flags in (int(Flags.RESPONSE), 0):
        for exchange in (Exchange.INFORMATIONAL, Exchange.IKE_AUTH, Exchange.CREATE_CHILD_SA):
            for payload in (
                status(N.INVALID_IKE_SPI),
                Delete(protocol=1, spis=()),
                status(N.AUTHENTICATION_FAILED),
            ):
                for number in (0, 1, 2):
                    made = replace(header, flags=flags, exchange=exchange, message_id=number)
                    link.inject(link.left, clear(made, (payload,)))
    agree(link, ikes=1, pairs=1)


# What the peer sends wrongly --------------------------------------------------------------------------------


def wishes(one: Host) -> list[Body]:
    """What a request for a Child SA of `net` has."""
    rule = one.endpoint.policy.rule("net")
    assert rule is not None
    sa, *ts = child.offer(rule, child.quick_suites(rule), 0x12345678, rule.selector, transport=False)
    return [sa, Nonce(data=bytes(32)), *ts]


def answer_to(link: Link, exchange: int, *payloads: Body) -> Message:
    """What right answers to an authentic request of left."""
    count = len(link.flights)
    link.inject(link.right, seal(link.left, link, exchange, *payloads))
    assert len(link.flights) > count
    channel = link.left.ikes[0].session.channel
    channel.next_id += 1
    message = channel.open(link.flights[count].header, link.flights[count].data)
    assert message is not None
    return message


@pytest.mark.parametrize("exchange", [Exchange.INFORMATIONAL, Exchange.CREATE_CHILD_SA])
def test_an_unknown_critical_payload(exchange: int) -> None:
    """Section 2.5: UNSUPPORTED_CRITICAL_PAYLOAD with its number; the IKE SA stays."""
    link = connected()
    (notify,) = answer_to(link, exchange, Unknown(201, True, b"what")).payloads
    assert isinstance(notify, Notify)
    assert (notify.type, notify.data) == (N.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xc9")
    agree(link, ikes=1, pairs=1)


def test_an_unknown_payload_that_is_not_critical() -> None:
    """It is skipped."""
    link = connected()
    assert not answer_to(link, Exchange.INFORMATIONAL, Unknown(201, False, b"what")).payloads
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("exchange", [Exchange.IKE_AUTH, 38, 43, 240])
def test_an_exchange_that_does_not_belong(exchange: int) -> None:
    """INVALID_SYNTAX, and nothing of ours is left in doubt at the peer."""
    link = connected()
    (notify,) = answer_to(link, exchange, Nonce(data=bytes(32))).payloads
    assert isinstance(notify, Notify)
    assert notify.type == N.INVALID_SYNTAX


@pytest.mark.parametrize(
    "payloads",
    [
        (),
        (SecurityAssociation(proposals=()),),
        (Nonce(data=bytes(32)), Nonce(data=bytes(32))),
        (SecurityAssociation(proposals=()), Nonce(data=bytes(32))),
    ],
    ids=["empty", "no nonce", "two nonces", "no proposals"],
)
def test_create_child_sa_that_is_wrong(payloads: tuple[Body, ...]) -> None:
    """INVALID_SYNTAX and the end of the IKE SA (section 2.21.3), or a refusal; never an error of ours."""
    link = connected()
    (notify,) = answer_to(link, Exchange.CREATE_CHILD_SA, *payloads).payloads
    assert isinstance(notify, Notify)
    assert notify.type in (N.INVALID_SYNTAX, N.NO_PROPOSAL_CHOSEN, N.TS_UNACCEPTABLE)
    assert not link.right.of(Broken)


@pytest.mark.parametrize("spi", [b"", b"\1", b"\0\0\0\1", b"\1\2\3\4", bytes(8)])
def test_a_replacement_of_what_is_not_there(spi: bytes) -> None:
    """CHILD_SA_NOT_FOUND; nothing changes."""
    link = connected()
    notify = Notify(protocol=3, type=N.REKEY_SA, spi=spi)
    refused = answer_to(link, Exchange.CREATE_CHILD_SA, notify, *wishes(link.left)).error()
    assert refused is not None
    assert refused.type == N.CHILD_SA_NOT_FOUND
    agree(link, ikes=1, pairs=1)


def test_notifies_nobody_knows() -> None:
    """Unknown status notifies are ignored everywhere (section 3.10.1)."""
    link = connected()
    notifies = [Notify(type=40000 + n, spi=b"", data=b"x" * (n % 5)) for n in range(50)]
    assert not answer_to(link, Exchange.INFORMATIONAL, *notifies).payloads
    agree(link, ikes=1, pairs=1)


WRONG: dict[str, Callable[[Message], tuple[Body, ...]]] = {
    "nothing": lambda message: (),
    "no nonce": lambda message: tuple(one for one in message.payloads if not isinstance(one, Nonce)),
    "two nonces": lambda message: (*message.payloads, Nonce(data=bytes(32))),
    "unknown critical": lambda message: (*message.payloads, Unknown(201, True, b"")),
    "no selectors": lambda message: tuple(one for one in message.payloads if one.kind not in (44, 45)),
    "unknown error": lambda message: (Notify(type=9999, spi=b"", data=b""),),
    "no more": lambda message: (status(N.NO_ADDITIONAL_SAS),),
    "syntax": lambda message: (status(N.INVALID_SYNTAX),),
    "forever busy": lambda message: (status(N.TEMPORARY_FAILURE),),
    "group": lambda message: (status(N.INVALID_KE_PAYLOAD, b"\0\x0e"),),
    "group 0": lambda message: (status(N.INVALID_KE_PAYLOAD, b""),),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("begin", [Link.rekey_child, Link.rekey, lambda link, one: link.up("net1", one)],
                         ids=["rekey child", "rekey IKE", "create child"])  # fmt: skip
def test_a_wrong_answer_to_create_child_sa(begin: Callable[[Link, Host], None], wrong: str) -> None:
    """Whatever an authentic peer answers, the exchange ends, nothing half-made stays, and it is told why."""
    link = connected(nets=2)
    channel = link.right.ikes[0].session.channel
    left = link.left.ikes[0].session.channel

    def fate(flight: Flight) -> None:
        header = flight.header
        if (
            flight.sender is link.right
            and header.exchange == Exchange.CREATE_CHILD_SA
            and header.flags & 0x20
        ):
            if header.spi_i != left.spi_i:
                return
            message = left.open(header, flight.data)
            assert message is not None
            made = Message(message.exchange, WRONG[wrong](message), True, message.message_id)
            (flight.data,) = channel.seal(made, flight.path)

    link.fate = fate
    begin(link, link.left)
    link.run(25)
    assert not link.left.of(Broken), link.left.of(Broken)[0].text
    assert link.left.endpoint.idle, story(link)
    unchanged = begin is Link.rekey and wrong == "no selectors"
    assert bool(link.left.failures) is not unchanged, story(link)
    assert link.left.database.counts().larval == 0
    link.fate = lambda flight: None
    link.run(120)
    assert link.left.endpoint.idle
    for one in link.left.ikes:
        assert one.waiting == ""


def test_the_header_says_so() -> None:
    """A peer that swaps the initiator flag or the SPIs talks to nobody."""
    link = connected()
    data = seal(link.left, link, Exchange.INFORMATIONAL)
    header = Header.decode(data)
    for changed in (
        replace(header, flags=header.flags ^ Flags.INITIATOR),
        replace(header, spi_i=header.spi_r, spi_r=header.spi_i),
        replace(header, spi_i=b"\1" * 8),
        replace(header, spi_r=b"\1" * 8),
    ):
        link.inject(link.right, changed.encode() + data[28:])
    assert set(link.right.drops) == {"unknown-spi"}
    agree(link, ikes=1, pairs=1)
