"""What another implementation's parser makes of our AuthIP: tshark, which knows the payloads it has from
IKEv1 and steps over the others by their lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import authip
from support.authip import EXTENDED, main_mode, well
from support.capture import Recording, written
from support.link import Flight, Link, mirrored

from ikd.authip.message import Message
from ikd.authip.numbers import CRYPTO, Exchange
from ikd.authip.payloads import PAYLOADS, Auth, GssApi, GssId, Notify
from ikd.isakmp.payloads import Hash, Identification, KeyExchange, Nonce, SecurityAssociation
from ikd.settings import IkeSettings
from ikd.wire.isakmp import GENERIC, HEADER, HEADER_SIZE, Flags, chain

pytestmark = pytest.mark.interop
PRIVATE = range(128, 256)  # what tshark has no layout for
INSIDE = (2, 3)  # proposals and transforms, which it lists like payloads
CHECKED = ("-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE")


class Negotiated:
    """A main mode with a cookie, quick modes, extended mode and deletions, as it was on the way."""

    def __init__(self) -> None:
        self.messages: list[Message] = []  # opened, in order
        demanding = IkeSettings(cookie_threshold=0)
        material = {"left": well("left"), "right": well("right")}
        self.link = Link(*authip.hosts(auth=EXTENDED, right_settings=demanding, **material))
        self.link.fate = self._note
        self.link.up()
        self.link.run(2)
        assert mirrored(self.link.left, self.link.right)
        self.link.rekey_child(self.link.left)
        self.link.run(2)
        self.link.close_child(self.link.left)
        self.link.run(2)
        self.link.close(self.link.left)
        self.link.run(3)
        assert not self.link.left.drops + self.link.right.drops
        assert not self.link.left.failures + self.link.right.failures

    @property
    def flights(self) -> list[Flight]:
        """The datagrams."""
        return self.link.flights

    def _note(self, flight: Flight) -> None:
        if flight.header.next_payload != CRYPTO:  # the cookie that is asked for
            payloads, _ = chain(flight.header.next_payload, flight.data[HEADER_SIZE:], PAYLOADS)
            message = Message(flight.header.exchange, tuple(payloads), flight.header.message_id)
        else:
            message = main_mode(flight.sender).session.channel.open(flight.header, flight.data)
        self.messages.append(message)

    def decrypted(self) -> list[bytes]:
        """The encrypted messages as they would be without encryption, and without CRYPTO."""
        found = []
        for flight, message in zip(self.flights, self.messages, strict=True):
            if message.encrypted:
                head = flight.header
                size = HEADER_SIZE + len(message.octets)
                kind, number = message.first, head.message_id
                found.append(
                    HEADER.pack(head.spi_i, head.spi_r, kind, head.version, head.exchange, 0, number, size)
                    + message.octets
                )
        return found


@pytest.fixture(scope="module")
def negotiated() -> Negotiated:
    """One run for all."""
    return Negotiated()


@pytest.fixture
def recording(negotiated: Negotiated, tmp_path: Path) -> Recording:
    """What was on the way."""
    return written(tmp_path / "authip.pcap", ((one.path, one.data) for one in negotiated.flights))


def told(recording: Recording, *fields: str) -> Iterator[list[str]]:
    """What tshark says of each packet, by field."""
    wanted = [part for one in fields for part in ("-e", one)]
    for line in recording.tshark(*CHECKED, "-T", "fields", *wanted).splitlines():
        yield line.split("\t")


def numbers(text: str) -> list[int]:
    """A list as tshark shows it."""
    return [int(one, 0) for one in text.split(",") if one]


def uncomplained(recording: Recording) -> None:
    """That tshark finds nothing wrong with any packet."""
    for packet in told(recording, "_ws.malformed", "_ws.expert.message"):
        assert not any(packet), packet
    text = recording.tshark(*CHECKED, "-V")
    assert "Malformed" not in text
    assert "Invalid" not in text


def test_headers(negotiated: Negotiated, recording: Recording) -> None:
    """Exchange types, flags, message IDs and lengths where everybody looks for them, in datagrams whose
    checksums are right; and every exchange of AuthIP is there."""
    fields = ("exchangetype", "flags", "messageid", "length")
    found = list(
        told(recording, *(f"isakmp.{one}" for one in fields), "ip.checksum.status", "udp.checksum.status")
    )
    assert [numbers(one[0])[0] for one in found] == [one.header.exchange for one in negotiated.flights]
    assert {numbers(one[0])[0] for one in found} == {243, 244, 245, 246}
    assert [int(one[1], 0) for one in found] == [one.header.flags for one in negotiated.flights]
    assert [int(one[2], 0) for one in found] == [one.header.message_id for one in negotiated.flights]
    assert [int(one[3]) for one in found] == [len(one.data) for one in negotiated.flights]
    assert {(one[4], one[5]) for one in found} == {("1", "1")}
    uncomplained(recording)


def test_payloads_in_the_clear(negotiated: Negotiated, recording: Recording) -> None:
    """The chain from CRYPTO on, each payload where the one before it says, up to the last octet."""
    names = ("typepayload", "payloadlength", "datapayload", "nonce", "key_exchange.data")
    clear = 0
    for packet, message, flight in zip(
        told(recording, *(f"isakmp.{one}" for one in names)),
        negotiated.messages,
        negotiated.flights,
        strict=True,
    ):
        if message.encrypted:
            continue
        clear += 1
        bodies = [(one.kind, one.encode()) for one in message.payloads]
        if flight.header.next_payload == CRYPTO:
            length = int.from_bytes(flight.data[HEADER_SIZE + 2 : HEADER_SIZE + 4], "big")
            bodies.insert(0, (CRYPTO, flight.data[HEADER_SIZE + 4 : HEADER_SIZE + length]))
            assert length in (8, 16)
        listed = zip(numbers(packet[0]), numbers(packet[1]), strict=True)
        outer = [one for one in listed if one[0] not in INSIDE]
        assert outer == [(kind, GENERIC.size + len(body)) for kind, body in bodies]
        assert HEADER_SIZE + sum(length for _, length in outer) == len(flight.data)
        private = [body.hex() for kind, body in bodies if kind in PRIVATE]
        assert [one for one in packet[2].split(",") if one] == private
        assert [one for one in packet[3].split(",") if one] == [n.data.hex() for n in message.every(Nonce)]
        assert packet[4] == "".join(one.public.hex() for one in message.every(KeyExchange))
    assert clear >= 8
    kinds = {one.kind for message in negotiated.messages if not message.encrypted for one in message.payloads}
    assert {one.kind for one in (SecurityAssociation, Auth, GssApi, GssId, Nonce, Notify)} <= kinds


def test_encrypted_messages_are_seen_from_outside(negotiated: Negotiated, recording: Recording) -> None:
    """tshark takes all behind the header for ciphertext, CRYPTO with its sequence number and IV included, so
    it can tell that there is CRYPTO, and how much; it must not look for payloads where there are none."""
    text = recording.tshark("-V").split("\n\n")
    encrypted = 0
    packets = told(recording, "isakmp.nextpayload", "isakmp.typepayload", "isakmp.flag_e")
    for packet, shown, message, flight in zip(
        packets, filter(str.strip, text), negotiated.messages, negotiated.flights, strict=True
    ):
        assert packet[2] in (("1", "True") if message.encrypted else ("0", "False"))
        if not message.encrypted:
            assert "Encrypted Data" not in shown
            continue
        encrypted += 1
        assert packet[:2] == [str(CRYPTO), ""]
        assert f"Encrypted Data ({len(flight.data) - HEADER_SIZE} bytes)" in shown
        assert flight.header.flags == Flags.ENCRYPTION
    assert encrypted >= 12


def test_what_is_inside_of_encrypted_messages(negotiated: Negotiated, tmp_path: Path) -> None:
    """The same messages as they were before encryption: proposals of quick mode, identities, proofs and
    deletions are laid out as everybody lays them out."""
    recording = written(
        tmp_path / "inside.pcap", ((negotiated.flights[0].path, one) for one in negotiated.decrypted())
    )
    messages = [one for one in negotiated.messages if one.encrypted]
    names = ("isakmp.typepayload", "isakmp.payloadlength", "isakmp.notify.msgtype", "isakmp.length")
    for packet, message in zip(told(recording, *names), messages, strict=True):
        listed = zip(numbers(packet[0]), numbers(packet[1]), strict=True)
        outer = [one for one in listed if one[0] not in INSIDE]
        assert outer == [(one.kind, GENERIC.size + len(one.encode())) for one in message.payloads]
        assert numbers(packet[2]) == [one.type for one in message.every(Notify)]
        assert int(packet[3]) == HEADER_SIZE + sum(length for _, length in outer)
    kinds = {one.kind for message in messages for one in message.payloads}
    wanted = (SecurityAssociation, Identification, Hash, Nonce, Notify, Auth, GssApi, GssId)
    assert {one.kind for one in wanted} <= kinds
    assert {message.exchange for message in messages} == set(Exchange)
    uncomplained(recording)


def test_a_broken_message_is_complained_of(negotiated: Negotiated, tmp_path: Path) -> None:
    """Else the silence above would mean nothing."""
    flight = negotiated.flights[0]
    broken = bytearray(flight.data)
    broken[HEADER_SIZE + 2 : HEADER_SIZE + 4] = b"\0\x03"  # CRYPTO shorter than its own header
    shorter = flight.data[:-30]
    for n, data in enumerate((bytes(broken), shorter)):
        recording = written(tmp_path / f"{n}.pcap", [(flight.path, data)])
        (packet,) = told(recording, "_ws.malformed", "_ws.expert.message")
        assert any(packet), data.hex()
