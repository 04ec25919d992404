"""The declarative codec: a class is the drawing in the RFC, reading, writing and printing come from it.

`@wire` turns a class into a frozen, keyword-only dataclass whose fields say how they lie on the wire, in
order. A field annotated `ClassVar` is on the wire only: it is computed from another field when written and
used to read that field. `Reader` is the only code that sees lengths; whatever does not fit raises
`Malformed`. Every datagram passes here, so a layout is compiled once per class: neighbouring numbers become
one `struct`, and what is read goes straight into the slots of the instance.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform, get_origin

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

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        """The next numbers, in the form given."""
        at = self.at
        if form.size > self.end - at:
            raise Malformed(f"{form.size} octets wanted, {self.end - at} left")
        self.at = at + form.size
        return form.unpack_from(self.data, at)

    def rest(self) -> bytes:
        """Everything that is left."""
        at, self.at = self.at, self.end
        return self.data[at : self.end]

    def finish(self) -> None:
        """Raises `Malformed` unless everything was read."""
        if self.at != self.end:
            raise Malformed(f"{self.end - self.at} octets too many")

    def structure(self, cls: type[T], size: int) -> T:
        """A `@wire` structure that fills the next `size` octets exactly."""
        end, inner = self.end, self.at + size
        if size < 0 or inner > end:
            raise Malformed(f"{cls.__name__}: {size} octets wanted, {end - self.at} left")
        self.end = inner
        value: T = cls.read(self)  # type: ignore[attr-defined]
        if self.at != inner:
            raise Malformed(f"{cls.__name__}: {inner - self.at} octets too many")
        self.end = end
        return value


class Field:
    """How one field lies on the wire: `read(reader, *needs)`, where `needs` are the values of wire-only
    fields before it, and `write(value)`. One that is a plain number has a `form`, as in `struct`, too."""

    __slots__ = ("form", "needs", "read", "write")

    def __init__(
        self, read: Callable[..., Any], write: Callable[[Any], bytes], needs: tuple[str, ...], form: str
    ) -> None:
        self.read = read
        self.write = write
        self.needs = needs
        self.form = form


def _declare(
    read: Callable[..., Any],
    write: Callable[[Any], bytes],
    default: Any = MISSING,
    *,
    needs: tuple[str, ...] = (),
    form: str = "",
) -> Any:
    return field(default=default, metadata={"wire": Field(read, write, needs, form)})


_FORMS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def uint(size: int, default: Any = MISSING) -> Any:
    """An unsigned number of `size` octets, network order."""
    return _declare(
        lambda reader: reader.uint(size),
        lambda value: value.to_bytes(size, "big"),
        default,
        form=_FORMS.get(size, ""),
    )


def _bounded(data: bytes, low: int, high: int) -> bytes:
    if not low <= len(data) <= high:
        raise Malformed(f"{len(data)} octets where {low} to {high} belong")
    return data


def octets(size: int | str) -> Any:
    """Octets: a fixed number, or as many as the wire-only field of that name says."""
    if isinstance(size, str):
        return _declare(Reader.take, bytes, needs=(size,))
    return _declare(lambda reader: reader.take(size), bytes)


def rest(low: int = 0, high: int = 0xFFFF, default: Any = MISSING) -> Any:
    """Everything up to the end, `low` to `high` octets."""
    return _declare(lambda reader: _bounded(reader.rest(), low, high), bytes, default)


def sized(size: int, extra: int = 0, low: int = 0) -> Any:
    """Octets behind their own length of `size` octets, which counts `extra` octets more than it covers."""

    def read(reader: Reader) -> bytes:
        return _bounded(reader.take(reader.uint(size) - extra), low, 0xFFFF)

    return _declare(read, lambda value: (len(value) + extra).to_bytes(size, "big") + value)


class _Derived:
    """A wire-only number, computed from another field."""

    __slots__ = ("compute", "name", "size")

    def __init__(self, name: str, size: int, compute: Callable[[Any], int]) -> None:
        self.name = name
        self.size = size
        self.compute = compute

    @property
    def form(self) -> str:
        """As in `struct`."""
        return _FORMS[self.size]


def length_of(name: str, size: int) -> Any:
    """Wire only: the length of another field in octets, or the number of its items."""
    return _Derived(name, size, len)


def item_length_of(name: str, size: int) -> Any:
    """Wire only: the length of each (equally long) item of another field, 0 when it has none."""
    return _Derived(name, size, lambda value: len(value[0]) if value else 0)


def items(length: str, count: str) -> Any:
    """A tuple of octet strings, all of one length; both numbers come from wire-only fields."""

    def read(reader: Reader, size: int, number: int) -> tuple[bytes, ...]:
        if number and not size:
            raise Malformed("items of no length")
        if number * size > reader.left():
            raise Malformed("more items than octets")
        return tuple([reader.take(size) for _ in range(number)])

    def write(value: tuple[bytes, ...]) -> bytes:
        if len({len(one) for one in value}) > 1:
            raise ValueError("items of several lengths")
        return b"".join(value)

    return _declare(read, write, needs=(length, count))


def many(cls: type[Any], count: str | None = None) -> Any:
    """A tuple of `@wire` structures, as many as a wire-only field says, or up to the end."""

    def read(reader: Reader, number: int | None = None) -> tuple[Any, ...]:
        found: list[Any] = []
        while reader.at != reader.end if number is None else len(found) < number:
            if len(found) == MOST_ITEMS:
                raise Malformed("too many items")
            found.append(cls.read(reader))
        return tuple(found)

    return _declare(
        read, lambda value: b"".join([one.encode() for one in value]), needs=(count,) if count else ()
    )


_LINK = struct.Struct("!BBH")


def linked(cls: type[Any], more: int, count: str | None = None) -> Any:
    """A tuple of substructures, each behind `more` (0 on the last), a reserved octet and a length of two
    octets that counts this header too (RFC 7296 sections 3.3.1 and 3.3.2)."""

    def read(reader: Reader, number: int | None = None) -> tuple[Any, ...]:
        found: list[Any] = []
        following = more
        while following:
            following, _, length = reader.unpack(_LINK)
            if following not in (0, more) or len(found) == MOST_ITEMS:
                raise Malformed("substructures out of order")
            found.append(reader.structure(cls, length - 4))
        if number is not None and len(found) != number:
            raise Malformed(f"{number} substructures announced, {len(found)} found")
        return tuple(found)

    def write(value: tuple[Any, ...]) -> bytes:
        parts: list[bytes] = []
        left = len(value)
        for one in value:
            left -= 1
            body = one.encode()
            parts += _LINK.pack(more if left else 0, 0, len(body) + 4), body
        return b"".join(parts)

    return _declare(read, write, needs=(count,) if count else ())


_ATTRIBUTE = struct.Struct("!HH")


def attributes() -> Any:
    """Data attributes up to the end: (type, number) in the short form, (type, octets) in the long one
    (RFC 2408 section 3.3, RFC 7296 section 3.3.5)."""

    def read(reader: Reader) -> tuple[tuple[int, int | bytes], ...]:
        found: list[tuple[int, int | bytes]] = []
        while reader.at != reader.end:
            if len(found) == MOST_ITEMS:
                raise Malformed("too many attributes")
            kind, value = reader.unpack(_ATTRIBUTE)
            found.append((kind & 0x7FFF, value) if kind & 0x8000 else (kind, reader.take(value)))
        return tuple(found)

    def write(value: tuple[tuple[int, int | bytes], ...]) -> bytes:
        return b"".join(
            [
                _ATTRIBUTE.pack(kind | 0x8000, content)
                if isinstance(content, int)
                else _ATTRIBUTE.pack(kind, len(content)) + content
                for kind, content in value
            ]
        )

    return _declare(read, write, ())


# Compiling -----------------------------------------------------------------------------------------------

Layout = tuple[tuple[str, Field | _Derived], ...]


class Structure:
    """What `@wire` classes have in common: reading and writing by their declared layout."""

    __slots__ = ()
    layout: ClassVar[Layout] = ()

    if TYPE_CHECKING:  # `wire` makes them for each class

        @classmethod
        def read(cls: type[T], reader: Reader) -> T:
            """One structure from a reader that may hold more after it; raises `Malformed`."""

        def encode(self) -> bytes:
            """The octets."""


def _runs(layout: Layout) -> list[list[tuple[str, Field | _Derived]]]:
    """The layout cut so that neighbouring numbers stand together and everything else alone."""
    runs: list[list[tuple[str, Field | _Derived]]] = []
    for entry in layout:
        if runs and entry[1].form and runs[-1][-1][1].form:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _compile(made: Any, layout: Layout) -> None:
    """Give a class its layout and, as `dataclass` does, methods made for it. For a Transform they read:

    def read(cls, reader):
        type, reserved, id, = reader.unpack(form0)
        attributes = read1(reader)
        made = new(cls)
        type_set(made, type) ...
        return made

    def encode(self):
        return join((form0.pack(self.type, self.reserved, self.id), write1(self.attributes),))
    """
    names: dict[str, Any] = {"_new": object.__new__, "_join": b"".join}
    reads, parts = [], []
    for n, entries in enumerate(_runs(layout)):
        first, how = entries[0]
        if how.form:
            names[f"_form{n}"] = struct.Struct("!" + "".join(one.form for _, one in entries))
            reads.append(f"{' '.join(f'{name},' for name, _ in entries)} = _reader.unpack(_form{n})")
            values = []
            for name, one in entries:
                if isinstance(one, Field):
                    values.append(f"_self.{name}")
                else:
                    names[f"_{name}"] = one.compute
                    values.append(f"_{name}(_self.{one.name})")
            parts.append(f"_form{n}.pack({', '.join(values)})")
        elif isinstance(how, Field):
            names[f"_read{n}"], names[f"_write{n}"] = how.read, how.write
            reads.append(f"{first} = _read{n}({', '.join(('_reader', *how.needs))})")
            parts.append(f"_write{n}(_self.{first})")
    for name, one in layout:
        if isinstance(one, Field):
            names[f"_set_{name}"] = getattr(made, name).__set__
    sets = [f"_set_{name}(_made, {name})" for name, one in layout if isinstance(one, Field)]
    lines = ["def read(_cls, _reader):", *reads, "_made = _new(_cls)", *sets, "return _made"]
    exec("\n ".join(lines), names)
    exec(f"def encode(_self): return _join(({''.join(f'{part}, ' for part in parts)}))", names)
    made.layout, made.read, made.encode = layout, classmethod(names["read"]), names["encode"]


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
    if hasattr(made, "__post_init__"):
        raise TypeError(f"{cls.__name__}: __post_init__ would not run when an instance is read")
    fields = {one.name: one.metadata["wire"] for one in dataclass_fields(made)}  # type: ignore[arg-type]
    inherited: Layout = cls.layout  # type: ignore[attr-defined]
    own = tuple((name, derived.get(name) or fields[name]) for name in order)
    _compile(made, tuple(entry for entry in inherited if entry[0] not in order) + own)
    return made


def _is_class_var(kind: Any) -> bool:
    return (
        kind.startswith(("ClassVar", "typing.ClassVar"))
        if isinstance(kind, str)
        else get_origin(kind) is ClassVar
    )


def decode(cls: type[T], data: bytes) -> T:
    """The structure that fills `data` exactly; raises `Malformed`."""
    return Reader(data).structure(cls, len(data))
