"""ikd.auth.tls: a TLS handshake in tokens between two sides in memory: who is proven, the key, refusals."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from support.certificates import (
    CERTIFICATE,
    DAY,
    NOW,
    PSK,
    authority,
    below,
    build,
    der,
    dns,
    host,
    key,
    own,
    rule,
)

from ikd import pki
from ikd.auth import ANONYMOUS, Authenticator, Declined, Step, Token, tls
from ikd.auth.certificate import HostCertificate
from ikd.auth.chain import Trust
from ikd.auth.credentials import Credentials, Material
from ikd.auth.health import SYSTEM_HEALTH
from ikd.auth.revocation import CrlCheck
from ikd.auth.tls import SecretKind, TlsAcceptor, TlsCredentials, TlsInitiator
from ikd.auth.tls_errors import Objection, explain
from ikd.pki import Pair
from policy.rules import AuthMethod

ROOT = authority()
SUB = below(ROOT, "Sub")
OTHER = authority("Other", number=107)
MINE, THEIRS = host(SUB, "i.example"), host(SUB, "a.example", number=1)
TRUST = Trust([ROOT.certificate])
HEALTH = AuthMethod("certificate", health=True)
KINDS = get_args(SecretKind)
Sides = tuple[Authenticator, Authenticator]


def clock() -> float:
    """The tests' time, which is not the machine's."""
    return NOW


def issued(
    name: str = "i.example", *, eku: tuple[str, ...] = ("ike",), ca: Pair = SUB, number: int = 0
) -> Pair:
    """A host certificate with these usages."""
    return pki.issue(ca, name, [name], now=NOW - DAY, key=key(number=number), eku=eku)


def sides(
    initiator: HostCertificate | None = None,
    acceptor: HostCertificate | None = None,
    *,
    trusts: tuple[Trust, Trust] = (TRUST, TRUST),
    methods: tuple[AuthMethod, ...] = (CERTIFICATE,),
    mutual: tuple[bool, bool] = (True, True),
    secrets: tuple[SecretKind, SecretKind] = ("exporter", "exporter"),
    old: bool = False,
) -> Sides:
    """Both ends. `trusts`, `mutual` and `secrets` are the initiator's and the acceptor's; `methods` the
    acceptor's."""
    one = TlsCredentials(initiator or own(MINE, SUB), trusts[0], old=old)
    other = TlsCredentials(acceptor or own(THEIRS, SUB), trusts[1], old=old)
    return (
        TlsInitiator(one, (CERTIFICATE,), clock, mutual=mutual[0], secret=secrets[0]),
        TlsAcceptor(other, methods, clock, mutual=mutual[1], secret=secrets[1]),
    )


def talk(
    both: Sides, change: Callable[[int, bytes], bytes] = lambda number, data: data
) -> tuple[Step, Step, list[bytes]]:
    """The whole exchange: the last step of each, and the tokens. `change` is a man in the middle."""
    tokens: list[bytes] = []
    last = [Step(), Step()]
    token: Token | None = None
    for turn in range(12):
        step = both[turn % 2].step(token)
        last[turn % 2] = step
        if step.token is None:
            return last[0], last[1], tokens
        tokens.append(change(len(tokens), step.token.data))
        token = Token(tokens[-1])
    raise AssertionError("an exchange without end")


def refusal(both: Sides, change: Callable[[int, bytes], bytes] = lambda number, data: data) -> Declined:
    """Why the exchange came to nothing."""
    with pytest.raises(Declined) as caught:
        talk(both, change)
    return caught.value


def refused_by_peer(side: Authenticator, alert: bytes) -> Declined:
    """What the other side makes of an alert."""
    with pytest.raises(Declined) as caught:
        side.step(Token(alert))
    return caught.value


