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
    """The policy files of a directory, as name and text; raises `PolicyError` naming all it cannot read."""
    found: list[tuple[str, str]] = []
    complaints: list[str] = []
    for path in (directory / "policy.toml", *_more(directory / "policy.d", complaints)):
        try:
            found.append((str(path.relative_to(directory)), path.read_bytes().decode("utf-8")))
        except FileNotFoundError:
            complaints.append(f"{path}: there is no such file; start from an example in conf/examples")
        except OSError as error:
            complaints.append(f"{path}: cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            complaints.append(f"{path}: is not UTF-8 text, from octet {error.start} on; save it as UTF-8")
    if complaints:
        raise PolicyError(tuple(complaints))
    return found


def _more(directory: Path, complaints: list[str]) -> list[Path]:
    """The files of policy.d; hidden ones are what editors leave behind. A directory that is there and cannot
    be listed is complained about: without its rules, traffic would pass that they forbid."""
    try:
        return sorted(p for p in directory.iterdir() if p.suffix == ".toml" and not p.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        complaints.append(f"{directory}: cannot be read: {error.strerror}")
        return []
