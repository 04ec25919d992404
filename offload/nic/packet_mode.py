"""Packet mode: who may use which sequence numbers, and who judges which have come. Pure.

The adapter numbers packets itself, out of a *lease* of the host's one counter. The host counts what it leases
as used, so its own next number is always the first behind the lease. An adapter that gives an SA up in order
(a fence) says which number it would have used next, and there the host goes on; one that dies, or takes too
long, costs the rest of its lease and nothing else. `Lease` is the host's side, `Numbers` the adapter's.

Inbound each number is judged by one window only. `Judge` has the adapter's: first packets are marked as in
crypto mode and the host judges. Once it has seen such a mark, and so all packets that came unmarked before,
it lends its window: from then on the adapter judges what is newer than the host's highest number and than all
it has marked so far, the host what is older. The window comes home when the SA is deleted; with an adapter
that dies it is lost, and the SA is closed for receive.

What must hold whatever goes wrong, and what sees to it:

    no number twice                what is leased is burnt; a fence is believed if it may be true, `credible`;
                                   and no lease is taken that overlaps an earlier one (`Numbers.grant`)
    IV = 64-bit number             both sides use `offload.esp`; descriptors of the other mode are refused
    one window for each number     `Judge.look`; unmarked packets are dropped while the window is lent
    host keeps keys and plaintext  `offload.nic.lanes.Flight`, until the completion
    fail closed                    nothing leaves without a lease; judged marks count once a window is lent
    no overtaking                  packets wait behind the fence, before they are counted
    no slot reused in flight       the generation in the handle, as in crypto mode"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from offload.outer import CryptoStatus
from sadb.replay import ReplayWindow
from sadb.sa import SecurityAssociation

LEASE: Final = 4096  # numbers that an adapter has at most; given more when half of them are used
LOST: Final = "adapter"  # why a pair is to be replaced whose replay window went with the adapter


@dataclass(slots=True)
class Lease:
    """What the host knows of the numbers from `first` to before `end` that an adapter was given while it has
    an SA: packets that were `handed` to it, and how many of them it says it `sent`."""

    first: int
    end: int
    handed: int = 0
    sent: int = 0

    @property
    def left(self) -> int:
        """Numbers for packets to come."""
        return self.end - self.first - self.handed

    def renewed(self, sa: SecurityAssociation, count: int) -> range:
        """More numbers, if with `count` packets half of the lease is used: but none that a hard limit or the
        end of all numbers keeps from being used. They are burnt, until a fence says that some were not."""
        room, hard = sa.last_sequence - sa.sequence, sa.lifetime.hard_packets
        if hard is not None:
            room = min(room, hard - sa.usage.packets - self.left)
        more = max(0, min(LEASE - self.left, room)) if self.left - count < LEASE // 2 else 0
        first, self.end = self.end, self.end + more
        sa.sequence += more
        return range(first, self.end)

    def credible(self, number: int) -> bool:
        """Whether this can be the first number that was not used: below it at least as many as were sent, and
        at most as many as were to be. What is not believed costs the rest of the lease."""
        return self.first + self.sent <= number <= self.first + self.handed


@dataclass(slots=True)
class Numbers:
    """What an adapter may number packets of an SA with: from `next` to before `end`."""

    last: int  # the last number there is
    next: int = 0
    end: int = 0

    def grant(self, first: int, count: int) -> bool:
        """More numbers, behind those there are; False for what might be the same ones again."""
        used_up = self.next == self.end
        if count < 1 or first + count - 1 > self.last or first < max(1, self.end):
            return False
        if not used_up and first != self.end:
            return False
        self.next, self.end = first if used_up else self.next, first + count
        return True

    def take(self, count: int) -> int:
        """The first of `count` numbers, which are used from now on; 0 when there are not as many."""
        if self.next + count > self.end:
            return 0
        first, self.next = self.next, self.next + count
        return first

    def stop(self) -> int:
        """Use none any more; the first that was not used, 0 when there was never any."""
        self.end = self.next
        return self.next


class Judge:
    """The adapter's part in judging which packets of an inbound SA are new. Made with a window in which
    nothing came, and whose highest number is about that of the host."""

    __slots__ = ("_since", "_window")

    def __init__(self, window: ReplayWindow) -> None:
        self._window = window
        self._since: int | None = None  # the highest number that is the host's to judge

    def take(self, highest: int) -> None:
        """Judge from now on; `highest` is that of the host's window. Once only."""
        if self._since is None and 0 <= highest <= self._window.last:
            self._since = self._window.highest = max(highest, self._window.highest)

    def look(self, low: int) -> tuple[int, CryptoStatus | None, bool]:
        """For the 32 bits on the wire the whole number; why the packet is to be refused; and whether it is
        ours to judge. Before authentication."""
        window, since = self._window, self._since
        number = window.full(low)
        if number > window.last:  # that of a window that is closed
            return 0, CryptoStatus.LATE, False
        if since is None:
            return number, None, False
        if number > since:
            return number, _REFUSED[window.look(low)[1]], True
        late = window.highest - number >= window.size
        return number, CryptoStatus.LATE if late else None, late

    def marked(self, number: int) -> None:
        """An authentic packet is handed up for the host to judge."""
        self._window.highest = max(self._window.highest, number)

    def accept(self, number: int) -> None:
        """Note a number that was ours to judge, and whose packet is authentic."""
        self._window.accept(number)

    def home(self) -> tuple[int | None, bytes]:
        """The window for the host, if we had it."""
        return (self._window.highest, self._window.bitmap()) if self._since is not None else (None, b"")


_REFUSED: Final = {"": None, "replayed": CryptoStatus.REPLAYED, "late": CryptoStatus.LATE}