# What must work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "ed25519"])
def test_both_prove_themselves(kind: str) -> None:
    """Two hosts with certificates would not come together over AuthIP, or not know whom they talk to."""
    mine, theirs = host(SUB, "i.example", kind), host(SUB, "a.example", kind, number=1)
    first, second, tokens = talk(sides(own(mine, SUB), own(theirs, SUB)))
    assert len(tokens) == 4
    assert first.token is None
    assert first.peer is not None
    assert second.peer is not None
    assert str(first.peer.identity) == "a.example"
    assert first.peer.names == ("a.example", "CN=a.example")
    assert str(second.peer.identity) == "i.example"
    assert second.peer.method == "certificate"
    assert second.peer.description.startswith("host cert CN=i.example (tls ECDHE-")
    assert second.peer.expires == mine.certificate.not_valid_after_utc.timestamp()
    assert not second.peer.health
    assert first.key == second.key
    assert len(first.key) == 32


def test_only_the_acceptor_proves_itself() -> None:
    """One-way TLS: the initiator would show who it is, or the acceptor take it for somebody."""
    first, second, tokens = talk(sides(mutual=(False, False)))
    assert first.peer is not None
    assert str(first.peer.identity) == "a.example"
    assert second.peer == ANONYMOUS
    assert first.key == second.key
    assert not any(der(MINE)[0] in token for token in tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_both_have_the_same_key(kind: SecretKind) -> None:
    """The main mode's keys would differ; or be the same in every exchange."""
    found = [talk(sides(secrets=(kind, kind)))[:2] for _ in range(2)]
    assert all(first.key == second.key for first, second in found)
    assert found[0][0].key != found[1][0].key
    lengths = {"exporter": 32, "eap-key-block": 128, "master-secret": 48, "hash-of-key-block": 32}
    assert len(found[0][0].key) == lengths[kind]
    assert bytes(found[0][0].key).hex() not in repr(found)


def prf(secret: bytes, seed: bytes, length: int) -> bytes:
    """P_SHA384 of RFC 5246 section 5."""
    out, a = b"", seed
    while len(out) < length:
        a = hmac.digest(secret, a, "sha384")
        out += hmac.digest(secret, a + seed, "sha384")
    return out[:length]


@pytest.mark.parametrize("kind", KINDS)
def test_key_is_what_rfc_5705_says(kind: SecretKind) -> None:
    """Another implementation would derive another key from the same handshake."""
    first, second, tokens = talk(sides(secrets=("master-secret", kind)))
    master = bytes(first.key)
    client, server = (token[11:43] for token in tokens[:2])  # after record header, message header, version
    assert tokens[1][44:46] == b"\xc0\x2c"  # TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
    block = prf(master, b"client EAP encryption" + client + server, 128)
    wanted = {
        "exporter": block[:32],
        "eap-key-block": block,
        "hash-of-key-block": hashlib.sha256(block).digest(),
        "master-secret": master,
    }
    assert bytes(second.key) == wanted[kind]


@pytest.mark.parametrize("eku", [("ike",), ("health",), ("server",), ()])
def test_usages_of_ipsec_will_do(eku: tuple[str, ...]) -> None:
    """The library refuses what is not for web servers and their clients: every certificate made for IKE."""
    first, second, _ = talk(
        sides(own(issued(eku=eku), SUB), own(issued("a.example", eku=eku, number=1), SUB))
    )
    assert first.peer is not None
    assert second.peer is not None
    assert first.peer.health is second.peer.health is (eku == ("health",))


def test_anchors_need_not_be_roots() -> None:
    """An intermediate authority, or the peer's very certificate, may be what we trust."""
    pinned = Trust([MINE.certificate])
    first, second, _ = talk(sides(own(MINE), own(THEIRS), trusts=(Trust([SUB.certificate]), pinned)))
    assert first.peer is not None
    assert second.peer is not None


def test_root_is_not_sent() -> None:
    """Every handshake would carry octets that prove nothing."""
    _, _, tokens = talk(sides(own(MINE, SUB, ROOT), own(THEIRS, SUB, ROOT)))
    for token, mine in ((tokens[1], THEIRS), (tokens[2], MINE)):
        assert [one in token for one in der(mine, SUB, ROOT)] == [True, True, False]
    alone = talk(sides(own(host(ROOT, "i.example")), own(THEIRS, SUB)))[2][2]
    assert der(ROOT)[0] not in alone


def test_no_session_can_be_resumed() -> None:
    """A ticket is sent or a session ID given: a resumed session shows no certificates."""
    _, _, tokens = talk(sides())
    assert len(tokens[3]) < 60  # ChangeCipherSpec and Finished
    assert tokens[1][43] == 0  # session ID of ServerHello


def test_authorities_are_named_only_if_wanted() -> None:
    """Whoever asks would learn whom this host trusts."""
    name = ROOT.certificate.subject.public_bytes()
    for announce in (False, True):
        credentials = TlsCredentials(own(THEIRS), TRUST, announce=announce)
        both = sides()[0], TlsAcceptor(credentials, (CERTIFICATE,), clock)
        hello = both[0].step(None).token
        flight = both[1].step(hello).token
        assert flight is not None
        assert (flight.data.count(name) > der(THEIRS)[0].count(name)) is announce


def test_contexts_are_made_once() -> None:
    """A handshake would take several times as long."""
    credentials = TlsCredentials(own(THEIRS), TRUST)
    one, other = (credentials.connection(proving=True, checking=True, now=NOW) for _ in range(2))
    assert one.get_context() is other.get_context()
    assert "a.example" in repr(TlsAcceptor(credentials, (CERTIFICATE,), clock))


# Certificates that will not do ---------------------------------------------------------------------------

LEAF = key(number=5)


def of(start: float, end: float) -> HostCertificate:
    """A certificate with this validity."""
    found = build(SUB, "i.example", public=LEAF, extensions=[dns("i.example")], start=start, end=end)
    return HostCertificate((found, SUB.certificate), LEAF)


REVOKED = Trust([ROOT.certificate], [pki.make_crl(SUB, [MINE.certificate], NOW)])
NO_LIST = Trust([ROOT.certificate], crl_check=CrlCheck.REQUIRE)


@pytest.mark.parametrize(
    ("bad", "trust", "method", "reason", "remedy", "told"),
    [
        (own(MINE, SUB), Trust([OTHER.certificate]), CERTIFICATE,
         "issuer CN=Root of certificate CN=Sub is not trusted; trusted are: CN=Other", "identity.trust",
         "does not trust the issuer of our certificate"),
        (own(MINE), TRUST, CERTIFICATE, "issuer CN=Sub of certificate CN=i.example is not trusted",
         "intermediate", "does not trust the issuer"),
        (own(MINE, SUB), Trust([]), CERTIFICATE, "trusts no certificate authority", "identity.trust",
         "does not trust the issuer"),
        (of(NOW - DAY, NOW - 3600), TRUST, CERTIFICATE, "certificate CN=i.example expired 2027-01-15",
         "renew it", "says that our certificate has expired"),
        (of(NOW + 3600, NOW + DAY), TRUST, CERTIFICATE, "not valid before 2027-01-15", "clocks",
         "does not accept our certificate"),
        (own(MINE, SUB), REVOKED, CERTIFICATE, "certificate CN=i.example was revoked", "new certificate",
         "does not accept our certificate"),
        (own(MINE, SUB), NO_LIST, CERTIFICATE, "no current revocation list of CN=Sub", "identity.crls",
         "does not accept our certificate"),
        (own(issued(eku=("1.3.6.1.5.5.7.3.3",)), SUB), TRUST, CERTIFICATE, "is for other uses",
         "authentication set", "does not accept our certificate"),
        (own(MINE, SUB), TRUST, HEALTH, f"lacks the extended key usage {SYSTEM_HEALTH}", "authentication set",
         "does not accept our certificate"),
        (own(MINE, SUB), TRUST, AuthMethod("certificate", ca="CN=Other"), "does not come from CN=Other",
         "authentication set", "does not accept our certificate"),
        (own(MINE, SUB), TRUST, AuthMethod("certificate", signing="rsa"), "wanted is rsa",
         "authentication set", "does not accept our certificate"),
    ],
    ids=["CA", "chain", "nobody", "expired", "early", "revoked", "list", "usage", "health", "ca=", "signing"],
)  # fmt: skip
@pytest.mark.parametrize("who", ["initiator", "acceptor"])
def test_certificate_that_will_not_do(
    bad: HostCertificate, trust: Trust, method: AuthMethod, reason: str, remedy: str, told: str, who: str
) -> None:
    """Somebody would be let in with it; or the administrator, of either host, not know what to mend."""
    proving = TlsCredentials(bad, TRUST)
    judging = TlsCredentials(own(THEIRS, SUB), trust)
    if who == "initiator":
        both: Sides = TlsInitiator(proving, (CERTIFICATE,), clock), TlsAcceptor(judging, (method,), clock)
    else:
        both = TlsInitiator(judging, (method,), clock), TlsAcceptor(proving, (CERTIFICATE,), clock)
    declined = refusal(both)
    assert reason in str(declined)
    assert remedy in declined.remedy
    assert declined.token[:5] == bytes.fromhex("1503030002")  # an alert, and no other octet
    assert len(declined.token) == 7
    other = both[0] if who == "initiator" else both[1]
    answer = refused_by_peer(other, declined.token)
    assert told in str(answer)
    assert answer.remedy


def test_certificate_the_library_does_not_like() -> None:
    """A refusal of the library alone would have no words."""
    limited = pki.make_ca("Narrow", NOW - DAY, key=key(number=105), issuer=ROOT, path_length=0)
    deep = below(limited, "Deep", number=106)
    declined = refusal(sides(own(host(deep, "i.example"), deep, limited)))
    assert str(declined) == "certificate CN=Narrow is not acceptable: path length exceeded"


def test_key_of_another_certificate_proves_nothing() -> None:
    """Certificates are public: whoever has seen one could show it."""
    root = authority("CA", "rsa-2048")  # its signatures are all of one length
    good, other = (
        build(root, "i.example", public=key(number=n), extensions=[dns("i.example")], serial=1000 + n)
        for n in (0, 13)
    )
    thief = HostCertificate((other,), key(number=13))
    both = sides(thief, trusts=(TRUST, Trust([root.certificate])))
    shown, claimed = der(other)[0], der(good)[0]
    assert len(shown) == len(claimed)
    declined = refusal(both, lambda number, data: data.replace(shown, claimed))
    assert str(declined) == "the peer's signature does not fit its certificate"
    with pytest.raises(Declined, match=r"cannot be used in TLS: key values mismatch"):
        sides(HostCertificate((good,), key(number=13)))[0].step(None)


def test_peer_without_a_certificate() -> None:
    """Who has none would pass for proven."""
    both = sides(mutual=(False, True))
    declined = refusal(both)
    assert str(declined) == "the peer has sent no certificate, and one is wanted"
    assert "[identity]" in declined.remedy
    assert "a certificate that we did not send" in str(refused_by_peer(both[0], declined.token))


def test_host_without_a_certificate() -> None:
    """Nothing to prove oneself with must be said, in both roles, and does not hinder one-way TLS."""
    nothing = TlsCredentials(None, TRUST)
    for side, token in (
        (TlsInitiator(nothing, (CERTIFICATE,), clock), None),
        (TlsAcceptor(nothing, (CERTIFICATE,), clock, mutual=False), sides()[0].step(None).token),
    ):
        with pytest.raises(Declined, match="no certificate to prove itself with") as caught:
            side.step(token)
        assert "[identity]" in caught.value.remedy
    one_way = TlsInitiator(nothing, (CERTIFICATE,), clock, mutual=False), sides(mutual=(False, False))[1]
    assert talk(one_way)[1].peer == ANONYMOUS
    assert "without certificate" in repr(nothing)


def test_certificate_is_shown_to_nobody_before_he_has_proven_himself() -> None:
    """Any responder could find out who this host is."""
    declined = refusal(sides(acceptor=own(issued("a.example", eku=("1.3.6.1.5.5.7.3.3",), number=1), SUB)))
    assert der(MINE)[0] not in declined.token


# Octets that will not do ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_altered_octets(number: int) -> None:
    """An exchange somebody has touched would end with different keys, an unhandled error, or not at all."""
    both = sides(mutual=(True, True))
    length = len(talk(both)[2][number])
    same = 0
    for position in range(0, length, 17 if length > 100 else 3):
        flipped = sides()

        def change(turn: int, data: bytes, at: int = position) -> bytes:
            at = min(at, len(data) - 1)  # signatures are not all of one length
            return data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1 :] if turn == number else data

        try:
            first, second, _ = talk(flipped, change)
        except Declined:
            continue
        same += 1
        assert first.key == second.key
    assert same <= 1  # the version in a record's header means nothing in some records


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(("at", "reason"), [(4, "no TLS handshake"), (8, "incomplete|no sense|altered")])
@pytest.mark.parametrize("by", [-1, 1, 40])
def test_altered_lengths(number: int, at: int, reason: str, by: int) -> None:
    """Of a record (4) or a message (8): both ends would wait for more, for ever."""

    def change(turn: int, data: bytes) -> bytes:
        return data[:at] + bytes(((data[at] + by) % 256,)) + data[at + 1 :] if turn == number else data

    with pytest.raises(Declined, match=f"{reason}|make no sense|altered"):
        talk(sides(), change)


