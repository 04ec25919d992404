"""Shell. `ikd`, the daemon: reads its files, serves until it is told to stop, and says clearly why it
cannot."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from ikd import __version__
from ikd.control.service import ControlService
from ikd.daemon import CannotStart, Daemon
from ikd.loading import ConfigurationError, load
from ikd.loop import Loop

NICE: Final = -10  # IKE does not wait for packets: who carries them has the usual priority


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit status: 0 after an orderly stop, 1 when it cannot start, 78 when that is the
    configuration's fault and another try would not help (sysexits(3))."""
    parser = argparse.ArgumentParser(prog="ikd", description="The IPsec key-management daemon.")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("/etc/ikd"),
        metavar="DIR",
        help="directory with ikd.toml and policy.toml (default: /etc/ikd)",
    )
    parser.add_argument("--version", action="version", version=f"ikd {__version__}")
    given = parser.parse_args(arguments)
    faulthandler.enable()  # SIGABRT, by which systemd ends a daemon that hangs, shows where
    try:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(_serve(given.config))
    except ConfigurationError as error:
        for complaint in error.complaints:
            print(f"ikd: {complaint}", file=sys.stderr)
        return os.EX_CONFIG
    except CannotStart as error:
        print(f"ikd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the daemon listens to signals itself
        return 130
    return 0


async def _serve(directory: Path) -> None:
    configuration = await load(directory).resolved()
    daemon = Daemon(configuration, ControlService)
    with suppress(OSError):  # without the right to it
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    gc.freeze()  # what is here stays: collections need not look at it again
    gc.set_threshold(20_000, 50, 50)  # an IKE SA has hundreds of objects and stays: look at them less often
    await daemon.run()


if __name__ == "__main__":
    sys.exit(main())
