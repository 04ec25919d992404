"""One IKE SA as a thing that lives: its exchanges under way, repetitions, timers and end (RFC 7296 sections
2.1 to 2.4, 2.8, 2.21 and 2.25).

The exchanges themselves are generators in `ikd.ikev2`; an `Association` resumes them with what comes, repeats
what is not answered and turns what they raise into notifies and events. Everything that can happen to its
state is in `TRANSITIONS`.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from ikd.auth import Authenticated, Declined, Identity
from ikd.events import (
    AuthenticationFailed,
    Broken,
    DatagramDropped,
    IkeClosed,
    IkeEstablished,
    MessageReceived,
    MessageSent,
    PeerMoved,
)
from ikd.exchange import Conversation, Pause, Question, Send, Steps, Wait
from ikd.ikev2 import child, informational, initial, rekey, shapes
from ikd.ikev2.channel import Standing, Unprotected, clear
from ikd.ikev2.message import Message, Refused, Silent, UnknownCritical, status
from ikd.ikev2.numbers import Exchange, N, exchange_name
from ikd.ikev2.payloads import ENCRYPTED, PAYLOADS, Notify
from ikd.ikev2.session import Session
from ikd.outputs import Inherit, Move, Output, Remove, Transmit
from ikd.riders.natt import KEEPALIVE
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import HEADER_SIZE, Flags, Header, chain
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.algorithms import MainSuite
from sadb.backend import Unavailable
from sadb.crypto import Unverified
from sadb.sa import Acquire, SaPair
from sadb.sa import State as PairState

SOFT = 0.85  # the part of its life after which an IKE SA is replaced, made up to a tenth smaller at random
JITTER = 0.1
AGAIN_SECONDS = 30.0  # after which replacing an IKE SA is tried again
REPLACED_SECONDS = 60.0  # how long a replaced IKE SA waits for the peer to delete it


class State(Enum):
    """Life of an IKE SA."""

    CONNECTING = "connecting"
    ESTABLISHED = "established"
    REKEYING = "rekeying"
    DELETING = "deleting"
    CLOSED = "closed"


class Input(Enum):
    """What changes it."""

    AUTHENTICATED = "authenticated"
    REKEY = "rekey"
    KEPT = "kept"  # replacing it failed
    DELETE = "delete"
    GONE = "gone"


S, I = State, Input  # noqa: E741
TRANSITIONS: Mapping[State, Mapping[Input, State]] = {
    S.CONNECTING: {I.AUTHENTICATED: S.ESTABLISHED, I.GONE: S.CLOSED},
    S.ESTABLISHED: {I.REKEY: S.REKEYING, I.DELETE: S.DELETING, I.GONE: S.CLOSED},
    S.REKEYING: {I.KEPT: S.ESTABLISHED, I.DELETE: S.DELETING, I.GONE: S.CLOSED},
    S.DELETING: {I.GONE: S.CLOSED},
    S.CLOSED: {},
}


class Owner(Protocol):
    """What an association needs of the endpoint that holds it."""

    def emit(self, output: Output) -> None: ...
    def ask(self, association: Association, talk: Talk, question: Question[Any]) -> None: ...
    def new_spi(self) -> bytes: ...
    def established(self, association: Association) -> None: ...
    def adopt(self, session: Session) -> Association: ...
    def association_of(self, session: Session) -> Association: ...
    def moved(self, association: Association, old: Address) -> None: ...
    def forget(self, association: Association) -> None: ...


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
    tries: int = 1
    hint: Exception | None = field(default=None, repr=False)


class Association:
    """One IKE SA. `number` names it in events and owns its pairs."""

    __slots__ = (
        "_deferred",
        "_half_open_until",
        "_hard_at",
        "_heard",
        "_listener",
        "_over",
        "_owner",
        "_pauses",
        "_requests",
        "_sent",
        "_unsent",
        "armed_at",
        "created",
        "first_key",
        "inherited",
        "rekey_at",
        "session",
        "state",
    )

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        self.session = session
        self.created = now
        self.state = State.CONNECTING
        self.rekey_at: float | None = None
        self.armed_at: float | None = None  # when the endpoint's timer will look here
        self.first_key: tuple[Address, int, bytes] | None = (
            None  # by which the endpoint counts it as half open
        )
        self.inherited = False  # a successor has the Child SAs
        self._owner = owner
        self._hard_at: float | None = None
        self._half_open_until = now + session.env.settings.half_open_timeout
        self._heard = self._sent = now
        self._requests: dict[int, Request] = {}
        self._unsent: deque[tuple[Talk, Message]] = deque()
        self._pauses: list[tuple[float, Talk]] = []
        self._deferred: list[Talk] = []
        self._listener: Talk | None = None  # the responder's initial exchange, waiting for IKE_AUTH
        self._over: tuple[str, bool] | None = None
        hooks = session.hooks
        hooks.emit, hooks.new_spi = owner.emit, owner.new_spi
        hooks.authenticated, hooks.close = self._authenticated, self._end
        hooks.adopt, hooks.inherit, hooks.discard = self._adopt, self._inherit, self._discard

    # Facts for people ------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Its name in events; the owner of its pairs."""
        return self.session.number

    @property
    def initiator(self) -> bool:
        """Whether we began it."""
        return self.session.initiator

    @property
    def path(self) -> Path:
        """Its addresses and ports now."""
        return self.session.path

    @property
    def rule(self) -> str:
        """The rule it was made for, empty while unknown."""
        return self.session.rule_name

    @property
    def peer(self) -> Authenticated | None:
        """The proven peer."""
        return self.session.peer

    @property
    def local_identity(self) -> Identity | None:
        """What we claim to be."""
        return self.session.local_identity

    @property
    def suite(self) -> MainSuite | None:
        """The suite agreed on."""
        return self.session.suite

    @property
    def spi_i(self) -> bytes:
        """The initiator's SPI."""
        return self.session.channel.spi_i

    @property
    def spi_r(self) -> bytes:
        """The responder's SPI, zero while unknown."""
        return self.session.channel.spi_r

    @property
    def nat(self) -> bool:
        """Whether there is a NAT on the way."""
        return self.session.nat

    @property
    def children(self) -> Mapping[int, SaPair]:
        """Its Child SAs by inbound SPI."""
        return {} if self.inherited else self.session.children.pairs

    @property
    def waiting(self) -> str:
        """What it waits for."""
        if self._requests:
            first = next(iter(self._requests.values()))
            return f"{exchange_name(first.message.exchange)} response"
        if self._listener:
            return "IKE_AUTH request"
        return "a pause" if self._pauses else ""

    @property
    def usable(self) -> bool:
        """Whether new Child SAs may be made on it."""
        return self.state is State.ESTABLISHED and not self.inherited and self.session.ike_rekey is None

    @property
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""
        return not (self._requests or self._unsent or self._pauses or self._deferred)

    # Beginning exchanges ---------------------------------------------------------------------------------

    def initiate(self, rule: Rule, acquire: Acquire | None, now: float, *, childless: bool) -> None:
        """Begin the initial exchanges."""
        steps = initial.initiate(self.session, rule, acquire, childless=childless)
        self._start("initial", steps, now, rule=rule.name)

    def create_child(self, rule: Rule, acquire: Acquire | None, now: float) -> None:
        """Make a further Child SA, as soon as the IKE SA is up."""
        self._start(
            "create child", child.create(self.session, rule, acquire), now, rule=rule.name, child=True
        )

    def awaits(self, rule: str) -> bool:
        """Whether a Child SA for a rule is being made already."""
        if rule in self.session.children.creating:
            return True
        return self.state is State.CONNECTING and (
            (self.initiator and self.rule == rule) or any(one.rule == rule for one in self._deferred)
        )

    def rekey_child(self, pair: SaPair, now: float) -> None:
        """Replace a Child SA, now or as soon as nothing stands against it."""
        if pair.inbound.spi in self.session.children.pairs:
            self.session.children.due[pair.inbound.spi] = pair
            self._settle(now)

    def close_child(self, pair: SaPair, reason: str, now: float) -> None:
        """Delete a Child SA here and at the peer."""
        if pair.inbound.spi in self.session.children.pairs:
            self._start("delete child", informational.delete_children(self.session, [pair], reason), now)

    def rekey(self, now: float) -> None:
        """Replace the IKE SA."""
        if self.usable and self._move(Input.REKEY):
            self._start("rekey", rekey.rekey(self.session), now, rule=self.rule)

    def delete(self, reason: str, now: float) -> None:
        """Delete the IKE SA here and at the peer; one that is not up is simply forgotten."""
        if self.state is State.CONNECTING:
            self._over = (reason, False)
            self._settle(now)
        elif self._move(Input.DELETE):
            self._start("delete", informational.delete_ike(self.session, reason), now)

    def tell(self, notify: Notify, now: float) -> None:
        """Send a protected notice."""
        if self.state is State.ESTABLISHED:
            self._start("notice", informational.tell(self.session, notify), now)

    def abandon(self, reason: str, now: float) -> None:
        """End it here without telling the peer, which is gone or knows."""
        self._over = self._over or (reason, False)
        self._settle(now)

    def _start(
        self, name: str, steps: Steps[Any], now: float, *, rule: str = "", child: bool = False
    ) -> None:
        talk = Talk(Conversation(name, steps), rule=rule, child=child)
        if self.state is State.CONNECTING and name != "initial":
            self._deferred.append(talk)
        else:
            self._drive(talk, now)
        self._settle(now)

    # Receiving -------------------------------------------------------------------------------------------

    def first_request(self, message: Message, now: float) -> None:
        """IKE_SA_INIT of an initiator."""
        self._received(message, self.path)
        steps = initial.respond(self.session, message)
        self._drive(Talk(Conversation("initial", steps), message, stage="IKE_SA_INIT"), now)
        self._settle(now)

    def first_repeated(self) -> None:
        """The same IKE_SA_INIT once more."""
        if self.session.init_response:
            self._owner.emit(Transmit(self.session.init_response, self.path))

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram for this IKE SA, whoever it came from."""
        self.session.now = now
        try:
            if header.flags & Flags.RESPONSE:
                self._take_response(header, data, path, now)
            else:
                self._take_request(header, data, path, now)
        except Unverified:
            self._drop("unverified", "integrity check failed", path)
        except Unprotected as error:
            self._drop("unprotected", str(error), path)
        except Malformed as error:
            self._drop("malformed", str(error), path)
        self._settle(now)

    def answer(self, talk: Talk, value: object, now: float) -> None:
        """The answer to a question of one of its exchanges."""
        if self.state is State.CLOSED or talk.conversation.done:
            return
        if isinstance(value, Exception):
            self._drive(talk, now, error=value)
        else:
            self._drive(talk, now, value)
        self._settle(now)

    def _take_response(self, header: Header, data: bytes, path: Path, now: float) -> None:
        request = self._requests.get(header.message_id)
        if request is None or request.message.exchange != header.exchange:
            self._drop("unexpected", f"no {exchange_name(header.exchange)} is waiting for it", path)
            return
        broken: Exception | None = None
        if header.exchange == Exchange.IKE_SA_INIT:
            message = open_first(header, data)
        else:
            if not self.session.channel.armed:
                raise Unprotected("a protected message before there are keys")
            try:
                opened = self.session.channel.open(header, data)
            except Unprotected:
                raise
            except Malformed as error:
                opened, broken = Message(header.exchange, (), True, header.message_id), error
            if opened is None:
                return
            message = opened
            self._heard = now
            try:
                payloads = shapes.check(message.exchange, True, message.payloads)
                message = Message(message.exchange, payloads, True, message.message_id, message.octets)
            except (Malformed, UnknownCritical) as error:
                broken = broken or error
        self._received(message, path)
        del self._requests[header.message_id]
        if broken:
            self._drive(request.talk, now, error=broken)
        else:
            self._drive(request.talk, now, message, answered=request)

    def _take_request(self, header: Header, data: bytes, path: Path, now: float) -> None:
        channel = self.session.channel
        if not channel.armed:
            if self.session.pending is None or header.exchange != Exchange.IKE_AUTH:
                raise Unprotected("a protected message before there are keys")
            agree, self.session.pending = self.session.pending, None
            try:
                agree()
            except Malformed:
                self._over = ("the peer's public value is not in its group", False)
                raise
        standing = channel.standing(header, data)
        if standing is Standing.REPEATED:
            self._repeat(header, path)
            return
        if standing is Standing.UNDER_WAY:
            return
        if standing is Standing.STALE:
            self._drop("replayed", f"request {header.message_id} is outside the window", path)
            return
        broken: Exception | None = None
        try:
            opened = channel.open(header, data)
        except Unprotected:
            raise
        except Malformed as error:
            opened, broken = Message(header.exchange, (), False, header.message_id, data), error
        if opened is None:
            return
        self._heard = now
        channel.accept(opened)
        self._follow(path)
        self._received(opened, path)
        try:
            payloads = shapes.check(opened.exchange, False, opened.payloads)
        except (Malformed, UnknownCritical) as error:
            payloads, broken = (), broken or error
        message = Message(opened.exchange, payloads, False, opened.message_id, opened.octets)
        self._serve(message, broken, now)

    def _serve(self, message: Message, broken: Exception | None, now: float) -> None:
        """Begin the exchange that answers an authenticated request; `broken` is what is wrong with it."""
        name = exchange_name(message.exchange)
        if self._listener:
            talk, self._listener = self._listener, None
            talk.answers, talk.stage = message, name
            if message.exchange != Exchange.IKE_AUTH:
                broken = broken or Malformed(f"{name} before IKE_AUTH")
        else:
            talk = Talk(Conversation(name, self._responder(message)), message, stage=name)
        if broken:
            self._drive(talk, now, error=broken)
        else:
            self._drive(talk, now, message if talk.conversation.waiting is not None else None)

    def _responder(self, message: Message) -> Steps[Message]:
        """The exchange that answers a request on an IKE SA that is up."""
        session = self.session
        if message.exchange == Exchange.INFORMATIONAL:
            return informational.respond(session, message)
        if message.exchange == Exchange.CREATE_CHILD_SA:
            if self.state is State.DELETING or self.inherited:
                return _refuse(Refused(N.TEMPORARY_FAILURE, "this IKE SA is going away"))
            if rekey.asks_for_ike(message):
                return rekey.respond(session, message)
            return child.respond(session, message)
        return _refuse(Malformed(f"{exchange_name(message.exchange)} on an IKE SA that is up"))

    def _follow(self, path: Path) -> None:
        """A peer behind a NAT is where its last authentic request came from (section 2.23)."""
        session = self.session
        if path == session.path or not (self.state is State.CONNECTING or session.nat_peer):
            return
        old, session.path = session.path, path
        if old.peer.address != path.peer.address:
            self._owner.moved(self, old.peer.address)
        if self.state is not State.CONNECTING:
            self._owner.emit(PeerMoved(ike=self.number, old=old, new=path))
        for pair in self.children.values():
            self._owner.emit(Move(pair, path))

    # Driving ---------------------------------------------------------------------------------------------

    def _drive(
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
                self._reply(talk.answers, conversation.result)
            return
        match step:
            case Send():
                if talk.answers is not None:
                    self._reply(talk.answers, step.message)
                    talk.answers, self._listener = None, talk
                else:
                    self._unsent.append((talk, step.message))
                    self._flush(now)
            case Wait():
                assert answered is not None
                answered.hint = step.error
                self._requests[answered.message.message_id] = answered
            case Pause():
                self._pauses.append((now + step.seconds, talk))
            case Question():
                self._owner.ask(self, talk, step)

    def _flush(self, now: float) -> None:
        """Send waiting requests as far as the peer's window allows (section 2.3)."""
        window = 1 if self.state is State.CONNECTING else self.session.peer_window
        while self._unsent and len(self._requests) < window:
            self._request(*self._unsent.popleft(), now)

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
        request = Request(talk, message, datagrams, now + wait, wait)
        self._requests[number] = request
        self._transmit(message, datagrams, now)

    def _transmit(self, message: Message, datagrams: list[bytes], now: float, tries: int = 1) -> None:
        path = self.session.path
        self._sent = now
        for one in datagrams:
            self._owner.emit(Transmit(one, path))
        self._owner.emit(
            MessageSent(
                ike=self.number,
                exchange=exchange_name(message.exchange),
                message_id=message.message_id,
                response=message.response,
                payloads=message.names(),
                path=path,
                tries=tries,
            )
        )

    def _reply(self, request: Message, reply: Message) -> None:
        session, channel = self.session, self.session.channel
        reply = Message(request.exchange, reply.payloads, True, request.message_id)
        if request.exchange == Exchange.IKE_SA_INIT:
            header = channel.header(request.exchange, 0, response=True)
            session.init_response = clear(header, reply.payloads)
            datagrams = [session.init_response]
            channel.answered(0, [])
        else:
            datagrams = channel.seal(reply, session.path)
            channel.answered(request.message_id, datagrams)
        self._transmit(reply, datagrams, session.now)

    def _repeat(self, header: Header, path: Path) -> None:
        """The peer has not heard our answer."""
        for one in self.session.channel.repeated(header.message_id):
            self._owner.emit(Transmit(one, self.session.path))
        self._received(Message(header.exchange, (), False, header.message_id), path, repeated=True)

    def _received(self, message: Message, path: Path, *, repeated: bool = False) -> None:
        self._owner.emit(
            MessageReceived(
                ike=self.number,
                exchange=exchange_name(message.exchange),
                message_id=message.message_id,
                response=message.response,
                payloads=message.names(),
                path=path,
                repeated=repeated,
            )
        )

    def _drop(self, reason: str, detail: str, path: Path) -> None:
        self._owner.emit(DatagramDropped(reason=reason, detail=detail, path=path))

    # What goes wrong -------------------------------------------------------------------------------------

    def _broke_off(self, talk: Talk, error: Exception, now: float) -> None:
        """An exchange ended with an exception."""
        connecting = self.state is State.CONNECTING
        if not isinstance(error, (Refused, Malformed, UnknownCritical, Declined, Unavailable, Silent)):
            text = "".join(traceback.format_exception(error))
            self._owner.emit(Broken(where=talk.conversation.name, error=type(error).__name__, traceback=text))
            self._over = ("an internal error", False)
            return
        if talk.answers is not None:
            self._reply_error(talk.answers, error)
        self._tell_failure(talk, error)
        if connecting and (talk.answers is not None or talk.conversation.name == "initial"):
            self._over = (str(error) or "refused", False)
        elif isinstance(
            error, Malformed
        ):  # section 2.21.3: a peer that cannot write correctly ends the IKE SA
            if talk.answers is None and self._move(Input.DELETE):
                self._start("delete", informational.delete_ike(self.session, str(error)), now)
            else:
                self._over = (str(error), False)
        elif talk.conversation.name == "rekey" and not self.inherited and self._move(Input.KEPT):
            self.rekey_at = now + AGAIN_SECONDS

    def _reply_error(self, request: Message, error: Exception) -> None:
        """The notify that tells the peer, alone in an answer."""
        notify = notify_of(error)
        if request.exchange == Exchange.IKE_SA_INIT and isinstance(error, Malformed):
            return  # whoever sends garbage to begin with learns nothing
        self._reply(request, Message(request.exchange, (notify,), True))

    def _tell_failure(self, talk: Talk, error: Exception) -> None:
        """Events for log and `ikctl why`; what is part of every negotiation is none."""
        if isinstance(error, Refused) and not error.by_peer and error.notify in _USUAL:
            return
        session = self.session
        rule = talk.rule or session.rule_name
        if isinstance(error, Declined) or (
            isinstance(error, Refused) and error.notify == N.AUTHENTICATION_FAILED
        ):
            self._owner.emit(
                AuthenticationFailed(
                    ike=self.number,
                    rule=rule,
                    identity=str(session.claimed) if session.claimed else "",
                    address=str(session.path.peer.address),
                    reason=str(error),
                )
            )
        if self._quiet(talk):
            return
        created = talk.child or (
            talk.answers is not None and talk.answers.exchange == Exchange.CREATE_CHILD_SA
        )
        session.failed(error, talk.stage, rule, child=created and self.state is not State.CONNECTING)

    def _quiet(self, talk: Talk) -> bool:
        """Whether nobody needs to know why: an end that was on its way anyhow."""
        return self.state in (State.DELETING, State.CLOSED) and talk.answers is None

    def _silent(self, request: Request, now: float) -> None:
        """The peer has not answered any repetition: it is gone, with all it had (section 2.4)."""
        name = exchange_name(request.message.exchange)
        error = Silent(
            f"the peer does not answer ({name} sent {request.tries} times)",
            "check that the peer runs, and that firewalls pass UDP 500 and 4500",
        )
        del self._requests[request.message.message_id]
        self._over = self._over or ("the peer does not answer", False)
        self._drive(request.talk, now, error=error)

    # Hooks of the session --------------------------------------------------------------------------------

    def _authenticated(self) -> None:
        self._move(Input.AUTHENTICATED)
        self.begin_life()
        self._owner.emit(self._established_event(0))
        self._owner.established(self)

    def begin_life(self) -> None:
        """The keys are proven: their time runs."""
        session = self.session
        life = session.rule.crypto.lifetime.main_seconds if session.rule and session.rule.crypto else None
        now = session.now
        self.state = State.ESTABLISHED
        self._heard = now
        if life is not None:
            share = 1 - JITTER * int.from_bytes(session.env.random(2), "big") / 0x10000
            self.rekey_at, self._hard_at = now + life * SOFT * share, now + life

    def _established_event(self, replaces: int) -> IkeEstablished:
        session = self.session
        return IkeEstablished(
            ike=session.number,
            keying="ikev2",
            peer=session.peer_name,
            authenticated_as=session.peer.description if session.peer else "",
            local=str(session.local_identity or ""),
            suite=str(session.suite),
            initiator=session.initiator,
            spi_i=session.channel.spi_i.hex(),
            spi_r=session.channel.spi_r.hex(),
            path=session.path,
            nat=session.nat,
            replaces=replaces,
        )

    def _adopt(self, session: Session) -> None:
        self._owner.adopt(session)

    def _inherit(self, session: Session) -> None:
        if self.inherited:
            return
        self.inherited = True
        self._move(Input.REKEY)
        heir = self._owner.association_of(session)
        session.children = self.session.children
        self._owner.emit(Inherit(self.number, session.number))
        self._owner.emit(heir._established_event(self.number))
        if self.state is State.DELETING:  # it was told to go while its successor was being made
            heir.delete("deleted", self.session.now)
        self.rekey_at = None
        limit = self.session.now + REPLACED_SECONDS
        self._hard_at = min(self._hard_at or limit, limit)

    def _discard(self, session: Session, reason: str) -> None:
        self._owner.association_of(session).delete(reason, self.session.now)

    def _end(self, reason: str, by_peer: bool) -> None:
        self._over = self._over or (reason, by_peer)

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        found = [one.due for one in self._requests.values()]
        found += [due for due, _ in self._pauses]
        if self.state is State.CONNECTING and not self.initiator:
            found.append(self._half_open_until)
        if self._hard_at is not None:
            found.append(self._hard_at)
        if self.state in (State.ESTABLISHED, State.REKEYING):
            found += self._life()
        return min(found, default=None)

    def _life(self) -> list[float]:
        """When something is due that belongs to the life of an IKE SA that is up."""
        settings, found = self.session.env.settings, []
        if not self.inherited:
            found += [due for due, _ in self.session.children.lingering]
            found += [due for due, _ in self._idle()]
        if self.rekey_at is not None:
            found.append(self.rekey_at)
        if settings.liveness and not self._requests:
            found.append(self._heard + settings.liveness)
        if self.session.nat_local and settings.nat_keepalive:
            found.append(self._sent + settings.nat_keepalive)
        return found

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.session.now = now
        if self.state is State.CONNECTING and not self.initiator and now >= self._half_open_until:
            self._over = ("the peer did not go on", False)
        for number, request in list(self._requests.items()):
            if request.due <= now and self._requests.get(number) is request:
                self._overdue(number, request, now)
        due = [talk for when, talk in self._pauses if when <= now]
        self._pauses = [one for one in self._pauses if one[0] > now]
        for talk in due:
            self._drive(talk, now)
        if self.state in (State.ESTABLISHED, State.REKEYING) and self._over is None:
            self._live(now)
        elif self.state is State.DELETING and self._hard_at is not None and self._hard_at <= now:
            self._over = self._over or ("its lifetime is over", False)
        self._settle(now)

    def _overdue(self, number: int, request: Request, now: float) -> None:
        """A request is not answered in time: repeat it, or believe the hint, or give up."""
        settings = self.session.env.settings
        if request.hint is not None:
            del self._requests[number]
            self._drive(request.talk, now, error=request.hint)
            return
        if request.tries >= settings.retransmit_tries:
            self._silent(request, now)
            return
        request.tries += 1
        request.wait = min(request.wait * settings.retransmit_factor, settings.retransmit_cap)
        request.due = now + request.wait
        self._transmit(request.message, request.datagrams, now, request.tries)

    def _live(self, now: float) -> None:
        """Liveness, keepalives, lifetimes, and pairs that go by themselves."""
        session, settings = self.session, self.session.env.settings
        children = session.children
        if not self.inherited:
            for due, pair in [one for one in children.lingering if one[0] <= now]:
                children.lingering.remove((due, pair))
                self._owner.emit(Remove(pair))
            for due, pair in self._idle():
                if due <= now:
                    self.close_child(pair, "idle", now)
        if self._hard_at is not None and self._hard_at <= now:
            self._hard_at = now + REPLACED_SECONDS
            self.delete("replaced" if self.inherited else "its lifetime is over", now)
            return
        if self.rekey_at is not None and self.rekey_at <= now:
            self.rekey_at = None
            self.rekey(now)
        if settings.liveness and not self._requests:
            self._heard = max(
                [self._heard, *(pair.inbound.usage.last or 0.0 for pair in self.children.values())]
            )
            if self._heard + settings.liveness <= now:
                self._start("liveness", informational.probe(session), now, rule=self.rule)
        if session.nat_local and settings.nat_keepalive and self._sent + settings.nat_keepalive <= now:
            self._sent = now
            self._owner.emit(Transmit(KEEPALIVE, session.path))

    def _idle(self) -> list[tuple[float, SaPair]]:
        """Pairs of rules with an idle limit, and when they meet it."""
        found = []
        for spi, pair in self.session.children.pairs.items():
            rule = self.session.env.policy.rule(pair.rule)
            limit = rule.crypto.lifetime.idle_seconds if rule and rule.crypto else None
            if limit is not None and spi not in self.session.children.deleting:
                last = max(pair.created, pair.inbound.usage.last or 0.0, pair.outbound.usage.last or 0.0)
                found.append((last + limit, pair))
        return found

    # The end of every step -------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Begin what had to wait, send what the window now allows, and end what is over."""
        self.session.now = now
        while self._over is None and self.state is not State.CLOSED:
            if self._deferred and self.state is State.ESTABLISHED and self._listener is None:
                deferred, self._deferred = self._deferred, []
                for talk in deferred:
                    self._drive(talk, now)
            elif self.session.children.due and self.usable:
                self._replace_due(now)
            else:
                break
        if self._over is None:
            self._flush(now)
        elif self.state is not State.CLOSED:
            self._close(*self._over)

    def _replace_due(self, now: float) -> None:
        """Replace the pairs that are due; one that has a newer twin is deleted instead."""
        session = self.session
        due, session.children.due = session.children.due, {}
        for pair in due.values():
            rule = session.env.policy.rule(pair.rule)
            twin = any(
                one is not pair
                and (one.rule, one.selector, one.inbound.state)
                == (pair.rule, pair.selector, PairState.MATURE)
                and one.created >= pair.created
                for one in session.children.pairs.values()
            )
            if twin:
                self._drive_new(
                    "delete child", informational.delete_children(session, [pair], "another one serves"), now
                )
            elif rule is not None and rule.enabled:
                self._drive_new("rekey child", child.rekey(session, pair, rule), now, rule.name)

    def _drive_new(self, name: str, steps: Steps[Any], now: float, rule: str = "") -> None:
        self._drive(Talk(Conversation(name, steps), rule=rule, child=True), now)

    def _close(self, reason: str, by_peer: bool) -> None:
        """Forget everything; what a successor has inherited stays."""
        session = self.session
        record = session.ike_rekey
        if record and record.theirs and not self.inherited:
            self._inherit(record.theirs[1])
        up = self.state is not State.CONNECTING
        self._move(Input.GONE)
        talks = [one.talk for one in self._requests.values()] + [talk for talk, _ in self._unsent]
        talks += [talk for _, talk in self._pauses] + self._deferred
        self._requests.clear()
        self._unsent.clear()
        self._pauses.clear()
        for talk in (*talks, *([self._listener] if self._listener else ())):
            talk.conversation.close()
        if not self.inherited:
            for pair in list(session.children.pairs.values()):
                session.drop(pair, reason)
            for _, pair in session.children.lingering:
                self._owner.emit(Remove(pair))
            session.children.lingering.clear()
        if up:
            self._owner.emit(
                IkeClosed(ike=self.number, peer=session.peer_name, reason=reason, by_peer=by_peer)
            )
        self._owner.forget(self)

    def _move(self, what: Input) -> bool:
        """Change the state as the table allows; whether it did."""
        following = TRANSITIONS[self.state].get(what)
        if following is not None:
            self.state = following
        return following is not None


