"""The declarative codec: a class is the drawing in the RFC, reading, writing and printing come from it.

`@wire` turns a class into a frozen, keyword-only dataclass whose fields say how they lie on the wire, in order.
A field annotated `ClassVar` is on the wire only: it is computed from another field when written and used to
read that field. `Reader` is the only code that sees lengths; whatever does not fit raises `Malformed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, TypeVar, dataclass_transform, get_origin

T = TypeVar("T")

MOST_ITEMS = 256  # substructures in one list; the largest real proposals have some dozens


class Malformed(Exception):
    """The octets are wrong."""


class Reader:
    """A cursor that cannot leave its data."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.end = len(data)

    def left(self) -> int:
        """Octets not yet read."""
        return self.end - self.at

    def take(self, count: int) -> bytes:
        """The next `count` octets; raises `Malformed` when there are fewer or the count is negative."""
        at = self.at
        if count < 0 or count > self.end - at:
            raise Malformed(f"{count} octets wanted, {self.end - at} left")
        self.at = at + count
        return self.data[at : at + count]

    def uint(self, size: int) -> int:
        """The next `size` octets as an unsigned number in network order."""
        return int.from_bytes(self.take(size), "big")

    def rest(self) -> bytes:
        """Everything that is left."""
        at, self.at = self.at, self.end
        return self.data[at:] if at else self.data

    def finish(self) -> None:
        """Raises `Malformed` unless everything was read."""
        if self.at != self.end:
            raise Malformed(f"{self.end - self.at} octets too many")


Values = dict[str, Any]


class Field:
    """How one field lies on the wire: `read(reader, values so far)` and `write(value)`."""

    __slots__ = ("read", "write")

    def __init__(self, read: Callable[[Reader, Values], Any], write: Callable[[Any], bytes]) -> None:
        self.read = read
        self.write = write


def _declare(
    read: Callable[[Reader, Values], Any], write: Callable[[Any], bytes], default: Any = MISSING
) -> Any:
    return field(default=default, metadata={"wire": Field(read, write)})


def uint(size: int, default: Any = MISSING) -> Any:
    """An unsigned number of `size` octets, network order."""
    return _declare(lambda reader, _: reader.uint(size), lambda value: value.to_bytes(size, "big"), default)


def _bounded(data: bytes, low: int, high: int) -> bytes:
    if not low <= len(data) <= high:
        raise Malformed(f"{len(data)} octets where {low} to {high} belong")
    return data


def octets(size: int | str) -> Any:
    """Octets: a fixed number, or as many as the wire-only field of that name says."""
    if isinstance(size, str):
        return _declare(lambda reader, values: reader.take(values[size]), bytes)
    return _declare(lambda reader, _: reader.take(size), bytes)


def rest(low: int = 0, high: int = 0xFFFF, default: Any = MISSING) -> Any:
    """Everything up to the end, `low` to `high` octets."""
    return _declare(lambda reader, _: _bounded(reader.rest(), low, high), bytes, default)


def sized(size: int, extra: int = 0, low: int = 0) -> Any:
    """Octets behind their own length of `size` octets, which counts `extra` octets more than it covers."""

    def read(reader: Reader, _: Values) -> bytes:
        return _bounded(reader.take(reader.uint(size) - extra), low, 0xFFFF)

    return _declare(read, lambda value: (len(value) + extra).to_bytes(size, "big") + value)


def length_of(name: str, size: int) -> Any:
    """Wire only: the length of another field in octets, or the number of its items."""
    return _Derived(size, lambda values: len(values[name]))


def item_length_of(name: str, size: int) -> Any:
    """Wire only: the length of each (equally long) item of another field, 0 when it has none."""
    return _Derived(size, lambda values: len(values[name][0]) if values[name] else 0)


class _Derived:
    """A wire-only number."""

    __slots__ = ("compute", "size")

    def __init__(self, size: int, compute: Callable[[Values], int]) -> None:
        self.size = size
        self.compute = compute


def items(length: str, count: str) -> Any:
    """A tuple of octet strings, all of one length; both numbers come from wire-only fields."""

    def read(reader: Reader, values: Values) -> tuple[bytes, ...]:
        if values[count] and not values[length]:
            raise Malformed("items of no length")
        if values[count] * values[length] > reader.left():
            raise Malformed("more items than octets")
        return tuple(reader.take(values[length]) for _ in range(values[count]))

    return _declare(read, b"".join)


