"""Suites as SA payloads and back (RFC 7296 sections 2.7 and 3.3): every suite, what a peer may add or leave
out, and the comparison for people.

If one of these fails, hosts with a suite in common find none, or one agrees to something its policy does not
have."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from ikd.ikev2.numbers import ProtocolId, TransformType
from ikd.ikev2.payloads import Proposal, SecurityAssociation, Transform
from ikd.ikev2.proposals import (
    accept_main,
    accept_quick,
    choose_main,
    choose_quick,
    compare,
    main_chosen,
    offer_main,
    offer_quick,
    quick_chosen,
)
from ikd.wire.codec import decode
from policy.parse import presets
from policy.values import main_suite, quick_suite
from sadb.algorithms import ENCRYPTION, GROUP_BY_NAME, GROUPS, INTEGRITY, PRF, MainSuite, QuickSuite
from sadb.algorithms import SecurityProtocol as Carrier

SPI = b"\1\2\3\4"
MAIN = [
    MainSuite(group, encryption, prf, None if encryption.aead else integrity)
    for group, encryption, (prf, integrity) in product(
        GROUPS, [row for row in ENCRYPTION if not row.esp_only], zip(PRF, INTEGRITY, strict=False)
    )
]
QUICK = [
    QuickSuite(Carrier.ESP, row, None if row.aead else INTEGRITY[0], group, esn)
    for row, group, esn in product(ENCRYPTION, (None, GROUPS[0]), (True, False))
] + [QuickSuite(Carrier.AH, None, mac, None, True) for mac in INTEGRITY]


def over_the_wire(payload: SecurityAssociation) -> SecurityAssociation:
    """As the peer reads it."""
    return decode(SecurityAssociation, payload.encode())


def transform(kind: int, number: int, bits: int = 0) -> Transform:
    """One transform; `bits` is its key length."""
    return Transform(type=kind, id=number, attributes=((14, bits),) if bits else ())


def esp(*transforms: Transform) -> SecurityAssociation:
    """A payload with one ESP proposal."""
    return SecurityAssociation(proposals=(Proposal(number=1, protocol=3, spi=SPI, transforms=transforms),))


ESN = transform(TransformType.ESN, 0)


# Round trips ------------------------------------------------------------------------------------------------


def test_every_main_suite_is_found_again() -> None:
    """Offered, chosen and accepted over the wire, with nothing lost or mistaken for another one."""
    assert len(MAIN) > 200
    for suite in MAIN:
        offer = over_the_wire(offer_main([suite], b"12345678"))
        found = choose_main(offer, MAIN)
        assert found is not None
        assert found[0] == suite
        assert found[1].spi == b"12345678"
        assert main_chosen(over_the_wire(accept_main(*found, b"87654321")), [suite]) == suite


def test_every_quick_suite_is_found_again() -> None:
    """The same for Child SAs, in IKE_AUTH without a group and later with it."""
    for suite in QUICK:
        offer = over_the_wire(offer_quick([suite], SPI))
        found = choose_quick(offer, QUICK, (), first=False)
        assert found is not None
        assert found[0].protocol == suite.protocol
        answer = over_the_wire(accept_quick(suite, found[1], SPI))
        chosen = quick_chosen(answer, [suite], (), first=False)
        assert chosen is not None
        assert chosen[0] == suite


def test_our_order_decides() -> None:
    """The responder takes the first of its own suites that is offered at all."""
    suites = [
        main_suite(one) for one in ("x25519 aes128gcm sha256", "p256 aes256gcm sha384", "x448 aes256 sha512")
    ]
    for mine in (suites, suites[::-1], suites[1:] + suites[:1]):
        found = choose_main(offer_main(suites), mine)
        assert found is not None
        assert found[0] == mine[0]


def test_the_built_in_sets() -> None:
    """Each offers itself and finds itself."""
    for crypto in presets().crypto.values():
        assert choose_main(over_the_wire(offer_main(crypto.main)), crypto.main) is not None
        assert (
            choose_quick(over_the_wire(offer_quick(crypto.quick, SPI)), crypto.quick, (), first=True)
            is not None
        )


# What peers do ----------------------------------------------------------------------------------------------


def test_many_transforms_in_one_proposal() -> None:
    """Section 3.3: other implementations offer all combinations in one proposal."""
    offered = esp(
        transform(1, 20, 256),
        transform(1, 20, 128),
        transform(1, 12, 256),
        transform(3, 12),
        transform(3, 14),
        transform(5, 1),
        transform(5, 0),
    )
    for text, fits in (
        ("aes128gcm", False),
        ("aes256 sha256", True),
        ("aes256 sha384", False),
        ("null sha256", False),
    ):
        found = choose_quick(offered, [quick_suite(text)], (), first=True)
        assert bool(found) is fits, text
    alone = esp(transform(1, 20, 256), transform(1, 20, 128), transform(5, 0))
    found = choose_quick(alone, [quick_suite("aes128gcm")], (), first=True)
    assert found is not None
    assert found[0].encryption is not None
    assert found[0].encryption.name == "aes128gcm"


@pytest.mark.parametrize(
    ("cipher", "suite", "fits"),
    [
        (transform(1, 20, 128), "aes128gcm", True),
        (transform(1, 20, 256), "aes128gcm", False),
        (transform(1, 20), "aes128gcm", False),
        (transform(1, 28), "chacha20poly1305", True),
        (transform(1, 28, 256), "chacha20poly1305", False),
        (transform(1, 12, 128), "aes128gcm", False),
    ],
)
def test_key_length(cipher: Transform, suite: str, fits: bool) -> None:
    """Section 3.3.5: AES must have the attribute and ChaCha20 must not."""
    assert bool(choose_quick(esp(cipher, ESN), [quick_suite(suite)], (), first=True)) is fits


def test_integrity_none_beside_an_aead() -> None:
    """Section 3.3.3: leaving it out and offering NONE mean the same; a real one does not go with an AEAD."""
    suite = [quick_suite("aes128gcm")]
    for extra, fits in (((), True), ((transform(3, 0),), True), ((transform(3, 12),), False)):
        assert bool(choose_quick(esp(transform(1, 20, 128), *extra, ESN), suite, (), first=True)) is fits


def test_unknown_transform_types_and_attributes() -> None:
    """Section 3.3.6: a proposal with an unknown type is refused, a transform with an unknown attribute passed
    over; other proposals still count."""
    suite = [quick_suite("aes128gcm")]
    strange = transform(9, 1)
    assert choose_quick(esp(transform(1, 20, 128), ESN, strange), suite, (), first=True) is None
    odd = Transform(type=1, id=20, attributes=((14, 128), (77, 1)))
    assert choose_quick(esp(odd, ESN), suite, (), first=True) is None
    assert choose_quick(esp(odd, transform(1, 20, 128), ESN), suite, (), first=True) is not None
    first = esp(transform(1, 20, 128), ESN, strange).proposals[0]
    second = replace(esp(transform(1, 20, 128), ESN).proposals[0], number=2)
    found = choose_quick(SecurityAssociation(proposals=(first, second)), suite, (), first=True)
    assert found is not None
    assert found[1].number == 2
    optional = transform(6, 0)  # additional key exchange (RFC 9370), NONE
    assert choose_quick(esp(transform(1, 20, 128), ESN, optional), suite, (), first=True) is not None


@pytest.mark.parametrize(
    "change", [{"protocol": 1}, {"protocol": 2}, {"protocol": 99}, {"spi": b""}, {"spi": b"12345678"}]
)
def test_proposals_of_another_kind(change: dict[str, object]) -> None:
    """Another protocol, or an SPI of another size, is not what was asked for."""
    proposal = replace(esp(transform(1, 20, 128), ESN).proposals[0], **change)
    payload = SecurityAssociation(proposals=(proposal,))
    assert choose_quick(payload, [quick_suite("aes128gcm")], (), first=True) is None
    assert choose_main(payload, [main_suite("x25519 aes128gcm sha256")]) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        (True, (1, 0), True),
        (True, (0,), False),
        (True, (1,), True),
        (False, (1, 0), False),
        (False, (1,), None),
    ],
)
def test_extended_sequence_numbers(ours: bool, theirs: tuple[int, ...], agreed: bool | None) -> None:
    """Used when both can, refused when one insists and the other cannot."""
    suite = quick_suite("aes128gcm", esn=ours)
    offered = esp(transform(1, 20, 128), *(transform(5, one) for one in theirs))
    found = choose_quick(offered, [suite], (), first=True)
    assert (found[0].esn if found else None) is agreed
    if found:
        (answer,) = accept_quick(found[0], found[1], SPI).proposals
        assert [one.id for one in answer.transforms if one.type == 5] == [int(bool(agreed))]


@pytest.mark.parametrize(
    ("ours", "theirs", "allowed", "agreed"),
    [
        (None, (), (), None),
        (None, (0,), (), None),
        (None, (31,), (), "refused"),
        (None, (31,), ("x25519",), "x25519"),
        (None, (19, 31), ("x25519", "p256"), "x25519"),
        (None, (31, 0), ("x25519",), None),
        ("x25519", (31,), (), "x25519"),
        ("x25519", (19, 31), (), "x25519"),
        ("x25519", (19,), ("p256",), "refused"),
        ("x25519", (), (), "refused"),
    ],
)
def test_forward_secrecy(
    ours: str | None, theirs: tuple[int, ...], allowed: tuple[str, ...], agreed: str | None
) -> None:
    """Our wish is a must, the peer's is granted in a group that main mode allows."""
    suite = replace(quick_suite("aes128gcm"), group=GROUP_BY_NAME[ours] if ours else None)
    offered = esp(transform(1, 20, 128), *(transform(4, one) for one in theirs), ESN)
    found = choose_quick(offered, [suite], [GROUP_BY_NAME[one] for one in allowed], first=False)
    if agreed == "refused":
        assert found is None
    else:
        assert found is not None
        assert (found[0].group.name if found[0].group else None) == agreed


