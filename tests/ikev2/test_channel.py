"""The protected channel (RFC 7296 sections 2.2, 2.3, 3.14; RFC 5282; RFC 7383): every cipher, padding, what
is verified before anything is believed, and the window of message IDs.

If one of these fails, octets of a stranger are taken for the peer's, or a request is served twice or never.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd.ikev2.channel import Channel, Standing, Unprotected, clear
from ikd.ikev2.keys import expand
from ikd.ikev2.message import Message, status
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import Nonce, Notify, VendorId
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER, HEADER_SIZE, Flags, Header
from policy.values import main_suite
from sadb.address import Path, SocketAddress
from sadb.crypto import Unverified

SUITES = [
    "x25519 aes128gcm sha256",
    "x25519 aes192gcm sha256",
    "x25519 aes256gcm sha512",
    "x25519 chacha20poly1305 sha384",
    "x25519 aes128 sha256",
    "x25519 aes192 sha384",
    "x25519 aes256 sha512",
    "x25519 aes128 sha1",
    "modp1024 3des sha1",
]
PATH = Path(SocketAddress(ip_address("192.0.2.1"), 500), SocketAddress(ip_address("192.0.2.2"), 500))
PATH6 = Path(SocketAddress(ip_address("2001:db8::1"), 4500), SocketAddress(ip_address("2001:db8::2"), 4500))


def zeros(size: int) -> bytes:
    """Octets where unpredictable ones would stand."""
    return bytes(size)


def channels(suite: str = SUITES[0], window: int = 4, limit: int = 65535) -> tuple[Channel, Channel]:
    """Both ends with keys."""
    row = main_suite(suite)
    keys = expand(row, b"seed" * 16, b"i" * 32, b"r" * 32, b"1" * 8, b"2" * 8)
    ends = tuple(
        Channel(initiator, b"1" * 8, b"2" * 8, zeros, window=window, message_limit=limit)
        for initiator in (True, False)
    )
    for one in ends:
        one.arm(row, keys)
    return ends[0], ends[1]


def request(number: int = 0, size: int = 32, *, response: bool = False) -> Message:
    """A message with a payload of some size."""
    return Message(Exchange.INFORMATIONAL, (VendorId(data=bytes(size)),), response, number)


def read(channel: Channel, data: bytes) -> Message | None:
    """Open a datagram."""
    return channel.open(Header.decode(data), data)


# Protection -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("response", [False, True])
def test_both_directions_of_every_suite(suite: str, response: bool) -> None:
    """What one end seals, the other opens; payloads, exchange and number arrive."""
    for sender, receiver in (channels(suite), channels(suite)[::-1]):
        for size in (0, 1, 11, 12, 13, 100):
            (data,) = sender.seal(request(7, size, response=response), PATH)
            found = read(receiver, data)
            assert found is not None
            assert (found.exchange, found.response, found.message_id) == (37, response, 7)
            assert found.payloads == (VendorId(data=bytes(size)),)
            assert found.octets == data
            header = Header.decode(data)
            assert bool(header.flags & Flags.INITIATOR) is sender.initiator
            assert header.version == 0x20


@pytest.mark.parametrize("suite", SUITES)
def test_an_empty_message(suite: str) -> None:
    """A liveness request has no payload at all."""
    sender, receiver = channels(suite)
    (data,) = sender.seal(Message(Exchange.INFORMATIONAL), PATH)
    found = read(receiver, data)
    assert found is not None
    assert found.payloads == ()


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("kind", [46, 53])
def test_whatever_is_cut_off_is_a_strangers(suite: str, kind: int) -> None:
    """Without a whole IV or check value nothing is authentic, so that nothing is wrong with the peer: an IKE
    SA that ends because of that can be ended by everybody."""
    sender, receiver = channels(suite)
    whole = sender._sealed(request(), kind, 43, b"\0\1\0\1" if kind == 53 else b"", b"inner")
    for size in range(HEADER_SIZE, len(whole)):
        body = bytearray(whole[HEADER_SIZE:size])
        body[2:4] = len(body).to_bytes(2, "big") if len(body) >= 4 else body[2:4]
        data = whole[: HEADER_SIZE - 4] + size.to_bytes(4, "big") + bytes(body)
        with pytest.raises((Unverified, Unprotected)):
            read(receiver, data)


@pytest.mark.parametrize("suite", SUITES)
def test_any_changed_octet_is_noticed(suite: str) -> None:
    """Header, payload header, IV, ciphertext and check value are all covered."""
    sender, receiver = channels(suite)
    (data,) = sender.seal(request(), PATH)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((Unverified, Unprotected)):  # `Malformed` would be believed of the peer
            receiver.open(Header(*_fields(bytes(changed))), bytes(changed))
        if at not in (16, 30, 31) and not 24 <= at < 28:
            with pytest.raises(Unverified):
                receiver.open(Header(*_fields(bytes(changed))), bytes(changed))
    assert read(receiver, data) is not None


def _fields(data: bytes) -> tuple[bytes, bytes, int, int, int, int, int, int]:
    return HEADER.unpack_from(data)  # type: ignore[return-value]


@pytest.mark.parametrize("suite", SUITES)
def test_cut_short_anywhere(suite: str) -> None:
    """With a header that fits the new length: no exception but the two that are caught."""
    sender, receiver = channels(suite)
    (data,) = sender.seal(request(), PATH)
    for size in range(HEADER_SIZE, len(data)):
        cut = data[:24] + size.to_bytes(4, "big") + data[28:size]
        with pytest.raises((Unverified, Malformed)):
            read(receiver, cut)
        if size > HEADER_SIZE + 4:
            cut = cut[:30] + (size - HEADER_SIZE).to_bytes(2, "big") + cut[32:]
            with pytest.raises((Unverified, Malformed)):
                read(receiver, cut)


def test_ones_own_message_back() -> None:
    """Directions have keys of their own: a reflected message is not authentic."""
    sender, _ = channels()
    (data,) = sender.seal(request(), PATH)
    with pytest.raises(Unverified):
        read(sender, data)


def test_in_the_clear() -> None:
    """Nothing unprotected passes a channel that has keys."""
    _, receiver = channels()
    header = receiver.header(Exchange.INFORMATIONAL, 0, response=False)
    with pytest.raises(Unprotected):
        read(receiver, clear(header, [status(N.INVALID_SYNTAX)]))


@pytest.mark.parametrize("pad", [0, 1, 200, 255])
def test_padding_of_the_peer(pad: int) -> None:
    """Section 3.14: any padding up to 255 octets is fine, one that is longer than the payload is
    malformed."""
    sender, receiver = channels()
    cipher = sender._ciphers
    assert cipher is not None
    plain = bytes(pad) + bytes((pad,))
    length = 4 + 8 + len(plain) + 16
    aad = Header(b"1" * 8, b"2" * 8, 46, 0x20, 37, 8, 0, HEADER_SIZE + length).encode() + b"\0\0"
    aad += length.to_bytes(2, "big")
    data = aad + b"12345678" + cipher[0].seal(b"12345678", aad, plain)
    found = read(receiver, data)
    assert found is not None
    assert found.payloads == ()
    wrong = plain[:-1] + bytes((min(255, pad + 1),)) if pad < 255 else plain[:-2] + b"\xff"
    length = 4 + 8 + len(wrong) + 16
    aad = Header(b"1" * 8, b"2" * 8, 46, 0x20, 37, 8, 0, HEADER_SIZE + length).encode() + b"\0\0"
    aad += length.to_bytes(2, "big")
    with pytest.raises(Malformed):
        read(receiver, aad + b"12345678" + cipher[0].seal(b"12345678", aad, wrong))


def test_no_iv_twice() -> None:
    """An AEAD's nonce must not repeat under one key; CBC takes unpredictable ones."""
    sender, _ = channels()
    ivs = {sender.seal(request(n), PATH)[0][32:40] for n in range(500)}
    assert len(ivs) == 500
    asked = []

    def random(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    row = main_suite(SUITES[4])
    channel = Channel(True, b"1" * 8, b"2" * 8, random, window=1, message_limit=65535)
    channel.arm(row, expand(row, b"seed" * 16, b"i" * 32, b"r" * 32, b"1" * 8, b"2" * 8))
    channel.seal(request(), PATH)
    assert asked == [16]


def test_too_large_for_a_datagram() -> None:
    """It cannot be sent; that is an error of ours and not a short message."""
    sender, _ = channels()
    with pytest.raises(ValueError, match="cannot be sent"):
        sender.seal(request(0, 65500), PATH)


def test_clear() -> None:
    """The unprotected form has length and first payload in its header."""
    header = Header(b"1" * 8, bytes(8), 0, 0x20, 34, 8, 0, 0)
    data = clear(header, [Nonce(data=bytes(16)), Notify(type=1, spi=b"", data=b"")])
    found = Header.decode(data)
    assert (found.next_payload, found.length) == (40, len(data))
    assert found == replace(header, next_payload=40, length=len(data))


# Fragments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("path", [PATH, PATH6], ids=["IPv4", "IPv6 and UDP 4500"])
@pytest.mark.parametrize("size", [576, 1280, 1400])
def test_fragments_fit_and_come_together(suite: str, path: Path, size: int) -> None:
    """No packet is larger than asked for, and any order yields the message."""
    sender, receiver = channels(suite)
    sender.fragments = size
    parts = sender.seal(request(3, 5000), path)
    headers = 48 if path is PATH6 else 28
    marker = 4 if path is PATH6 else 0
    assert all(len(one) + headers + marker <= size for one in parts)
    assert len(parts) <= 5000 // (size - 160) + 1
    for data in parts[:0:-1]:
        assert read(receiver, data) is None
    found = read(receiver, parts[0])
    assert found is not None
    assert found.payloads == (VendorId(data=bytes(5000)),)
    assert found.octets == parts[0]
    assert not receiver._partial


def test_a_small_message_is_not_cut() -> None:
    """Nor is any when the peer takes no fragments."""
    sender, _ = channels()
    sender.fragments = 1280
    assert len(sender.seal(request(0, 1000), PATH)) == 1
    sender.fragments = 0
    assert len(sender.seal(request(0, 9000), PATH)) == 1


def test_more_fragments_than_there_may_be() -> None:
    """Then it goes as one message."""
    sender, _ = channels()
    sender.fragments = 576
    assert len(sender.seal(request(0, 64000), PATH)) == 1


def test_the_limit_of_a_message() -> None:
    """What is put together grows to the limit and no further, and is thrown away then."""
    sender, receiver = channels(limit=4096)
    sender.fragments = 1280
    parts = sender.seal(request(0, 5000), PATH)
    for one in parts[:3]:
        assert read(receiver, one) is None
    with pytest.raises(Malformed):
        read(receiver, parts[3])
    assert not receiver._partial
    assert read(receiver, sender.seal(request(0, 100), PATH)[0]) is not None


# Message IDs ------------------------------------------------------------------------------------------------


def take(sender: Channel, receiver: Channel, number: int, *, answer: bool = True) -> bytes:
    """A request arrives and, maybe, is answered."""
    (data,) = sender.seal(request(number), PATH)
    message = read(receiver, data)
    assert message is not None
    receiver.accept(message)
    if answer:
        receiver.answered(number, [b"answer %d" % number])
    return data


def standing(receiver: Channel, data: bytes) -> Standing:
    """How a datagram stands."""
    return receiver.standing(Header.decode(data), data)


def test_a_request_in_its_life() -> None:
    """New, being worked on, answered; the same octets again get the same answer."""
    sender, receiver = channels()
    (data,) = sender.seal(request(0), PATH)
    assert standing(receiver, data) is Standing.NEW
    data = take(sender, receiver, 0, answer=False)
    assert standing(receiver, data) is Standing.UNDER_WAY
    receiver.answered(0, [b"answer"])
    assert standing(receiver, data) is Standing.REPEATED
    assert receiver.repeated(0) == [b"answer"]
    (other,) = sender.seal(request(0, 5), PATH)
    assert standing(receiver, other) is Standing.STALE


def test_the_window() -> None:
    """From the first number that is not answered on, as many as it has; it moves with answers in order."""
    sender, receiver = channels(window=4)

    def stands(number: int) -> Standing:
        return standing(receiver, sender.seal(request(number), PATH)[0])

    assert [stands(n) for n in range(6)] == [Standing.NEW] * 4 + [Standing.STALE] * 2
    take(sender, receiver, 2)
    take(sender, receiver, 1)
    assert stands(4) is Standing.STALE  # 0 is not answered
    take(sender, receiver, 0)
    assert [stands(n) for n in (3, 6, 7)] == [Standing.NEW, Standing.NEW, Standing.STALE]


def test_answers_are_not_kept_for_ever() -> None:
    """As many as the window has (section 2.3); older requests are stale."""
    sender, receiver = channels(window=3)
    sent = [take(sender, receiver, n) for n in range(50)]
    assert len(receiver._replies) == 3
    assert [standing(receiver, one) for one in sent[-4:]] == [Standing.STALE] + [Standing.REPEATED] * 3


def test_answers_are_kept_by_number() -> None:
    """A request that took long is answered last, and must not push out the answer to one behind it that got
    lost: the peer would repeat that one until it gives up."""
    sender, receiver = channels(window=3)
    sent = {n: take(sender, receiver, n) for n in (1, 2, 0, 3)}
    assert standing(receiver, sent[1]) is Standing.REPEATED
    assert standing(receiver, sent[0]) is Standing.STALE


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 5))
def test_no_request_is_new_twice(numbers: list[int], window: int) -> None:
    """Whatever order they come in, each number is served once and those outside of the window never."""
    sender, receiver = channels(window=window)
    served: set[int] = set()
    for number in numbers:
        (data,) = sender.seal(request(number), PATH)
        if standing(receiver, data) is Standing.NEW:
            assert number not in served
            first = next(n for n in range(100) if n not in served)
            assert first <= number < first + window
            served.add(number)
            take(sender, receiver, number)
