"""ikd.isakmp.proposals: what we offer, what we choose and what we take for an answer."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from time import process_time

import pytest
from support.ikev1 import IKE_SCAN, WINDOWS

from ikd.comparison import MOST_NAMES
from ikd.events import Comparison
from ikd.isakmp.numbers import ALGORITHMS, Encapsulation, Method, ProtocolId
from ikd.isakmp.payloads import PAYLOADS, Proposal, SecurityAssociation, Transform
from ikd.isakmp.proposals import (
    Life,
    accept_main,
    accept_quick,
    choose_main,
    choose_quick,
    compare_main,
    compare_quick,
    main_chosen,
    offer_main,
    offer_quick,
    quick_chosen,
    read_responder_lifetime,
    responder_lifetime,
    speaks,
    together,
)
from ikd.wire.codec import decode
from ikd.wire.isakmp import HEADER_SIZE, Header, chain
from sadb.algorithms import (
    ENCRYPTION,
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    GROUPS,
    INTEGRITY,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    MainSuite,
    QuickSuite,
    SecurityProtocol,
)

SPI = b"\xc1\xc2\xc3\xc4"
PEER_SPI = b"\xd1\xd2\xd3\xd4"
LIFE = Life(3600, 100_000)
TUNNEL, TRANSPORT = Encapsulation.TUNNEL, Encapsulation.TRANSPORT
PSK = (Method.PSK,)
GROUPS_SPOKEN = [one.name for one in GROUPS if one.name in ALGORITHMS]


def main(group: str, cipher: str, digest: str) -> MainSuite:
    return MainSuite(
        GROUP_BY_NAME[group], ENCRYPTION_BY_NAME[cipher], PRF_BY_NAME[digest], INTEGRITY_BY_NAME[digest]
    )


def esp(cipher: str, digest: str = "", group: str = "", *, esn: bool = True) -> QuickSuite:
    return QuickSuite(
        SecurityProtocol.ESP,
        ENCRYPTION_BY_NAME[cipher],
        INTEGRITY_BY_NAME[digest] if digest else None,
        GROUP_BY_NAME[group] if group else None,
        esn,
    )


def ah(digest: str) -> QuickSuite:
    return QuickSuite(SecurityProtocol.AH, None, INTEGRITY_BY_NAME[digest])


def plain(suite: QuickSuite) -> QuickSuite:
    """As it is agreed where nobody asked for extended sequence numbers."""
    return replace(suite, esn=False)


def sa_of(message: bytes) -> SecurityAssociation:
    found, _ = chain(Header.decode(message).next_payload, message[HEADER_SIZE:], PAYLOADS)
    assert isinstance(found[0], SecurityAssociation)
    return found[0]


def changed(payload: SecurityAssociation, **changes: object) -> SecurityAssociation:
    """With every transform changed."""
    return replace(
        payload,
        proposals=tuple(
            replace(one, transforms=tuple(replace(each, **changes) for each in one.transforms))  # type: ignore[arg-type]
            for one in payload.proposals
        ),
    )


def with_attributes(payload: SecurityAssociation, *more: tuple[int, int | bytes]) -> SecurityAssociation:
    """With more attributes in the first transform."""
    (proposal, *_) = payload.proposals
    (first, *_) = proposal.transforms
    changed_one = replace(first, attributes=first.attributes + more)
    return replace(payload, proposals=(replace(proposal, transforms=(changed_one,)),))


STRONG = main("p256", "aes256", "sha256")
USUAL = main("modp2048", "aes128", "sha256")
OLD = main("modp2048", "aes256", "sha1")
GCM = MainSuite(GROUP_BY_NAME["p256"], ENCRYPTION_BY_NAME["aes256gcm"], PRF_BY_NAME["sha256"])


# Suites and numbers ----------------------------------------------------------------------------------------


def test_what_has_no_form_in_ikev1_is_not_spoken_of() -> None:
    """No AEAD in phase 1, no Curve25519, and one hash for both PRF and integrity."""
    assert speaks(STRONG)
    assert not speaks(GCM)
    assert not speaks(main("x25519", "aes256", "sha256"))
    assert not speaks(replace(STRONG, prf=PRF_BY_NAME["sha512"]))
    assert not speaks(main("p256", "null", "sha256"))
    assert speaks(esp("aes256gcm"))
    assert not speaks(esp("aes128", "sha256", "x448"))
    offered = offer_main([GCM, STRONG, main("x25519", "aes256", "sha256"), USUAL], PSK, LIFE)
    assert len(offered.proposals[0].transforms) == 2


@pytest.mark.parametrize("row", [*ENCRYPTION, *INTEGRITY, *GROUPS], ids=lambda row: row.name)
def test_every_row_has_its_numbers_or_none_was_ever_assigned(row: object) -> None:
    """A row that is forgotten could not be negotiated and nobody would know why."""
    name = getattr(row, "name", "")
    assert (name in ALGORITHMS) == (name not in {"x25519", "x448"})


def test_numbers_of_a_kind_tell_rows_apart() -> None:
    """Two rows that look the same on the wire would be taken for each other."""
    quick = [esp(one.name, "" if one.aead else "sha256") for one in ENCRYPTION]
    seen = {offer_quick([one], SPI, TUNNEL, LIFE).encode() for one in quick}
    assert len(seen) == len(quick)
    mains = [
        main(group, cipher, digest)
        for group, cipher, digest in product(
            GROUPS_SPOKEN, ("3des", "aes128", "aes192", "aes256"), PRF_BY_NAME
        )
    ]
    assert len({offer_main([one], PSK, LIFE).encode() for one in mains}) == len(mains)


# Offers ----------------------------------------------------------------------------------------------------


def test_main_mode_offer_is_one_proposal_in_the_order_of_policy() -> None:
    """As Windows writes it: attributes in this order, the lifetime in four octets."""
    offered = offer_main([OLD, STRONG], PSK, Life(28800))
    (proposal,) = offered.proposals
    assert (proposal.number, proposal.protocol, proposal.spi) == (1, ProtocolId.ISAKMP, b"")
    life = ((11, 1), (12, b"\0\0\x70\x80"))
    assert proposal.transforms == (
        Transform(number=1, id=1, attributes=((1, 7), (14, 256), (2, 2), (4, 14), (3, 1), *life)),
        Transform(number=2, id=1, attributes=((1, 7), (14, 256), (2, 4), (4, 19), (3, 1), *life)),
    )


def test_main_mode_offers_each_method_of_a_suite() -> None:
    """One answer decides about cipher and credentials together."""
    offered = offer_main([OLD, STRONG], (Method.RSA, Method.PSK), Life(60))
    methods = [dict(one.attributes)[3] for one in offered.proposals[0].transforms]
    assert methods == [3, 1, 3, 1]
    assert [one.number for one in offered.proposals[0].transforms] == [1, 2, 3, 4]


def test_transforms_are_numbered_in_one_octet() -> None:
    """A policy of more than that must not break the message."""
    suites = [
        main(g, c, h)
        for g in ("modp2048", "modp3072", "modp4096", "p256", "p384", "p521")
        for c in ("aes128", "aes192", "aes256")
        for h in ("sha1", "sha256", "sha384", "sha512")
    ]
    offered = offer_main(suites, [1, 3, 9, 10, 11], LIFE)
    assert len(offered.proposals[0].transforms) == 255
    assert offered.encode()


def test_quick_mode_offer_is_a_proposal_for_each_suite() -> None:
    """ESP and AH, with the authentication algorithm that AH must name (RFC 2407 section 4.5)."""
    offered = offer_quick([esp("aes128", "sha256", "p256"), esp("aes256gcm"), ah("sha1")], SPI, 3, LIFE)
    life = ((1, 1), (2, b"\0\0\x0e\x10"), (1, 2), (2, b"\0\1\x86\xa0"))
    rows = [(1, 3, 12, ((5, 5), (6, 128), (3, 19))), (2, 3, 20, ((6, 256),)), (3, 2, 3, ((5, 2),))]
    assert offered.proposals == tuple(
        Proposal(
            number=n,
            protocol=protocol,
            spi=SPI,
            transforms=(Transform(number=1, id=number, attributes=(*life, (4, 3), *more)),),
        )
        for n, protocol, number, more in rows
    )


def test_one_quick_mode_has_one_group() -> None:
    """It has one Key Exchange payload, whose group is named in each transform."""
    suites = [esp("aes128gcm", "", "x25519"), esp("aes128gcm", "", "p256"), esp("aes256gcm")]
    suites.append(esp("aes128", "sha256", "p256"))
    assert together(suites) == (suites[1], suites[3])
    assert together([]) == ()


def test_lifetimes_survive_their_notify() -> None:
    """RESPONDER-LIFETIME says what the responder will do (RFC 2407 section 4.6.3.1)."""
    for life, main_mode in product((LIFE, Life(60), Life(None, 5), Life()), (False, True)):
        assert read_responder_lifetime(responder_lifetime(life, main=main_mode), main=main_mode) == life
    assert read_responder_lifetime(bytes.fromhex("80010001 80020e10")) == Life(3600)


# Choosing in main mode -------------------------------------------------------------------------------------


def test_our_order_decides() -> None:
    """The responder loops over its own policy, first match wins (MS-IKEE section 3.1.5)."""
    offered = offer_main([OLD, USUAL, STRONG], PSK, Life(28800))
    found = choose_main(offered, [GCM, STRONG, OLD], PSK)
    assert found is not None
    assert (found.suite, found.method, found.life) == (STRONG, Method.PSK, Life(28800))
    assert found.proposal.transforms == (offered.proposals[0].transforms[2],)
    assert choose_main(offered, [main("p384", "aes256", "sha384")], PSK) is None


def test_windows_is_answered_with_its_own_transform() -> None:
    """AES-128 with P-256 is the second of its five, and the last is what the oldest of them can do."""
    found = choose_main(sa_of(WINDOWS), [STRONG, main("p256", "aes128", "sha1")], PSK)
    assert found is not None
    offered = sa_of(WINDOWS).proposals[0].transforms[1]
    assert accept_main(found).proposals[0].transforms == (offered,)
    assert found.life == Life(28800)
    oldest = choose_main(sa_of(WINDOWS), [main("modp1024", "3des", "sha1")], PSK)
    assert oldest is not None
    assert accept_main(oldest).proposals[0].transforms == sa_of(WINDOWS).proposals[0].transforms[4:]
    assert choose_main(sa_of(WINDOWS), [STRONG, USUAL], PSK) is None
    assert choose_main(sa_of(WINDOWS), [OLD], (Method.RSA,)) is None


def test_weak_offers_of_a_scanner_have_no_match() -> None:
    """DES, MD5 and group 1 are nobody's policy."""
    every = [
        main(g, c, h)
        for g, c, h in product(("modp2048", "p256"), ("aes128", "aes256"), ("sha1", "sha256", "sha512"))
    ]
    assert choose_main(sa_of(IKE_SCAN), every, PSK) is None


