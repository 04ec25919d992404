"""ikd.authip.keys against vectors computed elsewhere, and both against MS-AIPS written out a second time,
line by line with nothing but hashlib and hmac."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sas import hexed, vectors

from ikd.authip.keys import MainKeys, Parties, Transcript, WeakKey, auth, extended_auth
from ikd.authip.profile import Profile
from sadb.algorithms import (
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    MainSuite,
    QuickSuite,
    SecurityProtocol,
)
from sadb.secret import Secret

PLAIN = Profile()
CASES = vectors("authip_kdf.json")
INPUTS = ("cky_i", "cky_r", "ni", "nr", "secret", "z")
HASHES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
CIPHERS = {"3des": (5, 24), "aes128": (7, 16), "aes192": (7, 24), "aes256": (7, 32)}


def of(kind: str) -> Any:
    """Runs a test with every case of a kind."""
    return pytest.mark.parametrize(
        "case", [one for one in CASES if one["kind"] == kind], ids=lambda one: one["id"]
    )


def suite(cipher: str, digest: str) -> MainSuite:
    """A main-mode suite; its group plays no part here."""
    return MainSuite(
        GROUP_BY_NAME["p256"], ENCRYPTION_BY_NAME[cipher], PRF_BY_NAME[digest], INTEGRITY_BY_NAME[digest]
    )


def parties(case: dict[str, Any], profile: Profile = PLAIN) -> Parties:
    """What every derivation of a case has in it."""
    cky_i, cky_r, ni, nr = hexed(case, "cky_i", "cky_r", "ni", "nr")
    return Parties(suite(case["cipher"], case["hash"]), cky_i, cky_r, ni, nr, profile)


def keys_of(case: dict[str, Any]) -> MainKeys:
    """The main-mode keys of a case."""
    secret, z = hexed(case, "secret", "z")
    return parties(case).main(z, Secret(secret))


# The specification, a second time --------------------------------------------------------------------------


def kdf(digest: str, z: bytes, other: bytes, length: int) -> bytes:
    """H(1 | Z | OtherInfo) | H(2 | Z | OtherInfo) | ..., cut."""
    made, counter = b"", 1
    while len(made) < length:
        made += hashlib.new(digest, counter.to_bytes(4, "big") + z + other).digest()
        counter += 1
    return made[:length]


def other_info(
    cipher: str, cky_i: bytes, cky_r: bytes, public: bytes, private: bytes, profile: Profile
) -> bytes:
    """AlgorithmID | PartyUInfo | PartyVInfo | public | private."""
    number = CIPHERS[cipher][0]
    algorithm = bytes((number, 0)) if profile.crypto_id == "little" else bytes((0, number))
    made = b""
    for part in (algorithm, cky_i, cky_r, public, private):
        if profile.length_prefixes:
            made += bytes((0, 0)) + len(part).to_bytes(2, "big")
        made += part
    return made


def main_keys(
    digest: str,
    cipher: str,
    cky_i: bytes,
    cky_r: bytes,
    ni: bytes,
    nr: bytes,
    secret: bytes,
    z: bytes,
    profile: Profile = PLAIN,
) -> tuple[bytes, bytes, bytes, bytes]:
    """SKEYID, SKEYID_d, SKEYID_a, SKEYID_e."""
    size = HASHES[digest]
    info = other_info(cipher, cky_i, cky_r, ni + nr, secret, profile)
    skeyid = kdf(digest, z, info, size)
    info = other_info(cipher, cky_i, cky_r, ni + nr + b"\x00", skeyid, profile)
    skeyid_d = kdf(digest, z, info, size)
    info = other_info(cipher, cky_i, cky_r, ni + nr + b"\x01", skeyid_d + skeyid, profile)
    skeyid_a = kdf(digest, z, info, size)
    info = other_info(cipher, cky_i, cky_r, ni + nr + b"\x02", skeyid_a + skeyid, profile)
    skeyid_e = kdf(digest, z, info, max(size, CIPHERS[cipher][1]))
    return skeyid, skeyid_d, skeyid_a, skeyid_e


def parity(key: bytes) -> bytes:
    """Each octet with an odd number of ones, by its lowest bit."""
    return bytes(one & 0xFE | (bin(one & 0xFE).count("1") + 1) % 2 for one in key)


def weak(key: bytes) -> bool:
    """Whether 3DES would be DES (RFC 2451 section 2.2)."""
    return key[0:8] == key[8:16] or key[8:16] == key[16:24]


# The vectors -----------------------------------------------------------------------------------------------


@of("main")
def test_skeyid_and_what_comes_of_it(case: dict[str, Any]) -> None:
    """Who derives other keys finds the first encrypted message of the peer unverified."""
    made = keys_of(case)
    expected = tuple(hexed(case, "skeyid", "skeyid_d", "skeyid_a", "skeyid_e"))
    assert tuple(bytes(one) for one in (made.skeyid, made.d, made.a, made.e)) == expected
    cky_i, cky_r, ni, nr, secret, z = hexed(case, *INPUTS)
    assert main_keys(case["hash"], case["cipher"], cky_i, cky_r, ni, nr, secret, z) == expected
    length = CIPHERS[case["cipher"]][1]
    assert bytes(made.cipher).hex() == case.get("cipher_key", case["skeyid_e"][: 2 * length])
    assert made.icv == made.a


@of("main")
def test_keys_of_3des_have_odd_parity(case: dict[str, Any]) -> None:
    """A peer whose library checks the parity would refuse ours; no other cipher's key may be touched."""
    made = keys_of(case)
    if case["cipher"] == "3des":
        assert bytes(made.cipher) == parity(bytes(made.e)) == bytes.fromhex(case["cipher_key"])
        assert made.cipher != made.e
        assert all(one.bit_count() % 2 for one in bytes(made.cipher))
    else:
        assert bytes(made.cipher) == bytes(made.e)[: CIPHERS[case["cipher"]][1]]


