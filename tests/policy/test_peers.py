"""Who may use a rule: names in all their forms against peer, allow and deny."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.policies import one

from policy.peers import Form, admits, classify, distinguished, matches
from policy.rules import AccessList, Rule
from sadb.selector import Selector


def rule(peer: str | None = None, allow: AccessList | None = None, deny: AccessList | None = None) -> Rule:
    """A rule that differs only in whom it admits."""
    return Rule("r", Selector((), ()), peer=peer, allow=allow, deny=deny)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("db.corp.example", "db.corp.example", True),
        ("DB.Corp.Example", "db.corp.example.", True),
        ("host/db.corp.example", "db.corp.example", True),
        ("db.corp.example", "host/db.corp.example", True),
        ("@db.corp.example", "db.corp.example", True),
        ("*.corp.example", "db.corp.example", True),
        ("*.corp.example", "a.b.corp.example", True),
        ("*.corp.example", "corp.example", False),
        ("*.corp.example", "db.corp.example.evil.example", False),
        ("*.corp.example", "db-corp.example", False),
        ("db?.corp.example", "db1.corp.example", True),
        ("db?.corp.example", "db.corp.example", False),
        ("db[12].corp.example", "db1.corp.example", False),  # no sets of characters
        ("db[12].corp.example", "db[12].corp.example", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.70", False),
        ("2001:db8::1", "2001:DB8:0::1", True),
        ("clerk@corp.example", "clerk@CORP.example", True),
        ("*@corp.example", "clerk@corp.example", True),
        ("clerk@corp.example", "Clerk@corp.example", False),
        ("keyid:branch-7", "keyid:branch-7", True),
        ("keyid:branch-*", "keyid:branch-8", True),
        ("CORP\\clerk", "corp\\CLERK", True),
        ("group:CORP\\HR", "group:corp\\hr", True),
        ("Group: CORP\\HR", "group:CORP\\HR", True),
        ("group:S-1-5-21-1-2-3-1105", "group:s-1-5-21-1-2-3-1105", True),
        ("group:S-1-5-21-1-2-3-110", "group:S-1-5-21-1-2-3-1105", False),
        ("group:CORP\\*", "group:CORP\\HR", False),  # whole names only
        ("group:HR", "group:CORP\\HR", False),
        ("host/db@CORP.EXAMPLE", "host/db@corp.example", True),
        ("CN=db,O=Corp", "CN=db, O=Corp", True),
        ("cn=DB,o=corp", "CN=db,O=Corp", True),
        ("O=Corp,CN=db", "CN=db,O=Corp", True),
        ("CN=*,O=Corp", "CN=db,O=Corp", True),
        ("CN=db", "CN=db,O=Corp", False),
        ("CN=*,O=Corp", "CN=db,OU=x,O=Corp", False),
        ("CN=a\\,b,O=Corp", "CN=a\\2cb,O=Corp", True),
        ("2.5.4.3=db,O=Corp", "CN=db,O=Corp", True),
        ("OID.2.5.4.3=db,O=Corp", "CN=db,O=Corp", True),
        ("emailAddress=a@b.example", "E=a@b.example", True),
        ("CN=a+OU=b,O=Corp", "OU=b+CN=a,O=Corp", True),
        ("*", "anything at all", True),
        ("*", "CN=db", True),
        ("*", "", False),
    ],
)
def test_pattern_fits_name(pattern: str, name: str, fits: bool) -> None:
    """A pattern that fits too much lets a stranger in, one that fits too little locks a peer out."""
    assert matches(pattern, name) is fits


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*.corp.example", "clerk@db.corp.example"),
        ("*corp.example", "keyid:corp.example"),
        ("*", ""),
        ("192.0.2.*", "192.0.2.7"),
        ("*.7", "192.0.2.7"),
        ("*@corp.example", "db.corp.example"),
        ("*db*", "CN=db"),
        ("db", "CN=db"),
        ("*clerk", "CORP\\clerk"),
        ("CORP\\HR", "group:CORP\\HR"),
        ("group:CORP\\HR", "CORP\\HR"),
        ("*HR", "group:HR"),
        ("group:HR", "HR"),
    ],
)
def test_name_of_another_form_never_fits(pattern: str, name: str) -> None:
    """A mail address in a certificate must not pass for a host of that domain."""
    assert not matches(pattern, name)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("db.corp.example", Form.HOST),
        ("host/db", Form.HOST),
        ("::1", Form.ADDRESS),
        ("a@b", Form.MAIL),
        ("CN=x", Form.DN),
        ("keyid:CN=x", Form.KEY_ID),
        ("group:CN=x", Form.GROUP),
        ("CORP\\x", Form.PRINCIPAL),
        ("host/db@CORP", Form.PRINCIPAL),
        ("cifs/db", Form.PRINCIPAL),
    ],
)
def test_forms(text: str, form: Form) -> None:
    """The form decides what a text is compared with."""
    assert classify(text)[0] is form


def test_what_is_no_distinguished_name() -> None:
    """A broken name compares equal to nothing, not to everything."""
    for text in ("", "db", "=x", "CN=a,b", ",", "CN=a,=b"):
        assert distinguished(text) == ()
    assert not matches("CN=a,b", "CN=a,b")


def test_peer_must_be_proven() -> None:
    """Whoever proves to be another peer gets nothing, and the reason names both."""
    expecting = rule(peer="db.corp.example")
    assert admits(expecting, ("10.0.0.9", "db.corp.example"))
    verdict = admits(expecting, ("web.corp.example", "CN=web"))
    assert not verdict
    assert '"db.corp.example"' in verdict.reason
    assert "web.corp.example, CN=web" in verdict.reason
    assert not admits(expecting, ())


def test_without_lists_everybody_proven_is_admitted() -> None:
    """The default of a rule without peer: authentication decides."""
    assert admits(rule(), ("whoever.example",))


@pytest.mark.parametrize("name", ["Clerk@CORP.EXAMPLE", "keyid:BRANCH-7", "SECOND$@CORP.EXAMPLE"])
def test_deny_in_any_case_of_letters(name: str) -> None:
    """Whoever types an account's name in other letters gets a ticket that says so, and is denied all the
    same."""
    denied = AccessList(("clerk@corp.example", "keyid:branch-7", "second$@corp.example"))
    assert not admits(rule(deny=denied), (name,))
    assert admits(rule(deny=denied), ("other@corp.example",))


def test_deny_comes_before_allow() -> None:
    """The exception inside an allowed domain is the point of deny."""
    both = rule(
        allow=AccessList(machines=("*.corp.example",)), deny=AccessList(machines=("kiosk*.corp.example",))
    )
    assert admits(both, ("db.corp.example",))
    assert "denies" in admits(both, ("kiosk1.corp.example",)).reason
    assert "denies" in admits(both, ("db.corp.example", "kiosk1.corp.example")).reason
    assert "does not allow" in admits(both, ("db.other.example",)).reason


@pytest.mark.parametrize(
    "lists",
    [
        {"allow": AccessList(machines=("*",))},
        {"deny": AccessList(machines=("kiosk",))},
        {"peer": "*"},
    ],
)
def test_lists_admit_nobody_who_proved_nothing(lists: dict[str, AccessList]) -> None:
    """A deny list that lets the anonymous through would be no list."""
    assert not admits(rule(**lists), ())  # type: ignore[arg-type]


def test_users_are_a_second_condition() -> None:
    """A rule that lists users admits no machine without one."""
    hr = rule(
        allow=AccessList(machines=("*.corp.example",), users=("CORP\\clerk",)),
        deny=AccessList(users=("CORP\\intern",)),
    )
    machine = ("db.corp.example",)
    assert admits(hr, machine, ("CORP\\clerk",))
    assert "asks for a user" in admits(hr, machine).reason
    assert "does not allow user CORP\\boss" in admits(hr, machine, ("CORP\\boss",)).reason
    assert "denies" in admits(hr, machine, ("CORP\\clerk", "CORP\\intern")).reason
    assert not admits(hr, ("db.other.example",), ("CORP\\clerk",))
    assert "asks for a user" in admits(rule(deny=AccessList(users=("CORP\\x",))), machine).reason


def test_groups_are_not_told_as_names() -> None:
    """A user of a domain has dozens of SIDs; the reason is one line in a log."""
    listed = rule(allow=AccessList(machines=("x.example",), users=("group:CORP\\HR",)))
    reason = admits(listed, ("db.example", "group:S-1-5-21-1")).reason
    assert reason.endswith("does not allow db.example")
    listed = rule(allow=AccessList(users=("group:CORP\\HR",)))
    assert admits(listed, ("db",), ("CORP\\x", "group:S-1-1-0")).reason.endswith("allow user CORP\\x")


def test_lists_come_from_the_file() -> None:
    """What the file says is what is asked."""
    loaded = one('allow = { machines = "*.corp.example" }\ndeny = { machines = ["kiosk.corp.example"] }')
    assert admits(loaded, ("db.corp.example",))
    assert not admits(loaded, ("kiosk.corp.example",))
    assert not admits(loaded, ("db.example",))


def test_a_name_made_to_be_slow_is_not() -> None:
    """A peer chooses its name; a pattern with several stars must not be tried in every combination."""
    began = time.process_time()
    assert not matches("*a*a*a*a*a*a*a*b.example", "a" * 5000)
    assert time.process_time() - began < 0.5


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_names_can_be_compared(pattern: str, name: str) -> None:
    """Names come from peers: comparing them never raises, and a plain name fits itself."""
    matches(pattern, name)
    if name.strip() and classify(name)[1] and not set("*?") & set(name) and classify(name)[0] is not Form.DN:
        assert matches(name, name)
