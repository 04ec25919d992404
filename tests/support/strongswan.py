"""strongSwan's charon as a peer: one instance per namespace or container, its files in their own directory.

The instance is `charon-systemd`, which runs in the foreground, writes no pid file and is steered by `swanctl`
over a socket of its own, so any number run at once. Its data plane is kernel-libipsec: userspace ESP, tunnel
mode, always in UDP.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.x509 import Certificate
from support.hosts import Host, Namespace

from ikd import pki

CHARON = "/usr/sbin/charon-systemd"
PLUGINS = (
    "random nonce openssl pem pkcs1 pkcs8 x509 revocation constraints pubkey aes sha2 sha1 hmac kdf gmp "
    "curve25519 chapoly gcm ccm ctr cmac xcbc mgf1 drbg kernel-libipsec kernel-netlink socket-default "
    "updown counters vici"
)
TOOLS = (CHARON, "swanctl", "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so")
IKEV1 = "aes128-sha256-ecp256,aes128-sha256-modp2048"
# Without it charon does not answer aggressive mode with a pre-shared key.
WEAK_AGGRESSIVE = {"i_dont_care_about_security_and_use_aggressive_mode_psk": "yes"}

Tree = Mapping[str, Any]


def missing() -> tuple[str, ...]:
    """What is not installed here; empty when a charon can be started."""
    return tuple(tool for tool in TOOLS if not (Path(tool).exists() or shutil.which(tool)))


def render(tree: Tree, indent: str = "") -> str:
    """Nested mappings as strongSwan's settings: one line per key, since values end with the line."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key} {{", render(value, indent + "    "), f"{indent}}}"]
        else:
            lines.append(f"{indent}{key} = {value}")
    return "\n".join(lines)


