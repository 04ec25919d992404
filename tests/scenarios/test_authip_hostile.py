"""What strangers, and peers that hold the keys, can do at any moment of AuthIP.

If one of these fails, a datagram stops the daemon, fills its tables, changes an SA that is not its sender's,
or keeps a negotiation from ever ending."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.authip import (
    CERTIFICATE,
    MAKERS,
    RULE,
    connected,
    datagram,
    hosts,
    main_mode,
    notice,
    person,
    read,
    reading,
    rewritten,
    token_in,
    with_token,
    with_users,
)
from support.hostile import weight
from support.link import BOTH, LEFT, RIGHT, Flight, Host, Link, agree, host, story, tunnel_rules
from support.lives import PATIENT
from support.phases import certified, sets

from ikd.auth import Step, Token
from ikd.authip import methods, quick_mode
from ikd.authip.message import Message, notify, plain, sealed, status
from ikd.authip.numbers import RELIABLE, Exchange, GssFlags, Method, N, Subject
from ikd.authip.payloads import Auth, AuthEntry, GssApi, KeyDictation, KeyDictationWeight
from ikd.events import Broken, DatagramDropped, IkeClosed
from ikd.isakmp import identities
from ikd.isakmp.conversations import MOST_TALKS
from ikd.isakmp.payloads import Hash, Identification, Nonce, SecurityAssociation, VendorId
from ikd.isakmp.proposals import offer_quick
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Body, Unknown
from sadb.selector import TrafficSelector

KINDS = pytest.mark.parametrize("kind", MAKERS)
SIDES = pytest.mark.parametrize("side", BOTH)


def unharmed(link: Link) -> None:
    """Nothing broke, and tables are small."""
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert len(one.ikes) <= 4
        assert len(list(one.database.pairs())) <= 3
        assert one.endpoint.half_open <= 2


def over(link: Link, reason: str = "") -> None:
    """The negotiation has come to nothing on both sides, which say why, and the next one can begin."""
    unharmed(link)
    agree(link, ikes=0, pairs=0)
    assert link.left.failures, story(link)
    assert reason in " ".join(one.reason for host in (link.left, link.right) for one in host.failures)


# Recordings and alterations ---------------------------------------------------------------------------------


@KINDS
def test_every_message_at_every_later_moment(kind: str) -> None:
    """To either side, while the negotiation goes on, and when it is long over."""
    link = Link(*MAKERS[kind]())
    link.up("net")
    while len(link.flights) < 30 and link.now < 101:
        if not link.step():
            break
        for flight in list(link.flights)[:20]:
            link.inject(link.other(flight.sender), flight.data)
            if flight.number or link.right.ikes:
                link.inject(flight.sender, flight.data)
        unharmed(link)
    link.run(40)
    agree(link, ikes=1, pairs=1)
    pairs = link.left.pairs
    link.run(100)
    for flight in list(link.flights):
        for one in (link.left, link.right):
            link.inject(one, flight.data)
    link.run(50)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == pairs


@KINDS
@SIDES
def test_our_own_messages_come_back(side: str, kind: str) -> None:
    """Both directions have the same keys: what one side has sent is nothing when it is sent back, neither an
    answer nor a notify, soon and late."""
    link = Link(*MAKERS[kind]())
    one = link.named(side)

    def fate(flight: Flight) -> None:
        if flight.sender is one:
            link.inject(one, flight.data, flight.path.local.port)

    link.fate = fate
    link.up("net")
    link.run(20)
    link.rekey_child(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    pairs = link.left.pairs
    for flight in list(link.flights):
        if flight.data[8:16] != bytes(8):  # a first message is anybody's
            link.inject(flight.sender, flight.data)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == pairs


@pytest.mark.long
@KINDS
@pytest.mark.parametrize("step", range(4))
def test_bits_of_every_message(step: int, kind: str) -> None:
    """One that is changed on the way is as good as lost, or ends the negotiation; then the next one comes
    through. Nothing is up on one side only."""
    whole = Link(*MAKERS[kind]())
    whole.up("net")
    whole.run(2)
    for number, original in enumerate(whole.flights):
        size = len(original.data)
        at = (16, HEADER_SIZE + 3, size // 2, size - 1, size * 2 // 3)[step]

        def fate(flight: Flight, number: int = number, at: int = at) -> None:
            if flight.number == number:
                data = bytearray(flight.data)
                data[at % len(data)] ^= 1 << (number + step) % 8
                flight.data = bytes(data)

        link = Link(*MAKERS[kind]())
        link.fate = fate
        link.up("net")
        link.run(70)
        unharmed(link)
        agree(link)
        if not link.left.pairs:
            assert link.left.failures, story(link)
            link.up("net")
            link.run(20)
        agree(link, ikes=1, pairs=1)


def clear_messages(link: Link) -> list[bytes]:
    """What a stranger can make who has seen the cookies."""
    one = link.left if link.left.ikes else link.right
    cookies = b"".join(main_mode(one).spis)
    found = []
    payloads: tuple[tuple[Any, ...], ...] = (
        (status(13801, Subject.MAIN),),
        (status(13801, Subject.QUICK, RELIABLE),),
        (notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE),),
        (notify(N.QM_SYNCHRONIZE, Subject.QUICK),),
        (Auth(entries=(AuthEntry(method=4),)),),
        (Hash(data=bytes(32)),),
        (Nonce(data=bytes(32)), VendorId(data=bytes(16))),
    )
    for exchange in (*Exchange, 2, 5, 247):
        for number in (0, 1, 77):
            for some in payloads:
                data = main_mode(one).session.channel.seal(plain(exchange, number, *some))[0]
                found.append(cookies + data[16:])
    return found


@KINDS
def test_clear_messages_in_a_wrong_state(kind: str) -> None:
    """The specification has them tear the SA down; whoever knows the cookies could then end everything. Here
    a hint is heeded only when nothing better comes."""
    link = Link(*MAKERS[kind]())
    link.up("net")
    while link.now < 101 and link.step():
        if not (link.left.ikes and link.right.ikes):
            continue
        for data in clear_messages(link)[::3]:
            for one in (link.left, link.right):
                link.inject(one, data)
    for data in clear_messages(link):
        for one in (link.left, link.right):
            link.inject(one, data)
    link.run(40)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        assert not one.of(IkeClosed)
        assert not one.failures


@pytest.mark.parametrize("stage", [1, 3, 5])
def test_a_forged_status_counts_when_nothing_better_comes(stage: int) -> None:
    """Without an answer it is a reason; with one it is nothing."""
    for silent in (False, True):
        link = Link(*hosts())
        link.up("net")
        for _ in range(stage):
            link.step()
        (one,) = link.left.ikes
        head = b"".join(main_mode(link.left).spis)
        data = datagram(link.left, plain(Exchange.NOTIFY, 5, status(13801, Subject.MAIN)))
        link.inject(link.left, head + data[16:])
        assert one in link.left.ikes
        if silent:
            link.fate = lambda flight: setattr(flight, "lost", True)
            link._queue.clear()
        link.run(100)
        agree(link, ikes=int(not silent), pairs=int(not silent))
        if silent:
            assert "13801" in link.left.failures[0].reason


def test_messages_of_another_sa() -> None:
    """With the cookies of this one: their check values do not fit, and nothing changes."""
    link, other = connected(), connected(seed=3)
    other.rekey_child(other.left)
    other.close(other.left)
    other.run(5)
    cookies = b"".join(main_mode(link.left).spis)
    for flight in other.flights:
        for one in (link.left, link.right):
            link.inject(one, cookies + flight.data[16:])
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert "unverified" in link.right.drops


QUICK = settings(PATIENT, max_examples=15)


@QUICK
@given(
    octets=st.binary(max_size=160),
    kind=st.integers(0, 140),
    exchange=st.sampled_from(Exchange),
    message_id=st.integers(0, 3),
    steps=st.integers(8, 30),
    side=st.sampled_from(BOTH),
)
def test_encrypted_garbage(
    octets: bytes, kind: int, exchange: Exchange, message_id: int, steps: int, side: str
) -> None:
    """A peer that writes nonsense with the right keys: its own SAs may end, and nothing breaks or hangs."""
    link = Link(*with_users())
    link.up("net")
    for _ in range(steps):
        link.step()
    one = link.named(side)
    if not one.ikes or not main_mode(one).session.armed:
        return
    channel = main_mode(one).session.channel
    message = replace(sealed(exchange, message_id), sequence=9)
    link.inject(link.other(one), channel._encrypt(message, kind, octets))
    unharmed(link)
    link.run(120)
    agree(link)


def test_a_thousand_strangers() -> None:
    """Tables stay as small as the settings say, and whoever was there stays."""
    rules = tunnel_rules("right", peer="any", auth="machine", extra=RULE) + CERTIFICATE + sets()
    limits = IkeSettings(half_open=20, half_open_per_address=10, associations=30)
    link = Link(hosts()[0], host("right", RIGHT, rules, certified("right"), limits))
    link.up("net")
    link.run(2)
    first, luck = link.flights[0].data, random.Random(5)
    link.fate = lambda flight: setattr(flight, "lost", True)
    for n in range(1000):
        data = bytearray(luck.randbytes(8) + first[8:])
        if n % 3 == 0:
            data[luck.randrange(28, len(data))] ^= 1 << luck.randrange(8)
        link.inject(link.right, bytes(data), port=1024 + n, source=RIGHT + 1 + n % 50)
    assert link.right.endpoint.half_open <= 20
    assert len(link.right.ikes) <= 30
    link.fate = lambda flight: None
    link.run(150)
    agree(link, ikes=1, pairs=1)
    assert not link.right.of(IkeClosed)


def test_a_peer_that_asks_for_quick_modes_without_end() -> None:
    """NOTIFY_ACQUIRE has us begin them: it gets no more SAs than if it had begun them itself."""
    link = connected(left_settings=IkeSettings(children=5))
    selector = link.left.pairs[0].selector
    local, remote = selector.local[0].low, selector.remote[0].low
    for n in range(20):
        asked = [identities.encode(TrafficSelector.of(one + n)) for one in (remote, local)]
        acquire = notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE)
        link.inject(link.left, notice(link.right, acquire, *asked, sequence=100 + n))
        link.run(0.1)
    assert len(link.left.pairs) == 5
    assert link.left.of(DatagramDropped)[-1].detail.endswith("5 is the most it may have")
    link.run(5)
    agree(link, ikes=1, pairs=5)


def test_a_later_minor_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is to be accepted (section 2.2.1), transcripts included."""
    monkeypatch.setattr("ikd.authip.channel.VERSION", 0x15)
    link = Link(*with_users())
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert {one.data[17] for one in link.flights} == {0x15}


