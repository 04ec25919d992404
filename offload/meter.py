"""Counting: what goes through an SA and when that is too much, and how often something may happen."""

from __future__ import annotations

from sadb.sa import SecurityAssociation

# Here numbers are nearly used up: time to replace the SA before they are (RFC 4303 section 3.3.3)
_SOFT_SEQUENCE = 0xF0000000
_NEVER = 1 << 70


class Meter:
    """The usage of one SA against its limits in octets and packets; each limit is reported once."""

    __slots__ = ("_hard", "_octets", "_packets", "_sa", "_soft", "crossed")

    def __init__(self, sa: SecurityAssociation) -> None:
        self._sa = sa
        self._soft = self._hard = False
        self.crossed: list[tuple[bool, str]] = []  # hard or soft, and the reason: for the owner to collect
        self._octets, self._packets = self._next()

    def _next(self) -> tuple[int, int]:
        """The octets and packets at which `_look` is due."""
        life = self._sa.lifetime
        octets = [life.hard_octets] if self._soft else [life.soft_octets, life.hard_octets]
        packets = [life.hard_packets] if self._soft else [life.soft_packets, life.hard_packets]
        if not self._soft and not self._sa.suite.esn and not self._sa.inbound:
            packets.append(self._sa.usage.packets + _SOFT_SEQUENCE - self._sa.sequence)
        return (
            min((one for one in octets if one is not None), default=_NEVER),
            min((one for one in packets if one is not None), default=_NEVER),
        )

    def take(self, size: int, now: float) -> bool:
        """Count a packet of `size` octets; False when that is beyond a hard limit."""
        usage = self._sa.usage
        octets, packets = usage.octets + size, usage.packets + 1
        if (octets >= self._octets or packets >= self._packets) and not self._look(octets, packets):
            return False
        usage.octets, usage.packets, usage.last = octets, packets, now
        return True

    def exhaust(self, reason: str) -> None:
        """A hard limit was met."""
        if not self._hard:
            self._hard = True
            self.crossed.append((True, reason))

    def _look(self, octets: int, packets: int) -> bool:
        life = self._sa.lifetime
        if life.hard_octets is not None and octets > life.hard_octets:
            self.exhaust("octets")
            return False
        if life.hard_packets is not None and packets > life.hard_packets:
            self.exhaust("packets")
            return False
        if not self._soft:
            limits = (
                (life.soft_octets, octets, "octets"),
                (life.soft_packets, packets, "packets"),
                (None if self._sa.suite.esn else _SOFT_SEQUENCE, self._sa.sequence, "sequence"),
            )
            for limit, reached, reason in limits:
                if limit is not None and reached >= limit and not self._soft:
                    self._soft = True
                    self.crossed.append((False, reason))
            self._octets, self._packets = self._next()
        return True


class Bucket:
    """Lets something happen `rate` times a second, and `burst` times at once."""

    __slots__ = ("_burst", "_last", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens = burst
        self._last: float | None = None

    def take(self, now: float) -> bool:
        """Whether it may happen now."""
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
