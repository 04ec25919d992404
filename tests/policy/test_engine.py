"""A whole policy: classification against a slow oracle, rules for a peer, and what a reload changes."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies import packet, packets, policies, policy

from policy.engine import EXEMPTIONS, Changes, Policy, diff
from policy.rules import Rule, Tunnel
from sadb.flows import FlowTable
from sadb.sa import Action, Level, Mode
from sadb.selector import ICMP, ICMPV6, TCP, UDP, Fields, TrafficSelector

HERE, THERE = ip_address("10.0.0.5"), ip_address("10.0.0.9")


def name(rule: Rule | None) -> str | None:
    """A rule's name, None when nothing decides."""
    return rule.name if rule else None


# Classification ---------------------------------------------------------------------------------------------


def test_direction_decides_which_end_is_local() -> None:
    """A rule for local port 1433 is about packets to this server and its answers, not about clients."""
    one = policy('local = "10.0.0.5"\nprotocol = "tcp"\nlocal_port = 1433')
    assert one.classify(packet("10.0.0.9", "10.0.0.5", 1433), outbound=False)
    assert one.classify(packet("10.0.0.5", "10.0.0.9", 40000, source_port=1433))
    assert not one.classify(packet("10.0.0.5", "10.0.0.9", 1433))
    assert not one.classify(packet("10.0.0.9", "10.0.0.5", 1434), outbound=False)


def test_rule_that_is_not_enabled_decides_nothing() -> None:
    """It can be found by name, so that ikctl can speak of it, but packets do not see it."""
    one = policy('remote = "10.0.0.9"\nenabled = false')
    assert one.classify(packet("10.0.0.5", "10.0.0.9", 80)) is None
    assert one.rule("r1") is not None
    assert not one.in_force
    assert not [flow for flow in one.flows() if flow.rule == "r1"]


@pytest.mark.parametrize(
    ("exempt", "outbound"),
    [
        (packet("10.0.0.5", "10.0.0.9", 500, UDP, 500), True),
        (packet("10.0.0.9", "10.0.0.5", 500, UDP, 500), False),
        (packet("10.0.0.9", "10.0.0.5", 4500, UDP, 61000), False),  # behind a NAT
        (packet("10.0.0.5", "10.0.0.9", None, 50, None), True),
        (packet("2001:db8::1", "2001:db8::2", None, 51, None), False),
        (packet("127.0.0.1", "127.0.0.53", 53, UDP), True),
        (packet("::1", "::1", 80), True),
        (packet("10.0.0.5", "224.0.0.251", 5353, UDP), True),
        (packet("10.0.0.5", "255.255.255.255", 67, UDP, 68), True),
        (packet("fe80::1", "ff02::1", None, ICMPV6, None), True),
        (Fields(ip_address("fe80::1"), ip_address("fe80::2"), ICMPV6, 135 << 8, 135 << 8), True),
        (Fields(ip_address("fe80::2"), ip_address("fe80::1"), ICMPV6, 136 << 8, 136 << 8), False),
        (packet("10.0.0.5", "10.0.0.1", 67, UDP, 68), True),
        (packet("fe80::9", "fe80::1", 546, UDP, 547), False),
    ],
)
def test_what_keying_and_links_need_is_exempt(exempt: Fields, outbound: bool) -> None:
    """A rule for everything must not lock out the negotiation that would open it, nor the link."""
    strict = policy('name = "all traffic"\nsecurity = "require"', 'name = "shut"\naction = "block"')
    rule = strict.classify(exempt, outbound=outbound)
    assert rule in EXEMPTIONS
    table = FlowTable(strict.flows()).lookup(exempt, outbound)
    assert table is not None
    assert table.action is Action.PERMIT


@pytest.mark.parametrize(
    ("fields", "outbound"),
    [
        (packet("10.0.0.5", "10.0.0.9", 500, UDP, 40000), True),  # the other end's port is not enough
        (packet("10.0.0.5", "10.0.0.9", None, ICMP, None), True),
        (Fields(ip_address("fe80::1"), ip_address("fe80::2"), ICMPV6, 128 << 8, 128 << 8), True),
        (packet("10.0.0.5", "127.0.0.1", 80), True),
        (packet("10.0.0.5", "10.0.0.9", 500, TCP, 500), True),
    ],
)
def test_nothing_else_is_exempt(fields: Fields, outbound: bool) -> None:
    """Every exemption is a hole in each require rule."""
    assert name(policy('name = "everything"').classify(fields, outbound=outbound)) == "everything"


