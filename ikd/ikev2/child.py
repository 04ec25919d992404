"""Child SAs: what is offered and accepted, and CREATE_CHILD_SA for new and replaced ones in both roles.

RFC 7296 sections 1.3.1, 1.3.3, 2.8.1, 2.9, 2.17 and 2.25.1; RFC 6023 leaves the first one out. IKE_AUTH uses
`offer`, `settle` and `accept` for the Child SA that travels in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ikd.exchange import Pause, Steps, ask, send
from ikd.ikev2 import selectors
from ikd.ikev2.informational import delete_children
from ikd.ikev2.keys import keymat
from ikd.ikev2.message import Message, Refused, status
from ikd.ikev2.numbers import Exchange, N, notify_name
from ikd.ikev2.payloads import (
    KeyExchange,
    Nonce,
    Notify,
    Proposal,
    SecurityAssociation,
    TrafficSelectorsI,
    TrafficSelectorsR,
)
from ikd.ikev2.proposals import PROTOCOLS, accept_quick, choose_quick, compare, offer_quick, quick_chosen
from ikd.ikev2.session import ChildRekey, Session
from ikd.outputs import AllocateSpi, Install, Release, Remove
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Payload
from policy.peers import admits
from policy.rules import Rule
from sadb.algorithms import Group, QuickSuite
from sadb.backend import Unavailable
from sadb.crypto import BadPublic
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import Acquire, Mode, SaPair
from sadb.selector import Selector, TrafficSelector

BUSY_TRIES = 5  # how often a request answered with TEMPORARY_FAILURE is made again
BUSY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What both sides put into a Child SA's keys."""

    nonce_i: bytes
    nonce_r: bytes
    shared: bytes = b""  # of a Diffie-Hellman exchange of its own, if there was one

    @property
    def lowest(self) -> bytes:
        """What decides a collision (section 2.8.1)."""
        return min(self.nonce_i, self.nonce_r)


def quick_suites(rule: Rule) -> tuple[QuickSuite, ...]:
    """The rule's suites; with guaranteed encryption those that encrypt."""
    suites = rule.crypto.quick if rule.crypto else ()
    if not rule.encrypt:
        return suites
    return tuple(one for one in suites if one.encryption and one.encryption.encrypts)


def pfs_groups(rule: Rule) -> tuple[Group, ...]:
    """Groups in which a peer may wish for forward secrecy although the rule does not: those of main mode."""
    return tuple(dict.fromkeys(suite.group for suite in rule.crypto.main)) if rule.crypto else ()


class Unwanted(Refused):
    """The peer made a Child SA and deleted it before we knew of it."""


# Both roles -------------------------------------------------------------------------------------------------


def offer(
    rule: Rule, suites: Sequence[QuickSuite], spi: int, wanted: Selector, *, transport: bool
) -> list[Payload]:
    """[N(USE_TRANSPORT_MODE),] SA, TSi, TSr of the initiator."""
    notify = [status(N.USE_TRANSPORT_MODE)] if transport else []
    return [
        *notify,
        offer_quick(suites, spi.to_bytes(4, "big")),
        TrafficSelectorsI(ranges=selectors.encode(wanted.local)),
        TrafficSelectorsR(ranges=selectors.encode(wanted.remote)),
    ]


def make_pair(
    session: Session,
    rule: Rule,
    suite: QuickSuite,
    spis: tuple[int, int],
    selector: Selector,
    mode: Mode,
    exchanged: Exchanged,
    *,
    initiator: bool,
) -> SaPair:
    """The pair that a negotiation yields; `initiator` tells who began the exchange."""
    assert session.keys is not None
    assert session.suite is not None
    from_i, from_r = keymat(
        session.suite.prf, session.keys.d, suite, exchanged.shared, exchanged.nonce_i, exchanged.nonce_r
    )
    return session.pair(
        rule, suite, spis, (from_r, from_i) if initiator else (from_i, from_r), selector, mode
    )


def peer_spi(proposal: Proposal) -> int:
    """The SPI in a proposal; raises `Malformed` for one that cannot be."""
    spi = int.from_bytes(proposal.spi, "big")
    if len(proposal.spi) != 4 or spi <= 255:
        raise Malformed(f"SPI {proposal.spi.hex()} of a Child SA")
    return spi


# Initiator --------------------------------------------------------------------------------------------------


