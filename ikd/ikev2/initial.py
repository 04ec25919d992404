"""The initial exchanges, IKE_SA_INIT and IKE_AUTH, in both roles: RFC 7296 sections 1.2, 2.6, 2.14 to 2.16,
2.21.

What an unprotected message says before there are keys is a hint: the initiator goes on waiting for a better
answer until it would have to repeat itself. The responder computes the shared secret only when a protected
message asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ikd.auth import NOT_ADMITTED, Authenticate, Declined, Identity, Token
from ikd.auth.psk import METHOD as PSK
from ikd.auth.signature import ANNOUNCED
from ikd.events import PeerAnnounced
from ikd.exchange import Send, Step, Steps, Wait, ask, send
from ikd.ikev2 import child, correlation, mobike, selectors
from ikd.ikev2.failure import told
from ikd.ikev2.informational import delete_ike, refuse_peer
from ikd.ikev2.keys import seed
from ikd.ikev2.message import Message, Refused, Silent, status
from ikd.ikev2.numbers import Exchange, N, notify_name
from ikd.ikev2.payloads import (
    Authentication,
    Certificate,
    CertificateRequest,
    Correlation,
    IdentificationI,
    IdentificationR,
    KeyExchange,
    Nonce,
    Notify,
    SecurityAssociation,
    TrafficSelectorsI,
    TrafficSelectorsR,
    VendorId,
)
from ikd.ikev2.proposals import accept_main, choose_main, compare, main_chosen, offer_main
from ikd.ikev2.session import Session
from ikd.outputs import AllocateSpi, Release
from ikd.riders import vendor
from ikd.riders.vendor import Known
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI, Body, Payload
from policy.peers import admits
from policy.rules import Rule
from sadb.algorithms import GROUP_BY_ID, MainSuite
from sadb.backend import Unavailable
from sadb.crypto import BadPublic
from sadb.crypto import KeyExchange as DiffieHellman
from sadb.sa import Acquire, Mode

NONCE = 32
MOST_COOKIES = 3
_X509 = 4  # certificate encoding, section 3.6
_HASHES = b"".join(number.to_bytes(2, "big") for number in sorted(ANNOUNCED))


# Both roles -------------------------------------------------------------------------------------------------


def _abilities(session: Session) -> list[Payload]:
    """What we can do, as far as it is said in IKE_SA_INIT."""
    found: list[Payload] = [status(N.SIGNATURE_HASH_ALGORITHMS, _HASHES)]
    if session.env.settings.fragmentation:
        found.append(status(N.IKEV2_FRAGMENTATION_SUPPORTED))
    left_out = () if session.initiator and session.hooks.first_contact() else (Known.INITIAL_CONTACT,)
    found += (VendorId(data=one) for one in session.announced.of_ikev2(left_out))
    return found


def _hear(session: Session, message: Message) -> None:
    """Take note of the peer's abilities, and of a NAT on the way."""
    settings = session.env.settings
    session.vendors = vendor.heard(one.data for one in message.every(VendorId))
    if session.vendors:
        session.emit(PeerAnnounced(ike=session.number, vendor_ids=vendor.names(session.vendors)))
    if settings.fragmentation and message.notify(N.IKEV2_FRAGMENTATION_SUPPORTED):
        session.channel.fragments = settings.fragment_size
    if notify := message.notify(N.SIGNATURE_HASH_ALGORITHMS):
        data = notify.data
        session.peer_hashes = frozenset(data[at] << 8 | data[at + 1] for at in range(0, len(data) - 1, 2))
    session.childless = message.notify(N.CHILDLESS_IKEV2_SUPPORTED) is not None
    nat = mobike.detected(message, (message.octets[:8], message.octets[8:16]), session.path)
    if nat is not None:
        session.traversal = True
        session.nat_local, session.nat_peer = nat


def _certificates(token: Token) -> list[Payload]:
    return [Certificate(encoding=_X509, data=one) for one in token.certificates]


def _requests(session: Session) -> list[Payload]:
    """CERTREQ with the authorities we trust, none when there are none."""
    hashes = session.env.credentials.certreq()
    return [CertificateRequest(encoding=_X509, data=b"".join(hashes))] if hashes else []


def _authorities(message: Message) -> tuple[bytes, ...]:
    """SHA-1 hashes of the keys of authorities a peer trusts."""
    found = (one.data for one in message.every(CertificateRequest) if one.encoding == _X509)
    return tuple(data[at : at + 20] for data in found for at in range(0, len(data) - 19, 20))


