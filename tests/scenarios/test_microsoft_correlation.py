"""IKE_SA correlation (MS-IKEE section 3.10) and Windows' error codes in IKEv2, in virtual time.

If one of these fails, a peer cannot prove itself again, or a stranger can end or take over a living IKE SA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.link import Flight, Link, agree, mirrored, psk, story, tunnel_hosts

from ikd.auth import Authenticated
from ikd.events import IkeClosed, IkeEstablished, MessageReceived, NegotiationFailed, Reauthenticated
from ikd.ikev2 import correlation, initial
from ikd.ikev2.association import Ikev2Association
from ikd.ikev2.message import Message, Refused
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import Correlation, Notify
from sadb.secret import Secret

RULE = 'crypto = "cbc"'
CBC = '[crypto.cbc]\nmain = ["p256 aes128 sha256"]\n'


def up(sets: str = CBC) -> Link:
    """Two hosts with an IKE SA and a Child SA, the left one its initiator."""
    link = Link(*tunnel_hosts(left_rule=RULE, right_rule=RULE, sets=sets))
    link.up()
    link.run(1)
    agree(link, ikes=1, pairs=1)
    return link


def again(link: Link, side: str = "left", seconds: float = 10.0) -> None:
    """A host proves itself again."""
    host = link.named(side)
    link.perform(host, host.endpoint.reauthenticate(host.ikes[0], link.now))
    link.run(seconds)


def told(link: Link) -> list[bool]:
    """Who has heard of it: whether by the peer, left host first."""
    return [event.by_peer for host in (link.left, link.right) for event in host.of(Reauthenticated)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_living_ike_sa_is_proven_again(side: str) -> None:
    """By either end: both hear of it, and nothing else has changed."""
    link = up()
    before = [(one.spi_i, one.spi_r) for one in link.left.ikes]
    again(link, side)
    agree(link, ikes=1, pairs=1)
    assert [(one.spi_i, one.spi_r) for one in link.left.ikes] == before
    assert told(link) == ([False, True] if side == "left" else [True, False]), story(link)
    for host in (link.left, link.right):
        assert len(host.of(IkeEstablished)) == 1
        assert not host.of(IkeClosed)
        assert not host.failures
    received = link.named(side).of(MessageReceived)[-1].payloads
    assert received == ("N(NO_ADDITIONAL_SAS)", "N(NOTIFY_STATUS 0)")


@pytest.mark.parametrize("lost", range(4))
def test_loss(lost: int) -> None:
    """It is an ordinary negotiation, and survives what one survives."""
    link = up()
    begin = len(link.flights)
    link.fate = lambda flight: setattr(flight, "lost", flight.number - begin == lost)
    again(link, seconds=20)
    agree(link, ikes=1, pairs=1)
    assert sorted(set(told(link))) == [False, True]


def test_packets_do_not_wait_behind_it() -> None:
    """The IKE SA that is thrown away has not failed: the rule is not held down."""
    link = up()
    again(link, seconds=0.5)
    link.close_child(link.left)
    link.run(0.5)
    link.up()
    link.run(0.5)
    assert mirrored(link.left, link.right), story(link)
    link.run(10)
    agree(link, ikes=1, pairs=1)


def test_an_ike_sa_with_an_aead_has_no_key_for_it() -> None:
    """The hash would be made with an empty key, by anybody: refused before it is sent."""
    link = Link(*tunnel_hosts())
    link.up()
    link.run(1)
    again(link)
    agree(link, ikes=1, pairs=1)
    assert "no integrity key" in link.left.failures[-1].reason
    assert told(link) == []


LIES: dict[str, Callable[[Correlation], Correlation]] = {
    "hash": lambda one: replace(one, hash=bytes(len(one.hash))),
    "short hash": lambda one: replace(one, hash=one.hash[:1]),
    "spi_i": lambda one: replace(one, spi_i=bytes(8)),
    "spi_r": lambda one: replace(one, spi_r=b"12345678"),
    "turned": lambda one: replace(one, spi_i=one.spi_r, spi_r=one.spi_i),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_lie_harms_nobody(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not have the keys, or names an IKE SA that is not here, is refused; the living one stays."""
    link = up()
    claim = correlation.claim
    monkeypatch.setattr(initial.correlation, "claim", lambda *session: LIES[lie](claim(*session)))
    again(link)
    agree(link, ikes=1, pairs=1)
    assert told(link) == []
    assert "the peer" in link.right.failures[-1].reason
    assert link.left.failures[-1].notify == "AUTHENTICATION_FAILED"


