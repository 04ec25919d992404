"""ikd.authip.channel: a message encrypted elsewhere, octet by octet, check values of every length, and
what cannot be a message is refused before anything is decrypted."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sas import hexed, vectors

from ikd.authip import channel as module
from ikd.authip.channel import CLEAR_IV, OLD_VERSIONS, VERSION, Channel, Unprotected, Unverified, icv_size
from ikd.authip.keys import MainKeys, Parties
from ikd.authip.message import Message, notify, plain, sealed, status
from ikd.authip.numbers import CRYPTO, Exchange, N, Subject
from ikd.authip.payloads import Auth, AuthEntry, GssApi, Notify
from ikd.authip.profile import Profile
from ikd.isakmp.payloads import Nonce
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import GENERIC, HEADER_SIZE, Header, encode_chain
from sadb.algorithms import (
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    MainSuite,
)
from sadb.crypto import cbc_encrypt
from sadb.secret import Secret

(CASE,) = vectors("authip_message.json")
COOKIE_I, COOKIE_R, IV, PLAINTEXT, MESSAGE = hexed(CASE, "cky_i", "cky_r", "iv", "plaintext", "message")
SYNCHRONIZE = notify(N.QM_SYNCHRONIZE, Subject.QUICK)
ICV = {"sha1": 12, "sha256": 16, "sha384": 24, "sha512": 32}
CIPHERS = ("3des", "aes128", "aes192", "aes256")


def suite(cipher: str = "aes128", digest: str = "sha1") -> MainSuite:
    """A main-mode suite; its group plays no part here."""
    return MainSuite(
        GROUP_BY_NAME["p256"], ENCRYPTION_BY_NAME[cipher], PRF_BY_NAME[digest], INTEGRITY_BY_NAME[digest]
    )


def keys_of(row: MainSuite, profile: Profile | None = None) -> MainKeys:
    """Keys from the inputs of the vector."""
    ni, nr, secret = hexed(CASE, "ni", "nr", "secret")
    parties = Parties(row, COOKIE_I, COOKIE_R, ni, nr, profile or Profile())
    return parties.main(b"", Secret(secret))


def channel(
    row: MainSuite | None = None,
    *,
    old: bool = False,
    covers_header: bool = True,
    profile: Profile | None = None,
) -> Channel:
    """A channel with the vector's cookies, keys and IV."""
    row = row or suite()
    made = Channel(COOKIE_I, COOKIE_R, lambda size: IV[:size], covers_header=covers_header)
    made.arm(row, keys_of(row, profile), old=old)
    return made


def opened(one: Channel, data: bytes) -> Message:
    """What a channel makes of a datagram whose header says its length."""
    data = data[:24] + len(data).to_bytes(4, "big") + data[28:]
    return one.open(Header.decode(data), data)


# The vector ------------------------------------------------------------------------------------------------


def test_the_encrypted_message_is_written_as_the_reference_has_it() -> None:
    """Everything at once: header, sequence number, IV, padding, next payload, ciphertext and check value."""
    message = sealed(Exchange.QUICK, 0x01020304, SYNCHRONIZE)
    datagram, covered = channel().seal(message)
    assert datagram == MESSAGE
    assert len(datagram) == 80
    assert covered == MESSAGE[:24] + bytes((0, 0, 0, 40)) + PLAINTEXT[:12]


def test_the_encrypted_message_is_read_as_the_reference_has_it() -> None:
    """Its peer's end of the same."""
    message = channel().open(Header.decode(MESSAGE), MESSAGE)
    assert message.payloads == (SYNCHRONIZE,)
    assert (message.exchange, message.message_id, message.sequence) == (Exchange.QUICK, 0x01020304, 0)
    assert message.encrypted
    assert message.octets == PLAINTEXT[:12]
    assert message.first == Notify.kind
    assert message.names() == ("N(QM_SYNCHRONIZE)",)


def test_the_check_value_covers_the_message_with_a_length_of_zero() -> None:
    """Computed here with SKEYID_a alone, as MS-AIPS section 2.2.3.2.1 has it; with the length as it was sent
    it would be another one."""
    key = bytes(keys_of(suite()).a)
    covered = MESSAGE[:24] + bytes(4) + MESSAGE[28:-12]
    assert hmac.digest(key, covered, "sha1")[:12] == MESSAGE[-12:]
    assert hmac.digest(key, MESSAGE[:-12], "sha1")[:12] != MESSAGE[-12:]