def _token(session: Session, message: Message) -> Token:
    """The peer's proof; raises `Refused` when there is none, which is how EAP begins."""
    proof = message.maybe(Authentication)
    if proof is None:
        raise Refused(
            N.AUTHENTICATION_FAILED,
            "the peer sent no AUTH payload: it wants to authenticate with EAP",
            "configure a certificate or a pre-shared key at the peer",
        )
    session.tried = "psk" if proof.method == PSK else "certificate"
    certificates = tuple(one.data for one in message.every(Certificate) if one.encoding == _X509)
    return Token(proof.data, proof.method, certificates)


def _window(session: Session) -> list[Payload]:
    """N(SET_WINDOW_SIZE), section 2.3."""
    return [status(N.SET_WINDOW_SIZE, session.env.settings.window.to_bytes(4, "big"))]


def _hear_protected(session: Session, message: Message) -> None:
    """Notifies of IKE_AUTH."""
    if notify := message.notify(N.SET_WINDOW_SIZE):
        session.peer_window = max(1, min(64, int.from_bytes(notify.data[:4], "big")))
    session.initial_contact = message.notify(N.INITIAL_CONTACT) is not None


def _proven(session: Session, rule: Rule) -> None:
    """The peer is who it says and may use the rule: the IKE SA is up."""
    session.rule = rule
    session.tell_authenticated(rule)
    session.hooks.authenticated()


# Initiator --------------------------------------------------------------------------------------------------


def initiate(session: Session, rule: Rule, acquire: Acquire | None, *, childless: bool) -> Steps[None]:
    """Make an IKE SA and, unless `childless`, its first Child SA."""
    session.rule = rule
    if session.original is not None:
        correlation.ready(session.original)
    reply = yield from _first_exchange(session, rule)
    session.authorities = _authorities(reply)
    port = session.env.settings.nat_port
    floats = session.nat or (session.traversal and mobike.wanted(session, rule))  # RFC 4555 section 3.3
    if floats and session.path.local.port != port:  # else it has begun there, and a NAT has its own
        session.path = session.path.moved(port)
    if childless and not session.childless:
        raise Refused(0, "the peer does not take an IKE SA without a Child SA (RFC 6023)")
    spi = 0 if childless else (yield from ask(AllocateSpi()))
    try:
        yield from _prove(session, rule, acquire, spi)
    except BaseException:
        if spi:
            session.emit(Release(spi))
        raise


def _first_exchange(session: Session, rule: Rule) -> Steps[Message]:
    """IKE_SA_INIT until there are keys; returns the answer."""
    assert rule.crypto is not None
    suites = rule.crypto.main
    groups = {suite.group.ikev2: suite.group for suite in suites}
    exchange = DiffieHellman(suites[0].group)
    tried = {exchange.group.ikev2}
    session.nonce_i = session.env.random(NONCE)
    cookie: list[Payload] = []
    cookies = 0
    # HDR, [N(COOKIE)], SAi1, KEi, Ni  -->
    step: Step = Send(_first_message(session, suites, exchange, cookie))
    while True:
        reply: Message = yield step
        # <--  HDR, N(COOKIE) or N(INVALID_KE_PAYLOAD) or SAr1, KEr, Nr, [CERTREQ]
        if (notify := reply.notify(N.COOKIE)) and 1 <= len(notify.data) <= 64 and cookies < MOST_COOKIES:
            cookie, cookies = [status(N.COOKIE, notify.data)], cookies + 1
            step = Send(_first_message(session, suites, exchange, cookie))
            continue
        if notify := reply.notify(N.INVALID_KE_PAYLOAD):
            number = int.from_bytes(notify.data, "big")
            if number in groups and number not in tried:
                exchange = DiffieHellman(groups[number])
                tried.add(number)
                step = Send(_first_message(session, suites, exchange, cookie))
                continue
        try:
            _take_first_answer(session, reply, suites, exchange)
        except (Malformed, Refused) as error:
            step = Wait(error)
            continue
        return reply


def _first_message(
    session: Session, suites: Sequence[MainSuite], exchange: DiffieHellman, cookie: list[Payload]
) -> Message:
    return Message(
        Exchange.IKE_SA_INIT,
        (
            *cookie,
            offer_main(suites),
            KeyExchange(group=exchange.group.ikev2, public=exchange.public),
            Nonce(data=session.nonce_i),
            *mobike.detection(session, ZERO_SPI, session.path),
            *_abilities(session),
        ),
    )


