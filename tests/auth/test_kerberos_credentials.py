"""Kerberos sides out of the host's credentials: for which rule, to whom, and the answers from a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from support.certificates import CERTIFICATE, rule
from support.kerberos import ALPHA, BETA, REALM, Kdc
from support.loopback import free_ports, start, until, write

from ikd.auth import Authenticate, Declined, Step, Token
from ikd.auth.credentials import Credentials, Material
from ikd.auth.groups import Group, Groups
from ikd.auth.kerberos import KerberosAcceptor, Ticket
from ikd.auth.keytab import Keytab, KeytabEntry
from ikd.auth.principal import Principal
from ikd.events import Broken
from ikd.outputs import Ask, Output
from policy.peers import admits
from policy.rules import AuthMethod
from sadb.address import Address

KERBEROS = AuthMethod("kerberos")
OURS = Keytab("/k", (KeytabEntry(Principal(("host", "a.example"), "R"), 1, 18),))


def side(keytab: Keytab | None = OURS) -> Credentials:
    return Credentials(Material(keytab=keytab), time.time)


def target(peer: str | None, claimed: str | None = None) -> str:
    """Whom a ticket is asked for."""
    made = side().kerberos_initiator(rule(KERBEROS, peer=peer), claimed)
    return str(made._target)


@pytest.mark.parametrize(
    ("peer", "claimed", "expected"),
    [
        ("db.example", None, "host/db.example"),
        ("@db.example", None, "host/db.example"),
        ("host/db.example", None, "host/db.example"),
        ("host/db.example@OTHER", None, "host/db.example@OTHER"),
        ("DB$@R", None, "DB$@R"),
        # what the rule says precisely is not changed by what the peer says
        ("db.example", "host/db.example@EVIL", "host/db.example"),
        ("db.example", "host/evil.example@R", "host/db.example"),
        ("*.example", "host/db.example@R", "host/db.example@R"),
        ("host/*.example", "host/db.example", "host/db.example"),
        (None, "host/db.example@R", "host/db.example@R"),
        (None, "DB$@R", "DB$@R"),
    ],
)
def test_whom_a_ticket_is_asked_for(peer: str | None, claimed: str | None, expected: str) -> None:
    """A peer that chooses its own name could choose one that it has the key of."""
    assert target(peer, claimed) == expected


@pytest.mark.parametrize(
    ("peer", "claimed", "reason"),
    [
        (None, None, "names no single host"),
        ("*.example", None, "names no single host"),
        ("10.0.0.9", None, "names no single host"),
        ("CN=db", None, "names no single host"),
        (
            "*.example",
            "host/db.other@R",
            'expects peer "*.example", the other end calls itself host/db.other@R',
        ),
        ("10.0.0.9", "host/db.example@R", 'expects peer "10.0.0.9"'),
        (None, "ldap/dc.example@R", "is no machine"),
        (None, "krbtgt/R@R", "is no machine"),
        (None, "clerk@R", "is no machine"),
        (None, "host/a\x00b", "no principal to ask a ticket for"),
        (None, "host/" + 3000 * "a", "no principal to ask a ticket for"),
    ],
)
def test_no_ticket_is_asked_for(peer: str | None, claimed: str | None, reason: str) -> None:
    """Tokens for a service that the peer chose could be passed on to it."""
    with pytest.raises(Declined) as caught:
        target(peer, claimed)
    assert reason in str(caught.value)


def test_rule_and_host_must_both_have_kerberos() -> None:
    """A rule for certificates must not be opened with a ticket."""
    for call in (
        lambda ours, which: ours.kerberos_name(which),
        lambda ours, which: ours.kerberos_acceptor(which),
        lambda ours, which: ours.kerberos_initiator(which),
    ):
        with pytest.raises(Declined, match=r"the peer wants Kerberos, rule .* does not"):
            call(side(), rule(CERTIFICATE, peer="b.example"))
        with pytest.raises(Declined, match="no Kerberos credential") as caught:
            call(side(None), rule(KERBEROS, peer="b.example"))
        assert "identity.keytab" in caught.value.remedy
    assert side().kerberos_name(rule(KERBEROS)) == "host/a.example@R"
    with pytest.raises(Declined, match="no key of a machine"):
        side(Keytab("/k")).kerberos_name(rule(KERBEROS))


def test_rule_admits_whom_kerberos_has_proven(kdc: Kdc) -> None:
    """From two hosts' files to the verdict of the policy, both ways."""
    alpha = side(kdc.load(kdc.base / "alpha.keytab"))
    beta = side(kdc.load(kdc.base / "beta.keytab"))
    to_beta, from_alpha = rule(KERBEROS, peer="beta.example.test"), rule(KERBEROS, peer=ALPHA)
    ours, peers = alpha.kerberos_initiator(to_beta), beta.kerberos_acceptor(from_alpha)
    reply = peers.step(ours.step(None).token)
    last = ours.step(reply.token)
    assert last.peer is not None
    assert reply.peer is not None
    assert admits(to_beta, last.peer.names)
    assert admits(from_alpha, reply.peer.names)
    assert not admits(rule(KERBEROS, peer="gamma.example.test"), last.peer.names)
    assert beta.kerberos_name(from_alpha) == f"{BETA}@{REALM}"
    remaining = alpha.remaining(last.peer)
    assert remaining is not None
    assert 35_000 < remaining <= 36_000


