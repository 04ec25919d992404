"""Quick mode in both roles: MS-AIPS sections 3.4 and 3.5. The first one rides in main mode's exchange, later
ones have their own; only the initiator of main mode begins one.

The responder installs its pair before it answers, on standby: it receives from then on and is sent on once
the initiator has synchronised, or has left that out for a while (a fast quick mode). Where extended mode
follows, the keys wait for it.
"""

from __future__ import annotations

import hmac

from ikd.auth import NOT_ADMITTED, Declined
from ikd.authip import shapes
from ikd.authip.message import Message, notify, sealed
from ikd.authip.numbers import Exchange, N, Subject
from ikd.authip.payloads import KeyDictation, Notify
from ikd.authip.session import Agreed, Asked, Session, may_have_user, wants_user
from ikd.exchange import Send, Steps, ask
from ikd.isakmp import identities, quick
from ikd.isakmp.message import Refused, Unauthentic, expect
from ikd.isakmp.numbers import N as Isakmp
from ikd.isakmp.payloads import Hash, Identification, KeyExchange, Nonce, SecurityAssociation
from ikd.isakmp.proposals import QuickChoice, accept_quick, offer_quick, quick_chosen
from ikd.keying import RETIRE
from ikd.outputs import AllocateSpi, Install, Release
from ikd.riders.vendor import Known
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload
from policy.rules import Rule
from sadb.algorithms import QuickSuite
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import Mode, SaPair
from sadb.selector import Selector, TrafficSelector

NONCE = 32
GUARANTEE_ENCRYPTION = 2  # flag of EXCHANGE_INFO

# what stands for the synchronisation of a peer that has left it out (a fast quick mode)
FAST = Message(Exchange.QUICK, (notify(N.QM_SYNCHRONIZE, Subject.QUICK),), encrypted=True)


# Both roles -------------------------------------------------------------------------------------------------


def check_peer(session: Session, rule: Rule) -> None:
    """Whether the proven peer may use a rule; raises `Declined`."""
    verdict = session.admits(rule)
    if not verdict:
        remedy = f'if this is the right host, correct `peer` or `allow` of rule "{rule.name}"'
        raise Declined(verdict.reason, remedy, cause=NOT_ADMITTED)


def proven(session: Session, rule: Rule) -> None:
    """Auth1 or Auth2 fits: the peer is who its credential says."""
    assert session.peer is not None
    session.rule = rule
    session.first_done = True
    session.local_identity = session.env.credentials.local_identity(rule, session.path.local.address)
    if session.initiator and session.principal:
        session.hooks.named(session.principal)
    session.initial_contact = Known.INITIAL_CONTACT in session.vendors and not session.initiator
    if session.peer.anonymous:
        return
    session.tell_authenticated(rule)


def make_pair(session: Session, agreed: Agreed) -> SaPair:
    """The pair; each direction's keys are derived with the SPI of its receiver."""
    assert session.parties is not None
    assert session.keys is not None
    choice = agreed.choice
    ours, theirs = (
        session.parties.quick(
            choice.suite, session.keys, session.em, agreed.message_id, spi, agreed.nonces, agreed.shared
        )
        for spi in (agreed.spi.to_bytes(4, "big"), choice.spi)
    )
    spis = agreed.spi, int.from_bytes(choice.spi, "big")
    pair = session.pair(agreed.rule, choice.suite, spis, (ours, theirs), agreed.selector, agreed.mode)
    quick.limit(pair, choice.life)
    pair.standby = True
    return pair


def install(session: Session, agreed: Agreed) -> Steps[SaPair]:
    """Put the pair of a quick mode into the SADB, on standby."""
    pair = make_pair(session, agreed)
    yield from ask(Install(pair, agreed.old))
    take(session, agreed, pair)
    return pair


def take(session: Session, agreed: Agreed, pair: SaPair) -> None:
    """A pair that has been installed is ours to use."""
    session.quick_ids[agreed.spi] = agreed.message_id
    session.add(pair, agreed.old)


def _hash(session: Session, value: bytes, *, first: bool) -> list[Payload]:
    """HASH with Auth1 or Auth2; in later quick modes as the profile has it."""
    return [Hash(data=value)] if first or session.profile.later_hash else []


def _check_hash(message: Message, expected: bytes, *, first: bool) -> None:
    """Raises `Unauthentic` unless the hash is the peer's; a later quick mode may come without."""
    found = message.maybe(Hash)
    if found is None and not first:
        return
    if found is None or not hmac.compare_digest(found.data, expected):
        raise Unauthentic("Auth1 or Auth2 does not fit: the peer has seen other messages, or has other keys")


def _suites(session: Session, rule: Rule) -> tuple[QuickSuite, ...]:
    """What one quick mode can have of a rule: what we can make keys for."""
    salted = session.profile.salt
    return tuple(
        one for one in quick.suites_of(rule) if salted or not (one.encryption and one.encryption.salt)
    )


def _check_spi(choice: QuickChoice) -> None:
    """Whether the peer's SPI is one; raises `Malformed`."""
    if int.from_bytes(choice.spi, "big") <= 255:
        raise Malformed(f"SPI {choice.spi.hex()} of a quick-mode SA")


