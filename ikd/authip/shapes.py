"""Which payloads each message of AuthIP may have: MS-AIPS sections 3.2 to 3.7. The CRYPTO payload in front of
all is the channel's."""

from __future__ import annotations

from dataclasses import replace

from ikd.authip.message import Message
from ikd.authip.numbers import N
from ikd.authip.payloads import (
    Auth,
    GssApi,
    GssId,
    KeyDictation,
    KeyDictationWeight,
    Notify,
)
from ikd.isakmp.payloads import (
    Hash,
    Identification,
    KeyExchange,
    NatDiscovery,
    NatOriginalAddress,
    Nonce,
    SecurityAssociation,
    VendorId,
)
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Payload
from ikd.wire.shapes import Shape


def _kinds(*classes: type[Payload]) -> frozenset[int]:
    return frozenset(one.kind for one in classes)


_ANY = _kinds(Notify, VendorId)
_KEYS = _kinds(KeyDictation, KeyDictationWeight)
_DISCOVERY = _kinds(NatDiscovery)

# HDR, CRYPTO, SA, AUTH, Ni, VID..., [NAT-D, NAT-D,] [GSS,] [KE]  -->
FIRST = Shape(_kinds(SecurityAssociation, Auth, Nonce), _kinds(GssApi, KeyExchange), _ANY | _DISCOVERY)
# <--  HDR, CRYPTO, SA, AUTH, Nr, Nr(qm), VID..., [NAT-D, NAT-D,] [GSS,] [GSS_ID,] [KE]
SECOND = Shape(
    _kinds(SecurityAssociation, Auth),
    _kinds(GssApi, GssId, KeyExchange),
    _ANY | _DISCOVERY | _kinds(Nonce),
)
# HDR, CRYPTO, GSS  -->   <--  HDR, CRYPTO, GSS
TOKEN = Shape(_kinds(GssApi), many=_ANY)
# HDR*, HASH, IDi, IDr, SA, Ni(qm), [KE,] [N(EXCHANGE_INFO),] [WEIGHT]  -->
QUICK_REQUEST = Shape(
    _kinds(SecurityAssociation, Nonce),
    _kinds(Hash, KeyExchange, KeyDictationWeight),
    _ANY | _kinds(Identification, NatOriginalAddress),
)
# <--  HDR*, HASH, IDi, IDr, SA, [Nr(qm),] [KE,] [N(EXCHANGE_INFO),] [WEIGHT,] [DICT, DICT]
QUICK_REPLY = Shape(
    _kinds(SecurityAssociation),
    _kinds(Hash, Nonce, KeyExchange, KeyDictationWeight),
    _ANY | _KEYS | _kinds(Identification, NatOriginalAddress),
)
# HDR*, N(QM_SYNCHRONIZE)  -->   <--  HDR*, N(QM_SYNCHRONIZE)
SYNCHRONIZE = Shape(_kinds(Notify), many=_KEYS)
# HDR*, AUTH  -->
EXTENDED_REQUEST = Shape(_kinds(Auth), many=_ANY)
# <--  HDR*, AUTH, GSS_ID
EXTENDED_REPLY = Shape(_kinds(Auth), _kinds(GssId), _ANY)
# HDR*, HASH(Auth3)  -->   <--  HDR*, HASH(Auth4)
EXTENDED_PROOF = Shape(_kinds(Hash), many=_ANY | _KEYS)


def fitting(message: Message, shape: Shape) -> Message:
    """The message with the payloads that belong; raises `Malformed`."""
    return replace(message, payloads=shape.check(message.payloads))


def fits(message: Message, shape: Shape) -> bool:
    """Whether a message has what a shape requires."""
    return shape.required <= {one.kind for one in message.payloads}


def check_acquire(message: Message) -> None:
    """Raises `Malformed` unless two identities, and no others, stand right behind N(NOTIFY_ACQUIRE), if there
    is one (MS-AIPS section 2.2.3.5)."""
    for n, one in enumerate(message.payloads):
        if isinstance(one, Notify) and one.type == N.ACQUIRE:
            following = message.payloads[n + 1 : n + 3]
            if list(message.every(Identification)) != [*following] or len(following) != 2:
                raise Malformed("NOTIFY_ACQUIRE without its identities")


def nonces(message: Message, count: int) -> list[bytes]:
    """The bodies of exactly so many Nonce payloads; raises `Malformed`."""
    found = [one.data for one in message.every(Nonce)]
    if len(found) != count:
        raise Malformed(f"{len(found)} nonces where {count} belong")
    return found
