"""The control socket's language (docs/control.md): JSON lines, names, errors, plain values.

Used by the server, the client and the tests alike. It turns values of ours into JSON ones and refuses to turn
key material into anything. Transport is not its business.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Any, Final, Protocol

from sadb.address import Path, SocketAddress
from sadb.selector import Selector, TrafficSelector

PROTOCOL: Final = 1
LARGEST_LINE: Final = 1 << 20
DEFAULT_SOCKET: Final = "/run/ikd/control.sock"

Json = Any  # what json.dumps takes: None, bool, int, float, str, list and dict of these

# code of an error -> exit code of ikctl
EXIT_CODES: Final[Mapping[str, int]] = {
    "configuration": 1,
    "usage": 1,
    "no-such-request": 1,
    "no-such-rule": 1,
    "no-such-sa": 1,
    "ambiguous": 1,
    "unavailable": 1,
    "internal": 1,
    "not-reachable": 2,
    "negotiation-failed": 3,
    "refused-by-policy": 4,
    "not-permitted": 5,
}

_TEXTUAL = (
    IPv4Address,
    IPv6Address,
    IPv4Network,
    IPv6Network,
    SocketAddress,
    Path,
    Selector,
    TrafficSelector,
    PurePath,
)


class ControlError(Exception):
    """A request that cannot be done; `code` is for programs, `remedy` says what to do."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy

    def plain(self) -> Json:
        """As it stands in an answer."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


def file_error(error: OSError, remedy: str, doing: str = "") -> ControlError:
    """What is wrong with a file; that it may not be used is for somebody else to mend than its name."""
    text = f"{doing}{error.filename}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return ControlError("not-permitted", text, "use sudo, or a place that is yours")
    return ControlError("configuration", text, remedy)


class Caller(Protocol):
    """What a request may know about, and do to, the connection it came on."""

    @property
    def user(self) -> int:
        """User id at the other end."""
        ...

    def send_event(self, line: Json) -> None:
        """Queue an event line; a full queue loses its oldest."""
        ...

    def on_close(self, action: Callable[[], None]) -> None:
        """Run when the connection ends."""
        ...


def hyphened(name: str) -> str:
    """`ChildEstablished`, `CHILD_ESTABLISHED` and `child_established` as `child-established`."""
    if name.isupper():
        return name.lower().replace("_", "-")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower().replace("_", "-")


def printable(text: str, keep: str = "\n") -> str:
    """The text with everything escaped that a terminal might obey, but for the characters of `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def stamp(posix: float) -> str:
    """RFC 3339 in UTC with milliseconds, from POSIX seconds."""
    return datetime.fromtimestamp(posix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Json:
    """A value as JSON: octets in hexadecimal, enumerations by their names, dataclasses by their fields.

    Raises `TypeError` for anything without an agreed form, key material first of all."""
    match value:
        case bool() | None | str():
            return value
        case Enum():
            return value.value if isinstance(value.value, str) else hyphened(value.name)
        case int():
            return int(value)
        case float():
            return round(value, 6) if math.isfinite(value) else None
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Set():
            return sorted(plain(item) for item in value)
    if isinstance(value, _TEXTUAL):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__str__ is not object.__str__:
            return str(value)
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no form on the control socket")


def encode(value: Json) -> bytes:
    """One line; raises `ControlError` when it would be longer than a line may be."""
    line = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    if len(line) > LARGEST_LINE:
        raise ControlError(
            "unavailable",
            f"the answer has {len(line)} octets, more than the {LARGEST_LINE} of a line",
            "ask for less, for example one peer or rule",
        )
    return line


def decode(line: bytes) -> dict[str, Json]:
    """One line; raises `ControlError`."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError("usage", f"not a JSON line: {error}", "send one JSON object a line") from None
    if not isinstance(value, dict):
        raise ControlError("usage", "a JSON object is expected", 'send for example {"id": 1, "do": "status"}')
    return value
