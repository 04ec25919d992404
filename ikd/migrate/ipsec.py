"""ipsec.conf and ipsec.secrets of strongSwan's older interface (ipsec.conf(5), ipsec.secrets(5)).

Sections are `conn`, `ca` and `config setup`, their parameters indented below; `also=` takes those of another
section in, `%default` those of every section. Which of left and right is this host, its addresses decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from ikd.migrate.model import (
    DEEPEST,
    MOST_CONNECTIONS,
    Budget,
    Child,
    Include,
    Place,
    Setting,
    SharedKey,
    Source,
    Unreadable,
    listed,
)

# names there, of this host's side with `local` and of the other's with `remote` -> names of `rules`
_SIDED = {
    "local": "local", "localsubnet": "local_ts", "localid": "local_id", "localauth": "local_auth",
    "localcert": "local_certs", "localsourceip": "virtual", "localauth2": "rounds", "localcert2": "rounds",
    "remote": "remote", "remotesubnet": "remote_ts", "remoteid": "remote_id", "remoteauth": "remote_auth",
    "remoteca": "ca", "remotecert": "pinned", "remotesigkey": "pinned", "remotersasigkey": "pinned",
    "remotegroups": "pinned", "remotesourceip": "virtual", "remoteauth2": "rounds", "remoteca2": "rounds",
    "remotecertpolicy": "pinned", "localprotoport": "", "remoteprotoport": "",
}  # fmt: skip
_PLAIN = {
    "keyexchange": "version", "ike": "ike", "esp": "esp", "ah": "ah", "aggressive": "aggressive",
    "ikelifetime": "ike_time", "lifetime": "time", "keylife": "time", "lifebytes": "bytes",
    "lifepackets": "packets", "inactivity": "idle", "type": "mode", "auto": "start", "authby": "", "also": "",
}  # fmt: skip
_NAMES = _SIDED | _PLAIN
# values there -> values of swanctl.conf, which `rules` reads
_VALUES: Mapping[str, Mapping[str, str]] = {
    "keyexchange": {"ike": "0", "ikev1": "1", "ikev2": "2"},
    "type": {"passthrough": "pass"},
    "auto": {"add": "none", "route": "trap", "ondemand": "trap", "start": "start"},
}
_AUTHBY = {
    "secret": "psk", "psk": "psk", "pubkey": "pubkey", "rsasig": "rsa", "ecdsasig": "ecdsa", "rsa": "rsa",
    "ecdsa": "ecdsa",
}  # fmt: skip
_HEAD = re.compile(r"(conn|ca|config)\s+(\S+)\s*")
_PARAMETER = re.compile(r"([A-Za-z0-9_.-]+)\s*=\s*(.*)")
_SECRET = re.compile(r"(?:(.*?)\s)?:\s*([A-Za-z0-9]+)(?:\s+(.*))?")


@dataclass(slots=True)
class _Section:
    """One section: its parameters, and the names after `also`."""

    place: Place
    values: dict[str, Setting] = field(default_factory=dict)
    also: list[Setting] = field(default_factory=list)


def load(name: str, text: str, include: Include, here: AbstractSet[str]) -> Source:
    """What an ipsec.conf and the files it includes say to the host with the addresses `here`; raises
    `Unreadable`."""
    source = Source()
    sections: dict[str, _Section] = {}
    _read(name, text, include, Budget(), source, sections, 0)
    if len(sections) > MOST_CONNECTIONS:
        raise Unreadable(f"{name}: more than {MOST_CONNECTIONS} sections")
    defaults = sections.pop("%default", _Section(Place(name, 1)))
    templates = {one.text for section in sections.values() for one in section.also}
    for title, section in sections.items():
        values = defaults.values | _with_others(title, sections)
        if "auto" not in values and title in templates:
            continue  # only there to be taken in
        source.children.append(_child(source, title, section.place, values, here))
    source.findings = list(dict.fromkeys(source.findings))  # what several sections took in is listed once
    return source


def _with_others(title: str, sections: Mapping[str, _Section]) -> dict[str, Setting]:
    """A section's values and, below them, those of the sections it takes in, each once."""
    values: dict[str, Setting] = {}
    pending = [Setting(title, sections[title].place)]
    taken: set[str] = set()
    while pending:
        one = pending.pop(0)
        if one.text not in sections:
            raise Unreadable(f"{one.place}: there is no section conn {one.text}")
        if one.text not in taken:
            taken.add(one.text)
            values = sections[one.text].values | values
            pending += sections[one.text].also
    return values


