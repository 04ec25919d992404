"""What happens to SAs in time: lifetimes of every kind, reload of a policy, and an orderly stop.

If one of these fails, keys are used for longer than policy allows, traffic breaks when they are replaced, or
SAs that policy has withdrawn live on."""

from __future__ import annotations

import pytest
from support.link import (
    BOTH,
    Host,
    Link,
    agree,
    connected,
    mirrored,
    policy,
    psk,
    story,
    tunnel_hosts,
    tunnel_rules,
)

from ikd.auth.credentials import Credentials
from ikd.events import ChildClosed, ChildEstablished, ChildExpired, IkeClosed, IkeEstablished
from ikd.settings import IkeSettings
from policy.engine import Changes
from sadb.sa import Acquire, Expire

ORDERS = pytest.mark.parametrize("first", BOTH)
SHORT = '[crypto.short]\nlifetime = { main = "10 min", quick = "2 min" }\n'
RULE = 'crypto = "short"'


def short_lived(sets: str = SHORT, **how: IkeSettings) -> Link:
    """A tunnel whose SAs live for minutes."""
    return connected(left_rule=RULE, right_rule=RULE, sets=sets, **how)


def hard(one: Host, link: Link, reason: str, *, inbound: bool = True) -> None:
    """A pair has met its hard limit."""
    notice(one, link, reason, hard=True, inbound=inbound)


def notice(one: Host, link: Link, reason: str, *, hard: bool, inbound: bool = True) -> None:
    """The data plane reports a limit of the newest pair."""
    pair = one.pairs[-1]
    half = pair.inbound if inbound else pair.outbound
    found = one.database.noticed(Expire(half.spi, inbound, hard, reason, pair.owner))
    assert found is not None
    link.perform(one, one.endpoint.expired(found, link.now))


# Lifetimes --------------------------------------------------------------------------------------------------


def test_keys_are_replaced_in_time() -> None:
    """Both kinds, by either side, before their limits: traffic never lacks a pair, and no pair or IKE SA
    lives for longer than policy says."""
    link = short_lived()
    link.watch()
    begun: dict[tuple[str, int], float] = {}
    for _ in range(360):
        link.run(10)
        for host in (link.left, link.right):
            for pair in host.pairs:
                assert link.now - pair.created <= 120
            for one in host.ikes:
                assert link.now - begun.setdefault((host.name, one.number), link.now) <= 610
    agree(link, ikes=1, pairs=1)
    assert not link.gaps, link.gaps[:3]
    assert len(link.left.of(ChildEstablished)) >= 3600 // 120
    assert len(link.left.of(IkeEstablished)) >= 6
    assert not link.left.failures
    assert not link.right.failures


def test_the_ends_do_not_begin_at_the_same_moment() -> None:
    """Soft limits are a little random, so that collisions are rare."""
    link = short_lived()
    assert link.left.ikes[0].rekey_at != link.right.ikes[0].rekey_at
    left, right = (one.pairs[0].inbound.lifetime.soft_seconds for one in (link.left, link.right))
    assert left is not None
    assert right is not None
    assert left != right
    assert 0.7 * 120 < left <= 0.85 * 120


@ORDERS
@pytest.mark.parametrize("reason", ["octets", "packets", "sequence"])
@pytest.mark.parametrize("inbound", [True, False])
def test_a_soft_limit_by_use(first: str, reason: str, inbound: bool) -> None:
    """The pair is replaced while it still works, in whichever direction the limit was met; and who watches
    is told why."""
    link = connected()
    link.watch()
    host = link.named(first)
    old = host.pairs[0]
    notice(host, link, reason, hard=False, inbound=inbound)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert old not in host.pairs
    assert not link.gaps
    (expired,) = host.of(ChildExpired)
    assert (expired.spi_in, expired.hard, expired.reason) == (f"{old.inbound.spi:08x}", False, reason)


@ORDERS
def test_a_hard_limit_by_use(first: str) -> None:
    """The pair is gone here, and the peer is told to drop it too; the reason is in the log."""
    link = connected()
    host = link.named(first)
    hard(host, link, "octets")
    link.run(5)
    agree(link, ikes=1, pairs=0)
    assert host.of(ChildClosed)[0].reason == "used up (octets)"


@ORDERS
def test_both_ends_meet_a_limit_at_once(first: str) -> None:
    """Twins of the same load cross the same number together."""
    for kind in (False, True):
        link = connected()
        for host in (link.named(first), link.other(link.named(first))):
            notice(host, link, "packets", hard=kind)
        link.run(5)
        agree(link, ikes=1, pairs=0 if kind else 1)


