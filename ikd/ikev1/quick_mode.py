"""Quick mode in both roles: RFC 2409 section 5.5, RFC 2407 section 4.5, RFC 3947 section 5.

The responder installs its pair before it answers, on standby: it receives from then on, and is sent on once
the initiator has shown with HASH(3) that it has it, too. A pair that replaces another lets it go when it is
in use.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace

from ikd.exchange import Send, Steps, ask
from ikd.ikev1 import phase1
from ikd.ikev1.keys import keymat, last_hash, message_hash
from ikd.ikev1.main_mode import agree
from ikd.ikev1.message import Message, status
from ikd.ikev1.session import Session
from ikd.isakmp import identities
from ikd.isakmp.message import Refused, Unauthentic
from ikd.isakmp.numbers import Exchange, IdType, N, Traversal
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    NatOriginalAddress,
    NatOriginalAddressDraft,
    Nonce,
    SecurityAssociation,
)
from ikd.isakmp.proposals import (
    PROTOCOLS,
    Life,
    QuickChoice,
    accept_quick,
    choose_quick,
    compare_quick,
    offer_quick,
    quick_chosen,
    read_responder_lifetime,
    responder_lifetime,
    together,
)
from ikd.keying import RETIRE, SOFT
from ikd.outputs import AllocateSpi, Install, Release
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload, encode_chain
from policy.peers import admits
from policy.rules import Rule
from sadb.address import Address
from sadb.algorithms import Group, QuickSuite
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import Acquire, Lifetime, Mode, SaPair
from sadb.selector import Selector, TrafficSelector

NONCE = 32
_ORIGINAL = {
    Traversal.RFC_3947: NatOriginalAddress,
    Traversal.DRAFT_02: NatOriginalAddressDraft,
}


# Both roles -------------------------------------------------------------------------------------------------


def _sealed(session: Session, message_id: int, payloads: Sequence[Payload], nonce_i: bytes = b"") -> Message:
    """A message with its HASH(1) or, with the initiator's nonce, HASH(2) in front."""
    assert session.keys is not None
    _, rest = encode_chain(payloads)
    digest = message_hash(session.row, session.keys.a, message_id, rest, nonce_i)
    return Message(Exchange.QUICK, (Hash(data=digest), *payloads), message_id, encrypted=True)


def check(session: Session, message: Message, nonce_i: bytes = b"") -> None:
    """Raises `Unauthentic` unless the message's hash fits."""
    assert session.keys is not None
    if not message.encrypted:
        raise Malformed("a quick mode in the clear")
    expected = message_hash(session.row, session.keys.a, message.message_id, message.behind_hash(), nonce_i)
    if not hmac.compare_digest(message.one(Hash).data, expected):
        raise Unauthentic("the hash of a quick mode does not fit")


def suites_of(rule: Rule) -> tuple[QuickSuite, ...]:
    """What one quick mode can offer of a rule; with guaranteed encryption what encrypts."""
    suites = rule.crypto.quick if rule.crypto else ()
    if rule.encrypt:
        suites = tuple(one for one in suites if one.encryption and one.encryption.encrypts)
    return together(replace(one, esn=False) for one in suites)


def _groups(rule: Rule) -> tuple[Group, ...]:
    return tuple(dict.fromkeys(suite.group for suite in rule.crypto.main)) if rule.crypto else ()


