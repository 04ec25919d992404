"""Shell. Reads a whole configuration directory: settings, policy, secrets and certificates, all or nothing.

Every complaint of every file is collected, so that one attempt shows all that has to be mended. The daemon's
start, its reload and `ikctl check` are this one function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ikd import network
from ikd.auth.credentials import Material
from ikd.auth.files import MaterialError, load_material
from ikd.events import count
from ikd.offload_file import FILE as PORTS_FILE
from ikd.offload_file import load as load_ports
from ikd.settings import FILE as SETTINGS_FILE
from ikd.settings import IdentitySettings, Settings, SettingsError, options
from ikd.settings import load as load_settings
from offload.switch.ports import Ports
from policy.engine import Policy
from policy.load import PolicyError
from policy.load import load as load_policy
from policy.parse import Keywords

SETTLES: Final = 0.5  # seconds in which files that go together are replaced


_CREDENTIALS: Mapping[str, Callable[[Material], object]] = {
    "anonymous": lambda _: True,
    "certificate": lambda material: material.hosts,
    "kerberos": lambda material: material.keytab,
    "ntlm": lambda material: material.accounts,
    "psk": lambda material: material.keys,
}


class ConfigurationError(Exception):
    """The files cannot be used; `complaints` has one line for each thing that is wrong."""

    def __init__(self, complaints: tuple[str, ...]) -> None:
        super().__init__("\n".join(complaints))
        self.complaints = complaints


@dataclass(frozen=True, slots=True)
class Configuration:
    """All files of a directory. Names of tunnel end points in `policy` may be unresolved."""

    settings: Settings
    policy: Policy
    material: Material
    ports: Ports | None = None  # of an adapter
    postponed: tuple[str, ...] = ()  # what a running daemon cannot change

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works now and should be mended all the same."""
        return (*self._doubts, *self.material.warned(time.time()), *self.postponed)

    @property
    def notes(self) -> tuple[str, ...]:
        """The same without certificates that end, which the daemon tells by an event of their own."""
        return (*self._doubts, *self.material.warnings, *self.postponed)

    @property
    def _doubts(self) -> tuple[str, ...]:
        """Of the policy, alone and with the credentials there are."""
        return (*self.policy.warnings, *unarmed(self.policy, self.material))

    def following(self, running: Settings, policy: Policy) -> Configuration:
        """As a daemon that runs with `running` can take it over: what it has opened stays as it is."""
        wanted = self.settings
        ports = replace(wanted.ike, port=running.ike.port, nat_port=running.ike.nat_port)
        kept = replace(
            wanted, daemon=running.daemon, dataplane=running.dataplane, ike=ports, metrics=running.metrics
        )
        postponed = [
            f"{option.table}.{option.key}: takes effect at the next start"
            for option in options()
            if getattr(getattr(kept, option.section), option.name)
            != getattr(getattr(wanted, option.section), option.name)
        ]
        return Configuration(kept, policy, self.material, self.ports, tuple(postponed) or self.postponed)

    async def resolved(self) -> Configuration:
        """With the addresses of the names that the policy uses."""
        return replace(self, policy=await resolved(self.policy))


def unarmed(policy: Policy, material: Material) -> Iterator[str]:
    """Rules in force by none of whose first methods this host could prove itself; which key or certificate is
    for which peer shows when one negotiates."""
    found: dict[str, list[str]] = {}
    for rule in policy.in_force:
        methods = dict.fromkeys(method.method for method in rule.auth.first) if rule.auth else {}
        if rule.secures and methods and not any(_CREDENTIALS[name](material) for name in methods):
            found.setdefault(", ".join(methods), []).append(rule.name)
    for names, rules in found.items():
        more = f" and {count(len(rules) - 1, 'other')}" if len(rules) > 1 else ""
        yield (
            f'rule "{rules[0]}"{more}: this host has nothing to prove itself with ({names}); '
            "see [identity] of ikd.toml and secrets.toml"
        )


async def resolved(policy: Policy, before: Policy | None = None) -> Policy:
    """A policy with the addresses of its names; a name that has none now keeps the one it had `before`, so
    that a name server that is away ends no SA."""
    if not policy.hosts:
        return policy
    found = dict(await network.resolve(policy.hosts))
    for rule in before.rules if before else ():
        tunnel = rule.tunnel
        if tunnel and tunnel.remote_host and tunnel.remote:
            found.setdefault(tunnel.remote_host, (tunnel.remote,))
            if tunnel.remote in found[tunnel.remote_host]:  # stay with the one in use while it is offered
                others = (one for one in found[tunnel.remote_host] if one != tunnel.remote)
                found[tunnel.remote_host] = (tunnel.remote, *others)
    return policy.resolved(found)


def load(directory: Path) -> Configuration:
    """Everything in a configuration directory; raises `ConfigurationError`."""
    complaints: list[str] = []
    settings, policy, material = Settings(directory), Policy(), Material()
    try:
        settings = load_settings(directory)
    except SettingsError as error:
        complaints += error.complaints
    try:
        policy = load_policy(directory, keywords(directory))
    except PolicyError as error:
        complaints += error.complaints
    try:
        # settings that cannot be read name no certificates: what follows from that is not told
        identity = IdentitySettings() if complaints else settings.identity
        material = _settled(directory, identity, directory / settings.daemon.state)
    except MaterialError as error:
        complaints += error.complaints
    ports = None
    try:
        ports = load_ports(directory, directory / settings.daemon.state)
    except SettingsError as error:
        complaints += error.complaints
    if not complaints:
        complaints += _adapter(settings, ports)
    if complaints:
        raise ConfigurationError(tuple(complaints))
    return Configuration(settings, policy, material, ports)


def _settled(directory: Path, identity: IdentitySettings, state: Path) -> Material:
    """The credentials. Who renews a certificate replaces two files, one after the other: what does not go
    together and has just been changed is read once more. Raises `MaterialError`."""
    try:
        return load_material(directory, identity, time.time(), state)
    except MaterialError:
        if not _is_changing(directory, identity):
            raise
        time.sleep(SETTLES)
        return load_material(directory, identity, time.time(), state)


def _is_changing(directory: Path, identity: IdentitySettings) -> bool:
    """Whether a certificate or a key of ours is as new as that."""
    names = (identity.certificate, identity.key, identity.health_certificate, identity.health_key)
    for name in (*names, identity.user_certificate, identity.user_key):
        with suppress(OSError):
            if name and 0 <= time.time() - (directory / name).stat().st_ctime < SETTLES:
                return True
    return False


def _adapter(settings: Settings, ports: Ports | None) -> list[str]:
    """What is wrong between the settings and the adapter."""
    plane = settings.dataplane
    if plane.backend != "nic" or plane.switch:
        return []
    if ports is None:
        return [
            f'{settings.directory / SETTINGS_FILE}: dataplane.backend: "nic", and no {PORTS_FILE} says which '
            "adapter; write one, or set dataplane.switch in a virtual machine"
        ]
    if ports.packet_mode and plane.engine == "native":
        return [
            f'{settings.directory / PORTS_FILE}: adapter.mode: "packet" needs the engine in Python, and '
            'dataplane.engine is "native"; set that to "auto", or the mode to "crypto"'
        ]
    return []


def keywords(directory: Path) -> Keywords:
    """What address keywords stand for here, looked up only when a policy may use one."""
    from policy.load import read
    from policy.schema import KEYWORDS

    try:
        text = "".join(text for _, text in read(directory)).lower()
    except PolicyError:
        return {}
    return network.keywords() if any(word.lower() in text for word in KEYWORDS) else {}
