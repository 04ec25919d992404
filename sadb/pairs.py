"""SA pairs by rule and traffic: which one a packet that leaves here is sent on (RFC 4301 section 4.4.2).

The database and the packet engines share this index. It neither owns pairs nor changes their state.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from sadb.prefix import PrefixIndex
from sadb.sa import Mode, SaPair, State
from sadb.selector import Fields

USABLE = (State.MATURE, State.DYING)  # states of a pair that may be sent on


class PairIndex:
    """Pairs by the rule they serve and the remote addresses they cover."""

    __slots__ = ("_rules",)

    def __init__(self) -> None:
        self._rules: dict[str, PrefixIndex[SaPair]] = {}

    def add(self, pair: SaPair) -> None:
        """Enter a pair; of two with one `created` time and the same prefix the one entered later is newer."""
        self._rules.setdefault(pair.rule, PrefixIndex()).add(pair.selector.remote, pair)

    def discard(self, pair: SaPair) -> None:
        """Take a pair out; unknown ones are ignored."""
        index = self._rules.get(pair.rule)
        if index is None:
            return
        index.discard(pair.selector.remote, pair)
        if not index:
            del self._rules[pair.rule]

    def awaited(self, rule: str, fields: Fields) -> bool:
        """Whether a pair covers an outbound packet that cannot be sent on yet, or no more until another one
        takes its place."""
        index = self._rules.get(rule)
        return index is not None and any(
            pair.outbound.state not in USABLE and pair.selector.matches_outbound(fields)
            for pair in chain.from_iterable(index.buckets(fields.destination))
        )

    def newest(self, rule: str, fields: Fields) -> SaPair | None:
        """The rule's pair to send a packet on, see `newest`."""
        index = self._rules.get(rule)
        if index is None:
            return None
        return newest(chain.from_iterable(map(reversed, index.buckets(fields.destination))), fields)


def newest(pairs: Iterable[SaPair], fields: Fields) -> SaPair | None:
    """The newest mature pair that covers an outbound packet; when none is mature the newest dying one, which
    is good until its hard limit. One on standby comes after all others; of equals the first is taken. A
    packet in transport mode goes to the other end of its SA, however wide the selector is."""
    best, best_rank = None, (False, False, float("-inf"))
    for pair in pairs:
        state = pair.outbound.state
        rank = (not pair.standby, state is State.MATURE, pair.created)
        if state not in USABLE or (best is not None and rank <= best_rank):
            continue
        if pair.mode is Mode.TRANSPORT and pair.outbound.destination != fields.destination:
            continue
        if pair.selector.matches_outbound(fields):
            best, best_rank = pair, rank
    return best
