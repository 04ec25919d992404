"""ikd.auth.kerberos with a real KDC: both sides, and for whatever goes wrong the words that help."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections.abc import Iterator

import pytest
from support.kerberos import ALPHA, BETA, CLOCKS, REALM, Kdc, refusal_at

from ikd.auth import Declined, Identity, Step, Token, gss
from ikd.auth.identity import IdKind
from ikd.auth.kerberos import KerberosAcceptor, KerberosInitiator, Ticket
from ikd.auth.keytab import Keytab
from policy.peers import matches_any
from sadb.secret import Secret

_caches = itertools.count()


@pytest.fixture
def alpha(kdc: Kdc) -> Keytab:
    """The initiator's keytab."""
    return kdc.load(kdc.base / "alpha.keytab")


@pytest.fixture
def beta(kdc: Kdc) -> Keytab:
    """The acceptor's keytab."""
    return kdc.load(kdc.base / "beta.keytab")


def fresh(keytab: Keytab, path: str | None = None) -> Keytab:
    """The same keytab, perhaps elsewhere, with no tickets yet."""
    return Keytab(path or keytab.path, keytab.entries, f"MEMORY:test-{next(_caches)}", keytab.replays)


def initiator(source: Keytab | Ticket, target: str = BETA) -> KerberosInitiator:
    return KerberosInitiator(target, source, time.time)


def acceptor(keytab: Keytab, *, users: bool = False) -> KerberosAcceptor:
    return KerberosAcceptor(keytab, time.time, users=users)


def token(step: Step) -> Token:
    """The token of a step that must have one."""
    assert step.token is not None
    return step.token


def first(source: Keytab | Ticket, target: str = BETA) -> Token:
    """An AP-REQ."""
    return token(initiator(source, target).step(None))


def established(alpha: Keytab, beta: Keytab) -> tuple[KerberosInitiator, KerberosAcceptor]:
    """Both sides after the exchange."""
    ours, peers = initiator(alpha), acceptor(beta)
    answer = peers.step(ours.step(None).token)
    assert ours.step(answer.token).peer
    return ours, peers


def declined(call: object, reason: str, remedy: str) -> Declined:
    """What `call` must raise, with these parts in its texts."""
    assert callable(call)
    with pytest.raises(Declined) as caught:
        call()
    assert reason in str(caught.value)
    assert remedy in caught.value.remedy, caught.value.remedy
    assert "{" not in str(caught.value) + caught.value.remedy
    return caught.value


# What works ----------------------------------------------------------------------------------------------


def test_two_tokens_prove_both_sides(alpha: Keytab, beta: Keytab) -> None:
    """Without this nobody authenticates with Kerberos; a key that differs makes every message garbage."""
    ours, peers = initiator(alpha), acceptor(beta)
    # AP-REQ -->
    request = ours.step(None)
    assert request.peer is None
    assert request.key == Secret(b"")
    # <-- AP-REP
    reply = peers.step(request.token)
    last = ours.step(reply.token)
    assert last.token is None
    assert len(last.key) == 32
    assert last.key == reply.key
    assert last.peer is not None
    assert reply.peer is not None
    for peer, name in ((last.peer, BETA), (reply.peer, ALPHA)):
        assert peer.names == (f"{name}@{REALM}", name)
        assert peer.identity == Identity(IdKind.PRINCIPAL, f"{name}@{REALM}".encode())
        assert peer.description == f"{name}@{REALM} (kerberos)"
        assert matches_any((name.removeprefix("host/"),), peer.names)
        assert peer.expires is not None
        assert 35_000 < peer.expires - time.time() <= 36_000  # of ten hours
    assert abs((last.peer.expires or 0) - (reply.peer.expires or 0)) < 2


def test_every_context_has_its_own_key(alpha: Keytab, beta: Keytab) -> None:
    """The ticket is the same; were the key, too, one SA's key would open another's."""
    keys = set()
    for _ in range(2):
        ours, peers = initiator(alpha), acceptor(beta)
        keys.add(bytes(ours.step(peers.step(ours.step(None).token).token).key))
    assert len(keys) == 2


