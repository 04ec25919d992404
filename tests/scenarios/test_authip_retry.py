"""Authentication retry of AuthIP: every method and every credential in one negotiation (MS-AIPS section 3.1).

If one of these fails, a host that could prove itself does not get in, or one that cannot tries for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from support.authip import hosts, main_mode, person, reading, token_in, with_users
from support.link import BOTH, POSIX, Flight, Link, agree, losing, story
from support.phases import certified

from ikd.auth import Authenticated, Authenticator, Declined, Identity, Step, Token
from ikd.auth.credentials import Material
from ikd.authip import methods
from ikd.authip.numbers import Exchange, GssFlags, Method
from ikd.authip.tokens import MOST_ATTEMPTS, MOST_RETRIES
from ikd.events import AuthenticationFailed
from sadb.secret import Secret

KERBEROS, NTLM, TLS = int(Method.KERBEROS), int(Method.NTLM), int(Method.TLS)
COUNTED = pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
COURSES = pytest.mark.parametrize("second", [False, True], ids=["main", "extended"])


# Mechanisms that behave as their names say


@dataclass
class Stub:
    """One side of a mechanism of two tokens: the initiator's has its name, with which the acceptor agrees or
    not, and answers."""

    name: str
    initiator: bool
    begun: bool = False

    def step(self, token: Token | None) -> Step:
        """As the name says."""
        peer = Authenticated(Identity.parse("stub.example"), "kerberos", "a stub", names=("stub.example",))
        secret = Secret(self.name.encode().ljust(16, b"-"))
        if self.initiator and not self.begun:
            self.begun = True
            if self.name == "cannot begin":
                raise Declined("no ticket", "kinit")
            return Step(Token(self.name.encode()))
        assert token is not None
        if self.initiator:
            if self.name == "does not believe":
                raise Declined("the responder is somebody else")
            return Step(None, peer, secret)
        name = token.data.decode()
        if name.startswith("bad"):
            raise Declined(f"{name} is not believed")
        return Step(Token(b"yes, " + token.data), peer, Secret(token.data.ljust(16, b"-")))


Attempts = dict[int, list[str]]


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Link]:
    """Two hosts with stubs: by method, in order, the names of the initiator's credentials; the responder
    knows some of the methods, and has `acceptors` that cannot be made. In extended mode with `second`."""

    def make(attempts: Attempts, *, second: bool = False, broken: tuple[int, ...] = (), **how: Any) -> Link:
        real = {name: getattr(methods, name) for name in ("initiators", "acceptor", "usable")}

        def initiators(env: Any, rule: Any, number: int, *args: Any, **keys: Any) -> list[methods.Side]:
            if keys["second"] is not second:
                return real["initiators"](env, rule, number, *args, **keys)  # type: ignore[no-any-return]
            return [methods.Side(lambda name=name: Stub(name, True)) for name in attempts[number]]  # type: ignore[misc]

        def acceptor(env: Any, rule: Any, number: int, *args: Any, **keys: Any) -> Authenticator:
            if keys["second"] is not second:
                return real["acceptor"](env, rule, number, *args, **keys)  # type: ignore[no-any-return]
            if number in broken:
                raise Declined("our keytab has gone")
            return Stub("", False)

        def usable(*args: Any, **keys: Any) -> tuple[int, ...]:
            if keys["second"] is not second:
                return real["usable"](*args, **keys)  # type: ignore[no-any-return]
            order = tuple(attempts)
            return order if keys["initiator"] else order[::-1]

        for name, one in (("initiators", initiators), ("acceptor", acceptor), ("usable", usable)):
            monkeypatch.setattr(methods, name, one)
        return Link(*(with_users if second else hosts)(**how))

    return make


def tried(link: Link) -> list[str]:
    """The tokens of the left host, with `!` for an error and `+` for another credential."""
    return [
        f"{one.token.decode() or '-'}{'!' if one.status else ''}{'+' if one.flags & GssFlags.RETRY else ''}"
        for flight in link.flights
        if flight.sender is link.left
        and flight.header.exchange == Exchange.MAIN
        and (one := token_in(flight.data)) is not None
    ]


ORDERS: dict[str, tuple[Attempts, list[str]]] = {
    "the first will do": ({KERBEROS: ["good"], NTLM: ["other"]}, ["good"]),
    "it cannot begin": ({KERBEROS: ["cannot begin"], NTLM: ["good"]}, ["-!", "good"]),
    "nothing to begin with": ({KERBEROS: [], NTLM: ["good"]}, ["-!", "good"]),
    "it is not believed": ({KERBEROS: ["bad"], NTLM: ["good"]}, ["bad", "good"]),
    "it does not believe": ({KERBEROS: ["does not believe"], NTLM: ["good"]}, ["does not believe", "good"]),
    "another certificate": ({TLS: ["bad 1", "good"]}, ["bad 1", "good!+"]),
    "the last certificate": ({TLS: ["bad 1", "bad 2", "good"]}, ["bad 1", "bad 2!+", "good!+"]),
    "the second cannot begin": (
        {TLS: ["bad", "cannot begin"], NTLM: ["good"]},
        ["bad", "-!+", "good"],
    ),
    "the first of two cannot begin": ({TLS: ["cannot begin", "good"]}, ["-!", "good+"]),
    "it does not believe with one": (
        {TLS: ["does not believe", "good"]},
        ["does not believe", "good+"],
    ),
    "certificates, then others": (
        {TLS: ["bad 1", "bad 2"], KERBEROS: ["cannot begin"], NTLM: ["good"]},
        ["bad 1", "bad 2!+", "-!", "good"],
    ),
}


@COUNTED
@COURSES
@pytest.mark.parametrize("name", ORDERS)
def test_whichever_succeeds(
    name: str, second: bool, counted: bool, stubs: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are tried in the initiator's order, first every credential of a method and then the next method;
    both sides count along, and the transcript is the same at both ends, with the failed attempts in it or
    without."""
    attempts, expected = ORDERS[name]
    reading(monkeypatch, failed_attempts_count=counted)
    link = stubs(attempts, second=second)
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    if not second:
        assert tried(link) == expected
        assert main_mode(link.left).session.proven is not None
        assert main_mode(link.right).session.proven is not None
    assert not link.left.failures


