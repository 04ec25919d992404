"""One IKE SA as a thing that lives: what comes for it, what it is told to do, what goes wrong, and its end.

RFC 7296 sections 2.4, 2.8, 2.21 and 2.25. The exchanges are generators in `ikd.ikev2`, driven by
`ikd.ikev2.conversations`; states and clocks are in `ikd.life`. An `Ikev2Association` joins them and turns
what exchanges raise into notifies and events.
"""

from __future__ import annotations

import traceback
from typing import Any

from ikd.association import Association, Owner
from ikd.auth import Declined
from ikd.events import Broken, PeerMoved
from ikd.exchange import Conversation, Steps
from ikd.ikev2 import child, informational, initial, mobike, rekey, shapes
from ikd.ikev2.channel import Standing, Unprotected
from ikd.ikev2.conversations import Conversations, Talk
from ikd.ikev2.failure import is_usual, not_authenticated, notify_of, told
from ikd.ikev2.first import open_first
from ikd.ikev2.message import Message, Refused, Silent, UnknownCritical, status
from ikd.ikev2.moves import Moves
from ikd.ikev2.numbers import Exchange, N, exchange_name
from ikd.ikev2.session import Session
from ikd.life import AGAIN_SECONDS, REPLACED_SECONDS, Input, State
from ikd.outputs import Move, Renew, Transmit
from ikd.riders.natt import KEEPALIVE
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Flags, Header
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.backend import Unavailable
from sadb.crypto import Unverified
from sadb.sa import Acquire, SaPair
from sadb.sa import State as PairState

LINGER_SECONDS = 8.0  # a peer repeats itself after 1, 3 and 6


