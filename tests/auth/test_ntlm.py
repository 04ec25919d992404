"""ikd.auth.ntlm: both sides against each other and against pyspnego's, and whatever a peer may try."""

from __future__ import annotations

import hmac
import os
import struct
import time
from collections.abc import Callable, Iterator

import pytest
import spnego
from hypothesis import assume, given
from hypothesis import strategies as st
from support.certificates import rule

from ikd.auth import ANONYMOUS, Declined, Identity, Step, Token, ntlm_messages
from ikd.auth.credentials import Credentials, Material
from ikd.auth.identity import IdKind
from ikd.auth.ntlm import Challenges, NtlmAcceptor, NtlmAccount, NtlmInitiator, nt_hash
from ikd.auth.ntlm_messages import Answer, Flag
from policy.peers import matches_any
from policy.rules import AuthMethod
from sadb.secret import Secret

CLERK = NtlmAccount.named("CORP\\clerk", nt_hash("tulip"))
HOST = NtlmAccount.named("CORP\\ALPHA$", nt_hash("narcissus"))
WRONG = NtlmAccount.named("CORP\\clerk", nt_hash("rose"))
NOBODY = NtlmAccount.named("CORP\\nobody", nt_hash("tulip"))
MIC = slice(72, 88)


def initiator(account: NtlmAccount = CLERK) -> NtlmInitiator:
    """Our client, on a host of its own."""
    return NtlmInitiator(account, "beta.example", Challenges())


def acceptor(*accounts: NtlmAccount, users: bool = True) -> NtlmAcceptor:
    """The other side, on another host."""
    return NtlmAcceptor(accounts or (CLERK, HOST), time.time, Challenges(), users=users)


def data(step: Step) -> bytes:
    """The octets of a step that must have some."""
    assert step.token is not None
    return step.token.data


def exchange(ours: NtlmInitiator, peers: NtlmAcceptor) -> tuple[Step, Step]:
    """All three messages; the last step of each."""
    last = ours.step(peers.step(ours.step(None).token).token)
    return last, peers.step(last.token)


def answered(account: NtlmAccount = CLERK) -> tuple[NtlmAcceptor, bytes]:
    """An acceptor that waits for AUTHENTICATE, and one that it would take if the account is right."""
    ours, peers = initiator(account), acceptor()
    return peers, data(ours.step(peers.step(ours.step(None).token).token))


def declined(call: Callable[[], object], reason: str, remedy: str = "") -> Declined:
    """What a call must raise; the peer is told nothing."""
    with pytest.raises(Declined) as caught:
        call()
    assert reason in str(caught.value)
    assert remedy in caught.value.remedy
    assert caught.value.token == b""
    return caught.value


# What works ----------------------------------------------------------------------------------------------


def test_three_messages_prove_the_client_and_give_both_a_key() -> None:
    """Without this nobody authenticates with NTLM; a key that differs makes every message garbage."""
    ours, peers = initiator(), acceptor()
    first = ours.step(None)
    second = peers.step(first.token)
    assert (first.peer, second.peer) == (None, None)
    assert first.key == second.key == Secret(b"")
    third = ours.step(second.token)
    last = peers.step(third.token)
    assert third.peer is ANONYMOUS  # the peer has proven nothing
    assert last.token is None
    assert len(last.key) == 16
    assert last.key == third.key
    assert last.peer is not None
    assert last.peer.identity == Identity(IdKind.PRINCIPAL, b"CORP\\clerk")
    assert (last.peer.method, last.peer.description) == ("ntlm", "CORP\\clerk (ntlm)")
    assert last.peer.names == ("CORP\\clerk",)
    assert matches_any(("corp\\CLERK",), last.peer.names)
    assert last.peer.expires is None


def test_every_exchange_has_its_own_key() -> None:
    """One SA's key would open another's."""
    assert exchange(initiator(), acceptor())[1].key != exchange(initiator(), acceptor())[1].key


