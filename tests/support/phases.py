"""Two hosts that speak IKEv1, on the link of `support.link`, and messages that only one of them can make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from support import certificates
from support.link import (
    BOTH,
    LEFT,
    NAT,
    POSIX,
    RIGHT,
    Host,
    Link,
    host,
    mirrored,
    psk,
    tunnel_hosts,
)

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.auth.identity import Identity
from ikd.ikev1 import informational
from ikd.ikev1.association import Ikev1Association
from ikd.ikev1.message import Message
from ikd.pki import Pair
from ikd.wire.isakmp import Payload

RULE = 'keying = ["ikev1"]\ncrypto = "old"\n'
AGGRESSIVE = "aggressive = true\n"


def sets(**keys: str) -> str:
    """The crypto set `old`, with other values where they are given."""
    given = {"main": '["p256 aes128 sha256"]', "quick": '["aes128 sha256"]', "esn": "false"} | keys
    return "[crypto.old]\n" + "".join(f"{key} = {value}\n" for key, value in given.items())


def hosts(*, left_rule: str = "", right_rule: str = "", crypto: str = "", **how: Any) -> tuple[Host, Host]:
    """`tunnel_hosts` whose rules are for IKEv1 with the crypto set `crypto`."""
    crypto = crypto or sets()
    return tunnel_hosts(left_rule=RULE + left_rule, right_rule=RULE + right_rule, sets=crypto, **how)


def connected(**how: Any) -> Link:
    """Two hosts with the tunnel `net` up by IKEv1, and everything quiet."""
    nat = how.get("nat", "")
    link = Link(*hosts(**how), nat=nat)
    link.up("net", nat or "left")
    link.run(1)
    assert mirrored(link.left, link.right)
    return link


def main_mode(one: Host) -> Ikev1Association:
    """The newest ISAKMP SA of a host."""
    found = one.ikes[-1]
    assert isinstance(found, Ikev1Association)
    return found


def sealed(one: Host, message: Message) -> bytes:
    """The datagram of a message, as this host would protect it."""
    channel = main_mode(one).session.channel
    iv = channel.iv_of(message.message_id) if message.message_id else channel.start_iv
    return channel.seal(message, iv if message.encrypted else b"")[0]


def informed(one: Host, *payloads: Payload, number: int = 0x01020304) -> bytes:
    """The datagram of an informational message of this host."""
    return sealed(one, informational.sealed(main_mode(one).session, number, payloads))


def read(receiver: Host, data: bytes, message_id: int | None = None) -> Message:
    """What is in the first message of an exchange, or an informational one."""
    from ikd.wire.isakmp import Header

    header = Header.decode(data)
    channel = main_mode(receiver).session.channel
    return channel.open(header, data, channel.iv_of(header.message_id))[0]


# Certificates -----------------------------------------------------------------------------------------------


@cache
def authority(name: str = "CN=Lab CA") -> Pair:
    """An authority that is valid at the laboratory's time."""
    return pki.make_ca(name, POSIX - 3600, key=certificates.key("ecdsa-p256", len(name)))


@cache
def certified(
    name: str,
    kind: str = "ecdsa-p256",
    ca: str = "CN=Lab CA",
    start: float = POSIX - 3600,
    more: Sequence[str] = (),
) -> Material:
    """Credentials of a host with a certificate for NAME.example and `more` names."""
    full = f"{name}.example"
    pair = pki.issue(authority(ca), f"CN={full}", [full, *more], now=start, key=certificates.key(kind))
    own = HostCertificate((pair.certificate,), pair.key)
    return Material(Identity.parse(full), hosts=(own,), anchors=(authority(ca).certificate,))


def large(name: str) -> Material:
    """Credentials with a certificate of about five thousand octets."""
    return certified(name, more=tuple(f"filler-{n:02}.{'x' * 50}.example" for n in range(70)))


def both(left: Material, right: Material) -> dict[str, Material]:
    """As keywords of `hosts`."""
    return {"left": left, "right": right}


def without_identity(material: Material) -> Material:
    """The same, known by address only."""
    return replace(material, identity=None)


ORDERS = pytest.mark.parametrize("first", BOTH)
ENDS = """
[[rule]]
name = "host"
local = "{local}"
remote = "{remote}"
security = "require"
auth = "machine"
keying = ["{keying}"]
crypto = "old"
{extra}
[auth.machine]
first = ["{method}"]
"""


def shared(name: str) -> Material:
    """Credentials of `left` or `right` with the key that both have."""
    return psk(f"{name}.example", "right.example" if name == "left" else "left.example")


def ends(
    left: str = "",
    right: str = "",
    *,
    nat: str = "",
    keying: str = "ikev1",
    material: Callable[[str], Material] = shared,
    **keys: str,
) -> Link:
    """Two hosts with the rule `host` in transport mode for the traffic between them; `left` and `right` are
    lines of its two sides, `material` makes the credentials of each."""
    made = []
    for name, lines, own, other in (("left", left, LEFT, RIGHT), ("right", right, RIGHT, LEFT)):
        seen = NAT if nat == ("right" if name == "left" else "left") else other
        found = material(name)
        method = "psk" if found.keys else "certificate"
        rules = ENDS.format(local=own, remote=seen, keying=keying, method=method, extra=lines)
        made.append(host(name, own, rules + sets(**keys), found))
    return Link(*made, nat=nat)


def lives(one: Host) -> tuple[float | None, int | None]:
    """The hard limits of a host's pair."""
    limits = one.pairs[0].inbound.lifetime
    return limits.hard_seconds, limits.hard_octets


def rule_of(one: Host) -> Any:
    """The rule `net` of a host."""
    return one.endpoint.policy.rule("net")
