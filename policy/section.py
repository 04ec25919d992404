"""Reading one TOML table strictly: unknown keys, wrong types and bad values become complaints, all of them.

A `Section` has read its table against its schema when it is made; `read` and `each` turn single values into
their meaning. A key that was complained about once counts as `bad`, so that no second complaint follows from
the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from policy.position import Place
from policy.schema import Key, Table, hint, nearest

T = TypeVar("T")

_TYPES = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


class PolicyError(Exception):
    """A policy that cannot be used; `complaints` has everything that is wrong with it, one sentence each."""

    def __init__(self, complaints: tuple[str, ...]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


@dataclass(slots=True)
class Notes:
    """What is found while reading."""

    complaints: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Section:
    """One table of a file: where it stands, its values, and what is wrong with them."""

    place: Place
    table: Table
    values: Mapping[str, Any]
    notes: Notes
    bad: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            key = self.table.key(name)
            if key is None:
                self._unknown(name)
            elif not _is(value, key.types):
                self.complain(name, f"{shown(value)} is {_kind(value)}; it takes {key.form}")
            elif key.choices and value not in key.choices:
                self.complain(
                    name, f"{shown(value)} is not one of {', '.join(key.choices)}; {_choice(value, key)}"
                )

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def complain(self, name: str | None, message: str) -> None:
        """Say what is wrong with a key, or with the whole table."""
        if name is not None:
            self.bad.add(name)
        place = self.place.key(name) if name is not None else self.place
        self.notes.complaints.append(f"{place}: {message}")

    def warn(self, name: str | None, message: str) -> None:
        """Say what the administrator should know."""
        self.notes.warnings.append(f"{self.place.key(name) if name else self.place}: {message}")

    def get(self, name: str, default: T) -> T:
        """The value as it is, or the default when it is absent or bad."""
        value: T = default if name in self.bad else self.values.get(name, default)
        return value

    def read(self, name: str, parser: Callable[[Any], T], default: T) -> T:
        """The meaning of one value."""
        if name not in self.values or name in self.bad:
            return default
        try:
            return parser(self.values[name])
        except ValueError as error:
            self.complain(name, str(error))
            return default

    def each(self, name: str, parser: Callable[[Any], T], types: tuple[type, ...] = (str,)) -> tuple[T, ...]:
        """The meaning of every member of a list, or of the one value that stands for a list of one."""
        if name not in self.values or name in self.bad:
            return ()
        value = self.values[name]
        if not isinstance(value, list):
            return self.read(name, lambda one: (parser(one),), ())
        if not value:
            self.complain(name, "the list is empty; leave the key out or name something")
        found = []
        for index, member in enumerate(value):
            place = self.place.key(name).member(index)
            if not _is(member, types):
                self._member(name, f"{place}: {shown(member)} is {_kind(member)}, not {_names(types)}")
                continue
            try:
                found.append(parser(member))
            except ValueError as error:
                self._member(name, f"{place}: {error}")
        return tuple(found)

    def sub(self, name: str, table: Table) -> Section | None:
        """A table inside this one, None when it is absent or not a table."""
        if name not in self.values or name in self.bad:
            return None
        found = Section(self.place.key(name), table, self.values[name], self.notes)
        if found.bad:
            self.bad.add(name)
        return found

    def _member(self, name: str, complaint: str) -> None:
        self.bad.add(name)
        self.notes.complaints.append(complaint)

    def _unknown(self, name: str) -> None:
        self.complain(name, f"unknown key in {self.table.title}; {hint(name, self.table.names)}")
        # what was probably meant is not complained about again as missing or misfitting
        meant = nearest(name, self.table.names)
        if meant and meant not in self.values:
            self.bad.add(meant)


def shown(value: object) -> str:
    """A value as it stands in the file, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _choice(value: object, key: Key) -> str:
    close = nearest(value, key.choices) if isinstance(value, str) else None
    return f'did you mean "{close}"?' if close else f"write {key.form}"


def _is(value: object, types: tuple[type, ...]) -> bool:
    return type(value) in types  # not isinstance: true is no number here


def _kind(value: object) -> str:
    return _TYPES.get(type(value), type(value).__name__)


def _names(types: tuple[type, ...]) -> str:
    return " or ".join(dict.fromkeys(_TYPES[one] for one in types))
