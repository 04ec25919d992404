"""Short ways to make policies, rules and packets in the tests of `policy`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import strategies as st

from policy.engine import Policy
from policy.load import PolicyError, parse
from policy.parse import Keywords
from policy.rules import Rule
from sadb.sa import Action, Level, Mode
from sadb.selector import TCP, UDP, Fields, Selector, TrafficSelector


def policy(*rules: str, sets: str = "", keywords: Keywords | None = None) -> Policy:
    """A policy from the keys of each rule; a rule without a name is called r1, r2, ..."""
    return parse(sets + "".join(map(table, rules, range(1, len(rules) + 1))), "policy.toml", keywords)


def table(keys: str, number: int = 1) -> str:
    """One `[[rule]]`."""
    name = "" if keys.startswith("name") or "\nname" in keys else f'name = "r{number}"\n'
    return f"\n[[rule]]\n{name}{keys}\n"


def one(keys: str, sets: str = "") -> Rule:
    """The rule with these keys."""
    return policy(keys, sets=sets).rules[0]


def complaints(text: str) -> tuple[str, ...]:
    """Everything that is wrong with a file."""
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return caught.value.complaints


def complaint(keys: str, sets: str = "") -> str:
    """The one thing that is wrong with a rule of these keys, named r1."""
    found = complaints(table(keys) + sets)
    assert len(found) == 1, found
    return found[0]


def packet(
    source: str,
    destination: str,
    port: int | None = None,
    protocol: int = TCP,
    source_port: int | None = 40000,
) -> Fields:
    """What classification sees of a packet to `port`."""
    return Fields(ip_address(source), ip_address(destination), protocol, source_port, port)


# Random ones ------------------------------------------------------------------------------------------------

ADDRESSES = st.sampled_from([*map(IPv4Address, range(0x0A000000, 0x0A000010))]) | st.sampled_from(
    [*map(IPv6Address, range(0x20010DB8 << 96, (0x20010DB8 << 96) + 16))]
)
PORTS = st.integers(0, 5)


@st.composite
def selectors(draw: st.DrawFn) -> Selector:
    """Overlapping ranges within sixteen addresses of each family, with few protocols and ports."""
    protocol = draw(st.sampled_from([0, TCP, UDP]))

    def side() -> tuple[TrafficSelector, ...]:
        found = []
        for _ in range(draw(st.integers(1, 2))):
            low, high = sorted((draw(ADDRESSES), draw(ADDRESSES)), key=lambda a: (a.version, int(a)))
            if low.version != high.version:
                high = low
            if draw(st.booleans()):
                bits = low.max_prefixlen
                low, high = type(low)(0), type(low)((1 << bits) - 1)
            ports = (0, 65535)
            if protocol and draw(st.booleans()):
                first, last = sorted((draw(PORTS), draw(PORTS)))
                ports = (first, last)
            found.append(TrafficSelector(low, high, protocol, ports))
        return tuple(found)

    return Selector(side(), side())


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Random rules with unique names."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        levels = draw(st.sampled_from([(Level.REQUIRE, Level.REQUIRE), (Level.REQUEST, Level.REQUEST)]))
        found.append(
            Rule(
                f"r{number}",
                draw(selectors()),
                action=draw(st.sampled_from(Action)),
                mode=draw(st.sampled_from(Mode)),
                inbound=levels[0],
                outbound=levels[1],
                enabled=draw(st.booleans()) or draw(st.booleans()),
            )
        )
    return Policy(found)


@st.composite
def packets(draw: st.DrawFn) -> Fields:
    """Packets within the same addresses, sometimes without visible ports."""
    source = draw(ADDRESSES)
    destination = draw(ADDRESSES.filter(lambda a: a.version == source.version))
    port = st.none() | PORTS
    return Fields(source, destination, draw(st.sampled_from([TCP, UDP, 47])), draw(port), draw(port))
