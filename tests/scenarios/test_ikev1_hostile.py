"""What strangers, and peers that hold the keys, can do with octets of any kind at any moment of IKEv1.

If one of these fails, a datagram stops the daemon, fills its tables, or changes an SA that is not its
sender's."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lives
from support.hostile import weight
from support.ikev1 import IKE_SCAN, WINDOWS, first_message, payload, sa, transform
from support.link import RIGHT, Host, Link, agree, host, psk, story, tunnel_rules
from support.lives import CUTS, PATIENT, SIDES, Lives, damaged, quiet, say_to_both
from support.phases import AGGRESSIVE, RULE, connected, hosts, main_mode, sets

from ikd.events import Broken, IkeClosed
from ikd.ikev1.keys import message_hash
from ikd.ikev1.message import Message, status
from ikd.isakmp.numbers import Exchange, N, ProtocolId
from ikd.isakmp.payloads import Delete, Hash
from ikd.riders.fragment1 import FRAGMENT
from ikd.riders.vendor import Known
from ikd.settings import IkeSettings
from ikd.wire.isakmp import HEADER_SIZE, Header, encode_chain
from sadb.crypto import cbc_encrypt

MODES = pytest.mark.parametrize("mode", ["", AGGRESSIVE], ids=["main", "aggressive"])
QUICK = settings(PATIENT, max_examples=40)
STAGES = 16


def stage(number: int, mode: str = "") -> Link:
    """Any moment of an ISAKMP SA."""
    both = {"left_rule": mode, "right_rule": mode}
    return lives.stage(number, lambda: Link(*hosts(**both)), lambda: connected(**both), 9)


def unharmed(link: Link) -> None:
    """Nothing broke, and tables are small."""
    lives.unharmed(link, ikes=6, pairs=4, half_open=4)
    for one in (link.left, link.right):
        for association in one.ikes:
            if hasattr(association, "predecessor"):
                assert len(association.talks.talks) <= 64  # type: ignore[attr-defined]


def recovered(link: Link) -> None:
    """What was under way may have been spoiled by whoever sees and changes packets; it ends by itself, and
    the next attempt works."""
    link.run(150)
    unharmed(link)
    for one in (link.left, link.right):
        assert one.endpoint.idle, story(link)
        assert one.endpoint.half_open == 0
    if not link.left.pairs:
        link.up("net")
        link.run(20)
        assert link.left.pairs, story(link)
    agree(link)


# Datagrams of strangers -------------------------------------------------------------------------------------


@QUICK
@given(number=st.integers(0, STAGES), data=st.binary(max_size=400), side=SIDES, exchange=st.integers(0, 40))
def test_random_octets(number: int, data: bytes, side: str, exchange: int) -> None:
    """Alone, and behind the header of a message that is expected: nothing changes at all."""
    link = stage(number)
    link.inject(link.named(side), data)
    head = bytearray(link.flights[-1].data[:HEADER_SIZE])
    head[18:20] = bytes((exchange, 1))
    head[24:28] = (HEADER_SIZE + len(data)).to_bytes(4, "big")
    link.inject(link.named(side), bytes(head) + data)
    unharmed(link)
    link.run(150)
    agree(link)


@QUICK
@given(
    number=st.integers(0, STAGES),
    which=st.integers(0, 12),
    side=SIDES,
    mode=st.sampled_from(["", AGGRESSIVE]),
    cuts=CUTS,
    shorter=st.integers(0, 3),
)
def test_mutated_datagrams(
    number: int, which: int, side: str, mode: str, cuts: list[tuple[float, int]], shorter: int
) -> None:
    """Real datagrams with some octets changed, and with a length that still fits, to either side."""
    link = stage(number, mode)
    flight = link.flights[which % len(link.flights)]
    say_to_both(link, damaged(flight.data, cuts, 16 * shorter, fitting=True), side)
    unharmed(link)
    recovered(link)


@QUICK
@given(which=st.integers(0, 20), at=st.integers(0, 400), bit=st.integers(0, 7), side=SIDES)
def test_an_sa_that_is_up_is_not_moved(which: int, at: int, bit: int, side: str) -> None:
    """Every datagram that made it, with one bit changed: both ends keep what they have."""
    link = connected()
    link.rekey_child(link.left)
    link.rekey(link.right)
    link.run(20)
    before = [(one.ikes, one.pairs) for one in (link.left, link.right)]
    data = bytearray(link.flights[which % len(link.flights)].data)
    data[at % len(data)] ^= 1 << bit
    link.inject(link.named(side), bytes(data))
    link.run(120)
    agree(link, ikes=1, pairs=1)
    assert [(one.ikes, one.pairs) for one in (link.left, link.right)] == before


@MODES
@pytest.mark.parametrize("later", [0.0, 5.0, 70.0, 200.0])
def test_everything_once_more(mode: str, later: float) -> None:
    """A recording of all that was ever sent, to both sides, soon and late."""
    link = connected(left_rule=mode, right_rule=mode)
    link.rekey_child(link.left)
    link.run(5)
    link.rekey(link.right)
    link.run(15 + later)
    agree(link, ikes=1, pairs=1)
    pairs = link.left.pairs
    for flight in list(link.flights):
        for one in (link.left, link.right):
            link.inject(one, flight.data)
    link.run(100)
    agree(link, ikes=1, pairs=1)
    assert link.left.pairs == pairs
    for one in (link.left, link.right):
        assert not [failure for failure in one.failures if failure.initiator or failure.child]


@MODES
@pytest.mark.parametrize("number", range(7))
def test_our_own_messages_come_back(number: int, mode: str) -> None:
    """Whoever sends our datagrams back to us, and nothing else, changes nothing."""
    link = Link(*hosts(left_rule=mode, right_rule=mode))
    link.up("net")
    for _ in range(number):
        link.step()
        for flight in link.flights[-1:]:
            link.inject(flight.sender, flight.data)
    link.run(60)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("exchange", [0, 1, 4, 5, 6, 32, 33, 34, 243])
@pytest.mark.parametrize("number", [1, 3, 4, 5, 7])
def test_an_exchange_of_another_type_in_the_middle(number: int, exchange: int) -> None:
    """It is not taken for the one that is under way."""
    link = Link(*hosts())
    link.up("net")
    for _ in range(number):
        link.step()
    for flight in link.flights[-2:]:
        data = bytearray(flight.data)
        data[18] = exchange
        for one in (link.left, link.right):
            link.inject(one, bytes(data))
    link.run(60)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("version", [0x00, 0x01, 0x11, 0x1F, 0x20, 0x30, 0xF0])
def test_other_versions(version: int) -> None:
    """Version 1.1 is none we know; the major versions above are others' business."""
    link = connected()
    for flight in list(link.flights):
        data = flight.data[:17] + bytes((version,)) + flight.data[18:]
        for one in (link.left, link.right):
            link.inject(one, data)
    unharmed(link)
    link.run(60)
    agree(link, ikes=1, pairs=1)


