"""The language of swanctl.conf and strongswan.conf: sections in braces, `key = value`, `include`, comments.

As strongSwan's own reader has it: a later value replaces an earlier one, a section that comes again goes on,
values end with the line or a brace, text in quotes may have anything in it. A section `name : other.path` has
what that one has, where it says nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ikd.migrate.model import DEEPEST, Budget, Include, Place, Setting, Unreadable, listed

_BLANK = " \t\r"
_WORD = re.compile(r"[^#{}=\"\r\n\t ]+")
_VALUE = re.compile(r"[^#}\"\r\n\t ]+")
_PATTERN = re.compile(r"include[\t ]+(?=[^=\s])")
_QUOTED = {"n": "\n", "r": "\r", "t": "\t", "\n": ""}


@dataclass(slots=True)
class Section:
    """A section: its values and the sections in it, in the order of their first appearance."""

    place: Place
    values: dict[str, Setting] = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    references: list[Setting] = field(default_factory=list)
    template: bool = False  # others refer to it

    def section(self, name: str) -> Section:
        """One section; an empty one when it is not there."""
        return self.sections.get(name) or Section(self.place)

    def all(self, prefix: str) -> Iterator[tuple[str, Section]]:
        """The sections whose names begin so: `ike`, `ike-1`, `ike-moon`."""
        return ((name, one) for name, one in self.sections.items() if name.startswith(prefix))


def read(name: str, text: str, include: Include) -> Section:
    """The whole of a file and of those it includes; raises `Unreadable`."""
    root = Section(Place(name, 1))
    budget = Budget()
    _Reader(name, text, include, budget, 0).into(root)
    _resolve(root, root, budget, 0)
    return root


def _resolve(root: Section, section: Section, budget: Budget, depth: int) -> None:
    """Take in what the sections have that this one and those in it refer to: its own goes before, then what
    the references name, from left to right."""
    if depth > 2 * DEEPEST:
        raise Unreadable(f"{section.place}: more than {2 * DEEPEST} sections or references after each other")
    for inner in list(section.sections.values()):
        _resolve(root, inner, budget, depth + 1)
    references, section.references = section.references, []
    for reference in references:
        target = root
        for name in reference.text.split("."):
            if name not in target.sections:
                _resolve(root, target, budget, depth + 1)  # it may inherit it
            if name not in target.sections:
                raise Unreadable(f'{reference.place}: there is no section "{reference.text}"')
            target = target.sections[name]
        target.template = True
        _resolve(root, target, budget, depth + 1)
        if target is not section:
            _merge(section, target, reference.place, budget, 0)


def _merge(section: Section, other: Section, place: Place, budget: Budget, depth: int) -> None:
    if depth > DEEPEST:  # a section inside the one it refers to
        raise Unreadable(f"{place}: more than {DEEPEST} sections inside each other")
    for key, value in other.values.items():
        budget.spend(place)
        section.values.setdefault(key, value)
    for name, inner in list(other.sections.items()):
        budget.spend(place)
        mine = section.sections.setdefault(name, Section(inner.place))
        if mine is not inner:
            _merge(mine, inner, place, budget, depth + 1)


class _Reader:
    """One file, octet by octet; `position` never goes back."""

    def __init__(self, name: str, text: str, include: Include, budget: Budget, depth: int) -> None:
        self.name = name
        self.text = text
        self.include = include
        self.budget = budget
        self.depth = depth  # files inside each other
        self.position = 0
        self.line = 1

    @property
    def place(self) -> Place:
        return Place(self.name, self.line)

    def into(self, root: Section) -> None:
        """Read the file into a section. The nesting is a list of ours, so that thousands of braces are
        refused and not fatal."""
        open_sections = [root]
        while self.skip(newlines=True):
            self.budget.spend(self.place)
            if self.peek() == "}":
                if len(open_sections) == 1:
                    raise Unreadable(f"{self.place}: a closing brace without an opening one")
                open_sections.pop()
                self.position += 1
            elif found := _PATTERN.match(self.text, self.position):
                self.position = found.end()
                self.included(open_sections[-1])
            elif (inner := self.statement(open_sections[-1])) is not None:
                if len(open_sections) > DEEPEST:
                    raise Unreadable(f"{self.place}: more than {DEEPEST} sections inside each other")
                open_sections.append(inner)
        if len(open_sections) > 1:
            raise Unreadable(f"{open_sections[-1].place}: the section is not closed")

    def statement(self, section: Section) -> Section | None:
        """`key = value`, or the head of a section, which is the answer."""
        place = self.place
        name = self.word(_WORD)
        self.skip()
        after = self.peek()
        if after == "=":
            self.position += 1
            section.values[name] = Setting(self.value(), place)
            return None
        references: list[Setting] = []
        if after == ":" or name.endswith(":"):
            name = name.removesuffix(":")
            self.position += after == ":"
            self.skip()
            while self.peek() not in ("", "{", "\n"):
                references += [Setting(one, place) for one in listed(self.word(_WORD))]
                self.skip()
        self.skip(newlines=True)
        if self.peek() != "{":
            raise Unreadable(f'{place}: "{name}" is followed by neither = nor an opening brace')
        self.position += 1
        inner = section.sections.setdefault(name, Section(place))
        inner.references += references
        return inner

    def value(self) -> str:
        """Up to the end of the line, a comment or a brace; its parts with one space between them."""
        parts = []
        self.skip(comments=False)
        while (here := self.peek()) and here not in "#}\n":
            parts.append(self.quoted() if here == '"' else self.word(_VALUE))
            self.skip(comments=False)
        return " ".join(parts)

    def quoted(self) -> str:
        place = self.place
        self.position += 1
        parts: list[str] = []
        while (here := self.peek()) != '"':
            self.position += 1
            if here == "\\" and self.peek():
                after = self.peek()
                self.position += 1
                parts.append(_QUOTED.get(after, after))
                self.line += after == "\n"
            elif not here or here == "\\":
                raise Unreadable(f"{place}: the text in quotes does not end")
            else:
                parts.append(here)
                self.line += here == "\n"
        self.position += 1
        return "".join(parts)

    def included(self, section: Section) -> None:
        place = self.place
        pattern = self.quoted() if self.peek() == '"' else self.word(_VALUE)
        if self.depth >= DEEPEST:
            raise Unreadable(f"{place}: more than {DEEPEST} files inside each other")
        for name, text in self.include(pattern, place):
            _Reader(name, text, self.include, self.budget, self.depth + 1).into(section)

    def word(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.position)
        if not found:
            raise Unreadable(f"{self.place}: {self.peek()!r} is not expected here")
        self.position = found.end()
        return found[0]

    def skip(self, *, newlines: bool = False, comments: bool = True) -> bool:
        """Go on to what is neither blank nor, if wanted, a comment or the end of a line; whether there is
        more."""
        while here := self.peek():
            if here == "#" and comments:
                end = self.text.find("\n", self.position)
                self.position = len(self.text) if end < 0 else end
            elif here in _BLANK or (newlines and here == "\n"):
                self.position += 1
                self.line += here == "\n"
            else:
                return True
        return False

    def peek(self) -> str:
        return self.text[self.position : self.position + 1]
