"""What tests of hostile peers of AuthIP have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support import lives
from support.authip import (
    MAKERS,
    datagram,
    main_mode,
    rewritten,
)
from support.link import BOTH, Flight, Host, Link, agree, story

from ikd.authip import quick_mode
from ikd.authip.channel import Channel
from ikd.authip.message import Message, sealed
from ikd.authip.numbers import Exchange
from ikd.isakmp import identities
from ikd.isakmp.payloads import Hash, Nonce
from ikd.isakmp.proposals import offer_quick
from ikd.wire.isakmp import Body

KINDS = pytest.mark.parametrize("kind", MAKERS)
SIDES = pytest.mark.parametrize("side", BOTH)


def unharmed(link: Link) -> None:
    """Nothing broke, and tables are small."""
    lives.unharmed(link, ikes=4)


def over(link: Link, reason: str = "") -> None:
    """The negotiation has come to nothing on both sides, which say why, and the next one can begin."""
    unharmed(link)
    agree(link, ikes=0, pairs=0)
    assert link.left.failures, story(link)
    assert reason in " ".join(one.reason for host in (link.left, link.right) for one in host.failures)


def changing(number: int, change: Callable[[list[Body]], Any]) -> Callable[[Flight], None]:
    """A fate that rewrites the payloads of one message in the clear."""

    def fate(flight: Flight) -> None:
        if flight.number == number:
            flight.data = rewritten(flight.data, change)

    return fate


def adding(
    monkeypatch: pytest.MonkeyPatch, one: Host, *payloads: Any, when: Callable[[Message], bool]
) -> None:
    """Have a host write more payloads into its messages."""
    original = Channel.seal

    def seal(self: Any, message: Message) -> tuple[bytes, bytes]:
        if one.ikes and main_mode(one).session.channel is self and when(message):
            message = replace(message, payloads=(*message.payloads, *payloads))
        return original(self, message)

    monkeypatch.setattr(Channel, "seal", seal)


def quick_request(one: Host, number: int) -> bytes:
    """A request for a quick mode of this host, as it would have made it."""
    session = main_mode(one).session
    rule = session.rule
    assert rule is not None
    suites = quick_mode.quick.suites_of(rule)
    mine = session.auth_i if session.initiator else session.auth_r
    offered = offer_quick(suites, (0x1000 + number).to_bytes(4, "big"), 1, quick_mode.quick.life_of(rule))
    body = (
        Hash(data=mine),
        identities.encode(rule.selector.local[0]),
        identities.encode(rule.selector.remote[0]),
        offered,
        Nonce(data=bytes(32)),
    )
    return datagram(one, replace(sealed(Exchange.QUICK, 0x5000 + number, *body), sequence=number))