def test_cookies_of_nobody() -> None:
    """Messages of every exchange type for an ISAKMP SA that is not there: counted, not answered."""
    link = connected()
    count = len(link.flights)
    for flight, other in product(link.flights[:9], (bytes(8), b"\1" * 8, b"\xff" * 8)):
        for data in (
            other + flight.data[8:],
            flight.data[:8] + b"\2" * 8 + flight.data[16:],
            other + b"\3" * 8 + flight.data[16:],
        ):
            if data[8:16] != bytes(8):
                for one in (link.left, link.right):
                    link.inject(one, data)
    assert len(link.flights) == count
    assert {*link.left.drops, *link.right.drops} <= {"unknown-spi", "malformed"}
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("state", ["connecting", "up"])
def test_quick_mode_too_early(state: str) -> None:
    """Before phase 1 is done there is nothing it could be part of."""
    link = Link(*hosts())
    link.up("net")
    recorded = connected(seed=4)
    quick = [one.data for one in recorded.flights if one.header.exchange == Exchange.QUICK]
    for _ in range(5):
        link.step()
        for one in (link.left, link.right):
            for association in one.ikes:
                spis = b"".join(association.spis)  # type: ignore[attr-defined]
                for data in quick:
                    link.inject(one, spis + data[16:])
        if state == "up":
            link.run(5)
    link.run(60)
    agree(link, ikes=1, pairs=1)


