"""Fragments of an authenticated peer that cannot be: number zero, beyond the total, without end.

If one of these fails, somebody who may have one tunnel ends those of others, or the daemon."""

from __future__ import annotations

import pytest
from support.endure import INFORMATIONAL, endure
from support.hostile import Trial

NUMBERS = {
    "number 0": lambda number, total: (0, total),
    "beyond the total": lambda number, total: (total + 1, total),
    "total 0": lambda number, total: (number, 0),
    "too many": lambda number, total: (number, 0xFFFF),
    "all the first": lambda number, total: (1, total),
    "other totals": lambda number, total: (number, 127 - number),
    "the last alone": lambda number, total: (128, 128),
}


@pytest.mark.parametrize("which", NUMBERS)
def test_fragments_of_ikev2(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7383 section 2.6: what cannot be counts for nothing, and what never becomes whole is forgotten."""

    def fragment(prefix: bytes) -> bytes:
        seen.append(prefix)
        made = NUMBERS[which](int.from_bytes(prefix[:2], "big"), int.from_bytes(prefix[2:], "big"))
        return b"".join(number.to_bytes(2, "big") for number in made)

    seen: list[bytes] = []
    endure(Trial(monkeypatch, "ikev2"), tuple, fragment)
    assert seen, "no message was large enough"


@pytest.mark.parametrize("protocol", ["ikev1", "authip"])
@pytest.mark.parametrize(("number", "flags"), [(0, 0), (0, 1), (255, 1), (255, 0), (1, 1), (65, 0)])
def test_fragments_of_microsoft(
    protocol: str, number: int, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-IKEE section 2.2.3 has them outside the encryption: a message of 100 fragments of one number."""
    trial = Trial(monkeypatch, protocol)
    trial.link.up("net")
    trial.link.run(1)
    (ike,) = trial.hostile.ikes
    body = bytes((0, 0, 0, 12, 0, 7, number, flags)) + b"1234"
    head = ike.spi_i + ike.spi_r + bytes((132, 16, INFORMATIONAL[protocol], 0)) + bytes(4)
    for n in range(100):
        data = head[:-1] + bytes((n,)) + (28 + len(body)).to_bytes(4, "big") + body
        trial.link.inject(trial.victim, data)
    trial.unharmed()
    trial.served()
    trial.over()
