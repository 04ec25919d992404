"""Shell. The data planes of `ikctl bench esp`: two hosts, a network behind each, and what lies between them.

All have the same link of 1500 octets, the same inner networks, and an MTU of 1400 octets inside. A plane is a
context: entered, packets can pass from one network to the other; left, nothing of it remains.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ikd.bench import hosts, parties
from ikd.bench.hosts import Trouble, ip
from ikd.control.client import Client
from ikd.control.protocol import ControlError

MTU: Final = 1400
RULE: Final = "net"
QUIET_RULE: Final = "quiet"  # its keys are replaced while packets of the other pass
CROWD_RULE: Final = "crowd"  # for pairs that nothing passes, with many other peers
CROWD_NET: Final = "172.16.0.0/12"  # behind them, an address each
CROWD_ID: Final = "crowd.bench"
PATIENCE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two hosts: `inner` is its address in the network behind it, `quiet` another such network;
    `beside` is its address on the link to its other peers, who are at `crowd`."""

    name: str
    address: str
    inner: str
    net: str
    quiet: str
    beside: str
    crowd: str

    @property
    def id(self) -> str:
        """Who it is to the other."""
        return f"{self.name}.bench"

    @property
    def others(self) -> str:
        """The namespace of its other peers."""
        return f"{self.name}-crowd"


LEFT: Final = Side(
    "left", "198.51.100.1", "10.1.0.1", "10.1.0.0/24", "10.1.1.0/24", "203.0.113.1", "203.0.113.2"
)
RIGHT: Final = Side(
    "right", "198.51.100.2", "10.2.0.1", "10.2.0.0/24", "10.2.1.0/24", "203.0.113.1", "203.0.113.2"
)
ENDS: Final = ((LEFT, RIGHT), (RIGHT, LEFT))  # each with the other


@dataclass(frozen=True, slots=True)
class Standing:
    """A plane that is up: its processes by name, and the control socket of an `ikd` that can be asked."""

    processes: Mapping[str, int]
    control: Path | None = None
    crowds: Mapping[str, Path] = field(default_factory=dict)  # files of other peers, by side


Names = Mapping[str, str]
Up = Callable[[Names, Path], AbstractContextManager[Standing]]


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane under test; `missing` has how to install what it needs, or nothing."""

    cipher: str | None
    missing: Callable[[], str]
    up: Up
    ours: bool = False


@contextlib.contextmanager
def link() -> Iterator[Names]:
    """The two hosts, and a place for other peers of each."""
    with hosts.namespaces(*(name for side, _ in ENDS for name in (side.name, side.others))) as names:
        hosts.link((names["left"], "e0", LEFT.address), (names["right"], "e0", RIGHT.address))
        for side, _ in ENDS:
            hosts.inside(names[side.name], f"{side.inner}/24")
            hosts.link((names[side.name], "e1", side.beside), (names[side.others], "e0", side.crowd))
        yield names


# No protection -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _plain(names: Names, directory: Path) -> Iterator[Standing]:
    """Routes with the MTU that the others have."""
    for side, other in ENDS:
        mtu = "mtu", "lock", str(MTU), "advmss", str(MTU - 40)
        via = "via", other.address, "dev", "e0", "src", side.inner
        ip("-n", names[side.name], "route", "add", other.net, *via, *mtu)
    yield Standing({})


# Ours ----------------------------------------------------------------------------------------------------

# The sender's port of its first message is another on the way, as a NAT would make it: so both ends put ESP
# into UDP. It is undone once the SAs are there, and no packet that is measured is touched.
_NAT: Final = """\
table ip bench {
    chain leaves {
        type filter hook postrouting priority 300
        oifname e0 udp sport 500 udp sport set 501
    }
    chain comes {
        type filter hook prerouting priority -300
        iifname e0 udp dport 501 udp dport set 500
    }
}
"""
_SETTINGS: Final = """\
[daemon]
control = "{home}/control.sock"
state   = "{home}/state"

[dataplane]
mtu    = {mtu}
engine = "{engine}"
orphan_seconds = 0

[identity]
id = "{id}"

[limits]
peer_children = 1_000_000
peer_rate     = 0

