"""ikd.auth.psk: the AUTH value of RFC 7296 section 2.15, and which key belongs to which peer."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import transcript

from ikd.auth import Declined, Identity, Token, Transcript
from ikd.auth.psk import METHOD, PskEntry, PskProver, PskVerifier, find, shared_key_code
from sadb.algorithms import PRF, PRF_BY_NAME
from sadb.secret import Secret

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "auth_psk.json").read_text())["cases"]


def hmac_by_hand(digest: str, secret: bytes, data: bytes) -> bytes:
    """RFC 2104, written out."""
    block = hashlib.new(digest).block_size
    secret = hashlib.new(digest, secret).digest() if len(secret) > block else secret
    secret = secret.ljust(block, b"\0")
    inner = hashlib.new(digest, bytes(b ^ 0x36 for b in secret) + data).digest()
    return hashlib.new(digest, bytes(b ^ 0x5C for b in secret) + inner).digest()


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["prf"])
def test_known_answer(case: dict[str, str]) -> None:
    """No other implementation would accept our AUTH payload, nor we theirs."""
    message, nonce, key, identification = (
        bytes.fromhex(case[field]) for field in ("real_message", "nonce", "sk_p", "id_payload_body")
    )
    # the signed octets, as the keying protocol makes them: RealMessage | Nonce | prf(SK_p, RestOfIDPayload)
    octets = message + nonce + hmac_by_hand(case["hash"], key, identification)
    assert octets.hex() == case["signed_octets"]
    made = shared_key_code(Secret(case["secret"].encode()), Transcript(octets, PRF_BY_NAME[case["prf"]]))
    assert made.hex() == case["auth"]


@pytest.mark.parametrize("row", PRF, ids=lambda row: row.name)
@pytest.mark.parametrize("secret", [b"s", b"a longer shared secret", bytes(range(200))])
def test_formula_written_out(row: object, secret: bytes) -> None:
    """A secret longer than the hash's block, or another PRF, would be used differently by the peer."""
    pad = hmac_by_hand(row.hash, secret, b"Key Pad for IKEv2")  # type: ignore[attr-defined]
    wanted = hmac_by_hand(row.hash, pad, b"octets")  # type: ignore[attr-defined]
    assert shared_key_code(Secret(secret), Transcript(b"octets", row)) == wanted  # type: ignore[arg-type]
    assert wanted == hmac.digest(pad, b"octets", row.hash)  # type: ignore[attr-defined]


def test_prover_convinces_verifier() -> None:
    """Two hosts with one key would not come together."""
    token = PskProver(Secret(b"key"), transcript()).step(None).token
    assert token is not None
    assert token.method == METHOD
    peer = PskVerifier(Secret(b"key"), Identity.parse("a.example"), transcript()).step(token).peer
    assert peer is not None
    assert (str(peer.identity), peer.method, peer.names, peer.expires) == (
        "a.example",
        "psk",
        ("a.example",),
        None,
    )


@pytest.mark.parametrize(
    "token",
    [
        PskProver(Secret(b"other key"), transcript()).step(None).token,
        PskProver(Secret(b"key"), transcript(b"another message")).step(None).token,
        Token(b"", METHOD),
        Token(bytes(32), METHOD),
        Token(shared_key_code(Secret(b"key"), transcript()) + b"\0", METHOD),
        Token(shared_key_code(Secret(b"key"), transcript())[:16], METHOD),
        Token(shared_key_code(Secret(b"key"), transcript()), 14),
        None,
    ],
)
def test_anything_else_proves_nothing(token: Token | None) -> None:
    """A peer without the key would be let in."""
    with pytest.raises(Declined):
        PskVerifier(Secret(b"key"), Identity.parse("a.example"), transcript()).step(token)


def test_wrong_key_names_peer_and_remedy_and_shows_no_secret() -> None:
    """The administrator could not tell which of many keys to compare, or the log would hold one."""
    token = PskProver(Secret(b"theirs"), transcript()).step(None).token
    verifier = PskVerifier(Secret(b"ours-and-secret"), Identity.parse("a.example"), transcript())
    with pytest.raises(Declined, match=r"pre-shared key for a\.example") as caught:
        verifier.step(token)
    assert "secrets.toml" in caught.value.remedy
    assert "ours-and-secret" not in f"{caught.value} {caught.value.remedy} {verifier!r}"


@given(st.binary(max_size=100), st.integers(0, 255))
def test_any_token_is_declined(data: bytes, method: int) -> None:
    """Octets of a stranger would raise something nobody expects."""
    with pytest.raises(Declined):
        PskVerifier(Secret(b"key"), Identity.parse("a.example"), transcript()).step(Token(data, method))


# Which key -----------------------------------------------------------------------------------------------

ANY = PskEntry(Secret(b"any"))
PATTERN = PskEntry(Secret(b"pattern"), ("*.branch.example",))
NAMED = PskEntry(Secret(b"named"), ("vpn.branch.example", "10.0.0.9"))
PREFIX = PskEntry(Secret(b"prefix"), ("10.0.0.0/24",))
BOUND = PskEntry(Secret(b"bound"), ("vpn.branch.example",), "hub.example")
ALL = (ANY, PATTERN, NAMED, PREFIX, BOUND)


@pytest.mark.parametrize(
    ("peers", "local", "wanted"),
    [
        (("vpn.branch.example",), "other.example", NAMED),
        (("VPN.branch.example",), "other.example", NAMED),
        (("vpn.branch.example",), "hub.example", BOUND),
        (("pos.branch.example",), "hub.example", PATTERN),
        (("branch.example",), "hub.example", ANY),
        (("10.0.0.9",), None, NAMED),
        (("10.0.0.10",), None, PREFIX),
        (("10.0.1.10",), None, ANY),
        (("2001:db8::1",), None, ANY),
        (("unknown.example", "10.0.0.10"), None, PREFIX),
        (("pos.branch.example", "10.0.0.9"), None, PATTERN),
        ((), None, ANY),
    ],
)
def test_closest_key_wins(peers: tuple[str, ...], local: str | None, wanted: PskEntry) -> None:
    """A peer with a key of its own could be answered with one that many know."""
    assert find(ALL, peers, local) is wanted
    assert find(tuple(reversed(ALL)), peers, local) is wanted


def test_no_key_for_a_stranger() -> None:
    """A key for one peer would serve another."""
    assert find((PATTERN, NAMED, PREFIX), ("evil.example",), None) is None
    assert find((PATTERN,), ("vpn.branch.example.evil.example",), None) is None
    assert find((NAMED,), ("id-fqdn:31302e302e302e39",), None) is None  # the *name* 10.0.0.9
    assert find((BOUND,), ("vpn.branch.example",), "other.example") is None


def test_pattern_of_many_stars_costs_little() -> None:
    """A stranger's long name would keep the daemon busy for minutes."""
    entry = PskEntry(Secret(b"x"), ("*a*a*a*a*a*a*b",))
    start = time.process_time()
    assert find((entry,), ("a" * 4096,), None) is None
    assert time.process_time() - start < 0.1


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_patterns_mean_what_people_expect(pattern: str, name: str) -> None:
    """The linear matcher would differ from the definition: each star stands for any characters."""

    def oracle(pattern: str, name: str) -> bool:
        if not pattern:
            return not name
        if pattern[0] == "*":
            return any(oracle(pattern[1:], name[n:]) for n in range(len(name) + 1))
        return name[:1] == pattern[0] and oracle(pattern[1:], name[1:])

    found = find((PskEntry(Secret(b"x"), (pattern,)),), (name,), None)
    assert (found is not None) == oracle(pattern, name)