# Payloads ---------------------------------------------------------------------------------------------------

STRANGE = (Unknown(200, True, b"critical"), Unknown(201, False, b""))


def changing(number: int, change: Callable[[list[Body]], Any]) -> Callable[[Flight], None]:
    """A fate that rewrites the payloads of one message in the clear."""

    def fate(flight: Flight) -> None:
        if flight.number == number:
            flight.data = rewritten(flight.data, change)

    return fate


@SIDES
def test_unknown_payloads_are_passed_over(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At either end of every message, with the critical bit and without; they are part of the transcript."""
    link = Link(*hosts())
    one = link.named(side)

    def listening(kind: Any) -> None:
        original = kind.seal

        def seal(self: Any, message: Message) -> tuple[bytes, bytes]:
            more = replace(message, payloads=(STRANGE[0], *message.payloads, *STRANGE))
            mine = one.ikes and main_mode(one).session.channel is self
            return original(self, more if mine and message.exchange != 246 else message)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "seal", seal)

    listening(type(connected_channel()))
    link.up("net")
    link.run(10)
    agree(link, ikes=1, pairs=1)


def connected_channel() -> Any:
    """Any channel."""
    return main_mode(connected().left).session.channel


@pytest.mark.parametrize("number", range(4))
def test_a_second_crypto_payload(number: int) -> None:
    """One and only one per message: another makes it none."""
    link = Link(*hosts())
    link.fate = changing(number, lambda every: [*every, Unknown(133, False, bytes(4))])
    link.up("net")
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert "malformed" in link.left.drops + link.right.drops


@SIDES
def test_a_token_of_sixty_thousand_octets(side: str) -> None:
    """It is no token, and costs one attempt; the other side is told and both say why."""
    link = Link(*hosts())
    number = 2 if side == "left" else 3

    def fate(flight: Flight) -> None:
        if flight.number == number:
            flight.data = with_token(flight.data, lambda one: replace(one, token=one.token + bytes(60000)))

    link.fate = fate
    link.up("net")
    link.run(60)
    over(link)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
@pytest.mark.parametrize("at", [3, 4])
def test_a_record_length_that_was_changed(at: int, number: int) -> None:
    """A TLS library waits for the rest of such a record, and so would both sides for ever."""
    link = Link(*hosts())

    def change(one: GssApi) -> GssApi:
        token = bytearray(one.token)
        token[at] ^= 0x41
        return replace(one, token=bytes(token))

    def fate(flight: Flight) -> None:
        if flight.number == number and token_in(flight.data):
            flight.data = with_token(flight.data, change)

    link.fate = fate
    link.up("net")
    link.run(60)
    over(link)
    assert len(link.flights) < 60


def test_a_token_of_spnego_where_tls_was_agreed_on() -> None:
    """The reason tells what came instead."""
    link = Link(*hosts())

    def fate(flight: Flight) -> None:
        if flight.number == 2:
            flight.data = with_token(
                flight.data, lambda one: replace(one, token=b"\x60\x82\x01\x00" + bytes(256))
            )

    link.fate = fate
    link.up("net")
    link.run(60)
    over(link)
    assert any("SPNEGO" in one.text for one in link.right.events)


class Waiting:
    """A side that never has enough, and always has something to say."""

    said = b"initiator"

    def __init__(self) -> None:
        self._rounds = 0

    def step(self, token: Token | None) -> Step:
        """Something new, which proves nothing."""
        self._rounds += 1
        return Step(Token(self.said + bytes((self._rounds,))))


class WaitingToo(Waiting):
    """The other end."""

    said = b"responder"


def stubbed(monkeypatch: pytest.MonkeyPatch, **sides: Any) -> None:
    """`initiator` and `acceptor` instead of the true ones."""
    if "initiator" in sides:
        made = [methods.Side(sides["initiator"])]
        monkeypatch.setattr(methods, "initiators", lambda *a, **k: made)
    if "acceptor" in sides:
        monkeypatch.setattr(methods, "acceptor", lambda *a, **k: sides["acceptor"]())


def test_tokens_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are counted on both sides, whatever the mechanism thinks."""
    stubbed(monkeypatch, initiator=Waiting, acceptor=WaitingToo)
    link = Link(*hosts())
    link.up("net")
    link.run(100)
    over(link, "rounds")
    assert len(link.flights) < 90


def fed(link: Link, change: Callable[[int], GssApi], count: int) -> int:
    """Tokens that a peer makes up as it likes, to a responder that has answered its first message; how many
    were answered."""
    cookies = b"".join(main_mode(link.right).spis)
    before = len(link.flights)
    for number in range(count):
        message = replace(plain(Exchange.MAIN, 0, change(number)), sequence=number)
        data = main_mode(link.right).session.channel.seal(message)[0]
        link.inject(link.right, cookies + data[16:])
        if not link.right.ikes:
            break
    return len(link.flights) - before


@pytest.mark.parametrize(
    "flags",
    [GssFlags.NEW, GssFlags.NEW | GssFlags.RETRY, GssFlags.RETRY, GssFlags(0)],
    ids=["new", "again", "retry", "none"],
)
@pytest.mark.parametrize("code", [0, 13801])
@pytest.mark.parametrize("data", [b"", b"\x16\x03\x03\x00\x01x"])
def test_a_peer_that_begins_anew_for_ever(data: bytes, code: int, flags: GssFlags) -> None:
    """Attempts and rounds are limited, with an error in them or without, and it stays half open until its
    time is over: no memory grows."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", flight.number > 1)
    link.up("net")
    link.run(0.5)
    assert link.right.endpoint.half_open == 1
    answered = fed(
        link, lambda n: GssApi(status=code, flags=int(flags), token=data + bytes(n % 2)), count=400
    )
    assert answered <= 170
    if link.right.ikes:
        assert link.right.endpoint.half_open == 1
        assert len(main_mode(link.right).talks.talks[0].past) <= 170
    assert not link.right.of(Broken)
    link.run(31)
    assert not link.right.ikes
    assert link.right.endpoint.half_open == 0


def test_a_large_offer_is_not_kept() -> None:
    """What has come is kept, for the proofs cover it, but not what was read out of it, which is much more."""
    link = Link(*hosts())

    def change(every: list[Body]) -> list[Body]:
        offer = next(one for one in every if isinstance(one, SecurityAssociation))
        (proposal,) = offer.proposals
        (good,) = proposal.transforms
        many = tuple(replace(good, attributes=((0x7FFF, b""),) * 250) for _ in range(58))
        large = replace(offer, proposals=(replace(proposal, transforms=(*many, good)),))
        return [large if one is offer else one for one in every]

    link.up("net")
    data = rewritten(link.flights[0].data, change)
    before = weight(link.right)
    link.inject(link.right, data)
    assert link.right.endpoint.half_open == 1
    assert weight(link.right) - before < 3 * len(data)


def test_large_tokens_without_end() -> None:
    """Somebody who says of every method that he has no token for it, in sixty thousand octets each time: the
    proofs cover them, but we do not keep it all, for a thousand such may wait."""
    link = Link(*hosts())
    link.up("net")
    for _ in range(2):
        link.step()
    link.fate = lambda flight: setattr(flight, "lost", True)
    link._queue.clear()
    before, cookies = weight(link.right), b"".join(main_mode(link.left).spis)
    for n in range(160):
        flags = GssFlags.NEW if n % 20 == 0 else 0
        token = GssApi(status=13801, flags=flags, token=n.to_bytes(2, "big") * 30000)
        data = datagram(link.left, replace(plain(Exchange.MAIN, 0, token), sequence=n + 1))
        link.inject(link.right, cookies + data[16:])
    assert weight(link.right) - before < 1_000_000
    link.run(60)
    assert not link.right.ikes


@pytest.mark.parametrize("entries", [(5,), (), (4, 5), (2, 3), (4, 4)])
def test_a_method_that_was_not_offered(entries: tuple[int, ...]) -> None:
    """An answer with another method than was offered, or none, is no answer."""
    link = Link(*hosts())
    wrong = Auth(entries=tuple(AuthEntry(method=one) for one in entries))
    link.fate = lambda flight: (
        setattr(
            flight,
            "data",
            rewritten(flight.data, lambda all_: [wrong if isinstance(o, Auth) else o for o in all_]),
        )
        if flight.sender is link.right and flight.data[18] == Exchange.MAIN and flight.number < 9
        else None
    )
    link.up("net")
    link.run(60)
    over(link, "authentication method")


def test_an_offer_of_what_nobody_knows() -> None:
    """Numbers without a meaning are passed over, and said twice they count once."""
    link = Link(*hosts())

    def change(every: list[Body]) -> list[Body]:
        found = next(one for one in every if isinstance(one, Auth))
        strange = tuple(AuthEntry(method=number) for number in (99, 0, 65535))
        return [
            replace(found, entries=(*strange, *found.entries, *found.entries)) if one is found else one
            for one in every
        ]

    link.fate = changing(0, change)
    link.up("net")
    for _ in range(2):
        link.step()
    assert main_mode(link.left).answered


# A peer that has the keys -----------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("which", ["auth_i", "auth_r"])
@SIDES
def test_wrong_proofs(side: str, which: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auth1 and Auth2, and Auth3 and Auth4 which cover them: whoever has seen other messages is not the peer,
    and both sides learn it."""
    made = MAKERS[kind]()
    link = Link(*made)
    one = link.named(side)
    session = type(connected_session())
    original = session.seal_transcript

    def sealing(self: Any) -> None:
        original(self)
        if self.initiator is (side == "left"):
            setattr(self, which, bytes(32))

    monkeypatch.setattr(session, "seal_transcript", sealing)
    link.up("net")
    link.run(70)
    assert one.failures or one.of(IkeClosed)
    over(link)


def connected_session() -> Any:
    """Any session."""
    return main_mode(connected().left).session


@SIDES
def test_wrong_proofs_of_users(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auth3 and Auth4: neither side keeps what the first authentication has made."""
    from ikd.authip import extended_mode

    original = extended_mode._proofs

    def proofs(session: Any) -> tuple[bytes, bytes]:
        auth3, auth4 = original(session)
        return (auth3, auth4) if session.initiator is (side == "right") else (auth3[::-1], auth4[::-1])

    monkeypatch.setattr(extended_mode, "_proofs", proofs)
    link = Link(*with_users())
    link.up("net")
    link.run(90)
    over(link)
    assert not link.left.pairs + link.right.pairs


def adding(
    monkeypatch: pytest.MonkeyPatch, one: Host, *payloads: Any, when: Callable[[Message], bool]
) -> None:
    """Have a host write more payloads into its messages."""
    channel = type(connected_channel())
    original = channel.seal

    def seal(self: Any, message: Message) -> tuple[bytes, bytes]:
        if one.ikes and main_mode(one).session.channel is self and when(message):
            message = replace(message, payloads=(*message.payloads, *payloads))
        return original(self, message)  # type: ignore[no-any-return]

    monkeypatch.setattr(channel, "seal", seal)


def is_quick(message: Message) -> bool:
    """Whether it is #5 or #6."""
    return message.encrypted and message.maybe(SecurityAssociation) is not None


@SIDES
def test_weight_is_passed_over(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may want to dictate the keys; as long as it does not, they are derived."""
    link = Link(*hosts())
    adding(monkeypatch, link.named(side), KeyDictationWeight(weight=7), when=is_quick)
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)


def is_sync(message: Message) -> bool:
    """Whether it is #7 or #8."""
    return any(one.type == N.QM_SYNCHRONIZE for one in message.every(type(notify(1, Subject.MAIN))))


DICTATION = (KeyDictation(data=bytes(64)), KeyDictation(data=bytes(64)))


@pytest.mark.parametrize(("side", "when"), [("right", is_quick), ("left", is_sync)], ids=["#6", "#7"])
def test_dictated_keys_are_refused(side: str, when: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed over they would leave both sides with keys of which the other knows nothing."""
    link = Link(*hosts())
    adding(monkeypatch, link.named(side), *DICTATION, when=when)
    link.up("net")
    link.run(60)
    over(link, "dictate")


def test_dictated_keys_are_refused_in_extended_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """There they come with Auth3."""
    link = Link(*with_users())

    def is_proof(message: Message) -> bool:
        return message.exchange == Exchange.EXTENDED and message.maybe(Hash) is not None

    adding(monkeypatch, link.left, *DICTATION, when=is_proof)
    link.up("net")
    link.run(60)
    over(link, "dictate")


@pytest.mark.parametrize("mode", [62000, 62001])
def test_authenticated_firewall_is_refused(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode in which only the first packet is protected: NO_PROPOSAL_CHOSEN, and `ikctl why` names it."""
    link = connected()
    monkeypatch.setattr(type(main_mode(link.left).session), "encapsulation", lambda self, tunnel: (
        mode if self.initiator else original(self, tunnel)
    ))  # fmt: skip
    link.rekey_child(link.left)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    (failure,) = link.right.failures
    assert "authenticated firewall" in str(failure.comparison) + failure.reason
    assert "AH" not in failure.notify
    (told,) = link.left.failures
    assert "NO_PROPOSAL_CHOSEN" in told.notify


original = type(connected_session()).encapsulation


def acquire(one: Host, number: int, local: Any, remote: Any, **how: Any) -> bytes:
    """N(NOTIFY_ACQUIRE) of this host for some traffic."""
    ids = [identities.encode(TrafficSelector.of(end)) for end in (local, remote) if end is not None]
    data = (1).to_bytes(4, "big") + bytes(4)
    return notice(
        one,
        notify(N.ACQUIRE, Subject.QUICK, data, RELIABLE),
        *ids,
        number=1000 + number,
        sequence=number,
        **how,
    )


def answers(link: Link, since: int, exchange: int) -> int:
    """How many datagrams of an exchange type the left host has sent."""
    return sum(one.sender is link.left and one.header.exchange == exchange for one in link.flights[since:])


def test_a_thousand_requests() -> None:
    """One quick mode at a time comes of them, and no table grows."""
    link = connected()
    since = len(link.flights)
    net = link.right.endpoint.policy.rules[0].selector
    for number in range(1000):
        data = notice(
            link.right,
            notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE),
            identities.encode(net.local[0]),
            identities.encode(net.remote[0]),
            number=1000 + number,
            sequence=10 + number,
        )
        link.inject(link.left, data)
    assert answers(link, since, Exchange.QUICK) == 1
    assert answers(link, since, Exchange.NOTIFY) == 1000, "each is acknowledged"
    link.run(60)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize(
    ("local", "remote", "acknowledged"),
    [(RIGHT + 7, LEFT, True), (None, None, False), (RIGHT, None, False)],
    ids=["no rule", "no identities", "one identity"],
)
def test_requests_for_nothing(local: Any, remote: Any, acknowledged: bool) -> None:
    """For traffic that no rule covers nothing is begun; without both identities the packet is discarded."""
    link = connected()
    since = len(link.flights)
    link.inject(link.left, acquire(link.right, 3, local, remote))
    assert answers(link, since, Exchange.QUICK) == 0
    assert answers(link, since, Exchange.NOTIFY) == int(acknowledged)
    agree(link, ikes=1, pairs=1)


def quick_request(one: Host, number: int) -> bytes:
    """A request for a quick mode of this host, as it would have made it."""
    session = main_mode(one).session
    rule = session.rule
    assert rule is not None
    suites = quick_mode.quick.suites_of(rule)
    mine = session.auth_i if session.initiator else session.auth_r
    offered = offer_quick(suites, (0x1000 + number).to_bytes(4, "big"), 1, quick_mode.quick.life_of(rule))
    body = (
        Hash(data=mine),
        identities.encode(rule.selector.local[0]),
        identities.encode(rule.selector.remote[0]),
        offered,
        Nonce(data=bytes(32)),
    )
    return datagram(one, replace(sealed(Exchange.QUICK, 0x5000 + number, *body), sequence=number))


def test_a_responder_begins_a_quick_mode() -> None:
    """Roles are fixed for the life of a main-mode SA: it has to ask."""
    link = connected()
    count = len(link.flights)
    link.inject(link.left, quick_request(link.right, 1))
    link.run(10)
    assert len(link.flights) == count
    assert link.left.drops == ["unexpected"]
    agree(link, ikes=1, pairs=1)


def test_a_flood_of_quick_modes() -> None:
    """Exchanges are limited, and a peer that does not go on with them is taken to have made fast ones."""
    link = connected(settings=IkeSettings(liveness=0))
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    for number in range(200):
        link.inject(link.right, quick_request(link.left, number))
    right = main_mode(link.right)
    assert len(right.talks.talks) <= MOST_TALKS
    assert len(right.children) <= MOST_TALKS + 1
    assert "exchange-limit" in link.right.drops
    link.run(60)
    assert not [one for one in right.talks.open if one.waiting]
    link.inject(link.right, quick_request(link.left, 500))
    assert 0x5000 + 500 in right.talks.talks, "it is not locked out"
    assert not link.right.of(Broken)


def test_a_peer_has_only_so_many_quick_mode_sas() -> None:
    """What comes beyond is refused, and refusals that nobody acknowledges do not pile up."""
    link = connected(right_settings=IkeSettings(children=5, liveness=0))
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.right)
    for number in range(1000):
        link.inject(link.right, quick_request(link.left, number))
    right = main_mode(link.right)
    assert len(right.children) == 5
    assert len(right.notices) <= 64
    assert len(right.talks.talks) <= MOST_TALKS
    sent = len(link.flights)
    link.run(60)
    assert len(link.flights) - sent <= 64 * 5


@pytest.mark.parametrize("fast", [False, True], ids=["normal", "fast"])
def test_exchanges_of_a_long_life_come_to_an_end(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred replacements leave nothing behind, also of a peer that never synchronises."""
    if fast:
        reading(monkeypatch, fast_quick=True)
    link = connected(settings=IkeSettings(liveness=0))
    for _ in range(100):
        link.rekey_child(link.left)
        link.run(6)
    link.run(100)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        assert not main_mode(one).talks.open
        assert len(main_mode(one).session.quick_ids) == 1
        assert not one.pairs[0].standby
        assert not [drop for drop in one.of(DatagramDropped) if drop.reason == "exchange-limit"]


# Notifies ---------------------------------------------------------------------------------------------------


def test_acknowledgements_are_lost() -> None:
    """A reliable notify is repeated until one comes; it is acknowledged each time, and heeded once."""
    link = connected()
    lost = 0

    def fate(flight: Flight) -> None:
        nonlocal lost
        if flight.sender is link.right and flight.header.exchange == Exchange.NOTIFY and lost < 3:
            flight.lost, lost = True, lost + 1

    link.fate = fate
    link.close_child(link.left)
    link.run(20)
    assert lost == 3
    agree(link, ikes=1, pairs=0)
    sent = [one.data for one in link.flights if one.sender is link.left and one.data[18] == Exchange.NOTIFY]
    assert len(sent) == 4
    assert len(set(sent)) == 1


def test_nobody_acknowledges() -> None:
    """It is given up after a while."""
    link = connected(settings=IkeSettings(liveness=0))
    link.fate = lambda flight: setattr(flight, "lost", True)
    count = len(link.flights)
    link.close_child(link.left)
    link.run(60)
    assert len(link.flights) - count == 5
    assert main_mode(link.left).idle


@pytest.mark.parametrize("number", [0, 1, 5, 2**32 - 1])
def test_acknowledgements_of_nothing(number: int) -> None:
    """Neither what was never sent nor what is long acknowledged is heeded; empty ones are nothing."""
    link = connected()
    for data in (number.to_bytes(4, "big"), b"", b"\0"):
        link.inject(link.left, notice(link.right, notify(N.ACK, Subject.MAIN, data), sequence=number))
    link.run(1)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("flags", [0, RELIABLE])
def test_a_deletion(flags: int) -> None:
    """One that is not reliable is heeded as well, and gets no acknowledgement; one that comes twice is
    acknowledged twice, with the same octets, and heeded once."""
    link = connected()
    number = main_mode(link.right).session.quick_ids[link.right.pairs[0].inbound.spi]
    data = notice(link.right, status(13807, Subject.QUICK, flags), number=number)
    count = len(link.flights)
    link.inject(link.left, data)
    assert not link.left.pairs
    assert len(link.flights) - count == flags
    if flags:
        (ack,) = [read(link.right, one.data) for one in link.flights[count:]]
        assert ack.notify(N.ACK) is not None
        assert ack.notify(N.ACK).data == (1000).to_bytes(4, "big")  # type: ignore[union-attr]
        assert not ack.notify(N.ACK).flags & RELIABLE  # type: ignore[union-attr]
    link.up("net")
    link.run(5)
    said, count = [one.data for one in link.flights[count:][:flags]], len(link.flights)
    link.inject(link.left, data)
    assert len(link.left.pairs) == 1, "what it names is long gone"
    assert [one.data for one in link.flights[count:]] == said, "a recording makes nothing grow"


def test_deletions_that_cross() -> None:
    """Both delete the same one: others on the same main-mode SA stay."""
    link = Link(*hosts(nets=3))
    for name in ("net", "net1", "net2"):
        link.up(name)
        link.run(2)
    agree(link, ikes=1, pairs=3)
    for one in (link.left, link.right):
        (pair,) = [found for found in one.pairs if found.rule == "net1"]
        link.perform(one, one.endpoint.close_child(pair, link.now, "a test"))
    link.run(20)
    agree(link, ikes=1, pairs=2)
    late = notice(link.right, notify(N.NO_PROPOSAL_CHOSEN, Subject.QUICK, b"", RELIABLE), number=0x777)
    link.inject(link.left, late)
    agree(link, ikes=1, pairs=2)


@SIDES
def test_the_main_mode_sa_alone_is_deleted(side: str) -> None:
    """As Windows does it: nothing more is made on it, quick-mode SAs live on until their own end, and with
    the last of them it goes; what is needed meanwhile gets a main-mode SA of its own."""
    link = connected(crypto=sets(lifetime='{ main = "60 min", quick = "5 min" }'))
    one = link.named(side)
    other = link.other(one)
    (pair,), (association,) = one.pairs, one.ikes
    link.inject(one, notice(other, status(13807, Subject.MAIN, RELIABLE)))
    link.run(30)
    assert one.pairs == [pair]
    assert one.ikes == [association]
    assert not main_mode(one).usable
    link.inject(one, quick_request(other, 3))
    assert len(one.pairs) == 1
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(600)
    unharmed(link)
    agree(link, ikes=0, pairs=0)


def test_both_delete_the_main_mode_sa() -> None:
    """At once: both are acknowledged, and nothing stays."""
    link = connected()
    for one in (link.left, link.right):
        link.close(one)
    link.run(20)
    agree(link, ikes=0, pairs=0)


# Extended mode ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(2, 9))
def test_extended_mode_before_its_time(number: int) -> None:
    """A user's proof without a machine's: there are no keys to send it with, and in the clear it is
    nothing."""
    recorded = Link(*with_users(seed=5))
    recorded.up("net")
    recorded.run(5)
    extended = [one.data for one in recorded.flights if one.header.exchange == Exchange.EXTENDED]
    link = Link(*with_users())
    link.up("net")
    for _ in range(number):
        link.step()
    (association,) = link.right.ikes
    cookies = b"".join(association.spis)
    auth = main_mode(link.right).session.channel.seal(
        plain(Exchange.EXTENDED, 1, Auth(entries=(AuthEntry(method=Method.TLS),)))
    )[0]
    for data in (*extended, auth):
        for one in (link.left, link.right):
            link.inject(one, cookies + data[16:])
    link.run(30)
    agree(link, ikes=1, pairs=1)


def test_a_user_whose_machine_is_not_believed() -> None:
    """The first authentication fails, and there is no second one instead of it."""
    link = Link(*with_users(left=person("left", ca="CN=Another CA", user_ca="CN=Lab CA")))
    link.up("net")
    link.run(60)
    over(link)
    assert not any(one.header.exchange == Exchange.EXTENDED for one in link.flights)


OPTIONAL = CERTIFICATE + 'second = ["user-certificate", "anonymous"]\n'


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_second_authentication_that_stops(stop: int) -> None:
    """Also where it is optional, so that the main-mode SA is up without: it has its time, and is then over on
    both sides."""
    link = Link(*with_users(auth=OPTIONAL, settings=IkeSettings(liveness=0)))
    seen = 0

    def fate(flight: Flight) -> None:
        nonlocal seen
        if flight.header.exchange == Exchange.EXTENDED and flight.sender is link.left:
            seen += 1
            flight.lost = seen > stop

    link.fate = fate
    link.up("net")
    link.run(100)
    unharmed(link)
    agree(link)
    assert all(not main_mode(one).talks.open for one in (link.left, link.right) if one.ikes)
    if not link.left.pairs:
        link.fate = lambda flight: None
        link.up("net")
        link.run(20)
    agree(link, ikes=1, pairs=1)


@KINDS
@SIDES
def test_a_host_without_the_credential(side: str, kind: str) -> None:
    """Nothing is half up, and the reason is told at the initiator."""
    maker = MAKERS[kind]
    lacking = {"main": replace(certified(side), hosts=()), "extended": replace(person(side), user=None)}[kind]
    link = Link(*maker(**{side: lacking}))
    link.up("net")
    link.run(60)
    if kind == "extended" and side == "right":
        agree(link, ikes=1, pairs=1)  # users are asked of the initiator only
        return
    over(link)


def test_traffic_that_has_no_address_is_not_acquired() -> None:
    """An identity that is no address, out of an authentic NOTIFY_ACQUIRE, is refused like traffic that no
    rule covers: it is not a bug of ours."""
    link = connected()
    named = Identification(type=2, data=b"host.example")
    asked = notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE)
    link.inject(link.left, notice(link.right, asked, named, named))
    link.run(5)
    assert not link.left.of(Broken)
    assert "refused" in link.left.drops
    agree(link, ikes=1, pairs=1)
