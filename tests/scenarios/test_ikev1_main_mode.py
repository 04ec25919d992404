"""Phase 1 (RFC 2408, RFC 2409 section 5, RFC 4754): who comes together, whatever is lost on the way, and what
each side is told when they do not.

If one of these fails, hosts that trust each other get no ISAKMP SA, or one that has proven nothing does."""

from __future__ import annotations

from itertools import combinations

import pytest
from support.link import (
    BOTH,
    Flight,
    Host,
    Link,
    agree,
    host,
    losing,
    policy,
    psk,
    story,
    tunnel_rules,
)
from support.phases import (
    AGGRESSIVE,
    RULE,
    authority,
    both,
    certified,
    connected,
    hosts,
    informed,
    main_mode,
    read,
    sets,
)

from ikd.auth.credentials import Material
from ikd.auth.identity import Identity
from ikd.events import AuthenticationFailed, NegotiationFailed, PeerAuthenticated
from ikd.ikev1.message import Message, status
from ikd.isakmp.numbers import Exchange, Method, N, ProtocolId
from ikd.isakmp.payloads import Notify
from ikd.settings import IkeSettings
from ikd.wire.isakmp import Flags, Header

ORDERS = pytest.mark.parametrize("first", BOTH)
MODES = pytest.mark.parametrize("mode", ["", AGGRESSIVE], ids=["main", "aggressive"])
SUITES = (
    "p256 aes128 sha256",
    "p384 aes256 sha384",
    "p521 aes192 sha512",
    "modp2048 aes256 sha1",
    "modp1024 3des sha1",
    "modp3072 3des sha256",
)


def begun(first: str = "left", **how: object) -> Link:
    """Two hosts that have tried to come together for a good while."""
    link = Link(*hosts(**how))  # type: ignore[arg-type]
    link.up("net", first)
    link.run(120)
    return link


def told(receiver: Host) -> list[str]:
    """The notifies that came to a host's other end in the clear, as names."""
    return [
        payload
        for event in receiver.events
        if type(event).__name__ == "MessageSent" and event.exchange == "INFORMATIONAL"  # type: ignore[attr-defined]
        for payload in event.payloads  # type: ignore[attr-defined]
    ]


# What must work ---------------------------------------------------------------------------------------------


@MODES
@ORDERS
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite(suite: str, first: str, mode: str) -> None:
    """Each cipher, hash and group that IKEv1 can say in phase 1, in both roles."""
    link = begun(first, crypto=sets(main=f'["{suite}"]'), left_rule=mode, right_rule=mode)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.ikes[0].suite) == suite
    assert not link.left.drops
    assert not link.right.drops


@ORDERS
def test_the_first_of_ours_that_the_peer_has(first: str) -> None:
    """The responder's order decides, and the answer repeats one transform as it was offered."""
    left = sets(main='["p384 aes256 sha384", "p256 aes128 sha256", "modp2048 aes256 sha1"]')
    right = sets(main='["modp2048 aes256 sha1", "p256 aes128 sha256"]')
    one = hosts(crypto=left)[0]
    other = hosts(crypto=right)[1]
    link = Link(one, other)
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    expected = "modp2048 aes256 sha1" if first == "left" else "p256 aes128 sha256"
    assert str(one.ikes[0].suite) == expected