def _take_first_answer(
    session: Session, reply: Message, suites: Sequence[MainSuite], exchange: DiffieHellman
) -> None:
    """Derive keys out of the responder's IKE_SA_INIT; raises `Refused` or `Malformed`, and then nothing has
    changed."""
    if declined := reply.error():
        raise _declined_first(declined, suites)
    suite = main_chosen(reply.one(SecurityAssociation), suites)
    if suite is None:
        raise Refused(N.NO_PROPOSAL_CHOSEN, "the peer chose a proposal we did not offer")
    public = reply.one(KeyExchange)
    spi_r = reply.octets[8:16]
    if public.group != suite.group.ikev2 or suite.group != exchange.group or spi_r == ZERO_SPI:
        raise Malformed("the answer does not fit our first message")
    try:
        shared = exchange.agree(public.public)
    except BadPublic as error:
        raise Malformed(str(error)) from error
    session.channel.spi_r = spi_r
    session.nonce_r = reply.one(Nonce).data
    session.init_response = reply.octets
    session.arm(suite, seed(suite.prf, session.nonce_i, session.nonce_r, shared))
    _hear(session, reply)


def _declined_first(notify: Notify, suites: Sequence[MainSuite]) -> Refused:
    if notify.type == N.NO_PROPOSAL_CHOSEN:
        return Refused(
            notify.type,
            "the peer refused our proposal",
            "compare `crypto` of this rule with what the peer is configured to accept; its log may say more",
            comparison=compare(None, suites, sent=True),
            by_peer=True,
        )
    if notify.type == N.INVALID_KE_PAYLOAD:
        number = int.from_bytes(notify.data, "big")
        name = GROUP_BY_ID[number].name if number in GROUP_BY_ID else f"group {number}"
        return Refused(
            notify.type,
            f"the peer insists on {name}, which we do not offer",
            f'add it to `main` of the rule\'s crypto set, for example "{name} aes128gcm sha256"',
            by_peer=True,
        )
    return Refused(notify.type, f"the peer refused: {notify_name(notify.type)}", by_peer=True)


def _prove(session: Session, rule: Rule, acquire: Acquire | None, spi: int) -> Steps[None]:
    """IKE_AUTH, initiator; `spi` is 0 without a Child SA."""
    credentials, peer_address = session.env.credentials, session.path.peer.address
    identity = credentials.local_identity(rule, session.path.local.address)
    session.local_identity = identity
    id_i = IdentificationI(type=identity.kind, data=identity.data)
    transcript = session.transcript(id_i.encode(), of_initiator=True)
    prover = credentials.prover(
        rule, identity, None, transcript, session.peer_hashes, session.authorities, peer_address
    )
    token = (yield from ask(Authenticate(prover))).token
    assert token is not None
    payloads: list[Body] = [id_i, *_certificates(token)]
    if session.hooks.first_contact():
        payloads.append(status(N.INITIAL_CONTACT))
    payloads += [*_requests(session), Authentication(method=token.method, data=token.data)]
    suites = child.without_pfs(child.quick_suites(rule))
    wanted = selectors.wanted(rule, session.path, acquire)
    transport = rule.mode is Mode.TRANSPORT
    if session.original is not None:
        payloads.append(correlation.claim(session, session.original))
    if spi:
        payloads += child.offer(rule, suites, spi, wanted, transport=transport)
    payloads += _window(session)
    moves = mobike.wanted(session, rule)
    if moves:
        payloads += mobike.offer(session)
    # HDR, SK {IDi, [CERT,] [CERTREQ,] AUTH, SAi2, TSi, TSr}  -->
    reply: Message = yield from send(Message(Exchange.IKE_AUTH, tuple(payloads)))
    # <--  HDR, SK {IDr, [CERT,] AUTH, SAr2, TSi, TSr}
    if reply.maybe(Authentication) is None and session.original is not None:
        correlation.concluded(session, session.original, reply)
        session.emit(Release(spi))
        return
    if reply.maybe(Authentication) is None:
        raise _declined_proof(reply.error())
    try:
        yield from _verify_responder(session, rule, reply)
    except (Declined, Refused) as error:
        with suppress(Silent):
            yield from refuse_peer(session)
        raise error
    _hear_protected(session, reply)
    if moves and reply.notify(N.MOBIKE_SUPPORTED):
        mobike.agree(session, reply)
    _proven(session, rule)
    if session.original is not None:
        session.emit(Release(spi))
        unknown = Refused(0, "the peer knows no IKE_SA correlation")
        session.emit(told(session, unknown, "IKE_AUTH", rule.name, child=False))
        yield from delete_ike(session, str(unknown))
        return
    if not spi:
        return
    exchanged = child.Exchanged(session.nonce_i, session.nonce_r)
    try:
        pair = child.settle(
            session, rule, suites, wanted, spi, reply, exchanged, transport=transport, first=True
        )
        yield from child.install(session, pair)
    except (Refused, Malformed, Unavailable) as error:
        session.emit(Release(spi))
        if not isinstance(error, Unavailable) and reply.error() is None:
            yield from child.disown(session, suites, spi)
        session.emit(told(session, error, "IKE_AUTH", rule.name, child=True))
        return
    session.add(pair)


