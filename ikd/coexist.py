"""Which keying module speaks to a peer, when a rule allows several: in its order, falling back when the peer
does not answer in one, and remembered for a while.

AuthIP and IKEv1 are begun at once, as Windows does it (MS-AIPS sections 1.7 and 3.3.5.2, MS-IKEE section
1.3.8): the first message of IKEv1 says that there is a twin, a responder that knows AuthIP ignores it, and
the first valid answer ends the other one. A peer that has answered in a protocol is not tried in another: a
refusal that could be authenticated, or a proof that failed, is an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from ikd.riders.vendor import Known
from ikd.wire.isakmp import ZERO_SPI, Header
from policy.rules import Rule
from sadb.address import Address, Path
from sadb.sa import Acquire

AUTHIP, IKEV1 = TWINS = "authip", "ikev1"
VERSION_1 = 0x10
_FIRST = (2, 4)  # main mode and aggressive mode of IKEv1
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
    alone: bool = False  # what the peer speaks is known: AuthIP and IKEv1 are not begun at once
    twin: int = 0  # the number of the negotiation in the other one of the two

    def parted(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The modules to begin now, and those that are left after them."""
        if not self.alone and set(self.left[:2]) == set(TWINS):
            return TWINS, self.left[2:]
        return self.left[:1], self.left[1:]


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

    def knows(self, peer: Address, now: float) -> bool:
        """Whether there is a verdict about a peer."""
        known, until = self._found.get(peer, ("", 0.0))
        return bool(known) and until > now

    def spoke(self, peer: Address, module: str, now: float, seconds: float) -> None:
        """A peer has proven itself in a module; kept for `seconds`."""
        self._found[peer] = (module, now + seconds)
        self._found.move_to_end(peer)
        while len(self._found) > MOST_VERDICTS:
            self._found.popitem(last=False)

    def known(self, now: float) -> list[tuple[Address, str, float]]:
        """Peers, what they speak, and for how many seconds that is still believed."""
        return [(peer, known, until - now) for peer, (known, until) in self._found.items() if until > now]

    def forget(self) -> None:
        """A reload may have changed everything."""
        self._found.clear()


def ignored(header: Header, data: bytes, *, has_authip: bool, every: bool) -> bool:
    """Whether a first message of IKEv1 gets no answer, because its sender has begun AuthIP, too, which a rule
    of ours has for it; `every`: also when it does not say so (authip.md OQ-25)."""
    first = header.version == VERSION_1 and header.exchange in _FIRST and header.spi_r == ZERO_SPI
    return first and has_authip and (every or Known.AUTHIP.value in data)