def test_spelling_of_the_account_does_not_matter() -> None:
    """Windows does not tell CORP\\Clerk from CORP\\clerk; policy sees the spelling of our file."""
    _, last = exchange(initiator(NtlmAccount.named("Corp\\CLERK", CLERK.nt_hash)), acceptor())
    assert last.peer is not None
    assert last.peer.names == ("CORP\\clerk",)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[spnego.ContextProxy]:
    """pyspnego's acceptor at its highest level, with an account of its own kind of file."""
    file = os.memfd_create("users")
    os.write(file, b"CORP:clerk:tulip\n")
    monkeypatch.setenv("NTLM_USER_FILE", f"/proc/self/fd/{file}")
    monkeypatch.setenv("LM_COMPAT_LEVEL", "5")
    yield spnego.server(protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
    os.close(file)


def test_our_initiator_with_another_acceptor(library: spnego.ContextProxy) -> None:
    """Two sides of one author could agree on a mistake."""
    ours = initiator()
    last = ours.step(Token(library.step(data(ours.step(None))) or b""))
    library.step(data(last))
    assert library.complete
    assert library.client_principal == "CORP\\clerk"
    assert Secret(library.session_key) == last.key


def client(password: str = "tulip", name: str = "CORP\\clerk") -> spnego.ContextProxy:
    """pyspnego's client."""
    wanted = spnego.ContextReq.confidentiality | spnego.ContextReq.integrity
    return spnego.client(
        name, password, protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm, context_req=wanted
    )


def test_our_acceptor_with_another_initiator() -> None:
    """The other way around."""
    theirs, ours = client(), acceptor()
    challenge = ours.step(Token(theirs.step() or b""))
    last = ours.step(Token(theirs.step(data(challenge)) or b""))
    assert last.peer is not None
    assert last.key == Secret(theirs.session_key)


def test_published_vector() -> None:
    """[MS-NLMP] section 4.2.4: what we compute would be a secret between us and ourselves."""
    temp = bytes.fromhex(
        "01010000000000000000000000000000aaaaaaaaaaaaaaaa0000000002000c0044006f006d00610069006e00"
        "01000c0053006500720076006500720000000000" + "00000000"
    )
    proof = bytes.fromhex("68cd0ab851e51c96aabc927bebef6a1c")
    sealed = bytes.fromhex("c5dad2544fc9799094ce1ce90bc9d03e")
    answer = Answer(b"", "Domain", "User", proof + temp, sealed)
    assert nt_hash("Password") == Secret(bytes.fromhex("a4f49c406510bdcab6824ee7c30fd852"))
    found = answer.expected(nt_hash("Password"), bytes.fromhex("0123456789abcdef"))
    assert found == (proof, Secret(16 * b"U"))


# Who is refused ------------------------------------------------------------------------------------------


def test_unknown_user_and_wrong_password_look_the_same_to_the_peer() -> None:
    """A stranger could find out which accounts there are."""
    peers, answer = answered(WRONG)
    wrong = declined(lambda: peers.step(Token(answer)), "password for CORP\\clerk is not", "secrets.toml")
    peers, answer = answered(NOBODY)
    unknown = declined(lambda: peers.step(Token(answer)), "does not know", "[[ntlm]]")
    assert wrong.token == unknown.token == b""
    assert "CORP\\nobody" in str(unknown)


def test_account_that_is_not_for_accepting() -> None:
    """The account this host proves itself with would open it to whoever knows it, too."""
    ours = NtlmAccount.named("CORP\\clerk", CLERK.nt_hash, ("user",))
    first = initiator().step(None).token
    declined(lambda: acceptor(ours).step(first), "knows no account", 'use = ["accept"]')


def test_user_is_no_machine() -> None:
    """Any user could pass for the machine that the first authentication is about."""
    declined(lambda: exchange(initiator(), acceptor(users=False)), "user CORP\\clerk, and a machine", "NAME$")
    assert exchange(initiator(HOST), acceptor(users=False))[1].peer
    assert exchange(initiator(HOST), acceptor(users=True))[1].peer


@pytest.mark.parametrize("level", ["0", "1", "2"])
def test_client_of_ntlmv1(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NTLMv1 can be broken in a day: whoever records one exchange has the password's hash."""
    monkeypatch.setenv("LM_COMPAT_LEVEL", level)
    theirs, ours = client(), acceptor()

    def whole() -> None:
        challenge = ours.step(Token(theirs.step() or b""))
        ours.step(Token(theirs.step(data(challenge)) or b""))

    declined(whole, "EXTENDED_SECURITY" if level == "0" else "NTLMv1", "NTLMv2")


def test_our_own_client_is_never_of_ntlmv1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the daemon must not lower what it sends."""
    monkeypatch.setenv("LM_COMPAT_LEVEL", "2")
    ours, peers = initiator(), acceptor()
    challenge = peers.step(ours.step(None).token).token
    declined(lambda: ours.step(challenge), "our own NTLM answer is not good enough", "LM_COMPAT_LEVEL")
    for level in ("0", "9", "high"):
        monkeypatch.setenv("LM_COMPAT_LEVEL", level)
        declined(lambda: initiator().step(None), "offer", "LM_COMPAT_LEVEL" if level == "0" else "")


def test_mic_is_required() -> None:
    """Without it somebody on the way could have changed what was offered."""
    theirs, ours = client(), acceptor()
    challenge = bytearray(data(ours.step(Token(theirs.step() or b""))))
    info = struct.unpack_from("<I", challenge, 44)[0]
    at = challenge.index(b"\x07\x00\x08\x00", info)  # the time, which asks for a MIC
    challenge[at : at + 2] = b"\x0a\x00"
    answer = theirs.step(bytes(challenge)) or b""
    declined(lambda: ours.step(Token(answer)), "has no MIC", "NTLMv2")
    fresh = initiator()
    fresh.step(None)
    declined(lambda: fresh.step(Token(bytes(challenge))), "has no time")


def test_altered_messages() -> None:
    """Each of the three is covered: flags that offer less would pass otherwise."""
    peers, answer = answered()
    broken = bytearray(answer)
    broken[MIC.start] ^= 1
    declined(lambda: peers.step(Token(bytes(broken))), "MIC is wrong")
    peers, answer = answered()
    broken = bytearray(answer)
    broken[63] ^= 0x80  # KEY_56, which nobody needs
    declined(lambda: peers.step(Token(bytes(broken))), "MIC is wrong")
    ours, peers = initiator(), acceptor()
    offer = bytearray(data(ours.step(None)))
    offer[15] ^= 0x80
    challenge = peers.step(Token(bytes(offer))).token
    last = ours.step(challenge).token
    declined(lambda: peers.step(last), "MIC is wrong")
    ours, peers = initiator(), acceptor()
    changed = bytearray(data(peers.step(ours.step(None).token)))
    changed[23] ^= 0x80
    last = ours.step(Token(bytes(changed))).token
    declined(lambda: peers.step(last), "MIC is wrong")


def test_mic_of_all_zeros_is_none() -> None:
    """An answer whose MIC was cut out and the announcement left in."""
    peers, answer = answered()
    declined(lambda: peers.step(Token(answer[:72] + bytes(16) + answer[88:])), "MIC is wrong")


def test_anonymous_answer() -> None:
    """An empty name would be taken for whatever account comes first."""
    peers, answer = answered()
    nameless = answer[:36] + bytes(8) + answer[44:]
    declined(lambda: peers.step(Token(nameless)), "wants to be anonymous")
    peers, answer = answered()
    flags = int.from_bytes(answer[60:64], "little") | Flag.ANONYMOUS
    declined(
        lambda: peers.step(Token(answer[:60] + flags.to_bytes(4, "little") + answer[64:])), "be anonymous"
    )


def test_reflected_challenge() -> None:
    """Somebody who has no password could have us answer our own challenge, and pass for us."""
    shared = Challenges()
    ours = NtlmInitiator(CLERK, "evil.example", shared)
    peers = NtlmAcceptor((CLERK,), time.time, shared, users=True)
    # they answer our offer with what we answered to theirs
    challenge = peers.step(ours.step(None).token).token
    assert len(shared) == 1
    declined(lambda: ours.step(challenge), "a challenge of our own")
    # neither the record nor the acceptor outlives the exchange
    del peers
    assert len(shared) == 0


def test_record_of_challenges_has_only_open_ones() -> None:
    """A stranger who begins and begins again could fill the memory, or push out the challenge that counts."""
    shared = Challenges()
    waiting = [NtlmAcceptor((CLERK,), time.time, shared, users=True) for _ in range(50)]
    first = initiator().step(None).token
    for one in waiting:
        one.step(first)
    assert len(shared) == 50
    declined(lambda: waiting[0].step(Token(b"x")), "sent octets")
    assert len(shared) == 49
    waiting.clear()
    del one
    assert len(shared) == 0


# What is no NTLM -----------------------------------------------------------------------------------------

STRANGE = [
    (None, "message of 0 octets"),
    (Token(b""), "message of 0 octets"),
    (Token(b"NTLMSSP\x00" + bytes(60_000)), "message of 60008 octets"),
    (Token(bytes.fromhex("6028060662") + bytes(40)), "SPNEGO or Kerberos"),
    (Token(bytes.fromhex("a181d23081cf") + bytes(40)), "SPNEGO or Kerberos"),
    (Token(b"hello"), "sent octets where an NTLM message was due"),
    (Token(b"NTLMSSP\x00"), "too short"),
    (Token(b"NTLMSSP\x00\x09\x00\x00\x00"), "NTLM message 9 where"),
]


@pytest.mark.parametrize(("token", "reason"), STRANGE)
def test_what_is_no_ntlm_message(token: Token | None, reason: str) -> None:
    """AuthIP carries raw messages: SPNEGO could negotiate another mechanism than was agreed on."""
    declined(lambda: acceptor().step(token), reason)
    peers, _ = answered()
    declined(lambda: peers.step(token), reason)
    ours = initiator()
    ours.step(None)
    declined(lambda: ours.step(token), reason)


def test_messages_out_of_order() -> None:
    """A side that goes on after its end could be driven into anything."""
    peers, answer = answered()
    declined(lambda: initiator().step(Token(answer)), "before ours")
    declined(lambda: acceptor().step(Token(answer)), "NTLM message 3 where 1 (NEGOTIATE) was due")
    assert peers.step(Token(answer)).peer
    declined(lambda: peers.step(Token(answer)), "after the last one")
    ours = initiator()
    ours.step(None)
    declined(lambda: ours.step(None), "0 octets")
    declined(lambda: ours.step(None), "after the last one")


def test_every_truncation_is_refused() -> None:
    """The library raises ValueError or struct.error for these, or reads past the end."""
    ours, peers = initiator(), acceptor()
    first = data(ours.step(None))
    second = data(peers.step(Token(first)))
    third = data(ours.step(Token(second)))
    for length in range(16):
        declined(lambda: acceptor().step(Token(first[:length])), "")  # noqa: B023
    for length in range(0, len(second), 3):
        fresh = initiator()
        fresh.step(None)
        declined(lambda: fresh.step(Token(second[:length])), "")  # noqa: B023
    for length in range(0, len(third), 7):
        waiting = acceptor()
        waiting.step(Token(first))
        declined(lambda: waiting.step(Token(third[:length])), "")  # noqa: B023


@given(st.binary(max_size=300), st.integers(0, 400), st.sampled_from((1, 2, 3)))
def test_any_octets_are_declined(junk: bytes, at: int, kind: int) -> None:
    """A stranger's octets end in a refusal, never in a traceback."""
    message = ntlm_messages.SIGNATURE + struct.pack("<I", kind) + junk
    for side in (acceptor(), answered()[0]):
        with pytest.raises(Declined):
            side.step(Token(message)).peer or side.step(Token(message))
    peers, answer = answered()
    at %= len(answer)
    changed = answer[:at] + junk + answer[at + len(junk) + 1 :]
    assume(changed != answer)
    with pytest.raises(Declined):
        peers.step(Token(changed))
    ours = initiator()
    ours.step(None)
    with pytest.raises(Declined):
        ours.step(Token(message))


def test_challenge_that_offers_less() -> None:
    """A server that leaves out the key exchange would choose our session key."""
    for lacking in (Flag.KEY_EXCHANGE, Flag.EXTENDED_SECURITY, Flag.UNICODE, Flag.KEY_128, Flag.SIGN):
        ours, peers = initiator(), acceptor()
        challenge = bytearray(data(peers.step(ours.step(None).token)))
        flags = int.from_bytes(challenge[20:24], "little") & ~lacking
        challenge[20:24] = flags.to_bytes(4, "little")
        declined(lambda: ours.step(Token(bytes(challenge))), lacking.name or "")  # noqa: B023


# Accounts and secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", "clerk", "\\clerk", "CORP\\", "A\\B\\c", "CORP\\cl*rk", "group:CORP\\x", "CORP\\a=b", " CORP\\x",
     "CORP\\a\x00", "CORP\\" + 300 * "a", "CORP\\a@b"],
)  # fmt: skip
def test_names_that_no_account_has(name: str) -> None:
    """Policy reads patterns, groups and other forms of names out of such characters."""
    with pytest.raises(ValueError, match=r"is not DOMAIN|characters"):
        NtlmAccount.named(name, CLERK.nt_hash)


