"""Two hosts with a network behind each, in namespaces, and traffic between them.

    inside_left -- left -- 198.51.100.0/24, 2001:db8::/64 -- right -- inside_right
                      \\ 192.168.7.0/24 -- nat -- /            (with nat=True left is behind it)
    second -- 192.168.8.0/24 --/                                (with neighbour=True another host is, too)
    left -- 192.168.7.0/24, 2001:db8:7::/64 -- router -- right  (with routed=True)

Names carry the process id and a number, so runs beside each other do not meet. Only IPv4 goes through the
NAT of nat=True; the router is made one by `masquerade`, for both versions.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyroute2.netns

_numbers = itertools.count()

LEFT, RIGHT = "198.51.100.1", "198.51.100.2"
LEFT6, RIGHT6 = "2001:db8::1", "2001:db8::2"
NATTED, NAT = "192.168.7.2", "198.51.100.1"
ROUTED6, ROUTER6 = "2001:db8:7::2", "2001:db8::1"
NEIGHBOUR = "192.168.8.2"
INSIDE_LEFT, INSIDE_RIGHT = "10.1.0.1", "10.2.0.1"
INSIDE_LEFT6, INSIDE_RIGHT6 = "fd00:1::1", "fd00:2::1"
NET_LEFT, NET_RIGHT = "10.1.0.0/24", "10.2.0.0/24"
NET_LEFT6, NET_RIGHT6 = "fd00:1::/64", "fd00:2::/64"


MASQUERADE = """
table inet nat {
    chain out {
        type nat hook postrouting priority 100
        oifname e0 masquerade
    }
}
"""
DROP = """
table inet lab {{
    chain in {{
        type filter hook input priority -300
        {rule}
    }}
}}
"""


def available() -> bool:
    """Whether namespaces, links and TUN devices can be made here: tried, not guessed."""
    name = f"probe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode != 0:
        return False
    try:
        command = ["ip", "-n", name, "tuntap", "add", "dev", "t0", "mode", "tun"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def ip(*arguments: str) -> str:
    """One `ip` command; raises with its message when it fails."""
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {result.stderr}")
    return result.stdout


def run(
    namespace: str, *command: str, stdin: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """A command in a namespace; does not raise on a status."""
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *command],
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def nft(namespace: str, rules: str) -> None:
    """Load nftables rules in a namespace."""
    done = run(namespace, "nft", "-f", "-", stdin=rules)
    assert done.returncode == 0, done.stderr


def footprint(namespace: str) -> str:
    """All that a data plane could leave behind: devices, rules, routes, packet filter. Link-local addresses
    and whether a link is up are the kernel's business, which it may still be about."""
    lines = [line.split()[0] for line in run(namespace, "ip", "-br", "link").stdout.splitlines()]
    for command in (
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
    ):
        lines += run(namespace, *command.split()).stdout.replace(" linkdown", "").splitlines()
    return "\n".join(line for line in lines if "fe80::" not in line and "ff00::" not in line)


@dataclass(frozen=True)
class Pinged:
    """What a `ping` saw: packets sent and answered, and the round trips in seconds."""

    sent: int
    received: int
    times: tuple[float, ...]

    @classmethod
    def read(cls, output: str) -> Pinged:
        """From the program's output."""
        summary = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        assert summary, output
        times = tuple(float(one) / 1000 for one in re.findall(r"time=([\d.]+) ms", output))
        return cls(int(summary[1]), int(summary[2]), times)


def ping_command(
    destination: str, source: str | None = None, *, count: int = 3, wait: float = 20
) -> tuple[str, ...]:
    """A `ping` that sends all at once and gives the last one as long as the others: by itself the program
    waits for it no longer than twice the longest answer before took, or an interval."""
    bound = ("-I", source) if source else ()
    how = {"-c": count, "-l": count, "-i": wait, "-W": wait}
    return ("ping", "-n", *bound, *(str(word) for one in how.items() for word in one), destination)


def ping(
    namespace: str, destination: str, source: str | None = None, *, count: int = 3, wait: float = 20
) -> Pinged:
    """Ping, and wait for the answers, but no longer than `wait` seconds."""
    return Pinged.read(run(namespace, *ping_command(destination, source, count=count, wait=wait)).stdout)


