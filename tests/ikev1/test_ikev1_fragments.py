"""Microsoft's fragments (MS-IKEE sections 2.2.3.8 and 3.3) as octets: what is cut becomes whole again, and
what strangers send costs little."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.isakmp.payloads import PAYLOADS, Fragment
from ikd.riders.fragment1 import (
    FRAGMENT,
    LAST,
    MOST_FRAGMENTS,
    MOST_MESSAGES,
    MOST_OCTETS,
    SECONDS,
    Fragments,
    cut,
)
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER_SIZE, Header, chain
from sadb.address import Path, SocketAddress

COOKIES = b"I" * 8, b"R" * 8
PATH = Path(SocketAddress(ip_address("192.0.2.1"), 500), SocketAddress(ip_address("192.0.2.2"), 500))


def message(size: int) -> bytes:
    """An encrypted message 5 of this size."""
    body = random.Random(size).randbytes(size - HEADER_SIZE)
    return Header(*COOKIES, 5, 0x10, 2, 1, 0, size).encode() + body


def part(identity: int, number: int, flags: int, data: bytes, following: int = 0) -> bytes:
    """A datagram with one fragment."""
    body = Fragment(id=identity, number=number, flags=flags, data=data).encode()
    payload = bytes((following, 0)) + (len(body) + 4).to_bytes(2, "big") + body
    return Header(*COOKIES, FRAGMENT, 0x10, 2, 0, 0, HEADER_SIZE + len(payload)).encode() + payload


def add(fragments: Fragments, datagram: bytes, now: float = 0.0) -> bytes | None:
    """Put a datagram in."""
    return fragments.add(Header.decode(datagram), datagram, now)


@given(
    size=st.integers(28, 20000), seed=st.integers(0, 99), port=st.sampled_from([500, 4500]), six=st.booleans()
)
def test_what_is_cut_becomes_whole(size: int, seed: int, port: int, six: bool) -> None:
    """In any order and with repetitions; no packet is larger than the path takes."""
    luck = random.Random(seed)
    address = ip_address("2001:db8::1" if six else "192.0.2.1")
    path = Path(SocketAddress(address, port), SocketAddress(address, port))
    whole = message(size)
    datagrams = cut(whole, path, luck.randbytes)
    if datagrams == [whole]:
        assert size + 28 + 4 <= (1280 if six else 576) or len(datagrams) == 1
        return
    overhead = (40 if six else 20) + 8 + (4 if port == 4500 else 0)
    assert max(map(len, datagrams)) + overhead <= (1280 if six else 576)
    for one in datagrams:
        payloads, _ = chain(FRAGMENT, one[HEADER_SIZE:], PAYLOADS)
        assert isinstance(payloads[0], Fragment)
    sent = datagrams + luck.sample(datagrams, len(datagrams) // 2)
    luck.shuffle(sent)
    fragments = Fragments()
    made = [found for one in sent if (found := add(fragments, one)) is not None]
    assert made[0] == whole


def test_the_text_of_the_specification() -> None:
    """Read literally a message goes into its parts without its header (MS-IKEE section 3.3.6.1): what does
    not begin with our cookie is the encrypted payloads of message 5 or 6."""
    whole = message(1000)
    body = whole[HEADER_SIZE:]
    fragments = Fragments()
    assert add(fragments, part(1, 1, 0, body[:400])) is None
    made = add(fragments, part(1, 2, LAST, body[400:]))
    assert made == whole


def test_too_large_to_cut() -> None:
    """More parts than anybody takes are not made."""
    whole = message(60000)
    assert cut(whole, PATH, bytes) == [whole]


@pytest.mark.parametrize("number", [0, MOST_FRAGMENTS + 1, 255])
def test_numbers_that_cannot_be(number: int) -> None:
    """They do not even begin a message."""
    fragments = Fragments()
    with pytest.raises(Malformed):
        add(fragments, part(1, number, 0, b"x"))
    assert not fragments._found


@pytest.mark.parametrize(
    "parts",
    [
        [(1, 0), (2, LAST), (3, 0)],
        [(3, 0), (2, LAST)],
        [(2, LAST), (3, LAST)],
        [(2, LAST), (1, LAST)],
    ],
    ids=["behind the last", "the last before others", "two last", "two last, backwards"],
)
def test_parts_that_do_not_fit_together(parts: list[tuple[int, int]]) -> None:
    """What is kept of such a message goes."""
    fragments = Fragments()
    try:
        for number, flags in parts:
            made = add(fragments, part(1, number, flags, b"x"))
            if made is not None:
                return  # whole before the one too many came
        pytest.fail("nobody noticed")
    except Malformed:
        assert not fragments._found


def test_another_payload_behind_it() -> None:
    """A fragment is alone, and as long as its datagram."""
    with pytest.raises(Malformed):
        add(Fragments(), part(1, 1, LAST, b"x", following=13))
    datagram = bytearray(part(1, 1, LAST, b"x" * 20))
    datagram[HEADER_SIZE + 2 : HEADER_SIZE + 4] = (8).to_bytes(2, "big")
    with pytest.raises(Malformed):
        add(Fragments(), bytes(datagram))


def test_the_first_of_two_counts() -> None:
    """Whoever comes later changes nothing that is there."""
    whole = message(1000)
    fragments = Fragments()
    add(fragments, part(1, 1, 0, whole[:500]))
    add(fragments, part(1, 1, 0, b"another" * 60))
    assert add(fragments, part(1, 2, LAST, whole[500:])) == whole


def test_bounds() -> None:
    """Few messages at a time, none larger than a datagram, and not for long."""
    fragments = Fragments()
    for identity in range(50):
        add(fragments, part(identity, 1, 0, b"x" * 1000))
    assert len(fragments._found) == MOST_MESSAGES
    large = Fragments()
    for number in range(1, 41):
        add(large, part(1, number, 0, bytes(MOST_OCTETS // 40)))
    with pytest.raises(Malformed):
        add(large, part(1, 41, 0, bytes(MOST_OCTETS // 40)))
    assert not large._found
    add(fragments, part(99, 1, 0, b"x"), now=SECONDS + 1)
    assert len(fragments._found) == 1


def test_all_messages_together_are_no_larger_than_one() -> None:
    """A stranger who returns our cookies would else hold four times as much; what is newest stays."""
    fragments = Fragments()
    for identity in range(MOST_MESSAGES):
        for number in range(1, 60):
            add(fragments, part(identity, number, 0, bytes(1000)))
            assert fragments._octets() <= MOST_OCTETS
    assert add(fragments, part(MOST_MESSAGES - 1, 60, LAST, b"")) is not None


@given(data=st.lists(st.binary(max_size=60), max_size=12))
def test_any_octets(data: list[bytes]) -> None:
    """They are a message, or not yet one, or malformed."""
    fragments = Fragments()
    for one in data:
        datagram = Header(*COOKIES, FRAGMENT, 0x10, 2, 0, 0, HEADER_SIZE + len(one)).encode() + one
        try:
            made = add(fragments, datagram)
        except Malformed:
            continue
        assert made is None or len(made) >= HEADER_SIZE
    assert len(fragments._found) <= MOST_MESSAGES
