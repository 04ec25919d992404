"""MOBIKE, RFC 4555: what both sides say about their addresses, in IKE_AUTH and in INFORMATIONAL.

    HDR, SK {N(UPDATE_SA_ADDRESSES), N(NAT_DETECTION_*_IP), N(COOKIE2), N(ADDITIONAL_*_ADDRESS)}  -->
                                            <--  HDR, SK {N(NAT_DETECTION_*_IP), N(COOKIE2)}

The addresses are those of the IP header of an authentic request; what its payloads name is only ever tried.
When an exchange begins is decided in `ikd.ikev2.moves`. We always know NAT traversal, so NO_NATS_ALLOWED
(section 3.9) is checked and never sent.
"""

from __future__ import annotations

import hmac
from typing import Final

from ikd.exchange import Steps, ask, send
from ikd.ikev2.message import Message, Refused, status
from ikd.ikev2.mobility import MOST_HEARD, Mobility, Place, additional, unpacked, usable
from ikd.ikev2.numbers import Exchange, N, notify_name
from ikd.ikev2.payloads import Notify
from ikd.ikev2.session import Session
from ikd.outputs import Ways
from ikd.riders import natt
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body, Payload
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.sa import Mode

COOKIE: Final = 16  # octets of ours
_COOKIES: Final = range(8, 65)  # octets one may have (section 4.2.5)
_ADDITIONAL: Final = {int(N.ADDITIONAL_IP4_ADDRESS): 4, int(N.ADDITIONAL_IP6_ADDRESS): 16}


# NAT detection ----------------------------------------------------------------------------------------------


def detection(session: Session, spi_r: bytes, path: Path) -> list[Payload]:
    """N(NAT_DETECTION_SOURCE_IP), N(NAT_DETECTION_DESTINATION_IP) for a message of ours on a path."""
    spi_i = session.channel.spi_i
    return [
        status(N.NAT_DETECTION_SOURCE_IP, natt.fingerprint(spi_i, spi_r, path.local)),
        status(N.NAT_DETECTION_DESTINATION_IP, natt.fingerprint(spi_i, spi_r, path.peer)),
    ]


def detected(message: Message, spis: tuple[bytes, bytes], path: Path) -> tuple[bool, bool] | None:
    """Whether there is a NAT in front of us, and of the peer, on the path that a message came on; None when
    it does not tell."""
    sources = [one.data for one in message.every(Notify) if one.type == N.NAT_DETECTION_SOURCE_IP]
    targets = [one.data for one in message.every(Notify) if one.type == N.NAT_DETECTION_DESTINATION_IP]
    if not sources or not targets:
        return None
    return natt.fingerprint(*spis, path.local) not in targets, natt.fingerprint(
        *spis, path.peer
    ) not in sources


def _hear_nat(session: Session, message: Message, path: Path) -> bool:
    """Take note of a NAT on the way; whether the message tells."""
    found = detected(message, (session.channel.spi_i, session.channel.spi_r), path)
    if found is not None:
        session.nat_local, session.nat_peer = found
    return found is not None


def _seen(message: Message) -> bytes:
    """How the peer sees us."""
    notify = message.notify(N.NAT_DETECTION_DESTINATION_IP)
    return notify.data if notify else b""


# IKE_AUTH ---------------------------------------------------------------------------------------------------


def wanted(session: Session, rule: Rule) -> bool:
    """Whether we begin with the ability to move: only tunnels can (section 1.2)."""
    return session.env.settings.mobike and rule.mode is Mode.TUNNEL and session.original is None


def offer(session: Session) -> list[Payload]:
    """N(MOBIKE_SUPPORTED), and our other addresses (sections 3.2 and 3.4)."""
    return [status(N.MOBIKE_SUPPORTED), *_listed(additional(session), none=False)]


def agree(session: Session, message: Message) -> None:
    """Both sides can move: from now on it is so. An address that IKE_AUTH was the first to come from is to be
    checked as any other."""
    here = session.path.peer.address == session.home.peer.address
    place = Place(session.path if here else session.home, session.nat_local, session.nat_peer)
    mobility = Mobility(session.initiator, place, agreed=session.path, told=additional(session))
    session.mobility = mobility
    mobility.stale = hear_addresses(mobility, message) and mobility.initiator


