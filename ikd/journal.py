"""Shell. Messages to journald with fields of their own (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).

Small enough to be ours: what there is as a library is compiled against libsystemd, and waits while journald
does not read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

PATH: Final = "/run/systemd/journal/socket"
Fields = Iterable[tuple[str, str]]

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TOO_LONG: Final = frozenset((errno.EMSGSIZE, errno.ENOBUFS))


def encode(fields: Fields) -> bytes:
    """Fields as journald reads them; a name may come several times."""
    parts = bytearray()
    for name, value in fields:
        data = value.encode(errors="replace")
        if b"\n" in data:
            parts += b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)
        else:
            parts += b"%s=%s\n" % (name.encode(), data)
    return bytes(parts)


class Journal:
    """A logger for structlog: every level is one method. Never waits and never raises; messages that journald
    does not take are counted, and the next one that it takes is followed by their number."""

    def __init__(self, path: str = "") -> None:
        self.path = path or PATH
        self._lost = 0
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )

    def close(self) -> None:
        """Everything from now on is lost."""
        self._sock.close()

    def msg(self, fields: Fields) -> None:
        """Send one message."""
        if not self._sent(encode(fields)):
            self._lost += 1
        elif self._lost:
            text = f"{self._lost} messages lost: journald did not take them"
            lost = (("MESSAGE", text), ("PRIORITY", "4"), ("SYSLOG_IDENTIFIER", "ikd"), ("IKD_EVENT", "lost"))
            if self._sent(encode((*lost, ("IKD_COUNT", str(self._lost))))):
                self._lost = 0

    debug = info = warning = error = msg

    def _sent(self, data: bytes) -> bool:
        try:
            self._sock.sendto(data, self.path)
        except OSError as error:
            return error.errno in _TOO_LONG and self._sent_as_file(data)
        return True

    def _sent_as_file(self, data: bytes) -> bool:
        """What is too long for a datagram goes as a file in memory that nobody can change any more."""
        with suppress(OSError):
            handle = os.memfd_create("ikd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with open(handle, "wb", buffering=0) as file:
                file.write(data)
                fcntl.fcntl(handle, fcntl.F_ADD_SEALS, _SEALS)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", handle))]
                self._sock.sendmsg([b""], rights, 0, self.path)
            return True
        return False
