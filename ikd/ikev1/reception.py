"""How datagrams become messages of an ISAKMP SA, and what is said and heard outside of exchanges.

RFC 2408 sections 2.5 and 5, RFC 2409 section 5.7. What proves nothing is dropped here and changes nothing.
What an authentic message leads to is done by exchanges (`ikd.ikev1.conversations`) and by
`ikd.ikev1.association`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from ikd.association import Owner
from ikd.auth import Declined
from ikd.ikev1 import aggressive, deletion, informational, main_mode, quick_mode, shapes
from ikd.ikev1.channel import Unprotected
from ikd.ikev1.conversations import Conversations, Talk, digest
from ikd.ikev1.liveness import Liveness
from ikd.ikev1.message import Message, status
from ikd.ikev1.session import Session
from ikd.isakmp.conversations import MOST_TALKS
from ikd.isakmp.message import Refused, Unauthentic
from ikd.isakmp.numbers import Exchange, Method, N, exchange_name
from ikd.isakmp.payloads import SecurityAssociation
from ikd.isakmp.reception import Listener
from ikd.life import Input, State
from ikd.outputs import Transmit
from ikd.riders import vendor
from ikd.riders.fragment1 import FRAGMENT
from ikd.riders.windows_status import Told
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Flags, Header, Payload
from sadb.address import Path

PHASE_1 = 0  # message ID
_RESPONDERS = {Exchange.MAIN: main_mode.respond, Exchange.AGGRESSIVE: aggressive.respond}
_WRONG_KEY = Declined(
    "the peer's message cannot be read: most likely the pre-shared key is not the one the peer has",
    "compare the secret for this peer in both hosts' secrets",
    cause="wrong-key",
)


class Reception(Listener):
    """The half of an ISAKMP SA that listens."""

    __slots__ = ("liveness",)

    conversing = Conversations
    session: Session
    talks: Conversations

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        Listener.__init__(self, session, owner, now)
        self.liveness = Liveness(session, self._inform)

    # What the other half does with it --------------------------------------------------------------------

    @abstractmethod
    def _end(self, reason: str, by_peer: bool) -> None:
        """It is over at the end of this step."""

    @abstractmethod
    def _leave(self, reason: str, by_peer: bool, until: float) -> None:
        """It ends as soon as nothing stands against it."""

    @abstractmethod
    def _pass_on(self) -> None:
        """It ends, but another one with the same peer may take its quick-mode SAs over."""

    # Receiving -------------------------------------------------------------------------------------------

    def first_request(self, header: Header, data: bytes, now: float) -> None:
        """The first message of a peer's phase 1; raises `Malformed`, and then nothing is kept."""
        message, _ = self.session.channel.open(header, data, b"")
        if message.encrypted:
            raise Malformed("a first message that is encrypted")
        payloads = shapes.check(message.exchange, 1, message.payloads)
        message = replace(message, payloads=payloads)
        self.talks.tell_received(message, self.path)
        steps = _RESPONDERS[Exchange(header.exchange)](self.session, message)
        talk = self.talks.begin(header.exchange, PHASE_1, steps, now, initiator=False)
        talk.number, talk.heard = 1, digest(data)
        self.talks.drive(talk, now)
        self._settle(now)

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram for this ISAKMP SA, whoever it came from."""
        self.session.now = now
        try:
            if header.next_payload == FRAGMENT:
                if whole := self._whole(header, data, now):
                    self.receive(*whole, path, now)
            elif header.exchange == Exchange.INFORMATIONAL:
                self._informational(header, data, path)
            elif header.exchange in (Exchange.MAIN, Exchange.AGGRESSIVE, Exchange.QUICK):
                self._exchange(header, data, path, now)
            else:
                self.dropped("unexpected", f"{exchange_name(header.exchange)} is not spoken", path)
        except Unprotected as error:
            self.dropped("unprotected", str(error), path)
        except Unauthentic as error:
            self.dropped("unverified", str(error), path)
        except Malformed as error:
            self.dropped("malformed", str(error), path)
        self._settle(now)

    def _exchange(self, header: Header, data: bytes, path: Path, now: float) -> None:
        talk = self.talks.talks.get(header.message_id)
        if talk is None:
            self._begin_theirs(header, data, path, now)
            return
        if talk.exchange != header.exchange:
            self.dropped("unexpected", f"{exchange_name(header.exchange)} in the middle of another", path)
            return
        mark = digest(data)
        if talk.heard == mark:
            # only what answers it is repeated, else both would repeat themselves for ever
            if not (talk.initiator and talk.due is not None):
                self.talks.repeat(talk)
            return
        if talk.conversation.done or not talk.waiting:
            return  # finished, or being worked on
        channel = self.session.channel
        learned = channel.cookie_r == ZERO_SPI
        if learned and header.spi_r == ZERO_SPI:
            raise Malformed("an answer without the responder's cookie")  # our own message, sent back
        if learned:  # hashes cover it; it is forgotten again when the message proves to be nothing
            channel.cookie_r = header.spi_r
        try:
            message, iv = self._open(header, data, talk)
        except Malformed:
            if learned:
                channel.cookie_r = ZERO_SPI
            if header.flags & Flags.ENCRYPTION:
                self._doubt_key()
            raise

        def accept() -> None:
            if message.encrypted:
                talk.iv = iv
                self._follow(path)
            talk.number, talk.heard, talk.sent = talk.number + 1, mark, []
            talk.waiting, talk.due, talk.hint = False, None, None
            self.life.heard = now
            self.talks.tell_received(message, path)

        refused = self.talks.drive(talk, now, message, accept=accept)
        if refused is not None:
            if learned:
                channel.cookie_r = ZERO_SPI
            reason = "unverified" if isinstance(refused, Unauthentic) else "refused"
            self.dropped(reason, str(refused), path)

    def _open(self, header: Header, data: bytes, talk: Talk) -> tuple[Message, bytes]:
        """The next message of an exchange, and the IV behind it; raises `Malformed`."""
        session = self.session
        message, iv = session.channel.open(header, data, talk.iv or session.channel.start_iv)
        must = self._must_encrypt(talk)
        if must is not None and message.encrypted is not must:
            raise Unprotected(f"{talk.stage} message {talk.number + 1} in the clear")
        number = talk.number + 1 if talk.message_id else session.place(talk.number + 1)
        payloads = shapes.check(message.exchange, number, message.payloads, session.method)
        return replace(message, payloads=payloads), iv

    def _doubt_key(self) -> None:
        """What cannot be read while the peer is not proven: a pre-shared key makes all other keys."""
        talk = self.talks.talks.get(PHASE_1)
        if self.state is State.CONNECTING and talk and talk.waiting and self.session.method == Method.PSK:
            talk.hint = talk.hint or _WRONG_KEY

    def _begin_theirs(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A quick mode of the peer; one whose hash does not fit is forgotten at once."""
        if header.exchange != Exchange.QUICK or self.state is State.CONNECTING or not header.message_id:
            self.dropped("unexpected", f"{exchange_name(header.exchange)} does not belong here", path)
            return
        if self.talks.full():
            self.dropped("exchange-limit", f"{MOST_TALKS} exchanges are under way", path)
            return
        channel = self.session.channel
        message, iv = channel.open(header, data, channel.iv_of(header.message_id))
        message = replace(message, payloads=shapes.check(Exchange.QUICK, 1, message.payloads))
        quick_mode.check(self.session, message)
        if header.message_id in self._seen:
            self.dropped("replayed", f"message ID {header.message_id:08x} was used before", path)
            return
        if not self.may_negotiate(now):  # what is a recording must not count
            return
        self._again(header.message_id)
        self._follow(path)
        self.life.heard = now
        self.talks.tell_received(message, path)
        steps = quick_mode.respond(self.session, message)
        talk = self.talks.begin(Exchange.QUICK, header.message_id, steps, now, initiator=False)
        talk.number, talk.heard, talk.iv, talk.child = 1, digest(data), iv, True
        talk.offer = message.one(SecurityAssociation).proposals
        self.talks.drive(talk, now)

    def _must_encrypt(self, talk: Talk) -> bool | None:
        """Whether the next message of an exchange has to be encrypted; None where both are seen."""
        if talk.exchange == Exchange.MAIN:
            return self.session.place(talk.number + 1) >= 5
        if talk.exchange == Exchange.AGGRESSIVE:
            return None if talk.number + 1 == 3 else False
        return True

    # Informational ---------------------------------------------------------------------------------------

    def _informational(self, header: Header, data: bytes, path: Path) -> None:
        session = self.session
        connecting = self.state is State.CONNECTING
        if not session.channel.armed or (connecting and not header.flags & Flags.ENCRYPTION):
            self._hint(header, data, path)
            return
        talk = self.talks.talks.get(header.message_id)
        if talk is not None and talk.exchange == Exchange.INFORMATIONAL:  # the answer to a deletion of ours
            self._exchange(header, data, path, session.now)
            return
        self._note_last_block()
        try:
            message, iv = session.channel.open(header, data, session.channel.iv_of(header.message_id))
            if not message.encrypted:
                raise Unprotected("an informational message in the clear")
            informational.check(session, message)
        except (Malformed, Unauthentic):
            self._doubt_key()
            raise
        payloads = shapes.check(message.exchange, 1, message.payloads)
        message = replace(message, payloads=payloads)
        again = self._again(header.message_id)
        self.talks.tell_received(message, path, repeated=again)
        if connecting:
            declined = message.refusal()
            if declined and not again:
                self._told(declined)
            return
        if not again:  # a recording is no sign of life, and comes from anywhere
            self._follow(path)
            self.life.heard = session.now
            self._heed(message)
        if deletion.asks(message):
            answer = deletion.answer(session, message)
            datagram, _ = session.channel.seal(answer, iv)
            self.owner.emit(Transmit(datagram, session.path))
            self.talks.tell_sent(answer)

    def _heed(self, message: Message) -> None:
        """Act on an authentic informational message."""
        session = self.session
        if notify := message.notify(N.R_U_THERE):
            self._inform(
                informational.are_you_there(session, int.from_bytes(notify.data[:4], "big"), answer=True)
            )
        acknowledged = message.notify(N.R_U_THERE_ACK)
        if acknowledged:
            self.liveness.acknowledged(int.from_bytes(acknowledged.data[:4], "big"))
        if message.notify(N.INITIAL_CONTACT) and not session.initial_contact:
            session.initial_contact = True
            self.owner.established(self)
        notify = message.error()
        if notify and notify.type == N.INVALID_SPI:
            informational.lost(session, notify.protocol, notify.spi, "the peer has not got it")
        elif declined := message.refusal():
            self._refused(declined, notify.spi if notify else b"", message.told())
        if informational.deleted(session, message):
            self._pass_on()
            until = session.now + (deletion.ANSWER_SECONDS if deletion.asks(message) else 0.0)
            if deletion.reliable(session):  # it keeps the quick-mode SAs
                self.life.move(Input.DELETE)
                self._leave("deleted by the peer", True, until)
            else:
                self._end("deleted by the peer", True)

    def _refused(self, declined: Refused, spi: bytes, told: Told | None) -> None:
        """The peer declines a quick mode of ours: the one that it names, by message ID as Windows does or by
        our SPI, or else the only one that waits. If it may be any of several, we see which are answered."""
        waiting = [one for one in self.talks.open if one.child and one.waiting and one.initiator]
        if told and told.message_id:
            found = [one for one in waiting if one.message_id == told.message_id]
        else:
            found = [one for one in waiting if spi in {offer.spi for offer in one.offer}] or waiting
        for talk in found:
            if len(found) == 1:
                self.talks.drive(talk, self.session.now, error=declined)
            else:
                talk.hint = declined

    def _hint(self, header: Header, data: bytes, path: Path) -> None:
        """An error in the clear before there are keys may be forged: it counts when nothing better comes."""
        message, _ = self.session.channel.open(header, data, b"")
        payloads = shapes.check(message.exchange, 0, message.payloads)
        message = replace(message, payloads=payloads)
        declined = message.refusal()
        if declined and self.initiator:
            self._told(declined)
        elif not self._return_cookie(message):
            self.dropped("unprotected", "an informational message in the clear", path)

    def _return_cookie(self, message: Message) -> bool:
        """Send the first message again with the cookie of a responder under load; whether this was one
        (MS-IKEE section 3.9). Anybody may have sent it: nothing else changes."""
        talk, notify = self.talks.talks.get(PHASE_1), message.notify(N.NOTIFY_DOS_COOKIE)
        if notify is None or len(message.payloads) != 1 or len(notify.data) != 8:
            return False
        if not (talk and self.initiator and talk.waiting and talk.number == 1):
            return False
        self.talks.tell_received(message, self.path)
        self.talks.return_cookie(talk, notify.data)
        return True

    def _told(self, declined: Refused) -> None:
        """The peer declines phase 1."""
        talk = self.talks.talks.get(PHASE_1)
        if talk and talk.waiting:
            talk.hint = declined

    def _inform(self, *payloads: Payload) -> bytes:
        """One protected informational message, and its datagram."""
        session = self.session
        if not session.channel.armed:
            return b""
        self._note_last_block()
        number = self._message_id()
        message = informational.sealed(session, number, payloads)
        datagram, _ = session.channel.seal(message, session.channel.iv_of(number))
        self.talks.sent_at = session.now
        self.owner.emit(Transmit(datagram, session.path))
        self.talks.tell_sent(message)
        return datagram

    def _notify(self, kind: int, data: bytes, protocol: int, spi: bytes) -> None:
        self._inform(status(kind, data, protocol, spi))

    def _message_id(self) -> int:
        while True:
            number = int.from_bytes(self.session.env.random(4), "big")
            if number and number not in self.talks.talks:
                return number

    def _note_last_block(self) -> None:
        """IVs of phase 2 come from the last block of phase 1. Before that is over it is the one that was
        decrypted last or, with old versions of Windows, sent last (MS-IKEE section 3.1.5)."""
        talk = self.talks.talks.get(PHASE_1)
        if talk is None:
            return
        old = self.state is State.CONNECTING and vendor.microsoft(self.session.vendors) in vendor.OLD
        channel = self.session.channel
        channel.last_block = (talk.sent_block if old else talk.iv) or channel.start_iv
