"""Which rules a main-mode SA may carry besides the one it was made for.

If one of these fails, a peer or its user gets traffic that the rule's lists do not allow it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.link import LEFT, RIGHT, Link, agree, connected, host, psk

from ikd.auth import ANONYMOUS, Authenticated, Identity
from ikd.auth.identity import IdKind
from policy.rules import AccessList, AuthMethod, Rule


def user(name: str, *groups: str) -> Authenticated:
    """Somebody proven by a second authentication."""
    identity = Identity(IdKind.PRINCIPAL, name.encode())
    return Authenticated(identity, "user-kerberos", name, names=(name,), groups=groups)


CLERK = user("CORP\\clerk", "group:CORP\\HR")


def of_users(link: Link, allow: AccessList | None = None, deny: AccessList | None = None) -> Rule:
    """The rule of the only main-mode SA as one that asks for a user, and lists some."""
    (one,) = link.left.ikes
    rule = one.main.rule
    assert rule is not None
    assert rule.auth is not None
    one.main.rule = replace(rule, auth=replace(rule.auth, second=(AuthMethod("user-kerberos"),)))
    return replace(one.main.rule, name="hr", allow=allow, deny=deny)


def carries(link: Link, rule: Rule, who: Authenticated | None) -> bool:
    """Whether a user's main-mode SA may carry a rule."""
    (one,) = link.left.ikes
    one.main.user = who
    return link.left.endpoint._can_carry(one, rule, link.path(link.left))


def test_what_a_user_is_called() -> None:
    """Names and groups, which rules list alike; nothing without a second authentication."""
    main = connected().left.ikes[0].main
    assert main.user_names == ()
    main.user = CLERK
    assert main.user_names == ("CORP\\clerk", "group:CORP\\HR")
    main.user = ANONYMOUS
    assert main.user_names == ()


@pytest.mark.parametrize("who", [None, ANONYMOUS])
def test_rules_with_users_are_not_for_a_machine_alone(who: Authenticated | None) -> None:
    """Neither those that allow some nor those that deny some: nobody knows who is there."""
    link = connected()
    assert carries(link, of_users(link), who)
    assert not carries(link, of_users(link, AccessList(users=("*",))), who)
    assert not carries(link, of_users(link, deny=AccessList(users=("CORP\\intern",))), who)


def test_rules_with_users_are_for_those_they_list() -> None:
    """By name and by group; `deny` comes first."""
    link = connected()
    for name in ("CORP\\clerk", "group:CORP\\HR"):
        listed = AccessList(users=(name,))
        assert carries(link, of_users(link, listed), CLERK)
        assert not carries(link, of_users(link, listed), user("CORP\\boss", "group:CORP\\Board"))
        assert not carries(link, of_users(link, AccessList(users=("*",)), listed), CLERK)


def test_an_sa_without_second_authentication_carries_no_rule_that_asks_for_one() -> None:
    """Whatever its lists say."""
    link = connected()
    rule = of_users(link)
    assert rule.auth is not None
    (one,) = link.left.ikes
    one.main.rule = replace(rule, auth=replace(rule.auth, second=()))
    assert not carries(link, rule, None)


PORT = """
[[rule]]
name        = "{name}"
remote      = "{remote}"
protocol    = "tcp"
remote_port = {port}
keying      = "{keying}"
crypto      = "both"
peer        = "right.example"
{lines}
"""
BOTH = '[crypto.both]\nmain = ["p256 aes128 sha256"]\nquick = ["aes128gcm"]\n'
OTHERS = 'allow = { machines = ["other.example"] }'


@pytest.mark.parametrize("keying", ["ikev1", "ikev2"])
@pytest.mark.parametrize("lines", [OTHERS, 'deny = { machines = ["right.example"] }', ""])
def test_what_waits_for_a_negotiation_gets_no_more_than_what_comes_later(keying: str, lines: str) -> None:
    """A packet that comes while main mode is under way must not slip past the lists of its rule."""
    ports = (("a", 80, ""), ("b", 443, lines))
    left = BOTH + "".join(
        PORT.format(name=name, remote=RIGHT, port=port, lines=more, keying=keying)
        for name, port, more in ports
    )
    right = BOTH + PORT.format(name="both", remote=LEFT, port=80, lines="", keying=keying).replace(
        "remote_port = 80", "local_port = [80, 443]"
    ).replace("right.example", "left.example")
    link = Link(
        host("left", LEFT, left, psk("left.example", "right.example")),
        host("right", RIGHT, right, psk("right.example", "left.example")),
    )
    link.up("a")
    link.up("b")
    link.run(20)
    expected = {"a"} if lines else {"a", "b"}
    assert {pair.rule for pair in link.left.pairs} == expected
    link.up("b")
    link.run(20)
    assert {pair.rule for pair in link.left.pairs} == expected


def test_child_sas_do_not_go_to_another_user() -> None:
    """Two users of one host have a main-mode SA each; when one ends, the other does not get its traffic."""
    link = connected()
    rules = link.left.endpoint
    (first,) = link.left.ikes
    link.perform(link.left, rules.initiate(first.main.rule, link.path(link.left), link.now, childless=True))  # type: ignore[arg-type]
    link.run(5)
    agree(link, ikes=2)
    one, other = link.left.ikes
    assert rules.sibling(one) is other
    one.main.user, other.main.user = CLERK, user("CORP\\boss")
    assert rules.sibling(one) is None
    other.main.user = replace(CLERK, expires=1.0)
    assert rules.sibling(one) is other
