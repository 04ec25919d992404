"""ikd.wire.codec: every kind of field, and the reader that cannot leave its data."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd.wire.codec import (
    MOST_ITEMS,
    Malformed,
    Reader,
    Structure,
    attributes,
    decode,
    item_length_of,
    items,
    length_of,
    linked,
    many,
    octets,
    rest,
    sized,
    uint,
    wire,
)


@wire
class Numbers(Structure):
    """One, two, four and eight octets in a row, three and two behind."""

    one: int = uint(1)
    two: int = uint(2)
    four: int = uint(4)
    eight: int = uint(8)
    three: int = uint(3)
    last: int = uint(2, default=7)


@wire
class Parts(Structure):
    """Lengths in front, parts behind."""

    kind: int = uint(1)
    name_size: ClassVar[int] = length_of("name", 1)
    count: ClassVar[int] = length_of("values", 2)
    cookie: bytes = octets(8)
    name: bytes = octets("name_size")
    values: tuple[Numbers, ...] = many(Numbers, "count")
    note: bytes = sized(2, extra=2, low=1)


@wire
class Equal(Structure):
    """Octet strings of one length."""

    size: ClassVar[int] = item_length_of("found", 1)
    count: ClassVar[int] = length_of("found", 2)
    found: tuple[bytes, ...] = items("size", "count")


@wire
class Attributed(Structure):
    """A number and attributes up to the end."""

    id: int = uint(2)
    attributes: tuple[tuple[int, int | bytes], ...] = attributes()


@wire
class Chain(Structure):
    """Substructures that say whether more follow."""

    count: ClassVar[int] = length_of("links", 1)
    links: tuple[Attributed, ...] = linked(Attributed, more=3, count="count")


@wire
class Open(Structure):
    """The same without a count, as many as there are."""

    links: tuple[Attributed, ...] = linked(Attributed, more=2)


@wire
class Tail(Structure):
    """Two to four octets and nothing else."""

    data: bytes = rest(low=2, high=4)


@wire
class Anything(Structure):
    """Any octets."""

    data: bytes = rest()


@wire
class Some(Structure):
    """Structures up to the end."""

    values: tuple[Attributed, ...] = many(Attributed)


@wire
class Longer(Numbers):
    """Inherited fields come first."""

    extra: bytes = rest()


NUMBERS = Numbers(one=1, two=2, four=4, eight=8, three=3)
WRITTEN = bytes.fromhex("01 0002 00000004 0000000000000008 000003 0007")


# Fields --------------------------------------------------------------------------------------------------


def test_numbers_lie_in_network_order() -> None:
    """Another order or padding between them would be read by no one else."""
    assert NUMBERS.encode() == WRITTEN
    assert decode(Numbers, WRITTEN) == NUMBERS


def test_every_kind_of_field_has_its_place() -> None:
    """The octets are those of the drawing, field by field."""
    one = Parts(kind=9, cookie=b"COOKIE!!", name=b"abc", values=(NUMBERS,), note=b"xy")
    assert one.encode() == b"\x09\x03\x00\x01COOKIE!!abc" + WRITTEN + b"\x00\x04xy"
    assert decode(Parts, one.encode()) == one
    equal = Equal(found=(b"abcd", b"efgh"))
    assert equal.encode() == b"\x04\x00\x02abcdefgh"
    assert decode(Equal, equal.encode()) == equal
    assert Equal(found=()).encode() == b"\0\0\0"


def test_attributes_have_two_forms() -> None:
    """Numbers lie in the short form, octets behind their length (RFC 7296 section 3.3.5)."""
    one = Attributed(id=5, attributes=((14, 256), (9, b"abc"), (8, b"")))
    assert one.encode() == b"\x00\x05\x80\x0e\x01\x00\x00\x09\x00\x03abc\x00\x08\x00\x00"
    assert decode(Attributed, one.encode()) == one
    assert Attributed(id=5).attributes == ()


def test_substructures_say_whether_more_follow() -> None:
    """A last one that announced another would make the peer read on into the next payload."""
    one, two = Attributed(id=1), Attributed(id=2, attributes=((14, 128),))
    assert Chain(links=(one, two)).encode() == bytes.fromhex("02 03000006 0001 0000000a 0002 800e0080")
    assert decode(Chain, Chain(links=(one, two)).encode()) == Chain(links=(one, two))
    assert decode(Open, Open(links=(one,)).encode()) == Open(links=(one,))


def test_inherited_fields_come_first() -> None:
    """Payloads of three protocols share beginnings."""
    assert decode(Longer, WRITTEN + b"more") == Longer(one=1, two=2, four=4, eight=8, three=3, extra=b"more")
    assert [name for name, _ in Longer.layout] == ["one", "two", "four", "eight", "three", "last", "extra"]


def test_a_decoded_structure_is_like_a_made_one() -> None:
    """Reading fills the slots directly: equality, hash, text and replacement must not notice."""
    one = decode(Numbers, WRITTEN)
    assert (one, hash(one), repr(one)) == (NUMBERS, hash(NUMBERS), repr(NUMBERS))
    assert "eight=8" in repr(one)
    assert dataclasses.replace(one, last=9).last == 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.one = 2  # type: ignore[misc]
    assert not hasattr(one, "__dict__")


def test_fields_are_keywords_and_have_defaults() -> None:
    """Positions would change meaning with the drawing."""
    assert NUMBERS.last == 7
    with pytest.raises(TypeError):
        Numbers(1, 2, 4, 8, 3)  # type: ignore[misc]
    with pytest.raises(TypeError):
        Numbers(one=1)  # type: ignore[call-arg]


def test_a_check_that_would_not_run_is_refused() -> None:
    """Reading bypasses the constructor: a __post_init__ would hold for our own messages only."""
    with pytest.raises(TypeError, match="__post_init__"):

        @wire
        class Checked(Structure):
            one: int = uint(1)

            def __post_init__(self) -> None:
                raise AssertionError


def test_what_does_not_fit_its_field_is_not_written() -> None:
    """A number cut to its field, or a length that lies, would be a message other than ours."""
    with pytest.raises((struct.error, OverflowError)):
        dataclasses.replace(NUMBERS, one=256).encode()
    with pytest.raises((struct.error, OverflowError)):
        dataclasses.replace(NUMBERS, three=1 << 24).encode()
    with pytest.raises((struct.error, OverflowError)):
        Parts(kind=1, cookie=bytes(8), name=bytes(256), values=(), note=b"x").encode()
    with pytest.raises(ValueError, match="several lengths"):
        Equal(found=(b"abc", b"d")).encode()


# Malformed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        (Numbers, WRITTEN[:-1]),
        (Numbers, WRITTEN + b"\0"),
        (Numbers, b""),
        (Parts, b"\x09\x03\x00\x00COOKIE!!ab"),  # a name longer than what is left
        (Parts, b"\x09\x00\x00\x01COOKIE!!\x00\x04xy"),  # a structure announced, octets of another field
        (Parts, b"\x09\x00\x00\x00COOKIE!!\x00\x01"),  # a length that does not cover itself
        (Parts, b"\x09\x00\x00\x00COOKIE!!\x00\x02"),  # shorter than it may be
        (Parts, b"\x09\x00\x00\x00COOKIE!!\xff\xffxy"),
        (Equal, b"\x00\x00\x02"),  # items of no length
        (Equal, b"\x04\xff\xffabcd"),
        (Equal, b"\x04\x00\x01abcde"),
        (Attributed, b"\x00\x05\x80"),
        (Attributed, b"\x00\x05\x00\x09\x00\x04abc"),
        (Chain, b"\x01"),
        (Chain, bytes.fromhex("02 0000000600010000")),  # fewer than announced
        (Chain, bytes.fromhex("01 03000006000100000006 0001")),  # more than announced
        (Chain, bytes.fromhex("01 020000060001")),  # neither 0 nor 3
        (Chain, bytes.fromhex("01 00000000")),  # of zero length
        (Chain, bytes.fromhex("01 000000030001")),  # shorter than its header
        (Chain, bytes.fromhex("01 00000007000100")),  # half an attribute inside
        (Chain, bytes.fromhex("01 000000ff0001")),  # longer than what is left
        (Chain, bytes.fromhex("00 000000060001")),
        (Open, b""),
        (Tail, b"a"),
        (Tail, b"abcde"),
        (Some, b"\0\1\x80\x0e\0"),
    ],
)
def test_wrong_octets_are_malformed(cls: type[Any], data: bytes) -> None:
    """Lengths that lie are how parsers are made to read what is not theirs."""
    with pytest.raises(Malformed):
        decode(cls, data)


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        (Attributed, b"\0\0" + b"\x80\x01\0\0" * (MOST_ITEMS + 1)),
        (Open, b"\2\0\0\6\0\0" * MOST_ITEMS + b"\0\0\0\6\0\0"),
    ],
)
def test_lists_are_bounded(cls: type[Any], data: bytes) -> None:
    """64 KiB of tiny items would become megabytes of objects, for each datagram of a stranger."""
    with pytest.raises(Malformed):
        decode(cls, data)


def test_as_many_items_as_allowed_are_read() -> None:
    """The bound must not be off by one where real proposals are large."""
    one = Attributed(id=0, attributes=((1, 0),) * MOST_ITEMS)
    assert decode(Attributed, one.encode()) == one
    several = Open(links=(Attributed(id=1),) * MOST_ITEMS)
    assert decode(Open, several.encode()) == several


@given(
    st.sampled_from([Numbers, Parts, Equal, Attributed, Chain, Open, Tail, Some, Longer]),
    st.one_of(
        st.binary(max_size=200),
        # small numbers, so that counts and lengths often fit
        st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 6, 8, 10, 128]), max_size=60).map(bytes),
    ),
)
def test_any_octets_decode_or_are_malformed(cls: type[Any], data: bytes) -> None:
    """Any other exception is a way for a stranger to disturb the daemon."""
    try:
        value = decode(cls, data)
    except Malformed:
        return
    assert decode(cls, value.encode()) == value


# Reader --------------------------------------------------------------------------------------------------


@given(st.binary(max_size=20), st.lists(st.integers(-3, 12), max_size=8))
def test_reader_never_leaves_its_data(data: bytes, counts: list[int]) -> None:
    """Python would cut a slice short in silence; a length must hold or be refused."""
    reader = Reader(data)
    taken = b""
    for count in counts:
        left = reader.left()
        try:
            part = reader.take(count)
        except Malformed:
            assert count < 0 or count > left
        else:
            assert len(part) == count
            taken += part
    assert taken == data[: len(taken)]
    assert taken + reader.rest() == data
    reader.finish()


def test_reader_of_a_part_stops_at_its_end() -> None:
    """A substructure must not read into what follows it, nor leave something behind."""
    data = b"\0\1\x80\x0e\0\x80rest"
    reader = Reader(data)
    one = reader.structure(Attributed, 6)
    assert one == Attributed(id=1, attributes=((14, 128),))
    assert (reader.left(), reader.rest()) == (4, b"rest")
    for size in (-1, 0, len(WRITTEN) - 1, 100):
        with pytest.raises(Malformed):
            Reader(WRITTEN + b"rest").structure(Numbers, size)
    with pytest.raises(Malformed, match="too many"):
        Reader(WRITTEN + b"rest").structure(Numbers, len(WRITTEN) + 1)
    backwards = Reader(b"abcd")
    backwards.take(2)
    with pytest.raises(Malformed):
        backwards.structure(Anything, -1)
    unread = Reader(b"x")
    with pytest.raises(Malformed, match="1 octets too many"):
        unread.finish()