def test_wrapped_hash_reaches_the_other_side_once(alpha: Keytab, beta: Keytab) -> None:
    """IKEv1's HASH payloads; a changed or repeated one would pass for genuine."""
    ours, peers = established(alpha, beta)
    digest = bytes(range(20))
    for one, other in ((ours, peers), (peers, ours)):
        wrapped = one.wrap(digest)
        assert digest not in wrapped
        assert other.unwrap(wrapped) == digest
        declined(lambda other=other, wrapped=wrapped: other.unwrap(wrapped), "came before: a replay", "")
    good = ours.wrap(digest)
    for at in range(0, len(good), 7):
        bad = good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :]
        with pytest.raises(Declined):
            peers.unwrap(bad)
    for nonsense in (b"", good[:-1], good + b"\0", bytes(80), bytes(70_000)):
        with pytest.raises(Declined):
            peers.unwrap(nonsense)
    assert peers.unwrap(good) == digest


def test_signed_is_not_encrypted(alpha: Keytab, beta: Keytab) -> None:
    """GSS_Wrap without confidentiality is genuine, too, and is not what the specification asks for."""
    ours, peers = established(alpha, beta)
    context = ours._context
    assert context is not None
    signed = context._context.wrap(b"a hash", False).message
    declined(lambda: peers.unwrap(signed), "signed but not encrypted", "")


def test_nothing_is_wrapped_before_the_peer_is_proven(alpha: Keytab, beta: Keytab) -> None:
    """A hash under keys that nobody has proven to have."""
    ours = initiator(alpha)
    declined(lambda: ours.wrap(b"x"), "not complete", "")
    ours.step(None)
    declined(lambda: ours.wrap(b"x"), "not complete", "")
    declined(lambda: acceptor(beta).unwrap(b"x"), "not complete", "")


def test_realm_is_found_for_a_name_without_one(alpha: Keytab, beta: Keytab) -> None:
    """A rule names hosts; [domain_realm] of krb5.conf says where they belong."""
    ours, peers = initiator(alpha, f"{BETA}@{REALM}"), acceptor(beta)
    assert ours.step(peers.step(ours.step(None).token).token).peer is not None
    declined(lambda: first(alpha, "host/x.down.test"), "krbtgt/DOWN.TEST", "domain_realm")


def test_name_of_another_realm_keeps_its_realm(alpha: Keytab) -> None:
    """A realm that ours trusts could name hosts of ours."""
    from ikd.auth.principal import Principal

    stranger = Principal.parse("host/db.example.test@OTHER.TEST")
    assert stranger.names(REALM) == ("host/db.example.test@OTHER.TEST",)
    assert not matches_any(("db.example.test", "host/db.example.test"), stranger.names(REALM))
    assert matches_any(("host/db.example.test@OTHER.TEST",), stranger.names(REALM))


def test_computer_account_is_a_machine(kdc: Kdc, beta: Keytab) -> None:
    """Windows hosts have tickets of the account NAME$, and of host/NAME only as a target."""
    kdc.principal("GAMMA$")
    kdc.principal("host/gamma.example.test")
    keytab = kdc.keytab("gamma.keytab", "host/gamma.example.test", "GAMMA$")
    assert str(keytab.client) == f"GAMMA$@{REALM}"
    assert str(keytab.service) == f"host/gamma.example.test@{REALM}"
    step = acceptor(beta).step(first(keytab))
    assert step.peer is not None
    assert step.peer.names == (f"GAMMA$@{REALM}",)
    assert matches_any((f"gamma$@{REALM.lower()}",), step.peer.names) or matches_any(
        (f"GAMMA$@{REALM}",), step.peer.names
    )


def test_user_is_no_machine(kdc: Kdc, beta: Keytab) -> None:
    """Anybody with an account of the realm would pass for a host in a rule that names none."""
    kdc.principal("alice", "-pw secret")
    cache = f"FILE:{kdc.base}/alice.ccache"
    kdc.run("kinit", "-c", cache, "alice", stdin="secret\n")
    declined(lambda: acceptor(beta).step(first(Ticket(cache))), f"user alice@{REALM}", "identity.keytab")
    step = acceptor(beta, users=True).step(first(Ticket(cache)))
    assert step.peer is not None
    assert step.peer.names == (f"alice@{REALM}",)


