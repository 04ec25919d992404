"""All IKE SAs of this host: which one a datagram is for, who may begin a new one, and when something is due.

RFC 7296 sections 2.4 to 2.6 and 2.21. `receive`, `answer`, `tick` and the commands return what is to be done;
one `deadline` tells when `tick` wants to be called. This is the one place where hostile octets are caught:
they are counted as events and dropped.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

from ikd.association import Association
from ikd.auth import Identity
from ikd.auth.credentials import Credentials
from ikd.conversations import Talk
from ikd.events import CookieDemanded, DatagramDropped, NegotiationStarted
from ikd.exchange import Question
from ikd.ikev2.channel import VERSION, Channel, clear
from ikd.ikev2.first import open_first
from ikd.ikev2.message import Message, UnknownCritical, status
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import KeyExchange, Nonce, Notify
from ikd.ikev2.session import Environment, Session
from ikd.life import State
from ikd.outputs import Ask, Output, Transmit
from ikd.riders.cookie import Cookies
from ikd.settings import IkeSettings
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Body, Flags, Header
from policy.engine import Changes, Policy
from policy.peers import admits
from policy.rules import Rule
from sadb.address import Address, Path, SocketAddress
from sadb.sa import Acquire, Expire, SaPair, UnknownSpi

COMPLAINTS_A_SECOND = 10  # unprotected error notifies to strangers
HOLD_DOWN = 3.0  # seconds after a failure for which packets do not start the same negotiation again
MOST_HELD_DOWN = 1024


class Endpoint:
    """The protocol core. Give it datagrams, answers and the clock; perform what it returns, in order."""

    def __init__(
        self, settings: IkeSettings, policy: Policy, credentials: Credentials, random: Callable[[int], bytes]
    ) -> None:
        self._env = Environment(settings, policy, credentials, random)
        self._cookies = Cookies(random, settings.cookie_lifetime)
        self._associations: dict[int, Association] = {}
        self._by_spi: dict[bytes, Association] = {}  # by our SPI
        self._by_address: dict[Address, dict[int, Association]] = {}  # by the peer's
        self._by_identity: dict[Identity, dict[int, Association]] = {}  # by what the peer proved
        self._first: dict[tuple[Address, int, bytes], Association] = {}  # half-open responders
        self._half_open_by_address: Counter[Address] = Counter()
        self._number = 0
        self._tickets: dict[int, tuple[Association, Talk]] = {}
        self._ticket = 0
        self._timer: list[tuple[float, int, Association]] = []
        self._serial = 0
        self._touched: dict[int, Association] = {}
        self._out: list[Output] = []
        self._complaints = (0.0, 0)  # second, number sent in it
        self._held_down: OrderedDict[tuple[str, Address], float] = OrderedDict()
        self.associations: Mapping[int, Association] = MappingProxyType(self._associations)

    # Facts -----------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._env.policy

    @property
    def settings(self) -> IkeSettings:
        """The settings in force."""
        return self._env.settings

    @property
    def half_open(self) -> int:
        """Negotiations others have begun and not proven themselves in."""
        return len(self._first)

    @property
    def idle(self) -> bool:
        """Whether no exchange of ours is under way."""
        return all(one.idle for one in self._associations.values())

    # Datagrams -------------------------------------------------------------------------------------------

    def receive(self, data: bytes, path: Path, now: float) -> list[Output]:
        """One IKE datagram, non-ESP marker removed."""
        with self._outputs() as out:
            try:
                self._dispatch(Header.decode(data), data, path, now)
            except Malformed as error:
                self._drop("malformed", str(error), path)
        return out

    def _dispatch(self, header: Header, data: bytes, path: Path, now: float) -> None:
        response = bool(header.flags & Flags.RESPONSE)
        if header.major != 2:
            self._drop("version", f"major version {header.major}", path)
            if header.major > 2 and not response:  # section 2.5
                self._complain(header, status(N.INVALID_MAJOR_VERSION, b"\x02"), path, now)
            return
        if header.exchange == Exchange.IKE_SA_INIT and not response:
            self._admit(header, data, path, now)
            return
        own = header.spi_r if header.flags & Flags.INITIATOR else header.spi_i
        association = self._by_spi.get(own)
        other = header.spi_i if header.flags & Flags.INITIATOR else header.spi_r
        if association is None or not self._fits(association, header, other):
            self._drop("unknown-spi", f"no IKE SA {own.hex()}", path)
            if not response:
                self._complain(header, status(N.INVALID_IKE_SPI), path, now)  # section 2.21.4
            return
        self._touch(association)
        association.receive(header, data, path, now)

    @staticmethod
    def _fits(association: Association, header: Header, other: bytes) -> bool:
        """Whether the peer's SPI and role are right; before it has answered, its SPI is not known."""
        if bool(header.flags & Flags.INITIATOR) == association.initiator:
            return False
        known = association.spi_r if association.initiator else association.spi_i
        return other == known or (known == ZERO_SPI and header.exchange == Exchange.IKE_SA_INIT)

    # New negotiations of others --------------------------------------------------------------------------

    def _admit(self, header: Header, data: bytes, path: Path, now: float) -> None:
        """A first message: nothing is kept before limits and cookie allow it."""
        key = (path.peer.address, path.peer.port, header.spi_i)
        known = self._first.get(key)
        if known is not None:
            if known.session.init_request == data:
                known.first_repeated()
            else:
                self._drop("repeated", "another first message with the same SPI", path)
            return
        if header.spi_i == ZERO_SPI or header.spi_r != ZERO_SPI or header.message_id != 0:
            raise Malformed("not a first message")
        if not header.flags & Flags.INITIATOR:
            raise Malformed("a first message without the initiator flag")
        try:
            message = open_first(header, data)
        except UnknownCritical as error:
            self._complain(header, status(N.UNSUPPORTED_CRITICAL_PAYLOAD, bytes((error.kind,))), path, now)
            self._drop("critical", str(error), path)
            return
        settings, address = self._env.settings, path.peer.address
        # whoever writes down another's address must not use up that one's share
        crowded = 2 * self._half_open_by_address[address] >= settings.half_open_per_address
        loaded = len(self._first) >= settings.cookie_threshold
        if (loaded or crowded) and not self._paid(message, header, path, now):
            return
        if len(self._first) >= settings.half_open:
            self._drop("half-open-limit", f"{settings.half_open} negotiations are half open", path)
        elif self._half_open_by_address[address] >= settings.half_open_per_address:
            self._drop("half-open-limit", f"{address} has {settings.half_open_per_address} half open", path)
        elif len(self._associations) >= settings.associations:
            self._drop("association-limit", f"there are {settings.associations} IKE SAs", path)
        else:
            self._begin(message, header, path, now)

    def _paid(self, message: Message, header: Header, path: Path, now: float) -> bool:
        """Whether the peer returned our cookie; if not, it is asked to (section 2.6)."""
        nonce = message.one(Nonce).data
        found = message.notify(N.COOKIE)
        if found and self._cookies.good(found.data, nonce, header.spi_i, path, now):
            return True
        cookie = self._cookies.make(nonce, header.spi_i, path, now)
        self._answer_unprotected(header, [status(N.COOKIE, cookie)], path)
        self._out.append(CookieDemanded(path=path))
        return False

    def _begin(self, message: Message, header: Header, path: Path, now: float) -> None:
        message.one(KeyExchange)
        channel = self._channel(False, header.spi_i, self.new_spi())
        association = self._hold(Session(self._next(), self._env, channel, path, now), now)
        key = (path.peer.address, path.peer.port, header.spi_i)
        self._first[key] = association
        association.first_key = key
        self._half_open_by_address[path.peer.address] += 1
        self._out.append(NegotiationStarted(ike=association.number, rule="", initiator=False, path=path))
        association.first_request(message, now)

    def _complain(self, header: Header, notify: Notify, path: Path, now: float) -> None:
        """An unprotected error to a request, a few a second at most: it may be forged."""
        second, sent = self._complaints
        if now - second >= 1.0:
            second, sent = now, 0
        if sent < COMPLAINTS_A_SECOND:
            self._complaints = (second, sent + 1)
            self._answer_unprotected(header, [notify], path)

    def _answer_unprotected(self, header: Header, payloads: list[Body], path: Path) -> None:
        flags = int(Flags.RESPONSE) | (0 if header.flags & Flags.INITIATOR else int(Flags.INITIATOR))
        reply = Header(header.spi_i, header.spi_r, 0, VERSION, header.exchange, flags, header.message_id, 0)
        self._out.append(Transmit(clear(reply, payloads), path))

    # Answers and time ------------------------------------------------------------------------------------

    def answer(self, ticket: int, value: object, now: float) -> list[Output]:
        """The answer to an `Ask`; an exception instance fails the exchange that asked."""
        with self._outputs() as out:
            found = self._tickets.pop(ticket, None)
            if found is not None:
                association, talk = found
                self._touch(association)
                association.answer(talk, value, now)
        return out

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        timer = self._timer
        while timer and timer[0][2].armed_at != timer[0][0]:
            heapq.heappop(timer)
        return timer[0][0] if timer else None

    def tick(self, now: float) -> list[Output]:
        """Do what is due."""
        with self._outputs() as out:
            while (due := self.deadline()) is not None and due <= now:
                association = heapq.heappop(self._timer)[2]
                association.armed_at = None
                self._touch(association)
                association.tick(now)
                if association.armed_at is None and association.state is not State.CLOSED:
                    self._arm(association, at_least=now + 0.001)
        return out

    # Commands --------------------------------------------------------------------------------------------

    def initiate(
        self, rule: Rule, path: Path, now: float, acquire: Acquire | None = None, *, childless: bool = False
    ) -> list[Output]:
        """Negotiate for a rule, on an IKE SA with that peer when there is one. Packets (`acquire`) do not
        start what is under way or has just failed."""
        with self._outputs() as out:
            key = (rule.name, path.peer.address)
            if acquire is not None and self._held_down.get(key, now) > now:
                return out
            peers = list(self._by_address.get(path.peer.address, {}).values())
            if acquire is not None and any(one.awaits(rule.name) for one in peers):
                return out
            for association in peers:
                if self._can_carry(association, rule, path) and not childless:
                    self._touch(association)
                    association.create_child(rule, acquire, now)
                    return out
            channel = self._channel(True, self.new_spi(), ZERO_SPI)
            association = self._hold(Session(self._next(), self._env, channel, path, now), now)
            self._out.append(
                NegotiationStarted(ike=association.number, rule=rule.name, initiator=True, path=path)
            )
            association.initiate(rule, acquire, now, childless=childless)
        return out

    @staticmethod
    def _can_carry(association: Association, rule: Rule, path: Path) -> bool:
        """Whether a Child SA of the rule may be made on this IKE SA, now or once it is up."""
        session = association.session
        if session.path.local.address != path.local.address or not session.serves(rule):
            return False
        if association.state is State.CONNECTING:
            made_for = session.rule
            return association.initiator and made_for is not None and made_for.peer == rule.peer
        return (
            association.usable
            and session.peer is not None
            and bool(admits(rule, session.peer.names))
            and rule.crypto is not None
            and session.suite in rule.crypto.main
        )

    def close(self, association: Association, now: float, reason: str) -> list[Output]:
        """Delete an IKE SA here and at the peer."""
        with self._outputs() as out:
            self._touch(association)
            association.delete(reason, now)
        return out

    def close_child(self, pair: SaPair, now: float, reason: str) -> list[Output]:
        """Delete a Child SA here and at the peer."""
        with self._outputs() as out:
            if association := self._owner_of(pair):
                association.close_child(pair, reason, now)
        return out

    def rekey(self, association: Association, now: float) -> list[Output]:
        """Replace an IKE SA."""
        with self._outputs() as out:
            self._touch(association)
            association.rekey(now)
        return out

    def rekey_child(self, pair: SaPair, now: float) -> list[Output]:
        """Replace a Child SA."""
        with self._outputs() as out:
            if association := self._owner_of(pair):
                association.rekey_child(pair, now)
        return out

    def expired(self, notice: Expire, now: float) -> list[Output]:
        """A Child SA met a limit: soft, it is replaced; hard, it is gone and the peer is told."""
        with self._outputs() as out:
            association = self._associations.get(notice.owner)
            pair = association and next(
                (
                    one
                    for one in association.session.children.pairs.values()
                    if notice.spi == (one.inbound if notice.inbound else one.outbound).spi
                ),
                None,
            )
            if association and pair:
                self._touch(association)
                if notice.hard:
                    association.close_child(pair, f"used up ({notice.reason})", now)
                else:
                    association.rekey_child(pair, now)
        return out

    def unknown_spi(self, notice: UnknownSpi, now: float) -> list[Output]:
        """ESP came for an SPI nobody has: a peer with an IKE SA is told, protected (section 1.5)."""
        with self._outputs() as out:
            where = notice.source
            source = where.address if isinstance(where, SocketAddress) else where
            second, sent = self._complaints
            if now - second < 1.0 and sent >= COMPLAINTS_A_SECOND:
                return out
            for association in self._by_address.get(source, {}).values():
                if association.usable and association.idle:
                    self._complaints = (second if now - second < 1.0 else now, sent + 1)
                    self._touch(association)
                    association.tell(status(N.INVALID_SPI, notice.spi.to_bytes(4, "big")), now)
                    break
        return out

    def reload(
        self, policy: Policy, credentials: Credentials, settings: IkeSettings, changes: Changes, now: float
    ) -> list[Output]:
        """Take another policy into force: SAs of rules that are gone or mean something else now end."""
        with self._outputs() as out:
            env = self._env
            env.policy, env.credentials, env.settings = policy, credentials, settings
            self._held_down.clear()
            ended = {*changes.changed, *changes.removed}
            for association in list(self._associations.values()):
                self._touch(association)
                pairs = list(association.children.values())
                going = [pair for pair in pairs if pair.rule in ended]
                rule = policy.rule(association.rule)
                if association.rule in ended and len(going) == len(pairs):
                    association.delete("its rule has changed", now)
                    continue
                if rule is not None:
                    association.session.rule = rule
                for pair in going:
                    association.close_child(pair, "its rule has changed", now)
        return out

    def shutdown(self, now: float) -> list[Output]:
        """Delete all SAs at the peers; `idle` tells when they have answered."""
        with self._outputs() as out:
            for association in list(self._associations.values()):
                self._touch(association)
                association.delete("this host shuts down", now)
        return out

    # What associations need ------------------------------------------------------------------------------

    def emit(self, output: Output) -> None:
        """An output of an association."""
        self._out.append(output)

    def ask(self, association: Association, talk: Talk, question: Question[Any]) -> None:
        """A question of one of its exchanges."""
        self._ticket += 1
        self._tickets[self._ticket] = (association, talk)
        self._out.append(Ask(self._ticket, question))

    def new_spi(self) -> bytes:
        """An SPI of ours that is not in use."""
        while (spi := self._env.random(8)) in self._by_spi or spi == ZERO_SPI:
            pass
        return spi

    def first_contact(self, association: Association) -> bool:
        """Whether it is the only IKE SA with its peer that is up or about to be."""
        peers = self._by_address.get(association.path.peer.address, {}).values()
        return not any(one.state is not State.CONNECTING for one in peers)

    def established(self, association: Association) -> None:
        """The peer is proven: it is half open no more, and may replace what it had before (section 2.4)."""
        self._not_half_open(association)
        self._held_down.pop((association.rule, association.path.peer.address), None)
        session = association.session
        assert session.peer is not None
        others = self._by_identity.setdefault(session.peer.identity, {})
        if session.initial_contact:
            for other in list(others.values()):
                other.abandon("the peer has begun anew", session.now)
            others = self._by_identity.setdefault(session.peer.identity, {})
        others[association.number] = association

    def moved(self, association: Association, old: Address) -> None:
        """The peer has another address."""
        _discard(self._by_address, old, association)
        self._by_address.setdefault(association.path.peer.address, {})[association.number] = association

    def adopt(self, session: Session) -> Association:
        """Hold the successor of an IKE SA."""
        session.number = self._next()
        association = self._hold(session, session.now)
        association.begin_life()
        if session.peer is not None:
            self._by_identity.setdefault(session.peer.identity, {})[association.number] = association
        return association

    def association_of(self, session: Session) -> Association | None:
        """The association of a session, None when it has closed."""
        found = self._associations.get(session.number)
        if found is not None:
            self._touch(found)  # it will be told something that changes its clocks
        return found

    def forget(self, association: Association) -> None:
        """An association has closed."""
        del self._associations[association.number]
        channel = association.session.channel
        self._by_spi.pop(channel.spi_i if channel.initiator else channel.spi_r, None)
        association.armed_at = None
        self._not_half_open(association)
        _discard(self._by_address, association.path.peer.address, association)
        if association.peer is not None:
            _discard(self._by_identity, association.peer.identity, association)
        for ticket in [one for one, (owner, _) in self._tickets.items() if owner is association]:
            del self._tickets[ticket]
        if association.initiator and association.peer is None and association.rule:
            key = (association.rule, association.path.peer.address)
            self._held_down[key] = association.session.now + HOLD_DOWN
            while len(self._held_down) > MOST_HELD_DOWN:
                self._held_down.popitem(last=False)

    # Inside ----------------------------------------------------------------------------------------------

    @contextmanager
    def _outputs(self) -> Iterator[list[Output]]:
        """Collect outputs, and see to the timers of every association that was touched."""
        out = self._out = []
        yield out
        for association in self._touched.values():
            if association.state is not State.CLOSED:
                self._arm(association)
        self._touched.clear()
        self._out = []

    def _touch(self, association: Association) -> None:
        self._touched[association.number] = association

    def _arm(self, association: Association, at_least: float = 0.0) -> None:
        deadline = association.deadline()
        if deadline is None:
            association.armed_at = None
            return
        deadline = max(deadline, at_least)
        if association.armed_at is None or deadline < association.armed_at:
            association.armed_at = deadline
            self._serial += 1
            heapq.heappush(self._timer, (deadline, self._serial, association))

    def _hold(self, session: Session, now: float) -> Association:
        association = Association(session, self, now)
        self._associations[session.number] = association
        channel = session.channel
        self._by_spi[channel.spi_i if channel.initiator else channel.spi_r] = association
        self._by_address.setdefault(session.path.peer.address, {})[session.number] = association
        self._touch(association)
        return association

    def _channel(self, initiator: bool, spi_i: bytes, spi_r: bytes) -> Channel:
        settings = self._env.settings
        return Channel(
            initiator,
            spi_i,
            spi_r,
            self._env.random,
            window=settings.window,
            message_limit=settings.message_size,
        )

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _owner_of(self, pair: SaPair) -> Association | None:
        association = self._associations.get(pair.owner)
        if association is not None:
            self._touch(association)
        return association

    def _not_half_open(self, association: Association) -> None:
        """Take a responder out of the half-open ones."""
        key = association.first_key
        if key is None:
            return
        association.first_key = None
        del self._first[key]
        self._half_open_by_address[key[0]] -= 1
        if self._half_open_by_address[key[0]] <= 0:
            del self._half_open_by_address[key[0]]

    def _drop(self, reason: str, detail: str, path: Path) -> None:
        self._out.append(DatagramDropped(reason=reason, detail=detail, path=path))


K = TypeVar("K")


def _discard(index: dict[K, dict[int, Association]], key: K, association: Association) -> None:
    """Take an association out of an index; unknown ones are ignored."""
    found = index.get(key)
    if found and found.pop(association.number, None) and not found:
        del index[key]
