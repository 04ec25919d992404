"""Shell. The process of a worker.

python -m offload.workers ORDER      started by `offload.workers.processes`, with descriptors it inherits
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from offload import rights
from offload.workers.worker import Order, Worker


def main(arguments: Sequence[str]) -> None:
    """Carry packets as ordered."""
    rights.ignore_signals()
    order = msgspec.json.decode(arguments[0], type=Order)
    kind = Worker
    if order.plugs >= 0:
        from offload.workers.nic_worker import NicWorker

        kind = NicWorker
    worker = kind(order)
    rights.give_up(outlives=order.will is not None)
    worker.run()


if __name__ == "__main__":
    main(sys.argv[1:])
