"""ikd.migrate with swanctl.conf: rules that say what was written, and a list of what they do not say."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd.migrate import rules, swanctl
from ikd.migrate.model import (
    MOST_CONNECTIONS,
    MOST_ENTRIES,
    Child,
    Place,
    Setting,
    Source,
    Unreadable,
)
from ikd.migrate.rules import Result
from ikd.migrate.settings import Section, read
from policy.parse import parse
from policy.rules import Rule
from sadb.sa import Action, Mode

# As in the documentation of strongSwan: two networks, pre-shared keys
NETS = """\
connections {
    gw-gw {
        local_addrs  = 192.168.0.1
        remote_addrs = 192.168.0.2
        local {
            auth = psk
            id = moon.strongswan.org
        }
        remote {
            auth = psk
            id = sun.strongswan.org
        }
        children {
            net-net {
                local_ts  = 10.1.0.0/16
                remote_ts = 10.2.0.0/16
                rekey_time = 90m
                rekey_bytes = 500000000
                esp_proposals = aes128gcm128-x25519
                start_action = trap
            }
        }
        version = 2
        mobike = no
        rekey_time = 4h
        proposals = aes128-sha256-x25519
    }
}
secrets {
    ike-1 {
        id-1a = moon.strongswan.org
        id-1b = sun.strongswan.org
        secret = 0sFpZAZqEN6Ti9sqt4ZP5EWcqx
    }
}
"""


def none(pattern: str, place: Place) -> list[tuple[str, str]]:
    """No files to include."""
    raise Unreadable(f"{place}: {pattern}: no such file")


def load(text: str, local: str = "") -> tuple[Source, Result]:
    """A file's source and what becomes of it."""
    source = swanctl.load("s", text, none)
    return source, rules.translate(source, local)


def connection(body: str = "", child: str = "", remote: str = "id = sun.example") -> str:
    """A connection with pre-shared keys between two hosts."""
    return dedent(f"""\
        connections {{
        host {{
        local_addrs = 192.0.2.1
        remote_addrs = 192.0.2.2
        {body}
        local {{
        auth = psk
        }}
        remote {{
        auth = psk
        {remote}
        }}
        children {{
        one {{
        {child}
        }}
        }}
        }}
        }}
        """)


def rule_of(text: str, local: str = "") -> Rule:
    """The only rule, as the daemon loads it."""
    (rule,) = parse(load(text, local)[1].policy()).rules
    return rule


def lines(text: str) -> list[str]:
    """What is listed."""
    return [str(one) for one in load(text)[0].findings]


def test_networks() -> None:
    """The commonest configuration of all would come out as something else."""
    source, result = load(NETS)
    (rule,) = parse(result.policy()).rules
    assert (rule.name, rule.peer, rule.mode, rule.keying) == (
        "net-net",
        "sun.strongswan.org",
        Mode.TUNNEL,
        ("ikev2",),
    )
    assert str(rule.selector) == "10.1.0.0/16 === 10.2.0.0/16"
    assert rule.tunnel
    assert (str(rule.tunnel.local), str(rule.tunnel.remote)) == ("192.168.0.1", "192.168.0.2")
    assert rule.auth
    assert rule.crypto
    assert [one.method for one in rule.auth.first] == ["psk"]
    assert [(one.group.name, one.encryption.name, one.prf.name) for one in rule.crypto.main] == [
        ("x25519", "aes128", "sha256")
    ]
    assert [(one.encryption and one.encryption.name, one.group and one.group.name, one.esn)
            for one in rule.crypto.quick] == [("aes128gcm", "x25519", False)]  # fmt: skip
    times = rule.crypto.lifetime
    assert (times.main_seconds, times.quick_seconds, times.quick_octets) == (14400, 5400, 500_000_000)
    assert result.identity == "moon.strongswan.org"
    assert result.keys == [{"peers": ["sun.strongswan.org"], "secret_base64": "FpZAZqEN6Ti9sqt4ZP5EWcqx"}]
    assert [str(one) for one in source.findings] == [
        "s:24: gw-gw.mobike = no: not translated; ike.mobike of ikd.toml is for all peers"
    ]


