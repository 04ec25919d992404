"""What an authenticated peer says of the SAs of others, or of nobody.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

from typing import Any

import pytest
from support.endure import EVERY, INFORMATIONAL
from support.hostile import THIRD, Trial
from support.link import Link, story

from ikd.authip.message import status as status_a
from ikd.authip.numbers import RELIABLE, Subject
from ikd.ikev2 import payloads as two
from ikd.isakmp import payloads as one


def test_no_pair_of_nobody_is_rekeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """N(REKEY_SA) with an SPI that is not there, is a third host's, or is of a strange size."""
    trial, other = _beside_a_third(monkeypatch, "ikev2")
    theirs = other.left.pairs[0].inbound.spi.to_bytes(4, "big")
    before = set(map(id, trial.victim.database.pairs()))
    for protocol in (0, 1, 2, 3, 255):
        for spi in (b"\1\2\3\4", theirs, b"", bytes(4), b"\xff" * 8, bytes(255)):
            rekey = two.Notify(type=16393, protocol=protocol, spi=spi)
            trial.change = lambda found, rekey=rekey: [  # type: ignore[misc]
                rekey,
                *[it for it in found if getattr(it, "type", 0) != 16393],
            ]
            trial.link.rekey_child(trial.hostile)
            trial.link.run(1)
            trial.unharmed()
            assert before <= set(map(id, trial.victim.database.pairs()))
    _still_there(trial, other)


@EVERY
def test_a_delete_for_the_sas_of_others(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SPIs of a third host's pairs and of its main-mode SA, from the victim's view and from its own."""
    trial, other = _beside_a_third(monkeypatch, protocol)
    (pair,) = other.left.pairs
    (ike,) = other.left.ikes
    halves = [half.spi.to_bytes(4, "big") for half in (pair.inbound, pair.outbound)]
    for payload, number in _deletions(protocol, halves, (ike.spi_i, ike.spi_r)):
        assert trial.say(INFORMATIONAL[protocol], payload, number=number)
        trial.link.run(0.1)
    trial.unharmed()
    _still_there(trial, other)


def _deletions(protocol: str, halves: list[bytes], spis: tuple[bytes, bytes]) -> list[tuple[Any, int | None]]:
    if protocol == "ikev2":
        found: list[Any] = [two.Delete(protocol=n, spis=tuple(halves)) for n in (2, 3)]
        return [(it, None) for it in (*found, two.Delete(protocol=3, spis=spis))]
    if protocol == "ikev1":
        made = [one.Delete(protocol=n, spis=tuple(halves)) for n in (2, 3)]
        made += [one.Delete(protocol=n, spis=(b"".join(spis),)) for n in (1, 3)]
        return [(it, None) for it in made]
    numbers = [int.from_bytes(half, "big") for half in halves]
    return [(status_a(13807, Subject.QUICK, RELIABLE), number) for number in numbers]


def _beside_a_third(monkeypatch: pytest.MonkeyPatch, protocol: str) -> tuple[Trial, Link]:
    """A hostile host that is up, and another one with the same victim."""
    trial = Trial(monkeypatch, protocol)
    trial.link.up("net")
    trial.link.run(1)
    third = trial.third()
    other = trial.beside(third)
    other.up("net", third)
    other.run(1)
    trial.link.now = other.now
    assert third.pairs
    return trial, other


def _still_there(trial: Trial, other: Link) -> None:
    """The third host's SAs are at both ends."""
    other.now = trial.link.now
    other.run(1)
    (pair,) = other.left.pairs
    assert trial.victim.database.by_spi(pair.outbound.spi) is not None, trial.told() + story(other)
    assert [it for it in trial.victim.ikes if it.path.peer.address == THIRD]
