"""Values that cannot be, said by an authenticated peer inside the encryption: public values, reflections,
selectors, lifetimes.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.endure import EVERY, LONG, Payloads, each, endure, of
from support.hostile import Trial
from support.phases import sets

from ikd.ikev1.message import status as status_1
from ikd.ikev2 import payloads as two
from ikd.isakmp import payloads as one

PUBLIC: dict[str, Callable[[bytes], bytes]] = {
    "zero": lambda data: bytes(len(data)),
    "one": lambda data: bytes(len(data) - 1) + b"\1",
    "all ones": lambda data: b"\xff" * len(data),
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"\0",
    "one octet": lambda data: b"\2",
    "twisted": lambda data: data[: len(data) // 2] * 2,  # not on the curve
}
PFS = sets(quick='["aes128 sha256 p256"]')


@LONG
@EVERY
@pytest.mark.parametrize("which", PUBLIC)
def test_public_values(protocol: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside their group, in phase 1 and with PFS in phase 2: nobody computes with them."""
    trial = Trial(monkeypatch, protocol, crypto=PFS)
    change = PUBLIC[which]
    endure(trial, of((one.KeyExchange, two.KeyExchange), lambda it: replace(it, public=change(it.public))))


@LONG
@EVERY
@pytest.mark.parametrize("what", ["nonce", "public value", "both", "everything"])
def test_reflection(protocol: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the victim has sent comes back as the peer's own."""
    trial = Trial(monkeypatch, protocol, crypto=PFS)
    victims: dict[int, Any] = {}
    hostile = trial.is_hostile

    def saw(random: object, payloads: Payloads) -> Payloads:
        if hostile(random):
            return list(trial.change(payloads))
        victims.update({it.kind: it for it in payloads})
        return payloads

    monkeypatch.setattr(trial, "changed", saw)
    kinds = {"nonce": (10, 40), "public value": (4, 34), "both": (4, 10, 34, 40), "everything": range(256)}
    endure(trial, each(lambda it: victims.get(it.kind, it) if it.kind in kinds[what] else it))


def _backwards(it: Any) -> Any:
    low, high = b"\x0a\1\0\xff", b"\x0a\1\0\0"
    if isinstance(it, one.Identification):
        return replace(it, type=7, data=low + high)
    return replace(
        it, ranges=(two.SelectorRange(type=7, protocol=0, body=bytes(2) + b"\xff\xff" + low + high),)
    )


def _ports(it: Any) -> Any:
    if isinstance(it, one.Identification):
        return replace(it, type=4, protocol=0, port=500, data=b"\x0a\1\0\0\xff\0\xff\0")  # a mask with a hole
    body = b"\xff\xff\0\1" + b"\x0a\1\0\0" + b"\x0a\1\0\xff"
    return replace(it, ranges=(two.SelectorRange(type=7, protocol=17, body=body),) * 255)


def _family(it: Any) -> Any:
    if isinstance(it, one.Identification):
        return replace(it, type=6, data=bytes(15) + b"\1" + bytes(16))
    return replace(it, ranges=(two.SelectorRange(type=8, protocol=0, body=b"\0\0\xff\xff" + bytes(32)),))


def _whole(it: Any) -> Any:
    if isinstance(it, one.Identification):
        return replace(it, type=4, data=bytes(8))
    everything = two.SelectorRange(type=7, protocol=0, body=b"\0\0\xff\xff" + bytes(4) + b"\xff" * 4)
    return replace(it, ranges=(everything,))


SELECTORS = {"ends before it starts": _backwards, "strange ports": _ports, "IPv6": _family, "all": _whole}


@LONG
@EVERY
@pytest.mark.parametrize("which", SELECTORS)
def test_traffic_selectors(protocol: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give nothing that policy does not: `support.hostile.allowed` looks at every pair."""
    kinds = (one.Identification, two.TrafficSelectorsI, two.TrafficSelectorsR)
    endure(Trial(monkeypatch, protocol), of(kinds, SELECTORS[which]))


LIVES: dict[str, tuple[int | bytes, ...]] = {
    "zero": (0, bytes(4)),
    "one": (1,),
    "all ones": (0xFFFF, b"\xff" * 4),
    "64 bits": (b"\xff" * 8,),
    "a thousand octets": (b"\xff" * 1000,),
    "sign": (b"\x80\0\0\0",),
    "nothing": (b"",),
}


@LONG
@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
@pytest.mark.parametrize("which", LIVES)
@pytest.mark.parametrize("kind", [1, 2])
def test_lifetimes(protocol: str, which: str, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds and kilobytes without a bound: nothing wraps, and nothing rekeys in a loop."""
    more = tuple(pair for life in LIVES[which] for pair in ((1, kind), (2, life)))  # of phase 2
    main = tuple(pair for life in LIVES[which] for pair in ((11, kind), (12, life)))

    def change(it: Any) -> Any:
        def longer(row: Any, attributes: Any) -> Any:
            return replace(row, attributes=(*attributes, *row.attributes))  # what is said first counts

        proposals = tuple(
            replace(
                row, transforms=tuple(longer(t, main if row.protocol == 1 else more) for t in row.transforms)
            )
            for row in it.proposals
        )
        return replace(it, proposals=proposals)

    trial = Trial(monkeypatch, protocol, crypto=sets(lifetime='{ quick_bytes = "never" }'))
    endure(trial, of((one.SecurityAssociation,), change))


@pytest.mark.parametrize("value", [bytes(4), b"\xff" * 4, b"", b"\1" * 8])
def test_lifetime_notifies(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTH_LIFETIME (RFC 4478) and the RESPONDER-LIFETIME of IKEv1, which say the same of theirs."""
    endure(Trial(monkeypatch, "ikev2"), lambda found: [*found, two.Notify(type=16403, spi=b"", data=value)])
    told = status_1(24576, b"\x80\1\0\1\0\2" + len(value).to_bytes(2, "big") + value, 3, b"1234")
    endure(Trial(monkeypatch, "ikev1"), lambda found: [*found, told])
