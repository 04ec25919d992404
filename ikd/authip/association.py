"""One main-mode SA of AuthIP as a thing that lives: what it is told to do, what goes wrong, and its end.

MS-AIPS sections 3.1.4 to 3.1.7. Its roles are fixed for its life: the responder that needs a quick mode asks
the initiator for it. A main-mode SA that is replaced stays until the last of its quick-mode SAs has been
replaced on the new one.
"""

from __future__ import annotations

import math
import traceback

from ikd.association import Owner
from ikd.authip import acquire, extended_mode, failure, main_mode, quick_mode
from ikd.authip.acquire import Acquires, Wish
from ikd.authip.conversations import Talk
from ikd.authip.message import Message, notify, status
from ikd.authip.numbers import (
    EXTENDED_MESSAGE_ID,
    MAIN_MESSAGE_ID,
    RELIABLE,
    Exchange,
    N,
    Status,
    Subject,
)
from ikd.authip.reception import Reception
from ikd.authip.session import Session
from ikd.events import Broken
from ikd.isakmp.failure import not_authenticated
from ikd.isakmp.message import Refused, Silent
from ikd.isakmp.numbers import N as Isakmp
from ikd.keying import RETIRE
from ikd.life import AGAIN_SECONDS, SOFT, Input, State
from ikd.outputs import Release, Transmit
from ikd.riders.natt import KEEPALIVE
from policy.rules import Rule
from sadb.sa import Acquire, SaPair

ANSWER_SECONDS = 8.0  # how long a deleted main-mode SA still acknowledges repetitions