def test_nothing_shows_a_secret() -> None:
    """What is printed goes to the log."""
    peers, answer = answered()
    shown = repr((CLERK, initiator(), peers, Answer.read(answer), peers.step(Token(answer))))
    assert CLERK.nt_hash.__bytes__().hex() not in shown
    assert repr(bytes(CLERK.nt_hash))[2:-1] not in shown
    assert "CORP\\\\clerk" in shown


def test_environment_is_left_alone() -> None:
    """What the library reads there belongs to the whole process."""
    before = dict(os.environ)
    exchange(initiator(), acceptor())
    assert dict(os.environ) == before


def test_proof_needs_the_whole_hash() -> None:
    """An empty hash stands in for accounts that nobody has: whoever computes with it gets in nowhere."""
    empty = NtlmAccount.named("CORP\\nobody", Secret(bytes(16)))
    peers, answer = answered(empty)
    read = Answer.read(answer)
    assert hmac.compare_digest(read.expected(Secret(bytes(16)), peers._nonce)[0], read.proof)
    declined(lambda: peers.step(Token(answer)), "does not know")


# Out of the host's credentials ---------------------------------------------------------------------------

NTLM, USER_NTLM = rule(AuthMethod("ntlm"), peer="beta.example"), rule(AuthMethod("user-ntlm"))
OURS = NtlmAccount.named("CORP\\ALPHA$", nt_hash("narcissus"), ("machine",))
THEIRS = NtlmAccount.named("CORP\\clerk", nt_hash("tulip"), ("user",))