def test_tickets_of_the_user(kdc: Kdc) -> None:
    """The second authentication is about the user: with the machine's keytab it would prove nothing new."""
    users = rule(KERBEROS, AuthMethod("user-kerberos"), peer=BETA)
    cache = f"FILE:{kdc.base}/erika.ccache"
    ours = Credentials(Material(keytab=OURS, tickets=Ticket(cache)), time.time)
    with pytest.raises(Declined, match=r"no ticket.*erika\.ccache") as caught:
        ours.kerberos_initiator(users, user=True).step(None)
    assert "kinit" in caught.value.remedy
    kdc.principal("erika", "-pw secret")
    kdc.run("kinit", "-c", cache, "erika", stdin="secret\n")
    groups = Groups((Group("HR", "", (f"erika@{REALM}",)),))
    beta = Credentials(Material(keytab=kdc.load(kdc.base / "beta.keytab"), groups=groups), time.time)
    step = beta.kerberos_acceptor(users, users=True).step(
        ours.kerberos_initiator(users, user=True).step(None).token
    )
    assert step.peer is not None
    assert step.peer.names == (f"erika@{REALM}",)
    assert step.peer.groups == ("group:HR",)  # and no SIDs from a KDC that knows none
    with pytest.raises(Declined, match="no Kerberos tickets of a user") as caught:
        side().kerberos_initiator(users, user=True)
    assert "identity.user_tickets" in caught.value.remedy


# From the driver -----------------------------------------------------------------------------------------


class Listening:
    """The core, as far as it is told answers."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, object]] = []
        self.threads: set[int] = set()

    def answer(self, ticket: int, value: object, now: float) -> list[Output]:
        self.answers.append((ticket, value))
        self.threads.add(threading.get_ident())
        return []

    def deadline(self) -> None:
        """Nothing is due."""

    def own_addresses(self) -> frozenset[Address]:
        """None that matters."""
        return frozenset()

    destinations = own_addresses

    def network_changed(self, *_: object) -> list[Output]:
        """Nothing is to be done about it."""
        return []


class Slow:
    """A side that waits until it is let go."""

    blocking = True

    def __init__(self) -> None:
        self.go = threading.Event()
        self.ran_on = 0

    def step(self, token: Token | None) -> Step:
        self.ran_on = threading.get_ident()
        assert self.go.wait(20)
        raise Declined("slow")


class Quick:
    """A side that answers at once."""

    def step(self, token: Token | None) -> Step:
        return Step(Token(b"quick"))


async def test_questions_that_may_wait_are_answered_from_a_thread(kdc: Kdc, tmp_path: Path) -> None:
    """One KDC that does not answer would hold up every other negotiation of the host."""
    running = await start(write(tmp_path, "left", free_ports()))
    driver, core = running.daemon.driver, Listening()
    driver.endpoint, former = core, driver.endpoint  # type: ignore[assignment]
    try:
        slow, request = Slow(), KerberosAcceptor(kdc.load(kdc.base / "beta.keytab"), time.time)
        driver.perform([Ask(1, Authenticate(slow)), Ask(2, Authenticate(Quick()))])
        assert core.answers == [(2, Step(Token(b"quick")))]
        driver.perform([Ask(3, Authenticate(request, Token(b"no token")))])
        await until(lambda: len(core.answers) == 2)
        ticket, value = core.answers[1]
        assert ticket == 3
        assert isinstance(value, Declined)
        slow.go.set()
        await until(lambda: len(core.answers) == 3)
        assert [str(value) for ticket, value in core.answers if ticket == 1] == ["slow"]
        assert core.threads == {threading.get_ident()}
        assert slow.ran_on not in core.threads
        # more than there is room for is refused at once
        crowd = [Slow() for _ in range(80)]
        driver.perform([Ask(10 + number, Authenticate(one)) for number, one in enumerate(crowd)])
        refused = [value for ticket, value in core.answers if ticket >= 10]
        assert len(refused) == 8
        assert all("wait for a KDC already" in str(value) for value in refused)
        for one in crowd:
            one.go.set()
        await until(lambda: len(core.answers) == 83)
        await asyncio.sleep(0)
        assert not running.happened(Broken)
    finally:
        driver.endpoint = former
        await running.stop()