def test_hosts_in_transport_mode() -> None:
    """Selectors that are left out mean the hosts themselves."""
    rule = rule_of(connection(child="mode = transport"))
    assert str(rule.selector) == "192.0.2.1 === 192.0.2.2"
    assert rule.mode is Mode.TRANSPORT
    rule = rule_of(connection(child="mode = transport\nremote_ts = dynamic[tcp/5432]\nlocal_ts=dynamic[tcp]"))
    assert str(rule.selector) == "192.0.2.1[tcp] === 192.0.2.2[tcp/5432]"


def test_gateway_for_branches_with_any_address() -> None:
    """A rule that only answers would name an address to call."""
    text = connection(child="local_ts = 10.1.0.5/16\nremote_ts = 10.3.0.0/24, 10.4.0.0/24").replace(
        "remote_addrs = 192.0.2.2", "remote_addrs = %any"
    )
    rule = rule_of(text)
    assert rule.tunnel
    assert rule.tunnel.remote is None
    assert [str(side) for side in rule.selector.remote] == ["10.3.0.0/24", "10.4.0.0/24"]
    assert str(rule.selector.local[0]) == "10.1.0.0/16"


def test_host_without_an_address_of_its_own() -> None:
    """A tunnel would carry what comes from anywhere; with --local it has its address."""
    text = connection().replace("local_addrs = 192.0.2.1", "")
    assert any("name it with --local" in line for line in lines(text))
    assert str(rule_of(text, "192.0.2.9").selector) == "192.0.2.9 === 192.0.2.2"


@pytest.mark.parametrize(("mode", "action"), [("pass", Action.PERMIT), ("drop", Action.BLOCK)])
def test_shunts(mode: str, action: Action) -> None:
    """An exemption would be protected, and what is forbidden permitted."""
    selectors = "local_ts = 10.1.0.0/16\nremote_ts = 10.1.0.0/16[tcp/22]"
    rule = rule_of(connection(child=f"mode = {mode}\n{selectors}"))
    assert rule.action is action
    assert str(rule.selector) == "10.1.0.0/16[tcp] === 10.1.0.0/16[tcp/22]"


def test_certificates() -> None:
    """An authority that is named would no longer be asked for."""
    text = connection(remote='ca_id = "C=CH, O=strongSwan, CN=CA"\nid = "C=CH, O=strongSwan, CN=*"')
    rule = rule_of(text.replace("auth = psk", "auth = pubkey"))
    assert rule.auth
    assert [(one.method, one.ca) for one in rule.auth.first] == [("certificate", "C=CH, O=strongSwan, CN=CA")]
    assert rule.peer == "C=CH, O=strongSwan, CN=*"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (connection("vips = 0.0.0.0"), "virtual addresses"),
        (connection("pools = p"), "virtual addresses"),
        (connection("local-2 {\nauth = eap\n}"), "a second authentication"),
        (connection("remote-2 {\nauth = eap\n}"), "a second authentication"),
        (connection(remote="certs = sun.pem"), "anybody would be admitted"),
        (connection(remote="groups = admins"), "anybody would be admitted"),
        (connection(remote='id = "@#ff00"'), "no text"),
        (connection(remote="id = two words"), "not an identity"),
        (connection(remote="id = @"), "no name in it"),
        (connection(remote="id = fqdn:"), "no name in it"),
        (connection(remote="id = sha1:abc"), "not available"),
        (connection(remote="id = x\nauth = eap-mschapv2"), "eap-mschapv2"),
        (connection(remote="id = x\nauth = pubkey"), "the same way"),
        (connection("version = 3"), "is not known"),
        (connection(child="mode = beet"), "beet"),
        (connection(child="remote_ts = dynamic[tcp]"), "a tunnel carries every protocol"),
        (connection(child="mode = transport\nremote_ts = dynamic[tcp], dynamic[udp]"), "several protocols"),
        (connection(child="mode = transport\nremote_ts = dynamic[udp/opaque]"), "opaque"),
        (connection(child="remote_ts = 10.0.0.0/99"), "is no prefix"),
        (connection(child="mode = pass\nremote_ts = dynamic[tcp/22]").replace("192.0.2.2", "%any"), "an end"),
        (connection(child="remote_ts =").replace("192.0.2.2", "%any"), "address of an end"),
        (connection(child="remote_ts = ,").replace("192.0.2.2", "%any"), "address of an end"),
        (connection(child="remote_ts = 224.0.0.0/4"), "multicast"),
        (connection().replace("192.0.2.2", "%any"), "address of an end"),
        (connection(child="mode = transport").replace("192.0.2.2", "%any"), "address of an end"),
    ],
)
def test_nothing_comes_out_wider(text: str, reason: str) -> None:
    """A rule without what cannot be said would admit more, or cover more, than was written."""
    source, result = load(text)
    assert result.rules == []
    assert any(reason in one.text for one in source.findings), source.findings