def test_method_must_be_wanted() -> None:
    """A pre-shared key must not stand in for a certificate because the peer would like it."""
    offered = offer_main([STRONG], (Method.PSK, Method.RSA), LIFE)
    found = choose_main(offered, [STRONG], (Method.ECDSA_256, Method.RSA))
    assert found is not None
    assert found.method == Method.RSA
    assert choose_main(offered, [STRONG], ()) is None


def test_unknown_attributes_do_not_matter_and_go_back_as_they_came() -> None:
    """RFC 2407 would abort; Windows must not (MS-IKEE section 3.1.5)."""
    more = ((32001, b"what?"), (99, 7))
    offered = with_attributes(offer_main([STRONG], PSK, LIFE), *more)
    found = choose_main(offered, [STRONG], PSK)
    assert found is not None
    assert accept_main(found) == offered


@pytest.mark.parametrize(
    "attribute",
    [(14, 128), (1, 5), (13, 1), (3, 3), (2, b""), (2, b"\0" * 9), (4, b"\0\x0e")],
    ids=["length twice", "cipher twice", "PRF", "method twice", "no octets", "nine octets", "other group"],
)
def test_contradictions_are_passed_over(attribute: tuple[int, int | bytes]) -> None:
    """What could be read in two ways must not be agreed to, but does not spoil the other transforms."""
    bad = with_attributes(offer_main([STRONG], PSK, LIFE), attribute)
    assert choose_main(bad, [STRONG], PSK) is None
    good = offer_main([STRONG], PSK, LIFE).proposals[0].transforms
    both = replace(bad, proposals=(replace(bad.proposals[0], transforms=bad.proposals[0].transforms + good),))
    found = choose_main(both, [STRONG], PSK)
    assert found is not None
    assert found.proposal.transforms == good