def test_ticket_for_another_service_of_the_host_is_refused(kdc: Kdc, alpha: Keytab) -> None:
    """A token meant for the host's web server would open its IPsec, too."""
    kdc.principal("HTTP/beta.example.test")
    mixed = kdc.keytab("mixed.keytab", "HTTP/beta.example.test", BETA)
    store = {"client_keytab": f"FILE:{alpha.path}", "ccache": alpha.cache}
    credential = gss.credential("initiate", store, str(alpha.client))
    context = gss.Context(credential, gss.name(f"HTTP/beta.example.test@{REALM}"))
    request = Token(context.step(None))
    declined(lambda: acceptor(mixed).step(request), "for HTTP/beta.example.test", "other services")


@pytest.mark.parametrize(
    "name",
    ["ldap/dc.example.test", f"krbtgt/{REALM}", "alice", "host/a b", "host/a\\/b", "", "host/", "x" * 2000],
)
def test_peer_cannot_choose_just_any_service(alpha: Keytab, name: str) -> None:
    """It would pass our token on to that service."""
    with pytest.raises(Declined):
        initiator(alpha, name)


# What goes wrong -----------------------------------------------------------------------------------------


def test_unknown_service_principal(alpha: Keytab) -> None:
    """The administrator would not know which name is missing where."""
    reason = "does not know the service host/nobody.example.test"
    declined(lambda: first(alpha, "host/nobody.example.test"), reason, "addprinc -randkey host/nobody")


def test_wrong_realm(alpha: Keytab) -> None:
    """A missing trust looks like an unknown service to the library."""
    call = lambda: first(alpha, "host/beta.example.test@OTHER.TEST")  # noqa: E731
    declined(call, "no way to the realm of host/beta.example.test@OTHER.TEST", "trust each other")


def test_unknown_client(kdc: Kdc) -> None:
    """A keytab of a host that has left the realm."""
    kdc.principal("host/gone.example.test")
    keytab = kdc.keytab("gone.keytab", "host/gone.example.test")
    kdc.admin("delprinc -force host/gone.example.test")
    declined(lambda: first(keytab), f"does not know host/gone.example.test@{REALM}", "create the principal")


def test_locked_client(kdc: Kdc) -> None:
    """A disabled account must not be taken for a wrong key."""
    kdc.principal("host/locked.example.test")
    keytab = kdc.keytab("locked.keytab", "host/locked.example.test")
    kdc.admin("modprinc -allow_tix host/locked.example.test")
    declined(lambda: first(keytab), "has locked host/locked.example.test", "enable the account")


def test_target_that_may_not_be_a_service(kdc: Kdc, alpha: Keytab) -> None:
    """Accounts without a service name in a KDC that gives no tickets for users."""
    kdc.principal("host/user.example.test")
    kdc.admin("modprinc -allow_svr host/user.example.test")
    declined(
        lambda: first(alpha, "host/user.example.test"), "no ticket for host/user", "+allow_svr host/user"
    )


def test_expired_ticket_of_a_cache(kdc: Kdc) -> None:
    """A cache is renewed by somebody else, who has not done it."""
    kdc.principal("carol", "-pw secret")
    cache = f"FILE:{kdc.base}/carol.ccache"
    kdc.run("kinit", "-l", "1s", "-c", cache, "carol", stdin="secret\n")
    time.sleep(2.1)
    declined(lambda: first(Ticket(cache)), "carol.ccache has expired", "kinit")


def test_missing_ticket_cache(kdc: Kdc) -> None:
    """A user who has not logged in."""
    declined(lambda: first(Ticket(f"FILE:{kdc.base}/none.ccache")), "no ticket", "kinit")


@CLOCKS
def test_acceptor_with_another_clock(
    kdc: Kdc, alpha: Keytab, beta: Keytab, clock: str, reason: str, remedy: str, told: str
) -> None:
    """Clocks are the commonest trouble with Kerberos; both administrators must be led there."""
    ours = initiator(fresh(alpha))
    request = token(ours.step(None))
    refused = refusal_at(kdc, clock, beta, request.data)
    assert reason in str(refused)
    assert remedy in refused.remedy
    # <-- KRB-ERROR, if the protocol has a place for it
    declined(lambda: ours.step(Token(refused.token)), told, "NTP")


