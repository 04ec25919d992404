"""Configuration files as others may read them: what they say, without secrets.

Files are shown as what they mean, not as they are written, so comments are gone. Keys that are known to be
harmless keep their values in `secrets.toml` and `ikd.toml`; elsewhere only keys that sound like a secret lose
theirs. A file that cannot be read as TOML is not shown at all. What `secrets.toml` hides is then looked for
in everything else, too.
"""

from __future__ import annotations

import base64
import binascii
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from ikd.control.protocol import Json
from ikd.settings import OPTIONS

HIDDEN: Final = "(hidden)"
SHORTEST: Final = 4  # characters of a secret that is looked for elsewhere; shorter ones are in words

_SHOWN_SECRETS: Final = {"psk": ("peers", "local"), "ntlm": ("account", "use")}
_HIDDEN_SECRETS: Final = ("secret", "secret_hex", "secret_base64", "password", "nt_hash")
_KNOWN: Final = frozenset((*_SHOWN_SECRETS, *chain(*_SHOWN_SECRETS.values()), *_HIDDEN_SECRETS))
_SOUNDS_SECRET: Final = re.compile(r"secret|passw|passphrase|private|nt_?hash", re.IGNORECASE)
_PLACE: Final = re.compile(r"\(at (?:line \d+, column \d+|end of document)\)")

Shows = Callable[[tuple[str, ...]], bool]


def document(name: str, text: str) -> Json:
    """A TOML file of the configuration directory without its secrets; raises `ValueError`, which shows no
    octet of it."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))
        raise ValueError(f"{name} is no TOML {place.group() if place else ''}".rstrip()) from None
    return _without(table, (), _RULES.get(name, _sounds_harmless))


def secrets(text: str) -> tuple[str, ...]:
    """Every text that `secrets.toml` hides, in the forms in which it might stand elsewhere, longest first."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # anything in it may be one
        words: Iterator[str] = iter(re.split(r"[\s\"'=]+", text))
    else:
        words = _hidden(table, ())
    found = {form for word in words for form in _forms(word) if len(form) >= SHORTEST}
    return tuple(sorted(found - _KNOWN, key=len, reverse=True))


def scrubbed(value: Json, hidden: tuple[str, ...]) -> Json:
    """An answer, or part of one, with none of these texts in it."""
    match value:
        case str():
            for one in hidden:
                value = value.replace(one, HIDDEN)
            return value
        case Mapping():
            return {scrubbed(key, hidden): scrubbed(item, hidden) for key, item in value.items()}
        case list() | tuple():
            return [scrubbed(item, hidden) for item in value]
    return value


def _without(value: Any, place: tuple[str, ...], shows: Shows) -> Json:
    if isinstance(value, dict):
        strict = shows is _is_shown_secret
        return {
            HIDDEN if strict and key not in _KNOWN else key: _without(item, (*place, key), shows)
            for key, item in value.items()
        }
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [_without(item, place, shows) for item in value]
    if not shows(place) or "PRIVATE KEY" in str(value):
        return HIDDEN
    return value if isinstance(value, bool | int | float | list) else str(value)


def _hidden(value: Any, place: tuple[str, ...]) -> Iterator[str]:
    """The texts that `_without` hides in `secrets.toml`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _hidden(item, (*place, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from _hidden(item, place)
    elif not _is_shown_secret(place):
        yield from map(str, value if isinstance(value, list) else [value])


def _forms(word: str) -> Iterator[str]:
    """A secret as it is written, and what it means in hexadecimal, base64 and text."""
    yield word
    for octets in _octets(word):
        yield from _written(octets)


def _octets(word: str) -> Iterator[bytes]:
    yield word.encode()
    with suppress(ValueError):
        yield bytes.fromhex(word.removeprefix("0x"))
    with suppress(ValueError, binascii.Error):
        yield base64.b64decode(word.removeprefix("0s"), validate=True)


def _written(octets: bytes) -> Iterator[str]:
    yield octets.hex()
    yield octets.hex().upper()
    yield base64.b64encode(octets).decode()
    with suppress(UnicodeDecodeError):
        yield octets.decode()


def _is_shown_secret(place: tuple[str, ...]) -> bool:
    return len(place) == 2 and place[1] in _SHOWN_SECRETS.get(place[0], ())


def _is_option(place: tuple[str, ...]) -> bool:
    """A key of ikd.toml, or a group in the table of levels."""
    known = place[1:2] and place[1] in OPTIONS.get(place[0], ())
    return bool(known) and (len(place) == 2 or place[1] == "level")


def _sounds_harmless(place: tuple[str, ...]) -> bool:
    return not any(_SOUNDS_SECRET.search(key) for key in place)


_RULES: Final[Mapping[str, Shows]] = {"secrets.toml": _is_shown_secret, "ikd.toml": _is_option}
