"""ikd.auth.tls: octets that are no flight of a handshake, altered, cut, or out of order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from support.certificates import (
    NOW,
)
from support.tls import TRUST, refusal, refused_by_peer, sides, talk

from ikd.auth import Declined, Token, tls
from ikd.auth.tls_errors import Objection, explain


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
