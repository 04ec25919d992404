"""Kerberos in AuthIP with a real KDC and two endpoints: machines by their keytabs, users by their tickets.

If one of these fails, hosts of a realm do not come together, or a user without a ticket passes."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
from support.authip import main_mode
from support.kerberos import ALPHA, BETA, REALM, Kdc
from support.link import BOTH, Host, Link, agree, losing, tunnel_hosts

from ikd.auth.credentials import Credentials, Material
from ikd.auth.kerberos import Ticket
from ikd.events import Broken, PeerAuthenticated, UserAuthenticated

_caches = itertools.count()
NAMES = {"left": "alpha.example.test", "right": "beta.example.test"}
CRYPTO = '[crypto.old]\nmain = ["p256 aes128 sha256"]\nquick = ["aes128 sha256"]\nesn = false\n'
MACHINE = '[auth.set]\nfirst = ["kerberos"]\n'
USER = MACHINE + 'second = ["user-kerberos"]\n'
RULE = 'keying = ["authip"]\ncrypto = "old"\npeer = "{}"\n'


def realm(
    kdc: Kdc, sets: str = MACHINE, *, peers: tuple[str, str] = (NAMES["right"], NAMES["left"]), user: str = ""
) -> Link:
    """alpha on the left, where a user may be logged in, and beta on the right; `peers` is whom the rules of
    both expect."""
    materials: dict[str, Material] = {}
    for side, file in (("left", "alpha.keytab"), ("right", "beta.keytab")):
        keytab = replace(kdc.load(kdc.base / file), cache=f"MEMORY:authip-{next(_caches)}")
        materials[side] = Material(keytab=keytab)
    if user:
        materials["left"] = replace(materials["left"], tickets=Ticket(user))
    hosts = tunnel_hosts(
        left_rule=RULE.format(peers[0]),
        right_rule=RULE.format(peers[1]),
        sets=CRYPTO + sets,
        auth="set",
        **materials,
    )
    for one in hosts:
        one.endpoint.env.credentials = Credentials(materials[one.name], time.time)
    return Link(*hosts)


@pytest.fixture(scope="module")
def clerk(kdc: Kdc) -> str:
    """The ticket cache of a user."""
    kdc.admin("addprinc -pw secret clerk")
    cache = f"FILE:{kdc.base}/clerk.ccache"
    kdc.run("kinit", "-c", cache, "clerk", stdin="secret\n")
    return cache


def unbroken(link: Link) -> None:
    assert not link.left.of(Broken)
    assert not link.right.of(Broken)


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("peers", [(NAMES["right"], NAMES["left"]), ("*.example.test", "*.example.test")])
def test_machines_of_a_realm(kdc: Kdc, first: str, peers: tuple[str, str]) -> None:
    """By their keytabs, and for whatever name the responder calls itself where the rule leaves it open."""
    link = realm(kdc, peers=peers)
    link.up("net", first)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for one, other in ((link.left, BETA), (link.right, ALPHA)):
        (proven,) = one.of(PeerAuthenticated)
        assert proven.identity == f"principal:{other}@{REALM}"
    link.rekey(link.named(first))
    link.run(60)
    agree(link, ikes=1, pairs=1)


def test_any_message_may_be_lost(kdc: Kdc, clerk: str) -> None:
    """A token that came twice would be taken for a replay: repetitions must not reach Kerberos."""
    whole = realm(kdc, USER, user=clerk)
    whole.up("net")
    whole.run(10)
    for number in range(len(whole.flights)):
        link = realm(kdc, USER, user=clerk)
        link.fate = losing(number)
        link.up("net")
        link.run(40)
        agree(link, ikes=1, pairs=1)


def test_a_user_on_a_machine(kdc: Kdc, clerk: str) -> None:
    """The machine by its keytab, the user by his ticket; the responder knows both."""
    link = realm(kdc, USER, user=clerk)
    link.up("net")
    link.run(10)
    agree(link, ikes=1, pairs=1)
    main = main_mode(link.right).main
    assert main.user is not None
    assert main.user.method == "user-kerberos"
    assert main.user_names == (f"clerk@{REALM}",)
    (event,) = link.right.of(UserAuthenticated)
    assert event.identity == f"principal:clerk@{REALM}"
    assert not link.left.of(UserAuthenticated)


def _failed(one: Host, reason: str) -> None:
    assert not one.pairs
    assert reason in " ".join(found.reason + found.remedy for found in one.failures), one.failures


def test_a_user_without_a_ticket(kdc: Kdc) -> None:
    """Nothing comes up, and the initiator's administrator is told to get a ticket."""
    link = realm(kdc, USER, user=f"FILE:{kdc.base}/nobody-here.ccache")
    link.up("net")
    link.run(60)
    agree(link, ikes=0, pairs=0)
    _failed(link.left, "kinit")
    unbroken(link)


def test_a_user_does_not_pass_for_a_machine(kdc: Kdc, clerk: str) -> None:
    """Whoever has any account of the realm would have the machine's rights."""
    link = realm(kdc, user=clerk)
    keytab = link.left.endpoint.env.credentials.material.keytab
    assert keytab is not None
    kdc.principal("mallory")
    stolen = kdc.keytab("mallory.keytab", "mallory")
    credentials = Credentials(Material(keytab=replace(stolen, cache="MEMORY:mallory")), time.time)
    link.left.endpoint.env.credentials = credentials
    link.up("net")
    link.run(60)
    agree(link, ikes=0, pairs=0)
    unbroken(link)


def test_the_kdc_is_away(kdc: Kdc) -> None:
    """A method that cannot be used is told to the responder with an empty token, and the next one is tried:
    here there is none."""
    link = realm(kdc)
    kdc.stop()
    try:
        link.up("net")
        link.run(60)
        agree(link, ikes=0, pairs=0)
        _failed(link.left, "KDC")
    finally:
        kdc.start()
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)


def test_a_name_that_is_known_saves_a_round_trip(kdc: Kdc) -> None:
    """The token goes along with the first message once the responder has said its name; one that has another
    name since is asked for it again (section 3.2.4)."""
    link = realm(kdc, peers=("*.example.test", "*.example.test"))
    before = []
    for _ in range(2):
        link.up("net")
        link.run(5)
        before.append(len(link.flights))
        agree(link, ikes=1, pairs=1)
        link.close(link.left)
        link.run(20)
    assert before[0] == 8, "#1 to #8"
    assert [one.header.exchange for one in link.flights[before[1] - 6 : before[1]]] == [243] * 4 + [244] * 2
    kdc.principal("host/gamma.example.test")
    moved = replace(kdc.keytab("gamma.keytab", "host/gamma.example.test"), cache="MEMORY:gamma")
    link.right.endpoint.env.credentials = Credentials(Material(keytab=moved), time.time)
    for _ in range(2):
        link.up("net")
        link.run(20)
    agree(link, ikes=1, pairs=1)