def life_of(rule: Rule) -> Life:
    """Seconds and kilobytes of a rule's quick-mode SAs."""
    life = rule.crypto.lifetime if rule.crypto else None
    if life is None:
        return Life()
    seconds = None if life.quick_seconds is None else int(life.quick_seconds)
    return Life(seconds, None if life.quick_octets is None else life.quick_octets // 1024)


def _limited(lifetime: Lifetime, life: Life) -> Lifetime:
    """The limits of a pair when the other end wants shorter ones."""
    if life.seconds is not None and (lifetime.hard_seconds is None or life.seconds < lifetime.hard_seconds):
        lifetime = replace(lifetime, hard_seconds=float(life.seconds), soft_seconds=life.seconds * SOFT)
    if life.kilobytes is not None:
        octets = life.kilobytes * 1024
        if lifetime.hard_octets is None or octets < lifetime.hard_octets:
            lifetime = replace(lifetime, hard_octets=octets, soft_octets=int(octets * SOFT))
    return lifetime


def _pair(
    session: Session,
    rule: Rule,
    choice: QuickChoice,
    spi: int,
    selector: Selector,
    mode: Mode,
    nonces: tuple[bytes, bytes],
    shared: bytes,
    life: Life,
) -> SaPair:
    """The pair; each direction's keys are derived with the SPI of its receiver."""
    assert session.keys is not None
    peer = int.from_bytes(choice.spi, "big")
    if peer <= 255:
        raise Malformed(f"SPI {choice.spi.hex()} of a quick-mode SA")
    protocol = PROTOCOLS[choice.suite.protocol]
    ours, theirs = (
        keymat(session.row, session.keys.d, choice.suite, protocol, octets, *nonces, shared)
        for octets in (spi.to_bytes(4, "big"), choice.spi)
    )
    pair = session.pair(rule, choice.suite, (spi, peer), (ours, theirs), selector, mode)
    limits = _limited(pair.inbound.lifetime, life)
    pair.inbound.lifetime = pair.outbound.lifetime = limits
    return pair


def _original_addresses(session: Session, mode: Mode) -> list[Payload]:
    """NAT-OA of both ends in transport mode: what the checksums of packets were computed with (RFC 3947
    section 5.2; MS-IKEE has it sent whenever the sender is behind a NAT)."""
    made = _ORIGINAL.get(session.traversal)
    if made is None or mode is Mode.TUNNEL or not session.nat:
        return []
    path = session.path
    ends = (path.local.address, path.peer.address)
    initiator_first = ends if session.initiator else ends[::-1]
    return [made(type=_address_type(one), address=one.packed) for one in initiator_first]


def _address_type(address: Address) -> int:
    return IdType.IPV4_ADDR if address.version == 4 else IdType.IPV6_ADDR


# Initiator --------------------------------------------------------------------------------------------------


def initiate(
    session: Session, message_id: int, rule: Rule, acquire: Acquire | None = None, old: SaPair | None = None
) -> Steps[Message | None]:
    """A quick-mode SA for a rule; with `old` for the same traffic as that one, which then goes."""
    session.children.creating.append(rule.name)
    spi = 0
    try:
        spi = yield from ask(AllocateSpi())
        suites = suites_of(rule)
        if not suites:
            raise Refused(0, f'rule "{rule.name}" has no quick-mode suite that IKEv1 can say', "see `crypto`")
        if old:
            local, remote = old.selector.local[0], old.selector.remote[0]
        else:
            own = rule.between(session.path.local.address, session.path.peer.address)
            local, remote = identities.wanted(own, acquire)
        group = suites[0].group
        exchange = DiffieHellman(group) if group else None
        encapsulation = session.encapsulation(rule.mode)
        nonce_i = session.env.random(NONCE)
        life = life_of(rule)
        payloads: list[Payload] = [
            offer_quick(suites, spi.to_bytes(4, "big"), encapsulation, life),
            Nonce(data=nonce_i),
            *([KeyExchange(public=exchange.public)] if exchange else []),
            identities.encode(local),
            identities.encode(remote),
            *_original_addresses(session, rule.mode),
        ]

        def take(reply: Message) -> Message:
            check(session, reply, nonce_i)
            return reply

        # HDR*, HASH(1), SA, Ni, [KE,] IDci, IDcr  -->
        reply = yield from phase1.expect(Send(_sealed(session, message_id, payloads)), take)
        # <--  HDR*, HASH(2), SA, Nr, [KE,] IDci, IDcr
        choice = quick_chosen(reply.one(SecurityAssociation), suites, encapsulation)
        if choice is None:
            raise Refused(N.NO_PROPOSAL_CHOSEN, "the peer chose a proposal we did not offer")
        _same(session, reply, (local, remote))
        public = reply.maybe(KeyExchange)
        if (public is None) != (exchange is None):
            raise Malformed("a key exchange on one side only")
        shared = agree(exchange, public.public) if exchange and public else b""
        if notify := reply.notify(N.RESPONDER_LIFETIME):
            life = read_responder_lifetime(notify.data)
        nonces = nonce_i, reply.one(Nonce).data
        selector = Selector((local,), (remote,))
        pair = _pair(session, rule, choice, spi, selector, rule.mode, nonces, shared, life)
        yield from ask(Install(pair, old))
    except BaseException:
        session.emit(Release(spi))
        raise
    finally:
        session.children.creating.remove(rule.name)
    session.add(pair, old)
    if old:
        session.hooks.delete(old, "replaced")
    assert session.keys is not None
    # HDR*, HASH(3)  -->
    digest = last_hash(session.row, session.keys.a, message_id, *nonces)
    return Message(Exchange.QUICK, (Hash(data=digest),), message_id, encrypted=True)


def _same(session: Session, reply: Message, asked: tuple[TrafficSelector, TrafficSelector]) -> None:
    """The responder has to say the same identities (RFC 2409 section 5.5); behind a NAT addresses may
    differ."""
    found = list(reply.every(Identification))
    answered = tuple(identities.decode(one) for one in found[:2])
    if answered and answered != asked and not session.nat:
        raise Refused(
            N.INVALID_ID_INFORMATION,
            f"the peer answered with {answered[0]} and {answered[1]}, we asked for {asked[0]} and {asked[1]}",
            "`local` and `remote` of both hosts' rules must mirror each other",
        )


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message | None]:
    """A quick mode of the peer, whose HASH(1) has been checked."""
    # <--  HDR*, HASH(1), SA, Ni, [KE,] [IDci, IDcr]
    limit = session.env.settings.children
    if len(session.children.pairs) >= limit:
        raise Refused(N.NO_PROPOSAL_CHOSEN, f"this peer has {limit} quick-mode SAs, the most it may have")
    rule, choice, selector, mode = _accept(session, request)
    exchange = DiffieHellman(choice.suite.group) if choice.suite.group else None
    public = request.maybe(KeyExchange)
    shared = agree(exchange, public.public) if exchange and public else b""
    nonces = request.one(Nonce).data, session.env.random(NONCE)
    own = life_of(rule)
    old = _replaced(session, rule, selector)
    spi = yield from ask(AllocateSpi())
    try:
        pair = _pair(session, rule, choice, spi, selector, mode, nonces, shared, choice.life)
        pair.standby = True
        yield from ask(Install(pair, old))
    except BaseException:
        session.emit(Release(spi))
        raise
    session.add(pair, old)
    payloads: list[Payload] = [
        accept_quick(choice, spi.to_bytes(4, "big")),
        Nonce(data=nonces[1]),
        *([KeyExchange(public=exchange.public)] if exchange else []),
        *request.every(Identification),
        *_shorter(choice, own, spi),
        *_original_addresses(session, mode),
    ]

    def take(last: Message) -> None:
        assert session.keys is not None
        expected = last_hash(session.row, session.keys.a, request.message_id, *nonces)
        if not last.encrypted or not hmac.compare_digest(last.one(Hash).data, expected):
            raise Unauthentic("HASH(3) does not fit")

    # HDR*, HASH(2), SA, Nr, [KE,] [IDci, IDcr]  -->
    try:
        answer = _sealed(session, request.message_id, payloads, nonces[0])
        # <--  HDR*, HASH(3)
        yield from phase1.expect(Send(answer), take)
    except BaseException:
        session.hooks.unfinished(pair)
        raise
    pair.standby = False
    if old is not None:
        session.children.retiring.append((session.now + RETIRE, old))
    return None


