"""Shell. Counters, sequence numbers and replay windows of all SAs, in memory that the daemon and its workers
share.

The daemon makes it, gives each pair an account while it is installed and reads what went through. Workers
write. It outlives a worker: what was received stays received, and numbers that were sent stay sent.

An account has 80 words of 64 bits, host byte order (`struct account` of offload/native/native.h): octets,
packets, time of the last packet (monotonic clock, nanoseconds), number and a lock for each direction, out
before in, each in 8 words; then the replay window as a ring of bits."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Final

from sadb.sa import SaPair, Usage

WORDS: Final = 80
ACCOUNT: Final = 8 * WORDS  # octets
OCTETS, PACKETS, LAST, NUMBER, LOCK = range(5)
INBOUND: Final = 8  # the first word of that direction
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Ledger:
    """All accounts. Made with their number, or by a worker from the descriptor it inherits."""

    def __init__(self, slots: int = 0, fileno: int = -1) -> None:
        """Raises `OSError` when there is no memory for it; only what is used takes any. Its size is sealed:
        who shortened it would end everybody else who looks at it."""
        if fileno < 0:
            fileno = os.memfd_create("ikd-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fileno, slots * ACCOUNT)
            fcntl.fcntl(fileno, fcntl.F_ADD_SEALS, _SEALS)
        else:
            check_sealed(fileno)
        self.fileno = fileno
        self.memory = mmap.mmap(fileno, 0)
        self.words = memoryview(self.memory).cast("Q")

    def __len__(self) -> int:
        return len(self.words) // WORDS

    def begin(self, slot: int, pair: SaPair) -> None:
        """The account of a new pair. No worker may still write to the one before."""
        at = slot * WORDS
        self.memory[slot * ACCOUNT : (slot + 1) * ACCOUNT] = bytes(ACCOUNT)
        self.words[at + NUMBER] = pair.outbound.sequence

    def unlock(self, slot: int) -> None:
        """Nobody holds the account: whoever did is dead."""
        self.words[slot * WORDS + LOCK] = self.words[slot * WORDS + INBOUND + LOCK] = 0

    def publish(self, slot: int, inbound: bool, octets: int, packets: int, now: float, number: int) -> None:
        """What an SA comes to, from a worker that counts for itself."""
        at = slot * WORDS + (INBOUND if inbound else 0)
        words = self.words
        words[at], words[at + 1], words[at + 2], words[at + 3] = octets, packets, int(now * 1e9), number

    def usage(self, slot: int, inbound: bool) -> Usage:
        """What went through an SA."""
        at = slot * WORDS + (INBOUND if inbound else 0)
        octets, packets, last, _ = self.words[at : at + 4]
        return Usage(octets, packets, last / 1e9 if last else None)

    def account(self, slot: int, inbound: bool) -> Usage:
        """The same, read anew each time somebody looks: for as long as the ledger is open."""
        return _Account(self, slot * WORDS + (INBOUND if inbound else 0))

    def number(self, slot: int, inbound: bool) -> int:
        """The last number sent or the highest one authenticated."""
        return self.words[slot * WORDS + (INBOUND if inbound else 0) + NUMBER]

    def close(self) -> None:
        """Give the memory back; whoever else has it keeps it."""
        self.words.release()
        self.memory.close()
        os.close(self.fileno)


def check_sealed(fileno: int) -> None:
    """Raises `OSError` for a descriptor that is no memory whose size is sealed."""
    if fcntl.fcntl(fileno, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise OSError(errno.EPERM, "a ledger whose size is not sealed")


class _Account(Usage):
    """What has gone through an SA so far."""

    __slots__ = ("_at", "_ledger")

    def __init__(self, ledger: Ledger, at: int) -> None:
        self._ledger, self._at = ledger, at

    @property
    def octets(self) -> int:  # type: ignore[override]
        return self._ledger.words[self._at + OCTETS]

    @property
    def packets(self) -> int:  # type: ignore[override]
        return self._ledger.words[self._at + PACKETS]

    @property
    def last(self) -> float | None:  # type: ignore[override]
        return self._ledger.words[self._at + LAST] / 1e9 or None