@MODES
@ORDERS
@pytest.mark.parametrize("kind", ["rsa-2048", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521"])
def test_certificates(kind: str, first: str, mode: str) -> None:
    """Each signature method, with the certificates in the exchange."""
    material = both(certified("left", kind), certified("right", kind))
    link = begun(first, left_rule=mode, right_rule=mode, **material)
    agree(link, ikes=1, pairs=1)
    for one, other in ((link.left, "right"), (link.right, "left")):
        proven = one.of(PeerAuthenticated)[0]
        assert proven.identity == f"{other}.example"
        assert f"CN={other}.example" in proven.description
        assert proven.method == "certificate"


@pytest.mark.long
@ORDERS
@pytest.mark.parametrize("lost", [(), *((n,) for n in range(9)), *combinations(range(9), 2)], ids=str)
def test_main_mode_with_losses(lost: tuple[int, ...], first: str) -> None:
    """Every message and every pair of them may get lost; whoever has answered answers again."""
    link = Link(*hosts())
    link.fate = losing(*lost)
    link.up("net", first)
    link.run(60)
    agree(link, ikes=1, pairs=1)
    assert not link.left.failures
    assert not link.right.failures


@pytest.mark.long
@ORDERS
@pytest.mark.parametrize("lost", [(), *((n,) for n in range(6)), *combinations(range(6), 2)], ids=str)
def test_aggressive_mode_with_losses(lost: tuple[int, ...], first: str) -> None:
    """Its last message is nobody's request: the responder asks for it with its own once more."""
    link = Link(*hosts(left_rule=AGGRESSIVE, right_rule=AGGRESSIVE))
    link.fate = losing(*lost)
    link.up("net", first)
    link.run(60)
    agree(link, ikes=1, pairs=1)


@ORDERS
@MODES
def test_everything_comes_twice_and_late(mode: str, first: str) -> None:
    """Each datagram three times, some out of order: there is one SA of each kind, and nobody answers for
    ever."""
    link = Link(*hosts(left_rule=mode, right_rule=mode))

    def fate(flight: Flight) -> None:
        flight.copies, flight.delay = 2, 0.01 + 0.013 * (flight.number % 4)

    link.fate = fate
    link.up("net", first)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert len(link.flights) < 80


@ORDERS
def test_half_of_everything_is_lost(first: str) -> None:
    """Then it takes a while."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", bool(flight.number % 2))
    link.up("net", first)
    link.run(100)
    link.fate = lambda flight: None
    link.run(30)
    agree(link)


def test_a_repeated_last_message_is_answered() -> None:
    """Message 6 is all the initiator waits for; the responder has it for a minute."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", flight.number in (5, 6, 7, 8))
    link.up("net")
    link.run(40)
    agree(link, ikes=1, pairs=1)
    answers = [one.data for one in link.flights if one.sender is link.right and one.header.message_id == 0]
    assert answers[2] == answers[3]


def test_a_rule_for_a_peer_is_chosen_by_its_name() -> None:
    """One address, two rules: the identity in message 5 decides."""
    rules = tunnel_rules("right", extra=RULE + 'peer = "other.example"\n').replace('"net"', '"elsewhere"')
    rules = rules[: rules.index("[auth")] + tunnel_rules("right", extra=RULE + 'peer = "left.example"\n')
    right = host("right", hosts()[1].address, rules + sets(), psk("right.example", "left.example"))
    link = Link(hosts()[0], right)
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert right.ikes[0].rule == "net"


@ORDERS
def test_identities_by_address(first: str) -> None:
    """Without names hosts are known by their addresses, as Windows does it with pre-shared keys."""
    made = []
    for name in BOTH:
        own, other = ("192.0.2.1", "192.0.2.2") if name == "left" else ("192.0.2.2", "192.0.2.1")
        rules = tunnel_rules(name, extra=RULE) + sets()
        made.append(host(name, hosts()[BOTH.index(name)].address, rules, psk(own, other)))
    link = Link(*made)
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)


def test_the_version_and_flags_of_what_we_send() -> None:
    """Version 1.0; nothing but E in the flags, and that from message 5 on (RFC 2408 section 3.1)."""
    link = connected()
    for number, flight in enumerate(link.flights):
        header = flight.header
        assert header.version == 0x10
        assert header.flags == (Flags.ENCRYPTION if number >= 4 else 0)
        assert bool(header.message_id) is (header.exchange != Exchange.MAIN)
    assert [len(flight.data) % 4 for flight in link.flights] == [0] * len(link.flights)


@ORDERS
def test_commit_and_other_flags_are_heard(first: str) -> None:
    """A peer that sets the commit bit everywhere is understood, and we go on."""
    link = Link(*hosts())

    def fate(flight: Flight) -> None:
        data = bytearray(flight.data)
        data[19] |= Flags.COMMIT
        flight.data = bytes(data)

    link.fate = fate
    link.up("net", first)
    link.run(5)
    link.rekey_child(link.left)
    link.run(5)
    agree(link, ikes=1, pairs=1)


# What must not ----------------------------------------------------------------------------------------------


def nothing(link: Link) -> None:
    """No SA of any kind is left, nor a reservation."""
    agree(link, ikes=0, pairs=0)
    for one in (link.left, link.right):
        assert not one.backend.pairs
        assert one.endpoint.half_open == 0


def why(one: Host) -> NegotiationFailed:
    """What `ikctl why` tells at a host."""
    assert one.failures, one.events
    return one.failures[0]