# First messages ---------------------------------------------------------------------------------------------


def lone(mode: str = "", **how: int) -> tuple[Host, Link]:
    """A responder for any peer, and a link to it."""
    rules = tunnel_rules("right", peer="any", extra=RULE + mode) + sets(
        main='["p256 aes128 sha256", "modp2048 aes256 sha1"]'
    )
    right = host("right", RIGHT, rules, psk("right.example", "left.example"), IkeSettings(**how))  # type: ignore[arg-type]
    return right, Link(hosts(left_rule=mode)[0], right)


GOOD = "80010007 800e0100 80020002 80030001 8004000e"


def test_first_messages_of_others() -> None:
    """Windows' is answered, ike-scan's is refused, and neither is more than a half-open negotiation."""
    for data, kind in ((WINDOWS, Exchange.INFORMATIONAL), (IKE_SCAN, Exchange.INFORMATIONAL)):
        right, link = lone()
        link.inject(right, data)
        assert link.flights[0].header.exchange in (kind, Exchange.MAIN)
        assert len(link.flights[0].data) <= 3 * len(data)
        link.run(60)
        assert not right.ikes


@pytest.mark.parametrize("count", [1, 40, 255])
def test_thousands_of_transforms(count: int) -> None:
    """Many proposals with many transforms each: looked through once; the good one at the end is chosen, or
    the message is too much."""
    wrong = [transform(3, n % 256, "80010001 80020001 80030001 80040001") for n in range(count)]
    body = sa(*wrong, transform(0, 255, GOOD)) if count < 255 else sa(*wrong[:-1], transform(0, 255, GOOD))
    right, link = lone()
    link.inject(right, first_message(body))
    assert link.flights
    assert link.flights[0].header.exchange == Exchange.MAIN
    assert not right.of(Broken)


def test_proposals_by_the_thousand() -> None:
    """As many as a datagram holds."""
    one = bytes.fromhex("02000008 01010000")
    head = bytes.fromhex("00000001 00000001")
    right, link = lone()
    for count in (1, 1000, 8000):
        link.inject(right, first_message(head + one * count + b"\0" + one[1:]))
    assert not right.of(Broken)
    link.run(60)
    assert not right.ikes