def refuse_dictation(message: Message) -> None:
    """Keys that the peer makes up would differ from those we derive; raises `Refused`."""
    if message.maybe(KeyDictation):
        raise Refused(
            Isakmp.NO_PROPOSAL_CHOSEN,
            "the peer wants to dictate the keys, which is not done here",
            "do without key dictation in the peer's policy",
        )


def _exchange_info(session: Session, rule: Rule) -> list[Payload]:
    """N(EXCHANGE_INFO), not reliable, where encryption is guaranteed and the peer knows it."""
    if not rule.encrypt or Known.NEGOTIATION_DISCOVERY not in session.vendors:
        return []
    return [notify(N.EXCHANGE_INFO, Subject.QUICK, GUARANTEE_ENCRYPTION.to_bytes(4, "big"))]


# Initiator --------------------------------------------------------------------------------------------------


def initiate(
    session: Session,
    message_id: int,
    rule: Rule,
    asked: Asked | None = None,
    old: SaPair | None = None,
    *,
    first: bool = False,
) -> Steps[Message | None]:
    """A quick-mode SA for a rule; with `old` for the same traffic as that one, which then goes."""
    session.children.creating.append(rule.name)
    spi = 0
    try:
        spi = yield from ask(AllocateSpi())
        agreed = yield from _negotiate(session, message_id, spi, rule, asked, old, first=first)
        if first:
            proven(session, rule)
        if may_have_user(rule) and session.em is None and first and session.extends:
            session.pending = agreed  # extended mode is to come, and with it the keys
            session.quick_ids[spi] = message_id
            if not session.profile.fast_quick:
                yield from _synchronize(session, message_id, first=first)
            return None
        pair = yield from install(session, agreed)
        if first:
            session.hooks.authenticated()
        if not session.profile.fast_quick:
            yield from _synchronize(session, message_id, first=first)
    except BaseException:
        session.emit(Release(spi))
        raise
    finally:
        session.children.creating.remove(rule.name)
    pair.standby = False
    if old:
        session.hooks.delete(old, "replaced")
    return None


def _negotiate(
    session: Session,
    message_id: int,
    spi: int,
    rule: Rule,
    asked: Asked | None,
    old: SaPair | None,
    *,
    first: bool,
) -> Steps[Agreed]:
    """#5 and #6."""
    suites = _suites(session, rule)
    if not suites:
        raise Refused(0, f'rule "{rule.name}" has no quick-mode suite for AuthIP', "see `crypto`")
    local, remote = traffic(session, rule, asked, old)
    group = suites[0].group
    exchange = DiffieHellman(group) if group else None
    encapsulation = session.encapsulation(rule.mode)
    nonce_i = session.env.random(NONCE)
    request = sealed(
        Exchange.MAIN if first else Exchange.QUICK,
        message_id,
        *_hash(session, session.auth_i, first=first),
        identities.encode(local),
        identities.encode(remote),
        offer_quick(suites, spi.to_bytes(4, "big"), encapsulation, quick.life_of(rule)),
        Nonce(data=nonce_i),
        *([KeyExchange(public=exchange.public)] if exchange else []),
        *quick.original_addresses(session, rule.mode),
        *_exchange_info(session, rule),
    )

    def take(reply: Message) -> Message:
        if refused := reply.refusal():
            raise refused
        reply = shapes.fitting(reply, shapes.QUICK_REPLY)
        _check_hash(reply, session.auth_r, first=first)
        return reply

    # HDR*, HASH(Auth1), IDi, IDr, SA, Ni(qm), [KE]  -->
    reply = yield from expect(Send(request), take)
    # <--  HDR*, HASH(Auth2), IDi, IDr, SA, [KE]
    refuse_dictation(reply)
    choice = quick_chosen(reply.one(SecurityAssociation), suites, encapsulation)
    if choice is None:
        raise Refused(Isakmp.NO_PROPOSAL_CHOSEN, "the peer chose a proposal we did not offer")
    _check_spi(choice)
    quick.same(session, reply, (local, remote))
    public = reply.maybe(KeyExchange)
    if (public is None) != (exchange is None):
        raise Malformed("a key exchange on one side only")
    shared = quick.agree(exchange, public.public) if exchange and public else b""
    nonce = reply.maybe(Nonce)
    nonces = nonce_i, nonce.data if nonce and not first else session.nonce_quick
    selector = Selector((local,), (remote,))
    return Agreed(rule, choice, message_id, spi, selector, rule.mode, nonces, shared, old)


def traffic(
    session: Session, rule: Rule, asked: Asked | None, old: SaPair | None
) -> tuple[TrafficSelector, TrafficSelector]:
    """Our traffic and the peer's that a quick mode is for."""
    if old is not None:
        asked = old.selector
    if isinstance(asked, Selector):
        return asked.local[0], asked.remote[0]
    own = rule.between(session.ends.local.address, session.ends.peer.address)
    return identities.wanted(own, asked)