@ORDERS
@MODES
def test_a_wrong_key(mode: str, first: str) -> None:
    """In main mode neither side can read the other's proof, in aggressive mode the initiator sees it. Both
    administrators hear of the key."""
    left = psk("left.example", "right.example", b"one secret that is long enough")
    right = psk("right.example", "left.example", b"another secret, long enough too")
    link = begun(first, left=left, right=right, left_rule=mode, right_rule=mode)
    nothing(link)
    one = link.named(first)
    assert "key" in why(one).reason + why(one).remedy
    if not mode:
        assert "key" in why(link.other(one)).reason
    assert not link.left.of(PeerAuthenticated)
    assert not link.right.of(PeerAuthenticated)


@ORDERS
def test_no_key_for_the_peer(first: str) -> None:
    """The side without one says which it looked for."""
    keys = psk("right.example", "somebody.example").keys + psk("right.example", "else.example").keys
    right = Material(Identity.parse("right.example"), keys)
    link = begun(first, right=right, right_rule='peer = "left.example"\n')
    nothing(link)
    assert "left.example" in why(link.right).reason
    assert "[[psk]]" in why(link.right).remedy
    assert first == "right" or why(link.left).notify == "AUTHENTICATION_FAILED"


@ORDERS
def test_a_key_of_somebody_else(first: str) -> None:
    """The only key there is tried for whoever comes, since the peer has not said its name; but it proves only
    those it is for."""
    right = psk("right.example", "somebody.example")
    link = begun(first, right=right)
    nothing(link)
    assert "left.example" in link.right.of(AuthenticationFailed)[0].reason
    assert why(link.right).remedy


@ORDERS
def test_a_name_that_is_not_expected(first: str) -> None:
    """The key is right, but the rule is for somebody else: the peer hears AUTHENTICATION_FAILED, no more."""
    left = psk("left.example", "right.example")
    right = psk("right.example", "left.example")
    link = begun(first, left=left, right=right, right_rule='peer = "nobody.example"\n')
    nothing(link)
    refused = link.right.of(AuthenticationFailed)[0]
    assert (refused.identity, refused.rule) == ("left.example", "net")
    assert (refused.method, refused.cause) == ("psk", "not-admitted")
    assert "nobody.example" in refused.reason
    assert why(link.right).remedy
    if first == "left":
        assert why(link.left).notify == "AUTHENTICATION_FAILED"
        assert "nobody.example" not in why(link.left).reason
        assert [one.cause for one in link.left.of(AuthenticationFailed)] == ["refused-by-peer"]


@ORDERS
def test_an_unknown_authority(first: str) -> None:
    """The certificate is good, but not for this host; only its administrator hears why."""
    left = certified("left", ca="CN=Another CA")
    link = begun(first, **both(left, certified("right")))
    nothing(link)
    assert any(one.of(AuthenticationFailed) for one in (link.left, link.right))
    for one in (link.left, link.right):
        for refused in one.of(AuthenticationFailed):
            assert "CA" in refused.reason


@ORDERS
def test_a_certificate_that_is_over(first: str) -> None:
    """Its holder does not offer it; nobody waits for a timeout."""
    left = certified("left", start=0.0)
    link = Link(*hosts(**both(left, certified("right"))))
    link.up("net", first)
    link.run(40)
    nothing(link)
    assert why(link.left)


@ORDERS
def test_methods_that_do_not_meet(first: str) -> None:
    """A certificate on one side, a key on the other: NO-PROPOSAL-CHOSEN, and both methods are named."""
    link = begun(first, left=certified("left"), right=psk("right.example", "left.example"))
    nothing(link)
    responder = link.other(link.named(first))
    failure = why(responder)
    assert failure.notify == "NO_PROPOSAL_CHOSEN"
    assert failure.comparison is not None
    row = next(row for row in failure.comparison.rows if row.what == "authentication")
    assert row.note
    assert {*row.ours} ^ {*row.theirs}
    assert why(link.named(first)).notify == "NO_PROPOSAL_CHOSEN"


@ORDERS
def test_suites_that_do_not_meet(first: str) -> None:
    """NO-PROPOSAL-CHOSEN in the clear; the responder's comparison has both sides' suites."""
    link = Link(
        hosts(crypto=sets(main='["p384 aes256 sha384"]'))[0],
        hosts(crypto=sets(main='["p256 aes128 sha1"]'))[1],
    )
    link.up("net", first)
    link.run(60)
    nothing(link)
    initiator = link.named(first)
    failure = why(link.other(initiator))
    assert failure.notify == "NO_PROPOSAL_CHOSEN"
    assert failure.comparison is not None
    rows = {row.what: (row.ours, row.theirs) for row in failure.comparison.rows if row.note}
    assert set(rows) == {"DH", "cipher", "hash"}
    assert why(initiator).notify == "NO_PROPOSAL_CHOSEN"
    assert "crypto" in why(initiator).remedy


