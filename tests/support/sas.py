"""Builders for the vocabulary of `sadb`, and the published vectors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from sadb.algorithms import ENCRYPTION_BY_NAME, QuickSuite, SecurityProtocol
from sadb.sa import Lifetime, Mode, SaPair, SecurityAssociation
from sadb.secret import Secret
from sadb.selector import Selector, TrafficSelector

LOCAL = ip_address("192.0.2.1")
PEER = ip_address("192.0.2.2")
SUITE = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128gcm"])
KEY, NONE = Secret(bytes(20)), Secret(b"")

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


def vectors(name: str) -> list[dict[str, Any]]:
    """The cases of a file in `tests/vectors`."""
    cases: list[dict[str, Any]] = json.loads((VECTORS / name).read_text(encoding="utf-8"))["cases"]
    return cases


def hexed(case: dict[str, Any], *names: str) -> list[bytes]:
    """Octet strings of a case."""
    return [bytes.fromhex(case[name]) for name in names]


def selectors(*texts: str) -> tuple[TrafficSelector, ...]:
    """Prefixes, single addresses and ranges ("low-high") as selectors of any protocol and port."""
    found = []
    for text in texts:
        low, _, high = text.partition("-")
        if high:
            found.append(TrafficSelector(ip_address(low), ip_address(high)))
        else:
            found.append(TrafficSelector.of(ip_network(low)))
    return tuple(found)


def pair(
    spi: int,
    *,
    rule: str = "db",
    owner: int = 1,
    outbound_spi: int | None = None,
    selector: Selector | None = None,
    lifetime: Lifetime | None = None,
    mode: Mode = Mode.TUNNEL,
) -> SaPair:
    """A pair between two hosts; the outbound SPI is one more than the inbound one unless given."""
    selector = selector or Selector(selectors(str(LOCAL)), selectors(str(PEER)))
    lifetime = lifetime or Lifetime()

    def one(number: int, *, inbound: bool) -> SecurityAssociation:
        source, destination = (PEER, LOCAL) if inbound else (LOCAL, PEER)
        return SecurityAssociation(
            number,
            SUITE,
            mode,
            source,
            destination,
            selector,
            KEY,
            NONE,
            inbound,
            lifetime=lifetime,
        )

    second = spi + 1 if outbound_spi is None else outbound_spi
    return SaPair(one(spi, inbound=True), one(second, inbound=False), selector, mode, rule, owner)


def counting(first: int = 0x1000) -> Callable[[int], bytes]:
    """A source of octets that counts: four octets are the numbers from `first`, fewer are zero."""
    numbers = itertools.count(first)
    return lambda size: next(numbers).to_bytes(size, "big") if size >= 4 else bytes(size)
