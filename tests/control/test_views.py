"""The forms of answers: every rule of every example can be told, and names on the command line find their
SAs."""

from __future__ import annotations

import io
import json
from ipaddress import ip_network
from pathlib import Path

import pytest
from rich.console import Console
from support.link import Link, connected

from ikd.association import Association
from ikd.auth import ANONYMOUS, Authenticated, Identity
from ikd.auth.identity import IdKind
from ikd.control import render, rule_views, views
from ikd.control.protocol import ControlError
from ikd.control.targets import find
from ikd.events import DatagramDropped, UserAuthenticated
from ikd.paths import NoPath, path_for
from policy.engine import Changes
from policy.parse import parse
from policy.schema import KEYWORDS
from sadb.address import parse as address
from sadb.sa import Acquire

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "conf" / "examples").glob("*.toml"))
RESOLVED = {word: [ip_network("192.0.2.0/24")] for word in KEYWORDS}

TUNNEL = '[[rule]]\nname="t"\nlocal="10.1.0.0/16"\nremote="10.2.0.0/16"\ntunnel={{local="{}", remote="{}"}}\n'


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_rule_of_the_examples_can_be_shown(path: Path) -> None:
    """A rule that `policy show` cannot print is one nobody can check."""
    policy = parse(path.read_text(), path.name, RESOLVED)
    answer = rule_views.policy(policy)
    json.dumps(answer)
    out = io.StringIO()
    render.policy(Console(file=out, width=200), answer)
    for rule in policy.rules:
        assert rule.name in out.getvalue()
        if rule.secures:
            assert rule.crypto is not None
            assert str(rule.crypto.main[0]) in out.getvalue()


def test_ports_and_protocol_come_back_as_written() -> None:
    """They stand inside selectors; shown there they would be unreadable."""
    policy = parse('[[rule]]\nname="hr"\nlocal="10.10.5.7"\nprotocol="tcp"\nlocal_port=[1433, 1434]\n')
    shown = rule_views.rule(policy.rules[0])
    assert (shown["protocol"], shown["local_port"], shown["remote_port"]) == ("tcp", ["1433", "1434"], [])
    assert (shown["local"], shown["remote"]) == (["10.10.5.7"], ["any"])


def test_event_line_has_the_documented_form() -> None:
    """Scripts read `event`, `time`, `group` and `text` from every line of a watch."""
    line = views.event_line(DatagramDropped(reason="malformed", detail="short"), 1767322985.678)
    assert line == {
        "event": "datagram-dropped",
        "time": "2026-01-02T03:03:05.678Z",
        "group": "network",
        "reason": "malformed",
        "detail": "short",
        "path": None,
        "text": "dropped a datagram: malformed (short)",
    }


def test_reload_answer_is_what_render_reads() -> None:
    """`ikctl reload` prints these; a missing key is a traceback."""
    answer = views.changes(Changes(("a",), ("b",), ("c",)), [], ["careful"], rules=2, dry_run=True)
    out = io.StringIO()
    render.reload(Console(file=out, width=200), answer)
    lines = out.getvalue().splitlines()
    assert lines == ["a: would be added", "b: would be changed", "c: would be removed", "! careful"]


def test_name_that_is_nobodys_names_the_nearest() -> None:
    """A typing error must not look like a missing SA."""
    policy = parse('[[rule]]\nname="branch"\nremote="10.0.0.9"\n')
    with pytest.raises(ControlError) as caught:
        find("brnach", policy, {}, [])
    assert "branch" in caught.value.remedy
    assert not find("branch", policy, {}, [])


def test_path_of_a_rule() -> None:
    """Between the wrong addresses a peer never answers; each way to know them is tried."""
    asked: list[str] = []

    def source_for(peer: object) -> object:
        asked.append(str(peer))
        return address("192.0.2.77")

    def path(text: str, acquire: Acquire | None = None) -> str:
        return str(path_for(parse(text).rules[0], acquire, 500, source_for))  # type: ignore[arg-type]

    assert path(TUNNEL.format("192.0.2.1", "198.51.100.7")) == "192.0.2.1:500 -> 198.51.100.7:500"
    assert not asked
    assert path(TUNNEL.format("any", "198.51.100.7")) == "192.0.2.77:500 -> 198.51.100.7:500"
    host = '[[rule]]\nname="h"\nremote="{}"\n'
    assert path(host.format("198.51.100.7")) == "192.0.2.77:500 -> 198.51.100.7:500"
    packet = Acquire("h", address("192.0.2.5"), address("198.51.100.99"))
    assert path(host.format("198.51.100.0/24"), packet) == "192.0.2.5:500 -> 198.51.100.99:500"
    for text, why in (
        (host.format("198.51.100.0/24"), "more than one peer"),
        (TUNNEL.format("192.0.2.1", "any"), "only answers"),
        (TUNNEL.format("192.0.2.1", "vpn.example"), "has no address"),
    ):
        with pytest.raises(NoPath, match=why):
            path(text)


def test_no_route_is_said() -> None:
    """No route to the peer is the network's fault, and the message must say so."""
    rule = parse('[[rule]]\nname="h"\nremote="198.51.100.7"\n').rules[0]
    with pytest.raises(NoPath, match="no route") as caught:
        path_for(rule, None, 500, lambda peer: None)
    assert caught.value.event(rule).peer == "198.51.100.7"


