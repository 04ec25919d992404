"""Every credential of AuthIP between two hosts in virtual time: NTLM, certificates, health, nobody, users,
and the same with each message lost (MS-AIPS sections 1.7, 3.6 to 3.9).

Kerberos, which needs a KDC, is in `test_authip_kdc`. If one of these fails, hosts do not come together, or
somebody has an SA who has not proven what the rule asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scenarios.test_health import well
from support import certificates
from support.authip import hosts, main_mode
from support.link import BOTH, POSIX, Link, agree, losing, story
from support.phases import authority, certified
from support.phases import sets as crypto

from ikd import pki
from ikd.auth.certificate import HostCertificate
from ikd.auth.credentials import Material
from ikd.auth.ntlm import NtlmAccount, nt_hash
from ikd.authip.numbers import Exchange
from ikd.events import AuthenticationFailed, UserAuthenticated
from ikd.settings import IkeSettings

LEFT, RIGHT = certified("left"), certified("right")
CLERK = "CORP\\clerk"


def auth(first: str, second: str = "") -> str:
    """The authentication set of both hosts."""
    return f"[auth.machine]\nfirst = [{first}]\n" + (f"second = [{second}]\n" if second else "")


def account(name: str, use: str, password: str = "correct horse") -> NtlmAccount:
    """An account that somebody has, or believes."""
    return NtlmAccount.named(name, nt_hash(password), (use,))


def person(material: Material, name: str = "clerk@corp.example", ca: str = "CN=Lab CA") -> Material:
    """The same host with a user's certificate."""
    pair = pki.issue(
        authority(ca), "CN=clerk", [name], now=POSIX - 3600, key=certificates.key("ecdsa-p256", 3)
    )
    return replace(material, user=HostCertificate((pair.certificate,), pair.key))


def both(material: Material, *accounts: NtlmAccount) -> Material:
    """The same host with accounts."""
    return replace(material, accounts=accounts)


MACHINES = {
    side: both(material, account(f"CORP\\{own}$", "machine"), account(f"CORP\\{other}$", "accept"))
    for side, material, own, other in (("left", LEFT, "LEFT", "RIGHT"), ("right", RIGHT, "RIGHT", "LEFT"))
}
USERS = {
    side: both(material, account(CLERK, "user"), account(CLERK, "accept"))
    for side, material in (("left", LEFT), ("right", RIGHT))
}
PEOPLE = {"left": person(LEFT), "right": person(RIGHT)}
PLAIN = {"left": LEFT, "right": RIGHT}
STRANGE = both(RIGHT, account("CORP\\OTHER$", "accept"))
HEALTHY = {"left": well("left"), "right": well("right")}
HEALTH = '{ method = "certificate", health = true }'

# name: authentication set, credentials of both
METHODS: dict[str, tuple[str, dict[str, Material]]] = {
    "certificate": (auth('"certificate"'), PLAIN),
    "server only": (auth('{ method = "certificate", mutual = false }'), PLAIN),
    "ntlm": (auth('"ntlm"'), MACHINES),
    "health": (auth(HEALTH), HEALTHY),
    "user certificate": (auth('"certificate"', '"user-certificate"'), PEOPLE),
    "user ntlm": (auth('"certificate"', '"user-ntlm"'), USERS),
    "health second": (auth('"certificate"', HEALTH), HEALTHY),
    "anonymous and user": (auth('"anonymous"', '"user-certificate"'), PEOPLE),
    "optional user": (auth('"certificate"', '"user-certificate", "anonymous"'), PEOPLE),
    "optional, nobody": (auth('"certificate"', '"user-certificate", "anonymous"'), PLAIN),
    "first fails": (auth('"ntlm", "certificate"'), {"left": MACHINES["left"], "right": STRANGE}),
}  # fmt: skip


def link_of(name: str, **how: Any) -> Link:
    """Two hosts of a row."""
    sets, materials = METHODS[name]
    return Link(*hosts(auth=sets, **materials, **how))


