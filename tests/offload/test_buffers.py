"""Room for bursts in sockets, with and without rights over the machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest

from offload.host import buffers

OCTETS = 50_000  # less than any system gives to everybody; Linux counts twice of it


@pytest.mark.parametrize(
    ("ask", "option"), [(buffers.receive, socket.SO_RCVBUF), (buffers.send, socket.SO_SNDBUF)]
)
def test_nobody_gets_what_everybody_may_have(ask: Callable[[socket.socket, int], None], option: int) -> None:
    """Root of a container in a user namespace of its own may force nothing, and was refused altogether."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                ask(sock, OCTETS)
                status = int(sock.getsockopt(socket.SOL_SOCKET, option) != 2 * OCTETS)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
