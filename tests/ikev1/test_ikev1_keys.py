"""ikd.ikev1.keys against published vectors and a recorded handshake, and where the sources have none, against
RFC 2409 written out a second time."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.sas import hexed, vectors

from ikd.ikev1 import keys
from ikd.isakmp.payloads import (
    PAYLOADS,
    Hash,
    Identification,
    KeyExchange,
    Nonce,
    SecurityAssociation,
)
from ikd.wire.isakmp import HEADER_SIZE, Extent, Header, Payload, chain, extents
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

SHA1 = PRF_BY_NAME["sha1"]


def suite(cipher: str = "aes128", digest: str = "sha1") -> MainSuite:
    """A main-mode suite; its group plays no part here."""
    return MainSuite(
        GROUP_BY_NAME["modp2048"], ENCRYPTION_BY_NAME[cipher], PRF_BY_NAME[digest], INTEGRITY_BY_NAME[digest]
    )


# Phase 1 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", vectors("ikev1_kdf.json"), ids=lambda case: case["id"])
def test_skeyid_and_what_comes_of_it(case: dict[str, Any]) -> None:
    """Wrong keys do not interoperate with anyone but ourselves (NIST's vectors)."""
    row = PRF_BY_NAME[case["hash"]]
    ni, nr, gxy, cky_i, cky_r = hexed(case, "ni", "nr", "gxy", "cky_i", "cky_r")
    if case["auth"] == "psk":
        skeyid = keys.skeyid_psk(row, Secret(bytes.fromhex(case["psk"])), ni, nr)
    else:
        skeyid = keys.skeyid_signature(row, ni, nr, gxy)
    made = keys.derive(suite(digest=case["hash"]), skeyid, gxy, cky_i, cky_r)
    assert [bytes(one).hex() for one in (made.skeyid, made.d, made.a, made.e)] == [
        case[name] for name in ("skeyid", "skeyid_d", "skeyid_a", "skeyid_e")
    ]
    assert made.cipher == Secret(bytes(made.e)[:16])


@pytest.mark.parametrize("case", vectors("ikev1_proofs.json"), ids=lambda case: case["cky_i"])
def test_iv_and_hash_of_the_responder(case: dict[str, Any]) -> None:
    """The order of values differs between both hashes, and phase 2 chains from phase 1."""
    ni, nr, gxy, cky_i, cky_r, gxi, gxr = hexed(case, "ni", "nr", "gxy", "cky_i", "cky_r", "gxi", "gxr")
    skeyid = keys.skeyid_psk(SHA1, Secret(bytes.fromhex(case["psk"])), ni, nr)
    made = keys.derive(suite(), skeyid, gxy, cky_i, cky_r)
    assert bytes(made.cipher).hex() == case["cipher_key"]
    transcript = keys.Transcript(gxi, gxr, cky_i, cky_r, bytes.fromhex(case["sa"]))
    assert keys.hash_r(SHA1, skeyid, transcript, bytes.fromhex(case["identity"])).hex() == case["hash_r"]
    iv = keys.first_iv(suite(), gxi, gxr)
    assert iv.hex() == case["iv"]
    if "message_id" in case:
        assert keys.phase2_iv(suite(), iv, int(case["message_id"], 16)).hex() == case["iv_phase2"]


@pytest.mark.parametrize(("cipher", "digest"), [("aes256", "sha1"), ("aes192", "sha1"), ("aes256", "sha256")])
def test_key_of_a_cipher_that_wants_more_than_the_hash_gives(cipher: str, digest: str) -> None:
    """AES-256 with SHA-1 is what Windows offers first (RFC 2409 appendix B)."""
    row, length = PRF_BY_NAME[digest], ENCRYPTION_BY_NAME[cipher].key
    skeyid_e = bytes(range(row.size))
    k1 = hmac.digest(skeyid_e, b"\0", row.hash)
    k2 = hmac.digest(skeyid_e, k1, row.hash)
    expected = (k1 + k2)[:length] if length > row.size else skeyid_e[:length]
    assert keys.cipher_key(row, skeyid_e, length) == expected


def test_ivs_are_cut_to_the_block_of_the_cipher() -> None:
    """An IV of hash size would be refused by the cipher."""
    assert keys.first_iv(suite("aes256", "sha256"), b"i", b"r") == hashlib.sha256(b"ir").digest()[:16]
    expected = hashlib.sha512(b"block\0\0\0\7").digest()[:16]
    assert keys.phase2_iv(suite(digest="sha512"), b"block", 7) == expected


def test_hashes_of_both_sides_differ_in_order() -> None:
    """If they were the same, a peer could send our own hash back (RFC 2409 section 5)."""
    skeyid = Secret(b"s" * 20)
    transcript = keys.Transcript(b"XI", b"XR", b"CI", b"CR", b"SA")
    mine = keys.hash_i(SHA1, skeyid, transcript, b"ID", b"token")
    peer = keys.hash_r(SHA1, skeyid, transcript, b"ID", b"token")
    assert mine == hmac.digest(b"s" * 20, b"XIXRCICRSAIDtoken", "sha1")
    assert peer == hmac.digest(b"s" * 20, b"XRXICRCISAIDtoken", "sha1")


def test_keys_do_not_show() -> None:
    """What is logged by accident must be useless."""
    made = keys.derive(suite(), Secret(b"\xaa" * 20), b"\xbb" * 16, b"i" * 8, b"r" * 8)
    assert repr(made).count("<secret") == 5
    assert "xaa" not in repr(made)


# Phase 2 ---------------------------------------------------------------------------------------------------


def test_hashes_of_phase_2() -> None:
    """Each binds the message to its exchange; the last one begins with an octet of zero."""
    a = Secret(b"a" * 20)

    def expected(data: bytes) -> bytes:
        return hmac.digest(b"a" * 20, data, "sha1")

    assert keys.message_hash(SHA1, a, 0x01020304, b"rest") == expected(b"\1\2\3\4rest")
    assert keys.message_hash(SHA1, a, 0x01020304, b"rest", b"Ni") == expected(b"\1\2\3\4Nirest")
    assert keys.last_hash(SHA1, a, 0x01020304, b"Ni", b"Nr") == expected(b"\0\1\2\3\4NiNr")
    assert keys.delete_hash(SHA1, a, 0x01020304, b"Ni", b"rest") == expected(b"Ni\1\2\3\4rest")


@pytest.mark.parametrize("shared", [b"", b"secret of quick mode"])
@pytest.mark.parametrize(
    ("encryption", "integrity", "sizes"),
    [
        ("aes128", "sha1", (16, 20)),
        ("aes256", "sha512", (32, 64)),
        ("aes256gcm", None, (36, 0)),  # salt behind the key (RFC 4106 section 8.1)
        ("null", "sha256", (0, 32)),
    ],
)
def test_keymat_is_cut_in_order(
    encryption: str, integrity: str | None, sizes: tuple[int, int], shared: bytes
) -> None:
    """Keys in another order work between us and with nobody else (RFC 2409 section 5.5)."""
    quick = QuickSuite(
        SecurityProtocol.ESP,
        ENCRYPTION_BY_NAME[encryption],
        INTEGRITY_BY_NAME[integrity] if integrity else None,
    )
    seed = shared + b"\3" + b"\1\2\3\4" + b"Ni" + b"Nr"
    stream = block = b""
    for _ in range(6):
        block = hmac.digest(b"d" * 20, block + seed, "sha1")
        stream += block
    found = keys.keymat(SHA1, Secret(b"d" * 20), quick, 3, b"\1\2\3\4", b"Ni", b"Nr", shared)
    assert tuple(len(one) for one in found) == sizes
    assert bytes(found[0]) + bytes(found[1]) == stream[: sum(sizes)]


def test_keymat_differs_by_spi_and_protocol() -> None:
    """Two SAs with one key and counter mode would give away what they carry."""
    quick = QuickSuite(SecurityProtocol.ESP, ENCRYPTION_BY_NAME["aes128gcm"])
    made = {
        bytes(keys.keymat(SHA1, Secret(b"d" * 20), quick, protocol, spi, b"i", b"r")[0])
        for protocol in (2, 3)
        for spi in (b"\0\0\1\0", b"\0\0\1\1")
    }
    assert len(made) == 4


# A recorded handshake --------------------------------------------------------------------------------------


class Recording:
    """The messages of a handshake between others, decrypted with what `ikd.ikev1.keys` derives."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.messages = [bytes.fromhex(one) for one in case["messages"]]
        self.plain = [one[HEADER_SIZE:] for one in self.messages[:4]]
        first, second = (Header.decode(one) for one in self.messages[:2])
        self.transcript = keys.Transcript(
            self.body(2, KeyExchange),
            self.body(3, KeyExchange),
            first.spi_i,
            second.spi_r,
            self.body(0, SecurityAssociation),
        )
        skeyid = keys.skeyid_psk(
            SHA1, Secret(bytes.fromhex(case["psk"])), self.body(2, Nonce), self.body(3, Nonce)
        )
        t = self.transcript
        self.keys = keys.derive(suite(), skeyid, bytes.fromhex(case["gxy"]), t.cookie_i, t.cookie_r)
        iv = self.decrypt(4, 6, keys.first_iv(suite(), t.public_i, t.public_r))
        self.message_id = Header.decode(self.messages[6]).message_id
        self.decrypt(6, 9, keys.phase2_iv(suite(), iv, self.message_id))

    def decrypt(self, start: int, stop: int, iv: bytes) -> bytes:
        """Each message goes on with the last block of the one before; the last block of all."""
        for one in self.messages[start:stop]:
            decryptor = Cipher(algorithms.AES(bytes(self.keys.cipher)), modes.CBC(iv)).decryptor()
            self.plain.append(decryptor.update(one[HEADER_SIZE:]))
            iv = one[-16:]
        return iv

    def extents(self, n: int) -> list[Extent]:
        return extents(Header.decode(self.messages[n]).next_payload, self.plain[n])

    def body(self, n: int, cls: type[Payload]) -> bytes:
        """Octets of the first payload of a class, without its generic header."""
        return next(one for one in self.extents(n) if one.kind == cls.kind).body(self.plain[n])

    def behind_hash(self, n: int) -> bytes:
        """What a hash of phase 2 covers: from behind its payload to where padding begins."""
        found = self.extents(n)
        return self.plain[n][found[0].end : found[-1].end]


@pytest.fixture
def recording() -> Recording:
    (case,) = vectors("ikev1_handshake.json")
    return Recording(case)


def test_recorded_main_mode_is_proven(recording: Recording) -> None:
    """Both hashes as a strongSwan made and accepted them."""
    skeyid, transcript = recording.keys.skeyid, recording.transcript
    mine = keys.hash_i(SHA1, skeyid, transcript, recording.body(4, Identification))
    peer = keys.hash_r(SHA1, skeyid, transcript, recording.body(5, Identification))
    assert recording.body(4, Hash) == mine
    assert recording.body(5, Hash) == peer


def test_recorded_quick_mode_is_proven(recording: Recording) -> None:
    """Three hashes, each over another part of the exchange, with padding behind what they cover."""
    a, message_id = recording.keys.a, recording.message_id
    ni, nr = recording.body(6, Nonce), recording.body(7, Nonce)
    assert recording.body(6, Hash) == keys.message_hash(SHA1, a, message_id, recording.behind_hash(6))
    assert recording.body(7, Hash) == keys.message_hash(SHA1, a, message_id, recording.behind_hash(7), ni)
    assert recording.body(8, Hash) == keys.last_hash(SHA1, a, message_id, ni, nr)
    assert len(recording.plain[8]) > recording.extents(8)[-1].end


def test_recorded_messages_are_read_and_written_as_they_were(recording: Recording) -> None:
    """Nothing in honest messages is lost on the way through our payload classes."""
    for n, message in enumerate(recording.messages):
        header = Header.decode(message)
        data = recording.plain[n][: recording.extents(n)[-1].end]
        found, _ = chain(header.next_payload, data, PAYLOADS)
        for one, where in zip(found, recording.extents(n), strict=True):
            assert one.encode() == where.body(data)
