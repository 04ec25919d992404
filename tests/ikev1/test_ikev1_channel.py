"""ikd.ikev1.channel: a whole handshake that others recorded decrypts with its chains of IVs, and what cannot
be a message is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from support.sas import vectors

from ikd.ikev1 import keys
from ikd.ikev1.channel import VERSION, Channel, Unprotected
from ikd.ikev1.message import Message, status
from ikd.isakmp.numbers import Exchange, N
from ikd.isakmp.payloads import Hash, Identification, KeyExchange, Nonce, Notify, SecurityAssociation
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER_SIZE, Header
from sadb.algorithms import (
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    MainSuite,
)
from sadb.secret import Secret

(CASE,) = vectors("ikev1_handshake.json")
MESSAGES = [bytes.fromhex(one) for one in CASE["messages"]]
SUITE = MainSuite(
    GROUP_BY_NAME["modp1024"], ENCRYPTION_BY_NAME["aes128"], PRF_BY_NAME["sha1"], INTEGRITY_BY_NAME["sha1"]
)


@dataclass
class Recorded:
    """The recorded handshake as one end had it after message 4."""

    channel: Channel
    keys: keys.IkeKeys
    nonces: tuple[bytes, bytes]
    publics: tuple[bytes, bytes]
    sa: bytes


def recorded() -> Recorded:
    """Keys from the recording's secrets, put into a channel of ours."""
    header = Header.decode(MESSAGES[1])
    channel = Channel(header.spi_i, header.spi_r, bytes)
    clear = [channel.open(Header.decode(data), data, b"")[0] for data in MESSAGES[:4]]
    nonces = clear[2].one(Nonce).data, clear[3].one(Nonce).data
    publics = clear[2].one(KeyExchange).public, clear[3].one(KeyExchange).public
    skeyid = keys.skeyid_psk(SUITE.prf, Secret(bytes.fromhex(CASE["psk"])), *nonces)
    made = keys.derive(SUITE, skeyid, bytes.fromhex(CASE["gxy"]), header.spi_i, header.spi_r)
    channel.arm(SUITE, made, *publics)
    return Recorded(channel, made, nonces, publics, clear[0].body(SecurityAssociation))


def test_a_recorded_handshake() -> None:
    """Phase 1 and quick mode of others, each message with the IV that the one before it left: a chain that is
    begun or carried on otherwise interoperates with nobody."""
    one = recorded()
    channel = one.channel
    iv, proofs = channel.start_iv, []
    for data in MESSAGES[4:6]:
        message, iv = channel.open(Header.decode(data), data, iv)
        assert message.encrypted
        proofs.append(message)
    transcript = keys.Transcript(*one.publics, channel.cookie_i, channel.cookie_r, one.sa)
    for message, make in zip(proofs, (keys.hash_i, keys.hash_r), strict=True):
        expected = make(SUITE.prf, one.keys.skeyid, transcript, message.body(Identification))
        assert message.one(Hash).data == expected
    channel.last_block = iv
    quick = []
    iv = channel.iv_of(Header.decode(MESSAGES[6]).message_id)
    for data in MESSAGES[6:]:
        message, iv = channel.open(Header.decode(data), data, iv)
        quick.append(message)
    number, nonce_i = quick[0].message_id, quick[0].one(Nonce).data
    for message, nonce in ((quick[0], b""), (quick[1], nonce_i)):
        made = keys.message_hash(SUITE.prf, one.keys.a, number, message.behind_hash(), nonce)
        assert message.one(Hash).data == made
    last = keys.last_hash(SUITE.prf, one.keys.a, number, nonce_i, quick[1].one(Nonce).data)
    assert quick[2].one(Hash).data == last


def test_what_we_write_is_what_they_wrote() -> None:
    """The same payloads with the same IV are the same octets, and leave the same IV."""
    one = recorded()
    iv = one.channel.start_iv
    for data in MESSAGES[4:6]:
        message, following = one.channel.open(Header.decode(data), data, iv)
        made, left = one.channel.seal(message, iv)
        assert made == data
        assert left == following == data[-16:]
        iv = following


