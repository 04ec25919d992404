"""Shell. `up`, `down` and `rekey`: call the core, then wait, for a bounded time, for the events that tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from shlex import quote
from typing import TYPE_CHECKING, Final

from ikd.control import rule_views
from ikd.control.protocol import Caller, ControlError, Json
from ikd.control.targets import Targets, find
from ikd.control.views import event_line, spi
from ikd.events import (
    ChildEstablished,
    Event,
    IkeClosed,
    IkeEstablished,
    NegotiationFailed,
)
from ikd.paths import NoPath
from policy.rules import Rule
from sadb.sa import Action, SaPair, State

if TYPE_CHECKING:
    from ikd.association import Association
    from ikd.daemon import Daemon

PATIENCE: Final = 5.0  # seconds for a peer to confirm a deletion
REKEYING: Final = 15.0
LONGEST: Final = 3600.0
REASON: Final = "the administrator asked for it"


# Up ------------------------------------------------------------------------------------------------------


async def up(daemon: Daemon, name: str, caller: Caller, timeout: float, childless: bool) -> Json:
    """Negotiate for a rule and follow it to its end; raises `ControlError`."""
    if not 0 < timeout <= LONGEST:
        raise ControlError("usage", f"timeout is more than 0 and at most {LONGEST:g} seconds")
    rule = _to_start(daemon, name)
    attempt = _Attempt(daemon, rule, caller, childless)
    try:
        return await asyncio.wait_for(attempt.run(), timeout)
    except TimeoutError:
        waiting = attempt.waiting()
        raise ControlError(
            "negotiation-failed",
            f"{name}: no result within {timeout:g} s" + (f", waiting for: {waiting}" if waiting else ""),
            f"it goes on; once it has failed, this tells more: ikctl why {quote(name)}",
        ) from None
    finally:
        attempt.end()


def _to_start(daemon: Daemon, name: str) -> Rule:
    """The rule of a name, if it can be negotiated for."""
    policy = daemon.endpoint.policy
    rule = policy.rule(name)
    if rule is None:
        raise rule_views.no_such_rule(name, [one.name for one in policy.rules])
    if not rule.enabled:
        why = rule.status or "it has enabled = false"
        raise ControlError("refused-by-policy", f"rule {name} is not in force: {why}", "correct policy.toml")
    if not rule.secures:
        what = "blocks" if rule.action is Action.BLOCK else "lets pass in the clear"
        raise ControlError(
            "refused-by-policy", f"rule {name} {what} what it covers: there is nothing to negotiate"
        )
    return rule


def _there(daemon: Daemon, rule: Rule, childless: bool) -> Json:
    """The answer when what is asked for is there already."""
    for pair in daemon.database.pairs():
        if pair.rule == rule.name and pair.inbound.state is State.MATURE:
            return _child_up(rule, pair.owner, spi(pair.inbound.spi), "is up already")
    if childless:
        for one in daemon.endpoint.associations.values():
            if one.rule == rule.name and one.peer is not None:
                return _ike_up(rule, one.number, "is up already")
    return None


def _child_up(rule: Rule, number: int, spi_in: str, what: str = "is up") -> Json:
    return {
        "rule": rule.name,
        "ike": number,
        "spi_in": spi_in,
        "text": f"{rule.name}: Child SA {spi_in} {what}",
    }


def _ike_up(rule: Rule, number: int, what: str = "is up") -> Json:
    return {"rule": rule.name, "ike": number, "spi_in": "", "text": f"{rule.name}: IKE SA {number} {what}"}


class _Attempt:
    """One `up`: passes on the events of its negotiation, until one decides."""

    def __init__(self, daemon: Daemon, rule: Rule, caller: Caller, childless: bool) -> None:
        self.daemon = daemon
        self.rule = rule
        self.caller = caller
        self.childless = childless
        self.numbers: set[int] = set()  # of the IKE SAs that this is about
        self.result: asyncio.Future[Json] = daemon.loop.create_future()
        self.end = daemon.publisher.listen(self._heard)
        self._starting = False

    async def run(self) -> Json:
        """Start, or join what has been started, and wait."""
        daemon, rule = self.daemon, self.rule
        if there := _there(daemon, rule, self.childless):
            return there
        associations = daemon.endpoint.associations.values()
        self.numbers |= {one.number for one in associations if one.rule == rule.name}
        self._starting = True  # whatever is told while this call lasts comes of it
        try:
            if not any(one.awaits(rule.name) for one in associations):
                daemon.driver.initiate(rule, childless=self.childless)
        except NoPath as error:
            raise ControlError("negotiation-failed", f"{rule.name}: {error}", error.remedy) from None
        finally:
            self._starting = False
            daemon.driver.guarded("up", lambda: None)
        return await self.result

    def waiting(self) -> str:
        """What it waits for now."""
        associations = self.daemon.endpoint.associations
        texts = (associations[number].waiting for number in self.numbers if number in associations)
        return ", ".join(dict.fromkeys(text for text in texts if text))

    def _heard(self, event: Event) -> None:
        number = getattr(event, "ike", 0)
        if self._starting and number:
            self.numbers.add(number)
        if number not in self.numbers and getattr(event, "rule", None) != self.rule.name:
            return
        if number:
            self.numbers.add(number)
        self.caller.send_event(event_line(event, time.time()))
        self._decide(event)

    def _decide(self, event: Event) -> None:
        match event:
            case ChildEstablished() if event.rule == self.rule.name:
                self._done(_child_up(self.rule, event.ike, event.spi_in))
            case IkeEstablished() if self.childless:
                self._done(_ike_up(self.rule, event.ike))
            case NegotiationFailed() if event.rule in ("", self.rule.name):
                text = f"{self.rule.name}: {event.reason}"
                remedy = event.remedy or f"this tells more: ikctl why {quote(event.rule or event.peer)}"
                self._failed(ControlError("negotiation-failed", text, remedy))
            case IkeClosed():  # what failed is told with it, and tells more
                text = f"{self.rule.name}: {event.reason}"
                error = ControlError("negotiation-failed", text, f"ikctl why {quote(self.rule.name)}")
                self.daemon.loop.call_soon(self._failed, error)

    def _done(self, answer: Json) -> None:
        if not self.result.done():
            self.result.set_result(answer)

    def _failed(self, error: ControlError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


# Down ----------------------------------------------------------------------------------------------------


async def down(daemon: Daemon, name: str) -> Json:
    """Delete what a name stands for, here and at the peer; raises `ControlError`."""
    targets = _find(daemon, name)
    whole = {one.number for one in targets.associations}
    single = [pair for pair in targets.pairs if pair.owner not in whole]
    ended = [pair for pair in daemon.database.pairs() if pair.owner in whole] + single
    endpoint, driver, now = daemon.endpoint, daemon.driver, daemon.loop.time

    def over() -> bool:
        gone = all(number not in endpoint.associations for number in whole)
        return gone and all(daemon.database.by_spi(pair.inbound.spi) is not pair for pair in ended)

    for one in targets.associations:
        driver.act("down", lambda one=one: endpoint.close(one, now(), REASON))  # type: ignore[misc]
    for pair in single:
        driver.act("down", lambda pair=pair: endpoint.close_child(pair, now(), REASON))  # type: ignore[misc]
    confirmed = await _until(daemon, over, PATIENCE)
    if not targets:
        text = f"{name}: nothing is up"
    else:
        text = f"{name}: {_counted(len(whole), len(ended))} deleted"
        text += "" if confirmed else "; the peer has not confirmed it yet"
    return {
        "text": text,
        "main": [one.spi_i.hex() for one in targets.associations],
        "quick": [spi(pair.inbound.spi) for pair in ended],
        "confirmed": confirmed,
    }


# Rekey ---------------------------------------------------------------------------------------------------


async def rekey(daemon: Daemon, name: str) -> Json:
    """Replace keys: a rule's Child SAs, a peer's SAs, or the one with an SPI; raises `ControlError`."""
    targets = _find(daemon, name)
    associations = () if targets.rule else targets.associations
    if not targets.pairs and not associations:
        raise ControlError("no-such-sa", f"{name}: nothing is up", f"ikctl up {quote(name)}")
    endpoint, now = daemon.endpoint, daemon.loop.time
    if targets.pairs:
        await _replace(
            daemon,
            {spi(pair.inbound.spi): pair for pair in targets.pairs},
            lambda pair: daemon.driver.act("rekey", lambda: endpoint.rekey_child(pair, now())),
        )
    # its keys only then: a peer refuses to do both at once (RFC 7296 section 2.25)
    there = [one for one in associations if one.number in endpoint.associations]
    if there:
        await _replace_main(daemon, there)
    return {
        "text": f"{name}: {_counted(len(there), len(targets.pairs))} rekeyed",
        "main": [one.spi_i.hex() for one in there],
        "quick": [spi(pair.inbound.spi) for pair in targets.pairs],
    }


async def _replace(daemon: Daemon, pairs: dict[str, SaPair], start: Callable[[SaPair], None]) -> None:
    """Rekey Child SAs and wait until each has a successor or is gone."""
    left = dict(pairs)
    failed: list[NegotiationFailed] = []
    owners = {pair.owner for pair in pairs.values()}

    def heard(event: Event) -> None:
        if isinstance(event, ChildEstablished):
            left.pop(event.replaces, None)
        elif isinstance(event, NegotiationFailed) and event.ike in owners:
            failed.append(event)

    def over() -> bool:
        associations = (
            daemon.endpoint.associations
        )  # the database has what lingers after its replacement, too
        return bool(failed) or not any(
            (owner := associations.get(pair.owner)) and owner.children.get(pair.inbound.spi) is pair
            for pair in left.values()
        )

    def begin() -> None:
        for pair in pairs.values():
            start(pair)

    await _follow(daemon, heard, over, failed, begin)


async def _replace_main(daemon: Daemon, associations: list[Association]) -> None:
    """Rekey IKE SAs and wait until each has a successor or is gone."""
    left = {one.number for one in associations}
    failed: list[NegotiationFailed] = []

    def heard(event: Event) -> None:
        if isinstance(event, IkeEstablished):
            left.discard(event.replaces)
        elif isinstance(event, NegotiationFailed) and event.ike in left:
            failed.append(event)

    def over() -> bool:
        return bool(failed) or not any(number in daemon.endpoint.associations for number in left)

    def start() -> None:
        for one in associations:
            daemon.driver.act("rekey", lambda one=one: daemon.endpoint.rekey(one, daemon.loop.time()))  # type: ignore[misc]

    await _follow(daemon, heard, over, failed, start)


async def _follow(
    daemon: Daemon,
    heard: Callable[[Event], None],
    over: Callable[[], bool],
    failed: list[NegotiationFailed],
    start: Callable[[], None],
) -> None:
    end = daemon.publisher.listen(heard)
    try:
        start()
        done = await _until(daemon, over, REKEYING)
    finally:
        end()
    if failed:
        one = failed[0]
        raise ControlError("negotiation-failed", f"{one.rule or one.peer}: {one.reason}", one.remedy)
    if not done:
        raise ControlError(
            "negotiation-failed", f"no answer within {REKEYING:g} s", "it goes on; see: ikctl sa"
        )


# What both need ------------------------------------------------------------------------------------------


def _find(daemon: Daemon, name: str) -> Targets:
    """What a name stands for; pairs that only linger after their replacement are nobody's any more."""
    associations = daemon.endpoint.associations
    alive = [
        pair
        for pair in daemon.database.pairs()
        if (owner := associations.get(pair.owner)) and pair.inbound.spi in owner.children
    ]
    return find(name, daemon.endpoint.policy, associations, alive)


def _counted(main: int, quick: int) -> str:
    """`1 IKE SA and 2 Child SAs`."""
    counts = ((main, "IKE SA"), (quick, "Child SA"))
    told = [f"{number} {what}{'s' * (number > 1)}" for number, what in counts if number]
    return " and ".join(told) or "nothing"


async def _until(daemon: Daemon, over: Callable[[], bool], patience: float) -> bool:
    """Wait until it is over, looking again after every event; whether it is."""
    changed = asyncio.Event()

    def heard(event: Event) -> None:
        changed.set()

    end = daemon.publisher.listen(heard)
    deadline = daemon.loop.time() + patience
    try:
        while not over():
            left = deadline - daemon.loop.time()
            if left <= 0:
                return False
            changed.clear()
            try:
                await asyncio.wait_for(changed.wait(), min(left, 0.25))  # an end may go untold
            except TimeoutError:
                continue
    finally:
        end()
    return True
