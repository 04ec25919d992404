"""What the keys of one rule may not say together: at least one test for each check."""

from __future__ import annotations

import pytest
from support.policies import complaint, one

from policy.checks import CHECKS

INNER = 'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\n'
TUNNEL = 'tunnel = { local = "192.0.2.1", remote = "198.51.100.7" }\n'

REFUSED = [
    (
        "V1",
        'action = "block"\nencrypt = true',
        'encrypt: a rule with action "block" protects nothing, so it has no enc',
    ),
    ("V1", 'action = "permit"\npeer = "x"', 'peer: a rule with action "permit" protects nothing'),
    ("V1", 'security = "none"\nauth = "default"', 'auth: a rule with security "none" protects nothing'),
    ("V1", f'{INNER}security = "none"\n{TUNNEL}', "tunnel: a rule with"),
    (
        "V2",
        'action = "block"\nsecurity = "require"',
        'security: a level belongs to action "secure"; this rule has',
    ),
    ("V2", 'action = "permit"\ninbound = "none"', 'inbound: a level belongs to action "secure"'),
    (
        "V2",
        'security = "require"\ninbound = "require"',
        "security: it stands for inbound and outbound; write either",
    ),
    ("V2", 'inbound = "require"', "inbound: it needs outbound beside it; or write security for both"),
    ("V2", 'outbound = "require"', "outbound: it needs inbound beside it"),
    (
        "V2",
        'inbound = "request"\noutbound = "require"',
        "inbound: request in with require out does not go together",
    ),
    (
        "V2",
        'inbound = "none"\noutbound = "require"',
        "possible are require in, require out; require in, request out",
    ),
    ("V2", 'inbound = "require"\noutbound = "none"', "does not go together"),
    ("V2", 'inbound = "none"\noutbound = "request"', "does not go together"),
    ("V3", "remote_port = 80", 'remote_port: ports need protocol = "tcp" or protocol = "udp" beside them'),
    ("V3", 'protocol = "icmp"\nlocal_port = 80', "local_port: ports need protocol"),
    (
        "V3",
        'protocol = "tcp"\nremote_port = "80-90"',
        "remote_port: a rule that secures takes single ports, not a",
    ),
    (
        "V4",
        'remote = "224.0.0.1"',
        "remote: 224.0.0.1 to 224.0.0.1 has multicast addresses; multicast is always",
    ),
    ("V4", 'remote = "224.0.0.0/4"', "multicast is always exempt"),
    ("V4", 'remote = "223.0.0.0-230.0.0.0"', "multicast is always exempt"),
    ("V4", 'local = "ff02::1"', "local: ff02::1 to ff02::1 has multicast"),
    (
        "V4",
        'local = "10.0.0.1"\nremote = "2001:db8::1"',
        "remote: local is IPv4 and remote is IPv6; no packet is both",
    ),
    ("V5", f'remote = "10.2.0.0/16"\n{TUNNEL}', "local: missing: a tunnel says what it carries at both ends"),
    ("V5", f'local = "10.2.0.0/16"\n{TUNNEL}', "remote: missing: a tunnel says what it carries at both ends"),
    ("V5", f'{INNER}{TUNNEL}protocol = "tcp"', "protocol: a tunnel carries every protocol; leave it out"),
    ("V5", f'{INNER}{TUNNEL}protocol = "tcp"\nremote_port = 80', "a tunnel carries every protocol"),
    (
        "V5",
        f'{INNER}{TUNNEL}security = "request"',
        'security: a tunnel protects both ways; write security = "require"',
    ),
    (
        "V5",
        f'{INNER}{TUNNEL}inbound = "require"\noutbound = "request"',
        "inbound: a tunnel protects both ways",
    ),
    (
        "V5",
        INNER + 'tunnel = { local = "192.0.2.1", remote = "2001:db8::1" }',
        "tunnel: 192.0.2.1 and 2001:db8::1 are of",
    ),
    ("V5", INNER + 'tunnel = { remote = "224.0.0.1" }', "tunnel: 224.0.0.1 cannot be the end of a tunnel"),
    ("V5", INNER + 'tunnel = { remote = "0.0.0.0" }', "0.0.0.0 cannot be the end of a tunnel"),
    (
        "V5",
        INNER + 'tunnel = { local = "192.0.2.1", remote = "127.0.0.1" }',
        "127.0.0.1 is this machine for every",
    ),
    (
        "V5",
        INNER + 'tunnel = { local = "192.0.2.1", remote = "192.0.2.1" }',
        "tunnel: both ends are 192.0.2.1",
    ),
    (
        "V7",
        f'{INNER}{TUNNEL}allow = {{ machines = "x" }}',
        "allow: allow is for transport mode; with a tunnel say who may",
    ),
    ("V7", f'{INNER}{TUNNEL}deny = {{ machines = "x" }}', "deny: deny is for transport mode"),
    (
        "V14",
        'local = "10.0.0.5"\ninterface = "eth0"\nenabled = false',
        "interface: local and interface do not go together",
    ),
]


@pytest.mark.parametrize(("number", "keys", "said"), REFUSED)
def test_refused(number: str, keys: str, said: str) -> None:
    """One complaint, at the key at fault, with what to do."""
    assert said in complaint(keys)


def test_every_check_is_tried_here() -> None:
    """A new check comes with a line above."""
    assert {check.number for check in CHECKS} == {number for number, _, _ in REFUSED}


@pytest.mark.parametrize(
    "keys",
    [
        'inbound = "require"\noutbound = "require"',
        'inbound = "require"\noutbound = "request"',
        'inbound = "request"\noutbound = "request"',
        'inbound = "request"\noutbound = "none"',
        'inbound = "none"\noutbound = "none"',
        'protocol = "tcp"\nremote_port = [80, "https"]',
        'protocol = "tcp"\nremote_port = "any"',
        'action = "block"\nprotocol = "udp"\nremote_port = "8000-8099"',
        'security = "none"\nprotocol = "udp"\nlocal_port = "8000-8099"',
        'remote = "0.0.0.0/0"',
        'remote = "128.0.0.0/1"',
        'remote = "8000::/1"',
        'remote = "200.0.0.0-255.255.255.255"',
        'local = ["10.0.0.1", "2001:db8::1"]\nremote = "2001:db8::2"',
        f'local = "any"\nremote = "any"\n{TUNNEL}protocol = "any"',
        f'{INNER}{TUNNEL}security = "require"',
        INNER + 'tunnel = { local = "127.0.0.1", remote = "127.0.0.2" }',
        'local = "2001:db8:1::/48"\nremote = "2001:db8:2::/48"\n' + TUNNEL,
    ],
)
def test_accepted(keys: str) -> None:
    """What is not forbidden loads; a check that is too eager takes rules away from people."""
    assert one(keys).name == "r1"


def test_one_mistake_is_not_told_twice() -> None:
    """A level that is no level cannot be said not to go with another."""
    assert 'inbound: "requires" is not one of' in complaint('inbound = "requires"\noutbound = "none"')
    assert "unknown key" in complaint('outbond = "request"\ninbound = "require"')
