"""CREATE_CHILD_SA that replaces the IKE SA itself: RFC 7296 sections 1.3.2, 2.8.2, 2.18 and 2.25.2."""

from __future__ import annotations

from collections.abc import Sequence

from ikd.exchange import Pause, Steps, send
from ikd.ikev2.child import BUSY_TRIES, Overtaken, backoff
from ikd.ikev2.informational import delete_ike
from ikd.ikev2.keys import rekeyed_seed
from ikd.ikev2.message import Message, Refused
from ikd.ikev2.numbers import Exchange, N, ProtocolId, notify_name
from ikd.ikev2.payloads import KeyExchange, Nonce, Proposal, SecurityAssociation
from ikd.ikev2.proposals import accept_main, choose_main, compare, main_chosen, offer_main
from ikd.ikev2.session import IkeRekey, Session
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import ZERO_SPI
from sadb.algorithms import MainSuite
from sadb.crypto import BadPublic
from sadb.crypto import KeyExchange as DiffieHellman


def asks_for_ike(request: Message) -> bool:
    """Whether a CREATE_CHILD_SA request is about the IKE SA."""
    payload = request.maybe(SecurityAssociation)
    return payload is not None and any(one.protocol == ProtocolId.IKE for one in payload.proposals)


def _spi(proposal: Proposal) -> bytes:
    if len(proposal.spi) != 8 or proposal.spi == ZERO_SPI:
        raise Malformed(f"SPI {proposal.spi.hex()} of an IKE SA")
    return proposal.spi


def _succeed(
    session: Session,
    suite: MainSuite,
    spis: tuple[bytes, bytes],
    nonces: tuple[bytes, bytes],
    shared: bytes,
    *,
    initiator: bool,
) -> Session:
    """The new IKE SA with its keys, known to the endpoint."""
    assert session.keys is not None
    assert session.suite is not None
    made = session.successor(initiator=initiator, spi_i=spis[0], spi_r=spis[1], now=session.now)
    made.nonce_i, made.nonce_r = nonces
    session.hooks.adopt(made)
    made.arm(suite, rekeyed_seed(session.suite.prf, session.keys.d, *nonces, shared))
    return made


# Initiator --------------------------------------------------------------------------------------------------


def rekey(session: Session) -> Steps[None]:
    """Replace the IKE SA. Of two exchanges at once the one with the lowest nonce loses, and who began it
    deletes what it made (section 2.8.2)."""
    if session.ike_rekey is not None:
        return
    record = session.ike_rekey = IkeRekey(ours=True)
    try:
        made = yield from _request(session, record)
    except Overtaken:
        return
    except BaseException:
        if record.theirs:
            session.hooks.inherit(record.theirs[1])
        else:
            session.ike_rekey = None
        raise
    finally:
        record.ours = False
    if record.theirs and min(made.nonce_i, made.nonce_r) < record.theirs[0]:
        session.hooks.inherit(record.theirs[1])
        session.hooks.discard(made, "another exchange replaced the same IKE SA")
        return  # the peer deletes this one
    session.hooks.inherit(made)
    yield from delete_ike(session, "replaced")


def _request(session: Session, record: IkeRekey) -> Steps[Session]:
    """HDR, SK {SA, Ni, KEi}  -->  <--  HDR, SK {SA, Nr, KEr}; returns the successor."""
    suites = session.rule.crypto.main if session.rule and session.rule.crypto else ()
    assert session.suite is not None
    if session.suite in suites:  # what both agreed on before comes first
        suites = (session.suite, *(one for one in suites if one != session.suite))
    spi = session.hooks.new_spi()
    nonce = session.env.random(32)
    groups = {suite.group.ikev2: suite.group for suite in suites}
    group = suites[0].group
    tries = 0
    while True:
        exchange = DiffieHellman(group)
        reply: Message = yield from send(
            Message(
                Exchange.CREATE_CHILD_SA,
                (
                    offer_main(suites, spi),
                    Nonce(data=nonce),
                    KeyExchange(group=group.ikev2, public=exchange.public),
                ),
            )
        )
        tries += 1
        notify = reply.notify(N.INVALID_KE_PAYLOAD)
        wished = groups.get(int.from_bytes(notify.data, "big")) if notify else None
        if wished and tries < BUSY_TRIES:
            group = wished
            continue
        if reply.notify(N.TEMPORARY_FAILURE) and tries < BUSY_TRIES:
            record.ours = False  # the peer may replace it meanwhile
            yield Pause(backoff(session, tries))
            if record.theirs:
                raise Overtaken("the peer has replaced the IKE SA")
            record.ours = True
            continue
        break
    return _take_answer(session, reply, suites, exchange, spi, nonce)