def test_what_is_left_out_is_listed_with_its_line() -> None:
    """Somebody would believe that all of it works."""
    text = connection(
        "encap = yes\nproposals = aes128-md5-modp2048, default\nrekey_time = 0",
        "start_action = start\nipcomp = yes\nrekey_time = 9d",
        "id = sun.example\nrevocation = strict",
    )
    found = lines(text + "authorities {\nx {\n}\n}\npools = 3\n")
    for wanted in (
        r"s:\d+: pools = 3: not translated",
        r"s:\d+: authorities: the section is not translated",
        r"s:5: host.encap = yes: not translated; UDP encapsulation is used where a NAT is found",
        r's:6: algorithm "md5" is refused: .*',
        r"s:6: no proposal is left.*",
        r's:7: one: "0" is no time.*',
        r"s:\d+: host.remote.revocation = strict: not translated",
        r"s:\d+: one: ikd negotiates when a packet needs it.*",
        r"s:\d+: host.children.one.ipcomp = yes: not translated",
        r's:\d+: one: "9d" is longer.*',
    ):
        assert any(re.fullmatch(wanted, line) for line in found), wanted


def test_children_of_the_same_name() -> None:
    """The second one would replace the first."""
    text = connection() + connection().replace("host {", "other {").replace("192.0.2.2", "192.0.2.3")
    assert [one["name"] for one in load(text)[1].rules] == ["host-one", "other-one"]


def test_two_names_of_this_host() -> None:
    """The identity would be that of a connection that is not there, or our own name pass for a peer's."""
    one, two, three = (
        connection().replace("host {", f"{name} {{").replace("auth = psk", f"auth = psk\nid = {name}", 1)
        for name in ("one", "two", "three")
    )
    keys = "secrets {\nike {\nid-a = three\nid-b = sun\nsecret = x\n}\n}\n"
    source, result = load(one.replace("{\nlocal_addrs", "{\nvips = ::\nlocal_addrs") + two + three + keys)
    assert result.identity == "two"
    assert any('this host is "two" and cannot be "three", too' in one.text for one in source.findings)
    assert result.keys == [{"peers": ["sun"], "secret": "x"}]


@pytest.mark.parametrize(
    ("ids", "secret", "entry"),
    [
        (["moon", "sun"], '"a # b } c"', {"peers": ["sun"], "secret": "a # b } c"}),
        (["192.0.2.1", "192.0.2.2"], "0x6162", {"peers": ["192.0.2.2"], "secret_hex": "6162"}),
        (["%any"], "word", {"secret": "word"}),
        (["sun", "%any"], "word", {"secret": "word"}),
        ([], "two  words", {"secret": "two words"}),
        (["@sun", "clerk@sun"], "word", {"peers": ["sun", "clerk@sun"], "secret": "word"}),
    ],
)
def test_keys(ids: list[str], secret: str, entry: dict[str, object]) -> None:
    """A key would be for somebody else."""
    text = connection().replace("auth = psk", "auth = psk\nid = moon", 1)
    names = "\n".join(f"id-{number} = {one}" for number, one in enumerate(ids))
    result = load(f"{text}secrets {{\nike-x {{\n{names}\nsecret = {secret}\n}}\n}}")[1]
    assert result.keys == [entry]