@of("auth")
def test_transcript_and_proofs(case: dict[str, Any]) -> None:
    """Auth1 and Auth2 are all that tells a peer from who sits in between."""
    transcript = Transcript()
    messages = [bytes.fromhex(one) for one in case["messages"]]
    for one in messages:
        transcript.add(one)
    t = transcript.value(case["hash"])
    assert t.hex() == case["t"]
    skeyid = keys_of(case).skeyid
    assert auth(suite("aes128", "sha1"), skeyid, t, 1).hex() == case["auth1"]
    assert auth(suite("aes128", "sha1"), skeyid, t, 2).hex() == case["auth2"]

    first = hashlib.sha256(messages[0]).digest()
    second = hashlib.sha256(messages[1] + first).digest()
    third = hashlib.sha1(messages[2] + second).digest()
    fourth = hashlib.sha1(messages[3] + third).digest()
    assert fourth == t
    cky_i, cky_r, ni, nr, secret, z = hexed(case, *INPUTS)
    key = main_keys("sha1", "aes128", cky_i, cky_r, ni, nr, secret, z)[0]
    assert hmac.digest(key, fourth + b"\x01", "sha1").hex() == case["auth1"]
    assert hmac.digest(key, fourth + b"\x02", "sha1").hex() == case["auth2"]


@of("extended")
def test_skeyid_em(case: dict[str, Any]) -> None:
    """The second authentication's secret gets into the quick-mode keys through it alone."""
    (em_secret, z) = hexed(case, "em_secret", "z")
    assert bytes(parties(case).extended(z, Secret(em_secret))).hex() == case["skeyid_em"]
    cky_i, cky_r, ni, nr, _, z = hexed(case, *INPUTS)
    assert main_keys("sha1", "aes128", cky_i, cky_r, ni, nr, em_secret, z)[0].hex() == case["skeyid_em"]


