"""How datagrams become messages of a main-mode SA of AuthIP, which exchange each is for, and notifies.

MS-AIPS sections 3.1.5 and 3.3 to 3.7. What proves nothing is dropped and changes nothing: of the
specification's "tear down in a wrong state" only authenticated messages make use.
"""

from __future__ import annotations

from abc import abstractmethod

from ikd.association import Owner
from ikd.authip import extended_mode, main_mode, quick_mode, shapes
from ikd.authip.channel import Unprotected, Unverified
from ikd.authip.conversations import Conversations, Talk, digest
from ikd.authip.message import Message
from ikd.authip.notices import Notices
from ikd.authip.numbers import (
    EXTENDED_MESSAGE_ID,
    MAIN_MESSAGE_ID,
    OLD_DOS_COOKIE,
    Exchange,
    N,
    Subject,
    exchange_name,
)
from ikd.authip.payloads import PAYLOADS, Notify
from ikd.authip.session import Session
from ikd.isakmp.conversations import MOST_TALKS
from ikd.isakmp.message import Refused, Unauthentic
from ikd.isakmp.payloads import SecurityAssociation
from ikd.isakmp.reception import Listener
from ikd.life import State
from ikd.riders.fragment1 import FRAGMENT
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER_SIZE, ZERO_SPI, Flags, Header, chain
from sadb.address import Path

MOST_COOKIES = 16  # of a responder under load that are returned in one negotiation
COOKIE_EXCHANGES = (Exchange.MAIN, Exchange.NOTIFY, 5)  # OQ-26


