"""MOBIKE, RFC 4555, against those who want traffic to go where it should not: strangers on the path, and a
proven peer that lies.

If one of these fails, somebody who can change an outer header has ESP sent to a third host, or a peer fills
tables or ends what is not its own."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.link import ANY, HOST, LEFT, RIGHT, TUNNEL, Flight, Host, agree, policy, story, tunnel_hosts
from support.roaming import LEFT2, RIGHT2, VICTIM, Roaming, ends, meet, roaming

from ikd.events import IkeClosed, NegotiationFailed, PeerMoved
from ikd.ikev2 import mobike
from ikd.ikev2.message import Message, status
from ikd.ikev2.mobility import MOST_HEARD, MOST_REFUSED, MOST_TOLD
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import PAYLOADS, Notify
from ikd.settings import IkeSettings
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Header, chain, encode_chain
from policy.engine import Policy
from sadb.address import Path, SocketAddress, parse

ELSEWHERE = SocketAddress(VICTIM, 4500)


def request(link: Roaming, sender: Host, payloads: Iterable[Body], number: int | None = None) -> bytes:
    """An INFORMATIONAL request that a host has protected but its core knows nothing of."""
    channel = sender.ikes[0].session.channel
    number = channel.next_id if number is None else number
    channel.next_id = max(channel.next_id, number + 1)
    (data,) = channel.seal(Message(Exchange.INFORMATIONAL, tuple(payloads), False, number), link.path(sender))
    return data


def hear(
    link: Roaming, sender: Host, payloads: Iterable[Body], source: SocketAddress | None = None
) -> Message:
    """Let the other host hear a request; its answer."""
    receiver, data = link.other(sender), request(link, sender, payloads)
    path = Path(SocketAddress(receiver.address, 4500), source or SocketAddress(sender.address, 4500))
    count = len(link.flights)
    link.perform(receiver, receiver.endpoint.receive(data, path, link.now))
    answers = [one for one in link.flights[count:] if one.sender is receiver and one.header.flags & 0x20]
    assert len(answers) == 1, story(link)
    found = sender.ikes[0].session.channel.open(Header.decode(answers[0].data), answers[0].data)
    assert found is not None
    return found


def notifies(message: Message) -> list[int]:
    """The types of its notifies."""
    return [one.type for one in message.every(Notify)]


def update(link: Roaming) -> Flight:
    """Let the left host move, and take its UPDATE_SA_ADDRESSES off the wire."""
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.left)
    link.change(link.left, LEFT, LEFT2)
    link.run(0.001)
    link.fate = lambda flight: None
    return link.flights[-1]


def is_answer(flight: Flight) -> bool:
    """Whether it is an INFORMATIONAL response."""
    return flight.header.exchange == Exchange.INFORMATIONAL and bool(flight.header.flags & 0x20)


def sent_to(link: Roaming, address: object, since: int = 0) -> list[Flight]:
    """What went to an address."""
    return [one for one in link.flights[since:] if one.path.peer.address == address]


# Strangers ------------------------------------------------------------------------------------------------


def test_an_update_that_is_changed_is_none() -> None:
    """Every octet of it is authenticated: changed, cut or made up it moves nothing and is not answered."""
    link = roaming()
    flight = update(link)
    count, path = len(link.flights), link.right.ikes[0].path
    for at in range(0, len(flight.data), 3):
        data = bytearray(flight.data)
        data[at] ^= 1
        link.deliver(Flight(link.left, bytes(data), flight.path, 0), ELSEWHERE)
        link.deliver(Flight(link.left, flight.data[:at], flight.path, 0), ELSEWHERE)
    assert link.right.ikes[0].path == path
    assert not link.right.of(PeerMoved)
    complaints = sent_to(link, VICTIM, count)
    assert all(one.header.next_payload != 46 for one in complaints)
    link.run(10)
    agree(link, ikes=1, pairs=1)
    assert meet(link)


@pytest.mark.parametrize("port", [4500, 1, 65535])
@pytest.mark.parametrize("address", [VICTIM, LEFT2])
def test_an_update_with_another_source(address: object, port: int) -> None:
    """Who sits on the path writes another address, or port, on an authentic update. ESP goes there not before
    somebody with the keys has answered from there, and few messages do."""
    link = roaming()
    flight = update(link)
    before = ends(link.right.pairs[0])
    count = len(link.flights)
    link.addresses[link.left] = [LEFT]  # it has never moved, but for that
    link.deliver(flight, SocketAddress(address, port))  # type: ignore[arg-type]
    for _ in range(100):
        link.run(1)
        assert all(ends(one) == before for one in link.right.pairs), story(link)
    if address == VICTIM:
        assert len(sent_to(link, VICTIM, count)) <= 8
    assert link.right.ikes, "the peer was found where it was before"
    assert link.right.ikes[0].path.peer == SocketAddress(LEFT, 4500)


def test_without_the_check_the_peer_is_believed() -> None:
    """What the setting says, for networks without strangers."""
    link = roaming(right_settings=IkeSettings(routability_check=False))
    flight = update(link)
    link.deliver(flight, ELSEWHERE)
    assert ends(link.right.pairs[0])[1] == VICTIM


def test_an_update_comes_again() -> None:
    """A recording of it, from elsewhere and later: the answer is the one that was given, and nothing
    moves."""
    link = roaming()
    link.change(link.left, LEFT, LEFT2)
    link.run(3)
    recorded = [one for one in link.flights if one.sender is link.left and one.header.exchange == 37]
    link.change(link.left, LEFT2, LEFT)
    link.run(3)
    path, pair = link.right.ikes[0].path, ends(link.right.pairs[0])
    count, said = len(link.flights), {one.data for one in link.flights}
    for flight in recorded:
        link.deliver(flight, ELSEWHERE)
        link.deliver(flight, SocketAddress(LEFT2, 4500))
    assert (link.right.ikes[0].path, ends(link.right.pairs[0])) == (path, pair)
    assert {one.data for one in link.flights[count:]} <= said
    link.run(100)
    assert meet(link)


def test_an_answer_with_another_source_moves_nobody() -> None:
    """Only the ways that were tried are believed."""
    link = roaming()
    link.change(link.left, LEFT, LEFT2)
    link.run(0.015)
    answers = [one for one in link.flights if one.sender is link.right and is_answer(one)]
    for flight in answers:
        path = Path(SocketAddress(LEFT2, 4500), ELSEWHERE)
        link.perform(link.left, link.left.endpoint.receive(flight.data, path, link.now))
    link.run(10)
    agree(link, ikes=1, pairs=1)
    assert meet(link)
    assert not sent_to(link, VICTIM)


def test_a_list_of_addresses_with_another_source() -> None:
    """The one in use seems to be gone. Messages go where the list seems to come from until nobody answers;
    then the other ways are tried, and ESP never leaves the first."""
    link = roaming()
    before = ends(link.left.pairs[0])
    hear(link, link.right, [status(N.NO_ADDITIONAL_ADDRESSES)], ELSEWHERE)
    for _ in range(40):
        link.run(1)
        assert ends(link.left.pairs[0]) == before
    agree(link, ikes=1, pairs=1)
    assert link.left.ikes[0].path.peer.address == RIGHT


# A proven peer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["other", "none", "long"])
def test_who_returns_another_cookie_is_not_there(what: str) -> None:
    """Section 3.7: the IKE SA is closed."""
    link = roaming()
    flight = update(link)
    cookies = {"other": [status(N.COOKIE2, bytes(16))], "none": [], "long": [status(N.COOKIE2, bytes(65))]}
    number = flight.header.message_id
    answer = Message(Exchange.INFORMATIONAL, tuple(cookies[what]), True, number)
    (data,) = link.right.ikes[0].session.channel.seal(answer, link.path(link.right))
    path = Path(SocketAddress(LEFT2, 4500), SocketAddress(RIGHT, 4500))
    link.perform(link.left, link.left.endpoint.receive(data, path, link.now))
    assert not link.left.ikes
    assert "COOKIE2" in link.left.of(IkeClosed)[0].reason


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_cookie_is_returned(size: int) -> None:
    """As it is, section 3.7."""
    link = roaming()
    cookie = bytes(range(size))
    answer = hear(link, link.left, [status(N.COOKIE2, cookie)])
    assert [(one.type, one.data) for one in answer.every(Notify)] == [(N.COOKIE2, cookie)]


@pytest.mark.parametrize("size", [0, 7, 65, 1000])
def test_a_cookie_that_cannot_be(size: int) -> None:
    """Section 4.2.5; who writes such ones ends the IKE SA, as with any other syntax error."""
    link = roaming()
    assert notifies(hear(link, link.left, [status(N.COOKIE2, bytes(size))])) == [N.INVALID_SYNTAX]


def test_addresses_have_a_limit() -> None:
    """A peer that has thousands, and such that are nobody's, is remembered with a few."""
    link = roaming()
    strange = [parse(one) for one in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "::1", "ff02::1")]
    many = [parse("198.51.100.0") + n for n in range(1, 40)]
    for one in (link.left, link.right):
        hear(link, one, [told(address) for address in [*strange[:4], *many]])
    for one in (link.left, link.right):
        found = one.ikes[0].session.mobility.addresses
        assert 0 < len(found) <= MOST_HEARD
        assert not set(found) & set(strange)
    hear(link, link.right, [told(address) for address in strange])
    assert link.left.ikes[0].session.mobility.addresses == ()


