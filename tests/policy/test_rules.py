"""What rules say of themselves."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.policies import one

HERE, THERE, OTHER = map(ip_address, ("192.0.2.1", "198.51.100.7", "203.0.113.9"))
INNER = 'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\n'


@pytest.mark.parametrize(
    ("keys", "secures"),
    [
        ('security = "require"', True),
        ('inbound = "request"\noutbound = "none"', True),
        ('security = "none"', False),
        ('action = "permit"', False),
        ('action = "block"', False),
    ],
)
def test_secures(keys: str, secures: bool) -> None:
    """Whether anything is negotiated for it."""
    assert one(keys).secures is secures


@pytest.mark.parametrize(
    ("keys", "peer", "covers"),
    [
        ('remote = "198.51.100.0/24"', THERE, True),
        ('remote = "198.51.100.0/24"', OTHER, False),
        ('local = "192.0.2.2"\nremote = "any"', THERE, False),
        (f'{INNER}tunnel = {{ local = "192.0.2.1", remote = "198.51.100.7" }}', THERE, True),
        (f'{INNER}tunnel = {{ local = "192.0.2.1", remote = "198.51.100.7" }}', OTHER, False),
        (f'{INNER}tunnel = {{ local = "192.0.2.2", remote = "any" }}', THERE, False),
        (f'{INNER}tunnel = {{ remote = "any" }}', OTHER, True),
        (f'{INNER}tunnel = {{ remote = "vpn.example" }}', THERE, False),
    ],
)
def test_covers_peer(keys: str, peer: object, covers: bool) -> None:
    """A peer that is covered by mistake may try its credentials on a rule that is not about it."""
    assert one(keys).covers_peer(HERE, peer) is covers  # type: ignore[arg-type]
