"""Tokens of AuthIP that are no tokens, too large, or never the last.

If one of these fails, a negotiation never ends, or a stranger has us keep more and more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.authip import (
    datagram,
    hosts,
    main_mode,
    token_in,
    with_token,
)
from support.authip_hostile import SIDES, over
from support.hostile import weight
from support.link import Flight, Link

from ikd.auth import Step, Token
from ikd.authip import methods
from ikd.authip.message import plain
from ikd.authip.numbers import Exchange, GssFlags
from ikd.authip.payloads import GssApi
from ikd.events import Broken


@SIDES
def test_a_token_of_sixty_thousand_octets(side: str) -> None:
    """It is no token, and costs one attempt; the other side is told and both say why."""
    link = Link(*hosts())
    number = 2 if side == "left" else 3

    def fate(flight: Flight) -> None:
        if flight.number == number:
            flight.data = with_token(flight.data, lambda one: replace(one, token=one.token + bytes(60000)))

    link.fate = fate
    link.up("net")
    link.run(60)
    over(link)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
@pytest.mark.parametrize("at", [3, 4])
def test_a_record_length_that_was_changed(at: int, number: int) -> None:
    """A TLS library waits for the rest of such a record, and so would both sides for ever."""
    link = Link(*hosts())

    def change(one: GssApi) -> GssApi:
        token = bytearray(one.token)
        token[at] ^= 0x41
        return replace(one, token=bytes(token))

    def fate(flight: Flight) -> None:
        if flight.number == number and token_in(flight.data):
            flight.data = with_token(flight.data, change)

    link.fate = fate
    link.up("net")
    link.run(60)
    over(link)
    assert len(link.flights) < 60


def test_a_token_of_spnego_where_tls_was_agreed_on() -> None:
    """The reason tells what came instead."""
    link = Link(*hosts())

    def fate(flight: Flight) -> None:
        if flight.number == 2:
            flight.data = with_token(
                flight.data, lambda one: replace(one, token=b"\x60\x82\x01\x00" + bytes(256))
            )

    link.fate = fate
    link.up("net")
    link.run(60)
    over(link)
    assert any("SPNEGO" in one.text for one in link.right.events)


class Waiting:
    """A side that never has enough, and always has something to say."""

    said = b"initiator"

    def __init__(self) -> None:
        self._rounds = 0

    def step(self, token: Token | None) -> Step:
        """Something new, which proves nothing."""
        self._rounds += 1
        return Step(Token(self.said + bytes((self._rounds,))))


class WaitingToo(Waiting):
    """The other end."""

    said = b"responder"


def stubbed(monkeypatch: pytest.MonkeyPatch, **sides: Any) -> None:
    """`initiator` and `acceptor` instead of the true ones."""
    if "initiator" in sides:
        made = [methods.Side(sides["initiator"])]
        monkeypatch.setattr(methods, "initiators", lambda *a, **k: made)
    if "acceptor" in sides:
        monkeypatch.setattr(methods, "acceptor", lambda *a, **k: sides["acceptor"]())


def test_tokens_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are counted on both sides, whatever the mechanism thinks."""
    stubbed(monkeypatch, initiator=Waiting, acceptor=WaitingToo)
    link = Link(*hosts())
    link.up("net")
    link.run(100)
    over(link, "rounds")
    assert len(link.flights) < 90


def fed(link: Link, change: Callable[[int], GssApi], count: int) -> int:
    """Tokens that a peer makes up as it likes, to a responder that has answered its first message; how many
    were answered."""
    cookies = b"".join(main_mode(link.right).spis)
    before = len(link.flights)
    for number in range(count):
        message = replace(plain(Exchange.MAIN, 0, change(number)), sequence=number)
        data = main_mode(link.right).session.channel.seal(message)[0]
        link.inject(link.right, cookies + data[16:])
        if not link.right.ikes:
            break
    return len(link.flights) - before


@pytest.mark.parametrize(
    "flags",
    [GssFlags.NEW, GssFlags.NEW | GssFlags.RETRY, GssFlags.RETRY, GssFlags(0)],
    ids=["new", "again", "retry", "none"],
)
@pytest.mark.parametrize("code", [0, 13801])
@pytest.mark.parametrize("data", [b"", b"\x16\x03\x03\x00\x01x"])
def test_a_peer_that_begins_anew_for_ever(data: bytes, code: int, flags: GssFlags) -> None:
    """Attempts and rounds are limited, with an error in them or without, and it stays half open until its
    time is over: no memory grows."""
    link = Link(*hosts())
    link.fate = lambda flight: setattr(flight, "lost", flight.number > 1)
    link.up("net")
    link.run(0.5)
    assert link.right.endpoint.half_open == 1
    answered = fed(
        link, lambda n: GssApi(status=code, flags=int(flags), token=data + bytes(n % 2)), count=400
    )
    assert answered <= 170
    if link.right.ikes:
        assert link.right.endpoint.half_open == 1
        assert len(main_mode(link.right).talks.talks[0].past) <= 170
    assert not link.right.of(Broken)
    link.run(31)
    assert not link.right.ikes
    assert link.right.endpoint.half_open == 0


def test_large_tokens_without_end() -> None:
    """Somebody who says of every method that he has no token for it, in sixty thousand octets each time: the
    proofs cover them, but we do not keep it all, for a thousand such may wait."""
    link = Link(*hosts())
    link.up("net")
    for _ in range(2):
        link.step()
    link.fate = lambda flight: setattr(flight, "lost", True)
    link._queue.clear()
    before, cookies = weight(link.right), b"".join(main_mode(link.left).spis)
    for n in range(160):
        flags = GssFlags.NEW if n % 20 == 0 else 0
        token = GssApi(status=13801, flags=flags, token=n.to_bytes(2, "big") * 30000)
        data = datagram(link.left, replace(plain(Exchange.MAIN, 0, token), sequence=n + 1))
        link.inject(link.right, cookies + data[16:])
    assert weight(link.right) - before < 1_000_000
    link.run(60)
    assert not link.right.ikes