def told(address: object) -> Notify:
    """N(ADDITIONAL_*_ADDRESS)."""
    packed = address.packed  # type: ignore[attr-defined]
    return status(N.ADDITIONAL_IP4_ADDRESS if len(packed) == 4 else N.ADDITIONAL_IP6_ADDRESS, packed)


def test_we_tell_a_few() -> None:
    """And neither those inside of the tunnel nor those that lead nowhere."""
    link = roaming()
    link.addresses[link.left] += [parse("203.0.113.0") + n for n in range(1, 40)]
    link.addresses[link.left] += [parse(one) for one in ("10.1.0.1", "127.0.0.1", "fe80::1", "2001:db8::5")]
    link.tell(link.left)
    link.run(3)
    found = link.right.ikes[0].session.mobility.addresses
    assert len(found) == MOST_TOLD
    assert all(str(one).startswith("203.0.113.") for one in found)


@pytest.mark.parametrize(
    "notify",
    [
        status(N.ADDITIONAL_IP4_ADDRESS, bytes(3)),
        status(N.ADDITIONAL_IP4_ADDRESS, bytes(16)),
        status(N.ADDITIONAL_IP6_ADDRESS, bytes(4)),
        status(N.ADDITIONAL_IP6_ADDRESS),
    ],
)
def test_an_address_of_another_length(notify: Notify) -> None:
    """A syntax error, which nothing crashes of."""
    link = roaming()
    assert notifies(hear(link, link.left, [notify])) == [N.INVALID_SYNTAX]


