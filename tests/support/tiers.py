"""Where two daemons of a test are: podman containers, else network namespaces, else those of a user namespace
without any rights outside of it, else loopback. The best that works is taken, which is found out by trying.

    alpha  beta  kdc  router    .11 to .14 of one network
                        |
                      inner     .2 of another, behind the router, which translates addresses

Each host has a network behind it, 10.N.0.1/24, which only tunnels lead to. On loopback there are no hosts:
both daemons are in this process, their packet devices in memory, and every case is a tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from support import containers, kerberos, loopback
from support.alone import subnet
from support.containers import ROOT, Podman
from support.daemon import Ikd
from support.hosts import Host, Local, Namespace
from support.kerberos import ALPHA as ALPHA_SERVICE
from support.kerberos import BETA as BETA_SERVICE
from support.kerberos import Kdc
from support.lab import Pinged, ping_command
from support.matrix import ALPHA, BETA, OTHER, Case, Ends, daemon

from ikd.demo_memory import watch
from ikd.demo_steps import Seen

NUMBERS = {ALPHA: 11, BETA: 12, "kdc": 13, "router": 14}
INNER = "inner"
NOBODY = 65534


@dataclass(frozen=True)
class Wire:
    """What left both hosts: packets in ESP or AH, of keying, and what anybody could read."""

    sealed: int
    keying: int
    clear: int


class Pair(ABC):
    """Both daemons of a case, running; when both have sent there are `packets` in each direction."""

    packets: ClassVar[int]

    def __init__(self, alpha: Ikd, beta: Ikd) -> None:
        self.sides = {ALPHA: alpha, BETA: beta}

    @abstractmethod
    def send(self, own: str) -> None:
        """Packets from one host to the other, which must come back or arrive."""

    @abstractmethod
    def wire(self) -> Wire:
        """What there was since the daemons were started."""


class Tier(ABC):
    """One kind of place. `key` is its name for IKD_TIER."""

    key: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    @abstractmethod
    def why_not(cls, directory: Path) -> str:
        """Why this machine does not have it, or nothing: one is made and thrown away."""

    @abstractmethod
    def pair(self, case: Case, kdc: Kdc | None = None) -> contextlib.AbstractContextManager[Pair]:
        """Two daemons with the configuration of a case; their logs are shown when it fails. `kdc` is a realm
        on loopback, for tiers that have none."""

    @property
    @abstractmethod
    def kdc(self) -> Kdc | None:
        """The realm of the hosts; none where the one on loopback serves."""

    def close(self) -> None:  # noqa: B027 - there may be nothing
        """Leave nothing behind."""


# Hosts ---------------------------------------------------------------------------------------------------

# Everything but address resolution: what a tunnel has outside is sealed, too.
WATCH = """\
table inet watch {{
    counter sealed {{ }}
    counter keying {{ }}
    counter clear {{ }}
    chain out {{
        type filter hook postrouting priority 300
        oifname != "eth0" accept
        ip protocol {{ esp, ah }} counter name "sealed" accept
        udp sport 4500 @th,64,32 != 0 counter name "sealed" accept
        udp sport {{ 500, 4500 }} counter name "keying" accept
        ip daddr {{ {free} }} accept
        meta nfproto ipv4 counter name "clear"
    }}
}}
"""
MASQUERADE = """\
table ip nat {
    chain out {
        type nat hook postrouting priority 100
        oifname "eth0" masquerade
    }
}
"""


class Hosted(Tier):
    """A tier with hosts, each made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.lan, self.inside = subnet(), subnet()
        self._hosts: dict[str, Host] = {}
        self._daemons: dict[str, Ikd] = {}
        self._kdc: Kdc | None = None

    def address(self, name: str) -> str:
        """Where the others reach a host."""
        return f"{self.inside}.2" if name == INNER else f"{self.lan}.{NUMBERS[name]}"

    def network(self, name: str) -> str:
        """The address of a host in the network behind it, with the length of the prefix."""
        return f"10.{NUMBERS.get(name, 20)}.0.1/24"

    def ends(self, *names: str) -> Ends:
        """Two hosts in the places of alpha and beta."""
        networks = [self.network(name).replace(".1/24", ".0/24") for name in names]
        seen = [self.address("router" if name == INNER else name) for name in names]
        columns = map(self.address, names), seen, networks
        return Ends(*(dict(zip((ALPHA, BETA), column, strict=True)) for column in columns))

    def host(self, name: str) -> Host:
        """A host by its name."""
        if name not in self._hosts:
            if name == INNER:
                self._add_inside()
                self.host("router")
            host = self._hosts[name] = self._make(name)
            host.do("ip", "link", "add", "in0", "type", "veth", "peer", "name", "in1")
            host.do("ip", "addr", "add", self.network(name), "dev", "in0")
            for device in ("in0", "in1"):
                host.do("ip", "link", "set", device, "up")
            free = ", ".join((self.address("kdc"), f"{self.lan}.255", "224.0.0.0/4"))
            host.do("nft", "-f", "-", stdin=WATCH.format(free=free))
            if name == INNER:
                host.do("ip", "route", "replace", "default", "via", f"{self.inside}.254")
        return self._hosts[name]

    def _add_inside(self) -> None:
        """The network behind the router, and the router's link to it."""
        router = self.host("router")
        self._join_inside(router)
        router.do("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.do("nft", "-f", "-", stdin=MASQUERADE)

    @abstractmethod
    def _make(self, name: str) -> Host:
        """A host with one link, eth0, and its address on it."""

    @abstractmethod
    def _join_inside(self, router: Host) -> None:
        """Make the inner network, with the router at .254 of it."""

    @property
    def kdc(self) -> Kdc:
        if self._kdc is None:
            base = self.directory / "realm"
            base.mkdir(mode=0o755)
            kdc = Kdc(base, self.address("kdc"), self.host("kdc"))
            self._kdc = kdc
            for service, name in ((ALPHA_SERVICE, ALPHA), (BETA_SERVICE, BETA)):
                kdc.principal(service)
                kdc.keytab(f"{name}.keytab", service)
            kdc.start()
        return self._kdc

    @contextmanager
    def pair(
        self, case: Case, kdc: Kdc | None = None, names: tuple[str, str] = (ALPHA, BETA)
    ) -> Iterator[Pair]:
        """`names` are those of the hosts that play alpha and beta. The daemons go on afterwards, and read the
        files of the next case."""
        ends = self.ends(*names)
        with (
            self.daemon(names[0], case, ALPHA, ends) as alpha,
            self.daemon(names[1], case, BETA, ends) as beta,
        ):
            yield _Hosts((alpha, beta), case, ends)

    @contextmanager
    def daemon(self, name: str, case: Case, own: str, ends: Ends) -> Iterator[Ikd]:
        """The daemon of a host as one side of a case. One that was there when something failed is ended, and
        its log shown."""
        home = self.directory / "hosts" / name
        home.mkdir(parents=True, exist_ok=True)
        for path in home.rglob("*"):
            if path.suffix in (".pem", ".key") or path.name == "secrets.toml":
                path.unlink()
        kdc = None if kerberos.missing() else self.kdc
        made = daemon(case, own, ends, self.host(name), home, kdc=kdc)
        said = len(made.log())
        before, self._daemons[name] = self._daemons.get(name), made
        try:
            if before is not None and before.runs:
                made.replace(before)
            else:
                made.start()
            yield made
        except BaseException:
            self.free(name)
            print(f"--- {name}\n{made.log()[said:]}")
            raise

    def free(self, name: str) -> None:
        """End the daemon of a host, for another one."""
        if name in self._daemons:
            self._daemons.pop(name).stop()

    def close(self) -> None:
        for name in list(self._daemons):
            self.free(name)
        if self._kdc is not None:
            self._kdc.close()


class _Hosts(Pair):
    packets = 4  # pings and their answers

    def __init__(self, made: Sequence[Ikd], case: Case, ends: Ends) -> None:
        super().__init__(*made)
        behind = {one: net.replace(".0/24", ".1") for one, net in ends.inner.items()}
        self._sources = behind if case.tunnel else ends.outer
        self._destinations = behind if case.tunnel else ends.seen
        self.wire()

    def send(self, own: str) -> None:
        pinged = ping(self.sides[own].host, self._destinations[OTHER[own]], self._sources[own])
        assert pinged.received == pinged.sent, f"{own}: {pinged}"

    def wire(self) -> Wire:
        counts = [counted(one.host) for one in self.sides.values()]
        return Wire(*(sum(each) for each in zip(*counts, strict=True)))


def counted(host: Host) -> tuple[int, int, int]:
    """What left a host since this was asked last: sealed, keying, clear."""
    answer = json.loads(host.do("nft", "-j", "reset", "counters", "table", "inet", "watch"))
    found = {
        one["counter"]["name"]: one["counter"]["packets"] for one in answer["nftables"] if "counter" in one
    }
    return found["sealed"], found["keying"], found["clear"]


def ping(host: Host, destination: str, source: str, *, count: int = 2, wait: float = 10) -> Pinged:
    """Ping from a host."""
    return Pinged.read(host.run(*ping_command(destination, source, count=count, wait=wait)).stdout)


class Containers(Hosted):
    """Each host a container that may do three things, and whose file system is read-only."""

    key, name = "podman", "podman containers"

    @classmethod
    def why_not(cls, directory: Path) -> str:
        return containers.why_not(directory)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.podman = Podman(directory)
        self.lan = self.podman.subnet
        try:
            self.podman.start()
        except BaseException:
            self.podman.close()
            raise

    def _make(self, name: str) -> Host:
        network = f"{self.podman.network}i" if name == INNER else self.podman.network
        self.podman.run_at(name, network, self.address(name), self.directory)
        return self.podman.host(name, self.directory)

    def _join_inside(self, router: Host) -> None:
        self.podman.add_network(f"{self.podman.network}i", f"{self.inside}.0/24")
        self.podman.connect("router", f"{self.podman.network}i", f"{self.inside}.254")

    def close(self) -> None:
        super().close()
        self.podman.close()


class Namespaces(Hosted):
    """Each host a network namespace, all of them on one bridge."""

    key, name = "namespaces", "network namespaces"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.place: Host = Local()
        self._prefix = f"ikdt{os.getpid()}"
        self._made: list[str] = []
        self._open()
        self._switch = self._add("switch")
        for bridge in ("lan", "inside"):
            self._switch.do("ip", "link", "add", bridge, "type", "bridge")
            self._switch.do("ip", "link", "set", bridge, "up")

    def _open(self) -> None:
        """Where the names of namespaces are known."""

    def _namespace(self, name: str) -> Namespace:
        return Namespace(name)

    @classmethod
    def why_not(cls, directory: Path) -> str:
        for tool in ("ip", "ping", "nft"):
            if shutil.which(tool) is None:
                return f"{tool} is not installed"
        try:
            with contextlib.closing(cls(directory)) as made:
                probe = made._add("probe")
                probe.do("ip", "tuntap", "add", "dev", "t0", "mode", "tun")
                probe.do("nft", "add", "table", "inet", "t0")
                probe.do(sys.executable, "-c", "import cryptography")
                return ""
        except (RuntimeError, OSError) as error:
            return str(error).strip()

    def _add(self, name: str) -> Namespace:
        full = f"{self._prefix}{name}"
        self.place.do("ip", "netns", "add", full)
        self._made.append(full)
        host = self._namespace(full)
        host.do("ip", "link", "set", "lo", "up")
        host.do("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        return host

    def _make(self, name: str) -> Host:
        host = self._add(name)
        bridge = "inside" if name == INNER else "lan"
        self._plug(host, "eth0", bridge, f"{self.address(name)}/24", name)
        return host

    def _join_inside(self, router: Host) -> None:
        assert isinstance(router, Namespace)
        self._plug(router, "eth1", "inside", f"{self.inside}.254/24", "router1")

    def _plug(self, host: Namespace, device: str, bridge: str, address: str, port: str) -> None:
        peer = ("type", "veth", "peer", "name", port, "netns", self._switch.name)
        self.place.do("ip", "link", "add", device, "netns", host.name, *peer)
        self._switch.do("ip", "link", "set", port, "master", bridge, "up")
        host.do("ip", "addr", "add", address, "dev", device)
        host.do("ip", "link", "set", device, "up")

    def close(self) -> None:
        super().close()
        while self._made:
            self.place.do("ip", "netns", "del", self._made.pop())


INSIDE = "mount -t tmpfs tmpfs /run && echo ready && exec cat"  # until we are gone


def _shown(base: Path, *paths: str) -> list[str]:
    """Commands that let nobody see directories where they are, although the way to them is root's alone, as
    that to an interpreter in /root is."""
    closed = {path: _closed(Path(path)) for path in paths}
    hidden = {path: place for path, place in closed.items() if place is not None}
    lines = ["set -e", "mount --make-rprivate /"]
    for number, path in enumerate(hidden):
        lines += [f"mkdir {base}/{number}", f"mount --rbind '{path}' {base}/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs '{place}'" for place in dict.fromkeys(hidden.values())]
    for number, path in enumerate(hidden):
        lines += [f"mkdir -p '{path}'", f"mount --rbind {base}/{number} '{path}'"]
    return lines


def _closed(path: Path) -> Path | None:
    """The first directory on the way to another that others may not pass."""
    return next((one for one in reversed((path, *path.parents)) if not one.stat().st_mode & 1), None)


class UserNamespaces(Namespaces):
    """The same for somebody who is root nowhere but in a user namespace of his own; root plays nobody."""

    key, name = "userns", "network namespaces of a user namespace"

    def _open(self) -> None:
        command = ["unshare", "-Urnm", "sh", "-c", INSIDE]
        drop: tuple[str, ...] = ()
        if os.geteuid() == 0:
            drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
            script = _shown(self.directory, sys.base_prefix, sys.prefix, str(ROOT))
            script.append("exec " + shlex.join([*drop, *command]))
            command = ["unshare", "-m", "sh", "-c", "\n".join(script)]
        self._owner = NOBODY if drop else 0
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            raise OSError(self._holder.stderr.read().strip() or "unshare ends")
        enter = ("nsenter", "-t", str(self._holder.pid), "-U", "-m", "-n", "--preserve-credentials")
        self._entry = (*drop, *enter)
        self.place = _Inside(self._entry)

    def _namespace(self, name: str) -> Namespace:
        return Namespace(name, self._entry, self._owner)

    def close(self) -> None:
        Hosted.close(self)
        self._holder.kill()  # its namespaces go with it
        self._holder.communicate()


class _Inside(Local):
    """The user namespace."""

    def __init__(self, entry: tuple[str, ...]) -> None:
        self._entry = entry

    def outside(self, *command: str) -> list[str]:
        return [*self._entry, *command]


# No hosts ------------------------------------------------------------------------------------------------


class Loopback(Tier):
    """Nothing but UDP on two loopback addresses: both daemons in this process, packets in memory."""

    key, name = "loopback", "loopback, packets in memory"

    @classmethod
    def why_not(cls, directory: Path) -> str:
        try:
            loopback.free_ports()
        except OSError as error:
            return str(error)
        return ""

    @property
    def kdc(self) -> None:
        return None

    @contextmanager
    def pair(self, case: Case, kdc: Kdc | None = None) -> Iterator[Pair]:
        ports = loopback.free_ports()
        outer = {ALPHA: loopback.ADDRESSES["left"], BETA: loopback.ADDRESSES["right"]}
        inner = {ALPHA: loopback.INSIDE["left"], BETA: loopback.INSIDE["right"]}
        tunnel = replace(case, tunnel=True)
        made = []
        for own in (ALPHA, BETA):
            settings = {
                "daemon": {"listen": [outer[own]], "port": ports[0], "nat_port": ports[1]},
                "dataplane": {"backend": "memory"},
            }
            home = Path(tempfile.mkdtemp(prefix=own, dir=self.directory))
            ends = Ends(outer, outer, inner)
            made.append(daemon(tunnel, own, ends, Local(), home, kdc=kdc, settings=settings))
        pair = _Memory(made, inner)
        try:
            pair.start()
            yield pair
        except BaseException:
            pair.show()
            raise
        finally:
            pair.stop()


class _Memory(Pair):
    """The daemons' loop is in a thread of its own."""

    packets = 1

    def __init__(self, made: Sequence[Ikd], inner: dict[str, str]) -> None:
        super().__init__(*made)
        self._inner = inner
        self._seen = Seen()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._running: dict[str, loopback.Running] = {}

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def start(self) -> None:
        self._thread.start()
        for own, side in self.sides.items():
            self._running[own] = self._do(loopback.start(side.directory))
            watch(self._running[own].daemon, self._seen)

    def show(self) -> None:
        for own, one in self._running.items():
            print(f"--- {own}\n{one.said.getvalue()}")

    def stop(self) -> None:
        for one in self._running.values():
            self._do(one.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def send(self, own: str) -> None:
        source, destination = self._running[own].tun, self._running[OTHER[own]].tun
        packet = loopback.datagram(self._inner[own], self._inner[OTHER[own]], b"a text nobody may read")

        async def pass_on() -> bytes:
            source.inject(packet)
            return await asyncio.wait_for(destination.next(), 10)

        assert self._do(pass_on()) == packet

    def wire(self) -> Wire:
        return Wire(self._seen.kinds["ESP in UDP"], self._seen.kinds["IKE"], self._seen.readable)


# Which ---------------------------------------------------------------------------------------------------

TIERS: tuple[type[Tier], ...] = (Containers, Namespaces, UserNamespaces, Loopback)


@dataclass(frozen=True)
class Choice:
    """The tier that is used; `line` says which and why no better one."""

    tier: type[Tier]
    line: str


def choose(directory: Path, wanted: str = "") -> Choice:
    """The best tier that works; or the one that is `wanted`, or an exception with the reason."""
    reasons: list[str] = []
    for tier in TIERS:
        if wanted and tier.key != wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as name:
            probe = Path(name)
            probe.chmod(0o755)
            reason = tier.why_not(probe)
        if not reason:
            return Choice(tier, f"tier: {tier.name}" + (f" ({'; '.join(reasons)})" if reasons else ""))
        reasons.append(f"no {tier.name}: {textwrap.shorten(reason, 200)}")
    raise RuntimeError(
        "; ".join(reasons) or f"IKD_TIER={wanted}: there are {', '.join(t.key for t in TIERS)}"
    )
