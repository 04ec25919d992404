"""Shell. What requests do to the daemon: `control.requests.Host`, on a running `Daemon`.

Answers are made in `control.views`; steering requests call the core, wait for its events, and are bounded
in time. Whatever waits listens only to events, so that a request sees exactly what the log and `ikctl
watch` see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ikd.control import capturing, offload_views, rule_views, steering, top_views, views
from ikd.control.failures import Failures
from ikd.control.protocol import Caller, ControlError, Json, hyphened
from ikd.control.recent import Recent
from ikd.control.top_views import Reader
from ikd.events import EVENTS
from ikd.loading import ConfigurationError
from ikd.settings import GROUPS
from sadb.address import Address
from sadb.sa import Usage

if TYPE_CHECKING:
    from ikd.daemon import Daemon

FRESH: Final = 5.0  # seconds for which this host's addresses are believed
_NAMES: Final = {hyphened(name): kind for name, kind in EVENTS.items()}


class DaemonHost:
    """The daemon as requests see it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._failures = Failures(daemon.loop.time)
        self._recent = Recent(time.time)
        for one in (self._failures, self._recent):
            daemon.publisher.add_source(one.listener)
        self._addresses: frozenset[Address] = frozenset()
        self._looked = float("-inf")
        self._readers: dict[Caller, Reader] = {}
        self._watching: dict[Caller, Callable[[], None]] = {}  # what ends it

    # Telling ---------------------------------------------------------------------------------------------

    def status(self) -> Json:
        """One entry for each peer, and what is wrong."""
        daemon, now = self.daemon, self._now()
        usage = self._usage()
        peers = [
            views.peer(one, daemon.database.by_owner(one.number), usage, daemon.plane.carrier, now)
            for one in daemon.endpoint.associations.values()
        ]
        there = {(one["peer_address"], rule) for one in peers for rule in one["rules"] or [""]}
        failures = [one for one in self._failures if one.mended is None and now - one.last < views.RECENT]
        peers += [
            views.failed_peer(one, now) for one in failures if (one.event.peer, one.event.rule) not in there
        ]
        sentences = [*views.wrong(failures, now), *daemon.configuration.warnings, *daemon.plane.notices]
        parts = daemon.state_file, daemon.log, daemon.sieving
        sentences += [one.trouble for one in parts if one.trouble]
        sentences += views.no_way(daemon.endpoint.associations.values())
        if daemon.keylog.on:
            sentences.append(f"keys of new SAs are written to {daemon.keylog.path}")
        return views.status(
            up=now - daemon.began,
            engine=daemon.plane.name,
            quick=len(daemon.database),
            peers=peers,
            sentences=sentences,
        )

    def associations(self) -> list[Json]:
        """IKE SAs."""
        now, database = self._now(), self.daemon.database
        every = self.daemon.endpoint.associations.values()
        return [views.association(one, database.by_owner(one.number), now) for one in every]

    def children(self) -> list[Json]:
        """Child SAs."""
        now, usage = self._now(), self._usage()
        owners = self.daemon.endpoint.associations
        return [
            views.child(pair, owners.get(pair.owner), usage[pair.inbound.spi], now)
            for pair in self.daemon.database.pairs()
        ]

    def policy(self) -> Json:
        """The rules in force."""
        return rule_views.policy(self.daemon.endpoint.policy)

    def explain(self, source: str, destination: str, service: str) -> Json:
        """Which rule decides a packet."""
        policy = self.daemon.endpoint.policy
        return rule_views.explain(policy, source, destination, service, self._here())

    def why(self, name: str) -> Json:
        """The last failures of a rule or peer."""
        found = self._failures.find(name, self.daemon.endpoint.policy.rule(name))
        if not found and name and not self._known(name):
            raise rule_views.no_such_rule(name, [rule.name for rule in self.daemon.endpoint.policy.rules])
        return views.why(found, name, self._now(), self._under_way(name))

    async def top(self, caller: Caller, sort: str, limit: int) -> Json:
        """What goes on, with rates since the caller asked last."""
        if (reader := self._readers.get(caller)) is None:
            reader = self._readers[caller] = Reader(self.daemon)
            caller.on_close(reader.end)
            caller.on_close(lambda: self._forget(caller))
        return await top_views.top(self.daemon, self._failures, reader.meter(), sort, limit)

    def metrics(self) -> str:
        """For Prometheus."""
        return self.daemon.metrics.text()

    def recent(self) -> list[Json]:
        """The latest events."""
        return self._recent.lines()

    # Listening -------------------------------------------------------------------------------------------

    def event_names(self) -> tuple[str, ...]:
        """Events by their names on the socket."""
        return tuple(_NAMES)

    def watch(self, names: frozenset[str], caller: Caller) -> Json:
        """Send events until the caller hangs up, or wants others."""
        kinds = frozenset(_NAMES[name] for name in names) if names else None
        end = self.daemon.publisher.listen(
            lambda event: caller.send_event(views.event_line(event, time.time())), kinds
        )
        if caller in self._watching:
            self._watching[caller]()
        else:
            caller.on_close(lambda: self._watching.pop(caller)())
        self._watching[caller] = end
        return {"events": sorted(names) if names else list(_NAMES)}

    def set_level(self, level: str, group: str) -> Json:
        """Change what is logged, or say what is."""
        log = self.daemon.log
        if level:
            log.set_level(level, group)
            self.daemon.publisher.rewire()
        levels = {one: log.levels.of(one) for one in GROUPS}
        return {"default": log.levels.default, "groups": levels, "text": f"log level {log.levels}"}

    def may_export(self, user: int) -> bool:
        """Who may have keys: root, and who runs the daemon."""
        return user in (0, os.geteuid())

    def export_keys(self, file: str) -> Json:
        """Write keys of new SAs to a file, or stop."""
        answer = self.daemon.keylog.export(file)
        self.daemon.warn("exported keys", answer["text"])
        return answer

    def capture(self, name: str, file: str, caller: Caller) -> Json:
        """Write a peer's keys to a file until the caller hangs up."""
        return capturing.begin(self.daemon, name, file, caller)

    # Steering --------------------------------------------------------------------------------------------

    async def up(self, name: str, caller: Caller, timeout: float, childless: bool) -> Json:
        """Negotiate for a rule."""
        return await steering.up(self.daemon, name, caller, timeout, childless)

    async def down(self, name: str) -> Json:
        """Delete SAs."""
        return await steering.down(self.daemon, name)

    async def rekey(self, name: str) -> Json:
        """Replace keys."""
        return await steering.rekey(self.daemon, name)

    async def reload(self, dry_run: bool) -> Json:
        """Read everything anew."""
        try:
            changes, new, touched = await self.daemon.reload(dry_run=dry_run)
        except ConfigurationError as error:
            raise ControlError(
                "configuration",
                "\n".join(error.complaints),
                "correct the files; what was in force stays in force",
            ) from None
        rules = len(new.policy.in_force)
        return views.changes(changes, touched, new.warnings, rules=rules, dry_run=dry_run)

    # Offload ---------------------------------------------------------------------------------------------

    def offload(self) -> Json:
        """The adapter and its ports."""
        return offload_views.offload(self.daemon)

    def set_port(self, name: str, wanted: dict[str, Any]) -> Json:
        """Change a port or make it."""
        return offload_views.set_port(self.daemon, name, wanted)

    def remove_port(self, name: str) -> Json:
        """Take a port away."""
        return offload_views.remove_port(self.daemon, name)

    def enable_offload(self, enabled: bool) -> Json:
        """Offload on or off."""
        return offload_views.enable(self.daemon, enabled)

    def offload_fault(self, name: str, value: str) -> Json:
        """Have the adapter fail."""
        return offload_views.fault(self.daemon, name, value)

    # Inside ----------------------------------------------------------------------------------------------

    def _under_way(self, name: str) -> list[Json]:
        """Negotiations of a rule or with a peer, or all, that have no end yet."""
        return [
            one
            for one in self.associations()
            if one["state"] == "connecting"
            and (not name or name in one["rules"] or name in (one["peer"], one["peer_address"]))
        ]

    def _forget(self, caller: Caller) -> None:
        self._readers.pop(caller, None)

    def _now(self) -> float:
        return self.daemon.loop.time()

    def _usage(self) -> dict[int, tuple[Usage, Usage]]:
        backend = self.daemon.plane.backend
        return {pair.inbound.spi: backend.usage(pair) for pair in self.daemon.database.pairs()}

    def _here(self) -> frozenset[Address]:
        """This host's addresses."""
        from ikd import network

        if self._now() - self._looked > FRESH:
            self._addresses, self._looked = network.addresses(), self._now()
        return self._addresses

    def _known(self, name: str) -> bool:
        """Whether a name is one that could have failed."""
        from ikd.control.targets import peer_names
        from sadb.address import parse

        policy, associations = self.daemon.endpoint.policy, self.daemon.endpoint.associations.values()
        if policy.rule(name) is not None or any(name in peer_names(one) for one in associations):
            return True
        with suppress(ValueError):
            parse(name)
            return True
        return any(name == rule.peer for rule in policy.rules)