def check_no_nat(message: Message) -> None:
    """Raises `Refused` when the peer forbids NATs and there is one (section 3.9)."""
    notify, path = message.notify(N.NO_NATS_ALLOWED), message.path
    if notify is None or path is None:
        return
    source, target = path.peer, path.local
    ports = source.port.to_bytes(2, "big") + target.port.to_bytes(2, "big")
    if notify.data != source.address.packed + target.address.packed + ports:
        raise Refused(
            N.UNEXPECTED_NAT_DETECTED,
            f"the peer forbids NATs, and there is one between {source} and {target}",
            "allow NAT traversal at the peer, or take the NAT away",
        )


# Addresses --------------------------------------------------------------------------------------------------


def _listed(addresses: tuple[Address, ...], *, none: bool) -> list[Payload]:
    """Our addresses besides the one in use; with `none` it is said that there are none."""
    found: list[Payload] = [
        status(N.ADDITIONAL_IP4_ADDRESS if one.version == 4 else N.ADDITIONAL_IP6_ADDRESS, one.packed)
        for one in addresses
    ]
    return found or ([status(N.NO_ADDITIONAL_ADDRESSES)] if none else [])


def hear_addresses(mobility: Mobility, message: Message) -> bool:
    """Remember where the peer can be reached, too, a limited number of addresses; whether the message tells.
    Raises `Malformed`."""
    notifies = [one for one in message.every(Notify) if one.type in _ADDITIONAL]
    if not notifies and not message.notify(N.NO_ADDITIONAL_ADDRESSES):
        return False
    found = [unpacked(one.data, _ADDITIONAL[one.type]) for one in notifies[:MOST_HEARD]]
    mobility.addresses = tuple(dict.fromkeys(filter(usable, found)))
    return True


def look(session: Session, mobility: Mobility) -> Steps[None]:
    """Find out from where each address of the peer is reached; then choose a path."""
    known = (session.path, mobility.trusted.path, mobility.agreed)
    peers = dict.fromkeys((*(one.peer.address for one in known), *mobility.addresses))
    mobility.ways = yield from ask(Ways(tuple(peers)))
    session.hooks.choose()


# Exchanges of ours ------------------------------------------------------------------------------------------


def _asked(
    session: Session, mobility: Mobility, payloads: list[Body], *, refusable: bool = False
) -> Steps[Message | None]:
    """HDR, SK {..., N(COOKIE2)}  -->  <--  HDR, SK {..., N(COOKIE2)}; None when the peer returns another one,
    which ends the IKE SA (section 3.7)."""
    cookie = session.env.random(COOKIE)
    mobility.asking, mobility.spread = True, False
    try:
        payloads.append(status(N.COOKIE2, cookie))
        reply: Message = yield from send(Message(Exchange.INFORMATIONAL, tuple(payloads)))
    finally:
        mobility.asking = False
    returned = reply.notify(N.COOKIE2)
    if refusable and reply.error() is not None:
        return reply
    if returned is None or not hmac.compare_digest(returned.data, cookie):
        session.hooks.close("the peer did not return our COOKIE2: it may not be where it says it is", False)
        return None
    return reply


def update(session: Session, mobility: Mobility) -> Steps[None]:
    """Tell the peer that the SAs go another way, as the side that decides on it (section 3.5). It stays to be
    told until the peer has answered, on this IKE SA or the next, and nothing has changed meanwhile."""
    path, told = session.path, additional(session)
    payloads: list[Body] = [status(N.UPDATE_SA_ADDRESSES)]
    payloads += detection(session, session.channel.spi_r, path)
    payloads += _listed(told, none=True)
    reply = yield from _asked(session, mobility, payloads, refusable=True)
    if reply is None:
        return
    if session.path != path or session.ike_rekey is not None:
        return
    mobility.pending = False
    if declined := reply.error():
        reason = f"the peer refused to move the SAs to {path}: {notify_name(declined.type)}"
        session.hooks.refused(path, Refused(declined.type, reason, by_peer=True))
        return
    mobility.agreed, mobility.told, mobility.seen = path, told, _seen(reply)
    _hear_nat(session, reply, path)
    if mobility.spread and path.peer.address != mobility.trusted.path.peer.address:
        mobility.pending = True  # to see by another COOKIE2 that it is there
        return
    session.hooks.trust()


