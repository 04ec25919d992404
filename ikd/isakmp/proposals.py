"""Suites as Security Association payloads and back: RFC 2407 section 4.5, RFC 2409 section 5 and appendix A.

Main mode is one proposal with a transform for each suite, quick mode a proposal for each. What the peer
offers is matched against our suites in our order; attributes we do not know do not matter (MS-IKEE section
3.1.5), and what is chosen goes back as it came. `compare_*` set both sides side by side for `ikctl why`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ikd import comparison
from ikd.events import Comparison
from ikd.isakmp.numbers import (
    ALGORITHMS,
    DOI_IPSEC,
    FOREIGN_AUTHENTICATION,
    FOREIGN_CIPHERS,
    FOREIGN_ESP,
    FOREIGN_GROUPS,
    FOREIGN_HASHES,
    NOTHING,
    SITUATION,
    LifeType,
    MainAttribute,
    ProtocolId,
    QuickAttribute,
    encapsulation_name,
    method_name,
)
from ikd.isakmp.payloads import Attributes, Lifetime, Proposal, SecurityAssociation, Transform
from ikd.wire.codec import decode
from sadb.algorithms import ENCRYPTION, GROUPS, INTEGRITY, Curve, Encryption, Group, MainSuite, QuickSuite
from sadb.algorithms import SecurityProtocol as Carrier

KEY_IKE = 1  # the only transform ID of phase 1
MOST_TRANSFORMS = 255  # they are numbered in one octet
MOST_OCTETS = 4096  # of a transform's attributes: what is chosen goes back whole, and more with it
DEFAULT_SECONDS = 28800  # RFC 2407 section 4.5
LONGEST = 0xFFFFFFFF  # what is said of a life in four octets; more is as good as that

NO_GROUP = Group("none", 0, Curve.MODP, 0)  # main mode of AuthIP can do without (MS-AIPS section 3.2.4)

PROTOCOLS = {Carrier.ESP: ProtocolId.ESP, Carrier.AH: ProtocolId.AH}
CARRIERS: dict[int, Carrier] = {number: carrier for carrier, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class Life:
    """How long an SA lives; None where nothing was said."""

    seconds: int | None = None
    kilobytes: int | None = None


@dataclass(frozen=True, slots=True)
class MainChoice:
    """What was agreed in phase 1; `proposal` holds the one transform, as the peer wrote it. `gss_name` is the
    peer's, empty unless the method is GSS."""

    suite: MainSuite
    method: int
    life: Life
    proposal: Proposal
    gss_name: bytes = b""


@dataclass(frozen=True, slots=True)
class QuickChoice:
    """What was agreed in phase 2; `suite` with the ESN and PFS that both have. `proposal` holds the one
    transform, as the peer wrote it, and the peer's SPI."""

    suite: QuickSuite
    encapsulation: int
    life: Life
    proposal: Proposal

    @property
    def spi(self) -> bytes:
        """The peer's SPI."""
        return self.proposal.spi


class _Main(NamedTuple):
    """A transform of phase 1 as far as it matters; 0 is an attribute that is not there."""

    cipher: int
    bits: int
    hash: int
    group: int
    method: int


class _Quick(NamedTuple):
    """A transform of phase 2 as far as it matters; 0 is an attribute that is not there."""

    protocol: int
    id: int
    bits: int
    authentication: int
    group: int
    encapsulation: int
    esn: int


# Our suites ------------------------------------------------------------------------------------------------


def _bits(row: Encryption) -> int:
    return 0 if row.fixed_length else row.key * 8


def _main(suite: MainSuite, method: int) -> _Main | None:
    """The numbers of a main-mode suite, or None when it has no form here: there are no AEADs in phase 1, and
    one hash makes PRF and integrity."""
    cipher = ALGORITHMS.get(suite.encryption.name, NOTHING).main
    digest = ALGORITHMS.get(suite.prf.name, NOTHING).main
    group = ALGORITHMS.get(suite.group.name, NOTHING).main
    one_hash = suite.integrity is not None and suite.integrity.hash == suite.prf.hash
    if not (cipher and digest and one_hash) or not (group or suite.group == NO_GROUP):
        return None
    return _Main(cipher, _bits(suite.encryption), digest, group, method)