@pytest.mark.long
@COURSES
@pytest.mark.parametrize("fate", ["lost", "twice", "late"])
@pytest.mark.parametrize("name", ["certificates, then others", "it does not believe with one"])
def test_on_a_bad_link(name: str, fate: str, second: bool, stubs: Callable[..., Link]) -> None:
    """Whichever message of a negotiation with failed attempts is lost, doubled or late: it counts once."""
    attempts, _ = ORDERS[name]
    whole = stubs(attempts, second=second)
    whole.up("net")
    whole.run(2)
    for number in range(2, len(whole.flights)):
        link = stubs(attempts, second=second)

        def disturb(flight: Flight, number: int = number) -> None:
            flight.copies = int(fate == "twice" and flight.number == number)
            flight.delay = 1.5 if fate == "late" and flight.number == number else 0.01

        link.fate = losing(number) if fate == "lost" else disturb
        link.up("net")
        link.run(20)
        agree(link, ikes=1, pairs=1)


@COURSES
def test_a_method_that_the_responder_cannot_check(second: bool, stubs: Callable[..., Link]) -> None:
    """Its keytab or certificate may have gone since it said what it knows: the next method is tried."""
    link = stubs({KERBEROS: ["good"], NTLM: ["other"]}, second=second, broken=(KERBEROS,))
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    (failed,) = (one for one in link.right.of(AuthenticationFailed) if one.reason == "our keytab has gone")
    assert (failed.method, failed.rule) == ("kerberos", "net")


@COURSES
@pytest.mark.parametrize(
    "attempts",
    [
        {KERBEROS: ["bad"], NTLM: ["cannot begin"]},
        {TLS: ["bad 1", "bad 2"]},
        {KERBEROS: ["does not believe"], TLS: ["cannot begin", "bad"]},
        {TLS: [f"bad {number}" for number in range(20)]},
        {KERBEROS: ["cannot begin"], NTLM: ["cannot begin"]},
    ],
    ids=["not believed", "certificates", "mixed", "very many", "nothing at hand"],
)
def test_nothing_succeeds(attempts: Attempts, second: bool, stubs: Callable[..., Link]) -> None:
    """Both sides say why, nothing is left of it, and attempts are limited."""
    link = stubs(attempts, second=second)
    link.up("net")
    link.run(70)
    agree(link, ikes=0, pairs=0)
    (failure,) = link.left.failures
    names = [name for some in attempts.values() for name in some]
    refused = sum(name.startswith("bad") for name in names)
    assert len(link.right.of(AuthenticationFailed)) >= min(refused, 1)
    if refused < 3 and "does not believe" not in names:
        assert len(failure.reason.split("; ")) == len(names), failure.reason
    assert second or len(tried(link)) <= MOST_ATTEMPTS
    assert len(link.flights) < 60


