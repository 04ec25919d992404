r"""Groups by name: what `groups.toml` says, so that rules may name a group whatever proves its members.

    ["CORP\\HR"]
    sid     = "S-1-5-21-1004336348-1177238915-682003330-1105"    # as the PAC of a Kerberos ticket has it
    members = ["clerk@CORP.EXAMPLE", "CORP\\clerk"]              # whom no PAC says it of

A peer's groups are texts that patterns of policy fit: `group:CORP\HR`, and `group:S-1-5-...` for every SID
of the PAC, named here or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from ikd.auth import Authenticated
from policy.peers import GROUP, matches_any

_SID = re.compile(r"S-1-\d{1,15}(-\d{1,10}){1,15}", re.ASCII)
_KEYS = ("sid", "members")


@dataclass(frozen=True, slots=True)
class Group:
    """One group. A peer belongs to it by its SID, or when `members` has one of the peer's names."""

    name: str
    sid: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Groups:
    """All groups of the file."""

    entries: tuple[Group, ...] = ()

    def of(self, names: Sequence[str], sids: Iterable[str] = ()) -> tuple[str, ...]:
        """The groups of a peer that has proven these names, and has these SIDs by the word of its KDC."""
        known = tuple(sids)
        held = {sid.upper() for sid in known}
        named = (g.name for g in self.entries if g.sid.upper() in held or matches_any(g.members, names))
        return tuple(dict.fromkeys(GROUP + text for text in (*named, *known)))

    def joined(self, peer: Authenticated, sids: Iterable[str] = ()) -> Authenticated:
        """The peer with its groups."""
        return replace(peer, groups=self.of(peer.names, sids))


NO_GROUPS = Groups()


class GroupError(Exception):
    """The table cannot be used; `complaints` has one line for each thing that is wrong."""

    def __init__(self, complaints: tuple[str, ...]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


def parse(table: dict[str, Any]) -> Groups:
    """The groups of a file's table; raises `GroupError`."""
    entries: list[Group] = []
    complaints: list[str] = []
    seen: dict[str, str] = {}  # names and SIDs, casefolded -> the group that has them
    for name, row in table.items():
        try:
            group = _group(name, row)
        except ValueError as error:
            complaints.append(f'"{name}": {error}')
            continue
        for mark in filter(None, (group.name.casefold(), group.sid.casefold())):
            if (first := seen.setdefault(mark, name)) != name:
                complaints.append(f'"{name}": "{first}" is that group already')
        entries.append(group)
    if complaints:
        raise GroupError(tuple(complaints))
    return Groups(tuple(entries))


def _group(name: str, row: Any) -> Group:
    if not name or name != name.strip() or not name.isprintable() or name.casefold().startswith(GROUP):
        raise ValueError('the name of a group is its plain name, such as "CORP\\\\HR"')
    if _SID.fullmatch(name.upper()):
        raise ValueError("a SID is no name; a rule may name it without this file")
    if not isinstance(row, dict):
        raise ValueError(f'write ["{name}"] as a table of its own')
    for key in row:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, 1)
            raise ValueError(
                f"{key}: unknown key" + (f', did you mean "{near[0]}"?' if near else "; known: sid, members")
            )
    if not row:
        raise ValueError("sid or members is needed, else nobody is in it")
    return Group(name, _sid(row.get("sid")), _members(row.get("members")))


def _sid(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not _SID.fullmatch(value.upper()):
        raise ValueError(f"sid: text such as S-1-5-21-1004336348-1177238915-682003330-1105, not {value!r}")
    return value.upper()


def _members(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        raise ValueError(f'members: a list, such as ["{value}"]')
    if not isinstance(value, list) or not value:
        raise ValueError("members: a list of names; leave it out for none")
    for one in value:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"members: names, not {one!r}")
        if one.strip().casefold().startswith(GROUP) or one.strip() == "*":
            raise ValueError(f"members: names of hosts and users, not {one!r}")
    return tuple(one.strip() for one in value)