def test_numbers_in_the_long_form_are_numbers() -> None:
    """Some write every attribute with its length; they get it back the same way."""
    offered = offer_main([STRONG], PSK, Life(28800))
    (proposal,) = offered.proposals
    (one,) = proposal.transforms
    long = tuple(
        (kind, value.to_bytes(4, "big") if isinstance(value, int) else value)
        for kind, value in one.attributes
    )
    payload = changed(offered, attributes=long)
    found = choose_main(payload, [STRONG], PSK)
    assert found is not None
    assert accept_main(found) == payload


@pytest.mark.parametrize(
    "changes", [{"doi": 0}, {"doi": 2}, {"situation": 2}, {"situation": 3}, {"proposals": ()}]
)
def test_other_domains_are_not_ours(changes: dict[str, object]) -> None:
    """Numbers of another domain of interpretation mean something else."""
    offered = replace(offer_main([STRONG], PSK, LIFE), **changes)  # type: ignore[arg-type]
    assert choose_main(offered, [STRONG], PSK) is None


def test_transform_and_protocol_must_be_those_of_phase_1() -> None:
    """An ESP transform with the same attributes is no ISAKMP SA."""
    offered = offer_main([STRONG], PSK, LIFE)
    assert choose_main(changed(offered, id=2), [STRONG], PSK) is None
    (proposal,) = offered.proposals
    esp_one = replace(offered, proposals=(replace(proposal, protocol=ProtocolId.ESP),))
    assert choose_main(esp_one, [STRONG], PSK) is None