# What a negotiation meets every day and needs no explanation
_USUAL = frozenset((N.INVALID_KE_PAYLOAD, N.TEMPORARY_FAILURE, N.CHILD_SA_NOT_FOUND))


def notify_of(error: Exception) -> Notify:
    """The one place where an exception becomes what the peer is told (section 2.21)."""
    match error:
        case Refused() if error.notify:
            return Notify(type=error.notify, spi=b"", data=error.data)
        case Declined():
            return status(N.AUTHENTICATION_FAILED)
        case UnknownCritical():
            return status(N.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((error.kind,)))
        case Unavailable():
            return status(N.NO_ADDITIONAL_SAS)
    return status(N.INVALID_SYNTAX)


def _refuse(error: Exception) -> Steps[Message]:
    """An exchange that declines at once."""
    yield from ()
    raise error


def open_first(header: Header, data: bytes) -> Message:
    """An unprotected IKE_SA_INIT message; raises `Malformed`."""
    payloads, _ = chain(header.next_payload, data[HEADER_SIZE:], PAYLOADS, ENCRYPTED)
    response = bool(header.flags & Flags.RESPONSE)
    try:
        kept = shapes.check(header.exchange, response, payloads)
    except UnknownCritical as error:
        if response:
            raise Malformed(str(error)) from error
        raise
    return Message(header.exchange, kept, response, header.message_id, data)
