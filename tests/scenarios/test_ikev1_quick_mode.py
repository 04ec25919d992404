"""Quick mode (RFC 2409 section 5.5, RFC 2407 section 4): what SAs come out of it, for which traffic, for how
long, and what becomes of one that fails.

If one of these fails, packets are dropped or go in the clear, or both ends think differently of an SA."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from support.link import (
    BOTH,
    LEFT,
    RIGHT,
    Host,
    Link,
    agree,
    host,
    losing,
    psk,
)
from support.phases import RULE, connected, hosts, main_mode, sealed, sets

from ikd.events import ChildEstablished
from ikd.ikev1 import quick_mode
from ikd.ikev1.association import Ikev1Association
from ikd.ikev1.keys import message_hash
from ikd.ikev1.message import Message, status
from ikd.isakmp import identities, quick
from ikd.isakmp.numbers import Encapsulation, Exchange, N
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    Nonce,
    Proposal,
    SecurityAssociation,
    Transform,
)
from ikd.isakmp.proposals import Life, offer_quick, responder_lifetime
from ikd.outputs import AllocateSpi, Install
from ikd.settings import IkeSettings
from ikd.wire.isakmp import Payload, encode_chain
from sadb.backend import Unavailable
from sadb.sa import Acquire, Mode
from sadb.selector import TrafficSelector

ORDERS = pytest.mark.parametrize("first", BOTH)
QUICK = (
    "3des sha1",
    "aes128 sha1",
    "aes192 sha256",
    "aes256 sha384",
    "aes256 sha512",
    "aes128gcm",
    "aes192gcm",
    "aes256gcm",
    "null sha256",
    "aes128gmac",
    "aes256gmac",
    "ah sha1",
    "ah sha256",
    "ah sha512",
)
ENDS = """
[[rule]]
name = "host"
local = "{local}"
remote = "{remote}"
security = "require"
auth = "any"
{extra}
[auth.any]
first = ["psk"]
"""


def ends(left: str, right: str, **keys: str) -> Link:
    """Two hosts with a rule in transport mode for the traffic between them; `left` and `right` are lines of
    its two sides."""
    made = []
    for name, lines, own, other in (("left", left, LEFT, RIGHT), ("right", right, RIGHT, LEFT)):
        peer = "right" if name == "left" else "left"
        rules = ENDS.format(local=own, remote=other, extra=RULE + lines) + sets(**keys)
        made.append(host(name, own, rules, psk(f"{name}.example", f"{peer}.example")))
    return Link(*made)


# What comes out ---------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("suite", QUICK)
def test_every_suite(suite: str, first: str) -> None:
    """Both ends have the same keys for each suite, AH included, in both roles."""
    link = Link(*hosts(crypto=sets(quick=f'["{suite}"]')))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.pairs[0].inbound.suite) == suite


@ORDERS
@pytest.mark.parametrize("group", ["modp1024", "modp2048", "p256", "p384", "p521"])
def test_forward_secrecy(group: str, first: str) -> None:
    """Both sides take part in another key exchange; without it the keys are others."""
    crypto = sets(quick='["aes128 sha256"]', pfs="true", main=f'["{group} aes128 sha256"]')
    link = Link(*hosts(crypto=crypto))
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    group_used = link.left.pairs[0].inbound.suite.group
    assert group_used is not None
    assert group_used.name == group


@ORDERS
def test_forward_secrecy_on_one_side(first: str) -> None:
    """Whoever asks for it gets it; whoever does not ask a side that insists is refused."""
    one = hosts(crypto=sets(pfs="true"))[0]
    other = hosts(crypto=sets())[1]
    link = Link(one, other)
    link.up("net", first)
    link.run(5)
    if first == "left":
        agree(link, ikes=1, pairs=1)
        assert one.pairs[0].inbound.suite.group
    else:
        agree(link, ikes=1, pairs=0)
        assert other.failures[0].notify == "NO_PROPOSAL_CHOSEN"
        assert one.failures[0].comparison is not None
        assert any(row.what == "DH" and row.note for row in one.failures[0].comparison.rows)


@ORDERS
@pytest.mark.parametrize("lost", [(), *((n,) for n in range(3)), *combinations(range(4), 2)], ids=str)
def test_losses(lost: tuple[int, ...], first: str) -> None:
    """Every message and every pair of them; the responder does not send before it knows that the initiator
    can receive."""
    link = Link(*hosts())
    link.up("net", first, childless=True)
    link.run(1)
    link.fate = losing(*lost)
    link.up("net", first)
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert not link.left.pairs[0].standby
    assert not link.right.pairs[0].standby


@ORDERS
def test_the_initiator_never_says_its_last_word(first: str) -> None:
    """The responder gives up, and the initiator, which believes it has an SA, is told."""
    link = Link(*hosts())
    link.up("net", first, childless=True)
    link.run(1)
    one = link.named(first)
    sent = 0

    def fate(flight: Any) -> None:
        nonlocal sent
        if flight.sender is one and flight.header.exchange == Exchange.QUICK:
            sent += 1
            flight.lost = sent > 1

    link.fate = fate
    link.up("net", first)
    link.run(100)
    agree(link, ikes=1, pairs=0)
    assert link.other(one).failures[0].child


@ORDERS
def test_many_at_once(first: str) -> None:
    """Each has its own chain of IVs, in whatever order their messages come."""
    link = Link(*hosts(nets=20))
    link.fate = lambda flight: setattr(flight, "delay", 0.01 + 0.007 * (flight.number * 7 % 5))
    for n in range(20):
        link.up(f"net{n or ''}", first)
    link.run(20)
    agree(link, ikes=1, pairs=20)
    assert {pair.rule for pair in link.left.pairs} == {f"net{n or ''}" for n in range(20)}


@ORDERS
def test_one_of_several_is_refused(first: str) -> None:
    """The refusal names its proposal, so the others are not taken for it."""
    left, right = hosts(nets=4)[0], hosts(nets=1)[1]
    if first == "right":
        left, right = hosts(nets=1)[0], hosts(nets=4)[1]
    link = Link(left, right)
    one = link.named(first)
    link.up("net", one, childless=True)
    link.run(1)
    for rule in ("net1", "net", "net2"):
        link.up(rule, one)
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert [failure.rule for failure in one.failures] == ["net1", "net2"]


def test_a_refusal_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several it may mean any: those that are answered go on, and the one that is not is the one."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net", childless=True)
    link.run(1)
    tell = Ikev1Association._inform

    def vague(self: Ikev1Association, *payloads: Any) -> bytes:
        return tell(self, *(replace(one, spi=b"", protocol=1) for one in payloads))

    monkeypatch.setattr(Ikev1Association, "_inform", vague)
    link.up("net1")
    link.up("net")
    link.run(20)
    agree(link, ikes=1, pairs=1)
    assert [failure.rule for failure in left.failures] == ["net1"]


def test_failed_ones_do_not_use_up_an_isakmp_sa() -> None:
    """A peer whose rules do not fit tries again and again; what fits works all the same."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net")
    link.run(1)
    for _ in range(100):
        link.up("net1")
        link.run(0.1)
    link.rekey_child(left)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert len(main_mode(right).talks.talks) <= 64
    link.run(70)
    assert len(main_mode(right).talks.talks) <= 1
    assert len(main_mode(left).talks.talks) <= 1


