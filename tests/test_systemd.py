"""Sockets from systemd: which process they are for, what they are, and what is not wanted."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ikd import systemd

ROOT = Path(__file__).resolve().parents[1]
CHILD = """\
import os, sys
from ikd import systemd
shift, *sockets = map(int, sys.argv[1:])
for number, one in enumerate(sockets, systemd.FIRST):
    os.dup2(one, number)
os.environ |= {"LISTEN_PID": str(os.getpid() + shift), "LISTEN_FDS": str(len(sockets))}
found = systemd.passed()
given = systemd.sockets(found)
left = sorted(name for name in os.environ if name.startswith("LISTEN"))
inheritable = [number for _, number in found if os.get_inheritable(number)]
print(found, given.control is not None, [one.getsockname() for one in given.udp], left, inheritable)
"""


def child(*sockets: socket.socket, shift: int = 0, names: str = "") -> str:
    """What a process says that has these sockets as systemd passes them, from 3 on; with `shift` they are
    announced to another process."""
    numbers = [fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 100) for one in sockets]  # free ones from there on
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(shift), *map(str, numbers)],
            env=os.environ | {"LISTEN_FDNAMES": names, "PYTHONPATH": str(ROOT)},
            pass_fds=numbers,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        for number in numbers:
            os.close(number)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_sockets_are_told_apart_and_announced_once(tmp_path: Path) -> None:
    """A worker that finds LISTEN_FDS in its environment, or inherits a socket, would keep the port."""
    with udp() as ike, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(str(tmp_path / "c"))
        control.listen()
        said = child(control, ike, names="ikd-control.socket:ikd.socket")
        names = [("ikd-control.socket", 3), ("ikd.socket", 4)]
        assert said == f"{names} True {[ike.getsockname()]} [] []"


def test_sockets_of_another_process_are_left_alone() -> None:
    """A daemon started by a service that was itself activated must not take that service's sockets."""
    with udp() as ike:
        assert child(ike, shift=1) == "[] False [] [] []"


def test_nothing_is_passed_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual case, and variables that make no sense."""
    for count, process in ((None, None), ("-1", os.getpid()), ("many", os.getpid()), ("0", os.getpid())):
        for name, value in (("LISTEN_FDS", count), ("LISTEN_PID", process)):
            if value is not None:
                monkeypatch.setenv(name, str(value))
        assert systemd.passed() == []


def test_socket_without_a_use_is_refused_with_its_name() -> None:
    """A TCP socket that nobody serves would look to the administrator as if it were."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        said = child(tcp, names="ikd.socket")
    assert "SOCK_STREAM" in said
    assert "ikd.socket" in said
    assert "ListenDatagram=" in said