def settle(
    session: Session,
    rule: Rule,
    suites: Sequence[QuickSuite],
    wanted: Selector,
    spi: int,
    reply: Message,
    exchanged: Exchanged,
    *,
    transport: bool,
    first: bool,
) -> SaPair:
    """The pair out of the responder's answer; raises `Refused` when it declines or does not answer what we
    asked."""
    declined = reply.error()
    if declined is not None:
        raise declined_by_peer(declined, suites, rule)
    chosen = quick_chosen(reply.one(SecurityAssociation), suites, pfs_groups(rule), first=first)
    if chosen is None:
        raise Refused(N.NO_PROPOSAL_CHOSEN, "the peer chose a proposal we did not offer")
    suite, proposal = chosen
    tsi = selectors.decode(reply.one(TrafficSelectorsI).ranges)
    tsr = selectors.decode(reply.one(TrafficSelectorsR).ranges)
    mode = Mode.TRANSPORT if transport and reply.notify(N.USE_TRANSPORT_MODE) else Mode.TUNNEL
    if (
        mode is Mode.TRANSPORT and session.nat_peer
    ):  # section 2.23.1: the peer names its address as it sees it
        tsr = selectors.moved(tsr, session.ends.peer.address)
    local = selectors.narrowed(tsi, wanted.local)
    remote = selectors.narrowed(tsr, wanted.remote)
    if not local or not remote:
        raise Refused(
            N.TS_UNACCEPTABLE,
            f"the peer answered with selectors outside of what we asked: {selectors.shown(tsi, tsr)}",
        )
    return make_pair(
        session,
        rule,
        suite,
        (spi, peer_spi(proposal)),
        Selector(local, remote),
        mode,
        exchanged,
        initiator=True,
    )


def declined_by_peer(notify: Notify, suites: Sequence[QuickSuite], rule: Rule) -> Refused:
    """The peer's refusal of a Child SA, with what we had asked."""
    reasons = {
        N.NO_PROPOSAL_CHOSEN: (
            "the peer refused our proposals for the Child SA",
            "compare `crypto` of both rules",
        ),
        N.TS_UNACCEPTABLE: (
            "the peer does not protect this traffic",
            "`local` and `remote` of both hosts' rules must mirror each other",
        ),
        N.NO_ADDITIONAL_SAS: ("the peer takes no more Child SAs", ""),
        N.SINGLE_PAIR_REQUIRED: ("the peer wants a Child SA for each pair of addresses", ""),
    }
    reason, remedy = reasons.get(notify.type, (f"the peer refused: {notify_name(notify.type)}", ""))  # type: ignore[call-overload]
    comparison = compare(None, suites, sent=True) if notify.type == N.NO_PROPOSAL_CHOSEN else None
    if notify.type == N.TS_UNACCEPTABLE:
        remedy += f" (we asked for {rule.selector})"
    return Refused(notify.type, reason, remedy, comparison=comparison, by_peer=True)


def create(session: Session, rule: Rule, acquire: Acquire | None = None) -> Steps[None]:
    """A further Child SA, initiator, section 1.3.1."""
    session.children.creating.append(rule.name)
    try:
        wanted = selectors.wanted(rule, session.ends, acquire)
        pair = yield from _request(session, rule, wanted, None)
        session.add(pair)
    except Overtaken as error:
        raise Refused(N.TEMPORARY_FAILURE, str(error), "try again", by_peer=True) from error
    finally:
        session.children.creating.remove(rule.name)
        session.children.forget_early()


def rekey(session: Session, old: SaPair, rule: Rule) -> Steps[None]:
    """Replace a Child SA, initiator, sections 1.3.3, 2.8.1 and 2.25.1."""
    children = session.children
    spi = old.inbound.spi
    if spi not in children.pairs or spi in children.deleting or spi in children.rekeys:
        return
    record = children.rekeys[spi] = ChildRekey(ours=True)
    try:
        pair, exchanged = yield from _replacement(session, old, rule)
    except Overtaken:
        return
    except Unwanted as unwanted:
        if spi in children.pairs:
            yield from delete_children(session, [old], str(unwanted))
        raise
    except Refused as refused:
        if refused.by_peer and refused.notify == N.CHILD_SA_NOT_FOUND and spi in children.pairs:
            session.drop(old, "the peer has no such Child SA")
            yield from create(session, rule)
            return
        if spi not in children.pairs:  # the peer has replaced or deleted it meanwhile
            return
        raise
    finally:
        record.ours = False
        if record.theirs is None:
            children.rekeys.pop(spi, None)
        children.forget_early()
    session.add(pair, old)
    if record.theirs and exchanged.lowest < record.theirs[0]:
        yield from delete_children(session, [pair], "another exchange replaced the same Child SA")
    elif spi in children.pairs:
        yield from delete_children(session, [old], "replaced", linger=True)