# Traffic ----------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize(
    ("left", "right", "protocol", "ports"),
    [
        ("", "", 0, (0, 0)),
        ('protocol = "udp"', 'protocol = "udp"', 17, (0, 0)),
        ('protocol = "tcp"\nlocal_port = 179', 'protocol = "tcp"\nremote_port = 179', 6, (179, 0)),
        (
            'protocol = "udp"\nlocal_port = 1701\nremote_port = 1701',
            'protocol = "udp"\nlocal_port = 1701\nremote_port = 1701',
            17,
            (1701, 1701),
        ),
    ],
    ids=["all", "udp", "bgp", "l2tp"],
)
def test_transport_mode(left: str, right: str, protocol: int, ports: tuple[int, int], first: str) -> None:
    """Protocols and ports go into the identities (RFC 2407 section 4.6.2), and into the selectors of both."""
    link = ends(left, right)
    link.up("host", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for one, own, other in ((link.left, *ports), (link.right, *ports[::-1])):
        pair = one.pairs[0]
        assert pair.mode is Mode.TRANSPORT
        mine, theirs = pair.selector.local[0], pair.selector.remote[0]
        assert (mine.low, theirs.low) == (one.address, link.other(one).address)
        assert mine.protocol == theirs.protocol == protocol
        assert mine.ports == ((own, own) if own else (0, 65535))
        assert theirs.ports == ((other, other) if other else (0, 65535))


@ORDERS
def test_a_mode_that_does_not_fit(first: str) -> None:
    """Tunnel here, transport there: NO-PROPOSAL-CHOSEN, and both modes are named."""
    made = []
    for name, tunnel in (("left", True), ("right", False)):
        own, other = (LEFT, RIGHT) if name == "left" else (RIGHT, LEFT)
        peer = "right" if name == "left" else "left"
        mode = f'tunnel = {{ local = "{own}", remote = "{other}" }}\n' if tunnel else ""
        rules = ENDS.format(local=own, remote=other, extra=RULE + mode) + sets()
        made.append(host(name, own, rules, psk(f"{name}.example", f"{peer}.example")))
    link = Link(*made)
    link.up("host", first)
    link.run(10)
    agree(link, ikes=1, pairs=0)
    (failure,) = link.other(link.named(first)).failures
    assert failure.notify == "NO_PROPOSAL_CHOSEN"
    assert failure.comparison is not None
    (row,) = (row for row in failure.comparison.rows if row.what == "mode")
    assert {*row.ours, *row.theirs} == {"tunnel", "transport"}


@ORDERS
def test_traffic_that_the_other_rule_does_not_cover(first: str) -> None:
    """INVALID-ID-INFORMATION; the log of the side that refuses says what was asked and what there is."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net1")
    link.run(10)
    agree(link, ikes=1, pairs=0)
    (refusal,) = right.failures
    assert refusal.notify == "INVALID_ID_INFORMATION"
    assert "10.1.1.0/24" in refusal.reason
    assert "10.1.0.0/24" in refusal.reason
    assert left.failures[0].notify == "INVALID_ID_INFORMATION"
    assert left.failures[0].child


def test_a_part_of_what_the_other_rule_covers() -> None:
    """Fits; quick mode cannot narrow, so the other way round it does not."""
    wide = hosts()[1]
    text = (
        '[[rule]]\nname = "net"\nlocal = "10.1.0.64/26"\nremote = "10.2.0.0/24"\n'
        f'tunnel = {{ local = "{LEFT}", remote = "{RIGHT}" }}\nsecurity = "require"\nauth = "any"\n{RULE}'
        '[auth.any]\nfirst = ["psk"]\n'
    ) + sets()
    narrow = host("left", LEFT, text, psk("left.example", "right.example"))
    link = Link(narrow, wide)
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(wide.pairs[0].selector.remote[0]) == "10.1.0.64/26"
    link.close_child(narrow)
    link.run(1)
    link.up("net", wide)
    link.run(5)
    agree(link, ikes=1, pairs=0)
    assert wide.failures[0].notify == "INVALID_ID_INFORMATION"


def test_a_packet_chooses_what_is_asked_for() -> None:
    """Of a rule with several ports the packet's own: quick mode speaks of one."""
    link = ends('protocol = "tcp"\nremote_port = [22, 80, 443]', 'protocol = "tcp"')
    for port in (443, 22):
        link.up("host", acquire=Acquire("host", LEFT, RIGHT, 6, 40000, port))
        link.run(5)
    agree(link, ikes=1, pairs=2)
    assert [pair.selector.remote[0].ports for pair in link.left.pairs] == [(443, 443), (22, 22)]
    assert [pair.selector.local[0].ports for pair in link.left.pairs] == [(0, 65535)] * 2


# Lifetimes --------------------------------------------------------------------------------------------------


def lives(one: Host) -> tuple[float | None, int | None]:
    """The hard limits of a host's pair."""
    limits = one.pairs[0].inbound.lifetime
    return limits.hard_seconds, limits.hard_octets


@ORDERS
def test_the_shorter_life_counts_for_both(first: str) -> None:
    """What the initiator proposes, or what the responder says in RESPONDER-LIFETIME (RFC 2407 section
    4.6.3.1), in time and octets each for itself."""
    one = hosts(crypto=sets(lifetime='{ quick = "20 min", quick_bytes = "2 GiB" }'))[0]
    other = hosts(crypto=sets(lifetime='{ quick = "30 min", quick_bytes = "1 GiB" }'))[1]
    link = Link(one, other)
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for side in (one, other):
        seconds, octets = lives(side)
        assert seconds is not None
        assert octets is not None
        assert seconds == pytest.approx(1200, rel=0.01)
        assert octets == 2**30


def test_octets_count_in_kilobytes() -> None:
    """RFC 2407: a kilobyte has 1024 octets, and what is left of one is not used."""
    assert quick.life_of(rule_of(hosts(crypto=sets(lifetime='{ quick_bytes = "100 MB" }'))[0])) == Life(
        3600, 100_000_000 // 1024
    )


def rule_of(one: Host) -> Any:
    """The rule `net` of a host."""
    return one.endpoint.policy.rule("net")


# Messages as only a peer can make them ----------------------------------------------------------------------


def request(one: Host, *payloads: Payload, number: int = 0x5EED, digest: bytes | None = None) -> bytes:
    """The first message of a quick mode of this host."""
    session = main_mode(one).session
    assert session.keys is not None
    _, rest = encode_chain(payloads)
    made = message_hash(session.row, session.keys.a, number, rest)
    hashed = Hash(data=made if digest is None else digest)
    return sealed(one, Message(Exchange.QUICK, (hashed, *payloads), number, encrypted=True))


def offer(one: Host, spi: bytes = b"\1\2\3\4", **life: int) -> SecurityAssociation:
    """What this host would offer for `net`."""
    suites = quick.suites_of(rule_of(one))
    return offer_quick(suites, spi, Encapsulation.TUNNEL, Life(**life))


def nets(one: Host) -> tuple[Identification, Identification]:
    """Its identities for `net`."""
    selector = rule_of(one).selector
    return identities.encode(selector.local[0]), identities.encode(selector.remote[0])


NONCE = Nonce(data=bytes(16))


def refusal(link: Link, *payloads: Payload) -> str:
    """What the right host makes of a quick mode of the left one."""
    link.inject(link.right, request(link.left, *payloads))
    agree_right(link)
    return link.right.failures[-1].notify if link.right.failures else ""


def agree_right(link: Link) -> None:
    """The right host has what it had."""
    assert len(link.right.ikes) == 1
    assert len(link.right.pairs) == 1
    assert link.right.database.counts().larval == 0
    assert not [one for one in link.right.events if type(one).__name__ == "Broken"]


@pytest.mark.parametrize("spi", [bytes(4), b"\0\0\0\xff", b"", bytes(8), b"\0" * 255])
def test_spis_that_cannot_be(spi: bytes) -> None:
    """RFC 2407 section 4.4.1, RFC 4303 section 2.1: below 256, or of another length."""
    link = connected()
    assert refusal(link, offer(link.left, spi), NONCE, *nets(link.left))


def test_without_identities_it_is_about_the_hosts() -> None:
    """RFC 2409 section 5.5; the rule for two networks does not cover them."""
    link = connected()
    assert refusal(link, offer(link.left), NONCE) == "INVALID_ID_INFORMATION"
    other = ends("", "")
    other.up("host", childless=True)
    other.run(1)
    suites = quick.suites_of(other.left.endpoint.policy.rule("host"))  # type: ignore[arg-type]
    made = offer_quick(suites, b"\1\2\3\4", Encapsulation.TRANSPORT, Life())
    other.inject(other.right, request(other.left, made, NONCE))
    assert len(other.right.pairs) == 1
    assert other.right.pairs[0].selector.remote[0] == TrafficSelector.of(LEFT)


@pytest.mark.parametrize(
    "identity",
    [
        Identification(type=2, data=b"left.example"),
        Identification(type=9, data=b"0"),
        Identification(type=11, data=b"key"),
        Identification(type=1, data=b"\1\2\3"),
        Identification(type=4, data=bytes.fromhex("0a010000ff00ff00")),
        Identification(type=7, data=bytes.fromhex("0a0100090a010001")),
        Identification(type=200, data=bytes(8)),
        Identification(type=5, data=bytes(16)),
        Identification(type=4, protocol=17, port=65535, data=bytes.fromhex("0a010000ffffff00")),
    ],
    ids=lambda one: f"{one.type}-{one.data.hex()}-{one.port}",
)
def test_identities_that_are_no_traffic_of_ours(identity: Identification) -> None:
    """Names, masks with holes, ranges that run backwards, another family, a protocol our rule has as a part:
    only that gets an SA."""
    link = connected()
    link.inject(link.right, request(link.left, offer(link.left), NONCE, identity, nets(link.left)[1]))
    if identity.port:
        assert link.right.failures or len(link.right.pairs) == 2
    else:
        agree_right(link)
        assert link.right.failures[0].notify in {"INVALID_ID_INFORMATION", "PAYLOAD_MALFORMED"}


@pytest.mark.parametrize(
    "payloads",
    [
        lambda one: (offer(one), NONCE, nets(one)[0]),
        lambda one: (offer(one), NONCE, *nets(one), nets(one)[0]),
        lambda one: (offer(one), offer(one), NONCE, *nets(one)),
        lambda one: (offer(one), *nets(one)),
        lambda one: (NONCE, *nets(one)),
        lambda one: (offer(one), NONCE, NONCE, *nets(one)),
    ],
    ids=["one identity", "three", "two SAs", "no nonce", "no SA", "two nonces"],
)
def test_wrong_sets_of_payloads(payloads: Any) -> None:
    """Nothing begins."""
    link = connected()
    link.inject(link.right, request(link.left, *payloads(link.left)))
    agree_right(link)
    assert link.right.drops == ["malformed"]


@pytest.mark.parametrize("public", [b"\0", bytes(64), bytes(65), b"\4" + bytes(64), b"\xff" * 64])
def test_public_values_that_are_none(public: bytes) -> None:
    """Points that are not on the curve give no keys."""
    link = connected(crypto=sets(pfs="true"))
    assert refusal(link, offer(link.left), NONCE, KeyExchange(public=public), *nets(link.left))


def test_a_key_exchange_nobody_asked_for() -> None:
    """The proposal has no group."""
    link = connected()
    assert refusal(link, offer(link.left), NONCE, KeyExchange(public=bytes(64)), *nets(link.left)) in {
        "NO_PROPOSAL_CHOSEN",
        "",
    }


def test_a_proposal_in_two_parts() -> None:
    """AH and ESP together, or compression, which are one proposal with one number (RFC 2408 section 4.2)."""
    link = connected()
    made = offer(link.left)
    (esp,) = made.proposals
    for protocol, transform in ((2, 5), (4, 2)):
        second = replace(
            esp,
            protocol=protocol,
            spi=b"\1\2",
            transforms=(Transform(number=1, id=transform, attributes=()),),
        )
        assert (
            refusal(link, replace(made, proposals=(esp, second)), NONCE, *nets(link.left))
            == "NO_PROPOSAL_CHOSEN"
        )


def test_the_same_once_more_and_again_later() -> None:
    """A repetition is answered with the same octets; a minute later a message ID that was used is nothing:
    whoever recorded it would make us switch to an SA nobody else has."""
    link = connected()
    data = request(link.left, offer(link.left), NONCE, *nets(link.left))
    link.fate = lambda flight: setattr(flight, "lost", flight.header.exchange == Exchange.QUICK)
    link.inject(link.right, data)
    answer = link.flights[-1].data
    link.inject(link.right, data)
    assert link.flights[-1].data == answer
    assert len(list(link.right.database.pairs())) == 2
    link.run(200)
    count = len(link.flights)
    link.inject(link.right, data)
    assert len(link.flights) == count
    assert "replayed" in link.right.drops
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("at", [0, 1, 5, 31])
def test_a_wrong_hash(at: int) -> None:
    """HASH(1) is what makes it the peer's: without it nothing begins and nothing is answered."""
    link = connected()
    good = request(link.left, offer(link.left), NONCE, *nets(link.left))
    count = len(link.flights)
    session = main_mode(link.left).session
    assert session.keys is not None
    _, rest = encode_chain((offer(link.left), NONCE, *nets(link.left)))
    digest = bytearray(message_hash(session.row, session.keys.a, 0x5EED, rest))
    digest[at] ^= 1
    link.inject(
        link.right,
        request(link.left, offer(link.left), NONCE, *nets(link.left), digest=bytes(digest)),
    )
    assert link.right.drops == ["unverified"]
    assert len(link.flights) == count
    link.inject(link.right, good)  # the true one is not lost by that
    assert len(link.flights) == count + 1


def test_thousands_of_transforms() -> None:
    """They are looked through once, and the one that fits is found."""
    link = connected()
    made = offer(link.left)
    (esp,) = made.proposals
    (good,) = esp.transforms
    wrong = [replace(good, number=n % 256, id=n % 11 + 30) for n in range(250)]
    proposals = [replace(esp, number=n, transforms=tuple(wrong)) for n in range(1, 7)]
    proposals.append(replace(esp, number=200))
    assert refusal_or_pairs(link, replace(made, proposals=tuple(proposals))) == 2


def refusal_or_pairs(link: Link, made: SecurityAssociation) -> int:
    """How many pairs the right host has after a quick mode of the left one."""
    link.inject(link.right, request(link.left, made, NONCE, *nets(link.left)))
    return len(list(link.right.database.pairs()))


@pytest.mark.parametrize(
    "attributes",
    [
        ((1, 1), (2, b"")),
        ((1, 1), (2, bytes(300))),
        ((2, b"\0\0\x0e\x10"),),
        ((1, 3), (2, 5)),
        ((4, 1), (4, 2)),
        ((4, b"\0\1"),),
        ((5, 5), (5, b"\0\0\0\5")),
        ((6, 128), (6, 256)),
        ((7, 1),),
        ((32767, b"x" * 1000),),
    ],
    ids=str,
)
def test_attributes_of_all_kinds(attributes: Any) -> None:
    """Empty, too long, in the other form, contradicting, unknown: never more than a refusal."""
    link = connected()
    made = offer(link.left)
    (esp,) = made.proposals
    (good,) = esp.transforms
    mixed = replace(good, attributes=(*good.attributes, *attributes))
    only = replace(good, attributes=attributes)
    for transforms in ((mixed,), (only,), (only, mixed, good)):
        link.inject(
            link.right,
            request(
                link.left,
                replace(made, proposals=(replace(esp, transforms=transforms),)),
                NONCE,
                *nets(link.left),
                number=0x1000 + len(link.flights),
            ),
        )
    assert not [one for one in link.right.events if type(one).__name__ == "Broken"]
    link.run(200)
    agree(link, ikes=1, pairs=1)


# Answers as only a peer can make them -----------------------------------------------------------------------


def answered(change: Any, crypto: str = "") -> Link:
    """A quick mode whose answer is `change(payloads)`, with a hash that fits."""
    link = Link(*hosts(crypto=crypto))
    link.up("net", childless=True)
    link.run(1)
    original = quick_mode._sealed

    def sealed_otherwise(session: Any, number: int, payloads: Any, nonce_i: bytes = b"") -> Message:
        return original(session, number, change(list(payloads)) if nonce_i else payloads, nonce_i)

    quick_mode._sealed = sealed_otherwise
    try:
        link.up("net")
        link.run(2)
    finally:
        quick_mode._sealed = original
    return link


def other_proposal(payloads: list[Any]) -> list[Any]:
    """Another cipher than was offered."""
    (proposal,) = payloads[0].proposals
    (one,) = proposal.transforms
    made = replace(one, id=11)
    return [replace(payloads[0], proposals=(replace(proposal, transforms=(made,)),)), *payloads[1:]]


def two_proposals(payloads: list[Any]) -> list[Any]:
    """Nothing is chosen."""
    (proposal,) = payloads[0].proposals
    second = Proposal(number=2, protocol=3, spi=proposal.spi, transforms=proposal.transforms)
    return [replace(payloads[0], proposals=(proposal, second)), *payloads[1:]]


def other_identity(payloads: list[Any]) -> list[Any]:
    """More traffic than was asked for."""
    wide = Identification(type=4, data=bytes(8))
    return [wide if isinstance(one, Identification) else one for one in payloads]


def small_spi(payloads: list[Any]) -> list[Any]:
    """A reserved SPI."""
    (proposal,) = payloads[0].proposals
    return [replace(payloads[0], proposals=(replace(proposal, spi=bytes(4)),)), *payloads[1:]]


def bad_life(payloads: list[Any]) -> list[Any]:
    """A RESPONDER-LIFETIME of no attributes at all."""
    return [*payloads, status(N.RESPONDER_LIFETIME, b"\1", 3, b"\1\2\3\4")]


@pytest.mark.parametrize(
    "change", [other_proposal, two_proposals, other_identity, small_spi, bad_life], ids=lambda f: f.__name__
)
def test_answers_that_are_none(change: Any) -> None:
    """The initiator does not take what it did not ask for; nothing is left on either side, and the responder
    is told."""
    link = answered(change)
    link.run(100)
    agree(link, ikes=1, pairs=0)
    assert link.left.failures
    assert link.left.database.counts().larval == 0


def test_an_answer_with_a_short_life() -> None:
    """It counts, whatever was proposed."""
    data = responder_lifetime(Life(seconds=300, kilobytes=1024))
    link = answered(lambda payloads: [*payloads, status(N.RESPONDER_LIFETIME, data, 3, b"\1\2\3\4")])
    assert lives(link.left)[0] == pytest.approx(300)
    assert lives(link.left)[1] == 1024 * 1024


def test_an_answer_without_identities() -> None:
    """Some leave them out; then they are those that were asked for."""
    link = answered(lambda payloads: [one for one in payloads if not isinstance(one, Identification)])
    agree(link, ikes=1, pairs=1)


# The world --------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("question", [AllocateSpi, Install])
@pytest.mark.parametrize("failing", ["initiator", "responder"])
def test_an_sadb_that_refuses(failing: str, question: type[Any], first: str) -> None:
    """A full SADB or backend: both sides hear of it, nothing is left, and later it works."""
    link = Link(*hosts())
    link.up("net", first, childless=True)
    link.run(1)
    one = link.named(first) if failing == "initiator" else link.other(link.named(first))
    one.asked = lambda asked: Unavailable("full") if isinstance(asked, question) else None
    link.up("net", first)
    link.run(100)
    agree(link, ikes=1, pairs=0)
    assert one.failures
    assert link.named(first).failures
    one.asked = None
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)