@pytest.mark.parametrize("number", range(4, 9))
def test_the_wrong_iv(number: int) -> None:
    """A message that is not the next of its chain is no chain of payloads, or its first block is another."""
    one = recorded()
    data = MESSAGES[number]
    try:
        message, _ = one.channel.open(Header.decode(data), data, bytes(16))
    except Malformed:
        return
    assert message.octets[:16] != b""
    assert message.payloads[0].encode()[:12] != b""


def test_before_there_are_keys() -> None:
    """Nothing that is encrypted can be read."""
    header = Header.decode(MESSAGES[4])
    with pytest.raises(Unprotected):
        Channel(header.spi_i, header.spi_r, bytes).open(header, MESSAGES[4], b"")


def sealed(payloads: tuple[Any, ...], *, encrypted: bool) -> tuple[Recorded, bytes]:
    """A message of ours on the recorded channel."""
    one = recorded()
    message = Message(Exchange.INFORMATIONAL, payloads, 9, encrypted=encrypted)
    return one, one.channel.seal(message, bytes(16))[0]


@pytest.mark.parametrize("size", [*range(18), 100, 1000])
def test_every_length_is_padded_to_blocks(size: int) -> None:
    """And comes back without its padding; in the clear nothing is padded."""
    notify = status(N.INITIAL_CONTACT, bytes(range(256))[:size] * (1 if size < 256 else 4))
    one, data = sealed((Hash(data=b"h" * 20), notify), encrypted=True)
    header = Header.decode(data)
    assert (len(data) - HEADER_SIZE) % 16 == 0
    assert (header.version, header.flags, header.next_payload) == (VERSION, 1, Hash.kind)
    message, iv = one.channel.open(header, data, bytes(16))
    assert message.one(Notify).data == notify.data
    assert iv == data[-16:]
    _, clear = sealed((notify,), encrypted=False)
    assert len(clear) == HEADER_SIZE + 4 + 8 + len(notify.data)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 60])
def test_octets_are_missing(cut: int) -> None:
    """What is no whole number of blocks cannot be decrypted, and half a message is none."""
    one = recorded()
    data = bytearray(MESSAGES[4][: len(MESSAGES[4]) - cut])
    data[24:28] = len(data).to_bytes(4, "big")
    with pytest.raises(Malformed):
        one.channel.open(Header.decode(bytes(data)), bytes(data), one.channel.start_iv)


def test_too_much_for_a_datagram() -> None:
    """It is our mistake, not the peer's."""
    with pytest.raises(ValueError, match="cannot be sent"):
        sealed((status(N.INITIAL_CONTACT, bytes(65000)), status(N.CONNECTED, bytes(600))), encrypted=True)


def test_what_a_hash_covers() -> None:
    """Everything behind the first payload as it came, reserved octets included, and no padding."""
    one, data = sealed((Hash(data=b"h" * 20), status(N.CONNECTED, b"x")), encrypted=True)
    message, _ = one.channel.open(Header.decode(data), data, bytes(16))
    assert message.behind_hash() == bytes((0, 0, 0, 13)) + status(N.CONNECTED, b"x").encode()
    one, data = sealed((status(N.CONNECTED), Hash(data=b"h" * 20)), encrypted=True)
    message, _ = one.channel.open(Header.decode(data), data, bytes(16))
    with pytest.raises(Malformed, match="not the first"):
        message.behind_hash()


def test_keys_do_not_show() -> None:
    """Neither a message nor a channel tells what is in it by its representation."""
    one = recorded()
    message, _ = one.channel.open(Header.decode(MESSAGES[4]), MESSAGES[4], one.channel.start_iv)
    assert message.octets.hex() not in repr(message)
    assert repr(message.octets) not in repr(message)
    assert bytes(one.keys.cipher).hex() not in repr(one.channel)