@pytest.mark.parametrize("side", BOTH)
@pytest.mark.parametrize("name", METHODS)
def test_each_credential(name: str, side: str) -> None:
    """In both roles, and what is up can be replaced and comes to an end."""
    if name == "first fails" and side == "right":
        side = "left"  # only the left one has an account
    link = link_of(name)
    link.up("net", side)
    link.run(10)
    agree(link, ikes=1, pairs=1)
    initiator = link.named(side)
    link.rekey_child(initiator)
    link.run(10)
    link.rekey(initiator)
    link.run(60)
    agree(link, ikes=1, pairs=1)
    link.close(initiator)
    link.run(20)
    agree(link, ikes=0, pairs=0)


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_any_message_may_be_lost(name: str) -> None:
    """A negotiation of any length goes on from any message that is lost, or comes twice."""
    whole = link_of(name)
    whole.up("net")
    whole.run(10)
    for number in range(len(whole.flights)):
        link = link_of(name)
        link.fate = losing(number)
        link.up("net")
        link.run(40)
        agree(link, ikes=1, pairs=1)


def test_who_is_known_afterwards() -> None:
    """What rules and `ikctl sa` see: the machine by the first, the user by the second authentication."""
    link = link_of("user ntlm")
    link.up("net")
    link.run(10)
    left, right = main_mode(link.left).main, main_mode(link.right).main
    assert right.peer is not None
    assert right.user is not None
    assert (str(right.peer.identity), right.peer.method) == ("left.example", "certificate")
    assert (right.user.method, right.user_names) == ("user-ntlm", (CLERK,))
    assert left.user is None, "the responder has proven no user"
    (event,) = link.right.of(UserAuthenticated)
    assert event.identity == f"principal:{CLERK}"


def test_health_is_known_and_limits_the_life() -> None:
    """A host counts as healthy for as long as its certificate says."""
    link = link_of("health second")
    link.up("net")
    link.run(10)
    for one in (link.left, link.right):
        association = main_mode(one)
        assert association.main.user is not None
        assert association.main.user.health
        assert association.life.hard_at is not None
        assert association.life.hard_at - link.now <= 4 * 3600


def test_extended_mode_is_encrypted() -> None:
    """Names of users do not go over the wire in the clear."""
    link = link_of("user ntlm")
    link.up("net")
    link.run(10)
    extended = [one for one in link.flights if one.header.exchange == Exchange.EXTENDED]
    assert len(extended) >= 6
    assert all(one.header.flags == 1 for one in extended)
    assert not any(b"c\0l\0e\0r\0k" in one.data for one in link.flights)


@pytest.mark.parametrize(
    ("name", "left", "reason"),
    [
        ("user ntlm", both(LEFT, account(CLERK, "user", "wrong")), "NTLM"),
        ("user ntlm", both(LEFT, account("CORP\\nobody", "user")), "NTLM"),
        ("user certificate", person(LEFT, ca="CN=Another CA"), "certificate"),
        ("user certificate", LEFT, "no credential"),
        ("ntlm", both(LEFT, account("CORP\\LEFT$", "machine", "wrong")), "NTLM"),
        ("health", LEFT, ""),
        ("certificate", certified("left", ca="CN=Another CA"), ""),
        ("certificate", certified("left", start=POSIX - 400 * 86400), ""),
    ],
)
def test_who_does_not_prove_himself_gets_nothing(name: str, left: Material, reason: str) -> None:
    """Neither a pair nor a main-mode SA, and both sides are told."""
    sets, materials = METHODS[name]
    link = Link(*hosts(auth=sets, **(materials | {"left": left})))
    link.up("net")
    link.run(100)
    agree(link, ikes=0, pairs=0)
    assert link.left.failures, story(link)
    assert reason in " ".join(one.reason for one in link.left.failures)


