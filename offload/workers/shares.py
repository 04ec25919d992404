"""Shell. The sockets of workers: each has its own, and together they get everything once."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from offload.host import bpf, hints, natt
from offload.host.raw import RawSockets
from offload.workers.inheritance import Estate
from sadb.address import Address


@dataclass(frozen=True, slots=True)
class Share:
    """The sockets of one worker."""

    raw: Sequence[socket.socket]
    natt: list[socket.socket]
    hints: Sequence[socket.socket]


@contextmanager
def open_shares(
    count: int, places: Sequence[tuple[Address, int, socket.socket]], mark: int
) -> Iterator[Sequence[Share]]:
    """Sockets for `count` workers; `places` are addresses, ports and sockets for IKE that ESP in UDP shares.
    Raises `Unavailable` or `OSError`."""
    with ExitStack() as stack:
        shares = [
            Share(
                [stack.enter_context(one) for one in RawSockets.opened(mark, number, count)],
                [stack.enter_context(natt.opened(where, port, mark)) for where, port, _ in places],
                [stack.enter_context(one) for one in hints.opened()],
            )
            for number in range(count)
        ]
        for share in shares:  # behind those that the program below chooses from
            for where, port, _ in places:
                share.natt.append(stack.enter_context(natt.opened(where, port, mark, receives=False)))
        for _, _, first in places:
            bpf.attach_reuseport(first, bpf.demultiplexer(count))
        yield shares


@contextmanager
def inherited_shares(estate: Estate) -> Iterator[Sequence[Share]]:
    """The sockets that workers of a former daemon have."""
    shares = [Share(one.raw, one.natt, one.hints) for one in estate.orphans]
    try:
        yield shares
    finally:
        for share in shares:
            for one in (*share.raw, *share.natt, *share.hints):
                one.close()
