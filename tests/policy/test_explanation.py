"""What `ikctl explain` says, word for word."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from support.policies import policy

from policy.engine import Policy
from sadb.selector import ICMP, TCP, UDP

CLIENT, SERVER = ip_address("10.10.5.20"), ip_address("10.10.5.7")

HR = """name = "hr"
local = "10.10.5.7"
protocol = "tcp"
local_port = 1433
inbound = "require"
outbound = "request"
encrypt = true"""
ISOLATE = 'name = "isolate"\nlocal = "10.10.0.0/16"\nsecurity = "request"'


def test_the_example_of_the_interface() -> None:
    """Administrators were promised these words."""
    one = policy(f'{HR}\nauth = "machine-and-user"', ISOLATE)
    assert str(one.explain(CLIENT, SERVER, TCP, 1433)) == (
        'secured by rule "hr" (require in, request out, encryption guaranteed), user authentication needed\n'
        '  beats rule "isolate" (10.10.0.0/16): its local address is a prefix, this one a single host'
    )


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ('"user-ntlm", "anonymous"', "user authentication asked for"),
        ('{ method = "certificate", health = true }', "health certificate needed"),
        ('{ method = "certificate", health = true }, "anonymous"', "health certificate asked for"),
    ],
)
def test_what_the_second_authentication_is_of(second: str, text: str) -> None:
    """Who is told to log on where a health certificate is missing looks in the wrong place."""
    sets = f'[auth.own]\nfirst = ["kerberos"]\nsecond = [{second}]\n'
    assert str(policy('auth = "own"', sets=sets).explain(CLIENT, SERVER)).endswith(f", {text}")


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ((), "passes in the clear: no rule speaks of it"),
        (('name = "x"\naction = "block"',), 'blocked by rule "x"'),
        (('name = "x"\naction = "permit"',), 'permitted in the clear by rule "x"'),
        (('name = "x"\nsecurity = "none"',), 'permitted in the clear by rule "x"'),
        (('name = "x"',), 'secured by rule "x" (require in, require out)'),
        (
            ('name = "x"\nlocal = "any"\nremote = "any"\ntunnel = { remote = "vpn.example" }',),
            'secured by rule "x" (require in, require out, tunnel to vpn.example)',
        ),
        (
            ('name = "x"\ninbound = "request"\noutbound = "none"',),
            'secured by rule "x" (request in, none out); only the peer can start it',
        ),
        (
            ('name = "x"\nremote = "10.10.0.0/16"', 'name = "y"\nremote = "10.0.0.0/8"'),
            'secured by rule "x" (require in, require out)\n'
            '  beats rule "y" (10.0.0.0/8): its remote address is 10.0.0.0/8, this one 10.10.0.0/16',
        ),
        (
            (
                'name = "x"\naction = "block"\nprotocol = "tcp"\nremote_port = 80',
                'name = "y"\nremote = "10.10.5.7"',
            ),
            'blocked by rule "x"\n'
            '  beats rule "y" (10.10.5.7): a block rule that names a service comes before all others',
        ),
        (
            ('name = "x"\nremote = "10.10.5.7"\nprotocol = "tcp"', 'name = "y"\nremote = "10.10.5.7"'),
            'secured by rule "x" (require in, require out)\n'
            '  beats rule "y" (10.10.5.7): its protocol is any, this one given',
        ),
        (
            ('name = "x"', 'name = "y"'),
            'secured by rule "x" (require in, require out)\n'
            '  beats rule "y" (any): they differ only in name, and names are taken in order',
        ),
    ],
)
def test_verdicts(rules: tuple[str, ...], text: str) -> None:
    """Each kind of decision in a sentence, with the criterion that made it."""
    assert str(policy(*rules).explain(CLIENT, SERVER, TCP, 80)) == text


def test_exemptions_are_told_as_such() -> None:
    """Nobody finds a rule for traffic that is exempt whatever the rules say."""
    found = policy('name = "x"').explain(CLIENT, ip_address("224.0.0.1"))
    assert str(found) == "passes in the clear: always exempt (multicast)"
    assert found.action == "permit"
    assert found.beaten is None


def test_rules_for_a_part_of_the_question_are_named() -> None:
    """Asked without a port, the answer must not hide that one port is different."""
    one = policy(
        'name = "host"\nremote = "10.10.5.7"',
        'name = "web"\nremote = "10.10.5.7"\nprotocol = "tcp"\nremote_port = [80, 443]',
        'name = "ntp"\naction = "permit"\nremote = "10.10.5.7"\nprotocol = "udp"\nremote_port = 123',
        'name = "from"\nremote = "10.10.5.7"\nprotocol = "tcp"\nlocal_port = 20\nremote_port = 8080',
    )
    names = [rule.name for rule in one.explain(CLIENT, SERVER).partly]
    assert sorted(names) == ["from", "ntp", "web"]
    assert [rule.name for rule in one.explain(CLIENT, SERVER, UDP).partly] == ["ntp"]
    assert not one.explain(CLIENT, SERVER, ICMP).partly
    # the port at the other end is known, the one at this end is not
    assert [rule.name for rule in one.explain(CLIENT, SERVER, TCP, 8080).partly] == ["from"]
    assert not one.explain(CLIENT, SERVER, TCP, 443).partly
    assert '  but rule "ntp" permits udp/123' in str(one.explain(CLIENT, SERVER)).splitlines()
    assert (
        '  but rule "from" secures tcp/8080 (at this end tcp/20)'
        in str(one.explain(CLIENT, SERVER)).splitlines()
    )


def test_direction_is_found_or_given() -> None:
    """On the server the packet arrives, on the client it leaves; without a daemon either may be asked."""
    one = policy(HR)
    assert one.explain(CLIENT, SERVER, TCP, 1433).outbound is False
    assert one.explain(CLIENT, SERVER, TCP, 1433, here=(SERVER,)).action == "secure"
    found = one.explain(CLIENT, SERVER, TCP, 1433, here=(CLIENT,))
    assert (found.outbound, found.action) == (True, "pass")
    gateway = one.explain(CLIENT, SERVER, TCP, 1433, here=(ip_address("10.10.0.1"),))
    assert gateway.action == "secure"


def test_document_has_plain_values() -> None:
    """The control socket sends this as JSON."""
    found = policy(HR, ISOLATE).explain(CLIENT, SERVER, TCP, 1433)
    assert found.document() == {
        "action": "secure",
        "rule": "hr",
        "direction": "inbound",
        "level": {"inbound": "require", "outbound": "request"},
        "beats": "isolate",
        "criterion": "local address",
        "because": "its local address is a prefix, this one a single host",
        "partly": [],
        "text": str(found),
    }
    nothing = Policy().explain(CLIENT, SERVER).document()
    assert (nothing["action"], nothing["rule"], nothing["level"], nothing["beats"]) == (
        "pass",
        None,
        None,
        None,
    )