def test_the_first_child_has_no_group() -> None:
    """IKE_AUTH has no key exchange for it (section 1.2), whatever the rule wants later."""
    suite = quick_suite("aes128gcm x25519")
    found = choose_quick(esp(transform(1, 20, 128), ESN), [suite], (), first=True)
    assert found is not None
    assert found[0].group is None


def test_answers_that_were_not_asked_for() -> None:
    """Several proposals, another suite, or nothing at all are no answer."""
    mine, other = main_suite("x25519 aes128gcm sha256"), main_suite("p256 aes256gcm sha384")
    assert main_chosen(offer_main([mine]), [mine]) == mine
    assert main_chosen(offer_main([other]), [mine]) is None
    assert main_chosen(offer_main([mine, mine]), [mine]) is None
    assert main_chosen(SecurityAssociation(proposals=()), [mine]) is None
    quick = quick_suite("aes128gcm")
    assert quick_chosen(offer_quick([quick, quick], SPI), [quick], (), first=True) is None
    assert quick_chosen(SecurityAssociation(proposals=()), [quick], (), first=True) is None


# For people -------------------------------------------------------------------------------------------------


def test_comparison_of_proposals() -> None:
    """Both sides by kind, with what they have not in common marked, and names also for what we do not
    have."""
    theirs = SecurityAssociation(
        proposals=(
            Proposal(
                number=1,
                protocol=ProtocolId.IKE,
                spi=b"",
                transforms=(
                    transform(1, 3),
                    transform(1, 12, 128),
                    transform(2, 1),
                    transform(3, 1),
                    transform(4, 2),
                    transform(4, 999),
                ),
            ),
        )
    )
    found = compare(theirs, [main_suite("x25519 aes128 sha256")], sent=False)
    rows = {row.what: row for row in found.rows}
    assert found.ours_title == "we accept"
    assert rows["cipher"].theirs == ("3des", "aes128")
    assert rows["cipher"].note == ""
    assert rows["DH"].theirs == ("modp1024", "number 999")
    assert rows["DH"].note == rows["PRF"].note == rows["integrity"].note == "nothing in common"
    assert rows["DH"].ours == ("x25519",)


def test_comparison_without_the_peers_side() -> None:
    """An initiator knows what it offered only."""
    found = compare(None, [quick_suite("aes256gcm x25519"), quick_suite("null sha256")], sent=True)
    rows = {row.what: row for row in found.rows}
    assert found.ours_title == "we offered"
    assert rows["cipher"].ours == ("aes256gcm", "null")
    assert all(not row.theirs and not row.note for row in found.rows)


def test_comparison_of_an_endless_offer() -> None:
    """A stranger's thousands of transforms do not fill the log."""
    huge = Proposal(number=1, protocol=1, spi=b"", transforms=tuple(transform(1, n) for n in range(200, 255)))
    payload = SecurityAssociation(proposals=(huge,) * 20)
    found = compare(payload, [main_suite("x25519 aes128 sha256")], sent=False)
    assert all(len(row.theirs) <= 40 for row in found.rows)
