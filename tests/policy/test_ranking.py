"""The order in which rules are asked: each criterion by an example."""

from __future__ import annotations

import re
from itertools import combinations, pairwise, permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import packet, policies, policy, table

from policy.engine import Policy
from policy.load import parse
from policy.ranking import TIES, difference, doubts, overlap, rank, service_blocks, specificity

TUNNEL = 'tunnel = { local = "192.0.2.1", remote = "198.51.100.7" }'

# what comes first, what comes after it, and the criterion that tells them apart
ORDER = [
    ('remote = "10.0.0.9"', 'remote = "10.0.0.0/24"', "remote address"),
    ('remote = "10.0.0.0/24"', 'remote = "10.0.0.0/16"', "remote address"),
    ('remote = "10.0.0.0/8"', 'remote = "10.0.0.1-10.0.0.9"', "remote address"),
    ('remote = "10.0.0.1-10.0.0.9"', 'remote = "10.0.0.1-10.0.1.9"', "remote address"),
    ('remote = "10.0.0.1-10.0.0.9"', 'local = "10.0.0.5"', "remote address"),
    ('remote = "10.0.0.9"', 'remote = ["10.0.0.9", "10.1.0.0/16"]', "remote address"),
    ('remote = "10.0.0.9"', 'local = "10.0.0.5"\nremote = "10.0.0.0/24"', "remote address"),
    ('remote = "2001:db8::1"', 'remote = "2001:db8::/64"', "remote address"),
    ('local = "10.0.0.5"\nremote = "10.0.0.9"', 'remote = "10.0.0.9"', "local address"),
    ('local = "10.0.0.5"', 'protocol = "tcp"\nremote_port = 80', "local address"),
    ('protocol = "tcp"', 'remote = "any"', "protocol"),
    ('protocol = "tcp"\nremote_port = 80', 'protocol = "tcp"', "remote port"),
    ('protocol = "tcp"\nremote_port = 80', 'protocol = "tcp"\nlocal_port = 80', "remote port"),
    (
        'action = "permit"\nprotocol = "tcp"\nremote_port = "80-81"',
        'action = "permit"\nprotocol = "tcp"\nremote_port = "80-99"',
        "remote port",
    ),
    (
        'protocol = "tcp"\nremote_port = 80\nlocal_port = 9',
        'protocol = "tcp"\nremote_port = 80',
        "local port",
    ),
    # equally specific from here on
    ('action = "block"\nremote = "10.0.0.9"', 'action = "permit"\nremote = "10.0.0.9"', "action"),
    ('security = "none"\nremote = "10.0.0.9"', 'remote = "10.0.0.9"', "action"),
    (f'local = "any"\nremote = "10.0.0.9"\n{TUNNEL}', 'remote = "10.0.0.9"', "mode"),
    ('security = "require"', 'inbound = "require"\noutbound = "request"', "level"),
    ('inbound = "require"\noutbound = "request"', 'security = "request"', "level"),
    ('security = "request"', 'inbound = "request"\noutbound = "none"', "level"),
    ('name = "a"\nremote = "10.0.0.9"', 'name = "b"\nremote = "10.0.0.9"', "name"),
]


@pytest.mark.parametrize(("first", "second", "criterion"), ORDER)
def test_order(first: str, second: str, criterion: str) -> None:
    """Another order would decide packets by a rule that says less about them."""
    names = ("a", "b") if criterion == "name" else ("z", "a")  # names must not be what decides
    first, second = (
        keys if keys.startswith("name") else f'name = "{name}"\n{keys}'
        for keys, name in zip((first, second), names, strict=True)
    )
    for rules in ((first, second), (second, first)):
        ranked = policy(*rules).rules
        assert [rule.name for rule in ranked] == list(names)
        assert difference(ranked[0], ranked[1], {})[0] == criterion


def test_order_does_not_depend_on_the_file() -> None:
    """Rules are ranked, not listed: moving one in the file changes nothing."""
    rules = [f'name = "{i}"\n{first}' for i, (first, _, _) in enumerate(ORDER[:4])]
    orders = {tuple(rule.name for rule in policy(*some).rules) for some in permutations(rules)}
    assert len(orders) == 1


NO_TELNET = 'name = "no telnet"\naction = "block"\nprotocol = "tcp"\nremote_port = 23'


def decided(one: Policy, destination: str, port: int, protocol: int = 6) -> str | None:
    """Name of the rule for a packet from 10.0.0.5."""
    rule = one.classify(packet("10.0.0.5", destination, port, protocol))
    return rule.name if rule else None


def test_blocked_service_is_blocked_for_every_host() -> None:
    """ "No telnet" that a rule for one host undoes is not what was written."""
    one = policy(NO_TELNET, 'name = "db"\nremote = "10.0.0.9"')
    assert decided(one, "10.0.0.9", 23) == "no telnet"
    assert decided(one, "10.0.0.9", 24) == "db"


