"""Shell. Reads the files of a policy: policy.toml, then policy.d/*.toml in the order of their names.

What they mean is decided in `policy.parse`; a policy that cannot be used raises `PolicyError` with every
complaint, and the one in force stays.
"""

from __future__ import annotations

from pathlib import Path

from policy.engine import Policy
from policy.parse import Keywords, compose, parse
from policy.section import PolicyError

__all__ = ["PolicyError", "load", "parse", "read"]


def load(directory: Path, keywords: Keywords | None = None) -> Policy:
    """The policy of a configuration directory; `keywords` are the resolved address keywords. Raises
    `PolicyError`."""
    return compose(read(directory), keywords)


def read(directory: Path) -> list[tuple[str, str]]:
    """The policy files of a directory, as name and text; raises `PolicyError` naming every unreadable file."""
    found: list[tuple[str, str]] = []
    complaints: list[str] = []
    for path in (directory / "policy.toml", *sorted((directory / "policy.d").glob("*.toml"))):
        try:
            found.append((str(path.relative_to(directory)), path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            complaints.append(f"{path}: there is no such file; start from an example in conf/examples")
        except (OSError, UnicodeDecodeError) as error:
            complaints.append(f"{path}: cannot be read: {error}")
    if complaints:
        raise PolicyError(tuple(complaints))
    return found