class AuthipAssociation(Reception):
    """One main-mode SA."""

    __slots__ = (
        "_acquires",
        "_deferred",
        "_former",
        "_leaving_at",
        "_over",
        "_probing",
        "_refused",
        "_retired",
        "_said_deleted",
        "predecessor",
    )

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        Reception.__init__(self, session, owner, now)
        self.predecessor: AuthipAssociation | None = None  # the main-mode SA this one is to replace
        self._former: AuthipAssociation | None = None  # the same, also when it has been replaced
        self._deferred: list[Wish] = []  # quick modes that begin once it is up
        self._acquires = Acquires(session)
        self._retired = False  # another one serves; it goes with its last quick-mode SA
        self._leaving_at: float | None = None  # the peer has deleted it: when it goes at the earliest
        self._over: tuple[str, bool] | None = None
        self._probing = False
        self._refused = False  # the peer's credentials were not accepted, and that was told
        self._said_deleted = ""
        hooks = session.hooks
        hooks.emit = owner.emit
        hooks.first_contact = lambda: owner.first_contact(self)
        hooks.kin = lambda: [one.main for one in self._kin()]
        hooks.authenticated = self._authenticated
        hooks.refused, hooks.named = self._not_accepted, lambda name: None
        hooks.delete, hooks.unfinished = self._replaced_pair, self._unfinished

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether new quick-mode SAs may be made on it."""
        return self.state is State.ESTABLISHED and not self._retired and self._leaving_at is None

    @property
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""
        asking = any(one.initiator for one in self.talks.open)
        return not (self._deferred or asking or len(self.notices))

    def awaits(self, rule: str) -> bool:
        """Whether a quick-mode SA for a rule is being made already."""
        pending = self.session.pending
        return (
            rule in self.session.children.creating
            or rule in self._acquires
            or any(one.rule.name == rule for one in self._deferred)
            or (pending is not None and pending.rule.name == rule and self.state is State.CONNECTING)
        )

    # Commands --------------------------------------------------------------------------------------------

    def initiate(
        self, rule: Rule, acquire: Acquire | None, now: float, *, childless: bool, twin: bool = False
    ) -> None:
        """Begin main mode; a quick mode always rides on it."""
        self._initiate(Wish(rule, acquire, None), now)

    def _initiate(self, wish: Wish, now: float) -> None:
        steps = main_mode.initiate(self.session, wish.rule, wish.asked, wish.old)
        talk = self.talks.begin(Exchange.MAIN, MAIN_MESSAGE_ID, steps, initiator=True)
        talk.rule = wish.rule.name
        self.talks.drive(talk, now)
        self._settle(now)

    def create_child(self, rule: Rule, acquire: Acquire | None, now: float) -> None:
        """Make a further quick-mode SA, as soon as the main-mode SA is up."""
        self._want(Wish(rule, acquire, None), now)

    def _want(self, wish: Wish, now: float) -> None:
        """Begin a quick mode, or have the initiator begin it, or begin a main-mode SA for it when this one
        takes no more."""
        self.session.now = now
        if self.state is State.CONNECTING or (self.usable and self.initiator):
            self._deferred.append(wish)
        elif self.usable:
            self._ask_for(wish)
        else:
            self._begin_another(wish, now)
        self._settle(now)

    def _begin_another(self, wish: Wish, now: float) -> AuthipAssociation:
        """Another main-mode SA, for a quick mode that this one does not serve."""
        other = self.owner.renew(self, now)
        assert isinstance(other, AuthipAssociation)
        other._initiate(wish, now)
        return other

    def rekey_child(self, pair: SaPair, now: float) -> None:
        """Replace a quick-mode SA; one that has a newer twin is deleted instead."""
        session = self.session
        session.now = now
        rule = session.env.policy.rule(pair.rule)
        under_way = any(one.old is pair for one in self._deferred) or self.awaits(pair.rule)
        if under_way or pair.inbound.spi not in session.children.pairs or rule is None or not rule.enabled:
            return
        if session.has_twin(pair):
            self._drop_replaced(pair, "another one serves")
            self._settle(now)
        else:
            self._want(Wish(rule, pair.selector, pair), now)

    def close_child(self, pair: SaPair, reason: str, now: float) -> None:
        """Delete a quick-mode SA here and at the peer."""
        self.session.now = now
        if pair.inbound.spi in self.session.children.pairs:
            self._say_deleted(pair, reason)
            self.session.drop(pair, reason)
        self._settle(now)

    def rekey(self, now: float) -> None:
        """Replace the main-mode SA by another one, on which its quick-mode SAs are replaced one by one."""
        rule = self.session.rule
        if not self.usable or rule is None:
            return
        self.session.now = now
        self.life.rekey_at = now + AGAIN_SECONDS  # should it come to nothing
        proven = self.session.proven
        if not self.initiator and proven is not None and proven.one_way:  # the initiator has to do it
            self.life.rekey_at = None
            for pair in list(self.children.values())[-1:]:
                self.rekey_child(pair, now)
            return
        mine = [one for one in self.children.values() if one.rule == rule.name and not one.standby]
        old = mine[-1] if mine else None
        heir = self.owner.renew(self, now)
        assert isinstance(heir, AuthipAssociation)
        heir.predecessor = heir._former = self
        heir._initiate(Wish(rule, old.selector if old else None, old), now)

    def delete(self, reason: str, now: float) -> None:
        """Delete it here and at the peer, with all its quick-mode SAs."""
        self.session.now = now
        if self.state is State.CONNECTING:
            self._abort(reason)
        else:
            begun = self.life.move(Input.DELETE)
            for pair in list(self.children.values()) if self.state is State.DELETING else ():
                self._say_deleted(pair, reason)  # the peer may have kept those of an SA it has deleted
                self.session.drop(pair, reason)
            if begun:
                self.life.hard_at = None  # it ends with the acknowledgement, or for want of one
                self.talks.close()
                code = failure.deletion(reason)
                self.notices.say(
                    self._message_id(),
                    status(code, Subject.MAIN, RELIABLE),
                    over=lambda: self._end(reason, False),
                )
        self._settle(now)

    def _abort(self, reason: str) -> None:
        """It is not up and shall not be."""
        if self.session.armed:
            self._give_up(Status.SA_DELETED)
        self._end(reason, False)

    def abandon(self, reason: str, now: float) -> None:
        """End it here without telling the peer, which is gone or knows."""
        self.session.now = now
        self._end(reason, False)
        self._settle(now)

    def unknown_spi(self, spi: int, now: float) -> None:
        """AuthIP names quick-mode SAs by message ID, and nobody knows that of a foreign SPI."""

    def relieve(self, pair: SaPair, now: float) -> None:
        """A quick-mode SA from before this main-mode SA has been replaced; nobody knows its message ID any
        more, by which the peer could be told."""
        self.session.now = now
        self._drop_replaced(pair, "replaced")
        self._settle(now)

    def probe(self, now: float) -> None:
        """Ask whether the peer still has this main-mode SA."""
        self.session.now = now
        if self.life.up and not self._busy:
            self._probe()
        self._settle(now)

    # NOTIFY_ACQUIRE --------------------------------------------------------------------------------------

    def _ask_for(self, wish: Wish) -> None:
        """Have the initiator begin a quick mode."""
        try:
            payloads = self._acquires.ask(wish)
        except Refused as refused:
            stage, rule = "AuthIP NOTIFY", wish.rule.name
            self.owner.emit(failure.told(self.session, refused, stage, rule, 0, initiator=False, child=True))
            return
        if payloads:
            self.notices.say(self._message_id(), *payloads)

    def _asked_for(self, message: Message) -> None:
        """The peer needs a quick mode that we have to begin, within the limits of those it begins itself."""
        now, wish = self.session.now, acquire.read(self.session, message)
        if wish is None:
            self.dropped("refused", "NOTIFY_ACQUIRE for traffic that no rule covers", self.path)
        elif full := self.session.full(replacing=wish.old is not None):
            self.dropped("refused", full, self.path)
        elif not self.awaits(wish.rule.name) and self.may_negotiate(now):
            self._want(wish, now)

    def _acquires_due(self, now: float) -> None:
        """The initiator has not begun what we asked it for: where both sides have proven themselves, we do,
        with a main-mode SA of our own."""
        self._acquires.settle()
        proven = self.session.proven
        for wish in self._acquires.overdue(now):
            if proven is not None and not proven.one_way:
                self._begin_another(wish, now)

    # Deletion --------------------------------------------------------------------------------------------

    def _say_deleted(self, pair: SaPair, reason: str) -> None:
        """N(NOTIFY_STATUS) about a quick-mode SA, which its message ID names."""
        number = self.session.quick_ids.pop(pair.inbound.spi, None)
        if number is not None and self.session.armed:
            self.notices.say(number, status(failure.deletion(reason), Subject.QUICK, RELIABLE), key=number)

    def _replaced_pair(self, old: SaPair, reason: str) -> None:
        """A pair has made way for another one, maybe on an older main-mode SA: drop it here and at the
        peer."""
        for one in (self, *self._kin()):
            if old.inbound.spi in one.session.children.pairs:
                one.session.now = self.session.now
                one._drop_replaced(old, reason)
                if one is not self:
                    self.owner.association_of(one.session)
                    one._settle(self.session.now)

    def _kin(self) -> list[AuthipAssociation]:
        """Other main-mode SAs with the same peer; one that has proven nothing is known by its successor
        only."""
        found = [one for one in self.owner.kin(self) if isinstance(one, AuthipAssociation)]
        former = self._former
        if former is not None and former not in found and former.state is not State.CLOSED:
            found.append(former)
        return found

    def _drop_replaced(self, old: SaPair, reason: str) -> None:
        self._say_deleted(old, reason)
        self.session.drop(old, reason, linger=True)

    def _unfinished(self, pair: SaPair) -> None:
        self._say_deleted(pair, "the peer did not finish quick mode")
        self.session.drop(pair, "the peer did not finish quick mode")

    def _deleted(self, refused: Refused) -> None:
        """The peer deletes the main-mode SA; one that is not up has failed. Quick-mode SAs stay until the
        peer deletes them, too (section 3.1.5)."""
        session = self.session
        if self.state is State.CONNECTING:
            talk = next((one for one in self.talks.open if one.waiting), None)
            if talk is not None:
                self.talks.drive(talk, session.now, error=refused)
            self._end(str(refused), True)
            return
        if self.life.move(Input.DELETE) or self._leaving_at is None:
            self._leaving_at = session.now + ANSWER_SECONDS
            self._said_deleted = "deleted by the peer"
        self._deferred.clear()
        self.talks.close()

    # What goes wrong -------------------------------------------------------------------------------------

    def _broke_off(self, talk: Talk, error: Exception, now: float) -> None:
        """An exchange ended with an exception."""
        session = self.session
        if not isinstance(error, failure.KNOWN):
            text = "".join(traceback.format_exception(error))
            self.owner.emit(Broken(where=talk.stage, error=type(error).__name__, traceback=text))
            self._end("an internal error", False)
            return
        whole = talk.message_id in (MAIN_MESSAGE_ID, EXTENDED_MESSAGE_ID)
        sent = self._tell_peer(talk, error, whole=whole)
        rule = talk.rule or session.rule_name
        if declined := not_authenticated(session, error, rule, Status.AUTH_FAIL):
            self.owner.emit(declined)
        if whole:
            self._end(str(error) or "refused", False)
        known = self._refused and isinstance(error, Refused) and error.by_peer  # it gives up: we know why
        if not known and self.state not in (State.DELETING, State.CLOSED):
            self.owner.emit(
                failure.told(
                    session, error, talk.stage, rule, sent, initiator=talk.initiator, child=talk.child
                )
            )

    def _tell_peer(self, talk: Talk, error: Exception, *, whole: bool) -> int:
        """Tell the peer, unless it told us; the Windows error code, 0 without one. An error of main or
        extended mode ends the main-mode SA on both sides."""
        code = failure.code_of(error)
        if not code:
            return 0
        session = self.session
        if not session.armed and not talk.initiator and not self.owner.may_complain(session.now):
            return 0
        if whole:
            self._give_up(code)
        elif isinstance(error, Refused) and error.notify == Isakmp.NO_PROPOSAL_CHOSEN and not talk.initiator:
            self.notices.say(talk.message_id, notify(N.NO_PROPOSAL_CHOSEN, Subject.QUICK, b"", RELIABLE))
        else:
            self.notices.say(talk.message_id, status(code, Subject.QUICK, RELIABLE))
        return code

    def _gone(self) -> None:
        self._end("the peer does not answer", False)

    # Hooks of the session --------------------------------------------------------------------------------

    def _authenticated(self) -> None:
        session = self.session
        if self.state is not State.CONNECTING:  # extended mode has followed although it might not have
            self._limit_life()
            return
        self.life.move(Input.AUTHENTICATED)
        self.begin_life()
        self._limit_life()
        if not self.initiator and self.life.rekey_at is not None and self.life.hard_at is not None:
            # the initiator is first to replace it
            self.life.rekey_at = (self.life.rekey_at + self.life.hard_at) / 2
        former = self.predecessor
        self.owner.emit(self.established(former.number if former else 0))
        self.owner.established(self)
        for rival in self.owner.rivals(self):
            if isinstance(rival, AuthipAssociation) and rival._yields_to(self):
                self._deferred += rival._deferred
                self.owner.withdraw(rival, session.now)

    def _limit_life(self) -> None:
        """It lasts no longer than what has been proven (a ticket, a certificate of health), and is replaced
        before that ends."""
        session, life = self.session, self.life
        found = [session.env.credentials.remaining(one) for one in (session.peer, session.user) if one]
        remaining = min((one for one in found if one is not None), default=None)
        if remaining is not None:
            life.hard_at = min(life.hard_at or math.inf, session.now + remaining)
            life.rekey_at = min(life.rekey_at or math.inf, session.now + remaining * SOFT)

    def _yields_to(self, other: AuthipAssociation) -> bool:
        """Whether another one, which the peer has begun, will do instead of this one."""
        mine, theirs = self.session, other.session
        unneeded = mine.rule is not None and theirs.serves(mine.rule) and self.predecessor is None
        return (
            unneeded
            and not self.answered
            and other is not self
            and mine.path.local.address == theirs.path.local.address
        )

    def _take_over(self, now: float) -> None:
        """Replace the predecessor: its quick-mode SAs are replaced here, and it goes with the last one."""
        former, self.predecessor = self.predecessor, None
        if former is None or former.state is State.CLOSED:
            return
        self.owner.association_of(former.session)  # its clocks change
        former._retired = True
        former.life.replaced(now)
        policy = self.session.env.policy
        for pair in list(former.children.values()):
            rule = policy.rule(pair.rule)
            if rule is not None and rule.enabled:
                self._deferred.append(Wish(rule, pair.selector, pair))
        former._settle(now)

    def _end(self, reason: str, by_peer: bool) -> None:
        self._over = self._over or (reason, by_peer)

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        session = self.session
        found = [*self.talks.deadlines(), *self.notices.deadlines(), *self.child_deadlines()]
        found += self._acquires.deadlines()
        found += self.life.deadlines(session, self.talks.sent_at, busy=self._busy)
        if (early := self._early) is not None and self.life.up:
            found.append(early.created + RETIRE)
        if self._leaving_at is not None:
            found += [self._leaving_at] if not self.children else []
            found += [due for due, _ in (*session.children.lingering, *session.children.retiring)]
        return min(found, default=None)

    @property
    def _busy(self) -> bool:
        """Whether an answer is awaited that tells as well as a probe whether the peer lives."""
        return self._probing or any(one.initiator for one in self.talks.open) or len(self.notices) > 0

    def tick(self, now: float) -> None:
        """Do what is due."""
        session = self.session
        session.now = now
        if self.state is State.CONNECTING and not self.initiator and now >= self.life.half_open_until:
            self._half_open_over()
        self.talks.tick(now)
        self.notices.tick(now)
        self._acquires_due(now)
        if self._over is None:
            self._live(now)
        self._settle(now)

    def _not_accepted(self, declined: Exception) -> None:
        """The peer's credentials are not accepted: told at once, for it may be silent from now on."""
        self._refused = True
        stage = next((one.stage for one in self.talks.open if not one.initiator), "")
        self.owner.emit(
            failure.told(
                self.session, declined, stage, self.session.rule_name, 0, initiator=False, child=False
            )
        )

    def _half_open_over(self) -> None:
        """The peer did not go on (section 3.1.6.3)."""
        if self.session.armed:
            self._give_up(Status.TIMED_OUT)
        self._end("the peer did not go on", False)

    def _give_up(self, code: int) -> None:
        """N(NOTIFY_STATUS) for a main-mode SA that does not come up, and for the quick mode that waits in
        it, which the initiator may believe to be there."""
        pending = self.session.pending
        if pending is not None:
            self.notices.mention(pending.message_id, status(code, Subject.QUICK))
        self.notices.mention(self._message_id(), status(code, Subject.MAIN))

    def _live(self, now: float) -> None:
        if not self.life.up and self._leaving_at is None:
            return
        session, settings = self.session, self.session.env.settings
        self.tick_children(now)
        if self.life.hard_at is not None and self.life.hard_at <= now:
            self.life.hard_at = None
            self.delete("replaced" if self._retired else "its lifetime is over", now)
            return
        self._left_alone(now)
        early = self._early
        if early is not None and early.created + RETIRE <= now:
            early.standby = False
        if self.rekey_at is not None and self.rekey_at <= now and self.life.up:
            if self.children:
                self.rekey(now)
            else:  # nobody needs it
                self.life.rekey_at = None
        silent = settings.liveness and self.heard_of_traffic() + settings.liveness <= now
        if silent and self.life.up and not self._busy:
            self._probe()
        keepalive = settings.nat_keepalive if session.nat_local else 0
        if keepalive and self.talks.sent_at + keepalive <= now:
            self.talks.sent_at = now
            self.owner.emit(Transmit(KEEPALIVE, session.path))

    def _left_alone(self, now: float) -> None:
        """A peer that never synchronises has made a fast quick mode (section 3.5.7.1); one that does not go
        on with extended mode ends the main-mode SA."""
        for talk in self.talks.left_alone:
            talk.waiting = False
            if talk.exchange == Exchange.EXTENDED:
                self.talks.drive(talk, now, error=Silent("the peer did not go on with its authentication"))
                self._give_up(Status.TIMED_OUT)
            else:
                self.talks.drive(talk, now, quick_mode.FAST)

    @property
    def _early(self) -> SaPair | None:
        """The quick-mode SA of a responder that waits on standby whether extended mode comes, which may be
        left out."""
        session = self.session
        if session.pending is None or self.initiator or EXTENDED_MESSAGE_ID in self.talks.talks:
            return None
        pair = session.children.pairs.get(session.pending.spi)
        return pair if pair is not None and pair.standby else None

    def _probe(self) -> None:
        """A reliable notify that says nothing: whoever lives acknowledges it."""
        self._probing = True

        def over() -> None:
            self._probing = False

        def lost() -> None:
            error = Silent("the peer does not acknowledge a notify")
            self.owner.emit(
                failure.told(self.session, error, "AuthIP NOTIFY", self.rule, 0, initiator=True, child=False)
            )
            self._gone()

        nothing = notify(N.EXCHANGE_INFO, Subject.MAIN, bytes(4), RELIABLE)
        self.notices.say(self._message_id(), nothing, over=over, lost=lost)

    def _message_id(self) -> int:
        """A message ID of ours: neither main mode's nor extended mode's, and in no use."""
        session = self.session
        used = (*self.talks.talks, *session.quick_ids.values(), MAIN_MESSAGE_ID, EXTENDED_MESSAGE_ID)
        while (number := int.from_bytes(session.env.random(4), "big")) in used:
            pass
        return number

    # The end of every step -------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Begin what had to wait, and end what is over."""
        session = self.session
        session.now = now
        self._extend(now)
        main = self.talks.talks.get(MAIN_MESSAGE_ID)
        extended = self.talks.talks.get(EXTENDED_MESSAGE_ID)
        ready = all(one is None or one.conversation.done for one in (main, extended))
        if self.life.up and self._over is None and ready:
            if self.predecessor is not None:
                self._take_over(now)
            while self._deferred and self._over is None and self.initiator:
                self._begin_quick(self._deferred.pop(0), now)
            while self._deferred and not self.initiator:
                self._want(self._deferred.pop(0), now)
        self._acquires.settle()
        if self._retired and self.life.up and not self.children and ready and not self.talks.open:
            self.delete("replaced", now)
        if self._leaving_at is not None and not self.children:
            self.owner.disown(self)  # it only answers repetitions, and need not be looked through
            if now >= self._leaving_at:
                self._end(self._said_deleted, True)
        if session.channel.used_up and self.life.up:
            self.delete("its keys are used up", now)
        elif session.channel.used_up and self._leaving_at is not None:
            self._end("its keys are used up", False)
        if self._over is not None and self.state is not State.CLOSED:
            self._finish(*self._over)

    def _extend(self, now: float) -> None:
        """The second authentication behind the first quick mode, as the initiator."""
        main, session = self.talks.talks.get(MAIN_MESSAGE_ID), self.session
        if not self.initiator or session.pending is None or main is None or not main.conversation.done:
            return
        if EXTENDED_MESSAGE_ID in self.talks.talks or self._over is not None:
            return
        agreed = session.pending
        steps = extended_mode.initiate(session, agreed.rule, agreed)
        talk = self.talks.begin(Exchange.EXTENDED, EXTENDED_MESSAGE_ID, steps, initiator=True)
        talk.rule = agreed.rule.name
        self.talks.drive(talk, now)

    def _begin_quick(self, wish: Wish, now: float) -> None:
        if wish.old is not None and wish.old not in self.session.pairs_of_peer():
            return
        number = self._message_id()
        self._again(number)
        steps = quick_mode.initiate(self.session, number, wish.rule, wish.asked, wish.old)
        talk = self.talks.begin(Exchange.QUICK, number, steps, initiator=True)
        talk.rule, talk.child = wish.rule.name, True
        self.talks.drive(talk, now)

    def _finish(self, reason: str, by_peer: bool) -> None:
        session = self.session
        self.talks.close()
        self.notices.close()
        if session.pending is not None and session.pending.spi not in session.children.pairs:
            self.owner.emit(Release(session.pending.spi))
        self.bury(reason, by_peer)
