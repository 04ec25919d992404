"""Which keying module speaks to a peer, when a rule allows several: in its order, falling back when the peer
does not answer in one, and remembered for a while.

AuthIP and IKEv1 are begun at once, as Windows does it (MS-AIPS sections 1.7 and 3.3.5.2, MS-IKEE section
1.3.8): the first message of IKEv1 says that there is a twin, a responder that knows AuthIP ignores it, and
the first valid answer ends the other one. A peer that has answered in a protocol is not tried in another: a
refusal that could be authenticated, or a proof that failed, is an answer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ikd.admission import Admission
from ikd.association import Association
from ikd.events import KeyingFellBack, NegotiationFailed, NegotiationStarted
from ikd.outputs import Output
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


class Home(Protocol):
    """What this needs of the endpoint."""

    associations: Mapping[int, Association]

    def emit(self, output: Output) -> None: ...
    def withdraw(self, association: Association, now: float) -> None: ...


class Attempts:
    """Negotiations of ours that fall back to another of `modules` as long as nobody has answered."""

    def __init__(self, home: Home, modules: Mapping[str, Admission]) -> None:
        self._home = home
        self._modules = modules
        self._found: dict[int, Attempt] = {}  # by number of the association

    def __len__(self) -> int:
        return len(self._found)

    def begin(self, attempt: Attempt, now: float) -> None:
        """Negotiate with the first of the modules that are left, AuthIP and IKEv1 at once."""
        modules, left = attempt.parted()
        begun = [(one, self._modules[one].begin(attempt.path, now)) for one in modules]
        twins = [association.number for _, association in begun]
        due = now + PATIENCE if left else math.inf
        for (module, association), twin in zip(begun, reversed(twins), strict=True):
            number = association.number
            if left or twin != number:
                other = twin if twin != number else 0
                self._found[number] = replace(attempt, left=left, due=due, twin=other)
            self._home.emit(
                NegotiationStarted(
                    ike=number, rule=attempt.rule.name, initiator=True, path=attempt.path, keying=module
                )
            )
        for _, association in begun:
            if association.number in self._home.associations:  # its twin may have answered or failed at once
                association.initiate(
                    attempt.rule, attempt.acquire, now, childless=attempt.childless, twin=len(begun) > 1
                )

    def part_twins(self, now: float) -> None:
        """The first valid answer decides between AuthIP and IKEv1."""
        for number, attempt in list(self._found.items()):
            association = self._home.associations.get(number)
            if attempt.twin and association is not None and association.answered:
                other = self._home.associations.get(attempt.twin)
                self._found.pop(attempt.twin, None)
                attempt.twin = 0
                if other is not None:
                    self._home.withdraw(other, now)

    def fall_back(self, association: Association, now: float) -> None:
        """It has closed. If nobody has answered in its protocol, try the next one."""
        attempt = self._found.pop(association.number, None)
        if attempt is None or association.answered:
            return
        twin = self._home.associations.get(attempt.twin)
        if twin is not None:
            other = self._found[twin.number]
            other.twin = 0
            if association.main.keying != AUTHIP:
                return
            # AuthIP is refused: IKEv1 begins anew without a word of it, else the peer would go on ignoring it
            self._found.pop(twin.number)
            twin.abandon("AuthIP was refused", now)
            attempt = replace(attempt, left=(IKEV1, *attempt.left), alone=True, twin=0)
        if not attempt.left:
            return
        self._home.emit(
            KeyingFellBack(
                rule=attempt.rule.name,
                peer=str(attempt.path.peer.address),
                module=association.main.keying,
                instead=attempt.left[0],
            )
        )
        self.begin(attempt, now)

    def settle(self, association: Association) -> None:
        """Whatever becomes of it, no other protocol is wanted instead."""
        self._found.pop(association.number, None)

    def settle_all(self) -> None:
        """No other protocol is wanted for any of them."""
        self._found.clear()

    def conceals(self, event: NegotiationFailed) -> bool:
        """Whether a failure is none yet: nobody has answered, and another protocol is left to try."""
        attempt, association = self._found.get(event.ike), self._home.associations.get(event.ike)
        if attempt is None or association is None or association.answered:
            return False
        return bool(attempt.left or attempt.twin)

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        return min((one.due for one in self._found.values()), default=None)

    def tick(self, now: float) -> None:
        """Give up those that nobody answers."""
        for number in [one for one, attempt in self._found.items() if attempt.due <= now]:
            waiting = self._home.associations.get(number)
            if waiting is None:  # its twin has taken it along
                continue
            if waiting.answered:
                del self._found[number]
            else:
                waiting.abandon("nobody answers", now)


def ignored(header: Header, data: bytes, *, has_authip: bool, every: bool) -> bool:
    """Whether a first message of IKEv1 gets no answer, because its sender has begun AuthIP, too, which a rule
    of ours has for it; `every`: also when it does not say so (OQ-25)."""
    first = header.version == VERSION_1 and header.exchange in _FIRST and header.spi_r == ZERO_SPI
    return first and has_authip and (every or Known.AUTHIP.value in data)