def test_who_forbids_nats_is_told_of_one() -> None:
    """Section 3.9: what such a request says does not count."""
    link = roaming()
    path = link.right.ikes[0].path
    ports = (4500).to_bytes(2, "big") * 2
    fitting = status(N.NO_NATS_ALLOWED, LEFT.packed + RIGHT.packed + ports)
    assert notifies(hear(link, link.left, [fitting, told(LEFT2)])) == []
    assert link.right.ikes[0].session.mobility.addresses == (LEFT2,)
    for data in (LEFT.packed + RIGHT.packed + ports, LEFT2.packed + RIGHT.packed + bytes(4), b""):
        message = [status(N.UPDATE_SA_ADDRESSES), status(N.NO_NATS_ALLOWED, data), told(RIGHT2)]
        answer = hear(link, link.left, message, SocketAddress(LEFT2, 4500))
        assert notifies(answer) == [N.UNEXPECTED_NAT_DETECTED]
    assert link.right.ikes[0].path == path
    assert link.right.ikes[0].session.mobility.addresses == (LEFT2,)


@pytest.mark.parametrize("address", ["224.0.0.5", "127.0.0.1", "169.254.7.7", "0.0.0.0", str(RIGHT)])
def test_addresses_that_are_no_peers(address: str) -> None:
    """Nobody can be there, or it is we ourselves: refused, and nothing moves."""
    link = roaming()
    path = link.right.ikes[0].path
    answer = hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], SocketAddress(parse(address), 4500))
    assert notifies(answer) == [N.UNACCEPTABLE_ADDRESSES]
    assert link.right.ikes[0].path == path