@pytest.mark.parametrize(
    ("name", "left", "entry"),
    [
        (
            "ntlm",
            both(LEFT, account("CORP\\LEFT$", "machine", "wrong")),
            ("principal:CORP\\LEFT$", "ntlm", "wrong-key"),
        ),
        (
            "user ntlm",
            both(LEFT, account(CLERK, "user", "wrong")),
            (f"principal:{CLERK}", "user-ntlm", "wrong-key"),
        ),
    ],
)
def test_the_security_log_names_who_failed(name: str, left: Material, entry: tuple[str, ...]) -> None:
    """An entry that says neither whose password is being guessed nor in a word why helps nobody."""
    sets, materials = METHODS[name]
    link = Link(*hosts(auth=sets, **(materials | {"left": left})))
    link.up("net")
    link.run(30)
    failed = link.right.of(AuthenticationFailed)
    assert {(one.identity, one.method, one.cause) for one in failed} == {entry}, failed
    assert {one.rule for one in failed} == {"net"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_foreign_certificate_is_untrusted_on_either_side(side: str) -> None:
    """The initiator's reasons of several attempts are one event, which must not forget the cause."""
    sets, materials = METHODS["certificate"]
    foreign = replace(certified(side), hosts=certified(side, ca="CN=Another CA").hosts)
    link = Link(*hosts(auth=sets, **(materials | {side: foreign})))
    link.up("net")
    link.run(30)
    other = link.other(link.named(side))
    found = {(one.identity, one.cause) for one in other.of(AuthenticationFailed) if "trusted" in one.reason}
    assert found == {(f"{side}.example", "untrusted")}


USERS_ONLY = 'allow = {{ users = ["{}"] }}\n'


@pytest.mark.parametrize(
    ("allowed", "admitted"), [(CLERK.replace("\\", "\\\\"), True), ("CORP\\\\boss", False), ("*", True)]
)
def test_a_rule_admits_users_by_name(allowed: str, admitted: bool) -> None:
    """The user of the second authentication against the rule's list; the pair is there only if he is in."""
    sets, materials = METHODS["user ntlm"]
    rule = (
        "[[rule]]\n"
        'name = "{}"\nlocal = "{}"\nremote = "{}"\nsecurity = "require"\nauth = "machine"\n'
        'keying = "authip"\ncrypto = "old"\n'
    )
    link = Link(*hosts(auth=sets, **materials))
    for one, other in ((link.left, link.right), (link.right, link.left)):
        text = rule.format("host", one.address, other.address)
        if one is link.right:
            text += USERS_ONLY.format(allowed)
        link.reload(one, text + crypto() + sets)
    link.up("host")
    link.run(60)
    agree(link, ikes=int(admitted), pairs=int(admitted))


def test_no_user_passes_where_the_second_authentication_is_optional() -> None:
    """A rule that lists users has to refuse who leaves the second authentication out."""
    sets, _ = METHODS["optional user"]
    link = Link(*hosts(auth=sets, left=LEFT, right=RIGHT))
    base = (
        '[[rule]]\nname = "host"\nlocal = "{}"\nremote = "{}"\nsecurity = "require"\nauth = "machine"\n'
        'keying = "authip"\ncrypto = "old"\n'
    )
    for one, other in ((link.left, link.right), (link.right, link.left)):
        text = base.format(one.address, other.address)
        link.reload(one, text + (USERS_ONLY.format("*") if one is link.right else "") + crypto() + sets)
    link.up("host")
    link.run(60)
    agree(link, ikes=0, pairs=0)


@pytest.mark.parametrize("side", BOTH)
@pytest.mark.parametrize("name", ["certificate", "server only", "anonymous and user"])
def test_without_diffie_hellman(name: str, side: str) -> None:
    """Where the policy does without, the token's secret is the only one, but not for methods that have
    none."""
    link = link_of(name, settings=IkeSettings(authip_dh="when-needed"))
    link.up("net", side)
    link.run(10)
    agree(link, ikes=1, pairs=1)
    assert bool(main_mode(link.left).session.shared) is (name == "anonymous and user")


def test_one_side_insists_on_diffie_hellman() -> None:
    """Forward secrecy that one side demands is not negotiated away; the reason is told."""
    link = link_of(
        "certificate", right_settings=IkeSettings(), left_settings=IkeSettings(authip_dh="when-needed")
    )
    link.up("net")
    link.run(60)
    agree(link, ikes=0, pairs=0)
    link.up("net", "right")
    link.run(10)
    agree(link, ikes=1, pairs=1)


def test_explicit_credentials_may_be_forbidden() -> None:
    """Who is told by policy to accept users' sessions only accepts no password out of a file."""
    link = link_of("user ntlm", right_settings=IkeSettings(authip_explicit=False))
    link.up("net")
    link.run(60)
    agree(link, ikes=0, pairs=0)
    assert any("explicitly supplied" in event.text for event in link.right.events)


def test_one_way_means_the_initiator_stays_the_initiator() -> None:
    """Where only one side is proven the other cannot begin main mode in its place: it asks."""
    link = link_of("server only", crypto="")
    link.up("net")
    link.run(5)
    link.rekey_child(link.right)
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert all(one.initiator for one in link.left.ikes)
    link.rekey(link.right)
    link.run(60)
    agree(link, ikes=1, pairs=1)
