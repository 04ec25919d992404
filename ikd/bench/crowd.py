"""Shell. The many other peers of `ikctl bench esp`: SA pairs that are installed and that nothing passes.

    python -m ikd.bench.crowd ORDER      JSON; one side's, in a namespace of its own

It negotiates them as an initiator of that side's daemon, each for an address of its own, says so in a JSON
line and keeps the IKE SAs alive until standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from ikd.bench.load import Load, Slot, part
from sadb.address import IKE_PORT, Path, SocketAddress

EACH: Final = 1000  # Child SAs of one IKE SA, the most that a daemon allows by default


@dataclass(frozen=True, slots=True)
class Order:
    """`count` pairs, all with the daemon at `peer`, for parts of the rule's local addresses."""

    directory: str
    rule: str
    local: str
    peer: str
    count: int


class Crowd(Load):
    """Peers that have negotiated all they want, and answer."""

    def gather(self, order: Order) -> dict[Slot, None]:
        """Negotiate, with all IKE SAs at once; raises `RuntimeError` when one fails."""
        configuration, credentials = self._configuration(order.directory)
        rule = configuration.policy.rule(order.rule)
        if rule is None:
            raise ValueError(f"no rule {order.rule}")
        path = self.path(order)
        numbers, peers = iter(range(order.count)), range(-(-order.count // EACH))
        busy = dict.fromkeys(Slot(configuration, credentials, part(rule, next(numbers))) for _ in peers)
        everyone = dict(busy)
        made = dict.fromkeys(everyone, 1)
        for slot in busy:
            spi, outputs = slot.begin(path, time.monotonic())
            self._slots[spi] = slot
            self._perform(slot, outputs)
        while busy:
            for slot in self._wait(path, busy):
                if slot.failure:
                    raise RuntimeError(slot.failure)
                if not slot.done or slot not in busy:
                    continue
                number = next(numbers, None) if made[slot] < EACH else None
                if number is None:
                    del busy[slot]
                    continue
                made[slot] += 1
                self._perform(slot, slot.another(part(rule, number), path, time.monotonic()))
        return everyone

    def stay(self, everyone: dict[Slot, None], order: Order) -> None:
        """Answer what the daemon asks."""
        while True:
            self._wait(self.path(order), everyone)

    @staticmethod
    def path(order: Order) -> Path:
        """From here to the daemon."""
        ends = (SocketAddress(ip_address(one), IKE_PORT) for one in (order.local, order.peer))
        return Path(*ends)


def _end_with_the_bench() -> None:
    sys.stdin.read()
    os._exit(0)


def main(text: str) -> int:
    """Do one order."""
    threading.Thread(target=_end_with_the_bench, daemon=True).start()
    order, crowd = Order(**json.loads(text)), Crowd()
    try:
        everyone = crowd.gather(order)
    except (RuntimeError, ValueError, OSError) as error:
        print(json.dumps({"error": f"the other peers: {error}"}), flush=True)
        return 1
    print(json.dumps({"pairs": order.count}), flush=True)
    crowd.stay(everyone, order)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