@pytest.mark.parametrize("number", range(4))
def test_tokens_cut_short(number: int) -> None:
    """Half a flight: the other half is nowhere to come from."""
    for share in (0.0, 0.01, 0.3, 0.6, 0.99):
        declined = refusal(
            sides(), lambda n, data, s=share: data[: int(len(data) * s)] if n == number else data
        )  # type: ignore[misc]
        assert str(declined)


SPNEGO = bytes.fromhex("604806062b0601050502a03e303ca00e300c060a2b06010401823702020a")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "of 0 octets"),
        (b"\x16", "no TLS handshake"),
        (b"NTLMSSP\x00\x01\x00\x00\x00", "no TLS handshake"),
        (SPNEGO, "Kerberos or SPNEGO where TLS was agreed on"),
        (b"GET / HTTP/1.1\r\n\r\n", "no TLS handshake"),
        (b"\x16\x03\x01\x40\x00" * 3680, "of 18400 octets|no TLS handshake|no sense"),
        ((b"\x16\x03\x01\x3f\xfb" + bytes(0x3FFB)) * 4, "of 65536 octets; the limit is 32768"),
        (b"\x16\x03\x03\x00\x00", "no sense|incomplete"),
        (b"\x16\x03\x03\x00\x04\x00\x00\x00\x00", "no sense|incomplete"),  # HelloRequest
        (b"\x17\x03\x03\x00\x04data", "no TLS handshake"),
        (b"\x14\x03\x03\x00\x01\x01", "no sense"),
    ],
)
@pytest.mark.parametrize("role", [0, 1])
def test_octets_that_are_no_flight(data: bytes, reason: str, role: int) -> None:
    """Nonsense would raise something else than a refusal, be taken for a wait, or cost memory."""
    side = sides()[role]
    if role == 0:
        side.step(None)
    with pytest.raises(Declined, match=reason):
        side.step(Token(data))
    with pytest.raises(Declined, match="after the last one"):
        side.step(Token(data))


