"""Extended mode in both roles: MS-AIPS sections 3.6 and 3.7. The second authentication, of a user or of the
host's health, on top of main mode; its secret goes into the keys of quick mode only."""

from __future__ import annotations

import hmac
from dataclasses import replace

from ikd.auth import Declined
from ikd.authip import methods, quick_mode, shapes, tokens
from ikd.authip.keys import extended_auth
from ikd.authip.message import Message, sealed
from ikd.authip.numbers import EXTENDED_MESSAGE_ID, Exchange, Status, method_name
from ikd.authip.payloads import Auth, GssId, decode_name
from ikd.authip.session import Agreed, Proven, Session
from ikd.authip.tokens import Acceptance, Course
from ikd.events import UserAuthenticated
from ikd.exchange import Send, Steps, ask
from ikd.isakmp.message import Refused, Unauthentic, expect
from ikd.isakmp.payloads import Hash
from ikd.outputs import AllocateSpi, Install, Remove
from ikd.wire.codec import Malformed
from policy.rules import Rule


def course(session: Session) -> Course:
    """How the tokens of extended mode travel."""
    return Course(session.profile.extended_exchange, EXTENDED_MESSAGE_ID, second=True)


def _arm(session: Session, proven: Proven) -> None:
    """SKEYID_em out of an exchange of tokens."""
    assert session.parties is not None
    session.em = session.parties.extended(session.shared, proven.secret)


def _proofs(session: Session) -> tuple[bytes, bytes]:
    """Auth3 and Auth4."""
    assert session.suite is not None
    assert session.em is not None
    u = session.transcript_em.value(session.suite.prf.hash, main=False)
    inside = session.profile.auth_inside
    return (
        extended_auth(session.suite, session.em, u, session.auth_i, inside=inside),
        extended_auth(session.suite, session.em, u, session.auth_r, inside=inside),
    )


def _check(message: Message, expected: bytes) -> None:
    """Raises `Unauthentic` unless the peer's hash fits."""
    if not hmac.compare_digest(message.one(Hash).data, expected):
        raise Unauthentic("Auth3 or Auth4 does not fit: the peer has seen other messages, or has other keys")


def _proven(session: Session, rule: Rule, proven: Proven) -> None:
    """Take note of the peer's second proof; raises `Declined` when the rule is not for it. A responder proves
    its machine once more, unless it is its health."""
    peer = proven.peer
    if session.initiator and not peer.health:
        return
    if methods.of_user(rule, proven.method):
        peer = replace(peer, method=f"user-{peer.method}", health=False)
    session.user = peer
    quick_mode.check_peer(session, rule)
    session.emit(
        UserAuthenticated(
            ike=session.number,
            rule=rule.name,
            identity=str(peer.identity),
            method=peer.method,
            description=peer.description,
            groups=peer.groups,
            health=peer.health,
            address=str(session.path.peer.address),
        )
    )


# Initiator --------------------------------------------------------------------------------------------------