def _replacement(session: Session, old: SaPair, rule: Rule) -> Steps[tuple[SaPair, Exchanged]]:
    """Negotiate the pair that replaces another, for the same traffic."""
    wanted = selectors.narrowed_to_rule(rule, old.selector)
    box: list[Exchanged] = []
    pair = yield from _request(session, rule, wanted, old, box)
    return pair, box[0]


def _request(
    session: Session, rule: Rule, wanted: Selector, old: SaPair | None, box: list[Exchanged] | None = None
) -> Steps[SaPair]:
    """HDR, SK {[N(REKEY_SA),] SA, Ni, [KEi,] TSi, TSr}  -->  and what comes of it, until it is installed."""
    suites = quick_suites(rule)
    spi = yield from ask(AllocateSpi())
    try:
        group = suites[0].group
        transport = rule.mode is Mode.TRANSPORT
        nonce = session.env.random(32)
        busy = 0
        while True:
            exchange = DiffieHellman(group) if group else None
            payloads = offer(rule, suites, spi, wanted, transport=transport)
            payloads.insert(-2, Nonce(data=nonce))
            if exchange and group:
                payloads.insert(-2, KeyExchange(group=group.ikev2, public=exchange.public))
            if old:
                protocol = PROTOCOLS[old.inbound.suite.protocol]
                payloads.insert(
                    0, Notify(protocol=protocol, type=N.REKEY_SA, spi=old.inbound.spi.to_bytes(4, "big"))
                )
            session.children.requests += 1
            try:
                reply: Message = yield from send(Message(Exchange.CREATE_CHILD_SA, tuple(payloads)))
            finally:
                session.children.requests -= 1
            if (notify := reply.notify(N.INVALID_KE_PAYLOAD)) and busy < BUSY_TRIES:
                group = _other_group(notify, suites, pfs_groups(rule))
                busy += 1
                continue
            if reply.notify(N.TEMPORARY_FAILURE) and busy < BUSY_TRIES:
                busy += 1
                yield from _give_way(session, old, busy)
                continue
            break
        if reply.error():
            raise declined_by_peer(reply.error() or Notify(type=0, spi=b""), suites, rule)
        exchanged = Exchanged(nonce, reply.one(Nonce).data, _agree(exchange, reply))
        try:
            pair = settle(
                session, rule, suites, wanted, spi, reply, exchanged, transport=transport, first=False
            )
            _check_group(pair.inbound.suite, exchange)
        except Refused:
            yield from disown(session, suites, spi)
            raise
        _still_wanted(session, pair)
    except BaseException:
        session.emit(Release(spi))
        raise
    yield from install(session, pair, old)
    try:
        _still_wanted(session, pair)
    except Unwanted:
        session.emit(Remove(pair))
        raise
    if box is not None:
        box.append(exchanged)
    return pair


def _still_wanted(session: Session, pair: SaPair) -> None:
    """Raises `Unwanted` when the peer has deleted what its answer, or our SADB, has just given us."""
    if pair.outbound.spi in session.children.early:
        raise Unwanted(0, "the peer deleted the new Child SA before we had it", by_peer=True)


class Overtaken(Exception):
    """The peer was quicker: what we were about to do is done, or will be done on the successor."""


def _give_way(session: Session, old: SaPair | None, times: int) -> Steps[None]:
    """Let the peer finish what stood against our request (section 2.25); raises `Overtaken` when ours has
    become needless."""
    children = session.children
    record = children.rekeys.get(old.inbound.spi) if old else None
    if record:
        record.ours = False  # nothing of ours is on its way meanwhile
    yield Pause(backoff(session, times))
    if session.ike_rekey:
        if old and old.inbound.spi in children.pairs:
            children.due[old.inbound.spi] = old
        raise Overtaken("the IKE SA is being replaced")
    if record and old:
        if record.theirs or old.inbound.spi not in children.pairs:
            raise Overtaken("the peer has replaced the Child SA")
        record.ours = True


def backoff(session: Session, times: int) -> float:
    """Seconds to give way for, longer each time and not the same at both ends."""
    return BUSY_SECONDS * times * (0.5 + int.from_bytes(session.env.random(1), "big") / 256)


def disown(session: Session, suites: Sequence[QuickSuite], spi: int) -> Steps[None]:
    """The peer has made a Child SA that we do not take: it has to go there too."""
    for protocol in dict.fromkeys(PROTOCOLS[one.protocol] for one in suites):
        yield from delete_children(session, [], "", extra=(protocol, (spi,)))


