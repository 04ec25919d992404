"""What the runs of `test_inside` and readers of the code have found here, said by an authenticated peer.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.endure import EVERY, INFORMATIONAL, Payloads, each
from support.hostile import Trial
from support.mutation import Raw

from ikd.authip.message import status as status_a
from ikd.authip.numbers import RELIABLE, Subject
from ikd.authip.numbers import Exchange as ExchangeA
from ikd.ikev2 import payloads as two
from ikd.isakmp import payloads as one


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
def test_an_answer_with_one_identity(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick mode has two or none; the reason named both, and there was no second."""
    trial = Trial(monkeypatch, protocol)
    trial.link.up("net")
    trial.link.run(1)

    def change(found: Payloads) -> Payloads:
        at = [n for n, it in enumerate(found) if isinstance(it, one.Identification)][1:]
        return [it for n, it in enumerate(found) if n not in at]

    trial.change = change
    trial.link.up("net1", trial.victim)
    trial.link.run(200)
    trial.unharmed()
    assert trial.victim.failures
    assert not [pair for pair in trial.victim.pairs if pair.rule == "net1"]


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
def test_what_a_deleted_sa_has_left_can_be_closed(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer of AuthIP may delete the main-mode SA and keep its quick-mode SAs: they stay, until we close
    it."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    link.up("net")
    link.run(1)
    deletion: Any = status_a(13807, Subject.MAIN, RELIABLE)
    if protocol == "ikev1":
        (ike,) = trial.hostile.ikes
        deletion = one.Delete(protocol=1, spis=(ike.spi_i + ike.spi_r,))
    assert trial.say(INFORMATIONAL[protocol], deletion)
    link.run(30)
    for ike in list(victim.ikes):
        link.perform(victim, victim.endpoint.close(ike, link.now, "a test"))
    link.run(200)
    assert not victim.ikes, trial.told()
    assert not victim.pairs, trial.told()


@EVERY
def test_a_deletion_that_nobody_acknowledges_outlives_the_lifetime(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of an SA that is being deleted runs out meanwhile: it was looked at again and again."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    link.up("net")
    link.run(1)
    (ike,) = victim.ikes
    ike.life.hard_at = link.now + 1
    link.fate = lambda flight: setattr(flight, "lost", True)
    link.perform(victim, victim.endpoint.close(ike, link.now, "a test"))
    victim.calls[0] = 0  # type: ignore[attr-defined]
    link.run(600)
    assert victim.calls[0] < 300, trial.told()  # type: ignore[attr-defined]
    assert not victim.ikes


@EVERY
def test_pairs_replaced_without_a_pause(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been replaced goes on receiving for a moment, but no more of it than there may be pairs."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    victim.endpoint.env.settings = replace(victim.endpoint.env.settings, children=5)
    link.up("net")
    link.run(1)
    for _ in range(30):
        link.rekey_child(trial.hostile)
        link.run(0.05)
        assert len(list(victim.database.pairs())) <= 11
    link.run(30)
    trial.unharmed()
    assert len(victim.pairs) == 1
    trial.over()


@EVERY
def test_main_mode_sas_replaced_without_a_pause(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never deleted by the peer: those that have been replaced go by themselves, and there are never more
    of them than the limit."""
    trial = Trial(monkeypatch, protocol)
    link, victim = trial.link, trial.victim
    victim.endpoint.env.settings = replace(victim.endpoint.env.settings, associations=12)
    deletes = (one.Delete, two.Delete)
    for _ in range(40):
        link.up("net")
        link.run(0.2)
        trial.change = each(lambda it: None if isinstance(it, deletes) else it)
        link.rekey(trial.hostile)
        link.run(0.1)
        assert len(victim.ikes) <= 12, trial.told()
    trial.change = tuple
    trial.over()


def test_one_pair_replaced_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """N(REKEY_SA) for the same pair, which the peer never deletes, is no way around the limit."""
    trial = Trial(monkeypatch, "ikev2")
    link, victim, hostile = trial.link, trial.victim, trial.hostile
    victim.endpoint.env.settings = replace(victim.endpoint.env.settings, children=5)
    link.up("net")
    link.run(1)
    spi = hostile.pairs[0].inbound.spi.to_bytes(4, "big")
    rekey = two.Notify(type=16393, protocol=3, spi=spi)
    trial.change = lambda found: [rekey, *found] if any(it.kind == 33 for it in found) else found
    (ike,) = hostile.ikes
    rule = hostile.endpoint.policy.rule("net")
    assert rule is not None
    for _ in range(30):
        with hostile.endpoint._outputs as outputs:
            ike.create_child(rule, None, link.now)
        link.perform(hostile, outputs)
        link.run(0.1)
        assert len(list(victim.database.pairs())) <= 11
    trial.over()


@pytest.mark.parametrize("deleted", [False, True])
def test_acknowledgements_without_end(deleted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AuthIP keeps a mark of each message it has encrypted, to know it when it is sent back: whoever asks for
    one after the other, even on an SA that it has deleted, uses up the keys, and not our memory."""
    monkeypatch.setattr("ikd.authip.channel.MOST_WRITTEN", 100)
    trial = Trial(monkeypatch, "authip")
    link, victim = trial.link, trial.victim
    link.up("net")
    link.run(1)
    (ike,) = victim.ikes
    if deleted:
        assert trial.say(ExchangeA.NOTIFY, status_a(13807, Subject.MAIN, RELIABLE))
    for n in range(300):
        trial.say(
            ExchangeA.NOTIFY,
            Raw(11, bytes((0, 0, 0, 1, 1, RELIABLE, 0x9C, 0x46)) + bytes(4)),
            number=5000 + n,
        )
        link.run(0.1)
    written: bytearray = ike.main.channel._written  # type: ignore[attr-defined]
    assert 8 * 90 < len(written) < 8 * 300, trial.told()
    assert ike not in victim.ikes
    trial.unharmed()
    trial.served()