@pytest.mark.parametrize(
    ("alert", "reason"),
    [
        ("0230", "the peer does not trust the issuer of our certificate"),
        ("0231", "our certificate is good, but not what the peer's rule asks for"),
        ("022b", "the peer has no use for a certificate like ours"),
        ("022c", "the peer says that our certificate was revoked"),
        ("022d", "the peer says that our certificate has expired"),
        ("0228", "the peer cannot agree with us"),
        ("0246", "the peer does not speak TLS 1.2"),
        ("0247", "the peer wants stronger ciphers"),
        ("0233", "the peer could not verify what we signed"),
        ("0214", "a message of ours was altered"),
        ("0250", "the peer broke off the TLS handshake: internal error"),
        ("0100", "the peer gave up"),
        ("015a", "the peer's TLS token is incomplete"),  # a warning, and the handshake goes on
    ],
)
def test_alerts_of_the_peer(alert: str, reason: str) -> None:
    """What the peer has against us would not be told, although it has said so."""
    side = sides()[0]
    side.step(None)
    assert reason in str(refused_by_peer(side, bytes.fromhex("1503030002" + alert)))


def test_token_of_sixty_thousand_octets() -> None:
    """Strangers would make the daemon parse certificates for as long as they like."""
    huge = b"".join(b"\x16\x03\x03\x3a\x98" + bytes(15000) for _ in range(4))
    with pytest.raises(Declined, match="token of 60020 octets; the limit is 32768"):
        sides()[1].step(Token(huge))


