"""ikd.authip.shapes: what each message of AuthIP must have, may have, and is kept from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.authip import connected, main_mode
from support.link import Host

from ikd.authip import shapes
from ikd.authip.message import notify, sealed
from ikd.authip.numbers import RELIABLE, Exchange, N, Subject
from ikd.authip.payloads import (
    PAYLOADS,
    Auth,
    AuthEntry,
    GssApi,
    GssId,
    KeyDictation,
    KeyDictationWeight,
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
from ikd.wire.isakmp import Body, Unknown
from ikd.wire.shapes import Shape

SA = SecurityAssociation(proposals=())
KE = KeyExchange(public=b"k")
NONCE = Nonce(data=b"n" * 32)
ID = Identification(type=1, data=b"\x0a\0\0\1")
PEER_ID = Identification(type=1, data=b"\x0a\0\0\2")
HASH = Hash(data=b"h" * 20)
NOTIFY = notify(N.EXCHANGE_INFO, Subject.QUICK, bytes(4))
VENDOR = VendorId(data=b"v")
NAT_D = NatDiscovery(hash=b"d")
NAT_OA = NatOriginalAddress(type=1, address=b"\x0a\0\0\1")
AUTH = Auth(entries=(AuthEntry(method=2),))
GSS = GssApi(token=b"t")
NAME = GssId(name=b"h\0")
WEIGHT = KeyDictationWeight(weight=1)
DICTATION = KeyDictation(data=b"d")
SYNCHRONIZE = notify(N.QM_SYNCHRONIZE, Subject.QUICK)
ACQUIRE = notify(N.ACQUIRE, Subject.QUICK, bytes(8), RELIABLE)

# name of the shape, what it requires (MS-AIPS sections 3.2 to 3.7), and messages that fit
MESSAGES: dict[str, tuple[str, set[int], list[Body]]] = {
    "#1": ("FIRST", {1, 0x87, 10}, [SA, AUTH, NONCE]),
    "#1 with all": ("FIRST", {1, 0x87, 10}, [SA, AUTH, NONCE, VENDOR, VENDOR, NAT_D, NAT_D, GSS, KE]),
    "#2": ("SECOND", {1, 0x87}, [SA, AUTH, NONCE, NONCE, NAME]),
    "#2 with all": ("SECOND", {1, 0x87}, [SA, AUTH, NONCE, NONCE, VENDOR, NAT_D, NAT_D, GSS, NAME, KE]),
    "#3": ("TOKEN", {0x81}, [GSS]),
    "#5": ("QUICK_REQUEST", {1, 10}, [HASH, ID, ID, SA, NONCE]),
    "#5 with all": (
        "QUICK_REQUEST",
        {1, 10},
        [HASH, ID, ID, SA, NONCE, KE, NAT_OA, NAT_OA, NOTIFY, WEIGHT],
    ),
    "#6": ("QUICK_REPLY", {1}, [HASH, ID, ID, SA]),
    "#6 with all": (
        "QUICK_REPLY",
        {1},
        [HASH, ID, ID, SA, NONCE, KE, NAT_OA, NAT_OA, NOTIFY, WEIGHT, DICTATION, DICTATION],
    ),
    "#7": ("SYNCHRONIZE", {11}, [SYNCHRONIZE]),
    "#7 of a dictator": ("SYNCHRONIZE", {11}, [SYNCHRONIZE, DICTATION, DICTATION]),
    "first of extended mode": ("EXTENDED_REQUEST", {0x87}, [AUTH]),
    "its answer": ("EXTENDED_REPLY", {0x87}, [AUTH, NAME]),
    "last of extended mode": ("EXTENDED_PROOF", {8}, [HASH]),
    "last of extended mode of a dictator": ("EXTENDED_PROOF", {8}, [HASH, DICTATION, DICTATION]),
}


def shape_of(name: str) -> Shape:
    """A shape by its name."""
    found = getattr(shapes, name)
    assert isinstance(found, Shape)
    return found


@pytest.mark.parametrize(("name", "required", "payloads"), MESSAGES.values(), ids=MESSAGES.keys())
def test_honest_messages_are_kept_whole(name: str, required: set[int], payloads: list[Body]) -> None:
    """What a peer rightly sends must reach the exchange, and what makes it a message must not be missing."""
    shape, message = shape_of(name), sealed(Exchange.MAIN, 0, *payloads)
    assert shapes.fitting(message, shape) == message
    assert shapes.fits(message, shape)
    assert shape.required == required
    for kind in required:
        without = replace(message, payloads=tuple(one for one in payloads if one.kind != kind))
        assert not shapes.fits(without, shape)
        with pytest.raises(Malformed, match=f"payload {kind} is missing"):
            shapes.fitting(without, shape)
    for kind in shape.required | shape.optional:
        again = [one for one in payloads if one.kind == kind][:1]
        if again:
            with pytest.raises(Malformed, match="twice"):
                shapes.fitting(replace(message, payloads=(*payloads, *again)), shape)


def test_every_shape_is_tried() -> None:
    """One without its row above might have lost what it requires."""
    known = {name for name, value in vars(shapes).items() if isinstance(value, Shape)}
    assert known == {name for name, _, _ in MESSAGES.values()}


STRANGERS: dict[str, list[Body]] = {
    "FIRST": [HASH, ID, NAME, NAT_OA, DICTATION, WEIGHT],
    "SECOND": [HASH, ID, NAT_OA, DICTATION, WEIGHT],
    "TOKEN": [SA, KE, NONCE, ID, HASH, AUTH, NAME, NAT_D, DICTATION],
    "QUICK_REQUEST": [GSS, AUTH, NAME, NAT_D, DICTATION],
    "QUICK_REPLY": [GSS, AUTH, NAME, NAT_D],
    "SYNCHRONIZE": [SA, KE, NONCE, ID, HASH, GSS, AUTH, NAME],
    "EXTENDED_REQUEST": [SA, KE, NONCE, ID, HASH, GSS, NAME, DICTATION],
    "EXTENDED_REPLY": [SA, KE, NONCE, ID, HASH, GSS, DICTATION],
    "EXTENDED_PROOF": [SA, KE, NONCE, ID, GSS, AUTH, NAME],
}


@pytest.mark.parametrize("name", STRANGERS)
def test_payloads_of_elsewhere_are_left_out(name: str) -> None:
    """Proofs before there is anything to prove, dictated keys in a first message, unknown payloads of any
    kind: an exchange must not meet what it does not expect."""
    honest = next(payloads for one, _, payloads in MESSAGES.values() if one == name)
    message = sealed(Exchange.MAIN, 0, *STRANGERS[name], *honest, Unknown(200, True, b"?"))
    assert shapes.fitting(message, shape_of(name)).payloads == tuple(honest)


@given(
    st.sampled_from(sorted({name for name, _, _ in MESSAGES.values()})),
    st.lists(st.sampled_from([*PAYLOADS, 200]), max_size=12),
)
def test_any_payloads_pass_or_are_malformed(name: str, kinds: list[int]) -> None:
    """A stranger chooses which payloads come in which order."""
    examples = {one.kind: one for _, _, several in MESSAGES.values() for one in several}
    message = sealed(Exchange.MAIN, 0, *(examples.get(kind, Unknown(kind, False, b"")) for kind in kinds))
    shape = shape_of(name)
    try:
        kept = shapes.fitting(message, shape).payloads
    except Malformed:
        return
    assert shapes.fits(message, shape)
    allowed = shape.required | shape.optional | shape.many
    assert list(kept) == [one for one in message.payloads if one.kind in allowed]


@pytest.mark.parametrize("count", range(5))
def test_nonces_are_as_many_as_there_must_be(count: int) -> None:
    """#2 has that of main mode and that of quick mode; with one of them, keys would be those of nobody."""
    message = sealed(Exchange.MAIN, 0, SA, *(Nonce(data=bytes((n,)) * 8) for n in range(count)), AUTH)
    if count == 2:
        assert shapes.nonces(message, 2) == [b"\0" * 8, b"\1" * 8]
        return
    with pytest.raises(Malformed, match=f"{count} nonces"):
        shapes.nonces(message, 2)


