"""ikd.migrate with ipsec.conf and ipsec.secrets: the older interface of strongSwan."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd.migrate import ipsec, rules
from ikd.migrate.model import Place, Source, Unreadable
from ikd.migrate.rules import Result
from policy.parse import parse
from policy.rules import Rule
from sadb.sa import Action, Mode

# As in the documentation of strongSwan
NETS = """\
# ipsec.conf
config setup
\tcharondebug="ike 2"

conn %default
\tikelifetime=60m
\tkeylife=20m
\tkeyingtries=1
\tkeyexchange=ikev2
\tauthby=secret

conn net-net
\tleft=192.168.0.1   # moon
\tleftsubnet=10.1.0.0/16
\tleftid=@moon.strongswan.org
\tleftfirewall=yes
\talso=sun
\tauto=route

conn sun
\tright=192.168.0.2
\trightsubnet=10.2.0.0/16
\trightid=@sun.strongswan.org
\tike=aes128-sha256-modp3072,aes256-sha384-ecp384!
"""
SECRETS = """\
@moon.strongswan.org @sun.strongswan.org : PSK 0sv+NkxY9LLZvwj4qCC2o/gGrWDF2d21jL
# a comment
: RSA moonKey.pem "HIDDEN"
carol : EAP "HIDDEN"
fec0::1 fec0::2 : PSK "with # and : in it"
"""


def none(pattern: str, place: Place) -> list[tuple[str, str]]:
    """No files to include."""
    raise Unreadable(f"{place}: {pattern}: no such file")


def load(text: str, here: str = "192.168.0.1", secrets: str = "") -> tuple[Source, Result]:
    """A file's source and what becomes of it on the host `here`."""
    source = ipsec.load("c", text, none, {here})
    ipsec.load_secrets("s", secrets, none, source)
    return source, rules.translate(source)


def conn(*parameters: str, **more: str) -> str:
    """A section with pre-shared keys."""
    lines = ["left=192.168.0.1", "right=192.168.0.2", "authby=psk", "auto=add", *parameters]
    return "conn one\n" + "".join(f"  {line}\n" for line in lines)


def rule_of(text: str, here: str = "192.168.0.1") -> Rule:
    """The only rule, as the daemon loads it."""
    (rule,) = parse(load(text, here)[1].policy()).rules
    return rule


def test_networks() -> None:
    """Defaults and sections that are taken in would get lost, or make rules of their own."""
    source, result = load(NETS, secrets=SECRETS)
    (rule,) = parse(result.policy()).rules
    assert (rule.name, rule.peer, rule.keying) == ("net-net", "sun.strongswan.org", ("ikev2",))
    assert str(rule.selector) == "10.1.0.0/16 === 10.2.0.0/16"
    assert rule.tunnel
    assert rule.auth
    assert rule.crypto
    assert (str(rule.tunnel.local), str(rule.tunnel.remote)) == ("192.168.0.1", "192.168.0.2")
    assert [one.method for one in rule.auth.first] == ["psk"]
    assert [one.group.name for one in rule.crypto.main] == ["modp3072", "p384"]
    assert (rule.crypto.lifetime.main_seconds, rule.crypto.lifetime.quick_seconds) == (3600, 1200)
    assert result.identity == "moon.strongswan.org"
    assert result.keys == [
        {"peers": ["sun.strongswan.org"], "secret_base64": "v+NkxY9LLZvwj4qCC2o/gGrWDF2d21jL"},
        {"peers": ["fec0::1", "fec0::2"], "secret": "with # and : in it"},
    ]
    assert sorted(map(str, source.findings)) == [
        "c:16: leftfirewall = yes: not translated; no script is run; ikd has a packet filter of its own",
        "c:8: keyingtries = 1: not translated",
        "s:3: a secret of type RSA: only PSK is translated",
        "s:4: a secret of type EAP: only PSK is translated",
    ]


def test_the_other_end_reads_the_same_file() -> None:
    """left and right are whose addresses they are: the rule would lead from the peer to this host."""
    rule = rule_of(NETS, "192.168.0.2")
    assert str(rule.selector) == "10.2.0.0/16 === 10.1.0.0/16"
    assert rule.peer == "moon.strongswan.org"
    assert rule.tunnel
    assert str(rule.tunnel.remote) == "192.168.0.1"


def test_l2tp() -> None:
    """Everything between the hosts would be covered, or the port be at the wrong end."""
    rule = rule_of(conn("type=transport", "leftprotoport=17/1701", "rightprotoport=17/%any", "right=%any"))
    assert rule.mode is Mode.TRANSPORT
    assert str(rule.selector.local[0]) == "192.168.0.1[udp/1701]"
    assert {side.protocol for side in rule.selector.remote} == {17}


def test_passthrough_and_what_is_not_loaded() -> None:
    """An exemption would be protected; a connection that strongSwan ignores would be in force."""
    rule = rule_of(conn("type=passthrough", "leftsubnet=10.1.0.0/16", "rightsubnet=10.1.0.0/16"))
    assert rule.action is Action.PERMIT
    source, result = load(conn().replace("  auto=add\n", ""))
    assert not parse(result.policy()).rules[0].enabled
    assert any("auto is ignore" in one.text for one in source.findings)


