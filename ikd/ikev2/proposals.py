"""Suites as Security Association payloads and back: RFC 7296 sections 2.7 and 3.3.

Each suite is a proposal of its own, so what policy lists is what is offered. What the peer offers is matched
against our suites in our order; `compare` sets both sides side by side for `ikctl why`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from ikd import comparison
from ikd.events import Comparison
from ikd.ikev2.numbers import FOREIGN, ProtocolId, TransformType
from ikd.ikev2.payloads import Proposal, SecurityAssociation, Transform
from sadb.algorithms import ENCRYPTION, GROUPS, INTEGRITY, PRF, Encryption, Group, MainSuite, QuickSuite
from sadb.algorithms import SecurityProtocol as Carrier

T = TypeVar("T", MainSuite, QuickSuite)

_KEY_LENGTH = 14
PROTOCOLS = {Carrier.ESP: ProtocolId.ESP, Carrier.AH: ProtocolId.AH}
CARRIERS = {number: carrier for carrier, number in PROTOCOLS.items()}

# A transform as (ID, key length in bits; 0 when there is none); per type what a proposal has of them
Choice = tuple[int, int]
Choices = Mapping[int, tuple[Choice, ...]]


def _encryption(row: Encryption) -> Choice:
    return row.ikev2, 0 if row.fixed_length else row.key * 8


@lru_cache(256)
def _main_choices(suite: MainSuite) -> Choices:
    found: dict[int, tuple[Choice, ...]] = {
        TransformType.ENCR: (_encryption(suite.encryption),),
        TransformType.PRF: ((suite.prf.ikev2, 0),),
        TransformType.DH: ((suite.group.ikev2, 0),),
    }
    if suite.integrity:
        found[TransformType.INTEG] = ((suite.integrity.ikev2, 0),)
    return found


@lru_cache(256)
def _quick_choices(suite: QuickSuite) -> Choices:
    found: dict[int, tuple[Choice, ...]] = {TransformType.ESN: ((1, 0), (0, 0)) if suite.esn else ((0, 0),)}
    if suite.encryption:
        found[TransformType.ENCR] = (_encryption(suite.encryption),)
    if suite.integrity:
        found[TransformType.INTEG] = ((suite.integrity.ikev2, 0),)
    if suite.group:
        found[TransformType.DH] = ((suite.group.ikev2, 0),)
    return found


def _transforms(choices: Choices) -> tuple[Transform, ...]:
    return tuple(
        Transform(type=kind, id=number, attributes=((_KEY_LENGTH, bits),) if bits else ())
        for kind in sorted(choices)
        for number, bits in choices[kind]
    )


def offer_main(suites: Sequence[MainSuite], spi: bytes = b"") -> SecurityAssociation:
    """Our main-mode suites; `spi` is that of the new IKE SA when rekeying."""
    return SecurityAssociation(
        proposals=tuple(
            Proposal(number=n, protocol=ProtocolId.IKE, spi=spi, transforms=_transforms(_main_choices(one)))
            for n, one in enumerate(suites, 1)
        )
    )


def offer_quick(suites: Sequence[QuickSuite], spi: bytes) -> SecurityAssociation:
    """Our quick-mode suites with our inbound SPI."""
    return SecurityAssociation(
        proposals=tuple(
            Proposal(
                number=n,
                protocol=PROTOCOLS[one.protocol],
                spi=spi,
                transforms=_transforms(_quick_choices(one)),
            )
            for n, one in enumerate(suites, 1)
        )
    )


# What the peer offers --------------------------------------------------------------------------------------


def _choices(proposal: Proposal) -> Choices | None:
    """What a proposal offers, or None when it has a type we do not understand (section 3.3.6); transforms
    with unknown attributes are left out."""
    found: dict[int, list[Choice]] = {}
    for one in proposal.transforms:
        bits = 0
        for kind, value in one.attributes:
            if kind != _KEY_LENGTH or not isinstance(value, int):
                break
            bits = value
        else:
            found.setdefault(one.type, []).append((one.id, bits))
            continue
        found.setdefault(one.type, [])
    for kind, choices in list(found.items()):
        if kind > TransformType.ESN:
            if (0, 0) not in choices:
                return None
            del found[kind]
    return {kind: tuple(choices) for kind, choices in found.items()}


def _fits(wanted: Choices, offered: Choices, kinds: Iterable[int]) -> bool:
    """Whether for each of these types one of the wanted transforms is offered; a type that is not wanted must
    be absent or offered as NONE."""
    for kind in kinds:
        theirs = offered.get(kind)
        mine = wanted.get(kind)
        if mine is None:
            if theirs is not None and (0, 0) not in theirs:
                return False
        elif theirs is None or not any(one in theirs for one in mine):
            return False
    return True


_MAIN_KINDS = (TransformType.ENCR, TransformType.PRF, TransformType.INTEG, TransformType.DH)


def choose_main(
    payload: SecurityAssociation, suites: Iterable[MainSuite]
) -> tuple[MainSuite, Proposal] | None:
    """The first of our suites that one of the peer's proposals holds, and that proposal."""
    offered = [
        (proposal, choices)
        for proposal in payload.proposals
        if proposal.protocol == ProtocolId.IKE and (choices := _choices(proposal)) is not None
    ]
    for suite in suites:
        wanted = _main_choices(suite)
        for proposal, choices in offered:
            if _fits(wanted, choices, _MAIN_KINDS):
                return suite, proposal
    return None


