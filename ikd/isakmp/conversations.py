"""The exchanges of one ISAKMP SA that are under way, in IKEv1 and AuthIP: what each waits for, and
repetitions.

RFC 2408 section 5.1, MS-AIPS section 3.1. An exchange is known by its message ID (0 in phase 1). Whoever
waits for an answer repeats its last message; whoever has answered does so again when the same message comes
once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ikd.events import MessageReceived, MessageSent
from ikd.exchange import Conversation, Pause, Question, Send, Wait
from ikd.isakmp.message import Contents, Silent
from ikd.isakmp.payloads import Proposal, SecurityAssociation
from ikd.isakmp.session import IsakmpSession
from ikd.outputs import Transmit
from ikd.riders.fragment1 import cut
from sadb.address import Path

MOST_TALKS = 64  # quick modes and other exchanges of phase 2 at a time
AMPLIFICATION = 3  # a stranger's octets are paid back with no more than this many of ours
KEPT_SECONDS = 60.0  # how long a finished exchange answers repetitions
SILENCE = "check that the peer runs, and that firewalls pass UDP 500 and 4500"


@dataclass(frozen=True, slots=True)
class Pace:
    """When a message is repeated: the first wait, how it grows, its limit, and how often it is sent."""

    first: float
    factor: float
    cap: float
    tries: int


@dataclass(slots=True, eq=False)
class Talk:
    """One exchange. `number` counts its messages, `heard` is the digest of the last one the peer sent;
    `waiting` tells that an answer is due. `offer` is what its first message proposes."""

    conversation: Conversation[Any]
    exchange: int
    message_id: int
    initiator: bool
    number: int = 0
    heard: bytes = b""
    sent: list[bytes] = field(default_factory=list)
    message: Contents | None = None  # the last of ours
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
        return self.conversation.name


S = TypeVar("S", bound=IsakmpSession)
T = TypeVar("T", bound=Talk)


class Conversations(ABC, Generic[S, T]):
    """Drives the exchanges of a session. `ask` passes a question on, `broke_off` hears of exceptions, and the
    other end is given up through `gone`."""

    __slots__ = ("_ask", "_broke_off", "_gone", "credit", "fragmenting", "sent_at", "session", "talks")

    def __init__(
        self,
        session: S,
        ask: Callable[[T, Question[Any]], None],
        broke_off: Callable[[T, Exception, float], None],
        gone: Callable[[], None],
    ) -> None:
        self.session = session
        self._ask = ask
        self._broke_off = broke_off
        self._gone = gone
        self.talks: dict[int, T] = {}  # by message ID
        self.sent_at = session.now
        self.credit = 0  # octets that a stranger may still be sent as repetitions
        self.fragmenting = False  # large messages go out in fragments (MS-IKEE section 3.3)

    # What each protocol does in its own way ---------------------------------------------------------------

    @abstractmethod
    def seal(self, talk: T, message: Any) -> tuple[Contents, bytes]:
        """A message of an exchange as it goes out, and its datagram."""

    @abstractmethod
    def name(self, exchange: int) -> str:
        """The name of an exchange type."""

    @abstractmethod
    def repeats(self, talk: T) -> bool:
        """Whether we repeat the last message by ourselves."""

    @abstractmethod
    def remedy(self, talk: T) -> str:
        """What may help against the peer's silence."""

    def pace(self, talk: T) -> Pace:
        """When it is repeated."""
        one = self.session.env.settings
        return Pace(one.retransmit_first, one.retransmit_factor, one.retransmit_cap, one.retransmit_tries)

    def essential(self, talk: T) -> bool:
        """Whether the peer counts as gone when nobody answers."""
        return talk.initiator

    def kept(self, talk: T) -> float:
        """For how many seconds a finished exchange answers repetitions."""
        return KEPT_SECONDS

    def cuts(self, talk: T) -> bool:
        """Whether its messages may have to be fragmented."""
        return self.session.may_fragment

    def stranger(self, talk: T) -> bool:
        """Whether the peer may have a forged address."""
        return self.session.peer is None and not talk.initiator

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def open(self) -> list[T]:
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

    def drive(
        self,
        talk: T,
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
            talk.waiting, talk.due, talk.forget_at = False, None, now + self.kept(talk)
            if conversation.result is not None:
                self.send(talk, conversation.result, now)
            return None
        match step:
            case Send():
                self.send(talk, step.message, now)
                talk.waiting = True
                if self.repeats(talk):
                    talk.wait = self.pace(talk).first
                    talk.due, talk.tries = now + talk.wait, 1
            case Question():
                talk.waiting, talk.due = False, None
                self._ask(talk, step)
            case Pause():
                raise TypeError("no exchange of IKEv1 or AuthIP pauses")
        return None

    def send(self, talk: T, message: Any, now: float) -> None:
        """Send the next message of an exchange."""
        sealed, datagram = self.seal(talk, message)
        talk.number += 1
        if talk.number == 1 and (offered := sealed.maybe(SecurityAssociation)):
            talk.offer = offered.proposals
        talk.message, talk.sent = sealed, [datagram]
        self._transmit(talk, now)

    def part(self, message: Any) -> None:
        """Send the peer a last message of phase 1, which has failed here."""
        self.send(self.talks[0], message, self.session.now)

    def _transmit(self, talk: T, now: float, tries: int = 1) -> None:
        self.sent_at = now
        self._emit(talk)
        assert talk.message is not None
        self.tell_sent(talk.message, tries)

    def _emit(self, talk: T) -> None:
        for one in self._datagrams(talk):
            self.credit -= len(one)
            self.session.emit(Transmit(one, self.session.path))

    def _affordable(self, talk: T) -> bool:
        """Whether our last message may be repeated: to a stranger, whose address may be forged, not more is
        sent than some times what came from there."""
        return not self.stranger(talk) or sum(map(len, talk.sent)) <= self.credit

    def _datagrams(self, talk: T) -> list[bytes]:
        """Our last message as it goes out."""
        if self.fragmenting and talk.sent:
            return cut(talk.sent[0], self.session.path, self.session.env.random)
        return talk.sent

    def tell_sent(self, message: Contents, tries: int = 1) -> None:
        """The event for the log."""
        self.session.emit(
            MessageSent(
                ike=self.session.number,
                exchange=self.name(message.exchange),
                message_id=message.message_id,
                response=None,
                payloads=message.names(),
                path=self.session.path,
                tries=tries,
            )
        )

    def tell_received(self, message: Contents, path: Path, *, repeated: bool = False) -> None:
        """The event for the log."""
        self.session.emit(
            MessageReceived(
                ike=self.session.number,
                exchange=self.name(message.exchange),
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

    def repeat(self, talk: T) -> None:
        """The peer has not heard our last message: a large one, maybe, that the path does not let through."""
        if self.cuts(talk):
            self.fragmenting = True
        if self._affordable(talk):
            self._emit(talk)

    # Time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Repeat what is not answered in time, and forget what is long finished."""
        for number, talk in list(self.talks.items()):
            if talk.forget_at is not None and talk.forget_at <= now:
                del self.talks[number]
            elif talk.due is not None and talk.due <= now:
                self._overdue(talk, now)

    def _overdue(self, talk: T, now: float) -> None:
        """Repeat a message, or believe the hint, or give up."""
        pace = self.pace(talk)
        if talk.hint is not None:
            talk.due = None
            self.drive(talk, now, error=talk.hint)
        elif talk.tries >= pace.tries and not self.session.stranded:
            talk.due = None
            error = Silent(
                f"the peer does not answer ({talk.stage} message {talk.number} sent {talk.tries} times)",
                self.remedy(talk),
            )
            if self.essential(talk):
                self._gone()
            self.drive(talk, now, error=error)
        else:
            talk.tries += not self.session.stranded
            talk.wait = min(talk.wait * pace.factor, pace.cap)
            talk.due = now + talk.wait
            if talk.tries > 2 and self.cuts(talk):
                self.fragmenting = True
            if self._affordable(talk):
                self._transmit(talk, now, talk.tries)

    def hurry(self, now: float) -> None:
        """Repeat what is not answered now, as if it had just been sent first."""
        for talk in self.open:
            if talk.due is not None:
                pace = self.pace(talk)
                talk.due, talk.tries, talk.wait = now, 0, pace.first / pace.factor

    def close(self, exchange: int | None = None) -> None:
        """Abandon everything, or the exchanges of one type."""
        for number, talk in list(self.talks.items()):
            if exchange in (None, talk.exchange):
                talk.conversation.close()
                del self.talks[number]