def test_ikev1_in_aggressive_mode() -> None:
    """A peer that has nothing else could not be reached any more."""
    rule = rule_of(conn("keyexchange=ikev1", "aggressive=yes", "ike=aes128-sha1-modp1024"))
    assert rule.aggressive
    assert rule.keying == ("ikev1",)


def test_name_of_the_peer() -> None:
    """Without rightid it is the address; a rule without `peer` would admit everybody."""
    assert rule_of(conn()).peer == "192.168.0.2"
    assert rule_of(conn("right=sun.example", "rightsubnet=10.2.0.0/16")).peer == "sun.example"
    assert rule_of(conn("rightid=%any")).peer is None
    assert rule_of(conn("rightid=%sun.example")).peer == "sun.example"  # % is no part of the name


def test_peer_with_a_name_and_any_address() -> None:
    """The rule only answers, where strongSwan would look the name up: that must not be a surprise."""
    text = conn("right=%sun.example", "rightid=@sun.example", "rightsubnet=10.2.0.0/16")
    source, _ = load(text)
    rule = rule_of(text)
    assert rule.tunnel
    assert (rule.tunnel.remote, rule.peer) == (None, "sun.example")
    assert any("the peer has to begin" in one.text for one in source.findings)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (["rightsourceip=10.3.0.0/24"], "virtual addresses"),
        (["leftsourceip=%config"], "virtual addresses"),
        (["rightauth2=eap"], "a second authentication"),
        (["authby=xauthpsk"], "xauthpsk"),
        (["leftauth=pubkey"], "the same way"),
        (["rightid=%any", "rightcert=sun.pem"], "anybody would be admitted"),
        (["rightcert=sun.pem"], "anybody would be admitted"),
        (["keyexchange=ikev3"], "is not known"),
        (["right=%any"], "address of an end"),
        (["right=%any", "rightauth=eap-mschapv2"], "eap-mschapv2"),  # which is why, not what comes of it
    ],
)
def test_nothing_comes_out_wider(parameters: list[str], reason: str) -> None:
    """A rule without what cannot be said would admit more than was written."""
    source, result = load(conn(*parameters))
    assert result.rules == []
    assert any(reason in one.text for one in source.findings), source.findings


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conn a\n  also=b\n  auto=add\n", "c:2: there is no section conn b"),
        ("conn\n", "c:1: neither"),
        ("hello\n", "c:1: neither"),
        ("conn a\n  left\n", "c:2: this is no parameter"),
        ('conn a\n  left="b\n', "c:2: the text in quotes"),
        ("include x\n", "no such file"),
        ("".join(f"conn c{n}\n" for n in range(1001)), "more than 1000 sections"),
        ("conn a\n" + " b=c\n" * 20_000, "more than 20000 entries"),
    ],
)
def test_what_is_no_such_file(text: str, reason: str) -> None:
    """Half of a file would be taken for all of it."""
    with pytest.raises(Unreadable, match=reason):
        load(text)


def test_sections_that_take_each_other_in() -> None:
    """They would be taken in for ever."""
    text = conn("also=two") + "conn two\n  also=one\n  also=two\n  esp=aes128gcm16\n"
    assert {one["crypto"] for one in load(text)[1].rules} == {"one"}


def test_chain_of_sections() -> None:
    """What costs the square of a file's length keeps the command busy for a day."""
    text = "".join(f"conn c{n}\n also=c{n + 1}\n auto=add\n" for n in range(400))
    assert load(text + "conn c400\n left=1.2.3.4\n auto=add\n")[1].rules == []


def test_file_that_includes_itself() -> None:
    """It would never end."""
    with pytest.raises(Unreadable, match="files inside each other"):
        ipsec.load("c", "include c\n", lambda pattern, place: [("c", "include c\n")], set())
    with pytest.raises(Unreadable, match="files inside each other"):
        ipsec.load_secrets("s", "include s\n", lambda pattern, place: [("s", "include s\n")], Source())


@pytest.mark.parametrize(
    "line",
    ["HIDDEN", "a PSK HIDDEN", ": PSK", "sha1:x : PSK HIDDEN", "x : PSK 0xHIDDEN", "x : NTLM HIDDEN",
     ": PSK 1\n: PSK HIDDEN", "x: PSK HIDDEN"],
)  # fmt: skip
def test_no_remark_shows_a_secret(line: str) -> None:
    """The list is what people paste into a question to others."""
    source, result = load(conn(), secrets=line)
    assert [one for one in source.findings if one.place.file == "s"]
    assert "HIDDEN" not in str(source.findings) + repr(result) + repr(source.keys)


_LINES = st.sampled_from(
    ["conn a", "conn b", "conn %default", "config setup", "ca x", "include y", " also=a", " also=b",
     " left=", " left=%any", " right=192.0.2.2", " auto=add", " authby=psk", " type=drop", "#", "\\t", "é",
     " leftsubnet=10.0.0.0/8[", " leftprotoport=udp/%any", ' rightid="a b"', " rightid=@x", ' x="',
     " ike=!", " esp=,-!"]
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(_LINES, max_size=25).map("\n".join), st.text(max_size=30))
def test_any_text_is_refused_or_read(text: str, secrets: str) -> None:
    """A file that is no configuration would end in a traceback, or in a policy that does not load."""
    try:
        source, result = load(text, secrets=secrets)
    except Unreadable:
        return
    assert len(parse(result.policy()).rules) == len(result.rules)
    assert isinstance(source.findings, list)
