"""All IKE SAs of this host: which one a datagram is for, who may begin a new one, and when something is due.

RFC 7296 sections 2.4 to 2.6 and 2.21. `receive`, `answer`, `tick` and the commands return what is to be done;
one `deadline` tells when `tick` wants to be called. This is the one place where hostile octets are caught:
they are counted as events and dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ikd.admission import Admission
from ikd.adoption import Adoption
from ikd.alarms import Alarms
from ikd.association import Association
from ikd.auth.credentials import Credentials
from ikd.authip.admission import EXCHANGES, AuthipAdmission
from ikd.authip.profile import PROFILES
from ikd.coexist import Attempt, Attempts, Verdicts, ignored
from ikd.events import ChildExpired, DatagramDropped, NegotiationFailed
from ikd.exchange import Question
from ikd.halfopen import HalfOpen
from ikd.ikev1.admission import Ikev1Admission
from ikd.ikev2.admission import Ikev2Admission
from ikd.keying import Environment, MainMode, Network
from ikd.life import State
from ikd.outputs import AllocateSpi, Ask, Install, Output, Release, Remove
from ikd.pace import Pace
from ikd.register import Register
from ikd.settings import IkeSettings
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Header
from policy.engine import Changes, Policy
from policy.rules import Rule
from sadb.address import Address, Path, SocketAddress
from sadb.sa import Acquire, Expire, SaPair, UnknownSpi

COMPLAINTS_A_SECOND = 10  # unprotected error notifies to strangers
HOLD_DOWN = 3.0  # seconds after a failure for which packets do not start the same negotiation again
MOST_HELD_DOWN = 1024
DOUBT = 5.0  # seconds from one main-mode SA to the peer's next, after which the first one may be lost


class Endpoint:
    """The protocol core. Give it datagrams, answers and the clock; perform what it returns, in order."""

    def __init__(
        self, settings: IkeSettings, policy: Policy, credentials: Credentials, random: Callable[[int], bytes]
    ) -> None:
        self.env = Environment(settings, policy, credentials, random)
        self._register = Register()
        self.associations = self._register.associations
        self.strangers = HalfOpen()
        self._pace = Pace()  # of proven peers, by identity and, for what comes before that, by address
        self._tickets: dict[int, tuple[Association, Any, Question[Any]]] = {}
        self._ticket = 0
        self._alarms = Alarms()
        self._outputs = _Outputs()
        self._complaints = (0.0, 0)  # second, number sent in it
        self._held_down: OrderedDict[tuple[str, Address], float] = OrderedDict()
        self._ikev2 = Ikev2Admission(self)
        self._modules: dict[str, Admission] = {
            "ikev1": Ikev1Admission(self),
            "authip": AuthipAdmission(self),
            "ikev2": self._ikev2,
        }
        self._verdicts = Verdicts()
        self._attempts = Attempts(self, self._modules)
        self.adoption = Adoption(self)

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.env.policy

    @property
    def settings(self) -> IkeSettings:
        """The settings in force."""
        return self.env.settings

    @property
    def half_open(self) -> int:
        """Negotiations others have begun and not proven themselves in."""
        return len(self.strangers)

    @property
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""
        return all(one.idle for one in self.associations.values())

    def verdicts(self, now: float) -> list[tuple[Address, str, float]]:
        """What peers are known to speak, and for how many seconds that is still believed."""
        return self._verdicts.known(now)

    def recall(self, verdicts: Iterable[tuple[Address, str, float]], now: float) -> None:
        """What peers were known to speak in an earlier run; none is believed for longer than a new one."""
        for peer, module, seconds in verdicts:
            if module in self._modules and seconds > 0:
                self._verdicts.spoke(peer, module, now, min(seconds, self.settings.verdict_seconds))

    # Datagrams -------------------------------------------------------------------------------------------

    def receive(self, data: bytes, path: Path, now: float) -> list[Output]:
        """One IKE datagram, non-ESP marker removed."""
        with self._outputs as out:
            try:
                self._dispatch(Header.decode(data), data, path, now)
            except Malformed as error:
                self.dropped("malformed", str(error), path)
        return out

    def _dispatch(self, header: Header, data: bytes, path: Path, now: float) -> None:
        name = f"ikev{header.major}"
        if header.major == 1 and (header.exchange in EXCHANGES or self._is_cookie(header)):
            name = "authip"
        elif header.major == 1 and self._has_twin(header, data, path):
            self.dropped("coexistence", "its sender has begun AuthIP, too", path)
            return
        module = self._modules.get(name)
        if module is not None:
            module.receive(header, data, path, now)
            if self._attempts:
                self._attempts.part_twins(now)
            return
        self.dropped("version", f"major version {header.major}", path)
        if header.major > 2:
            self._ikev2.wrong_version(header, path, now)

    def _is_cookie(self, header: Header) -> bool:
        """Whether a message with an exchange type of IKEv1 is for AuthIP all the same: a cookie may be
        (OQ-26)."""
        found = self._register.by_spi(header.spi_i)
        return found is not None and found.main.keying == "authip"

    def _has_twin(self, header: Header, data: bytes, path: Path) -> bool:
        """Whether a first message of IKEv1 gets no answer for the sake of AuthIP."""
        every = PROFILES[self.settings.authip_profile].drops_every_ikev1
        rules = self.policy.for_peer(path.local.address, path.peer.address, "authip")
        return ignored(header, data, has_authip=bool(rules), every=every)

    # Answers and time ------------------------------------------------------------------------------------

    def answer(self, ticket: int, value: object, now: float) -> list[Output]:
        """The answer to an `Ask`; an exception instance fails the exchange that asked."""
        with self._outputs as out:
            found = self._tickets.pop(ticket, None)
            if found is not None:
                association, talk, question = found
                if association.state is State.CLOSED:
                    self._take_back(question, value)
                else:
                    self._alarms.touch(association)
                    association.answer(talk, value, now)
                    if self.adoption and isinstance(question, Install):
                        self.adoption.relieve(association, question.pair, now)
        return out

    def _take_back(self, question: Question[Any], value: object) -> None:
        """The answer comes too late: what it made is nobody's."""
        if isinstance(question, Install) and value is None:
            self.emit(Remove(question.pair))
        elif isinstance(question, AllocateSpi) and isinstance(value, int):
            self.emit(Release(value))

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        every = (self._alarms, self._attempts, self.adoption)
        return min((due for one in every if (due := one.deadline()) is not None), default=None)

    def tick(self, now: float) -> list[Output]:
        """Do what is due."""
        with self._outputs as out:
            self._attempts.tick(now)
            self.adoption.tick(now)
            self._alarms.tick(now)
        return out

    # Commands --------------------------------------------------------------------------------------------

    def initiate(
        self, rule: Rule, path: Path, now: float, acquire: Acquire | None = None, *, childless: bool = False
    ) -> list[Output]:
        """Negotiate for a rule, on an IKE SA with that peer when there is one, and unless that is under way.
        Packets (`acquire`) do not start what has just failed."""
        with self._outputs as out:
            key = (rule.name, path.peer.address)
            if acquire is not None and self._held_down.get(key, now) > now:
                return out
            self.negotiate(rule, path, now, acquire, self.peers(path.peer.address), childless=childless)
        return out

    @staticmethod
    def _can_carry(association: Association, rule: Rule, path: Path) -> bool:
        """Whether a Child SA of the rule may be made on this IKE SA, now or once it is up."""
        main = association.main
        if main.keying not in rule.keying or not main.serves(rule):
            return False
        if not main.lies_on(path, rule.mode):
            return False
        if association.state is State.CONNECTING:
            made_for = main.rule
            return association.initiator and made_for is not None and _same_people(made_for, rule)
        return (
            association.usable
            and main.peer is not None
            and bool(main.admits(rule))
            and rule.crypto is not None
            and main.suite in rule.crypto.main
        )

    def close(self, association: Association, now: float, reason: str) -> list[Output]:
        """Delete an IKE SA here and at the peer."""
        with self._outputs as out:
            self._alarms.touch(association)
            self._attempts.settle(association)  # whoever ends it does not want another protocol
            association.delete(reason, now)
        return out

    def close_child(self, pair: SaPair, now: float, reason: str) -> list[Output]:
        """Delete a Child SA here and at the peer."""
        with self._outputs as out:
            if association := self._owner_of(pair):
                association.close_child(pair, reason, now)
            else:
                self.adoption.abandon(pair, reason)
        return out

    def rekey(self, association: Association, now: float) -> list[Output]:
        """Replace an IKE SA."""
        with self._outputs as out:
            self._alarms.touch(association)
            association.rekey(now)
        return out

    def reauthenticate(self, association: Association, now: float) -> list[Output]:
        """Prove ourselves again for an IKE SA that stays."""
        with self._outputs as out:
            self._alarms.touch(association)
            association.reauthenticate(now)
        return out

    def rekey_child(self, pair: SaPair, now: float) -> list[Output]:
        """Replace a Child SA."""
        with self._outputs as out:
            if association := self._owner_of(pair):
                association.rekey_child(pair, now)
        return out

    def expired(self, notice: Expire, now: float) -> list[Output]:
        """A Child SA met a limit: soft, it is replaced; hard, it is gone and the peer is told."""
        with self._outputs as out:
            association = self.associations.get(notice.owner)
            pair = association and next(
                (
                    one
                    for one in association.main.children.pairs.values()
                    if notice.spi == (one.inbound if notice.inbound else one.outbound).spi
                ),
                None,
            )
            if association and pair:
                self._alarms.touch(association)
                self.emit(
                    ChildExpired(
                        rule=pair.rule,
                        spi_in=f"{pair.inbound.spi:08x}",
                        hard=notice.hard,
                        reason=notice.reason,
                    )
                )
                if notice.hard:
                    association.close_child(pair, f"used up ({notice.reason})", now)
                else:
                    association.rekey_child(pair, now)
        return out

    def unknown_spi(self, notice: UnknownSpi, now: float) -> list[Output]:
        """ESP came for an SPI nobody has: a peer with an IKE SA is told, protected (section 1.5)."""
        with self._outputs as out:
            where = notice.source
            source = where.address if isinstance(where, SocketAddress) else where
            for association in self._register.at(source):
                if association.usable and association.idle and self.may_complain(now):
                    self._alarms.touch(association)
                    association.unknown_spi(notice.spi, now)
                    break
        return out

    def reload(
        self, policy: Policy, credentials: Credentials, settings: IkeSettings, changes: Changes, now: float
    ) -> list[Output]:
        """Take another policy into force: SAs of rules that are gone or mean something else now end."""
        with self._outputs as out:
            env, before = self.env, self.env.policy
            env.policy, env.credentials, env.settings = policy, credentials, settings
            self._held_down.clear()
            self._verdicts.forget()
            self._attempts.settle_all()
            ended = {*changes.changed, *changes.removed}
            for association in list(self.associations.values()):
                self._alarms.touch(association)
                pairs = list(association.children.values())
                gone = {
                    one for one in ended if not _is_there(association, before.rule(one), policy.rule(one))
                }
                going = [pair for pair in pairs if pair.rule in gone]
                rule = policy.rule(association.rule)
                if association.rule in gone and len(going) == len(pairs):
                    association.delete("its rule has changed", now)
                    continue
                if rule is not None:
                    association.main.rule = rule
                for pair in going:
                    association.close_child(pair, "its rule has changed", now)
            self.adoption.reload(ended)
        return out

    def destinations(self) -> frozenset[Address]:
        """The addresses of peers to which a way matters."""
        return frozenset(one.path.peer.address for one in self.associations.values())

    def own_addresses(self) -> frozenset[Address]:
        """The addresses of this host that are in use."""
        return self.adoption.sources | {one.path.local.address for one in self.associations.values()}

    def network_changed(
        self, addresses: frozenset[Address], ways: Mapping[Address, Address | None], now: float
    ) -> list[Output]:
        """This host has other addresses or routes: these, and `ways` to the `destinations` (None: there is no
        route). What can move moves, what has lost its address is negotiated anew, and what has no way to its
        peer waits for one."""
        with self._outputs as out:
            self.env.network = Network(addresses, ways)
            for association in list(self.associations.values()):
                if association.state is State.CLOSED:
                    continue
                if association.main.lost:
                    self._attempts.settle(association)  # another protocol would begin there, too
                self._alarms.touch(association)
                association.network_changed(now)
        return out

    def shutdown(self, now: float) -> list[Output]:
        """Delete all SAs at the peers; `idle` tells when they have answered."""
        with self._outputs as out:
            self._attempts.settle_all()
            for association in list(self.associations.values()):
                self._alarms.touch(association)
                association.delete("this host shuts down", now)
        return out

    # What pairs of a former run need ---------------------------------------------------------------------

    def take_over(self, pairs: Iterable[SaPair], now: float) -> list[Output]:
        """Pairs that are in the SADB and belong to no IKE SA: begin to replace them."""
        with self._outputs as out:
            self.adoption.add(pairs, now)
        return out

    def peers(self, address: Address) -> list[Association]:
        """The IKE SAs with an address, the newest first: the peer may have lost those before it without a
        word."""
        return self._register.at(address)[::-1]

    def negotiate(
        self,
        rule: Rule,
        path: Path,
        now: float,
        acquire: Acquire | None,
        peers: Sequence[Association],
        *,
        childless: bool,
    ) -> None:
        """Negotiate for a rule, on one of these IKE SAs if it serves, and unless that is under way."""
        if any(one.awaits(rule.name) for one in peers) and not childless:
            return
        for association in peers:
            if self._can_carry(association, rule, path) and not childless:
                self._alarms.touch(association)
                association.create_child(rule, acquire, now)
                return
        modules = self._verdicts.order(rule, self._modules, path.peer.address, now)
        if modules:
            alone = self._verdicts.knows(path.peer.address, now)
            self._attempts.begin(Attempt(rule, path, acquire, childless, modules, 0.0, alone), now)

    # What associations need ------------------------------------------------------------------------------

    def emit(self, output: Output) -> None:
        """An output of an association, unless it is no news yet."""
        if self._attempts and isinstance(output, NegotiationFailed) and self._attempts.conceals(output):
            return
        self._outputs.out.append(output)

    def ask(self, association: Association, talk: Any, question: Question[Any]) -> None:
        """A question of one of its exchanges."""
        self._ticket += 1
        self._tickets[self._ticket] = (association, talk, question)
        self._outputs.out.append(Ask(self._ticket, question))

    def refuses(self, address: Address, now: float) -> tuple[str, str] | None:
        """Why nobody may begin a main-mode SA from an address now: the reason, and more about it."""
        settings = self.settings
        if full := self.strangers.full(settings, address):
            return "half-open-limit", full
        if len(self.associations) >= settings.associations:
            return "association-limit", f"there are {settings.associations} IKE SAs"
        if not self._pace.ready(address, settings.peer_rate, now):
            return (
                "rate-limit",
                f"peers at {address} negotiate more often than {settings.peer_rate:g} times a second",
            )
        return None

    def new_spi(self) -> bytes:
        """An SPI of ours that is not in use."""
        while self._register.by_spi(spi := self.env.random(8)) is not None or spi == ZERO_SPI:
            pass
        return spi

    def first_contact(self, association: Association) -> bool:
        """Whether it is the only IKE SA with its peer that is up or about to be, as far as the peer knows."""
        if self.adoption.knows(association.path.peer.address):
            return False
        peers = self._register.at(association.path.peer.address)
        return not any(one.state is not State.CONNECTING for one in peers)

    def established(self, association: Association) -> None:
        """The peer is proven: it is half open no more, and may replace what it had before (section 2.4)."""
        self.strangers.leave(association)
        self._held_down.pop((association.rule, association.path.peer.address), None)
        main = association.main
        assert main.peer is not None
        self._attempts.settle(association)
        seconds = self.env.settings.verdict_seconds
        self._verdicts.spoke(main.path.peer.address, main.keying, main.now, seconds)
        if not association.initiator:
            self._pace.take(main.path.peer.address, self.settings.peer_rate, main.now)
        others = self._register.proven(association)
        proven = association.known_as
        if proven is None:
            return
        if not association.initiator:
            self._pace.take(proven, self.settings.peer_rate, main.now)
        if main.initial_contact:
            for other in [one for one in others if self._forgotten(one, association)]:
                other.abandon("the peer has begun anew", main.now)
        elif not association.initiator:
            for other in [one for one in others if self._doubtful(one, association)]:
                self._alarms.touch(other)
                other.probe(main.now)
        self._register.known(association)
        self._make_room(association, main.now)

    def _make_room(self, newest: Association, now: float) -> None:
        """A peer that has too many main-mode SAs loses the oldest: one that was restarted again and again
        without saying so must get in. What a successor has replaced ends by itself."""
        every = self._register.others(newest)
        there = [one for one in every if one.life.up and not one.inherited]
        most = self.settings.peer_associations
        for one in sorted(there, key=lambda one: one.life.since)[: max(0, len(there) + 1 - most)]:
            self._alarms.touch(one)
            one.limited("peer_associations", f"has more than {most} IKE SAs: the oldest goes")
            one.delete("its peer has too many", now)

    def may_negotiate(self, association: Association, now: float) -> bool:
        """Whether a proven peer does not ask for SAs too often; it is counted."""
        who = association.known_as or association.path.peer.address
        return self._pace.take(who, self.settings.peer_rate, now)

    def elsewhere(self, association: Association) -> int:
        """How many Child SAs the peer of a main-mode SA has under others."""
        return sum(len(one.children) for one in self._register.others(association))

    @staticmethod
    def _forgotten(one: Association, newer: Association) -> bool:
        """Whether a peer that says it has no other main-mode SA with us has lost this one. It knows what came
        up after it had begun; in IKEv1 it speaks for its address (RFC 2407 section 4.6.3.3)."""
        here = one.path.peer.address == newer.path.peer.address or newer.main.keying == "ikev2"
        return one is not newer and here and one.life.since < newer.created

    @staticmethod
    def _doubtful(one: Association, newer: Association) -> bool:
        """Whether a peer that begins another main-mode SA without a word may have lost this one: a daemon
        that was restarted does not say so, for the sake of the pairs."""
        here = one.path.peer.address == newer.path.peer.address and one.main.keying == newer.main.keying
        return one is not newer and here and one.life.up and one.life.since + DOUBT < newer.created

    def moved(self, association: Association, old: Address) -> None:
        """The peer has another address; it is found by the one where it was proven, too."""
        self._register.moved(association, old)

    def adopt(self, association: Association) -> None:
        """Hold a new association, and give it its number."""
        self._register.enter(association)
        self._alarms.touch(association)

    def renew(self, association: Association, now: float) -> Association:
        """Another main-mode SA with the same peer in the same protocol, not begun yet."""
        return self._modules[association.main.keying].begin(association.path, now)

    def kin(self, association: Association) -> list[Association]:
        """Other main-mode SAs with the same proven peer at the same address, by the same protocol."""
        return [one for one in self._register.others(association) if _alike(one, association)]

    def rivals(self, association: Association) -> list[Association]:
        """Those we have begun with the same peer address by the same protocol and are not up yet."""
        begun = self._register.begun(association.path.peer.address)
        return [one for one in begun if one.state is State.CONNECTING and _alike(one, association)]

    def withdraw(self, association: Association, now: float) -> None:
        """Give up what we have begun, in favour of something else."""
        self._attempts.settle(association)
        association.abandon("another one serves", now)

    def sibling(self, association: Association) -> Association | None:
        """Another main-mode SA that can take over the Child SAs of this one: its peer and its user are the
        same, and have proven themselves in the same way."""
        rule = association.main.rule
        for one in reversed(self.kin(association)):
            if one.usable and rule is not None and one.main.serves(rule) and _same_user(one, association):
                self._alarms.touch(one)
                return one
        return None

    def association_of(self, main: MainMode) -> Association | None:
        """The association of a main-mode SA, None when it has closed."""
        found = self.associations.get(main.number)
        if found is not None:
            self._alarms.touch(found)  # it will be told something that changes its clocks
        return found

    def by_spi(self, spi: bytes) -> Association | None:
        """The association with this SPI of ours; something is about to happen to it."""
        found = self._register.by_spi(spi)
        if found is not None:
            self._alarms.touch(found)
        return found

    def may_complain(self, now: float) -> bool:
        """Whether another error may be told to somebody who may be a stranger: a few a second."""
        second, sent = self._complaints
        if now - second >= 1.0:
            second, sent = now, 0
        self._complaints = (second, sent + 1)
        return sent < COMPLAINTS_A_SECOND

    def disown(self, association: Association) -> None:
        """An association has nothing left that its peer's others might want."""
        self._register.disown(association)

    def forget(self, association: Association) -> None:
        """An association has closed."""
        self._register.leave(association)
        association.armed_at = None
        self.strangers.leave(association)
        for owner, talk, _ in self._tickets.values():
            if owner is association:
                talk.conversation.close()
        if association.initiator and association.peer is None and association.rule:
            key = (association.rule, association.path.peer.address)
            self._held_down[key] = association.main.now + HOLD_DOWN
            while len(self._held_down) > MOST_HELD_DOWN:
                self._held_down.popitem(last=False)
        self._attempts.fall_back(association, association.main.now)

    # Inside ----------------------------------------------------------------------------------------------

    def _owner_of(self, pair: SaPair) -> Association | None:
        association = self.associations.get(pair.owner)
        if association is not None:
            self._alarms.touch(association)
        return association

    def dropped(self, reason: str, detail: str, path: Path) -> None:
        """Count a datagram that came to nothing."""
        self._outputs.out.append(DatagramDropped(reason=reason, detail=detail, path=path))


