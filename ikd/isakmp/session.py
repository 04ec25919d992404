"""What main-mode SAs of IKEv1 and AuthIP have in common: who began, what both sides know, the PRF
(RFC 2408, 2409; MS-IKEE section 2.1)."""

from __future__ import annotations

from typing import Protocol

from ikd import keying
from ikd.isakmp.numbers import ENCAPSULATIONS, Traversal
from ikd.keying import Environment
from ikd.riders import failover
from ikd.riders.vendor import Known
from policy.rules import Rule
from sadb.address import Path
from sadb.algorithms import Prf
from sadb.sa import Mode


class Cookies(Protocol):
    """What a session knows of its channel; the rest is each protocol's."""

    cookie_i: bytes
    cookie_r: bytes

    @property
    def armed(self) -> bool:
        """Whether it has keys."""


class IsakmpSession(keying.MainMode):
    """One ISAKMP SA."""

    __slots__ = ("_initiator", "had_another", "nonce_i", "nonce_r", "traversal")

    channel: Cookies

    def __init__(self, initiator: bool, env: Environment, path: Path, now: float) -> None:
        keying.MainMode.__init__(self, 0, env, path, now)
        self._initiator = initiator
        self.nonce_i = self.nonce_r = b""
        self.traversal = Traversal.NONE
        self.had_another = False  # with this peer, when we began this one

    @property
    def initiator(self) -> bool:
        """Whether we sent the first message."""
        return self._initiator

    @property
    def armed(self) -> bool:
        """Whether there are keys."""
        return self.channel.armed

    @property
    def may_fragment(self) -> bool:
        """Whether the peer takes Microsoft's fragments."""
        return self.env.settings.fragmentation and self.both(Known.FRAGMENTATION)

    def both(self, one: Known) -> bool:
        """Whether the peer and we have announced an ability."""
        return one in self.vendors and self.announced.knows(one)

    def idle_seconds(self, rule: Rule | None) -> float | None:
        """After how long without traffic a quick-mode SA goes; sooner with a member of a cluster."""
        of_rule = keying.MainMode.idle_seconds(self, rule)
        return failover.idle_seconds(self.vendors, of_rule, self.announced.idle)

    @property
    def row(self) -> Prf:
        """The PRF: HMAC of the negotiated hash."""
        assert self.suite is not None
        return self.suite.prf

    def encapsulation(self, mode: Mode) -> int:
        """The encapsulation mode of a quick-mode SA, as this SA's revision of NAT traversal numbers it."""
        traversal = self.traversal if self.nat else Traversal.NONE
        return ENCAPSULATIONS[traversal, mode is Mode.TUNNEL]
