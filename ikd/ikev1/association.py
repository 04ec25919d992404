"""One ISAKMP SA as a thing that lives: what comes for it, what it is told to do, what goes wrong, and its
end.

RFC 2408, 2409, 3706. What comes for it is read in `ikd.ikev1.reception`. The exchanges are generators in
`ikd.ikev1`, driven by `ikd.ikev1.conversations`; states and clocks are in `ikd.life`. Quick-mode SAs go with
their ISAKMP SA, unless another one with the same peer takes them over: that is how phase 1 is rekeyed here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from ikd.association import Association, Owner
from ikd.events import Broken
from ikd.ikev1 import aggressive, deletion, failure, informational, main_mode, quick_mode
from ikd.ikev1.conversations import Talk
from ikd.ikev1.message import Message, status
from ikd.ikev1.reception import PHASE_1, Reception
from ikd.ikev1.session import Session
from ikd.isakmp.failure import not_authenticated
from ikd.isakmp.numbers import Exchange, N, ProtocolId
from ikd.keying import RETIRE
from ikd.life import AGAIN_SECONDS, REPLACED_SECONDS, Input, State, idle_limits
from ikd.outputs import Inherit, Transmit
from ikd.riders.natt import KEEPALIVE
from ikd.riders.vendor import Known
from ikd.wire.isakmp import Payload
from policy.rules import Rule
from sadb.sa import Acquire, SaPair
from sadb.sa import State as PairState

_Wish = tuple[Rule, Acquire | None, SaPair | None]  # what a quick mode is to make, and what that replaces
PARTING_SECONDS = 3.0  # how long one that is replaced stays for repetitions


class Ikev1Association(Reception):
    """One ISAKMP SA."""

    __slots__ = (
        "_dead",
        "_deferred",
        "_heir",
        "_leaving",
        "_over",
        "_part_at",
        "_wishes",
        "predecessor",
        "successor",
    )

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        Reception.__init__(self, session, owner, now)
        self.predecessor: Ikev1Association | None = None  # the ISAKMP SA this one is to replace
        self.successor: Ikev1Association | None = None  # the one that has its quick-mode SAs now
        self._part_at = 0.0  # when it goes at the latest after that
        self._deferred: list[_Wish] = []  # quick modes that begin once it is up
        self._wishes: dict[int, _Wish] = {}  # those of ours that have begun, by message ID
        self._dead: list[SaPair] = []  # replaced: to be deleted at the peer behind the message under way
        self._heir: Ikev1Association | None = None  # to take over when this one is deleted already
        # its end has begun: why, whether the peer wanted it, and until when it answers all the same
        self._leaving: tuple[str, bool, float] | None = None
        self._over: tuple[str, bool] | None = None
        hooks = session.hooks
        hooks.emit = owner.emit
        hooks.first_contact = lambda: owner.first_contact(self)
        hooks.unfinished = self._unfinished
        hooks.kin = lambda: [one.main for one in owner.kin(self)]
        hooks.authenticated, hooks.close = self._authenticated, self._end
        hooks.notify, hooks.delete, hooks.part = self._notify, self._replaced, self.talks.part

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether new quick-mode SAs may be made on it."""
        return self.state is State.ESTABLISHED and not self.inherited

    @property
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""
        return not self._deferred and not any(one.initiator for one in self.talks.open)

    def awaits(self, rule: str) -> bool:
        """Whether a quick-mode SA for a rule is being made already."""
        return rule in self.session.children.creating or any(one.name == rule for one, _, _ in self._deferred)

    # Commands --------------------------------------------------------------------------------------------

    def initiate(
        self, rule: Rule, acquire: Acquire | None, now: float, *, childless: bool, twin: bool = False
    ) -> None:
        """Begin phase 1, and a quick mode behind it unless `childless`; `twin`: AuthIP is begun, too."""
        self.session.has_twin = twin
        if not childless:
            self._deferred.append((rule, acquire, None))
        mode = aggressive if rule.aggressive else main_mode
        exchange = Exchange.AGGRESSIVE if rule.aggressive else Exchange.MAIN
        talk = self.talks.begin(exchange, PHASE_1, mode.initiate(self.session, rule), now, initiator=True)
        talk.rule = rule.name
        self.talks.drive(talk, now)
        self._settle(now)

    def create_child(self, rule: Rule, acquire: Acquire | None, now: float) -> None:
        """Make a further quick-mode SA, as soon as the ISAKMP SA is up."""
        self._deferred.append((rule, acquire, None))
        self._settle(now)

    def rekey_child(self, pair: SaPair, now: float) -> None:
        """Replace a quick-mode SA; one that has a newer twin is deleted instead."""
        session = self.session
        rule = session.env.policy.rule(pair.rule)
        under_way = (self._wishes.get(one.message_id) for one in self.talks.open)
        if any(wish and wish[2] is pair for wish in (*under_way, *self._deferred)):
            return
        if pair.inbound.spi not in session.children.pairs or rule is None or not rule.enabled:
            return
        twin = any(
            (one.rule, one.selector, one.inbound.state) == (pair.rule, pair.selector, PairState.MATURE)
            and one is not pair
            and one.created >= pair.created
            for one in session.children.pairs.values()
        )
        if twin:
            session.now = now
            self._replaced(pair, "another one serves")  # the peer may be sending on this one
            self._settle(now)
        elif self._leaving is not None:
            self._replace_on_heir(rule, pair, now)
        else:
            self._deferred.append((rule, None, pair))
            self._settle(now)

    def close_child(self, pair: SaPair, reason: str, now: float) -> None:
        """Delete a quick-mode SA here and at the peer."""
        self.session.now = now
        children = self.session.children
        if pair.inbound.spi in children.pairs and pair.inbound.spi not in children.deleting:
            if deletion.reliable(self.session):
                children.deleting.add(pair.inbound.spi)
                pair.standby = True  # the peer drops it when it reads this
            self._say_deleted(informational.delete_pair(pair), lambda: self.session.drop(pair, reason))
        self._settle(now)

    def relieve(self, pair: SaPair, now: float) -> None:
        """A quick-mode SA from before this ISAKMP SA has been replaced."""
        self.session.now = now
        self._replaced(pair, "replaced")
        self._settle(now)

    def probe(self, now: float) -> None:
        """Nothing: the one that the peer begins replaces this one, see `_adopt`."""

    def _replace_on_heir(self, rule: Rule, pair: SaPair, now: float) -> None:
        """The peer has deleted this ISAKMP SA and kept its quick-mode SAs, and one of them is to be replaced:
        by way of another one, which takes over all of them."""
        heir = self._heir
        if heir is None or heir.state is State.CLOSED:
            made = self.owner.renew(self, now)
            assert isinstance(made, Ikev1Association)
            heir = self._heir = made
            heir.predecessor = self
            heir.initiate(self.session.rule or rule, None, now, childless=True)
        heir._deferred.append((rule, None, pair))

    def rekey(self, now: float) -> None:
        """Replace the ISAKMP SA by another phase 1, which takes over the quick-mode SAs."""
        if self.usable and self.session.rule is not None:
            self.life.rekey_at = now + AGAIN_SECONDS  # should it come to nothing
            heir = self.owner.renew(self, now)
            assert isinstance(heir, Ikev1Association)
            heir.predecessor = self
            heir.initiate(self.session.rule, None, now, childless=True)

    def delete(self, reason: str, now: float) -> None:
        """Delete it here and at the peer, with all its quick-mode SAs; most peers do not acknowledge it."""
        self.session.now = now
        begun = self.life.move(Input.DELETE)
        if self._inheritor is None:
            self.talks.close(Exchange.QUICK)  # what it would make belongs to nobody
        if self.life.state is State.DELETING:
            for pair in list(self.children.values()):
                self.close_child(pair, reason, now)
        if begun:
            self._say_deleted(informational.delete_main(self.session), lambda: None)
        self._leave(reason, False, now)
        self._settle(now)

    def abandon(self, reason: str, now: float) -> None:
        """End it here without telling the peer, which is gone or knows."""
        self._end(reason, False)
        self._settle(now)

    def unknown_spi(self, spi: int, now: float) -> None:
        """The peer sends packets for an SA nobody has here: tell it."""
        self.session.now = now
        self._notify(N.INVALID_SPI, b"", ProtocolId.ESP, spi.to_bytes(4, "big"))

    # Its end, as far as the peer has a part in it ---------------------------------------------------------

    def _say_deleted(self, payload: Payload, over: Callable[[], None]) -> None:
        """Delete something at the peer; it is `over` at once, or when a peer that acknowledges deletions has
        done so."""
        if not deletion.reliable(self.session) or not self.session.channel.armed:
            self._inform(payload)
            over()
            return
        self._note_last_block()
        number, now = self._message_id(), self.session.now
        steps = deletion.request(self.session, number, payload, over)
        talk = self.talks.begin(Exchange.INFORMATIONAL, number, steps, now, initiator=True)
        self.talks.drive(talk, now)

    def _leave(self, reason: str, by_peer: bool, until: float) -> None:
        """It ends as soon as nothing stands against it."""
        self._leaving = self._leaving or (reason, by_peer, until)

    def _may_go(self, now: float) -> bool:
        """Whether deletions of ours are answered, quick-mode SAs the peer keeps are gone, and the peer needs
        no other answer."""
        if self._leaving is None:
            return False
        asking = any(one.exchange == Exchange.INFORMATIONAL for one in self.talks.open)
        return not asking and not self.children and now >= self._leaving[2]

    # What goes wrong -------------------------------------------------------------------------------------

    def _broke_off(self, talk: Talk, error: Exception, now: float) -> None:
        """An exchange ended with an exception."""
        session = self.session
        if not isinstance(error, failure.KNOWN):
            text = "".join(traceback.format_exception(error))
            self.owner.emit(Broken(where=talk.stage, error=type(error).__name__, traceback=text))
            self._end("an internal error", False)
            return
        sent = self._tell_peer(talk, error)
        rule = talk.rule or session.rule_name
        if declined := not_authenticated(session, error, rule):
            self.owner.emit(declined)
        if not talk.message_id:
            self._end(str(error) or "refused", False)
        self._failed(error, talk.stage, rule, sent, initiator=talk.initiator, child=bool(talk.message_id))

    def _failed(
        self, error: Exception, stage: str, rule: str, sent: int = 0, *, initiator: bool, child: bool
    ) -> None:
        """Tell of it, unless the end was on its way anyhow."""
        if self.state not in (State.DELETING, State.CLOSED):
            event = failure.told(self.session, error, stage, rule, sent, initiator=initiator, child=child)
            self.owner.emit(event)

    def _tell_peer(self, talk: Talk, error: Exception) -> int:
        """Tell the peer, unless it told us; the type of the notify, 0 without one."""
        kind = failure.notify_of(error)
        if not kind:
            return 0
        session = self.session
        if session.channel.armed:
            about = talk.offer[0] if talk.message_id and talk.offer else None
            named = (about.protocol, about.spi) if about else (ProtocolId.ISAKMP, b"")
            datagram = self._inform(status(kind, b"", *named))
            if not talk.initiator:
                talk.sent = [datagram]  # the peer repeats its message when it has not heard this
        elif not talk.initiator and self.owner.may_complain(session.now):
            message = Message(Exchange.INFORMATIONAL, (status(kind),), self._message_id())
            datagram, _ = session.channel.seal(message, b"")
            self.owner.emit(Transmit(datagram, session.path))
            self.talks.tell_sent(message)
        else:
            return 0
        return kind

    def _gone(self) -> None:
        self._pass_on()
        self._end("the peer does not answer", False)

    # Hooks of the session --------------------------------------------------------------------------------

    def _authenticated(self) -> None:
        self.life.move(Input.AUTHENTICATED)
        self.begin_life()
        former = self.predecessor
        self.owner.emit(self.established(former.number if former else 0))
        self.owner.established(self)
        for rival in self.owner.rivals(self):
            if isinstance(rival, Ikev1Association) and rival.yields_to(self):
                self._deferred += rival._deferred
                self.owner.withdraw(rival, self.session.now)
        if not self.initiator:
            self._adopt()

    def yields_to(self, other: Ikev1Association) -> bool:
        """Whether another one, which the peer has begun, will do instead of this one. From our message 5 on
        the peer may have it, too."""
        mine, theirs = self.session, other.session
        unneeded = mine.rule is not None and theirs.serves(mine.rule) and self.predecessor is None
        return unneeded and not mine.channel.armed and mine.path.local.address == theirs.path.local.address

    def _adopt(self) -> None:
        """A peer that begins another phase 1 without a word means it to replace the one before, as strongSwan
        does: its quick-mode SAs go with the newer one, by which it will speak of them."""
        older = self.owner.sibling(self)
        if older is None or older.inherited or older.path.peer != self.path.peer:
            return
        if older.rule == self.rule and not self.session.initial_contact:
            older.hand_over(self)
            older.life.hard_at = self.session.now + RETIRE  # strongSwan leaves its end to us

    def _take_over(self, now: float) -> None:
        """Replace the predecessor: its quick-mode SAs are ours now, and the peer hears that it is gone."""
        former, self.predecessor = self.predecessor, None
        if former is None or former.state is State.CLOSED:
            return
        self.owner.association_of(former.session)  # its clocks change
        former.session.now = now
        if not former.inherited:
            former.hand_over(self)
        if former.life.up:
            former.part(now)
        else:
            former.delete("replaced", now)

    def hand_over(self, heir: Association) -> None:
        """Its quick-mode SAs and those that are to come belong to another one from now on."""
        assert isinstance(heir, Ikev1Association)
        Association.hand_over(self, heir)
        self.successor, self._part_at = heir, self.session.now + REPLACED_SECONDS
        heir._deferred += self._deferred
        self._deferred.clear()

    def part(self, now: float) -> None:
        """It is replaced, and goes when the exchanges that are under way have ended and the peer has had time
        to repeat its last messages."""
        self.life.hard_at = now + PARTING_SECONDS

    def _pass_on(self) -> None:
        """It ends, but another one with the same peer may take its quick-mode SAs over."""
        heir = None if self.inherited else self.owner.sibling(self)
        if heir is not None:
            self.hand_over(heir)

    @property
    def _inheritor(self) -> Ikev1Association | None:
        """The last of its successors, while that one lives."""
        heir = self.successor
        while heir is not None and heir.successor is not None:
            heir = heir.successor
        return None if heir is None or heir.state is State.CLOSED else heir

    def _bequeath(self, now: float) -> None:
        """What was begun on it lately belongs to its successor, too; what is not finished begins there."""
        heir = self._inheritor
        wishes = [self._wishes[one.message_id] for one in self.talks.open if one.message_id in self._wishes]
        self.talks.close()
        if heir is not None:
            self.owner.emit(Inherit(self.number, heir.number))
            heir._deferred += wishes
            heir._dead += self._dead
            self.owner.association_of(heir.session)
            heir._settle(now)

    def _unfinished(self, pair: SaPair) -> None:
        self._dead.append(pair)
        self.session.drop(pair, "the peer did not finish quick mode")

    def _replaced(self, pair: SaPair, reason: str) -> None:
        self._dead.append(pair)
        self.session.drop(pair, reason, linger=True)

    def _end(self, reason: str, by_peer: bool) -> None:
        self._over = self._over or (reason, by_peer)

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        found = [*self.talks.deadlines(), *self.child_deadlines()]
        asking = self.liveness.due
        if asking is not None:
            found.append(asking)
        busy = asking is not None or not self.session.both(Known.DPD)
        found += self.life.deadlines(self.session, self.talks.sent_at, busy=busy)
        if self._leaving is not None:
            found += self._leaving_deadlines(self._leaving[2])
        return min(found, default=None)

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.session.now = now
        life = self.life
        if self.state is State.CONNECTING and not self.initiator and now >= life.half_open_until:
            self._half_open_over(now)
        self.talks.tick(now)
        if life.up and self._over is None:
            self._live(now)
        elif self._leaving is not None:
            self.tick_children(now)
            self._keep_mapping(now)
        self._settle(now)

    def _leaving_deadlines(self, until: float) -> list[float]:
        """The clocks of an ISAKMP SA that is deleted: its own, and those of quick-mode SAs the peer keeps."""
        session = self.session
        found = [until] if until > session.now else []
        if not self.inherited:
            children = session.children
            clocks = (*children.lingering, *children.retiring, *idle_limits(session))
            found += [due for due, _ in clocks]
        keepalive = session.env.settings.nat_keepalive if session.nat_local else 0
        return [*found, self.talks.sent_at + keepalive] if keepalive else found

    def _half_open_over(self, now: float) -> None:
        """The peer did not go on, or what it sent could not be read."""
        talk = self.talks.talks.get(PHASE_1)
        if talk and talk.hint and not talk.conversation.done:
            self.talks.drive(talk, now, error=talk.hint)
        self._end("the peer did not go on", False)

    def _live(self, now: float) -> None:
        session, settings = self.session, self.session.env.settings
        self.tick_children(now)
        if self.life.hard_at is not None and self.life.hard_at <= now:
            self._expire(now)
            return
        if self.rekey_at is not None and self.rekey_at <= now:
            self._renew(now)
        if settings.liveness and session.both(Known.DPD):
            gone = self.liveness.tick(self.heard_of_traffic(), now)
            if gone:
                self._failed(gone, "INFORMATIONAL", self.rule, initiator=True, child=False)
                self._gone()
        self._keep_mapping(now)

    def _keep_mapping(self, now: float) -> None:
        """Keep a NAT's mapping open, RFC 3948 section 4."""
        session = self.session
        keepalive = session.env.settings.nat_keepalive if session.nat_local else 0
        if keepalive and self.talks.sent_at + keepalive <= now:
            self.talks.sent_at = now
            self.owner.emit(Transmit(KEEPALIVE, session.path))

    def _expire(self, now: float) -> None:
        """Its time is over: it goes, but when it is replaced not before its exchanges have ended and the peer
        had time to repeat its last messages."""
        self._pass_on()
        last = max(self.life.heard, self.talks.sent_at)
        busy = self.talks.open or last + PARTING_SECONDS > now
        if self.inherited and busy and now < self._part_at:
            self.life.hard_at = now + PARTING_SECONDS
        else:
            self.delete("replaced" if self.inherited else "its lifetime is over", now)

    def _renew(self, now: float) -> None:
        """Replace it, unless there is another one with the same peer, as when both sides have begun at once:
        then one of the two goes, which both sides take for the same one."""
        other = self.owner.sibling(self)
        if other is not None and other.spis > self.spis:
            self.hand_over(other)
            self.part(now)
        else:
            self.rekey(now)

    # The end of every step -------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Begin what had to wait, delete what is replaced, and end what is over."""
        self.session.now = now
        talk = self.talks.talks.get(PHASE_1)
        if self.life.up and (talk is None or talk.conversation.done):
            self._note_last_block()
            if self.predecessor is not None:
                self._take_over(now)
            while self._deferred and self._over is None:
                self._begin_quick(*self._deferred.pop(0), now)
        if len(self._wishes) > len(self.talks.talks):
            self._wishes = {one: self._wishes[one] for one in self._wishes if one in self.talks.talks}
        while self._dead:
            self._say_deleted(informational.delete_pair(self._dead.pop()), lambda: None)
        if self._leaving is not None and self._may_go(now):
            self._end(*self._leaving[:2])
        if self._over is not None and self.state is not State.CLOSED:
            self._bequeath(now)
            self.bury(*self._over)
            for former in self.owner.kin(self):
                if isinstance(former, Ikev1Association) and former.successor is self and not self.inherited:
                    former.delete("replaced", now)

    def _begin_quick(self, rule: Rule, acquire: Acquire | None, old: SaPair | None, now: float) -> None:
        if old is not None and old.inbound.spi not in self.session.children.pairs:
            return
        number = self._message_id()
        self._wishes[number] = rule, acquire, old
        steps = quick_mode.initiate(self.session, number, rule, acquire, old)
        talk = self.talks.begin(Exchange.QUICK, number, steps, now, initiator=True)
        talk.rule, talk.child = rule.name, True
        self.talks.drive(talk, now)