@given(st.binary(max_size=200), st.sampled_from([20, 21, 22]), st.booleans())
def test_any_octets(data: bytes, kind: int, begins: bool) -> None:
    """Something else than a refusal would end the association with a traceback."""
    side = sides()[0 if begins else 1]
    if begins:
        side.step(None)
    with pytest.raises(Declined):
        side.step(Token(bytes((kind, 3, 3)) + len(data).to_bytes(2, "big") + data))


@pytest.mark.parametrize(
    ("error", "objection", "reason"),
    [
        (
            SSL.Error([("SSL routines", "", "certificate verify failed")]),
            Objection(20, b"no DER"),
            "cannot be read",
        ),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), Objection(), "verify failed"),
        (SSL.SysCallError(-1, "Unexpected EOF"), Objection(), "no reason given"),
        (
            SSL.Error([("", "", "ssl/tls alert sunshine")]),
            Objection(),
            "broke off the TLS handshake: sunshine",
        ),
    ],
)
def test_refusals_nobody_has_seen(error: SSL.Error, objection: Objection, reason: str) -> None:
    """A new version of the library says something new: still a refusal, with its words."""
    assert reason in str(explain(error, objection, TRUST, NOW))


def test_order_of_tokens() -> None:
    """A side that is spoken to out of turn would begin anew or fail somewhere else."""
    with pytest.raises(Declined, match="before ours"):
        sides()[0].step(Token(b"\x16\x03\x01\x00\x00"))
    with pytest.raises(Declined, match="no TLS token"):
        sides()[1].step(None)
    both = sides()
    both[0].step(None)
    with pytest.raises(Declined, match="no TLS token"):
        both[0].step(None)


