"""Shell. What metrics read when they are asked: the state of associations, the database, the data plane and
the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from ikd import __version__
from ikd.control.protocol import plain
from ikd.driver import Driver
from ikd.endpoint import Endpoint
from ikd.metrics import Reading
from ikd.plane import Plane
from ikd.traffic import Traffic
from ikd.transport import Transport
from sadb.database import Database


class Measured(Protocol):
    """What this reads of the daemon."""

    loop: asyncio.AbstractEventLoop
    began: float
    endpoint: Endpoint
    database: Database
    plane: Plane
    traffic: Traffic
    transport: Transport
    driver: Driver

    def certificates(self) -> dict[tuple[str, str], float]: ...


def readings(daemon: Measured) -> Iterator[Reading]:
    """Every gauge, and counters that are kept where they are counted."""
    now = daemon.loop.time()
    yield Reading("info", "The version that runs.", 1, (("version", __version__),))
    yield Reading("up_seconds", "Since the start.", now - daemon.began)
    yield Reading("rules", "Rules in force.", len(daemon.endpoint.policy.in_force))
    yield Reading("half_open", "Negotiations whose peer is not proven yet.", daemon.endpoint.half_open)
    text = "Until our certificates end, and the first that we trust; less than 0 afterwards."
    for (use, subject), left in sorted(daemon.certificates().items()):
        yield Reading("certificate_expires_seconds", text, left, (("use", use), ("subject", subject)))
    states = Counter(plain(one.state) for one in daemon.endpoint.associations.values())
    for state in sorted(states | Counter({"established": 0})):
        yield Reading("ike_sas", "IKE SAs, by state.", states[state], (("state", state),))
    counts = daemon.database.counts()
    for state in ("larval", "mature", "dying"):
        yield Reading("sadb_pairs", "SA pairs, by state.", getattr(counts, state), (("state", state),))
    yield Reading("sadb_limit", "Most SA pairs there may be.", counts.limit)
    yield Reading("sadb_refused", "SPIs not given out.", counts.refused, counter=True)
    yield Reading("sadb_unremoved", "Expired pairs the data plane kept.", counts.unremoved, counter=True)
    yield from daemon.traffic.readings(daemon.database.pairs())
    for reason, number in sorted(daemon.plane.dropped().items()):
        label = (("reason", reason),)
        yield Reading("packets_dropped", "Packets that came to nothing.", number, label, counter=True)
    text = "Datagrams for IKE that no socket had room for, or that a flood had thrown away unread."
    yield Reading("datagrams_unread", text, daemon.transport.unread(), counter=True)
    if (accounts := daemon.plane.accounts) is not None:
        text = "SA pairs that workers have, or have not let go of yet."
        yield Reading("engine_pairs", text, accounts)
    yield Reading("packets_held", "Packets that wait for a Child SA.", daemon.plane.held)
    yield Reading("tasks", "Tasks of the event loop.", len(asyncio.all_tasks(daemon.loop)))
    for queue, (length, limit) in sorted(daemon.driver.queues.items()):
        label = (("queue", queue),)
        yield Reading("queue_depth", "Entries that wait in a queue.", length, label)
        yield Reading("queue_limit", "Most entries a queue has.", limit, label)
