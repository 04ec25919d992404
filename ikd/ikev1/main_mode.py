"""Main mode in both roles: RFC 2409 sections 5.1 and 5.4; the tokens of Kerberos travel beside the public
values.

What comes in the clear is a hint until a proof has been checked. The responder keeps a stranger's first
message only within the limits of half-open negotiations, and answers nothing on its own.
"""

from __future__ import annotations

from ikd.auth import Declined, Identity
from ikd.exchange import Send, Steps
from ikd.ikev1 import phase1
from ikd.ikev1.message import Message
from ikd.ikev1.proofs import encode_name
from ikd.ikev1.session import Session
from ikd.isakmp.message import Refused, expect
from ikd.isakmp.numbers import Exchange, N
from ikd.isakmp.payloads import GssToken, Identification, KeyExchange, Nonce, SecurityAssociation
from ikd.isakmp.proposals import MainChoice, accept_main, main_chosen, offer_main
from ikd.isakmp.quick import agree
from ikd.wire.codec import Malformed
from policy.peers import admits
from policy.rules import Rule
from sadb.algorithms import Group
from sadb.crypto import KeyExchange as DiffieHellman


def _message(*payloads: object, encrypted: bool = False) -> Message:
    return Message(Exchange.MAIN, tuple(payloads), encrypted=encrypted)  # type: ignore[arg-type]


def take_public(message: Message, group: Group) -> tuple[bytes, bytes]:
    """Public value and nonce; raises `Malformed` for a value of another size than the group's."""
    public = message.one(KeyExchange).public
    if len(public) != group.public:
        raise Malformed(f"a public value of {len(public)} octets for {group.name}")
    return public, message.one(Nonce).data


# Initiator --------------------------------------------------------------------------------------------------


def initiate(session: Session, rule: Rule) -> Steps[Message | None]:
    """Make an ISAKMP SA."""
    session.rule = rule
    terms = phase1.terms(session, (rule,))
    offer = offer_main(terms.suites, terms.methods, terms.life, encode_name(terms.name))
    session.sa = offer.encode()

    def take_answer(reply: Message) -> MainChoice:
        if refused := phase1.declined_by_peer(reply):
            raise refused
        found = main_chosen(reply.one(SecurityAssociation), terms.suites, terms.methods)
        if found is None:
            raise Malformed("the peer chose a proposal we did not offer")
        phase1.hear(session, reply)
        if found.method not in terms.understood(session):
            raise Refused(
                0, phase1.XAUTH, "let the peer announce Kerberos (vendor ID GSSAPI), or do without it"
            )
        return found

    # HDR, SA  -->
    first = Send(_message(offer, *phase1.announcements(session, terms.methods, initiator=True)))
    # <--  HDR, SA
    phase1.chosen(session, (yield from expect(first, take_answer)), terms)
    assert session.suite is not None
    proof = phase1.proof(session)
    exchange = DiffieHellman(session.suite.group)
    session.public_i, session.nonce_i = exchange.public, session.env.random(phase1.NONCE)

    def take_keys(reply: Message) -> bytes:
        public, session.nonce_r = take_public(reply, exchange.group)
        shared = agree(exchange, public)
        session.public_r = public
        phase1.find_nat(session, reply)
        proof.hear(reply)
        return shared

    tokens = yield from proof.begin(rule)
    # HDR, KE, Ni, [GSSi,] [NAT-D, NAT-D]  -->
    third = _message(
        KeyExchange(public=exchange.public), Nonce(data=session.nonce_i), *tokens, *phase1.discovery(session)
    )
    # <--  HDR, KE, Nr, [GSSr,] [NAT-D, NAT-D,] [CERTREQ]
    shared = yield from expect(Send(third), take_keys)
    yield from proof.finish()
    phase1.make_keys(session, rule, shared)
    phase1.float_port(session)
    identity = phase1.own_identity(session, rule)
    proving = yield from proof.prove(rule, identity)
    # HDR*, IDii, [CERT,] HASH_I or SIG_I  -->
    fifth = _message(identity, *proving, *proof.requests(), *phase1.initial_contact(session), encrypted=True)
    # <--  HDR*, IDir, [CERT,] HASH_R or SIG_R
    reply: Message = yield Send(fifth)
    yield from phase1.verify(session, rule, reply)
    phase1.proven(session, rule, reply)
    return None


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message | None]:
    """Main mode of a peer."""
    # <--  HDR, SA
    path = session.path
    rules = session.env.policy.for_peer(path.local.address, path.peer.address, "ikev1")
    if not rules:
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            f"no rule secures traffic with {path.peer.address} by IKEv1",
            'add a rule for this peer, or "ikev1" to its `keying`',
        )
    terms = phase1.terms(session, rules)
    choice = phase1.choose(session, request, terms)
    proof = phase1.proof(session)
    exchange = DiffieHellman(choice.suite.group)

    def take_keys(message: Message) -> bytes:
        public, session.nonce_i = take_public(message, exchange.group)
        shared = agree(exchange, public)
        session.public_i = public
        phase1.find_nat(session, message)
        proof.hear(message)
        return shared

    # HDR, SA  -->
    second = _message(
        accept_main(choice, encode_name(terms.name)),
        *phase1.announcements(session, (choice.method,), initiator=False),
    )
    del request  # a stranger's offer may be large, and nobody needs it while he is waited for
    # <--  HDR, KE, Ni, [GSSi,] [NAT-D, NAT-D]
    shared = yield from expect(Send(second), take_keys)
    session.public_r, session.nonce_r = exchange.public, session.env.random(phase1.NONCE)
    rule = session.rule = _rule_for(session, rules)
    keys = KeyExchange(public=exchange.public), Nonce(data=session.nonce_r)
    try:
        tokens = yield from proof.answer(rule)
    except Declined as declined:
        if declined.token:  # it says more to the peer than a notify can
            session.hooks.part(_message(*keys, GssToken(token=declined.token)))
        raise
    phase1.make_keys(session, rule, shared)
    # HDR, KE, Nr, [GSSr,] [NAT-D, NAT-D,] [CERTREQ]  -->
    fourth = _message(*keys, *tokens, *proof.requests(), *phase1.discovery(session))
    # <--  HDR*, IDii, [CERT,] HASH_I or SIG_I
    request = yield from proof.settle(fourth)
    payload_i = request.one(Identification)
    names = proof.names(Identity(payload_i.type, payload_i.data))
    rule = session.rule = _rule_for(session, rules, names)
    yield from phase1.verify(session, rule, request)
    identity = phase1.own_identity(session, rule)
    proving = yield from proof.prove(rule, identity)
    phase1.proven(session, rule, request)
    # HDR*, IDir, [CERT,] HASH_R or SIG_R  -->
    return _message(identity, *proving, encrypted=True)


def _rule_for(session: Session, rules: tuple[Rule, ...], names: tuple[str, ...] = ()) -> Rule:
    """The rule whose authentication the peer is put to: one that wants what was agreed and, once the peer's
    names are known, expects it; else the first, whose refusal will say whom it expects."""
    able = [rule for rule in rules if phase1.serves(session, rule)]
    if not able:
        raise Refused(N.NO_PROPOSAL_CHOSEN, "no single rule wants both the suite and the method agreed on")
    if names:
        return next((rule for rule in able if admits(rule, names)), able[0])
    return able[0]