def choose_quick(
    payload: SecurityAssociation, suites: Iterable[QuickSuite], groups: Sequence[Group], *, first: bool
) -> tuple[QuickSuite, Proposal] | None:
    """The first of our suites that one of the peer's proposals holds, with the ESN and PFS that both have.

    `first` is the Child SA of IKE_AUTH, which has no key exchange of its own. In others a suite without PFS
    accepts the peer's wish for it with one of `groups`.
    """
    offered = [
        (proposal, choices)
        for proposal in payload.proposals
        if proposal.protocol in CARRIERS
        and len(proposal.spi) == 4
        and (choices := _choices(proposal)) is not None
    ]
    for suite in suites:
        wanted = _quick_choices(replace(suite, group=None) if first and suite.group else suite)
        for proposal, choices in offered:
            if proposal.protocol != PROTOCOLS[suite.protocol]:
                continue
            kinds = [TransformType.ENCR, TransformType.INTEG]
            if TransformType.ESN in choices:  # absent means no ESN (section 3.3.3: it must be there)
                kinds.append(TransformType.ESN)
            agreed = [None] if first else _pfs(suite.group, choices.get(TransformType.DH), groups)
            if not agreed or not _fits(wanted, choices, kinds):
                continue
            esn = suite.esn and (1, 0) in choices.get(TransformType.ESN, ())
            return replace(suite, esn=esn, group=agreed[0]), proposal
    return None


def _pfs(
    wanted: Group | None, theirs: tuple[Choice, ...] | None, groups: Sequence[Group]
) -> list[Group | None]:
    """What both sides can do, best first: the group of the new key exchange, or None for none of it."""
    offered = [number for number, _ in theirs or ((0, 0),)]
    if wanted is not None:
        return [wanted] if wanted.ikev2 in offered else []
    if 0 in offered:
        return [None]
    return [group for group in groups if group.ikev2 in offered]


def accept_main(suite: MainSuite, proposal: Proposal, spi: bytes = b"") -> SecurityAssociation:
    """The answer: one proposal with one transform of each type."""
    return _answer(proposal, _main_choices(suite), spi)


def accept_quick(suite: QuickSuite, proposal: Proposal, spi: bytes) -> SecurityAssociation:
    """The answer: one proposal with one transform of each type."""
    return _answer(proposal, {**_quick_choices(suite), TransformType.ESN: ((int(suite.esn), 0),)}, spi)


def _answer(proposal: Proposal, choices: Choices, spi: bytes) -> SecurityAssociation:
    chosen = Proposal(
        number=proposal.number, protocol=proposal.protocol, spi=spi, transforms=_transforms(choices)
    )
    return SecurityAssociation(proposals=(chosen,))


def main_chosen(payload: SecurityAssociation, suites: Sequence[MainSuite]) -> MainSuite | None:
    """Which of our suites the peer chose; None when it made something up."""
    if len(payload.proposals) != 1:
        return None
    found = choose_main(payload, suites)
    return found[0] if found else None


def quick_chosen(
    payload: SecurityAssociation, suites: Sequence[QuickSuite], groups: Sequence[Group], *, first: bool
) -> tuple[QuickSuite, Proposal] | None:
    """Which of our suites the peer chose, with its proposal; None when it made something up."""
    if len(payload.proposals) != 1:
        return None
    return choose_quick(payload, suites, groups, first=first)


# For people ------------------------------------------------------------------------------------------------

_WORDS: dict[int, str] = {
    TransformType.DH: "DH",
    TransformType.ENCR: "cipher",
    TransformType.PRF: "PRF",
    TransformType.INTEG: "integrity",
    TransformType.ESN: "ESN",
}
_NAMES: dict[tuple[int, Choice], str] = {
    **{(TransformType.ENCR, _encryption(row)): row.name for row in ENCRYPTION},
    **{(TransformType.INTEG, (row.ikev2, 0)): row.name for row in INTEGRITY},
    **{(TransformType.PRF, (row.ikev2, 0)): row.name for row in PRF},
    **{(TransformType.DH, (row.ikev2, 0)): row.name for row in GROUPS},
    (TransformType.INTEG, (0, 0)): "none",
    (TransformType.DH, (0, 0)): "none",
    (TransformType.ESN, (0, 0)): "no",
    (TransformType.ESN, (1, 0)): "yes",
}


def _name(kind: int, choice: Choice) -> str:
    known = _NAMES.get((kind, choice))
    if known is None:
        foreign = FOREIGN.get((kind, choice[0]))
        known = f"{foreign or f'number {choice[0]}'}" + (f" {choice[1]} bits" if choice[1] else "")
    return known


def _named(all_choices: Iterable[Choices]) -> Iterator[tuple[int, str]]:
    return (
        (kind, _name(kind, one))
        for choices in all_choices
        for kind, options in choices.items()
        for one in options
    )


def compare(
    payload: SecurityAssociation | None,
    suites: Sequence[MainSuite] | Sequence[QuickSuite],
    *,
    sent: bool,
) -> Comparison:
    """Both sides' proposals by type of transform. `sent` tells whether ours went out as an offer; without a
    payload the peer's are unknown."""
    ours = (_main_choices(one) if isinstance(one, MainSuite) else _quick_choices(one) for one in suites)
    theirs = filter(None, map(_choices, payload.proposals)) if payload else ()
    return comparison.compare(_WORDS, _named(ours), _named(theirs), sent=sent)
