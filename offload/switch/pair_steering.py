"""Shell. The pairs of this daemon's own workers, and whoever decides about their place: the daemon itself,
or, in a virtual machine, the host's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from offload.nic.capabilities import Direction
from offload.switch.adapters import Plugged
from offload.workers.nic_worker import Plugged as PlugMessage
from offload.workers.pool import Workers
from offload.workers.shares import Share
from sadb.sa import SaPair


@dataclass(slots=True, eq=False)
class Local:
    """One pair, and what has been told of its traffic. `token` is the arbiter's."""

    pair: SaPair
    token: object
    octets: int = 0
    offloaded: int = 0  # as the worker last told; begins anew when the pair is placed anew

    @property
    def key(self) -> tuple[str, object, object]:
        """What a pair and the one that replaces it have in common."""
        return self.pair.rule, self.pair.peer, self.pair.selector


class Arbiter(Protocol):
    """Who decides."""

    def attach(self, raw: Sequence[int], natt: Sequence[int], deliver: Callable[[Plugged], None]) -> None:
        """There is a new worker with these sockets: it wants the adapter."""
        ...

    def join(
        self,
        pair: SaPair,
        wished: bool,
        replaces: object | None,
        move: Callable[[frozenset[Direction], bool], None],
    ) -> object:
        """A pair that may be placed; what it is known by from now on."""
        ...

    def leave(self, token: object) -> None:
        """The pair is gone."""
        ...

    def came(self, token: object, direction: Direction, what: str) -> None:
        """What became of one direction."""
        ...

    def used(self, rows: Sequence[tuple[object, int, int]]) -> None:
        """Octets since the last time, and those of them in the adapter; then it is time to think again."""
        ...

    def changed(self, token: object, wished: bool) -> None:
        """States of the pair, or what its rule wishes, may be others."""
        ...


class PairSteering:
    """`offload.workers.pool.Steering` for an arbiter. `wished(rule)` says whether a rule lets an adapter
    carry its SAs."""

    def __init__(self, workers: Workers, arbiter: Arbiter, wished: Callable[[str], bool]) -> None:
        self._workers, self._arbiter, self._wished = workers, arbiter, wished
        self._pairs: dict[SaPair, Local] = {}
        self._youngest: dict[tuple[str, object, object], Local] = {}
        self._share: Share | None = None
        self.counters: Mapping[str, int] = {}
        self._leases: Mapping[SaPair, tuple[int, int]] = {}
        workers.steering = self

    def open(self, share: Share) -> None:
        """Begin; before the workers do."""
        self._share = share

    # Of the workers --------------------------------------------------------------------------------------

    def began(self) -> None:
        """See `offload.workers.pool.Steering`."""
        assert self._share is not None
        for local in self._pairs.values():
            for direction in Direction:
                self._arbiter.came(local.token, direction, "link")
        raw = [one.fileno() for one in self._share.raw]
        natt = [one.fileno() for one in self._share.natt]
        self._arbiter.attach(raw, natt, self._deliver)

    def installed(self, pair: SaPair) -> None:
        """See `offload.workers.pool.Steering`."""
        local = self._pairs[pair] = Local(pair, None)
        former = self._youngest.get(local.key)
        self._youngest[local.key] = local
        local.token = self._arbiter.join(
            pair, self._wished(pair.rule), former.token if former else None, self._mover(pair)
        )

    def removed(self, pair: SaPair) -> None:
        """See `offload.workers.pool.Steering`."""
        local = self._pairs.pop(pair, None)
        if local is not None:
            self._arbiter.leave(local.token)
            if self._youngest.get(local.key) is local:
                del self._youngest[local.key]

    def came(self, pair: SaPair, inbound: bool, what: str) -> None:
        """See `offload.workers.pool.Steering`."""
        local = self._pairs.get(pair)
        if local is not None:
            direction = Direction.INBOUND if inbound else Direction.OUTBOUND
            self._arbiter.came(local.token, direction, what)

    def carried(
        self,
        rows: Sequence[tuple[SaPair, int, int]],
        counters: Mapping[str, int],
        leases: Mapping[SaPair, tuple[int, int]],
    ) -> None:
        """See `offload.workers.pool.Steering`."""
        self.counters, self._leases = counters, leases
        totals = {pair: came + went for pair, came, went in rows}
        told: list[tuple[object, int, int]] = []
        for pair, local in self._pairs.items():
            came, went = self._workers.usage(pair)
            octets, total = came.octets + went.octets, totals.get(pair, 0)
            offloaded = total - local.offloaded if total >= local.offloaded else total
            if octets != local.octets:
                told.append((local.token, max(0, octets - local.octets), offloaded))
            local.octets, local.offloaded = octets, total
            self._arbiter.changed(local.token, self._wished(pair.rule))
        self._arbiter.used(told)

    def lease(self, token: object) -> tuple[int, int] | None:
        """In packet mode the adapter's next number for a pair that the arbiter knows by `token`, and the end
        of its lease, as last told."""
        return next((one for pair, one in self._leases.items() if self.token(pair) is token), None)

    # Inside ----------------------------------------------------------------------------------------------

    def token(self, pair: SaPair) -> object | None:
        """What the arbiter knows a pair by."""
        local = self._pairs.get(pair)
        return local.token if local is not None else None

    def _mover(self, pair: SaPair) -> Callable[[frozenset[Direction], bool], None]:
        def move(directions: frozenset[Direction], hard: bool) -> None:
            inbound, outbound = Direction.INBOUND in directions, Direction.OUTBOUND in directions
            self._workers.place(pair, inbound, outbound, hard)

        return move

    def _deliver(self, plugged: Plugged) -> None:
        """Give the worker an adapter."""
        plug = plugged.plug
        message = PlugMessage(
            plugged.profile, plug.slots, plug.room, plugged.packet_mode, plugged.resend_lost
        )
        self._workers.plug(msgspec.msgpack.encode(message), plugged.filenos())
        plugged.close()