def credentials(*accounts: NtlmAccount) -> Credentials:
    """Of a host with these accounts."""
    return Credentials(Material(accounts=accounts), time.time)


def test_account_for_each_authentication() -> None:
    """The machine must not prove itself as its user, nor the user as the machine."""
    host = credentials(CLERK, OURS, THEIRS)
    assert host.ntlm_accounts(user=False) == (OURS,)
    assert host.ntlm_accounts(user=True) == (THEIRS,)
    assert "ALPHA$ to beta.example" in repr(host.ntlm_initiator(NTLM, user=False))
    assert "clerk to unspecified" in repr(host.ntlm_initiator(USER_NTLM, user=True))
    for peer, target in (("host/beta.example", "beta.example"), ("*.example", "unspecified")):
        made = host.ntlm_initiator(rule(AuthMethod("ntlm"), peer=peer), user=False)
        assert repr(made).endswith(f" to {target}>")
    beta = credentials(CLERK, HOST)
    for which, user in ((NTLM, False), (USER_NTLM, True)):
        ours, peers = host.ntlm_initiator(which, user=user), beta.ntlm_acceptor(which, users=user)
        assert exchange(ours, peers)[1].peer


def test_rule_and_host_must_both_have_ntlm() -> None:
    """A rule for certificates must not be opened with a password."""
    host = credentials(CLERK)
    other = rule(AuthMethod("certificate"))
    declined(lambda: host.ntlm_acceptor(other, users=True), "the peer wants NTLM, rule")
    declined(lambda: host.ntlm_initiator(other, user=True), "the peer wants NTLM, rule")
    declined(lambda: host.ntlm_initiator(NTLM, user=False), "of its machine", 'use = ["machine"]')
    declined(lambda: host.ntlm_initiator(NTLM, user=True), "of its user", 'use = ["user"]')


def test_reflection_through_one_host() -> None:
    """Both sides of a host know its challenges, and go on knowing them after a reload."""
    host = credentials(CLERK, THEIRS)
    peers = host.ntlm_acceptor(USER_NTLM, users=True)
    after = Credentials(host.material, time.time, host.challenges)
    ours = host.ntlm_initiator(USER_NTLM, user=True)
    challenge = peers.step(ours.step(None).token).token
    declined(lambda: ours.step(challenge), "a challenge of our own")
    later = after.ntlm_initiator(USER_NTLM, user=True)
    later.step(None)
    declined(lambda: later.step(challenge), "a challenge of our own")