def _quick(suite: QuickSuite, encapsulation: int, esn: int = 0) -> _Quick | None:
    """The numbers of a quick-mode suite, or None when it has no form here."""
    encryption = ALGORITHMS.get(suite.encryption.name, NOTHING) if suite.encryption else NOTHING
    integrity = ALGORITHMS.get(suite.integrity.name, NOTHING) if suite.integrity else NOTHING
    group = ALGORITHMS.get(suite.group.name, NOTHING).main if suite.group else 0
    number = integrity.ah if suite.protocol is Carrier.AH else encryption.esp
    if not number or (suite.integrity and not integrity.authentication) or (suite.group and not group):
        return None
    bits = _bits(suite.encryption) if suite.encryption else 0
    protocol = PROTOCOLS[suite.protocol]
    return _Quick(protocol, number, bits, integrity.authentication, group, encapsulation, esn)


def speaks(suite: MainSuite | QuickSuite) -> bool:
    """Whether a suite can be negotiated with IKEv1 at all."""
    return (_main(suite, 0) if isinstance(suite, MainSuite) else _quick(suite, 0)) is not None


def together(suites: Iterable[QuickSuite]) -> tuple[QuickSuite, ...]:
    """The suites that one quick mode can offer: those of the first one's PFS group, for which it has its one
    Key Exchange payload."""
    spoken = [one for one in suites if speaks(one)]
    return tuple(one for one in spoken if one.group == spoken[0].group)


# Lifetimes -------------------------------------------------------------------------------------------------

_MAIN_LIFE = (MainAttribute.LIFE_TYPE, MainAttribute.LIFE_DURATION)
_QUICK_LIFE = (QuickAttribute.LIFE_TYPE, QuickAttribute.LIFE_DURATION)


def _life_attributes(life: Life, classes: tuple[int, int]) -> Attributes:
    """Type and duration, the latter in four octets as everybody sends it."""
    kind, duration = classes
    found: list[tuple[int, int | bytes]] = []
    for unit, value in ((LifeType.SECONDS, life.seconds), (LifeType.KILOBYTES, life.kilobytes)):
        if value is not None:
            found += (kind, int(unit)), (duration, min(value, LONGEST).to_bytes(4, "big"))
    return tuple(found)


def _life(attributes: Attributes, classes: tuple[int, int]) -> Life:
    """What a list of attributes says, `LONGEST` at the most; a duration belongs to the type before it."""
    kind, duration = classes
    unit = None
    found: dict[int, int] = {}
    for number, value in attributes:
        amount = _number(value)
        if number == kind:
            unit = amount
        elif number == duration and unit is not None and amount:
            found.setdefault(unit, min(amount, LONGEST))
    return Life(found.get(LifeType.SECONDS), found.get(LifeType.KILOBYTES))


def responder_lifetime(life: Life, *, main: bool = False) -> bytes:
    """Data of a RESPONDER-LIFETIME notify, of phase 1 or 2 (RFC 2407 section 4.6.3.1)."""
    return Lifetime(attributes=_life_attributes(life, _MAIN_LIFE if main else _QUICK_LIFE)).encode()


def read_responder_lifetime(data: bytes, *, main: bool = False) -> Life:
    """What such a notify says; raises `Malformed`."""
    return _life(decode(Lifetime, data).attributes, _MAIN_LIFE if main else _QUICK_LIFE)


# What we offer ---------------------------------------------------------------------------------------------


NO_METHODS = (0,)
_GSS_NAMES = (MainAttribute.GSS_NAME, MainAttribute.GSS_NAME_OLD)


def offer_main(
    suites: Iterable[MainSuite], methods: Sequence[int], life: Life, gss_name: bytes = b""
) -> SecurityAssociation:
    """Our main-mode suites with each of the authentication methods."""
    wanted = [one for suite in suites for method in methods if (one := _main(suite, method)) is not None]
    transforms = tuple(
        Transform(number=n, id=KEY_IKE, attributes=_main_attributes(one, life, gss_name))
        for n, one in enumerate(wanted[:MOST_TRANSFORMS], 1)
    )
    proposal = Proposal(number=1, protocol=ProtocolId.ISAKMP, spi=b"", transforms=transforms)
    return SecurityAssociation(proposals=(proposal,))


def _main_attributes(one: _Main, life: Life, gss_name: bytes) -> Attributes:
    """In the order Windows has them."""
    pairs = (
        (MainAttribute.ENCRYPTION, one.cipher),
        (MainAttribute.KEY_LENGTH, one.bits),
        (MainAttribute.HASH, one.hash),
        (MainAttribute.GROUP, one.group),
        (MainAttribute.METHOD, one.method),
    )
    # a group is always said, be it none
    return (
        *((int(kind), value) for kind, value in pairs if value or kind is MainAttribute.GROUP),
        *_life_attributes(life, _MAIN_LIFE),
        *(((int(MainAttribute.GSS_NAME), gss_name),) if gss_name else ()),
    )