@ORDERS
def test_a_peer_without_a_rule(first: str) -> None:
    """It is told that there is no proposal for it, and why is only in our log."""
    one, other = hosts()
    link = Link(one, other)
    link.reload(link.other(link.named(first)), sets())
    link.up("net", first)
    link.run(60)
    nothing(link)
    assert "no rule" in why(link.other(link.named(first))).reason
    assert why(link.named(first)).notify == "NO_PROPOSAL_CHOSEN"


@ORDERS
def test_aggressive_mode_only_where_a_rule_asks_for_it(first: str) -> None:
    """A stranger does not get what it needs to guess a key from a host whose rules say main mode."""
    rule = {f"{first}_rule": AGGRESSIVE}
    link = begun(first, **rule)
    nothing(link)
    responder = link.other(link.named(first))
    assert "aggressive" in why(responder).reason
    assert all(
        flight.header.exchange != Exchange.AGGRESSIVE for flight in link.flights if flight.sender is responder
    )


def test_a_rule_that_asks_for_it_answers_main_mode_too() -> None:
    """It is what the peer chooses."""
    link = begun("left", right_rule=AGGRESSIVE)
    agree(link, ikes=1, pairs=1)
    assert link.flights[0].header.exchange == Exchange.MAIN


@ORDERS
def test_nobody_is_there(first: str) -> None:
    """The initiator repeats its message a few times and says what may be wrong."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net", first)
    link.run(200)
    nothing(link)
    one = link.named(first)
    assert len(link.flights) == IkeSettings().retransmit_tries
    assert "does not answer" in why(one).reason
    assert "500" in why(one).remedy


# Hints ------------------------------------------------------------------------------------------------------


def clear_error(link: Link, sender: Host, kind: int) -> bytes:
    """An error in the clear, as anybody can make it who has seen the cookies."""
    channel = main_mode(sender).session.channel
    message = Message(Exchange.INFORMATIONAL, (status(kind),), 0x77)
    return channel.seal(message, b"")[0]


@ORDERS
@pytest.mark.parametrize("steps", range(7))
def test_a_forged_refusal(steps: int, first: str) -> None:
    """In the clear it counts only when nothing better comes: phase 1 goes on, and later it is nothing."""
    link = Link(*hosts())
    link.up("net", first)
    one = link.named(first)
    for _ in range(steps):
        link.step()
    for kind in (N.NO_PROPOSAL_CHOSEN, N.AUTHENTICATION_FAILED, N.INVALID_COOKIE, 8191):
        link.inject(one, clear_error(link, one, kind))
        if link.other(one).ikes:
            link.inject(link.other(one), clear_error(link, one, kind))
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert not one.failures


@ORDERS
def test_a_refusal_that_is_true(first: str) -> None:
    """Nothing else comes: with the next repetition it is believed, long before the peer is given up."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net", first)
    one = link.named(first)
    link.inject(one, clear_error(link, one, N.NO_PROPOSAL_CHOSEN))
    link.run(1.5)
    assert not one.ikes
    assert why(one).notify == "NO_PROPOSAL_CHOSEN"


def test_errors_in_the_clear_about_an_isakmp_sa_that_is_up() -> None:
    """They change nothing, whatever they say."""
    link = connected()
    count = len(link.flights)
    delete = Notify(protocol=ProtocolId.ISAKMP, type=N.INVALID_COOKIE, spi=b"")
    for one in (link.left, link.right):
        for payload in (
            delete,
            status(N.AUTHENTICATION_FAILED),
            status(N.INITIAL_CONTACT),
            status(N.R_U_THERE),
        ):
            data = main_mode(one).session.channel.seal(
                Message(Exchange.INFORMATIONAL, (payload,), 0x66), b""
            )[0]
            link.inject(one, data)
        assert set(one.drops) == {"unprotected"}
    assert len(link.flights) == count
    agree(link, ikes=1, pairs=1)


