"""Shell. What the processes of the data plane give up before they look at the first packet."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from typing import Final

NOBODY: Final = 65534


def ignore_signals() -> None:
    """The daemon, which gets the same ones, decides when this process ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def give_up(*, outlives: bool = False) -> None:
    """Everything is open; from now on a packet that took us over would find a process that may nothing. Nor
    does it keep the daemon's priority. Unless it `outlives` the daemon, even one that hangs ends with it."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
    with suppress(PermissionError):  # root without CAP_SETUID, as in a container, stays root without rights
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if not outlives:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no core file and no debugger gets the keys
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, ourselves
    if libc.capset(version, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "a process of the data plane cannot give up its rights")
