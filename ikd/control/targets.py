"""Which SAs are meant by a name on the command line: a rule, a peer's address or identity, or an SPI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ikd.control.protocol import ControlError
from policy.engine import Policy
from sadb.sa import SaPair

if TYPE_CHECKING:
    from ikd.association import Association

SHORTEST = 4  # digits of an SPI that are enough to name it
_SPI = re.compile(r"(?:0x)?([0-9a-f]{4,16})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Targets:
    """What a name stands for: whole IKE SAs, or single Child SAs. `rule` when it is a rule's name."""

    associations: tuple[Association, ...] = ()
    pairs: tuple[SaPair, ...] = ()
    rule: str = ""

    def __bool__(self) -> bool:
        return bool(self.associations or self.pairs)


def find(
    name: str, policy: Policy, associations: Mapping[int, Association], pairs: Iterable[SaPair]
) -> Targets:
    """What a name stands for; raises `ControlError` when it is nobody's or more than one's."""
    every = tuple(pairs)
    of_rule = tuple(pair for pair in every if pair.rule == name)
    if of_rule or policy.rule(name) is not None:
        return _of_rule(name, associations, of_rule)
    named = tuple(one for one in associations.values() if name in peer_names(one))
    if named:
        owners = {one.number for one in named}
        return Targets(named, tuple(pair for pair in every if pair.owner in owners))
    if match := _SPI.fullmatch(name):
        found = _by_spi(match[1].lower(), associations, every)
        if found:
            return found
    known = [rule.name for rule in policy.rules]
    known += [text for one in associations.values() for text in peer_names(one)]
    near = get_close_matches(name, known, n=1)
    remedy = f'did you mean "{near[0]}"?' if near else "ikctl sa lists the SAs, ikctl policy show the rules"
    raise ControlError("no-such-sa", f"there is no rule, peer or SPI {name!r}", remedy)


def peer_names(one: Association) -> tuple[str, ...]:
    """What people call the peer of an IKE SA, or its user."""
    found = [str(address) for address in one.main.peer_addresses]
    if one.peer and not one.peer.anonymous:
        found = [str(one.peer.identity), *one.peer.names, *found]
    return (*found, *one.main.user.names) if one.main.user else tuple(found)


def _of_rule(name: str, associations: Mapping[int, Association], pairs: tuple[SaPair, ...]) -> Targets:
    """A rule's Child SAs, and those of its IKE SAs that serve nothing else."""
    owners = {pair.owner for pair in pairs}
    alone = tuple(
        one
        for one in associations.values()
        if (one.number in owners or one.rule == name)
        and all(pair.rule == name for pair in one.children.values())
    )
    return Targets(associations=alone, pairs=pairs, rule=name)


def _by_spi(
    digits: str, associations: Mapping[int, Association], pairs: tuple[SaPair, ...]
) -> Targets | None:
    """The one SA whose SPI begins like this."""
    main = tuple(
        one
        for one in associations.values()
        if one.spi_i.hex().startswith(digits) or one.spi_r.hex().startswith(digits)
    )
    quick = tuple(
        pair
        for pair in pairs
        if any(f"{sa.spi:08x}".startswith(digits) for sa in (pair.inbound, pair.outbound))
    )
    whole = tuple(pair for pair in quick if f"{pair.inbound.spi:08x}" == digits)
    quick = whole or quick
    if len(main) + len(quick) > 1:
        raise ControlError(
            "ambiguous", f"{len(main) + len(quick)} SPIs begin with {digits}", "write more of its digits"
        )
    return Targets(main, quick) if main or quick else None