@of("quick")
def test_keys_of_quick_mode(case: dict[str, Any]) -> None:
    """Both sides hold SAs that drop every packet when these differ, and nothing says so."""
    z, em_secret, spi, ni_qm, nr_qm = hexed(case, "z", "em_secret", "spi", "ni_qm", "nr_qm")
    who = parties(case)
    em = who.extended(z, Secret(em_secret)) if em_secret else None
    esp = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128"], INTEGRITY_BY_NAME["sha1"])
    number = int(case["message_id"], 16)
    encryption, integrity = who.quick(esp, keys_of(case), em, number, spi, (ni_qm, nr_qm))
    assert (bytes(integrity) + bytes(encryption)).hex() == case["keys"]
    assert (len(encryption), len(integrity)) == (16, 20)

    cky_i, cky_r, ni, nr, secret, z = hexed(case, *INPUTS)
    skeyid_d = main_keys("sha1", "aes128", cky_i, cky_r, ni, nr, secret, z)[1]
    public = bytes.fromhex(case["message_id"]) + spi + ni_qm + nr_qm + skeyid_d
    private = b""
    if em_secret:
        private = ni + nr + main_keys("sha1", "aes128", cky_i, cky_r, ni, nr, em_secret, z)[0]
    made = kdf("sha1", b"", bytes((0, 7)) + cky_i + cky_r + public + private, 36)
    assert made.hex() == case["keys"]


# Any inputs ------------------------------------------------------------------------------------------------

EIGHT = st.binary(min_size=8, max_size=8)
NONCE = st.binary(min_size=8, max_size=64)
SECRET = st.binary(max_size=64)
SHARED = st.one_of(st.just(b""), st.binary(min_size=32, max_size=256))  # without DH, and with
PROFILES = st.builds(
    Profile,
    length_prefixes=st.booleans(),
    crypto_id=st.sampled_from(["big", "little"]),
    authentication_key_first=st.booleans(),
    icv_key=st.sampled_from(["a", "e"]),
)


@given(
    st.sampled_from(sorted(HASHES)),
    st.sampled_from(sorted(CIPHERS)),
    st.tuples(EIGHT, EIGHT, NONCE, NONCE, SECRET, SHARED),
    PROFILES,
)
def test_main_keys_are_those_of_the_specification(
    digest: str, cipher: str, inputs: tuple[bytes, bytes, bytes, bytes, bytes, bytes], profile: Profile
) -> None:
    """In every reading that the profile has: a switch that does not do what it says spoils the only way to
    find out what Windows does."""
    expected = main_keys(digest, cipher, *inputs, profile)
    cky_i, cky_r, ni, nr, secret, z = inputs
    who = Parties(suite(cipher, digest), cky_i, cky_r, ni, nr, profile)
    made = who.main(z, Secret(secret))
    assert tuple(bytes(one) for one in (made.skeyid, made.d, made.a, made.e)) == expected
    assert bytes(made.icv) == expected[3 if profile.icv_key == "e" else 2]
    key = expected[3][: CIPHERS[cipher][1]]
    assert bytes(made.cipher) == (parity(key) if cipher == "3des" else key)
    assert bytes(who.extended(z, Secret(secret))) == expected[0]  # they differ by the secret alone


ESP, AH = SecurityProtocol.ESP, SecurityProtocol.AH
# cipher, integrity, octets of encryption key (with salt) and integrity key
QUICK: dict[str, tuple[SecurityProtocol, str | None, str | None, int, int]] = {
    "AES-128 and SHA-1": (ESP, "aes128", "sha1", 16, 20),
    "AES-256 and SHA-512": (ESP, "aes256", "sha512", 32, 64),
    "3DES and SHA-1": (ESP, "3des", "sha1", 24, 20),
    "AES-128-GCM": (ESP, "aes128gcm", None, 20, 0),
    "AES-256-GCM": (ESP, "aes256gcm", None, 36, 0),
    "AES-192-GMAC": (ESP, "aes192gmac", None, 28, 0),
    "NULL and SHA-256": (ESP, "null", "sha256", 0, 32),
    "AH with SHA-256": (AH, None, "sha256", 0, 32),
}