def test_cookie_as_spi_is_ignored() -> None:
    """RFC 2408 section 3.5 allows one of up to 16 octets in phase 1."""
    offered = offer_main([STRONG], PSK, LIFE)
    named = replace(offered, proposals=(replace(offered.proposals[0], spi=b"c" * 8),))
    found = choose_main(named, [STRONG], PSK)
    assert found is not None
    assert accept_main(found) == offered


def test_names_of_gss_change_places() -> None:
    """Each side writes its own name, everything else stays."""
    offered = offer_main([STRONG], (Method.GSS,), LIFE, b"i\0")
    found = choose_main(offered, [STRONG], (Method.GSS,))
    assert found is not None
    assert found.gss_name == b"i\0"
    answered = accept_main(found, b"r\0")
    chosen = main_chosen(answered, [STRONG], (Method.GSS,))
    assert chosen is not None
    assert chosen.gss_name == b"r\0"
    assert accept_main(found) == offered


def test_initiator_takes_only_what_it_offered() -> None:
    """An answer of several transforms, or another one, is a peer that made something up."""
    offered = offer_main([STRONG, USUAL], PSK, LIFE)
    found = choose_main(offered, [USUAL], PSK)
    assert found is not None
    chosen = main_chosen(accept_main(found), [STRONG, USUAL], PSK)
    assert chosen is not None
    assert (chosen.suite, chosen.method) == (USUAL, Method.PSK)
    assert main_chosen(offered, [STRONG, USUAL], PSK) is None
    assert main_chosen(offer_main([OLD], PSK, LIFE), [STRONG, USUAL], PSK) is None
    assert main_chosen(offer_main([STRONG], (Method.RSA,), LIFE), [STRONG], PSK) is None
    two = replace(offered, proposals=offer_main([STRONG], PSK, LIFE).proposals * 2)
    assert main_chosen(two, [STRONG], PSK) is None
    assert main_chosen(SecurityAssociation(proposals=()), [STRONG], PSK) is None


# Choosing in quick mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suite",
    [esp("aes256gcm"), esp("aes128", "sha256"), esp("null", "sha512"), esp("aes192gmac"), ah("sha384")],
    ids=str,
)
@pytest.mark.parametrize("mode", list(Encapsulation))
def test_both_sides_of_quick_mode_agree(suite: QuickSuite, mode: Encapsulation) -> None:
    """The same suite, mode and lifetimes on both sides, each with the other's SPI."""
    offered = offer_quick([esp("aes128gcm"), suite], SPI, mode, LIFE)
    found = choose_quick(offered, [suite], (mode,), pfs=False)
    assert found is not None
    assert (found.suite, found.encapsulation, found.life) == (plain(suite), mode, LIFE)
    assert found.spi == SPI
    answer = accept_quick(found, PEER_SPI)
    assert answer.proposals[0].transforms == offered.proposals[1].transforms
    assert answer.proposals[0].number == 2
    chosen = quick_chosen(answer, [esp("aes128gcm"), suite], mode)
    assert chosen is not None
    assert (chosen.suite, chosen.spi, chosen.life) == (plain(suite), PEER_SPI, LIFE)