INITIATE = """
import sys, time
from ikd.auth import Declined
from ikd.auth.kerberos import KerberosInitiator
from ikd.auth.files import load_material
from ikd.settings import IdentitySettings
from pathlib import Path
path = Path(sys.argv[1])
keytab = load_material(path.parent, IdentitySettings(keytab=path.name), time.time()).keytab
try:
    KerberosInitiator(sys.argv[2], keytab, time.time).step(None)
except Declined as error:
    print(error, "|", error.remedy)
"""


def test_initiator_with_another_clock(kdc: Kdc, alpha: Keytab) -> None:
    """The KDC refuses then, and its refusal must not look like a wrong key."""
    said = kdc.python(INITIATE, alpha.path, BETA, clock="+600s")
    assert "the KDC's clock is another" in said
    assert "NTP" in said


@pytest.fixture
def delta(kdc: Kdc) -> Iterator[tuple[Keytab, Keytab]]:
    """A host whose key has changed: its keytab of before and that of now."""
    name = "host/delta.example.test"
    kdc.principal(name)
    old = kdc.keytab("delta-old.keytab", name)
    new = kdc.keytab("delta-new.keytab", name, fresh=True)
    assert old.entries[0].version < new.entries[0].version
    yield old, new
    kdc.admin(f"delprinc -force {name}")
    for one in (old, new):
        os.unlink(one.path)


def test_stale_keytab_of_the_acceptor(alpha: Keytab, delta: tuple[Keytab, Keytab]) -> None:
    """After a new key in the KDC; the initiator learns that it is the peer's fault."""
    old, new = delta
    ours = initiator(fresh(alpha), "host/delta.example.test")
    request = token(ours.step(None))
    refusal = declined(lambda: acceptor(old).step(request), "delta-old.keytab is out of date", "ktadd -k")
    assert refusal.token
    declined(
        lambda: ours.step(Token(refusal.token)), "the peer's keytab is out of date", "peer's keytab anew"
    )
    assert acceptor(new).step(first(alpha, "host/delta.example.test")).peer is not None


def test_stale_keytab_of_the_initiator(beta: Keytab, delta: tuple[Keytab, Keytab]) -> None:
    """The KDC's answer does not open with an old key."""
    old, new = delta
    declined(lambda: first(fresh(old)), "delta-old.keytab is out of date", "delta-old.keytab host/delta")
    assert acceptor(beta).step(first(fresh(new))).peer is not None


def test_other_key_of_the_same_version(kdc: Kdc, alpha: Keytab) -> None:
    """A principal made anew begins with version 1 again, so the version alone does not tell."""
    name = "host/again.example.test"
    kdc.principal(name)
    old = kdc.keytab("again.keytab", name)
    kdc.admin(f"delprinc -force {name}")
    kdc.principal(name)
    declined(lambda: acceptor(old).step(first(fresh(alpha), name)), "does not open with our key", "ktadd")


def test_keytab_of_somebody_else(alpha: Keytab) -> None:
    """Two hosts' keytabs confused."""
    refusal = declined(
        lambda: acceptor(alpha).step(first(alpha)), "has no key for the name", "into the keytab"
    )
    assert refusal.token


def test_kdc_that_is_down(kdc: Kdc, alpha: Keytab, beta: Keytab) -> None:
    """Without tickets nothing goes on; with them the KDC is not needed."""
    with_tickets = fresh(alpha)
    first(with_tickets)
    kdc.stop()
    try:
        began = time.monotonic()
        declined(lambda: first(fresh(alpha)), "no KDC answers", "[realms] of krb5.conf")
        assert time.monotonic() - began < 20
        assert acceptor(beta).step(first(with_tickets)).peer is not None
    finally:
        kdc.start()


def test_replayed_request(alpha: Keytab, beta: Keytab) -> None:
    """Whoever recorded an AP-REQ would be taken for the peer, until he has to use the key."""
    request = first(alpha)
    assert acceptor(beta).step(request).peer is not None
    declined(lambda: acceptor(beta).step(request), "was used before: a replay", "repeats")


def test_replay_is_known_after_a_restart(kdc: Kdc, alpha: Keytab, beta: Keytab) -> None:
    """The record is a file: a new process must not accept what the old one has."""
    request = first(alpha)
    assert acceptor(beta).step(request).peer is not None
    assert "a replay" in str(refusal_at(kdc, "", beta, request.data))