def test_a_soft_limit_while_the_peer_does_not_answer() -> None:
    """The old pair serves until its hard limit; with the peer back the replacement is made."""
    link = short_lived(left_settings=IkeSettings(retransmit_tries=10), right_settings=IkeSettings(liveness=0))
    link.run(80)
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.run(25)
    assert len(link.left.pairs) == 1
    link.fate = lambda flight: None
    link.run(40)
    agree(link, ikes=1, pairs=1)


def test_nobody_uses_a_rule_that_lies_idle() -> None:
    """With an idle limit a pair without traffic goes, and one with traffic stays."""
    sets = '[crypto.short]\nlifetime = { idle = "1 min" }\n'
    link = connected(left_rule=RULE, sets=sets, settings=IkeSettings(liveness=0))
    for _ in range(10):
        link.run(30)
        for one in (link.left, link.right):
            for pair in one.pairs:
                pair.inbound.usage.last = link.now
    agree(link, ikes=1, pairs=1)
    link.run(70)
    agree(link, ikes=1, pairs=0)
    assert link.left.of(ChildClosed)[0].reason == "idle"


def test_the_peer_refuses_to_replace_the_ike_sa() -> None:
    """It is tried again later, what is there goes on meanwhile, and at the end of its life the IKE SA
    goes."""
    rules = {"left_rule": RULE, "right_rule": 'crypto = "long"'}
    sets = SHORT + '[crypto.long]\nlifetime = { main = "8 h", quick = "8 h" }\n'
    link = connected(**rules, sets=sets)
    former = "[crypto.short]\n", '[crypto.short]\nmain = ["p384 aes256gcm sha384"]\n'
    link.left.endpoint.env.policy = policy(tunnel_rules("left", extra=RULE) + sets.replace(*former))
    rule = link.left.endpoint.policy.rule("net")
    assert rule is not None
    link.left.ikes[0].session.rule = rule
    link.right.endpoint.env.policy = policy(tunnel_rules("right", extra='crypto = "modern"') + sets)
    link.right.ikes[0].session.rule = link.right.endpoint.policy.rule("net")
    link.run(580)
    assert len(link.left.failures) >= 2
    assert {one.notify for one in link.left.failures} == {"NO_PROPOSAL_CHOSEN"}
    assert len(link.left.ikes) == 1
    link.run(100)
    agree(link, ikes=0, pairs=0)


# Acquire ----------------------------------------------------------------------------------------------------


def acquire(link: Link, host: Host) -> Acquire:
    """A packet of the rule `net` has no pair."""
    rule = host.endpoint.policy.rule("net")
    assert rule is not None
    return Acquire("net", rule.selector.local[0].low + 1, rule.selector.remote[0].low + 1, 17, 4000, 53)


def test_packets_do_not_start_what_is_under_way() -> None:
    """Thousands of packets that wait for one pair begin one negotiation."""
    link = Link(*tunnel_hosts())
    for _ in range(100):
        link.up("net", acquire=acquire(link, link.left))
    assert len(link.flights) == 1
    link.run(0.015)
    for _ in range(100):
        link.up("net", acquire=acquire(link, link.left))
    link.run(5)
    agree(link, ikes=1, pairs=1)


def test_packets_do_not_hammer_a_peer_that_refuses() -> None:
    """After a failure there is a pause; a person who asks does not have to wait for it."""
    link = Link(*tunnel_hosts(right=psk("right.example", "left.example", b"another key that is long enough")))
    link.up("net")
    link.run(1)
    assert link.left.failures
    count = len(link.flights)
    link.up("net", acquire=acquire(link, link.left))
    assert len(link.flights) == count
    link.up("net")
    assert len(link.flights) == count + 1
    link.run(100)
    count = len(link.flights)
    link.up("net", acquire=acquire(link, link.left))
    assert len(link.flights) == count + 1


@ORDERS
def test_packets_from_both_sides_at_once(first: str) -> None:
    """Both hosts have traffic at the same moment: what comes of it is the same on both sides, and it
    works."""
    link = Link(*tunnel_hosts())
    for host in (link.named(first), link.other(link.named(first))):
        link.up("net", host, acquire=acquire(link, host))
    link.run(5)
    link.watch()
    assert not link.gaps
    link.run(60)
    agree(link)
    assert not link.gaps


# Reload -----------------------------------------------------------------------------------------------------