def test_mode_must_be_wanted() -> None:
    """A tunnel where policy says transport would carry other packets than were agreed."""
    offered = offer_quick([esp("aes128gcm")], SPI, TUNNEL, LIFE)
    assert choose_quick(offered, [esp("aes128gcm")], (TRANSPORT, 4), pfs=False) is None
    answer = offer_quick([esp("aes128gcm")], PEER_SPI, TRANSPORT, LIFE)
    assert quick_chosen(answer, [esp("aes128gcm")], TUNNEL) is None


def test_forward_secrecy_needs_both_key_exchange_and_group() -> None:
    """Keys without the exchange that a suite demands would not be what the administrator asked for."""
    p256, none = esp("aes128gcm", "", "p256"), esp("aes128gcm")
    group = GROUP_BY_NAME["p256"]
    with_group = offer_quick([p256], SPI, TUNNEL, LIFE)
    without = offer_quick([none], SPI, TUNNEL, LIFE)
    assert choose_quick(with_group, [p256], (TUNNEL,), pfs=False) is None
    assert choose_quick(without, [p256], (TUNNEL,), pfs=False) is None
    assert choose_quick(without, [none], (TUNNEL,), [group], pfs=True) is None
    found = choose_quick(with_group, [p256], (TUNNEL,), pfs=True)
    assert found is not None
    assert found.suite.group == group
    wish = choose_quick(with_group, [none], (TUNNEL,), [GROUP_BY_NAME["p384"], group], pfs=True)
    assert wish is not None
    assert wish.suite.group == group
    assert choose_quick(with_group, [none], (TUNNEL,), pfs=True) is None
    # the answer must keep what was offered
    assert quick_chosen(without, [p256], TUNNEL) is None
    assert quick_chosen(with_group, [none], TUNNEL) is None


def test_bundles_are_not_taken_apart() -> None:
    """AH and ESP of one number are wanted together; one alone would not be what was offered."""
    offered = offer_quick([esp("aes128gcm"), ah("sha256"), esp("aes256gcm")], SPI, TUNNEL, LIFE)
    first, second, third = offered.proposals
    bundle = replace(offered, proposals=(first, replace(second, number=1), replace(third, number=2)))
    assert choose_quick(bundle, [esp("aes128gcm"), ah("sha256")], (TUNNEL,), pfs=False) is None
    found = choose_quick(bundle, [esp("aes128gcm"), esp("aes256gcm")], (TUNNEL,), pfs=False)
    assert found is not None
    assert found.proposal.number == 2


def test_extended_sequence_numbers_only_where_asked_for() -> None:
    """A window of 64 bits on one side only loses every packet after the wrap."""
    suite = esp("aes128gcm")
    offered = offer_quick([suite], SPI, TUNNEL, LIFE)
    assert not any(kind == 11 for kind, _ in offered.proposals[0].transforms[0].attributes)
    extended = with_attributes(offered, (11, 1))
    found = choose_quick(extended, [suite], (TUNNEL,), pfs=False)
    assert found is not None
    assert found.suite.esn
    assert choose_quick(extended, [plain(suite)], (TUNNEL,), pfs=False) is None
    assert quick_chosen(extended, [suite], TUNNEL) is None


@pytest.mark.parametrize("spi", [b"", b"\1\2\3", b"c" * 8])
def test_spi_must_be_one_of_ipsec(spi: bytes) -> None:
    """Packets carry four octets of it."""
    offered = offer_quick([esp("aes128gcm")], spi, TUNNEL, LIFE)
    assert choose_quick(offered, [esp("aes128gcm")], (TUNNEL,), pfs=False) is None