BODIES = {
    "nothing": b"",
    "no proposal": bytes.fromhex("00000001 00000001"),
    "zero length": bytes.fromhex("00000001 00000001 00000000"),
    "a length that overruns": bytes.fromhex("00000001 00000001 0000ffff 01010001"),
    "a proposal that ends in its header": bytes.fromhex("00000001 00000001 00000004"),
    "an SPI that overruns": bytes.fromhex("00000001 00000001 00000008 0101ff01"),
    "fewer transforms than it says": bytes.fromhex("00000001 00000001 00000008 010100ff"),
    "a chain that does not end": bytes.fromhex("00000001 00000001 02000008 01010000"),
    "another domain": bytes.fromhex("00000009 00000001 00000008 01010000"),
    "another situation": bytes.fromhex("00000001 00000007 00000008 01010000"),
    "an attribute that overruns": sa(transform(0, 1, "0001ffff 00")),
    "an attribute cut off": sa(transform(0, 1, "8001")),
    "an empty attribute": sa(transform(0, 1, "00010000")),
    "a large attribute": sa(transform(0, 1, "00010080" + "ff" * 128)),
    "attributes that contradict": sa(transform(0, 1, GOOD, "80010005 80040002")),
    "a life of nothing": sa(transform(0, 1, GOOD, "800b0001 000c0000")),
    "an attribute that goes back with more": sa(transform(0, 1, GOOD, "7fffff78" + "00" * 0xFF78)),
    "a life of a thousand octets": sa(transform(0, 1, GOOD, "800b0001 000c03e8" + "ff" * 1000)),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@MODES
def test_broken_sa_payloads(body: bytes, mode: str) -> None:
    """Nothing breaks, little is answered, and nothing stays."""
    right, link = lone(mode)
    link.inject(right, first_message(body))
    if mode:
        data = bytearray(first_message(body))
        data[18] = Exchange.AGGRESSIVE
        link.inject(right, bytes(data))
    assert not right.of(Broken), right.of(Broken)
    assert all(len(one.data) <= 3 * len(first_message(body)) + 84 for one in link.flights)
    link.run(60)
    assert not right.ikes
    assert right.endpoint.half_open == 0


@pytest.mark.parametrize(
    "chain",
    [
        bytes.fromhex("01000004") * 500,
        bytes.fromhex("0d000004") * 129 + bytes.fromhex("00000004"),
        bytes.fromhex("01000000"),
        bytes.fromhex("01000003"),
        bytes.fromhex("0100ffff"),
        bytes.fromhex("010000"),
        b"",
        payload(1, b"\0\0\0\1\0\0\0\1") * 2 + payload(0, b""),
        bytes.fromhex("84000008 00000000"),
    ],
    ids=["loop", "many", "zero", "three", "overrun", "cut", "empty", "two SAs", "fragment"],
)
def test_broken_chains(chain: bytes) -> None:
    """Payloads of no length, chains that loop, overrun or never end."""
    head = b"\7" * 8 + bytes(8) + bytes.fromhex("01 10 02 00 00000000")
    data = head + (HEADER_SIZE + len(chain)).to_bytes(4, "big") + chain
    right, link = lone()
    link.inject(right, data)
    up = connected()
    for one in (up.left, up.right):
        for kind in (Exchange.MAIN, Exchange.QUICK, Exchange.INFORMATIONAL):
            spis = b"".join(main_mode(one).spis)
            up.inject(one, spis + data[16:18] + bytes((kind,)) + data[19:])
    assert not right.of(Broken)
    assert not right.ikes
    agree(up, ikes=1, pairs=1)


@MODES
def test_fragments_behind_a_first_message(mode: str) -> None:
    """Whoever writes down another's address has not seen our cookie, and gets nothing kept but the first
    message itself."""
    right, link = lone(mode)
    first = first_message(sa(transform(0, 1, GOOD)), Known.FRAGMENTATION.value)
    link.inject(right, first)
    for number in range(1, 64):
        body = payload(0, bytes((0, 7, number, 0)) + bytes(1000))
        length = (HEADER_SIZE + len(body)).to_bytes(4, "big")
        link.inject(right, first[:16] + bytes((FRAGMENT,)) + first[17:24] + length + body)
    assert right.drops == ["malformed"] * 63
    assert len(link.flights) == 1


@MODES
def test_a_large_offer_is_not_kept(mode: str) -> None:
    """Sixty thousand octets of transforms are a million in memory, and a thousand strangers may wait."""
    link = Link(*hosts(left_rule=mode, right_rule=mode))
    good = "80010007 800e0080 80020004 80030001 80040013"
    many = [transform(3, n, good + "ffff0000" * 250) for n in range(58)]
    link.up("net")
    header, chain = link.flights[0].data[:HEADER_SIZE], link.flights[0].data[HEADER_SIZE:]
    size = int.from_bytes(chain[2:4], "big")
    large = payload(chain[0], sa(*many, transform(0, 255, good))) + chain[size:]
    data = header[:24] + (HEADER_SIZE + len(large)).to_bytes(4, "big") + large
    link._queue.clear()
    before = weight(link.right)
    link.inject(link.right, data)
    assert link.right.endpoint.half_open == 1
    assert weight(link.right) - before < 3 * len(data)


@MODES
def test_a_thousand_strangers(mode: str) -> None:
    """Tables stay as small as the settings say, and whoever was there stays."""
    right, link = lone(mode, half_open=20, half_open_per_address=10, associations=30)
    link.up("net")
    link.run(2)
    first = link.flights[0].data
    luck = random.Random(5)
    link.fate = lambda flight: setattr(flight, "lost", True)
    for n in range(1000):
        data = bytearray(luck.randbytes(8) + first[8:])
        if n % 3 == 0:
            data[luck.randrange(28, len(data))] ^= 1 << luck.randrange(8)
        link.inject(right, bytes(data), port=1024 + n, source=right.address + 1 + n % 50)
    assert right.endpoint.half_open <= 20
    assert len(right.ikes) <= 30
    link.fate = lambda flight: None
    link.run(150)
    agree(link, ikes=1, pairs=1)
    assert not right.of(IkeClosed)


# A peer that has the keys -----------------------------------------------------------------------------------


def protected(one: Host, exchange: int, number: int, kind: int, plain: bytes) -> bytes:
    """Any octets, encrypted as this host would encrypt them."""
    channel = main_mode(one).session.channel
    suite = channel._suite
    assert suite is not None
    iv = channel.iv_of(number) if number else channel.start_iv
    octets = cbc_encrypt(suite.encryption, channel._key, iv, plain + bytes(-len(plain) % len(iv)))
    length = HEADER_SIZE + len(octets)
    return Header(*main_mode(one).spis, kind, 0x10, exchange, 1, number, length).encode() + octets


@QUICK
@given(
    plain=st.binary(min_size=1, max_size=200),
    kind=st.integers(0, 140),
    exchange=st.sampled_from([2, 4, 5, 6, 32, 33]),
    number=st.integers(3, STAGES),
    message_id=st.integers(0, 3),
)
def test_encrypted_garbage(plain: bytes, kind: int, exchange: int, number: int, message_id: int) -> None:
    """A peer that writes nonsense with the right key: without a hash it is nothing."""
    link = stage(number)
    if not link.left.ikes or not main_mode(link.left).session.channel.armed:
        return
    link.inject(link.right, protected(link.left, exchange, message_id, kind, plain))
    unharmed(link)
    recovered(link)


@QUICK
@given(
    plain=st.binary(max_size=200),
    kind=st.integers(0, 140),
    exchange=st.sampled_from([Exchange.INFORMATIONAL, Exchange.QUICK]),
)
def test_authentic_garbage(plain: bytes, kind: int, exchange: Exchange) -> None:
    """With a hash that fits: its own SAs may end, and no more."""
    link = connected()
    session = main_mode(link.left).session
    assert session.keys is not None
    digest = message_hash(session.row, session.keys.a, 5, plain)
    body = Hash(data=digest).encode()
    chain = bytes((kind, 0)) + (4 + len(body)).to_bytes(2, "big") + body + plain
    link.inject(link.right, protected(link.left, exchange, 5, Hash.kind, chain))
    unharmed(link)
    link.run(150)
    for one in (link.left, link.right):
        assert not one.of(Broken), one.of(Broken)[0].text
        assert one.endpoint.idle


@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 17, 31])
@pytest.mark.parametrize("exchange", [Exchange.INFORMATIONAL, Exchange.QUICK, Exchange.MAIN])
def test_no_whole_blocks(exchange: Exchange, size: int) -> None:
    """And messages of nothing."""
    link = connected()
    for number in (0, 9):
        header = Header(*main_mode(link.left).spis, 8, 0x10, exchange, 1, number, HEADER_SIZE + size)
        link.inject(link.right, header.encode() + bytes(size))
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("padding", [bytes(16), b"\xff" * 16, bytes(160), b"\1" + bytes(15) + b"\x08" * 16])
def test_padding_of_any_kind(padding: bytes) -> None:
    """RFC 2408 section 3.1 says nothing of its octets or how many there are: it is passed over, and no hash
    covers it."""
    link = connected()
    session = main_mode(link.left).session
    probe = status(N.R_U_THERE, b"\0\0\0\1", ProtocolId.ISAKMP, b"".join(main_mode(link.left).spis))
    assert session.keys is not None
    _, rest = encode_chain([probe])
    digest = message_hash(session.row, session.keys.a, 5, rest)
    _, chain = encode_chain([Hash(data=digest), probe])
    count = len(link.flights)
    link.inject(link.right, protected(link.left, Exchange.INFORMATIONAL, 5, Hash.kind, chain + padding))
    assert len(link.flights) == count + 1