@ORDERS
def test_slow_answers(first: str) -> None:
    """While a question is open repetitions are not taken for more."""
    link = Link(*hosts())
    for one in (link.left, link.right):
        one.slow = 1.7
    link.up("net", first)
    link.run(60)
    for one in (link.left, link.right):
        one.slow = 0.0
    link.run(30)
    agree(link, ikes=1)
    assert len(link.left.pairs) == 1


def test_as_many_as_the_settings_allow() -> None:
    """A peer gets no more quick-mode SAs than that."""
    link = Link(*hosts(nets=4, right_settings=IkeSettings(children=2)))
    for n in range(4):
        link.up(f"net{n or ''}")
        link.run(5)
    agree(link, ikes=1, pairs=2)
    assert "most" in link.right.failures[0].reason


@ORDERS
def test_guaranteed_encryption(first: str) -> None:
    """A rule that demands it neither offers nor accepts what does not encrypt."""
    crypto = sets(quick='["null sha256", "aes128 sha256"]')
    link = Link(hosts(crypto=crypto)[0], hosts(crypto=crypto, right_rule="encrypt = true\n")[1])
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(link.left.pairs[0].inbound.suite) == "aes128 sha256"


def test_events_tell_what_was_made() -> None:
    """Rule, SPIs and traffic as both ends see them."""
    link = connected()
    (ours,), (theirs,) = link.left.of(ChildEstablished), link.right.of(ChildEstablished)
    assert (ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in)
    assert (ours.local, ours.remote) == (theirs.remote, theirs.local)
    assert ours.mode == theirs.mode == "tunnel"
