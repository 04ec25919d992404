"""Two hosts that speak AuthIP, on the link of `support.link`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from support import certificates
from support.link import POSIX, Host, Link, mirrored, tunnel_hosts
from support.phases import authority, certified, sets

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.authip.association import AuthipAssociation
from ikd.authip.message import Message, sealed
from ikd.authip.numbers import CRYPTO, Exchange
from ikd.authip.payloads import PAYLOADS, GssApi
from ikd.authip.profile import PROFILES
from ikd.wire.isakmp import HEADER_SIZE, Body, Header, Payload, chain, encode_chain

RULE = 'keying = ["authip"]\ncrypto = "old"\n'
CERTIFICATE = '[auth.machine]\nfirst = ["certificate"]\n'
EXTENDED = CERTIFICATE + 'second = [{ method = "certificate", health = true }]\n'


def hosts(
    *, left_rule: str = "", right_rule: str = "", crypto: str = "", auth: str = CERTIFICATE, **how: Any
) -> tuple[Host, Host]:
    """`tunnel_hosts` whose rules are for AuthIP with the authentication set `machine` out of `auth`, and
    certificates."""
    how = {"left": certified("left"), "right": certified("right"), "sets": ""} | how
    tables = "\n".join((crypto or sets(), auth, how.pop("sets")))
    return tunnel_hosts(
        left_rule=RULE + left_rule, right_rule=RULE + right_rule, auth="machine", sets=tables, **how
    )


def connected(**how: Any) -> Link:
    """Two hosts with the tunnel `net` up by AuthIP, and everything quiet."""
    nat = how.get("nat", "")
    link = Link(*hosts(**how), nat=nat)
    link.up("net", nat or "left")
    link.run(1)
    assert mirrored(link.left, link.right)
    return link


def main_mode(one: Host) -> AuthipAssociation:
    """The newest main-mode SA of a host."""
    found = one.ikes[-1]
    assert isinstance(found, AuthipAssociation)
    return found


@cache
def well(name: str) -> Material:
    """Credentials with a health certificate beside the machine's."""
    full = f"{name}.example"
    key = certificates.key("ecdsa-p256", 7)
    pair = pki.issue(authority(), f"CN={full}", [full], now=POSIX, days=1, key=key, eku=("health",))
    machine = certified(name)
    return replace(machine, hosts=(*machine.hosts, HostCertificate((pair.certificate,), pair.key)))


# Users, and messages that only one of the hosts can make ---------------------------------------------------

USER = CERTIFICATE + 'second = ["user-certificate"]\n'


@cache
def person(name: str, ca: str = "CN=Lab CA", user_ca: str = "CN=Lab CA") -> Material:
    """Credentials of a host with a certificate, and of its user."""
    pair = pki.issue(
        authority(user_ca),
        "CN=clerk",
        ["clerk@corp.example"],
        now=POSIX - 3600,
        key=certificates.key("ecdsa-p256", 3),
    )
    return replace(certified(name, ca=ca), user=HostCertificate((pair.certificate,), pair.key))


def with_users(**how: Any) -> tuple[Host, Host]:
    """`hosts` whose rules ask for a machine's certificate and then for a user's."""
    return hosts(**{"auth": USER, "left": person("left"), "right": person("right")} | how)


MAKERS: dict[str, Callable[..., tuple[Host, Host]]] = {"main": hosts, "extended": with_users}


def reading(monkeypatch: pytest.MonkeyPatch, name: str = "windows-2012", **fields: Any) -> None:
    """From now on hosts with a profile read the specification in another way."""
    monkeypatch.setitem(PROFILES, name, replace(PROFILES[name], **fields))


def datagram(one: Host, message: Message) -> bytes:
    """The datagram of a message, as this host would make it."""
    return main_mode(one).session.channel.seal(message)[0]


def notice(one: Host, *payloads: Payload, number: int = 0x01020304, sequence: int = 1000) -> bytes:
    """The datagram of an encrypted notify of this host."""
    return datagram(one, replace(sealed(Exchange.NOTIFY, number, *payloads), sequence=sequence))


def read(one: Host, data: bytes) -> Message:
    """What is in a datagram that this host can decrypt."""
    return main_mode(one).session.channel.open(Header.decode(data), data)


def rewritten(data: bytes, change: Callable[[list[Body]], Sequence[Body]]) -> bytes:
    """A message in the clear with other payloads behind its CRYPTO payload."""
    header = Header.decode(data)
    assert not header.flags & 1
    assert header.next_payload == CRYPTO
    size = int.from_bytes(data[HEADER_SIZE + 2 : HEADER_SIZE + 4], "big")
    crypto, rest = data[HEADER_SIZE : HEADER_SIZE + size], data[HEADER_SIZE + size :]
    payloads, _ = chain(crypto[0], rest, PAYLOADS)
    kind, octets = encode_chain(change(payloads))
    head = replace(header, length=HEADER_SIZE + size + len(octets))
    return head.encode() + bytes((kind,)) + crypto[1:] + octets


def token_in(data: bytes) -> GssApi | None:
    """The token of a message in the clear, if it has one."""
    found: list[GssApi] = []

    def look(payloads: list[Body]) -> list[Body]:
        found.extend(one for one in payloads if isinstance(one, GssApi))
        return payloads

    header = Header.decode(data)
    if header.next_payload == CRYPTO and not header.flags & 1:
        rewritten(data, look)
    return found[0] if found else None


def with_token(data: bytes, change: Callable[[GssApi], GssApi]) -> bytes:
    """A message in the clear with another token."""
    return rewritten(data, lambda every: [change(one) if isinstance(one, GssApi) else one for one in every])
