"""What the readers of strongSwan's two formats make of a file, before it becomes rules.

Both formats say the same things under other names; a reader gives them the names of `Child`'s settings, and
`ikd.migrate.rules` knows no others. Every value keeps its file and line, for the list of what was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

MOST_OCTETS = 1 << 20  # of all files together: a configuration is written by people
MOST_FILES = 100
DEEPEST = 16  # sections or files inside each other
MOST_ENTRIES = 20_000
MOST_CONNECTIONS = 1000


# by the last part of a key: where ikd has it, or why not
_INSTEAD = {
    **dict.fromkeys(("dpd_delay", "dpddelay"), "ike.liveness of ikd.toml is for all peers"),
    **dict.fromkeys(
        ("dpd_action", "dpdaction", "close_action", "closeaction"), "the next packet negotiates what is gone"
    ),
    **dict.fromkeys(
        ("updown", "leftupdown", "rightupdown", "leftfirewall", "rightfirewall"),
        "no script is run; ikd has a packet filter of its own",
    ),
    **dict.fromkeys(("encap", "forceencaps"), "UDP encapsulation is used where a NAT is found"),
    **dict.fromkeys(("reauth_time", "reauth"), "IKE SAs are rekeyed"),
    "fragmentation": "ike.fragmentation of ikd.toml is for all peers",
    "mobike": "ike.mobike of ikd.toml is for all peers",
    "replay_window": "dataplane.replay_window of ikd.toml is for all peers",
}


class Unreadable(Exception):
    """A file that is not of its format, with place and reason; nothing of it is used."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """File and line, counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it is written."""

    text: str
    place: Place


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What has not been translated, or not as it was meant."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Child:
    """One connection as a rule can have it. `settings` are by the names of `ikd.migrate.rules`."""

    name: str
    place: Place
    settings: Mapping[str, Setting]
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A pre-shared key and the identities it is for; none: any."""

    place: Place
    ids: tuple[str, ...]
    text: str = field(repr=False)


@dataclass(slots=True)
class Source:
    """All that a configuration says."""

    children: list[Child] = field(default_factory=list)
    keys: list[SharedKey] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def note(self, place: Place, text: str) -> None:
        """List something."""
        self.findings.append(Finding(place, text))

    def left_out(self, place: Place, key: str, value: str) -> None:
        """List a key that means nothing to us. One that is misplaced may still be a secret."""
        shown = "..." if any(word in key.lower() for word in ("secret", "psk", "pin", "pass")) else value
        instead = _INSTEAD.get(key.rpartition(".")[2])
        self.note(place, f"{key} = {shown}: not translated{'; ' if instead else ''}{instead or ''}")


Include = Callable[[str, Place], Iterable[tuple[str, str]]]
"""The files of an `include`, as name and text, by its pattern and the place where it stands; raises
`Unreadable`."""


def listed(text: str) -> list[str]:
    """The members of a list with commas."""
    return [one.strip() for one in text.split(",") if one.strip()]


class Budget:
    """How much a configuration may have in all; raises `Unreadable` beyond."""

    def __init__(self) -> None:
        self._left = MOST_ENTRIES

    def spend(self, place: Place) -> None:
        """One entry more."""
        self._left -= 1
        if self._left < 0:
            raise Unreadable(f"{place}: more than {MOST_ENTRIES} entries")
