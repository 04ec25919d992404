"""Messages with something wrong in them: payloads changed with knowledge of their structure, before they are
encrypted."""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ikd.wire.codec import Structure
from ikd.wire.isakmp import GENERIC, Body

MOST_PAYLOADS = 140  # more than a reader takes
MOST_OCTETS = 20_000  # of the payloads of a message
KINDS = (*range(12), 13, 20, *range(33, 54), 99, *range(128, 138), 200, 255)
NUMBERS = (0, 1, 2, 3, 4, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Raw:
    """A payload of any type and octets; `length` is what its header says, the generic header included."""

    kind: int
    data: bytes
    length: int | None = None
    critical: bool = False

    def encode(self) -> bytes:
        """The body."""
        return self.data


def encode_chain(payloads: Iterable[Body | Raw]) -> tuple[int, bytes]:
    """As `ikd.wire.isakmp.encode_chain`, with lengths as they are said."""
    found = list(payloads)
    octets = b""
    kinds = [one.kind for one in found] + [0]
    for one, following in zip(found, kinds[1:], strict=True):
        body = one.encode()
        said = getattr(one, "length", None)
        length = len(body) + 4 if said is None else said
        octets += GENERIC.pack(following, 0x80 if one.critical else 0, length) + body
    return kinds[0], octets


def raw(payload: Body | Raw, **changes: Any) -> Raw:
    """A payload as octets, with something else about it."""
    length = payload.length if isinstance(payload, Raw) else None
    body = payload.data if isinstance(payload, Raw) else payload.encode()
    return replace(Raw(payload.kind, body, length, payload.critical), **changes)


def octets(data: bytes, luck: random.Random) -> bytes:
    """Other octets."""
    at = luck.randrange(len(data) + 1)
    choice = luck.randrange(9)
    if choice < 3 and data:
        flipped = bytearray(data)
        for _ in range(luck.choice((1, 1, 2, 8))):
            flipped[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
        return bytes(flipped)
    return (
        b"",
        data[:at],
        data + luck.randbytes(luck.choice((1, 4, 300))),
        data[:at] + luck.randbytes(1) + data[at:],
        bytes(len(data)),
        b"\xff" * len(data),
        data * luck.choice((2, 2, 40)),
        luck.randbytes(len(data)),
        data[::-1],
    )[choice]


def other(value: Any, luck: random.Random) -> Any:
    """Another value of the same type: of a number, octets, a tuple or a structure."""
    if isinstance(value, int):
        return luck.choice((*NUMBERS, value + 1, max(value - 1, 0), value ^ (1 << luck.randrange(16))))
    if isinstance(value, bytes):
        return octets(value, luck)
    if isinstance(value, Structure):
        found = fields(value)  # type: ignore[arg-type]
        name = luck.choice(found).name if found else ""
        return replace(value, **{name: other(getattr(value, name), luck)}) if name else value  # type: ignore[type-var]
    if not isinstance(value, tuple) or not value:
        return value
    at = luck.randrange(len(value))
    changed = (*value[:at], other(value[at], luck), *value[at + 1 :])
    if isinstance(value[0], int):  # an attribute: type and value
        return changed
    return luck.choice(
        (
            changed,
            changed,
            changed,
            value[:at] + value[at + 1 :],
            (*value, value[at]),
            value * 40,
            value[::-1],
        )
    )


class Mutator:
    """Changes messages, one in `1 + rarity`. What it has seen of either side, and the corpus, it puts in
    elsewhere."""

    def __init__(self, luck: random.Random, corpus: Iterable[Raw] = ()) -> None:
        self.luck = luck
        self.rarity = 1.0  # messages left alone for each one that is changed
        self.spared = 0  # messages left alone in the beginning
        self.active = True
        self.corpus = list(corpus)
        self.seen: deque[Body | Raw] = deque(maxlen=60)
        self.changed: list[str] = []  # what was done, for reading when a test fails

    def saw(self, payloads: Iterable[Body | Raw]) -> None:
        """Payloads of a message of either side."""
        self.seen.extend(payloads)

    def __call__(self, payloads: Sequence[Body | Raw]) -> tuple[Body | Raw, ...]:
        """The payloads to send instead."""
        made = tuple(payloads)
        if not self.active or self.luck.random() * (1 + self.rarity) > 1:
            return made
        if self.spared:
            self.spared -= 1
            return made
        for _ in range(self.luck.choice((1, 1, 1, 2, 4))):
            made = self._turn(made)
        return made

    def _turn(self, payloads: tuple[Body | Raw, ...]) -> tuple[Body | Raw, ...]:
        name, change = self.luck.choice(CHANGES)
        made = change(self, list(payloads))[:MOST_PAYLOADS]
        try:
            size = len(encode_chain(made)[1])
        except (ValueError, OverflowError, struct.error):  # a field has no room for it
            return payloads
        if size > MOST_OCTETS:
            return payloads
        self.changed.append(f"{name} {[one.kind for one in made]}")
        return tuple(made)

    def material(self) -> Body | Raw:
        """A payload from elsewhere."""
        pool: Sequence[Body | Raw] = self.luck.choice((self.corpus, self.seen))
        return self.luck.choice(pool) if pool else Raw(self.luck.choice(KINDS), b"")


List = list[Any]


def _at(one: Mutator, found: List, change: Callable[[Any], List]) -> List:
    """Change one of them."""
    if not found:
        return [one.material()]
    at = one.luck.randrange(len(found))
    return [*found[:at], *change(found[at]), *found[at + 1 :]]


def _relength(one: Mutator, payload: Any) -> List:
    size = len(payload.encode()) + 4
    says = one.luck.choice((0, 1, 3, 4, 5, size - 1, size + 1, size + 4, 0x7FFF, 0x8000, 0xFFFF))
    return [raw(payload, length=says)]


CHANGES: tuple[tuple[str, Callable[[Mutator, List], List]], ...] = (
    ("value", lambda one, found: _at(one, found, lambda it: [other(it, one.luck)])),
    ("value", lambda one, found: _at(one, found, lambda it: [other(it, one.luck)])),
    ("value", lambda one, found: _at(one, found, lambda it: [other(other(it, one.luck), one.luck)])),
    ("drop", lambda one, found: _at(one, found, lambda it: [])),
    ("repeat", lambda one, found: _at(one, found, lambda it: [it] * one.luck.choice((2, 2, 3, 139)))),
    ("shuffle", lambda one, found: one.luck.sample(found, len(found))),
    ("retype", lambda one, found: _at(one, found, lambda it: [raw(it, kind=one.luck.choice(KINDS))])),
    ("critical", lambda one, found: _at(one, found, lambda it: [raw(it, critical=True)])),
    ("octets", lambda one, found: _at(one, found, lambda it: [raw(it, data=octets(raw(it).data, one.luck))])),
    ("empty", lambda one, found: _at(one, found, lambda it: [raw(it, data=b"")])),
    ("length", lambda one, found: _at(one, found, lambda it: _relength(one, it))),
    ("insert", lambda one, found: _at(one, found, lambda it: one.luck.sample((it, one.material()), 2))),
    ("insert", lambda one, found: _at(one, found, lambda it: [one.material(), it, one.material()])),
    ("replace", lambda one, found: _at(one, found, lambda it: [one.material()])),
    ("cut", lambda one, found: found[: one.luck.randrange(len(found) + 1)]),
    ("nothing", lambda one, found: []),
)