def test_lifetimes_are_read_in_any_form() -> None:
    """Seconds and kilobytes, short or long; a duration without a type, or of none, says nothing."""
    suite = esp("aes128gcm")
    base = ((4, 1), (6, 128))
    cases: list[tuple[tuple[tuple[int, int | bytes], ...], Life]] = [
        (((1, 1), (2, 3600)), Life(3600)),
        (((1, 2), (2, b"\0\1\0\0"), (1, 1), (2, 60)), Life(60, 65536)),
        (((2, 3600), (1, 1)), Life()),
        (((1, 1), (2, 0)), Life()),
        (((1, 3), (2, 60)), Life()),
        (((1, 1), (2, b"")), Life()),
        ((), Life()),
    ]
    for attributes, life in cases:
        payload = changed(offer_quick([suite], SPI, TUNNEL, LIFE), attributes=attributes + base)
        found = choose_quick(payload, [suite], (TUNNEL,), pfs=False)
        assert found is not None
        assert found.life == life


# For people ------------------------------------------------------------------------------------------------


def rows(found: Comparison) -> dict[str, tuple[tuple[str, ...], tuple[str, ...], str]]:
    return {one.what: (one.ours, one.theirs, one.note) for one in found.rows}


def test_comparison_names_what_a_peer_offers() -> None:
    """`ikctl why` must say what to change, with names of what we do not even have."""
    found = compare_main(sa_of(IKE_SCAN), [STRONG, GCM], (Method.RSA,), sent=False)
    assert found.ours_title == "we accept"
    assert rows(found) == {
        "DH": (("p256",), ("modp1024", "modp768"), "nothing in common"),
        "cipher": (("aes256",), ("3des", "des"), "nothing in common"),
        "hash": (("sha256",), ("sha1", "md5"), "nothing in common"),
        "authentication": (("RSA signature",), ("pre-shared key",), "nothing in common"),
    }
    assert rows(compare_main(None, [STRONG], PSK, sent=True))["hash"] == (("sha256",), (), "")


def test_comparison_of_quick_mode() -> None:
    """Mode and forward secrecy are part of what must agree."""
    offered = offer_quick([esp("aes128", "sha1"), ah("sha256")], SPI, TUNNEL, LIFE)
    found = rows(compare_quick(offered, [esp("aes256gcm", "", "p256")], (TRANSPORT,), sent=False))
    assert found == {
        "protocol": (("esp",), ("esp", "ah"), ""),
        "DH": (("p256",), ("none",), "nothing in common"),
        "cipher": (("aes256gcm",), ("aes128",), "nothing in common"),
        "integrity": ((), ("sha1", "sha256"), ""),
        "mode": (("transport",), ("tunnel",), "nothing in common"),
    }
    strange = changed(offered, id=200, attributes=((6, 77), (5, 99), (4, 1000)))
    found = rows(compare_quick(strange, [], (), sent=False))
    assert found["cipher"][1] == ("number 200 77 bits",)
    assert found["mode"][1] == ("mode 1000",)


# Bounds ----------------------------------------------------------------------------------------------------


def test_thousands_of_transforms_cost_little() -> None:
    """As many as a datagram holds against a long policy: the time must be the sum of both, not the product,
    because a stranger chooses one of them."""
    proposals = tuple(
        Proposal(
            number=n,
            protocol=ProtocolId.ISAKMP,
            spi=b"",
            transforms=tuple(Transform(number=m, id=1, attributes=((1, m), (2, n))) for m in range(32)),
        )
        for n in range(125)
    )
    octets = SecurityAssociation(proposals=proposals).encode()
    assert 60_000 < len(octets) < 0x10000
    suites = [
        main(g, c, h) for g, c, h in product(GROUPS_SPOKEN, ("aes128", "aes192", "aes256"), INTEGRITY_BY_NAME)
    ] * 10
    start = process_time()
    payload = decode(SecurityAssociation, octets)
    assert choose_main(payload, suites, (Method.RSA, Method.PSK)) is None
    assert process_time() - start < 1  # some 20 ms; the product would be millions of comparisons


def test_comparison_shows_a_bounded_part() -> None:
    """What a stranger offers goes into events and logs."""
    transforms = tuple(Transform(number=n, id=1, attributes=((1, n), (2, 4))) for n in range(100, 200))
    proposal = Proposal(number=1, protocol=ProtocolId.ISAKMP, spi=b"", transforms=transforms)
    payload = SecurityAssociation(proposals=(proposal,))
    found = rows(compare_main(payload, [STRONG], PSK, sent=False))
    assert len(found["cipher"][1]) == MOST_NAMES + 1
    assert found["cipher"][1][-1] == f"and {100 - MOST_NAMES} more"
    assert found["hash"] == (("sha256",), ("sha256",), "")
