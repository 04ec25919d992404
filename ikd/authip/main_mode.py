"""Main mode in both roles: MS-AIPS sections 3.2 and 3.3. Two messages, tokens until both sides are proven,
and the first quick mode rides on the end.

What comes in the clear is a hint until Auth1 or Auth2 has been checked: both cover all of it.
"""

from __future__ import annotations

from dataclasses import replace

from ikd.auth import ANONYMOUS
from ikd.authip import methods, offers, quick_mode, shapes, tokens
from ikd.authip.message import Message, plain
from ikd.authip.numbers import MAIN_MESSAGE_ID, Exchange, Method, N, method_name
from ikd.authip.payloads import Auth, GssApi, GssId, decode_name
from ikd.authip.session import Asked, Proven, Session, wants_user
from ikd.authip.tokens import Acceptance, Course, Opening
from ikd.exchange import Send, Steps
from ikd.isakmp.message import Refused, expect
from ikd.isakmp.numbers import N as Isakmp
from ikd.isakmp.payloads import KeyExchange, Nonce, SecurityAssociation
from ikd.isakmp.proposals import NO_GROUP, accept_main
from ikd.isakmp.quick import agree
from ikd.wire.codec import Malformed
from policy.rules import Rule
from sadb.algorithms import MainSuite
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import SaPair
from sadb.secret import Secret

NONCE = 32
COURSE = Course(Exchange.MAIN, MAIN_MESSAGE_ID, second=False)


# Initiator --------------------------------------------------------------------------------------------------


def initiate(
    session: Session, rule: Rule, asked: Asked | None = None, old: SaPair | None = None
) -> Steps[Message | None]:
    """Make a main-mode SA and the first quick-mode SA on it."""
    session.rule = rule
    terms = offers.terms(session, (rule,), initiator=True)
    exchange = DiffieHellman(terms.group) if terms.group else None
    session.nonce_i = session.env.random(NONCE)
    opened = yield from tokens.opening(session, rule, terms.methods)
    answer = yield from _first(session, terms, exchange, rule, opened)
    offers.float_port(session)
    opened = replace(opened, reply=answer) if opened and answer else None
    proven = yield from tokens.initiate(session, COURSE, rule, opened)
    session.arm(proven)
    session.seal_transcript()
    session.peer = proven.peer
    session.claimed = proven.peer.identity
    quick_mode.check_peer(session, rule)
    able = methods.usable(session.env, rule, session.profile, second=True, initiator=True)
    session.extends = wants_user(rule) or bool(able)
    yield from quick_mode.initiate(session, MAIN_MESSAGE_ID, rule, asked, old, first=True)
    return None


def _first(
    session: Session,
    terms: offers.Terms,
    exchange: DiffieHellman | None,
    rule: Rule,
    opened: Opening | None,
) -> Steps[GssApi | None]:
    """The first two messages; once more with a cookie when the responder asks for one. The answer to the
    token in the first, if there was one."""

    cookies = [session.channel.cookie_r]

    def take(reply: Message) -> bytes | GssApi | None:
        if notify := reply.notify(N.DOS_COOKIE):
            return notify.data
        _take_second(session, terms, exchange, reply, rule)
        # a demand may have been forged: the responder's cookie tells which message it has answered
        answered = session.channel.cookie_r
        session.transcript.choose_first(cookies.index(answered) if answered in cookies else 0)
        return reply.maybe(GssApi)

    while True:
        # HDR, CRYPTO, SA, AUTH, Ni, VID..., [NAT-D, NAT-D,] [GSS,] [KE]  -->
        first = plain(
            Exchange.MAIN,
            MAIN_MESSAGE_ID,
            offers.offer(session, terms),
            methods.payload(terms.methods),
            Nonce(data=session.nonce_i),
            *offers.announcements(session, terms.group, initiator=True),
            *offers.discovery(session),
            *([opened.token] if opened else []),
            *([KeyExchange(public=exchange.public)] if exchange else []),
        )
        # <--  HDR, CRYPTO, SA, AUTH, Nr, Nr(qm), VID..., [NAT-D, NAT-D,] [GSS,] [GSS_ID,] [KE]
        answer = yield from expect(Send(first), take)
        if not isinstance(answer, bytes):
            return answer
        session.channel.cookie_r = answer
        cookies.append(answer)