def test_retries_that_a_responder_asks_for_are_limited(stubs: Callable[..., Link]) -> None:
    """Of one method it asks for a few more credentials; then the next method has its turn."""
    link = stubs({TLS: [f"bad {number}" for number in range(20)], NTLM: ["good"]})
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    assert len(tried(link)) == 1 + MOST_RETRIES + 1


@pytest.mark.parametrize("side", BOTH)
def test_methods_are_tried_in_the_initiators_order(side: str, stubs: Callable[..., Link]) -> None:
    """The responder has another one, and keeps to the initiator's."""
    link = stubs({NTLM: ["good"], KERBEROS: ["other"]})
    link.up("net", side)
    link.run(5)
    agree(link, ikes=1, pairs=1)
    for one in (link.left, link.right):
        session = main_mode(one).session
        assert session.methods == (NTLM, KERBEROS)
        assert session.proven is not None
        assert session.proven.method == NTLM


def test_keys_of_a_failed_attempt_are_forgotten(stubs: Callable[..., Link]) -> None:
    """The responder was content, the initiator was not: what comes next is in the clear, and has the secret
    of the next attempt."""
    link = stubs({KERBEROS: ["does not believe"], NTLM: ["good"]})
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)
    proven = main_mode(link.right).session.proven
    assert proven is not None
    assert bytes(proven.secret).startswith(b"good")


# Certificates


def two(name: str, first: str, then: str) -> Material:
    """A host with certificates of two authorities, which believes the laboratory's; the first is the one that
    lives longest and is tried first."""
    a, b = certified(name, ca=first), certified(name, ca=then, start=POSIX - 7200)
    lab = certified(name)
    return replace(lab, hosts=(*a.hosts, *b.hosts), anchors=lab.anchors)


FOREIGN = "CN=Another CA"


@pytest.mark.parametrize("side", BOTH)
@COUNTED
def test_a_certificate_that_the_peer_does_not_trust(
    counted: bool, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The responder asks for another one, and there is one."""
    reading(monkeypatch, failed_attempts_count=counted)
    link = Link(*hosts(**{side: two(side, FOREIGN, "CN=Lab CA")}))
    link.up("net", side)
    link.run(10)
    agree(link, ikes=1, pairs=1)
    other = link.other(link.named(side))
    assert len(other.of(AuthenticationFailed)) == 1
    statuses = [one for one in map(lambda f: token_in(f.data), link.flights) if one and one.status]  # noqa: C417
    assert statuses[0].flags & GssFlags.RETRY


def test_loss_while_certificates_are_tried() -> None:
    """TLS anew in the middle of a negotiation, with each message lost in turn."""
    material = two("left", FOREIGN, "CN=Lab CA")
    whole = Link(*hosts(left=material))
    whole.up("net")
    whole.run(5)
    for number in range(2, len(whole.flights)):
        link = Link(*hosts(left=material))
        link.fate = losing(number)
        link.up("net")
        link.run(20)
        agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("side", BOTH)
def test_no_certificate_will_do(side: str) -> None:
    """Both are foreign: the initiator tells what the peer said, the peer's security log has each attempt."""
    link = Link(*hosts(**{side: two(side, FOREIGN, "CN=Yet Another CA")}))
    link.up("net", side)
    link.run(70)
    agree(link, ikes=0, pairs=0)
    one = link.named(side)
    assert "13801" in one.failures[0].reason, story(link)
    assert len(link.other(one).of(AuthenticationFailed)) >= 2


def test_a_user_who_is_not_trusted() -> None:
    """In extended mode: the machine is believed, the user is not, and nothing stays."""
    link = Link(*with_users(left=person("left", user_ca=FOREIGN)))
    link.up("net")
    link.run(70)
    agree(link, ikes=0, pairs=0)
    assert link.left.failures
    assert link.right.of(AuthenticationFailed)