def _accept(session: Session, request: Message) -> tuple[Rule, QuickChoice, Selector, Mode]:
    """Which rule, suite and selector a request gets; raises `Refused`."""
    found = list(request.every(Identification))
    path = session.path
    if len(found) == 2:
        remote, local = identities.decode(found[0]), identities.decode(found[1])
    else:  # without identities it is about the hosts themselves
        remote, local = TrafficSelector.of(path.peer.address), TrafficSelector.of(path.local.address)
    names = session.peer.claims if session.peer else ()
    rules = [one for one in session.rules() if session.serves(one) and admits(one, names)]
    payload = request.one(SecurityAssociation)
    pfs = request.maybe(KeyExchange) is not None
    covered = []
    for rule in rules:
        seen_local, seen_remote = local, remote
        if (
            rule.mode is Mode.TRANSPORT and session.nat
        ):  # the addresses packets really have (RFC 3947 section 5)
            if session.nat_peer and remote.single:
                seen_remote = replace(remote, low=path.peer.address, high=path.peer.address)
            if session.nat_local and local.single:
                seen_local = replace(local, low=path.local.address, high=path.local.address)
        own = rule.between(path.local.address, path.peer.address)
        selector = identities.fitting(own, seen_local, seen_remote)
        if selector is None:
            continue
        covered.append(rule)
        encapsulation = session.encapsulation(rule.mode)
        choice = choose_quick(payload, suites_of(rule), (encapsulation,), _groups(rule), pfs=pfs)
        if choice is not None:
            return rule, choice, selector, rule.mode
    if covered:
        rule = covered[0]
        encapsulation = session.encapsulation(rule.mode)
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            f'no quick-mode proposal is one of rule "{rule.name}"',
            "compare `crypto` of both rules, PFS, and whether both say tunnel or transport",
            comparison=compare_quick(payload, suites_of(rule), (encapsulation,), sent=False),
        )
    known = "; ".join(str(rule.selector) for rule in rules) or "nothing for this peer"
    raise Refused(
        N.INVALID_ID_INFORMATION,
        f"the peer asks for {local} === {remote}, our rules protect {known}",
        "`local` and `remote` of both hosts' rules must mirror each other",
    )


def _shorter(choice: QuickChoice, own: Life, spi: int) -> list[Payload]:
    """N(RESPONDER-LIFETIME) where we want shorter lives than were proposed (RFC 2407 section 4.6.3.1)."""
    theirs = choice.life
    seconds = (
        own.seconds if own.seconds and (theirs.seconds is None or own.seconds < theirs.seconds) else None
    )
    kilobytes = None
    if own.kilobytes and (theirs.kilobytes is None or own.kilobytes < theirs.kilobytes):
        kilobytes = own.kilobytes
    if seconds is None and kilobytes is None:
        return []
    data = responder_lifetime(Life(seconds, kilobytes))
    protocol = PROTOCOLS[choice.suite.protocol]
    return [status(N.RESPONDER_LIFETIME, data, protocol, spi.to_bytes(4, "big"))]


def _replaced(session: Session, rule: Rule, selector: Selector) -> SaPair | None:
    """The pair for the same traffic that is due to be replaced, which is what a rekeying peer is about."""
    same = [
        one
        for one in session.children.pairs.values()
        if one.rule == rule.name and one.selector == selector and not one.standby
    ]
    return same[-1] if same else None
