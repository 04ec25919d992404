"""Payloads of AuthIP that are unknown, too many, or say what was not offered.

If one of these fails, a message that the specification lets pass ends a negotiation, or one that it does not
let pass is believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.authip import (
    hosts,
    main_mode,
    rewritten,
    with_users,
)
from support.authip_hostile import SIDES, adding, changing, over
from support.link import Link, agree

from ikd.authip.channel import Channel
from ikd.authip.message import Message, notify
from ikd.authip.numbers import Exchange, N, Subject
from ikd.authip.payloads import Auth, AuthEntry, KeyDictation, KeyDictationWeight
from ikd.isakmp.payloads import Hash, SecurityAssociation
from ikd.wire.isakmp import Body, Unknown

STRANGE = (Unknown(200, True, b"critical"), Unknown(201, False, b""))


@SIDES
def test_unknown_payloads_are_passed_over(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At either end of every message, with the critical bit and without; they are part of the transcript."""
    link = Link(*hosts())
    one = link.named(side)

    def listening(kind: Any) -> None:
        original = kind.seal

        def seal(self: Any, message: Message) -> tuple[bytes, bytes]:
            more = replace(message, payloads=(STRANGE[0], *message.payloads, *STRANGE))
            mine = one.ikes and main_mode(one).session.channel is self
            return original(self, more if mine and message.exchange != 246 else message)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "seal", seal)

    listening(Channel)
    link.up("net")
    link.run(10)
    agree(link, ikes=1, pairs=1)


@pytest.mark.parametrize("number", range(4))
def test_a_second_crypto_payload(number: int) -> None:
    """One and only one per message: another makes it none."""
    link = Link(*hosts())
    link.fate = changing(number, lambda every: [*every, Unknown(133, False, bytes(4))])
    link.up("net")
    link.run(30)
    agree(link, ikes=1, pairs=1)
    assert "malformed" in link.left.drops + link.right.drops


@pytest.mark.parametrize("entries", [(5,), (), (4, 5), (2, 3), (4, 4)])
def test_a_method_that_was_not_offered(entries: tuple[int, ...]) -> None:
    """An answer with another method than was offered, or none, is no answer."""
    link = Link(*hosts())
    wrong = Auth(entries=tuple(AuthEntry(method=one) for one in entries))
    link.fate = lambda flight: (
        setattr(
            flight,
            "data",
            rewritten(flight.data, lambda all_: [wrong if isinstance(o, Auth) else o for o in all_]),
        )
        if flight.sender is link.right and flight.data[18] == Exchange.MAIN and flight.number < 9
        else None
    )
    link.up("net")
    link.run(60)
    over(link, "authentication method")


def test_an_offer_of_what_nobody_knows() -> None:
    """Numbers without a meaning are passed over, and said twice they count once."""
    link = Link(*hosts())

    def change(every: list[Body]) -> list[Body]:
        found = next(one for one in every if isinstance(one, Auth))
        strange = tuple(AuthEntry(method=number) for number in (99, 0, 65535))
        return [
            replace(found, entries=(*strange, *found.entries, *found.entries)) if one is found else one
            for one in every
        ]

    link.fate = changing(0, change)
    link.up("net")
    for _ in range(2):
        link.step()
    assert main_mode(link.left).answered


def is_quick(message: Message) -> bool:
    """Whether it is #5 or #6."""
    return message.encrypted and message.maybe(SecurityAssociation) is not None


@SIDES
def test_weight_is_passed_over(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may want to dictate the keys; as long as it does not, they are derived."""
    link = Link(*hosts())
    adding(monkeypatch, link.named(side), KeyDictationWeight(weight=7), when=is_quick)
    link.up("net")
    link.run(5)
    agree(link, ikes=1, pairs=1)


def is_sync(message: Message) -> bool:
    """Whether it is #7 or #8."""
    return any(one.type == N.QM_SYNCHRONIZE for one in message.every(type(notify(1, Subject.MAIN))))


DICTATION = (KeyDictation(data=bytes(64)), KeyDictation(data=bytes(64)))


@pytest.mark.parametrize(("side", "when"), [("right", is_quick), ("left", is_sync)], ids=["#6", "#7"])
def test_dictated_keys_are_refused(side: str, when: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passed over they would leave both sides with keys of which the other knows nothing."""
    link = Link(*hosts())
    adding(monkeypatch, link.named(side), *DICTATION, when=when)
    link.up("net")
    link.run(60)
    over(link, "dictate")


def test_dictated_keys_are_refused_in_extended_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """There they come with Auth3."""
    link = Link(*with_users())

    def is_proof(message: Message) -> bool:
        return message.exchange == Exchange.EXTENDED and message.maybe(Hash) is not None

    adding(monkeypatch, link.left, *DICTATION, when=is_proof)
    link.up("net")
    link.run(60)
    over(link, "dictate")