def many(cls: type[Any], count: str | None = None) -> Any:
    """A tuple of `@wire` structures, as many as a wire-only field says, or up to the end."""

    def read(reader: Reader, values: Values) -> tuple[Any, ...]:
        found = []
        while len(found) < values[count] if count else reader.left():
            if len(found) == MOST_ITEMS:
                raise Malformed("too many items")
            found.append(cls.read(reader))
        return tuple(found)

    return _declare(read, lambda value: b"".join(one.encode() for one in value))


def linked(cls: type[Any], more: int, count: str | None = None) -> Any:
    """A tuple of substructures, each behind `more` (0 on the last), a reserved octet and a length of two octets
    that counts this header too (RFC 7296 sections 3.3.1 and 3.3.2)."""

    def read(reader: Reader, values: Values) -> tuple[Any, ...]:
        found = []
        following = more
        while following:
            following = reader.uint(1)
            if following not in (0, more) or len(found) == MOST_ITEMS:
                raise Malformed("substructures out of order")
            reader.uint(1)
            found.append(decode(cls, reader.take(reader.uint(2) - 4)))
        if count and len(found) != values[count]:
            raise Malformed(f"{values[count]} substructures announced, {len(found)} found")
        return tuple(found)

    def write(value: tuple[Any, ...]) -> bytes:
        bodies = [one.encode() for one in value]
        last = len(bodies) - 1
        return b"".join(
            bytes((0 if n == last else more, 0)) + (len(body) + 4).to_bytes(2, "big") + body
            for n, body in enumerate(bodies)
        )

    return _declare(read, write)


def attributes() -> Any:
    """Data attributes up to the end: (type, number) in the short form, (type, octets) in the long one
    (RFC 2408 section 3.3, RFC 7296 section 3.3.5)."""

    def read(reader: Reader, _: Values) -> tuple[tuple[int, int | bytes], ...]:
        found: list[tuple[int, int | bytes]] = []
        while reader.left():
            if len(found) == MOST_ITEMS:
                raise Malformed("too many attributes")
            kind, value = reader.uint(2), reader.uint(2)
            found.append((kind & 0x7FFF, value) if kind & 0x8000 else (kind, reader.take(value)))
        return tuple(found)

    def write(value: tuple[tuple[int, int | bytes], ...]) -> bytes:
        return b"".join(
            (kind | 0x8000).to_bytes(2, "big") + content.to_bytes(2, "big")
            if isinstance(content, int)
            else kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content
            for kind, content in value
        )

    return _declare(read, write, ())


class Structure:
    """What `@wire` classes have in common: reading and writing by their declared layout."""

    __slots__ = ()
    layout: ClassVar[tuple[tuple[str, Field | _Derived], ...]] = ()

    @classmethod
    def read(cls: type[T], reader: Reader) -> T:
        """One structure from a reader that may hold more after it; raises `Malformed`."""
        values: Values = {}
        kept: Values = {}
        for name, how in cls.layout:  # type: ignore[attr-defined]
            if type(how) is _Derived:
                values[name] = reader.uint(how.size)
            else:
                kept[name] = how.read(reader, values)
        return cls(**kept)

    def encode(self) -> bytes:
        """The octets."""
        values = {name: getattr(self, name) for name, how in self.layout if type(how) is Field}
        return b"".join(
            how.write(values[name])
            if isinstance(how, Field)
            else how.compute(values).to_bytes(how.size, "big")
            for name, how in self.layout
        )


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(uint, octets, rest, sized, items, many, linked, attributes),
)
def wire(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass with a wire layout; the class must derive from `Structure`."""
    derived = {
        name: value for name in cls.__annotations__ if isinstance(value := cls.__dict__.get(name), _Derived)
    }
    order = [name for name, kind in cls.__annotations__.items() if name in derived or not _is_class_var(kind)]
    made = dataclass(frozen=True, kw_only=True, slots=True)(cls)
    fields = {
        name: declared.metadata["wire"]
        for name, declared in made.__dataclass_fields__.items()
        if "wire" in declared.metadata
    }  # type: ignore[attr-defined]
    inherited = [name for name in fields if name not in order]
    made.layout = tuple((name, derived.get(name) or fields[name]) for name in inherited + order)  # type: ignore[attr-defined]
    return made


def _is_class_var(kind: Any) -> bool:
    return (
        kind.startswith(("ClassVar", "typing.ClassVar"))
        if isinstance(kind, str)
        else get_origin(kind) is ClassVar
    )


def decode(cls: type[T], data: bytes) -> T:
    """The structure that fills `data` exactly; raises `Malformed`."""
    reader = Reader(data)
    value: T = cls.read(reader)  # type: ignore[attr-defined]
    if reader.at != reader.end:
        raise Malformed(f"{cls.__name__}: {reader.left()} octets too many")
    return value
