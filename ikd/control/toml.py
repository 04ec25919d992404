"""Values as TOML text: what `ikctl init` and `ikctl import` write. Python reads TOML and writes none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Value = str | bool | int | Sequence["Value"] | Mapping[str, "Value"]


def text(value: Value) -> str:
    """One value on one line; tables are inline."""
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, str):
        # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key(name)} = {text(one)}" for name, one in value.items()) + " }"
    return "[" + ", ".join(map(text, value)) + "]"


def key(name: str) -> str:
    """A key, in quotes unless it is a bare one."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else text(name)


def table(head: str, values: Mapping[str, Value]) -> str:
    """A table under its head, such as `[auth.office]` or `[[rule]]`, keys aligned."""
    width = max((len(key(name)) for name in values), default=0)
    lines = [head, *(f"{key(name):<{width}} = {text(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"