def test_nothing_comes_after_the_end() -> None:
    """A peer could begin another handshake in the one that is done."""
    both = sides()
    _, _, tokens = talk(both)
    for side in both:
        with pytest.raises(Declined, match="after the last one"):
            side.step(Token(tokens[0]))


@pytest.mark.parametrize("number", [2, 3])
def test_nothing_comes_with_the_end(number: int) -> None:
    """Octets behind Finished are part of no handshake."""
    extra = b"\x16\x03\x03\x00\x04\x00\x00\x00\x00"
    declined = refusal(sides(), lambda n, data: data + extra if n == number else data)
    assert "more after the end" in str(declined)


def test_exchange_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that always has another flight would keep the negotiation for ever."""
    monkeypatch.setattr(tls, "MOST_ROUNDS", 1)
    assert "after the last one" in str(refusal(sides()))


# Other peers ---------------------------------------------------------------------------------------------


def plain_client(ciphers: bytes | None = None, version: int = SSL.TLS1_2_VERSION) -> bytes:
    """The ClientHello of another implementation."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    if ciphers:
        context.set_cipher_list(ciphers)
    connection = SSL.Connection(context)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65535)


def test_another_version() -> None:
    """TLS 1.3 has other flights, in which the acceptor is not done when the initiator is."""
    with pytest.raises(Declined, match=r"does not speak TLS 1\.2") as caught:
        sides()[1].step(Token(plain_client(version=SSL.TLS1_3_VERSION)))
    assert caught.value.remedy
    assert caught.value.token