def test_a_wrong_iv_does_not_break_the_chain() -> None:
    """A quick mode whose next message cannot be read waits for one that can."""
    link = connected()
    link.fate = lambda flight: setattr(flight, "lost", flight.number % 2 == 0)
    link.rekey_child(link.left)
    for _ in range(3):
        link.step()
        data = bytearray(link.flights[-1].data)
        for at in (28, 44, len(data) - 1):
            data[at] ^= 0x80
            for one in (link.left, link.right):
                link.inject(one, bytes(data))
    link.fate = lambda flight: None
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert not link.left.failures


def test_deletes_without_end() -> None:
    """The largest Delete a datagram holds."""
    link = connected()
    spis = tuple(n.to_bytes(4, "big") for n in range(15000))
    payloads = (Delete(protocol=ProtocolId.ESP, spis=spis),)
    session = main_mode(link.left).session
    assert session.keys is not None
    _, rest = encode_chain(payloads)
    message = Message(
        Exchange.INFORMATIONAL,
        (Hash(data=message_hash(session.row, session.keys.a, 5, rest)), *payloads),
        5,
        encrypted=True,
    )
    data, _ = session.channel.seal(message, session.channel.iv_of(5))
    link.inject(link.right, data)
    agree(link, ikes=1, pairs=1)


