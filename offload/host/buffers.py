"""Shell. Room for bursts in sockets, above what the system gives to everybody.

More takes CAP_NET_ADMIN of the whole machine: in a container without it in a user namespace of its own, such
as one of a user who is not root, `net.core.rmem_max` and `wmem_max` are the end.
"""

from __future__ import annotations

import socket
from typing import Final

_FORCED: Final = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}  # SO_RCVBUFFORCE, SO_SNDBUFFORCE


def receive(sock: socket.socket, octets: int) -> None:
    """Room for what has come and was not read."""
    _ask(sock, socket.SO_RCVBUF, octets)


def send(sock: socket.socket, octets: int) -> None:
    """Room for what waits to be sent."""
    _ask(sock, socket.SO_SNDBUF, octets)


def _ask(sock: socket.socket, option: int, octets: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _FORCED[option], octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, octets)
