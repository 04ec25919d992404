"""ikd.auth.groups: the map of groups, and whom a rule then admits."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from support.certificates import rule

from ikd.auth import ANONYMOUS, Authenticated, Identity
from ikd.auth.credentials import Credentials, Material
from ikd.auth.groups import Group, GroupError, Groups, parse
from ikd.auth.identity import IdKind
from ikd.auth.ntlm import NtlmAccount, nt_hash
from ikd.auth.principal import Principal
from policy.peers import admits, matches_any
from policy.rules import AccessList, AuthMethod

USERS = rule(AuthMethod("user-ntlm"))
HR = "S-1-5-21-1-2-3-1105"
TABLE = {
    "CORP\\HR": {"sid": HR.lower(), "members": ["clerk@CORP.EXAMPLE", "CORP\\clerk"]},
    "CORP\\IT": {"members": ["host/*.it.example"]},
    "Everyone": {"sid": "S-1-1-0"},
}


def test_groups_by_sid_and_by_member() -> None:
    """A rule for a group would fit nobody, or everybody."""
    groups = parse(TABLE)
    assert groups.of((), (HR, "S-1-5-21-1-2-3-513")) == (
        "group:CORP\\HR",
        f"group:{HR}",
        "group:S-1-5-21-1-2-3-513",
    )
    assert groups.of(("corp\\CLERK",)) == ("group:CORP\\HR",)
    assert groups.of(("clerk@CORP.EXAMPLE",)) == ("group:CORP\\HR",)
    assert groups.of(("db.it.example",)) == ("group:CORP\\IT",)
    assert groups.of(("CORP\\boss", "db.example"), ("S-1-5-21-1-2-3-110",)) == ("group:S-1-5-21-1-2-3-110",)
    assert Groups().of(("CORP\\clerk",)) == ()


def test_peer_joins_its_groups() -> None:
    """What a rule may name of a peer is its names and its groups."""
    peer = Authenticated(Identity(IdKind.PRINCIPAL, b"CORP\\clerk"), "ntlm", "", names=("CORP\\clerk",))
    joined = parse(TABLE).joined(peer)
    assert joined.claims == ("CORP\\clerk", "group:CORP\\HR")
    assert joined.identity == peer.identity
    assert parse(TABLE).joined(ANONYMOUS).groups == ()


def test_no_name_passes_for_a_group() -> None:
    """A peer that may choose its name would choose a group."""
    for kind in (IdKind.FQDN, IdKind.RFC822_ADDR, IdKind.KEY_ID):
        for name in (b"group:CORP\\HR", b"Group:CORP\\HR", b" group:CORP\\HR"):
            shown = str(Identity(kind, name))
            assert not matches_any(("group:CORP\\HR",), (shown,)), shown
    for name in (f"group:{HR}", "GROUP:x@CORP", "keyid:x@CORP"):
        with pytest.raises(ValueError, match="pass for something else"):
            Principal.parse(name)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"HR": {}}, '"HR": sid or members is needed'),
        ({"HR": 7}, 'write ["HR"] as a table'),
        ({"": {"sid": HR}}, "plain name"),
        ({"group:HR": {"sid": HR}}, "plain name"),
        ({" HR": {"sid": HR}}, "plain name"),
        ({HR: {"members": ["a"]}}, "a SID is no name"),
        ({"HR": {"sid": "S-1-5"}}, "sid: text such as"),
        ({"HR": {"sid": 5}}, "sid: text such as"),
        ({"HR": {"member": ["a"]}}, 'member: unknown key, did you mean "members"?'),
        ({"HR": {"zzz": 1}}, "zzz: unknown key; known: sid, members"),
        ({"HR": {"members": "a"}}, 'members: a list, such as ["a"]'),
        ({"HR": {"members": []}}, "members: a list of names"),
        ({"HR": {"members": [7]}}, "members: names, not 7"),
        ({"HR": {"members": [" "]}}, "members: names, not"),
        ({"HR": {"members": ["group:IT"]}}, "names of hosts and users"),
        ({"HR": {"members": ["*"]}}, "names of hosts and users"),
        ({"HR": {"sid": HR}, "hr": {"members": ["a"]}}, '"hr": "HR" is that group already'),
        ({"HR": {"sid": HR}, "IT": {"sid": HR.lower()}}, '"IT": "HR" is that group already'),
    ],
)
def test_mistakes(table: dict[str, object], reason: str) -> None:
    """A group that is not what it seems admits or denies the wrong ones."""
    with pytest.raises(GroupError) as caught:
        parse(table)
    assert reason in str(caught.value)


def test_rule_admits_a_group_that_ntlm_has_proven() -> None:
    """From a host's files to the verdict of the policy."""
    clerk = NtlmAccount.named("CORP\\clerk", nt_hash("x"), ("accept", "user"))
    groups = Groups((Group("CORP\\HR", "", (clerk.name,)),))
    ours, theirs = (Credentials(Material(accounts=(clerk,), groups=groups), time.time) for _ in range(2))
    client, server = ours.ntlm_initiator(USERS, user=True), theirs.ntlm_acceptor(USERS, users=True)
    step = server.step(client.step(server.step(client.step(None).token).token).token)
    assert step.peer is not None
    hr, machine = AccessList(users=("group:corp\\hr",)), ("db.example",)
    assert admits(replace(USERS, allow=hr), machine, step.peer.claims)
    assert not admits(replace(USERS, deny=hr), machine, step.peer.claims)
    assert not admits(replace(USERS, allow=hr), machine, step.peer.names)