def test_the_ciphertext_ends_as_esp_does() -> None:
    """Padding of 1, 2, ..., its length, then the type of the first payload (RFC 4303 section 2)."""
    assert PLAINTEXT[12:] == bytes((1, 2, 2, Notify.kind))
    key = bytes(keys_of(suite()).cipher)
    assert MESSAGE[HEADER_SIZE : HEADER_SIZE + 24] == bytes.fromhex("00000018 00000000") + IV
    assert cbc_encrypt(suite().encryption, key, IV, PLAINTEXT) == MESSAGE[52:-12]


def test_the_check_value_with_the_other_key() -> None:
    """OQ-39: SKEYID_e instead of SKEYID_a, whole."""
    data, _ = channel(profile=Profile(icv_key="e")).seal(sealed(Exchange.QUICK, 0x01020304, SYNCHRONIZE))
    key = bytes(keys_of(suite()).e)
    covered = MESSAGE[:24] + bytes(4) + MESSAGE[28:-12]
    assert data == MESSAGE[:-12] + hmac.digest(key, covered, "sha1")[:12]
    with pytest.raises(Unverified):
        opened(channel(), data)


# Check values ----------------------------------------------------------------------------------------------

# What Microsoft's vendor ID says, and whether check values have 12 octets whatever the hash is
VERSIONS = {5: True, 6: True, 7: True, 8: False, 9: False, None: False}


@pytest.mark.parametrize("digest", ICV)
@pytest.mark.parametrize(("version", "short"), VERSIONS.items())
def test_length_of_the_check_value(digest: str, version: int | None, short: bool) -> None:
    """Windows Vista to 7 cut every check value to 12 octets; who does not know is not understood by them."""
    old = version in OLD_VERSIONS
    row = suite(digest=digest)
    size = 12 if short else ICV[digest]
    assert icv_size(row, old=old) == size
    data, _ = channel(row, old=old).seal(sealed(Exchange.MAIN, 0, SYNCHRONIZE))
    assert len(data) == HEADER_SIZE + 24 + 16 + size
    covered = data[:24] + bytes(4) + data[28:-size]
    assert data[-size:] == hmac.digest(bytes(keys_of(row).a), covered, digest)[:size]
    assert opened(channel(row, old=old), data).payloads == (SYNCHRONIZE,)
    if size != ICV[digest]:
        with pytest.raises(Malformed):
            opened(channel(row), data)