# The second authentication ----------------------------------------------------------------------------------

MACHINE = Authenticated(
    Identity(IdKind.PRINCIPAL, b"host/ws20.corp.example@CORP.EXAMPLE"),
    "kerberos",
    "host/ws20.corp.example@CORP.EXAMPLE (kerberos)",
    names=("ws20.corp.example",),
)
CLERK = Authenticated(
    Identity(IdKind.PRINCIPAL, b"CORP\\clerk"),
    "user-kerberos",
    "CORP\\clerk (kerberos)",
    names=("CORP\\clerk",),
    groups=("group:CORP\\HR", "group:CORP\\Staff"),
)
HEALTHY = Authenticated(
    Identity(IdKind.FQDN, b"ws20.corp.example"), "certificate", "health cert CN=ws20", health=True
)


def proven(peer: Authenticated, user: Authenticated | None) -> tuple[Link, Association]:
    """A main-mode SA that is up, as if its peer had proven this."""
    link = connected()
    (one,) = link.left.ikes
    one.main.peer, one.main.user = peer, user
    return link, one


def texts(link: Link, one: Association) -> tuple[str, str, str]:
    """What `ikctl status`, `ikctl sa main` and `ikctl sa extended` print of it."""
    peer = views.peer(one, link.left.pairs, {}, lambda pairs: "software", link.now)
    main = views.association(one, link.left.pairs, link.now)
    json.dumps([peer, main])
    status = views.status(up=1, engine="software", quick=1, peers=[peer], sentences=[])
    found = []
    for show, answer in (
        (render.status, status),
        (render.sa, {"main": [main]}),
        (render.sa, {"extended": [main]}),
    ):
        out = io.StringIO()
        show(Console(file=out, width=240), answer)
        found.append(out.getvalue())
    return found[0], found[1], found[2]


def test_a_user_is_shown_beside_the_machine() -> None:
    """Who is logged on is what the second authentication is for; nobody could see it otherwise."""
    link, one = proven(MACHINE, CLERK)
    answer = views.association(one, link.left.pairs, link.now)
    assert {key: answer[key] for key in ("user", "user_method", "user_proof", "groups", "health")} == {
        "user": "CORP\\clerk",
        "user_method": "user-kerberos",
        "user_proof": "CORP\\clerk (kerberos)",
        "groups": ["group:CORP\\HR", "group:CORP\\Staff"],
        "health": False,
    }
    for text in texts(link, one)[:2]:
        assert "  host/ws20.corp.example + CORP\\clerk (kerberos)  " in text
    extended = texts(link, one)[2].splitlines()[1].split("  ")
    assert [cell.strip() for cell in extended if cell][2:5] == ["ikev2", "CORP\\clerk", "kerberos"]
    assert extended[-1].strip() == "CORP\\HR, CORP\\Staff"


def test_health_is_shown_and_is_no_user() -> None:
    """A script that looks for users must not find a machine; an administrator must see the health."""
    link, one = proven(MACHINE, HEALTHY)
    answer = views.association(one, link.left.pairs, link.now)
    assert (answer["user"], answer["health"], answer["user_proof"]) == ("", True, "health cert CN=ws20")
    status, _, extended = texts(link, one)
    assert "host/ws20.corp.example + health (certificate)" in status
    assert "proven" in extended
    assert views.second(HEALTHY, None)["health"]


def test_without_a_second_authentication_nothing_changes() -> None:
    """Also where it was optional and left out."""
    for user in (None, ANONYMOUS):
        link, one = proven(MACHINE, user)
        second = views.second(MACHINE, user)
        assert (second["user"], second["user_method"], second["user_proof"]) == ("", "", "")
        assert " + " not in texts(*proven(HEALTHY, user))[0]
        status, main, _ = texts(link, one)
        for text in (status, main):
            assert "host/ws20.corp.example@CORP.EXAMPLE" in text
            assert "principal:" not in text
            assert " + " not in text


def test_an_anonymous_machine_goes_by_its_address() -> None:
    """Nobody can do anything with the name of nobody."""
    link, one = proven(ANONYMOUS, CLERK)
    for text in texts(link, one):
        assert "null" not in text
    assert "192.0.2.2 + CORP\\clerk (kerberos)" in texts(link, one)[0]
    assert one.main.peer_name == "192.0.2.2"
    one.main.user = None
    assert " anonymous " in texts(link, one)[0]


def test_users_are_names_on_the_command_line() -> None:
    """`ikctl down CORP\\clerk` ends what this user has."""
    link, one = proven(MACHINE, CLERK)
    associations = link.left.endpoint.associations
    assert find("CORP\\clerk", link.left.endpoint.policy, associations, link.left.pairs).associations == (
        one,
    )


def test_the_event_of_the_second_authentication() -> None:
    """The log has to tell a user from a machine, and say why a list of groups let one in."""
    event = UserAuthenticated(
        ike=1,
        rule="hr",
        identity="CORP\\clerk",
        method="user-kerberos",
        description="CORP\\clerk (kerberos)",
        address="10.10.5.20",
        groups=CLERK.groups,
    )
    assert event.text == (
        "10.10.5.20 is used by CORP\\clerk (kerberos), member of CORP\\HR, CORP\\Staff, rule hr"
    )
    line = views.event_line(event, 0.0)
    assert (line["event"], line["group"], line["health"]) == ("user-authenticated", "auth", False)