# NOTIFY_ACQUIRE --------------------------------------------------------------------------------------------

ACQUIRES: dict[str, list[Body]] = {
    "alone": [ACQUIRE],
    "with one identity": [ACQUIRE, ID],
    "with three": [ACQUIRE, ID, PEER_ID, ID],
    "behind its identities": [ID, PEER_ID, ACQUIRE],
    "between its identities": [ID, ACQUIRE, PEER_ID],
    "not next to them": [ACQUIRE, NOTIFY, ID, PEER_ID],
    "with something between them": [ACQUIRE, ID, NOTIFY, PEER_ID],
    "with something else": [ACQUIRE, HASH, HASH],
    "twice": [ACQUIRE, ID, PEER_ID, ACQUIRE, ID, PEER_ID],
}


def refused(payloads: list[Body]) -> bool:
    """Whether a notify with these payloads is discarded."""
    try:
        shapes.check_acquire(sealed(Exchange.NOTIFY, 7, *payloads))
    except Malformed:
        return True
    return False


@pytest.mark.parametrize("payloads", ACQUIRES.values(), ids=ACQUIRES.keys())
def test_acquire_without_its_identities(payloads: list[Body]) -> None:
    """Which traffic it is for would be a guess; the specification has the message discarded."""
    assert refused(payloads)


def test_acquire_with_its_identities_and_messages_without_one() -> None:
    """The sender's identity, then ours, with other payloads before and behind."""
    for payloads in ([ACQUIRE, ID, PEER_ID], [NOTIFY, ACQUIRE, ID, PEER_ID, NOTIFY], [NOTIFY], [ID], []):
        assert not refused(payloads)


def told(one: Host, *payloads: Body) -> bytes:
    """The datagram of a notify of this host."""
    message = replace(sealed(Exchange.NOTIFY, 7, *payloads), sequence=77)
    return main_mode(one).session.channel.seal(message)[0]


def test_acquire_without_its_identities_is_not_acknowledged() -> None:
    """An acknowledgement would tell the peer that its quick mode is coming, and it would wait for it; the
    same sequence number with a whole message is not a replay."""
    link = connected()
    flights = len(link.flights)
    link.inject(link.left, told(link.right, ACQUIRE, PEER_ID))
    link.run(1)
    assert link.left.drops == ["malformed"]
    assert len(link.flights) == flights
    link.inject(link.left, told(link.right, ACQUIRE, ID, PEER_ID))
    link.run(1)
    assert len(link.flights) == flights + 1
    assert link.flights[-1].header.exchange == Exchange.NOTIFY