@pytest.mark.parametrize(
    "body",
    [
        'ike {\nid = sun; secret = "HIDDEN key"\n}',
        'ike {\nid = sun\nsecret = 0xHIDDEN\n}',
        'ike {\nid = sha1:HIDDEN\nsecret = "x"\n}',
        'eap-x {\nid = sun\nsecret = "HIDDEN"\n}',
        'ike {\nid = "@#HIDDEN"\nsecret = "HIDDEN"\n}',
        'ike {\nid = sun\nsecret = a\n}\nike-2 {\nid = sun\nsecret = HIDDEN\n}',
    ],
)  # fmt: skip
def test_no_remark_shows_a_secret(body: str) -> None:
    """The list is what people paste into a question to others."""
    source, result = load(f"{connection()}secrets {{\n{body}\n}}\nsecret = HIDDEN\n")
    assert source.findings
    assert "HIDDEN" not in str(source.findings) + repr(result)
    assert "HIDDEN" not in result.policy()


# The language -----------------------------------------------------------------------------------------------


def test_language() -> None:
    """Quotes, comments, braces and repetitions, as strongSwan's own reader has them."""
    text = dedent("""\
        # comment { }
        a { b = 1 # two
          c = "x } # \\"y\\" \\\\ \\
        z"   w
          d { e = f = g } }
        a
        {
          b = 2
          empty =
        }
        """)
    root = read("s", text, none)
    a = root.section("a")
    assert {key: value.text for key, value in a.values.items()} == {
        "b": "2",
        "c": 'x } # "y" \\ z w',
        "empty": "",
    }
    assert a.section("d").values["e"].text == "f = g"
    assert (a.values["b"].place.line, a.section("d").place.line) == (8, 5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a {", "s:1: the section is not closed"),
        ("}", "s:1: a closing brace"),
        ("a { } }", "s:1: a closing brace"),
        ("\na b", "s:2: .* neither"),
        ("a", "neither"),
        ("= b", "not expected"),
        ('"a" = b', "not expected"),
        ('a = "b', "quotes does not end"),
        ('a = "b\\', "quotes does not end"),
        ("a : b { }", 's:1: there is no section "b"'),
        ("a : b { }\nb : a { }\nc : a.x {\n}", 'no section "a.x"'),
        ("a : b", "neither"),
        ("a { b : a { } }", "more than 16 sections"),
        (
            "x { y = 1 }\n" + "\n".join(f"s{n} : s{n + 1} {{ }}" for n in range(100)) + "\ns100 { }",
            "after each other",
        ),
        ("a{" * 100_000, "more than 16 sections"),
        ("a = 1\n" * (MOST_ENTRIES + 1), "more than 20000 entries"),
        ("include x", "no such file"),
    ],
)
def test_what_is_no_such_file(text: str, reason: str) -> None:
    """Half of a file would be taken for all of it, or a file of braces exhaust the stack."""
    with pytest.raises(Unreadable, match=reason):
        read("s", text, none)


def test_references() -> None:
    """A connection that says only what differs from another would be one without authentication."""
    text = """\
        home {
          a = 1
          in { b = 2
            c = 3 }
        }
        x : home, other, last { in { c = 4 } }
        y : x {
          a = 5
        }
        other { d = 6 }
        last { d = 7
          more : home { } }
        """
    root = read("s", text, none)
    assert {key: value.text for key, value in root.section("y").values.items()} == {"a": "5", "d": "6"}
    inner = root.section("y").section("in")
    assert {key: value.text for key, value in inner.values.items()} == {"b": "2", "c": "4"}
    assert root.section("y").section("more").section("in").values["c"].text == "3"
    assert root.section("home").section("in").values["c"].text == "3"