@pytest.fixture
def undecrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when anything is decrypted."""

    def decrypt(*_: Any) -> bytes:
        pytest.fail("decrypted before its check value was verified")

    monkeypatch.setattr(module, "cbc_decrypt", decrypt)


STRUCTURE = (16, 28, 30, 31)  # next payload of the header; next payload and length of CRYPTO


@pytest.mark.usefixtures("undecrypted")
@pytest.mark.parametrize("at", range(len(MESSAGE)))
def test_every_bit_counts(at: int) -> None:
    """Whoever can change one, or learns from how a changed message is refused, reads what is encrypted."""
    one = channel()
    for bit in range(8):
        data = bytearray(MESSAGE)
        data[at] ^= 1 << bit
        if 24 <= at < 28:  # the length, which the check value leaves out
            with pytest.raises(Malformed):
                Header.decode(bytes(data))
            continue
        header = Header.decode(bytes(data))
        if (at, bit) == (19, 0):  # no longer encrypted: a clear message, which has another IV
            with pytest.raises(Malformed, match="in the clear"):
                one.open(header, bytes(data))
        elif at in STRUCTURE:
            with pytest.raises(Malformed):
                one.open(header, bytes(data))
        else:
            with pytest.raises(Unverified):
                one.open(header, bytes(data))


@pytest.mark.usefixtures("undecrypted")
@given(st.integers(0, len(MESSAGE) - HEADER_SIZE), st.binary(max_size=40))
def test_what_is_cut_or_continued_is_refused(keep: int, more: bytes) -> None:
    """The length in the header is not protected: what it says must not matter."""
    data = MESSAGE[: HEADER_SIZE + keep] + more
    if data == MESSAGE:
        return
    with pytest.raises(Malformed):
        opened(channel(), data)


# Hostile, but verified -------------------------------------------------------------------------------------


def forged(
    octets: bytes,
    *,
    row: MainSuite | None = None,
    crypto: bytes | None = None,
    encrypt: bool = True,
    kind: int = CRYPTO,
) -> bytes:
    """A message of somebody who has the keys and writes what it likes."""
    row = row or suite()
    made = keys_of(row)
    if crypto is None:
        crypto = GENERIC.pack(0, 0, 8 + row.encryption.iv) + bytes(4) + IV[: row.encryption.iv]
    if encrypt:
        octets = cbc_encrypt(row.encryption, bytes(made.cipher), IV[: row.encryption.iv], octets)
    head = COOKIE_I + COOKIE_R + bytes((kind, VERSION, Exchange.QUICK, 1)) + b"\1\2\3\4"
    icv = hmac.digest(bytes(made.a), head + bytes(4) + crypto + octets, row.prf.hash)[: ICV[row.prf.hash]]
    size = HEADER_SIZE + len(crypto) + len(octets) + len(icv)
    return head + size.to_bytes(4, "big") + crypto + octets + icv


def test_a_forger_with_keys_writes_what_we_write() -> None:
    """Else the tests below would be refused for their check values only."""
    assert forged(PLAINTEXT) == MESSAGE


TRAILERS = {
    "padding of all there is": bytes(14) + b"\x0e\x0b",
    "one octet of padding too many": bytes(14) + b"\x0f\x0b",
    "padding beyond the ciphertext": bytes(14) + b"\xff\x0b",
    "padding into a payload": PLAINTEXT[:12] + b"\1\2\x04\x0b",
    "padding of one too few": PLAINTEXT[:12] + b"\1\2\x01\x0b",
    "payloads of no type": PLAINTEXT[:12] + b"\1\2\2\0",
    "payload of zero length": bytes.fromhex("00000000 00000001 02009c57 0102020b"),
    "payload of 3 octets": bytes.fromhex("00000003 00000001 02009c57 0102020b"),
    "payload larger than what remains": bytes.fromhex("0000000d 00000001 02009c57 0102020b"),
    "a second CRYPTO payload": bytes.fromhex("0000000c 00000000 00000000 01020285"),
    "a CRYPTO payload behind another": bytes.fromhex("85000006 6100 00000008 00000000 0086"),
}


@pytest.mark.parametrize("plaintext", TRAILERS.values(), ids=TRAILERS.keys())
def test_plaintext_of_a_hostile_peer(plaintext: bytes) -> None:
    """A proven peer, too, may not make us read what is not there."""
    with pytest.raises(Malformed) as refused:
        opened(channel(), forged(plaintext))
    assert not isinstance(refused.value, Unverified)


SIZES = {
    "nothing behind the CRYPTO payload": forged(b"", encrypt=False),
    "half a block": forged(bytes(8), encrypt=False),
    "an octet more than a block": forged(bytes(17), encrypt=False),
    "IV of 8 octets for AES": forged(PLAINTEXT, crypto=GENERIC.pack(0, 0, 16) + bytes(12)),
    "no IV": forged(PLAINTEXT, crypto=GENERIC.pack(0, 0, 8) + bytes(4)),
    "CRYPTO longer than the message": forged(PLAINTEXT, crypto=GENERIC.pack(0, 0, 0xFFFF) + bytes(20)),
    "CRYPTO that counts the ciphertext": forged(PLAINTEXT, crypto=GENERIC.pack(0, 0, 40) + bytes(20)),
    "CRYPTO of 7 octets": forged(PLAINTEXT, crypto=GENERIC.pack(0, 0, 7) + bytes(20)),
    "CRYPTO of zero octets": forged(PLAINTEXT, crypto=GENERIC.pack(0, 0, 0) + bytes(20)),
    "a payload behind CRYPTO": forged(PLAINTEXT, crypto=GENERIC.pack(11, 0, 24) + bytes(4) + IV),
    "CRYPTO is not the first": forged(PLAINTEXT, kind=Notify.kind),
}


@pytest.mark.usefixtures("undecrypted")
@pytest.mark.parametrize("data", SIZES.values(), ids=SIZES.keys())
def test_sizes_of_a_hostile_peer(data: bytes) -> None:
    """What is no whole number of blocks with an IV of the cipher's is never decrypted."""
    with pytest.raises(Malformed):
        opened(channel(), data)