def offer_quick(
    suites: Iterable[QuickSuite], spi: bytes, encapsulation: int, life: Life
) -> SecurityAssociation:
    """Our quick-mode suites, as `together` picks them, with our inbound SPI. Extended sequence numbers are
    not offered: a peer that ignores the attribute would send it back all the same."""
    wanted = [one for suite in suites if (one := _quick(suite, encapsulation)) is not None]
    return SecurityAssociation(
        proposals=tuple(
            Proposal(
                number=n,
                protocol=one.protocol,
                spi=spi,
                transforms=(Transform(number=1, id=one.id, attributes=_quick_attributes(one, life)),),
            )
            for n, one in enumerate(wanted[:MOST_TRANSFORMS], 1)
        )
    )


def _quick_attributes(one: _Quick, life: Life) -> Attributes:
    pairs = (
        (QuickAttribute.ENCAPSULATION, one.encapsulation),
        (QuickAttribute.AUTHENTICATION, one.authentication),
        (QuickAttribute.KEY_LENGTH, one.bits),
        (QuickAttribute.GROUP, one.group),
    )
    known = tuple((int(kind), value) for kind, value in pairs if value)
    return _life_attributes(life, _QUICK_LIFE) + known


# What the peer offers --------------------------------------------------------------------------------------


def _number(value: int | bytes) -> int | None:
    """An attribute's value in either form, None when it is no number of reasonable size."""
    if isinstance(value, int):
        return value
    return int.from_bytes(value, "big") if 1 <= len(value) <= 8 else None


def _values(transform: Transform, classes: Collection[int]) -> dict[int, int] | None:
    """The attributes of these classes, or None when one is no number or contradicts another, or all are too
    much to give back."""
    if sum(len(value) for _, value in transform.attributes if isinstance(value, bytes)) > MOST_OCTETS:
        return None
    found: dict[int, int] = {}
    for kind, value in transform.attributes:
        if kind in classes:
            number = _number(value)
            if number is None or found.setdefault(kind, number) != number:
                return None
    return found


_MAIN_CLASSES = frozenset(
    {
        MainAttribute.ENCRYPTION,
        MainAttribute.KEY_LENGTH,
        MainAttribute.HASH,
        MainAttribute.GROUP,
        MainAttribute.METHOD,
        MainAttribute.PRF,
    }
)
_QUICK_CLASSES = frozenset(
    {
        QuickAttribute.KEY_LENGTH,
        QuickAttribute.AUTHENTICATION,
        QuickAttribute.GROUP,
        QuickAttribute.ENCAPSULATION,
        QuickAttribute.ESN,
    }
)


def _read_main(transform: Transform, methods: bool) -> _Main | None:
    """A transform of phase 1; one with a PRF of its own is not ours (there is no other than HMAC)."""
    found = _values(transform, _MAIN_CLASSES if methods else _MAIN_CLASSES - {MainAttribute.METHOD})
    if found is None or transform.id != KEY_IKE or MainAttribute.PRF in found:
        return None
    return _Main(
        found.get(MainAttribute.ENCRYPTION, 0),
        found.get(MainAttribute.KEY_LENGTH, 0),
        found.get(MainAttribute.HASH, 0),
        found.get(MainAttribute.GROUP, 0),
        found.get(MainAttribute.METHOD, 0),
    )


def _read_quick(protocol: int, transform: Transform) -> _Quick | None:
    """A transform of phase 2."""
    found = _values(transform, _QUICK_CLASSES)
    if found is None:
        return None
    return _Quick(
        protocol,
        transform.id,
        found.get(QuickAttribute.KEY_LENGTH, 0),
        found.get(QuickAttribute.AUTHENTICATION, 0),
        found.get(QuickAttribute.GROUP, 0),
        found.get(QuickAttribute.ENCAPSULATION, 0),
        found.get(QuickAttribute.ESN, 0),
    )


def _ours(payload: SecurityAssociation) -> bool:
    """Whether the payload is about IPsec, without the labels of RFC 2407 section 4.2."""
    return payload.doi == DOI_IPSEC and payload.situation == SITUATION


def _main_offers(
    payload: SecurityAssociation, *, methods: bool = True
) -> Iterator[tuple[_Main, Proposal, Transform]]:
    if not _ours(payload):
        return
    for proposal in payload.proposals:
        if proposal.protocol == ProtocolId.ISAKMP:
            for one in proposal.transforms:
                if (read := _read_main(one, methods)) is not None:
                    yield read, proposal, one


