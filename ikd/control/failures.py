"""The last failures of rules and peers, for `ikctl why` and `ikctl status`.

A failure stays after the rule has succeeded, marked as mended, because whoever asks why comes late.
Failures of rules and those of strangers, for whom no rule was found, are kept apart: strangers can push out
only each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Final

from ikd.events import (
    AuthenticationFailed,
    ChildEstablished,
    Event,
    IkeEstablished,
    NegotiationFailed,
    PeerAuthenticated,
    Reloaded,
)
from policy.rules import Rule

MOST_RULES: Final = 1024
MOST_PEERS_OF_A_RULE: Final = 8
MOST_STRANGERS: Final = 256
MOST_IDENTITIES: Final = 256


@dataclass(slots=True)
class Failure:
    """What failed last between a rule and a peer; times are on the daemon's clock. `identity` is what the
    peer claimed or proved, `mended` when it worked afterwards."""

    event: NegotiationFailed
    identity: str
    first: float
    last: float
    times: int = 1
    mended: float | None = None


class Failures:
    """Fed by events; `clock` tells when they happen."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rules: OrderedDict[str, OrderedDict[str, Failure]] = OrderedDict()  # rule -> peer, oldest first
        self._strangers: OrderedDict[str, Failure] = OrderedDict()
        self._identities: OrderedDict[int, str] = OrderedDict()  # by number of the IKE SA
        self._addresses: OrderedDict[int, str] = OrderedDict()  # likewise
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            NegotiationFailed: self._failed,
            AuthenticationFailed: self._refused,
            PeerAuthenticated: self._identified,
            IkeEstablished: self._ike_established,
            ChildEstablished: self._child_established,
            Reloaded: self._reloaded,
        }

    def listener(self, kind: type[Event]) -> Callable[[Event], None] | None:
        """Who takes notice of events of a kind."""
        return self._handlers.get(kind)

    def __iter__(self) -> Iterator[Failure]:
        """All of them, the latest first."""
        return iter(sorted(self._every(), key=lambda one: -one.last))

    def latest(self, most: int) -> list[Failure]:
        """The latest ones, the last first."""
        return nlargest(most, self._every(), key=lambda one: one.last)

    def _every(self) -> Iterator[Failure]:
        for peers in (*self._rules.values(), self._strangers):
            yield from peers.values()

    def find(self, name: str, rule: Rule | None = None) -> list[Failure]:
        """Those of a rule, a peer's address or an identity, the latest first; all without a name. With `rule`
        those of strangers, too, that call from where it says its peer is."""
        where = _places(rule)
        return [
            one
            for one in self
            if not name
            or name in (one.event.rule, one.event.peer, one.identity)
            or (not one.event.rule and one.event.peer in where)
        ]

    def _reloaded(self, event: Reloaded) -> None:
        """Rules that are gone or mean something else have not failed any more."""
        for name in (*event.changed, *event.removed):
            self._rules.pop(name, None)

    def _failed(self, event: NegotiationFailed) -> None:
        if event.rule:
            peers = self._rules.setdefault(event.rule, OrderedDict())
            self._rules.move_to_end(event.rule)
            if len(self._rules) > MOST_RULES:
                self._rules.popitem(last=False)
            self._put(peers, event, MOST_PEERS_OF_A_RULE)
        else:
            self._put(self._strangers, event, MOST_STRANGERS)

    def _put(self, table: OrderedDict[str, Failure], event: NegotiationFailed, most: int) -> None:
        now = self._clock()
        identity = self._identities.get(event.ike, "") if event.ike else ""
        before = table.pop(event.peer, None)
        if before is None or before.mended is not None or _what(before.event) != _what(event):
            table[event.peer] = Failure(event, identity, now, now)
        else:  # the same again; the latest comparison counts
            before.event, before.last, before.times = event, now, before.times + 1
            before.identity = identity or before.identity
            table[event.peer] = before
        if len(table) > most:
            table.popitem(last=False)

    def _identified(self, event: AuthenticationFailed | PeerAuthenticated) -> None:
        _remember(self._identities, event.ike, event.identity)

    def _refused(self, event: AuthenticationFailed) -> None:
        self._identified(event)
        for failure in (*self._strangers.values(), *self._rules.get(event.rule, {}).values()):
            if failure.event.ike == event.ike:  # the failure may have been published first
                failure.identity = event.identity

    def _ike_established(self, event: IkeEstablished) -> None:
        """What failed before there was an IKE SA is over; its Child SA may still fail."""
        peer = str(event.path.peer.address)
        _remember(self._addresses, event.ike, peer)
        if event.replaces:
            return
        for table in (self._strangers, *self._rules.values()):
            if (failure := table.get(peer)) and not failure.event.child:
                self._mend(failure)

    def _child_established(self, event: ChildEstablished) -> None:
        """What failed for the rule with this peer is over, and what failed before there was a peer."""
        address = self._addresses.get(event.ike, "")
        for peer, failure in self._rules.get(event.rule, {}).items():
            if peer in ("", address, event.peer) or (failure.identity and failure.identity == event.peer):
                self._mend(failure)

    def _mend(self, failure: Failure) -> None:
        if failure.mended is None:
            failure.mended = self._clock()


def _remember(table: OrderedDict[int, str], number: int, text: str) -> None:
    """Something about one of the latest IKE SAs."""
    table[number] = text
    if len(table) > MOST_IDENTITIES:
        table.popitem(last=False)


def _what(event: NegotiationFailed) -> tuple[str, str, str, bool]:
    """What makes two failures the same for people."""
    return event.stage, event.notify, event.reason, event.child


def _places(rule: Rule | None) -> frozenset[str]:
    """The addresses of a rule's peer, as far as it names single ones."""
    if rule is None:
        return frozenset()
    if rule.tunnel:
        return frozenset((str(rule.tunnel.remote),))
    return frozenset(str(one.low) for one in rule.selector.remote if one.low == one.high)
