"""IKE_SA correlation in both roles, MS-IKEE section 3.10: payload 200 in IKE_AUTH of an IKE SA that is thrown
away behind it.

    HDR, SK {IDi, [CERT,] AUTH, CORRELATION, SAi2, TSi, TSr}  -->
                                                       <--  HDR, SK {N(NO_ADDITIONAL_SAS), N(NOTIFY_STATUS)}

Which error notify ends it the specification leaves open; success is the 0 in NOTIFY_STATUS. The IKE SA that
is proven again comes to no harm, whatever happens here.
"""

from __future__ import annotations

import hmac

from ikd.auth import Authenticated
from ikd.events import Reauthenticated
from ikd.ikev2.message import Message, Refused, status
from ikd.ikev2.numbers import Exchange, N
from ikd.ikev2.payloads import Correlation
from ikd.ikev2.session import Session
from ikd.keying import method_names
from ikd.riders import windows_status
from ikd.riders.correlation import Spis, proof
from sadb.secret import Secret

REASON = "it has proven its initiator again"


def _spis(session: Session) -> Spis:
    return session.channel.spi_i, session.channel.spi_r


def _key(original: Session, *, of_initiator: bool) -> Secret:
    """SK_ai or SK_ar; raises `Refused` with an AEAD, which has none: the hash would prove nothing."""
    assert original.keys is not None
    key = original.keys.ai if of_initiator else original.keys.ar
    if not len(key):
        raise Refused(
            N.AUTHENTICATION_FAILED, "the suite of the IKE SA to be proven again has no integrity key"
        )
    return key


def _hash(session: Session, original: Session, key: Secret) -> bytes:
    assert session.suite is not None
    return proof(session.suite.prf, key, _spis(session), _spis(original))


# Initiator --------------------------------------------------------------------------------------------------


def ready(original: Session) -> None:
    """Raises `Refused` when there is no way to prove an IKE SA again."""
    _key(original, of_initiator=original.initiator)


def claim(session: Session, original: Session) -> Correlation:
    """The payload that names the original IKE SA and shows that we have its keys."""
    key = _key(original, of_initiator=original.initiator)
    spi_i, spi_r = _spis(original)
    return Correlation(spi_i=spi_i, spi_r=spi_r, hash=_hash(session, original, key))


def concluded(session: Session, original: Session, reply: Message) -> None:
    """The responder has answered with an error, which is success when it says so; else raises `Refused`."""
    declined = reply.error()
    told = reply.windows_status()
    if declined is None or told != windows_status.NO_ERROR:
        number = declined.type if declined else int(N.AUTHENTICATION_FAILED)
        raise Refused(number, "the peer did not accept our proof for the living IKE SA", by_peer=True)
    session.emit(_proven_again(original, by_peer=False, method=method_names(session.rule)))
    session.rule = None  # it has failed at nothing that a packet would have to wait for
    session.hooks.close(REASON, False)


def _proven_again(original: Session, *, by_peer: bool, method: str) -> Reauthenticated:
    return Reauthenticated(
        ike=original.number,
        rule=original.rule_name,
        peer=original.peer_name,
        address=str(original.path.peer.address),
        by_peer=by_peer,
        method=method,
    )


# Responder --------------------------------------------------------------------------------------------------


def conclude(session: Session, payload: Correlation, peer: Authenticated) -> Message:
    """The peer is proven: if it has the keys of the original IKE SA and is the same, that one is proven
    again. Raises `Refused`."""
    original = session.hooks.original(payload.spi_i, payload.spi_r)
    if original is None or original.peer is None:
        raise Refused(N.AUTHENTICATION_FAILED, "the peer names a living IKE SA that is not here")
    key = _key(original, of_initiator=not original.initiator)
    if not hmac.compare_digest(payload.hash, _hash(session, original, key)):
        raise Refused(N.AUTHENTICATION_FAILED, "the peer does not have the keys of the IKE SA that it names")
    if (original.peer.identity, original.peer.method) != (peer.identity, peer.method):
        raise Refused(
            N.AUTHENTICATION_FAILED,
            f"{peer.identity} cannot prove an IKE SA of {original.peer.identity} again",
        )
    original.peer = peer
    session.emit(_proven_again(original, by_peer=True, method=peer.method))
    session.hooks.linger()
    success = windows_status.NO_ERROR.to_bytes(4, "big")
    return Message(Exchange.IKE_AUTH, (status(N.NO_ADDITIONAL_SAS), status(N.NOTIFY_STATUS, success)))
