"""Counting: what goes through an SA and when that is too much, and how often something may happen."""

from __future__ import annotations

from collections.abc import Callable

from sadb.sa import SecurityAssociation

# Here numbers are nearly used up: time to replace the SA before they are (RFC 4303 section 3.3.3)
_SOFT_SEQUENCE = 0xF0000000
NEVER = 1 << 70


class Meter:
    """The usage of one SA against its limits in octets and packets, each reported once, and its sequence
    numbers. `publish(octets, packets, now, number)` is told what it comes to."""

    __slots__ = ("_hard", "_octets", "_packets", "_publish", "_sa", "_soft", "crossed")

    def __init__(
        self, sa: SecurityAssociation, publish: Callable[[int, int, float, int], None] | None = None
    ) -> None:
        self._sa = sa
        self._publish = publish
        self._soft = self._hard = False
        self.crossed: list[tuple[bool, str]] = []  # hard or soft, and the reason: for the owner to collect
        self._octets = self._packets = NEVER
        self._set_limits()

    def take(self, size: int, now: float) -> bool:
        """Count a packet of `size` octets; False when that is beyond a hard limit."""
        usage = self._sa.usage
        octets, packets = usage.octets + size, usage.packets + 1
        if (octets >= self._octets or packets >= self._packets) and not self._look(octets, packets):
            return False
        self._store(octets, packets, now)
        return True

    def take_train(self, size: int, count: int, now: float) -> int:
        """Count `count` packets that leave, of `size` octets together, and take their numbers: the first of
        them. 0 when a limit is near, and then nothing is counted: they have to be taken one by one."""
        sa = self._sa
        octets, packets, last = sa.usage.octets + size, sa.usage.packets + count, sa.sequence + count
        if octets >= self._octets or packets >= self._packets or last > sa.last_sequence:
            return 0
        sa.sequence = last
        self._store(octets, packets, now)
        return last - count + 1

    def take_all(self, size: int, count: int, now: float) -> bool:
        """Count `count` packets that came, of `size` octets together; False when a limit is near, and then
        nothing is counted: they have to be taken one by one."""
        octets, packets = self._sa.usage.octets + size, self._sa.usage.packets + count
        if octets >= self._octets or packets >= self._packets:
            return False
        self._store(octets, packets, now)
        return True

    def number(self) -> int | None:
        """The number of the next packet that leaves, None when they are used up."""
        number = self._sa.next_sequence()
        if number is None:
            self.exhaust("sequence")
        return number

    def exhaust(self, reason: str) -> None:
        """A hard limit was met."""
        if not self._hard:
            self._hard = True
            self.crossed.append((True, reason))

    def _store(self, octets: int, packets: int, now: float) -> None:
        usage = self._sa.usage
        usage.octets, usage.packets, usage.last = octets, packets, now
        self.tell()

    def tell(self) -> None:
        """Publish what it comes to."""
        if self._publish is not None:
            usage, window = self._sa.usage, self._sa.replay
            number = window.reached if window else self._sa.sequence
            self._publish(usage.octets, usage.packets, usage.last or 0.0, number)

    def _sequence(self) -> tuple[int, int]:
        """Packets so far, and the last number sent."""
        return self._sa.usage.packets, self._sa.sequence

    def _set_limits(self) -> None:
        """The octets and packets at which `_look` is due."""
        life = self._sa.lifetime
        octets = [life.hard_octets] if self._soft else [life.soft_octets, life.hard_octets]
        packets = [life.hard_packets] if self._soft else [life.soft_packets, life.hard_packets]
        if not self._soft and not self._sa.suite.esn and not self._sa.inbound:
            sent, sequence = self._sequence()
            packets.append(sent + _SOFT_SEQUENCE - sequence)
        self._octets = min((one for one in octets if one is not None), default=NEVER)
        self._packets = min((one for one in packets if one is not None), default=NEVER)

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
                (None if self._sa.suite.esn else _SOFT_SEQUENCE, self._sequence()[1], "sequence"),
            )
            for limit, reached, reason in limits:
                if limit is not None and reached >= limit and not self._soft:
                    self._soft = True
                    self.crossed.append((False, reason))
            self._set_limits()
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
