"""The exchanges of one IKE SA that are under way: what each waits for, repetitions, and the peer's window.

RFC 7296 sections 2.1 to 2.3. `Conversations` resumes generators and sends what they yield; what they raise
goes to its owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ikd.events import MessageReceived, MessageSent
from ikd.exchange import Conversation, Pause, Question, Send, Steps, Wait
from ikd.ikev2.channel import clear
from ikd.ikev2.message import Message, Silent
from ikd.ikev2.mobility import PATIENCE, SEARCH, candidates, waits
from ikd.ikev2.numbers import Exchange, exchange_name
from ikd.ikev2.payloads import Delete
from ikd.ikev2.session import Session
from ikd.outputs import Transmit
from ikd.wire.isakmp import ZERO_SPI, Header
from sadb.address import Path


@dataclass(slots=True, eq=False)
class Talk:
    """A conversation with its place: `answers` is the request it answers (None when it is ours), `rule` and
    `child` are for telling of its failure."""

    conversation: Conversation[Any]
    answers: Message | None = None
    rule: str = ""
    child: bool = False
    stage: str = ""


@dataclass(slots=True, eq=False)
class Request:
    """A request of ours that is not answered yet."""

    talk: Talk
    message: Message
    datagrams: list[bytes]
    due: float
    wait: float
    began: float
    tries: int = 1
    hint: Exception | None = field(default=None, repr=False)
    searching: tuple[Path, ...] = ()  # the ways it went when all were tried


class Conversations:
    """Drives the exchanges of a session. `ask` passes a question on, `broke_off` hears of exceptions, and the
    other end is given up through `gone`."""

    __slots__ = (
        "_ask",
        "_broke_off",
        "_gone",
        "listener",
        "pauses",
        "requests",
        "sent_at",
        "session",
        "unsent",
    )

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
        self.requests: dict[int, Request] = {}
        self.unsent: deque[tuple[Talk, Message]] = deque()  # they wait for room in the peer's window
        self.pauses: list[tuple[float, Talk]] = []
        self.listener: Talk | None = None  # the responder's initial exchange, waiting for IKE_AUTH
        self.sent_at = session.now

    @property
    def idle(self) -> bool:
        """Whether nothing of ours is under way."""
        return not (self.requests or self.unsent or self.pauses)

    @property
    def waiting(self) -> str:
        """What is waited for, for people."""
        if self.requests:
            first = next(iter(self.requests.values()))
            return f"{exchange_name(first.message.exchange)} response"
        if self.listener:
            return "IKE_AUTH request"
        return "a pause" if self.pauses else ""

    def deadlines(self) -> list[float]:
        """When a request is to be repeated or a pause ends."""
        return [one.due for one in self.requests.values()] + [due for due, _ in self.pauses]

    def begin(self, name: str, steps: Steps[Any], now: float, *, rule: str = "", child: bool = False) -> None:
        """Start an exchange of ours."""
        self.drive(Talk(Conversation(name, steps), rule=rule, child=child), now)

    def drive(
        self,
        talk: Talk,
        now: float,
        value: Any = None,
        *,
        error: Exception | None = None,
        answered: Request | None = None,
    ) -> None:
        """Run an exchange to its next wish and see to that."""
        self.session.now = now
        conversation = talk.conversation
        try:
            step = conversation.fail(error) if error else conversation.resume(value)
        except Exception as failed:
            self._broke_off(talk, failed, now)
            return
        if conversation.done:
            if talk.answers is not None and conversation.result is not None:
                self.reply(talk.answers, conversation.result)
            return
        match step:
            case Send():
                if talk.answers is not None:
                    self.reply(talk.answers, step.message)
                    talk.answers, self.listener = None, talk
                else:
                    self.unsent.append((talk, step.message))
                    self.flush(now)
            case Wait():
                assert answered is not None
                answered.hint = step.error
                self.requests[answered.message.message_id] = answered
            case Pause():
                self.pauses.append((now + step.seconds, talk))
            case Question():
                self._ask(talk, step)

    def flush(self, now: float) -> None:
        """Send waiting requests as far as the peer's window allows: it begins with the first that is not
        answered, however many behind that are (section 2.3)."""
        channel, window = self.session.channel, self.session.peer_window
        while self.unsent and channel.next_id < min(self.requests, default=channel.next_id) + window:
            self._request(*self.unsent.popleft(), now)

    def _request(self, talk: Talk, message: Message, now: float) -> None:
        session, channel = self.session, self.session.channel
        first = message.exchange == Exchange.IKE_SA_INIT
        number = 0 if first else channel.next_id
        channel.next_id = number + 1
        message = Message(message.exchange, message.payloads, False, number)
        if first:
            octets = clear(channel.header(message.exchange, 0, response=False), message.payloads)
            session.init_request = octets
            datagrams = [octets]
        else:
            datagrams = channel.seal(message, session.path)
        talk.stage = exchange_name(message.exchange)
        wait = session.env.settings.retransmit_first
        request = Request(talk, message, datagrams, now + wait, wait, now)
        self.requests[number] = request
        self._transmit(message, datagrams, now, session.path)

    def _transmit(
        self, message: Message, datagrams: list[bytes], now: float, path: Path, tries: int = 1
    ) -> None:
        self.sent_at = now
        for one in datagrams:
            self.session.emit(Transmit(one, path))
        self.session.emit(
            MessageSent(
                ike=self.session.number,
                exchange=exchange_name(message.exchange),
                message_id=message.message_id,
                response=message.response,
                payloads=message.names(),
                path=path,
                tries=tries,
            )
        )

    def reply(self, request: Message, reply: Message, *, refused: bool = False) -> None:
        """Answer a request, and keep the answer for repetitions. Who can move is answered where it speaks
        from: it may be trying a path (RFC 4555 section 3.10)."""
        session, channel = self.session, self.session.channel
        path = request.path if session.mobility and request.path else session.path
        reply = Message(request.exchange, reply.payloads, True, request.message_id)
        if request.exchange == Exchange.IKE_SA_INIT:
            header = channel.header(request.exchange, 0, response=True)
            if refused:  # then there is no IKE SA, and no SPI of ours (section 2.6)
                header = replace(header, spi_r=ZERO_SPI)
            session.init_response = clear(header, reply.payloads)
            datagrams = [session.init_response]
            channel.answered(0, [])
        else:
            datagrams = channel.seal(reply, path)
            channel.answered(request.message_id, datagrams)
        self._transmit(reply, datagrams, session.now, path)

    def repeat(self, header: Header, path: Path) -> None:
        """The peer has not heard our answer. The octets prove nobody's address, so only who can move gets it
        elsewhere, as often as it asks, and nothing of the first exchanges."""
        session = self.session
        elsewhere = session.mobility is not None and header.exchange != Exchange.IKE_AUTH
        for one in session.channel.repeated(header.message_id):
            session.emit(Transmit(one, path if elsewhere else session.path))
        self.received(Message(header.exchange, (), False, header.message_id), path, repeated=True)

    def received(self, message: Message, path: Path, *, repeated: bool = False) -> None:
        self.session.emit(
            MessageReceived(
                ike=self.session.number,
                exchange=exchange_name(message.exchange),
                message_id=message.message_id,
                response=message.response,
                payloads=message.names(),
                path=path,
                repeated=repeated,
            )
        )

    # Time ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Repeat what is not answered in time, and go on after pauses."""
        for number, request in list(self.requests.items()):
            if request.due <= now and self.requests.get(number) is request:
                self._overdue(number, request, now)
        due = [talk for when, talk in self.pauses if when <= now]
        self.pauses = [one for one in self.pauses if one[0] > now]
        for talk in due:
            self.drive(talk, now)

    def _overdue(self, number: int, request: Request, now: float) -> None:
        """Repeat a request, or believe the hint, or give up: a peer that answers no repetition is gone, with
        all it had (section 2.4)."""
        settings = self.session.env.settings
        if request.hint is not None:
            del self.requests[number]
            self.drive(request.talk, now, error=request.hint)
        elif request.tries >= settings.retransmit_tries and not self._patient(request, now):
            del self.requests[number]
            name = exchange_name(request.message.exchange)
            error = Silent(
                f"the peer does not answer ({name} sent {request.tries} times)",
                "check that the peer runs, and that firewalls pass UDP 500 and 4500",
            )
            self._gone()
            self.drive(request.talk, now, error=error)
        else:
            request.tries += not self.session.stranded
            request.wait = min(request.wait * settings.retransmit_factor, settings.retransmit_cap)
            request.due = now + request.wait
            for path in self._paths(request):
                self._transmit(request.message, request.datagrams, now, path, request.tries)

    def _patient(self, request: Request, now: float) -> bool:
        """Whether the silence of the peer means nothing yet: because there is no way to it, or because it may
        have lost its own and nobody can call it (RFC 4555 section 3.11)."""
        session, mobility = self.session, self.session.mobility
        if session.stranded or mobility is None:
            return session.stranded
        if request.message.maybe(Delete) is not None:
            return False
        tunnel = session.rule.tunnel if session.rule else None
        only_answers = not mobility.initiator and tunnel is not None and tunnel.remote is None
        return waits(session, mobility) or (only_answers and now < request.began + PATIENCE)

    def _paths(self, request: Request) -> tuple[Path, ...]:
        """The ways a repetition goes: where the IKE SA goes, and when that has been in vain every other."""
        session, mobility = self.session, self.session.mobility
        if mobility is None or request.tries < SEARCH:
            return (session.path,)
        request.searching = tuple(dict.fromkeys((session.path, *candidates(session, mobility))))
        mobility.spread |= len({one.peer.address for one in request.searching}) > 1
        return request.searching

    def hurry(self, now: float) -> None:
        """Repeat what is not answered now, as if it had just been sent first."""
        settings = self.session.env.settings
        for request in self.requests.values():
            request.due, request.tries, request.searching = now, 0, ()
            request.wait = settings.retransmit_first / settings.retransmit_factor

    def close(self) -> None:
        """Abandon everything."""
        talks = [one.talk for one in self.requests.values()] + [talk for talk, _ in self.unsent]
        talks += [talk for _, talk in self.pauses]
        if self.listener:
            talks.append(self.listener)
        self.requests.clear()
        self.unsent.clear()
        self.pauses.clear()
        self.listener = None
        for talk in talks:
            talk.conversation.close()