@pytest.mark.parametrize("cipher", [b"AES128-SHA256", b"AES256-SHA", b"ECDHE-RSA-AES128-SHA256"])
def test_old_suites_only_if_wanted(cipher: bytes) -> None:
    """Suites without forward secrecy would be on for everybody, or an old peer find none."""
    acceptor = own(host(SUB, "a.example", "rsa-2048", number=1), SUB)
    hello = Token(plain_client(cipher + b":@SECLEVEL=1"))
    with pytest.raises(Declined, match="no cipher suite") as caught:
        sides(acceptor=acceptor)[1].step(hello)
    assert caught.value.remedy
    assert sides(acceptor=acceptor, old=True)[1].step(hello).token


def test_suites_without_certificates_are_never_on() -> None:
    """Anonymous suites prove nobody."""
    hello = Token(plain_client(b"AECDH-AES128-SHA:@SECLEVEL=0"))
    with pytest.raises(Declined, match="no cipher suite"):
        sides(old=True)[1].step(hello)


def test_modern_suite_comes_first_with_old_ones() -> None:
    """Two modern hosts would use a weak suite because one of them also talks to old peers."""
    peer = talk(sides(old=True))[0].peer
    assert peer is not None
    assert "AES256-GCM" in peer.description


def test_old_suites_give_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without forward secrecy the key is proven only by the last flight; it must be the same all the same."""
    monkeypatch.setattr(tls, "_MODERN", b"AES128-SHA256")
    mine, theirs = (host(SUB, name, "rsa-2048", n) for n, name in enumerate(("i.example", "a.example")))
    first, second, _ = talk(sides(own(mine, SUB), own(theirs, SUB), old=True))
    assert second.peer is not None
    assert "(tls AES128-SHA256)" in second.peer.description
    assert first.key == second.key


# Out of the host's credentials ---------------------------------------------------------------------------

RULE = rule(CERTIFICATE)
ALICE = pki.issue(
    SUB, "alice@corp.example", ["alice@corp.example"], now=NOW - DAY, key=key(number=2), eku=["client"]
)
WELL = pki.issue(SUB, "i.example", ["i.example"], now=NOW, days=1, key=key(number=3), eku=["health"])
LONG = pki.issue(SUB, "long.example", ["long.example"], now=NOW, days=900, key=key(number=4))
USER = AuthMethod("user-certificate")


def credentials(*hosts: HostCertificate, user: HostCertificate | None = None) -> Credentials:
    """What a host has."""
    return Credentials(Material(hosts=hosts, user=user, anchors=(ROOT.certificate,)), clock)


HERE = credentials(own(WELL, SUB), own(MINE, SUB), own(LONG, SUB), user=own(ALICE, SUB))
THERE = credentials(own(THEIRS, SUB))


def test_certificates_in_the_order_in_which_to_try_them() -> None:
    """A retry would show the same certificate again, or one that does not fit."""
    assert [h.leaf for h in HERE.tls_hosts((CERTIFICATE,))] == [
        LONG.certificate,
        MINE.certificate,
        WELL.certificate,
    ]
    assert [h.leaf for h in HERE.tls_hosts((HEALTH,))] == [WELL.certificate]
    assert [h.leaf for h in HERE.tls_hosts((HEALTH, CERTIFICATE))] == [
        WELL.certificate, LONG.certificate, MINE.certificate]  # fmt: skip
    assert [h.leaf for h in HERE.tls_hosts((USER,), user=True)] == [ALICE.certificate]
    assert THERE.tls_hosts((USER,), user=True) == ()
    assert THERE.tls_hosts((HEALTH,)) == ()


def test_machines_by_a_rule() -> None:
    """The first certificate that fits is used, or the one that the caller chose."""
    for chosen, name in ((None, "long.example"), (HERE.tls_hosts((CERTIFICATE,))[1], "i.example")):
        initiator = HERE.tls_initiator(RULE, (CERTIFICATE,), host=chosen, secret="master-secret")
        acceptor = THERE.tls_acceptor(RULE, (CERTIFICATE,), secret="master-secret")
        first, second, _ = talk((initiator, acceptor))
        assert first.peer is not None
        assert second.peer is not None
        assert (str(first.peer.identity), str(second.peer.identity)) == ("a.example", name)
        assert len(second.key) == 48


def test_user_to_a_machine() -> None:
    """A user proves itself to the machine; its rule says what the user's certificate must be, not the
    machine's."""
    narrow = replace(USER, eku=("1.3.6.1.5.5.7.3.2",))
    initiator = HERE.tls_initiator(RULE, (narrow,), user=True)
    acceptor = THERE.tls_acceptor(RULE, (narrow,), user=True)
    first, second, _ = talk((initiator, acceptor))
    assert first.peer is not None
    assert second.peer is not None
    assert str(first.peer.identity) == "a.example"
    assert str(second.peer.identity) == "alice@corp.example"
    assert second.peer.description.startswith("user cert CN=alice@corp.example")
    machine = HERE.tls_initiator(RULE, (CERTIFICATE,))
    assert "lacks the extended key usage" in str(
        refusal((machine, THERE.tls_acceptor(RULE, (narrow,), user=True)))
    )