def test_record_of_replays_that_cannot_be_written(kdc: Kdc, alpha: Keytab, beta: Keytab) -> None:
    """Then nobody is let in, and the administrator learns which directory is meant."""
    lost = Keytab(beta.path, beta.entries, beta.cache, str(kdc.base / "no" / "such" / "directory"))
    declined(lambda: acceptor(lost).step(first(alpha)), "record of used tokens", "daemon.state")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        (b"", "an empty file"),
        (b"\x05\x02", "has no key for"),
        (b"a text", "not a keytab"),
        (b"\x05\x02\x00\x00\x00\x40short", "ends in the middle"),
    ],
)
def test_keytab_that_is_lost_later(
    kdc: Kdc, alpha: Keytab, beta: Keytab, content: bytes | None, reason: str
) -> None:
    """It was good when the daemon started; the library calls everything "nonexistent or empty"."""
    path = kdc.base / "lost.keytab"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    request = first(alpha)
    for call in (
        lambda: first(fresh(alpha, str(path))),
        lambda: acceptor(fresh(beta, str(path))).step(request),
    ):
        declined(call, f"keytab {path}", f"ktadd -k {path} host/")
        declined(call, reason, "0600")


def test_keytab_that_is_a_directory(kdc: Kdc, alpha: Keytab, beta: Keytab) -> None:
    """The library does not say so."""
    declined(lambda: first(fresh(alpha, str(kdc.base))), "Is a directory", "")
    request = first(alpha)
    declined(lambda: acceptor(fresh(beta, str(kdc.base))).step(request), "Is a directory", "")


UNREADABLE = """
import os, sys, time
from ikd.auth import Declined, Token
from ikd.auth.kerberos import KerberosAcceptor, KerberosInitiator
from ikd.auth.keytab import Keytab, parse
import gssapi, gssapi.raw
keytab = Keytab(sys.argv[1], parse(open(sys.argv[1], "rb").read()), "MEMORY:unreadable")
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
else:
    os.chmod(sys.argv[1], 0)
request = Token(bytes.fromhex(sys.stdin.read()))
for call in (lambda: KerberosInitiator(sys.argv[2], keytab, time.time).step(None),
             lambda: KerberosAcceptor(keytab, time.time).step(request)):
    try:
        call()
    except Declined as error:
        print(error, "|", error.remedy)
"""


def test_keytab_that_the_daemon_may_not_read(kdc: Kdc, alpha: Keytab) -> None:
    """Under a user of its own the daemon cannot open root's keytab."""
    copy = kdc.base / "closed.keytab"
    copy.touch(0o600)
    copy.write_bytes((kdc.base / "alpha.keytab").read_bytes())
    said = kdc.python(UNREADABLE, str(copy), BETA, stdin=first(alpha).data.hex()).splitlines()
    assert len(said) == 2
    for line in said:
        assert f"may not read keytab {copy}" in line
        assert "the user that the daemon runs as" in line