def test_what_a_refused_peer_reads() -> None:
    """The refusal of a proof is protected with the keys that both have by then."""
    link = Link(*hosts(right_rule='peer = "nobody.example"\n'))
    link.up("net")
    while not link.right.failures:
        assert link.step()
    (flight,) = [one for one in link.flights if one.header.exchange == Exchange.INFORMATIONAL]
    assert flight.header.flags & Flags.ENCRYPTION
    main_mode(link.left)._note_last_block()
    assert read(link.left, flight.data).one(Notify).type == N.AUTHENTICATION_FAILED


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Exchange.MAIN, Exchange.AGGRESSIVE])
def test_half_open_negotiations_are_few_and_end(mode: Exchange) -> None:
    """In both modes, and together with those of IKEv2."""
    small = IkeSettings(half_open=20, half_open_per_address=10, associations=30)
    extra = RULE + (AGGRESSIVE if mode == Exchange.AGGRESSIVE else "")
    rules = tunnel_rules("right", peer="any", extra=extra) + sets()
    right = host("right", hosts()[1].address, rules, psk("right.example", "left.example"), small)
    left = hosts(left_rule=AGGRESSIVE if mode == Exchange.AGGRESSIVE else "")[0]
    link = Link(left, right)
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.up("net")
    first = link.flights[0].data
    assert Header.decode(first).exchange == mode
    for n in range(200):
        data = n.to_bytes(8, "big")[::-1] + b"" + first[8:]
        data = (b"\1" + data[1:]) if n == 0 else data
        link.inject(right, data, port=1024 + n, source=right.address + 1 + n % 50)
    assert right.endpoint.half_open <= 20
    assert len(right.ikes) <= 20
    assert "half-open-limit" in right.drops
    count = len(link.flights)
    link.run(120)
    assert right.endpoint.half_open == 0
    assert not right.ikes
    sent = len([one for one in link.flights[count:] if one.sender is right])
    assert sent == 0 if mode == Exchange.MAIN else sent <= 20 * IkeSettings().retransmit_tries


def test_no_answer_is_much_larger_than_its_question() -> None:
    """An address that somebody else writes into a first message is not flooded by us."""
    link = begun()
    question, answer = link.flights[0].data, link.flights[1].data
    assert len(answer) <= 3 * len(question)
    refusing = begun(right_rule="", crypto=sets(main='["p384 aes256 sha384"]'))
    assert len(refusing.flights[1].data) <= 3 * len(refusing.flights[0].data)


def test_both_keys_and_certificates() -> None:
    """A rule that wants a certificate or else a key: the first that both have is taken."""
    left, right = certified("left"), certified("right")
    keys = psk("left.example", "right.example").keys, psk("right.example", "left.example").keys
    left = Material(left.identity, keys[0], left.hosts, left.anchors)
    link = begun(left=left, right=Material(Identity.parse("right.example"), keys[1], (), right.anchors))
    agree(link, ikes=1, pairs=1)
    assert main_mode(link.left).session.method == Method.PSK
    link = begun(left=left, right=Material(right.identity, keys[1], right.hosts, right.anchors))
    agree(link, ikes=1, pairs=1)
    assert main_mode(link.left).session.method == Method.ECDSA_256


def test_a_certificate_request_names_our_authorities() -> None:
    """So that a peer with several certificates takes one we believe (RFC 2408 section 3.10)."""
    link = begun(**both(certified("left"), certified("right")))
    received = [event for event in link.left.events if type(event).__name__ == "MessageReceived"]
    assert any("CR" in event.payloads for event in received)  # type: ignore[attr-defined]
    assert authority().certificate.subject.public_bytes() in link.flights[3].data


def test_an_informational_message_is_bound_to_its_sa() -> None:
    """One that was made for another ISAKMP SA, with the same keys in it or not, is nothing here."""
    one, other = connected(), connected(seed=5)
    data = informed(other.left, status(N.INITIAL_CONTACT))
    session = main_mode(one.left).session
    moved = session.channel.cookie_i + session.channel.cookie_r + data[16:]
    one.inject(one.right, moved)
    assert one.right.drops[0] in {"malformed", "unverified"}
    agree(one, ikes=1, pairs=1)


def test_the_policy_says_what_it_offers() -> None:
    """AEADs and other groups of a rule's crypto set are left out in IKEv1, not refused with the rule."""
    made = policy(tunnel_rules("left", extra='keying = ["ikev2", "ikev1"]\n'))
    assert made.rule("net") is not None
    link = Link(*hosts(left_rule="", crypto=sets(main='["x25519 aes256gcm sha384", "p256 aes128 sha256"]')))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.ikes[0].suite) == "p256 aes128 sha256", story(link)