def test_templates_are_no_connections() -> None:
    """Whoever reads the list would look for what is missing in a section that is in use."""
    text = connection().replace("host {", "host : base, connections.common {")
    assert "host : base" in text
    text = text.replace("connections {", "connections {\ncommon {\nversion = 2\n}", 1)
    assert lines("base {\nversion = 2\n}\n" + text) == []


def test_references_that_multiply() -> None:
    """A few lines would become more than fits into memory."""
    text = "s0 { a = 1 }\n" + "\n".join(
        f"s{n} {{\nx : s{n - 1} {{ }}\ny : s{n - 1} {{ }}\n}}" for n in range(1, 40)
    )
    with pytest.raises(Unreadable, match="more than"):
        read("s", text, none)


def test_proposals_with_several_key_exchanges() -> None:
    """Without the second one they would be weaker than what was written."""
    text = connection("proposals = aes256-sha256-x25519-ke1_mlkem768, aes256-sha256-ecp256")
    crypto = rule_of(text).crypto
    assert crypto
    assert [one.group.name for one in crypto.main] == ["p256"]


def test_file_that_includes_itself() -> None:
    """It would never end."""
    text = "include s\n"
    with pytest.raises(Unreadable, match="files inside each other"):
        read("s", text, lambda pattern, place: [("s", text)])


def test_too_many_children() -> None:
    """Each of them is checked by the loader: a generated file could take hours."""
    children = "\n".join(f"c{number} {{ }}" for number in range(MOST_CONNECTIONS + 1))
    with pytest.raises(Unreadable, match="more than 1000 children"):
        swanctl.load("s", f"connections {{ x {{ children {{\n{children}\n}}\n}}\n}}", none)


def test_every_beginning_of_a_file_is_refused_or_translated() -> None:
    """A file cut off by a full disk would crash the command, or come out as a policy that does not load."""
    whole = 0
    for end in range(len(NETS) + 1):
        try:
            root = read("s", NETS[:end], none)
        except Unreadable:
            continue
        assert isinstance(root, Section)
        whole += 1
    assert whole > 2


_WORDS = (
    'connections children local remote secrets ike id auth psk local_ts remote_ts secret mode { } = = # " \\ '
    "include : 10.0.0.0/8 dynamic[tcp/%any] é \x7f tunnel pass - ,"
)
_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), max_size=20)
_VALUES = (
    "192.0.2.1 %any vpn.example psk 10.0.0.0/8 dynamic tunnel transport ::/0 10.0.0.0/8[udp/500] 1 2 yes "
    "aes128-sha1-modp1024- 0 @#6162"
)
_KEYS = (
    "local remote local_ts remote_ts mode ike esp ah version aggressive local_id remote_id local_auth "
    "remote_auth ca time ike_time bytes packets idle start"
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*_WORDS.split(" "), "\n", "\n", " ", "include "]), max_size=40).map("".join))
def test_any_text_is_refused_or_read(text: str) -> None:
    """A file that is no configuration would end in a traceback."""
    try:
        source = swanctl.load("s", text, none)
    except Unreadable:
        return
    parse(rules.translate(source).policy())


@settings(max_examples=80, deadline=None)
@given(
    _TEXTS,
    st.dictionaries(st.sampled_from(_KEYS.split()), _TEXTS | st.sampled_from(_VALUES.split()), max_size=12),
)
def test_whatever_is_translated_loads(name: str, values: dict[str, str]) -> None:
    """A policy that the daemon refuses would be called translated, or a value become other keys."""
    place = Place("s", 1)
    child = Child(name, place, {key: Setting(value, place) for key, value in values.items()})
    source = Source(children=[child, child])
    result = rules.translate(source, "192.0.2.7")
    assert len(parse(result.policy()).rules) == len(result.rules)
    assert result.rules or source.findings
