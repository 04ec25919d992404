"""What is not enforced yet is said for each rule that asks for it, and for no other."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import product

import pytest
from support.policies import complaint, policy

from offload.host.filter import Marks, ruleset
from offload.software import SoftwareEngine
from policy.checks import COMBINATIONS
from policy.limits import LIMITS
from sadb.sa import Acquire, Level

OUT_REQUEST, IN_REQUEST, OUT_NONE = (limit.text for limit in LIMITS)
EXPECTED = {
    (Level.REQUIRE, Level.REQUIRE): set(),
    (Level.REQUIRE, Level.REQUEST): {OUT_REQUEST},
    (Level.REQUEST, Level.REQUEST): {OUT_REQUEST, IN_REQUEST},
    (Level.REQUEST, Level.NONE): {IN_REQUEST, OUT_NONE},
    (Level.NONE, Level.NONE): set(),
}


@pytest.mark.parametrize(("inbound", "outbound"), COMBINATIONS)
def test_levels_that_are_not_enforced_are_told(inbound: Level, outbound: Level) -> None:
    """Who believes in a fall-back that is not there loses connections without knowing why."""
    warnings = policy(f'inbound = "{inbound.value}"\noutbound = "{outbound.value}"').warnings
    start = "not enforced yet as written: "
    assert {w.partition(start)[2] for w in warnings} == EXPECTED[inbound, outbound]
    for warning, limit in product(warnings, LIMITS):
        if warning.endswith(limit.text):
            assert f'rule[1] "r1".{limit.key}: ' in warning
            assert warning.startswith(f"policy.toml:{4 if limit.key == 'inbound' else 5}: ")


# What the two halves of the data plane do with each level, so that the warnings stay true.


def asked(keys: str, source: str, destination: str) -> tuple[bool, dict[str, int]]:
    """Whether a packet without an SA starts a negotiation, and why it went nowhere."""
    engine = SoftwareEngine(bytes)
    notices: list[object] = []
    engine.notify = notices.append
    engine.route(policy(keys).flows())
    ends = ip_address(source).packed + ip_address(destination).packed
    header = bytes((0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0)) + ends
    batch = engine.outbound([header + bytes.fromhex("9c40 0035 0008 0000")], 0.0)
    assert not batch
    return any(isinstance(one, Acquire) for one in notices), {k: v for k, v in engine.counters.items() if v}


def chain(keys: str, name: str) -> str:
    """A chain of the packet filter."""
    flows = policy(keys).flows()
    text = ruleset(flows, "ikd0", 1400, Marks.of("ikd0", 0x1CD))
    return text.partition(f"chain {name} {{")[2].partition("\n}")[0]


@pytest.mark.parametrize(
    ("inbound", "outbound"), [pair for pair in COMBINATIONS if pair[0] is not Level.NONE]
)
def test_warnings_are_true(inbound: Level, outbound: Level) -> None:
    """The texts say what the engine and the filter do; when isolation comes, they change together."""
    keys = f'remote = "10.0.0.9"\ninbound = "{inbound.value}"\noutbound = "{outbound.value}"'
    acquires, counters = asked(keys, "10.0.0.5", "10.0.0.9")
    assert acquires is (outbound is not Level.NONE)  # held, or dropped as it is
    assert counters == ({"permitted": 1} if outbound is Level.NONE else {"no-sa": 1})
    # led into the device, which answers for it; without a device only what is required stays in
    assert "10.0.0.9 goto " + ("must" if outbound is Level.REQUIRE else "wish") in chain(keys, "steering")
    assert ("10.0.0.9 goto unprotected_out" in chain(keys, "leaving")) is (outbound is Level.REQUIRE)
    assert ("10.0.0.9 goto unprotected_in" in chain(keys, "arriving")) is (inbound is Level.REQUIRE)


def test_shorthand_is_named_when_it_was_written() -> None:
    """The place of a warning is a key that stands in the file."""
    assert all('"r1".security: ' in warning for warning in policy('security = "request"').warnings)


def test_rule_that_is_not_in_force_is_not_warned_about() -> None:
    """Nothing of it is enforced anyway."""
    assert not policy('security = "request"\nenabled = false').warnings


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('interface = "eth0"', "interface: not available yet: rules apply on every interface"),
        ('allow = { users = ["CORP\\\\clerk"] }', "allow: it lists users, whom only a second authentication"),
        (
            'deny = { users = ["group:CORP\\\\HR"] }',
            'set "default" has none for users; write auth = "machine',
        ),
        (
            'auth = "healthy"\nallow = { users = ["CORP\\\\clerk"] }',
            'set "healthy" has none for users; write auth = "machine-and-user"',
        ),
    ],
)
def test_what_would_be_weaker_than_written_is_refused(keys: str, said: str) -> None:
    """A rule for one interface that applied to all, or for users whom nobody can tell, is another rule."""
    sets = '[auth.healthy]\nfirst = ["kerberos"]\nsecond = [{ method = "certificate", health = true }]\n'
    assert said in complaint(keys, sets)
    (warning,) = policy(f"{keys}\nenabled = false", sets=sets).warnings
    assert said in warning


@pytest.mark.parametrize("second", ["user-kerberos", "user-ntlm", "user-certificate"])
def test_users_of_a_second_authentication_may_be_listed(second: str) -> None:
    """That is what lists of users are for; each method proves one."""
    keys = 'auth = "own"\nallow = { users = ["CORP\\\\clerk", "group:CORP\\\\HR"] }'
    loaded = policy(keys, sets=f'[auth.own]\nfirst = ["kerberos"]\nsecond = ["{second}"]\n')
    assert not loaded.warnings
    assert loaded.rules[0].keying == ("authip",)
    allow = loaded.rules[0].allow
    assert allow is not None
    assert allow.users == ("CORP\\clerk", "group:CORP\\HR")


def test_a_group_is_nobodys_name() -> None:
    """Whom a rule expects is one host; as a member of a group it would be any of them."""
    assert "is a group, and the peer is one host" in complaint('peer = "group:CORP\\\\HR"')
    loaded = policy('allow = { machines = ["group:CORP\\\\Servers"] }')
    assert loaded.rules[0].allow is not None
    assert loaded.rules[0].allow.machines == ("group:CORP\\Servers",)


def test_tunnel_to_oneself_is_for_trying_out() -> None:
    """`make demo` without root does that; nobody else should."""
    keys = 'local = "10.1.0.1"\nremote = "10.2.0.1"\ntunnel = { local = "127.0.0.1", remote = "127.0.0.2" }'
    (warning,) = policy(keys).warnings
    assert "both ends are on this machine" in warning
