"""Quick mode in both roles: RFC 2409 section 5.5, RFC 2407 section 4.5, RFC 3947 section 5.

The responder installs its pair before it answers, on standby: it receives from then on, and is sent on once
the initiator has shown with HASH(3) that it has it, too. A pair that replaces another lets it go when it is
in use.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from ikd.exchange import Send, Steps, ask
from ikd.ikev1.keys import keymat, last_hash, message_hash
from ikd.ikev1.message import Message, status
from ikd.ikev1.session import Session
from ikd.isakmp import identities, quick
from ikd.isakmp.message import Refused, Unauthentic, expect
from ikd.isakmp.numbers import Exchange, N
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    Nonce,
    SecurityAssociation,
)
from ikd.isakmp.proposals import (
    PROTOCOLS,
    Life,
    QuickChoice,
    accept_quick,
    offer_quick,
    quick_chosen,
    read_responder_lifetime,
    responder_lifetime,
)
from ikd.keying import GRACE, RETIRE
from ikd.outputs import AllocateSpi, Install, Release
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload, encode_chain
from policy.peers import admits
from policy.rules import Rule
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import Acquire, Mode, SaPair
from sadb.selector import Selector

NONCE = 32


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
    quick.limit(pair, life)
    return pair


# Initiator --------------------------------------------------------------------------------------------------


def initiate(
    session: Session, message_id: int, rule: Rule, acquire: Acquire | None = None, old: SaPair | None = None
) -> Steps[Message | None]:
    """A quick-mode SA for a rule; with `old` for the same traffic as that one, which then goes."""
    session.children.creating.append(rule.name)
    spi = 0
    try:
        spi = yield from ask(AllocateSpi())
        suites = quick.suites_of(rule)
        if not suites:
            raise Refused(0, f'rule "{rule.name}" has no quick-mode suite that IKEv1 can say', "see `crypto`")
        if old:
            local, remote = old.selector.local[0], old.selector.remote[0]
        else:
            own = rule.between(session.ends.local.address, session.ends.peer.address)
            local, remote = identities.wanted(own, acquire)
        group = suites[0].group
        exchange = DiffieHellman(group) if group else None
        encapsulation = session.encapsulation(rule.mode)
        nonce_i = session.env.random(NONCE)
        life = quick.life_of(rule)
        payloads: list[Payload] = [
            offer_quick(suites, spi.to_bytes(4, "big"), encapsulation, life),
            Nonce(data=nonce_i),
            *([KeyExchange(public=exchange.public)] if exchange else []),
            identities.encode(local),
            identities.encode(remote),
            *quick.original_addresses(session, rule.mode),
        ]

        def take(reply: Message) -> Message:
            check(session, reply, nonce_i)
            return reply

        # HDR*, HASH(1), SA, Ni, [KE,] IDci, IDcr  -->
        reply = yield from expect(Send(_sealed(session, message_id, payloads)), take)
        # <--  HDR*, HASH(2), SA, Nr, [KE,] IDci, IDcr
        choice = quick_chosen(reply.one(SecurityAssociation), suites, encapsulation)
        if choice is None:
            raise Refused(N.NO_PROPOSAL_CHOSEN, "the peer chose a proposal we did not offer")
        quick.same(session, reply, (local, remote))
        public = reply.maybe(KeyExchange)
        if (public is None) != (exchange is None):
            raise Malformed("a key exchange on one side only")
        shared = quick.agree(exchange, public.public) if exchange and public else b""
        if notify := reply.notify(N.RESPONDER_LIFETIME):
            life = read_responder_lifetime(notify.data)
        nonces = nonce_i, reply.one(Nonce).data
        selector = Selector((local,), (remote,))
        pair = _pair(session, rule, choice, spi, selector, rule.mode, nonces, shared, life)
        pair.grace = (
            GRACE  # many a peer installs its pair when it reads our last message, which it never answers
        )
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


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message | None]:
    """A quick mode of the peer, whose HASH(1) has been checked."""
    # <--  HDR*, HASH(1), SA, Ni, [KE,] [IDci, IDcr]
    names = session.peer.claims if session.peer else ()
    rule, choice, selector, mode = quick.accept(session, request, lambda one: bool(admits(one, names)))
    old = quick.replaced(list(session.children.pairs.values()), rule, selector)
    if full := session.full(replacing=old is not None):
        raise Refused(N.NO_PROPOSAL_CHOSEN, full)
    exchange = DiffieHellman(choice.suite.group) if choice.suite.group else None
    public = request.maybe(KeyExchange)
    shared = quick.agree(exchange, public.public) if exchange and public else b""
    nonces = request.one(Nonce).data, session.env.random(NONCE)
    own = quick.life_of(rule)
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
        *quick.original_addresses(session, mode),
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
        yield from expect(Send(answer), take)
    except BaseException:
        session.hooks.unfinished(pair)
        raise
    pair.standby = False
    if old is not None:
        session.children.retiring.append((session.now + RETIRE, old))
    return None


def _shorter(choice: QuickChoice, own: Life, spi: int) -> list[Payload]:
    """N(RESPONDER-LIFETIME) where we want shorter lives than were proposed (RFC 2407 section 4.6.3.1)."""
    life = quick.shorter(own, choice.life)
    if life == Life():
        return []
    protocol = PROTOCOLS[choice.suite.protocol]
    return [status(N.RESPONDER_LIFETIME, responder_lifetime(life), protocol, spi.to_bytes(4, "big"))]