@ORDERS
@pytest.mark.parametrize("change", ["removed", "changed", "same"])
def test_reload(first: str, change: str) -> None:
    """SAs of rules that are the same stay as they are; of others they go, on both sides."""
    link = connected(nets=3)
    link.up("net1")
    link.up("net2")
    link.run(2)
    host = link.named(first)
    kept = [one for one in host.pairs if change == "same" or one.rule != "net2"]
    rules = tunnel_rules(host.name, nets=3)
    if change == "removed":
        rules = tunnel_rules(host.name, nets=2)
    if change == "changed":
        head, _, tail = rules.rpartition('security = "require"')
        rules = head + 'security = "require"\npeer = "*.example"' + tail
    link.reload(host, rules)
    link.run(5)
    agree(link, ikes=1, pairs=3 if change == "same" else 2)
    assert host.pairs == kept
    if change == "changed":
        link.up("net2", link.other(host))
        link.run(5)
        agree(link, pairs=3)


@ORDERS
def test_reload_without_the_last_rule(first: str) -> None:
    """With its last rule the IKE SA goes too."""
    link = connected()
    host = link.named(first)
    link.reload(host, "")
    link.run(5)
    agree(link, ikes=0, pairs=0)
    assert host.of(IkeClosed)[0].reason == "its rule has changed"
    link.up("net", link.other(host))
    link.run(40)
    agree(link, ikes=0, pairs=0)
    assert "no rule" in host.failures[0].reason


def test_reload_with_another_rule_for_the_first() -> None:
    """The IKE SA was made for `net`, which is gone; `net1` lives on over it."""
    link = connected(nets=2)
    link.up("net1")
    link.run(2)
    rules = tunnel_rules("left", nets=2)
    link.reload(link.left, rules[rules.index("[[rule]]", 10) :])
    link.run(5)
    agree(link, pairs=1)
    assert link.left.pairs[0].rule == "net1"
    link.rekey_child(link.left)
    link.run(5)
    link.rekey_child(link.right)
    link.run(5)
    agree(link, pairs=1)


@ORDERS
def test_reload_while_something_is_under_way(first: str) -> None:
    """Negotiations that began under the former policy end well or not at all."""
    for delay in (0.0, 0.005, 0.015, 0.025):
        for begin in (Link.rekey, Link.rekey_child):
            link = connected()
            begin(link, link.named(first))
            link.run(delay)
            link.reload(link.left, tunnel_rules("left", extra='peer = "*.example"'))
            link.run(60)
            agree(link)
            assert not [one for one in link.left.pairs if one.created < link.now - 60.03], story(link)


def test_reload_during_the_first_negotiation() -> None:
    """The rule has gone meanwhile: no SA for it may come up."""
    for delay in (0.005, 0.015, 0.025, 0.035):
        for host in BOTH:
            link = Link(*tunnel_hosts())
            link.up("net")
            link.run(delay)
            link.reload(link.named(host), "")
            link.run(120)
            agree(link, ikes=0, pairs=0)


def test_credentials_are_replaced_too() -> None:
    """A new key counts from the next negotiation on."""
    link = connected()
    link.close(link.left)
    link.run(5)
    fresh = b"the key of the next year, longer"
    for host, peer in ((link.left, "right"), (link.right, "left")):
        material = psk(f"{host.name}.example", f"{peer}.example", fresh)
        endpoint = host.endpoint
        outputs = endpoint.reload(
            endpoint.policy, Credentials(material, lambda: 0.0), endpoint.settings, Changes(), link.now
        )
        link.perform(host, outputs)
        if peer == "right":
            link.up("net")
            link.run(5)
            assert not link.left.pairs
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)


# The end ----------------------------------------------------------------------------------------------------


@ORDERS
def test_shutdown(first: str) -> None:
    """Everything is deleted at the peer; `idle` tells when that has been heard."""
    link = connected(nets=3)
    link.up("net1")
    link.up("net2")
    link.run(2)
    host = link.named(first)
    # HDR, SK {D}  -->
    link.perform(host, host.endpoint.shutdown(link.now))
    assert not host.endpoint.idle
    link.run(0.1)
    assert host.endpoint.idle
    agree(link, ikes=0, pairs=0)
    assert link.other(host).of(IkeClosed)[0].by_peer


@ORDERS
@pytest.mark.parametrize("delay", [0.011, 0.015, 0.021, 0.025, 0.035])
def test_shutdown_in_the_middle(first: str, delay: float) -> None:
    """Of a first negotiation, or of a replacement: nothing is left here, and in the end nothing there."""
    link = Link(*tunnel_hosts())
    link.up("net")
    link.run(delay)
    link.perform(link.named(first), link.named(first).endpoint.shutdown(link.now))
    link.run(150)
    agree(link, ikes=0, pairs=0)
    for begin in (Link.rekey, Link.rekey_child):
        link = connected()
        begin(link, link.left)
        link.run(delay)
        link.perform(link.named(first), link.named(first).endpoint.shutdown(link.now))
        link.run(150)
        agree(link, ikes=0, pairs=0)
        assert not mirrored(link.left, link.right)
