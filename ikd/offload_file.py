"""Shell. `offload.toml`: the adapter and the ports that share it, read and written.

`ikctl offload` changes ports while the daemon runs; what it sets is written back, whole and in one step, so
that a crash leaves either the former file or the new one. A daemon that may not write its configuration, as
under systemd, has a copy in its state directory instead, which counts until somebody changes the file.
Reading is strict: every complaint is reported at once, each with its file, line, key and remedy.
"""

from __future__ import annotations

import errno
import re
import tomllib
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ikd import atomic
from ikd.settings import SettingsError
from offload.nic.capabilities import PROFILES
from offload.switch.ports import HOST, LIMIT, SETTABLE, WEIGHT, Port, PortError, Ports
from policy.position import Place, positions
from policy.schema import Key, Table
from policy.section import Notes, Section

FILE: Final = "offload.toml"

_HEAD: Final = """\
# Written by ikd: ikctl offload set-port, enable and disable change it. Comments are lost when they do.
"""
_INSTEAD: Final = "# Instead of offload.toml with the SHA-256 "
_READ_ONLY: Final = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_TRUTH: Final = "true or false"
_COUNT: Final = "a whole number of SAs"
_MODES: Final = {"crypto": False, "packet": True}

_FILE: Final = Table(
    "offload.toml",
    (
        Key("adapter", (dict,), "a table: `[adapter]`", "required", "The adapter."),
        Key("port", (dict,), "tables: `[port.NAME]`", "the host's own", "Ports by name."),
    ),
)
_ADAPTER: Final = Table(
    "[adapter]",
    (
        Key("profile", (str,), "the name of a profile", "required", "Which adapter it is.", tuple(PROFILES)),
        Key("enabled", (bool,), _TRUTH, "true", "Whether it carries SAs at all."),
        Key("mode", (str,), "a mode", "crypto", "Who numbers packets and checks replay.", tuple(_MODES)),
        Key("resend_lost", (bool,), _TRUTH, "true", "Whether packets that it loses leave again."),
    ),
)
_PORT: Final = Table(
    "a port",
    (
        Key("limit", (int,), _COUNT, str(LIMIT), "Most SAs offloaded; 0 for none."),
        Key("reserve", (int,), _COUNT, "0", "Slots nobody else may fill."),
        Key("weight", (int,), "a whole number from 0 to 100", str(WEIGHT), "How much its traffic counts."),
        Key("trusted", (bool,), _TRUTH, "true", "Whether outbound SAs may be offloaded."),
        Key("exclusive", (bool,), _TRUTH, "false", "Whether it takes slots of ports that are not."),
    ),
)


def parse(text: str, name: str = FILE) -> Ports:
    """The ports of a file, with the adapter's capabilities; raises `SettingsError` with every complaint."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError((f"{name}: not TOML: {error}",)) from None
    notes = Notes()
    file = Section(Place(name, positions(text)), _FILE, values, notes)
    ports = _adapter(file)
    found: dict[str, Any] = file.get("port", {})
    for port, content in found.items():
        place = file.place.key("port").key(port)
        if isinstance(content, dict):
            _port(Section(place, _PORT, content, notes), port, ports)
        else:
            notes.complaints.append(f"{place}: a port is a table: write [port.{port}] above its keys")
    if notes.complaints:
        raise SettingsError(tuple(notes.complaints))
    return ports


def _adapter(file: Section) -> Ports:
    """The switch of the adapter; where none is named that there is, of one on which everything fits."""
    adapter = file.sub("adapter", _ADAPTER)
    profile, enabled, mode, resend = "ideal", True, "crypto", True
    if adapter is not None:
        profile, enabled = adapter.get("profile", profile), adapter.get("enabled", enabled)
        mode, resend = adapter.get("mode", mode), adapter.get("resend_lost", resend)
        if _MODES[mode] and not PROFILES[profile].packet_mode:
            able = ", ".join(name for name, one in PROFILES.items() if one.packet_mode)
            why = f"the {profile} knows crypto mode only; remove the key, or name the profile {able}"
            adapter.complain("mode", why)
        if "profile" not in adapter and "profile" not in adapter.bad:
            adapter.complain("profile", f"missing; name one of {', '.join(PROFILES)}")
    elif "adapter" not in file.bad:
        file.complain("adapter", "missing; write [adapter] with its profile, or remove the file")
    return Ports(PROFILES[profile], enabled=enabled, packet_mode=_MODES[mode], resend_lost=resend)


def _port(section: Section, name: str, ports: Ports) -> None:
    wanted = {key: section.values[key] for key in SETTABLE if key in section and key not in section.bad}
    try:
        if name == HOST:
            ports.change(name, **wanted)
        else:
            ports.attach(name, **wanted)
    except PortError as error:
        section.complain(error.key or None, str(error))


def render(ports: Ports) -> str:
    """The file's text: what differs from its default, for each port."""
    lines = [
        _HEAD,
        "[adapter]",
        f'profile = "{ports.capabilities.name}"',
        f"enabled = {_value(ports.enabled)}",
        *(['mode = "packet"'] if ports.packet_mode else []),
        *(["resend_lost = false"] if not ports.resend_lost else []),
    ]
    for port in ports:
        # a name has no character that would have to be escaped
        usual, name = Port(port.name), port.name if _BARE.fullmatch(port.name) else f'"{port.name}"'
        changed = [key for key in SETTABLE if getattr(port, key) != getattr(usual, key)]
        lines += ["", f"[port.{name}]", *(f"{key} = {_value(getattr(port, key))}" for key in changed)]
    return "\n".join(lines) + "\n"


def _value(value: bool | int) -> str:
    return str(value).lower()


def load(directory: Path, state: Path) -> Ports | None:
    """The ports of a configuration directory, as they were last changed; None where it has no such file and
    this host no adapter. Raises `SettingsError`."""
    path = directory / FILE
    try:
        octets = path.read_bytes()
        text = octets.decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError((f"{path}: cannot be read: {error}",)) from None
    with suppress(
        OSError, ValueError, SettingsError
    ):  # what we have written ourselves is whole, or not there
        first, _, kept = (state / FILE).read_text(encoding="utf-8").partition("\n")
        if first == _instead(octets):
            return parse(kept, str(state / FILE))
    return parse(text, str(path))


def save(directory: Path, state: Path, ports: Ports) -> None:
    """Replace the file in one step; its mode stays. Where that is not allowed, keep a copy in the state
    directory instead. Raises `OSError`, and then what was there is."""
    path, text = directory / FILE, render(ports)
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        atomic.replace(path, text.encode(), mode)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        atomic.replace(state / FILE, f"{_instead(path.read_bytes())}\n{text}".encode(), 0o600)


def _instead(octets: bytes) -> str:
    """The first line of a copy, which says of what."""
    return _INSTEAD + sha256(octets).hexdigest()
