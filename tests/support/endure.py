"""What a hostile peer of `support.hostile` does in one test: the same change in everything it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.hostile import PROTOCOLS, Trial

from ikd.authip.numbers import Exchange as ExchangeA
from ikd.ikev2.numbers import Exchange as Exchange2
from ikd.isakmp.numbers import Exchange as Exchange1

Payloads = Sequence[Any]
Change = Callable[[Payloads], Payloads]
LONG = pytest.mark.long
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS)
INFORMATIONAL = {
    "ikev2": Exchange2.INFORMATIONAL,
    "ikev1": Exchange1.INFORMATIONAL,
    "authip": ExchangeA.NOTIFY,
}


def each(change: Callable[[Any], Any]) -> Change:
    """Change every payload alone; None leaves it out."""
    return lambda found: [made for it in found if (made := change(it)) is not None]


def of(kinds: tuple[type, ...], change: Callable[[Any], Any]) -> Change:
    """Change payloads of some classes only."""
    return each(lambda it: change(it) if isinstance(it, kinds) else it)


def endure(trial: Trial, change: Change, fragment: Callable[[bytes], bytes] = bytes) -> None:
    """Let the hostile host do it from the first message on, as either end, and then in everything that can be
    done with an SA that has come up without; the victim goes on serving others, and forgets."""
    link, victim, hostile = trial.link, trial.victim, trial.hostile
    trial.change, trial.fragment = change, fragment
    for side in (hostile, victim):
        link.up("net", side)
        link.run(2)
        trial.unharmed()
    trial.served()
    for side in (hostile, victim):
        trial.change, trial.fragment = tuple, bytes
        for ike in list(victim.ikes):
            link.perform(victim, victim.endpoint.close(ike, link.now, "a test"))
        link.run(300)
        link.up("net")
        link.run(1)
        assert victim.pairs, trial.told()
        trial.change, trial.fragment = change, fragment
        for begin in (
            lambda it: link.up("net1", it),
            link.rekey_child,
            link.rekey,
            link.close_child,
            link.close,
        ):
            begin(side)
            link.run(1)
            trial.unharmed()
        link.run(100)
        trial.unharmed()
    trial.served()
    trial.over()