def _declined_proof(notify: Notify | None) -> Refused:
    if notify is None:
        return Refused(N.AUTHENTICATION_FAILED, "the peer's answer has no AUTH payload", by_peer=False)
    if notify.type == N.AUTHENTICATION_FAILED:
        return Refused(
            notify.type,
            "the peer refused our authentication",
            "compare key or certificate and identity with what the peer expects of us; a wrong pre-shared "
            "key looks like this; the peer's log says which",
            by_peer=True,
        )
    return Refused(notify.type, f"the peer refused: {notify_name(notify.type)}", by_peer=True)


def _verify_responder(session: Session, rule: Rule, reply: Message) -> Steps[None]:
    """Check the responder's proof and whether it may use the rule; raises `Declined` or `Refused`."""
    id_r = reply.one(IdentificationR)
    session.claimed = Identity(id_r.type, id_r.data)
    transcript = session.transcript(id_r.encode(), of_initiator=False)
    verifier = session.env.credentials.verifier(
        rule, session.claimed, transcript, session.peer_hashes, session.local_identity
    )
    step = yield from ask(Authenticate(verifier, _token(session, reply)))
    assert step.peer is not None
    verdict = admits(rule, step.peer.claims)
    if not verdict:
        raise _not_admitted(rule, verdict.reason)
    session.peer = step.peer


def _not_admitted(rule: Rule, reason: str) -> Declined:
    remedy = f'if this is the right host, correct `peer` or `allow` of rule "{rule.name}"'
    return Declined(reason, remedy, cause=NOT_ADMITTED)


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message]:
    """IKE_SA_INIT and IKE_AUTH, responder; returns the last answer."""
    # <--  HDR, SAi1, KEi, Ni
    reply = _first_answer(session, request)
    del request  # a stranger's offer may be large, and nobody needs it while he is waited for
    # HDR, SAr1, KEr, Nr, [CERTREQ]  -->
    request = yield from send(reply)
    # <--  HDR, SK {IDi, [CERT,] [CERTREQ,] [IDr,] AUTH, SAi2, TSi, TSr}
    mobike.check_no_nat(request)
    id_i = request.one(IdentificationI)
    session.claimed = Identity(id_i.type, id_i.data)
    session.authorities = _authorities(request)
    rule = session.rule = _rule_for(session)
    transcript = session.transcript(id_i.encode(), of_initiator=True)
    credentials = session.env.credentials
    identity = credentials.local_identity(rule, session.path.local.address)
    session.local_identity = identity
    verifier = credentials.verifier(rule, session.claimed, transcript, session.peer_hashes, identity)
    step = yield from ask(Authenticate(verifier, _token(session, request)))
    assert step.peer is not None
    rule = _admitted(session, rule, step.peer.claims)
    if payload := request.maybe(Correlation):
        return correlation.conclude(session, payload, step.peer)
    id_r = IdentificationR(type=identity.kind, data=identity.data)
    transcript = session.transcript(id_r.encode(), of_initiator=False)
    prover = credentials.prover(
        rule,
        identity,
        session.claimed,
        transcript,
        session.peer_hashes,
        session.authorities,
        session.path.peer.address,
    )
    token = (yield from ask(Authenticate(prover))).token
    assert token is not None
    session.peer = step.peer
    _hear_protected(session, request)
    moves = session.env.settings.mobike and request.notify(N.MOBIKE_SUPPORTED) is not None
    if moves:
        mobike.agree(session, request)
    _proven(session, rule)
    payloads = yield from _first_child(session, request)
    # HDR, SK {IDr, [CERT,] AUTH, SAr2, TSi, TSr}  -->
    return Message(
        Exchange.IKE_AUTH,
        (
            id_r,
            *_certificates(token),
            Authentication(method=token.method, data=token.data),
            *payloads,
            *_window(session),
            *(mobike.offer(session) if moves else ()),
        ),
    )


