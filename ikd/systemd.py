"""Shell. What systemd wants to hear from a service (sd_notify(3)), silent when nobody listens, and the
sockets it opened for one (sd_listen_fds(3))."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

FIRST: Final = 3  # SD_LISTEN_FDS_START


def notify(*lines: str) -> None:
    """Send a state such as `READY=1` or `STATUS=…`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.sendall("\n".join(lines).encode())


def reloading() -> None:
    """A reload begins; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog() -> float | None:
    """Seconds between pings: half of what systemd allows; None when it does not watch us."""
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", "0"))
        ours = int(os.environ.get("WATCHDOG_PID", "") or os.getpid()) == os.getpid()
    except ValueError:
        return None
    return allowed / 2e6 if allowed > 0 and ours else None


@dataclass(frozen=True, slots=True)
class Given:
    """Sockets that systemd opened: they outlive us, and what arrives while nobody serves waits there."""

    control: socket.socket | None = None
    udp: tuple[socket.socket, ...] = ()


def passed() -> list[tuple[str, int]]:
    """Descriptors that systemd passed to this process, each with its name; raises `OSError`. Only once: the
    variables that announce them go, so that no process of ours takes them for its own."""
    process, count, names = (os.environ.pop(f"LISTEN_{one}", "") for one in ("PID", "FDS", "FDNAMES"))
    if not count.isdecimal() or process != str(os.getpid()):
        return []
    numbers = range(FIRST, FIRST + int(count))
    for number in numbers:
        os.set_inheritable(number, False)
    called = names.split(":") if names else []
    return list(zip([*called, *["unknown"] * (len(numbers) - len(called))], numbers, strict=False))


def sockets(descriptors: Sequence[tuple[str, int]]) -> Given:
    """Tell sockets apart by what they are; raises `OSError` for what the daemon has no use for."""
    control: list[socket.socket] = []
    udp: list[socket.socket] = []
    for name, number in descriptors:
        sock = socket.socket(fileno=number)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        match (sock.family, sock.type):
            case (socket.AF_UNIX, socket.SOCK_STREAM) if listens and not control:
                control.append(sock)
            case (socket.AF_INET | socket.AF_INET6, socket.SOCK_DGRAM):
                udp.append(sock)
            case _:
                what = f"{sock.family.name} {sock.type.name} {sock.getsockname()} of {name}"
                remedy = "only ListenDatagram= for IKE and one ListenStream= for the control socket"
                raise OSError(
                    errno.EINVAL, f"systemd passed a socket that ikd does not use, {what}: {remedy}"
                )
    return Given(control[0] if control else None, tuple(udp))