def _child(
    source: Source, title: str, place: Place, values: Mapping[str, Setting], here: AbstractSet[str]
) -> Child:
    """A section as seen from this host."""
    sides = ("left", "right")
    ends = [set(listed(values[side].text)) if side in values else set() for side in sides]
    if ends[1] & here and not ends[0] & here:
        sides = ("right", "left")
    found: dict[str, Setting] = {}
    protoports: dict[str, Setting] = {}
    for key, value in values.items():
        name = key
        for ours, side in zip(("local", "remote"), sides, strict=True):
            name = ours + key.removeprefix(side) if key.startswith(side) else name
        if name not in _NAMES:
            source.left_out(value.place, key, value.text)
        elif name.endswith("protoport"):
            protoports[name.removesuffix("protoport")] = value
        elif _NAMES[name]:
            found[_NAMES[name]] = Setting(_VALUES.get(name, {}).get(value.text, value.text), value.place)
    _authentication(values, found)
    for side, value in protoports.items():
        ends_of = found.get(f"{side}_ts", Setting("dynamic", value.place))
        number, _, port = value.text.partition("/")
        service = f"{number}/{port}" if port else number
        found[f"{side}_ts"] = Setting(
            ", ".join(one if "[" in one else f"{one}[{service}]" for one in listed(ends_of.text)),
            value.place,
        )
    named = found.keys() & {"remote_id", "pinned"}  # a certificate's own name, which is not known here
    if not named and found.get("remote", Setting("%any", place)).text[:1] != "%":
        found["remote_id"] = found["remote"]  # the default of rightid
    enabled = values.get("auto", Setting("ignore", place)).text != "ignore"
    if not enabled:
        source.note(place, f"conn {title}: auto is ignore, so that the rule is not enabled")
        found.pop("start", None)
    return Child(title, place, found, enabled)


def _authentication(values: Mapping[str, Setting], found: dict[str, Setting]) -> None:
    """authby says for both ends what leftauth and rightauth say for each."""
    if both := values.get("authby"):
        text = _AUTHBY.get(both.text, both.text)
        for end in ("local_auth", "remote_auth"):
            found.setdefault(end, Setting(text, both.place))
    for end in ("local_auth", "remote_auth"):
        if end in found and found[end].text == "secret":
            found[end] = Setting("psk", found[end].place)


# Lines ------------------------------------------------------------------------------------------------------


def _lines(name: str, text: str, budget: Budget) -> Iterator[tuple[Place, bool, str]]:
    """Lines without comments, and whether each is indented."""
    for number, line in enumerate(text.splitlines(), 1):
        plain = _uncommented(line).rstrip()
        if plain.strip():
            place = Place(name, number)
            budget.spend(place)
            yield place, plain[0].isspace(), plain.strip()


def _uncommented(line: str) -> str:
    """A comment begins with # at the beginning or after a blank, and not in quotes."""
    quote = ""
    for position, one in enumerate(line):
        if one == quote:
            quote = ""
        elif not quote and one in "\"'":
            quote = one
        elif not quote and one == "#" and (position == 0 or line[position - 1].isspace()):
            return line[:position]
    return line


def _read(
    name: str,
    text: str,
    include: Include,
    budget: Budget,
    source: Source,
    sections: dict[str, _Section],
    depth: int,
) -> None:
    section: _Section | None = None  # a ca, config or unknown one is None: what it has is not ours
    for place, indented, line in _lines(name, text, budget):
        first, _, rest = line.partition(" ")
        if indented:
            if section is not None:
                _parameter(source, section, place, line)
        elif first == "include":
            section = None
            if depth >= DEEPEST:
                raise Unreadable(f"{place}: more than {DEEPEST} files inside each other")
            for other, more in include(rest.strip().strip('"'), place):
                _read(other, more, include, budget, source, sections, depth + 1)
        elif (head := _HEAD.fullmatch(line)) and head[1] == "conn":
            section = sections.setdefault(head[2], _Section(place))
        elif head:
            section = None
            if head[1] == "ca":
                source.note(place, f"ca {head[2]}: name its certificate as identity.trust in ikd.toml")
        elif first == "version":
            section = None
        else:
            raise Unreadable(f"{place}: neither a section (conn NAME) nor a parameter, which is indented")


def _parameter(source: Source, section: _Section, place: Place, line: str) -> None:
    found = _PARAMETER.fullmatch(line)
    if not found:
        raise Unreadable(f"{place}: this is no parameter, such as left=192.0.2.1")
    key, text = found[1], found[2]
    if text[:1] == '"':
        if len(text) < 2 or text[-1] != '"':
            raise Unreadable(f"{place}: the text in quotes does not end")
        text = text[1:-1]
    if key == "also":
        section.also.append(Setting(text, place))
    elif text:
        section.values[key] = Setting(text, place)


def load_secrets(name: str, text: str, include: Include, source: Source, depth: int = 0) -> None:
    """Add what an ipsec.secrets says; raises `Unreadable`."""
    for place, _, line in _lines(name, text, Budget()):
        if line.startswith("include "):
            if depth >= DEEPEST:
                raise Unreadable(f"{place}: more than {DEEPEST} files inside each other")
            for other, more in include(line.partition(" ")[2].strip().strip('"'), place):
                load_secrets(other, more, include, source, depth + 1)
            continue
        found = _SECRET.fullmatch(line)
        if not found or not found[3]:
            source.note(place, 'this is no secret, such as: vpn.example : PSK "..."')
        elif found[2].upper() != "PSK":
            source.note(place, f"a secret of type {found[2]}: only PSK is translated")
        else:
            key = found[3].strip()
            if key[:1] in ("'", '"') and key[-1:] == key[:1] and len(key) > 1:
                key = key[1:-1]
            source.keys.append(SharedKey(place, tuple((found[1] or "").split()), key))