def _take_second(
    session: Session, terms: offers.Terms, exchange: DiffieHellman | None, reply: Message, rule: Rule
) -> None:
    """The responder's answer; raises `Malformed`, and nothing has changed then."""
    if refused := reply.refusal():
        raise refused
    if reply.encrypted:
        raise Malformed("an encrypted answer to a first message")
    reply = shapes.fitting(reply, shapes.SECOND)
    choice = offers.chosen(reply.one(SecurityAssociation), terms)
    if choice is None:
        raise Malformed("the peer chose a proposal we did not offer")
    common = methods.common(reply.one(Auth), terms.methods)
    if not common or len(reply.one(Auth).entries) != len(common):
        raise Malformed("the peer chose an authentication method we did not offer")
    nonce_r, nonce_quick = shapes.nonces(reply, 2)
    public = reply.maybe(KeyExchange)
    if (public is None) != (exchange is None):
        raise Malformed("a key exchange on one side only")
    shared = agree(exchange, public.public) if exchange and public else b""
    named = reply.maybe(GssId)
    principal = decode_name(named, session.profile.names) if named else session.principal
    offers.hear(session, reply)
    offers.find_nat(session, reply, session.channel.cookie_r)
    session.methods, session.nonce_quick, session.principal = common, nonce_quick, principal
    session.agree_on(choice.suite, nonce_r, shared)
    session.suite = offers.of_rule(choice.suite, (rule,))


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message, cookie_r: bytes) -> Steps[Message | None]:
    """Main mode of a peer; `cookie_r` is that of the header of its first message."""
    # <--  HDR, CRYPTO, SA, AUTH, Ni, VID..., [NAT-D, NAT-D,] [GSS,] [KE]
    path = session.path
    rules = session.env.policy.for_peer(path.local.address, path.peer.address, "authip")
    if not rules:
        raise Refused(
            Isakmp.NO_PROPOSAL_CHOSEN,
            f"no rule secures traffic with {path.peer.address} by AuthIP",
            'add a rule for this peer, or "authip" to its `keying`',
        )
    terms = offers.terms(session, rules, initiator=False)
    request = shapes.fitting(request, shapes.FIRST)
    offers.hear(session, request)
    choice = offers.choose(request.one(SecurityAssociation), terms)
    rule = session.rule = _rule_for(session, rules, choice.suite, request.one(Auth))
    group = None if choice.suite.group == NO_GROUP else choice.suite.group
    public = request.maybe(KeyExchange)
    if (public is None) != (group is None):
        raise Malformed("a key exchange without its group, or the reverse")
    exchange = DiffieHellman(group) if group else None
    shared = agree(exchange, public.public) if exchange and public else b""
    session.nonce_i = request.one(Nonce).data
    session.nonce_quick = session.env.random(NONCE)
    offers.find_nat(session, request, cookie_r)
    session.agree_on(choice.suite, session.env.random(NONCE), shared)
    session.suite = offers.of_rule(choice.suite, rules)
    acceptance = Acceptance(session, COURSE, rule)
    answer = yield from _first_token(session, acceptance, request)
    # HDR, CRYPTO, SA, AUTH, Nr, Nr(qm), VID..., [NAT-D, NAT-D,] [GSS,] [GSS_ID,] [KE]  -->
    second = plain(
        Exchange.MAIN,
        MAIN_MESSAGE_ID,
        accept_main(choice),
        methods.payload(session.methods),
        Nonce(data=session.nonce_r),
        Nonce(data=session.nonce_quick),
        *offers.announcements(session, group, initiator=False),
        *offers.discovery(session),
        answer or methods.own_name(session, rule),
        *([KeyExchange(public=exchange.public)] if exchange else []),
    )
    del request  # a stranger's offer may be large, and nobody needs it while he is waited for
    request = yield from tokens.respond(session, COURSE, acceptance, Send(second), session.arm, _is_quick)
    # <--  HDR*, HASH(Auth1), IDi, IDr, SA, Ni(qm), [KE]
    session.seal_transcript()
    proven = acceptance.proven
    assert proven is not None
    session.peer, session.claimed = proven.peer, proven.peer.identity
    return (yield from quick_mode.respond(session, request, first=True))


def _rule_for(session: Session, rules: tuple[Rule, ...], suite: MainSuite, offered: Auth) -> Rule:
    """The rule whose authentication the peer is put to, and the methods for it; raises `Refused`."""
    without_dh = suite.group == NO_GROUP
    for rule in rules:
        able = methods.usable(session.env, rule, session.profile, second=False, initiator=False)
        common = methods.common(offered, able)
        if without_dh:
            common = tuple(one for one in common if not methods.needs_dh((one,)))
        if common and rule.crypto and offers.of_rule(suite, (rule,)) in rule.crypto.main:
            session.methods = common
            return rule
    names = ", ".join(method_name(one.method) for one in offered.entries) or "nothing"
    wanted = methods.described(rules)
    raise Refused(
        Isakmp.AUTHENTICATION_FAILED,
        f"the peer offers to authenticate with {names}, our rules want {wanted}",
        "make `auth` of both hosts' rules meet",
    )


def _first_token(session: Session, acceptance: Acceptance, request: Message) -> Steps[GssApi | None]:
    """The answer to a token in the first message, if there is one and it is for the method that was chosen;
    the initiator begins anew otherwise. One that means to stay anonymous may go on without any
    (OQ-15)."""
    token, first = request.maybe(GssApi), session.methods[0]
    answer = None
    if token is not None and request.one(Auth).entries[0].method == first:
        answer = yield from acceptance.take(token)
    elif first == Method.ANONYMOUS:
        acceptance.proven = Proven(first, ANONYMOUS, Secret(b""), one_way=True)
    if acceptance.proven is not None:
        session.arm(acceptance.proven)
    return answer


def _is_quick(message: Message) -> bool:
    """Whether the initiator goes on with quick mode."""
    return message.encrypted and shapes.fits(message, shapes.QUICK_REQUEST)
