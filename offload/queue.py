"""Packets that wait for an SA: a few of each flow, for a few seconds, and bounded altogether.

A flow here is a rule and the addresses of a packet. When it begins to wait, and again after `HOLD_DOWN`, an
SA is to be asked for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field

from sadb.sa import Flow
from sadb.selector import Fields

SECONDS = 10.0  # a held packet is dropped after this
HOLD_DOWN = 5.0  # an SA that did not come is asked for again after this, if a packet asks

OCTETS = 16 << 20  # all packets together
Key = tuple[str, int, int]


@dataclass(slots=True)
class _Waiting:
    asked: float
    # when it is dropped, the packet, and whether it came in fragments
    packets: deque[tuple[float, bytes, bool]] = field(default_factory=deque)


class Held:
    """All packets that wait."""

    __slots__ = ("_counters", "_flows", "_limit", "_octets", "_waiting", "packets")

    def __init__(self, counters: MutableMapping[str, int], packets: int, flows: int) -> None:
        self._counters = counters
        self._limit, self._flows = packets, flows
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()  # the one asked for longest ago first
        self.packets = self._octets = 0

    def hold(self, flow: Flow, fields: Fields, packet: bytes, cut: bool, now: float) -> bool:
        """Keep a packet, at the cost of the oldest if need be; True when an SA is to be asked for."""
        key = (flow.rule, int(fields.source), int(fields.destination))
        waiting = self._waiting.get(key)
        ask = waiting is None or now - waiting.asked >= HOLD_DOWN
        if waiting is None:
            if len(self._waiting) >= self._flows:
                _, oldest = self._waiting.popitem(last=False)
                while oldest.packets:
                    self._drop(oldest, "queue-full")
            waiting = self._waiting[key] = _Waiting(now)
        elif ask:
            waiting.asked = now
            self._waiting.move_to_end(key)
        waiting.packets.append((now + SECONDS, packet, cut))
        self.packets += 1
        self._octets += len(packet)
        if len(waiting.packets) > self._limit:
            self._drop(waiting, "queue-full")
        while self._octets > OCTETS:
            self._drop(next(one for one in self._waiting.values() if one.packets), "queue-full")
        return ask

    def take(self, rules: frozenset[str] | None) -> Iterator[tuple[bytes, bool]]:
        """Give out all packets of some rules (None: of all), flow by flow and oldest first, and forget these
        flows."""
        for key in [key for key in self._waiting if rules is None or key[0] in rules]:
            waiting = self._waiting.pop(key)
            self.packets -= len(waiting.packets)
            self._octets -= sum(len(packet) for _, packet, _ in waiting.packets)
            yield from ((packet, cut) for _, packet, cut in waiting.packets)

    def expire(self, now: float) -> None:
        """Drop what has waited too long, and flows nothing is asked for any more."""
        while self._waiting:
            key, waiting = next(iter(self._waiting.items()))
            if waiting.asked + SECONDS > now:
                break
            while waiting.packets and waiting.packets[0][0] <= now:
                self._drop(waiting, "expired")
            if waiting.packets:
                break
            del self._waiting[key]

    def deadline(self) -> float | None:
        """When `expire` may have something to do."""
        if not self._waiting:
            return None
        waiting = next(iter(self._waiting.values()))
        return max([waiting.asked + SECONDS, *(when for when, _, _ in list(waiting.packets)[:1])])

    def _drop(self, waiting: _Waiting, reason: str) -> None:
        _, packet, _ = waiting.packets.popleft()
        self.packets -= 1
        self._octets -= len(packet)
        self._counters[reason] += 1