class Pinging:
    """A `ping` twenty times a second."""

    _ANSWER = re.compile(r"\[([\d.]+)\] \d+ bytes from .*icmp_seq=(\d+) .*time=([\d.]+) ms")
    _ENOUGH = 3  # the last ones that are waited for: the first of them is the last that counts

    def __init__(self, namespace: str, destination: str, source: str | None) -> None:
        bound = ("-I", source) if source else ()
        command = ["ip", "netns", "exec", namespace, "ping", "-n", "-D", *bound, "-i", "0.05", destination]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self._sent: dict[int, float] = {}  # when those were sent that have been answered, by their number
        self._output = ""
        self.sent = self.received = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output += line
            if found := self._ANSWER.match(line):
                self._sent[int(found[2])] = float(found[1]) - float(found[3]) / 1000

    def _since(self, moment: float) -> list[int]:
        return sorted(number for number, when in self._sent.copy().items() if when > moment)

    def goes_on(self, count: int = 6, seconds: float = 30) -> None:
        """Wait until as many that were sent from now on have been answered."""
        began, deadline = time.time(), time.monotonic() + seconds
        while len(self._since(began)) < count:
            assert time.monotonic() < deadline, f"no pings are answered any more:\n{self._output[-2000:]}"
            time.sleep(0.02)

    @property
    def lost(self) -> int:
        """Those without an answer, afterwards."""
        return self.sent - self.received

    def end(self) -> None:
        """What was sent until now counts, and is waited for as long as answers to later ones come."""
        began, deadline = time.time(), time.monotonic() + 10
        while len(later := self._since(began)) < self._ENOUGH and time.monotonic() < deadline:
            time.sleep(0.02)
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        self._reader.join(30)
        # when no answers come any more, all that were sent count
        self.sent = later[0] if len(later) >= self._ENOUGH else Pinged.read(self._output).sent
        self.received = sum(number <= self.sent for number in self._sent)


@contextlib.contextmanager
def pinging(namespace: str, destination: str, source: str | None = None) -> Iterator[Pinging]:
    """Ping twenty times a second while the block runs; what it yields knows the result afterwards."""
    made = Pinging(namespace, destination, source)
    try:
        yield made
    finally:
        made.end()


def socket_in(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in a namespace, for use from here."""
    made: list[socket.socket] = []

    def make() -> None:
        pyroute2.netns.setns(namespace)
        made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=make)  # a namespace is a property of the thread
    thread.start()
    thread.join()
    return made[0]


def tcp(
    client: str, server: str, destination: str, data: bytes, source: str | None = None, *, timeout: float = 40
) -> bytes:
    """Send `data` over a new TCP connection to an echo server; returns what came back."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with (
        socket_in(server, family, socket.SOCK_STREAM) as listener,
        socket_in(client, family, socket.SOCK_STREAM) as sender,
    ):
        listener.settimeout(timeout)
        sender.settimeout(timeout)
        listener.bind((destination, 0))
        listener.listen()
        echo = threading.Thread(target=_echo, args=(listener, timeout), daemon=True)
        echo.start()
        if source:
            sender.bind((source, 0))
        sender.connect((destination, listener.getsockname()[1]))
        writer = threading.Thread(target=_send, args=(sender, data), daemon=True)
        writer.start()
        received = bytearray()
        while part := sender.recv(65536):
            received += part
        writer.join(timeout)
        echo.join(timeout)
        return bytes(received)


@contextlib.contextmanager
def dripping(
    client: str, server: str, destination: str, drop: bytes, source: str | None = None, *, timeout: float = 30
) -> Iterator[None]:
    """One TCP connection to an echo server, on which `drop` is sent fifty times a second while the block
    runs; afterwards all of it must have come back."""
    with (
        socket_in(server, socket.AF_INET, socket.SOCK_STREAM) as listener,
        socket_in(client, socket.AF_INET, socket.SOCK_STREAM) as sender,
    ):
        for one in (listener, sender):
            one.settimeout(timeout)
        listener.bind((destination, 0))
        listener.listen()
        threading.Thread(target=_echo, args=(listener, timeout), daemon=True).start()
        if source:
            sender.bind((source, 0))
        sender.connect(listener.getsockname())
        over, sent = threading.Event(), 0

        def drip() -> None:
            nonlocal sent
            while not over.wait(0.02):
                sender.sendall(drop)
                sent += 1

        writer = threading.Thread(target=drip, daemon=True)
        writer.start()
        try:
            yield
        finally:
            over.set()
            writer.join(timeout)
        sender.shutdown(socket.SHUT_WR)
        received = bytearray()
        while part := sender.recv(65536):
            received += part
        assert sent > 0
        assert received == drop * sent


def _send(sender: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)


def _echo(listener: socket.socket, timeout: float) -> None:
    with contextlib.suppress(OSError):
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(timeout)
            while part := connection.recv(65536):
                connection.sendall(part)