def initiate(session: Session, rule: Rule, agreed: Agreed) -> Steps[Message | None]:
    """The second authentication, and the quick mode that waits for it."""
    able = methods.usable(session.env, rule, session.profile, second=True, initiator=True)
    if not able:
        raise Declined(
            f'rule "{rule.name}" wants a second authentication, and this host has no credential for one',
            "a ticket cache (identity.user_tickets), a user's certificate (identity.user_certificate), an "
            'account with use = ["user"] in secrets.toml, or a health certificate',
        )

    def take_methods(reply: Message) -> None:
        if refused := reply.refusal():
            raise refused
        reply = shapes.fitting(reply, shapes.EXTENDED_REPLY)
        common = methods.common(reply.one(Auth), able)
        if not common:
            raise Refused(Status.INVALID_AUTH_PAYLOAD, "the peer has no second authentication in common")
        session.methods = common
        if named := reply.maybe(GssId):
            session.principal = decode_name(named, session.profile.names)

    def take_proof(reply: Message) -> None:
        if refused := reply.refusal():
            raise refused
        _check(shapes.fitting(reply, shapes.EXTENDED_PROOF), auth4)

    # HDR*, AUTH  -->   <--  HDR*, AUTH, GSS_ID
    first = sealed(Exchange.EXTENDED, EXTENDED_MESSAGE_ID, methods.payload(able))
    yield from expect(Send(first), take_methods)
    proven = yield from tokens.initiate(session, course(session), rule)
    _arm(session, proven)
    auth3, auth4 = _proofs(session)
    pair = quick_mode.make_pair(session, agreed)
    try:
        # we receive on it before the responder has our proof, but it counts only with the responder's
        yield from ask(Install(pair))
        # HDR*, HASH(Auth3)  -->   <--  HDR*, HASH(Auth4)
        last = sealed(Exchange.EXTENDED, EXTENDED_MESSAGE_ID, Hash(data=auth3))
        yield from expect(Send(last), take_proof)
        _proven(session, rule, proven)
    except BaseException:
        session.emit(Remove(pair))
        raise
    session.pending = None
    quick_mode.take(session, agreed, pair)
    session.hooks.authenticated()
    pair.standby = False
    if agreed.old:
        session.hooks.delete(agreed.old, "replaced")
    return None


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message | None]:
    """The second authentication of the peer."""
    agreed = session.pending
    if agreed is None:
        raise Refused(
            Status.INVALID_AUTH_PAYLOAD,
            "the peer wants to authenticate a user, and no rule of ours has a second authentication",
            "make `auth` of both hosts' rules agree",
        )
    rule = agreed.rule
    request = shapes.fitting(request, shapes.EXTENDED_REQUEST)
    able = methods.usable(session.env, rule, session.profile, second=True, initiator=False)
    session.methods = methods.common(request.one(Auth), able)
    if not session.methods:
        names = ", ".join(method_name(one.method) for one in request.one(Auth).entries) or "nothing"
        raise Refused(
            Status.INVALID_AUTH_PAYLOAD,
            f'the peer offers {names} as second authentication, which is not in rule "{rule.name}"',
            "make the second lists of both hosts' authentication sets meet",
        )
    acceptance = Acceptance(session, course(session), rule)
    # <--  HDR*, AUTH, GSS_ID
    reply = sealed(
        Exchange.EXTENDED,
        session.profile.extended_reply_id,
        methods.payload(session.methods),
        methods.own_name(session, rule),
    )
    last = yield from tokens.respond(
        session, course(session), acceptance, Send(reply), lambda proven: _arm(session, proven), _is_proof
    )
    auth3, auth4 = _proofs(session)
    last = shapes.fitting(last, shapes.EXTENDED_PROOF)
    _check(last, auth3)
    quick_mode.refuse_dictation(last)
    assert acceptance.proven is not None
    if acceptance.proven.peer.anonymous:
        raise Declined("the peer proved nothing in the second authentication")
    _proven(session, rule, acceptance.proven)
    yield from _install(session, agreed)
    session.pending = None
    session.hooks.authenticated()
    # HDR*, HASH(Auth4)  -->
    return sealed(Exchange.EXTENDED, last.message_id, Hash(data=auth4))


def _install(session: Session, agreed: Agreed) -> Steps[None]:
    """Install what has waited; what was installed with other keys already, in case that no extended mode
    came, makes way."""
    early = session.children.pairs.get(agreed.spi)
    if early is not None:
        session.drop(early, "replaced by keys of the second authentication")
        spi = yield from ask(AllocateSpi(agreed.spi))
        assert spi == agreed.spi
    pair = yield from quick_mode.install(session, agreed)
    pair.standby = False


def _is_proof(message: Message) -> bool:
    """Whether the initiator ends the exchange of tokens with its proof."""
    if not message.encrypted:
        raise Malformed("extended mode in the clear")
    return shapes.fits(message, shapes.EXTENDED_PROOF)