def covers(selectors_: tuple[TrafficSelector, ...], address: object, protocol: int, port: int | None) -> bool:
    """Whether one side fits, written out once more."""
    for s in selectors_:
        if s.low.version != address.version or not s.low <= address <= s.high:  # type: ignore[attr-defined,operator]
            continue
        if s.protocol not in (0, protocol):
            continue
        if s.ports == (0, 65535) or (port is not None and s.ports[0] <= port <= s.ports[1]):
            return True
    return False


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(policies(), st.lists(packets(), min_size=1, max_size=8), st.booleans())
def test_trie_and_list_agree(one: Policy, some: list[Fields], outbound: bool) -> None:
    """The data plane looks packets up in a trie; another answer than the list's sends them elsewhere."""
    table = FlowTable(one.flows())
    for fields in some * 2:  # the second time from the cache
        source, destination, protocol, *ports = fields
        ends = ((source, ports[0]), (destination, ports[1]))
        local, remote = ends if outbound else ends[::-1]
        expected = next(
            (
                rule.name
                for rule in (*EXEMPTIONS, *one.in_force)
                if covers(rule.selector.local, local[0], protocol, local[1])
                and covers(rule.selector.remote, remote[0], protocol, remote[1])
            ),
            None,
        )
        assert name(one.classify(fields, outbound=outbound)) == expected
        flow = table.lookup(fields, outbound)
        assert (flow.rule if flow else None) == expected


def test_flows_say_what_rules_say() -> None:
    """The data plane sees flows only: what a flow leaves out is not enforced."""
    one = policy(
        'name = "t"\nlocal = "10.1.0.0/16"\nremote = "10.2.0.0/16"\n'
        'tunnel = { local = "192.0.2.1", remote = "198.51.100.7" }\nencrypt = true',
        'name = "n"\nsecurity = "none"\nremote = "10.0.0.9"',
        'name = "b"\naction = "block"\nremote = "10.0.0.8"',
        'name = "q"\ninbound = "require"\noutbound = "request"\nremote = "10.0.0.7"',
    )
    flows = {flow.rule: flow for flow in one.flows()}
    assert [flow.order for flow in one.flows()] == sorted(flow.order for flow in one.flows())
    tunnel = flows["t"]
    assert (tunnel.mode, tunnel.encrypt, tunnel.action) == (Mode.TUNNEL, True, Action.SECURE)
    assert (str(tunnel.tunnel_local), str(tunnel.tunnel_remote)) == ("192.0.2.1", "198.51.100.7")
    assert flows["n"].action is Action.PERMIT  # however it was written
    assert flows["b"].action is Action.BLOCK
    assert (flows["q"].inbound, flows["q"].outbound) == (Level.REQUIRE, Level.REQUEST)


# Peers and names --------------------------------------------------------------------------------------------


def test_rules_for_a_peer_are_those_main_mode_may_serve() -> None:
    """The responder picks authentication by addresses before it knows what will be protected."""
    one = policy(
        'name = "host"\nremote = "10.0.0.9"',
        'name = "net"\nremote = "10.0.0.0/24"',
        'name = "service"\nremote = "10.0.0.0/24"\nprotocol = "tcp"\nremote_port = 80',
        'name = "clear"\naction = "permit"\nremote = "10.0.0.9"',
        'name = "off"\nremote = "10.0.0.9"\nenabled = false',
        'name = "other"\nremote = "10.0.0.8"',
        'name = "mine"\nlocal = "10.0.0.6"\nremote = "10.0.0.9"',
    )
    assert [rule.name for rule in one.for_peer(HERE, THERE)] == ["host", "service", "net"]
    assert one.for_peer(HERE, THERE, "ikev1") == ()


def test_tunnels_are_served_by_their_end_points() -> None:
    """The inner networks say nothing about who may negotiate."""
    inner = 'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\n'
    one = policy(
        f'name = "exact"\n{inner}tunnel = {{ local = "10.0.0.5", remote = "10.0.0.9" }}',
        f'name = "anybody"\n{inner}tunnel = {{ remote = "any" }}',
        f'name = "elsewhere"\n{inner}tunnel = {{ remote = "10.0.0.8" }}',
        f'name = "unresolved"\n{inner}tunnel = {{ remote = "vpn.example" }}',
    )
    assert [rule.name for rule in one.for_peer(HERE, THERE)] == ["exact", "anybody"]
    assert one.for_peer(ip_address("10.2.0.1"), ip_address("10.1.0.1"))[0].name == "anybody"


