"""Which keying module speaks to a peer, when a rule allows several: in its order, falling back when the peer
does not answer in one, and remembered for a while.

It knows no wire format. A peer that has answered in a protocol is not tried in another: a refusal that could
be authenticated, or a proof that failed, is an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from policy.rules import Rule
from sadb.address import Address, Path
from sadb.sa import Acquire

MOST_VERDICTS = 4096
PATIENCE = 4.0  # seconds without an answer after which the next module is tried


@dataclass(slots=True)
class Attempt:
    """A negotiation with modules left to try when nobody answers in this one by `due`."""

    rule: Rule
    path: Path
    acquire: Acquire | None
    childless: bool
    left: tuple[str, ...]
    due: float


class Verdicts:
    """What peers have spoken, by address."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: OrderedDict[Address, tuple[str, float]] = OrderedDict()

    def order(self, rule: Rule, modules: Collection[str], peer: Address, now: float) -> tuple[str, ...]:
        """The modules to try for a rule, the one this peer is known to speak first."""
        able = [one for one in rule.keying if one in modules]
        known, until = self._found.get(peer, ("", 0.0))
        if known in able and until > now:
            able.sort(key=lambda one: one != known)
        return tuple(able)

    def spoke(self, peer: Address, module: str, now: float, seconds: float) -> None:
        """A peer has proven itself in a module; kept for `seconds`."""
        self._found[peer] = (module, now + seconds)
        self._found.move_to_end(peer)
        while len(self._found) > MOST_VERDICTS:
            self._found.popitem(last=False)

    def forget(self) -> None:
        """A reload may have changed everything."""
        self._found.clear()
