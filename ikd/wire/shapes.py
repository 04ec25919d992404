"""Which payloads a message may have, for all protocols: one `Shape` per exchange and direction.

What must be there or may be there once is counted here, before any handler sees the message. A known payload
that does not belong is left out, as an unknown one is; an unknown critical one is the protocol's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ikd.wire.codec import Malformed
from ikd.wire.isakmp import Body


@dataclass(frozen=True, slots=True)
class Shape:
    """Payload types: exactly one each, at most one each, any number each."""

    required: frozenset[int] = frozenset()
    optional: frozenset[int] = frozenset()
    many: frozenset[int] = frozenset()

    def check(self, payloads: Iterable[Body], *, whole: bool = True) -> tuple[Body, ...]:
        """The payloads that belong, in order; `whole` is false when an error notify stands for what is
        required. Raises `Malformed`."""
        kept = []
        seen: set[int] = set()
        single = self.required | self.optional
        for one in payloads:
            kind = one.kind
            if kind in single:
                if kind in seen:
                    raise Malformed(f"payload {kind} occurs twice")
                seen.add(kind)
                kept.append(one)
            elif kind in self.many:
                kept.append(one)
        if whole and not self.required <= seen:
            raise Malformed(f"payload {min(self.required - seen)} is missing")
        return tuple(kept)