def test_health_of_both() -> None:
    """A host without a health certificate would pass, or one that has one show another."""
    with pytest.raises(Declined, match=r"our certificate CN=a\.example lacks .* \(system health\)") as caught:
        THERE.tls_acceptor(RULE, (HEALTH,))
    assert "identity.certificate" in caught.value.remedy
    second = talk((HERE.tls_initiator(RULE, (HEALTH,)), HERE.tls_acceptor(RULE, (HEALTH,))))[1]
    assert second.peer is not None
    assert second.peer.health
    assert second.peer.expires == WELL.certificate.not_valid_after_utc.timestamp()
    peer = THERE.tls_initiator(RULE, (CERTIFICATE,))
    assert "system health" in str(refusal((peer, HERE.tls_acceptor(RULE, (HEALTH,)))))


def test_one_way_needs_no_certificate_of_the_initiator() -> None:
    """A host without certificates could not use a server's."""
    initiator = credentials().tls_initiator(RULE, (CERTIFICATE,), mutual=False)
    first, second, _ = talk((initiator, THERE.tls_acceptor(RULE, (CERTIFICATE,), mutual=False)))
    assert first.peer is not None
    assert second.peer == ANONYMOUS


def test_nothing_to_prove_oneself_with() -> None:
    """The administrator would not know which key of which file is missing."""
    for call, said, remedy in (
        (
            lambda: credentials().tls_initiator(RULE, (CERTIFICATE,)),
            "this host has no cert",
            "identity.certificate",
        ),
        (
            lambda: credentials().tls_acceptor(RULE, (CERTIFICATE,)),
            "this host has no cert",
            "identity.certificate",
        ),
        (
            lambda: THERE.tls_initiator(RULE, (USER,), user=True),
            "the user of this host",
            "identity.user_key",
        ),
    ):
        with pytest.raises(Declined, match=said) as caught:
            call()
        assert remedy in caught.value.remedy
    late = Credentials(HERE.material, lambda: NOW + 2000 * DAY)
    with pytest.raises(Declined, match="not valid now"):
        late.tls_initiator(RULE, (USER,), user=True)


@pytest.mark.parametrize("methods", [(), (PSK,), (CERTIFICATE, AuthMethod("kerberos"))])
def test_other_methods_narrow_nothing(methods: tuple[AuthMethod, ...]) -> None:
    """A rule that wants Kerberos would take any certificate."""
    for make in (HERE.tls_initiator, THERE.tls_acceptor):
        with pytest.raises(Declined, match='rule "office" does not'):
            make(RULE, methods)
