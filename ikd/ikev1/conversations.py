"""The exchanges of one ISAKMP SA that are under way: what each waits for, its chain of IVs, and repetitions.

RFC 2408 section 5.1. An exchange is known by its message ID (0 in phase 1). Whoever waits for an answer
repeats its last message; whoever has answered does so again when the same message comes once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ikd.events import MessageReceived, MessageSent
from ikd.exchange import Conversation, Pause, Question, Send, Steps, Wait
from ikd.ikev1.message import Message
from ikd.ikev1.session import Session
from ikd.isakmp.message import Silent
from ikd.isakmp.numbers import Exchange, Method, exchange_name
from ikd.isakmp.payloads import Proposal, SecurityAssociation
from ikd.outputs import Transmit
from ikd.riders.fragment1 import cut
from sadb.address import Path

MOST_TALKS = 64  # quick modes and other exchanges of phase 2 at a time
MOST_COOKIES = 16  # responder cookies that are returned in one negotiation
AMPLIFICATION = 3  # a stranger's octets are paid back with no more than this many of ours
KEPT_SECONDS = 60.0  # how long a finished exchange answers repetitions

# Remedies where the peer has answered until we proved ourselves.
_UNREADABLE = (
    "most likely its pre-shared key is another one, so that it cannot read this message: compare the secret "
    "for this peer in both hosts' secrets; else look whether firewalls pass UDP 4500"
)
_UNBELIEVED = "the peer's log may say why it does not believe us; else look whether firewalls pass UDP 4500"


@dataclass(frozen=True, slots=True)
class Pace:
    """When a message is repeated: the first wait, how it grows, its limit, and how often it is sent."""

    first: float
    factor: float
    cap: float
    tries: int


DELETION = Pace(1.0, 2.0, 16.0, 5)  # four repetitions (MS-IKEE section 3.8.6.1; Windows makes six)


@dataclass(slots=True, eq=False)
class Talk:
    """One exchange. `number` counts its messages, `iv` is that of the next one, `heard` the digest of the
    last one the peer sent; `waiting` tells that an answer is due. `offer` is what its first message
    proposes."""

    conversation: Conversation[Message | None]
    exchange: int
    message_id: int
    initiator: bool
    iv: bytes = field(default=b"", repr=False)
    sent_block: bytes = field(default=b"", repr=False)  # the final cipher block of our last message
    number: int = 0
    heard: bytes = b""
    sent: list[bytes] = field(default_factory=list)
    message: Message | None = None  # the last of ours
    rule: str = ""
    child: bool = False
    offer: tuple[Proposal, ...] = ()
    waiting: bool = False
    due: float | None = None
    wait: float = 0.0
    tries: int = 0
    cookies: int = 0  # that were returned
    hint: Exception | None = field(default=None, repr=False)
    forget_at: float | None = None

    @property
    def stage(self) -> str:
        """The exchange, for people."""
        return exchange_name(self.exchange)


class Conversations:
    """Drives the exchanges of a session. `ask` passes a question on, `broke_off` hears of exceptions, and the
    other end is given up through `gone`."""

    __slots__ = ("_ask", "_broke_off", "_gone", "credit", "fragmenting", "sent_at", "session", "talks")

    def __init__(
        self,
        session: Session,
        ask: Callable[[Talk, Question[Any]], None],
        broke_off: Callable[[Talk, Exception, float], None],
        gone: Callable[[], None],
    ) -> None:
        self.session = session
        self._ask = ask
        self._broke_off = broke_off
        self._gone = gone
        self.talks: dict[int, Talk] = {}  # by message ID
        self.sent_at = session.now
        self.credit = 0  # octets that a stranger may still be sent as repetitions
        self.fragmenting = False  # large messages go out in fragments (MS-IKEE section 3.3)

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def open(self) -> list[Talk]:
        """Those that are not finished."""
        return [one for one in self.talks.values() if not one.conversation.done]

    @property
    def waiting(self) -> str:
        """What is waited for, for people."""
        return next((f"{one.stage} message {one.number + 1}" for one in self.open if one.waiting), "")

    def full(self) -> bool:
        """Whether there may be no other one; finished ones make room."""
        if len(self.talks) >= MOST_TALKS:
            done = [one for one in self.talks.values() if one.message_id and one.conversation.done]
            for one in done[: len(self.talks) - MOST_TALKS + 1]:
                del self.talks[one.message_id]
        return len(self.talks) >= MOST_TALKS

    def deadlines(self) -> Iterable[float]:
        """When a message is to be repeated, or a finished exchange forgotten."""
        for one in self.talks.values():
            if one.due is not None:
                yield one.due
            if one.forget_at is not None:
                yield one.forget_at

    # Driving ---------------------------------------------------------------------------------------------

    def begin(
        self, exchange: int, message_id: int, steps: Steps[Message | None], now: float, *, initiator: bool
    ) -> Talk:
        """A new exchange, not resumed yet."""
        iv = self.session.channel.iv_of(message_id) if message_id else b""
        talk = Talk(Conversation(exchange_name(exchange), steps), exchange, message_id, initiator, iv)
        self.talks[message_id] = talk
        return talk

    def drive(
        self,
        talk: Talk,
        now: float,
        value: Any = None,
        *,
        error: Exception | None = None,
        accept: Callable[[], None] | None = None,
    ) -> Exception | None:
        """Run an exchange to its next wish and see to that. A message (`value`) is believed, which `accept`
        notes, unless the exchange waits for another one: then the reason is returned."""
        self.session.now = now
        conversation = talk.conversation
        try:
            step = conversation.fail(error) if error else conversation.resume(value)
        except Exception as failed:
            if accept:
                accept()
            talk.waiting, talk.due, talk.forget_at = False, None, now + KEPT_SECONDS
            self._broke_off(talk, failed, now)
            return None
        if isinstance(step, Wait):
            talk.hint = talk.hint or (step.error if not talk.message_id else None)
            return step.error
        if accept:
            accept()
        if conversation.done:
            kept = 0.0 if talk.exchange == Exchange.INFORMATIONAL else KEPT_SECONDS
            talk.waiting, talk.due, talk.forget_at = False, None, now + kept
            if conversation.result is not None:
                self._send(talk, conversation.result, now)
            return None
        match step:
            case Send():
                self._send(talk, step.message, now)
                talk.waiting = True
                # the responder of main mode leaves repetitions to the initiator: it is a stranger; where the
                # initiator has the last word, it does not know whether that was heard
                if talk.initiator or talk.exchange != Exchange.MAIN:
                    talk.wait = self._pace(talk).first
                    talk.due, talk.tries = now + talk.wait, 1
            case Question():
                talk.waiting, talk.due = False, None
                self._ask(talk, step)
            case Pause():
                raise TypeError("no exchange of IKEv1 pauses")
        return None

    def _send(self, talk: Talk, message: Message, now: float) -> None:
        session = self.session
        message = Message(message.exchange, message.payloads, talk.message_id, message.encrypted)
        if message.encrypted and not talk.iv:
            talk.iv = session.channel.start_iv
        datagram, talk.iv = session.channel.seal(message, talk.iv)
        talk.sent_block = talk.iv
        talk.number += 1
        if talk.number == 1 and (offered := message.maybe(SecurityAssociation)):
            talk.offer = offered.proposals
        talk.message, talk.sent = message, [datagram]
        self._transmit(talk, now)

    def part(self, message: Message) -> None:
        """Send the peer a last message of phase 1, which has failed here."""
        self._send(self.talks[0], message, self.session.now)

    def _transmit(self, talk: Talk, now: float, tries: int = 1) -> None:
        self.sent_at = now
        for one in self._datagrams(talk):
            self.credit -= len(one)
            self.session.emit(Transmit(one, self.session.path))
        assert talk.message is not None
        self.tell_sent(talk.message, tries)

    def _affordable(self, talk: Talk) -> bool:
        """Whether our last message may be repeated: to a stranger, whose address may be forged, not more is
        sent than some times what came from there."""
        stranger = self.session.peer is None and not talk.initiator
        return not stranger or sum(map(len, talk.sent)) <= self.credit

    def _datagrams(self, talk: Talk) -> list[bytes]:
        """Our last message as it goes out."""
        if self.fragmenting and talk.sent:
            return cut(talk.sent[0], self.session.path, self.session.env.random)
        return talk.sent

    def tell_sent(self, message: Message, tries: int = 1) -> None:
        """The event for the log."""
        self.session.emit(
            MessageSent(
                ike=self.session.number,
                exchange=exchange_name(message.exchange),
                message_id=message.message_id,
                response=None,
                payloads=message.names(),
                path=self.session.path,
                tries=tries,
            )
        )

    def tell_received(self, message: Message, path: Path, *, repeated: bool = False) -> None:
        """The event for the log."""
        self.session.emit(
            MessageReceived(
                ike=self.session.number,
                exchange=exchange_name(message.exchange),
                message_id=message.message_id,
                response=None,
                payloads=message.names(),
                path=path,
                repeated=repeated,
            )
        )

    def received(self, data: bytes) -> None:
        """A datagram has come, whatever it is worth."""
        self.credit += AMPLIFICATION * len(data)

    def repeat(self, talk: Talk) -> None:
        """The peer has not heard our last message: a large one, maybe, that the path does not let through."""
        if talk.exchange != Exchange.QUICK and self.session.may_fragment:
            self.fragmenting = True
        if self._affordable(talk):
            for one in self._datagrams(talk):
                self.credit -= len(one)
                self.session.emit(Transmit(one, self.session.path))

    def return_cookie(self, talk: Talk, cookie: bytes) -> None:
        """Our first message once more with a responder cookie, otherwise identical; repetitions go without,
        and get another cookie where one is needed."""
        if talk.cookies < MOST_COOKIES:
            talk.cookies += 1
            first = talk.sent[0]
            self.session.emit(Transmit(first[:8] + cookie + first[16:], self.session.path))
            assert talk.message is not None
            self.tell_sent(talk.message, talk.tries + 1)

    # Time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Repeat what is not answered in time, and forget what is long finished."""
        for number, talk in list(self.talks.items()):
            if talk.forget_at is not None and talk.forget_at <= now:
                del self.talks[number]
            elif talk.due is not None and talk.due <= now:
                self._overdue(talk, now)

    def _pace(self, talk: Talk) -> Pace:
        if talk.exchange == Exchange.INFORMATIONAL:
            return DELETION
        one = self.session.env.settings
        return Pace(one.retransmit_first, one.retransmit_factor, one.retransmit_cap, one.retransmit_tries)

    def _overdue(self, talk: Talk, now: float) -> None:
        """Repeat a message, or believe the hint, or give up."""
        pace = self._pace(talk)
        if talk.hint is not None:
            talk.due = None
            self.drive(talk, now, error=talk.hint)
        elif talk.tries >= pace.tries:
            talk.due = None
            remedy = "check that the peer runs, and that firewalls pass UDP 500 and 4500"
            if not talk.message_id and talk.message and talk.message.encrypted:
                remedy = _UNREADABLE if self.session.method == Method.PSK else _UNBELIEVED
            error = Silent(
                f"the peer does not answer ({talk.stage} message {talk.number} sent {talk.tries} times)",
                remedy,
            )
            if talk.initiator and talk.exchange != Exchange.INFORMATIONAL:
                self._gone()
            self.drive(talk, now, error=error)
        else:
            talk.tries += 1
            talk.wait = min(talk.wait * pace.factor, pace.cap)
            talk.due = now + talk.wait
            if talk.tries > 2 and talk.exchange != Exchange.QUICK and self.session.may_fragment:
                self.fragmenting = True
            if self._affordable(talk):
                self._transmit(talk, now, talk.tries)

    def close(self, exchange: int | None = None) -> None:
        """Abandon everything, or the exchanges of one type."""
        for number, talk in list(self.talks.items()):
            if exchange in (None, talk.exchange):
                talk.conversation.close()
                del self.talks[number]


def digest(data: bytes) -> bytes:
    """What a repetition has in common with the original: every octet but the responder cookie, which a first
    message may have or not (MS-IKEE section 3.9)."""
    return hashlib.blake2b(data[:8] + data[16:], digest_size=16).digest()
