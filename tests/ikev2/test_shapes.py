"""Which payloads each message of IKEv2 may have (RFC 7296 sections 1.2 to 1.5, 2.5, appendix C).

If one of these fails, a handler meets a message without what it needs, or with two of what there must be one
of."""

from __future__ import annotations

import pytest

from ikd.ikev2.message import Message, UnknownCritical, status
from ikd.ikev2.numbers import Exchange, N, exchange_name, notify_name
from ikd.ikev2.payloads import (
    Authentication,
    Delete,
    IdentificationI,
    IdentificationR,
    KeyExchange,
    Nonce,
    Notify,
    SecurityAssociation,
    VendorId,
)
from ikd.ikev2.shapes import SHAPES, check
from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Unknown

SA = SecurityAssociation(proposals=())
KE, NO = KeyExchange(group=31, public=bytes(32)), Nonce(data=bytes(32))
FIRST = (SA, KE, NO)


def test_a_whole_message_passes() -> None:
    """Order is free; notifies and vendor IDs may come in any number."""
    vendors = (VendorId(data=b"a"), VendorId(data=b"b"), status(N.COOKIE), status(N.COOKIE))
    for payloads in (FIRST, FIRST[::-1], (*vendors, *FIRST)):
        assert check(Exchange.IKE_SA_INIT, False, payloads) == payloads


@pytest.mark.parametrize("missing", range(3))
def test_something_is_missing(missing: int) -> None:
    """A first message needs all three."""
    payloads = [one for n, one in enumerate(FIRST) if n != missing]
    with pytest.raises(Malformed, match="is missing"):
        check(Exchange.IKE_SA_INIT, False, payloads)


@pytest.mark.parametrize("twice", FIRST, ids=["SA", "KE", "No"])
def test_something_is_there_twice(twice: object) -> None:
    """None of them may come again."""
    with pytest.raises(Malformed, match="occurs twice"):
        check(Exchange.IKE_SA_INIT, False, (*FIRST, twice))  # type: ignore[arg-type]


def test_what_does_not_belong_is_left_out() -> None:
    """A known payload in the wrong message is as good as an unknown one: the handler does not see it."""
    assert check(Exchange.IKE_SA_INIT, False, (*FIRST, Delete(protocol=1, spis=()))) == FIRST
    proof = Authentication(method=2, data=b"x")
    assert check(Exchange.INFORMATIONAL, False, (proof, KE)) == ()
    assert check(99, False, FIRST) == ()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unknown_payloads(shape: tuple[int, bool]) -> None:
    """Section 2.5: a critical one in any message is refused by its number, another one is skipped."""
    with pytest.raises(UnknownCritical) as caught:
        check(*shape, (Unknown(77, True, b""),))
    assert caught.value.kind == 77
    if not shape[1] or shape[0] == Exchange.INFORMATIONAL:
        return
    assert check(*shape, (Unknown(77, False, b""), status(N.INVALID_SYNTAX))) == (status(N.INVALID_SYNTAX),)


@pytest.mark.parametrize("exchange", list(Exchange))
def test_an_error_stands_alone_in_an_answer(exchange: Exchange) -> None:
    """A refusal has none of what an answer otherwise needs; a request may not be that short."""
    refusal = (status(N.NO_PROPOSAL_CHOSEN),)
    assert check(exchange, True, refusal) == refusal
    if exchange is not Exchange.INFORMATIONAL:
        with pytest.raises(Malformed):
            check(exchange, False, refusal)
    assert check(Exchange.IKE_SA_INIT, True, (status(N.COOKIE),))
    with pytest.raises(Malformed):
        check(Exchange.IKE_SA_INIT, True, (status(N.REKEY_SA),))


def test_identities_have_their_places() -> None:
    """The initiator's cannot stand for the responder's."""
    proof = Authentication(method=2, data=b"x")
    mine = IdentificationI(type=2, data=b"a.example")
    with pytest.raises(Malformed):
        check(Exchange.IKE_AUTH, True, (mine, proof))
    theirs = IdentificationR(type=2, data=b"b.example")
    assert check(Exchange.IKE_AUTH, True, (theirs, proof)) == (theirs, proof)
    assert check(Exchange.IKE_AUTH, False, (mine, theirs, proof)) == (mine, theirs, proof)


# Messages ---------------------------------------------------------------------------------------------------


def test_looking_into_a_message() -> None:
    """By class, by notify type, and by whether it refuses."""
    refusal = Notify(type=N.TS_UNACCEPTABLE, spi=b"")
    message = Message(36, (status(N.USE_TRANSPORT_MODE), SA, NO, refusal))
    assert message.maybe(SecurityAssociation) is SA
    assert message.maybe(KeyExchange) is None
    assert message.one(Nonce) is NO
    with pytest.raises(Malformed, match="no KE payload"):
        message.one(KeyExchange)
    assert message.error() is refusal
    assert message.notify(N.COOKIE, N.USE_TRANSPORT_MODE) is message.payloads[0]
    assert message.notify(N.COOKIE) is None
    assert len(list(message.every(Notify))) == 2


def test_names_for_people() -> None:
    """Logs speak RFC, and numbers without a name stay readable."""
    message = Message(36, (SA, status(N.REKEY_SA), Notify(type=40000, spi=b""), Unknown(77, False, b"")))
    assert message.names() == ("SA", "N(REKEY_SA)", "N(notify 40000)", "payload 77")
    assert exchange_name(36) == "CREATE_CHILD_SA"
    assert exchange_name(99) == "exchange 99"
    assert notify_name(44) == "CHILD_SA_NOT_FOUND"
    assert notify_name(99) == "notify 99"
