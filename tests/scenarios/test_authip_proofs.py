"""Auth1 to Auth4 of AuthIP, and what somebody who has the keys can write all the same.

If one of these fails, a peer that has seen other messages than we is believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.authip import (
    MAKERS,
    main_mode,
    person,
    with_users,
)
from support.authip_hostile import KINDS, SIDES, over, unharmed
from support.link import BOTH, Link, agree
from support.lives import PATIENT
from support.phases import certified

from ikd.authip.message import sealed
from ikd.authip.numbers import Exchange
from ikd.authip.session import Session
from ikd.events import IkeClosed

QUICK = settings(PATIENT, max_examples=15)


@QUICK
@given(
    octets=st.binary(max_size=160),
    kind=st.integers(0, 140),
    exchange=st.sampled_from(Exchange),
    message_id=st.integers(0, 3),
    steps=st.integers(8, 30),
    side=st.sampled_from(BOTH),
)
def test_encrypted_garbage(
    octets: bytes, kind: int, exchange: Exchange, message_id: int, steps: int, side: str
) -> None:
    """A peer that writes nonsense with the right keys: its own SAs may end, and nothing breaks or hangs."""
    link = Link(*with_users())
    link.up("net")
    for _ in range(steps):
        link.step()
    one = link.named(side)
    if not one.ikes or not main_mode(one).session.armed:
        return
    channel = main_mode(one).session.channel
    message = replace(sealed(exchange, message_id), sequence=9)
    link.inject(link.other(one), channel._encrypt(message, kind, octets))
    unharmed(link)
    link.run(120)
    agree(link)


@KINDS
@pytest.mark.parametrize("which", ["auth_i", "auth_r"])
@SIDES
def test_wrong_proofs(side: str, which: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auth1 and Auth2, and Auth3 and Auth4 which cover them: whoever has seen other messages is not the peer,
    and both sides learn it."""
    made = MAKERS[kind]()
    link = Link(*made)
    one = link.named(side)
    original = Session.seal_transcript

    def sealing(self: Any) -> None:
        original(self)
        if self.initiator is (side == "left"):
            setattr(self, which, bytes(32))

    monkeypatch.setattr(Session, "seal_transcript", sealing)
    link.up("net")
    link.run(70)
    assert one.failures or one.of(IkeClosed)
    over(link)


@SIDES
def test_wrong_proofs_of_users(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Auth3 and Auth4: neither side keeps what the first authentication has made."""
    from ikd.authip import extended_mode

    original = extended_mode._proofs

    def proofs(session: Any) -> tuple[bytes, bytes]:
        auth3, auth4 = original(session)
        return (auth3, auth4) if session.initiator is (side == "right") else (auth3[::-1], auth4[::-1])

    monkeypatch.setattr(extended_mode, "_proofs", proofs)
    link = Link(*with_users())
    link.up("net")
    link.run(90)
    over(link)
    assert not link.left.pairs + link.right.pairs


@KINDS
@SIDES
def test_a_host_without_the_credential(side: str, kind: str) -> None:
    """Nothing is half up, and the reason is told at the initiator."""
    maker = MAKERS[kind]
    lacking = {"main": replace(certified(side), hosts=()), "extended": replace(person(side), user=None)}[kind]
    link = Link(*maker(**{side: lacking}))
    link.up("net")
    link.run(60)
    if kind == "extended" and side == "right":
        agree(link, ikes=1, pairs=1)  # users are asked of the initiator only
        return
    over(link)