def test_the_ike_sa_of_another_peer() -> None:
    """Whoever has its keys all the same: only its own peer can prove it again."""
    link = up()
    found = link.right.ikes[0]
    assert isinstance(found, Ikev2Association)
    session = found.session
    assert session.peer is not None
    payload = Correlation(spi_i=found.spi_i, spi_r=found.spi_r, hash=b"x")
    other = Authenticated(psk("else.example", "x").identity or session.peer.identity, "psk", "", names=())
    session.hooks.original = lambda spi_i, spi_r: session
    good = correlation._hash(session, session, correlation._key(session, of_initiator=True))
    with pytest.raises(Refused, match="cannot prove"):
        correlation.conclude(session, replace(payload, hash=good), other)
    with pytest.raises(Refused, match="does not have the keys"):
        correlation.conclude(session, payload, session.peer)
    assert bytes(Secret(b"")) == b""


def test_a_peer_that_does_not_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores the payload and makes a second IKE SA: that one is deleted, the first one stays."""
    link = up()
    monkeypatch.setattr(initial.correlation, "conclude", None)
    kind = Correlation.kind

    def ignore(message: Message, kind_of: type) -> object:
        return None if kind_of is Correlation else original(message, kind_of)

    original = Message.maybe
    monkeypatch.setattr(Message, "maybe", ignore)
    again(link)
    monkeypatch.undo()
    link.run(5)
    agree(link, ikes=1)
    assert kind == 200
    assert link.left.failures[-1].reason == "the peer knows no IKE_SA correlation"


# Windows' error codes ---------------------------------------------------------------------------------------


def status(code: int) -> Notify:
    """NOTIFY_STATUS."""
    return Notify(type=N.NOTIFY_STATUS, spi=b"", data=code.to_bytes(4, "big"))


@pytest.mark.parametrize("beside", [True, False])
def test_code_in_the_reason_of_a_failure(beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another error or instead of it: `ikctl why` says what Windows means."""
    link = Link(
        *tunnel_hosts(right_rule='crypto = "other"', sets='[crypto.other]\nmain = ["p384 aes256 sha384"]\n')
    )
    usual = Ikev2Association._reply_error

    def reply(self: Ikev2Association, request: Message, error: Exception) -> None:
        first = (Notify(type=N.NO_PROPOSAL_CHOSEN, spi=b"", data=b""),) if beside else ()
        answer = Message(request.exchange, (status(13868), *first), True)
        self.talks.reply(request, answer, refused=request.exchange == Exchange.IKE_SA_INIT)

    monkeypatch.setattr(Ikev2Association, "_reply_error", reply)
    link.up()
    link.run(5)
    monkeypatch.setattr(Ikev2Association, "_reply_error", usual)
    failure: NegotiationFailed = link.left.failures[-1]
    assert "Windows error 13868, ERROR_IPSEC_IKE_POLICY_MATCH: its policy accepts nothing" in failure.reason
    assert failure.notify == ("NO_PROPOSAL_CHOSEN" if beside else "NOTIFY_STATUS")


def test_error_notifies() -> None:
    """A success is no error, and any other error tells more than Windows' number."""
    refused = Notify(type=N.TS_UNACCEPTABLE, spi=b"", data=b"")
    assert Message(35, (status(0),)).error() is None
    assert Message(35, (status(13825),)).error() == status(13825)
    assert Message(35, (status(13825), refused)).error() == refused
    assert Message(35, (status(13825),)).names() == ("N(NOTIFY_STATUS 13825 IKE_NO_POLICY)",)
    assert Message(35, (Notify(type=N.NOTIFY_STATUS, spi=b"", data=b"odd"),)).error() is None


def test_pairs_are_as_before() -> None:
    """Five times in a row: nothing piles up."""
    link = up()
    flights: list[Flight] = []
    link.fate = flights.append
    for _ in range(5):
        again(link, seconds=1)
    assert mirrored(link.left, link.right)
    assert len(flights) == 5 * 4
    link.run(10)
    agree(link, ikes=1, pairs=1)