def merged(first: Tree, second: Tree) -> dict[str, Any]:
    """Both trees in one; where they have the same key the second wins."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


_TOKEN = re.compile(
    r"\s*(?:(?P<close>\})"
    r"|(?P<section>[^\s={}\[\]]+) \{"
    r"|(?P<list>[^\s={}\[\]]+)=\[(?P<items>[^\]]*)\]"
    r"|(?P<key>[^\s={}\[\]]+)=(?P<value>.*?)(?=\s+[^\s={}\[\]]+(?:=| \{)|\s*\}|$))"
)


def parse_raw(text: str) -> dict[str, Any]:
    """The messages that `swanctl --raw` prints, as nested dictionaries."""
    root: dict[str, Any] = {}
    stack = [root]
    for found in _TOKEN.finditer(text.strip()):
        if found["close"]:
            stack.pop()
        elif found["section"]:
            inner: dict[str, Any] = {}
            stack[-1][found["section"]] = inner
            stack.append(inner)
        elif found["list"]:
            stack[-1][found["list"]] = found["items"].split()
        elif found["key"]:
            stack[-1][found["key"]] = found["value"]
    return root


def psk_connection(
    local: str,
    peer: str,
    local_ts: str,
    remote_ts: str,
    *,
    local_id: str = "peer.lab",
    remote_id: str = "ikd.lab",
) -> dict[str, Any]:
    """The connection `net` between two addresses with a pre-shared key; scenarios merge their changes into
    it."""
    return {
        "version": 2,
        "local_addrs": local,
        "remote_addrs": peer,
        "proposals": "aes128-sha256-x25519,aes256gcm16-prfsha384-x25519,aes128-sha256-ecp256-modp2048",
        "local": {"auth": "psk", "id": local_id},
        "remote": {"auth": "psk", "id": remote_id},
        "children": {
            "net": {
                "local_ts": local_ts,
                "remote_ts": remote_ts,
                "esp_proposals": "aes128gcm16-x25519,aes128gcm16,aes256gcm16,aes128-sha256",
            }
        },
    }


def pubkey(local_id: str = "peer.lab", remote_id: str = "ikd.lab") -> dict[str, Any]:
    """The change to a connection that makes both sides prove themselves with certificates."""
    return {
        "send_cert": "always",
        "local": {"auth": "pubkey", "certs": "host.pem", "id": local_id},
        "remote": {"auth": "pubkey", "id": remote_id},
    }


def ikev1(*, aggressive: bool = False, proposals: str = IKEV1, esp: str = "aes128-sha256") -> dict[str, Any]:
    """The change to a connection that makes it one of IKEv1."""
    change = {"version": 1, "proposals": proposals, "children": {"net": {"esp_proposals": esp}}}
    return change | ({"aggressive": "yes"} if aggressive else {})


def _serves(path: Path) -> bool:
    """Whether somebody listens on a socket; it is there a moment before."""
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0


class Charon:
    """One charon on a machine or in a namespace. `connection` becomes the connection `net`; `options` go into
    `charon { }`."""

    def __init__(
        self,
        place: Host | str,
        directory: Path,
        connection: Tree,
        *,
        secret: str | None = None,
        secret_ids: tuple[str, ...] = (),
        options: Tree | None = None,
    ) -> None:
        self.host = Namespace(place) if isinstance(place, str) else place
        self.directory = directory
        self.socket = f"unix://{directory}/charon.vici"
        self.log_file = directory / "charon.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._variables = {
            "STRONGSWAN_CONF": str(directory / "strongswan.conf"),
            "SWANCTL_DIR": str(directory / "swanctl"),
        }
        for name in ("conf.d", "x509", "x509ca", "private"):
            (directory / "swanctl" / name).mkdir(parents=True, exist_ok=True)
        self._write_settings(options or {})
        self.configure(connection, secret=secret, secret_ids=secret_ids)

    def _write_settings(self, options: Tree) -> None:
        charon: Tree = {
            "load_modular": "no",
            "load": PLUGINS,
            "retransmit_tries": 3,
            "retransmit_timeout": 1,
            "filelog": {
                "log": {
                    "path": self.log_file,
                    "default": 1,
                    "flush_line": "yes",
                    "ike_name": "yes",
                    "append": "no",
                }
            },
            "journal": {"default": -1},
            "plugins": {"vici": {"socket": self.socket}},
        }
        swanctl = {"load": "pem pkcs1 x509 pkcs8 pubkey openssl random", "socket": self.socket}
        text = render({"charon": merged(charon, options), "swanctl": swanctl})
        (self.directory / "strongswan.conf").write_text(text + "\n")

    def configure(
        self, connection: Tree, *, secret: str | None = None, secret_ids: tuple[str, ...] = ()
    ) -> None:
        """Write swanctl.conf; a running charon takes it with `load`."""
        tree: dict[str, Any] = {"connections": {"net": connection}}
        if secret is not None:
            ids = {f"id-{n}": one for n, one in enumerate(secret_ids)}
            tree["secrets"] = {"ike-1": {**ids, "secret": f'"{secret}"'}}
        (self.directory / "swanctl" / "swanctl.conf").write_text(render(tree) + "\n")

    def credentials(self, authority: Certificate, host: pki.Pair) -> None:
        """The trusted authority, and our certificate with its key."""
        home = self.directory / "swanctl"
        (home / "x509ca" / "ca.pem").write_bytes(pki.certificate_pem(authority))
        (home / "x509" / "host.pem").write_bytes(pki.certificate_pem(host.certificate))
        private = home / "private" / "host.pem"
        private.write_bytes(pki.key_pem(host.key))
        private.chmod(0o600)

    @property
    def pid(self) -> int:
        """Process id while it runs (`ip netns exec` replaces itself by charon)."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Charon:
        """Start it and load its configuration; returns when it answers."""
        with (self.directory / "stdout").open("wb") as output:
            self.host.give(self.directory)
            self._process = self.host.start((CHARON,), self._variables, output)
        deadline = time.monotonic() + 60
        while not _serves(self.directory / "charon.vici"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"charon does not start: {(self.directory / 'stdout').read_text()}\n{self.log()}"
                )
            time.sleep(0.02)
        self.load()
        return self

    def stop(self) -> None:
        """End it, by its pid; safe to repeat."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None
        (self.directory / "charon.vici").unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        """Send a signal to the process, such as SIGSTOP to make a dead peer."""
        os.kill(self.pid, number)

    def __enter__(self) -> Charon:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def swanctl(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One swanctl command with its output; does not raise on a status."""
        return subprocess.run(
            ["swanctl", *arguments, "--uri", self.socket],
            env=os.environ | self._variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _done(self, *arguments: str) -> str:
        result = self.swanctl(*arguments)
        if result.returncode != 0:
            raise RuntimeError(
                f"swanctl {' '.join(arguments)}: {result.stdout}{result.stderr}\n{self.log()[-3000:]}"
            )
        return result.stdout

    def load(self) -> None:
        """Load connections, secrets and certificates from the files; raises when one is refused."""
        self._done("--load-all")

    def initiate(self, child: str = "net", timeout: int = 30) -> None:
        """Bring a Child SA up; raises with the log when that fails."""
        self._done("--initiate", "--child", child, "--timeout", str(timeout))

    def try_initiate(self, child: str = "net", timeout: int = 30) -> bool:
        """Whether a Child SA comes up."""
        return self.swanctl("--initiate", "--child", child, "--timeout", str(timeout)).returncode == 0

    def terminate(self, *, ike: str | None = None, child: str | None = None) -> None:
        """Delete an IKE SA or a Child SA."""
        self._done("--terminate", *self._which(ike, child), "--timeout", "30")

    def rekey(self, *, ike: str | None = None, child: str | None = None) -> None:
        """Replace an IKE SA or a Child SA."""
        self._done("--rekey", *self._which(ike, child))

    @staticmethod
    def _which(ike: str | None, child: str | None) -> tuple[str, str]:
        return ("--ike", ike) if ike else ("--child", child or "net")

    def list_sas(self) -> list[dict[str, Any]]:
        """The IKE SAs, each with its `child-sas`; all values are text."""
        found = []
        for line in self.swanctl("--list-sas", "--raw").stdout.splitlines():
            for event in parse_raw(line).values():
                found += [sa for sa in event.values() if isinstance(sa, dict)]
        return found

    def established(self) -> list[dict[str, Any]]:
        """The IKE SAs in use."""
        return [sa for sa in self.list_sas() if sa["state"] == "ESTABLISHED"]

    def children(self) -> list[dict[str, Any]]:
        """The installed Child SAs of all IKE SAs."""
        return [
            child
            for sa in self.list_sas()
            for child in sa.get("child-sas", {}).values()
            if child["state"] == "INSTALLED"
        ]

    def log(self) -> str:
        """Everything charon logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