def _is_there(association: Association, old: Rule | None, new: Rule | None) -> bool:
    """Whether all that has changed of a rule is the address of a name, and the SA is there already: its peer
    has moved, and name servers have heard of it."""
    if old is None or new is None or old.tunnel is None or new.tunnel is None or not new.tunnel.remote_host:
        return False
    same = replace(new, tunnel=replace(new.tunnel, remote=old.tunnel.remote)) == old
    return same and association.mobile and new.tunnel.remote == association.main.outer[0].peer.address


def _alike(one: Association, other: Association) -> bool:
    """Whether both are with the same address, by the same protocol."""
    same = one.main.keying == other.main.keying
    return same and one.path.peer.address == other.path.peer.address


def _same_user(one: Association, other: Association) -> bool:
    """Whether the second authentication of both is of the same user, or of none."""
    user, another = one.main.user, other.main.user
    return (user and user.identity) == (another and another.identity)


def _same_people(one: Rule, other: Rule) -> bool:
    """Whether whom one rule admits the other admits, too, whoever it will be."""
    return (one.peer, one.allow, one.deny) == (other.peer, other.allow, other.deny)


class _Outputs:
    """Collects what one call of the endpoint wants done."""

    __slots__ = ("out",)

    def __init__(self) -> None:
        self.out: list[Output] = []

    def __enter__(self) -> list[Output]:
        self.out = []
        return self.out

    def __exit__(self, *_: object) -> None:
        self.out = []