def test_a_peer_that_begins_and_never_ends() -> None:
    """Quick modes whose last word never comes: no more than a peer may have, and they go."""
    link = Link(*hosts(nets=80))
    link.up("net")
    link.run(1)
    link.fate = lambda flight: setattr(
        flight, "lost", flight.sender is link.right or flight.header.message_id == 0
    )
    for n in range(1, 80):
        link.up(f"net{n}")
        link.run(0.02)
    assert len(main_mode(link.right).talks.talks) <= 64
    link.fate = lambda flight: setattr(flight, "lost", flight.sender is link.left)
    link.run(300)
    link.fate = lambda flight: None
    link.run(300)
    agree(link)
    assert link.right.database.counts().larval == 0


# Whatever happens -------------------------------------------------------------------------------------------

LIVES = sets(lifetime='{ main = "9 min", quick = "2 min" }')


class TwoHosts(Lives):
    """Whatever is commanded and lost, in the end both sides agree on what traffic goes through. A Delete that
    is lost may leave an ISAKMP SA at one end until its peer is found dead."""

    def __init__(self) -> None:
        super().__init__(Link(*hosts(nets=3, crypto=LIVES)))

    def teardown(self) -> None:
        """Let pairs and ISAKMP SAs that only one end has meet their limits."""
        self.calm(1200)
        quiet(self.link)
        agree(self.link)


TestTwoHosts = pytest.mark.timeout(400)(TwoHosts.TestCase)  # what fails has to be made short, too
TestTwoHosts.settings = settings(PATIENT, max_examples=40, stateful_step_count=25)
