"""Aggressive mode in both roles: RFC 2409 sections 5.1 and 5.4. Only where a rule asks for it by name.

Identities go in the clear, and with a pre-shared key a stranger gets what it needs to guess the key offline;
and there is one group to propose. Loading such a rule says so.
"""

from __future__ import annotations

from dataclasses import replace

from ikd.auth import Declined, Identity
from ikd.exchange import Send, Step, Steps, Wait
from ikd.ikev1 import phase1, shapes
from ikd.ikev1.main_mode import take_public
from ikd.ikev1.message import Message
from ikd.ikev1.session import Session
from ikd.isakmp.message import Refused, expect
from ikd.isakmp.numbers import Exchange, Method, N
from ikd.isakmp.payloads import Identification, KeyExchange, Nonce, SecurityAssociation
from ikd.isakmp.proposals import accept_main, main_chosen, offer_main
from ikd.isakmp.quick import agree
from ikd.wire.codec import Malformed
from policy.peers import admits
from policy.rules import Rule
from sadb.crypto import KeyExchange as DiffieHellman


def _message(*payloads: object, encrypted: bool = False) -> Message:
    return Message(Exchange.AGGRESSIVE, tuple(payloads), encrypted=encrypted)  # type: ignore[arg-type]


# Initiator --------------------------------------------------------------------------------------------------


def initiate(session: Session, rule: Rule) -> Steps[Message | None]:
    """Make an ISAKMP SA with three messages."""
    session.rule = rule
    terms = phase1.terms(session, (rule,), tokens=False)
    group = terms.suites[0].group
    suites = tuple(one for one in terms.suites if one.group == group)  # the public value is sent at once
    offer = offer_main(suites, terms.methods, terms.life)
    session.sa = offer.encode()
    exchange = DiffieHellman(group)
    session.public_i, session.nonce_i = exchange.public, session.env.random(phase1.NONCE)
    identity = phase1.own_identity(session, rule)

    def take(reply: Message) -> Message:
        if refused := phase1.declined_by_peer(reply):
            raise refused
        found = main_chosen(reply.one(SecurityAssociation), suites, terms.methods)
        if found is None:
            raise Malformed("the peer chose a proposal we did not offer")
        shapes.check(Exchange.AGGRESSIVE, 2, reply.payloads, found.method)
        public, nonce = take_public(reply, group)
        shared = agree(exchange, public)
        phase1.chosen(session, found, terms)
        session.public_r, session.nonce_r = public, nonce
        phase1.hear(session, reply)
        phase1.find_nat(session, reply)
        payload = reply.one(Identification)
        session.claimed = Identity(payload.type, payload.data)
        phase1.make_keys(session, rule, shared)
        return reply

    # HDR, SA, KE, Ni, IDii  -->
    first = _message(
        offer,
        KeyExchange(public=exchange.public),
        Nonce(data=session.nonce_i),
        identity,
        *phase1.announcements(session, (), initiator=True),
    )
    # <--  HDR, SA, KE, Nr, IDir, [CERT,] HASH_R or SIG_R
    reply = yield from expect(Send(first), take)
    yield from phase1.verify(session, rule, reply)
    phase1.float_port(session)
    proof = yield from phase1.proof(session).prove(rule, identity)
    contact = phase1.initial_contact(session)
    phase1.proven(session, rule, reply)
    # HDR*, [CERT,] HASH_I or SIG_I, [NAT-D, NAT-D]  -->
    return _message(*proof, *phase1.discovery(session), *contact, encrypted=True)


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message | None]:
    """Aggressive mode of a peer."""
    # <--  HDR, SA, KE, Ni, IDii
    path = session.path
    rules = tuple(
        rule
        for rule in session.env.policy.for_peer(path.local.address, path.peer.address, "ikev1")
        if rule.aggressive
    )
    if not rules:
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            f"no rule answers {path.peer.address} in aggressive mode",
            "let the peer use main mode, or write `aggressive = true` into the rule",
        )
    payload = request.one(Identification)
    session.claimed = Identity(payload.type, payload.data)
    name = (str(session.claimed),)
    rule = session.rule = next((rule for rule in rules if admits(rule, name)), rules[0])
    terms = phase1.terms(session, (rule,), tokens=False)
    choice = phase1.choose(session, request, terms)
    exchange = DiffieHellman(choice.suite.group)
    public, session.nonce_i = take_public(request, exchange.group)
    session.public_i, session.public_r = public, exchange.public
    session.nonce_r = session.env.random(phase1.NONCE)
    phase1.make_keys(session, rule, agree(exchange, public))
    identity = phase1.own_identity(session, rule)
    proof = yield from phase1.proof(session).prove(rule, identity)
    # HDR, SA, KE, Nr, IDir, [CERT,] HASH_R or SIG_R, [NAT-D, NAT-D]  -->
    second = _message(
        accept_main(choice),
        KeyExchange(public=exchange.public),
        Nonce(data=session.nonce_r),
        identity,
        *proof,
        *phase1.proof(session).requests(),
        *phase1.announcements(session, (), initiator=False),
        *phase1.discovery(session),
    )
    # a stranger's offer may be large, and nobody needs it while he is waited for
    request = replace(request, payloads=(payload,))
    # <--  HDR*, [CERT,] HASH_I or SIG_I
    step: Step = Send(second)
    while True:
        last: Message = yield step
        try:
            yield from phase1.verify(session, rule, last, request)
            break
        except (Declined, Malformed) as error:
            if last.encrypted or session.method != Method.PSK:
                raise
            step = Wait(error)  # in the clear it may be anybody's
    phase1.find_nat(session, last)
    phase1.proven(session, rule, last)
    return None