def install(session: Session, pair: SaPair, old: SaPair | None = None) -> Steps[None]:
    """Install what the responder has installed already; when that fails, tell it before giving up."""
    try:
        yield from ask(Install(pair, old))
    except Unavailable:
        session.emit(Release(pair.inbound.spi))
        protocol = PROTOCOLS[pair.inbound.suite.protocol]
        yield from delete_children(session, [], "", extra=(protocol, (pair.inbound.spi,)))
        raise


def _agree(exchange: DiffieHellman | None, reply: Message) -> bytes:
    payload = reply.maybe(KeyExchange)
    if exchange is None or payload is None:
        return b""
    if payload.group != exchange.group.ikev2:
        raise Malformed(f"key exchange in group {payload.group}")
    try:
        return exchange.agree(payload.public)
    except BadPublic as error:
        raise Malformed(str(error)) from error


def _check_group(suite: QuickSuite, exchange: DiffieHellman | None) -> None:
    """The peer may neither leave out nor add a key exchange."""
    if (suite.group.ikev2 if suite.group else None) != (exchange.group.ikev2 if exchange else None):
        raise Refused(
            N.NO_PROPOSAL_CHOSEN, "the peer chose a proposal whose group is not that of the exchange"
        )


def _other_group(notify: Notify, suites: Sequence[QuickSuite], groups: Iterable[Group]) -> Group | None:
    """The group the responder asks for; raises `Refused` when we did not offer it."""
    number = int.from_bytes(notify.data, "big")
    known = {one.ikev2: one for one in (*groups, *(suite.group for suite in suites)) if one}
    if number and number not in known:
        raise Refused(
            N.INVALID_KE_PAYLOAD, f"the peer wants group {number}, which we did not offer", by_peer=True
        )
    return known.get(number)


# Responder --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What the initiator's request wants protected, seen from here."""

    rule: Rule
    suite: QuickSuite
    proposal: Proposal
    selector: Selector
    answer_i: tuple[TrafficSelector, ...]  # as it will stand in TSi and TSr
    answer_r: tuple[TrafficSelector, ...]
    mode: Mode


def accept(session: Session, request: Message, rules: Sequence[Rule], *, first: bool) -> Asked:
    """Which rule, suite and selectors a request gets; raises `Refused`."""
    tsi = selectors.decode(request.one(TrafficSelectorsI).ranges)
    tsr = selectors.decode(request.one(TrafficSelectorsR).ranges)
    transport = request.notify(N.USE_TRANSPORT_MODE) is not None
    seen_i, seen_r = tsi, tsr
    if transport and session.nat_peer:
        seen_i = selectors.moved(tsi, session.ends.peer.address)
    if transport and session.nat_local:
        seen_r = selectors.moved(tsr, session.ends.local.address)
    fitting = []
    for rule in rules:
        own = rule.between(session.ends.local.address, session.ends.peer.address)
        local = selectors.narrowed(seen_r, own.local)
        remote = selectors.narrowed(seen_i, own.remote)
        if local and remote:
            fitting.append((rule, Selector(local, remote)))
    if (
        not fitting
        and not first
        and session.mobility
        and session.path.peer.address != session.ends.peer.address
    ):
        where = session.path.peer.address
        raise Refused(N.TEMPORARY_FAILURE, f"it is not known yet whether the peer is at {where}", "try again")
    if not fitting:
        wanted = "; ".join(str(rule.selector) for rule in rules) or "nothing for this peer"
        raise Refused(
            N.TS_UNACCEPTABLE,
            f"the peer asks for {selectors.shown(tsr, tsi)}, our rules protect {wanted}",
            "`local` and `remote` of both hosts' rules must mirror each other",
        )
    payload = request.one(SecurityAssociation)
    for rule, selector in fitting:
        chosen = choose_quick(payload, quick_suites(rule), pfs_groups(rule), first=first)
        if chosen is None:
            continue
        mode = Mode.TRANSPORT if transport and rule.mode is Mode.TRANSPORT else Mode.TUNNEL
        answer_i, answer_r = selector.remote, selector.local
        if mode is Mode.TRANSPORT and seen_i is not tsi:
            answer_i = selectors.moved(answer_i, tsi[0].low)
        if mode is Mode.TRANSPORT and seen_r is not tsr:
            answer_r = selectors.moved(answer_r, tsr[0].low)
        return Asked(rule, *chosen, selector, answer_i, answer_r, mode)
    rule = fitting[0][0]
    raise Refused(
        N.NO_PROPOSAL_CHOSEN,
        f'no proposal for the Child SA is one of rule "{rule.name}"',
        "compare `crypto` of both rules",
        comparison=compare(payload, quick_suites(rule), sent=False),
    )


