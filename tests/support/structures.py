"""Hypothesis strategies for `@wire` classes, derived from their layouts: a new payload class is tested by
standing in its registry."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from hypothesis import strategies as st

from ikd.wire.codec import Field, Malformed, Structure, decode

NUMBER = st.one_of(st.integers(0, 0x7FFF), st.sampled_from([0, 14, 0x7FFF]))
ATTRIBUTES = st.lists(
    st.tuples(NUMBER, st.one_of(st.integers(0, 0xFFFF), st.binary(max_size=20))), max_size=4
).map(tuple)


@st.composite
def equal_items(draw: st.DrawFn) -> tuple[bytes, ...]:
    size = draw(st.integers(1, 16))
    return tuple(draw(st.lists(st.binary(min_size=size, max_size=size), max_size=5)))


@dataclass(frozen=True)
class Values:
    """Instances of a protocol's classes. `lengths` of octet strings that are not 0 to 64, by class and field;
    `linked` are classes of which a list has at least one."""

    lengths: Mapping[tuple[type[Any], str], tuple[int, int]] = field(default_factory=dict)
    linked: Collection[type[Any]] = ()

    def of(self, cls: type[Any]) -> st.SearchStrategy[Any]:
        """Instances of a class."""
        hints = get_type_hints(cls)
        fields = {name: how for name, how in cls.layout if isinstance(how, Field)}
        return st.builds(
            cls, **{name: self._field(cls, name, how, hints[name]) for name, how in fields.items()}
        )

    def _field(self, cls: type[Any], name: str, how: Field, kind: Any) -> st.SearchStrategy[Any]:
        """Values of one field, by its type and its place in the layout."""
        if kind is int:
            return st.integers(0, 256 ** len(how.write(0)) - 1)
        if kind is bytes:
            low, high = self.lengths.get((cls, name), (0, 64))
            return st.binary(min_size=low, max_size=high)
        (item, _) = get_args(kind)
        if item is bytes:
            return equal_items()
        if isinstance(item, type) and issubclass(item, Structure):
            return st.lists(self.of(item), min_size=int(item in self.linked), max_size=4).map(tuple)
        return ATTRIBUTES


def read_in_noise(cls: type[Any], values: st.SearchStrategy[Any], data: st.DataObject) -> Iterator[Any]:
    """What can be read in noise, and in honest octets with one changed or cut; the rest is `Malformed`. What
    is read stays itself when it is written again."""
    octets = bytearray(data.draw(st.one_of(st.binary(max_size=80), values.map(lambda v: v.encode()))))
    if octets and data.draw(st.booleans()):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(octets)))
    for tried in (bytes(octets), bytes(octets[:cut]), bytes(octets) + b"\0"):
        try:
            value = decode(cls, tried)
        except Malformed:
            continue
        assert decode(cls, value.encode()) == value
        yield value
