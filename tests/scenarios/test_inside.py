"""A peer that has proven who it is turns hostile: what it says inside the encryption is wrong in every way a
random draw finds, in its requests and in its answers.

If one of these fails, an authenticated peer stops the daemon, makes it work or grow without end, takes it
away from others, or gets an SA that policy does not allow. INSIDE_SECONDS, in all, makes the run longer; what
fails names its seed and what was changed."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hostile import VARIANTS, Trial, trace, weight
from support.mutation import Mutator, Raw

from ikd.events import IkeEstablished

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "inside.json"
TRACES = 25
SECONDS = float(os.environ.get("INSIDE_SECONDS", "0"))
SETTLED = 5  # traces after which caches are warm


def corpus(protocol: str) -> list[Raw]:
    """Payloads to put in anywhere: type and octets in hexadecimal, with the length they claim if that is not
    theirs."""
    return [
        Raw(one["kind"], bytes.fromhex(one["data"]), one.get("length"), one.get("critical", False))
        for one in json.loads(CORPUS.read_text())
        if protocol in one["protocols"]
    ]


def seeds() -> Iterator[int]:
    """A fixed number of seeds, or others as long as there is time."""
    if not SECONDS:
        yield from range(TRACES)
        return
    end = time.monotonic() + SECONDS / len(VARIANTS)
    first = random.randrange(10**9)
    for n in itertools.count(first):
        if n > first + TRACES and time.monotonic() > end:
            return
        yield n


@pytest.mark.timeout(120 + 2 * SECONDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_message_of_an_authenticated_peer(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One victim outlives many hostile peers: each time a third host is served at once, in the end nothing is
    left of any, and the victim has not become larger."""
    victim, proven, sizes, found = None, 0, [], corpus(VARIANTS[variant].keying)
    for seed in seeds():
        trial = Trial(monkeypatch, variant, victim=victim, seed=seed)
        victim = trial.victim
        mutator = Mutator(random.Random(f"{variant} {seed}"), found)
        trace(trial, mutator)
        mutator.active = False
        trial.served()
        trial.over()
        proven += any(one.peer.startswith("left") for one in victim.of(IkeEstablished))
        victim.events.clear()
        victim.keys.clear()
        sizes.append(weight(victim))
    assert proven > len(sizes) / 2, "most hostile peers have to get as far as being trusted"
    assert max(sizes[SETTLED:]) < 1.1 * max(sizes[:SETTLED]), sizes