@pytest.mark.parametrize(
    "what", [[status(N.UPDATE_SA_ADDRESSES)], [status(N.UPDATE_SA_ADDRESSES), status(N.NO_NATS_ALLOWED)]]
)
def test_a_cookie_is_returned_with_a_refusal(what: list[Notify]) -> None:
    """Section 4.2.5: strongSwan ends the IKE SA of who refuses a move and does not return its COOKIE2."""
    link = roaming()
    cookie = bytes(range(16))
    source = SocketAddress(parse("224.0.0.5"), 4500)
    refusal, returned = hear(link, link.left, [*what, status(N.COOKIE2, cookie)], source).every(Notify)
    assert refusal.type in (N.UNACCEPTABLE_ADDRESSES, N.UNEXPECTED_NAT_DETECTED)
    assert (returned.type, returned.data) == (N.COOKIE2, cookie)
    nonsense = [*what, status(N.COOKIE2, b"short")]
    assert len(notifies(hear(link, link.left, nonsense, source))) == 1


def test_who_does_not_decide_moves_nobody() -> None:
    """UPDATE_SA_ADDRESSES from the side that answered first is not for it to say."""
    link = roaming()
    path = link.left.ikes[0].path
    hear(link, link.right, [status(N.UPDATE_SA_ADDRESSES)], SocketAddress(RIGHT2, 4500))
    assert link.left.ikes[0].path == path


def test_an_older_update_comes_after_a_newer() -> None:
    """Section 3.5: with a window of several requests they overtake each other."""
    link = roaming()
    channel = link.left.ikes[0].session.channel
    older, newer = channel.next_id, channel.next_id + 1
    first = request(link, link.left, [status(N.UPDATE_SA_ADDRESSES), told(RIGHT2)], older)
    second = request(link, link.left, [status(N.UPDATE_SA_ADDRESSES), told(LEFT)], newer)
    for data, source in ((second, LEFT2), (first, VICTIM)):
        path = Path(SocketAddress(RIGHT, 4500), SocketAddress(source, 4500))
        link.perform(link.right, link.right.endpoint.receive(data, path, link.now))
    assert link.right.ikes[0].path.peer.address == LEFT2
    assert link.right.ikes[0].session.mobility.addresses == (LEFT,)


def with_a_rule_for_another(link: Roaming) -> Roaming:
    """Right has a rule for the network behind VICTIM, too, and left would like to be that host."""
    for one, words in (
        (link.left, {"local": "10.9.0.0/24", "remote": "10.2.0.0/24", "own": LEFT, "peer": RIGHT}),
        (link.right, {"local": "10.2.0.0/24", "remote": "10.9.0.0/24", "own": RIGHT, "peer": VICTIM}),
    ):
        (more,) = policy(TUNNEL.format(name="theirs", auth="any", extra="", **words) + ANY).rules
        one.endpoint.env.policy = Policy((*one.endpoint.policy.rules, more))
    return link


