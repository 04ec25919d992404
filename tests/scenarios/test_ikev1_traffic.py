"""Which traffic a quick mode of IKEv1 is for, and how long it lives (RFC 2407 sections 4.5 and 4.6.2).

If one of these fails, an SA carries what one of the rules does not cover, or outlives what one side said."""

from __future__ import annotations

import pytest
from support.link import (
    LEFT,
    RIGHT,
    Link,
    agree,
    host,
    psk,
)
from support.phases import ORDERS, RULE, ends, hosts, lives, rule_of, sets

from ikd.isakmp import quick
from ikd.isakmp.proposals import Life
from sadb.sa import Acquire, Mode


@ORDERS
@pytest.mark.parametrize(
    ("left", "right", "protocol", "ports"),
    [
        ("", "", 0, (0, 0)),
        ('protocol = "udp"', 'protocol = "udp"', 17, (0, 0)),
        ('protocol = "tcp"\nlocal_port = 179', 'protocol = "tcp"\nremote_port = 179', 6, (179, 0)),
        (
            'protocol = "udp"\nlocal_port = 1701\nremote_port = 1701',
            'protocol = "udp"\nlocal_port = 1701\nremote_port = 1701',
            17,
            (1701, 1701),
        ),
    ],
    ids=["all", "udp", "bgp", "l2tp"],
)
def test_transport_mode(left: str, right: str, protocol: int, ports: tuple[int, int], first: str) -> None:
    """Protocols and ports go into the identities (RFC 2407 section 4.6.2), and into the selectors of both."""
    link = ends(left, right)
    link.up("host", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for one, own, other in ((link.left, *ports), (link.right, *ports[::-1])):
        pair = one.pairs[0]
        assert pair.mode is Mode.TRANSPORT
        mine, theirs = pair.selector.local[0], pair.selector.remote[0]
        assert (mine.low, theirs.low) == (one.address, link.other(one).address)
        assert mine.protocol == theirs.protocol == protocol
        assert mine.ports == ((own, own) if own else (0, 65535))
        assert theirs.ports == ((other, other) if other else (0, 65535))


@ORDERS
def test_a_mode_that_does_not_fit(first: str) -> None:
    """Tunnel here, transport there: NO-PROPOSAL-CHOSEN, and both modes are named."""
    link = ends(f'tunnel = {{ local = "{LEFT}", remote = "{RIGHT}" }}')
    link.up("host", first)
    link.run(10)
    agree(link, ikes=1, pairs=0)
    (failure,) = link.other(link.named(first)).failures
    assert failure.notify == "NO_PROPOSAL_CHOSEN"
    assert failure.comparison is not None
    (row,) = (row for row in failure.comparison.rows if row.what == "mode")
    assert {*row.ours, *row.theirs} == {"tunnel", "transport"}


@ORDERS
def test_traffic_that_the_other_rule_does_not_cover(first: str) -> None:
    """INVALID-ID-INFORMATION; the log of the side that refuses says what was asked and what there is."""
    left, right = hosts(nets=2)[0], hosts(nets=1)[1]
    link = Link(left, right)
    link.up("net1")
    link.run(10)
    agree(link, ikes=1, pairs=0)
    (refusal,) = right.failures
    assert refusal.notify == "INVALID_ID_INFORMATION"
    assert "10.1.1.0/24" in refusal.reason
    assert "10.1.0.0/24" in refusal.reason
    assert left.failures[0].notify == "INVALID_ID_INFORMATION"
    assert left.failures[0].child


def test_a_part_of_what_the_other_rule_covers() -> None:
    """Fits; quick mode cannot narrow, so the other way round it does not."""
    wide = hosts()[1]
    text = (
        '[[rule]]\nname = "net"\nlocal = "10.1.0.64/26"\nremote = "10.2.0.0/24"\n'
        f'tunnel = {{ local = "{LEFT}", remote = "{RIGHT}" }}\nsecurity = "require"\nauth = "any"\n{RULE}'
        '[auth.any]\nfirst = ["psk"]\n'
    ) + sets()
    narrow = host("left", LEFT, text, psk("left.example", "right.example"))
    link = Link(narrow, wide)
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert str(wide.pairs[0].selector.remote[0]) == "10.1.0.64/26"
    link.close_child(narrow)
    link.run(1)
    link.up("net", wide)
    link.run(5)
    agree(link, ikes=1, pairs=0)
    assert wide.failures[0].notify == "INVALID_ID_INFORMATION"


def test_a_packet_chooses_what_is_asked_for() -> None:
    """Of a rule with several ports the packet's own: quick mode speaks of one."""
    link = ends('protocol = "tcp"\nremote_port = [22, 80, 443]', 'protocol = "tcp"')
    for port in (443, 22):
        link.up("host", acquire=Acquire("host", LEFT, RIGHT, 6, 40000, port))
        link.run(5)
    agree(link, ikes=1, pairs=2)
    assert [pair.selector.remote[0].ports for pair in link.left.pairs] == [(443, 443), (22, 22)]
    assert [pair.selector.local[0].ports for pair in link.left.pairs] == [(0, 65535)] * 2


@ORDERS
def test_the_shorter_life_counts_for_both(first: str) -> None:
    """What the initiator proposes, or what the responder says in RESPONDER-LIFETIME (RFC 2407 section
    4.6.3.1), in time and octets each for itself."""
    one = hosts(crypto=sets(lifetime='{ quick = "20 min", quick_bytes = "2 GiB" }'))[0]
    other = hosts(crypto=sets(lifetime='{ quick = "30 min", quick_bytes = "1 GiB" }'))[1]
    link = Link(one, other)
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for side in (one, other):
        seconds, octets = lives(side)
        assert seconds is not None
        assert octets is not None
        assert seconds == pytest.approx(1200, rel=0.01)
        assert octets == 2**30


def test_octets_count_in_kilobytes() -> None:
    """RFC 2407: a kilobyte has 1024 octets, and what is left of one is not used."""
    assert quick.life_of(rule_of(hosts(crypto=sets(lifetime='{ quick_bytes = "100 MB" }'))[0])) == Life(
        3600, 100_000_000 // 1024
    )