@given(
    st.sampled_from(sorted(HASHES)),
    st.sampled_from(["3des", "aes128", "aes256"]),
    st.sampled_from(sorted(QUICK)),
    st.tuples(EIGHT, EIGHT, NONCE, NONCE, SECRET, SHARED),
    st.one_of(st.none(), SECRET),
    st.tuples(st.integers(0, 0xFFFFFFFF), st.binary(min_size=4, max_size=4), NONCE, NONCE, SHARED),
    PROFILES,
)
def test_quick_keys_are_those_of_the_specification(
    digest: str,
    cipher: str,
    quick: str,
    inputs: tuple[bytes, bytes, bytes, bytes, bytes, bytes],
    em_secret: bytes | None,
    asked: tuple[int, bytes, bytes, bytes, bytes],
    profile: Profile,
) -> None:
    """Lengths, halves, salt behind its key, with extended mode and without, with PFS and without."""
    cky_i, cky_r, ni, nr, secret, z = inputs
    number, spi, ni_qm, nr_qm, z_qm = asked
    protocol, encryption, integrity, first, second = QUICK[quick]
    skeyid_d = main_keys(digest, cipher, *inputs, profile)[1]
    public = number.to_bytes(4, "big") + spi + ni_qm + nr_qm + skeyid_d
    private = b""
    if em_secret is not None:
        private = ni + nr + main_keys(digest, cipher, cky_i, cky_r, ni, nr, em_secret, z, profile)[0]
    made = kdf(digest, z_qm, other_info(cipher, cky_i, cky_r, public, private, profile), first + second)
    if profile.authentication_key_first:
        expected = made[second:], made[:second]
    else:
        expected = made[:first], made[first:]
    if encryption == "3des":
        expected = parity(expected[0]), expected[1]

    who = Parties(suite(cipher, digest), cky_i, cky_r, ni, nr, profile)
    em = None if em_secret is None else who.extended(z, Secret(em_secret))
    row = QuickSuite(
        protocol,
        ENCRYPTION_BY_NAME[encryption] if encryption else None,
        INTEGRITY_BY_NAME[integrity] if integrity else None,
    )
    found = who.quick(row, who.main(z, Secret(secret)), em, number, spi, (ni_qm, nr_qm), z_qm)
    assert (bytes(found[0]), bytes(found[1])) == expected


MESSAGES = st.lists(st.binary(max_size=80), min_size=1, max_size=7)


@given(st.sampled_from(sorted(HASHES)), MESSAGES, SECRET, st.booleans())
def test_proofs_are_those_of_the_specification(
    digest: str, messages: list[bytes], key: bytes, inside: bool
) -> None:
    """Chains of any length: SHA-256 over the first two messages of main mode, the negotiated hash from then
    on and in extended mode; what Auth3 and Auth4 have of Auth1 and Auth2, inside of the prf or behind it."""
    transcript = Transcript()
    for one in messages:
        transcript.add(one)
    t = hashlib.sha256(messages[0]).digest()
    if len(messages) > 1:
        t = hashlib.sha256(messages[1] + t).digest()
    for one in messages[2:]:
        t = hashlib.new(digest, one + t).digest()
    assert transcript.value(digest) == t

    u = hashlib.new(digest, messages[0]).digest()
    for one in messages[1:]:
        u = hashlib.new(digest, one + u).digest()
    assert transcript.value(digest, main=False) == u

    row = suite("aes128", digest)
    proofs = [hmac.digest(key, t + bytes((number,)), digest) for number in (1, 2)]
    assert [auth(row, Secret(key), t, number) for number in (1, 2)] == proofs
    for proof in proofs:
        if inside:
            expected = hmac.digest(key, u + proof, digest)
        else:
            expected = hmac.digest(key, u, digest) + proof
        assert extended_auth(row, Secret(key), u, proof, inside=inside) == expected


@given(st.sampled_from(sorted(HASHES)), MESSAGES)
def test_a_chain_in_which_a_hash_is_missing(digest: str, messages: list[bytes]) -> None:
    """The other reading of Auth1 (OQ-29): nothing is hashed where #3 joins the chain, as it is printed."""
    transcript = Transcript()
    value = b""
    for number, one in enumerate(messages, 1):
        transcript.add(one)
        value = one + value
        if number <= 2:
            value = hashlib.sha256(value).digest()
        elif number != 3:
            value = hashlib.new(digest, value).digest()
    assert transcript.value(digest, hashed=False) == value


# What must not happen --------------------------------------------------------------------------------------

MAIN = CASES[1]  # SHA-1 and AES-128