@pytest.mark.usefixtures("undecrypted")
def test_before_there_are_keys_and_after_they_are_gone() -> None:
    """Nothing that is encrypted can be read."""
    one = Channel(COOKIE_I, COOKIE_R, bytes)
    assert not one.armed
    with pytest.raises(Unprotected):
        opened(one, MESSAGE)
    other = channel()
    assert other.armed
    other.disarm()
    assert not other.armed
    with pytest.raises(Unprotected):
        opened(other, MESSAGE)


# In the clear ----------------------------------------------------------------------------------------------

HELLO = "1011121314151617 2021222324252627 85 10 f3 00 00000000"


def test_clear_messages_are_as_drawn() -> None:
    """CRYPTO of 8 octets, or of 16 with an IV that means nothing, and the payloads behind it."""
    one = channel()
    token = GssApi(flags=1, token=b"\x60\x03")
    data, covered = one.seal(Message(Exchange.MAIN, (token,), sequence=3))
    assert data == bytes.fromhex(HELLO + "0000002f 81000008 00000003 0000000b 00000000 01 6003")
    assert covered == data
    data, covered = one.seal(Message(Exchange.MAIN, (token,), sequence=3, iv=True))
    assert data == bytes.fromhex(
        HELLO + "00000037 81000010 00000003" + "00" * 8 + "0000000b 00000000 01 6003"
    )
    assert covered == data


@pytest.mark.parametrize("iv", [b"", bytes(8), b"whatever"])
def test_both_clear_variants_are_read(iv: bytes) -> None:
    """Windows sends the longer one once it is done with its tokens; what the IV says is nobody's business."""
    crypto = GENERIC.pack(GssApi.kind, 0, 8 + len(iv)) + b"\0\0\0\7" + iv
    data = bytes.fromhex(HELLO) + bytes(4) + crypto + encode_chain([GssApi()])[1]
    for one in (channel(), Channel(COOKIE_I, COOKIE_R, bytes)):
        message = opened(one, data)
        assert message.payloads == (GssApi(),)
        assert (message.sequence, message.encrypted, message.first) == (7, False, GssApi.kind)
        assert message.covered[28:] == data[28:]


@pytest.mark.parametrize("size", [n for n in range(40) if n not in (8, 8 + CLEAR_IV)])
def test_other_sizes_of_crypto_in_the_clear(size: int) -> None:
    """Else what is the IV and what is a payload would be the sender's to say."""
    data = bytes.fromhex(HELLO) + bytes(4) + GENERIC.pack(GssApi.kind, 0, size) + bytes(36)
    with pytest.raises(Malformed):
        opened(channel(), data)


def test_hostile_messages_in_the_clear() -> None:
    """CRYPTO not the first, not there, or twice: the specification wants one and only one in front."""
    gss = encode_chain([GssApi()])[1]
    crypto = GENERIC.pack(GssApi.kind, 0, 8) + bytes(4)
    head = bytes.fromhex(HELLO) + bytes(4)
    assert opened(channel(), head + crypto + gss).payloads == (GssApi(),)
    tokens_first = head[:16] + bytes((GssApi.kind,)) + head[17:]
    second = GENERIC.pack(CRYPTO, 0, 8) + bytes(4)
    for data in (
        tokens_first + gss,
        tokens_first + GENERIC.pack(CRYPTO, 0, 9) + bytes(5) + GENERIC.pack(0, 0, 8) + bytes(4),
        head + second + GENERIC.pack(GssApi.kind, 0, 8) + bytes(4) + gss,
        head + crypto + GENERIC.pack(CRYPTO, 0, 9) + bytes(5) + GENERIC.pack(0, 0, 8) + bytes(4),
        head,
        head + crypto[:6],
        head + crypto + gss + b"\0",
        head + crypto + gss[:-1],
    ):
        with pytest.raises(Malformed):
            opened(channel(), data)