def _take_answer(
    session: Session,
    reply: Message,
    suites: Sequence[MainSuite],
    exchange: DiffieHellman,
    spi: bytes,
    nonce: bytes,
) -> Session:
    if declined := reply.error():
        raise Refused(
            declined.type,
            f"the peer refused to replace the IKE SA: {notify_name(declined.type)}",
            by_peer=True,
        )
    payload, public = reply.one(SecurityAssociation), reply.one(KeyExchange)
    suite = main_chosen(payload, suites)
    if suite is None or suite.group != exchange.group or public.group != suite.group.ikev2:
        raise Refused(N.NO_PROPOSAL_CHOSEN, "the peer chose a proposal we did not offer")
    try:
        shared = exchange.agree(public.public)
    except BadPublic as error:
        raise Malformed(str(error)) from error
    spis = spi, _spi(payload.proposals[0])
    return _succeed(session, suite, spis, (nonce, reply.one(Nonce).data), shared, initiator=True)


# Responder --------------------------------------------------------------------------------------------------


def respond(session: Session, request: Message) -> Steps[Message]:
    """<--  HDR, SK {SA, Ni, KEi}"""
    yield from ()
    children = session.children
    if children.asking or children.deleting:  # section 2.25.2
        raise Refused(N.TEMPORARY_FAILURE, "the peer replaces the IKE SA while a Child SA is being changed")
    record = session.ike_rekey
    if record and record.theirs:
        raise Refused(N.TEMPORARY_FAILURE, "the peer has replaced this IKE SA already")
    suites = session.rule.crypto.main if session.rule and session.rule.crypto else ()
    payload, public = request.one(SecurityAssociation), request.one(KeyExchange)
    chosen = choose_main(payload, suites)
    if chosen is None:
        raise Refused(
            N.NO_PROPOSAL_CHOSEN,
            "the peer offered nothing for the new IKE SA that our rule accepts",
            comparison=compare(payload, suites, sent=False),
        )
    suite, proposal = chosen
    if public.group != suite.group.ikev2:
        raise Refused(
            N.INVALID_KE_PAYLOAD,
            f"the peer guessed another group than {suite.group.name}",
            data=suite.group.ikev2.to_bytes(2, "big"),
        )
    exchange = DiffieHellman(suite.group)
    try:
        shared = exchange.agree(public.public)
    except BadPublic as error:
        raise Malformed(str(error)) from error
    spi, nonce = session.hooks.new_spi(), session.env.random(32)
    nonces = request.one(Nonce).data, nonce
    made = _succeed(session, suite, (_spi(proposal), spi), nonces, shared, initiator=False)
    if record is None:
        record = session.ike_rekey = IkeRekey()
    record.theirs = min(nonces), made
    if not record.ours:  # else nonces decide when ours is answered
        session.hooks.inherit(made)
    # HDR, SK {SA, Nr, KEr}  -->
    return Message(
        Exchange.CREATE_CHILD_SA,
        (
            accept_main(suite, proposal, spi),
            Nonce(data=nonce),
            KeyExchange(group=suite.group.ikev2, public=exchange.public),
        ),
    )