class Ikev2Association(Association):
    """One IKE SA."""

    __slots__ = ("_anew", "_deferred", "_former", "_over", "moves", "session", "talks", "undecided")

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        Association.__init__(self, session, owner, now)
        self.session = session
        self.talks = Conversations(
            session, lambda talk, question: owner.ask(self, talk, question), self._broke_off, self._gone
        )
        # made while our own exchange replaces the same IKE SA: it may have to go again
        self.undecided = False
        self._deferred: list[Talk] = []  # exchanges that begin once the IKE SA is up
        self._former: Ikev2Association | None = None  # the one that this one has replaced
        self._over: tuple[str, bool] | None = None
        self._anew = False  # ... and it is negotiated anew
        self.moves = Moves(self)
        hooks = session.hooks
        hooks.emit, hooks.new_spi = owner.emit, owner.new_spi
        hooks.first_contact = lambda: owner.first_contact(self)
        hooks.authenticated, hooks.close = self._authenticated, self._end
        hooks.original, hooks.linger = self._original, self._linger
        hooks.adopt, hooks.inherit, hooks.discard = self._adopt, self._inherit, self._discard

    @property
    def spis(self) -> tuple[bytes, bytes]:
        """SPIs of initiator and responder; the latter zero while unknown."""
        return self.session.channel.spi_i, self.session.channel.spi_r

    @property
    def waiting(self) -> str:
        """What it waits for, for people; empty when nothing."""
        return self.talks.waiting

    @property
    def answered(self) -> bool:
        """Whether the other end has answered: there are keys."""
        return self.session.channel.armed

    @property
    def usable(self) -> bool:
        """Whether new Child SAs may be made on it."""
        settled = not (self.inherited or self.undecided)
        return self.state is State.ESTABLISHED and settled and self.session.ike_rekey is None

    @property
    def mobile(self) -> bool:
        """Whether it can follow either host to another address."""
        return self.session.mobility is not None

    @property
    def also_at(self) -> tuple[Address, ...]:
        """Where the peer can be reached, too, by its own word."""
        return self.session.mobility.addresses if self.session.mobility else ()

    @property
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""
        return self.talks.idle and not self._deferred

    # Beginning exchanges ---------------------------------------------------------------------------------

    def initiate(
        self, rule: Rule, acquire: Acquire | None, now: float, *, childless: bool, twin: bool = False
    ) -> None:
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
        """Delete a Child SA here and at the peer; while the IKE SA is replaced, as soon as that is done."""
        children = self.session.children
        if pair.inbound.spi in children.pairs and self.session.ike_rekey is not None:
            children.closing[pair.inbound.spi] = reason
        elif pair.inbound.spi in children.pairs:
            self._start("delete child", informational.delete_children(self.session, [pair], reason), now)

    def relieve(self, pair: SaPair, now: float) -> None:
        """A Child SA from before this IKE SA has been replaced; a peer that knows it from another IKE SA only
        ignores the deletion."""
        steps = informational.delete_children(self.session, [pair], "replaced", linger=True)
        self._start("delete child", steps, now)

    def probe(self, now: float) -> None:
        """Ask whether the peer still has this IKE SA."""
        if self.usable and not self.talks.requests:
            self._start("liveness", mobike.probe(self.session), now, rule=self.rule)

    def rekey(self, now: float) -> None:
        """Replace the IKE SA; not before requests about its Child SAs and addresses are answered, which would
        go down with it."""
        children, mobility = self.session.children, self.session.mobility
        asking = children.asking or (mobility is not None and mobility.asking)
        if self.usable and (asking or children.deleting):
            self.life.rekey_at = now + child.BUSY_SECONDS
            self._settle(now)
        elif self.usable and self.life.move(Input.REKEY):
            self._start("rekey", rekey.rekey(self.session), now, rule=self.rule)

    def reauthenticate(self, now: float) -> None:
        """Prove ourselves again with another IKE SA, which is thrown away (MS-IKEE section 3.10)."""
        rule = self.session.rule
        if self.usable and rule is not None:
            made = self.owner.renew(self, now)
            assert isinstance(made, Ikev2Association)
            made.session.original = self.session
            made.initiate(rule, None, now, childless=False)

    def delete(self, reason: str, now: float) -> None:
        """Delete the IKE SA here and at the peer; one that is not up is simply forgotten."""
        if self.state is State.CONNECTING:
            self._over = (reason, False)
            self._settle(now)
        elif self.life.move(Input.DELETE):
            self._start("delete", informational.delete_ike(self.session, reason), now)

    def unknown_spi(self, spi: int, now: float) -> None:
        """The peer sends packets for a Child SA nobody has here: tell it (section 1.5)."""
        if self.state is State.ESTABLISHED:
            notify = status(N.INVALID_SPI, spi.to_bytes(4, "big"))
            self._start("notice", informational.tell(self.session, notify), now)

    def abandon(self, reason: str, now: float) -> None:
        """End it here without telling the peer, which is gone or knows."""
        self._over = self._over or (reason, False)
        self._settle(now)

    def begin_anew(self, reason: str) -> None:
        """It ends at the end of this step, and its rules are negotiated for again."""
        self._anew = True
        self._end(reason, False)

    def begin(self, name: str, steps: Steps[Any], now: float) -> None:
        """Begin an exchange of ours about addresses; one at a time."""
        self.talks.begin(name, steps, now, rule=self.rule)

    def network_changed(self, now: float) -> None:
        """This host's addresses or routes are others now."""
        self.session.now = now
        if self.session.mobility is None or self.state is State.CONNECTING:
            Association.network_changed(self, now)
        else:
            self.moves.network_changed(now)
            self._settle(now)

    def peer_moved(self, old: Address) -> None:
        """The peer was at this address, and is at that of `path`."""
        self.owner.moved(self, old)

    def hurry(self, now: float) -> None:
        """Repeat at once what is not answered: there is a way to the peer again, or another one."""
        self.talks.hurry(now)

    def _start(
        self, name: str, steps: Steps[Any], now: float, *, rule: str = "", child: bool = False
    ) -> None:
        if self.state is State.CONNECTING and name != "initial":
            self._deferred.append(Talk(Conversation(name, steps), rule=rule, child=child))
        else:
            self.talks.begin(name, steps, now, rule=rule, child=child)
        self._settle(now)

    # Receiving -------------------------------------------------------------------------------------------

    def first_request(self, message: Message, now: float) -> None:
        """IKE_SA_INIT of an initiator."""
        self.talks.received(message, self.path)
        steps = initial.respond(self.session, message)
        self.talks.drive(Talk(Conversation("initial", steps), message, stage="IKE_SA_INIT"), now)
        self._settle(now)

    def first_repeated(self) -> None:
        """The same IKE_SA_INIT once more."""
        if self.session.init_response:
            self.owner.emit(Transmit(self.session.init_response, self.path))

    def receive(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A datagram for this IKE SA, whoever it came from."""
        self.session.now = now
        try:
            if header.flags & Flags.RESPONSE:
                self._take_response(header, data, path, now)
            else:
                self._take_request(header, data, path, now)
        except Unverified:
            self.dropped("unverified", "integrity check failed", path)
        except Unprotected as error:
            self.dropped("unprotected", str(error), path)
        except Malformed as error:
            self.dropped("malformed", str(error), path)
        self._settle(now)

    def answer(self, talk: Talk, value: object, now: float) -> None:
        """The answer to a question of one of its exchanges."""
        if self.state is State.CLOSED or talk.conversation.done:
            return
        if isinstance(value, Exception):
            self.talks.drive(talk, now, error=value)
        else:
            self.talks.drive(talk, now, value)
        self._settle(now)

    def _take_response(self, header: Header, data: bytes, path: Path, now: float) -> None:
        request = self.talks.requests.get(header.message_id)
        if request is None or request.message.exchange != header.exchange:
            self.dropped("unexpected", f"no {exchange_name(header.exchange)} is waiting for it", path)
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
            self.life.heard = now
            try:
                payloads = shapes.check(message.exchange, True, message.payloads)
                message = Message(message.exchange, payloads, True, message.message_id, message.octets)
            except (Malformed, UnknownCritical) as error:  # nobody can be told of a critical payload now
                broken = broken or Malformed(str(error))
        self.talks.received(message, path)
        self.session.windows_status = message.windows_status() or 0
        del self.talks.requests[header.message_id]
        if path in request.searching:
            self.moves.came_by(path)
        if broken:
            self.talks.drive(request.talk, now, error=broken)
        else:
            self.talks.drive(request.talk, now, message, answered=request)

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
            self.talks.repeat(header, path)
            return
        if self.state is State.CONNECTING and self.talks.listener is None:  # it has not proven itself yet
            self.dropped("unexpected", f"{exchange_name(header.exchange)} before IKE_AUTH is done", path)
            return
        if standing is Standing.UNDER_WAY:
            return
        if standing is Standing.STALE:
            self.dropped("replayed", f"request {header.message_id} is outside the window", path)
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
        self.life.heard = now
        channel.accept(opened)
        self._follow(path)
        self.talks.received(opened, path)
        try:
            payloads = shapes.check(opened.exchange, False, opened.payloads)
        except (Malformed, UnknownCritical) as error:
            payloads, broken = (), broken or error
        message = Message(opened.exchange, payloads, False, opened.message_id, opened.octets, path)
        self._serve(message, broken, now)

    def _serve(self, message: Message, broken: Exception | None, now: float) -> None:
        """Begin the exchange that answers an authenticated request; `broken` is what is wrong with it."""
        name = exchange_name(message.exchange)
        if self.talks.listener:
            talk, self.talks.listener = self.talks.listener, None
            talk.answers, talk.stage = message, name
            if message.exchange != Exchange.IKE_AUTH:
                broken = broken or Malformed(f"{name} before IKE_AUTH")
        else:
            talk = Talk(Conversation(name, self._responder(message)), message, stage=name)
        if broken:
            self.talks.drive(talk, now, error=broken)
        else:
            self.talks.drive(talk, now, message if talk.conversation.waiting is not None else None)

    def _responder(self, message: Message) -> Steps[Message]:
        """The exchange that answers a request on an IKE SA that is up."""
        session = self.session
        if message.exchange == Exchange.INFORMATIONAL:
            return informational.respond(session, message)
        if message.exchange == Exchange.CREATE_CHILD_SA:
            if self.state is State.DELETING or self.inherited or self.undecided:
                return _refuse(Refused(N.TEMPORARY_FAILURE, "this IKE SA is going away"))
            if not self.may_negotiate(session.now):
                return _refuse(Refused(N.TEMPORARY_FAILURE, "too many requests"))
            if rekey.asks_for_ike(message):
                return rekey.respond(session, message)
            return child.respond(session, message)
        return _refuse(Malformed(f"{exchange_name(message.exchange)} on an IKE SA that is up"))

    def _follow(self, path: Path) -> None:
        """A peer behind a NAT is where its last authentic request came from (section 2.23), unless it can say
        so itself (RFC 4555 section 3.8)."""
        session = self.session
        if path == session.path or session.mobility is not None:
            return
        if not (self.state is State.CONNECTING or session.nat_peer):
            return
        old, session.path = session.path, path
        if old.peer.address != path.peer.address:
            self.peer_moved(old.peer.address)
        if self.state is not State.CONNECTING:
            self.owner.emit(PeerMoved(ike=self.number, old=old, new=path))
        for pair in self.children.values():
            self.owner.emit(Move(pair, path, pair.outbound.encapsulation is not None))

    # What goes wrong -------------------------------------------------------------------------------------

    def _broke_off(self, talk: Talk, error: Exception, now: float) -> None:
        """An exchange ended with an exception."""
        connecting = self.state is State.CONNECTING
        if not isinstance(error, (Refused, Malformed, UnknownCritical, Declined, Unavailable, Silent)):
            text = "".join(traceback.format_exception(error))
            self.owner.emit(Broken(where=talk.conversation.name, error=type(error).__name__, traceback=text))
            self._over = ("an internal error", False)
            return
        if talk.answers is not None:
            self._reply_error(talk.answers, error)
        self._tell_failure(talk, error)
        if connecting and (talk.answers is not None or talk.conversation.name == "initial"):
            self._over = (str(error) or "refused", False)
        elif isinstance(error, Malformed):  # section 2.21.3: who cannot write correctly ends the IKE SA
            if talk.answers is None and self.life.move(Input.DELETE):
                self._start("delete", informational.delete_ike(self.session, str(error)), now)
            else:
                self._over = (str(error), False)
        elif talk.conversation.name == "rekey" and not self.inherited and self.life.move(Input.KEPT):
            self.life.rekey_at = now + AGAIN_SECONDS

    def _reply_error(self, request: Message, error: Exception) -> None:
        """The notify that tells the peer, in an answer that has nothing else but a cookie to return."""
        notify = notify_of(error)
        if request.exchange == Exchange.IKE_SA_INIT and isinstance(error, Malformed):
            return  # whoever sends garbage to begin with learns nothing
        mobile = self.session.mobility is not None and isinstance(error, Refused)
        payloads = (notify, *(mobike.returned(request) if mobile else ()))
        self.talks.reply(request, Message(request.exchange, payloads, True), refused=True)

    def _tell_failure(self, talk: Talk, error: Exception) -> None:
        """Events for log and `ikctl why`; what is part of every negotiation is none."""
        if is_usual(error):
            return
        session = self.session
        rule = talk.rule or session.rule_name
        if refused := not_authenticated(session, error, rule):
            self.owner.emit(refused)
        if self._quiet(talk):
            return
        created = talk.child or (
            talk.answers is not None and talk.answers.exchange == Exchange.CREATE_CHILD_SA
        )
        up = self.state is not State.CONNECTING
        self.owner.emit(told(session, error, talk.stage, rule, child=created and up))

    def _quiet(self, talk: Talk) -> bool:
        """Whether nobody needs to know why: an end that was on its way anyhow."""
        return self.state in (State.DELETING, State.CLOSED) and talk.answers is None

    def _gone(self) -> None:
        """The peer has not answered any repetition."""
        self._end("the peer does not answer", False)

    # Hooks of the session --------------------------------------------------------------------------------

    def _authenticated(self) -> None:
        self.life.move(Input.AUTHENTICATED)
        self.begin_life()
        self.owner.emit(self.established())
        self.owner.established(self)

    def _adopt(self, session: Session) -> None:
        made = Ikev2Association(session, self.owner, session.now)
        self.owner.adopt(made)
        made.begin_life()
        made.undecided = True

    def _inherit(self, session: Session) -> None:
        heir = self._association_of(session)
        if self.inherited or heir is None:
            return
        heir.undecided = False
        if self.session.mobility is not None:
            heir.moves.come_along(self.session)
        self.hand_over(heir)
        former, self._former, heir._former = self._former, None, self
        if former is not None and former.life.up:  # a peer that goes on without deleting it
            former.abandon("replaced", self.session.now)
        self.owner.emit(heir.established(self.number))
        if self.state is State.DELETING:  # it was told to go while its successor was being made
            heir.delete("deleted", self.session.now)
        record = self.session.ike_rekey
        other = self._association_of(record.theirs[1]) if record and record.theirs else None
        if other is not None and other is not heir:
            # the peer deletes what it made in vain, unless it never heard our answer
            other.life.replaced(self.session.now)

    def _discard(self, session: Session, reason: str) -> None:
        if made := self._association_of(session):
            made.delete(reason, self.session.now)

    def _linger(self) -> None:
        """It has served, and ends as soon as the peer has no need to repeat its request any more."""
        self.life.half_open_until = min(self.life.half_open_until, self.session.now + LINGER_SECONDS)

    def _original(self, spi_i: bytes, spi_r: bytes) -> Session | None:
        """The session of another IKE SA that is up, by its SPIs, of which one is ours."""
        for own in (spi_i, spi_r):
            found = self.owner.by_spi(own)
            if isinstance(found, Ikev2Association) and found.spis == (spi_i, spi_r) and found.life.up:
                return found.session
        return None

    def _association_of(self, session: Session) -> Ikev2Association | None:
        """The association of a successor, None when it has closed."""
        found = self.owner.association_of(session)
        return found if isinstance(found, Ikev2Association) else None

    def _end(self, reason: str, by_peer: bool) -> None:
        self._over = self._over or (reason, by_peer)

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        talks = self.talks
        found = [*talks.deadlines(), *self.child_deadlines()]
        found += self.life.deadlines(self.session, talks.sent_at, busy=bool(talks.requests))
        children = self.session.children
        if self.usable and (children.due or children.closing or self.moves.wanted):
            found.append(self.session.now)  # left over by the IKE SA before this one
        return min(found, default=None)

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.session.now = now
        life = self.life
        if self.state is State.CONNECTING and not self.initiator and now >= life.half_open_until:
            self._end("the peer did not go on", False)
        self.talks.tick(now)
        if life.up and self._over is None:
            self._live(now)
        elif self.state is State.DELETING and life.hard_at is not None and life.hard_at <= now:
            self._end("its lifetime is over", False)
        self._settle(now)

    def _live(self, now: float) -> None:
        """Liveness, keepalives, lifetimes, and pairs that go by themselves."""
        session, settings = self.session, self.session.env.settings
        self.tick_children(now)
        if self.life.hard_at is not None and self.life.hard_at <= now:
            self.life.hard_at = now + REPLACED_SECONDS
            self.delete("replaced" if self.inherited else "its lifetime is over", now)
            return
        if self.rekey_at is not None and self.rekey_at <= now:
            self.life.rekey_at = None
            self.rekey(now)
        asking = bool(self.talks.requests)
        if settings.liveness and not asking and self.heard_of_traffic() + settings.liveness <= now:
            self._start("liveness", mobike.probe(session), now, rule=self.rule)
        keepalive = settings.nat_keepalive if session.nat_local else 0
        if keepalive and self.talks.sent_at + keepalive <= now:
            self.talks.sent_at = now
            self.owner.emit(Transmit(KEEPALIVE, session.path))

    # The end of every step -------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Begin what had to wait, send what the window now allows, and end what is over."""
        self.session.now = now
        while self._over is None and self.state is not State.CLOSED:
            if self._deferred and self.state is State.ESTABLISHED and self.talks.listener is None:
                deferred, self._deferred = self._deferred, []
                for talk in deferred:
                    self.talks.drive(talk, now)
            elif self.session.children.closing and self.usable:
                closing, self.session.children.closing = self.session.children.closing, {}
                for spi, reason in closing.items():
                    self.close_child(self.session.children.pairs[spi], reason, now)
            elif self.session.children.due and self.usable:
                self._replace_due(now)
            elif self.usable and self.moves.wanted:
                self.moves.begin(now)
            else:
                break
        if self._over is None:
            self.talks.flush(now)
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
        self.talks.drive(Talk(Conversation(name, steps), rule=rule, child=True), now)

    def _close(self, reason: str, by_peer: bool) -> None:
        """Forget everything; what a successor has inherited stays."""
        session = self.session
        record = session.ike_rekey
        if record and record.theirs:
            self._inherit(record.theirs[1])
            self.owner.association_of(record.theirs[1])  # it goes on with what ends here
        self.talks.close()
        for talk in self._deferred:
            talk.conversation.close()
        rules = dict.fromkeys(pair.rule for pair in self.children.values()) or {self.rule: None}
        self.bury(reason, by_peer)
        if self._anew:
            for rule in rules:
                self.owner.emit(Renew(rule, session.path.peer.address))


def _refuse(error: Exception) -> Steps[Message]:
    """An exchange that declines at once."""
    yield from ()
    raise error