def test_keytab_without_a_machine(kdc: Kdc) -> None:
    """A keytab of a web server alone."""
    kdc.principal("HTTP/web.example.test")
    keytab = kdc.keytab("web.keytab", "HTTP/web.example.test")
    assert (keytab.client, keytab.service) == (None, None)
    declined(lambda: first(keytab), "has no key of a machine", "host/NAME")


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon runs without it, and says what to install when it is needed."""
    monkeypatch.setitem(sys.modules, "gssapi", None)
    keytab = Keytab("/nowhere")
    frame = bytes.fromhex("600d06092a864886f712010202010000")
    declined(lambda: acceptor(keytab).step(Token(frame)), "needs the Python package gssapi", "ikd[kerberos]")


# Hostile tokens ------------------------------------------------------------------------------------------

NEGOTIATE = bytes.fromhex("601c06062b0601050502a0123010a00e300c060a2b06010401823702020a")
NTLM = b"NTLMSSP\x00\x01\x00\x00\x00" + bytes(28)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 octets"),
        (bytes(65536), "65536 octets"),
        (bytes(65535), "no Kerberos token"),
        (NEGOTIATE, "of SPNEGO"),
        (NTLM, "an NTLM message"),
        (b"\x60", "no Kerberos token"),
        (b"\x60\xff" + bytes(200), "no Kerberos token"),
        (b"\x60\x0b\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02", "no Kerberos token"),
        (bytes.fromhex("601106092a864882f712010202") + bytes(6), "Microsoft's old"),
    ],
)
def test_what_is_no_token(beta: Keytab, data: bytes, reason: str) -> None:
    """Strangers send anything; an exception of another kind would be taken for a bug of ours."""
    declined(lambda: acceptor(beta).step(Token(data)), reason, "")


def test_no_token_at_all(alpha: Keytab, beta: Keytab) -> None:
    """A message without a token, or one out of turn."""
    declined(lambda: acceptor(beta).step(None), "sent no Kerberos token", "")
    declined(lambda: initiator(alpha).step(Token(b"x")), "before ours", "")


def mutilated(data: bytes, number: int) -> Iterator[bytes]:
    """A token cut short, with octets changed, with octets in between, with other lengths."""
    chance = random.Random(number)
    for _ in range(150):
        yield data[: chance.randrange(1, len(data))]
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.randrange(min(len(data), chance.choice((40, 200, 9999))))] = chance.randrange(256)
        if bytes(changed) != data:
            yield bytes(changed)
        at = chance.randrange(len(data))
        yield data[:at] + chance.randbytes(chance.choice((1, 30, 40_000))) + data[at:]
        yield data[:13] + chance.randbytes(chance.randrange(1, 400))


def test_mutilated_requests_prove_nothing(alpha: Keytab, beta: Keytab) -> None:
    """Whatever a stranger makes of an AP-REQ, he must not pass and must not break anything."""
    request = first(alpha).data
    for number, data in enumerate(mutilated(request, 1)):
        try:
            step = acceptor(beta).step(Token(data))
        except Declined:
            continue
        # flags of the outer message that carry no meaning may change; nothing else is taken
        assert step.peer is not None
        assert step.peer.names[0] == f"{ALPHA}@{REALM}", number
    assert acceptor(beta).step(first(alpha)).peer is not None


def test_mutilated_replies_prove_nothing(alpha: Keytab, beta: Keytab) -> None:
    """Nor from whoever answers in the peer's place."""
    answer = token(acceptor(beta).step(first(alpha))).data
    for data in itertools.islice(mutilated(answer, 2), 200):
        ours = initiator(alpha)
        ours.step(None)
        with pytest.raises(Declined):
            ours.step(Token(data))
        declined(lambda ours=ours: ours.step(Token(answer)), "after the last one", "")
    ours = initiator(alpha)
    ours.step(None)
    with pytest.raises(Declined):  # genuine, but the answer to another request
        ours.step(Token(answer))


def test_tokens_after_the_last_one(alpha: Keytab, beta: Keytab) -> None:
    """A context that is complete must not be moved by anybody."""
    ours, peers = established(alpha, beta)
    for side in (ours, peers):
        declined(lambda side=side: side.step(first(alpha)), "after the last one", "")
    assert peers.unwrap(ours.wrap(b"still good")) == b"still good"


def test_request_without_mutual_authentication_is_refused(alpha: Keytab, beta: Keytab) -> None:
    """An initiator that does not ask us to prove ourselves talks to anybody."""
    import gssapi

    store = {"client_keytab": f"FILE:{alpha.path}", "ccache": alpha.cache}
    context = gssapi.SecurityContext(
        name=gss.name(f"{BETA}@{REALM}"),
        creds=gss.credential("initiate", store, str(alpha.client)),
        mech=gssapi.OID.from_int_seq(gss.KRB5),
        usage="initiate",
        flags=gssapi.RequirementFlag.confidentiality,
    )
    request = Token(context.step())
    declined(lambda: acceptor(beta).step(request), "no mutual authentication", "must ask for")


def test_texts_show_no_secrets(alpha: Keytab, beta: Keytab) -> None:
    """Keys in a log are keys lost."""
    ours, peers = initiator(alpha), acceptor(beta)
    reply = peers.step(ours.step(None).token)
    last = ours.step(reply.token)
    key = bytes(last.key)
    shown = f"{ours!r} {peers!r} {last!r} {ours._context!r} {alpha!r} {last.peer}"
    assert key.hex() not in shown
    assert repr(key) not in shown
    assert "secret, 32 octets" in shown
    assert repr(ours) == f"<KerberosInitiator {ALPHA}@{REALM} to {BETA}>"