def _first_answer(session: Session, request: Message) -> Message:
    """IKE_SA_INIT of the responder; raises `Refused`."""
    path = session.path
    rules = session.env.policy.for_peer(path.local.address, path.peer.address)
    suites = tuple(dict.fromkeys(suite for rule in rules if rule.crypto for suite in rule.crypto.main))
    if not suites:
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            f"no rule secures traffic with {path.peer.address}",
            "add a rule for this peer, or correct its address",
        )
    payload = request.one(SecurityAssociation)
    chosen = choose_main(payload, suites)
    if chosen is None:
        comparison = compare(payload, suites, sent=False)
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            "the peer offered nothing that our rules accept",
            "make `crypto` of the rule and the peer's proposals meet",
            comparison=comparison,
        )
    suite, proposal = chosen
    public = request.one(KeyExchange)
    if public.group != suite.group.ikev2:
        raise Refused(
            N.INVALID_KE_PAYLOAD,
            f"the peer guessed another group than {suite.group.name}",
            data=suite.group.ikev2.to_bytes(2, "big"),
        )
    if len(public.public) != suite.group.public:
        raise Malformed(f"a public value of {len(public.public)} octets for {suite.group.name}")
    exchange = DiffieHellman(suite.group)
    session.suite = suite
    session.nonce_i, session.nonce_r = request.one(Nonce).data, session.env.random(NONCE)
    session.init_request = request.octets

    def agree() -> None:
        try:
            shared = exchange.agree(public.public)
        except BadPublic as error:
            raise Malformed(str(error)) from error
        session.arm(suite, seed(suite.prf, session.nonce_i, session.nonce_r, shared))

    session.pending = agree
    _hear(session, request)
    childless = [status(N.CHILDLESS_IKEV2_SUPPORTED)] if session.env.settings.childless == "allow" else []
    return Message(
        Exchange.IKE_SA_INIT,
        (
            accept_main(suite, proposal),
            KeyExchange(group=suite.group.ikev2, public=exchange.public),
            Nonce(data=session.nonce_r),
            *mobike.detection(session, session.channel.spi_r, session.path),
            *_abilities(session),
            *childless,
            *_requests(session),
        ),
        response=True,
    )


def _rule_for(session: Session) -> Rule:
    """The rule whose authentication the peer is put to: the first that expects whom the peer claims to be,
    else the first at all, whose refusal will say whom it expects."""
    rules = session.rules()
    if not rules:
        raise Refused(N.AUTHENTICATION_FAILED, "the rule of this negotiation is gone")
    name = (str(session.claimed),)
    return next((rule for rule in rules if admits(rule, name)), rules[0])


def _admitted(session: Session, rule: Rule, names: Sequence[str]) -> Rule:
    """The rule the proven peer may use: the one it was put to, else another with the same authentication."""
    verdict = admits(rule, names)
    if verdict:
        return rule
    for other in session.rules():
        if session.serves(other) and admits(other, names):
            return other
    raise _not_admitted(rule, verdict.reason)


def _first_child(session: Session, request: Message) -> Steps[list[Payload]]:
    """The Child SA of IKE_AUTH; when it cannot be, the notify that says so: the IKE SA is up all the same."""
    wanted = [request.maybe(one) for one in (SecurityAssociation, TrafficSelectorsI, TrafficSelectorsR)]
    try:
        if not any(wanted) and session.env.settings.childless == "allow":
            return []
        asked = child.accept(session, request, child.session_rules(session), first=True)
        exchanged = child.Exchanged(session.nonce_i, session.nonce_r)
        _, payloads = yield from child.build(session, asked, exchanged)
    except Refused as refused:
        session.emit(told(session, refused, "IKE_AUTH", session.rule_name, child=True))
        return [status(N(refused.notify), refused.data)]
    except Unavailable as error:
        session.emit(told(session, error, "IKE_AUTH", session.rule_name, child=True))
        return [status(N.NO_ADDITIONAL_SAS)]
    return payloads
