"""swanctl.conf: connections, their children, and secrets (swanctl.conf(5))."""

from __future__ import annotations

from collections.abc import Mapping

from ikd.migrate.model import MOST_CONNECTIONS, Child, Include, Setting, SharedKey, Source, Unreadable
from ikd.migrate.settings import Section, read

# names there -> names of `ikd.migrate.rules`; what is in no table is listed as not translated
_CONNECTION = {
    "version": "version", "local_addrs": "local", "remote_addrs": "remote", "proposals": "ike",
    "aggressive": "aggressive", "rekey_time": "ike_time", "vips": "virtual", "pools": "virtual",
}  # fmt: skip
_LOCAL = {"auth": "local_auth", "id": "local_id", "certs": "local_certs"}
_REMOTE = {
    "auth": "remote_auth", "id": "remote_id", "ca_id": "ca", "certs": "pinned", "pubkeys": "pinned",
    "cacerts": "authorities", "groups": "pinned", "cert_policy": "pinned",
}  # fmt: skip
_CHILD = {
    "local_ts": "local_ts", "remote_ts": "remote_ts", "mode": "mode", "esp_proposals": "esp",
    "ah_proposals": "ah", "start_action": "start", "rekey_time": "time", "rekey_bytes": "bytes",
    "rekey_packets": "packets", "inactivity": "idle",
}  # fmt: skip
_SECTIONS = ("connections", "secrets")


def load(name: str, text: str, include: Include) -> Source:
    """What the file and those it includes say; raises `Unreadable`."""
    root, source = read(name, text, include), Source()
    _left_over(source, root, "", {}, _SECTIONS)
    connections = root.section("connections")
    _left_over(source, connections, "connections.", {}, tuple(connections.sections))
    several: dict[str, int] = {}  # names of children, and how many have them
    for section in connections.sections.values():
        for child in section.section("children").sections:
            several[child] = several.get(child, 0) + 1
    if sum(several.values()) > MOST_CONNECTIONS:
        raise Unreadable(f"{name}: more than {MOST_CONNECTIONS} children")
    for title, section in connections.sections.items():
        for child, settings in _children(source, title, section).items():
            label = child if several[child] == 1 else f"{title}-{child}"
            source.children.append(Child(label, section.section("children").section(child).place, settings))
    _secrets(source, root.section("secrets"))
    return source


def _children(source: Source, title: str, section: Section) -> Mapping[str, Mapping[str, Setting]]:
    """The settings of each child, with those of its connection."""
    shared = _renamed(section, _CONNECTION)
    where = f"{title}."
    parts = ("local", "remote")
    known = (*(name for name in section.sections if name.startswith(parts)), "children")
    _left_over(source, section, where, _CONNECTION, known)
    for part, names in zip(parts, (_LOCAL, _REMOTE), strict=True):
        rounds = list(section.all(part))
        for name, one in rounds[:1]:
            shared |= _renamed(one, names)
            _left_over(source, one, f"{where}{name}.", names, ())
        for name, one in rounds[1:]:  # a second authentication: without it anybody with the first gets in
            shared["rounds"] = Setting(f"{where}{name}", one.place)
    children = section.section("children")
    if not children.sections and not section.template:
        source.note(section.place, f"connection {title} has no children: no packets are protected by it")
    _left_over(source, children, f"{where}children.", {}, tuple(children.sections))
    found = {}
    for name, child in children.sections.items():
        _left_over(source, child, f"{where}children.{name}.", _CHILD, ())
        found[name] = shared | _renamed(child, _CHILD)
    return found


def _renamed(section: Section, names: Mapping[str, str]) -> dict[str, Setting]:
    """What is in the table; an empty value stands for the default."""
    return {names[key]: value for key, value in section.values.items() if key in names and value.text}


def _left_over(
    source: Source, section: Section, where: str, known: Mapping[str, str], sections: tuple[str, ...]
) -> None:
    """List what is in no table."""
    for key, value in section.values.items():
        if key not in known:
            source.left_out(value.place, f"{where}{key}", value.text)
    for name, one in section.sections.items():
        if name not in sections and not one.template:
            source.note(one.place, f"{where}{name}: the section is not translated")


def _secrets(source: Source, secrets: Section) -> None:
    for name, section in secrets.sections.items():
        if not name.startswith("ike"):
            source.note(section.place, f"secrets.{name}: only pre-shared keys (ike) are translated")
        elif "secret" not in section.values:
            source.note(section.place, f"secrets.{name}: there is no secret in it")
        else:
            ids = [value.text for key, value in section.values.items() if key.startswith("id")]
            source.keys.append(SharedKey(section.place, tuple(ids), section.values["secret"].text))
