"""Numbers that no other test has at the same time: ports and networks, among all that run tests on this
machine. A number is held by the name of an abstract socket, which the kernel takes back when the process is
gone, however it ended."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from functools import cache

_BLOCK = 200
_PORTS = range(10_000, 30_000, _BLOCK)  # the kernel itself gives away those from 32768 on
_NETWORKS = range(512)
_dice = random.SystemRandom()


def _claim(what: str, among: range) -> int:
    for number in _dice.sample(among, len(among)):
        one = socket.socket(socket.AF_UNIX)
        try:
            one.bind(f"\0ikd-tests-{what}-{number}")
        except OSError:  # somebody else's
            one.close()
            continue
        one.detach()  # open until our end
        return number
    raise RuntimeError(f"no {what} of {len(among)} is left: do other runs of tests go on?")


def subnet() -> str:
    """The first three numbers of another network's addresses, of the range for benchmarks (RFC 2544)."""
    number = _claim("network", _NETWORKS)
    return f"198.{18 + number // 256}.{number % 256}"


@cache
def _ports() -> Iterator[int]:
    first = _claim("ports", _PORTS)
    return itertools.cycle(range(first, first + _BLOCK))


def port(*addresses: str) -> int:
    """A port that UDP and TCP have free on these addresses, else on all of this host. Nobody gets it until it
    is used: it is none of those that the kernel gives away."""
    return next(one for one in _ports() if all(_free(one, where) for where in addresses or ("0.0.0.0",)))


def _free(number: int, address: str) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as one:
            try:
                one.bind((address, number))
            except OSError:
                return False
    return True
