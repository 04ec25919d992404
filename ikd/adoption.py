"""Pairs that have outlived the daemon who negotiated them, until each of them is replaced or gone.

Nobody has the keys of their IKE SAs any more, so nothing can be said to the peer about them but by another
IKE SA: one is negotiated, and on it a pair for the same traffic. The old pair carries packets until that one
is there. What is begun is spread over time, those first that were used last. A pair that cannot be replaced
goes: its peer has not proven itself to this daemon.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ikd.association import Association
from ikd.events import ChildClosed
from ikd.keying import Environment
from ikd.outputs import Give, Output, Remove, Renew
from policy.rules import Rule
from sadb.address import Address, Path, SocketAddress
from sadb.sa import Acquire, SaPair, State
from sadb.selector import Selector

TURN = 0.1  # seconds between beginnings
EACH_TURN = 10  # pairs whose replacement is begun at once
AGAIN = 4.0  # seconds after which it is begun again
PATIENCE = 120.0  # seconds after the first attempt for which a pair stays


class Home(Protocol):
    """What this needs of the endpoint."""

    env: Environment

    def emit(self, output: Output) -> None: ...
    def peers(self, address: Address) -> list[Association]: ...
    def negotiate(
        self,
        rule: Rule,
        path: Path,
        now: float,
        acquire: Acquire | None,
        peers: Sequence[Association],
        *,
        childless: bool,
    ) -> None: ...


@dataclass(slots=True)
class _Waiting:
    pair: SaPair
    until: float | None = None  # set by the first attempt


class Adoption:
    """All pairs that have no IKE SA."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._pairs: dict[int, _Waiting] = {}  # by inbound SPI
        self._by_peer: dict[Address, dict[int, SaPair]] = {}
        self._due: list[tuple[float, int, int]] = []  # when, serial number, inbound SPI
        self._serial = 0

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def sources(self) -> frozenset[Address]:
        """The addresses of this host that such pairs have."""
        return frozenset(one.pair.outbound.source for one in self._pairs.values())

    def add(self, pairs: Iterable[SaPair], now: float) -> None:
        """Pairs to be replaced."""
        for n, pair in enumerate(sorted(pairs, key=_last_used, reverse=True)):
            spi = pair.inbound.spi
            self._pairs[spi] = _Waiting(pair)
            self._by_peer.setdefault(pair.peer, {})[spi] = pair
            self._plan(spi, now + n // EACH_TURN * TURN)

    def knows(self, peer: Address) -> bool:
        """Whether a peer has such a pair: then it has an IKE SA with us, too, that we know nothing of."""
        return peer in self._by_peer

    def relieve(self, association: Association, new: SaPair, now: float) -> None:
        """A pair has been installed. Those it stands for belong to its IKE SA from now on, by which the peer
        is told that they are not needed."""
        if new.inbound.spi not in association.children:
            return
        proven = (one.peer.address for one in association.main.proven_at)
        places = dict.fromkeys((new.peer, *proven))  # it may have moved meanwhile
        for old in [pair for one in places for pair in self._by_peer.get(one, {}).values()]:
            same = old.rule == new.rule and old.outbound.encapsulation == new.outbound.encapsulation
            if same and _covers(new.selector, old.selector):
                self._forget(old)
                association.main.children.pairs[old.inbound.spi] = old
                self._home.emit(Give(old, association.number))
                association.relieve(old, now)

    def abandon(self, pair: SaPair, reason: str) -> None:
        """A pair goes without a word to its peer; others are ignored."""
        if self._forget(pair):
            self._home.emit(Remove(pair))
            self._home.emit(
                ChildClosed(
                    ike=0,
                    rule=pair.rule,
                    peer=str(pair.peer),
                    spi_in=f"{pair.inbound.spi:08x}",
                    spi_out=f"{pair.outbound.spi:08x}",
                    reason=reason,
                    octets_in=pair.inbound.usage.octets,
                    octets_out=pair.outbound.usage.octets,
                )
            )

    def reload(self, ended: Collection[str]) -> None:
        """These rules are gone or mean something else."""
        for waiting in list(self._pairs.values()):
            if waiting.pair.rule in ended:
                self.abandon(waiting.pair, "its rule has changed")

    # Time ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        while self._due and self._due[0][2] not in self._pairs:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def tick(self, now: float) -> None:
        """Begin to replace pairs that are due, maybe once more, and give up those that have waited too
        long."""
        while (when := self.deadline()) is not None and when <= now:
            waiting = self._pairs[heapq.heappop(self._due)[2]]
            pair = waiting.pair
            if waiting.until is None:
                waiting.until = now + PATIENCE
            if pair.inbound.state is State.DEAD:  # it has met a limit
                self._forget(pair)
            elif waiting.until <= now:
                self.abandon(pair, "nothing has replaced it since the restart")
            else:
                self._plan(pair.inbound.spi, min(now + AGAIN, waiting.until))
                self._replace(pair, now)

    # Inside ----------------------------------------------------------------------------------------------

    def _replace(self, pair: SaPair, now: float) -> None:
        """Negotiate another pair for the same traffic, with the same end behind the same NAT."""
        env = self._home.env
        rule = env.policy.rule(pair.rule)
        if rule is None:
            return
        network = env.network
        if network is not None and pair.outbound.source not in network.addresses:
            self._home.emit(Renew(pair.rule, pair.peer))  # from wherever this host is now
            return
        path, nat = path_of(pair, env.settings.port), pair.outbound.encapsulation is not None
        peers = [one for one in self._home.peers(pair.peer) if one.path.peer == path.peer or not nat]
        self._home.negotiate(rule, path, now, packet_of(pair), peers, childless=False)

    def _forget(self, pair: SaPair) -> bool:
        """It is replaced or gone; whether it was here."""
        spi = pair.inbound.spi
        found = self._pairs.get(spi)
        if found is None or found.pair is not pair:
            return False
        del self._pairs[spi]
        peers = self._by_peer[pair.peer]
        del peers[spi]
        if not peers:
            del self._by_peer[pair.peer]
        return True

    def _plan(self, spi: int, when: float) -> None:
        self._serial += 1
        heapq.heappush(self._due, (when, self._serial, spi))


def path_of(pair: SaPair, port: int) -> Path:
    """Between which ends to negotiate for a pair: through a NAT by the way its packets take."""
    local, peer = pair.outbound.source, pair.outbound.destination
    here, there = pair.outbound.encapsulation or (port, port)
    return Path(SocketAddress(local, here), SocketAddress(peer, there))


def packet_of(pair: SaPair) -> Acquire:
    """A packet that a pair carries, for a peer that has to choose what of a rule it wants to protect."""
    local, remote = pair.selector.local[0], pair.selector.remote[0]
    here, there = (one.ports[0] if one.ports[0] == one.ports[1] else None for one in (local, remote))
    return Acquire(pair.rule, local.low, remote.low, local.protocol or remote.protocol, here, there)


def _last_used(pair: SaPair) -> float:
    return max(pair.created, pair.inbound.usage.last or 0.0, pair.outbound.usage.last or 0.0)


def _covers(new: Selector, old: Selector) -> bool:
    sides = (new.local, old.local), (new.remote, old.remote)
    return all(any(one.covers(part) for one in ours) for ours, theirs in sides for part in theirs)
