"""The tables of `secrets.toml`: pre-shared keys and NTLM accounts. No complaint shows a secret.

[[psk]]
peers  = ["vpn.example"]
secret = "..."

[[ntlm]]
account  = "CORP\\clerk"
password = "..."                # or nt_hash, 32 hexadecimal digits
use      = ["accept"]
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from ikd.auth.identity import Identity, canonical
from ikd.auth.ntlm import ACCEPT, MACHINE, USES, NtlmAccount, nt_hash
from ikd.auth.psk import PskEntry
from sadb.secret import Secret

_DECODERS: dict[str, Callable[[str], bytes]] = {
    "secret": lambda text: text.encode(),
    "secret_hex": lambda text: bytes.fromhex(text.removeprefix("0x")),
    "secret_base64": lambda text: base64.b64decode(text.removeprefix("0s"), validate=True),
}
_FORMS = ", ".join(_DECODERS)
_PSK_KEYS = ("peers", "local", *_DECODERS)
_NTLM_KEYS = ("account", "password", "nt_hash", "use")
_TABLES = ("psk", "ntlm")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the file has."""

    keys: tuple[PskEntry, ...] = ()
    accounts: tuple[NtlmAccount, ...] = ()


class _Wrong(Exception):
    """One key of one entry is wrong: "key: what"."""


def parse(table: dict[str, Any]) -> tuple[Secrets, tuple[str, ...]]:
    """The entries of a file's table, and what is wrong with it; with complaints nothing may be used."""
    complaints = [
        f"{key}: unknown table, only [[psk]] and [[ntlm]] are known" for key in table.keys() - _TABLES
    ]
    keys = dict(_entries(table, "psk", _psk, complaints))
    accounts = dict(_entries(table, "ntlm", _ntlm, complaints))
    complaints += [*_twice(keys), *_same_account(accounts)]
    return Secrets(tuple(keys.values()), tuple(accounts.values())), tuple(complaints)


def _entries(
    table: dict[str, Any], name: str, read: Callable[[dict[str, Any]], T], complaints: list[str]
) -> Iterator[tuple[int, T]]:
    """The entries that are in order, with their numbers; complaints about the others."""
    rows = table.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        complaints.append(f"{name}: write [[{name}]] with two brackets")
        rows = []
    for number, row in enumerate(rows, 1):
        try:
            yield number, read(row)
        except _Wrong as wrong:
            complaints.append(f"{name}[{number}].{wrong}")


def _known(row: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in row:
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            raise _Wrong(
                f"{key}: unknown key" + (f', did you mean "{near[0]}"?' if near else f"; known: {keys}")
            )


# Pre-shared keys -----------------------------------------------------------------------------------------


def _psk(row: dict[str, Any]) -> PskEntry:
    _known(row, _PSK_KEYS)
    peers = row.get("peers", [])
    if isinstance(peers, str):
        raise _Wrong(f'peers: a list, such as ["{peers}"]')
    if not isinstance(peers, list) or ("peers" in row and not peers):
        raise _Wrong("peers: a list of identities; leave it out for any peer")
    local = row.get("local")
    return PskEntry(
        _secret(row),
        tuple(_name("peers", peer) for peer in peers),
        None if local is None else _own(local),
    )


def _own(local: Any) -> str:
    """What we are to claim, or a pattern for it."""
    name = _name("local", local)
    try:
        return name if "*" in name else str(Identity.parse(name))
    except ValueError as error:
        raise _Wrong(f"local: {error}") from None


def _twice(entries: dict[int, PskEntry]) -> Iterator[str]:
    """Complaints about a second key for the same peer."""
    seen: dict[tuple[str | None, str | None], int] = {}  # peer and local, casefolded -> first entry
    for number, entry in entries.items():
        local = entry.local and entry.local.casefold()
        for peer in entry.peers or (None,):
            first = seen.setdefault((peer and peer.casefold(), local), number)
            if first != number:
                whom = f'"{peer}"' if peer else "any peer"
                yield f"psk[{number}].peers: psk[{first}] has a key for {whom} already"


def _name(key: str, text: Any) -> str:
    try:
        return canonical(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise _Wrong(f"{key}: {error if isinstance(error, ValueError) else 'must be text'}") from None


def _secret(row: dict[str, Any]) -> Secret:
    given = [key for key in _DECODERS if key in row]
    if len(given) != 1:
        raise _Wrong(f"secret: exactly one of {_FORMS} is needed, not {len(given)}")
    text = _hidden(row, given[0])
    try:
        data = _DECODERS[given[0]](text)
    except ValueError:
        raise _Wrong(f"{given[0]}: not {given[0].removeprefix('secret_')} digits") from None
    if not data:
        raise _Wrong(f"{given[0]}: is empty")
    return Secret(data)


def _hidden(row: dict[str, Any], key: str) -> str:
    """A text that no complaint shows."""
    text = row[key]
    if not isinstance(text, str):
        raise _Wrong(f"{key}: must be text in quotes")
    if not text:
        raise _Wrong(f"{key}: is empty")
    return text


# NTLM accounts -------------------------------------------------------------------------------------------


def _ntlm(row: dict[str, Any]) -> NtlmAccount:
    _known(row, _NTLM_KEYS)
    name = row.get("account")
    if not isinstance(name, str):
        raise _Wrong("account: text such as 'CORP\\clerk' is needed")
    try:
        account = NtlmAccount.named(name, _hash(row), _uses(row.get("use", [ACCEPT])))
    except ValueError as error:
        raise _Wrong(f"account: {error}") from None
    if MACHINE in account.use and not account.machine:
        raise _Wrong(f'use: "{MACHINE}" is for the account of a computer, whose name ends in $')
    return account


def _hash(row: dict[str, Any]) -> Secret:
    given = [key for key in ("password", "nt_hash") if key in row]
    if len(given) != 1:
        raise _Wrong(f"password: exactly one of password, nt_hash is needed, not {len(given)}")
    text = _hidden(row, given[0])
    if given[0] == "password":
        return nt_hash(text)
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 16:
        raise _Wrong("nt_hash: not 32 hexadecimal digits")
    return Secret(found)


def _uses(value: Any) -> tuple[str, ...]:
    known = ", ".join(f'"{use}"' for use in USES)
    if isinstance(value, str):
        raise _Wrong(f'use: a list, such as ["{value}"]')
    if not isinstance(value, list) or not value or any(use not in USES for use in value):
        raise _Wrong(f"use: a list of {known}")
    return tuple(use for use in USES if use in value)


def _same_account(accounts: dict[int, NtlmAccount]) -> Iterator[str]:
    """Complaints about a second password for one account."""
    seen: dict[tuple[str, str], int] = {}
    for number, account in accounts.items():
        if (first := seen.setdefault(account.key, number)) != number:
            yield f"ntlm[{number}].account: ntlm[{first}] has {account.name} already"
