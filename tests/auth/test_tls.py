"""ikd.auth.tls: a TLS handshake in tokens between two sides in memory: who is proven, the key, refusals."""

from __future__ import annotations

import hashlib
import hmac
from typing import get_args

import pytest
from OpenSSL import SSL
from support.certificates import (
    CERTIFICATE,
    NOW,
    der,
    host,
    own,
)
from support.tls import MINE, ROOT, SUB, THEIRS, TRUST, clock, issued, sides, talk

from ikd.auth import ANONYMOUS, Declined, Token, tls
from ikd.auth.chain import Trust
from ikd.auth.tls import SecretKind, TlsAcceptor, TlsCredentials

KINDS = get_args(SecretKind)


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