class Reception(Listener):
    """The half of a main-mode SA that listens."""

    __slots__ = ("notices",)

    conversing = Conversations
    session: Session
    talks: Conversations

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        Listener.__init__(self, session, owner, now)
        self.notices = Notices(self.talks)

    # What the other half does with it --------------------------------------------------------------------

    @abstractmethod
    def _deleted(self, refused: Refused) -> None:
        """The peer deletes the main-mode SA."""

    @abstractmethod
    def _asked_for(self, message: Message) -> None:
        """The peer wants a quick mode, which only we may begin."""

    # Receiving -------------------------------------------------------------------------------------------

    def first_request(self, header: Header, data: bytes, now: float) -> None:
        """The first message of a peer's main mode; raises `Malformed`, and then nothing is kept."""
        session = self.session
        message = session.channel.open(header, data)
        if message.encrypted:
            raise Malformed("a first message that is encrypted")
        shapes.fitting(message, shapes.FIRST)
        self.talks.tell_received(message, self.path)
        session.transcript.add(message.covered)
        steps = main_mode.respond(session, message, header.spi_r)
        talk = self.talks.begin(Exchange.MAIN, MAIN_MESSAGE_ID, steps, initiator=False)
        self._note(talk, message, digest(data))
        self.talks.drive(talk, now)
        self._settle(now)

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram for this main-mode SA, whoever it came from."""
        self.session.now = now
        try:
            self._receive(header, data, path, now)
        except Unprotected as error:
            self.dropped("unprotected", str(error), path)
        except (Unverified, Unauthentic) as error:
            self.dropped("unverified", str(error), path)
        except Malformed as error:
            self.dropped("malformed", str(error), path)
        self._settle(now)

    def _receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if header.next_payload == FRAGMENT:
            if whole := self._whole(header, data, now):
                self._receive(*whole, path, now)
            return
        if header.next_payload == Notify.kind:
            self._cookie(header, data, path)
            return
        mark = digest(data)
        for talk in self.talks.talks.values():
            if mark == talk.heard and not talk.initiator:
                self.talks.repeat(talk)
            if mark in talk.past:
                return  # it was answered, is being worked on, or is one of ours
        channel = self.session.channel
        former = channel.cookie_r
        self._learn_cookie(header)
        try:
            message = channel.open(header, data)
            if message.encrypted and channel.wrote(data):
                raise Unverified("our own message, sent back")
            if header.exchange == Exchange.NOTIFY:
                self._notified(message, path)
            else:
                self._converse(message, mark, path, now)
        finally:
            # a message that has proven nothing teaches nothing
            if self.initiator and not self.answered:
                channel.cookie_r = former

    def _learn_cookie(self, header: Header) -> None:
        """The responder's cookie is in its first answer; the one it has asked us to return may change."""
        if not self.initiator or self.answered or header.exchange != Exchange.MAIN:
            return
        if header.spi_r == ZERO_SPI:
            raise Malformed("an answer without the responder's cookie")
        self.session.channel.cookie_r = header.spi_r

    def _cookie(self, header: Header, data: bytes, path: Path) -> None:
        """HDR, N(NOTIFY_DOS_COOKIE), without a CRYPTO payload: our first message goes once more with it.
        Anybody who has seen that message may have sent this: nothing else changes."""
        talk = self.talks.talks.get(MAIN_MESSAGE_ID)
        payloads, _ = chain(header.next_payload, data[HEADER_SIZE:], PAYLOADS)
        found = payloads[0] if len(payloads) == 1 else None
        kinds = (N.DOS_COOKIE, OLD_DOS_COOKIE)
        if not (isinstance(found, Notify) and found.type in kinds and header.exchange in COOKIE_EXCHANGES):
            raise Malformed("a message without a CRYPTO payload")
        if header.flags & Flags.ENCRYPTION or len(found.data) != 8:
            raise Malformed("a cookie that is none")
        if not (talk and self.initiator and talk.waiting and not self.answered):
            return
        if found.data == self.session.channel.cookie_r:
            return  # it has been returned
        if talk.cookies >= MOST_COOKIES:
            talk.hint = Refused(0, f"the peer asks for cookies, and has taken none of {MOST_COOKIES}")
            return
        talk.cookies += 1
        notify = Notify(protocol=found.protocol, type=N.DOS_COOKIE, data=found.data)
        message = Message(Exchange.NOTIFY, (notify,), header.message_id)
        self.talks.tell_received(message, path)
        talk.waiting, talk.due = False, None
        self.talks.drive(talk, self.session.now, message)

    # Exchanges -------------------------------------------------------------------------------------------

    def _converse(self, message: Message, mark: bytes, path: Path, now: float) -> None:
        talk = self._waiting_for(message)
        if talk is None:
            self._begin_theirs(message, mark, path, now)
            return
        session = self.session
        transcripts = session.transcript, session.transcript_em
        lengths = [one.length for one in transcripts]
        self.talks.cover(talk, message, message.covered)
        for one, length in zip(transcripts, lengths, strict=True):
            if one.length > length and one.full:
                one.cut(length)
                raise Malformed("more messages than a negotiation has")

        def accept() -> None:
            self._note(talk, message, mark)
            if message.encrypted:
                self.life.heard = now
            # in the clear the port may change, but nobody gets a large certificate sent to another address
            if message.encrypted or path.peer.address == session.path.peer.address:
                self._follow(path)
            self.talks.tell_received(message, path)

        refused = self.talks.drive(talk, now, message, accept=accept)
        if refused is not None:
            for one, length in zip(transcripts, lengths, strict=True):
                one.cut(length)
            reason = "unverified" if isinstance(refused, Unauthentic) else "refused"
            self.dropped(reason, str(refused), path)

    def _note(self, talk: Talk, message: Message, mark: bytes) -> None:
        """A message of the peer is believed to be the next one of an exchange."""
        talk.number, talk.heard, talk.sent = talk.number + 1, mark, []
        talk.past.add(mark)
        talk.waiting, talk.due, talk.hint = False, None, None
        if not talk.initiator:
            talk.sequence, talk.asked = message.sequence, message.message_id

    def _waiting_for(self, message: Message) -> Talk | None:
        """The exchange that a message goes on with; raises `Unprotected`."""
        if self.initiator:
            return self._answering(message)
        talks = self.talks.talks
        if message.exchange == Exchange.QUICK:
            if shapes.fits(message, shapes.QUICK_REQUEST):
                return None
            found = talks.get(message.message_id) or talks.get(MAIN_MESSAGE_ID)
        elif message.exchange == Exchange.MAIN and not message.message_id:
            found = talks.get(MAIN_MESSAGE_ID)
        else:
            found = talks.get(EXTENDED_MESSAGE_ID)
        return found if found and found.waiting else None

    def _answering(self, message: Message) -> Talk | None:
        """As the initiator: the exchange whose request this answers."""
        for talk in self.talks.open:
            ours = talk.message
            if not talk.waiting or ours is None or not _answers(message, ours.exchange, ours.message_id):
                continue
            if message.encrypted is not ours.encrypted:
                raise Unprotected(f"{talk.stage} in the clear, or encrypted, where the other belongs")
            return talk
        return None

    def _begin_theirs(self, message: Message, mark: bytes, path: Path, now: float) -> None:
        """A quick mode or extended mode of the peer."""
        session = self.session
        name = exchange_name(message.exchange)
        if self.initiator or not message.encrypted:
            self.dropped("unexpected", f"{name} message {message.message_id:08x} answers nothing", path)
            return
        if shapes.fits(message, shapes.EXTENDED_REQUEST):
            self._begin_extended(message, mark, path, now)
            return
        if message.exchange != Exchange.QUICK or not self.usable:
            self.dropped("unexpected", f"{name} does not belong here", path)
            return
        if self.talks.full():
            self.dropped("exchange-limit", f"{MOST_TALKS} exchanges are under way", path)
            return
        if message.maybe(SecurityAssociation) is None or message.message_id in (0, 1):
            raise Malformed("no request of a quick mode")
        quick_mode.check(session, message)
        if message.message_id in self._seen:
            self.dropped("replayed", f"message ID {message.message_id:08x} was used before", path)
            return
        if not self.may_negotiate(now):  # what is a recording must not count
            return
        self._again(message.message_id)
        steps = quick_mode.respond(session, message)
        talk = self.talks.begin(Exchange.QUICK, message.message_id, steps, initiator=False)
        talk.child = True
        talk.offer = message.one(SecurityAssociation).proposals
        self._begun(talk, message, mark, path, now)

    def _begin_extended(self, message: Message, mark: bytes, path: Path, now: float) -> None:
        """A second authentication: once, behind the first quick mode."""
        main, session = self.talks.talks.get(MAIN_MESSAGE_ID), self.session
        if session.em is not None or EXTENDED_MESSAGE_ID in self.talks.talks or not session.first_done:
            self.dropped("unexpected", "extended mode does not belong here", path)
            return
        if main is not None and main.waiting:  # the peer has left out the synchronisation
            self.talks.drive(main, now, quick_mode.FAST)
        steps = extended_mode.respond(session, message)
        talk = self.talks.begin(Exchange.EXTENDED, EXTENDED_MESSAGE_ID, steps, initiator=False)
        self.talks.cover(talk, message, message.covered)
        self._begun(talk, message, mark, path, now)

    def _begun(self, talk: Talk, message: Message, mark: bytes, path: Path, now: float) -> None:
        self._follow(path)
        self.life.heard = now
        self.talks.tell_received(message, path)
        self._note(talk, message, mark)
        self.talks.drive(talk, now)

    def _follow(self, path: Path) -> None:
        """What comes on the old port once both have left it was sent before, and is not followed."""
        session = self.session
        if not session.path.local.port == session.env.settings.nat_port != path.local.port:
            Listener._follow(self, path)

    # Notifies --------------------------------------------------------------------------------------------

    def _notified(self, message: Message, path: Path) -> None:
        if not message.encrypted:
            self._hint(message, path)
            return
        shapes.check_acquire(message)  # else it is discarded, and not acknowledged
        if ack := message.notify(N.ACK):  # its own number may be that of what it acknowledges
            again = not self.notices.awaits(int.from_bytes(ack.data[:4], "big"))
        else:
            again = self.notices.again(message.sequence)
        self.talks.tell_received(message, path, repeated=again)
        if not again:  # a recording is no sign of life
            self.life.heard = self.session.now
            self._follow(path)
        self.notices.acknowledge(message)
        if not again:
            self._heed(message)

    def _hint(self, message: Message, path: Path) -> None:
        """A notify in the clear may be forged: it counts when nothing better comes."""
        talk, refused = self.talks.talks.get(MAIN_MESSAGE_ID), message.refusal()
        if refused and talk and talk.waiting and self.initiator and self.state is State.CONNECTING:
            self.talks.tell_received(message, path)
            talk.hint = refused
        else:
            self.dropped("unprotected", "a notify in the clear", path)

    def _heed(self, message: Message) -> None:
        """Act on an authentic notify."""
        if ack := message.notify(N.ACK):
            self.notices.acknowledged(int.from_bytes(ack.data[:4], "big"))
        if refused := message.refusal():
            found = message.notify(N.STATUS, N.NO_PROPOSAL_CHOSEN)
            assert found is not None
            if found.protocol == Subject.QUICK:
                self._quick_refused(message.message_id, refused, whole=found.type == N.STATUS)
            else:
                self._deleted(refused)
        if message.notify(N.ACQUIRE):
            self._asked_for(message)

    def _quick_refused(self, message_id: int, refused: Refused, *, whole: bool) -> None:
        """The peer declines a quick mode of ours, or deletes one that is there; where its message ID has
        never been that of a quick mode, it may mean all of this main-mode SA."""
        session = self.session
        waiting = [one for one in self.talks.open if one.waiting and one.initiator]
        for talk in waiting:
            if talk.message_id == message_id:
                self.talks.drive(talk, session.now, error=refused)
                return
        known = not whole or message_id == MAIN_MESSAGE_ID or message_id in self._seen
        for spi, pair in list(session.children.pairs.items()):
            if session.quick_ids.get(spi) == message_id or not known:
                twin = session.has_twin(pair)
                session.drop(pair, "replaced" if twin else "deleted by the peer", linger=twin)
                session.quick_ids.pop(spi, None)


def _answers(message: Message, exchange: int, message_id: int) -> bool:
    """Whether a message answers a request of this exchange type and message ID; where the specification
    contradicts itself, any reading will do (OQ-2, OQ-3, OQ-14)."""
    if message_id == EXTENDED_MESSAGE_ID and message.encrypted:
        return message.exchange in (Exchange.EXTENDED, Exchange.MAIN) and message.message_id in (0, 1)
    if exchange == Exchange.MAIN:
        return message.exchange == exchange
    return (message.exchange, message.message_id) == (exchange, message_id)