class Lab:
    """The namespaces; `left`, `right`, `nat` and `second` are their names, e0 the link between the hosts on
    each; `router` is `nat`."""

    def __init__(self, *, nat: bool = False, neighbour: bool = False, routed: bool = False) -> None:
        prefix = f"ikd{os.getpid()}n{next(_numbers)}"
        self.left, self.right = f"{prefix}l", f"{prefix}r"
        self.router = f"{prefix}n"
        self.nat = self.router if nat or neighbour or routed else None
        self.routed = routed
        self.second = f"{prefix}s" if neighbour else None
        self.left_address = NATTED if self.nat else LEFT
        self._made: list[str] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for name in filter(None, (self.left, self.right, self.nat, self.second)):
            ip("netns", "add", name)
            self._made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
            # link-local addresses are there at once, and not in the middle of a comparison
            run(name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        if self.nat:
            self._link(self.left, "e0", f"{NATTED}/24", self.nat, "e1", "192.168.7.1/24")
            self._link(self.nat, "e0", f"{NAT}/24", self.right, "e0", f"{RIGHT}/24")
            ip("-n", self.left, "route", "add", "default", "via", "192.168.7.1")
            run(self.nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            if self.routed:
                self._route()
            else:
                self.masquerade()
            if self.second:
                self._link(self.second, "e0", f"{NEIGHBOUR}/24", self.nat, "e2", "192.168.8.1/24")
                ip("-n", self.second, "route", "add", "default", "via", "192.168.8.1")
        else:
            self._link(self.left, "e0", f"{LEFT}/24", self.right, "e0", f"{RIGHT}/24")
            self._address(self.left, "e0", f"{LEFT6}/64")
            self._address(self.right, "e0", f"{RIGHT6}/64")
        for name, four, six in (
            (self.left, INSIDE_LEFT, INSIDE_LEFT6),
            (self.right, INSIDE_RIGHT, INSIDE_RIGHT6),
        ):
            self._link(name, "in0", f"{four}/24", name, "in1", None)
            self._address(name, "in0", f"{six}/64")

    def _route(self) -> None:
        """IPv6 through the router, and no address translated."""
        self._address(self.left, "e0", f"{ROUTED6}/64")
        self._address(self.router, "e1", "2001:db8:7::1/64")
        self._address(self.router, "e0", f"{ROUTER6}/64")
        self._address(self.right, "e0", f"{RIGHT6}/64")
        run(self.router, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        ip("-n", self.left, "route", "add", "default", "via", "2001:db8:7::1")
        ip("-n", self.right, "route", "add", "192.168.7.0/24", "via", NAT)
        ip("-n", self.right, "route", "add", "2001:db8:7::/64", "via", ROUTER6)

    def masquerade(self) -> None:
        """Let the router give everybody behind it its own address."""
        nft(self.router, MASQUERADE)

    def mtu(self, octets: int, *, narrow: int | None = None) -> None:
        """The MTU of all links on the way, or another one for that of the right host."""
        ends = [(self.left, "e0"), (self.right, "e0")]
        if self.nat:
            ends += [(self.router, "e1"), (self.router, "e0")]
        for namespace, device in ends:
            near = device == "e0" and namespace != self.left
            ip("-n", namespace, "link", "set", device, "mtu", str(narrow if near and narrow else octets))

    def no_trains(self) -> None:
        """Let the hosts and the router send packets one by one, so that they can be measured and counted on
        the way."""
        for namespace in filter(None, (self.left, self.right, self.nat)):
            ip("-n", namespace, "link", "set", "e0", "gso_max_segs", "1")

    def _link(
        self, one: str, device: str, address: str, other: str, other_device: str, other_address: str | None
    ) -> None:
        ip("link", "add", device, "netns", one, "type", "veth", "peer", "name", other_device, "netns", other)
        for name, link, own in ((one, device, address), (other, other_device, other_address)):
            if own:
                self._address(name, link, own)
            ip("-n", name, "link", "set", link, "up")

    @staticmethod
    def _address(namespace: str, device: str, address: str) -> None:
        nodad = ("nodad",) if ":" in address else ()
        ip("-n", namespace, "addr", "add", address, "dev", device, *nodad)

    def drop(self, namespace: str, rule: str) -> None:
        """Add an nftables rule, such as `udp dport 4500 drop`, to what a namespace receives."""
        nft(namespace, DROP.format(rule=rule))

    def undrop(self, namespace: str) -> None:
        """Remove what `drop` added."""
        run(namespace, "nft", "delete", "table", "inet", "lab")

    def close(self) -> None:
        """Remove the namespaces and with them all links, and end what still runs there, such as workers that
        wait for another daemon."""
        while self._made:
            name = self._made.pop()
            for pid in ip("netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