def build(
    session: Session, asked: Asked, exchanged: Exchanged, old: SaPair | None = None
) -> Steps[tuple[SaPair, list[Payload]]]:
    """Install the responder's side of a Child SA and give the payloads of the answer: [N,] SA, TSi, TSr."""
    if full := session.full(replacing=old is not None):
        raise Refused(N.NO_ADDITIONAL_SAS, full)
    spi = yield from ask(AllocateSpi())
    try:
        spis = spi, peer_spi(asked.proposal)
        pair = make_pair(
            session, asked.rule, asked.suite, spis, asked.selector, asked.mode, exchanged, initiator=False
        )
        pair.standby = (
            old is not None
        )  # the peer installs it when our answer arrives, and then drops the old one
        yield from ask(Install(pair, old))
    except BaseException:
        session.emit(Release(spi))
        raise
    payloads: list[Payload] = [status(N.USE_TRANSPORT_MODE)] if asked.mode is Mode.TRANSPORT else []
    payloads += [
        accept_quick(asked.suite, asked.proposal, spi.to_bytes(4, "big")),
        TrafficSelectorsI(ranges=selectors.encode(asked.answer_i)),
        TrafficSelectorsR(ranges=selectors.encode(asked.answer_r)),
    ]
    session.add(pair, old)
    return pair, payloads


def respond(session: Session, request: Message) -> Steps[Message]:
    """CREATE_CHILD_SA for a Child SA, responder: a new one or, with N(REKEY_SA), a replacement."""
    children = session.children
    old: SaPair | None = None
    if notify := request.notify(N.REKEY_SA):
        old = session.named(notify.protocol, notify.spi)
        if old is None and children.asking:
            raise Refused(N.TEMPORARY_FAILURE, "the peer replaces a Child SA that we may be about to know")
        if old is None:
            raise Refused(
                N.CHILD_SA_NOT_FOUND, f"the peer replaces Child SA {notify.spi.hex()}, which is not there"
            )
        if old.inbound.spi in children.deleting:
            raise Refused(N.TEMPORARY_FAILURE, "the peer replaces a Child SA we are deleting")
    if session.ike_rekey and session.ike_rekey.ours:
        raise Refused(N.TEMPORARY_FAILURE, "the IKE SA is being replaced")
    # <--  HDR, SK {[N(REKEY_SA),] SA, Ni, [KEi,] TSi, TSr}
    rules = session_rules(session)
    if old and (own := session.env.policy.rule(old.rule)) in rules and own:
        rules = (own, *(rule for rule in rules if rule is not own))
    asked = accept(session, request, rules, first=False)
    nonce_r = session.env.random(32)
    extra: list[Body] = [Nonce(data=nonce_r)]
    shared = b""
    if asked.suite.group:
        payload = request.maybe(KeyExchange)
        if payload is None or payload.group != asked.suite.group.ikev2:
            raise Refused(
                N.INVALID_KE_PAYLOAD,
                f"key exchange in another group than {asked.suite.group.name}",
                data=asked.suite.group.ikev2.to_bytes(2, "big"),
            )
        exchange = DiffieHellman(asked.suite.group)
        try:
            shared = exchange.agree(payload.public)
        except BadPublic as error:
            raise Malformed(str(error)) from error
        extra.append(KeyExchange(group=asked.suite.group.ikev2, public=exchange.public))
    exchanged = Exchanged(request.one(Nonce).data, nonce_r, shared)
    pair, payloads = yield from build(session, asked, exchanged, old)
    if old:
        children.rekeys.setdefault(old.inbound.spi, ChildRekey()).theirs = exchanged.lowest, pair
    # HDR, SK {SA, Nr, [KEr,] TSi, TSr}  -->
    payloads[-2:-2] = extra  # type: ignore[assignment]
    return Message(Exchange.CREATE_CHILD_SA, tuple(payloads))


def session_rules(session: Session) -> tuple[Rule, ...]:
    """Rules whose Child SAs this IKE SA may carry: same proof asked for, and the proven peer admitted."""
    names = session.peer.claims if session.peer else ()
    return tuple(rule for rule in session.rules() if session.serves(rule) and admits(rule, names))


def without_pfs(suites: Iterable[QuickSuite]) -> tuple[QuickSuite, ...]:
    """Suites as they are offered in IKE_AUTH, which has no key exchange for the Child SA."""
    return tuple(dict.fromkeys(replace(one, group=None) for one in suites))