def test_every_input_counts() -> None:
    """A key that does not depend on a nonce or a cookie can be made to come again."""
    cky_i, cky_r, ni, nr, secret, z = hexed(MAIN, *INPUTS)
    row = suite("aes128", "sha1")

    def made(row: MainSuite, *inputs: bytes) -> bytes:
        cky_i, cky_r, ni, nr, z, secret = inputs
        return bytes(Parties(row, cky_i, cky_r, ni, nr, PLAIN).main(z, Secret(secret)).e)[:20]

    honest = [cky_i, cky_r, ni, nr, z, secret]
    found = {made(row, *honest)}
    for n, one in enumerate(honest):
        other = bytes((one[0] ^ 1,)) + one[1:] if one else b"\0" * 32
        found.add(made(row, *honest[:n], other, *honest[n + 1 :]))
    found.add(made(suite("3des", "sha1"), *honest))
    assert len(found) == 8


def test_both_directions_have_their_own_keys() -> None:
    """With one key for both, counter mode gives away what is carried."""
    who, made = parties(MAIN), keys_of(MAIN)
    gcm = QuickSuite(ESP, ENCRYPTION_BY_NAME["aes128gcm"])
    found = {
        bytes(who.quick(gcm, made, em, number, spi, (b"i" * 32, b"r" * 32), z)[0])
        for em in (None, Secret(b"e" * 20))
        for number in (0, 7)
        for spi in (b"\0\0\1\0", b"\0\0\1\1")
        for z in (b"", b"z" * 32)
    }
    assert len(found) == 16


def test_cipher_of_main_mode_names_the_keys_of_quick_mode() -> None:
    """AlgorithmID is the main-mode cipher's in quick mode, too; all lengths of AES are one number."""
    gcm = QuickSuite(ESP, ENCRYPTION_BY_NAME["aes256gcm"])
    made = keys_of(MAIN)
    found = [
        bytes(
            replace(parties(MAIN), suite=suite(cipher, "sha1")).quick(
                gcm, made, None, 7, b"spi4", (b"", b"")
            )[0]
        )
        for cipher in ("aes128", "aes256", "3des")
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "key", [b"\1" * 16 + b"\2" * 8, b"\2" * 8 + b"\1" * 16, b"\0" * 24, b"\0" * 8 + b"\1" * 16]
)
def test_weak_keys_of_3des(monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    """3DES with two equal keys side by side is DES, which can be searched (RFC 2451 section 2.2); parity may
    be what makes them equal."""
    assert weak(parity(key))
    esp = QuickSuite(ESP, ENCRYPTION_BY_NAME["3des"], INTEGRITY_BY_NAME["sha1"])
    made = keys_of(MAIN)
    case = CASES[0]
    monkeypatch.setattr(
        Parties, "derive", lambda self, z, public, private, length: (bytes(20) + key)[-length:]
    )
    with pytest.raises(WeakKey):
        parties(case).main(b"", Secret(b""))
    with pytest.raises(WeakKey):
        parties(case).quick(esp, made, None, 7, b"spi4", (b"", b""))


def test_transcripts_forget_what_they_are_told_to() -> None:
    """A message that was refused must not be in the chain, nor those of failed attempts where the profile
    leaves them out (OQ-28); the first two messages stay."""

    def chain(*messages: bytes) -> bytes:
        made = Transcript()
        for one in messages:
            made.add(one)
        return made.value("sha1")

    transcript = Transcript()
    for one in (b"1", b"2", b"failed", b"failed, too", b"again"):
        transcript.add(one)
    assert transcript.length == 5
    transcript.begin_attempt(1)
    assert transcript.value("sha1") == chain(b"1", b"2", b"again")
    transcript.begin_attempt(0)
    assert transcript.value("sha1") == chain(b"1", b"2")
    transcript.begin_attempt(0)
    assert transcript.value("sha1") == chain(b"1", b"2")
    transcript.cut(1)
    assert transcript.value("sha1") == chain(b"1")


def test_keys_do_not_show() -> None:
    """What is logged by accident must be useless."""
    made = keys_of(MAIN)
    assert repr(made).count("<secret") == 6
    assert all(MAIN[name][:8] not in repr(made) for name in ("skeyid", "skeyid_d", "skeyid_a", "skeyid_e"))