def confirm(session: Session, mobility: Mobility) -> Steps[None]:
    """See that the peer answers where it says it is, before its packets go there (section 3.7). A COOKIE2
    that went anywhere else, too, shows nothing; then it is asked again."""
    path = session.path
    reply = yield from _asked(session, mobility, [])
    if reply is not None and session.path == path and not mobility.spread:
        session.hooks.trust()


def tell(session: Session, mobility: Mobility) -> Steps[None]:
    """Tell the peer which addresses we have (section 3.6). When it was sent from more than one, it counts for
    none of them, and is said again."""
    path, told = session.path, additional(session)
    reply = yield from _asked(session, mobility, [*_listed(told, none=True)])
    if reply is not None and session.path == path:
        mobility.told = told


def probe(session: Session) -> Steps[None]:
    """Ask whether the peer is alive: HDR, SK {}  -->  <--  HDR, SK {}. From behind a NAT also whether it
    still sees us at the same address and port (section 3.8)."""
    mobility = session.mobility
    asks = mobility is not None and mobility.initiator and session.nat_local
    payloads = detection(session, session.channel.spi_r, session.path) if asks else []
    reply: Message = yield from send(Message(Exchange.INFORMATIONAL, tuple(payloads)))
    if mobility is not None and asks and _seen(reply) != mobility.seen:
        mobility.pending = True


# Requests of the peer ---------------------------------------------------------------------------------------


def returned(request: Message) -> list[Body]:
    """[N(COOKIE2)] as it came, also when the rest is refused: who does not get its own back ends the IKE SA
    (section 4.2.5)."""
    cookie = request.notify(N.COOKIE2)
    return [status(N.COOKIE2, cookie.data)] if cookie and len(cookie.data) in _COOKIES else []


def respond(session: Session, mobility: Mobility, request: Message) -> list[Body]:
    """What is answered to what the peer says about addresses: [N(COOKIE2),] [N(NAT_DETECTION_*_IP)]. Raises
    `Refused` and `Malformed`."""
    answer = returned(request)
    if request.notify(N.COOKIE2) and not answer:
        raise Malformed("a COOKIE2 of a length that it cannot have")
    check_no_nat(request)
    path = request.path or session.path
    if request.notify(N.NAT_DETECTION_SOURCE_IP, N.NAT_DETECTION_DESTINATION_IP):
        answer += detection(session, session.channel.spi_r, path)
    if request.message_id < session.update_id:  # a newer one came before it and has said otherwise
        return answer
    updates = request.notify(N.UPDATE_SA_ADDRESSES) is not None and not mobility.initiator
    told = hear_addresses(mobility, request)
    if updates or told:
        session.update_id = request.message_id
    if updates:
        _follow(session, request, path)
    elif told and mobility.initiator:
        session.hooks.heard_addresses(path)
    return answer


def _follow(session: Session, request: Message, path: Path) -> None:
    """UPDATE_SA_ADDRESSES: the peer has decided that the SAs go the way this request came."""
    if not _acceptable(session, path):
        raise Refused(
            N.UNACCEPTABLE_ADDRESSES,
            f"the peer wants to move to {path.peer.address}, which cannot be its address",
            "look for the host that sends with that address",
        )
    _hear_nat(session, request, path)
    session.hooks.follow(path)


def _acceptable(session: Session, path: Path) -> bool:
    """Whether packets may be sent to an address: not to one of ours, and to this host or link only if the
    peer was there all along."""
    address, network = path.peer.address, session.env.network
    if address in session.peer_addresses:
        return True
    return usable(address) and not (network is not None and address in network.addresses)