# Any payloads ----------------------------------------------------------------------------------------------

PAYLOADS = st.lists(
    st.one_of(
        st.builds(GssApi, status=st.integers(0, 9), flags=st.integers(0, 31), token=st.binary(max_size=90)),
        st.builds(Nonce, data=st.binary(min_size=8, max_size=64)),
        st.just(SYNCHRONIZE),
        st.just(Auth(entries=(AuthEntry(method=2), AuthEntry(method=4)))),
    ),
    max_size=4,
)


@given(
    PAYLOADS,
    st.sampled_from(CIPHERS),
    st.sampled_from(sorted(ICV)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 0xFFFFFFFF),
)
def test_what_is_sealed_is_opened(
    payloads: list[Any], cipher: str, digest: str, encrypted: bool, headers: bool, number: int
) -> None:
    """Both ends must have the same payloads, and the same octets in their transcripts, whatever the cipher
    makes of them on the way."""
    row = suite(cipher, digest)
    message = Message(Exchange.EXTENDED, tuple(payloads), 1, encrypted=encrypted, sequence=number)
    data, covered = channel(row, covers_header=headers).seal(message)
    found = opened(channel(row, covers_header=headers), data)
    assert found.payloads == message.payloads
    assert (found.exchange, found.message_id, found.sequence) == (Exchange.EXTENDED, 1, number)
    assert found.encrypted is encrypted
    assert found.covered == covered
    octets = encode_chain(payloads)[1]
    if not headers:
        assert covered == octets
    elif encrypted:
        assert covered == data[:24] + (HEADER_SIZE + len(octets)).to_bytes(4, "big") + octets
    else:
        assert covered == data
    if encrypted:
        trailing = len(data) - HEADER_SIZE - 8 - row.encryption.iv - ICV[digest] - len(octets)
        assert 2 <= trailing < 2 + row.encryption.block


def test_a_clear_message_is_covered_with_its_crypto_payload_only_where_headers_are() -> None:
    """OQ-19: the message as it was sent, or its payloads alone."""
    message = plain(Exchange.MAIN, 0, GssApi())
    octets = encode_chain([GssApi()])[1]
    for headers in (True, False):
        data, covered = channel(covers_header=headers).seal(message)
        assert covered == (data if headers else octets)
        assert opened(channel(covers_header=headers), data).covered == covered


@given(st.binary(max_size=120), st.integers(0, 255))
def test_any_octets_are_a_message_or_malformed(octets: bytes, flags: int) -> None:
    """A stranger may send them; what is encrypted is never believed."""
    data = bytes.fromhex(HELLO)[:19] + bytes((flags, 0, 0, 0, 0)) + bytes(4) + octets
    try:
        message = opened(channel(), data)
    except Malformed:
        return
    assert not message.encrypted


def test_too_much_for_a_datagram() -> None:
    """It is our mistake, not the peer's."""
    for make in (plain, sealed):
        with pytest.raises(ValueError, match="cannot be sent"):
            channel().seal(make(Exchange.MAIN, 0, GssApi(token=bytes(65000)), GssApi(token=bytes(600))))


def test_ivs_are_made_anew() -> None:
    """Two messages with one IV show what they have in common."""
    drawn = iter((b"a" * 16, b"b" * 16))
    one = Channel(COOKIE_I, COOKIE_R, lambda size: next(drawn)[:size])
    one.arm(suite(), keys_of(suite()), old=False)
    message = status(13801, Subject.MAIN)
    first, second = (one.seal(sealed(Exchange.NOTIFY, 7, message))[0] for _ in range(2))
    assert (first[36:52], second[36:52]) == (b"a" * 16, b"b" * 16)
    assert first[52:68] != second[52:68]


def test_keys_do_not_show() -> None:
    """Neither a message nor a channel tells what is in it by its representation."""
    one = channel()
    message = one.open(Header.decode(MESSAGE), MESSAGE)
    assert repr(message.octets) not in repr(message)
    assert repr(message.covered) not in repr(message)
    assert repr(bytes(keys_of(suite()).cipher)) not in repr(one)