def test_names_of_tunnel_ends_become_addresses() -> None:
    """A gateway with a name is used at the address of the right family, and not at all without one."""
    keys = 'local = "10.1.0.0/16"\nremote = "10.2.0.0/16"\ntunnel = { local = "192.0.2.1", remote = "%s" }'
    one = policy(keys % "vpn.example", keys % "gone.example", f"{keys % 'off.example'}\nenabled = false")
    assert set(one.hosts) == {"vpn.example", "gone.example"}
    addresses = (ip_address("2001:db8::1"), ip_address("198.51.100.7"), ip_address("198.51.100.8"))
    known = one.resolved({"vpn.example": addresses})
    ends = {rule.name: rule.tunnel.remote for rule in known.rules if rule.tunnel}
    assert ends == {"r1": ip_address("198.51.100.7"), "r2": None, "r3": None}
    assert known.rules[0].tunnel == Tunnel(ip_address("192.0.2.1"), addresses[1], "vpn.example")
    # when the name goes away again, nobody is taken for it
    assert known.resolved({}).for_peer(ip_address("192.0.2.1"), addresses[1]) == ()


# Reload -----------------------------------------------------------------------------------------------------


BASE = ('name = "a"\nremote = "10.0.0.9"\npeer = "x"', 'name = "b"\nremote = "10.0.0.8"')


@pytest.mark.parametrize(
    ("rules", "changes"),
    [
        (BASE, Changes()),
        (BASE[::-1], Changes()),
        ((*BASE, 'name = "c"\nremote = "10.0.0.7"'), Changes(added=("c",))),
        (BASE[:1], Changes(removed=("b",))),
        ((BASE[0], f"{BASE[1]}\nenabled = false"), Changes(removed=("b",))),
        ((BASE[0].replace('"x"', '"y"'), BASE[1]), Changes(changed=("a",))),
        ((BASE[0] + "\nencrypt = true", BASE[1]), Changes(changed=("a",))),
        ((BASE[0] + '\ncrypto = "modern"', BASE[1]), Changes(changed=("a",))),
        ((BASE[0] + '\ndescription = "words"\ngroup = "g"', BASE[1]), Changes()),
        ((BASE[0].replace('"a"', '"z"'), BASE[1]), Changes(added=("z",), removed=("a",))),
    ],
)
def test_reload_tells_what_changed(rules: tuple[str, ...], changes: Changes) -> None:
    """SAs of rules that did not change stay up; those of others must go."""
    old, new = policy(*BASE), policy("\n\n" + rules[0], *rules[1:])
    assert diff(old, new) == changes
    assert bool(changes) == (changes != Changes())
    other = {name for name in "abcz" if old.digest(name) != new.digest(name)}
    assert other == {*changes.added, *changes.changed, *changes.removed}


DIGEST = """
import sys
from pathlib import Path
from policy.load import load
policy = load(Path(sys.argv[1]))
print([policy.digest(rule.name) for rule in policy.rules])
"""


def test_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Pairs that outlive the daemon are told by it to belong to a rule: one that depended on where objects
    are, or on the order of a set, would end all of them at every restart."""
    (tmp_path / "policy.toml").write_text(
        """
[[rule]]
name = "a"
remote = "10.0.0.9"
security = "require"
auth = "two"
crypto = "own"
[rule.allow]
machines = ["x", "y"]
[[rule]]
name = "b"
local = "10.1.0.0/24"
remote = ["10.2.0.0/24", "10.3.0.0/24"]
tunnel = { local = "192.0.2.1", remote = "192.0.2.2" }
security = "require"
[crypto.own]
quick = ["aes128gcm", "aes256 sha256"]
[auth.two]
first = ["certificate", "psk"]
"""
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert "''" not in found.pop()


def test_a_changed_set_changes_its_rules() -> None:
    """A rule that keeps its words but not its algorithms must be negotiated anew."""
    rule = 'remote = "10.0.0.9"\ncrypto = "own"'
    sets = '[crypto.own]\nquick = ["%s"]\n'
    old, new = (policy(rule, sets=sets % cipher) for cipher in ("aes128gcm", "aes256gcm"))
    assert diff(old, new) == Changes(changed=("r1",))
