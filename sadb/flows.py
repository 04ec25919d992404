"""Which flow a packet belongs to: the lowest `order` among those whose selector covers it (RFC 4301 4.4.1).

Flows stand under the address prefixes of their narrower side, so that neither "any client to this server" nor
"this host to that network" piles up in one list. Answers are remembered in a bounded cache. It classifies
only; what the flow asks for is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from sadb.address import Address
from sadb.prefix import PrefixIndex
from sadb.sa import Flow
from sadb.selector import Fields, TrafficSelector

CACHED = 8192  # answers kept; a stranger who varies addresses can fill it, so it is emptied when full

_Key = tuple[bool, type[Address], int, int, int, int | None, int | None]


class FlowTable:
    """The flows of a policy, for lookup by packet."""

    __slots__ = ("_by_local", "_by_remote", "_cache", "flows")

    def __init__(self, flows: Sequence[Flow] = ()) -> None:
        self.flows: tuple[Flow, ...] = ()
        self._by_local: PrefixIndex[tuple[int, Flow]] = PrefixIndex()
        self._by_remote: PrefixIndex[tuple[int, Flow]] = PrefixIndex()
        self._cache: dict[_Key, Flow | None] = {}
        self.build(flows)

    def build(self, flows: Sequence[Flow]) -> None:
        """Replace all flows. Of two with the same `order` the one given first wins."""
        ranked = tuple(sorted(flows, key=lambda flow: flow.order))
        by_local: PrefixIndex[tuple[int, Flow]] = PrefixIndex()
        by_remote: PrefixIndex[tuple[int, Flow]] = PrefixIndex()
        for rank, flow in enumerate(ranked):
            local, remote = flow.selector.local, flow.selector.remote
            if _breadth(local) < _breadth(remote):
                by_local.add(local, (rank, flow))
            else:
                by_remote.add(remote, (rank, flow))
        self.flows, self._by_local, self._by_remote, self._cache = ranked, by_local, by_remote, {}

    def lookup(self, fields: Fields, outbound: bool) -> Flow | None:
        """The flow of a packet that leaves here (`outbound`) or arrives, or None when no flow covers it."""
        source, destination, protocol, source_port, destination_port = fields
        # integers, because address objects are slow to hash and to compare; one packet has one version
        key = (
            outbound,
            type(source),
            int(source),
            int(destination),
            protocol,
            source_port,
            destination_port,
        )
        try:
            return self._cache[key]
        except KeyError:
            pass
        found = self._search(fields if outbound else fields.reversed())
        if len(self._cache) >= CACHED:
            self._cache.clear()
        self._cache[key] = found
        return found

    def _search(self, fields: Fields) -> Flow | None:
        best, best_rank = None, len(self.flows)
        for index, address in ((self._by_remote, fields.destination), (self._by_local, fields.source)):
            for bucket in index.buckets(address):
                for rank, flow in bucket:  # in order of rank
                    if rank >= best_rank:
                        break
                    if flow.selector.matches_outbound(fields):
                        best, best_rank = flow, rank
                        break
        return best


def _breadth(selectors: Sequence[TrafficSelector]) -> int:
    """How many address bits the widest selector leaves open, more for IPv4 "any" than for an IPv6 host."""
    return max((int(one.high) - int(one.low)).bit_length() for one in selectors) if selectors else 0