def _quick_offers(payload: SecurityAssociation) -> Iterator[tuple[_Quick, Proposal, Transform]]:
    """Proposals of one number belong together (RFC 2408 section 4.2): AH with ESP, or compression, which we
    do not have."""
    if not _ours(payload):
        return
    numbers = Counter(one.number for one in payload.proposals)
    for proposal in payload.proposals:
        if proposal.protocol in CARRIERS and len(proposal.spi) == 4 and numbers[proposal.number] == 1:
            for one in proposal.transforms:
                if (read := _read_quick(proposal.protocol, one)) is not None:
                    yield read, proposal, one


def choose_main(
    payload: SecurityAssociation, suites: Iterable[MainSuite], methods: Sequence[int]
) -> MainChoice | None:
    """The first of our suites that a transform of the peer's is, with the first of `methods`; `NO_METHODS`
    when those are negotiated elsewhere."""
    offered: dict[_Main, tuple[Proposal, Transform]] = {}
    for read, proposal, transform in _main_offers(payload, methods=methods != NO_METHODS):
        offered.setdefault(read, (proposal, transform))
    for suite in suites:
        for method in methods:
            wanted = _main(suite, method)
            if wanted is None or wanted not in offered:
                continue
            proposal, transform = offered[wanted]
            names = (value for kind, value in transform.attributes if kind in _GSS_NAMES)
            name = next((one for one in names if isinstance(one, bytes)), b"")
            life = _life(transform.attributes, _MAIN_LIFE)
            return MainChoice(suite, method, life, replace(proposal, transforms=(transform,)), name)
    return None


def offers_method(payload: SecurityAssociation, method: int) -> bool:
    """Whether a peer offers an authentication method at all."""
    return any(read.method == method for read, _, _ in _main_offers(payload))


def choose_quick(
    payload: SecurityAssociation,
    suites: Iterable[QuickSuite],
    encapsulations: Sequence[int],
    groups: Sequence[Group] = (),
    *,
    pfs: bool,
) -> QuickChoice | None:
    """The first of our suites that a transform of the peer's is, in one of the encapsulation modes.

    `pfs` tells whether the peer sent a Key Exchange payload; then a suite without PFS accepts the peer's wish
    for it with one of `groups`.
    """
    offered: dict[_Quick, tuple[Proposal, Transform]] = {}
    for read, proposal, transform in _quick_offers(payload):
        offered.setdefault(read, (proposal, transform))
    for suite in suites:
        for variant in _variants(suite, groups, pfs):
            for mode in encapsulations:
                wanted = _quick(variant, mode, int(variant.esn))
                if wanted is not None and wanted in offered:
                    proposal, transform = offered[wanted]
                    life = _life(transform.attributes, _QUICK_LIFE)
                    return QuickChoice(variant, mode, life, replace(proposal, transforms=(transform,)))
    return None


def _variants(suite: QuickSuite, groups: Sequence[Group], pfs: bool) -> Iterator[QuickSuite]:
    """How a suite may end up, best first: group and extended sequence numbers."""
    agreed: Sequence[Group | None]
    if pfs:
        agreed = [suite.group] if suite.group else groups
    else:
        agreed = [] if suite.group else [None]
    for group in agreed:
        for esn in (True, False) if suite.esn else (False,):
            yield replace(suite, group=group, esn=esn)


def accept_main(choice: MainChoice, gss_name: bytes = b"") -> SecurityAssociation:
    """The answer: the chosen transform as it was offered, but for the name, which is the sender's."""
    (transform,) = choice.proposal.transforms
    if gss_name and choice.gss_name:
        named = tuple(
            (kind, gss_name if kind in _GSS_NAMES else value) for kind, value in transform.attributes
        )
        transform = replace(transform, attributes=named)
    return SecurityAssociation(proposals=(replace(choice.proposal, spi=b"", transforms=(transform,)),))


def accept_quick(choice: QuickChoice, spi: bytes) -> SecurityAssociation:
    """The answer: the chosen transform as it was offered, with our SPI."""
    return SecurityAssociation(proposals=(replace(choice.proposal, spi=spi),))


def _single(payload: SecurityAssociation) -> bool:
    """Whether an answer has exactly one transform."""
    return len(payload.proposals) == 1 and len(payload.proposals[0].transforms) == 1


def main_chosen(
    payload: SecurityAssociation, suites: Iterable[MainSuite], methods: Sequence[int]
) -> MainChoice | None:
    """Which of our transforms the peer chose; None when it made something up."""
    return choose_main(payload, suites, methods) if _single(payload) else None


