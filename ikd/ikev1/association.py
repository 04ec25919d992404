"""One ISAKMP SA as a thing that lives: what comes for it, what it is told to do, what goes wrong, and its
end.

RFC 2408, 2409, 3706. The exchanges are generators in `ikd.ikev1`, driven by `ikd.ikev1.conversations`; states
and clocks are in `ikd.life`. Quick-mode SAs go with their ISAKMP SA, unless another one with the same peer
takes them over: that is how phase 1 is rekeyed here.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from ikd.association import Association, Owner
from ikd.auth import Declined
from ikd.events import AuthenticationFailed, Broken, NegotiationFailed
from ikd.ikev1 import aggressive, deletion, informational, main_mode, quick_mode, shapes
from ikd.ikev1.channel import Unprotected
from ikd.ikev1.conversations import MOST_TALKS, Conversations, Talk, digest
from ikd.ikev1.message import Message, Refused, Silent, Unauthentic, status
from ikd.ikev1.numbers import Exchange, Method, N, ProtocolId, exchange_name, notify_name
from ikd.ikev1.payloads import SecurityAssociation
from ikd.ikev1.session import Session
from ikd.life import AGAIN_SECONDS, REPLACED_SECONDS, Input, State, idle_limits
from ikd.outputs import Inherit, Move, Transmit
from ikd.riders import vendor
from ikd.riders.fragment1 import FRAGMENT, Fragments
from ikd.riders.natt import KEEPALIVE
from ikd.riders.vendor import Known
from ikd.riders.windows_status import Told
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Flags, Header, Payload
from policy.rules import Rule
from sadb.address import Path
from sadb.backend import Unavailable
from sadb.sa import Acquire, SaPair
from sadb.sa import State as PairState

PHASE_1 = 0  # message ID
_RESPONDERS = {Exchange.MAIN: main_mode.respond, Exchange.AGGRESSIVE: aggressive.respond}
_WRONG_KEY = Declined(
    "the peer's message cannot be read: most likely the pre-shared key is not the one the peer has",
    "compare the secret for this peer in both hosts' secrets",
)
_Wish = tuple[Rule, Acquire | None, SaPair | None]  # what a quick mode is to make, and what that replaces
MOST_SEEN = 4096
PARTING_SECONDS = 3.0  # how long one that is replaced stays for repetitions


@dataclass(frozen=True, slots=True)
class _Probe:
    """R-U-THERE on its way: its sequence number, since when, how often it was sent, and when again."""

    sequence: int
    since: float
    tries: int
    due: float


class Ikev1Association(Association):
    """One ISAKMP SA."""

    __slots__ = (
        "_dead",
        "_deferred",
        "_fragments",
        "_heir",
        "_leaving",
        "_over",
        "_part_at",
        "_probe",
        "_seen",
        "_wishes",
        "predecessor",
        "session",
        "successor",
        "talks",
    )

    def __init__(self, session: Session, owner: Owner, now: float) -> None:
        Association.__init__(self, session, owner, now)
        self.session = session
        self.talks = Conversations(
            session, lambda talk, question: owner.ask(self, talk, question), self._broke_off, self._gone
        )
        self.predecessor: Ikev1Association | None = None  # the ISAKMP SA this one is to replace
        self.successor: Ikev1Association | None = None  # the one that has its quick-mode SAs now
        self._part_at = 0.0  # when it goes at the latest after that
        self._fragments = Fragments()
        self._deferred: list[_Wish] = []  # quick modes that begin once it is up
        self._wishes: dict[int, _Wish] = {}  # those of ours that have begun, by message ID
        self._seen: OrderedDict[int, None] = OrderedDict()  # message IDs of the peer, which it uses once
        self._dead: list[SaPair] = []  # replaced: to be deleted at the peer behind the message under way
        self._probe: _Probe | None = None
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
    def spis(self) -> tuple[bytes, bytes]:
        """Cookies of initiator and responder; the latter zero while unknown."""
        return self.session.channel.cookie_i, self.session.channel.cookie_r

    @property
    def waiting(self) -> str:
        """What it waits for, for people; empty when nothing."""
        return self.talks.waiting

    @property
    def answered(self) -> bool:
        """Whether the other end has agreed to a proposal of ours."""
        return self.session.suite is not None

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

    def initiate(self, rule: Rule, acquire: Acquire | None, now: float, *, childless: bool) -> None:
        """Begin phase 1, and a quick mode behind it unless `childless`."""
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
                self._fragment(header, data, path, now)
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

    def answer(self, talk: Talk, value: object, now: float) -> None:
        """The answer to a question of one of its exchanges; an exception fails it."""
        if self.state is State.CLOSED or talk.conversation.done:
            return
        if isinstance(value, Exception):
            self.talks.drive(talk, now, error=value)
        else:
            self.talks.drive(talk, now, value)
        self._settle(now)

    def _fragment(self, header: Header, data: bytes, path: Path, now: float) -> None:
        if (self.answered and not self.session.may_fragment) or not self.session.env.settings.fragmentation:
            raise Malformed("a fragment that was not agreed on")  # its first message may say so inside
        whole = self._fragments.add(header, data, now)
        self.talks.fragmenting = True
        if whole is not None:
            inner = Header.decode(whole)
            if inner.next_payload == FRAGMENT or (inner.spi_i, inner.spi_r) != (header.spi_i, header.spi_r):
                raise Malformed("fragments of another message")
            self.receive(inner, whole, path, now)

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
        if self._again(header.message_id):
            self.dropped("replayed", f"message ID {header.message_id:08x} was used before", path)
            return
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

    def _follow(self, path: Path) -> None:
        """A peer behind a NAT is where its last authentic message came from."""
        session = self.session
        if path == session.path or not (self.state is State.CONNECTING or session.nat_peer):
            return
        old, session.path = session.path, path
        if old.peer.address != path.peer.address:
            self.owner.moved(self, old.peer.address)
        for pair in self.children.values():
            self.owner.emit(Move(pair, path))

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
        if again and not deletion.asks(message):
            return
        if connecting:
            if declined := message.refusal():
                self._told(declined)
            return
        self._follow(path)
        self.life.heard = session.now
        self._heed(message)
        if deletion.asks(message):
            answer = deletion.answer(session, message)
            datagram, _ = session.channel.seal(answer, iv)
            self.owner.emit(Transmit(datagram, session.path))
            self.talks.tell_sent(answer)

    def _again(self, message_id: int) -> bool:
        """Whether the peer, or somebody who has recorded its messages, has used a message ID before."""
        if message_id in self._seen:
            return True
        self._seen[message_id] = None
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return False

    def _heed(self, message: Message) -> None:
        """Act on an authentic informational message."""
        session = self.session
        if notify := message.notify(N.R_U_THERE):
            self._inform(
                informational.are_you_there(session, int.from_bytes(notify.data[:4], "big"), answer=True)
            )
        acknowledged = message.notify(N.R_U_THERE_ACK)
        sequence = int.from_bytes(acknowledged.data[:4], "big") if acknowledged else None
        if self._probe and sequence == self._probe.sequence:
            self._probe = None
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

    # What goes wrong -------------------------------------------------------------------------------------

    def _broke_off(self, talk: Talk, error: Exception, now: float) -> None:
        """An exchange ended with an exception."""
        session = self.session
        if not isinstance(error, (Refused, Malformed, Declined, Unavailable, Silent, Unauthentic)):
            text = "".join(traceback.format_exception(error))
            self.owner.emit(Broken(where=talk.stage, error=type(error).__name__, traceback=text))
            self._end("an internal error", False)
            return
        told = self._tell_peer(talk, error)
        rule = talk.rule or session.rule_name
        if isinstance(error, Declined):
            self.owner.emit(
                AuthenticationFailed(
                    ike=self.number,
                    rule=rule,
                    identity=str(session.claimed) if session.claimed else "",
                    address=str(session.path.peer.address),
                    reason=str(error),
                )
            )
        if not talk.message_id:
            self._end(str(error) or "refused", False)
        self._failed(error, talk.stage, rule, told, initiator=talk.initiator, child=bool(talk.message_id))

    def _failed(
        self, error: Exception, stage: str, rule: str, told: int = 0, *, initiator: bool, child: bool
    ) -> None:
        """The event that `ikctl why` tells of."""
        if self.state in (State.DELETING, State.CLOSED):
            return
        refused = error if isinstance(error, Refused) else None
        number = refused.notify if refused else told
        self.owner.emit(
            NegotiationFailed(
                ike=self.number,
                rule=rule,
                peer=str(self.session.path.peer.address),
                initiator=initiator,
                stage=stage,
                notify=notify_name(number) if number else "",
                reason=str(error) or type(error).__name__,
                remedy=getattr(error, "remedy", ""),
                child=child,
                comparison=refused.comparison if refused else None,
            )
        )

    def _tell_peer(self, talk: Talk, error: Exception) -> int:
        """Tell the peer, unless it told us; the type of the notify, 0 without one."""
        if isinstance(error, Silent) or (isinstance(error, Refused) and (error.by_peer or not error.notify)):
            return 0
        kind = _NOTIFIES.get(type(error), N.PAYLOAD_MALFORMED)
        if isinstance(error, Refused):
            kind = N(error.notify)
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

    def _bequeath(self, now: float) -> None:
        """What was begun on it lately belongs to its successor, too; what is not finished begins there."""
        heir = self.successor
        while heir is not None and heir.successor is not None:
            heir = heir.successor
        wishes = [self._wishes[one.message_id] for one in self.talks.open if one.message_id in self._wishes]
        self.talks.close()
        if heir is not None and heir.state is not State.CLOSED:
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
        if self._probe:
            found.append(self._probe.due)
        busy = self._probe is not None or not self.session.both(Known.DPD)
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
            self._liveness(now)
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

    def _liveness(self, now: float) -> None:
        """Dead peer detection, RFC 3706: an answer to R-U-THERE, or any other sign of life, is enough."""
        settings, heard, probe = self.session.env.settings, self.heard_of_traffic(), self._probe
        if probe is None:
            if heard + settings.liveness <= now:
                sequence = int.from_bytes(self.session.env.random(4), "big") & 0x7FFFFFFF
                self._send_probe(_Probe(sequence, now, 0, now), now)
        elif heard > probe.since:
            self._probe = None
        elif probe.due <= now:
            if probe.tries >= settings.retransmit_tries:
                error = Silent(
                    f"the peer does not answer (R-U-THERE sent {probe.tries} times)",
                    "check that the peer runs, and that firewalls pass UDP 500 and 4500",
                )
                self._failed(error, "INFORMATIONAL", self.rule, initiator=True, child=False)
                self._gone()
            else:
                self._send_probe(probe, now)

    def _send_probe(self, probe: _Probe, now: float) -> None:
        settings = self.session.env.settings
        wait = settings.retransmit_first * settings.retransmit_factor**probe.tries
        due = now + min(wait, settings.retransmit_cap)
        self._probe = replace(probe, tries=probe.tries + 1, due=due)
        self._inform(informational.are_you_there(self.session, probe.sequence))

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

    def _begin_quick(self, rule: Rule, acquire: Acquire | None, old: SaPair | None, now: float) -> None:
        if old is not None and old.inbound.spi not in self.session.children.pairs:
            return
        number = self._message_id()
        self._wishes[number] = rule, acquire, old
        steps = quick_mode.initiate(self.session, number, rule, acquire, old)
        talk = self.talks.begin(Exchange.QUICK, number, steps, now, initiator=True)
        talk.rule, talk.child = rule.name, True
        self.talks.drive(talk, now)


_NOTIFIES: dict[type[Exception], N] = {
    Declined: N.AUTHENTICATION_FAILED,
    Unavailable: N.NO_PROPOSAL_CHOSEN,
    Unauthentic: N.INVALID_HASH_INFORMATION,
}