def _synchronize(session: Session, message_id: int, *, first: bool) -> Steps[None]:
    """#7 and #8: what comes behind is protected by the new keys."""
    number = message_id
    if first and session.profile.first_sync_id == "fresh":
        number = int.from_bytes(session.env.random(4), "big") | 2  # neither main mode's nor extended mode's
    request = sealed(Exchange.QUICK, number, notify(N.QM_SYNCHRONIZE, Subject.QUICK))

    def take(reply: Message) -> None:
        if refused := reply.refusal():
            raise refused
        _check_sync(reply)

    # HDR*, N(QM_SYNCHRONIZE)  -->   <--  HDR*, N(QM_SYNCHRONIZE)
    yield from expect(Send(request), take)


def _check_sync(message: Message) -> None:
    """Raises `Malformed` for anything but a synchronisation."""
    found = list(shapes.fitting(message, shapes.SYNCHRONIZE).every(Notify))
    if not message.encrypted or [one.type for one in found] != [N.QM_SYNCHRONIZE]:
        raise Malformed("no synchronisation of a quick mode")


# Responder --------------------------------------------------------------------------------------------------


def check(session: Session, message: Message, *, first: bool = False) -> Message:
    """A request of the peer; raises `Malformed` or `Unauthentic`."""
    message = shapes.fitting(message, shapes.QUICK_REQUEST)
    _check_hash(message, session.auth_i, first=first)
    return message


def respond(session: Session, request: Message, *, first: bool = False) -> Steps[Message | None]:
    """A quick mode of the peer, whose integrity has been checked."""
    # <--  HDR*, HASH(Auth1), IDi, IDr, SA, Ni(qm), [KE]
    request = check(session, request, first=first)
    rule, choice, selector, mode = _accept(session, request)
    _check_spi(choice)
    old = quick.replaced(session.pairs_of_peer(), rule, selector)
    if full := session.full(replacing=old is not None):
        raise Refused(Isakmp.NO_PROPOSAL_CHOSEN, full)
    exchange = DiffieHellman(choice.suite.group) if choice.suite.group else None
    public = request.maybe(KeyExchange)
    shared = quick.agree(exchange, public.public) if exchange and public else b""
    nonce_r = session.nonce_quick if first or not session.profile.later_nonce else session.env.random(NONCE)
    spi = yield from ask(AllocateSpi())
    nonces = request.one(Nonce).data, nonce_r
    agreed = Agreed(rule, choice, request.message_id, spi, selector, mode, nonces, shared, old)
    pair: SaPair | None = None
    try:
        if first:
            proven(session, rule)
        # extended mode may come, and would change the keys; where it has to, they wait for it
        waits = first and session.em is None and may_have_user(rule)
        if waits:
            session.pending = agreed
            session.quick_ids[spi] = request.message_id
        if not (waits and wants_user(rule)):
            pair = yield from install(session, agreed)
            if first:
                session.hooks.authenticated()
    except BaseException:
        session.emit(Release(spi))
        raise
    reply = sealed(
        request.exchange,
        request.message_id,
        *_hash(session, session.auth_r, first=first),
        *request.every(Identification),
        accept_quick(choice, spi.to_bytes(4, "big")),
        *([Nonce(data=nonce_r)] if not first and session.profile.later_nonce else []),
        *([KeyExchange(public=exchange.public)] if exchange else []),
        *quick.original_addresses(session, mode),
        *_exchange_info(session, rule),
    )
    # HDR*, HASH(Auth2), IDi, IDr, SA, [KE]  -->
    try:
        synchronized = yield from expect(Send(reply), _take_sync)
    except BaseException:
        if pair is not None:
            session.hooks.unfinished(pair)
        raise
    if pair is not None:
        pair.standby = session.pending is agreed  # the initiator has it behind extended mode, if that comes
        if old is not None:
            _retire(session, old)
    if not synchronized:
        return None  # there is nothing to answer
    # HDR*, N(QM_SYNCHRONIZE)  -->
    return sealed(Exchange.QUICK, 0, notify(N.QM_SYNCHRONIZE, Subject.QUICK))


def _take_sync(message: Message) -> bool:
    """Whether the initiator has synchronised, and has not left it out."""
    if message is FAST:
        return False
    _check_sync(message)
    refuse_dictation(message)
    return True


def _retire(session: Session, old: SaPair) -> None:
    """The initiator deletes what it has replaced; we do when it does not."""
    for one in (session, *session.hooks.kin()):
        if old.inbound.spi in one.children.pairs:
            one.children.retiring.append((session.now + RETIRE, old))


def _accept(session: Session, request: Message) -> tuple[Rule, QuickChoice, Selector, Mode]:
    """Which rule, suite and selector a request gets; raises `Refused`, and `Declined` when the peer may use
    none of the rules for this traffic."""
    asked = quick.asked_for(session, request)
    rules = [one for one in session.rules() if session.serves(one)]
    covered = [one for one in rules if quick.covering(session, one, asked)]
    if covered and not any(map(session.admits, covered)):
        check_peer(session, covered[0])
    return quick.accept(
        session, request, lambda one: bool(session.admits(one)), lambda rule: _suites(session, rule)
    )
