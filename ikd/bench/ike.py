"""Shell. `ikctl bench ike`: the same initiator against our responder and strongSwan's, by turns in one run.

For each kind of authentication both responders are started; then every run measures one after the other, the
order changing from run to run, so that what else happens on the machine meets both alike. AuthIP is measured
with ours alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ikd.bench import hosts, kdc, parties, report
from ikd.bench.hosts import Initiator, Trouble
from ikd.bench.load import Measured, Order
from ikd.bench.machine import load, machine
from ikd.bench.parties import IKD, RESPONDERS, STRONGSWAN, Responder
from ikd.bench.report import Missing, Run
from ikd.control.protocol import ControlError, Json

BATCH: Final = 200  # SAs that stand at a time; they are deleted before the next batch
ALONE: Final = 30  # establishments that are made one at a time, at the end of each run
WARM_UP: Final = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: each run makes `count` SAs, or as many as it can in `seconds` when `count` is 0."""

    auths: tuple[str, ...] = tuple(parties.AUTHS)
    runs: int = 5
    seconds: float = 3.0
    count: int = 0
    parallel: int = 16
    profile: Path | None = None


def measure(plan: Plan, tell: Callable[[str], None]) -> Json:
    """Run it; raises `ControlError`. `tell` hears about progress."""
    if os.geteuid() != 0:
        raise ControlError("not-permitted", "the measurement needs network namespaces", "run it as root")
    if shutil.which("ip") is None:
        raise ControlError("unavailable", "the program ip is missing", "apt-get install iproute2")
    missing = gaps(plan.auths)
    facts = machine() | {"load_before": load()}
    runs: list[Run] = []
    try:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ikd-bench-")))
            names = stack.enter_context(hosts.responders())
            auths = [one for one in plan.auths if (IKD.name, one) not in missing]
            realm = None
            if any(parties.AUTHS[one].method == "kerberos" for one in auths):
                realm = kdc.Realm(directory / "kdc")
                stack.enter_context(realm.serving(names["load"]))
            environment = realm.settings if realm else {}
            log = directory / "load.log"
            initiator = stack.enter_context(hosts.initiator(names["load"], log, environment))
            for auth in auths:
                homes = hosts.prepare(directory, auth, time.time())
                if realm and parties.AUTHS[auth].method == "kerberos":
                    realm.keytabs(homes)
                with _responders(plan, auth, names, homes, missing, environment) as pids:
                    runs += _runs(plan, auth, homes, pids, initiator, tell)
    except Trouble as error:
        raise ControlError("unavailable", str(error)) from None
    return report.ike(facts | {"load_after": load()}, runs, plan.auths, missing)


def gaps(auths: tuple[str, ...]) -> Missing:
    """What cannot be measured here, and why."""
    found: dict[tuple[str, str], str] = {}
    no_charon = parties.INSTALL_CHARON if hosts.strongswan_missing() else ""
    no_kerberos = kdc.missing()
    for name in auths:
        auth = parties.AUTHS[name]
        if why := parties.NO_AUTHIP if auth.keying == "authip" else no_charon:
            found[STRONGSWAN.name, name] = why
        if auth.method == "kerberos" and no_kerberos:
            found[IKD.name, name] = no_kerberos
    return found


@contextlib.contextmanager
def _responders(
    plan: Plan,
    auth: str,
    names: Mapping[str, str],
    homes: Mapping[str, Path],
    missing: Missing,
    environment: Mapping[str, str],
) -> Iterator[dict[Responder, int]]:
    """Both responders, or ours alone where there is no other, and their process ids."""
    profile = plan.profile
    if profile is not None and len(plan.auths) > 1:
        profile = profile.with_name(f"{profile.stem}-{auth}{profile.suffix}")
    with contextlib.ExitStack() as stack:
        ours = hosts.ikd(names[IKD.name], homes[IKD.name], profile, environment)
        pids = {IKD: stack.enter_context(ours)}
        if (STRONGSWAN.name, auth) not in missing:
            name = STRONGSWAN.name
            pids[STRONGSWAN] = stack.enter_context(hosts.strongswan(names[name], homes[name]))
        yield pids


def _runs(
    plan: Plan,
    auth: str,
    homes: Mapping[str, Path],
    pids: Mapping[Responder, int],
    initiator: Initiator,
    tell: Callable[[str], None],
) -> Iterator[Run]:
    """All runs with one kind of authentication."""
    responders = [one for one in RESPONDERS if one in pids]
    for number in range(plan.runs + 1):
        for responder in responders if number % 2 else reversed(responders):

            def batch(
                count: int, parallel: int = plan.parallel, responder: Responder = responder
            ) -> Measured:
                return initiator.run(
                    Order(
                        directory=str(homes["load"]),
                        rule=responder.name,
                        local=responder.load_address,
                        peer=responder.address,
                        pid=pids[responder],
                        count=count,
                        parallel=parallel,
                    )
                )

            if number == 0:  # caches, and the first growth of memory
                batch(WARM_UP)
                continue
            run = _run(plan, number, responder.name, auth, batch)
            tell(
                f"{auth}, run {number} of {plan.runs}: {run.responder} {run.per_second:.0f}/s, "
                f"{run.responder_cpu_ms:.2f} ms each, {run.complete_ms:.2f} ms for one alone"
            )
            yield run


def _run(plan: Plan, number: int, name: str, auth: str, batch: Callable[..., Measured]) -> Run:
    """Batches until there is enough, then some establishments one at a time."""

    def one_batch(*arguments: int) -> Measured:
        one = batch(*arguments)
        if one.established == 0:
            reasons = ", ".join(one.reasons) or "no answer"
            raise ControlError(
                "negotiation-failed", f"{auth}: nothing was established with {name}: {reasons}"
            )
        return one

    found: list[Measured] = []
    established = 0
    seconds = 0.0
    while (established < plan.count) if plan.count else (seconds < plan.seconds):
        one = one_batch(min(BATCH, plan.count - established) if plan.count else BATCH)
        found.append(one)
        established += one.established
        seconds += one.seconds
    return Run(
        number,
        name,
        auth,
        established,
        sum(one.failed for one in found),
        seconds,
        sum(one.responder_cpu for one in found),
        sum(one.initiator_cpu for one in found),
        one_batch(ALONE, 1).complete,
    )