@pytest.mark.parametrize("mobike", [True, False])
def test_who_proves_itself_from_elsewhere_does_not_get_that_rule(mobike: bool) -> None:
    """Its IKE_AUTH has the address of another peer as its source. What was answered to its first message came
    to its own, and so did all that made the keys; ESP does not go elsewhere, either, if it can move."""
    link = with_a_rule_for_another(Roaming(*tunnel_hosts(settings=IkeSettings(mobike=mobike))))
    for rule in ("theirs", "net"):
        link.fate = lambda flight: setattr(flight, "lost", flight.header.exchange == Exchange.IKE_AUTH)
        link.up(rule, childless=rule == "net")
        link.run(0.5)
        link.fate = lambda flight: setattr(flight, "lost", flight.path.peer == ELSEWHERE)
        link.deliver(link.flights[-1], ELSEWHERE)
    assert not [pair for pair in link.right.pairs if pair.rule == "theirs"]
    if mobike:
        trusted = [one.session.mobility.trusted.path.peer.address for one in link.right.ikes]
        assert set(trusted) == {LEFT}


@pytest.mark.parametrize("mobike", [True, False])
def test_who_claims_an_address_does_not_get_its_rule(mobike: bool) -> None:
    """UPDATE_SA_ADDRESSES, or behind a NAT any request, with the address of another peer as its source, then
    CREATE_CHILD_SA for the traffic that a rule wants protected with that peer."""
    link = with_a_rule_for_another(roaming(settings=IkeSettings(mobike=mobike)))
    link.right.ikes[0].session.nat_peer = True
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], ELSEWHERE)
    assert link.right.ikes[0].path.peer == ELSEWHERE
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("theirs")
    link.deliver(link.flights[-1], ELSEWHERE)
    assert link.flights[-1].sender is link.right, "it was refused"
    assert {one.rule for one in link.right.pairs} == {"net"}


@pytest.mark.parametrize("mobike", [True, False])
def test_who_claims_an_address_does_not_get_its_packets(mobike: bool) -> None:
    """One rule for every host: in transport mode an SA is for the packets of one of them, and that is the one
    that is known to be at the address."""
    link = roaming(settings=IkeSettings(mobike=mobike))
    (more,) = policy(HOST.format(peer="0.0.0.0/0", extra='auth = "any"') + ANY).rules
    for one in (link.left, link.right):
        one.endpoint.env.policy = Policy((*one.endpoint.policy.rules, more))
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], ELSEWHERE)
    link.right.ikes[0].session.nat_peer = True
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("host")
    link.deliver(link.flights[-1], ELSEWHERE)
    made = [one for one in link.right.pairs if one.rule == "host"]
    assert made
    assert not any(selector.has_address(VICTIM) for one in made for selector in one.selector.remote)


def test_who_claims_an_address_is_not_asked_for_its_traffic() -> None:
    """Right wants to speak to VICTIM. The IKE SA that says it is there now is another peer's, who could read
    the request after it has moved back."""
    link = with_a_rule_for_another(roaming())
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], ELSEWHERE)
    rule = link.right.endpoint.policy.rule("theirs")
    assert rule is not None
    path = Path(SocketAddress(RIGHT, 500), SocketAddress(VICTIM, 500))
    link.perform(link.right, link.right.endpoint.initiate(rule, path, link.now))
    assert link.flights[-1].header.exchange == Exchange.IKE_SA_INIT
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)])
    link.run(5)
    assert {one.rule for one in link.right.pairs} == {"net"}


@pytest.mark.parametrize("stays", [True, False])
def test_a_peer_refuses_our_address(stays: bool) -> None:
    """We stay where we were if we still can; else the IKE SA ends here, and what it carried begins anew."""
    link = roaming()
    link.addresses[link.right].append(LEFT2)  # it takes that for its own
    link.tell(link.right)
    link.addresses[link.right].remove(LEFT2)
    before = ends(link.left.pairs[0])
    if stays:
        link.gain(link.left, LEFT2)
    else:
        link.change(link.left, LEFT, LEFT2)
    link.run(3)
    assert any("UNACCEPTABLE_ADDRESSES" in one.notify for one in link.left.of(NegotiationFailed))
    if stays:
        agree(link, ikes=1, pairs=1)
        assert ends(link.left.pairs[0]) == before
        assert meet(link)
    else:
        assert len(link.left.of(IkeClosed)) == 1


