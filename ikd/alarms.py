"""When each association has something to do, as one deadline for all of them."""

from __future__ import annotations

import heapq
from typing import Final

from ikd.association import Association
from ikd.life import State

SOONEST: Final = 0.001  # seconds until one that has just had its turn has the next


class Alarms:
    """The clocks of associations. Whoever changes an association says so with `touch`."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Association]] = []
        self._serial = 0
        self._touched: dict[int, Association] = {}

    def touch(self, association: Association) -> None:
        """Its deadline may be another one now."""
        self._touched[association.number] = association

    def deadline(self) -> float | None:
        """When `tick` has something to do. What was touched since the last time is looked at now: a datagram
        leads to several calls, and only the last word counts."""
        for association in self._touched.values():
            if association.state is not State.CLOSED:
                self._arm(association)
        self._touched.clear()
        queue = self._queue
        while queue and queue[0][2].armed_at != queue[0][0]:
            heapq.heappop(queue)
        return queue[0][0] if queue else None

    def tick(self, now: float) -> None:
        """Have those do what they have to whose time has come."""
        while (due := self.deadline()) is not None and due <= now:
            association = heapq.heappop(self._queue)[2]
            association.armed_at = None
            self.touch(association)
            association.tick(now)
            self._touched.pop(association.number, None)
            if association.state is not State.CLOSED:
                self._arm(association, at_least=now + SOONEST)

    def _arm(self, association: Association, at_least: float = 0.0) -> None:
        deadline = association.deadline()
        if deadline is None:
            association.armed_at = None
            return
        deadline = max(deadline, at_least)
        if association.armed_at is None or deadline < association.armed_at:
            association.armed_at = deadline
            self._serial += 1
            heapq.heappush(self._queue, (deadline, self._serial, association))
