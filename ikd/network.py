"""Shell. What only the running host knows: its addresses, address keywords, the addresses of names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Final, TypeVar

from policy.parse import Keywords
from sadb.address import Address, Network

T = TypeVar("T")

RESOLVER: Final = Path("/etc/resolv.conf")
PATIENCE: Final = 5.0  # seconds for all names of a policy together


def interfaces() -> list[tuple[Address, Network]]:
    """The addresses of this host with their networks, link-local and loopback ones included."""

    def ask(routes: Any) -> list[tuple[Address, Network]]:
        found: list[tuple[Address, Network]] = []
        for message in routes.get_addr():
            text = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
            if text:
                interface = ip_interface(f"{text}/{message['prefixlen']}")
                found.append((interface.ip, interface.network))
        return found

    return _asked(ask)


def _asked(ask: Callable[[Any], list[T]]) -> list[T]:
    """What the kernel answers, nothing when it may not be asked. In a thread, because pyroute2 runs an event
    loop of its own."""
    from pyroute2 import IPRoute  # takes a while to import, and not everybody needs it

    def run() -> list[T]:
        with IPRoute() as routes:
            return ask(routes)

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(run).result()
        except OSError:
            return []


def addresses() -> frozenset[Address]:
    """The addresses of this host."""
    return frozenset(address for address, _ in interfaces())


def keywords() -> Keywords:
    """What the address keywords of policy.md section 3.2 stand for here, as far as that is known."""
    found: dict[str, Sequence[Network | Address]] = {
        "LocalSubnet": [
            network
            for address, network in interfaces()
            if not address.is_loopback and not address.is_link_local
        ],
        "DNS": name_servers(RESOLVER),
        "DefaultGateway": gateways(),
    }
    return {name: networks for name, networks in found.items() if networks}


def name_servers(path: Path) -> list[Address]:
    """The servers in a resolv.conf."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with suppress(ValueError):
                found.append(ip_address(words[1].partition("%")[0]))
    return found


def gateways() -> list[Address]:
    """The gateways of the default routes."""

    def ask(routes: Any) -> list[Address]:
        found: dict[Address, None] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in routes.get_default_routes(family):
                if text := message.get("RTA_GATEWAY"):
                    found[ip_address(text)] = None
        return list(found)

    return _asked(ask)


async def resolve(names: Iterable[str]) -> Mapping[str, tuple[Address, ...]]:
    """The addresses of names that have any; a resolver that does not answer leaves the rest out."""
    wanted = tuple(names)
    if not wanted:
        return {}
    tasks = {name: asyncio.create_task(asyncio.to_thread(_lookup, name)) for name in wanted}
    await asyncio.wait(tasks.values(), timeout=PATIENCE)
    done = {name: task.result() for name, task in tasks.items() if task.done()}
    return {name: found for name, found in done.items() if found}


def _lookup(name: str) -> tuple[Address, ...]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(ip_address(str(answer[4][0])) for answer in answers))
