"""Shell. What only the running host knows: its addresses, address keywords, the addresses of names."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from threading import Thread
from typing import Any, Final, TypeVar

from policy.parse import Keywords
from sadb.address import Address, Network

T = TypeVar("T")

UNUSABLE: Final = 0x48  # IFA_F_TENTATIVE, IFA_F_DADFAILED
OURS: Final = range(0x1CE00000, 0x1CF00000)  # routing tables of the data plane (`offload.host.routes`)

# linux/rtnetlink.h
_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400  # addresses and routes of both families
_ROUTES: Final = range(24, 26)  # RTM_NEWROUTE, RTM_DELROUTE
_RTA_TABLE: Final = 15
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, sender
_RTMSG: Final = 12  # octets
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_NUMBER: Final = struct.Struct("=I")

RESOLVER: Final = Path("/etc/resolv.conf")
PATIENCE: Final = 5.0  # seconds for all names of a policy together
LOOKUPS: Final = 8  # at a time


def interfaces() -> list[tuple[Address, Network]]:
    """The addresses of this host with their networks, link-local and loopback ones included."""
    found = (ip_interface(f"{text}/{message['prefixlen']}") for text, message in _messages())
    return [(one.ip, one.network) for one in found]


def _messages() -> list[tuple[str, Any]]:
    """What the kernel says about each address of this host."""

    def ask(routes: Any) -> list[tuple[str, Any]]:
        found = ((one.get("IFA_LOCAL") or one.get("IFA_ADDRESS"), one) for one in routes.get_addr())
        return [(text, one) for text, one in found if text]

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


def places() -> dict[Address, int]:
    """The addresses of this host that can be used, which in IPv6 comes after it is seen that nobody else has
    them, and the index of the interface each is on."""
    return {
        ip_address(text): message["index"]
        for text, message in _messages()
        if not (message.get("IFA_FLAGS") or message["flags"]) & UNUSABLE
    }


class Watch:
    """Hears from the kernel that an address or a route came or went, whoever did it but our data plane.

    A socket of our own, since pyroute2 runs an event loop of its own: of a message it reads no more than
    which routing table it is about."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = asyncio.Event()
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)

    def __enter__(self) -> Watch:
        self._sock.bind((0, _GROUPS))
        self._loop.add_reader(self._sock, self._ready)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._sock)
        self._sock.close()

    async def changed(self) -> None:
        """Wait for something to change; what did since `clear` counts."""
        await self._changed.wait()

    def clear(self) -> None:
        """What has changed so far is known."""
        self._changed.clear()

    def _ready(self) -> None:
        for _ in range(64):
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # more than the socket holds: something has changed
                self._changed.set()
                return
            if not self._changed.is_set() and any(one not in OURS for one in tables(data)):
                self._changed.set()


def tables(data: bytes) -> Iterator[int]:
    """Which routing table each message of rtnetlink is about, 0 for one about an address."""
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        message, data = data[_HEADER.size : length], data[max(length + 3 & ~3, _HEADER.size) :]
        yield _table(message) if kind in _ROUTES else 0


def _table(message: bytes) -> int:
    """The table in a route message: it has a small number in its header, else an attribute."""
    table, rest = message[4] if len(message) >= _RTMSG else 0, message[_RTMSG:]
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if kind == _RTA_TABLE and length == _ATTRIBUTE.size + _NUMBER.size <= len(rest):
            return int(_NUMBER.unpack_from(rest, _ATTRIBUTE.size)[0])
        rest = rest[max(length + 3 & ~3, _ATTRIBUTE.size) :]
    return table


def keywords() -> Keywords:
    """What the address keywords of rules stand for here, as far as that is known."""
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
    """The addresses of names that have any; a resolver that does not answer leaves the rest out. Its threads
    are its own: one that waits for a dead server must hold up neither other work nor the daemon's end."""
    wanted = tuple(dict.fromkeys(names))
    if not wanted:
        return {}
    loop = asyncio.get_running_loop()
    asked = {name: loop.create_future() for name in wanted}
    left = deque(wanted)

    def work() -> None:
        with suppress(IndexError, RuntimeError):  # nothing is left, or the loop has closed meanwhile
            while True:
                name = left.popleft()
                loop.call_soon_threadsafe(asked[name].set_result, _lookup(name))

    for n in range(min(LOOKUPS, len(wanted))):
        Thread(target=work, name=f"name-{n}", daemon=True).start()
    await asyncio.wait(asked.values(), timeout=PATIENCE)
    left.clear()
    return {name: found for name, one in asked.items() if one.done() and (found := one.result())}


def _lookup(name: str) -> tuple[Address, ...]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(ip_address(str(answer[4][0])) for answer in answers))
