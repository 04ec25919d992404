"""Where in a TOML file a key stands, so that a complaint can name the line.

The standard library's TOML reader keeps no positions; this finds them again by walking headers and keys line
by line. It is only for messages: what a key means is read elsewhere, and a key that is not found has no line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

Path = tuple[str | int, ...]

_KEY = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*[=.]")


def positions(text: str) -> Mapping[Path, int]:
    """Line numbers, from 1, of the tables and keys of a document; array members are counted from 0."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    at: Path = ()
    quoted = False
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not quoted and line.lstrip().startswith("["):
            header = _header(line, counts)
            if header is not None:
                at = header
                for length in range(1, len(at) + 1):
                    found.setdefault(at[:length], number)
        elif not quoted and (match := _KEY.match(line)):
            found.setdefault((*at, match[1].strip("\"'")), number)
        if (line.count('"""') + line.count("'''")) % 2:
            quoted = not quoted
    return found


def _header(line: str, counts: dict[Path, int]) -> Path | None:
    try:
        value = tomllib.loads(line)
    except (ValueError, RecursionError):  # a line of a longer value that only begins like a header
        return None
    path: Path = ()
    node: object = value
    while isinstance(node, dict) and node:
        key, node = next(iter(node.items()))
        path = (*path, key)
        if isinstance(node, list):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:  # a table below an array of tables belongs to its latest member
            path = (*path, counts[path])
    return path


@dataclass(frozen=True, slots=True)
class Place:
    """A key of a file: the file, its line numbers, the path for machines and the path for people."""

    source: str
    lines: Mapping[Path, int]
    path: Path = ()
    label: str = ""

    def key(self, name: str) -> Place:
        """The place of a key inside this table."""
        return Place(
            self.source, self.lines, (*self.path, name), f"{self.label}.{name}" if self.label else name
        )

    def member(self, index: int, name: str = "") -> Place:
        """The place of an array's member; `index` from 0, shown from 1, with its name if it has one."""
        label = f"{self.label}[{index + 1}]" + (f' "{name}"' if name else "")
        return Place(self.source, self.lines, (*self.path, index), label)

    @property
    def line(self) -> int | None:
        """The line of the key, or of the nearest table around it."""
        for length in range(len(self.path), 0, -1):
            if self.path[:length] in self.lines:
                return self.lines[self.path[:length]]
        return None

    @property
    def file(self) -> str:
        """File and line: `policy.toml:12`."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def __str__(self) -> str:
        return f"{self.file}: {self.label}" if self.label else self.file