def quick_chosen(
    payload: SecurityAssociation, suites: Iterable[QuickSuite], encapsulation: int
) -> QuickChoice | None:
    """Which of our transforms the peer chose; None when it made something up."""
    if not _single(payload):
        return None
    offered = [replace(one, esn=False) for one in together(suites)]
    pfs = bool(offered and offered[0].group)
    return choose_quick(payload, offered, (encapsulation,), pfs=pfs)


# For people ------------------------------------------------------------------------------------------------

_CIPHER, _HASH, _GROUP, _METHOD, _PROTOCOL, _ESP, _AUTHENTICATION, _MODE = range(8)
_WORDS = {
    _PROTOCOL: "protocol",
    _GROUP: "DH",
    _CIPHER: "cipher",
    _ESP: "cipher",
    _HASH: "hash",
    _AUTHENTICATION: "integrity",
    _METHOD: "authentication",
    _MODE: "mode",
}
_CIPHER_NAMES = {
    (ALGORITHMS[one.name].main, _bits(one)): one.name for one in ENCRYPTION if one.name in ALGORITHMS
}
_ESP_NAMES = {
    (ALGORITHMS[one.name].esp, _bits(one)): one.name for one in ENCRYPTION if one.name in ALGORITHMS
}
_HASH_NAMES = {ALGORITHMS[one.name].main: one.name for one in INTEGRITY if one.name in ALGORITHMS}
_AUTHENTICATION_NAMES = {
    ALGORITHMS[one.name].authentication: one.name for one in INTEGRITY if one.name in ALGORITHMS
}
_GROUP_NAMES = {ALGORITHMS[one.name].main: one.name for one in GROUPS if one.name in ALGORITHMS}


def _cipher_name(known: dict[tuple[int, int], str], foreign: dict[int, str], number: int, bits: int) -> str:
    name = known.get((number, bits)) if number else "none"
    return name or (foreign.get(number) or f"number {number}") + (f" {bits} bits" if bits else "")


def _name(known: dict[int, str], foreign: dict[int, str], number: int) -> str:
    return (known.get(number) or foreign.get(number) or f"number {number}") if number else "none"


def _main_names(one: _Main) -> Iterator[tuple[int, str]]:
    yield _GROUP, _name(_GROUP_NAMES, FOREIGN_GROUPS, one.group)
    yield _CIPHER, _cipher_name(_CIPHER_NAMES, FOREIGN_CIPHERS, one.cipher, one.bits)
    yield _HASH, _name(_HASH_NAMES, FOREIGN_HASHES, one.hash)
    if one.method:
        yield _METHOD, method_name(one.method)


def _quick_names(one: _Quick) -> Iterator[tuple[int, str]]:
    yield _PROTOCOL, CARRIERS[one.protocol].value
    yield _GROUP, _name(_GROUP_NAMES, FOREIGN_GROUPS, one.group)
    if one.protocol == ProtocolId.ESP:
        yield _ESP, _cipher_name(_ESP_NAMES, FOREIGN_ESP, one.id, one.bits)
    if one.authentication:
        yield _AUTHENTICATION, _name(_AUTHENTICATION_NAMES, FOREIGN_AUTHENTICATION, one.authentication)
    yield _MODE, encapsulation_name(one.encapsulation)


def compare_main(
    payload: SecurityAssociation | None,
    suites: Iterable[MainSuite],
    methods: Sequence[int],
    *,
    sent: bool,
) -> Comparison:
    """Both sides' main-mode proposals. `sent` tells whether ours went out as an offer; without a payload the
    peer's are unknown."""
    ours = [one for suite in suites for method in methods if (one := _main(suite, method)) is not None]
    known = methods != NO_METHODS
    theirs = (read for read, _, _ in _main_offers(payload, methods=known)) if payload else ()
    return comparison.compare(
        _WORDS,
        (pair for one in ours for pair in _main_names(one)),
        (pair for one in theirs for pair in _main_names(one)),
        sent=sent,
    )


def compare_quick(
    payload: SecurityAssociation | None,
    suites: Iterable[QuickSuite],
    encapsulations: Sequence[int],
    *,
    sent: bool,
) -> Comparison:
    """Both sides' quick-mode proposals, as `compare_main`."""
    ours = [one for suite in suites for mode in encapsulations if (one := _quick(suite, mode)) is not None]
    theirs = (read for read, _, _ in _quick_offers(payload)) if payload else ()
    return comparison.compare(
        _WORDS,
        (pair for one in ours for pair in _quick_names(one)),
        (pair for one in theirs for pair in _quick_names(one)),
        sent=sent,
    )