[log]
level  = "info"
format = "json"
"""
_RULE: Final = """\
[[rule]]
name     = "{name}"
local    = "{own_net}"
remote   = "{peer_net}"
tunnel   = {{ local = "{own}", remote = "{peer}" }}
security = "require"
auth     = "bench"
crypto   = "bench"
peer     = "{identity}"

"""
_SETS: Final = """\
[auth.bench]
first = ["psk"]

[crypto.bench]
main  = ["x25519 aes128gcm sha256"]
quick = ["aes128gcm"]
esn   = false
"""


def settings(identity: str, home: str, engine: str) -> str:
    """ikd.toml."""
    return _SETTINGS.format(home=home, mtu=MTU, id=identity, engine=engine)


def policy(side: Side, other: Side) -> str:
    """policy.toml: a tunnel for what is measured, one that nothing passes, and those of the other peers."""
    pair = side.address, other.address, other.id
    return _policy(
        (RULE, side.net, other.net, *pair),
        (QUIET_RULE, side.quiet, other.quiet, *pair),
        (CROWD_RULE, side.quiet, CROWD_NET, side.beside, "any", CROWD_ID),
    )


def crowd_policy(side: Side) -> str:
    """policy.toml of the other peers of a side."""
    return _policy((CROWD_RULE, CROWD_NET, side.quiet, side.crowd, side.beside, side.id))


def _policy(*rules: tuple[str, ...]) -> str:
    keys = "name", "own_net", "peer_net", "own", "peer", "identity"
    return "".join(_RULE.format(**dict(zip(keys, one, strict=True))) for one in rules) + _SETS


def _ikd(engine: str) -> Up:
    @contextlib.contextmanager
    def up(names: Names, directory: Path) -> Iterator[Standing]:
        secret = os.urandom(24).hex()
        pids: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            for side, other in reversed(ENDS):
                home = directory / side.name
                home.mkdir()
                (home / "ikd.toml").write_text(settings(side.id, str(home), engine))
                (home / "policy.toml").write_text(policy(side, other))
                secrets = parties.secrets(other.id, secret) + parties.secrets(CROWD_ID, secret)
                hosts.private(home / "secrets.toml", secrets.encode())
                _crowd_files(directory / side.others, side, engine, secret)
                made = hosts.ikd(names[side.name], home, None, {})
                pids[f"{side.name}/ikd"] = stack.enter_context(made)
            control = directory / LEFT.name / "control.sock"
            _establish(names[LEFT.name], control, engine)
            yield Standing(pids, control, {side.name: directory / side.others for side, _ in ENDS})

    return up


def _crowd_files(home: Path, side: Side, engine: str, secret: str) -> None:
    home.mkdir()
    (home / "ikd.toml").write_text(settings(CROWD_ID, str(home), engine))
    (home / "policy.toml").write_text(crowd_policy(side))
    hosts.private(home / "secrets.toml", parties.secrets(side.id, secret).encode())


def _establish(namespace: str, control: Path, engine: str) -> None:
    """Bring both tunnels up, in UDP and through this engine."""
    _nft(namespace, _NAT)
    try:
        with Client(control, PATIENCE) as client:
            for rule in (RULE, QUIET_RULE):
                client.call("up", name=rule, timeout=PATIENCE)
            pairs = client.call("sa", kind="quick")["quick"]
            found = client.call("status")["engine"]
    except ControlError as error:
        raise Trouble(f"no tunnel: {error}") from None
    _nft(namespace, "delete table ip bench\n")
    if not all(pair["encapsulation"] for pair in pairs):
        raise Trouble("ESP does not go in UDP")
    if engine not in found:
        raise Trouble(f"the daemon does not have the engine {engine}, but {found}")


def _nft(namespace: str, rules: str) -> None:
    command = ["ip", "netns", "exec", namespace, "nft", "-f", "-"]
    done = subprocess.run(command, input=rules, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Trouble(f"nft: {done.stderr}")


def _no_nft() -> str:
    return "" if shutil.which("nft") else "apt-get install nftables"


def _no_native() -> str:
    if importlib.util.find_spec("offload._native") is None:
        return "build it: apt-get install gcc libssl-dev, then pip install again"
    return _no_nft()


# strongSwan ----------------------------------------------------------------------------------------------


def charon_connection(side: Side, other: Side, secret: str) -> str:
    """swanctl.conf."""
    connection: parties.Tree = {
        "version": 2,
        "local_addrs": side.address,
        "remote_addrs": other.address,
        "proposals": "aes128gcm16-prfsha256-x25519",
        "local": {"auth": "psk", "id": side.id},
        "remote": {"auth": "psk", "id": other.id},
        "children": {
            RULE: {"local_ts": side.net, "remote_ts": other.net, "esp_proposals": "aes128gcm16"},
        },
    }
    key = {"ike-1": {"id-1": side.id, "id-2": other.id, "secret": f'"{secret}"'}}
    tree: parties.Tree = {"connections": {RULE: connection}, "secrets": key}
    return "\n".join([*parties.render(tree), ""])


@contextlib.contextmanager
def _strongswan(names: Names, directory: Path) -> Iterator[Standing]:
    secret = os.urandom(24).hex()
    pids: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for side, other in reversed(ENDS):
            home = directory / side.name
            hosts.charon_files(home, charon_connection(side, other, secret))
            pids[f"{side.name}/charon"] = stack.enter_context(hosts.strongswan(names[side.name], home))
        hosts.swanctl(directory / LEFT.name, "--initiate", "--child", RULE, "--timeout", "20")
        yield Standing(pids)


def _no_strongswan() -> str:
    return parties.INSTALL_CHARON if hosts.strongswan_missing() else ""


# WireGuard -----------------------------------------------------------------------------------------------

_SOCKETS: Final = Path("/var/run/wireguard")
_WIREGUARD_PORT: Final = 51820


@contextlib.contextmanager
def _wireguard(names: Names, directory: Path) -> Iterator[Standing]:
    """Its control sockets lie in one directory for all namespaces, so the devices need names of their own."""
    keys = {side: X25519PrivateKey.generate() for side, _ in ENDS}
    pids: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        if not _SOCKETS.exists():
            stack.callback(_remove_empty, _SOCKETS)
        for side, other in ENDS:
            namespace, device = names[side.name], f"wg{os.getpid()}{side.name[0]}"
            ready, log = _SOCKETS / f"{device}.sock", directory / f"{side.name}.log"
            stack.callback(ready.unlink, missing_ok=True)
            command, foreground = ["wireguard-go", "-f", device], {"WG_PROCESS_FOREGROUND": "1"}
            made = stack.enter_context(hosts.process(namespace, command, log, foreground))
            hosts.await_file(made, ready, "wireguard-go", log)
            pids[f"{side.name}/wireguard-go"] = made.pid
            secret = directory / f"{side.name}.key"
            hosts.private(secret, base64.b64encode(keys[side].private_bytes_raw()))
            public = keys[other].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            own = "private-key", str(secret), "listen-port", str(_WIREGUARD_PORT)
            peer = "peer", base64.b64encode(public).decode(), "allowed-ips", other.net
            endpoint = "endpoint", f"{other.address}:{_WIREGUARD_PORT}"
            ip("netns", "exec", namespace, "wg", "set", device, *own, *peer, *endpoint)
            ip("-n", namespace, "link", "set", device, "mtu", str(MTU), "up")
            ip("-n", namespace, "route", "add", other.net, "dev", device, "src", side.inner)
        yield Standing(pids)


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _no_wireguard() -> str:
    there = shutil.which("wireguard-go") and shutil.which("wg")
    return "" if there else "apt-get install wireguard-go wireguard-tools"


PLANES: Final[Mapping[str, Plane]] = {
    "veth": Plane(None, str, _plain),
    "native": Plane("AES-128-GCM", _no_native, _ikd("native"), ours=True),
    "python": Plane("AES-128-GCM", _no_nft, _ikd("python"), ours=True),
    "strongswan": Plane("AES-128-GCM", _no_strongswan, _strongswan),
    "wireguard-go": Plane("ChaCha20-Poly1305", _no_wireguard, _wireguard),
}