def test_rule_inside_a_blocked_service_is_its_exception() -> None:
    """Otherwise nothing could be left open in what is closed."""
    one = policy(NO_TELNET, 'name = "console"\nremote = "10.0.0.7"\nprotocol = "tcp"\nremote_port = 23')
    assert decided(one, "10.0.0.7", 23) == "console"
    assert decided(one, "10.0.0.8", 23) == "no telnet"


@pytest.mark.parametrize("service", ["", 'protocol = "tcp"', 'remote = "10.0.0.0/8"'])
def test_block_without_a_service_closes_only_what_is_left(service: str) -> None:
    """A block of everything, or of all TCP, beside rules for hosts means: nothing else."""
    one = policy(f'name = "rest"\naction = "block"\n{service}', 'name = "db"\nremote = "10.0.0.9"')
    assert decided(one, "10.0.0.9", 5432) == "db"
    assert decided(one, "10.0.0.8", 5432) == "rest"


def test_a_protocol_without_ports_is_a_service() -> None:
    """ "No GRE" names all there is to name."""
    one = policy('name = "no gre"\naction = "block"\nprotocol = "gre"', 'name = "db"\nremote = "10.0.0.9"')
    assert decided(one, "10.0.0.9", 0, 47) == "no gre"


# Warnings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "criterion"),
    [
        ('action = "block"\nremote = "10.0.0.0/24"', 'remote = "10.0.0.0/24"', "action"),
        ('security = "require"\nremote = "10.0.0.9"', 'security = "request"\nremote = "10.0.0.9"', "level"),
        (f'local = "any"\nremote = "10.0.0.0/24"\n{TUNNEL}', 'remote = "10.0.0.0/24"', "mode"),
    ],
)
def test_ties_are_reported(one: str, other: str, criterion: str) -> None:
    """Two rules that say different things about the same packets, equally specific: somebody erred."""
    warnings = [w for w in policy(one, other).warnings if "equally specific" in w]
    assert len(warnings) == 1
    assert (
        f'rule "r2" and rule "r1" are equally specific and overlap, but differ in {criterion}' in warnings[0]
    )
    assert '"r1" wins' in warnings[0]
    assert warnings[0].startswith("policy.toml:")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('action = "block"\nremote = "10.0.0.9"', 'remote = "10.0.0.8"'),  # no overlap
        ('action = "block"\nremote = "10.0.0.9"', 'remote = "10.0.0.0/24"'),  # told apart by specificity
        ('remote = "10.0.0.9"', 'remote = "10.0.0.9"\npeer = "x"'),  # the same effect
        ('action = "block"\nremote = "10.0.0.9"', 'remote = "10.0.0.9"\nenabled = false'),
    ],
)
def test_what_is_no_tie_is_not_reported(one: str, other: str) -> None:
    """Warnings about what is meant teach people not to read them."""
    assert not policy(one, other).warnings


def test_exception_that_opens_more_than_was_closed_is_reported() -> None:
    """It passes in the clear what a more specific rule protects: worth a second look."""
    text = "".join(
        map(
            table,
            (
                NO_TELNET,
                NO_TELNET.replace("no telnet", "legacy").replace("block", "permit")
                + '\nremote = "10.0.0.0/8"',
                'name = "db"\nremote = "10.0.0.9"',
            ),
        )
    )
    (warning,) = parse(text).warnings
    assert '"legacy" is an exception to block rule "no telnet" and comes before rule "db"' in warning
    assert warning.startswith("policy.toml:8")
    assert not parse(text.replace('"permit"', '"secure"')).warnings


@settings(max_examples=60, deadline=None)
@given(policies())
def test_no_tie_is_overlooked(one: Policy) -> None:
    """Pairs are found by their addresses; comparing all of them finds the same."""
    expected = {
        frozenset((a.name, b.name))
        for a, b in combinations(one.in_force, 2)
        if specificity(a) == specificity(b)
        and any(criterion.measure(a) != criterion.measure(b) for criterion in TIES)
        and overlap(a, b)
    }
    said = [
        re.findall(r'rule "(r\d+)"', warning)[:2] for warning in doubts(one.rules) if "equally" in warning
    ]
    assert {frozenset(names) for names in said} == expected
    assert len(said) == len(expected)


@settings(max_examples=60, deadline=None)
@given(policies(), st.randoms())
def test_order_is_total(one: Policy, random: Random) -> None:
    """Any order of the same rules is ranked the same, and each rule has a reason to come before the next."""
    shuffled = list(one.rules)
    random.shuffle(shuffled)
    assert rank(shuffled) == one.rules
    first = service_blocks(one.rules)
    for winner, other in pairwise(one.in_force):
        name, why = difference(winner, other, first)
        assert name
        assert why