def test_a_peer_refuses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says again and again that it is elsewhere, and does not want to be spoken to there: what it does
    not want is not remembered without end."""
    link = roaming()
    monkeypatch.setattr(mobike, "_acceptable", lambda session, path: False)
    (victim,) = link.left.ikes
    for n in range(0, 1000, 2):
        here, there = (parse("198.51.100.10") + n + more for more in range(2))
        link.addresses[link.right] += [here, there]
        hear(link, link.right, [told(there), told(here)], SocketAddress(here, 4500))
        count = len(link.left.of(NegotiationFailed))
        while victim in link.left.ikes and len(link.left.of(NegotiationFailed)) == count:
            link.run(0.005)
        if victim not in link.left.ikes:
            break
        assert len(victim.session.mobility.refused) <= MOST_REFUSED
    assert "refused to move" in link.left.of(IkeClosed)[0].reason


# Codec ----------------------------------------------------------------------------------------------------

KINDS = st.sampled_from([int(one) for one in N if int(one) in (*range(40, 42), *range(16396, 16403))])


@given(st.lists(st.tuples(KINDS, st.binary(max_size=80)), max_size=12))
def test_any_notifies_about_addresses_are_read(found: list[tuple[int, bytes]]) -> None:
    """Whatever stands in them, they come through the codec as they went in."""
    sent = [Notify(type=kind, spi=b"", data=data) for kind, data in found]
    kind, octets = encode_chain(sent)
    read, _ = chain(kind, octets, PAYLOADS)
    assert list(read) == sent


@given(st.lists(st.tuples(KINDS, st.binary(max_size=80)), max_size=12))
def test_any_notifies_about_addresses_are_survived(found: list[tuple[int, bytes]]) -> None:
    """A proven peer may send any of them in any number, from anywhere: they are answered, nothing breaks, and
    the victim of a wrong address gets no packets."""
    link = roaming()
    for sender in (link.left, link.right):
        if not (link.left.ikes and link.right.ikes):
            return
        try:
            hear(link, sender, [Notify(type=kind, spi=b"", data=data) for kind, data in found], ELSEWHERE)
        except Malformed:
            raise AssertionError("it reached us") from None
    assert all(ends(pair)[1] != VICTIM for one in (link.left, link.right) for pair in one.pairs)


def test_an_answer_from_elsewhere_to_a_request_that_went_everywhere() -> None:
    """A peer claims VICTIM's address. It has our question by another way, as soon as we try all, and answers
    it with VICTIM's address: it has the COOKIE2, and yet it is not there."""
    link = roaming()
    before = ends(link.right.pairs[0])
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], ELSEWHERE)
    answered = 0

    def fate(flight: Flight) -> None:
        nonlocal answered
        if flight.sender is link.left and is_answer(flight):
            flight.lost = True
            answered += 1
            link.deliver(flight, ELSEWHERE)

    link.fate = fate
    for _ in range(60):
        link.run(1)
        assert ends(link.right.pairs[0]) == before, story(link)
    assert answered


def test_an_answer_to_a_question_that_followed_the_peer() -> None:
    """It claims VICTIM's address, then its own again, where it gets what was asked at VICTIM's, and answers
    that when it has claimed VICTIM's once more."""
    link = roaming()
    before = ends(link.right.pairs[0])
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], ELSEWHERE)
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.left and is_answer(flight))
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)])
    link.run(0.1)
    answers = [one for one in link.flights if one.sender is link.left and is_answer(one)]
    hear(link, link.left, [status(N.UPDATE_SA_ADDRESSES)], ELSEWHERE)
    assert answers
    for flight in answers:
        link.deliver(flight, ELSEWHERE)
    assert link.right.ikes[0].path.peer == ELSEWHERE
    assert ends(link.right.pairs[0]) == before
