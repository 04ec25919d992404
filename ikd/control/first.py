"""The first configuration of a host, as text: what `ikctl init` writes for one connection with one peer.

`Plan` has the answers, `documents` makes the files of them, and `Plan.mirrored` is the plan of the other
host.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from ikd.control import toml

PSK, CERTIFICATE = "psk", "certificate"
HOST, KEY, CA = "pki/host.pem", "pki/host.key", "pki/ca.pem"

_IKD = """\
# The daemon itself: where it listens, what moves packets, who this host is. docs/settings.md has every key
# and its default; rules are in policy.toml.

"""
_POLICY = """\
# What must be protected, how and with whom. docs/policy.md has every key and its default. Check changes with
# `ikctl policy check`, apply them with `ikctl reload`.

"""
_SECRETS = """\
# Keys that two hosts share. Whoever reads this file can be either of them: mode 0600.

"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One connection. Addresses and networks as text; names are the identities both ends prove."""

    local: str
    peer: str
    auth: str
    name: str = ""
    peer_name: str = ""
    local_nets: tuple[str, ...] = ()
    remote_nets: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Who this host is: its name, else its address."""
        return self.name or self.local

    @property
    def peer_identity(self) -> str:
        """Who the other end must prove to be."""
        return self.peer_name or self.peer

    def mirrored(self) -> Plan:
        """The same connection as the other host has it. One that is called by a name finds its address."""
        named = not is_address(self.peer)
        return Plan(
            local="" if named else self.peer,
            peer=self.local,
            auth=self.auth,
            name=self.peer_name or (self.peer if named else ""),
            peer_name=self.name,
            local_nets=self.remote_nets,
            remote_nets=self.local_nets,
        )

    def command(self, *more: str) -> str:
        """The `ikctl init` that makes this plan without asking, for a shell."""
        flags = [("--peer", self.peer), ("--auth", self.auth)]
        flags += [("--local", self.local)] if self.local else []
        flags += [("--name", self.name)] if self.name else []
        flags += [("--peer-name", self.peer_name)] if self.peer_name else []
        flags += [("--local-net", one) for one in self.local_nets]
        flags += [("--remote-net", one) for one in self.remote_nets]
        return shlex.join(["ikctl", "init", *(word for flag in flags for word in flag), *more])


def documents(plan: Plan, secret: str = "") -> Mapping[str, str]:
    """The files by name. `secret` is the pre-shared key of a plan that has one."""
    identity: dict[str, toml.Value] = {"id": plan.identity}
    if plan.auth == CERTIFICATE:
        identity |= {"certificate": HOST, "key": KEY, "trust": [CA]}
    found = {
        "ikd.toml": _IKD + toml.table("[identity]", identity),
        "policy.toml": _POLICY
        + toml.table("[[rule]]", _rule(plan))
        + "\n"
        + toml.table(f"[auth.{plan.auth}]", {"first": [plan.auth]}),
    }
    if plan.auth == PSK:
        entry = {"peers": [plan.peer_identity], "secret": secret}
        found["secrets.toml"] = _SECRETS + toml.table("[[psk]]", entry)
    return found


def _rule(plan: Plan) -> Mapping[str, toml.Value]:
    rule: dict[str, toml.Value] = {"name": plan.peer_identity}
    if plan.local_nets:
        rule |= {
            "local": plan.local_nets,
            "remote": plan.remote_nets,
            "tunnel": {"local": plan.local, "remote": plan.peer},
        }
    else:
        rule["remote"] = plan.peer
    return rule | {"security": "require", "auth": plan.auth, "peer": plan.peer_identity}


def is_address(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
